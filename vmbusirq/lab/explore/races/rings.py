"""A signal against the end that looks for it: the mask of a reader, the pending size of a writer."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from vmbusirq._ffi import lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import OFF, ON, Race, Variant
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Invariant, Scene
from vmbusirq.steps import Step, Steps
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.isr import Delivery, vcpu_steps
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.ring import RingWriter

__all__ = ["LOST_ROOM", "LOST_WAKEUP"]

RELID: Final = 5
Deliver = Callable[[Core, int], Steps[Any]]


def _must_hold(stage: Stage) -> Iterable[Invariant]:
    return (stage.stranded, stage.lost_flags)


class _UnmasksOnly(Delivery):
    """A reader that unmasks and does not look again."""

    def end_read(self, what: str, relid: int) -> Steps[None]:
        yield from self.unmask(what, relid)


class _LooksFirst(Delivery):
    """A reader that looks again before it unmasks."""

    def end_read(self, what: str, relid: int) -> Steps[None]:
        yield from self.look_again(what, relid)
        yield from self.unmask(what, relid)


def _lost_wakeup(deliver: Deliver) -> Scene:
    """Two packets against one reader, whose CPU also takes the signals."""

    def build() -> Stage:
        return Stage(cpus=1, channels={RELID: 0})

    def cast(stage: Stage) -> Sequence[Actor]:
        return (stage.device(RELID, packets=2), *stage.cpus(deliver=deliver))

    return StageScene(build, cast, _must_hold)


LOST_WAKEUP: Final = Race(
    name="lost-wakeup",
    title="a packet is written while the reader, which is done, lets the writer signal again",
    source="vmbus.md 1.9, 1.12, 1.13; hv_end_read of drivers/hv/ring_buffer.c",
    variants=(
        Variant(
            OFF,
            "the reader unmasks and goes",
            lambda: _lost_wakeup(lambda core, cpu: _UnmasksOnly(core, cpu).steps()),
            (f"channel {RELID} hangs: ",),
        ),
        Variant(
            "early-look",
            "the reader looks again, but before it unmasks",
            lambda: _lost_wakeup(lambda core, cpu: _LooksFirst(core, cpu).steps()),
            (f"channel {RELID} hangs: ",),
        ),
        Variant(ON, "hv_end_read: unmask, then look again", lambda: _lost_wakeup(vcpu_steps)),
    ),
    left_out="a third packet; stores of one CPU that others see late: steps are sequentially consistent, so the "
    "barriers of vmbus.md 1.13 are taken for granted",
)


_LARGE: Final = Packet(bytes(16_000))
_LARGER: Final = Packet(bytes(17_000))


def _writer(channel: Channel) -> RingWriter:
    assert channel.rings is not None, "the stage has opened it"
    return RingWriter.wrap(lib.vi_channel_out(channel.c), channel.rings.ring_out)


def _has_written(channel: Channel, packet: Packet) -> bool:
    try:
        _writer(channel).write(packet)
    except IrqError as error:
        if error.errno != errno.EAGAIN:
            raise
        return False
    return True


def _called_since(channel: Channel, calls: int) -> Callable[[], bool]:
    return lambda: channel.stats.calls > calls


def _write_when_room(channel: Channel, packet: Packet, *, looks_again: bool) -> Steps[None]:
    """A driver that writes as soon as there is room, of which the channel's interrupt tells it (vmbus.md 1.11)."""
    ring = frozenset({f"ring {channel.relid} out"})
    told, room = frozenset({f"channel {channel.relid}"}), f"channel {channel.relid}: the driver"
    yield Step(f"{room} writes", touches=ring | told)
    if _has_written(channel, packet):
        return
    calls = channel.stats.calls
    yield Step(f"{room} has found no room, sets pending_send_sz", touches=ring)
    _writer(channel).set_pending_send_size(packet.ring_bytes)
    while True:
        if looks_again:
            yield Step(f"{room} writes again", touches=ring)
            if _has_written(channel, packet):
                break
        looks_again = True
        yield Step(f"{room} waits for the host's signal", ready=_called_since(channel, calls), touches=told)
        calls = channel.stats.calls
    yield Step(f"{room} clears pending_send_sz", touches=ring)
    _writer(channel).set_pending_send_size(0)


def _lost_room(*, looks_again: bool) -> Scene:
    """A ring with two large packets; one that is larger has to wait until both are read."""

    def build() -> Stage:
        stage = Stage(cpus=1, channels={RELID: 0})
        for _ in range(2):
            _writer(stage.channel(RELID)).write(_LARGE)
        return stage

    def cast(stage: Stage) -> Sequence[Actor]:
        there, channel = stage.host.default.channel(RELID), stage.channel(RELID)
        assert there is not None, "the stage has opened it"
        assert there.rings is not None, "the stage has opened it"
        return (
            stage.task("writer", lambda: _write_when_room(channel, _LARGER, looks_again=looks_again), cpu=0),
            stage.task("host", there.rings.read_steps),
            *stage.cpus(),
        )

    return StageScene(build, cast, _must_hold)


LOST_ROOM: Final = Race(
    name="lost-room",
    title="the host makes room while the guest's writer, which has found none, goes to sleep",
    source="vmbus.md 1.11, 1.13; hv_pkt_iter_close, set_channel_pending_send_size",
    variants=(
        Variant(
            OFF,
            "the writer sets pending_send_sz and sleeps",
            lambda: _lost_room(looks_again=False),
            (f"hangs for ever: writer stands at “channel {RELID}: the driver waits for the host's signal”",),
        ),
        Variant(
            ON,
            "the writer sets pending_send_sz, looks again, then sleeps",
            lambda: _lost_room(looks_again=True),
        ),
    ),
    left_out="writers that poll since the host's feature bit is clear; stores that others see late: steps are "
    "sequentially consistent",
)
