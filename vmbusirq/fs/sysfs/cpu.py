"""/sys/devices/system/cpu: the lists, and a directory per CPU that is present (drivers/base/cpu.c, v6.10).

Access rules: everything may be read from any thread; a write to ``online`` belongs to the machine's owner thread and
runs until the CPU is where it shall be, or stays where it was.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from vmbusirq.cpumask import cpus_of, format_pbl
from vmbusirq.errors import IrqError
from vmbusirq.fs.node import SYSFS, Directory, File, Node
from vmbusirq.fs.procfs.irq import irq_number
from vmbusirq.fs.sysfs.attributes import taken
from vmbusirq.fs.view import KernelView

__all__ = ["CpuRootDir"]


def _online(view: KernelView) -> int:
    return view.irq.online


def _possible(view: KernelView) -> int:
    return view.irq.possible


def _present(view: KernelView) -> int:
    return view.present_mask


def _offline(view: KernelView) -> int:
    return view.irq.possible & ~view.irq.online


_LISTS: Final[dict[str, Callable[[KernelView], int]]] = {
    "online": _online,
    "possible": _possible,
    "present": _present,
    "offline": _offline,
}


def kstrtobool(data: bytes, letters: tuple[str, str]) -> bool:
    """Return what a boolean attribute takes a text for: its first byte decides, after an o the second.

    Args:
        data: the bytes of one write; what follows does not matter.
        letters: first letters of what is true, and of what is false, in either case (``kstrtobool_letters``).
    Raises:
        IrqError: EINVAL, it begins with none of them, nor with on or of.
    See: lib/kstrtox.c, v6.10; "enabled" and "disabled" since 6.16.
    """
    text = data[:2].lower()
    for value, word, starts in ((True, b"on", letters[0]), (False, b"of", letters[1])):
        if text == word or (text and text[:1] in starts.encode()):
            return value
    shown = data[:40].decode("latin-1")
    raise IrqError(errno.EINVAL, f"{shown!a} is neither true nor false (EINVAL); write 1 or 0")


class _CpuDir(Directory):
    """/sys/devices/system/cpu/cpuN, of which only ``online`` is modelled; a CPU that must stay has none."""

    __slots__ = ("_cpu", "_view")

    def __init__(self, view: KernelView, cpu: int) -> None:
        super().__init__(f"cpu{cpu}", SYSFS)
        self._view = view
        self._cpu = cpu

    def names(self) -> Iterable[str]:
        """Return ``online``, or nothing."""
        return ("online",) if self._view.hotpluggable_mask >> self._cpu & 1 else ()

    def lookup(self, name: str) -> Node | None:
        """Return the file."""
        return File(name, 0o644, SYSFS, self._show, partial(taken, self._store)) if name in self.names() else None

    def _show(self) -> bytes:
        return b"%d\n" % (self._view.irq.online >> self._cpu & 1)

    def _store(self, data: bytes) -> int:
        self._view.set_cpu_online(self._cpu, kstrtobool(data, self._view.generation.kstrtobool_letters))
        return len(data)


class CpuRootDir(Directory):
    """The directory of all CPUs. A list is ``%*pbl`` and a newline, read-only."""

    __slots__ = ("_view",)

    def __init__(self, view: KernelView) -> None:
        super().__init__("cpu", SYSFS)
        self._view = view

    def names(self) -> Iterable[str]:
        """Return the lists, and cpuN of every CPU that is present."""
        return [*_LISTS, *(f"cpu{cpu}" for cpu in cpus_of(self._view.present_mask))]

    def lookup(self, name: str) -> Node | None:
        """Return a list, or the directory of a CPU."""
        if name in _LISTS:
            return File(name, 0o444, SYSFS, partial(self._show_list, name))
        cpu = irq_number(name.removeprefix("cpu")) if name.startswith("cpu") else None
        return None if cpu is None or not self._view.present_mask >> cpu & 1 else _CpuDir(self._view, cpu)

    def _show_list(self, name: str) -> bytes:
        return f"{format_pbl(_LISTS[name](self._view))}\n".encode()
