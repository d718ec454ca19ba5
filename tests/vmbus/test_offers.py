"""Offers, relids, sub-channels, rescinds: channels from their offer to their removal (vmbus.md 7.1, 7.3)."""

from __future__ import annotations

import errno

import pytest

from tests.vmbus.scripted import Guest, offer_of, refused
from vmbusirq.log import Level
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.wire.devices import UNSUPPORTED_CLASS_IDS
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import (
    CloseChannel,
    GpadlHeader,
    OpenChannel,
    RelidReleased,
)


def device_of(guest: Guest, relid: int) -> HvDevice:
    device = guest.vmbus.channels[relid].device
    assert device is not None
    return device


# ---- offers


@pytest.mark.parametrize("name", UNSUPPORTED_CLASS_IDS)
@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_unsupported_classes(design: str, name: str) -> None:
    """RFC patch 01: dropped early, no channel, no IRQ, relid never released; before: listed without a driver."""
    guest = Guest(design, offers=[offer_of("", 5, if_type=UNSUPPORTED_CLASS_IDS[name])])
    assert ([] if design == "rfc" else [5]) == list(guest.vmbus.channels)
    assert [] == guest.host.of_type(RelidReleased)
    assert 0 == guest.vmbus.manager.offers_in_progress
    if design == "legacy":
        assert device_of(guest, 5).driver is None
        assert 16 == device_of(guest, 5).index
    guest.host.rescind(5)  # rfc: finds nothing
    guest.settle()
    assert ([] if design == "rfc" else [RelidReleased(5)]) == guest.host.of_type(RelidReleased)
    assert {} == dict(guest.vmbus.channels)


@pytest.mark.parametrize("relid", [0, 2048, 4096, 0xFFFF_FFFF])
def test_a_relid_out_of_range_is_refused_and_given_back(relid: int) -> None:
    """Trap 16: relids are 1 to 2047; a warning, no channel, no IRQ."""
    guest = Guest()
    before = guest.footprint()
    guest.host.post(offer_of("scsi", relid))
    guest.settle()
    assert before == guest.footprint()
    assert [RelidReleased(relid)] == guest.host.of_type(RelidReleased)
    assert any("refused: relids are 1 to 2047" in text for text in guest.log.texts(Level.WARNING))
    assert 0 == guest.vmbus.manager.offers_in_progress
    guest.opened("scsi")  # the instance is free


@pytest.mark.parametrize("relid", [1, 2047])
def test_the_first_and_the_last_relid_work(relid: int) -> None:
    """vmbus.md 2.3."""
    guest = Guest()
    guest.opened("heartbeat", relid)
    guest.synic.signal(0, relid)
    guest.settle()
    assert 1 == guest.vmbus.channels[relid].stats.interrupts


def test_a_relid_in_use_is_refused_and_not_given_back() -> None:
    """It is another channel's: releasing it would take that one's name away."""
    guest = Guest()
    channel = guest.opened("heartbeat")
    guest.host.post(offer_of("scsi", 5, "other"))
    guest.settle()
    assert channel is guest.vmbus.channels[5]
    assert [] == guest.host.of_type(RelidReleased)
    assert 1 == len(guest.vmbus.devices)


def test_the_same_instance_twice_is_refused_and_its_relid_given_back() -> None:
    """vmbus.md 7.4: a re-offer while not suspended is a host's bug; Linux takes it, and fails the next suspend."""
    guest = Guest()
    channel = guest.opened("heartbeat")
    guest.host.post(offer_of("heartbeat", 6))
    guest.settle()
    assert [5] == list(guest.vmbus.channels)
    assert 5 == channel.relid
    assert [RelidReleased(6)] == guest.host.of_type(RelidReleased)
    guest.vmbus.suspend()
    assert 1 == guest.vmbus.manager.fixup_on_resume


def test_a_sub_channel_of_another_class_than_its_instance_is_refused() -> None:
    """Trap 32: sub-channels match by both GUIDs; registering a second device of one name fails (EEXIST)."""
    guest = Guest()
    guest.opened("heartbeat")
    guest.host.post(offer_of("scsi", 6, sub=1))
    guest.settle()
    assert [5] == list(guest.vmbus.channels)
    assert [RelidReleased(6)] == guest.host.of_type(RelidReleased)
    guest.host.rescind(5)
    guest.settle()
    assert 3 == guest.memory.allocated_pages


def test_a_sub_channel_without_a_primary_becomes_a_device() -> None:
    """vmbus_process_offer() looks for a channel of the same GUIDs; without one this is the first of its device."""
    guest = Guest()
    channel = guest.offered("scsi", 6, sub=1)
    assert channel.primary is None
    assert ChannelState.OPENED is channel.state
    guest.host.rescind(6)
    guest.settle()
    assert ({}, 3) == (dict(guest.vmbus.channels), guest.memory.allocated_pages)


@pytest.mark.parametrize("fields", [{"connection_id": 0xFFFF_FFFF}, {"connection_id": 0}, {"monitorid": 200}])
def test_a_channel_whose_host_cannot_be_signalled_works_in_the_other_direction(fields: dict[str, int]) -> None:
    """A connection id or monitor id that cannot be: the hypercall's status is not looked at either (v6.10)."""
    guest = Guest()
    channel = guest.offered("scsi", 5, monitor_allocated="monitorid" in fields, **fields)
    guest.host.write(5, Packet(b"x"))
    guest.settle()
    assert 1 == channel.stats.packets
    channel.send(b"y")
    guest.settle()


def test_an_offer_maps_and_a_second_one_gets_the_next_irq() -> None:
    """vmbus.md 3.3, 7.1: x86 takes the lowest free number from 24 on, in the order in which offers are processed."""
    guest = Guest(offers=[offer_of("heartbeat", 9, "a"), offer_of("shutdown", 7, "b"), offer_of("vss", 8, "c")])
    assert {9: 24, 7: 25, 8: 26} == {relid: channel.irq for relid, channel in guest.vmbus.channels.items()}
    for relid, channel in guest.vmbus.channels.items():
        desc = guest.irq.irq_to_desc(channel.irq)
        assert (relid, channel, True) == (desc.hwirq, desc.handler_data, channel.mapped)
        assert channel.irq == guest.irq.irq_find_mapping(guest.vmbus.domain, relid)
        assert channel.irq == guest.irq.irq_create_mapping(guest.vmbus.domain, relid)  # trap 17: idempotent


def test_without_channel_irqs_nothing_is_mapped_in_the_domain() -> None:
    """Design legacy: relids reach channels, not IRQs."""
    guest = Guest("legacy")
    channel = guest.opened("heartbeat")
    assert (0, True, []) == (channel.irq, channel.mapped, sorted(guest.irq.descs))
    guest.synic.signal(0, 5)
    guest.settle()
    assert 1 == channel.stats.interrupts


def test_hot_add_and_hot_remove_give_the_same_relid_and_irq() -> None:
    """vmbus.md 7.3 [D]: both allocators are lowest-free; an ordinary offer at any time after REQUESTOFFERS."""
    guest = Guest(offers=[offer_of("scsi", 1, "a"), offer_of("heartbeat", 2, "b")])
    before = guest.footprint()
    for n in range(1, 4):
        channel = guest.opened("keyboard", 3, "new")
        assert (26, 3) == (channel.irq, channel.relid)
        guest.host.write(3, Packet(b"key"))
        guest.settle()
        assert (1, 1) == (channel.stats.packets, channel.stats.interrupts)
        guest.host.rescind(3)
        guest.settle()
        assert before == guest.footprint()
        assert n == len(guest.host.of_type(RelidReleased))


def test_monitored_channels_signal_through_the_page() -> None:
    """vmbus.md 2.6: the relid's bit in the interrupt page, the monitor bit in monitor page 2; no event (trap 25)."""
    guest = Guest()
    channel = guest.offered("scsi", 70, monitor_allocated=1, monitorid=37)
    channel.send(b"x")
    pages = guest.vmbus.shared_pages()
    page2, interrupts = pages["monitor page 2"][0] << 12, pages["interrupt page"][0] << 12
    assert 1 << 5 == int.from_bytes(guest.memory.read(page2 + 8 + 8, 4), "little")  # group 1, bit 5
    assert 1 << 6 == guest.memory.read(interrupts + 2048 + 8, 1)[0]
    assert (0, 1) == (channel.stats.sig_events, channel.stats.intr_out_empty)


def test_a_shared_interrupt_sets_the_relid_s_bit_and_calls() -> None:
    """vmbus.md 2.6, step 3: is_dedicated_interrupt = 0."""
    guest = Guest()
    channel = guest.offered("scsi", 70, is_dedicated_interrupt=0)
    channel.send(b"x")
    page = guest.vmbus.shared_pages()["interrupt page"][0] << 12
    assert 1 << 6 == guest.memory.read(page + 2048 + 8, 1)[0]
    assert 1 == channel.stats.sig_events


# ---- init_vp_index


def t_table_offers() -> list[tuple[str, int, str, int]]:
    """Return the offers of vmbus.md 4.1 [T] in their order: class, relid, name, sub_channel_index."""
    return [
        ("scsi", 14, "storvsc1", 0),
        ("scsi", 15, "storvsc0", 0),
        ("netvsc", 13, "nic", 0),
        *[("netvsc", 15 + n, "nic", n) for n in range(1, 8)],
        ("scsi", 23, "storvsc1", 1),
        ("scsi", 24, "storvsc0", 1),
    ]


@pytest.mark.parametrize(
    ("nodes", "isolated", "targets", "allocated"),
    [
        ([0xFF], 0, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], [0x0F]),
        ([0x0F, 0xF0], 0, [0, 4, 1, 5, 2, 6, 3, 7, 0, 4, 1, 5], [0x03, 0x30]),
        ([0xFF], 0xFC, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0], [0x01]),
        ([0, 0xFF], 0, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], [0, 0x0F]),
    ],
    ids=["8 cpus, 1 node", "8 cpus, 2 nodes", "housekeeping 0-1", "node 0 empty"],
)
def test_check_16_the_cpus_of_the_t_table_through_real_offers(
    nodes: list[int], isolated: int, targets: list[int], allocated: list[int]
) -> None:
    """vmbus.md 4.1 [T]; what OPENCHANNEL asks for is the same."""
    offers = [offer_of(*offer) for offer in t_table_offers()]
    guest = Guest(cpus=8, nodes=nodes, isolated=isolated, offers=offers[:3])
    for offer in offers[3:]:  # once their primaries are open
        guest.host.post(offer)
    guest.settle()
    relids = [relid for _, relid, _, _ in t_table_offers()]
    assert targets == [guest.vmbus.channels[relid].target_cpu for relid in relids]
    assert allocated == guest.vmbus.manager.assignment.allocated
    assert dict(zip(relids, targets, strict=True)) == {
        message.child_relid: message.target_vp for message in guest.host.of_type(OpenChannel)
    }


def test_the_last_row_of_the_t_table() -> None:
    """4 CPUs, 2 nodes: netvsc primary and 3 sub-channels, then scsi: 0, 2, 1, 3, then 0."""
    offers = [offer_of("netvsc", 1 + n, "nic", n) for n in range(4)]
    guest = Guest(cpus=4, nodes=[0b0011, 0b1100], offers=[*offers, offer_of("scsi", 9, "disk")])
    assert [0, 2, 1, 3, 0] == [channel.target_cpu for channel in guest.vmbus.channels.values()]
    assert [0b01, 0b1100] == guest.vmbus.manager.assignment.allocated


def test_a_cpu_is_given_back_when_its_last_perf_channel_goes() -> None:
    """vmbus.md 4.1: unmarked only if no other perf channel targets it."""
    guest = Guest(cpus=2, offers=[offer_of("scsi", relid, f"d{relid}") for relid in (1, 2, 3)])
    assert [0, 1, 0] == [channel.target_cpu for channel in guest.vmbus.channels.values()]
    assert [0b01] == guest.vmbus.manager.assignment.allocated
    guest.host.rescind(3)  # CPU 0 stays: relid 1 is there
    guest.settle()
    assert [0b01] == guest.vmbus.manager.assignment.allocated
    guest.host.rescind(1)
    guest.settle()
    assert [0] == guest.vmbus.manager.assignment.allocated


def test_slow_devices_interrupt_the_connect_cpu() -> None:
    """vmbus.md 4.1, 5.1: not perf: CPU 0."""
    offers = [offer_of(name, relid, name) for relid, name in enumerate(("heartbeat", "keyboard", "vpci", ""), 1)]
    guest = Guest(offers=offers)
    assert [0] * 4 == [channel.target_cpu for channel in guest.vmbus.channels.values()]
    assert [0] == guest.vmbus.manager.assignment.allocated


# ---- rescind


def test_a_rescind_closes_removes_and_releases() -> None:
    """vmbus.md 7.3: callback gone, driver removed, IRQ freed and disposed of, RELID_RELEASED, memory back."""
    guest = Guest()
    before = guest.footprint()
    channel = guest.opened("scsi")
    guest.host.rescind(5)
    guest.settle()
    assert before == guest.footprint()
    assert channel.gone
    assert RelidReleased(5) == guest.host.got[-1]
    assert 0 == len(guest.vmbus.devices)


@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_a_flag_of_a_rescinded_relid_is_consumed_and_nothing_moves(design: str) -> None:
    """vmbus.md 3.2, step 4; trap 20."""
    guest = Guest(design)
    guest.opened("heartbeat")
    guest.host.rescind(5)
    guest.settle()
    guest.synic.signal(0, 5)
    guest.settle()
    assert () == guest.synic.flags_set(0)
    assert 1 == guest.core.lost().unmapped


@pytest.mark.parametrize("relid", [0, 1, 6, 2047, 2048, 0xFFFF_FFFF])
def test_a_rescind_of_nothing_is_ignored(relid: int) -> None:
    """vmbus.md 7.3: lookup finds NULL, return."""
    guest = Guest()
    guest.opened("heartbeat")
    before, sent = guest.footprint(), len(guest.host.got)
    guest.host.rescind(relid)
    guest.settle()
    assert (before, sent) == (guest.footprint(), len(guest.host.got))


def test_a_rescind_twice_is_taken_up_once() -> None:
    """rescind_ref; also when both messages wait in line."""
    guest = Guest()
    guest.opened("heartbeat")
    for _ in range(3):
        guest.host.rescind(5)
    guest.settle()
    guest.host.rescind(5)
    guest.settle()
    assert [RelidReleased(5)] == guest.host.of_type(RelidReleased)


@pytest.mark.parametrize("silent", [GpadlHeader, OpenChannel])
def test_a_rescind_while_the_probe_waits(silent: type) -> None:
    """vmbus.md 2.13: why rescinds have a queue of their own. The probe gets ENODEV, then the device goes."""
    guest = Guest()
    guest.host.mute = {silent}
    guest.host.post(offer_of("heartbeat", 5))
    guest.settle()
    assert ChannelState.OPENING is guest.vmbus.channels[5].state
    assert ["hv_pri_chan"] == [line.partition(":")[0] for line in guest.vmbus.work.stuck]
    guest.host.rescind(5)
    guest.settle()
    assert ({}, 3) == (dict(guest.vmbus.channels), guest.memory.allocated_pages)
    assert [RelidReleased(5)] == guest.host.of_type(RelidReleased)
    assert any("probe failed" in text and "(-19)" in text for text in guest.log.texts(Level.ERR))
    assert [] == guest.vmbus.work.stuck


def test_a_rescind_waits_for_the_offers_in_progress() -> None:
    """vmbus.md 7.3: an offer and its rescind in one go: the channel is made, then removed; neither is lost."""
    guest = Guest()
    for _ in range(5):
        guest.host.post(offer_of("heartbeat", 5))
        guest.host.rescind(5)
        guest.settle()
    assert {} == dict(guest.vmbus.channels)
    assert [RelidReleased(5)] * 5 == guest.host.of_type(RelidReleased)
    assert 3 == guest.memory.allocated_pages


def test_a_device_whose_driver_cannot_let_go_is_removed_all_the_same() -> None:
    """vmbus_remove() has no result: the user closed the channel before, the driver's close is EINVAL."""
    guest = Guest()
    channel = guest.opened("heartbeat")
    guest.vmbus.close(channel)
    guest.host.rescind(5)
    guest.settle()
    assert channel.gone
    assert any("hv_utils could not let go" in text for text in guest.log.texts(Level.ERR))
    assert 3 == guest.memory.allocated_pages


# ---- sub-channels


def with_sub(guest: Guest) -> None:
    guest.opened("scsi", 5)
    guest.offered("scsi", 6, sub=1)


def test_a_sub_channel_joins_its_device_and_is_opened_by_its_driver() -> None:
    """vmbus.md 5.4, 7.1: never a device; sc_creation_callback."""
    guest = Guest()
    with_sub(guest)
    device = device_of(guest, 5)
    assert [5, 6] == [channel.relid for channel in device.channels]
    assert device is guest.vmbus.channels[6].device
    assert 1 == len(guest.vmbus.devices)
    assert ChannelState.OPENED is guest.vmbus.channels[6].state
    with refused(errno.EINVAL, "sub-channel"):
        guest.vmbus.close(guest.vmbus.channels[6])


def test_the_close_of_a_primary_closes_its_sub_channels_first() -> None:
    """vmbus.md 2.10."""
    guest = Guest()
    guest.host.rescinds_subs = False
    with_sub(guest)
    guest.vmbus.close(guest.vmbus.channels[5])
    assert [CloseChannel(6), CloseChannel(5)] == guest.host.of_type(CloseChannel)
    assert guest.pages_in_use() == guest.memory.allocated_pages == 3


def test_a_rescind_of_an_open_sub_channel_waits_for_its_primary() -> None:
    """vmbus.md 7.3: complete(rescind_event), and vmbus_close does it later."""
    guest = Guest()
    with_sub(guest)
    sub = guest.vmbus.channels[6]
    guest.host.rescind(6)
    guest.settle()
    assert (True, True, False) == (sub.rescinded, sub.rescind_event, sub.gone)
    with refused(errno.ENODEV):
        sub.send(b"x")
    guest.vmbus.close(guest.vmbus.channels[5])
    assert sub.gone
    assert [5] == list(guest.vmbus.channels)
    assert [RelidReleased(6)] == guest.host.of_type(RelidReleased)
    guest.settle()
    assert 3 == guest.memory.allocated_pages


def test_a_rescind_of_a_closed_sub_channel_removes_it_at_once() -> None:
    """vmbus.md 7.3: state OPEN(2) -> hv_process_channel_removal."""
    guest = Guest(drivers=False)
    guest.offered("scsi", 5)
    sub = guest.offered("scsi", 6, sub=1)
    guest.host.rescind(6)
    guest.settle()
    assert sub.gone
    assert [5] == [channel.relid for channel in device_of(guest, 5).channels]


def test_a_rescind_of_the_primary_takes_open_sub_channels_with_it() -> None:
    """The driver's remove closes both; the sub-channel's own rescind removes it."""
    guest = Guest()
    with_sub(guest)
    guest.host.rescind(5)
    guest.host.rescind(6)
    guest.settle()
    assert ({}, 3) == (dict(guest.vmbus.channels), guest.memory.allocated_pages)
    assert [5, 6] == sorted(message.child_relid for message in guest.host.of_type(RelidReleased))


@pytest.mark.parametrize("order", [(5, 6), (6, 5)])
def test_sub_channels_that_nobody_closes_go_with_their_primary(order: tuple[int, int]) -> None:
    """Opened by hand, no driver to close them: rescinds remove both, in either order; no page is left."""
    guest = Guest(drivers=False)
    with_sub(guest)
    guest.vmbus.open(guest.vmbus.channels[6])
    for relid in order:
        guest.host.rescind(relid)
        guest.settle()
    assert ({}, 3) == (dict(guest.vmbus.channels), guest.memory.allocated_pages)
    assert 0 == guest.vmbus.manager.close_on_suspend


# ---- binding


def test_unbind_and_bind_again() -> None:
    """drivers/<name>/{un,}bind: ENODEV for nobody and for no match, EBUSY when bound."""
    guest = Guest()
    channel = guest.opened("heartbeat")
    device = device_of(guest, 5)
    with refused(errno.EBUSY):
        guest.vmbus.bind("hv_utils", device)
    guest.vmbus.unbind(device)
    assert ChannelState.OPEN is channel.state
    with refused(errno.ENODEV):
        guest.vmbus.unbind(device)
    with refused(errno.ENODEV, "does not serve"):
        guest.vmbus.bind("hv_netvsc", device)
    with refused(errno.ENODEV, "no driver 'nobody'"):
        guest.vmbus.bind("nobody", device)
    guest.vmbus.bind("hv_utils", device)
    assert ChannelState.OPENED is channel.state


def test_new_id_binds_what_waits_for_it() -> None:
    """new_id_store: EEXIST the second time."""
    guest = Guest()
    channel = guest.offered("")
    device = device_of(guest, 5)
    assert device.driver is None
    guest.vmbus.new_id("hv_pci", device.class_id)
    assert ChannelState.OPENED is channel.state
    with refused(errno.EEXIST):
        guest.vmbus.new_id("hv_pci", device.class_id)
    with refused(errno.ENODEV):
        guest.vmbus.new_id("nobody", device.class_id)
    with refused(errno.ENODEV, "no driver 'nobody'"):
        guest.vmbus.remove_id("nobody", device.class_id)
    guest.vmbus.remove_id("hv_pci", device.class_id)
    with refused(errno.ENODEV):
        guest.vmbus.remove_id("hv_pci", device.class_id)
