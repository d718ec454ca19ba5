"""netvsc against its VSP, and against a host that lies (vmbus.md 1.7, 1.14, 5.4, 7.2)."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices import World
from vmbusirq.errors import IrqError
from vmbusirq.host.vsp.netvsc import NetvscVsp
from vmbusirq.vmbus.drivers.netvsc import NetvscDriver, buffer_pages
from vmbusirq.wire import nvsp
from vmbusirq.wire.packet import COMPLETION, DATA_USING_XFER_PAGES, Packet
from vmbusirq.wire.protocol import Version


def make(subs=7, cpus=8, version=Version.V5_3, **options):
    world = World(NetvscDriver, cpus, version)
    return world, world.add(NetvscVsp(subs, **options), "netvsc")


def probed(*args, **options):
    world, device = make(*args, **options)
    world.probe(device)
    return world, device, world.driver.devices[device]


@pytest.mark.parametrize(
    ("queues", "cpus", "expected"), [(64, 8, 7), (64, 96, 7), (64, 4, 3), (4, 8, 3), (1, 8, 0), (64, 1, 0)]
)
def test_channels_are_min_of_8_online_cpus_and_host_queues(queues, cpus, expected) -> None:
    """vmbus.md 5.4."""
    _, device, net = probed(queues - 1, cpus)
    assert expected == len(net.subs) == len(device.sub_channels)
    assert expected + 1 == net.num_chn


def test_sub_channels_are_asked_for_after_the_probe() -> None:
    """In a work of their own (netvsc_subchan_work)."""
    world, device = make()
    world.run(world.driver.probe(device))
    assert 0 == device.vsp.granted
    assert 1 == len(world.works)
    world.settle()
    assert 7 == device.vsp.granted


def test_nvsp_4_has_no_sub_channels() -> None:
    """vmbus.md 5.4: the host must speak NVSP 5 or later."""
    world, device, net = probed(versions=(0x40000,))
    assert 0x40000 == net.version == device.vsp.version
    assert [] == net.subs
    assert (6, 1) == device.vsp.ndis_version
    assert not world.works


def test_buffers_are_whole_pages_in_two_gpadls() -> None:
    """10728 sections of 1728 bytes, 192 of 6144: 4526 and 288 pages."""
    world, device, net = probed()
    assert (4526, 288) == (buffer_pages(10728, 1728), buffer_pages(192, 6144))
    assert [4526, 288] == [len(pages.pfns) for pages in world.gpadls.values()]
    assert (1728, 10728, 6144) == (net.section_bytes, net.section_count, net.send_section_bytes)
    assert device.vsp.receive is net.receive.pages


@pytest.mark.parametrize(
    ("version", "end"),
    [(Version.V3_0, ["teardown", "teardown", "close"]), (Version.V4_0, ["close", "teardown", "teardown"])],
)
def test_remove_revokes_closes_and_tears_down_in_the_hosts_order(version, end) -> None:
    """netvsc_device_remove: before 4.0 GPADLs go before the close, from then on after it; nothing stays."""
    world, device, _ = probed(version=version)
    world.run(world.driver.remove(device))
    assert end == world.story[-3:]
    assert (0, {}) == (world.allocated, world.gpadls)
    assert device.vsp.receive is None
    assert device.vsp.send is None
    assert {} == world.driver.devices == world.driver._by_channel


def test_revokes_reach_the_host_before_the_close() -> None:
    """REVOKE_RECV_BUF, then REVOKE_SEND_BUF, unanswered."""
    world, device, _ = probed(0)
    seen = []
    inner = device.vsp.packet
    device.vsp.packet = lambda channel, packet: (seen.append(nvsp.nvsp_type(packet.payload)), inner(channel, packet))
    world.run(world.driver.remove(device))
    assert [103, 106] == seen


def test_remove_after_rescind_sends_nothing_and_leaves_nothing() -> None:
    """vmbus.md 7.3."""
    world, device, _ = probed()
    device.primary.rescinded = True
    world.run(world.driver.remove(device))
    assert (0, {}) == (world.allocated, world.gpadls)


@pytest.mark.parametrize("which", ["_negotiate", "_share_receive", "_share_send"])
def test_a_refusal_undoes_the_probe(which) -> None:
    """Channel closed, memory returned."""
    world, device = make()
    answers = {
        "_negotiate": nvsp.InitComplete(0, 0, nvsp.NvspStatus.FAIL),
        "_share_receive": nvsp.ReceiveBufferComplete(nvsp.NvspStatus.FAIL, 0),
        "_share_send": nvsp.SendBufferComplete(nvsp.NvspStatus.FAIL, 0),
    }
    setattr(device.vsp, which, lambda *_args: answers[which])
    with pytest.raises(IrqError):
        world.probe(device)
    assert (0, {}, False) == (world.allocated, world.gpadls, device.primary.opened)
    assert {} == world.driver.devices == world.driver._by_channel


@pytest.mark.parametrize(
    "answer",
    [
        nvsp.ReceiveBufferComplete(1, 2, 0, 1728, 10728),
        nvsp.ReceiveBufferComplete(1, 1, 4, 1728, 10728),
        nvsp.ReceiveBufferComplete(1, 1, 0, 67, 1),
        nvsp.ReceiveBufferComplete(1, 1, 0, 1728, 0),
        nvsp.ReceiveBufferComplete(1, 1, 0, 1728, 10729),
        nvsp.ReceiveBufferComplete(1, 1, 0, 0xFFFFFFFF, 0xFFFFFFFF),
        nvsp.InitComplete(1, 1, 1),
    ],
)
def test_sections_that_pass_the_buffer_are_refused(answer) -> None:
    """netvsc_init_buf checks what the host says before it is used (10728 x 1728 leave 1152 bytes of the last page)."""
    world, device = make()
    device.vsp._share_receive = lambda *_args: answer
    with pytest.raises(IrqError) as caught:
        world.probe(device)
    assert errno.EINVAL == caught.value.errno
    assert 0 == world.allocated


def test_frames_go_both_ways_and_ids_come_back() -> None:
    """Send buffer sections out, transfer pages in; each is completed under its id."""
    world, device, net = probed(1)
    for number in range(5):
        world.driver.transmit(device, b"frame %d" % number, number)
    sub_host = device.pairs[1][1]
    device.vsp.deliver(device.host, b"x" * 1728)
    device.vsp.deliver(sub_host, b"y")
    world.settle()
    assert (5, 5, 0) == (device.vsp.frames, net.completed, net.dropped)
    assert b"frame 3" == device.vsp.last_frame  # the sub-channel's last; its queue is looked at after the primary's
    assert (2, 1729, 2) == (net.received, net.bytes, device.vsp.returned)
    assert (192, {}) == (len(net.free_sections), net.in_flight)
    assert [0, 0] == [len(guest.requestor) for guest, _ in device.pairs]


def test_transmit_says_what_it_cannot_do() -> None:
    """EMSGSIZE over a section, ENODEV out of service, EAGAIN when all 192 sections are out."""
    world, device, _ = probed(0)
    with pytest.raises(IrqError) as caught:
        world.driver.transmit(device, bytes(6145))
    assert errno.EMSGSIZE == caught.value.errno
    world.answering = False
    for _ in range(192):
        world.driver.transmit(device, b"")
    with pytest.raises(IrqError) as caught:
        world.driver.transmit(device, b"")
    assert errno.EAGAIN == caught.value.errno
    world.answering = True
    world.run(world.driver.remove(device))
    with pytest.raises(IrqError) as caught:
        world.driver.transmit(device, b"")
    assert errno.ENODEV == caught.value.errno


XFER = struct.Struct("<HBxI")


def xfer(pageset, count, *ranges):
    return XFER.pack(pageset, 0, count) + b"".join(struct.pack("<II", *one) for one in ranges)


@pytest.mark.parametrize(
    ("ranges", "text"),
    [
        (b"", "Invalid xfer page pkt, offset too small: 16"),
        (xfer(1, 0), "Invalid xfer page set id 1 - expecting cafe"),
        (xfer(0xCAFE, 2, (1, 0)), "Range count is not valid: 2"),
        (xfer(0xCAFE, 1, (2, 4526 * 4096 - 1)), "Packet offset:18538495 + len:2 too big"),
        (xfer(0xCAFE, 1, (1, 0xFFFFFFFF)), "Packet offset:4294967295 + len:1 too big"),
    ],
)
def test_bad_transfer_pages_are_logged_and_dropped(ranges, text) -> None:
    """netvsc_receive copies and checks offsets before it reads the buffer."""
    world, device, net = probed(0)
    world.driver.packet(device.primary, Packet(b"", DATA_USING_XFER_PAGES, 1, 9, ranges))
    assert [f"hv_netvsc: {text}"] == world.log.texts()
    assert (0, 1) == (net.received, net.dropped)


@pytest.mark.parametrize("trans_id", [0, 1, 99, (1 << 64) - 1])
def test_completions_of_nothing_are_logged_and_dropped(trans_id) -> None:
    """vmbus.md 1.14: the id is looked up before it is used."""
    world, device, _ = probed(0)
    world.driver.packet(device.primary, Packet(b"", COMPLETION, trans_id=trans_id))
    assert [f"hv_netvsc: Invalid transaction ID {trans_id:x}"] == world.log.texts()


def test_more_sub_channels_than_asked_for_are_refused() -> None:
    """The adapter works with its primary."""
    world, device = make()
    device.vsp._sub_channels = lambda *_args: nvsp.SubchannelComplete(1, 8)
    world.probe(device)
    assert ["hv_netvsc: invalid number of sub-channels 8"] == world.log.texts()
    assert 1 == world.driver.devices[device].num_chn


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.binary(max_size=40),
            st.sampled_from([6, 7, 9, 11]),
            st.integers(0, 6),
            st.binary(max_size=6).map(lambda data: xfer(0xCAFE, len(data)) + data * 8),
        ),
        max_size=10,
    )
)
def test_any_garbage_leaves_the_driver_working(packets) -> None:
    """No exception, nothing read outside the buffer; frames that garbage did not complete still complete."""
    world, device, net = probed(0)
    for payload, kind, trans_id, ranges in packets:
        pages = ranges if kind == DATA_USING_XFER_PAGES else b""
        world.driver.packet(device.primary, Packet(payload, kind, trans_id=trans_id, ranges=pages))
    world.driver.transmit(device, b"frame")
    world.settle()
    assert net.sent == net.completed == 1


def test_suspend_and_resume_share_new_buffers() -> None:
    """netvsc_suspend detaches; resume attaches again."""
    world, device, _ = probed(2)
    world.run(world.driver.suspend(device))
    assert 0 == world.allocated
    device.pairs[1:] = []
    world.run(world.driver.resume(device))
    world.settle()
    assert 2 == len(world.driver.devices[device].subs)
    assert 4526 + 288 == world.allocated
