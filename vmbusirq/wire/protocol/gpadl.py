"""Guest memory lists (GPADLs): their messages, how a guest splits them, how a host puts them together and checks them.

A GPADL is a sequence of 64-bit words: for each range one word with byte_count (low half) and byte_offset (high half),
then the page numbers that the range touches. GPADL_HEADER carries up to 27 of them, each GPADL_BODY up to 28
(vmbus.md 2.8 and 2.10).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.wire.protocol.ids import STATUS_UNSUCCESSFUL
from vmbusirq.wire.protocol.layout import Direction, Handling, MessageType, Wire, u16, u32
from vmbusirq.wire.protocol.message import Message
from vmbusirq.wire.protocol.versions import Version

__all__ = [
    "GPADL_PAGE",
    "GpaRange",
    "GpadlAssembly",
    "GpadlBody",
    "GpadlCreated",
    "GpadlError",
    "GpadlFault",
    "GpadlHeader",
    "GpadlTeardown",
    "GpadlTorndown",
    "gpadl_message_count",
    "gpadl_messages",
    "gpadl_ranges",
]

GPADL_PAGE: Final = 4096
"""Bytes of a page as the host counts them, whatever the guest's pages are."""

_U32: Final = 0xFFFF_FFFF
_CHILD_RELID = u32("child_relid", 8)


@dataclass(frozen=True, slots=True)
class GpadlHeader(Message):
    """The beginning of a guest memory list; :func:`gpadl_messages` makes it.

    Attributes:
        range_buflen: bytes of all ranges, those in GPADL_BODY messages included.
        words: at most 27; a range's byte_count and byte_offset are the halves of one word, its page numbers follow.
    """

    child_relid: int
    gpadl: int
    range_buflen: int
    rangecount: int
    words: tuple[int, ...] = ()

    wire: ClassVar = Wire(
        MessageType.GPADL_HEADER,
        Direction.TO_HOST,
        Version.V0_13,
        size=20,
        fields=(_CHILD_RELID, u32("gpadl", 12), u16("range_buflen", 16), u16("rangecount", 18)),
        words=True,
    )


@dataclass(frozen=True, slots=True)
class GpadlBody(Message):
    """More words of a guest memory list, at most 28. msgnumber is 0 with Linux and ignored by hosts."""

    gpadl: int
    words: tuple[int, ...] = ()
    msgnumber: int = 0

    wire: ClassVar = Wire(
        MessageType.GPADL_BODY,
        Direction.TO_HOST,
        Version.V0_13,
        size=16,
        fields=(u32("msgnumber", 8), u32("gpadl", 12)),
        words=True,
    )


@dataclass(frozen=True, slots=True)
class GpadlCreated(Message):
    """The host has mapped the memory (status 0) or refused it."""

    child_relid: int
    gpadl: int
    creation_status: int

    wire: ClassVar = Wire(
        MessageType.GPADL_CREATED,
        Direction.TO_GUEST,
        Version.V0_13,
        size=20,
        fields=(_CHILD_RELID, u32("gpadl", 12), u32("creation_status", 16)),
        linux=Handling.TASKLET,
        linux_min=20,
    )


@dataclass(frozen=True, slots=True)
class GpadlTeardown(Message):
    """The guest wants its memory back."""

    child_relid: int
    gpadl: int

    wire: ClassVar = Wire(
        MessageType.GPADL_TEARDOWN, Direction.TO_HOST, Version.V0_13, size=16, fields=(_CHILD_RELID, u32("gpadl", 12))
    )


@dataclass(frozen=True, slots=True)
class GpadlTorndown(Message):
    """The host has let go of the memory."""

    gpadl: int

    wire: ClassVar = Wire(
        MessageType.GPADL_TORNDOWN,
        Direction.TO_GUEST,
        Version.V0_13,
        size=12,
        fields=(u32("gpadl", 8),),
        linux=Handling.TASKLET,
        linux_min=12,
    )


# ---- ranges


@dataclass(frozen=True, slots=True)
class GpaRange:
    """Guest memory that is contiguous for who uses it: bytes, where they begin in the first page, the pages.

    Attributes:
        pfns: guest page numbers of 4096 bytes, 64 bits each.
    """

    byte_count: int
    byte_offset: int
    pfns: tuple[int, ...]

    @classmethod
    def of_pages(cls, pfns: Sequence[int]) -> GpaRange:
        """Return the range of whole pages, as Linux makes it."""
        return cls(len(pfns) * GPADL_PAGE, 0, tuple(pfns))

    @property
    def words(self) -> tuple[int, ...]:
        """The range as it lies in a GPADL. EINVAL: byte_count or byte_offset has more than 32 bits."""
        if not (0 <= self.byte_count <= _U32 and 0 <= self.byte_offset <= _U32):
            raise IrqError(
                errno.EINVAL, f"range of {self.byte_count} bytes at {self.byte_offset}: both have 32 bits (EINVAL)"
            )
        return (self.byte_count | self.byte_offset << 32, *self.pfns)


def gpadl_messages(child_relid: int, gpadl: int, ranges: Sequence[GpaRange]) -> tuple[GpadlHeader | GpadlBody, ...]:
    """Return the messages that establish a GPADL: one GPADL_HEADER, then as many GPADL_BODY as it takes.

    Raises:
        IrqError(EINVAL): more than 65535 bytes of ranges, so about 8190 pages, or a number too wide.
    """
    words = tuple(word for item in ranges for word in item.words)
    if len(words) * 8 > 0xFFFF:
        raise IrqError(
            errno.EINVAL, f"gpadl {gpadl:#x}: {len(words) * 8} bytes of ranges (EINVAL); range_buflen ends at 65535"
        )
    first, step = GpadlHeader.wire.words_max, GpadlBody.wire.words_max
    header = GpadlHeader(child_relid, gpadl, len(words) * 8, len(ranges), words[:first])
    bodies = (GpadlBody(gpadl, words[at : at + step]) for at in range(first, len(words), step))
    return (header, *bodies)


def gpadl_message_count(pages: int) -> int:
    """Return how many messages a GPADL of one range of so many pages takes: 26 pages fit into the first."""
    in_bodies = max(0, pages + 1 - GpadlHeader.wire.words_max)
    return 1 + -(-in_bodies // GpadlBody.wire.words_max)


# ---- the host's side


class GpadlFault(Enum):
    """What can be wrong with a GPADL; each gets GPADL_CREATED with status 0x8000FFFF."""

    EMPTY_RANGE = "there is no word left for a range"
    EMPTY_BYTE_COUNT = "a range has no bytes"
    OFFSET_TOO_LARGE = "a range begins behind its first page"
    OVERFLOW = "a range's bytes and offset overflow 32 bits"
    RANGE_TOO_SMALL = "a range has fewer page numbers than it needs"


class GpadlError(ValueError):
    """A guest sent ranges that a host must not map."""

    def __init__(self, fault: GpadlFault, index: int) -> None:
        super().__init__(f"range {index}: {fault.value}")
        self.fault: Final = fault
        self.index: Final = index

    @property
    def status(self) -> int:
        """The creation_status that answers it."""
        return STATUS_UNSUCCESSFUL


def gpadl_ranges(words: Sequence[int], rangecount: int) -> tuple[GpaRange, ...]:
    """Return the ranges in a GPADL's words, checked as OpenVMM checks them; words left over are fine.

    Raises:
        GpadlError: a range is empty, begins behind its first page, overflows, or lacks page numbers.
    """
    ranges: list[GpaRange] = []
    at = 0
    for index in range(rangecount):
        if at >= len(words):
            raise GpadlError(GpadlFault.EMPTY_RANGE, index)
        byte_count, byte_offset = words[at] & _U32, words[at] >> 32
        if not byte_count:
            raise GpadlError(GpadlFault.EMPTY_BYTE_COUNT, index)
        if byte_offset >= GPADL_PAGE:
            raise GpadlError(GpadlFault.OFFSET_TOO_LARGE, index)
        if byte_count + byte_offset + GPADL_PAGE - 1 > _U32:
            raise GpadlError(GpadlFault.OVERFLOW, index)
        pages = (byte_count + byte_offset + GPADL_PAGE - 1) // GPADL_PAGE
        pfns = tuple(words[at + 1 : at + 1 + pages])
        if len(pfns) < pages:
            raise GpadlError(GpadlFault.RANGE_TOO_SMALL, index)
        ranges.append(GpaRange(byte_count, byte_offset, pfns))
        at += 1 + pages
    return tuple(ranges)


class GpadlAssembly:
    """A GPADL while its messages come in. Words beyond the announced range_buflen are cut off.

    The announced length bounds the memory that a guest can make it take: 8191 words.
    """

    __slots__ = ("_rangecount", "_words", "child_relid", "gpadl", "total")

    def __init__(self, header: GpadlHeader) -> None:
        self.child_relid: Final = header.child_relid
        self.gpadl: Final = header.gpadl
        self.total: Final = header.range_buflen // 8
        self._rangecount = header.rangecount
        self._words = list(header.words[: self.total])

    def add(self, body: GpadlBody) -> None:
        """Take the words of one GPADL_BODY; they carry no number and count in the order they come."""
        self._words += body.words[: self.total - len(self._words)]

    @property
    def complete(self) -> bool:
        """All announced words are here."""
        return len(self._words) == self.total

    def ranges(self) -> tuple[GpaRange, ...]:
        """Return the ranges of a complete GPADL.

        Raises:
            GpadlError: as :func:`gpadl_ranges`.
        """
        assert self.complete, "ranges are checked when all words are here"
        return gpadl_ranges(self._words, self._rangecount)
