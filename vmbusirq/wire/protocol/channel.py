"""Control messages about one channel: offered, opened, moved, closed, rescinded (vmbus.md 2.8).

Fields bear Linux's names (``include/linux/hyperv.h``, v6.10). Numbers are unsigned, statuses too; GUIDs are
:class:`uuid.UUID`. What a value means, and whether it is allowed now, is for who receives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final
from uuid import UUID

from vmbusirq.wire.protocol.ids import MONITOR_ID_NONE, OfferFlags
from vmbusirq.wire.protocol.layout import Direction, Handling, MessageType, Section, Tail, Wire, guid, raw, u8, u16, u32
from vmbusirq.wire.protocol.message import Message
from vmbusirq.wire.protocol.versions import FeatureFlags, Unlock, Version

__all__ = [
    "CloseChannel",
    "CloseReservedChannel",
    "CloseReservedResponse",
    "ModifyChannel",
    "ModifyChannelResponse",
    "OfferChannel",
    "OpenChannel",
    "OpenChannelResult",
    "OpenReservedChannel",
    "RelidReleased",
    "RescindChannelOffer",
]

_USER_DEF_BYTES: Final = 120
_CHILD_RELID = u32("child_relid", 8)


@dataclass(frozen=True, slots=True)
class OfferChannel(Message):
    """A channel exists. Offers with the same two GUIDs and another sub_channel_index are one device.

    Attributes:
        user_def: 120 bytes; fewer are filled up with zeroes.
        mmio_megabytes_optional: named by OpenVMM alone, reserved for Linux.
        monitor_allocated, is_dedicated_interrupt: whole fields, of which only bit 0 has a meaning.
        connection_id: where the guest signals the host.
    """

    if_type: UUID
    if_instance: UUID
    child_relid: int
    connection_id: int
    sub_channel_index: int = 0
    chn_flags: int = 0
    mmio_megabytes: int = 0
    user_def: bytes = bytes(_USER_DEF_BYTES)
    mmio_megabytes_optional: int = 0
    monitorid: int = MONITOR_ID_NONE
    monitor_allocated: int = 0
    is_dedicated_interrupt: int = 1

    wire: ClassVar = Wire(
        MessageType.OFFERCHANNEL,
        Direction.TO_GUEST,
        Version.V0_13,
        size=196,
        linux=Handling.OFFER_WORK,
        linux_min=196,
        fields=(
            guid("if_type", 8),
            guid("if_instance", 24),
            u16("chn_flags", 56),
            u16("mmio_megabytes", 58),
            raw("user_def", 60, _USER_DEF_BYTES),
            u16("sub_channel_index", 180),
            u16("mmio_megabytes_optional", 182),
            u32("child_relid", 184),
            u8("monitorid", 188),
            u8("monitor_allocated", 189),
            u16("is_dedicated_interrupt", 190),
            u32("connection_id", 192),
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "user_def", self.user_def.ljust(_USER_DEF_BYTES, b"\0"))

    @property
    def is_monitored(self) -> bool:
        """The guest signals through the monitor page."""
        return bool(self.monitor_allocated & 1)

    @property
    def is_dedicated(self) -> bool:
        """The guest signals by hypercall alone, without the shared interrupt page."""
        return bool(self.is_dedicated_interrupt & 1)

    @property
    def is_hv_sock(self) -> bool:
        """An hv_sock connection, not a device."""
        return bool(self.chn_flags & OfferFlags.TLNPI_PROVIDER)

    @property
    def is_pipe(self) -> bool:
        """Packets have a pipe header, and user_def begins with the pipe mode."""
        return bool(self.chn_flags & OfferFlags.NAMED_PIPE_MODE)

    @property
    def pipe_mode(self) -> int:
        """The pipe's mode; a value of PipeMode if the host keeps to the rules."""
        return int.from_bytes(self.user_def[:4], "little")

    @property
    def pipe_user_def(self) -> bytes:
        """The 116 bytes behind the pipe mode."""
        return self.user_def[4:]

    @property
    def is_host_initiated(self) -> bool:
        """Of an hv_sock connection: the host began it."""
        return self.user_def[4] != 0


@dataclass(frozen=True, slots=True)
class RescindChannelOffer(Message):
    """A channel goes away; its relid stays taken until RELID_RELEASED."""

    child_relid: int

    wire: ClassVar = Wire(
        MessageType.RESCIND_CHANNELOFFER,
        Direction.TO_GUEST,
        Version.V0_13,
        size=12,
        fields=(_CHILD_RELID,),
        linux=Handling.RESCIND_WORK,
        linux_min=12,
    )


@dataclass(frozen=True, slots=True)
class RelidReleased(Message):
    """The guest has forgotten a rescinded channel; its relid may be used again. No answer."""

    child_relid: int

    wire: ClassVar = Wire(MessageType.RELID_RELEASED, Direction.TO_HOST, Version.V0_13, size=12, fields=(_CHILD_RELID,))


# ---- open, close, move


def _has_open_v2(_message: OpenChannel, version: Version | None, features: FeatureFlags) -> bool:
    flags = FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS | FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION
    return version is not None and version.has(Unlock.FEATURE_FLAGS) and bool(features & flags)


@dataclass(frozen=True, slots=True)
class OpenChannel(Message):
    """Open a channel over the rings of a GPADL.

    Attributes:
        openid: comes back in the result; Linux uses the relid.
        downstream_ringbuffer_pageoffset: the in ring's first page in the GPADL.
        userdata: 120 bytes; fewer are filled up with zeroes.
        connection_id, event_flag, flags: all three or none; 6.0 with signal parameters or interrupt redirection.
    """

    child_relid: int
    openid: int
    ringbuffer_gpadlhandle: int
    target_vp: int
    downstream_ringbuffer_pageoffset: int
    userdata: bytes = bytes(_USER_DEF_BYTES)
    connection_id: int | None = None
    event_flag: int | None = None
    flags: int | None = None

    wire: ClassVar = Wire(
        MessageType.OPENCHANNEL,
        Direction.TO_HOST,
        Version.V0_13,
        size=148,
        fields=(
            _CHILD_RELID,
            u32("openid", 12),
            u32("ringbuffer_gpadlhandle", 16),
            u32("target_vp", 20),
            u32("downstream_ringbuffer_pageoffset", 24),
            raw("userdata", 28, _USER_DEF_BYTES),
        ),
        tails=(
            Tail(
                Section(148, 156, (u32("connection_id", 148), u16("event_flag", 152), u16("flags", 154))),
                when=_has_open_v2,
                optional=False,
            ),
        ),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "userdata", self.userdata.ljust(_USER_DEF_BYTES, b"\0"))


@dataclass(frozen=True, slots=True)
class OpenChannelResult(Message):
    """How OPENCHANNEL ended; Linux takes any status but 0 for a failure."""

    child_relid: int
    openid: int
    status: int

    wire: ClassVar = Wire(
        MessageType.OPENCHANNEL_RESULT,
        Direction.TO_GUEST,
        Version.V0_13,
        size=20,
        fields=(_CHILD_RELID, u32("openid", 12), u32("status", 16)),
        linux=Handling.TASKLET,
        linux_min=20,
    )


@dataclass(frozen=True, slots=True)
class CloseChannel(Message):
    """Close a channel. No answer."""

    child_relid: int

    wire: ClassVar = Wire(MessageType.CLOSECHANNEL, Direction.TO_HOST, Version.V0_13, size=12, fields=(_CHILD_RELID,))


@dataclass(frozen=True, slots=True)
class ModifyChannel(Message):
    """Interrupt another VP for an open channel; answered from 5.3 on."""

    child_relid: int
    target_vp: int

    wire: ClassVar = Wire(
        MessageType.MODIFYCHANNEL, Direction.TO_HOST, Version.V4_1, size=16, fields=(_CHILD_RELID, u32("target_vp", 12))
    )


@dataclass(frozen=True, slots=True)
class ModifyChannelResponse(Message):
    """MODIFYCHANNEL was carried out (status 0) or not."""

    child_relid: int
    status: int

    wire: ClassVar = Wire(
        MessageType.MODIFYCHANNEL_RESPONSE,
        Direction.TO_GUEST,
        Version.V5_3,
        size=16,
        fields=(_CHILD_RELID, u32("status", 12)),
        linux=Handling.TASKLET,
        linux_min=16,
    )


@dataclass(frozen=True, slots=True)
class OpenReservedChannel(Message):
    """Open a channel that outlives UNLOAD. Linux never sends it."""

    child_relid: int
    target_vp: int
    target_sint: int
    ringbuffer_gpadlhandle: int
    downstream_ringbuffer_pageoffset: int

    wire: ClassVar = Wire(
        MessageType.OPEN_RESERVED_CHANNEL,
        Direction.TO_HOST,
        Version.V4_0,
        size=28,
        fields=(
            _CHILD_RELID,
            u32("target_vp", 12),
            u32("target_sint", 16),
            u32("ringbuffer_gpadlhandle", 20),
            u32("downstream_ringbuffer_pageoffset", 24),
        ),
    )


@dataclass(frozen=True, slots=True)
class CloseReservedChannel(Message):
    """Close such a channel, connected or not; the answer goes to the VP and SINT that are named."""

    child_relid: int
    target_vp: int
    target_sint: int

    wire: ClassVar = Wire(
        MessageType.CLOSE_RESERVED_CHANNEL,
        Direction.TO_HOST,
        None,
        size=20,
        fields=(_CHILD_RELID, u32("target_vp", 12), u32("target_sint", 16)),
    )


@dataclass(frozen=True, slots=True)
class CloseReservedResponse(Message):
    """A reserved channel is closed."""

    child_relid: int

    wire: ClassVar = Wire(
        MessageType.CLOSE_RESERVED_RESPONSE, Direction.TO_GUEST, Version.V4_0, size=12, fields=(_CHILD_RELID,)
    )
