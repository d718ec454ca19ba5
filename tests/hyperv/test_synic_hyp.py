"""Who counts a callback in the HYP row: synic.md 13 and 16, rows 117 to 121."""

from __future__ import annotations

import pytest

from tests.rig import ENGINES, VMBUS_SINT, Rig
from vmbusirq._ffi import lib

pytestmark = pytest.mark.parametrize("engine", ENGINES)


def post(rig: Rig, payload: bytes = b"m", message_type: int = lib.VI_MSG_VMBUS) -> None:
    assert 0 == lib.vi_synic_post(rig.m, 0, VMBUS_SINT, message_type, payload, len(payload))


def test_synic_117_mainline_counts_every_callback(engine: str) -> None:
    """0xF3 with one channel flag: HYP + 1 (Linux v6.10, sysvec_hyperv_callback)."""
    with Rig(engine, design="legacy") as rig:
        channel = rig.channel(5)
        rig.signal(5)
        assert 1 == rig.run()
        assert (1, 1, 0) == (rig.hyp(), int(channel.calls[0]), rig.irqs_sum())


def test_synic_118_the_rfc_counts_the_channel_alone(engine: str) -> None:
    """The same: HYP + 0, the channel's row + 1 (RFC patch 09)."""
    with Rig(engine) as rig:
        channel = rig.channel(5)
        rig.signal(5)
        assert 1 == rig.run()
        assert (0, 1) == (rig.hyp(), rig.cnt(channel.irq))


def test_synic_119_the_rfc_counts_a_message_once_beside_its_channels(engine: str) -> None:
    """Control message and two flags in one interrupt: HYP + 1, two rows + 1 (RFC patch 09)."""
    with Rig(engine) as rig:
        channels = [rig.channel(relid) for relid in (5, 6)]
        post(rig)
        for channel in channels:
            rig.signal(channel.relid)
        assert 1 == rig.run()
        assert (1, [1, 1]) == (rig.hyp(), [rig.cnt(channel.irq) for channel in channels])
        assert [(1, 1, b"m")] == rig.messages


def test_synic_120_the_rfc_counts_no_spurious_callback(engine: str) -> None:
    """Nothing found: no row changes (RFC patch 09); mainline counts it."""
    for design, expected in (("rfc", 0), ("legacy", 1)):
        with Rig(engine, design=design) as rig:
            channel = rig.channel(5)
            assert 1 == lib.vi_lapic_request(rig.m, 0, lib.VI_VECTOR_CALLBACK)
            assert 1 == rig.run()
            assert (expected, 0, 0) == (rig.hyp(), int(channel.calls[0]), rig.irqs_sum())


@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_timer_messages_are_counted_one_by_one(engine: str, design: str) -> None:
    """Each takes the slot and its callback: as many in HYP as messages, in either design (row 121)."""
    with Rig(engine, design=design) as rig:
        for _ in range(50):
            post(rig, bytes(24), lib.VI_MSG_TIMER_EXPIRED)
            assert 1 == rig.run()
        assert (50, 50, []) == (rig.hyp(), lib.vi_synic_stimer_count(rig.m, 0), rig.messages)
        assert 0 == lib.vi_synic_stimer_count(rig.m, 2)
