"""/proc/softirqs (fs/proc/softirqs.c, v6.10): a column per possible CPU, whether it is online or not."""

from __future__ import annotations

from typing import Final

from vmbusirq._ffi import lib
from vmbusirq.cpumask import cpus_of
from vmbusirq.fs.rows import RowText
from vmbusirq.fs.seq import Counts, SeqRow, SeqTable
from vmbusirq.fs.view import KernelView

__all__ = ["SOFTIRQ_NAMES", "SoftirqsText"]

SOFTIRQ_NAMES: Final = (
    "HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU",
)  # fmt: skip
"""In the order of enum vi_softirq, of the rows, and of the numbers in /proc/stat."""

_LABEL_WIDTH: Final = 12
_HEADER_BLANKS: Final = 20


class SoftirqsText:
    """The text of /proc/softirqs. Its layout is made once: the possible CPUs of a machine never change."""

    def __init__(self, view: KernelView) -> None:
        self._view = view
        self._table: SeqTable | None = None

    def show(self) -> bytes:
        """Return the whole file."""
        if self._table is None:
            self._table = self._lay_out()
        return self._table.render()

    def _lay_out(self) -> SeqTable:
        irq = self._view.irq
        cpus = list(cpus_of(irq.possible))
        rows = [SeqRow(RowText(b" " * _HEADER_BLANKS, b"".join(b"CPU%-8d" % cpu for cpu in cpus) + b"\n"))]
        for vector, name in enumerate(SOFTIRQ_NAMES):
            text = RowText(f"{name:>{_LABEL_WIDTH}}:".encode(), b"\n")
            rows.append(SeqRow(text, len(cpus), Counts(irq.counters.softirq + vector, lib.VI_SOFTIRQ_STRIDE)))
        return SeqTable(rows, cpus, owner=irq)
