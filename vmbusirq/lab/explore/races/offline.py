"""A channel is moved while a CPU goes offline: the races that RFC patches 11 and 12 close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from vmbusirq.designs import DESIGNS, Design
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import OFF, ON, Race, Variant
from vmbusirq.lab.explore.races.casts import GOES, RELID, move_against_offline
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Scene

__all__ = ["CHECK_THEN_OFFLINE", "EARLY_OFFLINE"]

_RFC: Final = DESIGNS["rfc"]
_HANGS: Final = f"channel {RELID} hangs: "


def _move_while_offline(design: Design, *, at: int, to: int) -> Scene:
    """The channel moves from one CPU to another while CPU 1 goes offline and the device writes a packet."""

    def build() -> Stage:
        return Stage(cpus=2, design=design, channels={RELID: at})

    def cast(stage: Stage) -> Sequence[Actor]:
        return move_against_offline(stage, to, stage.device(RELID), *stage.cpus(whole=True))

    return StageScene(build, cast, Stage.invariants)


def _early_offline(*, waits: bool) -> Scene:
    """Patch 11: the channel leaves CPU 1, which goes offline before the host has heard of it."""
    return _move_while_offline(replace(_RFC, wait_modifychannel=waits), at=GOES, to=0)


EARLY_OFFLINE: Final = Race(
    name="early-offline",
    title="a channel leaves a CPU that goes offline before the host has carried the move out",
    source="vmbus.md 4.6 A; RFC patch 11",
    variants=(
        Variant(OFF, "without RFC patch 11", lambda: _early_offline(waits=False), (_HANGS,)),
        Variant(ON, "RFC patch 11: hv_synic_cleanup waits for MODIFYCHANNEL", lambda: _early_offline(waits=True)),
    ),
    left_out="hosts slower than the wait of 25 to 50 ms, which only delays the loss (vmbus.md 10, trap 12)",
)


def _check_then_offline(*, locks: bool) -> Scene:
    """Patch 12: the channel comes to CPU 1 between the search for channels there and the end of its SynIC."""
    return _move_while_offline(replace(_RFC, set_affinity_lock=locks), at=0, to=GOES)


CHECK_THEN_OFFLINE: Final = Race(
    name="check-then-offline",
    title="a channel moves to a CPU that has just been searched for channels and goes offline",
    source="vmbus.md 4.6 B; RFC patch 12",
    variants=(
        Variant(OFF, "without RFC patch 12", lambda: _check_then_offline(locks=False), (_HANGS,)),
        Variant(ON, "RFC patch 12: set_affinity_lock and synic_online", lambda: _check_then_offline(locks=True)),
    ),
    left_out="hosts slower than the wait of 25 to 50 ms",
)
