"""A channel is closed, or taken away, while a CPU is on its way to it: what the waits before each free are for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from vmbusirq.irq.waits import GRACE_PERIOD, SYNCHRONIZE_IRQ
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import OFF, ON, Race, Variant
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Scene
from vmbusirq.steps import Steps
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.waits import TASKLET

__all__ = ["CLOSE_ISR", "RESCIND_ISR"]

RELID: Final = 5
_USES: Final = "cpu 1 failed: cpu 1 uses"
_ACTION: Final = f"{_USES} an action of irq 24, which was freed"
_DESCRIPTOR: Final = f"{_USES} the descriptor of irq 24, which was freed"
_RING: Final = f"{_USES} the in ring of channel {RELID}, which was freed"
_CHANNEL: Final = f"{_USES} channel {RELID}, which was freed"


def _build(without: Iterable[str]) -> Stage:
    stage = Stage(cpus=2, channels={RELID: 1}, without=without)
    stage.signal(RELID)
    return stage


def _against_interrupt(
    name: str, operation: Callable[[Stage, Channel], Steps[object]], without: Iterable[str]
) -> Scene:
    """CPU 0 runs an operation on the channel that has just signalled CPU 1, without some of its waits."""

    def cast(stage: Stage) -> Sequence[Actor]:
        channel = stage.channel(RELID)
        return (
            stage.task(name, lambda: operation(stage, channel), cpu=0),
            stage.host_control(),
            stage.cpus(whole=True)[0],
            stage.cpus()[1],
        )

    return StageScene(lambda: _build(without), cast, Stage.invariants)


def _close_isr(*without: str) -> Scene:
    return _against_interrupt("close", lambda stage, channel: stage.vmbus.close_steps(channel), without)


CLOSE_ISR: Final = Race(
    name="close-isr",
    title="a channel is closed while a CPU is on its way to its callback, or in it",
    source="vmbus.md 7.2; genirq.md 4.4; vmbus_reset_channel_cb and __free_irq, v6.10",
    variants=(
        Variant(
            OFF,
            "close waits for nobody",
            lambda: _close_isr(TASKLET, SYNCHRONIZE_IRQ),
            (_ACTION, _RING),
        ),
        Variant(ON, "tasklet_disable, sched_lock, and free_irq's wait for handlers", _close_isr),
        Variant("no-tasklet", "without tasklet_disable", lambda: _close_isr(TASKLET), (_RING,)),
    ),
    left_out="a driver that is inside its callback when the ring goes: a read is one step; a second packet",
)


def _rescind_isr(*without: str) -> Scene:
    return _against_interrupt("rescind", lambda stage, channel: stage.vmbus.manager.rescind(channel), without)


RESCIND_ISR: Final = Race(
    name="rescind-isr",
    title="a channel is rescinded and its descriptor freed while a CPU has looked its relid up",
    source="vmbus.md 7.2; kernel/irq/irqdesc.c, free_desc, and hv_process_channel_removal, v6.10",
    variants=(
        Variant(
            OFF,
            "removal waits for nobody",
            lambda: _rescind_isr(GRACE_PERIOD, SYNCHRONIZE_IRQ, TASKLET),
            (_ACTION, _DESCRIPTOR, _RING, _CHANNEL),
        ),
        Variant(ON, "synchronize_irq, tasklet_kill and the grace period of RCU", _rescind_isr),
        Variant("no-grace-period", "without the grace period", lambda: _rescind_isr(GRACE_PERIOD), (_DESCRIPTOR,)),
    ),
    left_out="the message of the rescind and its work queues; a second channel; call_rcu is waited for, not queued",
)
