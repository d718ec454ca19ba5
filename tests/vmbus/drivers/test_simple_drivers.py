"""Drivers of opaque devices, PCI pass-through and hv_sock, against their VSPs and against garbage."""

from __future__ import annotations

import errno
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices import World
from vmbusirq.errors import IrqError
from vmbusirq.host.vsp import VSPS, HvSockVsp
from vmbusirq.host.vsp.hv_sock import Service
from vmbusirq.vmbus.drivers import DRIVERS
from vmbusirq.vmbus.drivers.base import Driver
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE
from vmbusirq.vmbus.drivers.generic import UioDriver
from vmbusirq.vmbus.drivers.hv_sock import HvSockDriver
from vmbusirq.vmbus.drivers.vpci import PciDriver, choose_domain
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, Packet
from vmbusirq.wire.pipe import pipe_bytes
from vmbusirq.wire.protocol import vsock_service_id

GENERIC = ["framebuffer", "keyboard", "mouse", "balloon"]


def test_every_class_of_the_catalogue_has_a_driver_and_a_vsp() -> None:
    """docs/hacking.md: a device is one row and its two ends; two classes have no driver in v6.10 (vmbus.md 5.1)."""
    assert {row.driver for row in CATALOGUE.values()} - {""} <= set(DRIVERS)
    assert {"netdirect", "fcopy"} == {name for name, row in CATALOGUE.items() if not row.driver}
    assert set(CATALOGUE) - {"hv_sock"} <= set(VSPS)
    for name, make in VSPS.items():
        assert name == make().class_name
    assert all(issubclass(driver, Driver) and name == driver.name for name, driver in DRIVERS.items())


def probed(name, **options):
    world = World(DRIVERS[CATALOGUE[name].driver])
    device = world.add(VSPS[name](**options), name)
    world.probe(device)
    return world, device


@pytest.mark.parametrize("name", GENERIC)
def test_opaque_requests_are_completed_both_ways(name) -> None:
    """Under the request's transaction id."""
    world, device = probed(name)
    device.vsp.ask(device.host, b"from the host")
    world.settle()
    assert 1 == device.vsp.replies
    world.run(world.driver.ask(device, b"from the guest"))
    assert 1 == device.vsp.completed
    world.run(world.driver.remove(device))
    assert {} == world.driver.devices == world.driver._by_channel
    with pytest.raises(IrqError) as caught:
        world.run(world.driver.ask(device, b""))
    assert errno.ENODEV == caught.value.errno


@pytest.mark.parametrize("name", [*GENERIC, "vpci", "scsi", "netvsc", "heartbeat"])
def test_an_open_that_is_refused_leaves_nothing(name) -> None:
    """The error goes to who probes; the driver's tables are empty."""
    world = World(DRIVERS[CATALOGUE[name].driver])
    device = world.add(VSPS[name](), name)
    world.fail_open = {1}
    with pytest.raises(IrqError) as caught:
        world.probe(device)
    assert errno.EAGAIN == caught.value.errno
    assert {} == world.driver.devices == world.driver._by_channel


@pytest.mark.parametrize("name", [*GENERIC, "vpci", "scsi", "netvsc", "heartbeat"])
def test_remove_works_after_a_rescind_and_a_second_time(name) -> None:
    """A second remove does nothing."""
    world, device = probed(name)
    device.primary.rescinded = True
    for _ in range(2):
        world.run(world.driver.remove(device))
    assert {} == world.driver.devices == world.driver._by_channel


@pytest.mark.parametrize("name", ["framebuffer", "vpci", "heartbeat"])
def test_sub_channels_that_nobody_asked_for_stay_closed(name) -> None:
    """Only netvsc and storvsc ask (vmbus.md 5.4)."""
    world, device = probed(name)
    sub = device.add_pair()
    world.run(world.driver.sub_channel(sub))
    assert not sub.opened
    assert "nobody asked for" in str(world.log)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*GENERIC, "vpci"]),
    st.lists(st.tuples(st.binary(max_size=40), st.sampled_from([6, 7, 9, 11]), st.integers(0, 1), st.integers(0, 5))),
)
def test_any_garbage_leaves_both_ends_working(name, packets) -> None:
    """No exception; the device still answers."""
    world, device = probed(name)
    for payload, kind, flags, trans_id in packets:
        world.driver.packet(device.primary, Packet(payload, kind, flags, trans_id))
        device.host.take(Packet(payload, kind, flags, trans_id))
    world.settle()
    world.run(world.driver.remove(device))
    world.probe(device)


def test_a_device_without_a_driver_of_its_own_cannot_be_suspended() -> None:
    """vmbus.md 7.4: no suspend method is -EOPNOTSUPP."""
    world = World(UioDriver)
    device = world.add(VSPS["fcopy"](), "keyboard")
    world.probe(device)
    with pytest.raises(IrqError) as caught:
        world.run(world.driver.suspend(device))
    assert errno.EOPNOTSUPP == caught.value.errno


# ---- PCI pass-through


@pytest.mark.parametrize(
    ("instance", "taken", "domain"),
    [
        ("00000000-abcd-0000-0000-000000000000", (), 0xABCD),
        ("00000000-abcd-0000-0000-000000000000", (0xABCD,), 1),
        ("00000000-0000-0000-0000-000000000000", (1, 2), 3),
    ],
)
def test_the_domain_is_the_second_group_of_the_guid(instance, taken, domain) -> None:
    """vmbus.md 5.4: bytes 5 and 4; 0 or taken: the lowest that is free."""
    assert domain == choose_domain(UUID(instance), taken)


def test_65535_domains_and_no_more() -> None:
    """ENOSPC."""
    with pytest.raises(IrqError) as caught:
        choose_domain(UUID(int=0), range(1, 65536))
    assert errno.ENOSPC == caught.value.errno


def test_the_irq_is_named_by_the_domain_and_again_after_resume() -> None:
    """RFC patch 04."""
    world = World(PciDriver)
    device = world.add(VSPS["vpci"](), "vpci", UUID("00000000-00fe-0000-0000-000000000000"))
    world.probe(device)
    assert "vpci:00fe" == device.primary.irq_name
    world.run(world.driver.suspend(device))
    device.primary.irq_name = "x"
    world.run(world.driver.resume(device))
    assert "vpci:00fe" == device.primary.irq_name
    world.run(world.driver.remove(device))
    assert [0x42490013, 0x42490007, 0x42490008] * 2 == device.vsp.messages


def test_a_host_that_refuses_undoes_the_probe() -> None:
    """A status with the top bit set."""
    world = World(PciDriver)
    device = world.add(VSPS["vpci"](status=0xC0000001), "vpci")
    with pytest.raises(IrqError) as caught:
        world.probe(device)
    assert errno.EPROTO == caught.value.errno
    assert not device.primary.opened
    assert {} == world.driver.devices


def test_a_host_that_does_not_answer_d0_exit_delays_the_close_by_10_seconds() -> None:
    """vmbus.md 7.4: then the driver goes on."""
    world, device = probed("vpci")
    world.answering = False
    world.run(world.driver.remove(device))
    assert "ETIMEDOUT" in str(world.log)
    assert not device.primary.opened


def test_completions_of_nothing_are_dropped() -> None:
    """hv_pci uses the requestor (vmbus.md 1.14)."""
    world, device = probed("vpci")
    world.driver.packet(device.primary, Packet(b"", COMPLETION, trans_id=1))
    assert ["hv_pci: Invalid transaction ID 1"] == world.log.texts()


# ---- hv_sock


def connected(service=Service.ECHO):
    world = World(HvSockDriver)
    device = world.add(HvSockVsp(vsock_service_id(5000), service), "hv_sock")
    world.probe(device)
    return world, device, world.driver.devices[device]


def test_an_echo_service_sends_everything_back() -> None:
    """A stream: sizes of packets are not kept."""
    world, device, connection = connected()
    data = bytes(range(256)) * 64
    assert len(data) == world.driver.send(device, data)
    world.settle()
    assert data == world.driver.receive(device, 10) + world.driver.receive(device, 1 << 20)
    assert b"" == world.driver.receive(device, 10)
    assert len(data) == connection.bytes_received == device.vsp.bytes_sent == device.vsp.bytes_received


def test_a_sink_swallows() -> None:
    """It counts."""
    world, device, _ = connected(Service.SINK)
    world.driver.send(device, b"abc")
    world.settle()
    assert (3, 0) == (device.vsp.bytes_received, device.vsp.bytes_sent)


def test_shutdown_is_fin_both_ways_then_close() -> None:
    """vmbus.md 7.6."""
    world, device, connection = connected()
    world.run(world.driver.shutdown(device))
    assert connection.fin_received
    assert connection.fin_sent
    assert device.vsp.fin_received
    assert not device.primary.opened
    assert device.vsp.closes_for_good
    with pytest.raises(IrqError) as caught:
        world.driver.send(device, b"x")
    assert errno.ENOTCONN == caught.value.errno


def test_a_host_that_says_no_fin_is_given_8_seconds() -> None:
    """vmbus.md 2.12."""
    world, device, connection = connected()
    world.answering = False
    world.run(world.driver.shutdown(device))
    assert not connection.fin_received
    assert not device.primary.opened


def test_the_host_can_end_its_stream_first() -> None:
    """Then the guest may still send; data behind the host's FIN is dropped."""
    world, device, connection = connected(Service.SINK)
    device.vsp.finish()
    device.host.write(Packet(pipe_bytes(b"late")))
    world.driver.send(device, b"abc")
    world.settle()
    assert connection.fin_received
    assert (0, 1) == (connection.bytes_received, connection.dropped)
    assert 3 == device.vsp.bytes_received
    with pytest.raises(IrqError) as caught:
        device.vsp.send(b"x")
    assert errno.EPIPE == caught.value.errno


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=40), st.sampled_from([6, 7, 11]))))
def test_garbage_on_a_connection_is_dropped(packets) -> None:
    """Both ends go on until the close."""
    world, device, connection = connected()
    for payload, kind in packets:
        world.driver.packet(device.primary, Packet(payload, kind))
        device.host.take(Packet(payload, kind))
    world.settle()
    assert len(connection.received) == connection.bytes_received
    world.run(world.driver.remove(device))
    assert {} == world.driver.devices


def test_completion_flag_from_a_generic_host_is_answered() -> None:
    """Flags 1 asks for a completion (vmbus.md 1.5)."""
    world, device = probed("keyboard")
    world.driver.packet(device.primary, Packet(b"key", flags=COMPLETION_REQUESTED, trans_id=77))
    (answer,) = device.primary.to_host
    assert (COMPLETION, 77) == (answer.type, answer.trans_id)
