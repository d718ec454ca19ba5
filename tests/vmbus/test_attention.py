"""Packets that want attention: which, where they go, and what they leave alone (vmbus.md 1.5, 1.10, 1.15)."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.rig import ENGINES, Channel, Rig
from vmbusirq import IrqError, Machine
from vmbusirq._ffi import ffi, lib
from vmbusirq.vmbus.channel import Attention
from vmbusirq.wire.packet import (
    COMPLETION,
    COMPLETION_REQUESTED,
    DATA_INBAND,
    DATA_USING_GPA_DIRECT,
    DATA_USING_XFER_PAGES,
    Packet,
    packets_to_c,
)

KINDS = {
    "isr": (lib.VI_CALL_ISR, lib.VI_CALLBACK_DRAIN),
    "batched": (lib.VI_CALL_BATCHED, lib.VI_CALLBACK_DRAIN),
    "direct": (lib.VI_CALL_DIRECT, lib.VI_CALLBACK_DRAIN),
    "napi": (lib.VI_CALL_ISR, lib.VI_CALLBACK_NAPI),
    "util": (lib.VI_CALL_DIRECT, lib.VI_CALLBACK_UTIL),
}
every_engine = pytest.mark.parametrize("engine", ENGINES)
every_kind = pytest.mark.parametrize("kind", KINDS)

PLAIN = Packet(b"plain..." * 3, trans_id=7)
ASKS = Packet(b"asks....", flags=COMPLETION_REQUESTED, trans_id=8)
REPLY = Packet(b"complete", type=COMPLETION, trans_id=9)
PAGES = Packet(b"pages...", type=DATA_USING_XFER_PAGES, trans_id=10, ranges=bytes(range(24)))


class Seen:
    """What a handle leads to: keeps the packets, or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.packets: list[Packet] = []
        self.error = error
        self.handle = ffi.new_handle(self)

    def on_packet(self, packet: Packet) -> None:
        self.packets.append(packet)
        if self.error is not None:
            raise self.error


def watched(rig: Rig, kind: str, attention: Attention, seen: Seen, **how: Any) -> Channel:
    mode, callback = KINDS[kind]
    ch = rig.channel(5, mode=mode, callback=callback, ring=how.pop("ring", 8192), **how)
    assert 0 == lib.vi_channel_set_attention(ch.c, attention, seen.handle)
    return ch


def write(ch: Channel, *packets: Packet) -> None:
    """Write as the host does, and signal by the ring's rule."""
    array, _keep = packets_to_c(packets)
    accepted = ffi.new("uint32_t *")
    signal = lib.vi_ring_write_batch(lib.vi_vsp_in(ch.vsp), array, len(packets), accepted)
    assert len(packets) == accepted[0]
    if signal:
        assert 1 == lib.vi_vsp_signal(ch.vsp)


@every_engine
@every_kind
def test_special_packets_go_to_the_hook_and_plain_ones_are_added_up(engine: str, kind: str) -> None:
    """Type other than in-band, or a flag: nothing else is worth a call. In order, as they were written."""
    seen = Seen()
    with Rig(engine) as rig:
        ch = watched(rig, kind, Attention.SPECIAL, seen)
        write(ch, PLAIN, ASKS, PLAIN, REPLY, PAGES, PLAIN)
        rig.settle()
        stats = rig.stats(ch)
        assert [ASKS, REPLY, PAGES] == seen.packets
        assert (3, 6, 96) == (stats.attended, stats.packets, stats.bytes)
        words = [3 * int.from_bytes(b"plain...", "little"), *(packet.payload for packet in (ASKS, REPLY, PAGES))]
        words[1:] = [int.from_bytes(word, "little") for word in words[1:]]  # type: ignore[arg-type]
        assert (3 * (7 + words[0]) + 8 + 9 + 10 + sum(words[1:])) % 2**64 == stats.checksum  # type: ignore[arg-type,operator]
        assert 0 == lib.vi_ring_bytes_to_read(ch.rings[0].hdr, ch.rings[0].data_size)
        assert (1, 0) == (stats.interrupts, ch.rings[0].hdr.interrupt_mask)


@every_engine
@every_kind
@pytest.mark.parametrize("attention", [Attention.NONE, Attention.ALL])
def test_no_attention_and_all_of_it_both_add_everything_up(engine: str, kind: str, attention: Attention) -> None:
    """NONE is the plain drain, special packets included; ALL hands over every packet."""
    seen = Seen()
    packets = [PLAIN, ASKS, REPLY, PLAIN]
    with Rig(engine) as rig:
        ch = watched(rig, kind, attention, seen)
        write(ch, *packets)
        rig.settle()
        stats = rig.stats(ch)
        assert (packets if attention else []) == seen.packets
        assert (4 if attention else 0, 4) == (stats.attended, stats.packets)


@every_engine
def test_without_a_hook_nothing_is_attended(engine: str) -> None:
    """A hook may be NULL: then nobody looks, and packets are added up as ever."""
    seen = Seen()
    with Rig(engine) as rig:
        lib.vi_machine_set_hooks(rig.m, ffi.new("struct vi_hooks *"))
        ch = watched(rig, "isr", Attention.ALL, seen)
        write(ch, PLAIN, ASKS)
        rig.settle()
        assert (0, 2, []) == (rig.stats(ch).attended, rig.stats(ch).packets, seen.packets)


@every_engine
def test_attended_packets_count_against_the_budget_of_a_poll(engine: str) -> None:
    """NAPI: 64 packets a poll, whoever reads them; below that hv_end_read()."""
    seen = Seen()
    with Rig(engine) as rig:
        ch = watched(rig, "napi", Attention.SPECIAL, seen, ring=65536)
        write(ch, *[ASKS, PLAIN] * 75)
        rig.settle()
        stats = rig.stats(ch)
        assert (75, 150, 3) == (stats.attended, stats.packets, stats.calls)
        assert 0 == ch.rings[0].hdr.interrupt_mask


@every_engine
def test_room_of_attended_packets_is_given_back_every_64_and_a_host_that_waits_is_told(engine: str) -> None:
    """1.11: the same closes as for plain packets."""
    seen = Seen()
    with Rig(engine) as rig:
        ch = watched(rig, "direct", Attention.ALL, seen)
        write(ch, *[PLAIN] * 80)  # of 48 bytes: 3840 of 4096
        assert 0 == lib.vi_ring_set_pending_send_size(lib.vi_vsp_in(ch.vsp), 1024)
        rig.settle()
        assert (80, 1, 1) == (len(seen.packets), rig.stats(ch).sig_events, rig.stats(ch).intr_in_full)


@every_engine
@pytest.mark.parametrize("attention", [Attention.SPECIAL, Attention.ALL])
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        # type, offset8, len8, flags as the host wrote them -> what is handed over
        ((11, 0, 4, 0), (11, 0, 16, 16)),  # offset inside the descriptor: 16
        ((11, 9, 4, 0), (11, 0, 16, 16)),  # behind the packet: 16
        ((99, 2, 4, 0xFFFF), (99, 0xFFFF, 16, 16)),  # type and flags are the driver's business
        ((6, 2, 0xFFFF, 2), (6, 2, 16, 24)),  # longer than what is there: all there is
        ((6, 2, 0, 2), (6, 2, 16, 24)),  # shorter than a descriptor: likewise
        ((9, 4, 4, 1), (9, 1, 32, 0)),  # all of it page ranges
    ],
)
def test_impossible_packets_are_mended_before_anyone_looks(
    engine: str, attention: Attention, word: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """1.15, Linux: the copy says what the copy has; the reader goes on behind it."""
    seen = Seen()
    with Rig(engine) as rig:
        ch = watched(rig, "isr", attention, seen)
        data = ffi.buffer(ch.rings[0].data, 40)
        data[:] = b"".join(part.to_bytes(2, "little") for part in word) + bytes(32)
        ch.rings[0].hdr.write_index = 40
        assert 1 == lib.vi_vsp_signal(ch.vsp)
        rig.settle()
        (packet,) = seen.packets
        header = 16 + len(packet.ranges)
        assert expected == (packet.type, packet.flags, header, len(packet.payload))
        assert 0 == lib.vi_ring_bytes_to_read(ch.rings[0].hdr, ch.rings[0].data_size)


@every_engine
def test_a_packet_that_was_cut_is_handed_over_once_and_the_rest_dropped(engine: str) -> None:
    """Without its trailer a packet leaves the reader nowhere: resync, as for plain ones."""
    seen = Seen()
    with Rig(engine) as rig:
        ch = watched(rig, "direct", Attention.SPECIAL, seen)
        ffi.buffer(ch.rings[0].data, 8)[:] = bytes([11, 0, 2, 0, 4, 0, 0, 0])  # 32 bytes, of which 24 are published
        ch.rings[0].hdr.write_index = 24
        assert 1 == lib.vi_vsp_signal(ch.vsp)
        rig.settle()
        assert (1, 1, 1) == (rig.stats(ch).attended, rig.stats(ch).resyncs, rig.stats(ch).packets)


@every_engine
@every_kind
def test_attention_changes_on_an_open_channel_and_survives_a_close(engine: str, kind: str) -> None:
    """It belongs to the channel, not to an opening; the old handle is not used any more."""
    first, second = Seen(), Seen()
    with Rig(engine) as rig:
        ch = watched(rig, kind, Attention.ALL, first)
        for seen in (first, second):
            assert 0 == lib.vi_channel_set_attention(ch.c, Attention.ALL, seen.handle)
            write(ch, PLAIN)
            rig.settle()
        rig.close(ch)
        rig.open(ch, KINDS[kind][1])
        write(ch, ASKS)
        rig.settle()
        assert ([PLAIN], [PLAIN, ASKS]) == (first.packets, second.packets)
        assert 0 == lib.vi_channel_set_attention(ch.c, Attention.NONE, ffi.NULL)
        write(ch, ASKS)
        rig.settle()
        assert (3, 4) == (rig.stats(ch).attended, rig.stats(ch).packets)
        assert -errno.EINVAL == lib.vi_channel_set_attention(ch.c, lib.VI_ATTENTION_ALL + 1, ffi.NULL)


# ---- in a machine


def guest(engine: str, device_class: str = "kvp") -> Machine:
    machine = Machine(cpus=2, engine=engine)
    machine.attach(device_class, relid=5)
    return machine


@every_engine
@pytest.mark.parametrize("device_class", ["kvp", "scsi", "netvsc", "mouse"])
def test_a_driver_sees_its_packets_in_any_class(engine: str, device_class: str) -> None:
    """Channel.set_attention: a copy of each packet, on the CPU of the channel, in the order of the ring."""
    machine = guest(engine, device_class)
    channel, seen = machine.vmbus.channels[5], list[Packet]()
    channel.set_attention(Attention.ALL, seen.append)
    attended, packets = channel.stats.attended, channel.stats.packets  # the driver's own handshake
    assert 3 == machine.host.send(relid=5, packets=3, payload=20)
    machine.settle()
    assert [0, 1, 2] == [packet.trans_id for packet in seen]
    assert {(DATA_INBAND, 24)} == {(packet.type, len(packet.payload)) for packet in seen}
    assert (3, 3) == (channel.stats.attended - attended, channel.stats.packets - packets)
    channel.set_attention(Attention.NONE)
    machine.host.send(relid=5)
    machine.settle()
    assert (3, 4) == (channel.stats.attended - attended, channel.stats.packets - packets)


@every_engine
def test_what_a_watcher_raises_comes_out_where_the_machine_is_driven(engine: str) -> None:
    """The packet is read all the same, and so are those behind it."""
    machine = guest(engine)
    channel = machine.vmbus.channels[5]
    seen = Seen(ValueError("bad packet"))
    before = channel.stats.attended
    channel.set_attention(Attention.ALL, seen.on_packet)
    machine.host.send(relid=5, packets=2)
    with pytest.raises(ValueError, match="bad packet"):
        machine.settle()
    assert (2, 2) == (len(seen.packets), channel.stats.attended - before)
    seen.error = None
    machine.host.send(relid=5)
    machine.settle()
    assert 3 == channel.stats.attended - before


@every_engine
def test_attention_cannot_be_changed_from_inside_an_interrupt(engine: str) -> None:
    """EDEADLK: it waits until the reader at work has ended."""
    machine = guest(engine)
    channel = machine.vmbus.channels[5]
    refused: list[int | None] = []

    def change(_packet: Packet) -> None:
        with pytest.raises(IrqError) as error:
            channel.set_attention(Attention.NONE)
        refused.append(error.value.errno)

    channel.set_attention(Attention.ALL, change)
    machine.host.send(relid=5)
    machine.settle()
    assert [errno.EDEADLK] == refused


def test_a_mode_and_its_callable_go_together() -> None:
    """EINVAL says which of them is missing; a channel that is gone says ENODEV."""
    machine = guest("fast")
    channel = machine.vmbus.channels[5]
    for mode, on_packet in ((Attention.ALL, None), (Attention.SPECIAL, None), (Attention.NONE, print)):
        with pytest.raises(IrqError, match=mode.name) as error:
            channel.set_attention(mode, on_packet)
        assert errno.EINVAL == error.value.errno
    machine.detach(5)
    with pytest.raises(IrqError) as error:
        channel.set_attention(Attention.ALL, print)
    assert errno.ENODEV == error.value.errno


def test_page_ranges_arrive_with_the_packet() -> None:
    """1.7: what stands between descriptor and payload."""
    seen = Seen()
    direct = Packet(
        b"x" * 16, type=DATA_USING_GPA_DIRECT, trans_id=1, ranges=bytes([0, 0, 0, 0, 1, 0, 0, 0]) + bytes(24)
    )
    with Rig() as rig:
        ch = watched(rig, "batched", Attention.SPECIAL, seen)
        write(ch, direct)
        rig.settle()
    assert [direct] == seen.packets
