"""Packets of storage controllers: layouts, hostile bytes (drivers/scsi/storvsc_drv.c; vmbus.md 1.2, 1.15)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.wire.record import PayloadError
from vmbusirq.wire.vstor import (
    LINUX_VERSIONS,
    ChannelProperties,
    Operation,
    ProtocolVersion,
    SubChannelCount,
    VstorPacket,
)


def test_sizes() -> None:
    """A packet of 64 bytes makes storvsc's max_pkt_size of 80 (vmbus.md 1.2); 24 of properties are its userdata."""
    assert [64, 24, 4, 2] == [
        kind.size() for kind in (VstorPacket, ChannelProperties, ProtocolVersion, SubChannelCount)
    ]


def test_packet_layout() -> None:
    """operation, flags, status, then the union at 12."""
    data = VstorPacket(1, 2, 3, b"\4\5").to_bytes()
    assert b"\1\0\0\0\2\0\0\0\3\0\0\0\4\5" + bytes(50) == data


def test_bodies_layout() -> None:
    """Struct vmstorage_channel_properties and vmstorage_protocol_version."""
    assert bytes(4) + b"\1\0\0\0\2\0\0\0\3\0\0\0" + bytes(8) == ChannelProperties(1, 2, 3).to_bytes()
    assert b"\2\6\1\0" == ProtocolVersion(0x0602, 1).to_bytes()
    assert b"\7\0" == SubChannelCount(7).to_bytes()


def test_numbers() -> None:
    """Enum vstor_packet_operation; versions are major << 8 | minor, best first."""
    assert list(range(1, 14)) == [int(operation) for operation in Operation]
    assert sorted(LINUX_VERSIONS, reverse=True) == list(LINUX_VERSIONS)


@given(st.binary(max_size=52), st.integers(0, 2**32 - 1))
def test_round_trip(body: bytes, status: int) -> None:
    """Whatever is behind 64 bytes is not looked at."""
    packet = VstorPacket(3, 1, status, body)
    assert packet == VstorPacket.from_bytes(packet.to_bytes() + b"tail")
    assert body == packet.body[: len(body)]


@given(st.binary(max_size=63))
def test_short_packets_are_refused(data: bytes) -> None:
    """vmbus.md 1.15: storvsc drops packets shorter than 64 bytes."""
    with pytest.raises(PayloadError):
        VstorPacket.from_bytes(data)


def test_a_body_of_53_bytes_does_not_fit() -> None:
    """The union has 52."""
    with pytest.raises(PayloadError):
        VstorPacket(3, body=bytes(53))


def test_completion_turns_a_request() -> None:
    """COMPLETE_IO, no flags, the body back unless another is given."""
    request = VstorPacket(3, body=b"srb")
    assert VstorPacket(1, 0, 9, b"srb") == request.completion(9)
    assert VstorPacket(1, 0, 0, b"x") == request.completion(body=b"x")
