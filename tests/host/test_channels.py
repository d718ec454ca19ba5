"""Channels: open, close, move, rescind, release; every row of the host's state table (vmbus.md 2.10, 4.4)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.host.scripted import Rig, guid
from vmbusirq.host.channel import ChannelState
from vmbusirq.host.options import HostOptions
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.wire.protocol import (
    VP_INDEX_NONE,
    CloseChannel,
    CloseReservedChannel,
    CloseReservedResponse,
    FeatureFlags,
    GpadlTeardown,
    GpadlTorndown,
    GpaRange,
    ModifyChannel,
    ModifyChannelResponse,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    OpenReservedChannel,
    RelidReleased,
    RescindChannelOffer,
    Unload,
    UnloadResponse,
    Version,
    gpadl_messages,
)

FAILED = 0x8000FFFF


def connected(options: HostOptions | None = None, devices: int = 1, **more: object) -> Rig:
    rig = Rig(options=options or HostOptions(), **more)  # type: ignore[arg-type]
    for number in range(1, devices + 1):
        rig.device(number)
    rig.connect()
    return rig


# ---- open and close


def test_open_close_open_again() -> None:
    """vmbus.md 7.2: CLOSECHANNEL has no answer; the teardown proves that the memory is the guest's again."""
    rig = connected()
    for times in (1, 2, 3):
        rings = rig.open(1, vp=times % 4)
        assert (times % 4, times) == (rig.channel(1).target_vp, rig.channel(1).opens)
        assert [1] == list(rig.bus.channels)
        assert [] == rig.send(CloseChannel(1))
        assert rings.gpadl == rig.one(GpadlTorndown, rig.send(GpadlTeardown(1, rings.gpadl))).gpadl
        assert 0 == rig.bus.quota.used_bytes


def test_counters_survive_closing() -> None:
    """They are the channel's, not the ring's."""
    rig = connected()
    rig.open(1)
    rig.bus.send(1, packets=3)
    before = rig.channel(1).stats
    rig.send(CloseChannel(1))
    assert before == rig.channel(1).stats
    rig.open(1)
    rig.bus.send(1, packets=2)
    assert 5 == rig.channel(1).stats.packets


def test_events_reach_the_host_only_while_open() -> None:
    """vmbus.md 3.1: a channel is signalled between OPENCHANNEL and CLOSECHANNEL, in both directions."""
    rig = connected()
    assert HvStatus.INVALID_CONNECTION_ID == rig.signal(1)
    rig.open(1, vp=1)
    assert HvStatus.SUCCESS == rig.signal(1)
    rig.bus.signal(1)
    assert (1,) == rig.partition.synic.flags_set(1)
    rig.send(CloseChannel(1))
    assert HvStatus.INVALID_CONNECTION_ID == rig.signal(1)


def bad_opens(rig: Rig) -> list[tuple[str, OpenChannel]]:
    """OPENCHANNEL messages that get a result other than 0."""
    rings = rig.rings(1)
    good = rig.open_message(1, rings)
    first = rig.memory.alloc(8)
    handles = []
    for ranges in (
        [GpaRange(4096 * 4, 512, tuple(range(first, first + 5)))],
        [GpaRange(4096 * 4 - 8, 0, tuple(range(first, first + 4)))],
        [GpaRange.of_pages(range(first, first + 2)), GpaRange.of_pages(range(first + 2, first + 4))],
    ):
        rig.next_gpadl += 1
        handles.append(rig.next_gpadl)
        (answer,) = rig.send(*gpadl_messages(1, rig.next_gpadl, ranges))
        assert 0 == answer.creation_status  # type: ignore[attr-defined]
    other, _ = rig.gpadl(2, range(first, first + 8))
    corrupt = rig.rings(1)
    corrupt.out_ring.poke_control("write_index", 12)
    return [
        ("no such gpadl", replace(good, ringbuffer_gpadlhandle=5)),
        ("a gpadl of another channel", replace(good, ringbuffer_gpadlhandle=other)),
        ("no such vp", replace(good, target_vp=4)),
        ("in ring at page 0", replace(good, downstream_ringbuffer_pageoffset=0)),
        ("in ring behind the end", replace(good, downstream_ringbuffer_pageoffset=8)),
        ("out ring without data", replace(good, downstream_ringbuffer_pageoffset=1)),
        ("in ring without data", replace(good, downstream_ringbuffer_pageoffset=7)),
        ("not page aligned", replace(good, ringbuffer_gpadlhandle=handles[0], downstream_ringbuffer_pageoffset=2)),
        ("not whole pages", replace(good, ringbuffer_gpadlhandle=handles[1], downstream_ringbuffer_pageoffset=2)),
        ("two ranges", replace(good, ringbuffer_gpadlhandle=handles[2], downstream_ringbuffer_pageoffset=2)),
        ("an impossible index", rig.open_message(1, corrupt)),
    ]


def test_an_open_that_cannot_be_fails_with_a_status() -> None:
    """vmbus.md 1.2, 2.10: one page-aligned range, an offset inside, rings that make sense; the channel stays closed."""
    rig = connected(devices=2)
    for why, message in bad_opens(rig):
        result = rig.one(OpenChannelResult, rig.send(message))
        assert (FAILED, 1) == (result.status, result.openid), why
        assert ChannelState.CLOSED is rig.channel(1).state
    rig.open(1)


def test_a_channel_without_interrupts_is_never_signalled() -> None:
    """vmbus.md 2.8: target_vp 0xFFFFFFFF; it cannot be moved either."""
    rig = connected()
    rings = rig.rings(1)
    rig.send(rig.open_message(1, rings, VP_INDEX_NONE))
    assert 1 == rig.bus.send(1)
    assert 0 == rig.channel(1).stats.signals
    assert FAILED == rig.one(ModifyChannelResponse, rig.send(ModifyChannel(1, 1))).status


# ---- the state table: what the guest may say where


def bring_to(state: ChannelState) -> Rig:
    """Return a rig whose channel 1 is in a state; times are long, so that it stays there."""
    rig = connected(HostOptions(open_delay_ticks=1000, close_delay_ticks=1000), devices=1)
    rings = rig.rings(1)
    rig.rings_made = rings  # type: ignore[attr-defined]
    opens = rig.open_message(1, rings)
    if state is ChannelState.CLOSED:
        return rig
    if state in (ChannelState.REVOKED, ChannelState.REOFFERED):
        rig.bus.rescind(1)
        if state is ChannelState.REOFFERED:
            rig.device(1)
        rig.take()
        return rig
    rig.send(opens)
    if state is ChannelState.OPENING:
        return rig
    rig.wait(1000)
    if state is ChannelState.OPEN:
        return rig
    rig.send(CloseChannel(1))
    if state is ChannelState.CLOSING_REOPEN:
        rig.send(opens)
    return rig


S = ChannelState
NEVER_ANSWERED = [
    # message, state before, state after
    ("open", S.CLOSED, S.OPENING),
    ("open", S.CLOSING, S.CLOSING_REOPEN),
    ("open", S.REVOKED, S.REVOKED),
    ("open", S.REOFFERED, S.REOFFERED),
    ("open", S.OPEN, S.OPEN),
    ("open", S.OPENING, S.OPENING),
    ("open", S.CLOSING_REOPEN, S.CLOSING_REOPEN),
    ("close", S.OPEN, S.CLOSING),
    ("close", S.CLOSED, S.CLOSED),
    ("close", S.OPENING, S.OPENING),
    ("close", S.CLOSING, S.CLOSING),
    ("close", S.CLOSING_REOPEN, S.CLOSING_REOPEN),
    ("close", S.REVOKED, S.REVOKED),
    ("close", S.REOFFERED, S.REOFFERED),
    ("release", S.CLOSED, S.CLIENT_RELEASED),
    ("release", S.REVOKED, S.CLIENT_RELEASED),
    ("release", S.CLOSING, S.CLOSING_CLIENT_RELEASE),
    ("release", S.OPEN, S.OPEN),
    ("release", S.OPENING, S.OPENING),
    ("release", S.CLOSING_REOPEN, S.CLOSING_REOPEN),
]
COMPLAINED = {
    ("open", S.OPEN),
    ("open", S.OPENING),
    ("open", S.CLOSING_REOPEN),
    ("close", S.CLOSED),
    ("close", S.OPENING),
    ("close", S.CLOSING),
    ("close", S.CLOSING_REOPEN),
    ("release", S.OPEN),
    ("release", S.OPENING),
    ("release", S.CLOSING_REOPEN),
}


@pytest.mark.parametrize(("what", "before", "after"), NEVER_ANSWERED, ids=str)
def test_each_row_of_the_state_table(what: str, before: ChannelState, after: ChannelState) -> None:
    """vmbus.md 2.10: allowed ones change the state, ignored ones nothing, errors log and get no reply."""
    rig = bring_to(before)
    channel = rig.channel(1)
    assert before is channel.state
    rings = rig.rings_made  # type: ignore[attr-defined]
    message = {"open": rig.open_message(1, rings), "close": CloseChannel(1), "release": RelidReleased(1)}[what]
    lines = len(rig.log)
    assert [] == rig.send(message)
    assert after is channel.state
    assert ((what, before) in COMPLAINED) == (len(rig.log) > lines)


def test_a_reoffered_channel_comes_back_with_the_same_relid() -> None:
    """vmbus.md 2.10: RELID_RELEASED of a Reoffered channel makes a new offer under the same relid."""
    rig = bring_to(S.REOFFERED)
    offer = rig.one(OfferChannel, rig.send(RelidReleased(1)))
    assert (1, guid(1)) == (offer.child_relid, offer.if_instance)
    assert S.CLOSED is rig.channel(1).state
    rings = rig.rings(1)
    rig.send(rig.open_message(1, rings))
    assert 0 == rig.one(OpenChannelResult, rig.wait(1000)).status


def test_rescinding_a_reoffered_channel_says_nothing() -> None:
    """The guest has been told already; it never saw the new offer."""
    rig = bring_to(S.REOFFERED)
    rig.bus.remove_device(rig.bus.devices[0])
    assert [] == rig.take()
    assert S.REVOKED is rig.channel(1).state


def test_closing_reopen_opens_when_it_is_closed() -> None:
    """vmbus.md 2.10."""
    rig = bring_to(S.CLOSING_REOPEN)
    assert [] == rig.wait(1000)
    assert S.OPENING is rig.channel(1).state
    assert 0 == rig.one(OpenChannelResult, rig.wait(1000)).status


@pytest.mark.parametrize("state", [S.CLOSED, S.OPENING, S.OPEN, S.CLOSING, S.CLOSING_REOPEN, S.REVOKED, S.REOFFERED])
def test_unload_works_from_each_state(state: ChannelState) -> None:
    """vmbus.md 2.10: OpeningClientRelease and ClosingClientRelease are waited for, then all is released."""
    rig = bring_to(state)
    answers = rig.send(Unload())
    expected = {S.OPENING: S.OPENING_CLIENT_RELEASE}
    busy = (S.OPENING, S.OPEN, S.CLOSING, S.CLOSING_REOPEN)
    if state in busy:
        assert [] == answers
        assert expected.get(state, S.CLOSING_CLIENT_RELEASE) is rig.channel(1).state
        answers = rig.wait(1000) or rig.wait(1000)
    rig.one(UnloadResponse, answers)
    assert {} == dict(rig.bus.default.relids)
    assert (0, 0) == (rig.bus.quota.used_bytes, len(rig.bus.default.gpadls))


def test_a_channel_that_was_released_while_closing_is_gone_when_closed() -> None:
    """vmbus.md 2.10: ClosingClientRelease, then no relid."""
    rig = bring_to(S.CLOSING)
    rig.send(RelidReleased(1))
    assert 1 in rig.bus.default.relids
    rig.wait(1000)
    assert {} == dict(rig.bus.default.relids)


@pytest.mark.parametrize("relid", [0, 2, 2047, 2048, 0xFFFFFFFF])
def test_unknown_relids_get_no_reply(relid: int) -> None:
    """vmbus.md 2.10: error, no reply, whatever the message."""
    rig = connected()
    messages = [
        OpenChannel(relid, relid, 1, 0, 1),
        CloseChannel(relid),
        RelidReleased(relid),
        ModifyChannel(relid, 0),
        GpadlTeardown(relid, 1),
        CloseReservedChannel(relid, 0, 2),
    ]
    assert [] == rig.send(*messages)
    assert len(messages) == len(rig.log)


# ---- MODIFYCHANNEL


@pytest.mark.parametrize("version", [Version.V4_1, Version.V5_2, Version.V5_3], ids=str)
def test_modify_moves_the_interrupt(version: Version) -> None:
    """vmbus.md 4.4: answered from 5.3 on, after the move; flags that are set stay on the old VP."""
    rig = connected(version=version)
    rig.open(1, vp=1)
    rig.bus.signal(1)
    answers = rig.send(ModifyChannel(1, 3))
    assert ([ModifyChannelResponse(1, 0)] if version is Version.V5_3 else []) == answers
    rig.bus.signal(1)
    assert 3 == rig.channel(1).target_vp
    assert 2 == rig.channel(1).stats.edges


def test_modify_before_4_1_is_unknown() -> None:
    """vmbus.md 2.9."""
    rig = connected(version=Version.V4_0)
    rig.open(1)
    rig.post(b"\x16\0\0\0\0\0\0\0\1\0\0\0\1\0\0\0")
    assert [] == rig.take()
    assert 0 == rig.channel(1).target_vp


@pytest.mark.parametrize(
    ("version", "answers"), [(Version.V5_3, [ModifyChannelResponse(1, FAILED)]), (Version.V5_2, [])]
)
def test_modify_of_a_closed_channel(version: Version, answers: list[ModifyChannelResponse]) -> None:
    """vmbus.md 2.10: 0x8000FFFF from 5.3 on; before, nothing. The same for a VP that is none."""
    rig = connected(version=version)
    assert answers == rig.send(ModifyChannel(1, 1))
    rig.open(1)
    for vp in (4, VP_INDEX_NONE):
        assert answers == rig.send(ModifyChannel(1, vp))
    assert 0 == rig.channel(1).target_vp


def test_a_second_modify_is_dropped_from_5_3_on() -> None:
    """vmbus.md 2.10, 11 check 19: warned and never answered: one response, the first one's."""
    rig = connected(HostOptions(modify_delay_ticks=50))
    rig.open(1)
    assert [] == rig.send(ModifyChannel(1, 1), ModifyChannel(1, 2))
    assert "is being moved" in rig.log[-1]
    assert 0 == rig.channel(1).target_vp
    assert [ModifyChannelResponse(1, 0)] == rig.wait(50)
    assert 1 == rig.channel(1).target_vp
    assert [] == rig.wait(1000)


def test_before_5_3_the_last_modify_wins() -> None:
    """vmbus.md 2.10: remembered, last one wins, runs after the current one."""
    rig = connected(HostOptions(modify_delay_ticks=50), version=Version.V5_2)
    rig.open(1)
    rig.send(ModifyChannel(1, 1), ModifyChannel(1, 2), ModifyChannel(1, 3))
    rig.wait(50)
    assert 1 == rig.channel(1).target_vp
    rig.wait(50)
    assert 3 == rig.channel(1).target_vp


def test_modifies_of_several_channels_keep_their_order() -> None:
    """Delay is configurable, the order kept."""
    rig = connected(HostOptions(modify_delay_ticks=50), devices=3)
    for relid in (1, 2, 3):
        rig.open(relid)
    assert [] == rig.send(ModifyChannel(3, 1), ModifyChannel(1, 1), ModifyChannel(2, 1))
    assert [3, 1, 2] == [answer.child_relid for answer in rig.wait(50) if isinstance(answer, ModifyChannelResponse)]


def test_a_lost_modify_is_neither_done_nor_answered() -> None:
    """Loss is configurable: here the second of each channel."""
    rig = connected(HostOptions(lose_modify=lambda _relid, nth: nth == 2))
    rig.open(1)
    answers = [rig.send(ModifyChannel(1, vp)) for vp in (1, 2, 3)]
    assert [1, 0, 1] == [len(answer) for answer in answers]
    assert 3 == rig.channel(1).target_vp


def test_a_modify_that_is_overtaken_by_close_is_answered_all_the_same() -> None:
    """From 5.3 on somebody may wait for it without a limit (vmbus.md 4.4)."""
    rig = connected(HostOptions(modify_delay_ticks=50))
    rig.open(1)
    assert [] == rig.send(ModifyChannel(1, 1), CloseChannel(1))
    assert [ModifyChannelResponse(1, FAILED)] == rig.wait(50)


# ---- rescind


def test_rescind_answers_what_the_guest_waits_for_first() -> None:
    """vmbus.md 2.10: pending creates fail, pending teardowns are torn down, then RESCIND."""
    rig = connected(HostOptions(gpadl_delay_ticks=100))
    first = rig.memory.alloc(30)
    assert [] == rig.send(*gpadl_messages(1, 7, [GpaRange.of_pages(range(first, first + 30))])[:1])
    assert [] == rig.send(*gpadl_messages(1, 8, [GpaRange.of_pages([first])]))
    assert [] == rig.send(*gpadl_messages(1, 9, [GpaRange.of_pages([first])]))
    rig.wait(100)
    assert [] == rig.send(GpadlTeardown(1, 9), *gpadl_messages(1, 10, [GpaRange.of_pages([first])]))
    rig.bus.rescind(1)
    answers = rig.take()
    assert RescindChannelOffer(1) == answers[-1]
    assert {(7, FAILED), (10, FAILED)} == {
        (a.gpadl, a.creation_status) for a in answers if hasattr(a, "creation_status")
    }
    assert GpadlTorndown(9) in answers
    assert [GpadlTorndown(8)] == rig.send(GpadlTeardown(1, 8))
    assert [] == rig.wait(1000)
    assert 0 == rig.bus.quota.used_bytes


def test_the_relid_is_reserved_until_it_is_released() -> None:
    """vmbus.md 2.10, 7.3: new offers take the lowest free relid, which a rescinded one is only after RELID_RELEASED."""
    rig = connected(devices=3)
    rig.bus.rescind(2)
    assert [RescindChannelOffer(2)] == rig.take()
    rig.device(4)
    assert 4 == rig.one(OfferChannel, rig.take()).child_relid
    assert [] == rig.send(RelidReleased(2))
    rig.device(5)
    assert 2 == rig.one(OfferChannel, rig.take()).child_relid


def test_rescind_of_an_open_channel_unmaps_its_rings() -> None:
    """vmbus.md 7.3: the host has let go; a CLOSE or TEARDOWN that crosses it is harmless."""
    rig = connected()
    rings = rig.open(1)
    device = rig.bus.devices[0]
    rig.bus.remove_device(device)
    assert [RescindChannelOffer(1)] == rig.take()
    assert not device.primary.is_open
    assert [] == rig.send(CloseChannel(1))
    assert [GpadlTorndown(rings.gpadl)] == rig.send(GpadlTeardown(1, rings.gpadl))
    assert [] == rig.send(RelidReleased(1))
    assert (0, {}) == (rig.bus.quota.used_bytes, dict(rig.bus.default.relids))
    vsp = device.vsp
    assert isinstance(vsp, GenericVsp)
    assert (1, 1, 1) == (vsp.channels_opened, vsp.channels_closed, vsp.releases)


def test_rescind_while_opening_sends_no_result() -> None:
    """vmbus.md 2.12: the rescind itself ends the guest's wait."""
    rig = bring_to(S.OPENING)
    rig.bus.rescind(1)
    assert [RescindChannelOffer(1)] == rig.take()
    assert [] == rig.wait(5000)


def test_sub_channels_go_with_the_close_of_their_primary() -> None:
    """vmbus.md 7.4: a guest that suspends waits for that; who opens the primary again asks for them again."""
    rig = connected()
    device = rig.device(2, max_sub_channels=2)
    rig.take()
    rig.open(2)
    relids = device.offer_sub_channels(2)
    rig.take()
    assert [RescindChannelOffer(relid) for relid in relids] == rig.send(CloseChannel(2))
    assert [2] == [channel.relid for channel in device.channels]
    for relid in relids:
        assert [] == rig.send(RelidReleased(relid))
    rig.open(2)
    assert relids == device.offer_sub_channels(2)


def test_sub_channels_are_rescinded_before_the_memory_of_their_primary_is_given_back() -> None:
    """A device that takes its time has its rings until the close is over, whoever asks for them meanwhile."""
    rig = connected(HostOptions(close_delay_ticks=100))
    device = rig.device(2, max_sub_channels=2)
    rig.take()
    rings = rig.open(2)
    relids = device.offer_sub_channels(2)
    rig.take()
    assert [] == rig.send(CloseChannel(2), GpadlTeardown(2, rings.gpadl))
    assert [] == rig.wait(99)
    assert [*map(RescindChannelOffer, relids), GpadlTorndown(rings.gpadl)] == rig.wait(1)


def test_sub_channels_are_offered_on_request_and_share_the_guids() -> None:
    """vmbus.md 5.4: an offer with the same GUIDs, the next index, its own relid; the host decides how many."""
    rig = connected()
    device = rig.device(2, max_sub_channels=3, sub_relids=(16, 17))
    rig.take()
    assert [16, 17, 3] == device.offer_sub_channels(99)
    offers = [offer for offer in rig.take() if isinstance(offer, OfferChannel)]
    assert [(16, 1), (17, 2), (3, 3)] == [(offer.child_relid, offer.sub_channel_index) for offer in offers]
    assert {guid(2)} == {offer.if_instance for offer in offers}
    assert [] == device.offer_sub_channels(99)
    rig.bus.rescind(17)
    assert [RescindChannelOffer(17)] == rig.take()
    rig.bus.remove_device(device)
    assert {2, 3, 16} == {m.child_relid for m in rig.take() if isinstance(m, RescindChannelOffer)}


def test_relids_run_out_at_2047() -> None:
    """vmbus.md 2.3: 1..2047; a device more waits unseen."""
    rig = Rig()
    for number in range(1, 2049):
        rig.device(number)
    offers = rig.connect()
    assert list(range(1, 2048)) == [offer.child_relid for offer in offers]
    assert "no relid is left" in rig.log[-1]
    rig.bus.rescind(1000)
    rig.send(RelidReleased(1000))
    rig.device(3000)
    assert 1000 == rig.one(OfferChannel, rig.take()).child_relid


# ---- reserved channels, 6.0


def test_a_reserved_channel_outlives_unload() -> None:
    """vmbus.md 2.7, 2.10: it cannot be moved; its end is CLOSE_RESERVED, answered where the guest says."""
    rig = connected(version=Version.V4_1)
    rings = rig.rings(1)
    answer = rig.one(OpenChannelResult, rig.send(OpenReservedChannel(1, 2, 2, rings.gpadl, rings.split)))
    assert 0 == answer.status
    assert [] == rig.send(ModifyChannel(1, 1), CloseChannel(1))
    assert 2 == rig.channel(1).target_vp
    rig.one(UnloadResponse, rig.send(Unload()))
    assert rig.channel(1).is_open
    rig.bus.signal(1)
    rig.one(CloseReservedResponse, rig.send(CloseReservedChannel(1, 3, 2)))
    assert ({}, 0) == (dict(rig.bus.default.relids), rig.bus.quota.used_bytes)


def test_a_guest_may_choose_its_signals() -> None:
    """vmbus.md 2.8: OPENCHANNEL of 6.0 with connection id and event flag."""
    rig = Rig(version=Version.V6_0, host_version=Version.V6_0)
    rig.features = FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    rig.device()
    rig.connect()
    rings = rig.rings(1)
    message = rig.open_message(1, rings, 1, connection_id=0x3456, event_flag=77, flags=0)
    assert 0 == rig.one(OpenChannelResult, rig.send(message)).status
    rig.bus.signal(1)
    assert (77,) == rig.partition.synic.flags_set(1)
    assert HvStatus.SUCCESS == rig.partition.hv_signal_event(0x3456)
    rig.send(CloseChannel(1))
    taken = replace(message, connection_id=4)
    assert FAILED == rig.one(OpenChannelResult, rig.send(taken)).status
