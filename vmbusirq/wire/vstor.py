"""Packets of the synthetic storage controllers (storvsc): IDE, SCSI and fiber channel.

Each packet is 64 bytes: 12 of header and a union of 52, of which only the parts are laid out here that open a
controller and its sub-channels (vmbus.md 5.4). SCSI requests travel as opaque bytes. vmbus.md gives the size and the
rules; the numbers are those of the public protocol (operations of ``drivers/scsi/storvsc_drv.c``, v6.10).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from typing import ClassVar, Final

from vmbusirq.wire.record import PayloadError, Record

__all__ = [
    "LINUX_VERSIONS",
    "STATUS_INVALID_DEVICE_STATE",
    "STATUS_INVALID_PARAMETER",
    "STATUS_REVISION_MISMATCH",
    "VSTOR_BODY",
    "ChannelProperties",
    "Operation",
    "ProtocolVersion",
    "StorFlags",
    "SubChannelCount",
    "VstorPacket",
]

VSTOR_BODY: Final = 52
REQUEST_COMPLETION: Final = 1
STATUS_REVISION_MISMATCH: Final = 0xC000_0059
STATUS_INVALID_PARAMETER: Final = 0xC000_000D
STATUS_INVALID_DEVICE_STATE: Final = 0xC000_0184

LINUX_VERSIONS: Final = (0x0602, 0x0600, 0x0501)
"""What Linux asks for, in this order: 6.2 (Windows 10), 6.0 (8.1), 5.1 (8); major number in the high byte."""


class Operation(IntEnum):
    """operation."""

    COMPLETE_IO = 1
    REMOVE_DEVICE = 2
    EXECUTE_SRB = 3
    RESET_LUN = 4
    RESET_ADAPTER = 5
    RESET_BUS = 6
    BEGIN_INITIALIZATION = 7
    END_INITIALIZATION = 8
    QUERY_PROTOCOL_VERSION = 9
    QUERY_PROPERTIES = 10
    ENUMERATE_BUS = 11
    FCHBA_DATA = 12
    CREATE_SUB_CHANNELS = 13


class StorFlags(IntFlag):
    """flags of the channel properties."""

    NONE = 0
    SUPPORTS_MULTI_CHANNEL = 1


@dataclass(frozen=True, slots=True)
class ProtocolVersion(Record):
    """QUERY_PROTOCOL_VERSION: the version that the guest wants to speak; hosts ignore the revision."""

    major_minor: int
    revision: int = 0

    layout: ClassVar = struct.Struct("<HH")


@dataclass(frozen=True, slots=True)
class ChannelProperties(Record):
    """The answer to QUERY_PROPERTIES; 24 zero bytes of it are also the user data of OPENCHANNEL."""

    max_channel_cnt: int = 0
    flags: int = StorFlags.NONE
    max_transfer_bytes: int = 0

    layout: ClassVar = struct.Struct("<4xH2xII8x")


@dataclass(frozen=True, slots=True)
class SubChannelCount(Record):
    """CREATE_SUB_CHANNELS: how many the guest asks for, the primary not counted."""

    sub_channel_count: int

    layout: ClassVar = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class VstorPacket(Record):
    """Any packet of the protocol.

    Attributes:
        flags: bit 0 asks for a completion.
        status: an NT status, 0 in requests.
        body: the union; fewer than 52 bytes are filled up with zeroes.
    """

    operation: int
    flags: int = REQUEST_COMPLETION
    status: int = 0
    body: bytes = b""

    layout: ClassVar = struct.Struct(f"<III{VSTOR_BODY}s")

    def __post_init__(self) -> None:
        if len(self.body) > VSTOR_BODY:
            raise PayloadError(f"VstorPacket: a body of {len(self.body)} bytes, there is room for {VSTOR_BODY}")
        object.__setattr__(self, "body", self.body.ljust(VSTOR_BODY, b"\0"))

    def completion(self, status: int = 0, body: bytes | None = None) -> VstorPacket:
        """Return the COMPLETE_IO that answers this request; its body is sent back unless another is given."""
        return replace(
            self,
            operation=int(Operation.COMPLETE_IO),
            flags=0,
            status=status,
            body=self.body if body is None else body,
        )
