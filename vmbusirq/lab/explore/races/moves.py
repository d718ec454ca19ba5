"""Moves of channels against each other: the static mask of the RFC, and a host that takes one move at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from vmbusirq.designs import DESIGNS
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import OFF, ON, Race, Variant
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Invariant, Scene

__all__ = ["STATIC_MASK"]

_RFC: Final = DESIGNS["rfc"]
_FIRST, _SECOND = 5, 6


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
        Variant(OFF, "without RFC patch 12", lambda: _static_mask(locks=False), ", outside of "),
        Variant(ON, "RFC patch 12: set_affinity_lock", lambda: _static_mask(locks=True)),
    ),
    left_out="a mask of more than one word, of which another CPU may see one half old and one half new; a cursor that "
    "is read again after it was chosen",
)
