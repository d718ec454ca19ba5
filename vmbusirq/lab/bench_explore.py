"""How fast the explorer is, where its time goes, and how many orders it need not play.

- **Rates** are those of the beginning of a search: of its first :data:`ORDERS` orders, the prefixes that are pruned
  between them included. Every sample plays the same ones.
- **Shares** are of the time of such a search: putting the stage back, the actors' steps, finding out who can go, and
  the rest, which is the search itself. The clock is read around each call, and what that costs is in them.
- **Put back or made anew** is what an order begins with, and what it would begin with if nothing could be put back.
- **Reduction** is plain orders for each order that is begun, pruned prefixes included. A race that is small enough is
  really played both ways, side by side; of the others the plain orders are estimated (Knuth 1975,
  :mod:`vmbusirq.lab.explore.estimate`), and the standard error stands beside the estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from time import perf_counter_ns
from typing import Final, TypeVar

from vmbusirq.errors import MachineBug
from vmbusirq.lab.bench import BenchRow, Finding, Progress, Timing, compare, interleave, pinned
from vmbusirq.lab.explore.estimate import plain_orders
from vmbusirq.lab.explore.race import OFF, ON
from vmbusirq.lab.explore.races import find_race
from vmbusirq.lab.explore.scene import Without
from vmbusirq.lab.explore.search import Explored, all_orders, play
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Choice, World

__all__ = ["ROUNDS", "ExploreResult", "bench_explore"]

T = TypeVar("T")
Part = tuple[list[BenchRow], list[Finding], Mapping[str, Timing]]

ROUNDS: Final = 12
"""Samples of each contender: one takes 20 to 100 ms, a thousand times those of the other benchmarks."""
ORDERS: Final = 40
PROBES: Final = 1000
PLAIN_ROUNDS: Final = 3
"""Samples of the plain search at most: one takes seconds."""
_WARMUP: Final = 2

_SEARCHED: Final = (
    ("early-offline", OFF),
    ("early-offline", ON),
    ("check-then-offline", OFF),
    ("check-then-offline", ON),
)
_SMALL: Final = ("check-then-offline", ON, ("device 5",))
"""A race whose plain orders are some thousands: nobody sends packets."""
_PARTS: Final = {"reset": "putting the stage back", "take": "steps", "choices": "who can go, and what it touches"}


@dataclass(frozen=True, slots=True)
class ExploreResult:
    """Rows against bars; rates, shares and reductions as findings; what each contender took."""

    rows: tuple[BenchRow, ...]
    findings: tuple[Finding, ...]
    timings: Mapping[str, Timing]

    def to_json(self) -> dict[str, object]:
        """Return all three as JSON objects; timings are nanoseconds by contender."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "findings": [item.to_json() for item in self.findings],
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
        }


def bench_explore(*, rounds: int = ROUNDS, full: bool = False, progress: Progress | None = None) -> ExploreResult:
    """Measure the search of some races, and count what it leaves out.

    Args:
        rounds: samples of each contender.
        full: the reduction with the fix off, too, whose searches take longer.
        progress: called before each part.
    Returns:
        Rows in nanoseconds per stage and per search; findings in orders/s, steps/s, percent, microseconds and orders.
    Raises:
        MachineBug: a search was not what it is known to be.
    """
    parts: tuple[tuple[str, Callable[[], Part]], ...] = (
        ("rates", partial(_rates, rounds)),
        ("shares", partial(_shares, rounds)),
        ("a stage put back, made anew", partial(_stages, rounds)),
        ("a race played both ways", partial(_both_ways, rounds)),
        ("estimated reductions", partial(_estimates, full=full)),
    )
    rows: list[BenchRow] = []
    findings: list[Finding] = []
    timings: dict[str, Timing] = {}
    with pinned():
        for done, (name, measure) in enumerate(parts):
            if progress is not None:
                progress(done, len(parts), name)
            more_rows, more_findings, more_timings = measure()
            rows += more_rows
            findings += more_findings
            timings |= more_timings
    if progress is not None:
        progress(len(parts), len(parts), "done")
    return ExploreResult(tuple(rows), tuple(findings), timings)


def _world(race: str, variant: str) -> World:
    return World(find_race(race).variant(variant).make())


def _timed(call: Callable[[], T]) -> tuple[int, T]:
    begin = perf_counter_ns()
    value = call()
    return perf_counter_ns() - begin, value


# ---- rates and shares


def _rates(rounds: int) -> Part:
    """Nanoseconds per order, and per step, of the first orders of each search."""
    names = {f"search of {race}, {variant}": _world(race, variant) for race, variant in _SEARCHED}
    first = {name: all_orders(world, most=ORDERS) for name, world in names.items()}

    def sample(name: str) -> float:
        ns, found = _timed(lambda: all_orders(names[name], most=ORDERS))
        _must_be(first[name], found)
        return ns / found.orders

    table = interleave({name: partial(sample, name) for name in names}, rounds, warmup=_WARMUP)
    findings = []
    for name, found in first.items():
        rate = 1e9 / table[name].median
        findings.append(Finding(f"orders, each with {found.pruned / found.orders:.1f} pruned", name, rate, "orders/s"))
        findings.append(Finding("steps", name, rate * found.steps / found.orders, "steps/s"))
    return [], findings, table


def _must_be(known: Explored, found: Explored) -> None:
    if (known.orders, known.pruned, known.steps) != (found.orders, found.pruned, found.steps):
        raise MachineBug(f"explore benchmark: a search was {found}, the same before it {known}")


class _TimedWorld(World):
    """A world that knows where the time went."""

    def __init__(self, world: World) -> None:
        super().__init__(world.scene)
        self.ns = dict.fromkeys(_PARTS, 0)

    def _add(self, part: str, call: Callable[[], T]) -> T:
        ns, value = _timed(call)
        self.ns[part] += ns
        return value

    def reset(self) -> None:
        self._add("reset", super().reset)

    def take(self, name: str) -> str:
        return self._add("take", partial(super().take, name))

    def choices(self) -> list[Choice]:
        return self._add("choices", super().choices)


def _shares(rounds: int) -> Part:
    """Percent of a search, medians over the rounds."""
    race, variant = _SEARCHED[-1]
    world = _TimedWorld(_world(race, variant))
    shares: dict[str, list[float]] = {name: [] for name in (*_PARTS.values(), "the search itself")}
    for done in range(-_WARMUP, rounds):
        world.ns = dict.fromkeys(_PARTS, 0)
        ns, _found = _timed(lambda: all_orders(world, most=ORDERS))
        if done >= 0:
            for part, name in _PARTS.items():
                shares[name].append(100 * world.ns[part] / ns)
            shares["the search itself"].append(100 - 100 * sum(world.ns.values()) / ns)
    where = f"time of a search of {race}, {variant}"
    return [], [Finding(name, where, median(values), "%") for name, values in shares.items()], {}


# ---- what an order begins with


def _stages(rounds: int) -> Part:
    """A stage of two CPUs and a channel, put back after an order, and made anew."""
    world = _world(*_SEARCHED[-1])

    def put_back() -> float:
        play(world, ())
        return _timed(world.reset)[0]

    def made_anew() -> float:
        return _timed(lambda: Stage(cpus=2, channels={5: 0}))[0]

    contenders = {"put back": put_back, "made anew": made_anew}
    table = interleave(contenders, rounds, warmup=_WARMUP)
    row = compare(
        "E1", "a stage, for each order", ("put back", table["put back"]), ("made anew", table["made anew"]), 0.1
    )
    where = "a stage of 2 CPUs and a channel"
    return [row], [Finding(name, where, table[name].median / 1000, "us") for name in contenders], table


# ---- what is left out


def _both_ways(rounds: int) -> Part:
    """All orders of a small race, reduced and plain, really played."""
    race, variant, absent = _SMALL
    what = f"{race}, {variant}, without {', '.join(absent)}"
    world = World(Without(find_race(race).variant(variant).make(), *absent))
    found: dict[str, Explored] = {}

    def sample(name: str, reduction: bool) -> float:
        ns, found[name] = _timed(lambda: all_orders(world, reduction=reduction))
        return ns

    contenders = {"reduced": partial(sample, "reduced", True), "plain": partial(sample, "plain", False)}
    table = interleave(contenders, min(rounds, PLAIN_ROUNDS), warmup=0, attempts=1)
    reduced, plain = found["reduced"], found["plain"]
    if bool(reduced.bad) != bool(plain.bad):
        raise MachineBug(f"explore benchmark: {what}: plain orders find {plain.bad}, reduced ones {reduced.bad}")
    row = compare("E2", f"all orders of {what}", ("reduced", table["reduced"]), ("plain", table["plain"]), 0.1)
    findings = [Finding("plain orders, played", what, plain.orders, "orders"), *_reduction(what, reduced, plain.orders)]
    return [row], findings, table


def _estimates(*, full: bool) -> Part:
    """Plain orders of whole races, estimated, beside those of the reduced search."""
    findings: list[Finding] = []
    for race, variant in _SEARCHED:
        if variant == OFF and not full:
            continue
        world, what = _world(race, variant), f"{race}, {variant}"
        estimate = plain_orders(world, PROBES)
        findings.append(Finding(f"plain orders, estimated by {PROBES} probes", what, estimate.mean, "orders"))
        findings.append(Finding("its standard error", what, estimate.spread, "orders"))
        findings += _reduction(what, all_orders(world), estimate.mean)
    return [], findings, {}


def _reduction(what: str, reduced: Explored, plain: float) -> Iterator[Finding]:
    begun = reduced.orders + reduced.pruned
    yield Finding("orders of the reduced search", what, reduced.orders, "orders")
    yield Finding("prefixes pruned beside them", what, reduced.pruned, "orders")
    yield Finding("plain orders for each of both", what, plain / begun, "times")
