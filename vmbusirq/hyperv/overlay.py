"""Overlay pages: pages of the hypervisor's that lie over guest pages (TLFS, GPA overlay pages; synic.md 9).

The guest page underneath is hidden, not changed; it reappears when the overlay is moved or taken away. The overlay
keeps its bytes wherever it lies, and while it lies nowhere.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.registers import Msr

if TYPE_CHECKING:
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["ENABLE", "LOCKED", "Overlay", "OverlayMap", "put_page"]

ENABLE: Final = 1
"""Of page registers and of SCONTROL."""
LOCKED: Final = 2
"""Of HYPERCALL."""
_PAGE: Final[int] = lib.VI_PAGE


class Overlay:
    """One page; zeroes when it is made.

    Args:
        name: what it is, for error messages.
        writable: False: a write of the guest faults.
        data: its 4096 bytes if they lie somewhere already, a ``uint8_t *`` that outlives the overlay.

    Attributes:
        data: its bytes, ``uint8_t *``.
        pfn: the guest page that it covers, None while it lies nowhere.
    """

    __slots__ = ("data", "name", "pfn", "writable")

    def __init__(self, name: str, *, writable: bool = True, data: Any = None) -> None:
        self.name: Final = name
        self.writable: Final = writable
        self.data: Final[Any] = ffi.new("uint8_t[]", _PAGE) if data is None else data
        self.pfn: int | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the page, wherever it lies."""
        return bytes(ffi.buffer(self.data + offset, size))

    def fill(self, data: bytes, offset: int = 0) -> None:
        """Write bytes, as the hypervisor."""
        assert offset + len(data) <= _PAGE
        ffi.memmove(self.data + offset, data, len(data))

    def clear(self) -> None:
        """Make it zeroes."""
        ffi.memmove(self.data, bytes(_PAGE), _PAGE)


class OverlayMap:
    """Which overlays cover which pages of one guest's memory.

    Two on one page: the one that was placed later shows, as nothing is said about that; when it goes, the other does.
    """

    __slots__ = ("_covers",)

    def __init__(self) -> None:
        self._covers: dict[int, list[Overlay]] = {}

    def __bool__(self) -> bool:
        return bool(self._covers)

    def place(self, overlay: Overlay, pfn: int | None) -> None:
        """Lay it over a page, or take it away. Where it lies already nothing changes."""
        if overlay.pfn == pfn:
            return
        if overlay.pfn is not None:
            covers = self._covers[overlay.pfn]
            covers.remove(overlay)
            if not covers:
                del self._covers[overlay.pfn]
        overlay.pfn = pfn
        if pfn is not None:
            self._covers.setdefault(pfn, []).append(overlay)

    def over(self, pfn: int) -> Overlay | None:
        """Return what shows instead of a page, None for the page itself."""
        covers = self._covers.get(pfn)
        return covers[-1] if covers else None

    def any_over(self, first: int, last: int) -> bool:
        """Return whether any page from ``first`` to ``last`` is covered."""
        if last - first < len(self._covers):
            return any(pfn in self._covers for pfn in range(first, last + 1))
        return any(first <= pfn <= last for pfn in self._covers)

    def to_write(self, pfn: int) -> Overlay | None:
        """Return as :meth:`over`. EACCES: it cannot be written."""
        overlay = self.over(pfn)
        if overlay is not None and not overlay.writable:
            raise IrqError(
                errno.EACCES,
                f"guest memory: cannot write pfn {pfn:#x}: it is the {overlay.name}, which can only be read (EACCES)",
            )
        return overlay


def put_page(
    vcpu: Vcpu, msr: int, value: int, overlay: Overlay, *, host: bool, covers: bool, outside_faults: bool
) -> Any | None:
    """Do what a page register's new value says: enable in bit 0, a guest page number in bits 63:12.

    Nothing is stored in the register here.

    Args:
        vcpu: who writes.
        msr: which register.
        value: what is written.
        host: the VMM restores it.
        overlay: the page of that register.
        covers: the overlay is laid over the guest page; False: the guest page itself is used.
        outside_faults: enabling a page outside guest memory is #GP.
    Returns:
        Where the page's bytes are from now on, ``uint8_t *``; None: it is disabled, or outside guest memory.
    Raises:
        GeneralProtectionFault: as said, or preserved bits are set in a profile that refuses them; never of a host.
    """
    partition = vcpu.partition
    enabled, pfn = bool(value & ENABLE), value // _PAGE
    preserved = value & (_PAGE - 1) & ~(ENABLE | (LOCKED if msr == Msr.HYPERCALL else 0))
    if preserved and partition.profile.page_preserve_faults and not host:
        vcpu.fault(msr, value)
    if not enabled:
        if overlay.pfn is not None:
            partition.memory.overlays.place(overlay, None)
        return None
    memory = partition.memory
    outside = pfn >= memory.size_bytes // _PAGE
    if outside and outside_faults and not host:
        vcpu.fault(msr, value)
    if covers:
        memory.overlays.place(overlay, pfn)
        return overlay.data
    return memory.ram(pfn)
