"""Moves of channels against each other: the static mask of the RFC, and a host that takes one move at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from vmbusirq.designs import DESIGNS
from vmbusirq.host.options import HostOptions
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import OFF, ON, Race, Variant
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Invariant, Scene
from vmbusirq.steps import Steps
from vmbusirq.vmbus.one_modify import RESEND_TICKS
from vmbusirq.vmbus.retarget import set_target

__all__ = ["MODIFY_LOST", "STATIC_MASK"]

_RFC: Final = DESIGNS["rfc"]
_FIRST, _SECOND = 5, 6
_HANGS: Final = f"channel {_FIRST} hangs: "
_OUTSIDE: Final = tuple(f"channel {relid} targets cpu {cpu}, outside of " for relid, cpu in ((_FIRST, 2), (_SECOND, 1)))


def _in_their_masks(stage: Stage) -> Iterable[Invariant]:
    return (stage.outside_mask, stage.host_disagrees, stage.lost_flags)


def _static_mask(*, locks: bool) -> Scene:
    """Two channels on CPU 0: one is asked to CPU 1, the other to CPU 2."""

    def build() -> Stage:
        return Stage(cpus=3, design=replace(_RFC, set_affinity_lock=locks), channels={_FIRST: 0, _SECOND: 0})

    def writer(stage: Stage, relid: int, cpu: int) -> Actor:
        irq = stage.channel(relid).irq
        return stage.task(f"affinity {relid}", lambda: stage.irq.irq_set_affinity_steps(irq, 1 << cpu), cpu=cpu)

    def cast(stage: Stage) -> Sequence[Actor]:
        return (
            writer(stage, _FIRST, 1),
            writer(stage, _SECOND, 2),
            stage.host_control(),
            *stage.cpus(whole=True),
        )

    return StageScene(build, cast, _in_their_masks)


STATIC_MASK: Final = Race(
    name="static-mask",
    title="two channels are moved at once, and both choose from the one static mask of vmbus_irq_set_affinity",
    source="vmbus.md 4.3, 10 trap 10; RFC patches 10 and 12",
    variants=(
        Variant(OFF, "without RFC patch 12", lambda: _static_mask(locks=False), _OUTSIDE),
        Variant(ON, "RFC patch 12: set_affinity_lock", lambda: _static_mask(locks=True)),
    ),
    left_out="a mask of more than one word, of which another CPU may see one half old and one half new; a cursor that "
    "is read again after it was chosen",
)


def _unanswered(stage: Stage) -> str:
    """Every later offline waits its full time, and logs (vmbus.md 10, trap 11)."""
    sent, completed = stage.vmbus.retarget.modchan_sent, stage.vmbus.retarget.modchan_completed
    return "" if completed >= sent else f"of {sent} MODIFYCHANNELs {completed} are answered, for ever"


def _nobody_waits(stage: Stage) -> Iterable[Invariant]:
    return (
        stage.stranded,
        stage.lost_flags,
        stage.on_offline_cpu,
        stage.outside_mask,
        stage.host_disagrees,
        lambda: _unanswered(stage),
    )


def _there_and_back(stage: Stage) -> Steps[None]:
    for cpu in (1, 0):
        yield from stage.irq.irq_set_affinity_steps(stage.channel(_FIRST).irq, 1 << cpu)
    yield from stage.switch.down(1)


def _modify_lost(*, one_modify: bool, loses: bool = False) -> Scene:
    """A channel goes from CPU 0 to CPU 1 and back; then CPU 1, which the guest takes to be free, goes offline."""
    options = HostOptions(lose_modify=lambda relid, number: number == 2) if loses else None
    design = replace(_RFC, one_modify=one_modify)

    def build() -> Stage:
        return Stage(cpus=2, design=design, channels={_FIRST: 0}, options=options)

    def cast(stage: Stage) -> Sequence[Actor]:
        return (
            stage.task("admin", lambda: _there_and_back(stage), cpu=1),
            *stage.host_in_two(),
            stage.work(),
            stage.device(_FIRST, when=lambda: not stage.irq.online >> 1 & 1),
            *stage.cpus(whole=True),
            stage.time(),
        )

    return StageScene(build, cast, _nobody_waits)


def _asks_twice(stage: Stage) -> Steps[None]:
    """What irq_set_affinity comes to at last, without locks, for nobody else moves anything here."""
    channel = stage.channel(_FIRST)
    for cpu in (1, 0):
        yield from stage.vmbus.retarget.send_modify(channel, cpu)
        set_target(channel, cpu)


def _modify_slow() -> Scene:
    """A channel goes from CPU 0 to CPU 1 and back, and the first message is sent again whatever the host is at."""
    design = replace(_RFC, one_modify=True)

    def build() -> Stage:
        return Stage(cpus=2, design=design, channels={_FIRST: 0})

    def cast(stage: Stage) -> Sequence[Actor]:
        return (
            stage.task("admin", lambda: _asks_twice(stage), cpu=1),
            *stage.host_in_two(),
            stage.work(),
            *stage.cpus(whole=True),
            stage.time(at_any_time=True, within=RESEND_TICKS),
            stage.time(),
        )

    return StageScene(build, cast, lambda stage: (stage.host_disagrees, lambda: _unanswered(stage)))


MODIFY_LOST: Final = Race(
    name="modify-lost",
    title="a channel is moved again while the host carries the first move out, and drops the second",
    source="vmbus.md 4.4, 10 traps 11 and 12, 11 check 19; RFC patches 10 and 11",
    variants=(
        Variant(OFF, "the RFC: each move is sent at once", lambda: _modify_lost(one_modify=False), (_HANGS,)),
        Variant(ON, "one_modify: a move waits for the answer to the one before", lambda: _modify_lost(one_modify=True)),
        Variant(
            "host-loses",
            "the RFC, and a host that loses the second of two MODIFYCHANNELs",
            lambda: _modify_lost(one_modify=False, loses=True),
            (_HANGS,),
        ),
        Variant(
            "host-loses-on",
            "one_modify, which sends a MODIFYCHANNEL again that stays unanswered, and such a host",
            lambda: _modify_lost(one_modify=True, loses=True),
        ),
        Variant(
            "host-slow-on",
            "one_modify, and a host that is slower than the 10 ms after which a MODIFYCHANNEL is sent again, or not",
            _modify_slow,
        ),
    ),
    left_out="packets before the CPU is offline, which early-offline has; an offline that overtakes the moves; but for "
    "host-slow-on, a host that takes as long as any wait; there the offline, locks, packets, and a host that is slower "
    "than a second wait too; with one_modify a host that outlasts all eight resends, or loses them: the guest says so, "
    "and believes what it asked for",
)
