"""Messages of the synthetic network adapter (netvsc) that open it, share its buffers and ask for sub-channels.

A message is a u32 type and a body; frames and RNDIS travel as opaque bytes. vmbus.md names the protocol (5.4) but does
not lay it out; the numbers are those of the public ``drivers/net/hyperv/hyperv_net.h``, v6.10. Linux sends every
message at the size of its largest; here each has its own, and a reader ignores what follows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from vmbusirq.wire.record import PayloadError, Record

__all__ = [
    "LINUX_VERSIONS",
    "NVSP_5",
    "RECEIVE_BUFFER_ID",
    "SECTION_NONE",
    "SEND_BUFFER_ID",
    "SUBCHANNEL_ALLOCATE",
    "Init",
    "InitComplete",
    "MessageType",
    "NvspMessage",
    "NvspStatus",
    "ReceiveBufferComplete",
    "RevokeReceiveBuffer",
    "RevokeSendBuffer",
    "RndisPacket",
    "RndisPacketComplete",
    "SendBufferComplete",
    "SendNdisConfig",
    "SendNdisVersion",
    "ShareReceiveBuffer",
    "ShareSendBuffer",
    "SubchannelComplete",
    "SubchannelRequest",
    "nvsp_bytes",
    "nvsp_message",
    "nvsp_type",
]

LINUX_VERSIONS: Final = (0x60001, 0x60000, 0x50000, 0x40000, 0x30002, 0x00002)
"""What Linux asks for, in this order: NVSP 6.1, 6, 5, 4, 2, 1."""
NVSP_5: Final = 0x50000
"""The first version with sub-channels."""
RECEIVE_BUFFER_ID: Final = 0xCAFE
SEND_BUFFER_ID: Final = 0
SECTION_NONE: Final = 0xFFFF_FFFF
"""The packet does not use the send buffer."""
SUBCHANNEL_ALLOCATE: Final = 1


class MessageType(IntEnum):
    """msg_type."""

    NONE = 0
    INIT = 1
    INIT_COMPLETE = 2
    SEND_NDIS_VER = 100
    SEND_RECV_BUF = 101
    SEND_RECV_BUF_COMPLETE = 102
    REVOKE_RECV_BUF = 103
    SEND_SEND_BUF = 104
    SEND_SEND_BUF_COMPLETE = 105
    REVOKE_SEND_BUF = 106
    SEND_RNDIS_PKT = 107
    SEND_RNDIS_PKT_COMPLETE = 108
    SEND_NDIS_CONFIG = 125
    SUBCHANNEL = 133


class NvspStatus(IntEnum):
    """status of completions; note that success is 1."""

    NONE = 0
    SUCCESS = 1
    FAIL = 2
    PROTOCOL_TOO_NEW = 3
    PROTOCOL_TOO_OLD = 4
    INVALID_RNDIS_PACKET = 5
    BUSY = 6
    PROTOCOL_UNSUPPORTED = 7


@dataclass(frozen=True, slots=True)
class NvspMessage(Record):
    """A body of the protocol; ``type`` goes before it."""

    type: ClassVar[MessageType]


@dataclass(frozen=True, slots=True)
class Init(NvspMessage):
    """The guest can speak these versions; Linux names one."""

    min_version: int
    max_version: int

    type: ClassVar = MessageType.INIT
    layout: ClassVar = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class InitComplete(NvspMessage):
    """Answer to INIT."""

    negotiated_version: int
    max_mdl_chain_len: int
    status: int

    type: ClassVar = MessageType.INIT_COMPLETE
    layout: ClassVar = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class SendNdisVersion(NvspMessage):
    """The guest's NDIS version; unanswered."""

    major: int
    minor: int

    type: ClassVar = MessageType.SEND_NDIS_VER
    layout: ClassVar = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class SendNdisConfig(NvspMessage):
    """The guest's MTU and capabilities (NVSP 2 and later); unanswered."""

    mtu: int
    capabilities: int = 0

    type: ClassVar = MessageType.SEND_NDIS_CONFIG
    layout: ClassVar = struct.Struct("<I4xQ")


@dataclass(frozen=True, slots=True)
class ShareReceiveBuffer(NvspMessage):
    """A GPADL that the guest has established: where the host puts frames."""

    gpadl_handle: int
    id: int = RECEIVE_BUFFER_ID

    type: ClassVar = MessageType.SEND_RECV_BUF
    layout: ClassVar = struct.Struct("<IH")


@dataclass(frozen=True, slots=True)
class ShareSendBuffer(NvspMessage):
    """A GPADL that the guest has established: where the host finds small frames."""

    gpadl_handle: int
    id: int = SEND_BUFFER_ID

    type: ClassVar = MessageType.SEND_SEND_BUF
    layout: ClassVar = struct.Struct("<IH")


@dataclass(frozen=True, slots=True)
class ReceiveBufferComplete(NvspMessage):
    """Answer to SEND_RECV_BUF: how the host cuts the buffer up. Linux takes one section at offset 0 and no other.

    Attributes:
        num_sections: sections; the four fields behind it are the first of them.
        sub_alloc_size, num_sub_allocs: pieces, one per frame: bytes of each, and how many.
    """

    status: int
    num_sections: int
    offset: int = 0
    sub_alloc_size: int = 0
    num_sub_allocs: int = 0
    end_offset: int = 0

    type: ClassVar = MessageType.SEND_RECV_BUF_COMPLETE
    layout: ClassVar = struct.Struct("<IIIIII")


@dataclass(frozen=True, slots=True)
class SendBufferComplete(NvspMessage):
    """Answer to SEND_SEND_BUF: the bytes of a section."""

    status: int
    section_size: int

    type: ClassVar = MessageType.SEND_SEND_BUF_COMPLETE
    layout: ClassVar = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class RevokeReceiveBuffer(NvspMessage):
    """The guest will tear the receive buffer's GPADL down; unanswered."""

    id: int = RECEIVE_BUFFER_ID

    type: ClassVar = MessageType.REVOKE_RECV_BUF
    layout: ClassVar = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class RevokeSendBuffer(NvspMessage):
    """The guest will tear the send buffer's GPADL down; unanswered."""

    id: int = SEND_BUFFER_ID

    type: ClassVar = MessageType.REVOKE_SEND_BUF
    layout: ClassVar = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class RndisPacket(NvspMessage):
    """A frame (channel_type 0) or a control message (1): in a section of the send buffer, or in the packet's ranges."""

    channel_type: int
    send_buf_section_index: int = SECTION_NONE
    send_buf_section_size: int = 0

    type: ClassVar = MessageType.SEND_RNDIS_PKT
    layout: ClassVar = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class RndisPacketComplete(NvspMessage):
    """The frame was taken."""

    status: int

    type: ClassVar = MessageType.SEND_RNDIS_PKT_COMPLETE
    layout: ClassVar = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SubchannelRequest(NvspMessage):
    """So many more channels, the primary not counted; ``op`` is SUBCHANNEL_ALLOCATE."""

    op: int
    num_subchannels: int

    type: ClassVar = MessageType.SUBCHANNEL
    layout: ClassVar = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class SubchannelComplete(NvspMessage):
    """Answer to a sub-channel request: how many the host offers."""

    status: int
    num_subchannels: int

    type: ClassVar = MessageType.SUBCHANNEL
    layout: ClassVar = struct.Struct("<II")


_TYPE: Final = struct.Struct("<I")
_REQUESTS: Final[tuple[type[NvspMessage], ...]] = (
    Init,
    SendNdisVersion,
    SendNdisConfig,
    ShareReceiveBuffer,
    ShareSendBuffer,
    RevokeReceiveBuffer,
    RevokeSendBuffer,
    RndisPacket,
    SubchannelRequest,
)
_COMPLETIONS: Final[tuple[type[NvspMessage], ...]] = (
    InitComplete,
    ReceiveBufferComplete,
    SendBufferComplete,
    RndisPacketComplete,
    SubchannelComplete,
)
_BY_TYPE: Final[dict[bool, dict[int, type[NvspMessage]]]] = {
    False: {int(kind.type): kind for kind in _REQUESTS},
    True: {int(kind.type): kind for kind in _COMPLETIONS},
}


def nvsp_bytes(message: NvspMessage) -> bytes:
    """Return a message with its type before it. EINVAL: a value does not fit."""
    return _TYPE.pack(message.type) + message.to_bytes()


def nvsp_type(data: bytes) -> int:
    """Return the type of a message. PayloadError: fewer than 4 bytes."""
    if len(data) < _TYPE.size:
        raise PayloadError(f"nvsp message: {len(data)} bytes, it has at least {_TYPE.size}")
    return int(_TYPE.unpack_from(data)[0])


def nvsp_message(data: bytes, *, completion: bool) -> NvspMessage:
    """Return the message in a payload; ``completion``: it came in a completion packet.

    Raises:
        PayloadError: cut short, or of a type that does not come in such a packet.
    """
    number = nvsp_type(data)
    kind = _BY_TYPE[completion].get(number)
    if kind is None:
        raise PayloadError(f"nvsp message: no {'completion' if completion else 'request'} has type {number}")
    return kind.from_bytes(data[_TYPE.size :])
