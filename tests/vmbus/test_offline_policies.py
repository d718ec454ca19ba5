"""What becomes of the channels of a CPU that goes offline, policy by policy (vmbus.md 4.5, genirq.md 10)."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from tests.schedule import Blocked, Schedule
from tests.vmbus.scripted import Guest, offer_of, refused
from tests.vmbus.test_cpu_offline import answer_late, is_hung, milliseconds, move, send, set_flag
from vmbusirq._ffi import lib
from vmbusirq.designs import DESIGNS, OfflinePolicy
from vmbusirq.errors import Hung
from vmbusirq.log import Level
from vmbusirq.vmbus.channel import Moves
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import ModifyChannel, Version

PICK, HANDOVER, REDIRECT, MAINLINE = (
    DESIGNS[name] for name in ("rfc-pick", "rfc-handover", "redirect", "mainline-6.16")
)
MOVING = (MAINLINE, PICK, HANDOVER, REDIRECT)
BARE_HANDOVER = replace(DESIGNS["legacy"], name="legacy handover", offline_policy=OfflinePolicy.HANDOVER)
ENGINES = ("fast", "linux")
by_name = {"ids": lambda value: getattr(value, "name", str(value))}


def guest_with(channels: int, design: Any, cpu: int = 2, **how: Any) -> Guest:
    """A guest with 4 CPUs whose CPU 2 has so many open channels: relids 5, 6, ..."""
    guest = Guest(design, drivers=False, **how)
    for n in range(channels):
        guest.opened("keyboard", 5 + n, f"d{n}")
    for n in range(channels):
        place(guest, 5 + n, cpu)
    guest.pass_time(0.2)
    return guest


def place(guest: Guest, relid: int, cpu: int) -> None:
    """Move a channel by its cpu file, or where the protocol has no moves, in both ends' books."""
    channel = guest.vmbus.channels[relid]
    version = guest.vmbus.version
    assert version is not None
    if version >= Version.V4_1:
        guest.vmbus.target_cpu_store(channel, str(cpu).encode())
        guest.settle()
        return
    channel.set_cpu(cpu)
    channel.moves.host_cpu = cpu
    guest.host.targets[relid] = cpu
    if channel.irq:
        desc = guest.irq.irq_to_desc(channel.irq)
        desc.affinity = 1 << cpu
        desc.update_effective_affinity(1 << cpu)


def state(guest: Guest) -> dict[str, Any]:
    """What a refused offline leaves as it was."""
    return {
        "footprint": guest.footprint(),
        "online": (guest.irq.online, guest.vmbus.synics_on, guest.vmbus.retarget.synic_online),
        "channels": {
            relid: (channel.target_cpu, channel.state, channel.moves.host_cpu)
            for relid, channel in guest.vmbus.channels.items()
        },
        "irqs": {irq: (desc.affinity, desc.effective_affinity) for irq, desc in guest.irq.descs.items()},
        "host": dict(guest.host.targets),
        "allocated": list(guest.vmbus.manager.assignment.allocated),
    }


def offline(guest: Guest, cpu: int = 2) -> None:
    """Take a CPU offline as the machine does: VMBus, what was raised, the online mask, genirq."""
    guest.vmbus.synic_cleanup(cpu)
    guest.settle()
    guest.irq.set_cpu_online(cpu, False)
    for _ in guest.irq.irq_migrate_all_off_steps(cpu):
        pass
    assert lib.vi_irq_work_flush(guest.core.handle, cpu) >= 0


def works(guest: Guest, relid: int) -> None:
    """Packets that the device sends from now on are read, and by the CPU that the guest says."""
    channel = guest.vmbus.channels[relid]
    before, counts = channel.stats.packets, counted(guest, relid)
    assert guest.host.write(relid, Packet(b"x"))
    guest.settle()
    assert 1 == channel.stats.packets - before
    moved = [b - a for a, b in zip(counts, counted(guest, relid), strict=True)]
    assert [int(cpu == channel.target_cpu) for cpu in range(4)] == moved
    assert guest.irq.online >> channel.target_cpu & 1


def counted(guest: Guest, relid: int) -> list[int]:
    """The counters of a channel by CPU: its IRQ's, or in the fast engine those of the column that stands for one."""
    column = guest.vmbus.channels[relid].irq or guest.irq.nr_irqs_max + relid
    counters = guest.core.counters
    return [int(counters.irq[cpu * counters.irq_stride + column]) for cpu in range(4)]


# ---- every policy


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("design", [PICK, HANDOVER, REDIRECT], **by_name)
@pytest.mark.parametrize("version", [Version.V4_1, Version.V5_2, Version.V5_3])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_a_cpu_with_channels_goes(engine: str, design: Any, version: Version, channels: int) -> None:
    """0, 1 and more channels; below 5.3 mainline's policy moves none: EBUSY, and nothing has changed."""
    guest = guest_with(channels, design, engine=engine, version=version)
    if design is PICK and channels and version < Version.V5_3:
        before = state(guest)
        with refused(errno.EBUSY, "protocol version"):
            guest.vmbus.synic_cleanup(2)
        assert before == state(guest)
        return
    offline(guest)
    guest.settle()
    assert 0b1011 == guest.irq.online == guest.vmbus.synics_on == guest.vmbus.retarget.synic_online
    for relid, channel in guest.vmbus.channels.items():
        assert 2 != channel.target_cpu
        desc = guest.irq.irq_to_desc(channel.irq)
        assert desc.effective_affinity >> channel.target_cpu & 1
        assert not (desc.effective_affinity | desc.affinity) >> 2 & 1
        assert 2 != guest.host.targets[relid] == channel.moves.host_cpu
        works(guest, relid)


@pytest.mark.parametrize("channels", [0, 2])
def test_mainline_without_channel_irqs(channels: int) -> None:
    """hv_pick_new_cpu as it is in 6.16."""
    guest = guest_with(channels, MAINLINE)
    offline(guest)
    for relid, channel in guest.vmbus.channels.items():
        assert 2 != channel.target_cpu == guest.host.targets[relid]
        works(guest, relid)


@pytest.mark.parametrize("design", [*MOVING, BARE_HANDOVER], **by_name)
def test_at_4_0_no_open_channel_can_be_moved(design: Any) -> None:
    """There is no MODIFYCHANNEL: EBUSY, and everything is as it was; a CPU without channels goes."""
    guest = guest_with(1, design, version=Version.V4_0)
    before = state(guest)
    with refused(errno.EBUSY, "protocol version"):
        guest.vmbus.synic_cleanup(2)
    assert before == state(guest)
    assert "told" == send(guest)
    guest.settle()
    guest.vmbus.synic_cleanup(3)
    assert 0b0111 == guest.vmbus.synics_on


@pytest.mark.parametrize("design", MOVING, **by_name)
def test_the_connect_cpu_stays(design: Any) -> None:
    """No policy moves control messages."""
    guest = guest_with(1, design)
    before = state(guest)
    with refused(errno.EBUSY, "control messages"):
        guest.vmbus.synic_cleanup(0)
    assert before == state(guest)


@pytest.mark.parametrize("design", [PICK, HANDOVER, REDIRECT], **by_name)
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_what_the_host_refuses_is_rolled_back(design: Any, fails_at: int) -> None:
    """A status other than 0 for one of three channels: EBUSY, and all three are where they were."""
    guest = guest_with(3, design)
    before = state(guest)
    bad = 5 + fails_at

    def answer(message: ModifyChannel) -> None:
        refuses = message.child_relid == bad and message.target_vp != 2
        guest.host.status[ModifyChannel] = 0x8000FFFF if refuses else 0
        target = guest.host.targets[bad]
        guest.host.answer(message)
        if refuses:
            guest.host.targets[bad] = target

    guest.host.instead[ModifyChannel] = answer
    with refused(errno.EBUSY, f"channel {bad}"):
        guest.vmbus.synic_cleanup(2)
    guest.settle()
    assert before == state(guest)
    for relid in (5, 6, 7):
        works(guest, relid)


@pytest.mark.parametrize("design", MOVING, **by_name)
def test_flags_that_nobody_serves(design: Any) -> None:
    """They keep the CPU, and what was moved goes back; a hand-over goes on, and logs it."""
    guest = guest_with(2, design)
    before = state(guest)
    set_flag(guest, 2, 9)
    if design is HANDOVER:
        guest.vmbus.synic_cleanup(2)
        assert "hv_vmbus: Events pending when trying to offline CPU 2" in guest.log.texts(Level.ERR)
        return
    with refused(errno.EBUSY, "flags 9 "):
        guest.vmbus.synic_cleanup(2)
    guest.settle()
    assert before == state(guest)


@pytest.mark.parametrize("design", [HANDOVER, REDIRECT], **by_name)
@pytest.mark.parametrize("version", [Version.V4_1, Version.V5_3])
def test_traffic_meanwhile_is_read_and_counted_once(design: Any, version: Version) -> None:
    """A packet at each step of the offline; counts are conserved: as many interrupts as signals and pokes."""
    guest = guest_with(1, design, version=version)
    answer_late(guest, 3)
    channel = guest.vmbus.channels[5]
    sent, lost = channel.stats.packets, 0
    operation = Schedule(guest.partition.idle).begin(guest.vmbus.cpuhp.synic_cleanup(2))
    while not operation.over:
        answer = send(guest)
        lost += answer == "lost"
        sent += 1
        if not (operation.step and operation.step.irqs_off):
            guest.settle()
        operation.resume()
    assert operation.error is None
    guest.pass_time(0.2)
    assert (0, sent) == (lost, channel.stats.packets)
    assert sum(counted(guest, 5)) == channel.stats.interrupts


@pytest.mark.parametrize("design", [PICK, HANDOVER, REDIRECT], **by_name)
def test_a_channel_that_is_closed(design: Any) -> None:
    """Mainline can only move open ones (EIO there): EBUSY. The others change where it will be opened."""
    guest = guest_with(1, design)
    channel = guest.vmbus.channels[5]
    guest.vmbus.close(channel)
    got = len(guest.host.got)
    if design is PICK:
        with refused(errno.EBUSY, "not open"):
            guest.vmbus.synic_cleanup(2)
        assert 2 == channel.target_cpu
        return
    offline(guest)
    assert 2 != channel.target_cpu
    assert got == len(guest.host.got)
    guest.vmbus.open(channel)
    assert channel.target_cpu == guest.host.targets[5]
    works(guest, 5)


@pytest.mark.parametrize("design", [PICK, HANDOVER, REDIRECT], **by_name)
def test_channels_stay_where_they_are_when_the_cpu_is_back(design: Any) -> None:
    """As ordinary IRQs do."""
    guest = guest_with(2, design)
    offline(guest)
    before = {relid: channel.target_cpu for relid, channel in guest.vmbus.channels.items()}
    guest.irq.set_cpu_online(2, True)
    for _ in guest.irq.irq_affinity_online_steps(2):
        pass
    guest.vmbus.synic_init([2])
    guest.settle()
    assert before == {relid: channel.target_cpu for relid, channel in guest.vmbus.channels.items()}
    move(guest, 2)
    works(guest, 5)


# ---- MAINLINE


def test_the_new_cpu_is_drawn_from_the_seed_and_is_not_cpu_0() -> None:
    """Online, not the old one; CPU 0 as last resort. The same seed gives the same CPUs."""
    drawn = []
    for seed in (0, 0, *range(1, 12)):
        guest = guest_with(2, PICK, seed=seed)
        guest.vmbus.synic_cleanup(2)
        drawn.append([guest.vmbus.channels[relid].target_cpu for relid in (5, 6)])
    assert drawn[0] == drawn[1]
    assert {1, 3} == {cpu for pair in drawn for cpu in pair}


def test_cpu_0_is_the_last_resort() -> None:
    """The other two are offline."""
    guest = guest_with(1, PICK)
    offline(guest, 1)
    offline(guest, 3)
    offline(guest, 2)
    assert 0 == guest.vmbus.channels[5].target_cpu == guest.host.targets[5]


def test_an_isolated_cpu_is_passed_over() -> None:
    """vmbus_channel_set_cpu refuses it, and the next one is tried."""
    for seed in range(4):
        guest = guest_with(1, PICK, seed=seed, isolated=0b1000)
        guest.vmbus.synic_cleanup(2)
        assert 1 == guest.vmbus.channels[5].target_cpu


@pytest.mark.parametrize("late_ms", [0, 3, 500])
def test_mainline_waits_for_the_answer_without_limit(late_ms: int) -> None:
    """vmbus_send_modifychannel: the old target until the answer, which comes as late as it likes."""
    guest = guest_with(1, PICK)
    answer_late(guest, late_ms)
    assert late_ms <= milliseconds(guest, lambda: guest.vmbus.synic_cleanup(2)) < late_ms + 1
    assert guest.vmbus.channels[5].target_cpu == guest.host.targets[5] != 2
    works(guest, 5)


def test_mainline_hangs_where_an_answer_is_lost() -> None:
    """Here it is given up, and undone: the host, which may have moved it, is asked to come back."""
    guest = guest_with(2, PICK)
    before = state(guest)
    guest.host.mute = {ModifyChannel}
    with pytest.raises(Hung):
        guest.vmbus.synic_cleanup(2)
    guest.host.mute = set()
    guest.settle()
    assert {**before, "footprint": 0} == {**state(guest), "footprint": 0}
    assert 2 == guest.host.of_type(ModifyChannel)[-1].target_vp


def test_a_move_by_the_user_meanwhile_is_not_overwritten() -> None:
    """While the answer is awaited channel_mutex is dropped; what the user says comes after."""
    guest = guest_with(1, PICK)
    answer_late(guest, 5)
    channel = guest.vmbus.channels[5]
    schedule = Schedule(guest.partition.idle)
    going = schedule.begin(guest.vmbus.cpuhp.synic_cleanup(2)).to("wait for MODIFYCHANNEL_RESPONSE")
    schedule.begin(guest.irq.irq_set_affinity_steps(channel.irq, 0b0001)).finish()
    going.finish()
    guest.pass_time(0.1)
    assert 0 == channel.target_cpu == guest.host.targets[5]
    assert 1 == guest.irq.irq_to_desc(channel.irq).affinity
    works(guest, 5)


# ---- HANDOVER


def test_the_least_used_cpu_of_the_affinity_takes_it() -> None:
    """smp_affinity AND online AND not isolated AND synic_online; the fewest channels, then the lowest."""
    guest = guest_with(1, HANDOVER)
    for relid, cpu in ((10, 0), (11, 1), (12, 3)):
        guest.opened("keyboard", relid, f"e{relid}")
        place(guest, relid, cpu)
    guest.opened("keyboard", 13, "e13")
    place(guest, 13, 0)
    channel = guest.vmbus.channels[5]
    guest.irq.irq_set_affinity(channel.irq, 0b1110)
    assert 2 == channel.target_cpu
    offline(guest)
    assert 1 == channel.target_cpu
    assert (0b1110, 0b0010) == _masks(guest, 5)
    works(guest, 5)


def _masks(guest: Guest, relid: int) -> tuple[int, int]:
    desc = guest.irq.irq_to_desc(guest.vmbus.channels[relid].irq)
    return desc.affinity, desc.effective_affinity


def test_an_affinity_without_usable_cpu_is_broken_and_said_so() -> None:
    """As the IRQ core does: all online CPUs from now on, and a line."""
    guest = guest_with(1, HANDOVER)
    offline(guest)
    assert (0b1011, 0b0001 << guest.vmbus.channels[5].target_cpu) == _masks(guest, 5)
    irq = guest.vmbus.channels[5].irq
    assert f"IRQ {irq}: no longer affine to CPU2" in guest.log.texts()
    assert "hv_vmbus: channel 5: cpu 2 hands it over to cpu 0" in guest.log.texts()


def test_isolated_cpus_take_channels_only_where_there_is_no_other() -> None:
    """CPU 0 is not isolated, so it takes them all."""
    guest = guest_with(2, HANDOVER, isolated=0b1010)
    offline(guest)
    assert {0} == {channel.target_cpu for channel in guest.vmbus.channels.values()}


@pytest.mark.parametrize("version", [Version.V4_1, Version.V5_2, Version.V5_3])
@pytest.mark.parametrize("late_ms", [0, 19, 24, 49, 90])
def test_a_handover_loses_nothing_however_late_the_host(version: Version, late_ms: int) -> None:
    """A packet after the SynIC is off and before the host has moved: its signal is lost, the poke makes it good."""
    guest = guest_with(1, HANDOVER, version=version)
    answer_late(guest, late_ms)
    guest.vmbus.synic_cleanup(2)
    send(guest)
    guest.pass_time(0.5)
    assert not is_hung(guest)
    assert guest.vmbus.channels[5].target_cpu == guest.host.targets[5]


def test_a_poke_comes_with_the_late_confirmation() -> None:
    """After it no signal goes to the old CPU; no timer is waited for."""
    guest = guest_with(1, HANDOVER)
    answer_late(guest, 60)
    guest.vmbus.synic_cleanup(2)
    assert "hv_vmbus: Timed out waiting for MODIFYCHANNEL. CPU 2: channels 5 are not confirmed" in guest.log.texts()
    assert "lost" == send(guest)
    guest.pass_time(0.02)
    assert 0 == guest.vmbus.channels[5].ring_in.bytes_to_read
    assert not is_hung(guest)


def test_a_lost_answer_is_survived() -> None:
    """The host moves the channel and does not say so: two posts, two waits, pokes, and on."""
    guest = guest_with(1, HANDOVER)

    def carry_out(message: ModifyChannel) -> None:
        guest.host.targets[5] = message.target_vp

    guest.host.instead[ModifyChannel] = carry_out
    assert 50 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(2))
    assert "told" == send(guest)
    guest.pass_time(2)
    assert not is_hung(guest)
    assert 0b1011 == guest.vmbus.synics_on


def test_the_answer_to_another_question_confirms_nothing() -> None:
    """An answer names the channel alone: that to the move which brought it here is not that to the hand-over."""
    guest = guest_with(1, HANDOVER, cpu=1)
    channel, asked = guest.vmbus.channels[5], list[ModifyChannel]()
    guest.host.instead[ModifyChannel] = asked.append
    guest.vmbus.target_cpu_store(channel, b"2")
    schedule = Schedule(guest.partition.idle)
    going = schedule.begin(guest.vmbus.cpuhp.synic_cleanup(2)).to("waits for MODIFYCHANNEL_RESPONSE")
    guest.settle()
    guest.host.answer(asked[0])
    guest.settle()
    assert 2 == guest.host.targets[5]
    assert (0b0110, [0]) == (channel.moves.left, channel.moves.unanswered)
    going.finish()
    assert [2, 0, 0] == [message.target_vp for message in asked]
    assert "lost" == send(guest)
    guest.settle()
    send(guest)  # which no signal comes with: the ring is not empty
    guest.host.answer(asked[1])
    guest.settle()
    assert (0, 0) == (channel.ring_in.bytes_to_read, channel.moves.left)


def test_a_refusal_confirms_nothing() -> None:
    moves = Moves(host_cpu=2)
    moves.asked(1, answers=True)
    assert moves.answered(status=1)
    assert (0b0100, [], 1) == (moves.left, moves.unanswered, moves.status)


@pytest.mark.parametrize("answers", [False, True])
def test_what_was_asked_is_remembered_oldest_first(answers: bool) -> None:
    """And forgotten one by one, until all that is left asks for the CPU that was named last."""
    moves = Moves(host_cpu=0)
    for cpu in (1, 2, 2):
        moves.asked(cpu, answers)
    assert (0b0011, 2, [1, 2, 2] if answers else []) == (moves.left, moves.host_cpu, moves.unanswered)
    if answers:
        assert not moves.answered(0)
        assert (0b0011, [2, 2]) == (moves.left, moves.unanswered)
        assert moves.answered(0)
        assert (0, [2]) == (moves.left, moves.unanswered)
        moves.asked(1, answers=True)
        moves.answered(0)
        assert (0b0100, [1]) == (moves.left, moves.unanswered)


def test_a_lost_request_is_made_once_more() -> None:
    """The second one arrives."""
    guest = guest_with(1, HANDOVER)
    lost: list[ModifyChannel] = []

    def lose_first(message: ModifyChannel) -> None:
        if lost:
            guest.host.answer(message)
        lost.append(message)

    guest.host.instead[ModifyChannel] = lose_first
    assert 25 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(2))
    assert 2 == len(lost)
    assert guest.vmbus.channels[5].target_cpu == guest.host.targets[5]
    works(guest, 5)


@pytest.mark.parametrize("version", [Version.V4_1, Version.V5_3])
def test_a_move_of_the_user_before_is_covered_as_well(version: Version) -> None:
    """Race A (vmbus.md 4.6): what the host has not confirmed when the CPU goes is waited for, and poked."""
    guest = guest_with(1, HANDOVER, version=version)
    answer_late(guest, 45)
    move(guest, 1)
    guest.vmbus.synic_cleanup(2)
    send(guest)
    guest.pass_time(0.5)
    assert not is_hung(guest)


def test_where_no_answer_can_come_the_books_are_closed_with_the_last_poke() -> None:
    """Below 5.3: 20 ms, three pokes; when the CPU goes once more there is nothing left to wait for."""
    guest = guest_with(1, HANDOVER, version=Version.V5_2)
    channel = guest.vmbus.channels[5]
    before = channel.stats.interrupts
    assert 20 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(2))
    guest.pass_time(2)
    assert 3 == channel.stats.interrupts - before
    guest.vmbus.synic_init([2])
    assert 0 == milliseconds(guest, lambda: guest.vmbus.synic_cleanup(2))
    guest.pass_time(2)
    assert 3 == channel.stats.interrupts - before


def test_a_poke_of_an_empty_ring_is_an_interrupt_and_nothing_else() -> None:
    """The handler looks at the ring anyway."""
    guest = guest_with(1, HANDOVER)
    channel = guest.vmbus.channels[5]
    before = channel.stats
    guest.vmbus.synic_cleanup(2)
    guest.settle()
    assert (1, 0) == (channel.stats.interrupts - before.interrupts, channel.stats.packets - before.packets)
    assert 1 == counted(guest, 5)[channel.target_cpu]


def test_flags_left_on_the_old_cpu_are_handed_on() -> None:
    """Also of a channel that was moved before, and confirmed."""
    guest = guest_with(1, HANDOVER)
    move(guest, 1)
    set_flag(guest, 2, 5)
    guest.vmbus.synic_cleanup(2)
    before = counted(guest, 5)[1]
    guest.settle()
    assert 1 == counted(guest, 5)[1] - before


def test_a_handover_waits_for_an_open_that_is_under_way() -> None:
    """OPENCHANNEL names the old CPU; the move comes after its answer."""
    guest = Guest(HANDOVER, drivers=False)
    channel = guest.offered("keyboard", 5)
    channel.set_cpu(2)
    schedule = Schedule(guest.partition.idle)
    opening = schedule.begin(guest.vmbus.open_steps(channel)).to("wait for OPENCHANNEL_RESULT")
    going = schedule.begin(guest.vmbus.cpuhp.synic_cleanup(2)).to("waits for its open")
    opening.finish()
    going.finish()
    assert 2 != channel.target_cpu == guest.host.targets[5]
    works(guest, 5)


def test_no_move_can_come_while_channels_are_handed_over() -> None:
    """The CPU has left synic_online first: EINVAL, and set_affinity_lock keeps the two apart."""
    guest = guest_with(1, HANDOVER)
    channel = guest.opened("keyboard", 9, "other")
    schedule = Schedule(guest.partition.idle)
    going = schedule.begin(guest.vmbus.cpuhp.synic_cleanup(2)).to("send MODIFYCHANNEL")
    assert "set_affinity_lock" in [lock.name for lock in going.held]
    setter = schedule.begin(guest.irq.irq_set_affinity_steps(channel.irq, 1 << 2))
    with pytest.raises(Blocked, match="set_affinity_lock"):
        setter.finish()
    going.finish()
    with refused(errno.EINVAL, "SynIC"):
        setter.finish()


def test_a_handover_without_channel_irqs() -> None:
    """The policy does not ask for them."""
    guest = guest_with(2, BARE_HANDOVER, version=Version.V5_2)
    guest.vmbus.synic_cleanup(2)
    guest.settle()
    assert 2 not in {channel.target_cpu for channel in guest.vmbus.channels.values()}
    assert not is_hung(guest)


@pytest.mark.parametrize("design", [HANDOVER, REDIRECT], **by_name)
def test_a_rescinded_channel_holds_nobody_up(design: Any) -> None:
    """It takes no interrupts any more, and goes by itself."""
    guest = guest_with(1, design)
    guest.vmbus.channels[5].rescind()
    offline(guest)
    assert 0b1011 == guest.irq.online


# ---- REDIRECT


def iwi(guest: Guest) -> list[int]:
    return [guest.core.arch_row(cpu, lib.VI_ROW_IWI) for cpu in range(4)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("version", [Version.V4_0, Version.V4_1, Version.V5_3])
def test_any_affinity_change_succeeds_at_once(engine: str, version: Version) -> None:
    """Whatever the protocol, open or closed; the handler runs there, whatever CPU the host interrupts."""
    guest = Guest(REDIRECT, drivers=False, engine=engine, version=version)
    guest.opened("keyboard", 5)
    guest.host.mute = {ModifyChannel}
    channel = guest.vmbus.channels[5]
    guest.irq.irq_set_affinity(channel.irq, 0b0100)
    assert 2 == channel.target_cpu
    assert (0b0100, 0b0100) == _masks(guest, 5)
    assert 0 == guest.host.targets[5]
    works(guest, 5)
    assert (version >= Version.V4_1) == bool(guest.host.of_type(ModifyChannel))
    assert [0, 0, 1, 0] == iwi(guest)
    guest.vmbus.close(channel)
    guest.irq.irq_set_affinity(channel.irq, 0b0010)
    assert 1 == channel.target_cpu


def test_modifychannel_is_an_optimisation() -> None:
    """Posted, not waited for; when the host has followed, no work is queued any more."""
    guest = guest_with(1, REDIRECT)
    answer_late(guest, 10)
    move(guest, 3)
    works(guest, 5)
    assert ([0, 0, 0, 1], 2) == (iwi(guest), guest.host.targets[5])
    guest.pass_time(0.1)
    works(guest, 5)
    assert ([0, 0, 0, 1], 3) == (iwi(guest), guest.host.targets[5])


def test_the_first_cpu_of_the_mask_is_the_target_and_others_serve_at_once() -> None:
    """The effective mask names several CPUs; only target_cpu is sent to."""
    guest = guest_with(1, REDIRECT)
    guest.host.mute = {ModifyChannel}
    channel = guest.vmbus.channels[5]
    guest.irq.irq_set_affinity(channel.irq, 0b0110)
    assert (1, (0b0110, 0b0110)) == (channel.target_cpu, _masks(guest, 5))
    before = counted(guest, 5)
    assert "told" == send(guest)
    guest.settle()
    assert [0, 0, 1, 0] == [b - a for a, b in zip(before, counted(guest, 5), strict=True)]
    assert [0, 0, 0, 0] == iwi(guest)


def test_an_open_keeps_the_cpu_that_was_chosen_for_the_channel() -> None:
    """irq_startup() asks for the default mask, whose first CPU is 0; the hint comes after it."""
    guest = Guest(REDIRECT, drivers=False)
    channel = guest.offered("keyboard", 5)
    channel.set_cpu(3)
    guest.vmbus.open(channel)
    assert (3, 3, (0b1000, 0b1000)) == (channel.target_cpu, guest.host.targets[5], _masks(guest, 5))


def test_the_cpu_file_says_and_sets_the_target() -> None:
    """Below 4.1 as well."""
    guest = Guest(REDIRECT, drivers=False, version=Version.V4_0)
    channel = guest.opened("keyboard", 5)
    assert 2 == guest.vmbus.target_cpu_store(channel, b"3\n")
    assert 3 == channel.target_cpu
    works(guest, 5)


def test_the_host_is_moved_where_the_core_will_move_the_handler() -> None:
    """One MODIFYCHANNEL: the core's migration finds nothing left to ask."""
    guest = guest_with(1, REDIRECT)
    channel = guest.vmbus.channels[5]
    guest.irq.irq_set_affinity(channel.irq, 0b1100)
    got = len(guest.host.of_type(ModifyChannel))
    guest.vmbus.synic_cleanup(2)
    assert (2, 3) == (channel.target_cpu, guest.host.targets[5])
    offline(guest)
    assert (3, 1) == (channel.target_cpu, len(guest.host.of_type(ModifyChannel)) - got)
    works(guest, 5)


def test_a_work_that_is_queued_on_the_cpu_is_run_on_its_way_out() -> None:
    """The flag came to another CPU after the IRQ's last interrupt, before it was moved."""
    guest = guest_with(1, REDIRECT)
    guest.vmbus.synic_cleanup(2)
    guest.settle()
    guest.irq.set_cpu_online(2, False)
    assert "told" == send(guest)
    assert 1 == lib.vi_vcpu_run(guest.core.handle, guest.host.targets[5])
    before = counted(guest, 5)
    for _ in guest.irq.irq_migrate_all_off_steps(2):
        pass
    assert 1 == lib.vi_irq_work_flush(guest.core.handle, 2)
    assert [0, 0, 1, 0] == [b - a for a, b in zip(before, counted(guest, 5), strict=True)]
    assert [0, 0, 0, 0] == iwi(guest)
    guest.settle()
    works(guest, 5)


@pytest.mark.parametrize("version", [Version.V4_1, Version.V5_3])
def test_a_host_that_is_too_late_loses_the_flag_of_an_offline_cpu(version: Version) -> None:
    """The old CPU's event page must still be scanned, and that of an offline CPU is not: the RFC's loss stays."""
    guest = guest_with(1, REDIRECT, version=version)
    answer_late(guest, 40)
    offline(guest)
    assert "lost" == send(guest)
    assert is_hung(guest)


def test_until_the_host_follows_the_old_cpu_claims_the_flags() -> None:
    """The wait of RFC patch 11 is there for that."""
    guest = guest_with(1, REDIRECT)
    answer_late(guest, 15)
    going = Schedule(guest.partition.idle).begin(guest.vmbus.cpuhp.synic_cleanup(2)).to("MODIFYCHANNEL_RESPONSE")
    assert "told" == send(guest)
    assert (5,) == guest.synic.flags_set(2)
    going.finish()
    assert "told" == send(guest)
    assert not is_hung(guest)


def test_sub_channels_take_part() -> None:
    """Sub-channels as well."""
    guest = Guest(REDIRECT, offers=[offer_of("scsi", 5, "a")])
    guest.host.post(offer_of("scsi", 11, "a", 1))
    guest.settle()
    cpu = max(channel.target_cpu for channel in guest.vmbus.channels.values())
    offline(guest, cpu)
    assert cpu not in {channel.target_cpu for channel in guest.vmbus.channels.values()}
