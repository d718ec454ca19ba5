"""Count the instructions of one scan exactly, to hold the Linux-shaped twins against the kernel paths they stand for.

Runs the demux contenders under valgrind's callgrind, which counts inside ``vi_take_vector`` alone. Valgrind knows no
AVX-512, so ours takes part as the scalar build. The figures to meet are those of performance.md section 1.2.
"""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmbusirq.errors import IrqError

__all__ = ["PENDING", "REFERENCE", "InstructionCount", "count_instructions", "run_contenders"]

PENDING: Final = (1, 8, 64, 512, 2047)
REFERENCE: Final[Mapping[str, tuple[int, ...]]] = {
    "legacy": (426, 922, 4_999, 37_632, 149_526),
    "rfc": (543, 2_355, 16_960, 133_817, 534_287),
    "rfc no entropy": (476, 1_819, 12_672, 99_513, 397_142),
    "rfc untracked": (442, 1_547, 10_496, 82_105, 327_544),
    "rfc percpu": (502, 2_027, 14_336, 112_825, 450_360),
}
"""Instructions per scan at :data:`PENDING` flags of v6.10-shaped code with kernel structures."""

SCANS: Final = 16


@dataclass(frozen=True, slots=True)
class InstructionCount:
    """Instructions of one scan; ``expected`` is the reference, None for ours."""

    contender: str
    pending: int
    instructions: float
    expected: int | None

    @property
    def per_interrupt(self) -> float:
        """Return instructions per interrupt."""
        return self.instructions / self.pending

    @property
    def deviation(self) -> float | None:
        """Return how far the twin is from the reference, 0.05 for 5 % too many."""
        return None if self.expected is None else self.instructions / self.expected - 1


def run_contenders() -> None:
    """Run every contender at every number of flags, :data:`SCANS` times each: what callgrind watches."""
    from vmbusirq._ffi import ffi, lib
    from vmbusirq.errors import MachineBug, check
    from vmbusirq.lab.bench_demux import PEERS

    kinds = [*(PEERS[name] for name in REFERENCE), lib.VI_DEMUX_OURS]
    out, ns = ffi.new("struct vi_demux_bench **"), ffi.new("uint64_t *")
    for kind in kinds:
        for pending in PENDING:
            config = {"contender": kind, "simd": lib.VI_SIMD_SCALAR, "pending": pending, "patterns": 1, "seed": 1}
            check(
                lib.vi_demux_bench_create(ffi.new("struct vi_demux_config *", config), out),
                f"cannot make contender {kind}",
            )
            check(lib.vi_demux_bench_run(out[0], SCANS, ns), f"cannot run contender {kind}")
            wrong = lib.vi_demux_bench_verify(out[0])
            lib.vi_demux_bench_destroy(out[0])
            if wrong:
                raise MachineBug(f"contender {kind} counted {wrong} channels wrong")


def count_instructions() -> tuple[InstructionCount, ...]:
    """Return the instructions of one scan for every twin and for ours, at each of :data:`PENDING` flags.

    Raises:
        IrqError: ENOENT, valgrind is not installed; EIO, it failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise IrqError(errno.ENOENT, "cannot count instructions: valgrind is not installed; apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        command = [
            valgrind,
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            "--toggle-collect=vi_take_vector",
            "--dump-before=vi_demux_bench_verify",
            sys.executable,
            "-c",
            "from vmbusirq.lab.instructions import run_contenders; run_contenders()",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise IrqError(
                errno.EIO, f"cannot count instructions: valgrind ended with {done.returncode}: {done.stderr}"
            )
        names = [*REFERENCE, "ours, scalar"]
        runs = [(name, i) for name in names for i in range(len(PENDING))]
        return tuple(
            InstructionCount(
                name, PENDING[i], _total(Path(f"{out}.{k}")) / SCANS, REFERENCE[name][i] if name in REFERENCE else None
            )
            for k, (name, i) in enumerate(runs, start=1)
        )


def _total(dump: Path) -> int:
    """Return the instructions that one dump collected."""
    found = re.search(r"^(?:summary|totals): (\d+)", dump.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise IrqError(errno.EIO, f"cannot count instructions: {dump.name} holds no total")
    return int(found[1])
