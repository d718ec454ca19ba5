"""A CPU goes offline with a channel on it, which leaves by itself: the offline policies.

The device writes while that happens, and the host carries MODIFYCHANNEL out at any moment, or not at all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vmbusirq.designs import DESIGNS
from vmbusirq.host.options import HostOptions
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import Race, Variant
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Invariant, Scene
from vmbusirq.wire.protocol import Version

__all__ = ["MIGRATE_OFF", "MIGRATE_OFF_LOST", "MIGRATE_OFF_SLOW", "MIGRATE_OFF_UNANSWERED"]

RELID: Final = 5
_POLICIES: Final = {"refuse": "rfc", "mainline": "rfc-pick", "redirect": "redirect", "handover": "rfc-handover"}


def _must_hold(stage: Stage) -> Iterable[Invariant]:
    return (stage.stranded, stage.lost_flags, stage.on_offline_cpu, stage.outside_mask, stage.host_disagrees)


def _migrate_off(
    policy: str, *, slow: bool = False, options: HostOptions | None = None, version: Version = Version.V5_3
) -> Callable[[], Scene]:
    def build() -> Stage:
        design = DESIGNS[_POLICIES[policy]]
        return Stage(cpus=2, design=design, version=version, channels={RELID: 1}, options=options)

    def cast(stage: Stage) -> Sequence[Actor]:
        return (
            stage.task("offline", lambda: stage.switch.down(1), cpu=1, may_fail=(errno.EBUSY,)),
            stage.host_control(slow=slow),
            stage.slow_device(RELID) if slow else stage.device(RELID),
            *stage.cpus(whole=True),
            stage.time(),
        )

    return lambda: StageScene(build, cast, _must_hold)
