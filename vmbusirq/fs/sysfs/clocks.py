"""Clocksource and clockevent files of /sys/devices/system (kernel/time/clocksource.c, clockevents.c, v6.10)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vmbusirq.cpumask import cpus_of
from vmbusirq.errors import IrqError
from vmbusirq.fs.filesystem import FileSystem
from vmbusirq.fs.node import SYSFS, Directory, File, Node, StaticDirectory
from vmbusirq.fs.view import KernelView
from vmbusirq.vmbus.clocksource import NAME_MAX

if TYPE_CHECKING:
    from vmbusirq.vmbus.clockevent import ClockEvents
    from vmbusirq.vmbus.clocksource import Clocksources

__all__ = ["add_clock_files"]


def _name(what: str, data: bytes) -> str:
    """Return the name in what was written: one newline at the end is dropped (sysfs_get_uname). EINVAL."""
    if not 0 < len(data) < NAME_MAX:
        raise IrqError(errno.EINVAL, f"{what}: {len(data)} bytes were written; a name has 1 to {NAME_MAX - 1} (EINVAL)")
    return data.removesuffix(b"\n").partition(b"\0")[0].decode("utf-8", "surrogateescape")


class _ClockeventsDir(Directory):
    """/sys/devices/system/clockevents: a directory per possible CPU; one that is offline has no device."""

    __slots__ = ("_clockevents", "_view")

    def __init__(self, view: KernelView, clockevents: ClockEvents) -> None:
        super().__init__("clockevents", SYSFS)
        self._view = view
        self._clockevents = clockevents

    def names(self) -> Iterable[str]:
        """Return clockevent0 and so on."""
        return [f"clockevent{cpu}" for cpu in cpus_of(self._view.irq.possible)]

    def lookup(self, name: str) -> Node | None:
        """Return a CPU's directory."""
        if name not in self.names():
            return None
        cpu = int(name.removeprefix("clockevent"))

        def show() -> bytes:
            return f"{self._clockevents.name}\n".encode() if self._view.irq.online >> cpu & 1 else b""

        return StaticDirectory(name, SYSFS, [File("current_device", 0o444, SYSFS, show)])


def add_clock_files(files: FileSystem, view: KernelView, clocksources: Clocksources, clockevents: ClockEvents) -> None:
    """Put clocksource0 and the clockevents of the CPUs into the tree."""

    def available() -> bytes:
        return b"".join(source.name.encode() + b" " for source in clocksources.available) + b"\n"

    def current() -> bytes:
        return clocksources.current.name.encode() + b"\n"

    def choose(data: bytes) -> int:
        clocksources.choose(_name("current_clocksource", data))
        return len(data)

    def unbind(data: bytes) -> int:
        clocksources.unbind(_name("unbind_clocksource", data))
        return len(data)

    folder = "/sys/devices/system/clocksource/clocksource0"
    files.add(folder, File("available_clocksource", 0o444, SYSFS, available))
    files.add(folder, File("current_clocksource", 0o644, SYSFS, current, choose))
    files.add(folder, File("unbind_clocksource", 0o200, SYSFS, None, unbind))
    files.add("/sys/devices/system", _ClockeventsDir(view, clockevents))
