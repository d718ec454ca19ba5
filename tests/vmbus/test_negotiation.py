"""Agreeing on a version, posting messages to a host that has no room, messages that cannot be taken (vmbus.md 2)."""

from __future__ import annotations

import errno

import pytest

from tests.vmbus.scripted import CONNECTION_PAGES, MSG_CONN_ID, Guest, offer_of, refused
from vmbusirq.core import TICKS_PER_S
from vmbusirq.errors import Hung
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.log import Level
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.wire.protocol import (
    LINUX_VERSIONS,
    MESSAGES,
    AllOffersDelivered,
    Direction,
    GpadlHeader,
    InitiateContact,
    RequestOffers,
    TlConnectRequest,
    Version,
    VersionResponse,
)


@pytest.mark.parametrize("spoken", LINUX_VERSIONS, ids=str)
def test_versions_are_tried_from_the_newest_down(spoken: Version) -> None:
    """vmbus.md 2.9: 5.3, 5.2, 5.1, 5.0, 4.1, 4.0, 3.0, 2.4 in that order until the host says yes; then the offers."""
    guest = Guest(version=spoken)
    tried = [message.version for message in guest.host.of_type(InitiateContact)]
    if spoken < Version.V5_0:  # an older host does not know connection id 4: those messages never reach it
        assert [version for version in LINUX_VERSIONS if spoken <= version < Version.V5_0] == tried
    else:
        assert [version for version in LINUX_VERSIONS if version >= spoken] == tried
    assert spoken == guest.vmbus.version
    assert f"hv_vmbus: Vmbus version:{spoken.major}.{spoken.minor}" in guest.log.texts()
    assert RequestOffers() == guest.host.got[-1]
    assert CONNECTION_PAGES == guest.pages_allocated


def test_a_host_that_speaks_none_is_edom_and_nothing_stays_shared() -> None:
    """vmbus.md 2.9: none -> -EDOM; the interrupt page and the monitor pages are free again."""
    guest = Guest(version=Version.V1_1, connect=False)
    with refused(errno.EDOM, "5.3, 5.2, 5.1, 5.0, 4.1, 4.0, 3.0, 2.4"):
        guest.vmbus.connect()
    assert (0, {}) == (
        guest.pages_allocated,
        {k: v for k, v in guest.vmbus.shared_pages().items() if not k.startswith("cpu ")},
    )
    assert guest.vmbus.version is None
    with refused(errno.EDOM):  # again, and no worse
        guest.vmbus.connect()


def test_contact_goes_by_connection_4_and_what_follows_by_the_one_that_the_host_names() -> None:
    """vmbus.md 2.3: id 4 to request 5.0 and later, then msg_conn_id of the response."""
    guest = Guest(connect=False)
    posted: list[tuple[int, int]] = []
    post = guest.partition.hv_post_message

    def note(connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        posted.append((connection_id, payload[0]))
        return post(connection_id, message_type, payload)

    guest.partition.hv_post_message = note  # type: ignore[method-assign]
    guest.vmbus.connect()
    assert [(4, 14), (MSG_CONN_ID, 3)] == posted


def test_before_5_0_everything_goes_by_connection_1() -> None:
    """vmbus.md 2.3, 2.8: the field of msg_conn_id holds the version again, which is no connection."""
    guest = Guest(version=Version.V4_1)
    assert 1 == guest.vmbus.control.msg_conn_id
    guest.opened("heartbeat")  # its messages arrive


def test_the_third_word_is_the_interrupt_page_or_sint_and_vtl() -> None:
    """vmbus.md 2.8: below 5.0 the interrupt page's address, from 5.0 on msg_sint 2 and msg_vtl 0; two monitor pages."""
    old, new = Guest(version=Version.V4_1), Guest()
    (before,), (after,) = (guest.host.of_type(InitiateContact) for guest in (old, new))
    shared = old.vmbus.shared_pages()
    assert shared["interrupt page"][0] << 12 == before.interrupt_page
    assert (2, 2, 0) == (after.interrupt_page, after.msg_sint, after.msg_vtl)
    assert [shared[f"monitor page {n}"][0] << 12 for n in (1, 2)] == [before.monitor_page1, before.monitor_page2]
    assert 0 == before.target_vcpu == after.target_vcpu


def test_max_version_caps_what_is_tried() -> None:
    """The module parameter hv_vmbus.max_version (vmbus.md 2.9)."""
    guest = Guest(max_version=0x40001)
    assert [0x40001] == [message.version for message in guest.host.of_type(InitiateContact)]
    assert Version.V4_1 == guest.vmbus.version


def test_a_confidential_guest_takes_5_2_at_least() -> None:
    """vmbus.md 2.9, row 5.2."""
    guest = Guest(version=Version.V5_2, isolation=True)
    assert Version.V5_2 == guest.vmbus.version
    guest = Guest(version=Version.V5_1, isolation=True, connect=False)
    with refused(errno.EDOM, "5.3, 5.2"):
        guest.vmbus.connect()


def test_a_confidential_guest_takes_offers_of_few_classes() -> None:
    """vmbus.md 5.1, column iso; the others are logged and dropped, their relids never released."""
    classes = ("scsi", "netvsc", "vpci", "timesync", "heartbeat", "shutdown", "ide", "fc", "kvp", "vss", "balloon")
    offers = [offer_of(name, relid, name) for relid, name in enumerate(classes, 1)]
    sock = offer_of("", 20, "sock", chn_flags=0x2000)
    guest = Guest(isolation=True, offers=[*offers, sock, offer_of("", 21, "nobody")])
    assert [*range(1, 7), 20] == sorted(guest.vmbus.channels)
    for relid in (7, 8, 9, 10, 11, 21):
        assert f"hv_vmbus: Invalid offer {relid} from the host supporting isolation" in guest.log.texts(Level.ERR)
    assert 0 == guest.vmbus.manager.offers_in_progress


def test_only_version_supported_counts() -> None:
    """Trap 31: connection_state != 0 with version_supported = 1 is success to Linux."""
    guest = Guest(connect=False)

    def answer(message: InitiateContact) -> None:
        guest.host.agreed = Version(message.version)
        guest.host.post(VersionResponse(1, 2, MSG_CONN_ID))

    guest.host.instead[InitiateContact] = answer
    guest.vmbus.connect()
    assert Version.V5_3 == guest.vmbus.version


def test_a_response_that_nobody_waits_for_is_ignored() -> None:
    """vmbus.md 2.10: without a matching request nothing happens, whatever it says."""
    guest = Guest()
    guest.host.post(VersionResponse(0, 0, 77))
    guest.settle()
    assert (Version.V5_3, MSG_CONN_ID) == (guest.vmbus.version, guest.vmbus.control.msg_conn_id)


def test_connecting_twice_is_ebusy() -> None:
    """Nothing is sent."""
    guest = Guest()
    sent = len(guest.host.got)
    with refused(errno.EBUSY):
        guest.vmbus.connect()
    assert sent == len(guest.host.got)


def test_a_host_that_never_answers_contact_is_a_hang_that_can_be_tried_again() -> None:
    """vmbus.md 2.12: no time limit. The pages stay shared, since the host was told of them, and are used again."""
    guest = Guest(connect=False)
    guest.host.mute = {InitiateContact}
    for _ in range(2):
        with refused(errno.ETIMEDOUT, "VERSION_RESPONSE"):
            guest.vmbus.connect()
        assert CONNECTION_PAGES == guest.pages_allocated
        assert [] == guest.vmbus.control.requests
    guest.host.mute.clear()
    guest.vmbus.connect()
    assert Version.V5_3 == guest.vmbus.version
    assert CONNECTION_PAGES == guest.pages_allocated


# ---- vmbus_post_msg


def test_a_full_port_is_tried_again_and_short_delays_take_no_virtual_time() -> None:
    """vmbus.md 2.1: INSUFFICIENT_BUFFERS is retried after 1, 2, 4 ... microseconds, which the kernel spins through."""
    guest = Guest(buffers=1, drivers=False)
    channel = guest.offered("netvsc")  # 10 messages
    before = guest.core.now
    guest.vmbus.open(channel)
    assert ChannelState.OPENED is channel.state
    assert before == guest.core.now


def statuses(guest: Guest, *answers: HvStatus) -> list[int]:
    """Let HvPostMessage answer these, then work; return the ticks at which it was called."""
    called: list[int] = []
    post, left = guest.partition.hv_post_message, list(answers)

    def answer(connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        called.append(guest.core.now)
        return left.pop(0) if left else post(connection_id, message_type, payload)

    guest.partition.hv_post_message = answer  # type: ignore[method-assign]
    return called


@pytest.mark.parametrize(
    ("status", "number"),
    [
        (HvStatus.INSUFFICIENT_BUFFERS, errno.ENOBUFS),
        (HvStatus.INSUFFICIENT_MEMORY, errno.ENOBUFS),
        (HvStatus.INVALID_CONNECTION_ID, errno.EAGAIN),
    ],
)
def test_a_hundred_attempts_take_167_seconds(status: HvStatus, number: int) -> None:
    """vmbus.md 2.1 [D]: worst case 167.77 s; of it 1 + 2 + ... + 512 microseconds are spun and take no virtual time."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    before, start = guest.footprint(), guest.core.now
    called = statuses(guest, *[status] * 100)
    with refused(number, "GPADL_HEADER"):
        guest.vmbus.open(channel)
    assert 100 == len(called)
    assert (167_772_159 - 1023) * 10 == guest.core.now - start
    assert before == guest.footprint()
    guest.vmbus.open(channel)
    assert ChannelState.OPENED is channel.state


def test_another_status_is_einval_at_once() -> None:
    """vmbus.md 2.1: anything else -> log "hv_post_msg() failed; error code:%d" and -EINVAL."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    called = statuses(guest, HvStatus.INVALID_PARAMETER)
    with refused(errno.EINVAL):
        guest.vmbus.open(channel)
    assert 1 == len(called)
    assert "hv_vmbus: hv_post_msg() failed; error code:5" in guest.log.texts(Level.ERR)


def test_an_unknown_connection_at_first_contact_is_not_tried_again() -> None:
    """vmbus.md 2.1: status 18 for INITIATE_CONTACT is -EINVAL at once: an older host, on to the next version."""
    guest = Guest(connect=False)
    called = statuses(guest, *[HvStatus.INVALID_CONNECTION_ID] * 4)
    guest.vmbus.connect()
    assert Version.V4_1 == guest.vmbus.version
    assert [0] * 6 == called


def test_a_host_that_names_an_impossible_connection_is_lost_but_does_no_harm() -> None:
    """A msg_conn_id of more than 24 bits: every post is retried, then EAGAIN."""
    guest = Guest(connect=False)
    guest.host.msg_conn_id = 0xFFFF_FFFF
    with refused(errno.EAGAIN, "REQUESTOFFERS"):
        guest.vmbus.connect()
    assert guest.core.now > 160 * TICKS_PER_S


def test_a_post_that_fails_on_a_work_queue_is_logged_where_linux_ignores_it() -> None:
    """vmbus_release_relid()'s result is not looked at: nothing comes out of settle()."""
    guest = Guest()
    guest.opened("heartbeat")
    guest.vmbus.control.msg_conn_id = 0x999
    guest.host.post(offer_of("scsi", 0))  # refused: its relid is released, which fails
    guest.host.rescind(5)
    guest.pass_time(400)
    assert {} == dict(guest.vmbus.channels)
    errors = [text for text in guest.log.texts(Level.ERR) if "released" in text]
    assert ["hv_vmbus: relid 5 could not be released: EAGAIN", "hv_vmbus: relid 0 could not be released: EAGAIN"] == (
        sorted(errors, reverse=True)
    )


def test_hv_sock_needs_4_0() -> None:
    """vmbus.md 2.7: TL_CONNECT_REQUEST is new in 4.0."""
    from vmbusirq.steps import run

    ids = (offer_of("", 1, "a").if_instance, offer_of("", 1, "b").if_instance)
    guest = Guest()
    run(guest.vmbus.tl_connect_steps(*ids), guest.partition.idle)
    guest.settle()
    assert [TlConnectRequest(*ids)] == guest.host.of_type(TlConnectRequest)
    guest = Guest(version=Version.V3_0)
    with refused(errno.EINVAL):
        run(guest.vmbus.tl_connect_steps(*ids), guest.partition.idle)


# ---- vmbus_on_msg_dpc


@pytest.mark.parametrize(
    ("msgtype", "size", "says"),
    [
        (25, 8, "hv_vmbus: unknown msgtype=25"),
        (30, 240, "hv_vmbus: unknown msgtype=30"),
        (0xFFFF_FFFF, 8, "hv_vmbus: unknown msgtype=-1"),
        (1, 241, "hv_vmbus: payload size is too large (241)"),
        (4, 255, "hv_vmbus: payload size is too large (255)"),
        (1, 195, "hv_vmbus: message too short: msgtype=1 len=195"),
        (2, 11, "hv_vmbus: message too short: msgtype=2 len=11"),
        (6, 19, "hv_vmbus: message too short: msgtype=6 len=19"),
        (10, 4, "hv_vmbus: message too short: msgtype=10 len=4"),
        (12, 11, "hv_vmbus: message too short: msgtype=12 len=11"),
        (15, 15, "hv_vmbus: message too short: msgtype=15 len=15"),
        (24, 15, "hv_vmbus: message too short: msgtype=24 len=15"),
        (0, 8, ""),
        (5, 148, ""),
        (20, 12, ""),
        (23, 44, ""),
    ],
)
@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_a_message_that_linux_refuses_is_dropped_and_its_slot_freed(
    engine: str, msgtype: int, size: int, says: str
) -> None:
    """vmbus.md 2.7, 3.6: WARN_ONCE for 25 and more, too long, too short; silence without a handler; EOM each time."""
    guest = Guest(engine=engine)
    lines = len(guest.log)
    for _ in range(2):
        guest.hostile_message(msgtype, size)
        guest.settle()
        assert guest.synic.take_message(0) is None
    assert ([says] if says else []) == guest.log.texts()[lines:]
    guest.host.post(AllOffersDelivered())
    guest.settle()
    assert 2 == guest.vmbus.messages_received[4]


def test_a_warning_is_given_once_for_each_reason() -> None:
    """WARN_ONCE() stands once in the code for each reason: a host cannot fill the log (trap 23)."""
    guest = Guest()
    for msgtype in range(25, 400):
        guest.host.raw(msgtype.to_bytes(4, "little") + bytes(4))
        guest.settle()
    assert 1 == sum("unknown msgtype" in text for text in guest.log.texts())


@pytest.mark.parametrize("payload", [b"", b"\x04", b"\x04\x00\x00\x00\x00\x00\x00"])
def test_a_payload_shorter_than_a_header_is_taken_by_the_rules_of_its_type(payload: bytes) -> None:
    """vmbus_on_msg_dpc reads the type before it looks at the size, out of its copy of the whole slot."""
    guest = Guest()
    guest.host.raw(payload)
    guest.settle()
    guest.host.post(AllOffersDelivered())
    guest.settle()
    assert guest.vmbus.messages_received[4] >= 2


def test_every_type_that_a_guest_knows_can_be_sent_at_any_time() -> None:
    """Answers that nobody asked for, twice each, whole and all zeroes: logged at most, nothing waits, nothing leaks."""
    guest = Guest()
    guest.opened("heartbeat")
    before = guest.footprint()
    for kind in MESSAGES.values():
        if kind.wire.direction is Direction.TO_GUEST:
            for size in (kind.wire.size, 240):
                guest.host.raw(kind.wire.msgtype.to_bytes(4, "little").ljust(size, b"\0"))
                guest.settle()
    guest.settle()
    assert before == guest.footprint()


def test_waiting_for_what_the_host_will_not_do_names_what_is_waited_for() -> None:
    """Hung is an IrqError with ETIMEDOUT, and says where."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.host.mute = {GpadlHeader}
    with pytest.raises(Hung, match="GPADL_CREATED"):
        guest.vmbus.open(channel)
