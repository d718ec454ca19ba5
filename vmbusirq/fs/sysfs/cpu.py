"""The CPU lists of /sys/devices/system/cpu (drivers/base/cpu.c, v6.10): ``%*pbl`` and a newline, read-only."""

from __future__ import annotations

from functools import partial

from vmbusirq.cpumask import format_pbl
from vmbusirq.fs.node import SYSFS, File
from vmbusirq.fs.view import KernelView

__all__ = ["cpu_list_files"]


def _online(view: KernelView) -> int:
    return view.irq.online


def _possible(view: KernelView) -> int:
    return view.irq.possible


def _present(view: KernelView) -> int:
    return view.present_mask


def _offline(view: KernelView) -> int:
    return view.irq.possible & ~view.irq.online


def cpu_list_files(view: KernelView) -> list[File]:
    """Return online, possible, present and offline (possible, but not online)."""
    masks = {"online": _online, "possible": _possible, "present": _present, "offline": _offline}

    def show(name: str) -> bytes:
        return f"{format_pbl(masks[name](view))}\n".encode()

    return [File(name, 0o444, SYSFS, partial(show, name)) for name in masks]
