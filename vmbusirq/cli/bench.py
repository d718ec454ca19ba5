"""``vmbusirq bench``: what a path costs beside its peers, measured now, on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from vmbusirq.cli.common import print_json
from vmbusirq.lab.bench import ROUNDS, BenchRow, Finding, Progress

__all__ = ["command"]

Report = tuple[dict[str, object], Sequence[BenchRow], Sequence[Finding], str]

_NOTE = "ratios of medians, contenders interleaved in one process on this CPU; a user-space twin, not Hyper-V"


def _demux(args: argparse.Namespace, progress: Progress | None) -> Report:
    from vmbusirq.lab.bench_demux import bench_demux

    result = bench_demux(rounds=args.rounds or ROUNDS, cold=args.full, consecutive=args.full, progress=progress)
    return result.to_json(), result.rows, result.findings, "demux hot path, ns per interrupt (empty scan: per scan)"


def _ring(args: argparse.Namespace, progress: Progress | None) -> Report:
    from vmbusirq.lab.bench_ring import bench_ring

    rows = bench_ring(rounds=args.rounds or ROUNDS, progress=progress)
    return {"rows": [row.to_json() for row in rows]}, rows, (), "ring, ns per packet written and read"


def _render(args: argparse.Namespace, progress: Progress | None) -> Report:
    from vmbusirq.lab.bench_render import bench_render

    rows = bench_render(rounds=args.rounds or ROUNDS, large=args.full, progress=progress)
    return {"rows": [row.to_json() for row in rows]}, rows, (), "/proc/interrupts, ns per rendering"


def _synic(args: argparse.Namespace, progress: Progress | None) -> Report:
    from vmbusirq.lab.bench_synic import bench_synic

    result = bench_synic(rounds=args.rounds or ROUNDS, progress=progress)
    return result.to_json(), result.rows, result.findings, "SynIC, ns per signal or message"


def _explore(args: argparse.Namespace, progress: Progress | None) -> Report:
    from vmbusirq.lab.bench_explore import ROUNDS as SEARCHES
    from vmbusirq.lab.bench_explore import bench_explore

    result = bench_explore(rounds=args.rounds or SEARCHES, full=args.full, progress=progress)
    return result.to_json(), result.rows, result.findings, "explorer, ns per stage (E1) and per search (E2)"


_BENCHES: dict[str, Callable[[argparse.Namespace, Progress | None], Report]] = {
    "demux": _demux,
    "ring": _ring,
    "render": _render,
    "synic": _synic,
    "explore": _explore,
}


def command(args: argparse.Namespace) -> int:
    """Measure and print; with ``--strict`` the exit status says whether every bar holds."""
    from vmbusirq.report import bench_table, console, progress_bar

    with progress_bar() if sys.stderr.isatty() else nullcontext() as progress:
        document, rows, findings, title = _BENCHES[args.what](args, progress)
    if args.json:
        print_json(document)
    else:
        console().print(bench_table(title, rows, findings, _NOTE))
    return 1 if args.strict and any(row.holds is False for row in rows) else 0
