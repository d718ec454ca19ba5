"""What attributes of devices, drivers and channels have in common (fs/sysfs/file.c, lib/kobject_uevent.c, v6.10)."""

from __future__ import annotations

import errno
import posixpath
import re
from collections.abc import Callable
from typing import Final

from vmbusirq.errors import IrqError
from vmbusirq.fs.node import SYSFS, Symlink
from vmbusirq.fs.sysfs.kernel_irq import PAGE_TEXT

__all__ = ["BUS_DIR", "ROOT_DIR", "ROOT_NAME", "ROOT_PARENT", "c_string", "link", "page", "streq", "taken", "uevent"]

BUS_DIR: Final = "/sys/bus/vmbus"
ROOT_PARENT: Final = "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00"  # as on a Generation 2 machine
ROOT_NAME: Final = "VMBUS:00"
ROOT_DIR: Final = f"{ROOT_PARENT}/{ROOT_NAME}"
_PAGE: Final = PAGE_TEXT + 1
_SYNTH_UEVENT: Final = re.compile(
    rb"(?:add|remove|change|move|online|offline|bind|unbind)"
    rb"(?: [0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?: [0-9A-Za-z]+=[0-9A-Za-z]+)*)?[\n\0]?"
)


def taken(store: Callable[[bytes], int], data: bytes) -> int:
    """Hand one write over as sysfs does: a page of it at most, and nothing is not a value."""
    return store(data[:_PAGE]) if data else 0


def page(text: str) -> bytes:
    """Return a line as a show function gives it: with a newline, at most a page less its NUL."""
    return f"{text}\n".encode("latin-1")[:PAGE_TEXT]


def c_string(data: bytes) -> bytes:
    """Return what C sees of a buffer."""
    return data.partition(b"\0")[0]


def streq(data: bytes) -> str:
    """Return the name that a write stands for: a newline at its end is none of it (sysfs_streq)."""
    return c_string(data).removesuffix(b"\n").decode("latin-1")


def link(directory: str, name: str, target: str) -> Symlink:
    """Return a link in ``directory`` that leads to ``target``, relative as sysfs makes them."""
    return Symlink(name, SYSFS, posixpath.relpath(target, directory))


def uevent(what: str, text: bytes) -> int:
    """Check a synthetic event; there is nobody to send it to.

    Raises:
        IrqError(EINVAL): no action, or what follows it is no UUID and variables.
    """
    if not _SYNTH_UEVENT.fullmatch(text):
        raise IrqError(
            errno.EINVAL, f"{what}: {text[:40].decode('latin-1')!a} is no event (EINVAL); write add or change"
        )
    return len(text)
