"""Offers, open, close and affinity of the guest driver, with a scripted host: no host/ import."""

from __future__ import annotations

import errno

import pytest

from tests.vmbus.scripted import Guest, refused
from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.irq.desc import IrqDesc
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.wire.protocol import (
    STATUS_UNSUCCESSFUL,
    CloseChannel,
    GpadlTeardown,
    ModifyChannel,
    OpenChannel,
    RelidReleased,
)


def affinity(desc: IrqDesc) -> tuple[int, int]:
    return desc.affinity, desc.effective_affinity


def test_offer_maps_and_open_requests_before_the_open_message() -> None:
    """RFC patches 08 and 09: descriptor at offer, request_irq before OPENCHANNEL."""
    guest = Guest(drivers=False)
    channel = guest.offered("scsi")
    desc = guest.irq.irq_to_desc(24)
    assert (24, ChannelState.OPEN, []) == (channel.irq, channel.state, desc.actions)
    assert 5 == desc.hwirq
    actions: list[int] = []
    guest.host.instead[OpenChannel] = lambda message: (actions.append(len(desc.actions)), guest.host.answer(message))
    guest.vmbus.open(channel)

    assert [1] == actions
    (message,) = guest.host.of_type(OpenChannel)
    assert (5, 0) == (message.child_relid, message.target_vp)
    assert ChannelState.OPENED is channel.state
    assert 0b0001 == desc.affinity_hint


def test_refused_open_undoes_exactly_what_was_done() -> None:
    """An error path leaves the channel as it was before: closed, no action, no rings, and it can be opened later."""
    guest = Guest(drivers=False)
    channel = guest.offered("scsi")
    guest.host.status[OpenChannel] = STATUS_UNSUCCESSFUL
    with refused(errno.EAGAIN):
        guest.vmbus.open(channel)
    desc = guest.irq.irq_to_desc(24)
    assert (ChannelState.OPEN, None, False, [], None) == (
        channel.state,
        channel.rings,
        channel.irq_requested,
        desc.actions,
        desc.affinity_hint,
    )
    guest.host.status.clear()
    guest.vmbus.open(channel)
    assert ChannelState.OPENED is channel.state


def test_flag_before_open_is_remembered_once_and_replayed_at_request() -> None:
    """An arrival without an action is not counted; N of them replay as one counted interrupt (genirq.md 4.7)."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    for _ in range(3):
        guest.synic.signal(0, 5)
        guest.settle()
    assert 0 == int(guest.irq.counts[24].sum())
    guest.vmbus.open(channel)
    guest.settle()
    assert 1 == int(guest.irq.counts[24].sum())


def test_request_that_fails_leaves_the_channel_closed() -> None:
    """EBUSY from request_irq: somebody else has the IRQ. No OPENCHANNEL is sent, the GPADL is torn down."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.irq.request_irq(24, lambda irq, dev_id: 1, 0, "thief")
    with refused(errno.EBUSY):
        guest.vmbus.open(channel)

    assert ChannelState.OPEN is channel.state
    assert [] == guest.host.of_type(OpenChannel)
    assert 1 == len(guest.host.of_type(GpadlTeardown))
    assert "hv_vmbus: request_irq failed with -16 for relid 5 irq 24" in guest.log.texts()


@pytest.mark.parametrize("action", ["open", "close"])
def test_open_twice_and_close_twice_are_einval(action: str) -> None:
    """vmbus.md 2.10: the state must be OPEN to open, OPENED to close; nothing is sent."""
    guest = Guest()
    channel = guest.opened()
    if action == "close":
        guest.vmbus.close(channel)
    sent = list(guest.host.got)
    with refused(errno.EINVAL):
        getattr(guest.vmbus, action)(channel)
    assert sent == guest.host.got


def test_affinity_rows_of_the_smp_affinity_table() -> None:
    """vmbus.md 4.3: kept target sends nothing; a move sends MODIFYCHANNEL.

    A message that cannot be posted leaves everything as it was.
    """
    guest = Guest()
    channel = guest.opened()
    desc = guest.irq.irq_to_desc(24)
    guest.irq.irq_set_affinity(24, 0b1111)
    assert (0b1111, 0b0001) == affinity(desc)
    assert [] == guest.host.of_type(ModifyChannel)

    guest.irq.irq_set_affinity(24, 0b1100)
    guest.settle()
    assert [ModifyChannel(5, 2)] == guest.host.of_type(ModifyChannel)
    assert (0b1100, 0b0100, 2) == (*affinity(desc), channel.target_cpu)

    guest.vmbus.control.msg_conn_id = 0x999  # nobody is there
    with refused(errno.EAGAIN):
        guest.irq.irq_set_affinity(24, 0b0011)
    assert (0b1100, 0b0100, 2) == (*affinity(desc), channel.target_cpu)


def test_cursor_moves_even_when_the_move_fails() -> None:
    """vmbus.md 4.3: "last chosen" is set before the checks that refuse."""
    guest = Guest()
    channel = guest.opened()
    guest.vmbus.close(channel)
    with refused(errno.EIO):
        guest.irq.irq_set_affinity(24, 0b0110)
    guest.vmbus.open(channel)
    guest.irq.irq_set_affinity(24, 0b0110)
    assert 2 == channel.target_cpu


def test_the_cursor_is_shared_by_all_channels() -> None:
    """vmbus.md 4.3, the example: 8 CPUs, five IRQs on CPUs 0 to 3, each written f0: targets 4, 5, 6, 7, 4."""
    guest = Guest(cpus=8)
    channels = [guest.opened("shutdown", relid, f"d{relid}") for relid in range(1, 6)]
    for channel in channels:
        guest.irq.irq_set_affinity(channel.irq, 0xF0)
    assert [4, 5, 6, 7, 4] == [channel.target_cpu for channel in channels]


def test_target_outside_housekeeping_leaves_the_channel_where_it_is() -> None:
    """isolcpus=managed_irq,0: a slow device works on CPU 0 all the same, and effective_affinity stays empty.

    See vmbus.md 4.3.
    """
    guest = Guest(isolated=0b0001)
    channel = guest.opened("heartbeat")
    guest.synic.signal(0, 5)
    guest.settle()

    assert 0 == channel.target_cpu
    assert (0b1111, 0) == affinity(guest.irq.irq_to_desc(24))
    assert [1, 0, 0, 0] == guest.irq.counts[24].tolist()


def test_removal_gives_the_cpu_back_to_init_vp_index() -> None:
    """A performance channel's CPU is free again once no other performance channel is there; the relid is released."""
    guest = Guest()
    first = guest.opened("scsi")
    assert 0 == first.target_cpu
    guest.host.rescind(5)
    guest.settle()

    assert {} == dict(guest.vmbus.channels)
    assert [RelidReleased(5)] == guest.host.of_type(RelidReleased)
    assert 0 == guest.irq.irq_find_mapping(guest.vmbus.domain, 5)
    again = guest.opened("scsi", 6)
    assert (24, 0) == (again.irq, again.target_cpu)


@pytest.mark.parametrize("action", ["open", "close"])
def test_open_and_close_inside_an_interrupt_are_edeadlk(action: str) -> None:
    """What waits for handlers cannot be called from one."""
    guest = Guest(drivers=False)
    channel, other = guest.offered("heartbeat"), guest.offered("shutdown", 6, "e")
    if action == "close":
        guest.vmbus.open(other)
    errors: list[int | None] = []

    def callback(_: object) -> None:
        try:
            getattr(guest.vmbus, action)(other)
        except IrqError as error:
            errors.append(error.errno)

    before = other.state
    guest.vmbus.open(channel, callback)
    guest.synic.signal(0, 5)
    guest.settle()
    assert [errno.EDEADLK] == errors
    assert before is other.state


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_two_channels_of_one_scan_are_both_counted(engine: str) -> None:
    """One vector, two flags: each channel's IRQ counts, the top level does not."""
    guest = Guest(engine=engine)
    guest.opened("heartbeat", 5)
    guest.opened("shutdown", 6, "e")
    before = guest.hyp()
    guest.synic.signal(0, 5)
    guest.synic.signal(0, 6)
    guest.settle()

    assert [1, 1] == [int(guest.irq.counts[irq, 0]) for irq in (24, 25)]
    assert before == guest.core.arch_row(0, lib.VI_ROW_HYP)


def test_close_tells_the_host_and_takes_everything_back() -> None:
    """vmbus.md 7.2: CLOSECHANNEL, then GPADL_TEARDOWN, whose answer is the proof; the RFC mended: free_irq."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    before = guest.footprint()
    guest.vmbus.open(channel)
    handle = channel.gpadl
    guest.vmbus.close(channel)

    assert [CloseChannel(5), GpadlTeardown(5, handle)] == guest.host.got[-2:]
    assert before == guest.footprint()
    assert ChannelState.OPEN is channel.state
