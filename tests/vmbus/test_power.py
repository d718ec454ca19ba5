"""Hibernation, unload, kexec, panic (vmbus.md 7.4, 7.5)."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.vmbus.scripted import CONNECTION_PAGES, Guest, offer_of, refused
from vmbusirq.core import TICKS_PER_S
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.log import Level
from vmbusirq.steps import run
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.vmbus.pages import HV_PAGE
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import (
    INVALID_RELID,
    GpadlHeader,
    InitiateContact,
    MessageType,
    RequestOffers,
    Unload,
    Version,
)

TWO = (offer_of("scsi", 5, "disk"), offer_of("heartbeat", 6, "beat"))


@pytest.mark.parametrize("design", ["rfc", "legacy"])
@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_check_18_suspend_and_resume_with_another_relid(design: str, engine: str) -> None:
    """vmbus.md 7.4: `id` changes, the directory name does not, target_cpu is kept; the connection id may change."""
    guest = Guest(design, engine=engine, offers=TWO)
    channel, beat = guest.vmbus.channels[5], guest.vmbus.channels[6]
    guest.vmbus.target_cpu_store(channel, b"3")
    guest.host.write(5, Packet(b"before"))
    guest.settle()
    guest.vmbus.suspend()

    assert (INVALID_RELID, INVALID_RELID) == (channel.relid, beat.relid)
    assert ({}, 2, None) == (dict(guest.vmbus.channels), guest.vmbus.manager.fixup_on_resume, guest.vmbus.version)
    assert Unload() == guest.host.got[-1]
    assert [] == sorted(guest.irq.descs)
    assert 3 == guest.pages_allocated

    guest.host.offers = [offer_of("heartbeat", 6, "beat"), offer_of("scsi", 9, "disk", connection_id=0x4321)]
    guest.host.got.clear()
    guest.vmbus.resume()
    guest.settle()
    assert [Version.V5_3] == [message.version for message in guest.host.of_type(InitiateContact)]
    assert RequestOffers() in guest.host.got
    assert {9: channel, 6: beat} == dict(guest.vmbus.channels)
    assert (9, "5", 3, 0x4321) == (channel.relid, channel.dir_name, channel.target_cpu, channel.offer.connection_id)
    assert (3, 0) == (guest.host.targets[9], guest.host.targets[6])
    assert (ChannelState.OPENED, 0) == (channel.state, guest.vmbus.manager.fixup_on_resume)
    assert 2 == len(guest.vmbus.devices)
    guest.host.write(9, Packet(b"after"))
    guest.settle()
    assert (2, 2) == (channel.stats.packets, channel.stats.interrupts)


def test_only_the_earlier_version_is_tried() -> None:
    """vmbus.md 7.4: a host that does not speak it any more: EPROTO; it can be tried again."""
    guest = Guest(version=Version.V5_2, offers=TWO)
    guest.vmbus.suspend()
    guest.host.got.clear()
    guest.host.version = Version.V5_1
    with refused(errno.EPROTO):
        guest.vmbus.resume()
    assert [Version.V5_2] == [message.version for message in guest.host.of_type(InitiateContact)]
    guest.host.version = Version.V5_3
    guest.vmbus.resume()
    assert [5, 6] == sorted(guest.vmbus.channels)


def test_a_missing_device_is_waited_for_10_seconds_and_fails_the_next_suspend() -> None:
    """vmbus.md 2.12, 7.4: "Some vmbus device is missing after suspending?"; then EBUSY, and what was open is again."""
    guest = Guest(offers=TWO)
    guest.vmbus.suspend()
    guest.host.offers = [TWO[1]]
    start = guest.core.now
    guest.vmbus.resume()
    assert 10 * TICKS_PER_S == guest.core.now - start
    assert "hv_vmbus: Some vmbus device is missing after suspending?" in guest.log.texts(Level.ERR)
    assert [6] == list(guest.vmbus.channels)

    with refused(errno.EBUSY):
        guest.vmbus.suspend()
    assert "hv_vmbus: Can not suspend due to a previous failed resuming" in guest.log.texts(Level.ERR)
    assert ChannelState.OPENED is guest.vmbus.channels[6].state
    assert not guest.vmbus.manager.ignore_offers
    guest.opened("keyboard", 7, "new")
    guest.host.post(TWO[0])  # it comes after all
    guest.settle()
    guest.vmbus.suspend()


def test_a_device_that_a_resume_has_missed_is_opened_when_its_offer_comes() -> None:
    """It has its driver already: nobody probes it, so the offer itself must see to it."""
    guest = Guest(offers=TWO)
    channel = guest.vmbus.channels[5]
    guest.vmbus.suspend()
    guest.host.offers = [TWO[1]]
    guest.vmbus.resume()
    guest.host.post(offer_of("scsi", 9, "disk"))
    guest.settle()
    assert ({6, 9}, channel) == (set(guest.vmbus.channels), guest.vmbus.channels[9])
    assert (ChannelState.OPENED, 0) == (channel.state, guest.vmbus.manager.fixup_on_resume)
    guest.host.write(9, Packet(b"after"))
    guest.settle()
    assert 1 == channel.stats.packets
    guest.vmbus.suspend()
    assert CONNECTION_PAGES == guest.pages_allocated


def test_a_device_that_was_never_probed_and_missed_by_a_resume_is_probed_when_its_offer_comes() -> None:
    """What came while probing was blocked stays on the list (device_unblock_probing)."""
    guest = Guest(offers=[TWO[1]])
    steps = guest.vmbus.hibernation.suspend()
    while not guest.vmbus.devices.probing_blocked:
        next(steps)
    guest.host.post(TWO[0])
    guest.settle()
    run(steps, guest.partition.idle)
    guest.vmbus.resume()  # without it
    channel = next(device.primary for device in guest.vmbus.devices.values() if device.driver is None)
    guest.host.post(TWO[0])
    guest.settle()
    assert (5, ChannelState.OPENED) == (channel.relid, channel.state)


def test_an_unload_that_is_not_answered_leaves_the_guest_suspended() -> None:
    """Everything is closed by then: resume is the way back, and nothing else."""
    guest = Guest(offers=TWO)
    guest.host.mute = {Unload}
    with refused(errno.ETIMEDOUT, "UNLOAD_RESPONSE"):
        guest.vmbus.suspend()
    with refused(errno.EBUSY, "resume first"):
        guest.vmbus.connect()
    guest.vmbus.resume()
    guest.settle()
    assert [ChannelState.OPENED] * 2 == [channel.state for channel in guest.vmbus.channels.values()]


@pytest.mark.parametrize("silent", ["contact", "offers"])
def test_a_resume_that_does_not_reach_the_host_leaves_the_guest_suspended(silent: str) -> None:
    """Nothing that the host says then is taken up; another resume brings all back."""
    guest = Guest(offers=TWO)
    guest.vmbus.suspend()
    post = guest.partition.hv_post_message
    if silent == "contact":
        guest.host.mute = {InitiateContact}
    else:
        guest.partition.hv_post_message = unless(MessageType.REQUESTOFFERS, post)  # type: ignore[assignment, method-assign]
    with refused(errno.ETIMEDOUT if silent == "contact" else errno.EINVAL):
        guest.vmbus.resume()
    assert (None, True) == (guest.vmbus.version, guest.vmbus.manager.ignore_offers)
    guest.host.post(offer_of("keyboard", 9, "new"))
    guest.settle()
    assert {} == dict(guest.vmbus.channels)
    guest.host.mute = set()
    guest.partition.hv_post_message = post  # type: ignore[method-assign]
    guest.vmbus.resume()
    guest.settle()
    assert [ChannelState.OPENED] * 2 == [channel.state for channel in guest.vmbus.channels.values()]


def unless(kind: MessageType, post: Callable[[int, int, bytes], int]) -> Callable[[int, int, bytes], int]:
    """Return a hypercall that refuses messages of one type."""

    def hv_post_message(connection_id: int, message_type: int, payload: bytes) -> int:
        return HvStatus.INVALID_PARAMETER if payload[0] == kind else post(connection_id, message_type, payload)

    return hv_post_message


def test_a_connect_that_cannot_ask_for_offers_leaves_its_host_and_can_be_tried_again() -> None:
    """A guest that stayed connected would never be offered anything."""
    guest = Guest(connect=False, offers=TWO)
    post = guest.partition.hv_post_message
    guest.partition.hv_post_message = unless(MessageType.REQUESTOFFERS, post)  # type: ignore[assignment, method-assign]
    with refused(errno.EINVAL, "REQUESTOFFERS"):
        guest.vmbus.connect()
    assert (None, Unload()) == (guest.vmbus.version, guest.host.got[-1])
    guest.partition.hv_post_message = post  # type: ignore[method-assign]
    guest.vmbus.connect()
    guest.settle()
    assert [5, 6] == sorted(guest.vmbus.channels)


def test_a_driver_that_cannot_suspend_fails_it_all_and_the_others_are_resumed() -> None:
    """vmbus.md 7.4: no suspend method -> -EOPNOTSUPP fails the whole thing."""
    guest = Guest(offers=TWO)
    guest.vmbus.devices.drivers["hv_utils"].can_suspend = False  # type: ignore[attr-defined]
    before = guest.footprint()
    with refused(errno.EOPNOTSUPP):
        guest.vmbus.suspend()
    guest.settle()
    assert [ChannelState.OPENED] * 2 == [channel.state for channel in guest.vmbus.channels.values()]
    after = guest.footprint()
    for what in ("pages", "mappings", "irqs", "actions", "hints", "relids"):
        assert before[what] == after[what]
    assert guest.vmbus.version is not None


def test_a_channel_that_is_open_without_a_driver_cannot_be_suspended() -> None:
    """Nobody would close it, and its rings would stay a dead host's."""
    guest = Guest(drivers=False, offers=TWO)
    guest.vmbus.open(guest.vmbus.channels[6])
    with refused(errno.EOPNOTSUPP, "close it first"):
        guest.vmbus.suspend()
    guest.vmbus.close(guest.vmbus.channels[6])
    guest.vmbus.suspend()


def test_sub_channels_and_sockets_go_before_a_suspend() -> None:
    """vmbus.md 7.4: the host rescinds sub-channels at the close; hv_sock channels are rescinded by force."""
    guest = Guest(offers=[*TWO, offer_of("", 7, "sock", chn_flags=0x2000)])
    guest.offered("scsi", 8, "disk", sub=1)
    assert 2 == guest.vmbus.manager.close_on_suspend
    guest.vmbus.suspend()
    assert (0, 2) == (guest.vmbus.manager.close_on_suspend, guest.vmbus.manager.fixup_on_resume)
    assert 3 == guest.pages_allocated
    guest.host.offers = list(TWO)
    guest.vmbus.resume()
    guest.settle()
    assert [5, 6] == sorted(guest.vmbus.channels)


def test_a_sub_channel_that_never_goes_is_a_hang_and_offers_are_taken_again() -> None:
    """No time limit there; the guest goes on as before."""
    guest = Guest(offers=TWO)
    guest.host.rescinds_subs = False
    guest.offered("scsi", 8, "disk", sub=1)
    with refused(errno.ETIMEDOUT, "sub-channels"):
        guest.vmbus.suspend()
    guest.opened("keyboard", 9, "new")
    assert guest.vmbus.version is not None


def test_offers_while_suspended_are_dropped() -> None:
    """ignore_any_offer_msg (vmbus.md 2.13)."""
    guest = Guest(offers=TWO)
    guest.vmbus.suspend()
    guest.host.post(offer_of("keyboard", 9, "new"))
    guest.host.rescind(5)
    guest.settle()
    assert ({}, 0) == (dict(guest.vmbus.channels), guest.vmbus.manager.offers_in_progress)


def test_resume_without_suspend_and_suspend_twice_are_einval() -> None:
    """Nothing is sent."""
    guest = Guest(offers=TWO)
    with refused(errno.EINVAL):
        guest.vmbus.resume()
    guest.vmbus.suspend()
    sent = len(guest.host.got)
    with refused(errno.EINVAL):
        guest.vmbus.suspend()
    assert sent == len(guest.host.got)


def test_a_driver_that_cannot_resume_does_not_keep_the_others_from_it() -> None:
    """The PM core logs it and goes on."""
    guest = Guest(offers=TWO)
    guest.vmbus.suspend()
    guest.host.status[GpadlHeader] = 0x8000_FFFF
    guest.vmbus.resume()
    assert 2 == sum("failed to restore noirq: error -122" in text for text in guest.log.texts(Level.ERR))
    assert [ChannelState.OPEN] * 2 == [channel.state for channel in guest.vmbus.channels.values()]


# ---- unload, kexec, panic


@pytest.mark.parametrize(("version", "sent"), [(Version.V5_3, 1), (Version.V3_0, 1), (Version.V2_4, 0)])
def test_unload_from_3_0_on(version: Version, sent: int) -> None:
    """vmbus.md 2.10: below 3.0 no message is sent; a second unload does nothing."""
    guest = Guest(version=version, offers=TWO)
    guest.vmbus.unload()
    guest.vmbus.unload()
    assert sent == len(guest.host.of_type(Unload))
    assert guest.vmbus.version is None


def test_kexec_leaves_nothing_shared() -> None:
    """vmbus.md 7.5: UNLOAD, SynICs off everywhere."""
    guest = Guest(offers=TWO)
    assert 5 + 4 == len(guest.vmbus.shared_pages())
    assert {} == guest.vmbus.kexec()
    assert {} == guest.vmbus.shared_pages()
    assert 0 == guest.vmbus.synics_on
    assert 1 == len(guest.host.of_type(Unload))
    with pytest.raises(OSError, match="ENXIO"):
        guest.synic.signal(0, 5)


@pytest.mark.parametrize("engine", ["fast", "linux"])
@pytest.mark.parametrize("fields", [{"monitorid": 3, "monitor_allocated": 1}, {"is_dedicated_interrupt": 0}])
def test_after_kexec_no_channel_signals_through_pages_that_are_another_s(engine: str, fields: dict[str, int]) -> None:
    """Interrupt page and monitor pages are freed, and what a channel still sends changes none of them."""
    guest = Guest(engine=engine, offers=[offer_of("keyboard", 5, "a", **fields)])
    channel = guest.vmbus.channels[5]
    guest.vmbus.kexec()
    pages = guest.vmbus.alloc_pages(CONNECTION_PAGES)
    channel.send(b"x" * 8)
    guest.settle()
    assert bytes(CONNECTION_PAGES * HV_PAGE) == pages.read(0, CONNECTION_PAGES * HV_PAGE)
    with refused(errno.EBUSY):
        guest.vmbus.connect()


def test_kexec_ends_a_suspend() -> None:
    """Nobody is left to resume."""
    guest = Guest(offers=TWO)
    guest.vmbus.suspend()
    guest.vmbus.kexec()
    assert 0 == guest.pages_allocated
    with refused(errno.EINVAL, "not suspended"):
        guest.vmbus.resume()


def test_a_kexec_that_the_host_does_not_answer_hangs() -> None:
    """vmbus.md 2.12: UNLOAD (normal): no limit."""
    guest = Guest(offers=TWO)
    guest.host.mute = {Unload}
    with refused(errno.ETIMEDOUT, "UNLOAD_RESPONSE"):
        guest.vmbus.kexec()


def test_a_panic_revokes_its_own_cpu_only() -> None:
    """vmbus.md 7.5: unload(poll), then cleanup of the current CPU; the SynIC pages of the others stay shared."""
    guest = Guest(offers=TWO)
    shared = guest.vmbus.panic(1)
    assert {f"cpu {cpu}: message page, event flag page" for cpu in (0, 2, 3)} == set(shared)
    assert 0b1101 == guest.vmbus.synics_on
    assert guest.core.now < TICKS_PER_S
    assert guest.synic.take_message(0) is None


@pytest.mark.parametrize("posts", [True, False])
def test_a_panic_whose_host_is_silent_goes_on_after_100_seconds(posts: bool) -> None:
    """vmbus.md 2.12: poll every 10 ms up to 100 s, a notice every 5 s, then "Continuing even though ..."."""
    guest = Guest(offers=TWO)
    guest.host.mute = {Unload}
    if not posts:
        guest.partition.hv_post_message = lambda *_: HvStatus.INVALID_PARAMETER  # type: ignore[method-assign]
    start = guest.core.now
    before = guest.vmbus.shared_pages()
    shared = guest.vmbus.panic(0)
    assert 100 * TICKS_PER_S == guest.core.now - start
    texts = guest.log.texts()
    assert 20 == texts.count("hv_vmbus: Waiting for VMBus UNLOAD to complete")
    assert "hv_vmbus: Continuing even though VMBus UNLOAD did not complete" == texts[-1]
    assert set(before) - set(shared) == {"cpu 0: message page, event flag page"}


def test_a_panic_finds_the_answer_in_another_cpus_slot() -> None:
    """All CPUs' slots are read and freed; messages of other kinds are dropped on the way."""
    guest = Guest(offers=TWO)

    def answer(_: Unload) -> None:
        guest.host.rescind(5)
        guest.host.raw((17).to_bytes(4, "little") + bytes(4), vp=2)

    guest.host.instead[Unload] = answer
    shared = guest.vmbus.panic(0)
    assert not any("GPADL" in name or "monitor" in name for name in shared)
    assert all(guest.synic.take_message(cpu) is None for cpu in range(4))


def test_a_panic_while_not_connected_only_switches_its_synic_off() -> None:
    """vmbus.md 2.10: unload is an exchange to DISCONNECTED; if it already was, nothing."""
    guest = Guest(connect=False)
    guest.vmbus.panic(2)
    assert (0b1011, []) == (guest.vmbus.synics_on, guest.host.got)
