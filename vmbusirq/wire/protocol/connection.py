"""Control messages about the connection as a whole, and about hv_sock connections over it (vmbus.md 2.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

from vmbusirq.limits import SINT_VMBUS
from vmbusirq.wire.protocol.layout import Direction, Handling, MessageType, Section, Tail, Wire, guid, u8, u32, u64
from vmbusirq.wire.protocol.message import Message
from vmbusirq.wire.protocol.versions import FeatureFlags, Unlock, Version

__all__ = [
    "AllOffersDelivered",
    "InitiateContact",
    "ModifyConnection",
    "ModifyConnectionResponse",
    "Pause",
    "PauseResponse",
    "RequestOffers",
    "Resume",
    "TlConnectRequest",
    "TlConnectResult",
    "Unload",
    "UnloadResponse",
    "VersionResponse",
]


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
        Direction.TO_HOST,
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
        Direction.TO_GUEST,
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

    wire: ClassVar = Wire(MessageType.UNLOAD, Direction.TO_HOST, Version.V0_13, size=8)


@dataclass(frozen=True, slots=True)
class UnloadResponse(Message):
    """Everything is closed."""

    wire: ClassVar = Wire(MessageType.UNLOAD_RESPONSE, Direction.TO_GUEST, Version.V1_1, size=8, linux=Handling.TASKLET)


@dataclass(frozen=True, slots=True)
class ModifyConnection(Message):
    """The guest gives other monitor pages. Unknown to Linux v6.10, as is all that follows."""

    monitor_page1: int
    monitor_page2: int

    wire: ClassVar = Wire(
        MessageType.MODIFY_CONNECTION,
        Direction.TO_HOST,
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
        Direction.TO_GUEST,
        Version.V6_0,
        size=9,
        fields=(u8("connection_state", 8),),
        features=FeatureFlags.MODIFY_CONNECTION,
    )


@dataclass(frozen=True, slots=True)
class Pause(Message):
    """The host shall send no control message until RESUME."""

    wire: ClassVar = Wire(
        MessageType.PAUSE, Direction.TO_HOST, Version.V6_0, size=8, features=FeatureFlags.PAUSE_RESUME
    )


@dataclass(frozen=True, slots=True)
class PauseResponse(Message):
    """The last control message before RESUME."""

    wire: ClassVar = Wire(
        MessageType.PAUSE_RESPONSE, Direction.TO_GUEST, Version.V6_0, size=8, features=FeatureFlags.PAUSE_RESUME
    )


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """The host may send control messages again."""

    wire: ClassVar = Wire(
        MessageType.RESUME, Direction.TO_HOST, Version.V6_0, size=8, features=FeatureFlags.PAUSE_RESUME
    )


@dataclass(frozen=True, slots=True)
class RequestOffers(Message):
    """The guest wants to hear of all channels, now and later; once per connection."""

    wire: ClassVar = Wire(MessageType.REQUESTOFFERS, Direction.TO_HOST, Version.V0_13, size=8)


@dataclass(frozen=True, slots=True)
class AllOffersDelivered(Message):
    """All channels that were there at REQUESTOFFERS have been offered."""

    wire: ClassVar = Wire(
        MessageType.ALLOFFERS_DELIVERED, Direction.TO_GUEST, Version.V0_13, size=8, linux=Handling.TASKLET
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
        Direction.TO_HOST,
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
        Direction.TO_GUEST,
        Version.V4_1,
        size=44,
        fields=(guid("guest_endpoint_id", 8), guid("host_service_id", 24), u32("status", 40)),
    )
