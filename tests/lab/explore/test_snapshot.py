"""A stage is put back exactly, whatever went on, channels closed and taken away among it; and nothing leaks."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest

from tests.lab.explore.digest import guest_memory, image, objects
from vmbusirq.errors import IrqError
from vmbusirq.host.options import HostOptions
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.lab.explore.actors import Actor, may_go
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.search import all_orders, play
from vmbusirq.lab.explore.snapshot import Snapshot
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import World
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.packet import Packet


def _stage(engine: str = "linux") -> Stage:
    return Stage(cpus=3, channels={5: 1, 6: 2}, engine=engine, options=HostOptions(modify_delay_ticks=100))


def _cast(stage: Stage) -> Sequence[Actor]:
    """Everything at once: moves, traffic, a CPU that goes and comes back."""
    refusals = (errno.EBUSY, errno.EINVAL, errno.EIO)
    irqs = {relid: stage.channel(relid).irq for relid in (5, 6)}
    return (
        stage.task("move 5", lambda: stage.irq.irq_set_affinity_steps(irqs[5], 0b101), may_fail=refusals),
        stage.task("move 6", lambda: stage.irq.irq_set_affinity_steps(irqs[6], 0b011), may_fail=refusals),
        stage.task("offline", lambda: stage.switch.down(2), may_fail=refusals),
        stage.task("online", lambda: stage.switch.up(2), may_fail=refusals),
        stage.host_control(),
        stage.device(5, packets=2),
        stage.device(6, packets=2),
        *stage.cpus(),
        stage.time(at_any_time=True),
    )


def _state(stage: Stage) -> dict[str, Any]:
    return {
        "watch": dict(stage.watch()),
        "objects": objects(stage, log=True),
        "memory": guest_memory(stage),
        "image": image(stage),
        "log": [str(entry) for entry in stage.log],
    }


def _same(before: dict[str, Any], after: dict[str, Any]) -> None:
    paths = before["objects"] | after["objects"]
    assert {} == {
        path: (before["objects"].get(path), after["objects"].get(path))
        for path in paths
        if before["objects"].get(path) != after["objects"].get(path)
    }
    assert before == after


@pytest.mark.parametrize("engine", ["linux", "fast"])
def test_everything_is_as_before_whatever_went_on(engine: str, seed: int) -> None:
    """Drawn orders of moves, traffic and hotplug, some left in their midst."""
    scene = StageScene(lambda: _stage(engine), _cast, lambda _: ())
    world = World(scene)
    before = _state(scene.stage)
    random = Random(seed)
    changed = 0
    for _ in range(25):
        for _ in range(random.randrange(120)):
            choices = world.choices()
            if not choices or world.take(random.choice(choices).name):
                break
        changed += _state(scene.stage) != before
        world.reset()
        _same(before, _state(scene.stage))
    assert changed > 15


def _traffic(stage: Stage) -> None:
    channel = stage.host.default.channel(5)
    assert channel is not None
    assert channel.rings is not None
    channel.rings.write(Packet(b"some bytes"))
    stage.partition.settle()


def _another_device(stage: Stage) -> None:
    stage.host.add_device(GenericVsp("mouse", CLASS_IDS["mouse"]), UUID(int=9), name="another", relid=9)
    stage.partition.settle()
    assert 9 in stage.vmbus.channels
    stage.vmbus.open(stage.vmbus.channels[9])


def _hotplug(stage: Stage) -> None:
    with pytest.raises(IrqError):
        stage.switch.set_online(1, False)
    stage.irq.irq_set_affinity(stage.channel(6).irq, 1)
    stage.partition.settle()
    stage.partition.clock.advance(1000)
    stage.switch.set_online(2, False)


def _faces(stage: Stage) -> None:
    stage.vmbus.target_cpu_store(stage.channel(5), b"2")
    stage.partition.settle()
    stage.irq.irq_set_affinity(stage.channel(5).irq, 0b11)


def _irqs(stage: Stage) -> None:
    stage.irq.disable_irq(stage.channel(5).irq)
    _traffic(stage)
    stage.log.err("something")


def _close(stage: Stage) -> None:
    """Its rings are unmapped, and their memory goes to another channel."""
    stage.vmbus.close(stage.channel(5))
    stage.partition.settle()
    _another_device(stage)


def _rescind(stage: Stage) -> None:
    """Its descriptor is freed."""
    stage.host.remove_device(stage.host.devices[0])
    stage.partition.settle()
    assert 5 not in stage.vmbus.channels


@pytest.mark.parametrize("what", [_traffic, _another_device, _hotplug, _faces, _irqs, _close, _rescind])
def test_ordinary_calls_are_undone(what: Callable[[Stage], None]) -> None:
    stage = _stage()
    stage.irq.idle = stage.partition.idle
    snapshot = Snapshot(stage, stage.core.handle, stage.partition.memory)
    before = _state(stage)
    for _ in range(2):  # what was put back works as it did
        what(stage)
        assert before != _state(stage)
        snapshot.restore()
        _same(before, _state(stage))


def _closing(stage: Stage) -> Sequence[Actor]:
    channel = stage.channel(5)
    return (
        stage.task("close", lambda: stage.vmbus.close_steps(channel), may_fail=(errno.EBUSY,)),
        stage.host_control(),
        stage.device(5),
        *stage.cpus(whole=True),
        stage.time(),
    )


def _closing_scene() -> StageScene:
    return StageScene(lambda: Stage(channels={5: 1}), _closing, lambda stage: (stage.lost_flags,))


def test_a_channel_that_an_order_closes_is_open_again_in_the_next() -> None:
    """A device that is overtaken by the close writes to nobody's memory."""
    scene = _closing_scene()
    before = _state(scene.stage)
    found = all_orders(World(scene))
    assert found == all_orders(World(scene)) == all_orders(World(_closing_scene()))
    assert found.complete
    assert found.orders > 10
    scene.reset()
    _same(before, _state(scene.stage))


class _Anew:
    """A scene whose stage is never put back, but made anew."""

    def __init__(self, build: Callable[[], StageScene]) -> None:
        self._build = build
        self._scene = build()

    def reset(self) -> None:
        self._scene = self._build()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scene, name)


def test_a_stage_that_is_put_back_explores_as_one_that_is_made_anew() -> None:
    def scene() -> StageScene:
        return StageScene(_stage, _cast, lambda stage: (stage.stranded, stage.outside_mask, stage.host_disagrees))

    assert all_orders(World(_Anew(scene)), most=8) == all_orders(World(scene()), most=8)


def test_time_is_tied_to_everything() -> None:
    """Timers queue work, poke CPUs and end waits; and a border may be set to how far it goes."""
    stage = _stage()
    clock = stage.partition.clock
    for time in (stage.time(at_any_time=True), stage.time()):
        assert time.touches is None
    near, far = (stage.time(at_any_time=True, within=ticks) for ticks in (99, 100))
    clock.call_at(clock.now + 100, lambda: None)
    assert (False, True) == (may_go(near, ()), may_go(far, ()))


def test_an_operation_that_is_under_way_cannot_be_saved() -> None:
    stage = _stage()
    under_way = stage.switch.down(2)
    next(under_way)
    with pytest.raises(TypeError, match=r"^a stage cannot be saved: it reaches builtins\.generator "):
        Snapshot([stage, under_way], stage.core.handle, stage.partition.memory)
    under_way.close()
    with pytest.raises(TypeError, match=r"^a stage cannot be saved: it reaches builtins\.list_iterator "):
        Snapshot([stage, iter([1])], stage.core.handle, stage.partition.memory)


def _held() -> tuple[int, int]:
    """Return this process's descriptors and mappings."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), Path("/proc/self/maps").read_text().count("\n")


def test_thousands_of_restores_leave_nothing_behind() -> None:
    scene = StageScene(_stage, _cast, lambda _: ())
    world = World(scene)

    def some(orders: int) -> None:
        random = Random(1)
        for _ in range(orders):
            world.reset()
            for _ in range(6):
                world.take(random.choice(world.choices()).name)

    some(100)
    before, tracked = _held(), len(gc.get_objects())
    some(1500)
    assert before == _held()
    assert abs(len(gc.get_objects()) - tracked) < 100


def test_rings_that_orders_close_leave_nothing_behind() -> None:
    """They stay mapped until the scene goes; those that an order opens go with the order."""
    scene = _closing_scene()
    world = World(scene)
    order = play(world, ()).order
    before = _held()
    for _ in range(200):
        play(world, order)
        _another_device(scene.stage)
    scene.reset()
    assert before == _held()
    del scene, world
    gc.collect()
