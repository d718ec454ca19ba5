"""Packets: completions, requests, full rings, corrupt rings, signals that tell nothing, monitored channels, hv_sock."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.host.scripted import GuestRings, Rig, guid
from vmbusirq.errors import IrqError
from vmbusirq.host.channel import HostChannel
from vmbusirq.host.options import HostOptions
from vmbusirq.host.rings import BACKLOG_MAX
from vmbusirq.host.stats import Traffic
from vmbusirq.host.vsp.base import Vsp
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, DATA_USING_GPA_DIRECT, Packet
from vmbusirq.wire.protocol import (
    STATUS_CONNECTION_REFUSED,
    CloseChannel,
    OfferChannel,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    TlConnectRequest,
    TlConnectResult,
    Unload,
    UnloadResponse,
    Version,
    vsock_service_id,
)


def opened(options: HostOptions | None = None, pages: int = 4) -> tuple[Rig, GenericVsp, GuestRings]:
    rig = Rig(options=options or HostOptions())
    vsp = rig.device().vsp
    assert isinstance(vsp, GenericVsp)
    rig.connect()
    return rig, vsp, rig.open(1, vp=1, pages=pages)


def test_packets_that_want_a_completion_get_one() -> None:
    """Issue 3: a completion (type 11) of the same transaction id; others none."""
    rig, vsp, rings = opened()
    rig.write(1, rings, Packet(b"a"), Packet(b"b", flags=COMPLETION_REQUESTED, trans_id=77))
    ranges = struct.pack("<IIIIQ", 0, 1, 4096, 0, 5)
    gpa = Packet(b"c", DATA_USING_GPA_DIRECT, COMPLETION_REQUESTED, 78, ranges)
    rig.write(1, rings, gpa)
    rig.run()
    assert [(COMPLETION, 77), (COMPLETION, 78)] == [(p.type, p.trans_id) for p in rig.read(1, rings)]
    assert (3, 2) == (vsp.packets, vsp.completed)
    assert 2 == rig.channel(1).stats.packets


def test_own_requests_find_their_answers() -> None:
    """Issue 3: request and response with transaction ids; strangers are counted and nothing else."""
    rig, vsp, rings = opened()
    channel = rig.channel(1)
    ids = [vsp.ask(channel, b"x" * 8) for _ in range(3)]
    assert ids == [packet.trans_id for packet in rig.read(1, rings)]
    for trans_id in (ids[1], ids[1], 0, 1 << 63):
        rig.write(1, rings, Packet(type=COMPLETION, trans_id=trans_id))
    rig.run()
    assert (1, 3, 2, 0) == (vsp.replies, channel.stray_completions, channel.unanswered, vsp.packets)


def test_a_request_without_completion_is_answered_in_band() -> None:
    """Integration services answer so (vmbus.md 1.16)."""
    rig, vsp, rings = opened()
    found: list[Packet] = []
    trans_id = rig.channel(1).request(b"beat", found.append, flags=0)
    rig.write(1, rings, Packet(b"12345678", trans_id=trans_id))
    rig.run()
    assert [b"12345678"] == [packet.payload for packet in found]
    assert 0 == vsp.packets


def test_what_finds_no_room_waits_its_turn() -> None:
    """vmbus.md 1.11: pending_send_sz is posted; the guest's reader signals; the order is kept; nothing is lost."""
    rig, _vsp, rings = opened()
    channel = rig.channel(1)
    sent = [struct.pack("<Q", number) * 100 for number in range(200)]
    for payload in sent:
        channel.write(Packet(payload))
    assert 0 < rings.in_ring.control.pending_send_sz
    got: list[bytes] = []
    while packets := rig.read(1, rings, most=3):
        got += [packet.payload for packet in packets]
        rig.run()
    assert sent == got
    assert 0 == rings.in_ring.control.pending_send_sz
    assert 200 == channel.stats.packets
    assert 0 == channel.unnecessary_signals


def test_a_guest_that_takes_no_answers_is_not_read() -> None:
    """The host's memory is bounded: what waits stays in the guest's own ring."""
    rig, vsp, rings = opened()
    want = Packet(flags=COMPLETION_REQUESTED, trans_id=1)
    written = 0
    for _ in range(40):
        while rings.out_ring.bytes_to_write > want.ring_bytes and written < 4000:
            rig.write(1, rings, want)
            written += 1
        rig.run()
    assert vsp.packets < written
    host_rings = rig.channel(1).rings
    assert host_rings is not None
    assert BACKLOG_MAX == host_rings.backlog
    got = 0
    while packets := rig.read(1, rings):
        got += len(packets)
        rig.run()
    assert (written, written) == (vsp.packets, got)


def corruptions() -> list[tuple[str, int, bytes]]:
    """Name, offset in the out ring's data, bytes, of a ring with one packet of 8 bytes at 0."""
    return [
        ("type 1", 0, b"\1"),
        ("offset8 1", 2, b"\1"),
        ("len8 0", 4, b"\0\0"),
        ("len8 beyond", 4, b"\xff\xff"),
        ("flags 2", 6, b"\2"),
    ]


@pytest.mark.parametrize(("why", "at", "data"), corruptions(), ids=[why for why, _, _ in corruptions()])
def test_a_corrupt_packet_ends_the_worker_alone(why: str, at: int, data: bytes) -> None:
    """vmbus.md 1.15, OVMM: the device worker fails; the host, other channels and a re-open go on."""
    rig, vsp, rings = opened()
    rings.writer.put(Packet(b"12345678"))
    rings.out_ring.poke(at, data)
    rings.writer.publish()
    rig.signal(1)
    rig.run()
    channel = rig.channel(1)
    assert channel.failure.startswith("out ring"), why
    assert (1, 0, 1) == (channel.failures, vsp.packets, len(rig.log))
    channel.write(Packet(b"nobody reads it"))
    rig.signal(1)
    rig.run()
    rig.send(CloseChannel(1))
    again = rig.open(1)
    rig.write(1, again, Packet(b"x"))
    rig.run()
    assert ("", 1) == (channel.failure, vsp.packets)


@pytest.mark.parametrize("field", ["write_index", "read_index"])
@pytest.mark.parametrize("value", [4, 3 * 4096, 0xFFFFFFF8])
def test_an_impossible_index_ends_the_worker_alone(field: str, value: int) -> None:
    """vmbus.md 1.4: out of range or not a multiple of 8; in the ring that the host reads, and the one it writes."""
    rig, _vsp, rings = opened()
    ring = rings.out_ring if field == "write_index" else rings.in_ring
    ring.poke_control(field, value)
    channel = rig.channel(1)
    if field == "read_index":
        for _ in range(20):  # the writer looks at it when it needs room
            channel.write(Packet(bytes(800)))
    rig.signal(1)
    rig.run()
    assert 1 == channel.failures
    assert 1 == len(rig.log)


class Panicking(GenericVsp):
    def packet(self, channel: HostChannel, packet: Packet) -> None:
        raise ValueError("never seen such a packet")


def test_a_vsp_that_cannot_stand_a_packet_ends_its_worker_alone() -> None:
    """A device's thread dies, the host lives."""
    rig = Rig()
    rig.bus.add_device(Panicking("odd", guid(9)), guid(1), name="odd")
    rig.connect()
    rings = rig.open(1)
    rig.write(1, rings, Packet(b"x"), Packet(b"y"))
    rig.run()
    assert "ValueError: never seen such a packet" in rig.channel(1).failure


def test_bulk_traffic_and_bad_numbers() -> None:
    """The operations that tests and scenarios drive channels with."""
    rig, _vsp, rings = opened()
    assert 3 == rig.bus.send(1, packets=3, payload=100)
    assert 3 == len(rig.read(1, rings))
    for call, number in (
        (lambda: rig.bus.send(2), errno.ENOENT),
        (lambda: rig.bus.send(1, packets=-1), errno.EINVAL),
        (lambda: rig.bus.drive([Traffic(1, 1, 0)], 0), errno.EINVAL),
        (lambda: rig.bus.drive([Traffic(1, 1, 1 << 20)], 0), errno.EAGAIN),
        (lambda: rig.channel(1).write(Packet(b"x" * 20000)), errno.EMSGSIZE),
    ):
        with pytest.raises(IrqError) as error:
            call()
        assert number == error.value.errno
    rig.send(CloseChannel(1))
    with pytest.raises(IrqError) as error:
        rig.channel(1).write(Packet())
    assert errno.ENOTCONN == error.value.errno


# ---- signals


def test_signals_that_tell_nothing_are_counted() -> None:
    """vmbus.md 1.9: only the first packet of an empty ring is worth one."""
    rig, _vsp, rings = opened()
    rig.write(1, rings, Packet(b"a"), Packet(b"b"))
    rig.run()
    assert 0 == rig.channel(1).unnecessary_signals
    for _ in range(5):
        rig.signal(1)
        rig.run()
    assert (5, 5) == (rig.channel(1).unnecessary_signals, rig.bus.throttle.unnecessary)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("throttle_window_ticks", 1, 0),
        ("throttle_ticks", 1, 0),
        ("throttle_after", 0, -1),
        ("modify_delay_ticks", 0, -1),
        ("accept_timeout_ticks", 0, -1),
        ("gpadl_quota_bytes", 0, -1),
        ("monitor_latency", 0xFFFF, 0x10000),
    ],
)
def test_options_that_no_host_can_have_are_einval(field: str, good: int, bad: int) -> None:
    """At the public edge, not in the pump."""
    HostOptions(**{field: good})  # type: ignore[arg-type]
    with pytest.raises(IrqError, match=field) as caught:
        HostOptions(**{field: bad})  # type: ignore[arg-type]
    assert errno.EINVAL == caught.value.errno


def test_the_smallest_window_of_a_throttle() -> None:
    """Signals of one tick."""
    rig, _vsp, _rings = opened(HostOptions(throttle_after=0, throttle_window_ticks=1, throttle_ticks=1))
    rig.signal(1)
    rig.run()
    assert rig.partition.guest_suspended


def test_a_guest_that_signals_too_much_is_suspended() -> None:
    """vmbus.md 1.9: hosts throttle; after how many, in which time, for how long, are parameters of ours."""
    rig, _vsp, _rings = opened(HostOptions(throttle_after=3, throttle_window_ticks=100, throttle_ticks=500))
    for _ in range(3):
        rig.signal(1)
        rig.run()
        rig.partition.clock.advance(50)
    assert not rig.partition.guest_suspended
    for _ in range(4):
        rig.signal(1)
        rig.run()
    assert rig.partition.guest_suspended
    assert 1 == rig.bus.throttle.suspensions
    rig.partition.clock.advance(500)
    assert not rig.partition.guest_suspended


def test_a_monitored_channel_is_signalled_through_the_page() -> None:
    """vmbus.md 2.5: the offer names the monitor; the host writes connection id and latency into both pages."""
    rig = Rig()
    rig.device(1, monitor=37)
    vsp = rig.bus.devices[0].vsp
    assert isinstance(vsp, GenericVsp)
    h2g = rig.memory.alloc(2) * 4096
    g2h = h2g + 4096
    rig.contact(monitor_page1=h2g, monitor_page2=g2h)
    offer = rig.one(OfferChannel, [m for m in rig.send(RequestOffers()) if isinstance(m, OfferChannel)])
    assert (37, 1, 0x2001) == (offer.monitorid, offer.monitor_allocated, offer.connection_id)
    for page in (h2g, g2h):
        assert struct.pack("<IHH", 0x2001, 0, 0) == rig.memory.read(page + 0x440 + 8 * 37, 8)
        assert struct.pack("<H", 1000) == rig.memory.read(page + 0x240 + 2 * 37, 2)
        assert 2 == rig.memory.read(page, 1)[0]
    rings = rig.open(1)
    rings.writer.write(Packet(b"x"))
    rig.memory.write(g2h + 8 + 8, struct.pack("<I", 1 << 5))
    rig.run()
    assert 0 == vsp.packets
    rig.wait(1000)
    assert (1, 0) == (vsp.packets, rig.channel(1).unnecessary_signals)


def test_without_monitor_pages_nothing_is_monitored() -> None:
    """The guest gave none, so it signals by hypercall."""
    rig = Rig()
    rig.device(1, monitor=37)
    (offer,) = rig.connect()
    assert (0xFF, 0) == (offer.monitorid, offer.monitor_allocated)


# ---- hv_sock

PORT = vsock_service_id(1024)


def hv_sock(version: Version = Version.V5_3) -> tuple[Rig, list[GenericVsp]]:
    rig = Rig(version=version)
    rig.connect()
    accepted: list[GenericVsp] = []

    def accept(endpoint: object) -> Vsp:
        accepted.append(GenericVsp(f"sock {endpoint}", guid(0)))
        return accepted[-1]

    rig.bus.hv_sock.listen(PORT, accept)
    return rig, accepted


def test_an_accepted_connection_is_an_offer() -> None:
    """vmbus.md 7.6: if_type the service, if_instance the guest's endpoint, flags 0x2011, not host initiated."""
    rig, accepted = hv_sock()
    offer = rig.one(OfferChannel, rig.send(TlConnectRequest(guid(5), PORT)))
    assert (PORT, guid(5), 0x2011, False) == (
        offer.if_type,
        offer.if_instance,
        offer.chn_flags,
        offer.is_host_initiated,
    )
    rings = rig.open(offer.child_relid)
    rig.write(offer.child_relid, rings, Packet(b"hello"))
    rig.run()
    assert 1 == accepted[0].packets
    assert [RescindChannelOffer(1)] == rig.send(CloseChannel(1))
    rig.send(RelidReleased(1))
    assert ({}, ()) == (dict(rig.bus.default.relids), rig.bus.devices)
    assert 1 == rig.one(OfferChannel, rig.send(TlConnectRequest(guid(6), PORT))).child_relid


@pytest.mark.parametrize("version", [Version.V4_0, Version.V4_1, Version.V5_3], ids=str)
def test_a_refused_connection_gets_a_result_from_4_1_on(version: Version) -> None:
    """vmbus.md 7.6, 2.11: 0xC0000236; before 4.1 there is no such message."""
    rig, _accepted = hv_sock(version)
    request = TlConnectRequest(guid(5), vsock_service_id(99))
    result = TlConnectResult(guid(5), vsock_service_id(99), STATUS_CONNECTION_REFUSED)
    assert ([] if version is Version.V4_0 else [result]) == rig.send(request)
    assert 1 == rig.bus.hv_sock.refused


def test_one_endpoint_connects_once() -> None:
    """Two devices may not share an instance GUID (vmbus.md 10, 32)."""
    rig, accepted = hv_sock()
    request = TlConnectRequest(guid(5), PORT)
    assert [OfferChannel, TlConnectResult] == [type(message) for message in rig.send(request, request)]
    assert 1 == len(accepted)


def test_unload_ends_hv_sock_connections() -> None:
    """They are not offered again to the next client."""
    rig, _accepted = hv_sock()
    rig.send(TlConnectRequest(guid(5), PORT))
    rig.one(UnloadResponse, rig.send(Unload()))
    assert () == rig.bus.devices
    assert [] == rig.connect()


def test_the_host_connects_to_the_guest() -> None:
    """vmbus.md 7.6: user_def says so; without offers there is nobody to connect to."""
    rig, _accepted = hv_sock()
    rig.bus.hv_sock.connect(PORT, GenericVsp("to guest", guid(0)), guid(8))
    offer = rig.one(OfferChannel, rig.take())
    assert (PORT, True) == (offer.if_type, offer.is_host_initiated)
    rig.send(Unload())
    with pytest.raises(IrqError) as error:
        rig.bus.hv_sock.connect(PORT, GenericVsp("to guest", guid(0)), guid(8))
    assert errno.ENOTCONN == error.value.errno
    assert () == rig.bus.devices


def test_a_connection_that_the_guest_does_not_open_in_time_is_rescinded() -> None:
    """vmbus.md 2.12: OpenVMM gives the guest 2 seconds; one that it opened stays."""
    rig, _accepted = hv_sock()
    limit = rig.bus.options.accept_timeout_ticks
    rig.bus.hv_sock.connect(PORT, GenericVsp("to guest", guid(0)), guid(8))
    rig.bus.hv_sock.connect(PORT, GenericVsp("to guest", guid(0)), guid(9))
    first, second = (offer.child_relid for offer in rig.take() if isinstance(offer, OfferChannel))
    rig.open(second)
    assert [] == rig.wait(limit - 1)
    assert [RescindChannelOffer(first)] == rig.wait(1)
    assert [second] == [device.primary.relid for device in rig.bus.devices]
