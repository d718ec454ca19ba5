"""An order as a numbered story, and as a file that plays it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from vmbusirq.lab.explore.search import Bad, play
from vmbusirq.lab.explore.world import World

__all__ = ["Story", "StoryLine", "load_order", "save_order", "tell"]

_FORMAT: Final = "vmbusirq-order"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class StoryLine:
    """One step: who, what, and what it changed."""

    number: int
    actor: str
    what: str
    changed: tuple[str, ...]

    def __str__(self) -> str:
        changed = f"   [{'; '.join(self.changed)}]" if self.changed else ""
        return f"{self.number:3}. {self.actor}: {self.what}{changed}"


@dataclass(frozen=True, slots=True)
class Story:
    """An order, step by step, and how it ends; nothing wrong: ``end`` is empty."""

    lines: tuple[StoryLine, ...]
    end: str

    def __str__(self) -> str:
        return "\n".join([*map(str, self.lines), f"  => {self.end or 'nothing is wrong'}"])


def tell(world: World, order: tuple[str, ...]) -> Story:
    """Play an order and write down what happens.

    Raises:
        ValueError: the race does not go that way.
    """
    lines: list[StoryLine] = []
    before: dict[str, object] = {}
    going: list[tuple[str, str]] = []

    def finish() -> None:
        after = dict(world.scene.watch())
        if going:
            name, what = going.pop()
            lines.append(StoryLine(len(lines) + 1, name, what, _changed(before, after)))
        before.clear()
        before.update(after)

    def heard(name: str) -> None:
        finish()
        step = world.actor(name).step
        assert step is not None, "who goes stands somewhere"
        going.append((name, step.point))

    bad = play(world, order, heard=heard)
    finish()
    return Story(tuple(lines), bad.what)


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(
        f"{name} {before.get(name, 'none')} → {after.get(name, 'none')}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    )


def save_order(path: str | PathLike[str], race: str, variant: str, bad: Bad) -> None:
    """Write an order into a file. OSError: it cannot be written."""
    data = {
        "format": _FORMAT,
        "version": _VERSION,
        "race": race,
        "variant": variant,
        "end": bad.what,
        "order": list(bad.order),
    }
    Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def load_order(path: str | PathLike[str]) -> tuple[str, str, str, tuple[str, ...]]:
    """Read such a file: the race, its variant, how it ended, who goes when.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no saved order: {error}") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ValueError(f"{path}: is no saved order: “vmbusirq explore” writes them with --save")
    if data.get("version") != _VERSION:
        raise ValueError(f"{path}: is a saved order of version {data.get('version')!r}; this program reads {_VERSION}")
    race, variant, end, order = (data.get(name) for name in ("race", "variant", "end", "order"))
    if not (isinstance(race, str) and isinstance(variant, str) and isinstance(end, str) and isinstance(order, list)):
        raise ValueError(f"{path}: is no saved order: race, variant, end or order is missing or of another type")
    if not all(isinstance(name, str) for name in order):
        raise ValueError(f"{path}: is no saved order: its order is a list of names")
    return race, variant, end, tuple(order)
