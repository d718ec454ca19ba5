"""Guest memory that a guest has given to channels: GPADLs from the first message to the last (vmbus.md 2.10)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Final

from vmbusirq.errors import IrqError
from vmbusirq.wire.protocol import GPADL_PAGE, GpadlAssembly, GpadlHeader, GpaRange

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel
    from vmbusirq.hyperv.memory import GuestMemory

__all__ = ["GpadlQuota", "GpadlState", "GpadlTable", "HostGpadl"]


class GpadlState(Enum):
    """Where a GPADL stands (OpenVMM's names)."""

    IN_PROGRESS = "its messages are coming in"
    OFFERED = "the device is asked"
    ACCEPTED = "the device has it"
    TEARING_DOWN = "the device is asked to let go"
    OFFERED_TEARING_DOWN = "the device is asked, and will have to let go"
    TORN_DOWN = "the guest has it back"


class HostGpadl:
    """Guest memory that belongs to a channel.

    Attributes:
        handle: the guest's number for it.
        channel: whose it is.
        state: see :class:`GpadlState`.
        ranges: the memory; empty while messages are coming in.
        users: rings that lie in it, and buffers that a VSP has made of it; it is not torn down before they are gone.
    """

    def __init__(self, memory: GuestMemory, channel: HostChannel, header: GpadlHeader, charge: int) -> None:
        self.handle: Final = header.gpadl
        self.channel: Final = channel
        self.relid: Final = header.child_relid
        self.state = GpadlState.IN_PROGRESS
        self.ranges: tuple[GpaRange, ...] = ()
        self.assembly: GpadlAssembly | None = GpadlAssembly(header)
        self.charge = charge
        self.users = 0
        self._memory = memory

    @property
    def byte_count(self) -> int:
        """Bytes of all ranges."""
        return sum(item.byte_count for item in self.ranges)

    def hold(self) -> HostGpadl:
        """Begin to use the memory."""
        self.users += 1
        return self

    def release(self) -> None:
        """Cease to: a guest that has asked for it gets it back when nobody uses it."""
        self.users -= 1
        self.channel.device.connection.gpadl_control.unused(self)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the memory, its ranges one behind the other.

        Raises:
            IrqError(EFAULT): not all of them are inside, or it is not the host's.
        """
        return b"".join(self._memory.read(gpa, length) for gpa, length in self._pieces(offset, size))

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes of the memory.

        Raises:
            IrqError(EFAULT): not all of them are inside, or it is not the host's; nothing is written.
        """
        at = 0
        for gpa, length in self._pieces(offset, len(data)):
            self._memory.write(gpa, data[at : at + length])
            at += length

    def _pieces(self, offset: int, size: int) -> list[tuple[int, int]]:
        """Return (guest-physical address, bytes) of each page's part."""
        if self.state is not GpadlState.ACCEPTED and not (self.state is GpadlState.TEARING_DOWN and self.users):
            raise IrqError(errno.EFAULT, f"gpadl {self.handle:#x}: {self.state.value}: not the host's to use (EFAULT)")
        if offset < 0 or size < 0 or offset + size > self.byte_count:
            raise IrqError(
                errno.EFAULT,
                f"gpadl {self.handle:#x}: {size} bytes at {offset} are not all inside (EFAULT); "
                f"it has {self.byte_count}",
            )
        pieces: list[tuple[int, int]] = []
        for item in self.ranges:
            if not size:
                break
            if offset >= item.byte_count:
                offset -= item.byte_count
                continue
            while size and offset < item.byte_count:
                page, within = divmod(item.byte_offset + offset, GPADL_PAGE)
                length = min(size, GPADL_PAGE - within, item.byte_count - offset)
                pieces.append((item.pfns[page] * GPADL_PAGE + within, length))
                offset += length
                size -= length
            offset -= item.byte_count
        return pieces


class GpadlQuota:
    """How much guest memory one host takes, over all connections."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes: Final = limit_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Reserve; False if it would be too much."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        """Give back."""
        self.used_bytes -= size_bytes


class GpadlTable:
    """The GPADLs of one connection, by relid and handle."""

    def __init__(self, memory: GuestMemory, quota: GpadlQuota, most: int) -> None:
        self._memory = memory
        self._quota = quota
        self._most = most
        self._by_key: dict[tuple[int, int], HostGpadl] = {}
        self._incomplete: dict[int, HostGpadl] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[HostGpadl]:
        return iter(tuple(self._by_key.values()))

    def begin(self, channel: HostChannel, header: GpadlHeader) -> HostGpadl | str:
        """Take a GPADL_HEADER; return the GPADL, or why not.

        The quota is charged with the pages that are announced, one at least, so that unfinished ones count too.
        """
        key = (header.child_relid, header.gpadl)
        if key in self._by_key:
            return "the channel has one of that handle"
        if header.gpadl in self._incomplete:
            return "the messages of one with that handle are still coming in"
        if len(self._by_key) >= self._most:
            return f"there are {self._most} already"
        charge = GPADL_PAGE * max(1, header.range_buflen // 8 - header.rangecount)
        if not self._quota.take(charge):
            return f"{charge} bytes more than {self._quota.used_bytes} pass the quota of {self._quota.limit_bytes}"
        gpadl = HostGpadl(self._memory, channel, header, charge)
        self._by_key[key] = gpadl
        self._incomplete[header.gpadl] = gpadl
        return gpadl

    def incomplete(self, handle: int) -> HostGpadl | None:
        """Return the GPADL that waits for GPADL_BODY messages of this handle."""
        return self._incomplete.get(handle)

    def completed(self, gpadl: HostGpadl) -> None:
        """All messages are here."""
        self._incomplete.pop(gpadl.handle, None)

    def fits(self, gpadl: HostGpadl) -> bool:
        """Return whether the guest has all the pages that it names."""
        pages = self._memory.size_bytes // GPADL_PAGE
        return all(pfn < pages for item in gpadl.ranges for pfn in item.pfns)

    def find(self, relid: int, handle: int) -> HostGpadl | None:
        """Return a GPADL in any state."""
        return self._by_key.get((relid, handle))

    def accepted(self, relid: int, handle: int) -> HostGpadl | None:
        """Return a GPADL that can be used."""
        gpadl = self.find(relid, handle)
        return gpadl if gpadl is not None and gpadl.state is GpadlState.ACCEPTED else None

    def of(self, channel: HostChannel) -> tuple[HostGpadl, ...]:
        """Return all GPADLs under a channel's relid."""
        return tuple(gpadl for gpadl in self._by_key.values() if gpadl.relid == channel.relid)

    def remove(self, gpadl: HostGpadl) -> None:
        """Forget one and give its quota back; a second call does nothing."""
        if self._by_key.get((gpadl.relid, gpadl.handle)) is gpadl:
            del self._by_key[gpadl.relid, gpadl.handle]
            if self._incomplete.get(gpadl.handle) is gpadl:
                del self._incomplete[gpadl.handle]
            self._quota.give(gpadl.charge)
            gpadl.assembly = None
            gpadl.state = GpadlState.TORN_DOWN
