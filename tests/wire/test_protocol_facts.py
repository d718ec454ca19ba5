"""Versions, ids, trace texts and device GUIDs of the control path (vmbus.md 2.3, 2.9, 2.11, 5, 7.6 and 8.1)."""

from __future__ import annotations

import errno
from uuid import UUID

import pytest

from tests.reference import messages as reference
from vmbusirq.errors import IrqError
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE
from vmbusirq.wire import devices, protocol
from vmbusirq.wire.protocol import LINUX_VERSIONS, Message, Unlock, Version, trace_event

A, B = UUID("01020304-0506-0708-090a-0b0c0d0e0f10"), UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e")

UNLOCKS = {
    "0.13": "",
    "1.1": "DEDICATED_INTERRUPT UNLOAD_RESPONSE",
    "2.4": "PER_CPU_FLAGS TARGET_VP SUB_CHANNELS PENDING_SEND_SIZE CONNECTION_STATE",
    "3.0": "RECONNECT TARGET_VCPU",
    "4.0": "TL_CONNECT RESERVED_CHANNELS",
    "4.1": "MODIFYCHANNEL TL_CONNECT_RESULT",
    "5.0": "MSG_SINT MULTI_CLIENT BIG_HV_SOCK_RINGS",
    "5.1": "MSG_VTL",
    "5.2": "SILO_ID",
    "5.3": "MODIFYCHANNEL_RESPONSE",
    "6.0": "FEATURE_FLAGS",
}


# ---- versions


def test_versions_have_their_numbers() -> None:
    """vmbus.md 2.9: major << 16 | minor, printed as Linux prints "Vmbus version:%d.%d"."""
    assert reference.VERSIONS == {str(version): int(version) for version in Version}
    for text, number in reference.VERSIONS.items():
        version = Version(number)
        assert [int(part) for part in text.split(".")] == [version.major, version.minor]
        assert (text, version) == (f"{version}", Version.parse(text))
        assert f"{number:#x}" == f"{version:#x}"


def test_linux_tries_eight_versions_newest_first() -> None:
    """vmbus.md 2.9: 5.3 down to 2.4."""
    assert ["5.3", "5.2", "5.1", "5.0", "4.1", "4.0", "3.0", "2.4"] == [str(version) for version in LINUX_VERSIONS]


@pytest.mark.parametrize("version", Version, ids=str)
def test_each_version_unlocks_what_it_is_said_to(version: Version) -> None:
    """vmbus.md 2.9, the last column: everything up to here, nothing of what comes later."""
    expected = {
        name for text, names in UNLOCKS.items() if reference.VERSIONS[text] <= version for name in names.split()
    }
    assert expected == {unlock.name for unlock in Unlock if version.has(unlock)}
    assert all(unlock.since <= version for unlock in Unlock if version.has(unlock))


def test_every_unlock_has_a_sentence_of_its_own() -> None:
    """Two equal values would be one enum member under two names."""
    assert len("".join(f" {names}" for names in UNLOCKS.values()).split()) == len(Unlock)
    assert len(Unlock) == len({unlock.text for unlock in Unlock})


@pytest.mark.parametrize("version", Version, ids=str)
def test_only_exact_versions_are_known(version: Version) -> None:
    """vmbus.md 2.9: a host wants an exact match."""
    assert version is Version.find(int(version))
    for near in (version - 1, version + 1):
        assert (near in reference.VERSIONS.values()) == (Version.find(near) is not None)


@pytest.mark.parametrize("text", ["", "5", "5.4", "v5.3", "5.3 ", "327683"])
def test_a_version_is_written_with_a_dot(text: str) -> None:
    """The message names all there are."""
    with pytest.raises(ValueError, match=r"known: 0\.13, 1\.1, .*6\.0"):
        Version.parse(text)


# ---- ids


def test_ids_are_the_references() -> None:
    """vmbus.md 2.3 and 2.11."""
    assert (1, 2, 3, 4) == (
        protocol.VMBUS_MESSAGE_CONNECTION_ID,
        protocol.VMBUS_EVENT_CONNECTION_ID,
        protocol.VMBUS_MONITOR_CONNECTION_ID,
        protocol.VMBUS_MESSAGE_CONNECTION_ID_4,
    )
    ports = (protocol.VMBUS_MESSAGE_PORT_ID, protocol.VMBUS_EVENT_PORT_ID, protocol.VMBUS_MONITOR_PORT_ID)
    assert (1, 2, 3) == ports
    assert (0x800074, 7) == (protocol.REDIRECT_CONNECTION_ID, protocol.REDIRECT_SINT)
    assert (2047, 0xFFFF_FFFF, 0xFF) == (protocol.MAX_CHANNELS, protocol.INVALID_RELID, protocol.MONITOR_ID_NONE)
    assert (0xE1E10, 0xFFFF_FFFF) == (protocol.FIRST_GPADL_HANDLE, protocol.VP_INDEX_NONE)
    assert [0, 1, 2] == [int(state) for state in protocol.ConnectionState]


def test_flags_are_the_references() -> None:
    """vmbus.md 2.8: chn_flags, the feature flags of 6.0, the flags of an open, pipe modes."""
    assert [0x1, 0x2, 0x4, 0x8, 0x10, 0x100, 0x200, 0x400, 0x2000] == [int(flag) for flag in protocol.OfferFlags]
    assert [0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x80] == [int(flag) for flag in protocol.FeatureFlags]
    assert (1, [0, 4]) == (protocol.OpenFlags.REDIRECT_INTERRUPT, [int(mode) for mode in protocol.PipeMode])


def test_channel_ids_are_composed_as_openvmm_does() -> None:
    """vmbus.md 2.3: relid 1, SINT 2, VTL 0 signals 0x2001."""
    assert 0x2001 == protocol.signal_connection_id(1)
    assert 0x2_37FF == protocol.signal_connection_id(2047, sint=3, vtl=2)
    assert 4 | 2 << 4 == protocol.message_connection_id(0)
    assert 4 | 7 << 4 | 5 << 8 | 1 << 22 == protocol.message_connection_id(5, sint=7, vtl=1)
    assert 2 | 2 << 4 | 14 << 8 == protocol.event_port_id(14)
    assert 2 | 7 << 4 | 2047 << 8 | 1 << 22 == protocol.event_port_id(2047, sint=7, vtl=1)


@pytest.mark.parametrize(
    ("status", "signed", "good"),
    [
        (protocol.STATUS_SUCCESS, 0, True),
        (0x7FFF_FFFF, 0x7FFF_FFFF, True),
        (0x8000_0000, -0x8000_0000, False),
        (protocol.STATUS_UNSUCCESSFUL, -2147418113, False),
        (protocol.STATUS_CONNECTION_REFUSED, -1073741258, False),
    ],
)
def test_statuses_are_negative_when_bad(status: int, signed: int, good: bool) -> None:
    """vmbus.md 2.11: a host takes any status >= 0 for success."""
    assert (signed, good) == (protocol.signed32(status), protocol.nt_success(status))


@pytest.mark.parametrize("port", [0, 1, 0x1234, 0xFFFF_FFFF])
def test_a_vsock_port_is_the_first_group_of_its_service(port: int) -> None:
    """vmbus.md 7.6."""
    service = protocol.vsock_service_id(port)
    assert f"{port:08x}-facb-11e6-bd58-64006a7986d3" == str(service)
    assert port == protocol.vsock_port(service)
    assert protocol.vsock_port(UUID(int=service.int ^ 1)) is None


@pytest.mark.parametrize("port", [-1, 1 << 32])
def test_vsock_ports_have_32_bits(port: int) -> None:
    """Both sides of the border are here and above."""
    with pytest.raises(IrqError) as caught:
        protocol.vsock_service_id(port)
    assert errno.EINVAL == caught.value.errno


# ---- trace


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            protocol.OfferChannel(
                B, A, 14, 0x200E, sub_channel_index=2, chn_flags=0x11, mmio_megabytes=8, is_dedicated_interrupt=0x8001
            ),
            "vmbus_onoffer: child_relid 0xe, monitorid 0xff, is_dedicated 32769, connection_id 0x200e, "
            "if_type f8615163-df3e-46c5-913f-f2d2f965ed0e, if_instance 01020304-0506-0708-090a-0b0c0d0e0f10, "
            "chn_flags 0x11, mmio_megabytes 8, sub_channel_index 2",
        ),
        (protocol.RescindChannelOffer(14), "vmbus_onoffer_rescind: child_relid 0xe"),
        (
            protocol.OpenChannelResult(14, 14, 0x8000FFFF),
            "vmbus_onopen_result: child_relid 0xe, openid 14, status -2147418113",
        ),
        (
            protocol.GpadlCreated(14, 0xE1E10, 0),
            "vmbus_ongpadl_created: child_relid 0xe, gpadl 0xe1e10, creation_status 0",
        ),
        (protocol.GpadlTorndown(0xE1E10), "vmbus_ongpadl_torndown: gpadl 0xe1e10"),
        (
            protocol.ModifyChannelResponse(14, 0x8000FFFF),
            "vmbus_onmodifychannel_response: child_relid 0xe, status -2147418113",
        ),
        (protocol.VersionResponse(True), "vmbus_onversion_response: version_supported 1"),
        (protocol.RequestOffers(), "vmbus_request_offers: sending ret -11"),
        (
            protocol.OpenChannel(14, 0xFFFF_FFFF, 0xE1E10, 3, 32),
            "vmbus_open: sending child_relid 0xe, openid -1, gpadlhandle 0xe1e10, target_vp 0x3, offset 0x20, ret -11",
        ),
        (protocol.CloseChannel(14), "vmbus_close_internal: sending child_relid 0xe, ret -11"),
        (
            protocol.GpadlHeader(14, 0xE1E10, 520, 1),
            "vmbus_establish_gpadl_header: sending child_relid 0xe, gpadl 0xe1e10, "
            "range_buflen 520 rangecount 1, ret -11",
        ),
        (protocol.GpadlBody(0xE1E10), "vmbus_establish_gpadl_body: sending msgnumber 0, gpadl 0xe1e10, ret -11"),
        (protocol.GpadlTeardown(14, 0xE1E10), "vmbus_teardown_gpadl: sending child_relid 0xe, gpadl 0xe1e10, ret -11"),
        (
            protocol.InitiateContact(Version.V5_3, 0, protocol.InitiateContact.target(), 0xABC000, 0xDEF000),
            "vmbus_negotiate_version: sending vmbus_version_requested 327683, target_vcpu 0x0, "
            "pages 2:abc000:def000, ret -11",
        ),
        (protocol.RelidReleased(14), "vmbus_release_relid: sending child_relid 0xe, ret -11"),
        (
            protocol.TlConnectRequest(A, B),
            "vmbus_send_tl_connect_request: sending guest_endpoint_id 01020304-0506-0708-090a-0b0c0d0e0f10, "
            "host_service_id f8615163-df3e-46c5-913f-f2d2f965ed0e, ret -11",
        ),
        (protocol.ModifyChannel(14, 5), "vmbus_send_modifychannel: binding child_relid 0xe to target_vp 0x5, ret -11"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_trace_texts_are_the_kernels(message: Message, expected: str) -> None:
    """vmbus.md 8.1: relids hex, openid, versions and statuses signed decimal, ``ret`` only where something was sent."""
    assert expected == str(trace_event(message, ret=-errno.EAGAIN))


def test_some_messages_leave_no_trace() -> None:
    """vmbus.md 8.1 lists no event for them."""
    for message in (protocol.AllOffersDelivered(), protocol.Unload(), protocol.UnloadResponse(), protocol.Pause()):
        assert trace_event(message) is None
    assert "vmbus_on_msg_dpc: msgtype=1" == str(protocol.message_trace("vmbus_on_msg_dpc", protocol.MessageType(1)))
    assert "vmbus_chan_sched: relid 0xe" == str(protocol.relid_trace("vmbus_chan_sched", 14))


# ---- devices


def test_the_catalogue_of_drivers_has_the_same_class_ids() -> None:
    """Guest and host must mean the same device; hv_sock has no class of its own."""
    for name, device in CATALOGUE.items():
        if name != "hv_sock":
            assert devices.CLASS_IDS[name] == UUID(str(device.class_id))


@pytest.mark.parametrize(
    ("name", "index"),
    [("ide", 0), ("scsi", 1), ("netvsc", 3), ("netdirect", 4), ("kvp", 9), ("fcopy", 13), ("balloon", 15)],
)
def test_classes_are_numbered_as_in_vmbus_devs(name: str, index: int) -> None:
    """vmbus.md 5.1, column idx."""
    assert index == devices.device_index(devices.CLASS_IDS[name])
    assert name == devices.class_name(devices.CLASS_IDS[name])


def test_every_other_class_is_unknown() -> None:
    """vmbus.md 5.1, index 16; no GUID is there twice."""
    for class_id in (*devices.UNSUPPORTED_CLASS_IDS.values(), A):
        assert (16, None) == (devices.device_index(class_id), devices.class_name(class_id))
    every = [*devices.CLASS_IDS.values(), *devices.UNSUPPORTED_CLASS_IDS.values()]
    every += [instance for instances in devices.INSTANCE_IDS.values() for instance in instances]
    assert len(every) == len(set(every))
    assert set(devices.INSTANCE_IDS) <= set(devices.CLASS_IDS)
