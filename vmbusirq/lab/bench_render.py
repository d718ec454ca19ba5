"""What a rendering of /proc/interrupts costs: ours against the kernel's way, memory's limit and pure Python.

Workloads and bars P1 to P5 are those of performance.md section 7. Counters lie as a machine keeps them, one array per
CPU, and every contender reads the same ones; all texts are compared byte for byte in the same run. Peers are twins of
the kernel's code paths in user space on this CPU, not a kernel.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, MachineBug, check
from vmbusirq.fs.rows import IrqText
from vmbusirq.fs.seq import SIMD_BEST, Counts, IrqRow, SeqTable, interrupts_table
from vmbusirq.generations import DEFAULT_GENERATION, nr_irqs_at_boot
from vmbusirq.lab.bench import ROUNDS, BenchRow, Progress, compare, interleave, pinned

__all__ = ["Workload", "bench_render", "simd_levels"]

SAMPLE_NS: Final = 50_000
"""A sample lasts about this long at least: C contenders render several times in a row."""

SLOW_ROUNDS: Final = 10
"""Rounds of workloads whose samples last a tenth of a second."""

FIRST_IRQ: Final = 24
LINE_COUNTERS: Final = 16
"""Counters in a cache line."""

Sample = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Workload:
    """A table to render; ``dense`` cells have one to ten digits, otherwise one cell per row is not zero."""

    rows: int
    cpus: int
    dense: bool

    @property
    def name(self) -> str:
        """The name it has in performance.md."""
        return f"{self.rows}x{self.cpus} {'dense' if self.dense else 'sparse'}"


SMALL: Final = Workload(45, 8, False)
SPARSE: Final = Workload(300, 96, False)
DENSE: Final = Workload(300, 96, True)
LARGE_SPARSE: Final = Workload(2047, 1024, False)
LARGE_DENSE: Final = Workload(2047, 1024, True)

_HOW: Final[Mapping[str, int]] = {
    "seq_put_decimal": lib.VI_SEQ_PUT_DECIMAL,
    "seq_printf": lib.VI_SEQ_PRINTF,
    "memset": lib.VI_SEQ_MEMSET,
}
_BARS: Final[Mapping[tuple[str, Workload], tuple[float, float | None]]] = {
    ("P1", SPARSE): (0.08, 0.04),
    ("P1", DENSE): (0.15, 0.09),
    ("P2", SPARSE): (0.03, None),
    ("P2", DENSE): (0.07, None),
    ("P3", LARGE_SPARSE): (3.0, 1.7),
    ("P3", LARGE_DENSE): (9.0, 5.5),
    ("P4", SMALL): (0.10, None),
    ("P4", SPARSE): (0.02, None),
    ("P4", LARGE_SPARSE): (0.03, None),
    ("P5", DENSE): (0.04, None),
}
"""(bar, goal) of each row, ratios of medians."""


class _Table:
    """A workload laid out for every contender: counters as a machine has them, a CPU's own in whole cache lines."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self.workload = workload
        irqs = range(FIRST_IRQ, FIRST_IRQ + workload.rows)
        stride = ((irqs.stop + LINE_COUNTERS - 1) // LINE_COUNTERS | 1) * LINE_COUNTERS
        memory = bytearray(4 * (stride * workload.cpus + LINE_COUNTERS))
        base = ffi.from_buffer("uint32_t[]", memory)
        skip = -int(ffi.cast("uintptr_t", base)) // 4 % LINE_COUNTERS
        counts = memoryview(memory).cast("I")[skip : skip + stride * workload.cpus]
        for irq, cells in zip(irqs, _cells(workload, Random(seed)), strict=True):
            counts[irq::stride] = cells
        pointer = base + skip
        prec = DEFAULT_GENERATION.prec(nr_irqs_at_boot("x86", workload.cpus))
        cpus = range(workload.cpus)
        rows = [
            IrqRow(irq, IrqText("VMBus", relid, actions=("netvsc",)), Counts(pointer + irq, stride))
            for relid, irq in enumerate(irqs, start=1)
        ]
        self.table: SeqTable = interrupts_table(DEFAULT_GENERATION, prec, cpus, rows, owner=base)
        self.values = [tuple(counts[irq::stride].tolist()) for irq in irqs]
        self.expected = self.table.render()
        lines = self.expected.decode("ascii").splitlines(keepends=True)
        self.header = lines[0]
        around = (prec + 1, prec + 1 + lib.VI_SEQ_CELL * workload.cpus)
        self.formats = [line[: around[0]] + " %10u" * workload.cpus + line[around[1] :] for line in lines[1:]]


def _cells(workload: Workload, random: Random) -> list[array[int]]:
    rows = []
    for _ in range(workload.rows):
        cells = array("I", bytes(4 * workload.cpus))
        if workload.dense:
            for cpu in range(workload.cpus):
                digits = random.randrange(10)
                cells[cpu] = random.randrange(10**digits, min(10 ** (digits + 1), 2**32))
        else:
            cells[random.randrange(workload.cpus)] = random.randrange(1, 10**6)
        rows.append(cells)
    return rows


def simd_levels() -> dict[str, int]:
    """Return the vector levels that this CPU can render with, narrowest first."""
    levels = {"scalar": lib.VI_SIMD_SCALAR, "avx2": lib.VI_SIMD_AVX2, "avx512": lib.VI_SIMD_AVX512}
    empty = SeqTable([])
    usable = {}
    for name, level in levels.items():
        try:
            empty.render(level)
        except IrqError:
            continue
        usable[name] = level
    return usable


def _sampler(run: Callable[[int], float]) -> Sample:
    """Return a sampler that repeats often enough to last; the first calls only warm caches and heap."""
    once = min(run(1) for _ in range(5))
    repeat = max(1, round(SAMPLE_NS / max(once, 1)))
    return lambda: run(repeat)


def _c_sample(t: _Table, how: int, simd: int) -> Sample:
    """Return a sampler of one C contender, and check its text if it makes one."""
    buffer = ffi.new("char[]", t.table.size)
    ns = ffi.new("uint64_t *")

    def run(repeat: int) -> float:
        what = f"cannot time contender {how} on {t.workload.name}"
        check(lib.vi_seq_bench(t.table.c_table, how, simd, repeat, buffer, t.table.size, ns), what)
        return int(ns[0]) / repeat

    run(1)
    if how != lib.VI_SEQ_MEMSET and bytes(ffi.buffer(buffer)) != t.expected:
        raise MachineBug(f"contender {how} printed other bytes for {t.workload.name}")
    return _sampler(run)


def _python_sample(t: _Table, render: Callable[[], Any], text: Callable[[Any], bytes]) -> Sample:
    """Return a sampler of one Python contender, and check its text.

    Each result lives until the next is there, as with a reader that keeps the latest; else the figure is that of an
    allocator that hands its top back to the system and faults it in again.
    """
    kept: Any = None
    if text(render()) != t.expected:
        raise MachineBug(f"a Python contender printed other bytes for {t.workload.name}")

    def run(repeat: int) -> float:
        nonlocal kept
        start = time.perf_counter_ns()
        for _ in range(repeat):
            kept = render()
        return (time.perf_counter_ns() - start) / repeat

    return _sampler(run)


def _percent_rows(t: _Table) -> str:
    """Render in pure Python the fastest way known: one ``%`` format per row."""
    return t.header + "".join([line % cells for line, cells in zip(t.formats, t.values, strict=True)])


def _against_c(t: _Table, rounds: int, peers: Mapping[str, str]) -> list[BenchRow]:
    """Hold the widest vectors against each peer; narrower levels are told without a bar, the first peer only."""
    contenders = {name: _c_sample(t, lib.VI_SEQ_OURS, level) for name, level in simd_levels().items()}
    *narrow, widest = contenders
    contenders |= {peer: _c_sample(t, _HOW[peer], SIMD_BEST) for peer in peers.values()}
    timings = interleave(contenders, rounds)
    rows = []
    for id_, peer in peers.items():
        ours, other = (widest, timings[widest]), (peer, timings[peer])
        rows.append(compare(id_, t.workload.name, ours, other, *_BARS[id_, t.workload]))
    first_id, first = next(iter(peers.items()))
    for name in reversed(narrow):
        rows.append(compare(first_id, f"{t.workload.name}, {name}", (name, timings[name]), (first, timings[first])))
    return rows


def _against_python(t: _Table, rounds: int) -> list[BenchRow]:
    contenders = {
        "render to bytes": _python_sample(t, t.table.render, bytes),
        "% per row": _python_sample(t, lambda: _percent_rows(t), lambda text: text.encode("ascii")),
    }
    level = simd_levels().get("avx2")
    if ("P5", t.workload) in _BARS and level is not None:
        view = bytearray(t.table.size)
        contenders["render into, avx2"] = _python_sample(
            t, lambda: t.table.render_into(view, level), lambda _: bytes(view)
        )
    timings = interleave(contenders, rounds)
    peer = ("% per row", timings.pop("% per row"))
    rows = []
    for id_, (name, timing) in zip(("P4", "P5"), timings.items(), strict=False):
        if (id_, t.workload) in _BARS:
            rows.append(compare(id_, t.workload.name, (name, timing), peer, *_BARS[id_, t.workload]))
    return rows


def bench_render(
    *, rounds: int = ROUNDS, large: bool = False, seed: int = 0, progress: Progress | None = None
) -> list[BenchRow]:
    """Measure P1, P2, P4 and P5 of performance.md section 7; with ``large`` P3 and P4 on 2047 IRQs and 1024 CPUs too.

    Args:
        rounds: samples of each contender; the large tables take :data:`SLOW_ROUNDS` at most.
        large: render 23 MB tables as well, which takes about a minute.
        seed: of the counters.
        progress: called before each table.
    Returns:
        Rows in nanoseconds per rendering of the whole table.
    Raises:
        MachineBug: two contenders printed different bytes.
    """
    kernel = {"P1": "seq_put_decimal", "P2": "seq_printf"}
    jobs: list[tuple[Workload, Mapping[str, str]]] = [(SPARSE, kernel), (DENSE, kernel), (SMALL, {})]
    if large:
        jobs += [(LARGE_SPARSE, {"P3": "memset"}), (LARGE_DENSE, {"P3": "memset"})]
    rows: list[BenchRow] = []
    with pinned():
        for done, (workload, peers) in enumerate(jobs):
            if progress is not None:
                progress(done, len(jobs), workload.name)
            table = _Table(workload, seed)
            most = min(rounds, SLOW_ROUNDS) if workload.rows > SPARSE.rows else rounds
            if peers:
                rows += _against_c(table, most, peers)
            if any((id_, workload) in _BARS for id_ in ("P4", "P5")):
                rows += _against_python(table, min(rounds, most))
    return sorted(rows, key=lambda row: row.id)
