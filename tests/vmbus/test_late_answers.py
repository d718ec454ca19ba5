"""Answers that come when their question was given up, and never count for the next one (vmbus.md 2.10, 2.12)."""

from __future__ import annotations

import errno

import pytest

from tests.vmbus.scripted import CONNECTION_PAGES, Guest, offer_of, refused
from vmbusirq.log import Level
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import (
    STATUS_UNSUCCESSFUL,
    CloseChannel,
    GpadlTeardown,
    InitiateContact,
    Message,
    ModifyChannel,
    ModifyChannelResponse,
    OpenChannel,
    OpenChannelResult,
    Unload,
    UnloadResponse,
    Version,
)


def given_up(guest: Guest) -> tuple[Channel, OpenChannel]:
    """Open a channel whose host does not answer; return it and the message."""
    channel = guest.offered("heartbeat", 5)
    guest.host.mute = {OpenChannel}
    with refused(errno.ETIMEDOUT):
        guest.vmbus.open(channel)
    guest.host.mute = set()
    guest.host.got.clear()
    with refused(errno.EBUSY, "has not answered"):
        guest.vmbus.open(channel)
    assert [] == guest.host.got
    assert (ChannelState.OPEN, 8) == (channel.state, guest.vmbus.stranded_pages)
    (message,) = guest.host.gpadls.values()
    return channel, OpenChannel(5, 5, message.gpadl, 0, 4, b"")


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_an_open_that_succeeds_late_is_closed_before_the_next_one(engine: str) -> None:
    """Otherwise its result would count for the next open: the guest would read rings that its host does not use."""
    guest = Guest(engine=engine, drivers=False)
    channel, message = given_up(guest)
    guest.host.opened(message)
    guest.host.post(OpenChannelResult(5, 5, 0))
    guest.settle()
    assert [CloseChannel(5), GpadlTeardown(5, message.ringbuffer_gpadlhandle)] == guest.host.got
    assert (0, CONNECTION_PAGES) == (guest.vmbus.stranded_pages, guest.pages_allocated)
    guest.vmbus.open(channel)
    guest.host.write(5, Packet(b"x" * 16))
    guest.settle()
    assert (1, 1) == (channel.stats.packets, channel.stats.interrupts)
    guest.vmbus.close(channel)


def test_an_open_that_fails_late_gives_its_rings_back() -> None:
    """No CLOSECHANNEL: nothing is open."""
    guest = Guest(drivers=False)
    channel, message = given_up(guest)
    guest.host.post(OpenChannelResult(5, 5, STATUS_UNSUCCESSFUL))
    guest.settle()
    assert [GpadlTeardown(5, message.ringbuffer_gpadlhandle)] == guest.host.got
    assert (0, CONNECTION_PAGES) == (guest.vmbus.stranded_pages, guest.pages_allocated)
    guest.host.post(OpenChannelResult(5, 5, STATUS_UNSUCCESSFUL))  # once more: nobody's
    guest.settle()
    guest.vmbus.open(channel)
    guest.vmbus.close(channel)
    assert CONNECTION_PAGES == guest.pages_allocated


@pytest.mark.parametrize("end", ["rescind", "unload", "suspend"])
def test_a_host_that_has_let_go_owes_no_answer(end: str) -> None:
    """A rescind and an unload end the wait for what will not come; the pages are free."""
    guest = Guest(drivers=False)
    channel, _ = given_up(guest)
    if end == "rescind":
        guest.host.rescind(5)
        guest.settle()
        assert CONNECTION_PAGES == guest.pages_allocated
        channel = guest.offered("heartbeat", 5)
    elif end == "suspend":
        guest.vmbus.suspend()
        assert CONNECTION_PAGES == guest.pages_allocated
        guest.host.offers = [offer_of("heartbeat", 5)]
        guest.vmbus.resume()
        guest.settle()
    else:
        guest.vmbus.unload()
        assert ([], 0) == (guest.vmbus.control.given_up, guest.vmbus.stranded_pages)
        return
    guest.vmbus.open(channel)
    assert ChannelState.OPENED is channel.state


def test_a_late_open_that_the_host_does_not_let_go_of_stays_stranded() -> None:
    """The CLOSECHANNEL cannot be posted: the host has the rings until it says otherwise."""
    guest = Guest(drivers=False)
    channel, _ = given_up(guest)
    guest.vmbus.control.msg_conn_id = 0x999
    guest.host.post(OpenChannelResult(5, 5, 0))
    guest.pass_time(400)
    assert 8 == guest.vmbus.stranded_pages
    assert any("its rings stay with the host" in text for text in guest.log.texts(Level.ERR))
    guest.host.rescind(5)
    guest.pass_time(400)
    assert (True, CONNECTION_PAGES) == (channel.gone, guest.pages_allocated)


def test_a_late_refusal_of_a_version_does_not_refuse_the_next_contact() -> None:
    """The answer to the first contact comes during the second, in front of its own."""
    guest = Guest(connect=False)
    guest.host.mute = {InitiateContact}
    with refused(errno.ETIMEDOUT):
        guest.vmbus.connect()

    def both(message: Message) -> None:
        newest, guest.host.version = guest.host.version, Version.V2_4
        guest.host.answer(message)
        guest.host.version = newest
        guest.host.answer(message)

    guest.host.instead[InitiateContact] = both
    guest.vmbus.connect()
    assert Version.V5_3 == guest.vmbus.version == guest.host.agreed
    assert 2 == len(guest.host.of_type(InitiateContact))


def test_a_late_unload_response_does_not_end_the_next_suspend() -> None:
    """An UNLOAD that was given up is over with the contact that follows; its answer comes before that."""
    guest = Guest(offers=[offer_of("heartbeat", 5)])
    guest.host.mute = {Unload}
    with refused(errno.ETIMEDOUT):
        guest.vmbus.suspend()

    def contact(message: Message) -> None:
        guest.host.post(UnloadResponse())
        guest.host.answer(message)

    guest.host.instead[InitiateContact] = contact
    guest.vmbus.resume()
    guest.settle()
    assert ChannelState.OPENED is guest.vmbus.channels[5].state
    with refused(errno.ETIMEDOUT):
        guest.vmbus.suspend()


@pytest.mark.parametrize("dropped", [False, True])
def test_a_late_answer_to_a_move_does_not_count_for_the_next_move(dropped: bool) -> None:
    """Design legacy at 5.3 waits for each. A host that drops one question still answers the next."""
    guest = Guest("legacy", drivers=False)
    channel = guest.opened("scsi", 5)
    guest.host.mute = {ModifyChannel}
    with refused(errno.ETIMEDOUT):
        guest.vmbus.target_cpu_store(channel, b"2")
    guest.host.mute = set()

    def answers(message: ModifyChannel) -> None:
        if not dropped:
            guest.host.post(ModifyChannelResponse(5, STATUS_UNSUCCESSFUL))
        guest.host.answer(message)

    guest.host.instead[ModifyChannel] = answers
    guest.vmbus.target_cpu_store(channel, b"3")
    assert (3, 3) == (channel.target_cpu, guest.host.targets[5])
    assert [] == [request for request in guest.vmbus.control.given_up if request.answer is not None]
