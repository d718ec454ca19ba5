"""What every benchmark shares: one kind of row, and one way to time contenders against each other.

All contenders of a table run round-robin in one process on one CPU, so that a change of clock speed or a noisy
neighbour meets all of them; what is reported is the ratio of medians. A table whose samples scatter too much is
measured again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles

__all__ = [
    "BenchRow",
    "Finding",
    "Progress",
    "Timing",
    "calmest",
    "compare",
    "interleave",
    "pinned",
    "sample_rounds",
    "timing",
]

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is being measured)."""

ROUNDS = 200
SPREAD_MAX = 1.3
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """Samples of one contender in nanoseconds per unit of its workload."""

    min: float
    median: float
    p90: float
    samples: int

    @property
    def spread(self) -> float:
        """Return p90 / median: 1.0 is a silent machine."""
        return self.p90 / self.median if self.median else 1.0


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One ratio ``ours_ns / peer_ns``, nanoseconds per unit of the workload, held against its bar and goal.

    ``bar`` must hold and ``goal`` is to be reached; None where there is none.
    """

    id: str
    workload: str
    ours_ns: float
    peer_ns: float
    ratio: float
    bar: float | None
    goal: float | None
    ours: str
    peer: str
    ours_p90_ns: float
    peer_p90_ns: float

    @property
    def holds(self) -> bool | None:
        """Return whether the bar holds; None without a bar."""
        return None if self.bar is None else self.ratio <= self.bar

    def to_json(self) -> dict[str, object]:
        """Return the row as a JSON object."""
        return {**asdict(self), "holds": self.holds}


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure that no bar judges, such as what the RFC costs per interrupt."""

    name: str
    workload: str
    value: float
    unit: str

    def to_json(self) -> dict[str, object]:
        """Return the finding as a JSON object."""
        return asdict(self)


def timing(samples: Sequence[float]) -> Timing:
    """Return minimum, median and 90th percentile of one or more samples."""
    ordered = sorted(samples)
    p90 = quantiles(ordered, n=10, method="inclusive")[8] if len(ordered) > 1 else ordered[0]
    return Timing(min=ordered[0], median=median(ordered), p90=p90, samples=len(ordered))


def compare(
    id: str,  # noqa: A002 - the name it has in performance.md and in the JSON
    workload: str,
    ours: tuple[str, Timing],
    peer: tuple[str, Timing],
    bar: float | None = None,
    goal: float | None = None,
) -> BenchRow:
    """Return the row for two contenders of one interleaved run, each a name and its timing."""
    (our_name, our), (peer_name, other) = ours, peer
    return BenchRow(
        id=id,
        workload=workload,
        ours_ns=our.median,
        peer_ns=other.median,
        ratio=our.median / other.median,
        bar=bar,
        goal=goal,
        ours=our_name,
        peer=peer_name,
        ours_p90_ns=our.p90,
        peer_p90_ns=other.p90,
    )


def sample_rounds(
    contenders: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 5
) -> dict[str, list[float]]:
    """Return ``rounds`` samples of each contender, taken round-robin after ``warmup`` rounds that are thrown away.

    Each callable takes one sample, ideally of 20 to 200 microseconds, and returns nanoseconds per unit.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for done in range(-warmup, rounds):
        for name, sample in contenders.items():
            ns = sample()
            if done >= 0:
                samples[name].append(ns)
    return samples


def calmest(
    measure: Callable[[], Mapping[str, Sequence[float]]], *, attempts: int = ATTEMPTS, spread_max: float = SPREAD_MAX
) -> dict[str, Timing]:
    """Measure a table until no p90 / median or median / min in it exceeds ``spread_max``, ``attempts`` times at most.

    Returns the calmest table: chosen by spread alone, over all contenders, never by a ratio between them.
    """
    best: dict[str, Timing] = {}
    for _ in range(attempts):
        table = {name: timing(values) for name, values in measure().items()}
        if not best or _worst(table) < _worst(best):
            best = table
        if _worst(best) <= spread_max:
            break
    return best


def interleave(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int = ROUNDS,
    *,
    warmup: int = 5,
    attempts: int = ATTEMPTS,
    spread_max: float = SPREAD_MAX,
) -> dict[str, Timing]:
    """Time contenders round-robin and return the timing of each: :func:`sample_rounds` under :func:`calmest`."""
    if rounds < 1 or attempts < 1:
        raise ValueError(f"a benchmark needs at least one round and one attempt, not {rounds} and {attempts}")
    return calmest(lambda: sample_rounds(contenders, rounds, warmup), attempts=attempts, spread_max=spread_max)


def _worst(table: Mapping[str, Timing]) -> float:
    """Return how far a table is from calm: slow outliers, or a slow state that most of a run was in."""
    return max((max(t.spread, t.median / t.min if t.min else 1.0) for t in table.values()), default=1.0)


@contextmanager
def pinned(cpu: int | None = None) -> Iterator[int | None]:
    """Keep this thread on one CPU, the last it may use unless given; yield which, None where the platform cannot."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    chosen = max(allowed) if cpu is None else cpu
    os.sched_setaffinity(0, {chosen})
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)
