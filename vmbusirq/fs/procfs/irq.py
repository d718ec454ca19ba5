"""/proc/irq: default_smp_affinity and one directory per requested IRQ (kernel/irq/proc.c, v6.10).

Access rules: reads take no lock of the control plane and may come from any thread; writes belong to the machine's owner
thread, which the core checks. A file found before its descriptor was freed speaks of that descriptor, never of a later
one with the same number.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from vmbusirq.cpumask import bitmap_parse, bitmap_parselist, cpumask_of, format_pb, format_pbl
from vmbusirq.errors import IrqError
from vmbusirq.fs.node import PROCFS, Directory, File, Node
from vmbusirq.fs.view import KernelView
from vmbusirq.irq.desc import IrqDesc
from vmbusirq.irq.settings import IRQD_AFFINITY_MANAGED, IRQD_NO_BALANCING

__all__ = ["ProcIrqDir", "irq_number"]

KMALLOC_MAX: Final = 4 << 20  # what one write is copied into, its terminating NUL included (mm/util.c, 4 KiB pages)

_Parser = Callable[[bytes, int], int]


def irq_number(name: str) -> int | None:
    """Return the IRQ number that a directory name says, None when it says none: ``08`` and ``+8`` are no names."""
    if not (name.isascii() and name.isdigit()) or (len(name) > 1 and name[0] == "0") or len(name) > 10:
        return None
    return int(name)


def _check_length(name: str, data: bytes) -> None:
    """Refuse what the kernel cannot copy in one piece."""
    if len(data) >= KMALLOC_MAX:
        raise IrqError(
            errno.ENOMEM, f"{name}: a write of {len(data)} bytes; at most {KMALLOC_MAX - 1} are copied in one piece"
        )


# ---- what the files of one IRQ show and take


def _show_mask(mask: Callable[[IrqDesc], int], view: KernelView, desc: IrqDesc) -> bytes:
    return f"{format_pb(mask(desc) & view.irq.possible, view.irq.nr_cpus)}\n".encode()


def _show_list(mask: Callable[[IrqDesc], int], view: KernelView, desc: IrqDesc) -> bytes:
    return f"{format_pbl(mask(desc) & view.irq.possible)}\n".encode()


def _shown(desc: IrqDesc) -> int:
    return desc.shown_affinity


def _effective(desc: IrqDesc) -> int:
    return desc.effective_affinity


def _hint(desc: IrqDesc) -> int:
    return desc.affinity_hint or 0


def _show_node(view: KernelView, desc: IrqDesc) -> bytes:
    return b"%d\n" % desc.node


def _show_spurious(view: KernelView, desc: IrqDesc) -> bytes:
    stats = desc.spurious
    return b"count %u\nunhandled %u\nlast_unhandled %u ms\n" % (stats.count, stats.unhandled, stats.last_unhandled_ms)


def _store_affinity(parse: _Parser, view: KernelView, desc: IrqDesc, data: bytes) -> int:
    """Move the IRQ: whether it can be moved at all is looked at before the text."""
    if view.irq.no_irq_affinity or not view.irq.can_set_affinity_usr(desc):
        raise IrqError(
            view.generation.affinity_fixed_errno,
            f"irq {desc.irq}: its affinity cannot be set from user space: {_why_fixed(view, desc)}",
        )
    _check_length(f"irq {desc.irq}", data)
    view.irq.irq_set_affinity_user(desc.irq, parse(data, view.irq.nr_cpus))
    return len(data)


def _why_fixed(view: KernelView, desc: IrqDesc) -> str:
    if view.irq.no_irq_affinity:
        return "nothing may be moved (no_irq_affinity)"
    if desc.is_per_cpu:
        return "it is a per-CPU interrupt"
    if desc.chip.irq_set_affinity is None:
        return f"chip {desc.chip.name} cannot move interrupts"
    if desc.state & IRQD_NO_BALANCING:
        return "it is exempt from balancing"
    assert desc.state & IRQD_AFFINITY_MANAGED
    return "the kernel manages it"


_Show = Callable[[KernelView, IrqDesc], bytes]
_Store = Callable[[KernelView, IrqDesc, bytes], int]


@dataclass(frozen=True, slots=True)
class _IrqFile:
    """One file of /proc/irq/N; those that can be written have the mode that the descriptor got when they were made."""

    show: _Show
    store: _Store | None = None


_IRQ_FILES: Final[dict[str, _IrqFile]] = {
    "node": _IrqFile(_show_node),
    "spurious": _IrqFile(_show_spurious),
    "smp_affinity": _IrqFile(partial(_show_mask, _shown), partial(_store_affinity, bitmap_parse)),
    "affinity_hint": _IrqFile(partial(_show_mask, _hint)),
    "smp_affinity_list": _IrqFile(partial(_show_list, _shown), partial(_store_affinity, bitmap_parselist)),
    "effective_affinity": _IrqFile(partial(_show_mask, _effective)),
    "effective_affinity_list": _IrqFile(partial(_show_list, _effective)),
}


class _IrqDir(Directory):
    """/proc/irq/N: the files of one IRQ, and an empty directory per action."""

    __slots__ = ("_desc", "_view")

    def __init__(self, view: KernelView, desc: IrqDesc) -> None:
        super().__init__(str(desc.irq), PROCFS, alive=lambda: not desc.freed)
        self._view = view
        self._desc = desc

    def names(self) -> Iterable[str]:
        """Return the files, and the action directories whose name is not a file's."""
        return [] if self._desc.freed else dict.fromkeys([*_IRQ_FILES, *self._desc.action_dirs()])

    def lookup(self, name: str) -> Node | None:
        """Return a file, or the empty directory of an action."""
        desc, view = self._desc, self._view
        if desc.freed:
            return None
        file = _IRQ_FILES.get(name)
        if file is None:
            return Directory(name, PROCFS) if name in desc.action_dirs() else None
        perm = 0o444
        if file.store is not None:
            perm = 0o644 if desc.proc_affinity_writable else view.generation.affinity_fixed_mode
        store = None if file.store is None else partial(file.store, view, desc)
        return File(name, perm, PROCFS, partial(file.show, view, desc), store, alive=self.alive)


class ProcIrqDir(Directory):
    """/proc/irq: IRQs appear with their first successful request and go with their descriptor."""

    __slots__ = ("_view",)

    def __init__(self, view: KernelView) -> None:
        super().__init__("irq", PROCFS)
        self._view = view

    def _irqs(self) -> list[int]:
        return [desc.irq for desc in list(self._view.irq.descs.values()) if desc.proc_dir]

    def names(self) -> Iterable[str]:
        """Return the IRQs that were ever requested, and default_smp_affinity."""
        return [*map(str, self._irqs()), "default_smp_affinity"]

    def lookup(self, name: str) -> Node | None:
        """Return the directory of an IRQ, or default_smp_affinity."""
        if name == "default_smp_affinity":
            return File(name, 0o644, PROCFS, self._show_default, self._store_default)
        irq = irq_number(name)
        desc = None if irq is None else self._view.irq.descs.get(irq)
        return _IrqDir(self._view, desc) if desc is not None and desc.proc_dir else None

    def missing(self, name: str) -> str:
        """Say why an IRQ has no directory, and which have one."""
        irq = irq_number(name)
        if irq is None:
            return super().missing(name)
        why = f"irq {irq} was never requested" if irq in self._view.irq.descs else f"irq {irq} is not allocated"
        there = format_pbl(cpumask_of(*self._irqs())).replace(",", " ")
        return f"no such file: {why} (ENOENT); irqs: {there or 'none'}"

    def _show_default(self) -> bytes:
        return f"{format_pb(self._view.irq.default_affinity, self._view.irq.nr_cpus)}\n".encode()

    def _store_default(self, data: bytes) -> int:
        _check_length("default_smp_affinity", data)
        self._view.irq.set_default_affinity(bitmap_parse(data, self._view.irq.nr_cpus))
        return len(data)
