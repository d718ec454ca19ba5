"""How a control message lies in memory: named fields at offsets, and what may follow them.

Offsets and sizes include the 8-byte header {msgtype u32, padding u32}. Little-endian; bytes that no field covers are
zero when sent and ignored when received.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.limits import MSG_PAYLOAD
from vmbusirq.wire.protocol.versions import FeatureFlags, Version

__all__ = [
    "HEADER_SIZE",
    "Direction",
    "Field",
    "Handling",
    "MessageType",
    "Section",
    "Tail",
    "Wire",
    "guid",
    "raw",
    "u8",
    "u16",
    "u32",
    "u64",
]

HEADER_SIZE: Final = 8


class MessageType(IntEnum):
    """msgtype, under Linux's names (enum vmbus_channel_message_type); 25 and up under OpenVMM's."""

    INVALID = 0
    OFFERCHANNEL = 1
    RESCIND_CHANNELOFFER = 2
    REQUESTOFFERS = 3
    ALLOFFERS_DELIVERED = 4
    OPENCHANNEL = 5
    OPENCHANNEL_RESULT = 6
    CLOSECHANNEL = 7
    GPADL_HEADER = 8
    GPADL_BODY = 9
    GPADL_CREATED = 10
    GPADL_TEARDOWN = 11
    GPADL_TORNDOWN = 12
    RELID_RELEASED = 13
    INITIATE_CONTACT = 14
    VERSION_RESPONSE = 15
    UNLOAD = 16
    UNLOAD_RESPONSE = 17
    OPEN_RESERVED_CHANNEL = 18
    CLOSE_RESERVED_CHANNEL = 19
    CLOSE_RESERVED_RESPONSE = 20
    TL_CONNECT_REQUEST = 21
    MODIFYCHANNEL = 22
    TL_CONNECT_RESULT = 23
    MODIFYCHANNEL_RESPONSE = 24
    MODIFY_CONNECTION = 25
    MODIFY_CONNECTION_RESPONSE = 26
    PAUSE = 27
    PAUSE_RESPONSE = 28
    RESUME = 29


class Direction(Enum):
    """Which way a message goes."""

    TO_GUEST = "host to guest"
    TO_HOST = "guest to host"


class Handling(Enum):
    """Where a Linux guest serves a message that came in (channel_message_table, v6.10)."""

    NONE = "dropped without a word"
    TASKLET = "in the msg_dpc tasklet, which must not sleep"
    OFFER_WORK = "copied to the hv_vmbus_con work queue"
    RESCIND_WORK = "copied to the hv_vmbus_rescind work queue"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its place, and its code in :mod:`struct`; GUIDs have the code of 16 bytes and a mark."""

    name: str
    offset: int
    code: str
    is_guid: bool = False

    @property
    def size(self) -> int:
        """Bytes it takes."""
        return struct.calcsize(f"<{self.code}")

    def to_wire(self, value: Any, owner: str) -> Any:
        """Return the value as struct wants it. EINVAL: it does not fit; TypeError: a GUID that is none."""
        if self.is_guid:
            if not isinstance(value, UUID):
                raise TypeError(f"{owner}: {self.name} wants a uuid.UUID, not {value!r}")
            return value.bytes_le
        if self.code.endswith("s"):
            if len(value) != self.size:
                raise IrqError(errno.EINVAL, f"{owner}: {self.name} has {self.size} bytes, not {len(value)} (EINVAL)")
        elif not 0 <= value < 1 << 8 * self.size:
            raise IrqError(
                errno.EINVAL, f"{owner}: {self.name} {value} does not fit into {8 * self.size} bits (EINVAL)"
            )
        return value

    def from_wire(self, value: Any) -> Any:
        """Return the value as the message keeps it."""
        return UUID(bytes_le=value) if self.is_guid else value


def u8(name: str, offset: int) -> Field:
    """Return a field of 1 byte."""
    return Field(name, offset, "B")


def u16(name: str, offset: int) -> Field:
    """Return a field of 2 bytes."""
    return Field(name, offset, "H")


def u32(name: str, offset: int) -> Field:
    """Return a field of 4 bytes; statuses too, which are kept unsigned."""
    return Field(name, offset, "I")


def u64(name: str, offset: int) -> Field:
    """Return a field of 8 bytes."""
    return Field(name, offset, "Q")


def guid(name: str, offset: int) -> Field:
    """Return a GUID field: 16 bytes, the first three groups little-endian."""
    return Field(name, offset, "16s", is_guid=True)


def raw(name: str, offset: int, size: int) -> Field:
    """Return a field of bytes without further meaning."""
    return Field(name, offset, f"{size}s")


class Section:
    """Fields in the bytes from ``start`` to ``end`` of a message."""

    __slots__ = ("_struct", "end", "fields", "start")

    def __init__(self, start: int, end: int, fields: tuple[Field, ...]) -> None:
        code, at = "<", start
        for item in fields:
            assert item.offset >= at, f"{item.name} overlaps what is before it"
            code += f"{item.offset - at}x{item.code}"
            at = item.offset + item.size
        assert at <= end <= MSG_PAYLOAD, "the fields end behind the message"
        self.start: Final = start
        self.end: Final = end
        self.fields: Final = fields
        self._struct = struct.Struct(f"{code}{end - at}x")

    def pack(self, message: object, owner: str) -> bytes:
        """Return the section's bytes. EINVAL: a value does not fit."""
        return self._struct.pack(*(item.to_wire(getattr(message, item.name), owner) for item in self.fields))

    def unpack(self, payload: bytes) -> Mapping[str, Any]:
        """Return the fields' values by name; ``payload`` is the whole message and long enough."""
        values = self._struct.unpack_from(payload, self.start)
        return {item.name: item.from_wire(value) for item, value in zip(self.fields, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Tail:
    """Fields that only some connections have, None in the message when absent.

    Attributes:
        when: whether they may be there, given the message without them, the version and the features.
        optional: a sender may leave them out even then; otherwise a message without them is too short.
    """

    section: Section
    when: Callable[[Any, Version | None, FeatureFlags], bool]
    optional: bool = True

    def given_in(self, message: object) -> bool:
        """Return whether the message has any of these fields."""
        return any(getattr(message, item.name) is not None for item in self.section.fields)

    def is_whole_in(self, message: object) -> bool:
        """Return whether the message has all of them."""
        return all(getattr(message, item.name) is not None for item in self.section.fields)

    @property
    def names(self) -> str:
        """The fields, for people."""
        return ", ".join(item.name for item in self.section.fields)


@dataclass(frozen=True, slots=True)
class Wire:
    """All that is known of a message type on the wire.

    Attributes:
        size: bytes of the shortest form.
        direction: who receives it; None: nobody.
        since: the first version that has it; None: any, and before a version is agreed upon.
        features: of these, one must have been negotiated; NONE: no condition.
        linux, linux_min: where Linux serves it, and the bytes that it wants at least.
        words: 64-bit words follow, up to the end of the message.
    """

    msgtype: MessageType
    direction: Direction | None
    since: Version | None
    size: int
    fields: tuple[Field, ...] = ()
    tails: tuple[Tail, ...] = ()
    words: bool = False
    features: FeatureFlags = FeatureFlags.NONE
    linux: Handling = Handling.NONE
    linux_min: int = 0
    base: Section = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", Section(HEADER_SIZE, self.size, self.fields))

    @property
    def words_max(self) -> int:
        """64-bit words that fit behind the fields: 27 in GPADL_HEADER, 28 in GPADL_BODY."""
        return (MSG_PAYLOAD - self.size) // 8 if self.words else 0

    def is_known_at(self, version: Version | None, features: FeatureFlags) -> bool:
        """Return whether a connection of this version and these features has the message; None: not connected."""
        if self.since is None:
            return True
        return version is not None and version >= self.since and (not self.features or bool(features & self.features))
