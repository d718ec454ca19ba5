"""hv_synic_cleanup row by row, what refuses it, and the two races around it (vmbus.md 4.5, 4.6; checks 14 and 15)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.schedule import Blocked, Schedule
from tests.vmbus.scripted import Guest, offer_of, refused
from vmbusirq._ffi import lib
from vmbusirq.core import TICKS_PER_MS
from vmbusirq.designs import DESIGNS
from vmbusirq.log import Level
from vmbusirq.steps import Lock, LockKind
from vmbusirq.vmbus.context import CHANNEL_MUTEX, SET_AFFINITY_LOCK
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import ModifyChannel, ModifyChannelResponse, Version

RFC = DESIGNS["rfc"]
WITHOUT_11 = replace(RFC, name="rfc without patch 11", wait_modifychannel=False)
WITHOUT_12 = replace(RFC, name="rfc without patch 12", set_affinity_lock=False)
NEITHER = replace(RFC, name="rfc without patches 11 and 12", wait_modifychannel=False, set_affinity_lock=False)
LEGACY = DESIGNS["legacy"]
ENGINES = ("fast", "linux")
WITH_MODIFY = [Version.V4_1, Version.V5_2, Version.V5_3]

COLUMNS = {"L610": LEGACY, "RFC-11": WITHOUT_12, "RFC-12": RFC}
"""The columns of the table in vmbus.md 4.5; each adds to the one before."""

every_column = pytest.mark.parametrize("design", COLUMNS.values(), ids=COLUMNS)
both_engines = pytest.mark.parametrize("engine", ENGINES)


def by_name(design: Any) -> str:
    return getattr(design, "name", str(design))


def move(guest: Guest, cpu: int) -> None:
    """Move channel 5, in a design without channel IRQs by its cpu file."""
    channel = guest.vmbus.channels[5]
    if channel.irq:
        guest.irq.irq_set_affinity(channel.irq, 1 << cpu)
    else:
        guest.vmbus.target_cpu_store(channel, str(cpu).encode())
    guest.settle()


def opened(cpu: int = 0, **how: Any) -> Guest:
    """A guest with 4 CPUs and channel 5, open, in mode BATCHED, on a CPU."""
    guest = Guest(drivers=False, **how)
    guest.opened("keyboard", 5)
    if cpu:
        move(guest, cpu)
    return guest


def set_flag(guest: Guest, cpu: int, flag: int) -> None:
    """Set an event flag that rings no doorbell, so that nobody comes to serve it."""
    lib.vi_synic_flags(guest.core.handle, cpu, lib.VI_SINT_VMBUS)[flag // 64] |= 1 << flag % 64


def milliseconds(guest: Guest, call: Callable[[], object]) -> float:
    """Return how much virtual time a call takes."""
    before = guest.core.now
    call()
    return (guest.core.now - before) / TICKS_PER_MS


def answer_late(guest: Guest, delay_ms: int) -> None:
    """Let the host carry MODIFYCHANNEL out, and answer it, so much later."""
    clock = guest.partition.clock

    def later(message: ModifyChannel) -> None:
        clock.call_at(clock.now + delay_ms * TICKS_PER_MS, lambda: guest.host.answer(message))

    guest.host.instead[ModifyChannel] = later


def send(guest: Guest) -> str:
    """Let the device write a packet: the guest is ``told``, the signal ``lost``, or the ring's rule ``silent``."""
    try:
        return "told" if guest.host.write(5, Packet(b"x")) else "silent"
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return "lost"


def is_hung(guest: Guest) -> bool:
    """Whether channel 5 never hears of a packet again, whatever the device sends from now on."""
    guest.pass_time(1)
    before = guest.vmbus.channels[5].stats.packets
    signals = {send(guest) for _ in range(3)}
    guest.settle()
    channel = guest.vmbus.channels[5]
    waits = channel.ring_in.bytes_to_read > 0
    assert waits == (channel.stats.packets == before)
    assert not waits or "told" not in signals
    return waits


# ---- vmbus.md 4.5, row by row


@every_column
@pytest.mark.parametrize("cpu", [0, 3])
def test_4_5_row_1_nothing_is_asked_while_the_guest_is_not_connected(design: Any, cpu: int) -> None:
    """Not CONNECTED: all checks are skipped, whatever flags are set, and synic_online is not touched."""
    guest = Guest(design, connect=False)
    set_flag(guest, cpu, 9)
    assert 0 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(cpu))
    assert (0xF & ~(1 << cpu), 0xF) == (guest.vmbus.synics_on, guest.vmbus.retarget.synic_online)


@every_column
@pytest.mark.parametrize("cpu", [0, 2])
def test_4_5_row_1_nor_once_it_has_left_its_host(design: Any, cpu: int) -> None:
    """After UNLOAD a channel that is still there keeps no CPU, not even the connect CPU."""
    guest = opened(2, design=design)
    guest.vmbus.control.connected = False
    guest.vmbus.synic_cleanup(cpu)
    assert 0xF & ~(1 << cpu) == guest.vmbus.synics_on


@every_column
@pytest.mark.parametrize("with_channel", [False, True])
def test_4_5_row_2_the_connect_cpu_stays(design: Any, with_channel: bool) -> None:
    """CPU 0 is EBUSY, with or without channels; synic_online is not reached."""
    guest = opened(design=design) if with_channel else Guest(design)
    steps = guest.vmbus.cpuhp.synic_cleanup(0)
    with refused(errno.EBUSY, "control messages"):
        next(steps)
    assert (0xF, 0xF) == (guest.vmbus.synics_on, guest.vmbus.retarget.synic_online)


@pytest.mark.parametrize(("design", "masks"), [(LEGACY, []), (WITHOUT_12, []), (RFC, [0xF, 0x7])], ids=COLUMNS)
def test_4_5_row_3_the_search_is_made_when_no_channel_can_come_any_more(design: Any, masks: list[int]) -> None:
    """RFC 12: synic_online is cleared under channel_mutex and set_affinity_lock, before the search."""
    guest = Guest(design)
    steps, seen = [], []
    for step in guest.vmbus.cpuhp.synic_cleanup(3):
        steps.append(step)
        if "takes set_affinity_lock" in step.point or "search is next" in step.point:
            seen.append(guest.vmbus.retarget.synic_online)
    assert masks == seen
    assert CHANNEL_MUTEX == steps[0].takes
    locks = [[lock.name for lock in step.locks] for step in steps if "search is next" in step.point]
    assert ([["channel_mutex", "set_affinity_lock"]] if masks else []) == locks
    assert 0x7 == guest.vmbus.synics_on


@pytest.mark.parametrize("strict", [True, False])
def test_the_search_is_made_with_interrupts_off_but_not_by_the_rfc_as_posted(strict: bool) -> None:
    """vmbus.md 10, trap 8: the RFC takes set_affinity_lock with interrupts on; irq_set_affinity, under desc->lock."""
    guest = Guest(RFC, strict_rfc=strict)
    steps = list(guest.vmbus.cpuhp.synic_cleanup(3))
    kind = LockKind.SPINNING if strict else LockKind.RAW
    assert [Lock("set_affinity_lock", kind)] == [
        step.takes for step in steps if step.takes is not None and step.takes.excludes(SET_AFFINITY_LOCK)
    ]
    off = [step.point for step in steps if step.irqs_off]
    assert ([] if strict else ["cpu 3: has left synic_online, the search is next"]) == off


@every_column
@pytest.mark.parametrize("sub", [0, 1])
def test_4_5_row_4_check_14_a_cpu_that_a_channel_interrupts_stays(design: Any, sub: int) -> None:
    """Any primary or sub-channel with this target_cpu, open or not: EBUSY; synic_online is restored."""
    guest = Guest(design, offers=[offer_of("scsi", 5, "a"), offer_of("scsi", 9, "b")])
    if sub:
        guest.host.post(offer_of("scsi", 11, "a", 1))
    guest.settle()
    busy = {channel.target_cpu: relid for relid, channel in guest.vmbus.channels.items()}
    cpu, relid = max(busy.items())
    before = guest.footprint(), list(guest.host.got), guest.core.now, guest.log.texts()
    with refused(errno.EBUSY, f"channels {relid} "):
        guest.vmbus.synic_cleanup(cpu)
    assert before == (guest.footprint(), guest.host.got, guest.core.now, guest.log.texts())
    assert (0xF, 0xF) == (guest.vmbus.synics_on, guest.vmbus.retarget.synic_online)
    assert guest.synic.signal(cpu, relid)


@every_column
def test_4_5_row_4_a_closed_channel_keeps_its_cpu_too(design: Any) -> None:
    """It asks for target_cpu, not for the state."""
    guest = opened(3, design=design)
    guest.vmbus.close(guest.vmbus.channels[5])
    with refused(errno.EBUSY, "channels 5"):
        guest.vmbus.synic_cleanup(3)


@pytest.mark.parametrize("design", [WITHOUT_12, RFC], ids=["RFC-11", "RFC-12"])
def test_4_5_row_4_a_mask_that_allows_other_cpus_does_not_help(design: Any) -> None:
    """vmbus.md 10, trap 38: the user must move it first; so is every other row passed when the channel has gone."""
    guest = opened(3, design=design)
    irq = guest.vmbus.channels[5].irq
    guest.irq.irq_set_affinity(irq, 0b1111)
    with refused(errno.EBUSY, "channels 5"):
        guest.vmbus.synic_cleanup(3)
    guest.irq.irq_set_affinity(irq, 0b0111)
    guest.settle()
    guest.vmbus.synic_cleanup(3)
    assert 0b0111 == guest.vmbus.synics_on


@pytest.mark.parametrize(
    ("design", "version", "late_ms", "takes_ms", "says"),
    [
        (RFC, Version.V4_1, 0, 20, False),  # at these versions nobody knows, so it always sleeps
        (RFC, Version.V5_2, 100, 20, False),
        (RFC, Version.V5_3, 0, 0, False),
        (RFC, Version.V5_3, 3, 5, False),
        (RFC, Version.V5_3, 12, 15, False),
        (RFC, Version.V5_3, 24, 25, False),
        (RFC, Version.V5_3, 100, 25, True),
        (WITHOUT_12, Version.V5_3, 100, 25, True),
        (WITHOUT_11, Version.V4_1, 100, 0, False),
        (WITHOUT_11, Version.V5_3, 100, 0, False),
        (LEGACY, Version.V4_1, 100, 0, False),
        (LEGACY, Version.V5_2, 100, 0, False),
        (LEGACY, Version.V5_3, 0, 0, False),
        (WITHOUT_12, Version.V4_1, 0, 20, False),
        (WITHOUT_12, Version.V5_2, 100, 20, False),
        (WITHOUT_12, Version.V5_3, 12, 15, False),
    ],
    ids=by_name,
)
def test_4_5_row_5_how_long_moves_under_way_are_waited_for(
    design: Any, version: Version, late_ms: int, takes_ms: int, says: bool
) -> None:
    """RFC 11: 20-25 ms from 4.1 to 5.2; from 5.3 on up to five sleeps of 5-10 ms, then a log line, and on."""
    guest = opened(2, design=design, version=version)
    answer_late(guest, late_ms)
    move(guest, 1)
    assert takes_ms == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(2))
    said = [text for text in guest.log.texts(Level.ERR) if "MODIFYCHANNEL" in text]
    assert (["hv_vmbus: Timed out waiting for MODIFYCHANNEL. CPU 2 sent 2 completed 1"] if says else []) == said
    assert 0b1011 == guest.vmbus.synics_on


@every_column
def test_4_5_row_5_and_row_6_below_4_1_there_is_nothing_to_wait_for(design: Any) -> None:
    """Neither moves nor flags are looked at."""
    guest = opened(design=design, version=Version.V4_0)
    set_flag(guest, 3, 9)
    assert 0 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(3))
    assert 0b0111 == guest.vmbus.synics_on


@pytest.mark.parametrize("design", [WITHOUT_12, RFC], ids=["RFC-11", "RFC-12"])
def test_4_5_row_5_a_response_that_was_lost_makes_every_later_offline_wait(design: Any) -> None:
    """vmbus.md 10, trap 11: modchan_completed never catches up: 25 ms and a line each time."""
    guest = opened(2, design=design)
    guest.host.mute = {ModifyChannel}
    move(guest, 1)
    guest.host.mute = set()
    for cpu in (2, 3):
        assert 25 == milliseconds(guest, lambda cpu=cpu: guest.vmbus.synic_cleanup(cpu))  # type: ignore[misc]
        assert f"hv_vmbus: Timed out waiting for MODIFYCHANNEL. CPU {cpu} sent 2 completed 1" == guest.log.texts()[-1]
    guest.host.post(ModifyChannelResponse(5, 0))
    guest.settle()
    guest.vmbus.synic_init([3])
    assert 0 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(3))


@every_column
@pytest.mark.parametrize("flag", [1, 2047])
@pytest.mark.parametrize("version", WITH_MODIFY)
def test_4_5_row_6_flags_that_nobody_serves_keep_a_cpu(design: Any, flag: int, version: Version) -> None:
    """Four scans, three sleeps of 10-20 ms, EBUSY; RFC 11 has a line about it."""
    guest = opened(design=design, version=version)
    set_flag(guest, 3, flag)
    start = guest.core.now
    with refused(errno.EBUSY, f"flags {flag} "):
        guest.vmbus.synic_cleanup(3)
    waited = 20 if design.wait_modifychannel and version < Version.V5_3 else 0
    assert waited + 30 == (guest.core.now - start) / TICKS_PER_MS
    line = "hv_vmbus: Events pending when trying to offline CPU 3"
    assert ([line] if design.wait_modifychannel else []) == guest.log.texts(Level.ERR)
    assert (0xF, 0xF) == (guest.vmbus.synics_on, guest.vmbus.retarget.synic_online)


@every_column
@pytest.mark.parametrize("after_ms", [1, 9, 11, 19, 21, 29, 31])
def test_4_5_row_6_flags_that_are_served_meanwhile_do_not(design: Any, after_ms: int) -> None:
    """A scan that finds nothing ends it, the fourth one at the latest. Flag 0 is not asked for."""
    guest = opened(design=design)
    set_flag(guest, 3, 9)
    set_flag(guest, 2, 0)
    clock = guest.partition.clock
    clock.call_at(clock.now + after_ms * TICKS_PER_MS, lambda: guest.synic.signal(3, 10))
    if after_ms > 30:
        with refused(errno.EBUSY, "flags 9 "):
            guest.vmbus.synic_cleanup(3)
        return
    assert -(-after_ms // 10) * 10 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(3))
    assert 0 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(2))


@every_column
def test_4_5_row_7_the_timer_is_cleaned_up_before_the_registers_and_only_after_the_checks(design: Any) -> None:
    """hv_stimer_legacy_cleanup, then the registers; hv_synic_init has the timer last."""
    guest = opened(2, design=design)
    seen: list[tuple[str, int, int]] = []
    cpuhp = guest.vmbus.cpuhp
    cpuhp.stimer_cleanup = lambda cpu: seen.append(("cleanup", cpu, cpuhp.synics_on))
    cpuhp.stimer_init = lambda cpu: seen.append(("init", cpu, cpuhp.synics_on))
    with refused(errno.EBUSY):
        guest.vmbus.synic_cleanup(2)
    assert [] == seen
    guest.vmbus.synic_cleanup(3)
    guest.vmbus.synic_init([3])
    assert [("cleanup", 3, 0b1111), ("init", 3, 0b1111)] == seen


@both_engines
@every_column
def test_4_5_row_7_a_synic_that_is_off_loses_signals_until_it_is_on_again(engine: str, design: Any) -> None:
    """The registers are off: the host's signal fails and leaves nothing behind; hv_synic_init undoes it."""
    guest = opened(engine=engine, design=design)
    guest.vmbus.synic_cleanup(3)
    assert "cpu 3: message page, event flag page" not in guest.vmbus.shared_pages()
    with refused(errno.ENXIO):
        guest.synic.signal(3, 5)
    assert () == guest.synic.flags_set(3)
    if design.set_affinity_lock:
        with refused(errno.EINVAL, "SynIC"):
            guest.irq.irq_set_affinity(guest.vmbus.channels[5].irq, 1 << 3)
    guest.vmbus.synic_init([3])
    assert (0xF, 0xF) == (guest.vmbus.synics_on, guest.vmbus.retarget.synic_online)
    move(guest, 3)
    assert "told" == send(guest)
    assert not is_hung(guest)


# ---- race A


@both_engines
@pytest.mark.parametrize("version", WITH_MODIFY)
@pytest.mark.parametrize("design", [RFC, WITHOUT_12, WITHOUT_11, NEITHER], ids=by_name)
def test_check_15_race_a_a_late_modifychannel_loses_a_flag(engine: str, version: Version, design: Any) -> None:
    """vmbus.md 4.6 A: t1 move, t2 offline, t3 the device signals the old CPU, t4 the host moves the channel."""
    guest = opened(2, design=design, engine=engine, version=version)
    answer_late(guest, 15)
    move(guest, 1)
    guest.vmbus.synic_cleanup(2)
    assert (2 if not design.wait_modifychannel else 1) == guest.host.targets[5]
    assert ("lost" if not design.wait_modifychannel else "told") == send(guest)
    guest.pass_time(0.1)
    assert 1 == guest.host.targets[5]
    assert is_hung(guest) == (not design.wait_modifychannel)


@both_engines
@pytest.mark.parametrize("version", WITH_MODIFY)
def test_check_15_race_a_what_comes_to_the_old_cpu_during_the_wait_is_served_there(
    engine: str, version: Version
) -> None:
    """RFC 11: while it waits the CPU takes interrupts; afterwards they come to the new one."""
    guest = opened(2, engine=engine, version=version)
    answer_late(guest, 15)
    move(guest, 1)
    offline = Schedule(guest.partition.idle).begin(guest.vmbus.cpuhp.synic_cleanup(2)).to("MODIFYCHANNEL")
    assert "told" == send(guest)
    assert (5,) == guest.synic.flags_set(2)
    offline.finish()
    assert "told" == send(guest)
    assert not is_hung(guest)
    counts = guest.irq.counts[guest.vmbus.channels[5].irq]
    assert (1, True) == (int(counts[2]), int(counts[1]) > 0)


@pytest.mark.parametrize(("version", "late_ms"), [(Version.V4_1, 21), (Version.V5_2, 21), (Version.V5_3, 26)])
def test_check_15_race_a_a_host_that_is_too_late_beats_the_wait(version: Version, late_ms: int) -> None:
    """vmbus.md 10, trap 12: the wait only delays; after it the CPU goes, and the channel hangs as before."""
    guest = opened(2, version=version)
    answer_late(guest, late_ms)
    move(guest, 1)
    guest.vmbus.synic_cleanup(2)
    assert "lost" == send(guest)
    assert is_hung(guest)


@both_engines
@pytest.mark.parametrize("version", WITH_MODIFY)
def test_check_15_race_a_before_the_series(engine: str, version: Version) -> None:
    """vmbus.md 4.6: at 5.3 the writer waits for the answer, with target_cpu as it was; before, it is exposed."""
    guest = opened(2, design="legacy", engine=engine, version=version)
    answer_late(guest, 15)
    schedule = Schedule(guest.partition.idle)
    writer = schedule.begin(guest.vmbus.target_cpu_store_steps(guest.vmbus.channels[5], b"1"))
    if version < Version.V5_3:
        writer.finish()
        guest.vmbus.synic_cleanup(2)
        assert "lost" == send(guest)
        assert is_hung(guest)
        return
    writer.to("wait for MODIFYCHANNEL_RESPONSE")
    with refused(errno.EBUSY, "channels 5"):
        guest.vmbus.synic_cleanup(2)
    assert "told" == send(guest)
    writer.finish()
    guest.vmbus.synic_cleanup(2)
    assert "told" == send(guest)
    assert not is_hung(guest)


# ---- race B


@both_engines
@pytest.mark.parametrize("version", WITH_MODIFY)
@pytest.mark.parametrize("design", [RFC, WITHOUT_11, WITHOUT_12, NEITHER], ids=by_name)
def test_check_15_race_b_a_move_to_a_cpu_that_has_been_searched(engine: str, version: Version, design: Any) -> None:
    """vmbus.md 4.6 B: t1 the search finds nothing, t2 the move, t3 the SynIC goes off, t4 the host follows."""
    guest = opened(1, design=design, engine=engine, version=version)
    channel = guest.vmbus.channels[5]
    schedule = Schedule(guest.partition.idle)
    offline = schedule.begin(guest.vmbus.cpuhp.synic_cleanup(2)).to("has searched")
    setter = schedule.begin(guest.irq.irq_set_affinity_steps(channel.irq, 1 << 2))
    if design.set_affinity_lock:
        with refused(errno.EINVAL, "SynIC"):
            setter.finish()
    else:
        setter.finish()
    offline.finish()
    guest.settle()
    assert 0b1011 == guest.vmbus.synics_on
    target = 1 if design.set_affinity_lock else 2
    assert (target, target) == (channel.target_cpu, guest.host.targets[5])
    assert ("told" if design.set_affinity_lock else "lost") == send(guest)
    assert is_hung(guest) == (not design.set_affinity_lock)


@pytest.mark.parametrize("design", [RFC, WITHOUT_12], ids=by_name)
def test_check_15_race_b_a_search_between_the_post_and_the_new_target(design: Any) -> None:
    """RFC 12: {AND with synic_online; post; store target_cpu} and {clear; search} exclude each other: EBUSY."""
    guest = opened(1, design=design)
    schedule = Schedule(guest.partition.idle)
    setter = schedule.begin(guest.irq.irq_set_affinity_steps(guest.vmbus.channels[5].irq, 1 << 2)).to("is posted")
    offline = schedule.begin(guest.vmbus.cpuhp.synic_cleanup(2))
    if design.set_affinity_lock:
        with pytest.raises(Blocked, match="takes set_affinity_lock"):
            offline.finish()
    else:
        offline.finish()
    setter.finish()
    guest.settle()
    if design.set_affinity_lock:
        with refused(errno.EBUSY, "channels 5"):
            offline.finish()
        assert 0xF == guest.vmbus.retarget.synic_online
    assert ("told" if design.set_affinity_lock else "lost") == send(guest)
    assert is_hung(guest) == (not design.set_affinity_lock)


def run_order(guest: Guest, order: list[int]) -> list[int]:
    """Let an offline and a move to the same CPU meet, in an order of 0 (offline) and 1 (move); return the whole order.

    What is left when the order ends, or cannot go on, goes on by itself: 0 first.
    """
    schedule = Schedule(guest.partition.idle)
    both = [
        schedule.begin(guest.vmbus.cpuhp.synic_cleanup(2)),
        schedule.begin(guest.irq.irq_set_affinity_steps(guest.vmbus.channels[5].irq, 1 << 2)),
    ]
    taken: list[int] = []
    while not all(one.over for one in both):
        able = [one for one in (0, 1) if not both[one].over and not both[one].blocked]
        assert able, "deadlock"
        wanted = order[len(taken)] if len(taken) < len(order) else able[0]
        if wanted not in able:
            return []
        both[wanted].resume()
        taken.append(wanted)
    codes = [getattr(one.error, "errno", 0) for one in both]
    assert codes in ([0, errno.EINVAL], [errno.EBUSY, 0], [0, 0])
    return taken


@pytest.mark.parametrize("design", [RFC, WITHOUT_11, WITHOUT_12], ids=by_name)
def test_check_15_race_b_in_every_order(design: Any) -> None:
    """With set_affinity_lock no order of the two loses a channel; without, some do."""
    guest = opened(1, design=design)
    hung = total = 0
    todo: list[list[int]] = [[]]
    while todo:
        prefix = todo.pop()
        taken = run_order(guest, prefix)
        if taken:
            total += 1
            todo += [[*taken[:at], 1] for at in range(len(prefix), len(taken)) if taken[at] == 0]
            guest.settle()
            hung += send(guest) == "lost"
        guest.vmbus.synic_init([2])  # as it was before
        guest.host.signal(5)
        move(guest, 1)
    assert total > 20
    assert (hung == 0) == design.set_affinity_lock
