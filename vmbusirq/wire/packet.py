"""A packet of the VMBus ring as a value, and what the ring's layout says about sizes (vmbus.md 1.2 and 1.5)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError

__all__ = [
    "COMPLETION",
    "COMPLETION_REQUESTED",
    "DATA_INBAND",
    "DATA_USING_GPA_DIRECT",
    "DATA_USING_XFER_PAGES",
    "PKT_DESC",
    "PKT_TRAILER",
    "RING_HDR",
    "Packet",
    "packet_from_c",
    "packets_to_c",
    "vmbus_ring_size",
]

RING_HDR: Final[int] = lib.VI_RING_HDR
PKT_DESC: Final[int] = lib.VI_PKT_DESC
PKT_TRAILER: Final[int] = lib.VI_PKT_TRAILER
DATA_INBAND: Final[int] = lib.VI_PKT_DATA_INBAND
DATA_USING_XFER_PAGES: Final[int] = lib.VI_PKT_DATA_USING_XFER_PAGES
DATA_USING_GPA_DIRECT: Final[int] = lib.VI_PKT_DATA_USING_GPA_DIRECT
COMPLETION: Final[int] = lib.VI_PKT_COMP
COMPLETION_REQUESTED: Final[int] = lib.VI_PKT_FLAG_COMPLETION


def vmbus_ring_size(payload_bytes: int, page_bytes: int = RING_HDR) -> int:
    """Return the bytes of a ring for so much payload: VMBUS_RING_SIZE of ``include/linux/hyperv.h``, v6.10.

    The control page takes a page of the guest's. Below eight of them it is added, from there on it is taken out of the
    payload.
    """
    header = 0 if payload_bytes >= 8 * page_bytes else page_bytes
    return -(-(payload_bytes + header) // page_bytes) * page_bytes


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet, to write or as read.

    Attributes:
        payload: any number of bytes; what is read has the zeroes that pad it to a multiple of 8.
        type: one of the packet types of this module.
        flags: 0 or COMPLETION_REQUESTED.
        trans_id: transaction id, 64 bits.
        ranges: what stands between descriptor and payload (page ranges), a multiple of 8 bytes.
    """

    payload: bytes = b""
    type: int = DATA_INBAND
    flags: int = 0
    trans_id: int = 0
    ranges: bytes = b""

    @property
    def ring_bytes(self) -> int:
        """Bytes of ring that the packet takes: descriptor, ranges, padded payload, trailer."""
        return (PKT_DESC + len(self.ranges) + len(self.payload) + 7) // 8 * 8 + PKT_TRAILER


def packet_from_c(p: Any) -> Packet:
    """Return a copy of a ``struct vi_packet *`` as a value."""
    header = p.offset8 * 8
    return Packet(
        payload=bytes(ffi.buffer(p.payload, p.payload_len)),
        type=int(p.type),
        flags=int(p.flags),
        trans_id=int(p.trans_id),
        ranges=bytes(ffi.buffer(p.desc + PKT_DESC, header - PKT_DESC)),
    )


def packets_to_c(packets: Sequence[Packet]) -> tuple[Any, list[Any]]:
    """Return the packets as a C array, and what must stay alive while it is used."""
    array = ffi.new("struct vi_packet_out[]", len(packets))
    keep: list[Any] = []
    for slot, packet in zip(array, packets, strict=True):
        if not (0 <= packet.type < 1 << 16 and 0 <= packet.flags < 1 << 16 and 0 <= packet.trans_id < 1 << 64):
            raise IrqError(
                errno.EINVAL,
                f"packet with type {packet.type}, flags {packet.flags} and trans_id {packet.trans_id}: "
                "they have 16, 16 and 64 bits (EINVAL)",
            )
        payload, ranges = ffi.from_buffer(packet.payload), ffi.from_buffer(packet.ranges)
        keep += [payload, ranges]
        slot.type, slot.flags, slot.trans_id = packet.type, packet.flags, packet.trans_id
        slot.payload, slot.len = payload, len(packet.payload)
        slot.desc_ext, slot.desc_ext_len = ranges, len(packet.ranges)
    return array, keep
