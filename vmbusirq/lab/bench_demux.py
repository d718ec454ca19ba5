"""What the demux hot path costs: ours per vector level against Linux-shaped twins and against nothing but the calls.

Rows D1 to D11 and their bars are those of performance.md section 7. Every contender demultiplexes the same flags to the
same trivial callback through the whole top level of an interrupt, and counts are verified in the same run. Peers are
twins of the kernel's code paths in user space on this CPU, not a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from types import TracebackType
from typing import Any, Final, Self

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import MachineBug, check
from vmbusirq.lab.bench import (
    ROUNDS,
    BenchRow,
    Finding,
    Progress,
    Timing,
    calmest,
    compare,
    pinned,
    sample_rounds,
)

__all__ = ["OURS", "DemuxResult", "DemuxTiming", "Workload", "bench_demux", "simd_levels"]

SAMPLE_NS: Final = 100_000
"""A sample lasts about this long."""

INSTANCES: Final = 4
"""Machines built per contender: where memory happens to lie changes every contender by some percent."""

PATTERNS: Final = 8
"""Sets of flags scanned in turn: more than one, few enough that every branch predictor has learnt them all."""

WARM_PASSES: Final = 16
"""Passes over everything a contender touches before a sample, to displace what the contender before it left."""

ATTEMPTS: Final = 2

LOCKED_SAMPLES: Final = 50
LOCKED_COUNT: Final = 4096

COLD_BYTES: Final = 96 << 20
COLD_ROUNDS: Final = 40
OURS: Final = "ours"
PEERS: Final[Mapping[str, int]] = {
    "legacy": lib.VI_DEMUX_LEGACY,
    "rfc": lib.VI_DEMUX_RFC,
    "rfc no entropy": lib.VI_DEMUX_RFC_NO_ENTROPY,
    "rfc untracked": lib.VI_DEMUX_RFC_UNTRACKED,
    "rfc percpu": lib.VI_DEMUX_RFC_PERCPU,
    "calls only": lib.VI_DEMUX_FLOOR,
}


@dataclass(frozen=True, slots=True)
class Workload:
    """Flags pending per scan: ``pending`` of 2047, at random or (``consecutive``) relids 1 to ``pending``."""

    name: str
    pending: int
    consecutive: bool = False
    cold: bool = False


ONE: Final = Workload("1", 1)
EIGHT: Final = Workload("8 random", 8)
MANY: Final = Workload("64 random", 64)
DENSE: Final = Workload("512 random", 512)
ALL: Final = Workload("2047", 2047)
EMPTY: Final = Workload("empty scan", 0)
RUNS: Final = (Workload("8 consecutive", 8, True), Workload("64 consecutive", 64, True))
WARM: Final = (ONE, EIGHT, MANY, DENSE, ALL)
COLD: Final = (Workload("512 random, cold", 512, cold=True), Workload("2047, cold", 2047, cold=True))

_BARS: Final[Mapping[tuple[str, str], Mapping[str, tuple[str, float | None, float | None]]]] = {
    (OURS, "legacy"): {
        ONE.name: ("D1", 0.35, 0.20),
        EIGHT.name: ("D2", 0.40, 0.25),
        MANY.name: ("D3", 0.30, 0.20),
        DENSE.name: ("D4", 0.18, 0.13),
        ALL.name: ("D5", 0.14, 0.10),
        EMPTY.name: ("D8", 0.30, 0.15),
        COLD[0].name: ("D9", 0.15, 0.08),
        COLD[1].name: ("D9", 0.06, 0.03),
    },
    (OURS, "rfc"): {
        ONE.name: ("D6", 0.20, 0.10),
        EIGHT.name: ("D6", 0.12, 0.07),
        MANY.name: ("D6", 0.10, 0.06),
        DENSE.name: ("D6", 0.06, 0.045),
        ALL.name: ("D6", 0.05, 0.033),
    },
    (OURS, "calls only"): {
        MANY.name: ("D7", 1.7, 1.3),
        DENSE.name: ("D7", 1.4, 1.1),
        ALL.name: ("D7", 1.4, 1.2),
    },
    ("scalar", "legacy"): {
        ONE.name: ("D10", 0.60, None),
        MANY.name: ("D10", 0.45, None),
        ALL.name: ("D10", 0.16, None),
    },
    ("rfc", "legacy"): {w.name: ("D11", None, None) for w in WARM},
}
"""Contender and peer -> workload -> (row, bar, goal). ``ours`` is the widest vector level of this CPU."""

_SPLIT: Final = (
    ("RFC - legacy", "rfc", "legacy"),
    ("of it the entropy sample", "rfc", "rfc no entropy"),
    ("of it statistics and spurious check", "rfc no entropy", "rfc untracked"),
    ("of it lookup, desc lock, in-progress flag, indirect calls", "rfc untracked", "legacy"),
)


@dataclass(frozen=True, slots=True)
class DemuxTiming:
    """One contender on one workload, in nanoseconds per interrupt (per scan where nothing is pending)."""

    workload: str
    contender: str
    timing: Timing


@dataclass(frozen=True, slots=True)
class DemuxResult:
    """All rows, findings and timings of one run; ``simd`` is the vector level called ``ours``."""

    rows: tuple[BenchRow, ...]
    findings: tuple[Finding, ...]
    timings: tuple[DemuxTiming, ...]
    simd: str
    rounds: int
    patterns: int
    cpu: int | None

    def to_json(self) -> dict[str, object]:
        """Return the result as a JSON object: rows, findings, timings and what they were measured with."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "findings": [finding.to_json() for finding in self.findings],
            "timings": [{"workload": t.workload, "contender": t.contender, **asdict(t.timing)} for t in self.timings],
            "simd": self.simd,
            "rounds": self.rounds,
            "patterns": self.patterns,
            "cpu": self.cpu,
        }


class _Contender:
    """One machine of ``vi_demux_bench``: samples it, checks its counts, frees it."""

    def __init__(self, kind: int, simd: int, workload: Workload, seed: int, patterns: int, sample_ns: int) -> None:
        config = ffi.new(
            "struct vi_demux_config *",
            {
                "contender": kind,
                "simd": simd,
                "pending": workload.pending,
                "consecutive": workload.consecutive,
                "patterns": patterns,
                "scan_only": workload.pending == 0,
                "cold_bytes": COLD_BYTES if workload.cold else 0,
                "seed": seed,
            },
        )
        out = ffi.new("struct vi_demux_bench **")
        check(
            lib.vi_demux_bench_create(config, out),
            f"cannot make contender {kind} with vectors {simd} and {workload.pending} flags of {patterns} patterns",
        )
        self._bench: Any = out[0]
        self._ns = ffi.new("uint64_t *")
        self._units = max(workload.pending, 1)
        touched = min(patterns * self._units, lib.VI_RELID_MAX)
        self._warm_scans = WARM_PASSES * -(-touched // self._units)
        self._scans = 1
        if not workload.cold:
            self._time(patterns)
            self._scans = max(1, round(sample_ns / max(self._time(patterns) / patterns, 1)))

    def _time(self, scans: int) -> int:
        check(lib.vi_demux_bench_run(self._bench, scans, self._ns), f"cannot run {scans} scans")
        return int(self._ns[0])

    def warm_up(self) -> None:
        """Scan until this machine, not the contender before it, is in caches and branch predictor."""
        self._time(self._warm_scans)

    def sample(self) -> float:
        """Return nanoseconds per interrupt of one sample."""
        return self._time(self._scans) / self._scans / self._units

    def warm_sample(self) -> float:
        """Return a sample of a machine that has just run."""
        self.warm_up()
        return self.sample()

    def _wrong(self) -> int:
        return int(lib.vi_demux_bench_verify(self._bench))

    def verify(self, name: str) -> None:
        """Raise MachineBug unless every channel was counted once per flag raised."""
        wrong = self._wrong()
        if wrong:
            raise MachineBug(f"demux bench: {name} counted {wrong} channels wrong")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lib.vi_demux_bench_destroy(self._bench)
        self._bench = ffi.NULL


def simd_levels() -> dict[str, int]:
    """Return the vector levels that this CPU can scan with, narrowest first."""
    levels = {"scalar": lib.VI_SIMD_SCALAR, "avx2": lib.VI_SIMD_AVX2, "avx512": lib.VI_SIMD_AVX512}
    return {name: level for name, level in levels.items() if level <= lib.vi_simd_best()}


def _contenders(workload: Workload) -> dict[str, tuple[int, int]]:
    """Return name -> (contender, vectors) of everybody who takes part in a workload."""
    scalar = int(lib.VI_SIMD_SCALAR)
    ours = {name: (int(lib.VI_DEMUX_OURS), level) for name, level in simd_levels().items()}
    if workload.pending == 0:
        return {"legacy": (PEERS["legacy"], scalar), **ours}
    if workload.cold:
        return {name: (PEERS[name], scalar) for name in ("legacy", "rfc")} | dict(list(ours.items())[-1:])
    return {name: (kind, scalar) for name, kind in PEERS.items()} | ours


def _measure(
    workload: Workload, rounds: int, instances: int, patterns: int, sample_ns: int, seed: int
) -> dict[str, list[float]]:
    """Return samples of every contender, pooled over machines built anew ``instances`` times."""
    pooled: dict[str, list[float]] = {}
    for instance in range(instances):
        with ExitStack() as stack:
            benches = {
                name: stack.enter_context(_Contender(*kind, workload, seed + instance, patterns, sample_ns))
                for name, kind in _contenders(workload).items()
            }
            take = {name: bench.sample if workload.cold else bench.warm_sample for name, bench in benches.items()}
            for name, samples in sample_rounds(take, -(-rounds // instances), warmup=1).items():
                pooled.setdefault(name, []).extend(samples)
            for name, bench in benches.items():
                bench.verify(name)
    return pooled


def _rows(workload: Workload, table: Mapping[str, Timing], widest: str) -> list[BenchRow]:
    rows = []
    for (ours, peer), bars in _BARS.items():
        if workload.name in bars:
            id_, bar, goal = bars[workload.name]
            name = widest if ours == OURS else ours
            rows.append(compare(id_, workload.name, (name, table[name]), (peer, table[peer]), bar, goal))
    return rows


def _findings(workload: Workload, table: Mapping[str, Timing]) -> list[Finding]:
    """Return what the RFC costs per interrupt and what that consists of."""
    return [
        Finding(name, workload.name, table[more].median - table[less].median, "ns per interrupt")
        for name, more, less in _SPLIT
    ]


def _locked_instruction() -> Finding:
    """Return what one locked instruction costs here: ours needs one per word with flags, v6.10 two per interrupt."""
    ns, samples = ffi.new("uint64_t *"), []
    for _ in range(LOCKED_SAMPLES):
        check(lib.vi_demux_bench_locked(LOCKED_COUNT, ns), "one locked instruction: cannot be timed")
        samples.append(ns[0] / LOCKED_COUNT)
    return Finding("one locked instruction", "this CPU", median(samples), "ns")


def bench_demux(
    *,
    rounds: int = ROUNDS,
    patterns: int = PATTERNS,
    cold: bool = False,
    consecutive: bool = False,
    seed: int = 1,
    instances: int = INSTANCES,
    attempts: int = ATTEMPTS,
    sample_ns: int = SAMPLE_NS,
    progress: Progress | None = None,
) -> DemuxResult:
    """Measure D1 to D8, D10 and D11 of performance.md section 7, and the RFC's cost per interrupt.

    Args:
        rounds: samples of each contender on each workload, spread over ``instances`` machines.
        patterns: different random sets of flags that are scanned in turn, 1 to 64.
        cold: measure D9 too, with 96 MB of other memory touched before each scan: some seconds more.
        consecutive: measure runs of 8 and 64 neighbouring relids too; no row judges them.
        seed: of the patterns.
        instances: machines built per contender; each has a memory layout of its own.
        attempts: how often a table that scatters too much is measured.
        sample_ns: how long a sample lasts.
        progress: called before each workload and at the end.
    Returns:
        Rows in nanoseconds per interrupt, for the empty scan per scan.
    Raises:
        MachineBug: a contender lost or invented an interrupt.
        IrqError: EINVAL, ``patterns`` is out of range.
        ValueError: no rounds, instances or attempts.
    """
    if min(rounds, instances, attempts) < 1:
        raise ValueError(f"no benchmark with {rounds} rounds, {instances} machines and {attempts} attempts")
    workloads: Sequence[Workload] = (*WARM, EMPTY, *(RUNS if consecutive else ()), *(COLD if cold else ()))
    widest = list(simd_levels())[-1]
    rows: list[BenchRow] = []
    findings: list[Finding] = []
    timings: list[DemuxTiming] = []
    with pinned() as cpu:
        findings.append(_locked_instruction())
        for done, workload in enumerate(workloads):
            if progress:
                progress(done, len(workloads), workload.name)
            table = _table(workload, rounds, instances, attempts, patterns, sample_ns, seed)
            rows += _rows(workload, table, widest)
            timings += [DemuxTiming(workload.name, name, t) for name, t in table.items()]
            if workload in WARM:
                findings += _findings(workload, table)
    if progress:
        progress(len(workloads), len(workloads), "")
    rows.sort(key=lambda row: int(row.id[1:]))
    return DemuxResult(tuple(rows), tuple(findings), tuple(timings), widest, rounds, patterns, cpu)


def _table(
    workload: Workload, rounds: int, instances: int, attempts: int, patterns: int, sample_ns: int, seed: int
) -> dict[str, Timing]:
    if workload.cold:
        rounds, instances, attempts = min(rounds, COLD_ROUNDS), 1, 1
    return calmest(
        lambda: _measure(workload, rounds, instances, patterns, sample_ns, seed),
        attempts=attempts,
    )
