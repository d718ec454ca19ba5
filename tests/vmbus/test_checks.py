"""Acceptance checks of vmbus.md 11 that concern the guest alone, and what drivers send byte for byte."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.vmbus.scripted import Guest, offer_of, refused
from vmbusirq._ffi import ffi, lib
from vmbusirq.vmbus.channel import Channel
from vmbusirq.wire.packet import COMPLETION_REQUESTED, Packet
from vmbusirq.wire.protocol import (
    AllOffersDelivered,
    GpaRange,
    ModifyChannel,
    ModifyChannelResponse,
    Version,
)

pytestmark = pytest.mark.parametrize("engine", ["fast", "linux"])


def test_check_04_and_05_flags_of_nobody_are_cleared_and_count_nowhere(engine: str) -> None:
    """Relid 77 unmapped, relid 0: bit cleared, no counter moves."""
    guest = Guest(engine=engine)
    guest.opened("heartbeat")
    before = (guest.hyp(), guest.irq.counts[24].tolist())
    guest.synic.signal(0, 77)
    guest.synic.signal(0, 0)
    guest.settle()
    assert () == guest.synic.flags_set(0)
    assert before == (guest.hyp(), guest.irq.counts[24].tolist())


def test_check_01_and_02_top_level_counts_messages_only(engine: str) -> None:
    """Relids 5 and 9, one SINT: HYP unchanged; with a control message: HYP + 1, channel + 1, slot freed."""
    guest = Guest(engine=engine, offers=[offer_of("heartbeat", 5, "a"), offer_of("shutdown", 9, "b")])
    before = guest.hyp()
    for relid in (5, 9):
        guest.synic.signal(0, relid)
    guest.settle()
    assert [1, 1] == [channel.stats.interrupts for channel in guest.vmbus.channels.values()]
    assert before == guest.hyp()
    guest.synic.signal(0, 5)
    guest.host.post(AllOffersDelivered())
    guest.settle()
    assert (before + 1, 2) == (guest.hyp(), guest.vmbus.channels[5].stats.interrupts)
    assert guest.synic.take_message(0) is None


def test_check_06_three_signals_before_the_scan_are_one_interrupt(engine: str) -> None:
    """Host signals coalesce."""
    guest = Guest(engine=engine)
    channel = guest.opened("heartbeat")
    assert [True, False, False] == [guest.host.signal(5) for _ in range(3)]
    guest.settle()
    assert 1 == channel.stats.interrupts


def test_check_07_a_closed_channel_under_strict_rfc_counts_on_its_irq_only(engine: str) -> None:
    """Callback NULL: kstat + 1, interrupts + 0."""
    guest = Guest(engine=engine, drivers=False, strict_rfc=True)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    guest.vmbus.close(channel)
    guest.synic.signal(0, 5)
    guest.settle()
    assert (1, 0, 1) == (int(guest.irq.counts[24].sum()), channel.stats.interrupts, channel.stats.no_callback)


def late_packet(guest: Guest, device_class: str, *, drained: bool) -> tuple[Channel, list[bool], int]:
    """Deliver a packet, in whose tasklet another comes: after the ring was read to its end, or before.

    Returns:
        The channel, whether the host signalled, packet by packet, and the rounds of tasklets that followed.
    """
    channel = guest.offered(device_class)
    packet = ffi.new("struct vi_packet *")
    signalled: list[bool] = []

    def callback(channel: Channel) -> None:
        reader = lib.vi_channel_in(channel.c)
        if not drained and len(signalled) == 1:
            signalled.append(guest.host.write(5, Packet(b"late")))
            return
        while lib.vi_ring_first(reader, packet) > 0:
            lib.vi_ring_skip(reader)
        lib.vi_ring_close(reader)
        if len(signalled) == 1:
            signalled.append(guest.host.write(5, Packet(b"late")))

    guest.vmbus.open(channel, callback)
    before = int(guest.core.counters.softirq[lib.VI_SOFTIRQ_TASKLET])  # of CPU 0, which both channels interrupt
    signalled.append(guest.host.write(5, Packet(b"first")))
    guest.settle()
    return channel, signalled, int(guest.core.counters.softirq[lib.VI_SOFTIRQ_TASKLET]) - before


@pytest.mark.parametrize("drained", [True, False])
def test_check_08_a_packet_while_the_tasklet_of_a_batched_channel_runs_needs_no_signal(
    engine: str, drained: bool
) -> None:
    """BATCHED: the mask is 1, so the host does not signal; the tasklet runs again; interrupts unchanged."""
    guest = Guest(engine=engine, drivers=False)
    channel, signalled, rounds = late_packet(guest, "keyboard", drained=drained)
    assert [True, False] == signalled
    assert (1, 2) == (channel.stats.interrupts, rounds)
    assert (0, 0) == (channel.ring_in.interrupt_mask, channel.ring_in.bytes_to_read)


@pytest.mark.parametrize("drained", [True, False])
def test_check_09_a_packet_while_the_tasklet_of_a_direct_channel_runs_is_signalled_if_the_ring_was_empty(
    engine: str, drained: bool
) -> None:
    """DIRECT: the mask is never touched; a signal, and an interrupt of its own, only for a ring that was empty."""
    guest = Guest(engine=engine, drivers=False)
    channel, signalled, rounds = late_packet(guest, "heartbeat", drained=drained)
    assert [True, drained] == signalled
    runs = 2 if drained else 1
    assert (runs, runs) == (channel.stats.interrupts, rounds)
    assert drained == (channel.ring_in.bytes_to_read == 0)


def test_check_10_and_11_the_cpu_file(engine: str) -> None:
    """The text "3abc" is 3; "-1" EIO; "4096" EINVAL; protocol 4.0 EIO."""
    guest = Guest(engine=engine)
    channel = guest.opened("heartbeat")
    assert 4 == guest.vmbus.target_cpu_store(channel, b"3abc")
    assert 3 == channel.target_cpu
    with refused(errno.EIO):
        guest.vmbus.target_cpu_store(channel, b"-1")
    with refused(errno.EINVAL):
        guest.vmbus.target_cpu_store(channel, b"4096")
    old = Guest(engine=engine, version=Version.V4_0)
    with refused(errno.EIO):
        old.vmbus.target_cpu_store(old.opened("heartbeat"), b"1")


def test_check_12_and_13_affinity(engine: str) -> None:
    """A mask with the present CPU sends nothing; on a closed channel another CPU is EIO, the mask unchanged."""
    guest = Guest(engine=engine, cpus=8, drivers=False)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    guest.irq.irq_set_affinity(24, 1 << 5)
    guest.irq.irq_set_affinity(24, 0xF0)
    guest.settle()
    assert [ModifyChannel(5, 5)] == guest.host.of_type(ModifyChannel)
    desc = guest.irq.irq_to_desc(24)
    assert 1 << 5 == desc.effective_affinity
    guest.vmbus.close(channel)
    with refused(errno.EIO):
        guest.irq.irq_set_affinity(24, 0x0F)
    assert 0xF0 == desc.affinity


def test_check_19_a_response_that_never_comes_is_missing_for_ever(engine: str) -> None:
    """MODIFYCHANNEL twice, the host drops the second: sent - completed = 1."""
    guest = Guest(engine=engine)
    guest.opened("heartbeat")
    guest.host.mute = {ModifyChannel}
    for cpu in (1, 2):
        guest.irq.irq_set_affinity(24, 1 << cpu)
    guest.host.post(ModifyChannelResponse(5, 0))
    guest.settle()
    assert (2, 1) == (guest.vmbus.retarget.modchan_sent, guest.vmbus.retarget.modchan_completed)


@pytest.mark.parametrize(("version", "completed"), [(Version.V4_1, 0), (Version.V5_2, 0), (Version.V5_3, 1)])
def test_modifychannel_is_answered_from_5_3_on(engine: str, version: Version, completed: int) -> None:
    """vmbus.md 4.4."""
    guest = Guest(engine=engine, version=version)
    guest.opened("heartbeat")
    guest.irq.irq_set_affinity(24, 4)
    guest.settle()
    assert (1, completed) == (guest.vmbus.retarget.modchan_sent, guest.vmbus.retarget.modchan_completed)


def test_check_20_in_band_byte_for_byte(engine: str) -> None:
    """D = 12288, 100 bytes: descriptor 6/2/15, 128 bytes used; then 24 for an empty one, trailer 128 (1.17)."""
    guest = Guest(engine=engine)
    channel = guest.opened("shutdown")
    payload = bytes(range(100))
    channel.send(payload, flags=COMPLETION_REQUESTED, trans_id=77)
    channel.send(b"")
    ring = guest.host.rings[5][1]
    assert 12288 == ring.data_size
    first = struct.pack("<HHHHQ", 6, 2, 15, 1, 77) + payload + bytes(4) + struct.pack("<II", 0, 0)
    second = struct.pack("<HHHHQ", 6, 2, 2, 0, 0) + struct.pack("<II", 0, 128)
    assert first + second == ring.peek(0, 152)
    assert (152, 1, 1) == (ring.control.write_index, channel.stats.sig_events, channel.stats.intr_out_empty)


def test_page_buffers_and_multi_page_buffers_byte_for_byte(engine: str) -> None:
    """vmbus.md 1.7: type 9, flags 1, {len, offset, pfn} per page; or one range with all its pages; 33 are EINVAL."""
    guest = Guest(engine=engine)
    channel = guest.opened("shutdown")
    channel.send_pagebuffer([(0x11, 16, 100), (0x22, 0, 4096)], b"head", 5)
    channel.send_mpb(GpaRange(5000, 100, (7, 8)), b"tail", 6)
    first = struct.pack("<HHHHQII", 9, 7, 8, 1, 5, 0, 2) + struct.pack("<IIQIIQ", 100, 16, 0x11, 4096, 0, 0x22)
    second = struct.pack("<HHHHQII", 9, 6, 7, 1, 6, 0, 1) + struct.pack("<IIQQ", 5000, 100, 7, 8)
    ring = guest.host.rings[5][1]
    assert first + b"head" + bytes(4) + struct.pack("<II", 0, 0) == ring.peek(0, 72)
    assert second + b"tail" + bytes(4) + struct.pack("<II", 0, 72) == ring.peek(72, 64)
    for pages in ([], [(1, 0, 8)] * 33, [(1, 4000, 200)]):
        with refused(errno.EINVAL):
            channel.send_pagebuffer(pages, b"", 0)


def test_a_masked_ring_is_not_signalled(engine: str) -> None:
    """vmbus.md 1.9: interrupt_mask != 0: no signal; 1.8: a full ring is EAGAIN and counted."""
    guest = Guest(engine=engine)
    channel = guest.opened("shutdown")
    guest.host.rings[5][1].poke_control("interrupt_mask", 1)
    channel.send(b"x")
    assert 0 == channel.stats.sig_events
    with refused(errno.EAGAIN):
        for _ in range(10):
            channel.send(bytes(4000))
    assert (1, 1) == (channel.stats.out_full_first, channel.stats.out_full_total)
    assert Packet(b"x").ring_bytes == 32
