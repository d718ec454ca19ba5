"""Drivers and VSPs through the whole machine: hypercalls, messages, rings, interrupts; requests and answers of each."""

from __future__ import annotations

import errno
from uuid import UUID

import pytest

from vmbusirq import Machine
from vmbusirq.errors import Hung, IrqError
from vmbusirq.host.stats import Traffic
from vmbusirq.host.vsp import make_vsp
from vmbusirq.steps import run
from vmbusirq.wire import nvsp
from vmbusirq.wire.protocol import MessageType


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


def test_a_service_counts_what_the_reader_in_c_has_answered() -> None:
    """Heartbeat and timesync requests never come to the driver; a driver that is bound anew begins at 0."""
    machine = Machine(2)
    for name in ("heartbeat", "timesync", "shutdown", "kvp"):
        machine.attach(name)
    for _ in range(2):
        host(machine, "heartbeat").vsp.beat()
        host(machine, "timesync").vsp.sample()
        host(machine, "shutdown").vsp.request(1, 5, 6)
        host(machine, "kvp").vsp.ask(b"key", lambda answer: None)
        machine.settle()
        for name in ("heartbeat", "timesync", "shutdown", "kvp"):
            device, service = guest(machine, "hv_utils", name)
            assert (name, 1, 1) == (name, service.negotiations, service.answered)
            machine.vmbus.unbind(device)
            machine.vmbus.bind("hv_utils", device)
        machine.settle()


@pytest.mark.parametrize("class_name", ["keyboard", "heartbeat", "hv_sock", "netvsc", "scsi", "vpci"])
def test_a_driver_forgets_a_channel_whose_close_failed(class_name) -> None:
    """The host answers no GPADL_TEARDOWN: the driver is gone all the same, and keeps nothing of the channel."""
    machine = Machine(2)
    channel = machine.attach(class_name, 5)
    driver = channel.device.driver
    machine.host.default._handlers[MessageType.GPADL_TEARDOWN] = lambda message: None
    machine.vmbus.unbind(channel.device)
    assert ({}, {}) == (dict(driver.devices), dict(driver._by_channel))


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


def test_the_host_lets_go_of_a_buffer_before_it_says_so(machine) -> None:
    """GPADL_TEARDOWN of a buffer in use is answered when the VSP has ceased to use it (vmbus.md 2.10)."""
    device, net = guest(machine, "hv_netvsc", "netvsc")
    vsp, channel = host(machine, "netvsc").vsp, machine.host.channels[net.primary.relid]
    handle = net.receive.handle
    gpadl = channel.gpadl(handle)
    with pytest.raises(Hung):  # a guest that forgets to revoke it waits for the close
        run(machine.vmbus.teardown_gpadl_steps(net.primary, handle, net.receive.pages), machine.partition.idle)
    vsp.deliver(channel, b"frame")
    machine.settle()
    machine.vmbus.unbind(device)
    assert "the guest has it back" == gpadl.state.value
    with pytest.raises(IrqError) as caught:
        gpadl.write(0, b"late")
    assert errno.EFAULT == caught.value.errno


@pytest.mark.parametrize("silent", ["share", "share and teardown"])
def test_buffers_of_a_host_that_falls_silent_come_back_after_the_rescind(silent: str) -> None:
    """The host may know of the pages: nobody gets them before it has let go, and none is lost for ever."""
    machine = Machine(4)
    machine.connect()
    before = machine.partition.memory.allocated_pages
    vsp = make_vsp("netvsc")
    device = machine.host.add_device(vsp, UUID(int=5), name="silent")
    machine.settle()
    bound = machine.vmbus.devices[UUID(int=5)]
    machine.vmbus.unbind(bound)
    serve = vsp._serve
    vsp._serve = lambda channel, message: None if isinstance(message, nvsp.ShareSendBuffer) else serve(channel, message)
    handlers = machine.host.default._handlers
    if silent == "share and teardown":
        handlers[MessageType.GPADL_TEARDOWN] = lambda message: None
    with pytest.raises(Hung):
        machine.vmbus.bind("hv_netvsc", bound)
    leaked = machine.partition.memory.allocated_pages - before
    assert machine.vmbus.stranded_pages == leaked == (0 if silent == "share" else leaked)
    assert bool(leaked) == (silent == "share and teardown")
    machine.host.remove_device(device)
    machine.settle()
    assert (before, 0) == (machine.partition.memory.allocated_pages, machine.vmbus.stranded_pages)


def test_bulk_traffic_leaves_answers_to_requests_alone(machine) -> None:
    """A beat that is under way is answered to the VSP, not counted with the bulk."""
    beat = host(machine, "heartbeat")
    relid, before = beat.primary.relid, beat.vsp.beats
    beat.vsp.beat()
    machine.host.drive([Traffic(relid, 3, 1, 64)], seed=1)
    machine.settle()
    assert (before + 1, 0) == (beat.vsp.beats, beat.primary.unanswered)
