"""Memory of a VMBus ring, that guest and host share: a control page, and data mapped twice in a row.

Layout and rules: ``drivers/hv/ring_buffer.c``, v6.10; vmbus.md 1.1 to 1.3.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.wire.packet import RING_HDR

__all__ = ["Control", "RingMemory"]


@dataclass(frozen=True, slots=True)
class Control:
    """The control page, as it stood when it was looked at."""

    write_index: int
    read_index: int
    interrupt_mask: int
    pending_send_sz: int
    feature_bits: int


class RingMemory:
    """Control page and data of one ring, the data mapped twice in a row; a context manager.

    Attributes:
        kept: closing it leaves the mapping where it is, for who puts back how things were; garbage collection does not.

    Raises:
        IrqError(EINVAL): ``ring_bytes`` is not a multiple of 4096, below 8192 or above 1 GiB.
        IrqError(ENOMEM): no memory or mapping left.
    """

    __slots__ = ("_let_go", "_mem", "kept")

    def __init__(self, ring_bytes: int) -> None:
        self.kept = self._let_go = False
        self._mem: Any = ffi.new("struct vi_ring_mem *")
        result = lib.vi_ring_mem_create(ring_bytes, self._mem) if 0 <= ring_bytes < 1 << 32 else -errno.EINVAL
        if result == -errno.EINVAL:
            raise IrqError(
                errno.EINVAL,
                f"a ring cannot have {ring_bytes} bytes: it is a control page and whole pages of data (EINVAL); "
                f"multiples of {RING_HDR} from {lib.VI_RING_BYTES_MIN} to {lib.VI_RING_BYTES_MAX}",
            )
        if result:
            raise IrqError(-result, f"a ring of {ring_bytes} bytes: no memory left")

    @classmethod
    def map(cls, fd: int, pfns: Sequence[int]) -> Self:
        """Map a ring that lies in a file of memory, as it stands; :meth:`reset` is for who opens it.

        Guest and host map one ring each for themselves. A guest whose pages are larger than 4096 bytes leaves the rest
        of its header page out.

        Args:
            fd: the file; it may be closed afterwards and must never shrink.
            pfns: its pages of 4096 bytes: the control page, then the data in the order of the ring.
        Raises:
            IrqError(EINVAL): fewer than 2 pages, more than 1 GiB, or a page outside the file.
            IrqError(EBADF): there is no such file.
            IrqError(EOPNOTSUPP): this system has larger pages.
            IrqError(ENOMEM): no memory or mapping left.
        """
        memory = cls.__new__(cls)
        memory.kept = memory._let_go = False
        memory._mem = ffi.new("struct vi_ring_mem *")
        inside = all(0 <= pfn < 1 << 64 for pfn in pfns)
        if not 0 <= fd < 1 << 31:
            result = -errno.EBADF
        elif not inside or len(pfns) >= 1 << 32:
            result = -errno.EINVAL
        else:
            result = lib.vi_ring_mem_map(fd, ffi.new("uint64_t[]", list(pfns)), len(pfns), memory._mem)
        if result:
            raise _not_mapped(-result, fd, pfns)
        return memory

    def close(self) -> None:
        """Unmap the ring; its ends raise EBADF from now on. A second call does nothing."""
        self._let_go = True
        if not self.kept:
            lib.vi_ring_mem_destroy(self._mem)

    def reset(self) -> None:
        """Zero the control page and set feature_bits to 1, as a guest does at open; both ends are opened anew then."""
        lib.vi_ring_reset(self.struct)

    @property
    def closed(self) -> bool:
        """Whether the ring was unmapped."""
        return self._let_go or bool(self._mem.map == ffi.NULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        lib.vi_ring_mem_destroy(self._mem)

    @property
    def struct(self) -> Any:
        """The ``struct vi_ring_mem *`` behind it, for the C functions that take a ring."""
        if self.closed:
            raise IrqError(errno.EBADF, "the ring is closed (EBADF): open a new one")
        return self._mem

    @property
    def control(self) -> Control:
        """What the control page says now."""
        hdr = self.struct.hdr
        return Control(
            write_index=int(hdr.write_index),
            read_index=int(hdr.read_index),
            interrupt_mask=int(hdr.interrupt_mask),
            pending_send_sz=int(hdr.pending_send_sz),
            feature_bits=int(hdr.feature_bits),
        )

    def poke_control(self, field: str, value: int) -> None:
        """Write a field of :class:`Control`, as a peer could that keeps to no rule.

        Raises:
            IrqError(EINVAL): no such field, or not a 32-bit number.
        """
        hdr = self.struct.hdr
        if field not in Control.__slots__ or not 0 <= value < 1 << 32:
            fields = ", ".join(Control.__slots__)
            raise IrqError(
                errno.EINVAL, f"control page: cannot set {field} to {value} (EINVAL); 32 bits each: {fields}"
            )
        setattr(hdr, field, value)

    def peek(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the data, past its end those of its beginning.

        Raises:
            IrqError(EINVAL): outside the two mappings.
        """
        return bytes(ffi.buffer(self._at(offset, size_bytes), size_bytes))

    def poke(self, offset: int, data: bytes) -> None:
        """Overwrite bytes of the data, as a peer could that keeps to no rule; limits as :meth:`peek`."""
        ffi.memmove(self._at(offset, len(data)), data, len(data))

    def _at(self, offset: int, size_bytes: int) -> Any:
        mem = self.struct
        if offset < 0 or size_bytes < 0 or offset + size_bytes > 2 * mem.data_size:
            raise IrqError(
                errno.EINVAL,
                f"{size_bytes} bytes at offset {offset} are outside the ring (EINVAL); it has {mem.data_size} twice",
            )
        return mem.data + offset

    @property
    def data_size(self) -> int:
        """Bytes of data."""
        return int(self.struct.data_size)

    @property
    def bytes_to_read(self) -> int:
        """Bytes between the shared indices, trailers included."""
        return int(lib.vi_ring_bytes_to_read(self.struct.hdr, self.data_size))

    @property
    def bytes_to_write(self) -> int:
        """Bytes free; a packet must leave at least 8 of them so."""
        return int(lib.vi_ring_bytes_to_write(self.struct.hdr, self.data_size))


def _not_mapped(error: int, fd: int, pfns: Sequence[int]) -> IrqError:
    what = f"cannot map a ring of {len(pfns)} pages from descriptor {fd}"
    if error == errno.EBADF:
        return IrqError(error, f"{what}: it is not open (EBADF); give that of the guest's memory")
    if error == errno.EOPNOTSUPP:
        return IrqError(error, f"{what}: pages of this system are larger than {lib.VI_PAGE} bytes (EOPNOTSUPP)")
    if error != errno.EINVAL:
        return IrqError(error, f"{what}: no memory or mapping left; close other rings, or take fewer runs of pages")
    most = lib.VI_RING_BYTES_MAX // lib.VI_PAGE
    if not 2 <= len(pfns) <= most:
        return IrqError(error, f"{what}: a control page and at least one of data (EINVAL); 2 to {most}")
    last = os.fstat(fd).st_size // lib.VI_PAGE - 1
    bad = next((pfn for pfn in pfns if not 0 <= pfn <= last), None)
    return IrqError(error, f"{what}: there is no page {bad} in it (EINVAL); the last one is {last}")
