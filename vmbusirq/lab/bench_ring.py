"""What a packet through the ring costs: ours against the kernel's way and against bare copies.

Workloads and bars R1 to R5 are those of performance.md section 7: write 16 packets, read 16, the reader touches the
first 8 bytes of each payload, 512 KiB of data that all contenders share. The Linux-shaped peer is a twin of the
kernel's code path in user space on this CPU, not a kernel. Every sample checks that all packets arrived unaltered.

R5 crosses cores: how long a cache line takes from one to the other depends on where the hypervisor put the two CPUs and
flips between values four times apart. Its ratios hold inside one run; its nanoseconds are no property of the code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import MachineBug, check
from vmbusirq.lab.bench import ROUNDS, BenchRow, Progress, Timing, compare, interleave, pinned

__all__ = ["PAYLOADS", "bench_ring"]

BATCH: Final = 16
PAYLOADS: Final = (16, 64, 256, 1024, 4096, 16384)
PAIR_ROUNDS: Final = 60
"""Rounds across two threads at most: each sample starts a thread."""

Sample = Callable[[], float]

_CONTENDERS: Final[Mapping[str, int]] = {
    "linux": lib.VI_RING_BENCH_LINUX,
    "per packet": lib.VI_RING_BENCH_PACKET,
    "batch": lib.VI_RING_BENCH_BATCH,
    "in place": lib.VI_RING_BENCH_VIEW,
    "memcpy twice": lib.VI_RING_BENCH_MEMCPY,
}
_PAIR_CONTENDERS: Final = ("linux", "batch")

# id -> (ours, peer, payload -> (bar, goal))
_BARS: Final[Mapping[str, tuple[str, str, Mapping[int, tuple[float, float]]]]] = {
    "R1": ("per packet", "linux", {16: (0.60, 0.45), 64: (0.60, 0.45), 256: (0.60, 0.45)}),
    "R2": (
        "batch",
        "linux",
        {
            16: (0.50, 0.34),
            64: (0.50, 0.39),
            256: (0.50, 0.39),
            1024: (0.75, 0.63),
            4096: (1.0, 0.92),
            16384: (1.0, 0.94),
        },
    ),
    "R3": (
        "batch",
        "memcpy twice",
        {64: (1.9, 1.4), 256: (1.8, 1.4), 1024: (1.4, 1.15), 4096: (1.25, 1.1), 16384: (1.25, 1.1)},
    ),
    "R4": ("in place", "linux", {1024: (0.55, 0.45), 4096: (0.55, 0.45), 16384: (0.55, 0.45)}),
    "R5": ("batch", "linux", {16: (0.35, 0.17), 64: (0.35, 0.19), 256: (0.50, 0.35), 1024: (0.70, 0.56)}),
}


def bench_ring(*, rounds: int = ROUNDS, two_threads: bool = True, progress: Progress | None = None) -> list[BenchRow]:
    """Measure R1 to R5 of performance.md section 7.

    Args:
        rounds: samples of each contender; :data:`PAIR_ROUNDS` at most across two threads.
        two_threads: measure R5, which needs two CPUs; there are no such rows on one.
        progress: called before each table.
    Returns:
        Rows in nanoseconds per packet, written and read.
    Raises:
        MachineBug: a packet was lost or altered.
    """
    pair = sorted(_allowed_cpus())[:2] if two_threads else []
    paired = [payload for payload in PAYLOADS if payload in _BARS["R5"][2]] if len(pair) == 2 else []
    steps = len(PAYLOADS) + len(paired)
    rows: list[BenchRow] = []
    with pinned():
        for done, payload in enumerate(PAYLOADS):
            if progress is not None:
                progress(done, steps, f"{payload} B")
            with _bench(payload) as bench:
                table = interleave({name: _sample(bench, payload, name) for name in _CONTENDERS}, rounds)
            rows += _rows(("R1", "R2", "R3", "R4"), payload, f"{payload} B", table)
    for done, payload in enumerate(paired, len(PAYLOADS)):
        if progress is not None:
            progress(done, steps, f"{payload} B, two threads")
        with _bench(payload) as bench:
            samples = {name: _pair_sample(bench, payload, name, pair[0], pair[1]) for name in _PAIR_CONTENDERS}
            table = interleave(samples, min(rounds, PAIR_ROUNDS), warmup=2, attempts=1)
        rows += _rows(("R5",), payload, f"{payload} B, two threads (bimodal: ratio only)", table)
    return sorted(rows, key=lambda row: row.id)


def _allowed_cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@contextmanager
def _bench(payload: int) -> Iterator[Any]:
    out = ffi.new("struct vi_ring_bench **")
    check(lib.vi_ring_bench_create(payload, BATCH, out), f"ring benchmark with {payload} bytes: cannot be set up")
    try:
        yield out[0]
    finally:
        lib.vi_ring_bench_destroy(out[0])


def _packets(payload: int) -> int:
    """Return how many packets make a sample of 20 to 200 microseconds."""
    return max(BATCH * 8, min(4096, (2 << 20) // (payload + 256)) // BATCH * BATCH)


def _sample(bench: Any, payload: int, name: str) -> Sample:
    packets, contender, ns = _packets(payload), _CONTENDERS[name], ffi.new("uint64_t *")

    def sample() -> float:
        _arrived(lib.vi_ring_bench_run(bench, contender, packets, ns), name, payload)
        return float(ns[0]) / packets

    return sample


def _pair_sample(bench: Any, payload: int, name: str, cpu_writer: int, cpu_reader: int) -> Sample:
    packets = 8 * _packets(payload)  # more than the ring holds: the writer must have to wait
    contender, ns = _CONTENDERS[name], ffi.new("uint64_t *")

    def sample() -> float:
        result = lib.vi_ring_bench_pair(bench, contender, packets, cpu_writer, cpu_reader, ns)
        _arrived(result, name, payload)
        return float(ns[0]) / packets

    return sample


def _arrived(result: int, name: str, payload: int) -> None:
    if result:
        raise MachineBug(f"ring benchmark, {name}, {payload} bytes: a packet was lost or altered (error {-result})")


def _rows(ids: tuple[str, ...], payload: int, workload: str, table: Mapping[str, Timing]) -> list[BenchRow]:
    rows: list[BenchRow] = []
    for id_ in ids:
        ours, peer, bars = _BARS[id_]
        if payload in bars:
            bar, goal = bars[payload]
            rows.append(compare(id_, workload, (ours, table[ours]), (peer, table[peer]), bar, goal))
    return rows
