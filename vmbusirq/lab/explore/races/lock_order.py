"""set_affinity_lock against desc->lock: an interrupt of the CPU that goes offline closes the circle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import OFF, ON, Race, Variant
from vmbusirq.lab.explore.races.casts import GOES, RELID, move_against_offline
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Scene
from vmbusirq.wire.protocol import Version

__all__ = ["LOCK_ORDER"]


def _lock_order(*, strict: bool) -> Scene:
    """CPU 1 searches for channels while its channel has signalled, and CPU 0 moves that channel away."""

    def build() -> Stage:
        stage = Stage(cpus=2, version=Version.V5_2, channels={RELID: GOES}, strict_rfc=strict)
        stage.signal(RELID)
        return stage

    def cast(stage: Stage) -> Sequence[Actor]:
        return move_against_offline(stage, 0, stage.cpus(whole=True)[0], stage.cpus()[GOES])

    return StageScene(build, cast, Stage.invariants)


LOCK_ORDER: Final = Race(
    name="lock-order",
    title="a CPU that goes offline holds set_affinity_lock and is interrupted by a channel that is being moved",
    source="vmbus.md 10, trap 8; RFC patch 12",
    variants=(
        Variant(
            OFF,
            "the RFC as posted: interrupts stay on under the lock",
            lambda: _lock_order(strict=True),
            ("deadlock: affinity stands at “irq 24: vmbus_irq_set_affinity takes set_affinity_lock”: offline holds ",),
        ),
        Variant(ON, "hv_synic_cleanup takes the lock with interrupts off", lambda: _lock_order(strict=False)),
    ),
    left_out="a second packet; hosts that answer; PREEMPT_RT, where the lock sleeps; the parts of interrupts of CPU 0",
)
