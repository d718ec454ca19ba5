"""hv_utils: heartbeat and timesync requests are answered in C, the rest goes to who watches (vmbus.md 1.16, 6.5)."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from tests.rig import ENGINES, Channel, Rig
from tests.vmbus.test_attention import Seen, write
from vmbusirq import IrqError, Machine
from vmbusirq._ffi import ffi, lib
from vmbusirq.host.traffic import set_template
from vmbusirq.vmbus.channel import Attention
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, DATA_INBAND, Packet

HEARTBEAT, TIMESYNC = lib.VI_IC_HEARTBEAT, lib.VI_IC_TIMESYNC
RESPONSE = lib.VI_IC_TRANSACTION | lib.VI_IC_RESPONSE
IC_FLAGS_AT = 8 + 17
BODY_AT = 8 + 20
MODES = {"isr": lib.VI_CALL_ISR, "batched": lib.VI_CALL_BATCHED, "direct": lib.VI_CALL_DIRECT}

every_engine = pytest.mark.parametrize("engine", ENGINES)


def message(kind: int, body: bytes, *, msgsize: int | None = None, flags: int = 3, transaction: int = 0) -> bytes:
    """An IC message, laid out by hand."""
    size = 20 + len(body) if msgsize is None else msgsize
    header = struct.pack("<HHHHHHIBB2x", 3, 0, kind, 3, 0, len(body), 0, transaction, flags)
    return struct.pack("<II", 1, size) + header + body


def heartbeat(seq_num: int, rest: bytes = bytes(32)) -> bytes:
    return message(HEARTBEAT, struct.pack("<Q", seq_num) + rest)


def responder(rig: Rig, mode: str = "direct", ring: int = 8192) -> Channel:
    return rig.channel(5, mode=MODES[mode], callback=lib.VI_CALLBACK_UTIL, ring=ring)


def answers(ch: Channel) -> list[Packet]:
    """What the guest has written, read with the host's end."""
    reader, out = lib.vi_vsp_out(ch.vsp), ffi.new("struct vi_packet *")
    packets = []
    more = lib.vi_ring_first_view(reader, out)
    while more > 0:
        packets.append(Packet(bytes(ffi.buffer(out.payload, out.payload_len)), out.type, out.flags, out.trans_id))
        more = lib.vi_ring_next_view(reader, out)
    lib.vi_ring_close(reader)
    assert more == 0
    return packets


def padded(payload: bytes) -> bytes:
    return payload + bytes(-len(payload) % 8)


def as_answer(request: bytes, seq_num: int | None = None) -> bytes:
    reply = bytearray(padded(request))
    reply[IC_FLAGS_AT] = RESPONSE
    if seq_num is not None:
        reply[BODY_AT : BODY_AT + 8] = struct.pack("<Q", seq_num)
    return bytes(reply)


@every_engine
@pytest.mark.parametrize("mode", MODES)
def test_a_heartbeat_comes_back_with_one_added(engine: str, mode: str) -> None:
    """heartbeat_onchannelcallback(): seq_num + 1, TRANSACTION | RESPONSE, in-band, same transaction id, no flags."""
    with Rig(engine) as rig:
        ch = responder(rig, mode)
        for seq_num in (0, 7, 0xFFFF_FFFF, 2**64 - 1):
            request = heartbeat(seq_num, bytes(range(32)))
            write(ch, Packet(request, trans_id=seq_num ^ 0x55))
            rig.settle()
            assert [Packet(as_answer(request, (seq_num + 1) % 2**64), trans_id=seq_num ^ 0x55)] == answers(ch)
        stats = rig.stats(ch)
        assert (4, 4, 0, 0) == (stats.packets, stats.replies, stats.replies_dropped, stats.attended)
        assert (4, 4) == (stats.interrupts, stats.sig_events)
        assert 0 == ch.rings[0].hdr.interrupt_mask


@every_engine
@pytest.mark.parametrize("size", [22, 25, 32])
def test_a_timesync_request_comes_back_as_it_was(engine: str, size: int) -> None:
    """timesync_onchannelcallback(): the times are the guest's to keep; 22 bytes since 4.0, 25 before."""
    with Rig(engine) as rig:
        ch = responder(rig)
        request = message(TIMESYNC, bytes(range(1, size + 1)), transaction=9)
        write(ch, Packet(request, trans_id=3))
        rig.settle()
        assert [Packet(as_answer(request), trans_id=3)] == answers(ch)


@every_engine
def test_what_is_answered_is_added_up_as_it_came(engine: str) -> None:
    """The tally is of the request, not of the answer made from it: both ends agree."""
    with Rig(engine) as rig:
        ch = responder(rig, ring=16384)
        template = heartbeat(0)
        assert 0 == lib.vi_vsp_set_template(ch.vsp, template, len(template))
        for payload in (0, 1, 67, 68, 69, 200):
            assert 3 == lib.vi_vsp_send(ch.vsp, 3, payload)
        rig.settle()
        got, sent = rig.stats(ch), rig.sent(ch)
        assert (got.packets, got.bytes, got.checksum) == (sent.packets, sent.bytes, sent.checksum)
        assert (18, 3 * (4 * 72 + 72 + 200)) == (got.replies, got.bytes)
        assert [len(packet.payload) for packet in answers(ch)] == [72] * 15 + [200] * 3


@every_engine
def test_a_host_is_signalled_for_the_first_answer_into_an_empty_ring_only(engine: str) -> None:
    """1.9: the ring's rule decides, not the number of answers; a masked ring is not signalled."""
    with Rig(engine) as rig:
        ch = responder(rig)
        write(ch, *[Packet(heartbeat(n)) for n in range(10)])
        rig.settle()
        assert (10, 1) == (rig.stats(ch).replies, rig.stats(ch).sig_events)
        assert 10 == len(answers(ch))
        ch.rings[1].hdr.interrupt_mask = 1
        write(ch, Packet(heartbeat(0)))
        rig.settle()
        assert (11, 1) == (rig.stats(ch).replies, rig.stats(ch).sig_events)


@every_engine
def test_a_full_out_ring_loses_the_answer_and_counts_it(engine: str) -> None:
    """vmbus_sendpacket()'s error is not looked at; the request was read all the same."""
    with Rig(engine) as rig:
        ch = responder(rig)
        room = (4096 - 8) // 96
        for _ in range(room + 5):
            write(ch, Packet(heartbeat(1)))
            rig.settle()
        stats = rig.stats(ch)
        assert (room + 5, room, 5) == (stats.packets, stats.replies, stats.replies_dropped)
        assert room == len(answers(ch))
        write(ch, Packet(heartbeat(1)))
        rig.settle()
        assert room + 1 == rig.stats(ch).replies


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "shorter than its headers": heartbeat(0)[:24],
    "msgsize past the packet": message(HEARTBEAT, bytes(44), msgsize=65),
    "msgsize of all ones": message(HEARTBEAT, bytes(44), msgsize=0xFFFF_FFFF),
    "msgsize without a header": message(HEARTBEAT, bytes(44), msgsize=19),
    "heartbeat without its number": message(HEARTBEAT, bytes(12), msgsize=27),
    "timesync without its times": message(TIMESYNC, bytes(21)),
}
SHAPELESS = list(MALFORMED)[:5]  # no IC message by its lengths: bulk data, which is nobody's business
OTHERS = {f"type {kind}": message(kind, bytes(36)) for kind in (0, 2, 3, 5, 6, 7, 8, 255, 0xFFFF)}


@every_engine
@pytest.mark.parametrize("name", [*MALFORMED, *OTHERS])
@pytest.mark.parametrize("attention", Attention)
def test_other_messages_and_nonsense_are_not_answered(engine: str, name: str, attention: Attention) -> None:
    """To who watches, or, where nobody does, read and ignored; the heartbeat behind it is answered."""
    payload, seen = {**MALFORMED, **OTHERS}[name], Seen()
    with Rig(engine) as rig:
        ch = responder(rig)
        assert 0 == lib.vi_channel_set_attention(ch.c, attention, seen.handle)
        write(ch, Packet(payload, trans_id=1), Packet(heartbeat(1), trans_id=2))
        rig.settle()
        stats = rig.stats(ch)
        watched = int(name not in SHAPELESS)
        expected = {Attention.NONE: (2, 1, 0), Attention.SPECIAL: (2, 1, watched), Attention.ALL: (2, 0, 2)}[attention]
        assert expected == (stats.packets, stats.replies, stats.attended)
        assert [Packet(padded(payload), trans_id=1), Packet(padded(heartbeat(1)), trans_id=2)][
            : stats.attended
        ] == seen.packets
        assert stats.replies == len(answers(ch))


@every_engine
@pytest.mark.parametrize("body", [8, 16, 40, 1000])
def test_borders_of_what_is_answered(engine: str, body: int) -> None:
    """The number alone is enough of a heartbeat, and a message may end anywhere up to the packet's end."""
    with Rig(engine) as rig:
        ch = responder(rig)
        write(ch, Packet(message(HEARTBEAT, bytes(body))))
        rig.settle()
        assert [1] == [struct.unpack_from("<Q", packet.payload, BODY_AT)[0] for packet in answers(ch)]


@every_engine
@pytest.mark.parametrize(
    ("packet", "replies"),
    [
        (Packet(heartbeat(1), flags=COMPLETION_REQUESTED), 1),  # hv_utils looks at no flag
        (Packet(heartbeat(1), type=COMPLETION), 0),
    ],
)
def test_a_special_packet_is_for_who_watches_and_else_judged_by_its_type(
    engine: str, packet: Packet, replies: int
) -> None:
    """Only in-band data is a request."""
    seen = Seen()
    with Rig(engine) as rig:
        ch = responder(rig)
        write(ch, packet)
        rig.settle()
        assert [DATA_INBAND] * replies == [answer.type for answer in answers(ch)]
        assert 0 == lib.vi_channel_set_attention(ch.c, Attention.SPECIAL, seen.handle)
        write(ch, packet)
        rig.settle()
        assert (1, replies) == (len(seen.packets), rig.stats(ch).replies)


@every_engine
def test_a_responder_needs_rings(engine: str) -> None:
    """EINVAL: there is nothing to read."""
    with Rig(engine) as rig:
        ch = rig.channel(5, mode=lib.VI_CALL_ISR)
        rig.close(ch)
        assert -errno.EINVAL == lib.vi_channel_set_callback(ch.c, lib.VI_CALLBACK_UTIL, ffi.NULL, ffi.NULL)
        assert -errno.EINVAL == lib.vi_channel_set_callback(ch.c, lib.VI_CALLBACK_UTIL + 1, ffi.NULL, ffi.NULL)


# ---- the host's side


@every_engine
def test_bulk_traffic_is_read_back_after_each_burst(engine: str) -> None:
    """More bursts than the out ring could hold answers; each is one signal of the guest."""
    with Rig(engine) as rig:
        ch = responder(rig)
        template = heartbeat(0)
        assert 0 == lib.vi_vsp_set_template(ch.vsp, template, len(template))
        traffic = ffi.new("struct vi_traffic[1]", [(ch.vsp, 200, 2, 64)])
        lib.vi_vsp_set_drains(ch.vsp, 1)
        assert 200 == lib.vi_drive(rig.m, traffic, 1, 1)
        got, sent = rig.stats(ch), rig.sent(ch)
        assert (400, 400 * 72, 400, 0) == (sent.responses, sent.response_bytes, got.replies, got.replies_dropped)
        assert (200, 200) == (got.interrupts, got.sig_events)
        lib.vi_vsp_set_drains(ch.vsp, 0)
        assert 200 == lib.vi_drive(rig.m, traffic, 1, 1)
        assert (400, 42) == (rig.sent(ch).responses, rig.stats(ch).replies - 400)
        assert 42 == lib.vi_vsp_drain(ch.vsp)
        assert 0 == lib.vi_vsp_drain(ch.vsp)


@every_engine
def test_a_guest_that_breaks_the_out_ring_fails_the_drive(engine: str) -> None:
    """1.15, strict: EIO, and what came before is counted."""
    with Rig(engine) as rig:
        ch = responder(rig)
        lib.vi_vsp_set_drains(ch.vsp, 1)
        ch.rings[1].hdr.write_index = 4
        traffic = ffi.new("struct vi_traffic[1]", [(ch.vsp, 1, 1, 64)])
        assert -errno.EIO == lib.vi_drive(rig.m, traffic, 1, 1)
        assert -errno.EIO == lib.vi_vsp_drain(ch.vsp)
        assert lib.VI_RING_BAD_INDEX == lib.vi_vsp_out(ch.vsp).error


def test_a_guest_that_waits_for_room_is_signalled() -> None:
    """1.11 seen from the host: its reading end makes room, the guest has asked for some."""
    with Rig() as rig:
        ch = responder(rig)
        write(ch, *[Packet(heartbeat(1))] * 40)
        rig.settle()
        assert 0 == lib.vi_ring_set_pending_send_size(lib.vi_channel_out(ch.c), 1000)
        before = int(rig.sent(ch).signals)
        assert 40 == lib.vi_vsp_drain(ch.vsp)
        assert before + 1 == rig.sent(ch).signals


def test_a_template_has_256_bytes_at_most() -> None:
    """EINVAL; 256 are all sent, and none takes it away again."""
    with Rig() as rig:
        ch = rig.channel(5, callback=lib.VI_CALLBACK_DRAIN, ring=8192)
        assert -errno.EINVAL == lib.vi_vsp_set_template(ch.vsp, bytes(257), 257)
        assert -errno.EINVAL == lib.vi_vsp_set_template(ch.vsp, ffi.NULL, 1)
        assert 0 == lib.vi_vsp_set_template(ch.vsp, bytes(range(256)), 256)
        seen = Seen()
        assert 0 == lib.vi_channel_set_attention(ch.c, Attention.ALL, seen.handle)
        for payload in (1, 300):
            assert 1 == lib.vi_vsp_send(ch.vsp, 1, payload)
        assert 0 == lib.vi_vsp_set_template(ch.vsp, ffi.NULL, 0)
        assert 1 == lib.vi_vsp_send(ch.vsp, 1, 1)
        rig.settle()
        assert [256, 304, 8] == [len(packet.payload) for packet in seen.packets]
        assert [bytes(range(256))] * 2 == [packet.payload[:256] for packet in seen.packets[:2]]


# ---- in a machine


@every_engine
@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_events_of_heartbeat_and_timesync_grow_with_their_interrupts(engine: str, design: str) -> None:
    """6.5, the health check used in the field: both must grow; here every request is answered, one signal each."""
    machine = Machine.load("rfc-gen2-8vcpu", engine=engine, design=design)
    for run in (1, 2):
        machine.run()
        for relid, interrupts in ((7, 16841), (10, 6752)):
            got, sent = machine.vmbus.channels[relid].stats, machine.host.channels[relid].stats
            assert (run * interrupts,) * 2 == (got.interrupts, got.sig_events)
            assert (got.packets, got.bytes, got.checksum) == (sent.packets, sent.bytes, sent.checksum)
            # all but the negotiation at boot, which the driver answers in Python
            assert (run * interrupts - 1,) * 2 == (got.replies, sent.responses)
    assert 0 == machine.vmbus.channels[9].stats.replies  # shutdown: hv_utils, but nothing that is answered in C


@every_engine
@pytest.mark.parametrize("device_class", ["heartbeat", "timesync"])
def test_single_packets_are_answered_and_read_when_the_machine_settles(engine: str, device_class: str) -> None:
    """Also after the channel was closed and opened again, and not after another device took the relid."""
    machine = Machine(cpus=1, engine=engine)
    channel = machine.attach(device_class, 5)
    for n in (1, 2):
        assert 2 == machine.host.send(relid=5, packets=2)
        machine.settle()
        # the VSP reads answers to requests that it has not made itself
        assert (2 * n, 2 * n) == (channel.stats.replies, machine.host.channels[5].device.vsp.dropped)  # type: ignore[attr-defined]
        machine.vmbus.close(channel)
        machine.vmbus.open(channel)
    machine.detach(5)
    other = machine.attach("mouse", 5)
    machine.host.send(relid=5)
    machine.settle()
    assert (1, 0, 0) == (other.stats.packets, other.stats.replies, machine.host.channels[5].stats.responses)


def test_a_python_responder_takes_the_place_of_the_one_in_c() -> None:
    """ALL: every message goes to the watcher, none is answered behind its back."""
    machine = Machine(cpus=1)
    channel, seen = machine.attach("heartbeat", 5), list[Any]()
    before = channel.stats.sig_events
    channel.set_attention(Attention.ALL, seen.append)
    machine.host.send(relid=5)
    machine.settle()
    assert (1, 0, 0) == (len(seen), channel.stats.replies, channel.stats.sig_events - before)


def test_the_hosts_template_is_refused_with_its_limit() -> None:
    """EINVAL names both sizes, and nothing changes."""
    machine = Machine(cpus=1)
    machine.attach("mouse", 5)
    with pytest.raises(IrqError, match="257 bytes: 256 at most") as error:
        set_template(machine.host.channels[5], bytes(257))
    assert errno.EINVAL == error.value.errno
    machine.host.send(relid=5)
    machine.settle()
    assert (1, 64) == (machine.vmbus.channels[5].stats.packets, machine.vmbus.channels[5].stats.bytes)
