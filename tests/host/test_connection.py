"""Contact, versions, offers, unload: the connection as a whole (vmbus.md 2.3, 2.9, 2.10, 7.3, 7.5)."""

from __future__ import annotations

import pytest

from tests.host.scripted import NIC, Rig, guid, raw
from vmbusirq.host.connection import Phase
from vmbusirq.host.options import HostOptions, by_interface
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.protocol import (
    LINUX_VERSIONS,
    FeatureFlags,
    InitiateContact,
    MessageType,
    ModifyConnection,
    ModifyConnectionResponse,
    OfferChannel,
    Pause,
    PauseResponse,
    RequestOffers,
    Resume,
    Unload,
    UnloadResponse,
    Version,
    VersionResponse,
    encode,
)


@pytest.mark.parametrize("version", LINUX_VERSIONS, ids=str)
def test_each_version_is_agreed_on_and_brings_offers(version: Version) -> None:
    """vmbus.md 2.9, 2.10: supported, then offers, then ALLOFFERS_DELIVERED; msg_conn_id is the version before 5.0."""
    rig = Rig(version=version)
    rig.device(1)
    rig.device(2)
    response = rig.contact()
    assert (1, 0) == (response.version_supported, response.connection_state)
    assert (int(version) if version < Version.V5_0 else 0x24) == response.msg_conn_id
    messages = rig.send(RequestOffers())
    assert [1, 2] == [message.child_relid for message in messages if isinstance(message, OfferChannel)]
    assert MessageType.ALLOFFERS_DELIVERED == messages[-1].msgtype


@pytest.mark.parametrize("number", [0, 0x0000D, 0x10001, 0x20003, 0x40002, 0x50004, 0x60000, 0x70000, 0xFFFFFFFF])
def test_only_exact_versions_up_to_the_hosts_are_supported(number: int) -> None:
    """vmbus.md 2.9: an exact match is required; anything else is version_supported 0, and nothing is connected."""
    rig = Rig()
    assert 0 == rig.contact(number).version_supported
    assert Phase.DISCONNECTED is rig.bus.default.phase


def test_a_host_of_5_2_refuses_5_3_first() -> None:
    """vmbus.md 2.9: the guest's first try fails, its second does not: two responses."""
    rig = Rig(host_version=Version.V5_2, version=Version.V5_2)
    assert 0 == rig.contact(Version.V5_3).version_supported
    assert 1 == rig.contact(Version.V5_2).version_supported


def test_a_host_before_5_0_has_no_connection_4() -> None:
    """vmbus.md 2.1, 2.3: status 18 tells the guest that the host is too old."""
    rig = Rig(host_version=Version.V4_1, version=Version.V4_1)
    payload = encode(rig.contact_message(Version.V5_3), Version.V5_3)
    assert HvStatus.INVALID_CONNECTION_ID == rig.post(payload, 4)
    assert 1 == rig.contact().version_supported


def test_contact_for_5_0_by_connection_1_is_refused() -> None:
    """vmbus.md 2.3: from 5.0 on it goes by connection 4."""
    rig = Rig()
    rig.post(encode(rig.contact_message(), Version.V5_3), 1)
    assert 0 == rig.one(VersionResponse, rig.take()).version_supported


def test_messages_of_a_5_0_client_by_another_connection_are_dropped() -> None:
    """vmbus.md 2.3: it posts to msg_conn_id alone."""
    rig = Rig()
    rig.device()
    rig.contact()
    for connection_id in (1, 4):
        rig.post(encode(RequestOffers(), Version.V5_3), connection_id)
        assert [] == rig.take()
    assert ["dropped" in line for line in rig.log] == [True, True]


@pytest.mark.parametrize(("version", "vp"), [(Version.V2_4, 0), (Version.V3_0, 2), (Version.V5_3, 2)], ids=str)
def test_target_vcpu_is_honoured_from_3_0_on(version: Version, vp: int) -> None:
    """vmbus.md 2.9, 2.13: older hosts always use VP 0."""
    rig = Rig(version=version)
    rig.device()
    message = rig.contact_message(target_vcpu=2)
    rig.post(encode(message, version), 4 if version >= Version.V5_0 else 1)
    rig.run()
    assert [vp] == [cpu for cpu, _payload in rig.received]


def test_contact_that_names_no_vp_is_dropped() -> None:
    """No place for an answer; what was connected stays so."""
    rig = Rig()
    rig.connect()
    rig.post(encode(rig.contact_message(target_vcpu=4), Version.V5_3), 4)
    assert [] == rig.take()
    assert rig.bus.default.is_connected


def test_a_single_monitor_page_gives_connection_state_2() -> None:
    """vmbus.md 2.10: version_supported 1, connection_state 2; offers are not to be had."""
    rig = Rig()
    page = rig.memory.alloc(1) * 4096
    response = rig.contact(monitor_page1=page)
    assert (1, 2) == (response.version_supported, response.connection_state)
    assert Phase.DISCONNECTED is rig.bus.default.phase


@pytest.mark.parametrize("pages", [(0, 4096), (4096, 4097), (4096, 1 << 40), (4096, (1 << 64) - 4096)])
def test_monitor_pages_that_are_no_pages_give_connection_state_2(pages: tuple[int, int]) -> None:
    """They are the guest's word; the host must not touch what is not there."""
    response = Rig().contact(monitor_page1=pages[0], monitor_page2=pages[1])
    assert (1, 2) == (response.version_supported, response.connection_state)


def test_a_wrong_sint_is_told_so_at_that_sint() -> None:
    """vmbus.md 2.10: the unsupported response goes to the SINT that was named."""
    rig = Rig()
    message = rig.contact_message(interrupt_page=InitiateContact.target(msg_sint=5))
    rig.post(encode(message, Version.V5_3), 4)
    rig.run()
    assert [] == rig.received
    assert rig.partition.messages_waiting + rig.bus.messages_posted >= 1
    assert not rig.bus.default.is_connected


def test_another_vtl_is_somebody_elses() -> None:
    """vmbus.md 2.10: forwarded to that VTL's server, of which there is none; so there is no answer."""
    rig = Rig()
    rig.post(encode(rig.contact_message(interrupt_page=InitiateContact.target(msg_vtl=2)), Version.V5_3), 4)
    assert [] == rig.take()
    assert 0 == rig.bus.messages_posted


def test_offers_can_be_asked_for_once() -> None:
    """vmbus.md 2.10: "offers already sent", no reply."""
    rig = Rig()
    rig.device()
    rig.connect()
    assert [] == rig.send(RequestOffers())
    assert "offers were sent already" in rig.log[-1]


def test_messages_before_contact_are_dropped() -> None:
    """vmbus.md 2.10: the host is Disconnected."""
    rig = Rig(version=Version.V4_1)
    rig.device()
    assert [] == rig.send(RequestOffers(), Unload())


def test_offers_come_in_the_order_of_adding_or_as_told() -> None:
    """vmbus.md 7.3: by interface id, or by explicit order; relids are handed out in that order, lowest first."""
    names = ("netvsc", "scsi", "ide", "heartbeat")
    for options, expected in (
        (HostOptions(), names),
        (HostOptions(offer_order=by_interface), tuple(sorted(names, key=lambda name: CLASS_IDS[name]))),
        (HostOptions(offer_order=lambda device: -device.instance.int), names[::-1]),
    ):
        rig = Rig(options=options)
        for number, name in enumerate(names, 1):
            rig.bus.add_device(GenericVsp(name, CLASS_IDS[name]), guid(number), name=name)
        offers = rig.connect()
        assert [CLASS_IDS[name] for name in expected] == [offer.if_type for offer in offers]
        assert [1, 2, 3, 4] == [offer.child_relid for offer in offers]


def test_an_offer_says_what_the_device_is() -> None:
    """vmbus.md 2.3, 2.8: connection id relid | SINT << 12, dedicated interrupt, no monitor."""
    rig = Rig()
    vsp = GenericVsp("nic", NIC, chn_flags=0x10, user_def=b"\4\0\0\0abc", mmio_megabytes=8)
    rig.bus.add_device(vsp, guid(7), name="nic", relid=13)
    expected = OfferChannel(
        NIC, guid(7), child_relid=13, connection_id=0x200D, chn_flags=0x10, user_def=b"\4\0\0\0abc", mmio_megabytes=8
    )
    assert [expected] == rig.connect()


def test_unload_closes_all_and_is_answered() -> None:
    """vmbus.md 7.5: everything closed, GPADLs freed, UNLOAD_RESPONSE; then no offer until a new contact."""
    rig = Rig()
    device = rig.device()
    rig.connect()
    rig.open(1)
    assert 0 < rig.bus.quota.used_bytes
    rig.one(UnloadResponse, rig.send(Unload()))
    assert not device.primary.is_open
    assert (0, 0) == (rig.bus.quota.used_bytes, len(rig.bus.default.gpadls))
    assert HvStatus.INVALID_CONNECTION_ID == rig.post(raw(3))
    rig.device(2)
    assert [] == rig.take()
    assert [1, 2] == [offer.child_relid for offer in rig.connect()]


def test_a_new_contact_is_as_if_unload_had_come_first() -> None:
    """vmbus.md 2.10, 7.5: a new kernel finds an old connection; the answer is the version response alone."""
    rig = Rig()
    device = rig.device()
    rig.connect()
    rig.open(1)
    vsp = device.vsp
    assert isinstance(vsp, GenericVsp)
    assert 1 == rig.contact().version_supported
    assert (False, 1, 1, 1) == (device.primary.is_open, vsp.channels_opened, vsp.channels_closed, vsp.releases)
    assert [1] == [m.child_relid for m in rig.send(RequestOffers()) if isinstance(m, OfferChannel)]


def test_unload_waits_for_slow_devices() -> None:
    """vmbus.md 2.10: UNLOAD_RESPONSE once all devices have answered; what comes meanwhile is dropped."""
    rig = Rig(options=HostOptions(close_delay_ticks=100, gpadl_delay_ticks=0))
    rig.device()
    rig.connect()
    rig.open(1)
    assert [] == rig.send(Unload())
    assert Phase.DISCONNECTING is rig.bus.default.phase
    assert [] == rig.send(RequestOffers())
    assert [] == rig.wait(99)
    rig.one(UnloadResponse, rig.wait(1))


def test_a_contact_during_unload_replaces_its_answer() -> None:
    """vmbus.md 2.10: Disconnecting has one next action."""
    rig = Rig(options=HostOptions(close_delay_ticks=100))
    rig.device()
    rig.connect()
    rig.open(1)
    assert [] == rig.send(Unload())
    rig.post(encode(rig.contact_message(), Version.V5_3), 4)
    assert [] == rig.take()
    rig.one(VersionResponse, rig.wait(100))


def test_two_clients_have_relids_of_their_own() -> None:
    """vmbus.md 7.7: told apart by SINT; relids and message connections are each client's own."""
    rig = Rig()
    second = rig.bus.add_client(5)
    rig.device(1)
    rig.device(1, connection=second)
    assert [1] == [offer.child_relid for offer in rig.connect()]
    message = rig.contact_message(interrupt_page=InitiateContact.target(msg_sint=5))
    rig.post(encode(message, Version.V5_3), 4)
    rig.run()
    assert second.is_connected
    assert (0x24, 0x54) == (rig.bus.default.msg_conn_id, second.msg_conn_id)
    rig.post(encode(RequestOffers(), Version.V5_3), second.msg_conn_id)
    rig.run()
    assert [1] == list(second.relids)
    assert [1] == list(rig.bus.default.relids)
    assert second.channel(1) is not rig.bus.default.channel(1)
    rig.one(UnloadResponse, rig.send(Unload()))
    assert second.is_connected


def v6(features: FeatureFlags) -> Rig:
    rig = Rig(version=Version.V6_0, host_version=Version.V6_0)
    rig.features = features
    return rig


def test_features_are_what_both_have() -> None:
    """vmbus.md 2.8: the response names the agreed features."""
    rig = v6(FeatureFlags.PAUSE_RESUME | FeatureFlags.GPA_PINNING)
    assert FeatureFlags.PAUSE_RESUME == rig.contact().features
    assert FeatureFlags.PAUSE_RESUME == rig.bus.default.features


def test_a_paused_client_gets_nothing_until_resume() -> None:
    """vmbus.md 2.7: PAUSE_RESPONSE is the last message before RESUME; then all come, in order."""
    rig = v6(FeatureFlags.PAUSE_RESUME)
    rig.connect()
    rig.one(PauseResponse, rig.send(Pause()))
    rig.device(1)
    rig.device(2)
    assert [] == rig.take()
    assert [1, 2] == [m.child_relid for m in rig.send(Resume()) if isinstance(m, OfferChannel)]


def test_modify_connection_gives_other_monitor_pages() -> None:
    """vmbus.md 2.7: answered with a connection state; entries are written anew."""
    rig = v6(FeatureFlags.MODIFY_CONNECTION)
    first = rig.memory.alloc(4) * 4096
    rig.device(1, monitor=9)
    rig.contact(monitor_page1=first, monitor_page2=first + 4096)
    rig.send(RequestOffers())
    page1, page2 = first + 2 * 4096, first + 3 * 4096
    state = rig.one(ModifyConnectionResponse, rig.send(ModifyConnection(page1, page2))).connection_state
    assert 0 == state
    assert (0x2001).to_bytes(4, "little") == rig.memory.read(page2 + 0x440 + 8 * 9, 4)
    bad = rig.one(ModifyConnectionResponse, rig.send(ModifyConnection(page1, 3)))
    assert 2 == bad.connection_state


def test_a_5_0_client_may_come_back_with_an_older_version() -> None:
    """vmbus.md 2.10: contact in any state; its own connection goes, connection 1 serves it from then on."""
    rig = Rig()
    rig.device()
    rig.connect()
    assert 1 == rig.contact(Version.V4_1).version_supported
    rig.version = Version.V4_1
    assert HvStatus.INVALID_CONNECTION_ID == rig.post(raw(3), 0x24)
    assert [1] == [m.child_relid for m in rig.send(RequestOffers()) if isinstance(m, OfferChannel)]


def test_answers_that_nobody_can_read_are_bounded() -> None:
    """Refusals to a SINT that is masked wait for ever; the host keeps 256 and serves on."""
    rig = Rig()
    rig.device()
    message = rig.contact_message(interrupt_page=InitiateContact.target(msg_sint=5))
    for _ in range(400):
        rig.post(encode(message, Version.V5_3), 4)
        rig.run()
    assert 256 == rig.partition.messages_waiting
    assert 1 == len(rig.connect())
