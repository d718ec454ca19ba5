"""storvsc against its VSP, and against a host that lies (vmbus.md 1.14, 1.15, 4.3, 5.4)."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices import World
from vmbusirq.errors import IrqError
from vmbusirq.host.vsp.storvsc import InitState, StorvscVsp
from vmbusirq.vmbus.drivers.storvsc import StorDevice, StorvscDriver
from vmbusirq.vmbus.requestor import RQST_INIT, RQST_RESET
from vmbusirq.wire.packet import COMPLETION, Packet
from vmbusirq.wire.vstor import Operation, StorFlags, VstorPacket


def make(subs=4, cpus=8, name="scsi", **options):
    world = World(StorvscDriver, cpus)
    device = world.add(StorvscVsp(name, subs, **options), name)
    return world, device


def probed(*args, **options):
    world, device = make(*args, **options)
    world.probe(device)
    return world, device, world.driver.devices[device]


@pytest.mark.parametrize(
    ("name", "subs", "cpus", "expected"),
    [("scsi", 4, 8, 4), ("scsi", 64, 8, 7), ("scsi", 3, 1, 0), ("scsi", 0, 8, 0), ("fc", 2, 8, 2), ("ide", 4, 8, 0)],
)
def test_sub_channels_are_min_of_online_cpus_less_one_and_the_hosts_most(name, subs, cpus, expected) -> None:
    """vmbus.md 5.4; IDE has its primary only."""
    _world, device, stor = probed(subs, cpus, name)
    assert expected == stor.num_sc == len(device.sub_channels) == len(stor.subs)
    assert InitState.READY is device.vsp.state
    assert set(range(expected + 1)) == stor.alloced_cpus


def test_the_host_decides_how_many_it_offers() -> None:
    """vmbus.md 5.4: what is asked for is not what is offered."""
    world, device = make(subs=5)
    device.max_sub_channels = 5
    device.vsp._describe = lambda _c, r: r.completion(body=b"\0\0\0\0\7\0\0\0\1\0\0\0")
    world.probe(device)
    assert 7 == world.driver.devices[device].num_sc
    assert 5 == len(device.sub_channels)


def test_channels_open_with_24_zero_bytes_of_user_data() -> None:
    """storvsc_connect_to_vsp and handle_sc_creation pass struct vmstorage_channel_properties."""
    _, device, _ = probed()
    assert {bytes(24)} == {guest.userdata for guest in (device.primary, *device.sub_channels)}


def test_names_carry_the_host_number_in_order_of_probe() -> None:
    """RFC patch 05; the number is the SCSI host's, lowest free first."""
    world, first = make(1)
    second = world.add(StorvscVsp("ide"), "ide")
    world.probe(second)
    world.probe(first)
    assert "pri@storvsc0" == second.primary.irq_name
    assert ["pri@storvsc1", "sub@storvsc1"] == [first.primary.irq_name, first.sub_channels[0].irq_name]
    world.run(world.driver.remove(second))
    third = world.add(StorvscVsp(), "scsi")
    world.probe(third)
    assert 0 == world.driver.devices[third].host_no


def test_host_numbers_can_be_fixed() -> None:
    """Options name the number of an instance; others keep off it."""
    world, first = make(0)
    second = world.add(StorvscVsp(), "scsi")
    world.options.scsi_hosts = {second.guid: 0}
    world.probe(first)
    world.probe(second)
    assert [1, 0] == [world.driver.devices[device].host_no for device in (first, second)]


def test_versions_are_tried_until_the_host_takes_one() -> None:
    """storvsc_channel_init: 6.2, 6.0, 5.1."""
    _, device, stor = probed(versions=(0x0501,))
    assert 0x0501 == stor.version == device.vsp.version


def test_a_host_of_no_known_version_undoes_the_probe() -> None:
    """The channel is closed and the host number is free again."""
    world, device = make(versions=(0x0402,))
    with pytest.raises(IrqError) as caught:
        world.probe(device)
    assert errno.EINVAL == caught.value.errno
    assert {} == world.driver.devices == world.driver._by_channel
    assert not device.primary.opened


def test_a_silent_host_is_given_180_seconds() -> None:
    """vmbus.md 2.12: storvsc init operations."""
    world, device = make()
    world.answering = False
    with pytest.raises(IrqError) as caught:
        world.probe(device)
    assert errno.ETIMEDOUT == caught.value.errno
    assert not device.primary.opened


def test_without_an_answer_to_create_sub_channels_the_primary_works_alone() -> None:
    """handle_multichannel_storage: logs and goes on."""
    world, device = make()
    device.vsp._create_sub_channels = lambda _c, r: r.completion(0xC0000001)
    world.probe(device)
    assert ["hv_storvsc: Failed to create sub-channel: op=1, sts=0xc0000001"] == world.log.texts()
    assert 0 == len(device.sub_channels)


def test_commands_go_out_on_the_cpus_channel_and_come_back() -> None:
    """Transaction id = tag + 1 (vmbus.md 1.14)."""
    world, device, stor = probed(3, 4, execute=lambda body: body[:3][::-1])
    answers = []
    tags = [world.driver.submit(device, b"abc", cpu, answers.append) for cpu in (0, 3, 3, 7)]
    assert [0, 1, 2, 3] == tags
    assert [1, 0, 0, 3] == [len(guest.to_host) for guest, _ in device.pairs]  # cpu 7 shares: 7 mod 4 channels
    assert [2, 3, 4] == [packet.trans_id for packet in device.sub_channels[2].to_host]
    world.settle()
    assert (4, 4, {}) == (stor.completions, device.vsp.commands, stor.commands)
    assert [b"cba"] * 4 == [answer.body[:3] for answer in answers]


def test_submit_needs_a_device_in_service_and_a_command_that_fits() -> None:
    """ENODEV before the probe and after the removal; 52 bytes."""
    world, device = make()
    with pytest.raises(IrqError) as caught:
        world.driver.submit(device, b"")
    assert errno.ENODEV == caught.value.errno
    world.probe(device)
    with pytest.raises(IrqError) as caught:
        world.driver.submit(device, bytes(53))
    assert errno.EINVAL == caught.value.errno
    world.run(world.driver.remove(device))
    with pytest.raises(IrqError):
        world.driver.submit(device, b"")


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (Packet(bytes(56), COMPLETION, trans_id=5), "Invalid pkt: id=5, len=56, minlen=64"),
        (Packet(b"", trans_id=0), "Invalid pkt: id=0, len=0, minlen=4"),
        (Packet(bytes(64), COMPLETION, trans_id=9), "Incorrect transaction ID"),
        (Packet(bytes(64), COMPLETION, trans_id=RQST_INIT), "Incorrect transaction ID"),
        (Packet(bytes(64), COMPLETION, trans_id=RQST_RESET), "Incorrect transaction ID"),
        (Packet(VstorPacket(Operation.COMPLETE_IO).to_bytes()), "Invalid packet with ID of 0"),
        (Packet(VstorPacket(Operation.FCHBA_DATA).to_bytes()), "Invalid packet with ID of 0"),
    ],
)
def test_what_makes_no_sense_is_logged_and_dropped(packet, text) -> None:
    """vmbus.md 1.15, driver level."""
    world, device, stor = probed()
    world.driver.packet(device.primary, packet)
    assert [f"hv_storvsc: {text}"] == world.log.texts()
    assert 1 == stor.dropped


def test_the_host_can_ask_for_a_rescan() -> None:
    """Unsolicited, id 0: ENUMERATE_BUS."""
    world, device, stor = probed()
    device.vsp.enumerate_bus(device.host)
    world.settle()
    assert (1, 0) == (stor.rescans, stor.dropped)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=72), st.sampled_from([6, 7, 11]), st.integers(0, 6)), max_size=12))
def test_any_garbage_leaves_the_driver_working(packets) -> None:
    """No exception; commands that the garbage did not complete still complete."""
    world, device, stor = probed(2, 4)
    for cpu in range(3):
        world.driver.submit(device, b"cmd", cpu)
    for payload, kind, trans_id in packets:
        world.driver.packet(device.primary, Packet(payload, kind, trans_id=trans_id))
    world.settle()
    assert {} == stor.commands
    assert 3 == stor.completions


def test_a_sub_channel_that_does_not_open_is_left_out() -> None:
    """handle_sc_creation gives up on that one; the others work."""
    world, device = make(2)
    world.fail_open = {3}
    world.probe(device)
    stor = world.driver.devices[device]
    assert [2] == [channel.relid for channel in stor.subs]
    assert {0, 1} == stor.alloced_cpus


def test_suspend_and_resume_keep_the_host_number_and_open_anew() -> None:
    """vmbus.md 7.4: sub-channels come back as new channels."""
    world, device, stor = probed(2)
    world.run(world.driver.suspend(device))
    assert not device.primary.opened
    assert not stor.subs
    device.pairs[1:] = []
    world.run(world.driver.resume(device))
    world.settle()
    assert 2 == len(stor.subs)
    assert "sub@storvsc0" == stor.subs[0].irq_name
    assert stor is world.driver.devices[device]


def test_remove_after_rescind_closes_without_talking() -> None:
    """The driver's tables are empty afterwards."""
    world, device, _ = probed(2)
    device.primary.rescinded = True
    world.run(world.driver.remove(device))
    assert {} == world.driver.devices == world.driver._by_channel
    assert device.primary.change_target_cpu is None


def test_a_rescind_in_the_middle_of_the_probe_ends_it() -> None:
    """Waiters are woken with ENODEV (vmbus.md 7.3)."""
    world, device = make()
    world.answering = False
    steps = world.driver.probe(device)
    for step in steps:
        if "BEGIN_INITIALIZATION" in step.point:
            device.primary.rescinded = True
            break
    with pytest.raises(IrqError) as caught:
        world.run(steps)
    assert errno.ENODEV == caught.value.errno
    assert not device.primary.opened


# ---- vmbus.md 4.3


def channel(cpu):
    return SimpleNamespace(target_cpu=cpu)


def stor_with(*cpus):
    channels = [channel(cpu) for cpu in cpus]
    stor = StorDevice(SimpleNamespace(), 0, channels[0])
    stor.subs.extend(channels[1:])
    stor.num_sc = len(stor.subs)
    for one in channels:
        stor.add(one)
    return stor, channels


def test_moving_the_only_channel_of_a_cpu_frees_it() -> None:
    """The old CPU leaves alloced_cpus; entries of CPUs outside are reset."""
    stor, (first, second) = stor_with(0, 1)
    assert second is stor.channel_of(3)
    stor.change_target_cpu(second, 1, 2)
    assert {0, 2} == stor.alloced_cpus
    assert {0: first, 2: second} == stor.stor_chns


def test_moving_one_of_two_channels_of_a_cpu_leaves_the_other_there() -> None:
    """stor_chns[old] = the other; the primary is looked at first."""
    stor, (first, second, third) = stor_with(1, 1, 2)
    stor.change_target_cpu(second, 1, 3)
    assert {1: first, 2: third, 3: second} == stor.stor_chns
    assert {1, 2, 3} == stor.alloced_cpus


def test_a_sub_channel_that_does_not_open_takes_no_cpu_over() -> None:
    """Linux looks at all of the device's channels, those that it could not open included; here those in use."""
    world, device = make(2, 4)
    world.fail_open = {3}
    world.probe(device)
    stor = world.driver.devices[device]
    opened, closed = device.sub_channels
    closed.target_cpu = opened.target_cpu
    stor.change_target_cpu(opened, opened.target_cpu, 3)
    assert ({0: device.primary, 3: opened}, {0, 3}) == (stor.stor_chns, stor.alloced_cpus)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_moves_keep_the_table_true(cpus, moves) -> None:
    """alloced_cpus is what channels interrupt; each entry of the table is a channel of its CPU."""
    stor, channels = stor_with(*cpus)
    for which, new in moves:
        one = channels[which % len(channels)]
        stor.change_target_cpu(one, one.target_cpu, new)
        one.target_cpu = new
        assert {other.target_cpu for other in channels} == stor.alloced_cpus
        assert stor.alloced_cpus == set(stor.stor_chns)
        assert all(cpu == entry.target_cpu for cpu, entry in stor.stor_chns.items())


def test_a_cpu_without_channel_takes_one_of_its_node_in_turn() -> None:
    """get_og_chn: cpu modulo the node's channels; none in the node: the primary."""
    stor, channels = stor_with(0, 1, 4)

    def node(cpu):
        return cpu // 4

    assert [channels[0], channels[1]] == [stor.channel_of(cpu, node) for cpu in (2, 3)]
    assert channels[2] is stor.channel_of(7, node)
    assert channels[0] is stor.channel_of(8, node)


def test_flags_say_whether_sub_channels_are_there() -> None:
    """vmbus.md 5.4: "supports multi-channel"."""
    assert StorFlags.SUPPORTS_MULTI_CHANNEL == probed(1)[2].properties.flags
    assert StorFlags.NONE == probed(0)[2].properties.flags
