"""Messages of the integration services: layouts, round trips, bytes of a peer that lies (include/linux/hyperv.h)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.errors import IrqError
from vmbusirq.wire.ic import (
    FRAME_VERSIONS,
    MESSAGE_VERSIONS,
    Heartbeat,
    IcFlags,
    IcHeader,
    IcMessage,
    IcType,
    Negotiate,
    PipeHeader,
    ShutdownRequest,
    TimeSample,
    choose_versions,
)
from vmbusirq.wire.record import PayloadError

HEADER = IcHeader(0x0102, 0x0304, 0x0506, 0x0708, 0x090A, 0x0B0C, 0x0D0E0F10, 0x11, 0x12, b"\x13\x14")


def test_sizes() -> None:
    """Struct sizes with #pragma pack(1), include/linux/hyperv.h, v6.10."""
    sizes = [kind.size() for kind in (PipeHeader, IcHeader, Heartbeat, ShutdownRequest, TimeSample)]
    assert [8, 20, 40, 2060, 25] == sizes


def test_header_layout() -> None:
    """Struct icmsg_hdr: frame version, type, message version, size, status, id, flags, reserved."""
    assert "02010403 0605 08070a09 0c0b 100f0e0d 11 12 1314".replace(" ", "") == HEADER.to_bytes().hex()


def test_bodies_layout() -> None:
    """heartbeat_msg_data, shutdown_msg_data, ictimesync_data: fields in order, no gaps."""
    assert b"\x05" + bytes(39) == Heartbeat(5).to_bytes()
    assert b"\1\0\0\0\2\0\0\0\3\0\0\0Bye" + bytes(2045) == ShutdownRequest(1, 2, 3, b"Bye").to_bytes()
    assert b"\1" + bytes(7) + b"\2" + bytes(7) + b"\3" + bytes(7) + b"\1" == TimeSample(1, 2, 3, 1).to_bytes()


def test_negotiate_layout() -> None:
    """Struct icmsg_negotiate: two counts, reserved, versions; icmsgsize of an answer is 16 (channel_mgmt.c)."""
    body = Negotiate(((3, 0),), ((4, 1),)).to_bytes()
    assert "0100010000000000030000000400" + "0100" == body.hex()
    assert 16 == len(body)


def test_types_and_flags() -> None:
    """ICMSGTYPE_* and ICMSGHDRFLAG_*."""
    assert [0, 1, 2, 3, 4, 5, 7] == [int(kind) for kind in IcType]
    assert [1, 2, 4] == [int(flag) for flag in IcFlags]


def test_message_sets_both_sizes() -> None:
    """The pipe header counts what follows it, icmsgsize what follows the headers."""
    data = IcMessage(HEADER, b"abcde").to_bytes()
    assert 33 == len(data)
    assert 25 == PipeHeader.from_bytes(data).msgsize
    assert 5 == IcHeader.from_bytes(data[8:]).icmsgsize


@given(st.binary(max_size=100), st.integers(0, 7))
def test_padding_is_cut_off(body: bytes, padding: int) -> None:
    """A ring pads payloads to a multiple of 8 (vmbus.md 1.5)."""
    assert body == IcMessage.from_bytes(IcMessage(HEADER, body).to_bytes() + bytes(padding)).body


def test_response_keeps_everything_but_flags_and_status() -> None:
    """hv_util.c: icflags = TRANSACTION | RESPONSE; ids and versions are the request's."""
    request = IcMessage.request(IcType.HEARTBEAT, b"1", frame=(3, 0), message=(1, 2), ic_id=300)
    answer = request.response(b"2", 7)
    assert (b"2", 5, 7, 44) == (
        answer.body,
        answer.header.icflags,
        answer.header.status,
        answer.header.ictransaction_id,
    )
    assert (3, 0, 1, 2) == (
        answer.header.frame_major,
        answer.header.frame_minor,
        answer.header.msg_major,
        answer.header.msg_minor,
    )


versions = st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))


@given(st.lists(versions, max_size=50), st.lists(versions, max_size=50))
def test_negotiation_round_trip(frame: list[tuple[int, int]], message: list[tuple[int, int]]) -> None:
    """Up to 100 versions in all."""
    body = Negotiate(tuple(frame), tuple(message))
    assert body == Negotiate.from_bytes(body.to_bytes() + bytes(4))


def test_negotiation_names_at_most_100_versions() -> None:
    """IC_VERSION_NEGOTIATION_MAX_VER_COUNT, both ways."""
    with pytest.raises(IrqError) as caught:
        Negotiate(((1, 0),) * 101, ()).to_bytes()
    assert errno.EINVAL == caught.value.errno
    with pytest.raises(PayloadError):
        Negotiate.from_bytes(b"\x65\0\0\0" + bytes(1000))
    assert 100 == len(Negotiate.from_bytes(b"\x64\0\0\0" + bytes(1000)).frame)


def test_the_first_own_version_that_was_offered_wins() -> None:
    """vmbus_prep_negotiate_resp: own order decides; both kinds must be found."""
    own = FRAME_VERSIONS, MESSAGE_VERSIONS["shutdown"]
    assert ((3, 0), (3, 1)) == choose_versions(Negotiate(((1, 0), (3, 0)), ((1, 0), (3, 1))), *own)
    assert choose_versions(Negotiate(((3, 0),), ((9, 9),)), *own) is None
    assert choose_versions(Negotiate((), ((3, 0),)), *own) is None


@given(st.binary(max_size=80))
def test_hostile_bytes_raise_payload_error_or_decode(data: bytes) -> None:
    """Nothing but PayloadError; what decodes never has more body than came."""
    for kind in (PipeHeader, IcHeader, Heartbeat, ShutdownRequest, TimeSample):
        try:
            assert data[: kind.size()] == kind.from_bytes(data).to_bytes()
        except PayloadError:
            assert len(data) < kind.size()
    for decode in (IcMessage.from_bytes, Negotiate.from_bytes):
        try:
            decode(data)
        except PayloadError:
            continue


def test_values_that_do_not_fit_are_einval() -> None:
    """Own mistakes are errors of the caller, not of the peer."""
    for value in (-1, 1 << 64):
        with pytest.raises(IrqError) as caught:
            Heartbeat(value).to_bytes()
        assert errno.EINVAL == caught.value.errno
    with pytest.raises(IrqError):
        Negotiate(((1 << 16, 0),), ()).to_bytes()
