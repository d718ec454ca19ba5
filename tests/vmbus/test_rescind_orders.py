"""Rescinds in any order, of channels whose probes and opens wait for one another: none may wait for the next."""

from __future__ import annotations

from itertools import permutations

import pytest

from tests.vmbus.scripted import Guest, offer_of
from vmbusirq.log import Level
from vmbusirq.steps import Steps
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.wire.protocol import GpadlHeader, OpenChannel, OpenChannelResult, RelidReleased


def check_all_gone(guest: Guest, *relids: int) -> None:
    """Each relid is released once, nothing is left, and the queues still work."""
    assert ({}, {}, []) == (dict(guest.vmbus.channels), dict(guest.vmbus.devices), guest.vmbus.work.stuck)
    assert sorted(relids) == sorted(message.child_relid for message in guest.host.of_type(RelidReleased))
    assert (3, 0) == (guest.pages_allocated, guest.vmbus.stranded_pages)
    assert (0, []) == (guest.vmbus.manager.close_on_suspend, guest.vmbus.control.requests)
    guest.host.mute.clear()
    channel = guest.offered("heartbeat", 40, "last")
    assert ChannelState.OPENED is channel.state
    guest.host.rescind(40)
    guest.settle()
    assert channel.gone


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("order", list(permutations((5, 6, 7))), ids=str)
@pytest.mark.parametrize("silent", [GpadlHeader, OpenChannel])
def test_devices_whose_probes_wait_in_line_go_in_any_order(silent: type, order: tuple[int, ...], at_once: bool) -> None:
    """hv_pri_chan probes 5, whose answer will not come; 6 and 7 are behind it.

    A rescind ends what its own channel waits for before it waits for a probe (vmbus_onoffer_rescind), so that the
    probes in front of it end however late their rescinds come.
    """
    guest = Guest()
    guest.host.mute = {silent}
    for relid in (5, 6, 7):
        guest.host.post(offer_of("heartbeat", relid, f"d{relid}"))
    guest.settle()
    assert ChannelState.OPENING is guest.vmbus.channels[5].state
    for relid in order:
        guest.host.rescind(relid)
        if not at_once:
            guest.settle()
    guest.settle()

    check_all_gone(guest, *order)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("order", list(permutations((5, 6, 7, 8))), ids=str)
@pytest.mark.parametrize("opened", [0, 1, 2])
def test_a_primary_and_its_sub_channels_go_in_any_order(opened: int, order: tuple[int, ...], at_once: bool) -> None:
    """Some sub-channels are open, the next waits for its result, the others for their turn on hv_sub_chan.

    The close of the primary waits for sub-channels that are rescinded, whose removals may be behind it in line.
    """
    guest = Guest()
    guest.opened("scsi", 5)
    for relid in (6, 7, 8):
        if relid == 6 + opened:
            guest.host.mute = {OpenChannel}
        guest.host.post(offer_of("scsi", relid, sub=relid - 5))
        guest.settle()
    states = [guest.vmbus.channels[relid].state for relid in (6, 7, 8)]
    assert [*[ChannelState.OPENED] * opened, ChannelState.OPENING] == states[: opened + 1]
    for relid in order:
        guest.host.rescind(relid)
        if not at_once:
            guest.settle()
    guest.settle()

    check_all_gone(guest, *order)


def test_a_rescind_marks_its_channel_however_long_removals_wait() -> None:
    """No arrival, no packet: the first half of a rescind waits for offers only, whoever else is being removed."""
    guest = Guest()
    last = guest.opened("heartbeat", 9, "last")
    guest.host.mute = {OpenChannel}
    for relid in (5, 6):
        guest.host.post(offer_of("heartbeat", relid, f"d{relid}"))
    guest.settle()
    guest.host.rescind(6)
    guest.host.rescind(9)
    guest.settle()
    assert (True, False) == (last.rescinded, last.gone)
    assert ["hv_vmbus_removal", "hv_pri_chan"] == [line.partition(":")[0] for line in guest.vmbus.work.stuck]
    guest.host.rescind(5)
    guest.settle()

    assert last.gone
    check_all_gone(guest, 5, 6, 9)


def test_a_sub_channel_that_is_being_opened_is_closed_with_its_primary() -> None:
    """Who closes the primary waits for the open (netvsc and storvsc must not leave one behind), then closes both."""
    guest = Guest()
    guest.host.rescinds_subs = False
    primary = guest.opened("scsi", 5)
    guest.host.mute = {OpenChannel}
    sub = guest.offered("scsi", 6, sub=1)
    assert ChannelState.OPENING is sub.state
    waits: list[str] = []
    for step in guest.vmbus.close_steps(primary):
        guest.settle()
        if step.ready is not None and not step.ready():
            waits.append(step.point)
            (message,) = [message for message in guest.host.of_type(OpenChannel) if message.child_relid == 6]
            guest.host.opened(message)
            guest.host.post(OpenChannelResult(6, message.openid, 0))
            guest.settle()
    assert ["channel 6: wait for its open"] == waits
    guest.settle()

    assert (ChannelState.OPEN, ChannelState.OPEN) == (sub.state, primary.state)
    assert (3, 0) == (guest.pages_allocated, guest.vmbus.stranded_pages)


def test_a_sub_channel_that_outlived_the_close_of_its_primary_goes_when_it_is_rescinded() -> None:
    """Nobody is left to close it: a rescind that waited for its primary's close would wait for ever."""
    guest = Guest(drivers=False)
    guest.host.rescinds_subs = False
    primary, sub = guest.opened("scsi", 5), guest.offered("scsi", 6, sub=1)
    guest.vmbus.close(primary)
    guest.vmbus.open(sub)
    guest.host.rescind(6)
    guest.settle()

    assert sub.gone
    assert (0, 3) == (guest.vmbus.manager.close_on_suspend, guest.pages_allocated)


def test_the_second_of_two_rescinds_by_different_ways_finds_the_first() -> None:
    """The suspend's own rescind of a socket and the host's, step by step: one removal, no error."""
    for stop in range(12):
        guest = Guest()
        channel = guest.offered("heartbeat", 5)
        own = guest.vmbus.manager.rescind(channel)
        run_some(guest, own, stop)
        was_first = channel.rescind_ref
        guest.host.rescind(5)
        guest.settle()
        if was_first:
            run_some(guest, own, 99)
        else:
            own.close()
        guest.settle()
        assert channel.gone
        assert [RelidReleased(5)] == guest.host.of_type(RelidReleased)
        assert [] == guest.log.texts(Level.ERR)


def run_some(guest: Guest, steps: Steps[None], count: int) -> None:
    for _ in range(count):
        step = next(steps, None)
        if step is None:
            return
        guest.settle()


def test_a_rescinded_channel_that_is_removed_meanwhile_is_left_alone() -> None:
    """process_removal() overtakes the mark: the C half is gone."""
    guest = Guest(drivers=False)
    channel: Channel = guest.offered("heartbeat", 5)
    steps = guest.vmbus.manager.rescind(channel)
    next(steps)
    for _ in guest.vmbus.manager.process_removal(channel):
        pass
    assert [] == list(steps)
    assert channel.gone
