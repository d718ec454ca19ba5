"""netvsc: the network adapter (drivers/net/hyperv/netvsc.c, v6.10; vmbus.md 1.14, 5.4, 7.2).

Frames are opaque bytes. Real are the negotiation, the two shared buffers, the sub-channels, and what stands around a
frame: request ids, sections of the send buffer's size, transfer pages and their completion.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.steps import Steps, each
from vmbusirq.vmbus.drivers.base import Bus, Driver, Exchange
from vmbusirq.vmbus.requestor import RQST_ERROR, RQST_ID_NO_RESPONSE, Requestor
from vmbusirq.wire import nvsp
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, DATA_USING_XFER_PAGES, Packet
from vmbusirq.wire.protocol import Version
from vmbusirq.wire.record import PayloadError

if TYPE_CHECKING:
    from vmbusirq.vmbus.channel import Channel
    from vmbusirq.vmbus.device import HvDevice
    from vmbusirq.vmbus.pages import GuestPages

__all__ = ["NetDevice", "NetvscDriver", "buffer_pages"]

PAGE: Final = 4096
RECEIVE_SECTIONS: Final = 10728
RECEIVE_SECTION_BYTES: Final = 1728
SEND_SECTIONS: Final = 192
SEND_SECTION_BYTES: Final = 6144
SECTION_BYTES_MIN: Final = 68  # NETVSC_MTU_MIN
CHANNELS_DEFAULT: Final = 8  # VRSS_CHANNEL_DEFAULT
ETHERNET_MTU: Final = 1514
NDIS_VERSION: Final = (6, 30)
NDIS_VERSION_OLD: Final = (6, 1)  # for NVSP 4 and below
INIT_REQUEST: Final = 1  # what the requestor keeps for a request of the handshake; frames count from 2
FIRST_FRAME: Final = 2
RING_BYTES_PER_ID: Final = 32  # ours: as many ids as the smallest packets that fit a ring

_XFER: Final = struct.Struct("<HBxI")
_RANGE: Final = struct.Struct("<II")


def buffer_pages(sections: int, section_bytes: int) -> int:
    """Return the whole pages that a buffer of so many sections takes."""
    return -(-sections * section_bytes // PAGE)


class Buffer:
    """Guest memory that the host uses: its pages, and the GPADL they are shared by (0: not shared)."""

    def __init__(self, name: str, pages: GuestPages) -> None:
        self.name: Final = name
        self.pages: Final = pages
        self.size: Final = len(pages.pfns) * PAGE
        self.handle = 0
        self.is_known_to_host = False
        """The host was told of it through NVSP, so it must be revoked."""


class NetDevice:
    """One adapter (struct netvsc_device).

    Attributes:
        primary, subs: its open channels.
        version: of NVSP; 0 before it is negotiated.
        receive, send: the shared buffers, None while there are none.
        section_bytes, section_count: how the host cut the receive buffer up.
        send_section_bytes: how it cut the send buffer up.
        num_chn: channels that the host granted, the primary counted.
        sent, completed: frames, and completions of them.
        received, bytes: frames that came in the receive buffer, and their bytes.
        dropped: packets that meant nothing.
    """

    def __init__(self, bus: Bus, primary: Channel) -> None:
        self.primary: Final = primary
        self.exchange: Final = Exchange(bus)
        self.subs: Final[list[Channel]] = []
        self.opened = False
        self.version = 0
        self.receive: Buffer | None = None
        self.send: Buffer | None = None
        self.section_bytes = self.section_count = self.send_section_bytes = 0
        self.num_chn = 1
        self.sent = self.completed = self.received = self.bytes = self.dropped = 0
        self.free_sections: Final[list[int]] = []
        self.in_flight: Final[dict[int, int]] = {}
        """Section of the send buffer by what the requestor keeps for its frame."""
        self.next_frame = FIRST_FRAME


class NetvscDriver(Driver):
    """The driver of all adapters.

    Attributes:
        devices: those in service.
    """

    name: ClassVar = "hv_netvsc"

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.devices: Final[dict[HvDevice, NetDevice]] = {}
        self._by_channel: Final[dict[Channel, NetDevice]] = {}

    # ---- life of an adapter

    def probe(self, device: HvDevice) -> Steps[None]:
        """Open the primary, negotiate, share the buffers; sub-channels are asked for afterwards, in a work."""
        channel = device.primary
        net = NetDevice(self.bus, channel)
        self._by_channel[channel] = net
        try:
            channel.requestor = _requestor(channel)
            yield from self.bus.open_steps(channel)
            net.opened = True
            yield from self._connect(net)
        except BaseException:
            self._by_channel.pop(channel, None)
            raise
        self.devices[device] = net
        if net.version >= nvsp.NVSP_5 and self._channels_wanted() > 1:
            self.bus.queue_work(f"netvsc {device.guid}: sub-channels", self._ask_for_sub_channels(net))

    def _connect(self, net: NetDevice) -> Steps[None]:
        try:
            yield from self._connect_vsp(net)
        except Exception:
            with suppress(IrqError):  # the first error is the one that counts
                yield from each(self._close(net), self._unshare(net))
            raise

    def remove(self, device: HvDevice) -> Steps[None]:
        """Revoke the buffers, close the channels, tear the GPADLs down (netvsc_device_remove).

        Hosts before Windows Server 2016 (protocol 4.0) want the GPADLs torn down before the close, later ones after.
        """
        net = self.devices.pop(device, None)
        if net is None:
            return
        tears_first = self.bus.version is not None and self.bus.version < Version.V4_0
        try:
            yield from each(
                self._revoke_buffers(net, tears_first),
                self._close(net),
                self._unshare(net),
            )
        finally:
            for channel in (net.primary, *net.subs):
                self._by_channel.pop(channel, None)
                channel.requestor = None
            net.subs.clear()

    def _revoke_buffers(self, net: NetDevice, tears_first: bool) -> Steps[None]:
        for buffer, message in ((net.receive, nvsp.RevokeReceiveBuffer()), (net.send, nvsp.RevokeSendBuffer())):
            if buffer is not None:
                self._revoke(net, buffer, message)
                if tears_first:
                    yield from self._teardown(net, buffer)

    def _close(self, net: NetDevice) -> Steps[None]:
        if net.opened:
            net.opened = False  # a sub-channel that comes now is not opened any more
            yield from self.bus.close_steps(net.primary)

    def _revoke(self, net: NetDevice, buffer: Buffer, message: nvsp.NvspMessage) -> None:
        """Tell the host not to use a buffer any more, unless it is gone itself."""
        if not buffer.is_known_to_host or net.primary.rescinded:
            return
        buffer.is_known_to_host = False
        try:
            self._tell(net, message)
        except IrqError as error:
            self.bus.log.err(f"hv_netvsc: unable to send revoke {buffer.name} buffer to netvsp: {error}")

    def _unshare(self, net: NetDevice) -> Steps[None]:
        yield from each(*(self._teardown(net, buffer) for buffer in (net.receive, net.send) if buffer is not None))

    def _teardown(self, net: NetDevice, buffer: Buffer) -> Steps[None]:
        if buffer is net.receive:
            net.receive = None
        else:
            net.send = None
        yield from self.bus.teardown_gpadl_steps(net.primary, buffer.handle, buffer.pages)

    # ---- initialization

    def _connect_vsp(self, net: NetDevice) -> Steps[None]:
        yield from self._negotiate(net)
        if net.version > nvsp.LINUX_VERSIONS[-1]:
            self._tell(net, nvsp.SendNdisConfig(ETHERNET_MTU))
        self._tell(net, nvsp.SendNdisVersion(*(NDIS_VERSION if net.version > 0x40000 else NDIS_VERSION_OLD)))
        yield from self._share_receive_buffer(net)
        yield from self._share_send_buffer(net)

    def _negotiate(self, net: NetDevice) -> Steps[None]:
        for version in nvsp.LINUX_VERSIONS:
            answer = yield from self._ask(net, nvsp.Init(version, version))
            if isinstance(answer, nvsp.InitComplete) and answer.status == nvsp.NvspStatus.SUCCESS:
                net.version = version
                return
        raise IrqError(errno.EPROTO, f"netvsc channel {net.primary.relid}: the host takes no NVSP version (EPROTO)")

    def _share(self, net: NetDevice, name: str, pages: int) -> Steps[Buffer]:
        buffer = Buffer(name, self.bus.alloc_pages(pages))
        buffer.handle = yield from self.bus.establish_gpadl_steps(net.primary, buffer.pages)
        return buffer

    def _share_receive_buffer(self, net: NetDevice) -> Steps[None]:
        buffer = yield from self._share(net, "receive", buffer_pages(RECEIVE_SECTIONS, RECEIVE_SECTION_BYTES))
        net.receive = buffer
        answer = yield from self._ask(net, nvsp.ShareReceiveBuffer(buffer.handle))
        if not isinstance(answer, nvsp.ReceiveBufferComplete) or answer.status != nvsp.NvspStatus.SUCCESS:
            raise self._refused(net, "Unable to complete receive buffer initialization with NetVsp")
        buffer.is_known_to_host = True
        if answer.num_sections != 1 or answer.offset:
            raise self._refused(net, f"{answer.num_sections} receive sections at offset {answer.offset}")
        size, count = answer.sub_alloc_size, answer.num_sub_allocs
        if size < SECTION_BYTES_MIN or not count or size * count > buffer.size:
            raise self._refused(net, f"invalid recv_section_size {size}")
        net.section_bytes, net.section_count = size, count

    def _share_send_buffer(self, net: NetDevice) -> Steps[None]:
        buffer = yield from self._share(net, "send", buffer_pages(SEND_SECTIONS, SEND_SECTION_BYTES))
        net.send = buffer
        answer = yield from self._ask(net, nvsp.ShareSendBuffer(buffer.handle))
        if not isinstance(answer, nvsp.SendBufferComplete) or answer.status != nvsp.NvspStatus.SUCCESS:
            raise self._refused(net, "Unable to complete send buffer initialization with NetVsp")
        buffer.is_known_to_host = True
        if answer.section_size < SECTION_BYTES_MIN:
            raise self._refused(net, f"invalid send_section_size {answer.section_size}")
        net.send_section_bytes = answer.section_size
        net.free_sections[:] = range(min(SEND_SECTIONS, buffer.size // answer.section_size))

    @staticmethod
    def _refused(net: NetDevice, why: str) -> IrqError:
        return IrqError(errno.EINVAL, f"netvsc channel {net.primary.relid}: {why} (EINVAL)")

    # ---- sub-channels

    def _channels_wanted(self) -> int:
        return min(CHANNELS_DEFAULT, self.bus.nr_online_cpus)

    def _ask_for_sub_channels(self, net: NetDevice) -> Steps[None]:
        """Ask for sub-channels, the primary not counted (rndis_set_subchannel); the host grants what its queues allow.

        Without them the adapter works with its primary alone.
        """
        if not net.opened:
            return
        wanted = self._channels_wanted() - 1
        try:
            answer = yield from self._ask(net, nvsp.SubchannelRequest(nvsp.SUBCHANNEL_ALLOCATE, wanted))
        except IrqError as error:
            self.bus.log.err(f"hv_netvsc: sub channel allocate send failed: {error}")
            return
        if not isinstance(answer, nvsp.SubchannelComplete) or answer.status != nvsp.NvspStatus.SUCCESS:
            self.bus.log.err("hv_netvsc: sub channel request failed")
            return
        if answer.num_subchannels > wanted:
            self.bus.log.err(f"hv_netvsc: invalid number of sub-channels {answer.num_subchannels}")
            return
        net.num_chn = 1 + answer.num_subchannels

    def sub_channel(self, channel: Channel) -> Steps[None]:
        """Open a sub-channel that was asked for (netvsc_sc_open)."""
        device = channel.device
        net = self.devices.get(device) if device is not None else None
        if net is None or not net.opened:
            return
        channel.requestor = _requestor(channel)
        self._by_channel[channel] = net
        try:
            yield from self.bus.open_steps(channel)
        except IrqError as error:
            self._by_channel.pop(channel, None)
            self.bus.log.err(f"hv_netvsc: sub channel open failed: {error}")
            return
        net.subs.append(channel)

    # ---- packets

    def _tell(self, net: NetDevice, message: nvsp.NvspMessage) -> None:
        """Send what nobody answers."""
        net.primary.send(nvsp.nvsp_bytes(message), trans_id=RQST_ID_NO_RESPONSE)

    def _ask(self, net: NetDevice, message: nvsp.NvspMessage) -> Steps[nvsp.NvspMessage]:
        """Send, wait, return the completion. EPROTO: it makes no sense."""
        payload = nvsp.nvsp_bytes(message)
        send = partial(net.primary.send, payload, flags=COMPLETION_REQUESTED, trans_id=INIT_REQUEST)
        reply = yield from net.exchange.ask(net.primary, f"netvsc: {message.type.name}", send)
        try:
            return nvsp.nvsp_message(reply, completion=True)
        except PayloadError as error:
            raise IrqError(errno.EPROTO, f"netvsc channel {net.primary.relid}: {error} (EPROTO)") from None

    def transmit(self, device: HvDevice, frame: bytes, queue: int = 0) -> None:
        """Send a frame from a section of the send buffer.

        Args:
            device: one that the driver serves.
            frame: opaque bytes, at most one section.
            queue: which channel, modulo how many there are.
        Raises:
            IrqError: ENODEV not in service, EMSGSIZE longer than a section, EAGAIN ring full, no id or section left.
        """
        net = self.devices.get(device)
        if net is None or not net.opened or net.send is None:
            raise IrqError(errno.ENODEV, f"device {device.guid}: no network adapter in service (ENODEV)")
        if len(frame) > net.send_section_bytes:
            raise IrqError(
                errno.EMSGSIZE, f"a frame of {len(frame)} bytes: a section has {net.send_section_bytes} (EMSGSIZE)"
            )
        if not net.free_sections:
            raise IrqError(errno.EAGAIN, f"device {device.guid}: every send section is out (EAGAIN); try again later")
        section, address = net.free_sections[0], net.next_frame
        net.send.pages.write(section * net.send_section_bytes, frame)
        channels = (net.primary, *net.subs)
        payload = nvsp.nvsp_bytes(nvsp.RndisPacket(0, section, len(frame)))
        channels[queue % len(channels)].send(payload, flags=COMPLETION_REQUESTED, trans_id=address)
        net.free_sections.pop(0)
        net.in_flight[address] = section
        net.next_frame += 1
        net.sent += 1

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Take what the host sent, if it makes sense (netvsc_process_raw_pkt)."""
        net = self._by_channel.get(channel)
        if net is None:
            return
        if packet.type == COMPLETION:
            problem = self._take_completion(net, channel, packet)
        elif packet.type == DATA_USING_XFER_PAGES:
            problem = self._receive(net, channel, packet)
        else:
            problem = ""  # in-band messages (VF association, indirection table) change nothing here
        if problem:
            net.dropped += 1
            self.bus.log.err(f"hv_netvsc: {problem}")

    def _take_completion(self, net: NetDevice, channel: Channel, packet: Packet) -> str:
        requestor = channel.requestor
        address = RQST_ERROR if requestor is None else requestor.release(packet.trans_id)
        if address == RQST_ERROR:
            return f"Invalid transaction ID {packet.trans_id:x}"
        if address == INIT_REQUEST:
            return "" if net.exchange.complete(packet.payload) else "completion that nobody waits for"
        net.completed += 1
        net.free_sections.append(net.in_flight.pop(address))
        try:
            answer = nvsp.nvsp_message(packet.payload, completion=True) if packet.payload else None
        except PayloadError as error:
            return str(error)
        is_fine = answer is None or isinstance(answer, nvsp.RndisPacketComplete)
        return "" if is_fine else f"unknown nvsp_message type {nvsp.nvsp_type(packet.payload)}"

    def _receive(self, net: NetDevice, channel: Channel, packet: Packet) -> str:
        """Take frames out of the receive buffer and give their sections back (netvsc_receive)."""
        receive = net.receive
        if receive is None or len(packet.ranges) < _XFER.size:
            return f"Invalid xfer page pkt, offset too small: {16 + len(packet.ranges)}"
        pageset, _, count = _XFER.unpack_from(packet.ranges)
        if pageset != nvsp.RECEIVE_BUFFER_ID:
            return f"Invalid xfer page set id {pageset:x} - expecting {nvsp.RECEIVE_BUFFER_ID:x}"
        if count * _RANGE.size > len(packet.ranges) - _XFER.size:
            return f"Range count is not valid: {count}"
        status, problem = nvsp.NvspStatus.SUCCESS, ""
        for length, offset in self._ranges(packet.ranges, count):
            if offset > receive.size or length > receive.size - offset:
                status, problem = nvsp.NvspStatus.FAIL, f"Packet offset:{offset} + len:{length} too big"
                continue
            net.received += 1
            net.bytes += len(receive.pages.read(offset, length))
        try:
            channel.send(nvsp.nvsp_bytes(nvsp.RndisPacketComplete(status)), type=COMPLETION, trans_id=packet.trans_id)
        except IrqError as error:
            return f"cannot complete {packet.trans_id:x}: {error}"
        return problem

    @staticmethod
    def _ranges(data: bytes, count: int) -> Iterator[tuple[int, int]]:
        for index in range(count):
            length, offset = _RANGE.unpack_from(data, _XFER.size + index * _RANGE.size)
            yield int(length), int(offset)


def _requestor(channel: Channel) -> Requestor:
    return Requestor(channel.device_class.ring_bytes // RING_BYTES_PER_ID)
