"""The host's half of a channel as two queues, for VSPs alone: no guest driver is imported here."""

from __future__ import annotations

from collections import deque

from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, DATA_INBAND, Packet


def as_read(packet):
    """Return a packet as the other end reads it: padded to a multiple of 8 bytes."""
    size = -(-len(packet.payload) // 8) * 8
    return Packet(packet.payload.ljust(size, b"\0"), packet.type, packet.flags, packet.trans_id, packet.ranges)


class HostEnd:
    """The host's half of a channel."""

    def __init__(self, device, relid, sub_channel_index=0):
        self.device = device
        self.relid = relid
        self.sub_channel_index = sub_channel_index
        self.to_guest = deque()
        self.requests = {}
        self.next_id = 1
        self.gpadls = {}
        self.strays = 0

    def write(self, packet):
        self.to_guest.append(as_read(packet))

    def request(
        self,
        payload,
        on_reply,
        *,
        flags=COMPLETION_REQUESTED,
        packet_type=DATA_INBAND,
        ranges=b"",
    ):
        trans_id = self.next_id
        self.next_id += 1
        self.requests[trans_id] = (flags, on_reply)
        self.write(Packet(payload, packet_type, flags, trans_id, ranges))
        return trans_id

    def gpadl(self, handle):
        return self.gpadls.get(handle)

    def take(self, packet):
        flags, on_reply = self.requests.get(packet.trans_id, (1, None))
        is_completion = packet.type == COMPLETION
        if packet.trans_id in self.requests and (is_completion or not flags):
            del self.requests[packet.trans_id]
            if on_reply:
                on_reply(packet)
        elif is_completion:
            self.strays += 1
        else:
            self.device.vsp.packet(self, packet)
