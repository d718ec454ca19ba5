"""Every control message of VMBus as a value, with its exact layout (vmbus.md 2.7 and 2.8).

Fields bear Linux's names (``include/linux/hyperv.h``, v6.10). Numbers are unsigned, statuses too; GUIDs are
:class:`uuid.UUID`. What a value means, and whether it is allowed now, is for who receives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final
from uuid import UUID

from vmbusirq.limits import SINT_VMBUS
from vmbusirq.wire.protocol.ids import MONITOR_ID_NONE, OfferFlags
from vmbusirq.wire.protocol.layout import (
    Direction,
    Handling,
    MessageType,
    Section,
    Tail,
    Wire,
    guid,
    raw,
    u8,
    u16,
    u32,
    u64,
)
from vmbusirq.wire.protocol.versions import FeatureFlags, Unlock, Version

__all__ = [
    "MESSAGES",
    "AllOffersDelivered",
    "CloseChannel",
    "CloseReservedChannel",
    "CloseReservedResponse",
    "GpadlBody",
    "GpadlCreated",
    "GpadlHeader",
    "GpadlTeardown",
    "GpadlTorndown",
    "InitiateContact",
    "Invalid",
    "Message",
    "ModifyChannel",
    "ModifyChannelResponse",
    "ModifyConnection",
    "ModifyConnectionResponse",
    "OfferChannel",
    "OpenChannel",
    "OpenChannelResult",
    "OpenReservedChannel",
    "Pause",
    "PauseResponse",
    "RelidReleased",
    "RequestOffers",
    "RescindChannelOffer",
    "Resume",
    "TlConnectRequest",
    "TlConnectResult",
    "Unload",
    "UnloadResponse",
    "VersionResponse",
]

_USER_DEF_BYTES: Final = 120
_TO_GUEST, _TO_HOST = Direction.TO_GUEST, Direction.TO_HOST
_CHILD_RELID = u32("child_relid", 8)


@dataclass(frozen=True, slots=True)
class Message:
    """Any control message; ``wire`` says all about its kind."""

    wire: ClassVar[Wire]

    @property
    def msgtype(self) -> MessageType:
        """The number in its header."""
        return self.wire.msgtype


@dataclass(frozen=True, slots=True)
class Invalid(Message):
    """Type 0, which nobody sends and everybody ignores."""

    wire: ClassVar = Wire(MessageType.INVALID, None, Version.V0_13, size=8)


# ---- offers


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
        _TO_GUEST,
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
        _TO_GUEST,
        Version.V0_13,
        size=12,
        fields=(_CHILD_RELID,),
        linux=Handling.RESCIND_WORK,
        linux_min=12,
    )


@dataclass(frozen=True, slots=True)
class RequestOffers(Message):
    """The guest wants to hear of all channels, now and later; once per connection."""

    wire: ClassVar = Wire(MessageType.REQUESTOFFERS, _TO_HOST, Version.V0_13, size=8)


@dataclass(frozen=True, slots=True)
class AllOffersDelivered(Message):
    """All channels that were there at REQUESTOFFERS have been offered."""

    wire: ClassVar = Wire(MessageType.ALLOFFERS_DELIVERED, _TO_GUEST, Version.V0_13, size=8, linux=Handling.TASKLET)


@dataclass(frozen=True, slots=True)
class RelidReleased(Message):
    """The guest has forgotten a rescinded channel; its relid may be used again. No answer."""

    child_relid: int

    wire: ClassVar = Wire(MessageType.RELID_RELEASED, _TO_HOST, Version.V0_13, size=12, fields=(_CHILD_RELID,))


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
        _TO_HOST,
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
        _TO_GUEST,
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

    wire: ClassVar = Wire(MessageType.CLOSECHANNEL, _TO_HOST, Version.V0_13, size=12, fields=(_CHILD_RELID,))


@dataclass(frozen=True, slots=True)
class ModifyChannel(Message):
    """Interrupt another VP for an open channel; answered from 5.3 on."""

    child_relid: int
    target_vp: int

    wire: ClassVar = Wire(
        MessageType.MODIFYCHANNEL, _TO_HOST, Version.V4_1, size=16, fields=(_CHILD_RELID, u32("target_vp", 12))
    )


@dataclass(frozen=True, slots=True)
class ModifyChannelResponse(Message):
    """MODIFYCHANNEL was carried out (status 0) or not."""

    child_relid: int
    status: int

    wire: ClassVar = Wire(
        MessageType.MODIFYCHANNEL_RESPONSE,
        _TO_GUEST,
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
        _TO_HOST,
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
        _TO_HOST,
        None,
        size=20,
        fields=(_CHILD_RELID, u32("target_vp", 12), u32("target_sint", 16)),
    )


@dataclass(frozen=True, slots=True)
class CloseReservedResponse(Message):
    """A reserved channel is closed."""

    child_relid: int

    wire: ClassVar = Wire(MessageType.CLOSE_RESERVED_RESPONSE, _TO_GUEST, Version.V4_0, size=12, fields=(_CHILD_RELID,))


# ---- shared memory


@dataclass(frozen=True, slots=True)
class GpadlHeader(Message):
    """The beginning of a guest memory list; :mod:`~vmbusirq.wire.protocol.gpadl` makes and checks it.

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
        _TO_HOST,
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
        _TO_HOST,
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
        _TO_GUEST,
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
        MessageType.GPADL_TEARDOWN, _TO_HOST, Version.V0_13, size=16, fields=(_CHILD_RELID, u32("gpadl", 12))
    )


@dataclass(frozen=True, slots=True)
class GpadlTorndown(Message):
    """The host has let go of the memory."""

    gpadl: int

    wire: ClassVar = Wire(
        MessageType.GPADL_TORNDOWN,
        _TO_GUEST,
        Version.V0_13,
        size=12,
        fields=(u32("gpadl", 8),),
        linux=Handling.TASKLET,
        linux_min=12,
    )


# ---- connection


def _has_client_id(message: InitiateContact, _version: Version | None, _features: FeatureFlags) -> bool:
    return bool(message.feature_flags & FeatureFlags.CLIENT_ID)


@dataclass(frozen=True, slots=True)
class InitiateContact(Message):
    """The guest asks for a protocol version.

    Attributes:
        interrupt_page: guest-physical address of the interrupt page; from 5.0 on what :meth:`target` returns.
        monitor_page1, monitor_page2: guest-physical addresses, host to guest and guest to host.
        client_id: only with feature CLIENT_ID.
    """

    version: int
    target_vcpu: int
    interrupt_page: int
    monitor_page1: int
    monitor_page2: int
    client_id: UUID | None = None

    wire: ClassVar = Wire(
        MessageType.INITIATE_CONTACT,
        _TO_HOST,
        None,
        size=40,
        fields=(
            u32("version", 8),
            u32("target_vcpu", 12),
            u64("interrupt_page", 16),
            u64("monitor_page1", 24),
            u64("monitor_page2", 32),
        ),
        tails=(Tail(Section(40, 56, (guid("client_id", 40),)), when=_has_client_id),),
    )

    @staticmethod
    def target(msg_sint: int = SINT_VMBUS, msg_vtl: int = 0, features: int = FeatureFlags.NONE) -> int:
        """Return what takes the place of the interrupt page: SINT at byte 16, VTL at 17, feature flags at 20."""
        return (msg_sint & 0xFF) | (msg_vtl & 0xFF) << 8 | (features & 0xFFFF_FFFF) << 32

    @property
    def msg_sint(self) -> int:
        """The SINT that control messages shall use; 2 before 5.0."""
        return self.interrupt_page & 0xFF if self.version >= Unlock.MSG_SINT.since else SINT_VMBUS

    @property
    def msg_vtl(self) -> int:
        """The VTL that control messages shall go to; 0 before 5.1."""
        return self.interrupt_page >> 8 & 0xFF if self.version >= Unlock.MSG_VTL.since else 0

    @property
    def feature_flags(self) -> FeatureFlags:
        """The features that the guest can use; none before 6.0."""
        given = self.interrupt_page >> 32 if self.version >= Unlock.FEATURE_FLAGS.since else 0
        return FeatureFlags(given)


def _has_features(_message: VersionResponse, version: Version | None, _features: FeatureFlags) -> bool:
    return version is not None and version.has(Unlock.FEATURE_FLAGS)


def _has_monitor_pages(message: VersionResponse, version: Version | None, features: FeatureFlags) -> bool:
    return _has_features(message, version, features) and bool(
        (message.features or 0) & FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES
    )


@dataclass(frozen=True, slots=True)
class VersionResponse(Message):
    """Whether the host speaks the version that was asked for.

    Attributes:
        version_supported: 0 no, anything else yes.
        connection_state: a value of ConnectionState; Linux ignores it.
        msg_conn_id: where the guest posts from now on; before 5.0 the version again.
        features: from 6.0 on, what the host agrees to.
        monitor_page1, monitor_page2: both or none; only with feature SERVER_SPECIFIED_MONITOR_PAGES.
    """

    version_supported: int
    connection_state: int = 0
    msg_conn_id: int = 0
    features: int | None = None
    monitor_page1: int | None = None
    monitor_page2: int | None = None

    wire: ClassVar = Wire(
        MessageType.VERSION_RESPONSE,
        _TO_GUEST,
        None,
        size=16,
        fields=(u8("version_supported", 8), u8("connection_state", 9), u32("msg_conn_id", 12)),
        tails=(
            Tail(Section(16, 20, (u32("features", 16),)), when=_has_features),
            Tail(Section(20, 40, (u64("monitor_page1", 24), u64("monitor_page2", 32))), when=_has_monitor_pages),
        ),
        linux=Handling.TASKLET,
        linux_min=16,
    )


@dataclass(frozen=True, slots=True)
class Unload(Message):
    """The guest leaves: the host closes and forgets everything. Linux sends it from 3.0 on."""

    wire: ClassVar = Wire(MessageType.UNLOAD, _TO_HOST, Version.V0_13, size=8)


@dataclass(frozen=True, slots=True)
class UnloadResponse(Message):
    """Everything is closed."""

    wire: ClassVar = Wire(MessageType.UNLOAD_RESPONSE, _TO_GUEST, Version.V1_1, size=8, linux=Handling.TASKLET)


@dataclass(frozen=True, slots=True)
class ModifyConnection(Message):
    """The guest gives other monitor pages. Unknown to Linux v6.10, as is all that follows."""

    monitor_page1: int
    monitor_page2: int

    wire: ClassVar = Wire(
        MessageType.MODIFY_CONNECTION,
        _TO_HOST,
        Version.V6_0,
        size=24,
        fields=(u64("monitor_page1", 8), u64("monitor_page2", 16)),
        features=FeatureFlags.MODIFY_CONNECTION,
    )


@dataclass(frozen=True, slots=True)
class ModifyConnectionResponse(Message):
    """How MODIFY_CONNECTION ended, a value of ConnectionState."""

    connection_state: int

    wire: ClassVar = Wire(
        MessageType.MODIFY_CONNECTION_RESPONSE,
        _TO_GUEST,
        Version.V6_0,
        size=9,
        fields=(u8("connection_state", 8),),
        features=FeatureFlags.MODIFY_CONNECTION,
    )


@dataclass(frozen=True, slots=True)
class Pause(Message):
    """The host shall send no control message until RESUME."""

    wire: ClassVar = Wire(
        MessageType.PAUSE, _TO_HOST, Version.V6_0, size=8, features=FeatureFlags.PAUSE_RESUME
    )


@dataclass(frozen=True, slots=True)
class PauseResponse(Message):
    """The last control message before RESUME."""

    wire: ClassVar = Wire(
        MessageType.PAUSE_RESPONSE, _TO_GUEST, Version.V6_0, size=8, features=FeatureFlags.PAUSE_RESUME
    )


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """The host may send control messages again."""

    wire: ClassVar = Wire(
        MessageType.RESUME, _TO_HOST, Version.V6_0, size=8, features=FeatureFlags.PAUSE_RESUME
    )


# ---- hv_sock


def _has_silo_id(_message: TlConnectRequest, version: Version | None, _features: FeatureFlags) -> bool:
    return version is not None and version.has(Unlock.SILO_ID)


@dataclass(frozen=True, slots=True)
class TlConnectRequest(Message):
    """The guest wants an hv_sock connection: success is an offer, failure TL_CONNECT_RESULT."""

    guest_endpoint_id: UUID
    host_service_id: UUID
    silo_id: UUID | None = None

    wire: ClassVar = Wire(
        MessageType.TL_CONNECT_REQUEST,
        _TO_HOST,
        Version.V4_0,
        size=40,
        fields=(guid("guest_endpoint_id", 8), guid("host_service_id", 24)),
        tails=(Tail(Section(40, 56, (guid("silo_id", 40),)), when=_has_silo_id),),
    )


@dataclass(frozen=True, slots=True)
class TlConnectResult(Message):
    """An hv_sock connection failed. Linux has no handler for it: there the connect runs into its own timeout."""

    guest_endpoint_id: UUID
    host_service_id: UUID
    status: int

    wire: ClassVar = Wire(
        MessageType.TL_CONNECT_RESULT,
        _TO_GUEST,
        Version.V4_1,
        size=44,
        fields=(guid("guest_endpoint_id", 8), guid("host_service_id", 24), u32("status", 40)),
    )


def _by_type() -> dict[MessageType, type[Any]]:
    return {kind.wire.msgtype: kind for kind in sorted(Message.__subclasses__(), key=lambda kind: kind.wire.msgtype)}


MESSAGES: Final = _by_type()
"""The class of each message type, in the order of their numbers."""
