"""A host whose devices take their time: suspend, unbind and hot-remove meet each delay, some in the middle of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from tests.footprint import footprint
from vmbusirq import Machine
from vmbusirq.host.vsp import make_vsp
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.wire.protocol import GpadlTorndown, MessageType, message_trace, trace_event

NIC = UUID("5b1fe2c4-7d06-4f3a-8a2b-94c0d7e6135a")
MS = 10_000
DELAYS: dict[str, dict[str, Any]] = {
    "open": {"open_delay_ticks": 5 * MS},
    "close": {"close_delay_ticks": 3 * MS},
    "gpadl": {"gpadl_delay_ticks": 2 * MS},
    "all": {"open_delay_ticks": 5 * MS, "close_delay_ticks": 3 * MS, "gpadl_delay_ticks": 2 * MS},
}
SUBS = 3

each_delay = pytest.mark.parametrize("delay", list(DELAYS))
each_class = pytest.mark.parametrize("device_class", ["netvsc", "scsi", "keyboard"])


def machine_of(delay: str) -> Machine:
    machine = Machine(4)
    machine.host.options = replace(machine.host.options, **DELAYS[delay])
    machine.connect()
    return machine


def add(machine: Machine, device_class: str, instance: UUID = NIC) -> None:
    has_subs = device_class in ("netvsc", "scsi")
    machine.host.add_device(make_vsp(device_class, max_sub_channels=SUBS if has_subs else 0), instance, name="it")


def go_on(machine: Machine) -> None:
    """Let everything happen that is under way, and nothing be left that waits."""
    machine.settle()
    for _ in range(500):
        if not machine.clock.advance_to_next():
            break
        machine.settle()
    assert [] == machine.vmbus.work.stuck
    assert 0 == machine.vmbus.manager.close_on_suspend - sum(
        channel.primary is not None for channel in machine.vmbus.channels.values()
    )


def check_in_service(machine: Machine, device_class: str) -> None:
    """All channels are open at both ends, and each carries a packet."""
    channels = machine.vmbus.channels
    assert (1 if device_class == "keyboard" else 1 + SUBS) == len(channels)
    assert {ChannelState.OPENED} == {channel.state for channel in channels.values()}
    assert set(channels) == set(machine.host.channels)
    before = {relid: channel.stats.packets for relid, channel in channels.items()}
    for relid in channels:
        assert 1 == machine.host.send(relid)
    machine.settle()
    assert {relid: count + 1 for relid, count in before.items()} == {
        relid: channel.stats.packets for relid, channel in channels.items()
    }


def after(machine: Machine, waits: int) -> None:
    """Go on until the machine has waited so often."""
    machine.settle()
    for _ in range(waits):
        if machine.clock.advance_to_next():
            machine.settle()


def suspend(machine: Machine) -> None:
    machine.vmbus.suspend()
    assert {} == dict(machine.vmbus.channels) == dict(machine.host.channels)
    machine.vmbus.resume()


def unbind(machine: Machine) -> None:
    (device,) = machine.vmbus.devices.values()
    driver = device.device_class.driver
    if device.driver is not None:
        machine.vmbus.unbind(device)
    go_on(machine)
    assert {} == dict(machine.host.channels)
    machine.vmbus.bind(driver, device)


def hot_remove(machine: Machine) -> None:
    device_class = machine.host.devices[0].vsp.class_name
    machine.host.remove_device(machine.host.devices[0])
    go_on(machine)
    assert {} == dict(machine.vmbus.channels)
    add(machine, device_class)


@each_delay
@each_class
@pytest.mark.parametrize("operation", [suspend, unbind, hot_remove])
@pytest.mark.parametrize("waits", [0, 1, 2, 3, 5, 8, 13, 99])
def test_whatever_is_interrupted_ends_and_begins_anew(
    waits: int, operation: Callable[[Machine], None], device_class: str, delay: str
) -> None:
    """An open, a close or a GPADL that the host still works on: nothing hangs, nothing is left, all comes back."""
    machine = machine_of(delay)
    before = footprint(machine)
    add(machine, device_class)
    after(machine, waits)
    for _ in range(2):
        operation(machine)
        go_on(machine)
        check_in_service(machine, device_class)

    machine.host.remove_device(machine.host.devices[0])
    go_on(machine)
    assert before == footprint(machine)


@each_delay
@each_class
@pytest.mark.parametrize("backwards", [False, True])
def test_rescinds_while_another_device_is_waited_for(backwards: bool, device_class: str, delay: str) -> None:
    """Probes stand in line behind a slow one; a lying host takes channels away last to first, or first to last."""
    for waits in (0, 1, 2, 4, 7):
        machine = machine_of(delay)
        before = footprint(machine)
        for number, name in enumerate((device_class, "mouse", device_class)):
            add(machine, name, UUID(int=number + 1))
        after(machine, waits)
        host = machine.host
        channels = [channel for device in host.devices for channel in device.channels]
        for device in host.devices:
            host._drop_device(device)  # as remove_device() does, but for the order
        for channel in reversed(channels) if backwards else channels:
            host.default.revoke(channel)
        go_on(machine)

        assert before == footprint(machine)


@pytest.mark.parametrize("close_us", [0, 1, 1000])
@pytest.mark.parametrize("gpadl_us", [0, 1, 1000])
@pytest.mark.parametrize("device_class", ["netvsc", "scsi"])
def test_rescinds_of_sub_channels_come_before_the_primarys_memory(
    device_class: str, gpadl_us: int, close_us: int
) -> None:
    """GPADL_TORNDOWN of the ring is what tells a guest that its primary has closed (vmbus.md 7.2)."""
    machine = Machine(4)
    machine.connect()
    add(machine, device_class)
    go_on(machine)
    machine.host.options = replace(
        machine.host.options, close_delay_ticks=close_us * 10, gpadl_delay_ticks=gpadl_us * 10
    )
    told: list[str] = []
    machine.vmbus.control.traces = told.append
    (device,) = machine.vmbus.devices.values()
    ring = device.primary.gpadl
    machine.vmbus.unbind(device)

    rescind = str(message_trace("vmbus_on_msg_dpc", MessageType.RESCIND_CHANNELOFFER))
    rescinds = [number for number, line in enumerate(told) if line == rescind]
    (torn_down,) = [number for number, line in enumerate(told) if line == str(trace_event(GpadlTorndown(ring)))]
    assert SUBS == len(rescinds)
    assert max(rescinds) < torn_down


@each_delay
def test_suspends_in_a_row_with_a_host_that_closes_slowly(delay: str) -> None:
    """What one suspend leaves behind would fail the next."""
    machine = machine_of(delay)
    add(machine, "netvsc")
    add(machine, "scsi", UUID(int=2))
    go_on(machine)
    for _ in range(3):
        machine.vmbus.suspend()
        assert {} == dict(machine.vmbus.channels) == dict(machine.host.channels)
        machine.vmbus.resume()
        go_on(machine)
        assert 2 * (1 + SUBS) == len(machine.host.channels)


def test_a_host_that_rescinds_sub_channels_long_after_the_close_can_be_left() -> None:
    """Rescinds are taken while a suspend waits for sub-channels to go; Linux drops them, and waits for ever."""
    machine = Machine(4)
    machine.connect()
    add(machine, "netvsc")
    go_on(machine)
    control = machine.host.default._control
    late = type(control)._revoke_sub_channels
    control._revoke_sub_channels = lambda primary: machine.host.later(  # type: ignore[method-assign]
        700 * MS, lambda: late(control, primary)
    )
    machine.vmbus.suspend()
    assert 0 == machine.vmbus.manager.close_on_suspend
    machine.vmbus.resume()
    go_on(machine)
    check_in_service(machine, "netvsc")
