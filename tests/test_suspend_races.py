"""A suspend that meets what the host has just said: offers and rescinds under way."""

from __future__ import annotations

import errno
from dataclasses import replace
from uuid import UUID

import pytest

from tests.footprint import footprint
from vmbusirq import IrqError, Machine
from vmbusirq.host.vsp import make_vsp

MOUSE = UUID("58f75a6d-d949-4320-99e1-a2a2576d581c")
NIC = UUID("5b1fe2c4-7d06-4f3a-8a2b-94c0d7e6135a")


def add(machine: Machine, device_class: str, instance: UUID, subs: int = 0) -> None:
    machine.host.add_device(make_vsp(device_class, max_sub_channels=subs), instance, name=device_class)


def test_a_device_attached_while_suspended_waits_for_the_resume() -> None:
    """Whoever connects anew would lose every device: EBUSY, and the host gets nothing; a resume brings all back."""
    machine = Machine(4)
    machine.attach("keyboard", 5)
    machine.vmbus.suspend()
    for attempt in (machine.connect, lambda: machine.attach("mouse", 6)):
        with pytest.raises(IrqError, match="resume first") as caught:
            attempt()
        assert errno.EBUSY == caught.value.errno
    assert 1 == len(machine.host.devices)
    machine.vmbus.resume()
    machine.settle()
    machine.attach("mouse", 6)
    assert {5, 6} == set(machine.host.channels) == set(machine.vmbus.channels)


def test_a_machine_whose_guest_has_left_cannot_connect_again() -> None:
    """Its channels would be open to the guest and closed to the host."""
    machine = Machine(4)
    machine.attach("keyboard", 5)
    machine.vmbus.unload()
    for attempt in (machine.connect, machine.vmbus.connect):
        with pytest.raises(IrqError, match="left of a connection") as caught:
            attempt()
        assert errno.EBUSY == caught.value.errno
    with pytest.raises(IrqError, match="not suspended"):
        machine.vmbus.resume()
    assert {} == dict(machine.host.channels)


@pytest.mark.parametrize("device_class", ["netvsc", "scsi", "keyboard", "heartbeat"])
def test_a_device_whose_offer_is_under_way_is_closed_by_the_suspend_and_open_after_it(device_class: str) -> None:
    """Hibernation waits for probes and puts off those that come (wait_for_device_probe, device_block_probing, dd.c)."""
    machine = Machine(4)
    machine.connect()
    add(machine, "mouse", MOUSE)
    machine.settle()
    add(machine, device_class, NIC, subs=3)
    machine.vmbus.suspend()
    assert {} == dict(machine.host.channels) == dict(machine.vmbus.channels)

    machine.vmbus.resume()
    machine.settle()
    subs = 3 if device_class in ("netvsc", "scsi") else 0
    assert set(range(1, 3 + subs)) == set(machine.host.channels)
    for relid in machine.host.channels:
        assert 1 == machine.host.send(relid)
    machine.settle()
    for relid, channel in machine.host.channels.items():
        if channel.device.instance == NIC:
            assert channel.stats.packets == machine.vmbus.channels[relid].stats.packets


@pytest.mark.parametrize("steps_before_rescind", range(18))
@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("device_class", ["netvsc", "scsi"])
def test_a_rescind_at_any_step_of_a_suspend_takes_the_device_away_once(
    device_class: str, is_slow: bool, steps_before_rescind: int
) -> None:
    """Driver operations of one device exclude each other (device_lock): it is closed by the first of the two.

    A rescind is lost only when the suspend is past the last thing that it waits for, or over: the guest looks for the
    device in vain then (vmbus.md 7.4).
    """
    machine = Machine(4)
    machine.connect()
    before = footprint(machine)
    add(machine, device_class, NIC, subs=2)
    machine.settle()
    if is_slow:
        machine.host.options = replace(
            machine.host.options, open_delay_ticks=777, close_delay_ticks=777, gpadl_delay_ticks=777
        )
    when = "after the suspend"
    for count, step in enumerate(machine.vmbus.suspend_steps()):
        if count == steps_before_rescind:
            when = step.point
            machine.host.remove_device(machine.host.devices[0])
        while step.ready is not None and not step.ready():
            assert machine.partition.idle(step), step.point
    if machine.host.devices:
        machine.host.remove_device(machine.host.devices[0])
    machine.vmbus.resume()
    machine.settle()

    is_lost = when in ("send UNLOAD", "wait for UNLOAD_RESPONSE", "after the suspend")
    assert (1 if is_lost else 0) == machine.vmbus.manager.fixup_on_resume
    after = footprint(machine)
    assert (1 if is_lost else 0) == len(after.pop("devices"))  # type: ignore[arg-type]
    assert [] == before.pop("devices")
    assert before == after
