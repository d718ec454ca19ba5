"""Callback modes ISR, BATCHED, DIRECT, NAPI; closed and rescinded channels; what moves which counter (vmbus.md 3)."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.rig import ENGINES, Channel, Rig
from tests.synic import switch_synic
from vmbusirq._ffi import ffi, lib

MODES = {"isr": lib.VI_CALL_ISR, "batched": lib.VI_CALL_BATCHED, "direct": lib.VI_CALL_DIRECT}
DESIGNS = ("rfc", "legacy")
TASKLET, NET_RX = lib.VI_SOFTIRQ_TASKLET, lib.VI_SOFTIRQ_NET_RX
RING = 8192

pytestmark = pytest.mark.parametrize("engine", ENGINES)


def draining(rig: Rig, mode: str, relid: int = 5, callback: int = lib.VI_CALLBACK_DRAIN, **how: Any) -> Channel:
    return rig.channel(relid, mode=MODES[mode], callback=callback, ring=how.pop("ring", RING), **how)


def send(ch: Channel, packets: int = 1, payload: int = 64) -> int:
    return int(lib.vi_vsp_send(ch.vsp, packets, payload))


def agreed(rig: Rig, ch: Channel) -> bool:
    """True if the guest has read exactly what the host has written."""
    got, sent = rig.stats(ch), rig.sent(ch)
    return (got.packets, got.bytes, got.checksum) == (sent.packets, sent.bytes, sent.checksum)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("mode", MODES)
def test_a_burst_is_one_interrupt_in_any_mode(engine: str, design: str, mode: str) -> None:
    """Ring, signal, flag, vector, isr, callback: all packets, unaltered; one tasklet but in ISR mode."""
    with Rig(engine, design=design) as rig:
        ch = draining(rig, mode)
        for n in (1, 2):
            assert 10 == send(ch, 10, 33)
            assert 1 == rig.settle()
            assert agreed(rig, ch)
            stats = rig.stats(ch)
            assert (n, 0, n, 10 * n) == (stats.interrupts, stats.no_callback, stats.calls, stats.packets)
            assert (0 if mode == "isr" else n) == rig.softirq(TASKLET)
            assert (n if design == "rfc" else 0) == rig.irqs_sum()
            assert (n if design == "legacy" else 0) == rig.hyp()
            assert 0 == ch.rings[0].hdr.interrupt_mask


@pytest.mark.parametrize(("mode", "mask"), [("isr", 0), ("direct", 0), ("batched", 1)])
def test_only_batched_masks_the_ring_until_its_tasklet_ends(engine: str, mode: str, mask: int) -> None:
    """hv_begin_read() in the hard interrupt, hv_end_read() in vmbus_on_event(); DIRECT never touches the mask."""
    with Rig(engine) as rig:
        ch = draining(rig, mode)
        send(ch)
        assert 1 == lib.vi_scan(rig.m, 0)  # the hard interrupt alone
        assert mask == ch.rings[0].hdr.interrupt_mask
        assert (1 if mode == "isr" else 0) == rig.stats(ch).packets
        rig.settle()
        assert 0 == ch.rings[0].hdr.interrupt_mask
        assert agreed(rig, ch)


def test_packets_sent_while_the_ring_is_masked_need_no_signal(engine: str) -> None:
    """One interrupt can stand for many packets: the host may not signal, the tasklet finds them."""
    with Rig(engine) as rig:
        ch = draining(rig, "batched")
        send(ch)
        assert 1 == lib.vi_scan(rig.m, 0)
        for _ in range(5):
            send(ch)
        assert 1 == rig.sent(ch).signals
        rig.settle()
        assert agreed(rig, ch)
        assert (1, 6) == (rig.stats(ch).interrupts, rig.stats(ch).packets)


def hooked(rig: Rig, ch: Channel, callback: Any) -> None:
    handle = ffi.new_handle((ch, callback))
    rig._keep.append(handle)
    assert 0 == lib.vi_channel_set_callback(ch.c, lib.VI_CALLBACK_HOOK, lib.vi_py_channel_callback, handle)


@pytest.mark.parametrize(("mode", "runs", "left"), [("batched", 2, 0), ("direct", 1, 1), ("isr", 1, 1)])
def test_what_raced_in_is_polled_again_in_batched_mode_only(engine: str, mode: str, runs: int, left: int) -> None:
    """vmbus_on_event() step 7: begin_read and tasklet_schedule; the re-poll counts as softirq, not as interrupt."""
    with Rig(engine) as rig:
        ch = draining(rig, mode)
        packet = ffi.new("struct vi_packet *")
        reads: list[int] = []

        def callback(channel: Channel) -> None:  # reads one packet, leaves the rest
            reader = lib.vi_channel_in(channel.c)
            reads.append(lib.vi_ring_first(reader, packet))
            lib.vi_ring_skip(reader)
            lib.vi_ring_close(reader)

        rig.close(ch)
        hooked(rig, ch, callback)
        send(ch, 2)
        assert 1 == rig.settle()
        assert [1] * runs == reads
        assert bool(left) == bool(lib.vi_ring_bytes_to_read(ch.rings[0].hdr, ch.rings[0].data_size))
        assert 1 == rig.stats(ch).interrupts
        assert (0 if mode == "isr" else runs) == rig.softirq(TASKLET)


def test_napi_polls_by_budget_and_rearms_when_done(engine: str) -> None:
    """netvsc: mask and schedule in the interrupt; polls of 64; below the budget hv_end_read()."""
    with Rig(engine) as rig:
        ch = draining(rig, "isr", callback=lib.VI_CALLBACK_NAPI, ring=65536)
        assert 150 == send(ch, 150)
        assert 1 == lib.vi_scan(rig.m, 0)
        assert 1 == ch.rings[0].hdr.interrupt_mask
        assert 0 == rig.stats(ch).packets
        rig.settle()
        assert agreed(rig, ch)
        assert (1, 3) == (rig.stats(ch).interrupts, rig.stats(ch).calls)
        assert (3, 0) == (rig.softirq(NET_RX), rig.softirq(TASKLET))
        assert 0 == ch.rings[0].hdr.interrupt_mask
        assert 128 == send(ch, 128)  # the budget exactly: one more poll finds nothing
        rig.settle()
        assert (2, 6) == (rig.stats(ch).interrupts, rig.stats(ch).calls)


def test_an_interrupt_while_napi_is_scheduled_is_counted_and_nothing_else(engine: str) -> None:
    """napi_schedule_prep() fails."""
    with Rig(engine) as rig:
        ch = draining(rig, "isr", callback=lib.VI_CALLBACK_NAPI)
        for _ in range(3):
            rig.signal(5)
            assert 1 == lib.vi_scan(rig.m, 0)
        rig.settle()
        assert (3, 1, 1) == (rig.stats(ch).interrupts, rig.stats(ch).calls, rig.softirq(NET_RX))


def test_tasklets_of_one_scan_run_in_one_softirq(engine: str) -> None:
    """/proc/softirqs counts rounds of a vector, not tasklets."""
    with Rig(engine) as rig:
        channels = [draining(rig, "direct", relid) for relid in (3, 5, 9)]
        for ch in channels:
            send(ch)
        assert 1 == rig.settle()
        assert 1 == rig.softirq(TASKLET)
        assert all(agreed(rig, ch) for ch in channels)


def test_a_softirq_that_never_ends_leaves_after_ten_rounds(engine: str) -> None:
    """MAX_SOFTIRQ_RESTART: the rest runs later. A driver that never reads keeps end_read busy: settling gives up."""
    with Rig(engine) as rig:
        ch = draining(rig, "batched", callback=lib.VI_CALLBACK_COUNT)
        send(ch)
        assert 1 == rig.run()
        assert 10 == rig.softirq(TASKLET)
        assert 1 == rig.run()
        assert 20 == rig.softirq(TASKLET)
        assert -errno.ELOOP == rig.settle()
        ch.rings[0].hdr.write_index = 0
        rig.settle()


@pytest.mark.parametrize("index", [1 << 31, RING, 12, 0xFFFF_FFFF])
def test_a_write_index_that_is_never_reached_has_nothing_behind_it(engine: str, index: int) -> None:
    """vmbus.md 1.4, trap 27: Linux would walk through what is stale for ever; here there is nothing to read."""
    with Rig(engine) as rig:
        ch = draining(rig, "batched")
        ch.rings[0].hdr.write_index = index
        rig.signal(5)
        rig.settle()
        assert (1, 1, 0) == (rig.stats(ch).interrupts, rig.softirq(TASKLET), rig.stats(ch).packets)
        ch.rings[0].hdr.write_index = 0
        assert 3 == send(ch, 3)
        rig.settle()
        assert agreed(rig, ch)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("mode", MODES)
def test_a_closed_channels_flag_is_counted_on_its_irq_and_goes_nowhere(engine: str, design: str, mode: str) -> None:
    """Step 5: onchannel_callback NULL; kstat exceeds channel->interrupts by these."""
    with Rig(engine, design=design) as rig:
        ch = draining(rig, mode)
        send(ch)
        rig.settle()
        rig.close(ch)
        assert 1 == rig.signal(5)
        assert 1 == rig.settle()
        stats = rig.stats(ch)
        assert (1, 1, 1) == (stats.interrupts, stats.no_callback, stats.calls)
        assert {"no_callback": 1} == rig.lost()
        if design == "rfc":
            assert 2 == rig.cnt(ch.irq)
        rig.open(ch, lib.VI_CALLBACK_DRAIN)
        send(ch)
        rig.settle()
        assert (2, 1) == (rig.stats(ch).interrupts, rig.stats(ch).no_callback)


@pytest.mark.parametrize("mode", ["batched", "direct"])
def test_a_channel_closed_between_interrupt_and_tasklet_is_not_called(engine: str, mode: str) -> None:
    """vmbus_on_event() step 3."""
    with Rig(engine) as rig:
        ch = draining(rig, mode)
        send(ch)
        assert 1 == lib.vi_scan(rig.m, 0)
        rig.close(ch)
        rig.settle()
        assert (1, 0, 0) == (rig.stats(ch).interrupts, rig.stats(ch).calls, rig.stats(ch).packets)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("first", ["map", "rescind"])
def test_a_rescinded_channels_flag_is_consumed_silently(engine: str, design: str, first: str) -> None:
    """Step 4, before the IRQ is handled: counted nowhere but in lost, whether it was mapped before or after."""
    with Rig(engine, design=design) as rig:
        ch = draining(rig, "isr")
        if first == "rescind":
            rig.close(ch)
            assert 0 == lib.vi_channel_unmap(ch.c)
            lib.vi_channel_set_rescind(ch.c, 1)
            assert 0 == lib.vi_channel_map(ch.c, ch.irq)
            if ch.action:
                lib.vi_channel_bind_action(ch.c, ch.action.c)
            rig.open(ch, lib.VI_CALLBACK_DRAIN)
        else:
            lib.vi_channel_set_rescind(ch.c, 1)
        rig.signal(5)
        assert 1 == rig.settle()
        assert (0, 0) == (rig.stats(ch).interrupts, rig.irqs_sum())
        assert {"rescinded": 1} == rig.lost()
        lib.vi_channel_set_rescind(ch.c, 0)
        rig.signal(5)
        rig.settle()
        assert 1 == rig.stats(ch).interrupts


def test_a_rescind_stops_the_scan_but_not_the_replay_of_an_arrival_before_it(engine: str) -> None:
    """RFC patch 09 checks rescind in the scan only; check_irq_resend() calls the flow handler."""
    with Rig(engine) as rig:
        ch = rig.channel(5)
        assert 1 == lib.vi_irq_disable(rig.m, ch.irq)
        rig.signal(5)
        rig.settle()
        lib.vi_channel_set_rescind(ch.c, 1)
        assert 0 == lib.vi_irq_enable(rig.m, ch.irq)
        rig.settle()
        assert (1, 1, 1) == (rig.cnt(ch.irq), int(ch.calls[0]), rig.stats(ch).interrupts)


@pytest.mark.parametrize("design", DESIGNS)
def test_an_interrupt_on_another_cpu_than_the_owner_works_and_counts_there(engine: str, design: str) -> None:
    """Behaviour 60: a retarget while the flag is set on the old VP; it must still be handled."""
    with Rig(engine, design=design, cpus=3) as rig:
        ch = draining(rig, "batched")
        for cpu in (1, 2):
            assert 0 == lib.vi_vsp_set_target(ch.vsp, cpu)
            send(ch)
            if cpu == 2:
                assert 0 == lib.vi_channel_set_cpu(ch.c, 2)
            rig.settle()
            assert agreed(rig, ch)
            assert 1 == rig.softirq(TASKLET, cpu)
            if design == "rfc":
                assert 1 == rig.cnt(ch.irq, cpu)
        assert 2 == rig.stats(ch).interrupts
        assert -errno.EINVAL == lib.vi_channel_set_cpu(ch.c, 3)
        assert -errno.EINVAL == lib.vi_vsp_set_target(ch.vsp, 3)


def test_the_reader_tells_a_host_that_waits_for_room(engine: str) -> None:
    """Flow control: sig_events and intr_in_full move, and the event can be taken once."""
    with Rig(engine) as rig:
        ch = draining(rig, "isr")
        accepted = send(ch, 1000, 256)
        assert 0 < accepted < 1000
        assert 1 == rig.sent(ch).full
        assert 0 == lib.vi_ring_set_pending_send_size(lib.vi_vsp_in(ch.vsp), 3000)
        rig.settle()
        stats = rig.stats(ch)
        assert (1, 1) == (stats.sig_events, stats.intr_in_full)
        assert [1, 0] == [lib.vi_channel_take_event(ch.c), lib.vi_channel_take_event(ch.c)]
        assert agreed(rig, ch)


@pytest.mark.parametrize("design", DESIGNS)
def test_interrupts_survive_the_unmapping(engine: str, design: str) -> None:
    """channel->interrupts belongs to the channel, not to the IRQ that counted it."""
    with Rig(engine, design=design) as rig:
        ch = draining(rig, "isr")
        for _ in range(3):
            rig.signal(5)
            rig.settle()
        rig.close(ch)
        rig.signal(5)
        rig.settle()
        assert 0 == lib.vi_channel_unmap(ch.c)
        assert (3, 1) == (rig.stats(ch).interrupts, rig.stats(ch).no_callback)
        assert -errno.ENOENT == lib.vi_channel_unmap(ch.c)
        assert 0 == lib.vi_channel_map(ch.c, ch.irq)
        if ch.action:
            lib.vi_channel_bind_action(ch.c, ch.action.c)
        rig.open(ch, lib.VI_CALLBACK_DRAIN)
        rig.signal(5)
        rig.settle()
        assert (4, 1) == (rig.stats(ch).interrupts, rig.stats(ch).no_callback)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_channel_made_again_while_its_tasklet_is_queued_loses_no_other(engine: str, design: str) -> None:
    """The tasklet of a slot outlives the channel: the CPU's list stays whole, the relid's next channel works."""
    with Rig(engine, design=design) as rig:
        gone, other = (draining(rig, "direct", relid) for relid in (3, 5))
        send(gone)
        send(other)
        assert 2 == lib.vi_scan(rig.m, 0)
        rig.close(gone)
        assert 0 == lib.vi_channel_unmap(gone.c)
        if gone.action:
            rig.free(gone.action)
            assert 0 == lib.vi_irq_free_desc(rig.m, gone.irq)
            del rig.descs[gone.irq]
        lib.vi_channel_destroy(gone.c)
        lib.vi_vsp_destroy(gone.vsp)
        again = draining(rig, "direct", 3)
        send(again)
        rig.settle()
        assert agreed(rig, again)
        assert agreed(rig, other)
        assert 1 == rig.stats(again).interrupts
        for ring in gone.rings:
            lib.vi_ring_mem_destroy(ring)


def test_what_a_channel_refuses(engine: str) -> None:
    """EINVAL: modes and callbacks that do not go together, nothing to read; EBUSY while open; EDEADLK from inside."""
    inside: list[int] = []
    with Rig(engine) as rig:
        ch = rig.channel(5, mode=lib.VI_CALL_DIRECT, callback=None)
        none, null = lib.VI_CALLBACK_NONE, ffi.NULL
        assert -errno.EINVAL == lib.vi_channel_set_callback(ch.c, lib.VI_CALLBACK_DRAIN, null, null)
        assert -errno.EINVAL == lib.vi_channel_set_callback(ch.c, lib.VI_CALLBACK_COUNT, null, null)
        assert -errno.EINVAL == lib.vi_channel_set_callback(ch.c, lib.VI_CALLBACK_HOOK, null, null)
        assert -errno.EINVAL == lib.vi_channel_set_callback(ch.c, 5, null, null)
        batched = rig.channel(6, mode=lib.VI_CALL_BATCHED, callback=None)
        assert -errno.EINVAL == lib.vi_channel_set_callback(batched.c, lib.VI_CALLBACK_COUNT, null, batched.calls)
        rig._rings(ch, RING)
        assert -errno.EINVAL == lib.vi_channel_set_callback(ch.c, lib.VI_CALLBACK_NAPI, null, null)
        rig.open(ch)
        assert -errno.EBUSY == lib.vi_channel_set_rings(ch.c, null, null, 0)
        assert -errno.EBUSY == lib.vi_channel_map(ch.c, ch.irq)
        hooked(
            rig,
            ch,
            lambda c: inside.extend([lib.vi_channel_set_callback(c.c, none, null, null), lib.vi_channel_unmap(c.c)]),
        )
        rig.signal(5)
        rig.settle()
        assert [-errno.EDEADLK] * 2 == inside
        rig.close(ch)
        assert -errno.EINVAL == lib.vi_channel_set_rings(ch.c, *ch.rings, 8)  # less than a descriptor
        out = ffi.new("struct vi_vsp **")
        for relid in (0, 2048):
            assert -errno.EINVAL == lib.vi_vsp_create(rig.m, relid, *ch.rings, out)
        assert -errno.EMSGSIZE == send(ch, 1, lib.VI_RING_PAYLOAD_MAX + 1)


def test_a_signal_to_a_switched_off_cpu_is_lost_and_said_so(engine: str) -> None:
    """QEMU: a flag for a VP without SynIC is an error; the packet is in the ring, nobody is told."""
    with Rig(engine) as rig:
        ch = draining(rig, "isr")
        switch_synic(rig.m, 0, False)
        assert 1 == send(ch)
        assert (1, 0, 1) == (rig.sent(ch).signals, rig.sent(ch).edges, rig.sent(ch).dropped_signals)
        assert 0 == rig.settle()
        switch_synic(rig.m, 0, True)
        assert 1 == lib.vi_vsp_signal(ch.vsp)
        rig.settle()
        assert agreed(rig, ch)


def traffic(*entries: tuple[Channel, int, int, int]) -> Any:
    out = ffi.new("struct vi_traffic[]", len(entries))
    for entry, (ch, interrupts, packets, payload) in zip(out, entries, strict=True):
        entry.vsp, entry.interrupts, entry.packets, entry.payload = ch.vsp, interrupts, packets, payload
    return out


@pytest.mark.parametrize("design", DESIGNS)
def test_bulk_traffic_reaches_its_counts_by_the_whole_path(engine: str, design: str) -> None:
    """vi_drive(): that many bursts per entry, one interrupt each, at random in proportion; the seed fixes the order."""
    with Rig(engine, design=design) as rig:
        a, b = draining(rig, "batched", 3), draining(rig, "isr", 5, cpu=1)
        assert 110 == lib.vi_drive(rig.m, traffic((a, 100, 2, 64), (b, 10, 1, 8)), 2, 7)
        assert (100, 10) == (rig.stats(a).interrupts, rig.stats(b).interrupts)
        assert (200, 10) == (rig.stats(a).packets, rig.stats(b).packets)
        assert agreed(rig, a)
        assert agreed(rig, b)
        assert 100 == rig.softirq(TASKLET)
        assert 0 == lib.vi_drive(rig.m, ffi.NULL, 0, 7)


def test_bulk_traffic_that_cannot_go_on_says_why(engine: str) -> None:
    """EAGAIN: nobody reads; ENXIO: the target is switched off; EMSGSIZE: no ring holds it."""
    with Rig(engine) as rig:
        ch = draining(rig, "isr")
        rig.close(ch)
        rig.open(ch)  # counts and reads nothing
        assert -errno.EAGAIN == lib.vi_drive(rig.m, traffic((ch, 100, 1, 64)), 1, 0)
        rig.close(ch)
        rig.open(ch, lib.VI_CALLBACK_DRAIN)
        assert 0 <= lib.vi_vsp_signal(ch.vsp)
        rig.settle()
        assert -errno.EMSGSIZE == lib.vi_drive(rig.m, traffic((ch, 1, 1, 4096)), 1, 0)
        switch_synic(rig.m, 0, False)
        assert -errno.ENXIO == lib.vi_drive(rig.m, traffic((ch, 1, 1, 64)), 1, 0)
