"""Drivers and VSPs through the whole machine: hypercalls, messages, rings, interrupts; requests and answers of each."""

from __future__ import annotations

import pytest

from vmbusirq import Machine


@pytest.fixture
def machine():
    """The default scenario, run to its end."""
    with_traffic = Machine.load("rfc-gen2-8vcpu")
    with_traffic.run()
    return with_traffic


def host(machine, class_name):
    return next(device for device in machine.host.devices if device.vsp.class_name == class_name)


def guest(machine, driver, class_name):
    served = machine.vmbus.devices.drivers[driver].devices
    return next((device, state) for device, state in served.items() if device.device_class.name == class_name)


def test_services_answer_through_the_rings(machine) -> None:
    """Each under its own transaction id (vmbus.md 1.16)."""
    beat, time = host(machine, "heartbeat").vsp, host(machine, "timesync").vsp
    shutdown, kvp = host(machine, "shutdown").vsp, host(machine, "kvp").vsp
    bodies = []
    beat.beat()
    time.sync()
    shutdown.request(1, 5, 6)
    kvp.ask(b"key", lambda answer: bodies.append(answer.body))
    machine.settle()
    assert (1, 1, 1, [b"key"]) == (beat.beats, time.samples, len(shutdown.results), bodies)
    assert [0, 0, 0, 0] == [vsp.dropped for vsp in (beat, time, shutdown, kvp)]


def test_commands_and_frames_are_completed_on_every_channel(machine) -> None:
    """Storage and network, primary and sub-channels."""
    (disk, stor), (nic, net) = guest(machine, "hv_storvsc", "scsi"), guest(machine, "hv_netvsc", "netvsc")
    drivers = machine.vmbus.devices.drivers
    for cpu in range(8):
        drivers["hv_storvsc"].submit(disk, b"cdb", cpu)
        drivers["hv_netvsc"].transmit(nic, b"frame", cpu)
    for channel in host(machine, "netvsc").channels:
        host(machine, "netvsc").vsp.deliver(channel, b"to the guest")
    machine.settle()
    assert (8, {}) == (stor.completions, stor.commands)
    assert (8, 8, 8 * 12) == (net.completed, net.received, net.bytes)
    assert 8 == host(machine, "netvsc").vsp.returned
    assert [0, 0] == [stor.dropped, net.dropped]


@pytest.mark.parametrize("class_name", ["keyboard", "mouse", "framebuffer", "balloon"])
def test_opaque_requests_are_completed(machine, class_name) -> None:
    """By whoever drives the device."""
    device = host(machine, class_name)
    device.vsp.ask(device.primary, b"opaque")
    machine.settle()
    assert 1 == device.vsp.replies


def test_a_rescinded_adapter_gives_its_buffers_back(machine) -> None:
    """vmbus.md 7.3: nothing of it stays, in either table."""
    before = machine.partition.memory.allocated_pages
    device = host(machine, "netvsc")
    machine.detach(device.primary.relid)
    assert {} == machine.vmbus.devices.drivers["hv_netvsc"].devices
    assert before - machine.partition.memory.allocated_pages == 4526 + 288 + 8 * 2 * 128


def test_suspend_and_resume_bring_every_device_back(machine) -> None:
    """vmbus.md 7.4: the same memory is shared as before, and both ends talk."""
    before = machine.partition.memory.allocated_pages
    machine.vmbus.suspend()
    machine.vmbus.resume()
    machine.settle()
    assert before == machine.partition.memory.allocated_pages
    test_services_answer_through_the_rings(machine)
    test_commands_and_frames_are_completed_on_every_channel(machine)
