"""VSPs against a scripted guest, one that keeps to the rules and one that does not (vmbus.md 5.4)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host_end import HostEnd
from vmbusirq.errors import IrqError
from vmbusirq.host.vsp import VSPS, HvSockVsp
from vmbusirq.host.vsp.netvsc import NetvscVsp
from vmbusirq.host.vsp.storvsc import InitState, StorvscVsp
from vmbusirq.wire import nvsp
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, Packet
from vmbusirq.wire.protocol import vsock_service_id
from vmbusirq.wire.vstor import (
    STATUS_INVALID_DEVICE_STATE,
    STATUS_INVALID_PARAMETER,
    STATUS_REVISION_MISMATCH,
    ChannelProperties,
    Operation,
    ProtocolVersion,
    SubChannelCount,
    VstorPacket,
)


class Device:
    """What a VSP asks of its device."""

    def __init__(self, vsp):
        self.vsp = vsp
        self.max_sub_channels = vsp.max_sub_channels
        self.asked = []
        self.offered = 0

    def offer_sub_channels(self, count):
        self.asked.append(count)
        new = max(0, min(count, self.max_sub_channels) - self.offered)
        self.offered += new
        return list(range(100, 100 + new))


def opened(vsp, sub_channel_index=0):
    channel = HostEnd(Device(vsp), 5, sub_channel_index)
    vsp.opened(channel)
    channel.to_guest.clear()
    return channel


def ask(channel, payload, trans_id=7):
    """Send a request as a guest does; return the payload of its completion."""
    channel.take(Packet(payload, flags=COMPLETION_REQUESTED, trans_id=trans_id))
    (answer,) = channel.to_guest
    channel.to_guest.clear()
    assert (COMPLETION, trans_id) == (answer.type, answer.trans_id)
    return answer.payload


# ---- storage


def stor(channel, operation, body=b""):
    return VstorPacket.from_bytes(ask(channel, VstorPacket(int(operation), body=body).to_bytes()))


VERSION = ProtocolVersion(0x0602).to_bytes()
IN_ORDER = [
    (Operation.BEGIN_INITIALIZATION, b""),
    (Operation.QUERY_PROTOCOL_VERSION, VERSION),
    (Operation.QUERY_PROPERTIES, b""),
    (Operation.END_INITIALIZATION, b""),
]


def initialized(vsp):
    channel = opened(vsp)
    for operation, body in IN_ORDER:
        assert 0 == stor(channel, operation, body).status
    return channel


@pytest.mark.parametrize("done", range(4))
def test_storage_is_initialized_in_order_or_not_at_all(done) -> None:
    """Each step out of its turn is refused and changes nothing."""
    vsp = StorvscVsp()
    channel = opened(vsp)
    for operation, body in IN_ORDER[:done]:
        assert 0 == stor(channel, operation, body).status
    for operation, body in IN_ORDER[:done] + IN_ORDER[done + 1 :]:
        assert STATUS_INVALID_DEVICE_STATE == stor(channel, operation, body).status
    assert InitState(done) is vsp.state
    assert STATUS_INVALID_DEVICE_STATE == stor(channel, Operation.EXECUTE_SRB).status


def test_storage_refuses_versions_that_it_does_not_speak() -> None:
    """The guest may try another."""
    vsp = StorvscVsp(versions=(0x0501,))
    channel = opened(vsp)
    stor(channel, Operation.BEGIN_INITIALIZATION)
    assert STATUS_REVISION_MISMATCH == stor(channel, Operation.QUERY_PROTOCOL_VERSION, VERSION).status
    assert 0 == stor(channel, Operation.QUERY_PROTOCOL_VERSION, b"\1\5").status
    assert 0x0501 == vsp.version


@pytest.mark.parametrize(("class_name", "most", "flags"), [("scsi", 3, 1), ("fc", 3, 1), ("ide", 0, 0)])
def test_storage_says_how_many_channels_it_has(class_name, most, flags) -> None:
    """Bit 0: supports multi-channel; IDE does not, whatever it is told."""
    channel = opened(StorvscVsp(class_name, 3))
    channel.device.max_sub_channels = 3
    stor(channel, *IN_ORDER[0])
    stor(channel, *IN_ORDER[1])
    properties = ChannelProperties.from_bytes(stor(channel, Operation.QUERY_PROPERTIES).body)
    assert (most, flags) == (properties.max_channel_cnt, properties.flags)


def test_storage_offers_at_most_what_it_has() -> None:
    """The host decides; asking again brings no more."""
    vsp = StorvscVsp("scsi", 3)
    channel = initialized(vsp)
    for count in (7, 65535):
        assert 0 == stor(channel, Operation.CREATE_SUB_CHANNELS, SubChannelCount(count).to_bytes()).status
    assert [100, 101, 102] == vsp.sub_relids
    ide = initialized(StorvscVsp("ide", 3))
    assert STATUS_INVALID_PARAMETER == stor(ide, Operation.CREATE_SUB_CHANNELS, b"\1\0").status
    assert [] == ide.device.asked


def test_storage_takes_commands_on_sub_channels_and_nothing_else_there() -> None:
    """Initialization is the primary's."""
    vsp = StorvscVsp("scsi", 1)
    initialized(vsp)
    sub = opened(vsp, 1)
    assert 0 == stor(sub, Operation.EXECUTE_SRB, b"cdb").status
    assert STATUS_INVALID_DEVICE_STATE == stor(sub, Operation.BEGIN_INITIALIZATION).status
    vsp.closed(sub)
    assert InitState.READY is vsp.state


def test_storage_sends_no_completion_that_nobody_asked_for() -> None:
    """Descriptor flag 0 (vmbus.md 1.5)."""
    channel = initialized(StorvscVsp())
    channel.take(Packet(VstorPacket(int(Operation.EXECUTE_SRB)).to_bytes()))
    channel.take(Packet(b"short", flags=COMPLETION_REQUESTED))
    assert not channel.to_guest
    assert 2 == channel.device.vsp.dropped


# ---- network


class Gpadl:
    def __init__(self, size):
        self.data = bytearray(size)
        self.users = 0

    def hold(self):
        self.users += 1
        return self

    def release(self):
        self.users -= 1

    @property
    def byte_count(self):
        return len(self.data)

    def read(self, offset, size):
        assert offset + size <= len(self.data)
        return bytes(self.data[offset : offset + size])

    def write(self, offset, data):
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data


def net(channel, message):
    return nvsp.nvsp_message(ask(channel, nvsp.nvsp_bytes(message)), completion=True)


def connected(subs=3, pages=4):
    vsp = NetvscVsp(subs)
    channel = opened(vsp)
    channel.gpadls = {1: Gpadl(pages * 4096), 2: Gpadl(pages * 4096)}
    assert nvsp.InitComplete(0x60001, 34, 1) == net(channel, nvsp.Init(0x60001, 0x60001))
    net(channel, nvsp.ShareReceiveBuffer(1))
    net(channel, nvsp.ShareSendBuffer(2))
    return vsp, channel


def test_network_cuts_the_buffers_up() -> None:
    """Sections of 1728 and 6144 bytes, as many as fit."""
    vsp, channel = connected()
    assert vsp.receive is channel.gpadls[1]
    again = net(channel, nvsp.ShareReceiveBuffer(1))
    assert nvsp.NvspStatus.FAIL == again.status  # one at a time
    channel.take(Packet(nvsp.nvsp_bytes(nvsp.RevokeReceiveBuffer())))
    assert nvsp.ReceiveBufferComplete(1, 1, 0, 1728, 9, 15552) == net(channel, nvsp.ShareReceiveBuffer(1))


@pytest.mark.parametrize("handle", [0, 3, 0xFFFFFFFF])
def test_network_refuses_gpadls_that_were_never_made(handle) -> None:
    """And those that are too small for one section."""
    channel = opened(NetvscVsp())
    channel.gpadls = {3: Gpadl(1000)}
    net(channel, nvsp.Init(0x50000, 0x50000))
    assert nvsp.NvspStatus.FAIL == net(channel, nvsp.ShareReceiveBuffer(handle)).status
    assert nvsp.NvspStatus.FAIL == net(channel, nvsp.ShareSendBuffer(handle)).status


def test_network_speaks_the_best_version_in_the_guests_range() -> None:
    """Unknown ones are refused, and buffers before a version."""
    channel = opened(NetvscVsp())
    channel.gpadls = {1: Gpadl(40960)}
    assert nvsp.NvspStatus.FAIL == net(channel, nvsp.ShareReceiveBuffer(1)).status
    assert nvsp.NvspStatus.PROTOCOL_UNSUPPORTED == net(channel, nvsp.Init(0x70000, 0x80000)).status
    assert 0x50000 == net(channel, nvsp.Init(3, 0x5FFFF)).negotiated_version


def test_network_offers_as_many_sub_channels_as_it_has_queues() -> None:
    """The completion says how many; below NVSP 5 there are none."""
    _, channel = connected(3)
    assert nvsp.SubchannelComplete(1, 3) == net(channel, nvsp.SubchannelRequest(1, 7))
    assert nvsp.SubchannelComplete(1, 0) == net(channel, nvsp.SubchannelRequest(1, 7))
    assert nvsp.NvspStatus.FAIL == net(channel, nvsp.SubchannelRequest(2, 7)).status
    old = opened(NetvscVsp(3))
    net(old, nvsp.Init(0x40000, 0x40000))
    assert nvsp.NvspStatus.FAIL == net(old, nvsp.SubchannelRequest(1, 7)).status


@pytest.mark.parametrize(("index", "size"), [(2, 6144), (0, 6145), (0xFFFFFFFE, 0), (1, 0xFFFFFFFF)])
def test_network_reads_nothing_outside_the_send_buffer(index, size) -> None:
    """16384 bytes are two whole sections and a bit."""
    vsp, channel = connected()
    answer = net(channel, nvsp.RndisPacket(0, index, size))
    assert nvsp.NvspStatus.INVALID_RNDIS_PACKET == answer.status
    assert 0 == vsp.frames


def test_network_delivers_until_the_guest_holds_every_section() -> None:
    """A completion gives the section back."""
    vsp, channel = connected()
    ids = [vsp.deliver(channel, b"%d" % number) for number in range(9)]
    with pytest.raises(IrqError) as caught:
        vsp.deliver(channel, b"x")
    assert errno.EAGAIN == caught.value.errno
    channel.take(Packet(b"", COMPLETION, trans_id=ids[4]))
    channel.take(Packet(b"", COMPLETION, trans_id=ids[4]))  # twice: the second is nobody's
    assert (1, 1) == (vsp.returned, channel.strays)
    vsp.deliver(channel, b"x")
    assert b"x" == vsp.receive.read(4 * 1728, 1)
    with pytest.raises(IrqError) as caught:
        vsp.deliver(channel, bytes(1729))
    assert errno.EMSGSIZE == caught.value.errno
    vsp.closed(channel)
    with pytest.raises(IrqError) as caught:
        vsp.deliver(channel, b"")
    assert errno.ENOTCONN == caught.value.errno


# ---- everybody


NEW = [lambda make=make: make() for make in VSPS.values()] + [lambda: HvSockVsp(vsock_service_id(1))]

payloads = st.one_of(
    st.binary(max_size=90),
    st.builds(lambda kind, body: VstorPacket(kind, body=body).to_bytes(), st.integers(0, 14), st.binary(max_size=52)),
    st.builds(lambda kind, body: kind.to_bytes(4, "little") + body, st.integers(100, 134), st.binary(max_size=20)),
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(NEW),
    st.integers(0, 1),
    st.lists(st.tuples(payloads, st.sampled_from([6, 7, 9, 11]), st.integers(0, 1), st.integers(0, 5)), max_size=15),
)
def test_no_guest_can_raise_in_a_vsp(make, index, packets) -> None:
    """What it asks completion for is completed at most once, under its own id; closing and re-opening works."""
    vsp = make()
    channel = opened(vsp, index)
    channel.gpadls = {handle: Gpadl(handle * 4096) for handle in range(6)}
    for payload, kind, flags, trans_id in packets:
        before = len(channel.to_guest)
        channel.take(Packet(payload, kind, flags, trans_id))
        answers = [packet for packet in list(channel.to_guest)[before:] if packet.type == COMPLETION]
        assert len(answers) <= flags
        assert all(trans_id == packet.trans_id for packet in answers)
    vsp.closed(channel)
    vsp.opened(channel)
    vsp.released()


def test_offers_of_hv_sock_say_who_began() -> None:
    """vmbus.md 7.6: 0x2011 as OpenVMM sends it, pipe mode 0, then the initiator."""
    for begun in (False, True):
        vsp = HvSockVsp(vsock_service_id(1), host_initiated=begun)
        assert (0x2011, bytes(4) + bytes([begun])) == (vsp.chn_flags, vsp.user_def[:5])
