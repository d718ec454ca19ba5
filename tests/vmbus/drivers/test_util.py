"""Integration services, both ends (drivers/hv/hv_util.c, channel_mgmt.c; vmbus.md 1.16)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices import World
from vmbusirq.errors import IrqError
from vmbusirq.host.vsp import VSPS
from vmbusirq.vmbus.drivers.util import UtilDriver
from vmbusirq.wire.ic import HV_E_FAIL, Heartbeat, IcMessage, IcType, Negotiate, TimeFlags
from vmbusirq.wire.packet import COMPLETION, Packet

AGREED = {
    "heartbeat": ((3, 0), (3, 0)),
    "shutdown": ((3, 0), (3, 2)),
    "timesync": ((3, 0), (4, 0)),
    "kvp": ((3, 0), (5, 0)),
    "vss": ((3, 0), (5, 0)),
}


def probed(name, **options):
    world = World(UtilDriver)
    device = world.add(VSPS[name](**options), name)
    world.probe(device)
    return world, device, world.driver.devices[device]


@pytest.mark.parametrize("name", AGREED)
def test_versions_are_agreed_on_when_the_channel_opens(name) -> None:
    """The best that both know."""
    _, device, service = probed(name)
    assert AGREED[name] == service.versions == device.vsp.versions
    assert (1, 0, 0) == (service.negotiations, service.dropped, device.vsp.dropped)


def test_each_heartbeat_is_answered_by_the_next_number() -> None:
    """heartbeat_onchannelcallback: seq_num += 1."""
    world, device, service = probed("heartbeat")
    for _ in range(300):  # past the 8 bits of ictransaction_id
        device.vsp.beat()
        world.settle()
    vsp = device.vsp
    assert (300, 300, 300, 0, 0) == (vsp.sequence, vsp.beats, vsp.replies, vsp.missing, vsp.dropped)
    assert 300 == service.answered


def test_several_heartbeats_may_be_out_at_once() -> None:
    """Each answer finds its request by the transaction id."""
    world, device, _ = probed("heartbeat")
    for _ in range(3):
        device.vsp.beat()
    assert 3 == device.vsp.missing
    world.settle()
    assert 3 == device.vsp.beats


@pytest.mark.parametrize(("flags", "status"), [(0, 0), (1, 0), (2, 0), (5, 0), (6, HV_E_FAIL), (0xFFFFFFFF, HV_E_FAIL)])
def test_shutdown_is_accepted_or_refused(flags, status) -> None:
    """shutdown_onchannelcallback: flags 0 to 5 are known."""
    world, device, service = probed("shutdown")
    device.vsp.request(7, 60, flags, "maintenance")
    world.settle()
    assert [status] == device.vsp.results
    assert (status != 0) == device.vsp.failures
    if not status:
        (request,) = service.shutdowns
        assert (7, 60, b"maintenance") == (
            request.reason_code,
            request.timeout_seconds,
            request.display_message.rstrip(b"\0"),
        )


def test_time_arrives() -> None:
    """A sample to compare with, and one to set."""
    world, device, service = probed("timesync", now=lambda: 123)
    device.vsp.sample()
    world.settle()
    assert (123, TimeFlags.SAMPLE) == (service.sample.parenttime, service.sample.flags)
    device.vsp.sync()
    world.settle()
    assert TimeFlags.SYNC == service.sample.flags
    assert 2 == device.vsp.samples


@pytest.mark.parametrize("name", ["kvp", "vss"])
def test_opaque_bodies_come_back_as_they_went(name) -> None:
    """Under the request's transaction id."""
    world, device, _ = probed(name)
    answers = []
    device.vsp.ask(b"opaque", answers.append)
    world.settle()
    assert [b"opaque"] == [answer.body for answer in answers]


def test_nothing_can_be_asked_before_versions_are_agreed_on() -> None:
    """ENOTCONN before the open, before the answer, and after the close."""
    vsp = VSPS["heartbeat"]()
    world = World(UtilDriver)
    device = world.add(vsp, "heartbeat")
    world.answering = False

    def refused():
        with pytest.raises(IrqError) as caught:
            vsp.beat()
        return errno.ENOTCONN == caught.value.errno

    assert refused()
    world.probe(device)
    assert refused()
    world.answering = True
    world.settle()
    vsp.beat()
    world.run(world.driver.remove(device))
    assert refused()
    assert 1 == vsp.sequence


def test_no_common_version_leaves_the_service_mute() -> None:
    """The guest answers with no versions at all."""
    vsp = VSPS["heartbeat"]()
    vsp.message_versions = ((9, 9),)
    world = World(UtilDriver)
    device = world.add(vsp, "heartbeat")
    world.probe(device)
    assert vsp.versions is None
    assert "the guest knows none of the versions" == vsp.last_problem
    assert world.driver.devices[device].versions is None


def hostile_answers():
    def negotiated(**kwargs):
        return lambda request: request.response(Negotiate(**kwargs).to_bytes()).to_bytes()

    return [
        lambda _request: b"",
        lambda request: request.to_bytes(),  # no response
        negotiated(frame=((3, 0),), message=((7, 7),)),
        negotiated(frame=((3, 0), (1, 0)), message=((3, 0),)),
        lambda request: IcMessage.request(IcType.VSS, request.body).response().to_bytes(),
        lambda request: request.response(b"").to_bytes(),
    ]


@pytest.mark.parametrize("answer", hostile_answers())
def test_a_guest_that_lies_in_the_negotiation_is_dropped(answer) -> None:
    """The service stays without versions."""
    vsp = VSPS["heartbeat"]()
    world = World(UtilDriver)
    device = world.add(vsp, "heartbeat")
    vsp.opened(device.host)
    request = device.host.to_guest.popleft()
    device.host.take(Packet(answer(IcMessage.from_bytes(request.payload)), trans_id=request.trans_id))
    assert vsp.versions is None
    assert 1 == vsp.dropped


def test_a_guest_that_miscounts_has_no_beat() -> None:
    """The number must be the request's plus 1."""
    world, device, _ = probed("heartbeat")
    device.vsp.beat()
    request = IcMessage.from_bytes(device.host.to_guest[0].payload)
    device.host.take(Packet(request.response(Heartbeat(1).to_bytes()).to_bytes(), trans_id=2))
    assert (0, "heartbeat 1 is answered by 1") == (device.vsp.beats, device.vsp.last_problem)
    world.settle()
    assert 2 == device.vsp.dropped  # the true answer came too late: nobody waits for it


payloads = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda kind, body, size: IcMessage.request(kind, body).to_bytes()[:size],
        st.sampled_from(list(IcType)),
        st.binary(max_size=60),
        st.integers(0, 100),
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(AGREED)), st.lists(st.tuples(payloads, st.sampled_from([6, 7, 11]), st.integers(0, 9))))
def test_garbage_from_either_side_leaves_both_working(name, packets) -> None:
    """No exception; what makes no sense is counted and dropped; then a request is answered."""
    world, device, _ = probed(name)
    for payload, kind, trans_id in packets:
        world.driver.packet(device.primary, Packet(payload, kind, trans_id=trans_id))
        device.host.take(Packet(payload, kind, trans_id=trans_id + 2))
    device.primary.to_host.clear()
    device.vsp.closed(device.host)
    device.vsp.opened(device.host)
    world.settle()
    assert AGREED[name] == device.vsp.versions


def test_completions_are_not_for_services() -> None:
    """Requests and answers are in-band."""
    world, device, service = probed("kvp")
    world.driver.packet(device.primary, Packet(b"", COMPLETION, trans_id=4))
    assert ["hv_utils: kvp: a completion of 4, which nobody asked for"] == world.log.texts()
    assert 1 == service.dropped


def test_a_service_answers_only_its_own_kind() -> None:
    """A heartbeat sent to shutdown is dropped."""
    world, device, service = probed("shutdown")
    world.driver.packet(device.primary, Packet(IcMessage.request(IcType.HEARTBEAT, bytes(40)).to_bytes()))
    assert 1 == service.dropped
    assert not device.primary.to_host


def test_suspend_and_resume_negotiate_again() -> None:
    """Closing the channel ends what was agreed on."""
    world, device, _ = probed("timesync")
    world.run(world.driver.suspend(device))
    assert device.vsp.versions is None
    world.run(world.driver.resume(device))
    world.settle()
    assert AGREED["timesync"] == device.vsp.versions
