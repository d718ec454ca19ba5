"""Print the instructions per scan of the Linux-shaped twins next to the reference (needs valgrind)."""

from __future__ import annotations

import sys

from vmbusirq.lab.instructions import InstructionCount, count_instructions


def line(count: InstructionCount) -> str:
    """Return one row of the table."""
    expected = "" if count.expected is None else str(count.expected)
    deviation = "" if count.deviation is None else f"{count.deviation:+.1%}"
    return (
        f"{count.contender:16} {count.pending:5} {count.instructions:10.0f} {expected:>10} {deviation:>7} "
        f"{count.per_interrupt:8.1f}\n"
    )


if __name__ == "__main__":
    sys.stdout.write(f"{'contender':16} {'flags':>5} {'per scan':>10} {'reference':>10} {'':>7} {'per irq':>8}\n")
    sys.stdout.writelines(line(count) for count in count_instructions())
