"""The races in the box, by name."""

from __future__ import annotations

from typing import Final

from vmbusirq.lab.explore.race import Race
from vmbusirq.lab.explore.races.migrate import (
    MIGRATE_AND_MOVE,
    MIGRATE_OFF,
    MIGRATE_OFF_LOST,
    MIGRATE_OFF_SLOW,
    MIGRATE_OFF_UNANSWERED,
)
from vmbusirq.lab.explore.races.offline import CHECK_THEN_OFFLINE, EARLY_OFFLINE

__all__ = ["RACES", "find_race"]

_ALL: Final = (
    EARLY_OFFLINE,
    CHECK_THEN_OFFLINE,
    MIGRATE_OFF,
    MIGRATE_OFF_SLOW,
    MIGRATE_OFF_LOST,
    MIGRATE_OFF_UNANSWERED,
    MIGRATE_AND_MOVE,
)
RACES: Final[dict[str, Race]] = {race.name: race for race in _ALL}


def find_race(name: str) -> Race:
    """Return a race by its name. ValueError: there is none."""
    if name not in RACES:
        raise ValueError(f"no race {name!r}; the races are {', '.join(RACES)}")
    return RACES[name]
