"""Opening and closing: what goes over the wire, what an error undoes, what a host can do meanwhile (vmbus.md 7.2)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.vmbus.scripted import Guest, gpadl_range, refused, traces
from vmbusirq.errors import Hung
from vmbusirq.log import Level
from vmbusirq.steps import run
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.vmbus.pages import GuestPages
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import (
    FIRST_GPADL_HANDLE,
    STATUS_UNSUCCESSFUL,
    CloseChannel,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    Message,
    ModifyChannel,
    OpenChannel,
    OpenChannelResult,
    RelidReleased,
    Unload,
)
from vmbusirq.wire.ring import RingReader

CLOSED = (ChannelState.OPEN, None, False, 0)


def closed(channel: Channel) -> bool:
    """True if nothing of an open is left on the channel."""
    return CLOSED == traces(channel)[:4]


def opens(guest: Guest, channel: Channel) -> bool:
    """Open for good, let a packet through, close; True if all that works and leaves nothing."""
    before = guest.footprint()
    guest.vmbus.open(channel)
    guest.host.write(channel.relid, Packet(b"hello"))
    guest.settle()
    read = channel.stats.packets + channel.stats.replies
    guest.vmbus.close(channel)
    return bool(read) and before == guest.footprint()


# ---- the wire


def test_the_order_on_the_wire() -> None:
    """vmbus.md 7.2: GPADL_HEADER, BODY ..., [CREATED], OPEN, [OPEN_RESULT]; openid is the relid."""
    guest = Guest(drivers=False)
    channel = guest.offered("scsi", 9)
    guest.host.got.clear()
    guest.vmbus.open(channel)
    assert ["GpadlHeader", "GpadlBody", "GpadlBody", "OpenChannel"] == guest.host.names
    (message,) = guest.host.of_type(OpenChannel)
    assert OpenChannel(9, 9, FIRST_GPADL_HANDLE, 0, 32) == message


def test_opening_waits_for_created_before_it_sends_open() -> None:
    """No OPENCHANNEL before GPADL_CREATED, no return before OPEN_RESULT."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    seen: list[tuple[str, int]] = []
    steps = guest.vmbus.open_steps(channel)
    guest.host.mute = {GpadlHeader, OpenChannel}
    for step in steps:
        guest.settle()
        seen.append((step.point, len(guest.host.of_type(OpenChannel))))
        if step.point == "wait for GPADL_CREATED":
            guest.host.post(GpadlCreated(5, FIRST_GPADL_HANDLE, 0))
            guest.settle()
        if step.point == "wait for OPENCHANNEL_RESULT":
            guest.host.post(OpenChannelResult(5, 5, 0))
            guest.settle()
    points = [point for point, _ in seen]
    assert [
        "send GPADL_HEADER",
        "wait for GPADL_CREATED",
        "channel 5: request_irq",
        "send OPENCHANNEL",
        "wait for OPENCHANNEL_RESULT",
    ] == points
    assert [0, 0, 0, 0, 1] == [sent for _, sent in seen]
    assert ChannelState.OPENED is channel.state


@pytest.mark.parametrize(("pages", "messages"), [(1, 1), (26, 1), (27, 2), (54, 2), (55, 3), (64, 3), (256, 10)])
def test_a_gpadl_takes_as_many_messages_as_the_check_values_say(pages: int, messages: int) -> None:
    """vmbus.md 1.17 [D]: 26 pages = 1 message, 27 = 2, 64 = 3, 256 = 10; range_buflen = 8 + 8 * pages."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.host.got.clear()
    memory = guest.vmbus.alloc_pages(pages)
    handle = run(guest.vmbus.establish_gpadl_steps(channel, memory), guest.partition.idle)
    assert ["GpadlHeader"] + ["GpadlBody"] * (messages - 1) == guest.host.names
    header = guest.host.of_type(GpadlHeader)[0]
    assert (5, handle, 8 + 8 * pages, 1) == (header.child_relid, header.gpadl, header.range_buflen, header.rangecount)
    assert all(body.msgnumber == 0 for body in guest.host.of_type(GpadlBody))
    got = gpadl_range(guest, handle)
    assert (pages * 4096, 0, tuple(memory.pfns)) == (got.byte_count, got.byte_offset, got.pfns)
    assert tuple(memory.pfns) == guest.vmbus.shared_pages()[f"GPADL {handle:#x}"]
    run(guest.vmbus.teardown_gpadl_steps(channel, handle, memory), guest.partition.idle)
    assert GpadlTeardown(5, handle) == guest.host.got[-1]
    assert f"GPADL {handle:#x}" not in guest.vmbus.shared_pages()


def test_handles_begin_at_e1e10_and_are_never_used_twice() -> None:
    """vmbus.md 2.3."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    for n in range(3):
        guest.vmbus.open(channel)
        assert 0xE1E10 + n == channel.gpadl
        guest.vmbus.close(channel)


def test_a_gpadl_too_long_for_its_header_is_refused_before_anything_is_sent() -> None:
    """range_buflen has 16 bits."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    sent, shared = len(guest.host.got), guest.vmbus.shared_pages()
    memory = guest.vmbus.alloc_pages(8191)
    with refused(errno.EINVAL):
        run(guest.vmbus.establish_gpadl_steps(channel, memory), guest.partition.idle)
    assert (sent, shared, []) == (len(guest.host.got), guest.vmbus.shared_pages(), guest.vmbus.control.requests)


def test_user_data_travels_with_open() -> None:
    """vmbus.md 2.8: 120 bytes at 28."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    run(guest.vmbus.open_steps(channel, userdata=b"version 2"), guest.partition.idle)
    assert b"version 2".ljust(120, b"\0") == guest.host.of_type(OpenChannel)[0].userdata


@pytest.mark.parametrize(("page_bytes", "per_page"), [(4096, 1), (16384, 4), (65536, 16)])
@pytest.mark.parametrize("device_class", ["heartbeat", "scsi", "keyboard", "framebuffer", "hv_sock"])
def test_large_pages_leave_a_gap_behind_the_ring_header(device_class: str, page_bytes: int, per_page: int) -> None:
    """vmbus.md 1.1: the header is one guest page, of which only the first 4 KiB are shared; 7.2: downstream offset.

    The GPADL counts 4096-byte pages in both rings without the gaps; what the host writes the guest reads.
    """
    guest = Guest(drivers=False, page_bytes=page_bytes)
    flags = {"chn_flags": 0x2000} if device_class == "hv_sock" else {}
    channel = guest.offered(device_class, **flags)
    guest.vmbus.open(channel)
    message = guest.host.of_type(OpenChannel)[0]
    pfns = gpadl_range(guest, message.ringbuffer_gpadlhandle).pfns
    half = len(pfns) // 2
    ring_bytes = channel.device_class.ring_size(page_bytes)
    assert ring_bytes // 4096 - per_page + 1 == half == message.downstream_ringbuffer_pageoffset
    assert 0 == ring_bytes % page_bytes
    for header, *data in (pfns[:half], pfns[half:]):
        assert 0 == header % per_page
        assert list(range(header + per_page, header + per_page + len(data))) == data
    assert pfns[half] == pfns[0] + ring_bytes // 4096
    assert channel.rings is not None
    assert 2 * ring_bytes // 4096 == channel.rings.pages
    for ring in (channel.rings.ring_out, channel.rings.ring_in):
        assert (half - 1) * 4096 == ring.data_size
        assert (0, 0, 0, 0, 1) == tuple(getattr(ring.control, name) for name in ring.control.__slots__)
    guest.host.write(5, Packet(bytes(range(50))))
    guest.settle()
    assert 1 == channel.stats.packets
    channel.send(b"up")
    assert [b"up".ljust(8, b"\0")] == [p.payload for p in RingReader(guest.host.rings[5][1]).packets()]
    guest.vmbus.close(channel)
    assert guest.pages_in_use() == guest.pages_allocated


# ---- error paths


def thief(guest: Guest, channel: Channel) -> Callable[[], object]:
    guest.irq.request_irq(channel.irq, lambda irq, dev_id: 1, 0, "thief", "me")
    return lambda: guest.irq.free_irq(channel.irq, "me")


def refuse(kind: type[Message]) -> Callable[[Guest, Channel], Callable[[], object]]:
    def arrange(guest: Guest, channel: Channel) -> Callable[[], object]:
        guest.host.status[kind] = STATUS_UNSUCCESSFUL
        return guest.host.status.clear

    return arrange


def unpostable(kind: int) -> Callable[[Guest, Channel], Callable[[], object]]:
    def arrange(guest: Guest, channel: Channel) -> Callable[[], object]:
        post = guest.partition.hv_post_message

        def fail(connection_id: int, message_type: int, payload: bytes) -> int:
            return 5 if payload[0] == kind else post(connection_id, message_type, payload)

        guest.partition.hv_post_message = fail  # type: ignore[assignment, method-assign]
        return lambda: setattr(guest.partition, "hv_post_message", post)

    return arrange


def no_memory(guest: Guest, channel: Channel) -> Callable[[], object]:
    pfn = guest.memory.alloc(guest.memory._free.longest)
    return lambda: guest.memory.free(pfn)


FAILURES = [
    (no_memory, errno.ENOMEM, []),
    (unpostable(8), errno.EINVAL, []),
    (unpostable(9), errno.EINVAL, ["GpadlHeader"]),
    (refuse(GpadlHeader), errno.EDQUOT, ["GpadlHeader", "GpadlBody", "GpadlBody"]),
    (thief, errno.EBUSY, ["GpadlHeader", "GpadlBody", "GpadlBody", "GpadlTeardown"]),
    (unpostable(5), errno.EINVAL, ["GpadlHeader", "GpadlBody", "GpadlBody", "GpadlTeardown"]),
    (refuse(OpenChannel), errno.EAGAIN, ["GpadlHeader", "GpadlBody", "GpadlBody", "OpenChannel", "GpadlTeardown"]),
]
NAMES = ["memory", "header", "body", "quota", "irq", "post", "result"]
# in design legacy channels have no IRQ that somebody could have taken
CASES = [
    pytest.param(design, *failure, id=f"{design}-{name}")
    for design in ("rfc", "legacy")
    for name, failure in zip(NAMES, FAILURES, strict=True)
    if (design, name) != ("legacy", "irq")
]


@pytest.mark.parametrize(("design", "what", "number", "messages"), CASES)
def test_an_error_at_each_step_undoes_exactly_what_was_done(
    design: str, what: Any, number: int, messages: list[str]
) -> None:
    """Pages, mappings, IRQ action, hint, callback, GPADL list: as before; and the channel can be opened later."""
    guest = Guest(design, drivers=False)
    channel = guest.offered("scsi")
    undo = what(guest, channel)
    before = guest.footprint()
    guest.host.got.clear()
    guest.host.gpadls.clear()
    with refused(number):
        guest.vmbus.open(channel)
    guest.settle()
    assert before == guest.footprint()
    assert closed(channel)
    assert messages == guest.host.names
    undo()
    assert opens(guest, channel)


def test_the_quota_of_the_host_is_edquot_with_its_status() -> None:
    """vmbus.md 2.11: any status but 0 fails; the text has it as %d."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.host.status[GpadlHeader] = STATUS_UNSUCCESSFUL
    with refused(errno.EDQUOT, "-2147418113"):
        guest.vmbus.open(channel)


@pytest.mark.parametrize("design", ["rfc", "legacy"])
@pytest.mark.parametrize("silent", [GpadlHeader, OpenChannel])
def test_a_host_that_never_answers_leaves_the_channel_closed(design: str, silent: type[Message]) -> None:
    """vmbus.md 2.12: no limit, so Hung; the guest's half is undone, the pages are the host's to write to for ever."""
    guest = Guest(design, drivers=False)
    channel = guest.offered("heartbeat")
    before = guest.footprint()
    guest.host.mute = {silent}
    with pytest.raises(Hung):
        guest.vmbus.open(channel)
    after = guest.footprint()
    assert closed(channel)
    assert 8 == guest.vmbus.stranded_pages == after["pages"] - before["pages"]
    assert before["shared"] != after["shared"]
    for what in ("actions", "hints", "requests", "irqs"):
        assert before[what] == after[what]
    guest.host.mute.clear()
    if silent is GpadlHeader:
        assert opens(guest, channel)
    else:
        with refused(errno.EBUSY):
            guest.vmbus.open(channel)
    guest.host.rescind(5)  # now the host has let go
    guest.settle()
    assert (3, 0) == (guest.pages_allocated, guest.vmbus.stranded_pages)
    assert not any("GPADL" in name for name in guest.vmbus.shared_pages())


@pytest.mark.parametrize("strict_rfc", [False, True])
def test_a_close_that_the_host_does_not_answer_closes_all_the_same(strict_rfc: bool) -> None:
    """The memory may still be the host's: it is leaked, as v6.10 does, and told; the IRQ is free."""
    guest = Guest(drivers=False, strict_rfc=strict_rfc)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    guest.host.mute = {GpadlTeardown}
    with refused(errno.ETIMEDOUT, "GPADL_TORNDOWN"):
        guest.vmbus.close(channel)
    assert (ChannelState.OPEN, None, strict_rfc, 0) == traces(channel)[:4]
    assert 8 == guest.vmbus.stranded_pages
    assert guest.pages_in_use() == guest.pages_allocated
    guest.host.mute.clear()
    if not strict_rfc:
        assert opens(guest, channel)
    guest.vmbus.unload()
    assert 0 == guest.vmbus.stranded_pages


def test_a_close_that_cannot_be_posted_is_logged_and_closes_all_the_same() -> None:
    """vmbus_close_internal(): "Close failed: close post msg return is %d", and rather leak memory."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    undo = unpostable(7)(guest, channel)
    with refused(errno.EINVAL):
        guest.vmbus.close(channel)
    undo()
    assert "hv_vmbus: Close failed: close post msg return is -22" in guest.log.texts(Level.ERR)
    assert closed(channel)
    assert 8 == guest.vmbus.stranded_pages
    guest.host.answer(CloseChannel(5))
    assert opens(guest, channel)


def test_late_answers_change_nothing() -> None:
    """What comes after nobody waits for it any more is ignored (vmbus.md 2.10)."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.host.mute = {GpadlHeader}
    with pytest.raises(Hung):
        guest.vmbus.open(channel)
    before = guest.footprint()
    guest.host.post(GpadlCreated(5, FIRST_GPADL_HANDLE, 0))
    guest.host.post(OpenChannelResult(5, 5, 0))
    guest.host.post(GpadlTorndown(FIRST_GPADL_HANDLE))
    guest.settle()
    assert before == guest.footprint()
    assert closed(channel)

    def late(message: GpadlHeader) -> None:
        guest.host.post(GpadlCreated(5, FIRST_GPADL_HANDLE, STATUS_UNSUCCESSFUL))
        guest.host.post(GpadlTorndown(FIRST_GPADL_HANDLE))
        guest.host.answer(message)

    guest.host.mute.clear()
    guest.host.instead[GpadlHeader] = late  # answers to the open before, in the middle of another
    assert opens(guest, channel)


# ---- rescinded meanwhile


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("silent", [GpadlHeader, OpenChannel])
def test_a_rescind_ends_an_open_that_waits(silent: type[Message], together: bool) -> None:
    """vmbus.md 2.12, 7.3: rescind completes the wait, -ENODEV; also when the answer comes in the same moment."""
    guest = Guest(drivers=False)
    channel = guest.offered("scsi")

    def rescind(message: Any) -> None:
        if together:
            guest.host.answer(message)
        if len(guest.host.of_type(GpadlBody)) in (0, 2):
            guest.host.rescind(5)

    guest.host.instead[GpadlBody if silent is GpadlHeader else silent] = rescind
    with refused(errno.ENODEV):
        guest.vmbus.open(channel)
    guest.settle()
    assert channel.gone
    assert {} == dict(guest.vmbus.channels)
    assert 3 == guest.pages_allocated == guest.pages_in_use()
    assert [RelidReleased(5)] == guest.host.of_type(RelidReleased)
    assert [] == guest.host.of_type(GpadlTeardown)
    assert not any("GPADL" in name for name in guest.vmbus.shared_pages())
    assert [] == sorted(guest.irq.descs)


def test_a_rescind_ends_a_close_that_waits() -> None:
    """The memory is considered returned: nothing is torn down, nothing is stranded."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    guest.host.instead[GpadlTeardown] = lambda message: guest.host.rescind(5)
    guest.vmbus.close(channel)
    guest.settle()
    assert (True, 0, 3) == (channel.gone, guest.vmbus.stranded_pages, guest.pages_allocated)
    assert ChannelState.OPEN is channel.state


def test_a_channel_that_is_gone_refuses_everything() -> None:
    """ENODEV, or EINVAL where it is not open; no crash."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    guest.host.rescind(5)
    guest.settle()
    before = guest.footprint()
    with refused(errno.ENODEV):
        guest.vmbus.open(channel)
    with refused(errno.EINVAL):
        guest.vmbus.close(channel)
    with refused(errno.ENODEV):
        channel.send(b"x")
    with refused(errno.EIO):
        guest.vmbus.target_cpu_store(channel, b"1")
    with refused(errno.ENODEV):
        run(guest.vmbus.establish_gpadl_steps(channel, GuestPages(guest.memory, 1)), guest.partition.idle)
    with refused(errno.ENODEV):
        _ = channel.stats
    assert before["relids"] == guest.footprint()["relids"]


def test_a_rescinded_channel_is_closed_without_a_word() -> None:
    """vmbus.md 7.3: no CLOSECHANNEL is of use, GPADL teardown of a rescinded channel is not sent."""
    guest = Guest()
    guest.opened("heartbeat")
    guest.host.got.clear()
    guest.host.rescind(5)
    guest.settle()
    assert [RelidReleased(5)] == guest.host.got


# ---- the series


def test_check_17_strict_rfc_keeps_the_irq_at_close_and_cannot_open_again() -> None:
    """vmbus.md 10, trap 1: vmbus_close never calls free_irq; request_irq then fails with EBUSY."""
    guest = Guest(drivers=False, strict_rfc=True)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    guest.vmbus.close(channel)
    assert ["heartbeat"] == [action.name for action in guest.irq.irq_to_desc(channel.irq).actions]
    for _ in range(2):  # each time anew
        with refused(errno.EBUSY):
            guest.vmbus.open(channel)
    assert guest.pages_in_use() == guest.pages_allocated
    guest.host.rescind(5)  # the relid's unmapping frees it
    guest.settle()
    assert [] == sorted(guest.irq.descs)


def test_check_17_mended_the_irq_number_and_its_counts_stay() -> None:
    """Fixed mode: close, re-open: same IRQ number, counters kept."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    irq = channel.irq
    for n in (1, 2, 3):
        guest.vmbus.open(channel)
        assert irq == channel.irq
        guest.synic.signal(0, 5)
        guest.settle()
        assert (n, n) == (int(guest.irq.counts[irq].sum()), channel.stats.interrupts)
        guest.vmbus.close(channel)


@pytest.mark.parametrize(("strict_rfc", "taken"), [(False, 1), (True, 0)])
def test_the_cpu_file_of_the_series_returns_0(strict_rfc: bool, taken: int) -> None:
    """Trap 2, vmbus.md 4.2 row 13: a successful write returns 0; mended: the bytes taken."""
    guest = Guest(drivers=False, strict_rfc=strict_rfc)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    assert taken == guest.vmbus.target_cpu_store(channel, b"2")
    assert 2 == channel.target_cpu
    guest.settle()
    assert [ModifyChannel(5, 2)] == guest.host.of_type(ModifyChannel)


def test_closing_is_told_to_the_host_once() -> None:
    """CLOSECHANNEL has no answer; a second close sends nothing."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.vmbus.open(channel)
    guest.vmbus.close(channel)
    with refused(errno.EINVAL):
        guest.vmbus.close(channel)
    assert [CloseChannel(5)] == guest.host.of_type(CloseChannel)
    assert [] == guest.host.of_type(Unload)
