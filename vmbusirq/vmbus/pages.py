"""Guest memory that the driver shares with the host: whole pages, the rings of a channel in them.

The host counts pages of 4096 bytes whatever the guest's own are. With guest pages of 16 or 64 KiB a ring begins with
one guest page, of which only the first 4096 bytes are shared; the gap behind them is left out of the GPADL
(hv_gpadl_hvpfn, drivers/hv/channel.c, v6.10).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from vmbusirq.wire.ring import RingMemory

__all__ = ["HV_PAGE", "GuestPages", "Memory", "RingPair", "Shareable"]

HV_PAGE: Final = 4096


class Memory(Protocol):
    """Guest-physical memory, as :class:`vmbusirq.hyperv.memory.GuestMemory` has it."""

    @property
    def fd(self) -> int:
        """File behind it."""

    def alloc(self, pages: int, align: int = 1) -> int:
        """Return the first page number of zeroed, contiguous pages."""

    def free(self, pfn: int) -> None:
        """Give them back."""

    def read(self, gpa: int, size: int) -> bytes:
        """Read bytes."""

    def write(self, gpa: int, data: bytes) -> None:
        """Write bytes."""


class Shareable(Protocol):
    """Guest memory that the host may be given."""

    @property
    def pfns(self) -> Sequence[int]:
        """What the GPADL lists."""

    @property
    def pages(self) -> int:
        """Pages of 4096 bytes that it takes."""

    def unmap(self) -> None:
        """Take the guest's own view of it away; the pages stay the host's to write to."""

    def free(self) -> None:
        """Give the pages back."""


class GuestPages:
    """Contiguous pages of guest memory.

    Attributes:
        pfns: guest page numbers of 4096 bytes, which are what a GPADL lists.
    """

    def __init__(self, memory: Memory, pages: int, align: int = 1) -> None:
        self._memory = memory
        self._first = memory.alloc(pages, align)
        self.pfns: Sequence[int] = range(self._first, self._first + pages)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of them."""
        return self._memory.read(self._first * HV_PAGE + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite bytes of them."""
        self._memory.write(self._first * HV_PAGE + offset, data)

    @property
    def pages(self) -> int:
        """How many they are."""
        return len(self.pfns)

    def unmap(self) -> None:
        """The guest has no view of them but :meth:`read` and :meth:`write`."""

    def free(self) -> None:
        """Give them back; a second call does nothing."""
        if self.pfns:
            self._memory.free(self._first)
            self.pfns = ()


class RingPair:
    """The rings of an open channel: one allocation, the out ring, then the in ring (vmbus_alloc_ring).

    Args:
        ring_bytes: of each ring as the guest allocates it: a guest page for the control page, and whole pages of data.
        page_bytes: of a guest page.

    Attributes:
        pfns: what the GPADL lists: per ring the control page and the data, without the gap of a large guest page.
        downstream_offset: place of the in ring's control page in ``pfns``.
    """

    def __init__(self, memory: Memory, ring_bytes: int, page_bytes: int = HV_PAGE) -> None:
        per_page = page_bytes // HV_PAGE
        data = ring_bytes // HV_PAGE - per_page
        self._pages = GuestPages(memory, 2 * (per_page + data), per_page)
        first = self._pages.pfns
        half = per_page + data
        out = (first[0], *first[per_page:half])
        inward = (first[half], *first[half + per_page :])
        self.pfns: Sequence[int] = (*out, *inward)
        self.downstream_offset: Final = len(out)
        self._rings: list[RingMemory] = []
        try:
            for pfns in (out, inward):
                ring = RingMemory.map(memory.fd, pfns)
                ring.reset()
                self._rings.append(ring)
        except BaseException:
            self.free()
            raise

    @property
    def ring_out(self) -> RingMemory:
        """Guest to host."""
        return self._rings[0]

    @property
    def ring_in(self) -> RingMemory:
        """Host to guest."""
        return self._rings[1]

    @property
    def pages(self) -> int:
        """Pages of 4096 bytes that they take, gaps included."""
        return len(self._pages.pfns)

    @property
    def size(self) -> int:
        """Bytes of the allocation: both rings, with the gaps of large guest pages."""
        return len(self._pages.pfns) * HV_PAGE

    def dump(self) -> bytes:
        """Return the whole allocation as it stands, the out ring first."""
        return self._pages.read(0, self.size)

    @property
    def structs(self) -> tuple[Any, Any]:
        """The in ring and the out ring, for C."""
        return self.ring_in.struct, self.ring_out.struct

    def unmap(self) -> None:
        """Take the guest's mappings away; the pages stay the host's to write to (a host that never let go)."""
        for ring in self._rings:
            ring.close()
        self._rings.clear()

    def free(self) -> None:
        """Take the mappings away and give the pages back."""
        self.unmap()
        self._pages.free()
