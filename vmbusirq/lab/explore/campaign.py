"""Many races at once, each variant in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from vmbusirq.lab.explore.race import Search, Verdict, explore
from vmbusirq.lab.explore.races import RACES, find_race

__all__ = ["explore_many", "processors", "variants_of"]

_TOLD_EVERY = 32

Told = Callable[[float, float, str], object]
"""Called with how much is done, of how much, and what is being done."""


def variants_of(names: Sequence[str], variant: str | None = None) -> list[tuple[str, str]]:
    """Return races with their variants, or with one of them.

    Args:
        names: of races; empty: all.
        variant: the name of a variant, which each of the races must have; None: all that it has.
    Raises:
        ValueError: no such race, or no such variant in one of them.
    """
    races = [find_race(name) for name in names] if names else list(RACES.values())
    if variant is None:
        return [(race.name, chosen.name) for race in races for chosen in race.variants]
    return [(race.name, race.variant(variant).name) for race in races]


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def explore_many(
    chosen: Sequence[tuple[str, str]], search: Search, *, jobs: int = 1, told: Told | None = None
) -> list[Verdict]:
    """Search variants of races; return the verdicts in the same order.

    Args:
        chosen: races and variants, by name.
        search: how.
        jobs: how many processes work at the same time; 1: this one alone.
        told: hears of the progress.
    """
    if jobs <= 1 or len(chosen) == 1:
        return [_explore_here(pair, at, len(chosen), search, told) for at, pair in enumerate(chosen)]
    verdicts: dict[int, Verdict] = {}
    context = multiprocessing.get_context("spawn")  # a fork would share the guests' memory
    with ProcessPoolExecutor(min(jobs, len(chosen)), mp_context=context) as pool:
        futures = {pool.submit(_explore_one, pair, search): at for at, pair in enumerate(chosen)}
        for future in as_completed(futures):
            at = futures[future]
            verdicts[at] = future.result()
            if told is not None:
                told(len(verdicts), len(chosen), " ".join(chosen[at]))
    return [verdicts[at] for at in range(len(chosen))]


def _explore_one(pair: tuple[str, str], search: Search) -> Verdict:
    return explore(find_race(pair[0]), pair[1], search)


def _explore_here(pair: tuple[str, str], at: int, total: int, search: Search, told: Told | None) -> Verdict:
    def progress(part: float, orders: int) -> None:
        if told is not None and orders % _TOLD_EVERY == 0:
            told(at + part, total, f"{pair[0]} {pair[1]}: {orders} orders")

    return explore(find_race(pair[0]), pair[1], search, progress=progress)
