"""The races in the box, by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from vmbusirq.lab.explore.race import Race
from vmbusirq.lab.explore.races.disabling import DISABLE_PENDING, DISABLE_RUNNING
from vmbusirq.lab.explore.races.freed import CLOSE_ISR, RESCIND_ISR
from vmbusirq.lab.explore.races.lock_order import LOCK_ORDER
from vmbusirq.lab.explore.races.migrate import (
    MIGRATE_AND_MOVE,
    MIGRATE_OFF,
    MIGRATE_OFF_LOST,
    MIGRATE_OFF_SLOW,
    MIGRATE_OFF_UNANSWERED,
)
from vmbusirq.lab.explore.races.moves import MODIFY_LOST, STATIC_MASK
from vmbusirq.lab.explore.races.offline import CHECK_THEN_OFFLINE, EARLY_OFFLINE
from vmbusirq.lab.explore.races.rings import LOST_ROOM, LOST_WAKEUP
from vmbusirq.lab.explore.races.running import RUNNING_ELSEWHERE

__all__ = ["RACES", "find_race"]

RACES: Final[dict[str, Race]] = {
    race.name: race
    for race in (
        EARLY_OFFLINE,
        CHECK_THEN_OFFLINE,
        STATIC_MASK,
        LOCK_ORDER,
        RUNNING_ELSEWHERE,
        CLOSE_ISR,
        RESCIND_ISR,
        LOST_WAKEUP,
        LOST_ROOM,
        MODIFY_LOST,
        DISABLE_RUNNING,
        DISABLE_PENDING,
        MIGRATE_OFF,
        MIGRATE_OFF_SLOW,
        MIGRATE_OFF_LOST,
        MIGRATE_OFF_UNANSWERED,
        MIGRATE_AND_MOVE,
    )
}


def find_race(name: str) -> Race:
    """Return a race by its name. ValueError: there is none."""
    if name not in RACES:
        near = get_close_matches(name, RACES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; the races are {', '.join(RACES)}"
        raise ValueError(f"no race {name!r}{hint}")
    return RACES[name]
