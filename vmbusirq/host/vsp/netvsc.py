"""The host's end of network adapters: negotiation, shared buffers, sub-channels; frames are opaque (vmbus.md 5.4)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from vmbusirq.errors import IrqError
from vmbusirq.host.vsp.base import Vsp
from vmbusirq.wire import nvsp
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, DATA_USING_XFER_PAGES, Packet
from vmbusirq.wire.record import PayloadError

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel
    from vmbusirq.host.gpadl import HostGpadl

__all__ = ["NetvscVsp"]

RECEIVE_SECTION_BYTES: Final = 1728
SEND_SECTION_BYTES: Final = 6144
_XFER: Final = struct.Struct("<HBxI")
_RANGE: Final = struct.Struct("<II")


class NetvscVsp(Vsp):
    """An adapter.

    Args:
        max_sub_channels: offered at most: its queues but one.
        versions: of NVSP that it speaks.

    Attributes:
        version: that was agreed on, 0 before.
        ndis_version: of the guest, None before it is told.
        granted: sub-channels that were offered.
        frames, bytes: of the guest.
        delivered, returned: frames written into the receive buffer, and those that the guest gave back.
        last_frame: the guest's last, as far as it lay in the send buffer.
        dropped: packets that meant nothing.
    """

    class_name = "netvsc"
    if_type = CLASS_IDS["netvsc"]

    def __init__(self, max_sub_channels: int = 0, *, versions: tuple[int, ...] = nvsp.LINUX_VERSIONS) -> None:
        self.max_sub_channels = max_sub_channels
        self._versions = versions
        self.frames = self.bytes = self.delivered = self.returned = self.dropped = 0
        self.last_frame = b""
        self.receive: HostGpadl | None = None
        self.send: HostGpadl | None = None
        self.released()

    def released(self) -> None:
        """Forget versions, buffers and sub-channels."""
        self.version = 0
        self.ndis_version: tuple[int, int] | None = None
        self.granted = 0
        self._release_receive()
        self._release_send()

    def _release_receive(self) -> None:
        gpadl, self.receive = self.receive, None
        self._free: list[int] = []
        if gpadl is not None:
            gpadl.release()

    def _release_send(self) -> None:
        gpadl, self.send = self.send, None
        if gpadl is not None:
            gpadl.release()

    def opened(self, channel: HostChannel) -> None:
        """The primary is to be negotiated."""
        if channel.sub_channel_index == 0:
            self.released()

    def closed(self, channel: HostChannel) -> None:
        """Without its primary the adapter uses no buffers."""
        if channel.sub_channel_index == 0:
            self.released()

    def packet(self, channel: HostChannel, packet: Packet) -> None:
        """Serve a packet."""
        try:
            message = nvsp.nvsp_message(packet.payload, completion=False)
        except PayloadError:
            self.dropped += 1
            return
        answer = self._serve(channel, message)
        if answer is not None and packet.flags & COMPLETION_REQUESTED:
            channel.write(Packet(nvsp.nvsp_bytes(answer), COMPLETION, trans_id=packet.trans_id))

    def _serve(self, channel: HostChannel, message: nvsp.NvspMessage) -> nvsp.NvspMessage | None:
        if isinstance(message, nvsp.RndisPacket):
            return self._frame(message)
        if channel.sub_channel_index:
            self.dropped += 1  # only frames go through sub-channels
            return None
        match message:
            case nvsp.Init():
                return self._negotiate(message)
            case nvsp.SendNdisVersion():
                self.ndis_version = message.major, message.minor
            case nvsp.ShareReceiveBuffer():
                return self._share_receive(channel, message)
            case nvsp.ShareSendBuffer():
                return self._share_send(channel, message)
            case nvsp.RevokeReceiveBuffer():
                self._release_receive()
            case nvsp.RevokeSendBuffer():
                self._release_send()
            case nvsp.SubchannelRequest():
                return self._sub_channels(channel, message)
        return None

    def _negotiate(self, message: nvsp.Init) -> nvsp.InitComplete:
        wanted = [version for version in self._versions if message.min_version <= version <= message.max_version]
        if not wanted:
            return nvsp.InitComplete(0, 0, nvsp.NvspStatus.PROTOCOL_UNSUPPORTED)
        self.version = max(wanted)
        return nvsp.InitComplete(self.version, 34, nvsp.NvspStatus.SUCCESS)

    def _share_receive(self, channel: HostChannel, message: nvsp.ShareReceiveBuffer) -> nvsp.ReceiveBufferComplete:
        gpadl = channel.gpadl(message.gpadl_handle)
        sections = 0 if gpadl is None else gpadl.byte_count // RECEIVE_SECTION_BYTES
        if gpadl is None or not self.version or not sections or self.receive is not None:
            return nvsp.ReceiveBufferComplete(nvsp.NvspStatus.FAIL, 0)
        self.receive = gpadl.hold()
        self._free = list(range(sections - 1, -1, -1))
        size = RECEIVE_SECTION_BYTES
        return nvsp.ReceiveBufferComplete(nvsp.NvspStatus.SUCCESS, 1, 0, size, sections, size * sections)

    def _share_send(self, channel: HostChannel, message: nvsp.ShareSendBuffer) -> nvsp.SendBufferComplete:
        gpadl = channel.gpadl(message.gpadl_handle)
        if gpadl is None or not self.version or gpadl.byte_count < SEND_SECTION_BYTES or self.send is not None:
            return nvsp.SendBufferComplete(nvsp.NvspStatus.FAIL, 0)
        self.send = gpadl.hold()
        return nvsp.SendBufferComplete(nvsp.NvspStatus.SUCCESS, SEND_SECTION_BYTES)

    def _sub_channels(self, channel: HostChannel, message: nvsp.SubchannelRequest) -> nvsp.SubchannelComplete:
        """Offer what is asked for, as far as the adapter has queues."""
        if self.version < nvsp.NVSP_5 or message.op != nvsp.SUBCHANNEL_ALLOCATE:
            return nvsp.SubchannelComplete(nvsp.NvspStatus.FAIL, 0)
        relids = channel.device.offer_sub_channels(message.num_subchannels)
        self.granted += len(relids)
        return nvsp.SubchannelComplete(nvsp.NvspStatus.SUCCESS, len(relids))

    # ---- frames

    def _frame(self, message: nvsp.RndisPacket) -> nvsp.RndisPacketComplete:
        """Take a frame; one in the packet's own ranges is counted and not looked at."""
        index, size = message.send_buf_section_index, message.send_buf_section_size
        if index != nvsp.SECTION_NONE:
            begin = index * SEND_SECTION_BYTES
            if self.send is None or size > SEND_SECTION_BYTES or begin + size > self.send.byte_count:
                self.dropped += 1
                return nvsp.RndisPacketComplete(nvsp.NvspStatus.INVALID_RNDIS_PACKET)
            self.last_frame = self.send.read(begin, size)
            self.bytes += size
        self.frames += 1
        return nvsp.RndisPacketComplete(nvsp.NvspStatus.SUCCESS)

    def deliver(self, channel: HostChannel, frame: bytes) -> int:
        """Write a frame into the receive buffer and tell the guest; return the transaction id.

        Args:
            channel: any open channel of the adapter.
            frame: opaque bytes, at most one section.
        Raises:
            IrqError: ENOTCONN no receive buffer, EMSGSIZE longer than a section, EAGAIN no section is free.
        """
        if self.receive is None:
            raise IrqError(errno.ENOTCONN, "host: netvsc: the guest shares no receive buffer (ENOTCONN)")
        if len(frame) > RECEIVE_SECTION_BYTES:
            raise IrqError(errno.EMSGSIZE, f"host: netvsc: {len(frame)} bytes, a section has 1728 (EMSGSIZE)")
        if not self._free:
            raise IrqError(errno.EAGAIN, "host: netvsc: the guest holds every section (EAGAIN)")
        section, free = self._free.pop(), self._free
        offset = section * RECEIVE_SECTION_BYTES
        self.receive.write(offset, frame)
        ranges = _XFER.pack(nvsp.RECEIVE_BUFFER_ID, 0, 1) + _RANGE.pack(len(frame), offset)

        def returned(_packet: Packet) -> None:
            self.returned += 1
            free.append(section)

        payload = nvsp.nvsp_bytes(nvsp.RndisPacket(0))
        trans_id = channel.request(payload, returned, packet_type=DATA_USING_XFER_PAGES, ranges=ranges)
        self.delivered += 1
        return trans_id
