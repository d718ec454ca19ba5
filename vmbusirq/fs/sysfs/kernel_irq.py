"""/sys/kernel/irq: one directory per allocated descriptor, requested or not (kernel/irq/irqdesc.c, v6.10).

Access rules: as in /proc/irq; nothing here can be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from vmbusirq.cpumask import cpumask_of, format_pbl
from vmbusirq.fs.node import SYSFS, Directory, File, Node
from vmbusirq.fs.procfs.irq import irq_number
from vmbusirq.fs.rows import to_bytes
from vmbusirq.fs.view import KernelView
from vmbusirq.irq.desc import IrqDesc

__all__ = ["SysKernelIrqDir"]

PAGE_TEXT: Final = 4095  # a show function has one page, of which the last byte is a NUL


def _line(text: str | None) -> bytes:
    """Return the text and a newline; nothing at all when there is no text."""
    return to_bytes(text) + b"\n" if text else b""


def _actions(desc: IrqDesc) -> bytes:
    return _line(",".join("(null)" if action.name is None else action.name for action in desc.actions))


def _chip_name(desc: IrqDesc) -> bytes:
    return _line(desc.chip.name)


def _hwirq(desc: IrqDesc) -> bytes:
    return _line(None if desc.domain is None else str(desc.hwirq))


def _name(desc: IrqDesc) -> bytes:
    return _line(desc.name)


def _per_cpu_count(desc: IrqDesc) -> bytes:
    return _line(",".join(map(str, desc.kstat_irqs())))


def _type(desc: IrqDesc) -> bytes:
    return b"level\n" if desc.is_level else b"edge\n"


def _wakeup(desc: IrqDesc) -> bytes:
    return b"disabled\n"


_FILES: Final[dict[str, Callable[[IrqDesc], bytes]]] = {
    "actions": _actions,
    "chip_name": _chip_name,
    "hwirq": _hwirq,
    "name": _name,
    "per_cpu_count": _per_cpu_count,
    "type": _type,
    "wakeup": _wakeup,
}


def _show(show: Callable[[IrqDesc], bytes], desc: IrqDesc) -> bytes:
    return show(desc)[:PAGE_TEXT]


class _IrqDir(Directory):
    """/sys/kernel/irq/N."""

    __slots__ = ("_desc",)

    def __init__(self, desc: IrqDesc) -> None:
        super().__init__(str(desc.irq), SYSFS, alive=lambda: not desc.freed)
        self._desc = desc

    def names(self) -> Iterable[str]:
        """Return the seven files."""
        return () if self._desc.freed else _FILES

    def lookup(self, name: str) -> Node | None:
        """Return a file."""
        show = None if self._desc.freed else _FILES.get(name)
        return None if show is None else File(name, 0o444, SYSFS, partial(_show, show, self._desc), alive=self.alive)


class SysKernelIrqDir(Directory):
    """/sys/kernel/irq: IRQs appear when they are allocated and go when they are freed."""

    __slots__ = ("_view",)

    def __init__(self, view: KernelView) -> None:
        super().__init__("irq", SYSFS)
        self._view = view

    def names(self) -> Iterable[str]:
        """Return the allocated IRQs."""
        return map(str, list(self._view.irq.descs))

    def lookup(self, name: str) -> Node | None:
        """Return the directory of an IRQ."""
        irq = irq_number(name)
        desc = None if irq is None else self._view.irq.descs.get(irq)
        return None if desc is None else _IrqDir(desc)

    def missing(self, name: str) -> str:
        """Say that there is no such IRQ, and which there are."""
        there = format_pbl(cpumask_of(*self._view.irq.descs)).replace(",", " ")
        return f"no such file: irq {name} is not allocated (ENOENT); irqs: {there or 'none'}"
