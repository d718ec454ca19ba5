"""One client of the host: from INITIATE_CONTACT to UNLOAD (vmbus.md 2.10; rules are OpenVMM's)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from vmbusirq.host.channel import ChannelState, HostChannel
from vmbusirq.host.control import ChannelControl
from vmbusirq.host.gpadl import GpadlTable
from vmbusirq.host.gpadl_control import GpadlControl
from vmbusirq.host.modify import ModifyControl
from vmbusirq.host.monitor import MonitorPages
from vmbusirq.limits import RELID_MAX, RELID_MIN
from vmbusirq.wire.protocol import (
    INVALID_RELID,
    MONITOR_ID_NONE,
    AllOffersDelivered,
    CloseReservedChannel,
    ConnectionState,
    Direction,
    FeatureFlags,
    InitiateContact,
    Message,
    MessageType,
    ModifyConnection,
    ModifyConnectionResponse,
    OfferChannel,
    Pause,
    PauseResponse,
    ProtocolError,
    RequestOffers,
    RescindChannelOffer,
    Resume,
    Unload,
    UnloadResponse,
    Unlock,
    Version,
    VersionResponse,
    decode,
    encode,
    message_connection_id,
    signal_connection_id,
)

if TYPE_CHECKING:
    from vmbusirq.host.server import HostBus

__all__ = ["HostConnection", "Phase"]

OUTBOX_MAX: Final = 4096
"""Messages that a paused connection keeps for its guest; later messages of the guest are dropped (ours)."""
_VPS_IN_MESSAGE_ID: Final = 16  # beyond, OpenVMM's numbering runs into the ids of channels


class Phase(Enum):
    """Where a connection stands."""

    DISCONNECTED = "no contact"
    CONNECTED = "a version is agreed on"
    DISCONNECTING = "channels and memory are being given back"


class HostConnection:
    """One client, told apart by the SINT and VTL that it is interrupted by (vmbus.md 7.7).

    Attributes:
        bus, sint, vtl: whose, and where its messages and interrupts go.
        phase, version, features: what is agreed on; version is None until then.
        offers_sent: REQUESTOFFERS came.
        target_vp: the VP of control messages.
        msg_conn_id: where the client posts; 1 before 5.0.
        client_id: as a 6.0 client names itself.
        paused: no message goes out until RESUME.
        gpadls: the client's memory.
    """

    def __init__(self, bus: HostBus, sint: int, vtl: int) -> None:
        self.bus: Final = bus
        self.sint: Final = sint
        self.vtl: Final = vtl
        self.phase = Phase.DISCONNECTED
        self.version: Version | None = None
        self.features = FeatureFlags.NONE
        self.offers_sent = False
        self.target_vp = 0
        self.msg_conn_id = 0
        self.client_id: Any = None
        self.paused = False
        self.gpadls: Final = GpadlTable(bus.partition.memory, bus.quota, bus.options.gpadls_max)
        self.gpadl_control: Final = GpadlControl(self)
        self._monitor: MonitorPages | None = None
        self._outbox: deque[bytes] = deque()
        self._relids: dict[int, HostChannel] = {}
        self._then: Callable[[], None] | None = None
        self._control = ChannelControl(self)
        modify = ModifyControl(self)
        self._handlers: Final[Mapping[MessageType, Callable[[Any], None]]] = {
            MessageType.REQUESTOFFERS: self._request_offers,
            MessageType.UNLOAD: self._unload,
            MessageType.OPENCHANNEL: self._control.open,
            MessageType.CLOSECHANNEL: self._control.close,
            MessageType.RELID_RELEASED: self._control.relid_released,
            MessageType.OPEN_RESERVED_CHANNEL: self._control.open,
            MessageType.CLOSE_RESERVED_CHANNEL: self._control.close_reserved,
            MessageType.GPADL_HEADER: self.gpadl_control.header,
            MessageType.GPADL_BODY: self.gpadl_control.body,
            MessageType.GPADL_TEARDOWN: self.gpadl_control.teardown,
            MessageType.MODIFYCHANNEL: modify.modify,
            MessageType.TL_CONNECT_REQUEST: lambda message: bus.hv_sock.connect_request(self, message),
            MessageType.MODIFY_CONNECTION: self._modify_connection,
            MessageType.PAUSE: self._pause,
            MessageType.RESUME: self._resume,
        }

    @property
    def is_connected(self) -> bool:
        """A version is agreed on."""
        return self.phase is Phase.CONNECTED

    @property
    def relids(self) -> Mapping[int, HostChannel]:
        """Channels by relid: all that the guest knows, and those whose relid it has not released."""
        return self._relids

    @property
    def name(self) -> str:
        """For log lines."""
        return f"client of sint {self.sint}, vtl {self.vtl}"

    # ---- messages in

    def handle(self, payload: bytes) -> None:
        """Take one message of the guest. What cannot be taken is logged and dropped."""
        try:
            message = decode(payload, self.version, Direction.TO_HOST, self.features)
        except ProtocolError as error:
            self.bus.complain(f"{self.name}: {error}; dropped")
            return
        if isinstance(message, InitiateContact):
            self.contact(message)
        elif not self.is_connected and not isinstance(message, CloseReservedChannel):
            self.drop(message, self.phase.value)
        elif len(self._outbox) >= OUTBOX_MAX and not isinstance(message, Resume | Unload):
            self.drop(message, f"paused, and {OUTBOX_MAX} messages wait for RESUME")
        else:
            self._handlers[message.msgtype](message)

    def drop(self, message: Message, why: str) -> None:
        """Say that a message was dropped."""
        self.bus.complain(f"{self.name}: {message.msgtype.name} dropped: {why}")

    def find(self, message: Any) -> HostChannel | None:
        """Return the channel that a message names; None, and say so, if the guest has none of that relid."""
        channel = self._relids.get(message.child_relid)
        if channel is None:
            self.drop(message, f"no channel {message.child_relid:#x}")
        return channel

    def channel(self, relid: int) -> HostChannel | None:
        """Return a channel by its relid."""
        return self._relids.get(relid)

    # ---- messages out

    def send(self, message: Message) -> None:
        """Send a message to the client, if it is connected."""
        if not self.is_connected:
            return
        payload = encode(message, self.version, self.features)
        if self.paused:
            self._outbox.append(payload)
        else:
            self.bus.post(payload, self.target_vp, self.sint)

    def send_to(self, message: Message, vp: int, sint: int) -> None:
        """Send a message elsewhere, as reserved channels want it. A VP or SINT that is not there loses it."""
        self.bus.post(encode(message, self.version or self.bus.version, self.features), vp, sint)

    # ---- contact

    def contact(self, message: InitiateContact) -> None:
        """INITIATE_CONTACT: whatever there was is over, as if UNLOAD had come first; then negotiate."""
        vp = message.target_vcpu if message.version >= Unlock.TARGET_VCPU.since else 0
        if vp >= self.bus.partition.core.nr_cpus:
            self.drop(message, f"no vp {vp} could take an answer")
            return
        self._release_all(lambda: self._negotiate(message, vp))

    def _negotiate(self, message: InitiateContact, vp: int) -> None:
        version = Version.find(message.version)
        if version is None or not self.bus.speaks(version):
            self.bus.complain(f"{self.name}: version {message.version:#x} is not supported")
            self.bus.refuse(message, vp)
            return
        pages = (message.monitor_page1, message.monitor_page2)
        if any(pages) and not MonitorPages.are_usable(self.bus.partition, *pages):
            self.bus.complain(f"{self.name}: monitor pages {pages[0]:#x} and {pages[1]:#x} cannot be used")
            response = VersionResponse(1, ConnectionState.FAILED_UNKNOWN_FAILURE, self._selected(version, vp))
            self.bus.post(encode(response, version), vp, self.sint)
            return
        self.phase = Phase.CONNECTED
        self.version, self.target_vp = version, vp
        self.features = message.feature_flags & self.bus.options.features
        self.client_id = message.client_id
        self._set_monitor(pages)
        self.msg_conn_id = self._selected(version, vp)
        if version.has(Unlock.MULTI_CLIENT):
            self.bus.open_message_port(self, self.msg_conn_id)
        features = int(self.features) if version.has(Unlock.FEATURE_FLAGS) else None
        self.send(VersionResponse(1, ConnectionState.SUCCESSFUL, self.msg_conn_id, features))

    def _selected(self, version: Version, vp: int) -> int:
        """Return what stands in msg_conn_id: the version itself before there was such a thing."""
        if not version.has(Unlock.MULTI_CLIENT):
            return int(version)
        return message_connection_id(vp if vp < _VPS_IN_MESSAGE_ID else 0, self.sint, self.vtl)

    def _set_monitor(self, pages: tuple[int, int]) -> None:
        """Take monitor pages; a partition has one pair, which is the default client's."""
        if self is not self.bus.default:
            return
        if self._monitor is not None:
            self._monitor.stop()
        self._monitor = MonitorPages(self.bus.partition, *pages) if any(pages) else None
        if self._monitor is not None:
            self._monitor.start()

    def _unload(self, _message: Unload) -> None:
        """UNLOAD: answered when all is given back, the same way as everything before."""
        response, vp = encode(UnloadResponse(), self.version, self.features), self.target_vp
        self._release_all(lambda: self.bus.post(response, vp, self.sint))

    def _release_all(self, then: Callable[[], None]) -> None:
        """Close every channel, give all memory back, then go on. A later call replaces what comes then."""
        self._then = then
        if self.phase is Phase.CONNECTED:
            self.phase = Phase.DISCONNECTING
            kept = {relid for relid, channel in self._relids.items() if self._stays(channel)}
            for gpadl in self.gpadls:
                if gpadl.relid not in kept:
                    self.gpadl_control.release(gpadl)
            for channel in tuple(self._relids.values()):
                self._control.release(channel)
        self.check_released()

    @staticmethod
    def _stays(channel: HostChannel) -> bool:
        return channel.is_reserved and channel.state is ChannelState.OPEN

    def check_released(self) -> None:
        """Go on if nothing is left that a device has to give back."""
        then = self._then
        if then is None:
            return
        if self.phase is Phase.DISCONNECTING:
            kept = {relid for relid, channel in self._relids.items() if self._stays(channel)}
            if len(kept) < len(self._relids) or any(gpadl.relid not in kept for gpadl in self.gpadls):
                return
            self._disconnect()
        self._then = None
        then()

    def _disconnect(self) -> None:
        self.phase = Phase.DISCONNECTED
        self.version, self.features, self.client_id = None, FeatureFlags.NONE, None
        self.offers_sent = self.paused = False
        self._outbox.clear()
        self._set_monitor((0, 0))
        self.bus.close_message_port(self)
        self.msg_conn_id = 0
        self.bus.client_gone(self)

    # ---- offers

    def _request_offers(self, message: RequestOffers) -> None:
        if self.offers_sent:
            self.drop(message, "offers were sent already")
            return
        self.offers_sent = True
        for device in self.bus.devices_in_offer_order(self):
            if device.primary.state is ChannelState.CLIENT_RELEASED:
                self.offer(device.primary)
        self.send(AllOffersDelivered())

    def offer(self, channel: HostChannel, relid: int | None = None) -> bool:
        """Offer a channel; False if the client wants no offers (yet), or no relid is free.

        Args:
            channel: in state CLIENT_RELEASED.
            relid: use this one; None: its fixed one if that is free, else the lowest free one.
        """
        if not self.is_connected or not self.offers_sent or channel.state is not ChannelState.CLIENT_RELEASED:
            return False
        if relid is None:
            relid = self._free_relid(channel)
        if relid is None:
            self.bus.complain(f"{self.name}: no relid is left for {channel.name}")
            return False
        self._relids[relid] = channel
        channel.relid, channel.state = relid, ChannelState.CLOSED
        channel.modifies_seen = 0
        self.send(self._offer_message(channel))
        return True

    def _free_relid(self, channel: HostChannel) -> int | None:
        fixed = channel.fixed_relid
        if fixed is not None and fixed not in self._relids:
            return fixed
        kept = self.bus.fixed_relids(self)
        return next((n for n in range(RELID_MIN, RELID_MAX + 1) if n not in self._relids and n not in kept), None)

    def _offer_message(self, channel: HostChannel) -> OfferChannel:
        vsp, relid = channel.device.vsp, channel.relid
        connection_id = signal_connection_id(relid, self.sint, self.vtl)
        monitored = channel.monitor is not None and self._monitor is not None
        if channel.monitor is not None and self._monitor is not None:
            self._monitor.enable(channel.monitor, connection_id, self.bus.options.monitor_latency)
        return OfferChannel(
            if_type=vsp.if_type,
            if_instance=channel.device.instance,
            child_relid=relid,
            connection_id=connection_id,
            sub_channel_index=channel.sub_channel_index,
            chn_flags=vsp.chn_flags,
            mmio_megabytes=vsp.mmio_megabytes,
            user_def=vsp.user_def,
            monitorid=channel.monitor if monitored and channel.monitor is not None else MONITOR_ID_NONE,
            monitor_allocated=int(monitored),
        )

    def forget(self, channel: HostChannel) -> None:
        """Take the relid back; the channel can be offered again."""
        if self._relids.get(channel.relid) is channel:
            del self._relids[channel.relid]
        channel.relid, channel.state = INVALID_RELID, ChannelState.CLIENT_RELEASED
        channel.open_message = None

    def rescinded(self, channel: HostChannel) -> None:
        """Tell the client; its relid stays taken until RELID_RELEASED."""
        self.send(RescindChannelOffer(channel.relid))

    def revoke(self, channel: HostChannel) -> bool:
        """Rescind a channel; see :meth:`ChannelControl.revoke`."""
        return self._control.revoke(channel)

    def reoffer(self, channel: HostChannel) -> bool:
        """Let a new device's channel wait for the relid of its rescinded predecessor; False if there is none."""
        key = (channel.device.vsp.if_type, channel.device.instance, channel.sub_channel_index)
        for relid, old in self._relids.items():
            old_key = (old.device.vsp.if_type, old.device.instance, old.sub_channel_index)
            if old.state is ChannelState.REVOKED and old_key == key:
                self._relids[relid] = channel
                channel.relid, channel.state = relid, ChannelState.REOFFERED
                return True
        return False

    # ---- 6.0

    def _modify_connection(self, message: ModifyConnection) -> None:
        """MODIFY_CONNECTION: other monitor pages. Channels that are offered keep their entries, written anew."""
        pages = (message.monitor_page1, message.monitor_page2)
        if any(pages) and not MonitorPages.are_usable(self.bus.partition, *pages):
            self.send(ModifyConnectionResponse(ConnectionState.FAILED_UNKNOWN_FAILURE))
            return
        self._set_monitor(pages)
        for channel in self._relids.values():
            if channel.monitor is not None and self._monitor is not None:
                connection_id = signal_connection_id(channel.relid, self.sint, self.vtl)
                self._monitor.enable(channel.monitor, connection_id, self.bus.options.monitor_latency)
        self.send(ModifyConnectionResponse(ConnectionState.SUCCESSFUL))

    def _pause(self, _message: Pause) -> None:
        if not self.paused:
            self.send(PauseResponse())
            self.paused = True

    def _resume(self, _message: Resume) -> None:
        self.paused = False
        while self._outbox:
            self.bus.post(self._outbox.popleft(), self.target_vp, self.sint)
