"""The header of pipe packets, as hv_sock connections use it (vmbus.md 1.16)."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.wire.record import PayloadError, Record

__all__ = ["PIPE_DATA", "PIPE_PAYLOAD_MAX", "PipePacket", "pipe_bytes", "pipe_payload"]

PIPE_DATA: Final = 1
PIPE_PAYLOAD_MAX: Final = 16384


@dataclass(frozen=True, slots=True)
class PipePacket(Record):
    """What begins each packet: 1 for data, and how many bytes of them; no bytes is the end of the stream (FIN)."""

    packet_type: int
    data_size: int

    layout: ClassVar = struct.Struct("<II")


def pipe_bytes(data: bytes) -> bytes:
    """Return the payload of a packet that carries ``data``; none: FIN. EMSGSIZE: more than 16384 bytes."""
    if len(data) > PIPE_PAYLOAD_MAX:
        raise IrqError(errno.EMSGSIZE, f"a pipe packet of {len(data)} bytes: at most {PIPE_PAYLOAD_MAX} (EMSGSIZE)")
    return PipePacket(PIPE_DATA, len(data)).to_bytes() + data


def pipe_payload(payload: bytes) -> bytes:
    """Return the data of a packet, the ring's padding cut off; empty: FIN.

    Raises:
        PayloadError: no data packet, more than 16384 bytes announced, or more than came.
    """
    header = PipePacket.from_bytes(payload)
    data = payload[PipePacket.size() :]
    if header.packet_type != PIPE_DATA:
        raise PayloadError(f"pipe packet of type {header.packet_type}, data is {PIPE_DATA}")
    if header.data_size > min(len(data), PIPE_PAYLOAD_MAX):
        raise PayloadError(f"pipe packet: {header.data_size} bytes announced, {len(data)} came")
    return data[: header.data_size]
