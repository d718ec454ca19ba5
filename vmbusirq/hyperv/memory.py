"""Guest-physical memory of one partition: a sparse file that guest and host map, and who has which of its pages.

The hypervisor's half is the memory (``csrc/hyperv/memory.c``); the allocator stands for the guest's own page allocator.
Pages have 4096 bytes, whatever the guest's are (HV_HYP_PAGE_SIZE of ``include/asm-generic/mshyperv.h``, v6.10).
Overlay pages of the hypervisor's lie over some of them: who reads or writes by guest-physical address meets those.
Who maps the file, as a host maps the rings of a channel, gets the pages underneath.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, check
from vmbusirq.hyperv.overlay import OverlayMap

__all__ = ["HV_PAGE", "GuestMemory"]

HV_PAGE: Final[int] = lib.VI_PAGE


class GuestMemory:
    """Guest-physical memory; a context manager.

    Pages that nobody has touched cost nothing. It keeps one file descriptor until it is closed. Reading and writing
    is not limited to allocated pages: a guest may use any page that it has, and a host whatever it was told.

    Args:
        size_bytes: guest-physical addresses run from 0 to here.

    Attributes:
        overlays: the hypervisor's pages, and where they lie.
        before_close: called by :meth:`close` with its first byte, ``uint8_t *``, and size, while it is still mapped:
            who has given C an address in it takes that back.
    Raises:
        IrqError(EINVAL): the size is not a multiple of 4096, below 8192 or above 16 TiB.
        IrqError(ENOMEM), IrqError(EMFILE): no memory, address space or descriptor left.
        IrqError(EBADF): it is closed; every method.
    """

    __slots__ = ("_allocated", "_free", "_mem", "allocated_pages", "before_close", "overlays", "size_bytes")

    def __init__(self, size_bytes: int = 64 << 30) -> None:
        self._mem: Any = ffi.new("struct vi_guest_mem *", {"fd": -1})
        self.before_close: Final[list[Callable[[Any, int], object]]] = []
        most = lib.VI_GUEST_MEM_MAX
        if not 2 * HV_PAGE <= size_bytes <= most or size_bytes % HV_PAGE:
            raise IrqError(
                errno.EINVAL,
                f"guest memory cannot have {size_bytes} bytes (EINVAL); "
                f"multiples of {HV_PAGE} from {2 * HV_PAGE} to {most}",
            )
        what = f"guest memory of {size_bytes} bytes: no memory, address space or descriptor left; close other machines"
        check(lib.vi_guest_mem_create(size_bytes, self._mem), what)
        self.size_bytes: Final = size_bytes
        self.overlays: Final = OverlayMap()
        self.allocated_pages = 0
        """Pages in allocations that were not freed yet."""
        self._allocated: dict[int, int] = {}
        self._free = _FreeRuns(1, size_bytes // HV_PAGE)  # pfn 0 is never handed out: to many a driver 0 means none

    @property
    def fd(self) -> int:
        """The file, for ``RingMemory.map``; its pages are the guest's. Closed by :meth:`close`."""
        return int(self._open().fd)

    @property
    def closed(self) -> bool:
        """It was closed: addresses in it are nobody's."""
        return bool(self._mem.base == ffi.NULL)

    def alloc(self, pages: int, align: int = 1) -> int:
        """Return the first pfn of so many contiguous pages of zeroes, the lowest there are.

        Args:
            pages: how many.
            align: the first pfn is a multiple of this.
        Raises:
            IrqError(EINVAL): ``pages`` or ``align`` is below 1.
            IrqError(ENOMEM): no free run of pages is long enough.
        """
        mem = self._open()
        if pages < 1 or align < 1:
            raise IrqError(
                errno.EINVAL, f"guest memory: cannot allocate {pages} pages aligned to {align} (EINVAL); both from 1"
            )
        pfn = self._free.take(pages, align)
        if pfn is None:
            raise IrqError(
                errno.ENOMEM,
                f"guest memory: no {pages} contiguous pages aligned to {align} are free (ENOMEM); "
                f"{self.allocated_pages} of {self.size_bytes // HV_PAGE} are allocated, the longest free run has "
                f"{self._free.longest}; free some",
            )
        # not only in free(): a host, or a stray write, may have left something there since
        result = lib.vi_guest_mem_drop(mem, pfn, pages)
        if result:
            self._free.give(pfn, pages)
            raise IrqError(-result, f"guest memory: cannot zero {pages} pages from pfn {pfn:#x}")
        self._allocated[pfn] = pages
        self.allocated_pages += pages
        return pfn

    def allocations(self) -> tuple[tuple[int, int], ...]:
        """Return what is allocated: first pfn and pages of each."""
        return tuple(self._allocated.items())

    def free(self, pfn: int) -> None:
        """Give back what :meth:`alloc` returned; the contents are dropped, whoever still has the pages mapped.

        Raises:
            IrqError(EINVAL): no allocation begins at ``pfn``.
        """
        mem = self._open()
        pages = self._allocated.get(pfn)
        if pages is None:
            raise IrqError(
                errno.EINVAL, f"guest memory: cannot free pfn {pfn:#x}: no allocation begins there (EINVAL); free once"
            )
        check(lib.vi_guest_mem_drop(mem, pfn, pages), f"guest memory: cannot drop {pages} pages from pfn {pfn:#x}")
        del self._allocated[pfn]
        self.allocated_pages -= pages
        self._free.give(pfn, pages)

    def read(self, gpa: int, size: int) -> bytes:
        """Return ``size`` bytes from guest-physical address ``gpa``.

        Raises:
            IrqError(EFAULT): not all of them are inside.
        """
        inside = self._at(gpa, size)
        if not self._is_covered(gpa, size):
            return bytes(ffi.buffer(inside, size))
        return b"".join(bytes(ffi.buffer(self._bytes_of(at), part)) for at, part in _by_page(gpa, size))

    def write(self, gpa: int, data: bytes) -> None:
        """Write ``data`` to guest-physical address ``gpa``.

        Raises:
            IrqError(EFAULT): not all of it is inside; nothing is written.
            IrqError(EACCES): there is an overlay that can only be read, which gives a guest a fault; the same.
        """
        inside = self._at(gpa, len(data))
        if not self._is_covered(gpa, len(data)):
            ffi.memmove(inside, data, len(data))
            return
        parts = list(_by_page(gpa, len(data)))
        for at, _part in parts:
            self.overlays.to_write(at // HV_PAGE)
        for at, part in parts:
            ffi.memmove(self._bytes_of(at), data[at - gpa : at - gpa + part], part)

    def view(self, gpa: int, size: int) -> memoryview:
        """Return bytes of one page as they lie there, to read and write; valid until :meth:`close`.

        A page that is covered, moved or uncovered later does not change what the view shows.

        Raises:
            IrqError(EFAULT): not all of them are inside.
            IrqError(EINVAL): they lie on several pages.
        """
        if size > 0 and gpa // HV_PAGE != (gpa + size - 1) // HV_PAGE:
            raise IrqError(
                errno.EINVAL,
                f"guest memory: {size} bytes at {gpa:#x} are on several pages (EINVAL); view each alone",
            )
        self._at(gpa, size)
        return memoryview(ffi.buffer(self._bytes_of(gpa), size)).cast("B")

    def address(self, pfn: int) -> Any:
        """Return the ``uint8_t *`` of a page, for C; valid until :meth:`close`. Of an overlay, if one covers it.

        Raises:
            IrqError(EFAULT): the page is outside.
        """
        self._at(pfn * HV_PAGE, HV_PAGE)
        return self._bytes_of(pfn * HV_PAGE)

    def ram(self, pfn: int) -> Any:
        """Return the ``uint8_t *`` of the page itself, covered or not; None if it is outside."""
        return self._open().base + pfn * HV_PAGE if 0 <= pfn < self.size_bytes // HV_PAGE else None

    def _is_covered(self, gpa: int, size: int) -> bool:
        return size > 0 and self.overlays.any_over(gpa // HV_PAGE, (gpa + size - 1) // HV_PAGE)

    def _bytes_of(self, gpa: int) -> Any:
        overlay = self.overlays.over(gpa // HV_PAGE)
        return self._open().base + gpa if overlay is None else overlay.data + gpa % HV_PAGE

    def _at(self, gpa: int, size: int) -> Any:
        base = self._open().base
        if gpa < 0 or size < 0 or gpa + size > self.size_bytes:
            raise IrqError(
                errno.EFAULT,
                f"guest memory: {size} bytes at {gpa:#x} are not all inside (EFAULT); it ends at {self.size_bytes:#x}",
            )
        return base + gpa

    def _open(self) -> Any:
        if self._mem.base == ffi.NULL:
            raise IrqError(errno.EBADF, "guest memory: it is closed (EBADF); make a new one")
        return self._mem

    def close(self) -> None:
        """Unmap the memory and close its file. Rings mapped from it keep their pages. A second call does nothing."""
        while self.before_close:
            self.before_close.pop()(self._mem.base, self.size_bytes)
        lib.vi_guest_mem_destroy(self._mem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _FreeRuns:
    """The free runs of pages, none of which touch.

    They are kept by start, by end, and by the number of bits of their length: a request looks only at lengths that
    could do, so that many small holes do not slow large allocations down.
    """

    __slots__ = ("_by_bits", "_end_of", "_start_of")

    def __init__(self, start: int, end: int) -> None:
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._by_bits: list[list[int]] = [[] for _ in range((end - start).bit_length() + 1)]
        self._add(start, end)

    def take(self, pages: int, align: int) -> int | None:
        """Take the lowest ``pages`` pages at a multiple of ``align`` out of the free ones; None if there are none."""
        start = min(self._candidates(pages, align), default=None)
        if start is None:
            return None
        end = self._remove(start)
        pfn = _round_up(start, align)
        self._add(start, pfn)
        self._add(pfn + pages, end)
        return pfn

    def _candidates(self, pages: int, align: int) -> Iterator[int]:
        """Yield the start of the lowest run that will do, of each number of bits."""
        for starts in self._by_bits[pages.bit_length() :]:
            fits = (start for start in starts if _round_up(start, align) + pages <= self._end_of[start])
            yield from (start for start in [next(fits, None)] if start is not None)

    def give(self, pfn: int, pages: int) -> None:
        """Give pages back, and join them with free neighbours."""
        start, end = pfn, pfn + pages
        if start in self._start_of:
            start = self._start_of[start]
            self._remove(start)
        if end in self._end_of:
            end = self._remove(end)
        self._add(start, end)

    @property
    def longest(self) -> int:
        """Pages of the longest run, 0 when nothing is free."""
        return max((end - start for start, end in self._end_of.items()), default=0)

    def _add(self, start: int, end: int) -> None:
        if start < end:
            self._end_of[start] = end
            self._start_of[end] = start
            insort(self._by_bits[(end - start).bit_length()], start)

    def _remove(self, start: int) -> int:
        end = self._end_of.pop(start)
        del self._start_of[end]
        starts = self._by_bits[(end - start).bit_length()]
        del starts[bisect_left(starts, start)]
        return end


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _by_page(gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield address and size of each part that lies on one page."""
    end = gpa + size
    while gpa < end:
        part = min(end, (gpa // HV_PAGE + 1) * HV_PAGE) - gpa
        yield gpa, part
        gpa += part
