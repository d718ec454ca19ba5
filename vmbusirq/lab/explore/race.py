"""What a race is, and what a search says about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from vmbusirq.lab.explore.search import Bad, Explored, Progress, all_orders, pct_orders, random_orders, shortest
from vmbusirq.lab.explore.story import Story, tell
from vmbusirq.lab.explore.world import Scene, World

__all__ = ["DEPTH", "OFF", "ON", "Race", "Search", "Variant", "Verdict", "explore"]

DEPTH: Final = 3
"""Ordered steps that most bugs need, by what Burckhardt et al. found."""
OFF: Final = "off"
ON: Final = "on"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to play a race.

    Attributes:
        name: ``off`` and ``on`` for a race with a fix, else a name of its own.
        what: what is so in it.
        make: makes the scene.
        expects: how all that goes wrong in it begins; empty: nothing does.
    """

    name: str
    what: str
    make: Callable[[], Scene]
    expects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Race:
    """A race that is in the box.

    Attributes:
        name: as the command line takes it.
        title: who races, in one line.
        source: where it is described.
        variants: with the fix off and on, or one for each policy.
        left_out: what its orders do not contain.
    """

    name: str
    title: str
    source: str
    variants: tuple[Variant, ...]
    left_out: str

    def variant(self, name: str) -> Variant:
        """Return a variant by its name. ValueError: there is none."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"race {self.name}: has no variant {name!r}: {', '.join(v.name for v in self.variants)}")


@dataclass(frozen=True, slots=True)
class Search:
    """How to search.

    Attributes:
        mode: ``all``, ``random`` or ``pct``.
        reduction: leave out what cannot differ.
        preemptions: a bound, which excludes the reduction.
        orders: how many at most; needed for ``random`` and ``pct``.
        depth: of PCT.
        seed: of drawn orders.
    """

    mode: str = "all"
    reduction: bool = True
    preemptions: int | None = None
    orders: int | None = None
    depth: int = DEPTH
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a search has found in one variant of a race.

    Attributes:
        race, variant, search: the names of what was searched, and how.
        expects: how all that goes wrong in it begins; empty: nothing does.
        explored: the counts, and a bad order of each kind.
        shortest: the shortest bad order, None if there is none; is_shortest: it is known that none is shorter.
        story: that order, told.
        seconds: how long the search took, without the hunt for the shortest.
    """

    race: str
    variant: str
    search: Search
    expects: tuple[str, ...]
    explored: Explored
    shortest: Bad | None
    is_shortest: bool
    story: Story | None
    seconds: float

    @property
    def as_expected(self) -> bool:
        """The bug that is expected was found, and no other; none where none is expected."""
        bad = self.explored.bad
        if not self.expects:
            return not bad
        return bool(bad) and all(one.what.startswith(self.expects) for one in bad)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        explored, short = self.explored, self.shortest
        return {
            "race": self.race,
            "variant": self.variant,
            "mode": self.search.mode,
            "orders": explored.orders,
            "pruned": explored.pruned,
            "beyond_bound": explored.beyond,
            "steps": explored.steps,
            "bad_orders": explored.bad_orders,
            "complete": explored.complete,
            "found": [bad.what for bad in explored.bad],
            "as_expected": self.as_expected,
            "seconds": round(self.seconds, 3),
            "shortest": None if short is None else list(short.order),
            "is_shortest": self.is_shortest,
        }


def explore(
    race: Race, variant: str, search: Search | None = None, *, progress: Progress | None = None, tells: bool = True
) -> Verdict:
    """Search one variant of a race.

    Args:
        race: which.
        variant: the name of one of its variants.
        search: how; by default all orders, reduced.
        progress: hears how far it is.
        tells: look for the shortest bad order, too, and tell its story.
    Raises:
        ValueError: there is no such variant or mode.
    """
    search = Search() if search is None else search
    chosen = race.variant(variant)
    world = World(chosen.make())
    begin = perf_counter()
    explored = _run(world, search, progress)
    seconds = perf_counter() - begin
    known, proven, story = None, False, None
    if explored.bad:
        known = min(explored.bad, key=lambda bad: (bad.preemptions, len(bad.order)))
        if tells:
            known, proven = shortest(world, known)
            story = tell(world, known.order)
    return Verdict(race.name, chosen.name, search, chosen.expects, explored, known, proven, story, seconds)


def _run(world: World, search: Search, progress: Progress | None) -> Explored:
    if search.mode == "all":
        return all_orders(
            world,
            reduction=search.reduction,
            preemptions=search.preemptions,
            most=search.orders,
            progress=progress,
        )
    orders = search.orders or 1000
    if search.mode == "random":
        return random_orders(world, orders, seed=search.seed, progress=progress)
    if search.mode == "pct":
        return pct_orders(world, orders, depth=search.depth, seed=search.seed, progress=progress)
    raise ValueError(f"no search mode {search.mode!r}: all, random, pct")
