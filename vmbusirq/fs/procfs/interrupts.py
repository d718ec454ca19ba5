"""/proc/interrupts of a running machine: which rows there are, and where their counters lie (kernel/irq/proc.c).

Access rules: the text is laid out again only when the genirq core's layout version, the online CPUs, nr_irqs or the
rows of the architecture have changed; in between a read is one call into C over live counters, from any thread. Rows
are as old as their own counters, as in the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.cpumask import cpus_of
from vmbusirq.errors import check
from vmbusirq.fs.rows import NAMELESS_CHIP, IrqText
from vmbusirq.fs.seq import Counts, CpuRow, IpiRow, IrqRow, Row, SeqTable, SingleRow, interrupts_table
from vmbusirq.fs.view import KernelView
from vmbusirq.irq.desc import IrqDesc
from vmbusirq.irq.settings import IRQ_HIDDEN

__all__ = ["ARCH_ROW_INDEX", "InterruptsText"]

ARCH_ROW_INDEX: Final[dict[str, int]] = {
    name.removeprefix("VI_ROW_"): getattr(lib, name) for name in dir(lib) if name.startswith("VI_ROW_")
}
"""Column of each per-CPU x86 row in ``vi_counters.arch``, by label."""

_Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The text of one state of the machine.

    Attributes:
        key: all that the text depends on, but for the nameless rows.
        nameless: IRQs without action, which have a row once they were counted.
        shown: those of them that have one here.
    """

    key: _Key
    nameless: tuple[IrqDesc, ...]
    shown: tuple[IrqDesc, ...]
    table: SeqTable


class InterruptsText:
    """The text of /proc/interrupts."""

    def __init__(self, view: KernelView) -> None:
        self._view = view
        self._layout: _Layout | None = None

    def table(self) -> SeqTable:
        """Return the table as of now, laid out anew if need be."""
        irq = self._view.irq
        key = (irq.layout_version, irq.online, irq.nr_irqs, self._view.arch_rows, self._view.ipi_irqs)
        layout = self._layout
        if layout is None or layout.key != key:
            layout = self._layout = self._lay_out(key, self._find_nameless())
        elif layout.nameless and self._counted(layout.nameless) != layout.shown:
            layout = self._layout = self._lay_out(key, layout.nameless)
        return layout.table

    def show(self) -> bytes:
        """Return the whole file."""
        return self.table().render()

    # ---- rows without a name

    def _find_nameless(self) -> tuple[IrqDesc, ...]:
        if not self._view.generation.shows_nameless:
            return ()
        return tuple(desc for desc in self._view.irq if not desc.actions and not desc.settings & IRQ_HIDDEN)

    def _counted(self, descs: tuple[IrqDesc, ...]) -> tuple[IrqDesc, ...]:
        """Return those that were counted: on any CPU, or for a per-CPU IRQ on one that is online."""
        if not descs:
            return ()
        irq = self._view.irq
        first, last = descs[0].irq, descs[-1].irq
        numbers = ffi.new("uint32_t[]", last - first + 1)
        check(lib.vi_irq_stat(irq.machine, first, len(numbers), numbers), "proc/interrupts: IRQ past the table")
        counted = []
        for desc in descs:
            if desc.is_per_cpu:
                any_count = any(desc.kstat_irqs_cpu(cpu) for cpu in cpus_of(irq.online))
            else:
                any_count = numbers[desc.irq - first] != 0
            if any_count:
                counted.append(desc)
        return tuple(counted)

    # ---- layout

    def _lay_out(self, key: _Key, nameless: tuple[IrqDesc, ...]) -> _Layout:
        irq, generation = self._view.irq, self._view.generation
        shown = self._counted(nameless)
        rows = [*self._irq_rows(frozenset(shown)), *self._arch_rows()]
        table = interrupts_table(
            generation,
            generation.prec(irq.nr_irqs),
            list(cpus_of(irq.online)),
            rows,
            chip_width=irq.chip_name_width,
            owner=irq,
        )
        return _Layout(key, nameless, shown, table)

    def _irq_rows(self, nameless: frozenset[IrqDesc]) -> Iterator[Row]:
        irq = self._view.irq
        for desc in irq:
            if self._view.generation.shows(
                has_action=bool(desc.actions),
                chained=False,
                hidden=bool(desc.settings & IRQ_HIDDEN),
                counted=desc in nameless,
            ):
                yield IrqRow(desc.irq, self._text(desc), Counts(irq.counters.irq + desc.irq, irq.counters.irq_stride))

    def _text(self, desc: IrqDesc) -> IrqText:
        print_chip = desc.chip.irq_print_chip
        level = None
        if self._view.arch == "arm64":  # CONFIG_GENERIC_IRQ_SHOW_LEVEL
            level = "Level" if desc.is_level else "Edge"
        return IrqText(
            chip=(desc.chip.name or NAMELESS_CHIP) if print_chip is None else print_chip(desc),
            hwirq=None if desc.domain is None else desc.hwirq,
            level=level,
            flow=desc.name,
            actions=tuple("(null)" if action.name is None else action.name for action in desc.actions),
            chip_prints=print_chip is not None,
        )

    def _arch_rows(self) -> Iterator[Row]:
        if self._view.arch == "arm64":
            return self._arm64_rows()
        return self._x86_rows()

    def _x86_rows(self) -> Iterator[Row]:
        counters = self._view.irq.counters
        single = {"ERR": counters.irq_err_count, "MIS": counters.irq_mis_count}
        for row in self._view.arch_rows:
            if row.text is None:
                yield SingleRow(row.label, Counts(single[row.label], 0))
            else:
                yield CpuRow(row.label, row.text, Counts(counters.arch + ARCH_ROW_INDEX[row.label], lib.VI_ARCH_STRIDE))

    def _arm64_rows(self) -> Iterator[Row]:
        counters = self._view.irq.counters
        for number, (text, irq) in enumerate(zip(self._view.generation.arm64_ipis, self._view.ipi_irqs, strict=True)):
            yield IpiRow(number, text, Counts(counters.irq + irq, counters.irq_stride))
        yield SingleRow("Err", Counts(counters.irq_err_count, 0))
