"""Design.one_modify: at most one MODIFYCHANNEL of a channel under way, and none lost for good (ours)."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from tests.vmbus.scripted import Guest, refused
from vmbusirq.core import TICKS_PER_MS
from vmbusirq.designs import DESIGNS
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.log import Level
from vmbusirq.steps import run
from vmbusirq.vmbus.one_modify import FORGET_TICKS, RESEND_TICKS, RESENDS
from vmbusirq.wire.protocol import ModifyChannel, ModifyChannelResponse, Version

DESIGN = replace(DESIGNS["rfc"], name="one modify", one_modify=True)


def opened(**how: Any) -> Guest:
    """A guest with channel 5, open on CPU 0, whose host keeps its answers to MODIFYCHANNEL to itself."""
    guest = Guest(DESIGN, drivers=False, **how)
    guest.opened("keyboard", 5)
    guest.host.mute = {ModifyChannel}
    return guest


def move(guest: Guest, *cpus: int) -> None:
    for cpu in cpus:
        guest.irq.irq_set_affinity(guest.vmbus.channels[5].irq, 1 << cpu)
        guest.settle()


def answer(guest: Guest, status: int = 0) -> None:
    guest.host.post(ModifyChannelResponse(5, status))
    guest.settle()


def asked(guest: Guest) -> list[int]:
    return [message.target_vp for message in guest.host.of_type(ModifyChannel)]


def counts(guest: Guest) -> tuple[int, int]:
    return guest.vmbus.retarget.modchan_sent, guest.vmbus.retarget.modchan_completed


def said(guest: Guest) -> list[str]:
    return guest.log.texts(Level.ERR)


def test_a_second_move_is_sent_when_the_first_is_answered() -> None:
    """A host of 5.3 drops a second MODIFYCHANNEL (vmbus.md 4.4): it gets none. The guest's target is the last one."""
    guest = opened()
    move(guest, 1, 2)
    assert ([1], 2, (2, 0)) == (asked(guest), guest.vmbus.channels[5].target_cpu, counts(guest))
    answer(guest)
    assert ([1, 2], (2, 1)) == (asked(guest), counts(guest))
    answer(guest)
    move(guest, 3)
    assert ([1, 2, 3], (3, 2)) == (asked(guest), counts(guest))


def test_of_moves_that_are_put_off_the_last_one_is_sent() -> None:
    """What comes between is of no use to anybody; it counts as one."""
    guest = opened()
    move(guest, 1, 2, 3, 0, 2)
    answer(guest)
    answer(guest)
    assert ([1, 2], 2, (2, 2)) == (asked(guest), guest.vmbus.channels[5].target_cpu, counts(guest))


def test_a_move_that_is_put_off_and_taken_back_is_not_sent() -> None:
    """The host has been asked for that CPU already."""
    guest = opened()
    move(guest, 1, 2, 1)
    answer(guest)
    assert ([1], (2, 2)) == (asked(guest), counts(guest))


def test_a_refusal_ends_a_move_too() -> None:
    """Row 11 of vmbus.md 4.2: it is logged; what was put off is sent."""
    guest = opened()
    move(guest, 1, 2)
    answer(guest, 0x8000FFFF)
    assert ([1, 2], (2, 1)) == (asked(guest), counts(guest))
    assert ["hv_vmbus: Error status 8000ffff in MODIFYCHANNEL response for relid 5"] == said(guest)


@pytest.mark.parametrize("version", [Version.V4_1, Version.V5_2])
def test_where_nothing_is_answered_nothing_is_put_off(version: Version) -> None:
    """vmbus.md 4.4: 4.1 to 5.2 fire and forget."""
    guest = opened(version=version)
    move(guest, 1, 2)
    guest.pass_time(10)
    assert ([1, 2], (2, 0)) == (asked(guest), counts(guest))


def test_what_is_not_answered_is_sent_again_eight_times() -> None:
    """After 10 ms, 20, 40 ...; then the guest says so, and no offline waits for it any more."""
    guest = opened()
    move(guest, 1, 2)
    for resent in range(RESENDS):
        assert [1] * (resent + 1) == asked(guest)
        guest.pass_time((RESEND_TICKS << resent) / 1e7)
    assert ([1] * (RESENDS + 1), (2, 0), []) == (asked(guest), counts(guest), said(guest))
    guest.pass_time((RESEND_TICKS << RESENDS) / 1e7)
    assert ["hv_vmbus: No MODIFYCHANNEL_RESPONSE for relid 5"] == said(guest)
    assert ([1] * (RESENDS + 1), (2, 2)) == (asked(guest), counts(guest))
    answer(guest)
    move(guest, 3)
    assert ([1] * (RESENDS + 1) + [3], (3, 2)) == (asked(guest), counts(guest))


def test_an_answer_ends_the_wait_for_it() -> None:
    """No timer is left behind."""
    guest = opened()
    move(guest, 1)
    answer(guest)
    guest.pass_time(10)
    assert ([1], (1, 1)) == (asked(guest), counts(guest))


def test_an_offline_waits_for_moves_that_are_put_off() -> None:
    """CPU 1 is not free before the host has been asked, and has answered, where the channel shall be (vmbus.md 4.5)."""
    guest = opened()
    clock = guest.partition.clock
    move(guest, 1, 2)
    for late in (3, 8):
        clock.call_at(clock.now + late * TICKS_PER_MS, lambda: guest.host.post(ModifyChannelResponse(5, 0)))
    before = clock.now
    guest.vmbus.synic_cleanup(1)
    assert (10 * TICKS_PER_MS, [1, 2], (2, 2), []) == (clock.now - before, asked(guest), counts(guest), said(guest))


def test_a_lost_modify_is_mended_while_an_offline_waits() -> None:
    """Sent again after 10 ms of the 25; without the cure every offline from then on waits in vain (trap 11)."""
    guest = opened()
    move(guest, 1, 2)
    answer(guest)
    guest.host.mute = set()
    guest.vmbus.synic_cleanup(1)
    assert ([1, 2, 2], (2, 2), [], 2) == (asked(guest), counts(guest), said(guest), guest.host.targets[5])


def test_a_channel_that_closes_takes_its_moves_along() -> None:
    """Whether the host answers or not, nothing more is sent, and everything counts as done with."""
    for answers in (True, False):
        guest = opened()
        move(guest, 1, 2)
        guest.vmbus.close(guest.vmbus.channels[5])
        if answers:
            answer(guest)
        guest.pass_time(10)
        assert ([1], (2, 2), []) == (asked(guest), counts(guest), said(guest))


def test_a_channel_that_is_opened_again_starts_anew() -> None:
    """OPENCHANNEL has named its CPU: nothing from before is sent over that, and the next move waits for nobody."""
    for later in (True, False):
        guest = opened()
        channel = guest.vmbus.channels[5]
        move(guest, 1, 2)
        guest.vmbus.close(channel)
        guest.vmbus.open(channel)
        assert 2 == guest.host.targets[5] == channel.target_cpu
        if later:
            guest.pass_time(1)
        move(guest, 3)
        assert ([1, 3], (3, 2)) == (asked(guest), counts(guest))
        answer(guest)
        guest.pass_time(10)
        assert ([1, 3], (3, 3), []) == (asked(guest), counts(guest), said(guest))


def test_a_move_of_a_channel_that_is_opened_again_waits_for_a_post_from_before() -> None:
    """What is posted then is not the last word."""
    guest = opened()
    retarget, channel = guest.vmbus.retarget, guest.vmbus.channels[5]
    before = retarget.send_modify(channel, 1)
    next(before)
    assert "send MODIFYCHANNEL to cpu 1" in next(before).point
    guest.vmbus.close(channel)
    guest.vmbus.open(channel)
    run(retarget.send_modify(channel, 3))
    run(before)
    guest.settle()
    assert ([1, 3], (2, 1)) == (asked(guest), counts(guest))
    answer(guest)
    answer(guest)
    assert ([1, 3, 3], (2, 2)) == (asked(guest), counts(guest))


def refuse_posts(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.partition, "hv_post_message", lambda *_: HvStatus.INVALID_PARAMETER)


def test_a_move_that_cannot_be_posted_leaves_nothing_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 7 of vmbus.md 4.3: the error is the writer's; the next move is sent at once."""
    guest = opened()
    with monkeypatch.context() as patch:
        refuse_posts(guest, patch)
        with refused(errno.EINVAL, "MODIFYCHANNEL could not be posted"):
            move(guest, 1)
    assert (0, 0) == counts(guest)
    move(guest, 2)
    assert ([2], (1, 0)) == (asked(guest), counts(guest))


def test_a_move_that_was_put_off_and_cannot_be_posted_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left to hear of the error."""
    guest = opened()
    move(guest, 1, 2)
    with monkeypatch.context() as patch:
        refuse_posts(guest, patch)
        answer(guest)
    assert "hv_vmbus: relid 5 cannot be moved to cpu 2: " in said(guest)[-1]
    assert ([1], (2, 2)) == (asked(guest), counts(guest))


def test_a_channel_that_is_moved_again_does_not_keep_another_one_waiting() -> None:
    """Each channel has its own."""
    guest = opened()
    other = guest.opened("mouse", 6, name="other")
    move(guest, 1, 2)
    guest.irq.irq_set_affinity(other.irq, 1 << 3)
    guest.settle()
    assert [(5, 1), (6, 3)] == [(m.child_relid, m.target_vp) for m in guest.host.of_type(ModifyChannel)]


def resent(guest: Guest) -> None:
    """Have the move that is under way sent again."""
    guest.pass_time(RESEND_TICKS / 1e7)


def full(guest: Guest, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The host has no buffer for the next messages."""
    post, left = guest.partition.hv_post_message, [None] * times

    def refuse(*message: Any) -> int:
        if not left:
            return post(*message)
        left.pop()
        return HvStatus.INSUFFICIENT_BUFFERS

    monkeypatch.setattr(guest.partition, "hv_post_message", refuse)


def test_an_answer_to_a_message_that_was_sent_twice_does_not_end_a_newer_move() -> None:
    """It may be to either of the first two: the newer move is sent again, and what was put off waits for its answer."""
    guest = opened()
    move(guest, 1)
    resent(guest)
    answer(guest)
    move(guest, 2, 3)
    assert ([1, 1, 2], (3, 1)) == (asked(guest), counts(guest))
    answer(guest)  # the second time to 1
    assert ([1, 1, 2, 2], (3, 1)) == (asked(guest), counts(guest))
    answer(guest)
    assert ([1, 1, 2, 2, 3], (3, 2)) == (asked(guest), counts(guest))


def test_an_answer_that_never_came_costs_one_more_message_until_it_is_forgotten() -> None:
    """A host that was busy has dropped the second message; after a while nobody reckons with an answer to it."""
    for later, sent in ((FORGET_TICKS - RESEND_TICKS, [1, 1, 2, 2]), (FORGET_TICKS, [1, 1, 2])):
        guest = opened()
        move(guest, 1)
        resent(guest)
        answer(guest)
        guest.pass_time(later / 1e7)
        move(guest, 2)
        for _ in sent[2:]:
            answer(guest)
        assert (sent, (2, 2), []) == (asked(guest), counts(guest), said(guest))


def test_a_move_is_under_way_until_its_second_message_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first comes while the host has no buffer for the second: no newer move is sent before it."""
    guest = opened()
    move(guest, 1)
    full(guest, monkeypatch, 12)
    clock, retarget, channel = guest.partition.clock, guest.vmbus.retarget, guest.vmbus.channels[5]
    clock.call_at(clock.now + RESEND_TICKS + TICKS_PER_MS // 2, lambda: guest.host.post(ModifyChannelResponse(5, 0)))
    clock.call_at(clock.now + RESEND_TICKS + TICKS_PER_MS, lambda: run(retarget.send_modify(channel, 3)))
    guest.pass_time(2 * RESEND_TICKS / 1e7)
    assert ([1, 1, 3], (2, 1)) == (asked(guest), counts(guest))
    answer(guest)
    answer(guest)
    guest.pass_time(10)
    assert ([1, 1, 3, 3], (2, 2), []) == (asked(guest), counts(guest), said(guest))


def test_an_answer_while_the_second_message_is_posted_ends_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent over newer moves later, and nobody is asked for an answer that came."""
    guest = opened()
    move(guest, 1)
    full(guest, monkeypatch, 12)
    clock = guest.partition.clock
    clock.call_at(clock.now + RESEND_TICKS + TICKS_PER_MS // 2, lambda: guest.host.post(ModifyChannelResponse(5, 0)))
    guest.pass_time(2 * RESEND_TICKS / 1e7)
    assert ([1, 1], (1, 1)) == (asked(guest), counts(guest))
    guest.pass_time(10)
    assert ([1, 1], (1, 1), []) == (asked(guest), counts(guest), said(guest))


def test_two_answers_at_once_send_what_was_put_off_once() -> None:
    """The work of the first has not begun when the second comes."""
    guest = opened()
    move(guest, 1)
    resent(guest)
    move(guest, 2)
    guest.host.post(ModifyChannelResponse(5, 0))
    answer(guest)
    assert ([1, 1, 2], (2, 1)) == (asked(guest), counts(guest))
    answer(guest)
    assert ([1, 1, 2], (2, 2)) == (asked(guest), counts(guest))


def test_an_answer_before_the_queued_message_ends_the_move() -> None:
    """The timer and the answer come together."""
    guest = opened()
    move(guest, 1)
    clock = guest.partition.clock
    clock.call_at(clock.now + RESEND_TICKS, lambda: guest.vmbus.retarget.on_response(ModifyChannelResponse(5, 0)))
    resent(guest)
    assert ([1], (1, 1)) == (asked(guest), counts(guest))


def test_a_move_that_was_put_off_is_sent_though_the_one_before_could_not_be_posted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its mover has been told that it is begun, and it is counted."""
    guest = opened()
    retarget, channel = guest.vmbus.retarget, guest.vmbus.channels[5]
    first = retarget.send_modify(channel, 1)
    next(first)
    assert "send MODIFYCHANNEL to cpu 1" in next(first).point
    run(retarget.send_modify(channel, 2))
    with monkeypatch.context() as patch:
        refuse_posts(guest, patch)
        with refused(errno.EINVAL, "MODIFYCHANNEL could not be posted"):
            next(first)
    guest.settle()
    assert ([2], (1, 0)) == (asked(guest), counts(guest))
    answer(guest)
    assert ([2], (1, 1)) == (asked(guest), counts(guest))


def test_a_move_that_is_put_off_while_another_one_cannot_be_posted_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the work queue too: what failed is logged and done with, the next one is sent."""
    guest = opened()
    move(guest, 1, 2)
    clock, retarget, channel = guest.partition.clock, guest.vmbus.retarget, guest.vmbus.channels[5]
    full(guest, monkeypatch, 100)
    clock.call_at(clock.now + TICKS_PER_MS, lambda: run(retarget.send_modify(channel, 3)))
    answer(guest)
    guest.pass_time(1000)
    assert "hv_vmbus: relid 5 cannot be moved to cpu 2: " in said(guest)[0]
    assert [1] + [3] * (RESENDS + 1) == asked(guest)
    assert (3, 3) == counts(guest)
