"""The guest driver with a scripted host: no host/ import, so that what is tested is the guest alone."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from vmbusirq._ffi import lib
from vmbusirq.core import Core
from vmbusirq.designs import DESIGNS
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.synic import Synic
from vmbusirq.irq import IrqCore
from vmbusirq.log import Log
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.vmbus.connection import Offer, VmbusConnection


class ScriptedHost:
    """Remembers what the guest asked for; refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.refuse = ""

    def _ask(self, what: str, *args: Any) -> None:
        self.asked.append((what, *args))
        if what == self.refuse:
            raise IrqError(errno.EAGAIN, f"host: {what} refused (EAGAIN)")

    def open(self, relid: int, ring_in: Any, ring_out: Any, target_vp: int) -> None:
        self._ask("open", relid, target_vp)

    def close(self, relid: int) -> None:
        self._ask("close", relid)

    def modify_channel(self, relid: int, target_vp: int) -> None:
        self._ask("modify", relid, target_vp)


class Guest:
    """A guest with 4 CPUs and a scripted host."""

    def __init__(self, design: str = "rfc", isolated: int = 0) -> None:
        record = DESIGNS[design]
        self.core = Core(4, hyp_count=record.hyp_count, channel_irqs=record.channel_irqs)
        self.log = Log()
        self.irq = IrqCore(self.core.handle, nr_cpus=4, nr_irqs=456, dynirq_base=24, log=self.log)
        self.synic = Synic(self.core)
        self.host = ScriptedHost()
        self.vmbus = VmbusConnection(
            self.core, self.irq, self.synic, self.host, record, nodes=[0b1111], isolated=isolated
        )
        self.vmbus.synic_init(range(4))

    def opened(self, relid: int = 5, device_class: str = "scsi") -> Any:
        channel = self.vmbus.offer(Offer("d", device_class, relid, scsi_host=0))
        self.vmbus.open(channel)
        return channel


def test_offer_maps_and_open_requests_before_the_open_message() -> None:
    """RFC patches 08 and 09: descriptor at offer, request_irq before OPENCHANNEL."""
    guest = Guest()
    channel = guest.vmbus.offer(Offer("d", "scsi", 5, scsi_host=0))
    assert (24, ChannelState.OPEN, []) == (channel.irq, channel.state, guest.irq.irq_to_desc(24).actions)
    guest.vmbus.open(channel)

    assert [("open", 5, 0)] == guest.host.asked
    assert ChannelState.OPENED is channel.state
    assert ["pri@storvsc0"] == [action.name for action in guest.irq.irq_to_desc(24).actions]
    assert 0b0001 == guest.irq.irq_to_desc(24).affinity_hint


def test_refused_open_undoes_exactly_what_was_done() -> None:
    """An error path leaves the channel as it was before: closed, no action, no rings, and it can be opened later."""
    guest = Guest()
    channel = guest.vmbus.offer(Offer("d", "scsi", 5, scsi_host=0))
    guest.host.refuse = "open"
    with pytest.raises(IrqError) as error:
        guest.vmbus.open(channel)
    desc = guest.irq.irq_to_desc(24)

    assert errno.EAGAIN == error.value.errno
    assert (ChannelState.OPEN, None, False, [], None) == (
        channel.state,
        channel.rings,
        channel.irq_requested,
        desc.actions,
        desc.affinity_hint,
    )
    guest.host.refuse = ""
    guest.vmbus.open(channel)
    assert ChannelState.OPENED is channel.state


def test_flag_before_open_is_remembered_once_and_replayed_at_request() -> None:
    """An arrival without an action is not counted; N of them replay as one counted interrupt (genirq.md 4.7)."""
    guest = Guest()
    channel = guest.vmbus.offer(Offer("d", "heartbeat", 5))
    for _ in range(3):
        guest.synic.signal(0, 5)
        guest.core.settle()
    assert 0 == int(guest.irq.counts[24].sum())
    guest.vmbus.open(channel)
    guest.core.settle()

    assert 1 == int(guest.irq.counts[24].sum())


def test_request_that_fails_leaves_the_channel_closed() -> None:
    """EBUSY from request_irq: somebody else has the IRQ."""
    guest = Guest()
    channel = guest.vmbus.offer(Offer("d", "heartbeat", 5))
    guest.irq.request_irq(24, lambda irq, dev_id: 1, 0, "thief")
    with pytest.raises(IrqError) as error:
        guest.vmbus.open(channel)

    assert errno.EBUSY == error.value.errno
    assert ChannelState.OPEN is channel.state
    assert [] == guest.host.asked


@pytest.mark.parametrize("action", ["open", "close"])
def test_open_twice_and_close_twice_are_einval(action: str) -> None:
    """vmbus.md 2.10: the state must be OPEN to open, OPENED to close; nothing is sent."""
    guest = Guest()
    channel = guest.opened()
    if action == "close":
        guest.vmbus.close(channel)
    asked = list(guest.host.asked)
    with pytest.raises(IrqError) as error:
        getattr(guest.vmbus, action)(channel)

    assert errno.EINVAL == error.value.errno
    assert asked == guest.host.asked


def test_affinity_rows_of_the_smp_affinity_table() -> None:
    """vmbus.md 4.3: kept target sends nothing; a move sends MODIFYCHANNEL.

    A refusal by the host leaves everything as it was.
    """
    guest = Guest()
    channel = guest.opened()
    desc = guest.irq.irq_to_desc(24)
    guest.irq.irq_set_affinity(24, 0b1111)
    assert (0b1111, 0b0001, 1) == (desc.affinity, desc.effective_affinity, len(guest.host.asked))

    guest.irq.irq_set_affinity(24, 0b1100)
    assert ("modify", 5, 2) == guest.host.asked[-1]
    assert (0b1100, 0b0100, 2) == (desc.affinity, desc.effective_affinity, channel.target_cpu)

    guest.host.refuse = "modify"
    with pytest.raises(IrqError) as error:
        guest.irq.irq_set_affinity(24, 0b0011)
    assert errno.EAGAIN == error.value.errno
    assert (0b1100, 0b0100, 2) == (desc.affinity, desc.effective_affinity, channel.target_cpu)


def test_cursor_moves_even_when_the_move_fails() -> None:
    """vmbus.md 4.3: "last chosen" is set before the checks that refuse."""
    guest = Guest()
    channel = guest.opened()
    guest.vmbus.close(channel)
    with pytest.raises(IrqError):
        guest.irq.irq_set_affinity(24, 0b0110)
    guest.vmbus.open(channel)
    guest.irq.irq_set_affinity(24, 0b0110)

    assert 2 == channel.target_cpu


def test_target_outside_housekeeping_leaves_the_channel_where_it_is() -> None:
    """isolcpus=managed_irq,0: a slow device works on CPU 0 all the same, and effective_affinity stays empty.

    See vmbus.md 4.3.
    """
    guest = Guest(isolated=0b0001)
    channel = guest.opened(device_class="heartbeat")
    desc = guest.irq.irq_to_desc(24)
    guest.synic.signal(0, 5)
    guest.core.settle()

    assert 0 == channel.target_cpu
    assert (0b1111, 0) == (desc.affinity, desc.effective_affinity)
    assert [1, 0, 0, 0] == guest.irq.counts[24].tolist()


def test_remove_gives_the_cpu_back_to_init_vp_index() -> None:
    """A performance channel's CPU is free again once no other performance channel is there."""
    guest = Guest()
    first = guest.opened(5)
    assert 0 == first.target_cpu
    guest.vmbus.remove(first)

    assert {} == dict(guest.vmbus.channels)
    assert [24] == [guest.opened(6).irq]
    assert 0 == guest.vmbus.channels[6].target_cpu
    assert 0 == guest.irq.irq_find_mapping(guest.vmbus.domain, 5)


def test_open_inside_an_interrupt_is_edeadlk() -> None:
    """What waits for handlers cannot be called from one."""
    guest = Guest()
    channel = guest.vmbus.offer(Offer("d", "heartbeat", 5))
    other = guest.vmbus.offer(Offer("e", "shutdown", 6))
    errors: list[int | None] = []

    def callback(_: object) -> None:
        try:
            guest.vmbus.open(other)
        except IrqError as error:
            errors.append(error.errno)

    guest.vmbus.open(channel, callback)
    guest.synic.signal(0, 5)
    guest.core.settle()
    assert [errno.EDEADLK] == errors
    assert ChannelState.OPEN is other.state


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "too small"),
        (b"\x04", "too small"),
        (b"\x19" + bytes(7), "unknown msgtype=25"),
        (b"\xff" * 8, "unknown msgtype"),
    ],
)
def test_bad_message_is_logged_dropped_and_its_slot_freed(payload: bytes, says: str) -> None:
    """vmbus_on_msg_dpc: what Linux refuses is dropped; the next message still gets through."""
    guest = Guest()
    assert guest.synic.post(0, payload)
    guest.core.settle()
    assert any(says in entry.text for entry in guest.log)
    assert guest.synic.post(0, b"\x04" + bytes(7))
    guest.core.settle()

    assert {4: 1} == guest.vmbus.messages_received
    assert 2 == guest.core.arch_row(0, lib.VI_ROW_HYP)


def test_two_channels_of_one_scan_are_both_counted() -> None:
    """One vector, two flags: each channel's IRQ counts, the top level does not."""
    guest = Guest()
    guest.opened(5, "heartbeat")
    guest.opened(6, "shutdown")
    guest.synic.signal(0, 5)
    guest.synic.signal(0, 6)
    guest.core.settle()

    assert [1, 1] == [int(guest.irq.counts[irq, 0]) for irq in (24, 25)]
    assert 0 == guest.core.arch_row(0, lib.VI_ROW_HYP)
