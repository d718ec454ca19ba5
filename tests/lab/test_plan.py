"""Offline rehearsal: who refuses, the fewest moves, and shell lines that do what they say (vmbus.md 4.2, 4.3, 4.5)."""

from __future__ import annotations

import errno
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.footprint import footprint
from vmbusirq import Machine
from vmbusirq._ffi import lib
from vmbusirq.cpumask import bitmap_parselist, cpumask_all, cpumask_of, format_pbl
from vmbusirq.designs import DESIGNS
from vmbusirq.errors import IrqError
from vmbusirq.irq import Flow, IrqChip, nop
from vmbusirq.irq.settings import IRQ_HANDLED, IRQ_SET_MASK_OK, IRQF_NOBALANCING
from vmbusirq.lab.plan import PAUSE, Plan, parse_cpus, plan_offline
from vmbusirq.lab.rehearse import carry_out, plan_text, result_text, script
from vmbusirq.scenario.schema import builtin_names, parse_scenario
from vmbusirq.vmbus.channel import Channel

CPU = "/sys/devices/system/cpu"
DISK = "f8b3781a-1e82-4818-a1c3-63d806ec15bb"
UNWAITING = replace(DESIGNS["rfc"], name="rfc without patch 11", wait_modifychannel=False)


def machine(text: str = "", disks: Sequence[int] = (), **how: Any) -> Machine:
    """A machine with 4 CPUs and one disk on each of these; ``text`` is more of its scenario."""
    m = Machine.load(parse_scenario(text if "cpus" in text else f"cpus.possible = 4\n{text}", "plan"), **how)
    for relid, cpu in enumerate(disks, 1):
        channel = m.attach("scsi", relid=relid)
        if cpu != channel.target_cpu:
            put(m, channel, cpu)
    m.settle()
    return m


def put(m: Machine, channel: Channel, cpu: int) -> None:
    assert channel.device
    m.fs.write(f"/sys/bus/vmbus/devices/{channel.device.guid}/channels/{channel.dir_name}/cpu", f"{cpu}\n")
    m.settle()


def type_in(m: Machine, text: str) -> int:
    """Do what a shell does with a script, and nothing else; return how many files it wrote."""
    written = 0
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line == "sleep 1":
            m.clock.advance(10_000_000)
        else:
            match = re.fullmatch(r"echo ([0-9,-]+) > (/(?:proc|sys)/[\w/:.-]+)", line)
            assert match, line
            assert len(match[1]) + 1 == m.fs.write(match[2], f"{match[1]}\n")
            written += 1
        m.settle()
    return written


def state(m: Machine) -> dict[str, bytes]:
    """Everything that a plan may change: where interrupts and channels go, and which CPUs are online."""
    paths = [f"{CPU}/{name}" for name in ("online", "offline")]
    for name in m.fs.listdir("/proc/irq"):
        if name.isdigit():
            paths += [f"/proc/irq/{name}/{file}" for file in ("smp_affinity_list", "effective_affinity_list")]
    cpus = {repr(channel): b"%d" % channel.target_cpu for channel in m.vmbus.devices.all_channels()}
    return {path: m.fs.read(path) for path in paths} | cpus


def refused(number: int, *call: Any, **how: Any) -> str:
    with pytest.raises(IrqError) as caught:
        call[0](*call[1:], **how)
    assert number == caught.value.errno, str(caught.value)
    return str(caught.value)


# ---- the lines, in every scenario


@cache
def ran(scenario: str, design: str) -> Machine:
    """The machine after its scenario; each test leaves it as it was."""
    m = Machine.load(scenario, design=design)
    m.boot() if scenario == "stress-2047" else m.run()  # which has nothing but traffic
    return m


@pytest.fixture(scope="module", autouse=True)
def machines_end() -> Iterator[None]:
    """Thousands of channels are not kept for the tests of other files, which they would slow down."""
    yield
    ran.cache_clear()


def reads(m: Machine, channel: Channel) -> bool:
    """Whether the guest hears of a packet of the channel's device."""
    before = channel.stats.interrupts
    m.host.send(channel.relid)
    m.settle()
    return channel.stats.interrupts > before


def check_a_plan_that_is_impossible(m: Machine, plan: Plan) -> None:
    assert ((), (), "") == (plan.free, plan.restore, script(plan))
    before = state(m)
    assert not carry_out(m, plan).outcomes
    tried = carry_out(m, plan, move=False)
    assert "EBUSY" in {outcome.error for outcome in tried.outcomes}
    for cpu in plan.going:
        m.online_cpu(cpu)
    assert before == state(m)


def check_lines(m: Machine, cpus: int, interface: str | None) -> None:
    """The lines free the CPUs, one move for each channel that refuses; the others bring everything back."""
    before = state(m)
    plan = plan_offline(m, cpus, interface)
    channels = [channel for channel in m.vmbus.devices.all_channels() if cpus >> channel.target_cpu & 1]
    assert Counter((c.target_cpu, c.relid) for c in channels if c.mapped) == Counter(
        (holder.cpu, holder.relid) for holder in plan.holders if holder.relid
    )
    assert len(channels) == len(plan.holders)
    if plan.blockers:
        check_a_plan_that_is_impossible(m, plan)
        return
    assert cpus.bit_count() + len(channels) == type_in(m, script(plan)) == cpus.bit_count() + plan.moves
    assert not m.online_mask & cpus
    assert not [channel for channel in m.vmbus.devices.all_channels() if not m.online_mask >> channel.target_cpu & 1]
    for channel in channels[:3]:
        assert channel.is_hv_sock or reads(m, channel)
    type_in(m, script(plan, restore=True))
    assert before == state(m)


@pytest.mark.parametrize("design", ["legacy", "rfc"])
@pytest.mark.parametrize("scenario", builtin_names())
def test_the_lines_free_the_cpus_and_bring_them_back(scenario: str, design: str) -> None:
    """Typed in one by one, in any built-in scenario, for any CPUs, by either interface."""
    interfaces = ["sysfs", "both", None] + (["irq"] if design == "rfc" else [])

    @settings(max_examples=1 if scenario == "stress-2047" else 15, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        m = ran(scenario, design)
        cpu = st.integers(1, m.core.nr_cpus - 1)
        some = data.draw(st.sets(cpu, min_size=1 if m.core.nr_cpus < 64 else 3, max_size=12), label="cpus")
        check_lines(m, cpumask_of(*some), data.draw(st.sampled_from(interfaces), label="interface"))

    check()


@pytest.mark.parametrize("design", ["legacy", "rfc"])
@pytest.mark.parametrize("scenario", sorted(set(builtin_names()) - {"stress-2047", "hibernate"}))
def test_every_cpu_but_one_can_go(scenario: str, design: str) -> None:
    """All channels meet on CPU 0, and come back."""
    m = ran(scenario, design)
    cpus = cpumask_all(m.core.nr_cpus) & ~1
    plan = plan_offline(m, cpus)
    assert {0} == {holder.to for holder in plan.holders}
    assert any("last one that is online" in note for note in plan.notes)
    check_lines(m, cpus, None)


# ---- the fewest moves


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_the_kernel_is_not_content_with_fewer(design: str) -> None:
    """On the machine itself: after any one move of any channel one of two CPUs, with two channels, stays."""
    m = machine(disks=[0, 2, 3], design=design)
    plan = plan_offline(m, 0b1100)
    assert 2 == plan.moves
    channels = sorted(m.vmbus.channels.values(), key=lambda channel: channel.relid)
    before = [channel.target_cpu for channel in channels]
    for channel, cpu in itertools.product(channels, range(4)):
        put(m, channel, cpu)
        tried = carry_out(m, plan_offline(m, 0b1100), move=False)
        assert not tried.done
        assert "EBUSY" in {outcome.error for outcome in tried.outcomes}
        for other in (2, 3):
            m.online_cpu(other)
        for one, home in zip(channels, before, strict=True):
            put(m, one, home)
    assert carry_out(m, plan).done


# ---- where channels go


def test_channels_go_where_they_may() -> None:
    """Never to an isolated CPU, one of the list, or one that is offline."""
    text = 'cpus = { possible = 6, isolated = "2" }'
    m = machine(text, disks=[5, 5, 4, 4])
    m.offline_cpu(1)
    plan = plan_offline(m, 0b110010)
    assert ("0,3", (4, 5), ("cpu 1: offline already",)) == (plan.targets, plan.going, plan.notes)
    assert {0: 2, 3: 2} == Counter(holder.to for holder in plan.holders)
    type_in(m, script(plan))
    assert 0b001101 == m.online_mask


# ---- interrupts that move by themselves


@pytest.mark.parametrize("leaving", ["7", "6-7", "1-7", "4,6"])
def test_what_becomes_of_ordinary_interrupts_is_foretold(leaving: str) -> None:
    """migrate_one_irq: within its mask, or anywhere and no longer affine; the lines bring it back."""

    @settings(max_examples=12, deadline=None)
    @given(st.integers(1, 255), st.integers(1, 255))
    def check(mask8: int, mask9: int) -> None:
        m = ran("rfc-gen2-8vcpu", "rfc")
        for irq, mask in ((8, mask8), (9, mask9)):
            m.fs.write(f"/proc/irq/{irq}/smp_affinity_list", format_pbl(mask))
            arrive(m, irq)
        before, logged = state(m), len(m.log.texts())
        plan = plan_offline(m, bitmap_parselist(leaving.encode(), 8))
        type_in(m, script(plan))
        told = m.log.texts()[logged:]
        for migration in plan.migrations:
            desc = m.irq.descs[migration.irq]
            assert migration.cpu in plan.going
            assert migration.to == format_pbl(desc.affinity & m.online_mask)
            lost = any(f"IRQ {migration.irq}: no longer affine" in text for text in told)
            assert lost <= migration.no_longer_affine  # the log is rate-limited
        assert {migration.irq for migration in plan.migrations} == {
            irq for irq in (8, 9) if before[f"/proc/irq/{irq}/effective_affinity_list"].strip() in going(plan)
        }
        type_in(m, script(plan, restore=True))
        for irq in (8, 9):
            arrive(m, irq)  # x86 moves an IO-APIC line when it fires
        assert before == state(m)

    check()


def arrive(m: Machine, irq: int) -> None:
    m.irq.generic_handle_irq(irq, 0, 1)
    m.irq.irq_move_irq(irq)


def going(plan: Plan) -> set[bytes]:
    return {b"%d" % cpu for cpu in plan.going}


def test_an_interrupt_that_loses_its_cpus_is_marked() -> None:
    """No CPU of its mask is left: the text says so, and the log after it."""
    m = machine("[[irq]]\nirq = 8\nname = 'rtc0'\nhwirq = 8\nflow = 'edge'")
    m.boot()
    m.fs.write("/proc/irq/8/smp_affinity_list", "2-3")
    arrive(m, 8)
    assert [("0-1", True)] == [(one.to, one.no_longer_affine) for one in plan_offline(m, 0b1100).migrations]
    plan = plan_offline(m, 0b0100)
    assert [("3", False)] == [(one.to, one.no_longer_affine) for one in plan.migrations]
    plan = plan_offline(m, 0b1100)
    assert re.search(r"8 +rtc0 +IO-APIC +2 +0-1 +no longer affine\n", plan_text(plan))
    type_in(m, script(plan))
    assert any("IRQ 8: no longer affine to CPU3" in text for text in m.log.texts())
    type_in(m, script(plan, restore=True))
    arrive(m, 8)
    assert (b"2-3\n", b"2\n") == tuple(
        m.fs.read(f"/proc/irq/8/{name}") for name in ("smp_affinity_list", "effective_affinity_list")
    )


def test_a_managed_interrupt_is_shut_down_and_needs_no_line() -> None:
    """It comes back with its CPU."""
    m = machine()
    chip = IrqChip("msi", irq_set_affinity=first_cpu, irq_mask=nop, irq_unmask=nop, irq_ack=nop)
    irq = m.irq.alloc_descs(affinity=0b0100, managed=True)
    m.irq.set_chip_and_handler(irq, chip, Flow.EDGE)
    m.irq.request_irq(irq, lambda *_: IRQ_HANDLED, 0, "nvme")
    plan = plan_offline(m, 0b0100)
    assert [(irq, "nvme", "", False)] == [(o.irq, o.name, o.to, o.no_longer_affine) for o in plan.migrations]
    assert "shut down until the CPU returns" in plan_text(plan)
    assert [f"echo 1 > {CPU}/cpu2/online"] == [str(line) for line in plan.restore]
    type_in(m, script(plan))
    assert not m.irq.descs[irq].started
    type_in(m, script(plan, restore=True))
    assert m.irq.descs[irq].started


def test_an_interrupt_that_no_file_brings_back() -> None:
    """It is told of: its affinity is not the user's to set."""
    m = machine()
    chip = IrqChip("fixed", irq_set_affinity=first_cpu, irq_mask=nop, irq_unmask=nop, irq_ack=nop)
    irq = m.irq.alloc_descs()
    m.irq.set_chip_and_handler(irq, chip, Flow.EDGE)
    m.irq.request_irq(irq, lambda *_: IRQ_HANDLED, IRQF_NOBALANCING, "timer")
    m.irq.descs[irq].update_effective_affinity(0b0100)
    plan = plan_offline(m, 0b0100)
    assert [(irq, "0-1,3", False)] == [(one.irq, one.to, one.no_longer_affine) for one in plan.migrations]
    assert any(f"irq {irq}: stays where it has moved to" in note for note in plan.notes)
    type_in(m, script(plan) + script(plan, restore=True))
    assert 0b0001 == m.irq.descs[irq].effective_affinity


def first_cpu(desc: Any, mask: int, force: bool) -> int:
    desc.update_effective_affinity(mask & -mask)
    return IRQ_SET_MASK_OK


# ---- what prevents it


def blocked(m: Machine, cpus: int = 0b0100, interface: str | None = None) -> str:
    """Return what a plan says that is impossible; the kernel says so too."""
    plan = plan_offline(m, cpus, interface)
    check_a_plan_that_is_impossible(m, plan)
    text = plan_text(plan)
    assert "to free" not in text
    return text.partition("impossible:\n")[2]


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_a_closed_channel_keeps_its_cpu_until_it_is_bound(design: str) -> None:
    """vmbus.md 4.2 row 9: EIO; the line that the plan gives opens it, and then it can be moved."""
    m = Machine.load("rfc-gen2-8vcpu", design=design)
    m.run()
    assert not plan_offline(m, 0b10).blockers
    m.fs.write("/sys/bus/vmbus/drivers/hv_storvsc/unbind", DISK)
    m.settle()
    says = blocked(m, 0b10)
    assert "  cpu 1: channel 15 (pri@storvsc0): EIO: it is not open (OPEN); bind its driver: echo" in says
    line = re.search(r"echo (\S+) > (\S+)", says)
    assert line
    m.fs.write(line[2], line[1])
    m.settle()
    check_lines(m, 0b10, None)


def test_a_channel_that_no_driver_serves_keeps_its_cpu() -> None:
    """Nor does it help to bind a driver there is not."""
    m = machine(design="legacy")
    m.attach("netdirect", relid=9)
    channel = m.vmbus.channels[9]
    channel.set_cpu(2)
    assert "channel 9 (netdirect): EIO: it is not open (OPEN); no driver of this guest serves it" in blocked(m)


def test_a_channel_that_the_last_resume_has_missed_keeps_its_cpu() -> None:
    """It is not open, and has no relid."""
    m = ran("hibernate", "rfc")
    assert "cpu 3: channel without relid (netvsc): EIO: it is not open (OPEN); the host has not" in blocked(m, 0b1000)
    assert re.search(r" -  netvsc +netvsc +-    3  OPEN ", plan_text(plan_offline(m, 0b1000)))


def test_a_channel_that_its_driver_has_closed_keeps_its_cpu() -> None:
    """A bound driver, and no ring: bind it again."""
    m = machine(disks=[2])
    m.vmbus.close(m.vmbus.channels[1])
    assert "(OPEN); unbind and bind hv_storvsc" in blocked(m)


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_no_channel_moves_below_4_1(design: str) -> None:
    """vmbus.md 4.2 row 1, both sides of the border."""
    for version in ("4.0", "4.1"):
        m = machine(f'host.version = "{version}"', disks=[0, 1, 2], design=design)  # where init_vp_index puts them
        if version == "4.1":
            check_lines(m, 0b0100, None)
        else:
            assert "EIO: protocol version 4.0 has no MODIFYCHANNEL, 4.1 has; unload hv_vmbus" in blocked(m)


def test_no_cpu_is_left_that_is_not_isolated() -> None:
    """vmbus.md 4.2 row 5, 4.3 row 5: the others are no place for a channel."""
    m = machine('cpus = { possible = 4, isolated = "0-1" }', disks=[2])
    assert "EINVAL: no CPU is left for channels: cpus 0-1 stay online, isolated: 0-1; leave" in blocked(m, 0b1100)
    assert not plan_offline(m, 0b0100).blockers


def test_a_rescinded_channel_is_waited_for() -> None:
    """ENODEV from any write."""
    m = machine(disks=[2])
    m.vmbus.channels[1].rescind()
    assert "ENODEV: the host has rescinded it; it goes as soon as" in blocked(m)


def test_a_channel_that_user_space_cannot_see() -> None:
    """Its device is being removed, and with it the cpu file; the file of its IRQ is there."""
    m = machine(disks=[2])
    device = m.vmbus.channels[1].device
    assert device
    device.registered = False
    assert "ENOENT: it has no directory in sysfs; unbind its device's driver" in blocked(m, interface="sysfs")
    plan = plan_offline(m, 0b0100, "both")
    assert "# or:" not in script(plan)
    type_in(m, script(plan))
    assert 0b1011 == m.online_mask


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_event_flags_that_nobody_serves(design: str) -> None:
    """vmbus.md 4.5: still set after three sleeps: EBUSY. Once an interrupt comes for them they are no obstacle."""
    m = machine(disks=[0], design=design)
    lib.vi_synic_flags(m.core.handle, 2, lib.VI_SINT_VMBUS)[0] |= 1 << 9
    assert "cpu 2: EBUSY: event flags 9 are set, no interrupt is on its way; the next interrupt" in blocked(m)
    m.synic.signal(2, 1)
    plan = plan_offline(m, 0b0100)
    assert "cpu 2: event flags 1,9 are about to be served" in plan.notes
    type_in(m, script(plan))
    assert 0b1011 == m.online_mask


def test_without_a_connection_nobody_refuses() -> None:
    """vmbus.md 4.5 row 1; on arm64 even CPU 0 goes."""
    m = machine('arch = "arm64"\ncpus.possible = 4', disks=[0, 2])
    message = refused(errno.EBUSY, plan_offline, m, 0b0001)
    assert "cpu 0: cannot go offline: control messages come to it while the guest is connected (EBUSY)" in message
    m.vmbus.unload()
    m.settle()
    plan = plan_offline(m, 0b0101)
    assert (None, (), ("the guest is not connected: no channel refuses",)) == (plan.version, plan.holders, plan.notes)
    type_in(m, script(plan))
    assert 0b1010 == m.online_mask


# ---- a host that takes its time


@pytest.mark.parametrize("version", ["4.1", "5.2", "5.3"])
@pytest.mark.parametrize("design", ["legacy", UNWAITING, "rfc"], ids=str)
@pytest.mark.parametrize("hurry", [False, True])
def test_a_late_host_loses_nothing(hurry: bool, design: Any, version: str) -> None:
    """Race A (vmbus.md 4.6): where nobody waits for the host a line does, and without that line a signal is lost."""
    m = machine(f'host.version = "{version}"\nhost.modify_delay_us = 15000', disks=[0], design=design)
    m.clock.advance(10_000_000)
    put(m, m.vmbus.channels[1], 2)
    m.clock.advance(10_000_000)
    m.settle()
    plan = plan_offline(m, 0b0100)
    must_wait = design is UNWAITING or (design == "legacy" and version != "5.3")
    assert must_wait is (PAUSE in plan.free)
    type_in(m, "".join(f"{line}\n" for line in plan.free if not (hurry and line == PAUSE)))
    assert reads(m, m.vmbus.channels[1]) is not (must_wait and hurry)


# ---- which files


# ---- channels that leave by themselves

MOVING = ["mainline-6.16", "rfc-pick", "redirect", "rfc-handover"]


@pytest.mark.parametrize("design", MOVING)
def test_channels_that_leave_by_themselves_need_no_move(design: str) -> None:
    """vmbus.md 4.5, genirq.md 10: the file alone frees the CPU; channels stay away until they are brought back."""
    m = machine(disks=(2, 2, 1), design=design)
    before = state(m)
    plan = plan_offline(m, 0b0100)
    assert ((), 0, ()) == (plan.holders, plan.moves, plan.blockers)
    assert [(1, 2, None), (2, 2, None)] == [(one.relid, one.cpu, one.to) for one in plan.moving]
    assert [f"echo 0 > {CPU}/cpu2/online"] == [str(line) for line in plan.free]
    assert any("channels leave by themselves: " in note for note in plan.notes)
    assert "channels that refuse (EBUSY): none\n\nchannels that move by themselves:\n" in plan_text(plan)
    channels = {channel.irq for channel in m.vmbus.channels.values() if channel.irq}
    assert not channels & {one.irq for one in plan.migrations}
    assert 1 == type_in(m, script(plan))
    assert not m.online_mask & 0b0100
    for relid in (1, 2):
        channel = m.vmbus.channels[relid]
        assert channel.target_cpu != 2 != m.host.channels[relid].target_vp
        assert reads(m, channel)
    type_in(m, script(plan, restore=True))
    assert before == state(m)
    assert [2, 2, 1] == [m.host.channels[relid].target_vp for relid in (1, 2, 3)]


@pytest.mark.parametrize("design", MOVING)
def test_what_happened_tells_of_them_too(design: str) -> None:
    m = machine(disks=(2,), design=design)
    result = carry_out(m, plan_offline(m, 0b0100))
    ((relid, _, _, was, now),) = result.channels
    assert result.done
    assert (1, 2) == (relid, was)
    assert now != 2


@pytest.mark.parametrize(
    ("design", "version", "is_open", "isolated", "stays"),
    [
        ("rfc-pick", "5.3", True, "none", False),
        ("rfc-pick", "5.2", True, "none", True),  # nobody would confirm it
        ("rfc-pick", "5.3", False, "none", True),
        ("rfc-pick", "5.3", True, "0-1,3", True),
        ("mainline-6.16", "5.2", True, "none", True),
        ("redirect", "4.1", True, "none", False),
        ("redirect", "4.0", True, "none", True),
        ("redirect", "4.0", False, "none", False),
        ("rfc-handover", "4.1", True, "none", False),
        ("rfc-handover", "4.0", True, "none", True),
        ("rfc-handover", "4.0", False, "none", False),
        ("rfc-handover", "5.3", True, "0-1,3", False),
    ],
)
def test_some_channels_stay_under_every_policy(
    design: str, version: str, is_open: bool, isolated: str, stays: bool
) -> None:
    """What the plan says is what the kernel does; both sides of each border."""
    cpus = "possible = 4" + ("" if isolated == "none" else f', isolated = "{isolated}"')
    disks = [0, 1, 2] if isolated == "none" else [2]  # where init_vp_index puts them
    m = machine(f'cpus = {{ {cpus} }}\nhost.version = "{version}"', disks=disks, design=design)
    if not is_open:
        m.vmbus.close(m.vmbus.channels[len(disks)])
    plan = plan_offline(m, 0b0100)
    assert (1, stays) == (len(plan.holders) + len(plan.moving), bool(plan.holders))
    assert stays != carry_out(m, plan, move=False).done


def test_a_channel_that_the_host_alone_interrupts_there() -> None:
    """Below 4.1 the host stays where it is, and a channel is redirected for ever."""
    m = machine('host.version = "4.0"', disks=[0, 1, 2], design="redirect")
    put(m, m.vmbus.channels[3], 1)
    assert (1, 2) == (m.vmbus.channels[3].target_cpu, m.host.channels[3].target_vp)
    plan = plan_offline(m, 0b0100)
    assert [(3, 2)] == [(one.relid, one.cpu) for one in plan.holders]
    assert plan.blockers[0].what.startswith("cpu 2: channel 3 ")
    assert not carry_out(m, plan, move=False).done
    assert [2] == [one.relid for one in plan_offline(m, 0b0010).holders]


def lines_of(interface: str | None, design: str = "rfc", **how: Any) -> list[str]:
    return script(plan_offline(machine(disks=[2], design=design, **how), 0b0100, interface)).splitlines()[1:]


def test_the_interface_is_chosen() -> None:
    """An IRQ's file where there is one, the channel's always, or one line and the other as a comment."""
    by_irq = "echo 0 > /proc/irq/24/smp_affinity_list"
    guid = str(machine(disks=[2]).vmbus.channels[1].offer.if_instance)
    by_sysfs = f"echo 0 > /sys/bus/vmbus/devices/{guid}/channels/1/cpu"
    last = f"echo 0 > {CPU}/cpu2/online"
    assert [by_irq, last] == lines_of(None) == lines_of("irq")
    assert [by_sysfs, last] == lines_of("sysfs")
    assert [by_irq, f"# or: {by_sysfs}", last] == lines_of("both")
    assert [by_sysfs, PAUSE, last] != lines_of(None, "legacy")  # 5.3: the host answers, and the write waits for that
    assert [by_sysfs, last] == lines_of(None, "legacy") == lines_of("sysfs", "legacy") == lines_of("both", "legacy")


def test_a_wider_affinity_comes_back() -> None:
    """A move narrows smp_affinity to one CPU, by either interface; a second line widens it again."""
    for interface in ("irq", "sysfs"):
        m = machine(disks=[2])
        m.fs.write("/proc/irq/24/smp_affinity_list", "1-3")
        check_lines(m, 0b0100, interface)
        plan = plan_offline(m, 0b0100, interface)
        assert "echo 1-3 > /proc/irq/24/smp_affinity_list" == str(plan.restore[-1])


def test_the_rfc_as_posted_is_warned_of() -> None:
    """Its cpu file takes no byte (vmbus.md 4.2 row 13): a shell's echo does not like that."""
    m = machine(disks=[2], strict_rfc=True)
    assert any("takes 0 of the bytes" in note for note in plan_offline(m, 0b0100, "sysfs").notes)
    assert () == plan_offline(m, 0b0100).notes
    assert carry_out(m, plan_offline(m, 0b0100, "sysfs")).done


def test_a_plan_changes_nothing() -> None:
    """It only looks; and it says the same again."""
    m = machine(disks=[0, 2, 2])
    before = footprint(m), state(m), m.now, m.log.texts()
    assert plan_offline(m, 0b1100) == plan_offline(m, 0b1100)
    assert before == (footprint(m), state(m), m.now, m.log.texts())


# ---- what cannot be used


@pytest.mark.parametrize(
    ("text", "number", "says"),
    [
        ("", errno.EINVAL, "names no CPU (EINVAL); present: 0-2"),
        ("3", errno.EINVAL, "cpu list '3': not all of its CPUs are present (EINVAL); present: 0-2"),
        ("2-4", errno.EINVAL, "not all of its CPUs are present (EINVAL); present: 0-2"),
        ("9", errno.EINVAL, "cpu list '9': not all of its CPUs"),
        ("x", errno.EINVAL, "a cpu number is missing"),
        ("\udcff", errno.EINVAL, "a cpu number is missing"),
        ("2-1", errno.EINVAL, "start <= end"),
        ("4294967296", errno.EOVERFLOW, "is not below 2^32"),
    ],
)
def test_cpu_lists_that_say_nothing(text: str, number: int, says: str) -> None:
    """Four CPUs are possible, three are there."""
    m = machine("cpus = { possible = 4, present = 3 }")
    assert says in refused(number, parse_cpus, m, text)
    assert 0b110 == parse_cpus(m, "1-2") == parse_cpus(m, "1,2")


def test_cpus_that_no_plan_frees() -> None:
    """Those that are not there, all of them, CPU 0 of x86; and interfaces that there are not."""
    m = machine("cpus = { possible = 4, present = 3 }")
    for cpus in (0, -1, 0b1000):
        assert "not all of its CPUs are present" in refused(errno.EINVAL, plan_offline, m, cpus)
    assert "one CPU must stay (EBUSY); online: 0-2" in refused(errno.EBUSY, plan_offline, m, 0b111)
    assert "no online file (EPERM); others: 1-2" in refused(errno.EPERM, plan_offline, m, 0b001)
    assert "choose from irq, sysfs, both" in refused(errno.EINVAL, plan_offline, m, 0b100, "acpi")
    legacy = machine(design="legacy")
    assert "has no channel IRQs (EINVAL)" in refused(errno.EINVAL, plan_offline, legacy, 0b100, "irq")


def test_cpus_that_are_offline_need_no_plan() -> None:
    """The state that they have is the one that is asked for."""
    m = machine(disks=[0])
    m.offline_cpu(3)
    plan = plan_offline(m, 0b1000)
    assert (("cpu 3: offline already",), (), ()) == (plan.notes, plan.free, plan.restore)
    assert "nothing to do" in plan_text(plan)
    result = carry_out(m, plan)
    assert (True, ()) == (result.done, result.outcomes)


# ---- carrying out


def test_what_happened_is_told_line_by_line() -> None:
    """Errors have their errno and do not stop what follows."""
    m = machine(disks=[0, 2, 3])
    plan = plan_offline(m, 0b1100)
    tried = carry_out(m, plan, move=False)
    assert ["EBUSY", "EBUSY"] == [outcome.error for outcome in tried.outcomes]
    assert "  EBUSY  echo 0 > /sys/devices/system/cpu/cpu2/online  cpu 2: cannot go offline" in result_text(tried)
    result = carry_out(m, plan)
    assert {""} == {outcome.error for outcome in result.outcomes}
    assert (True, "0-1", "CPU0 CPU1") == (result.done, result.online, result.header)
    assert [(2, 2), (3, 3)] == [(relid, was) for relid, _, _, was, _ in result.channels]
    assert all(now in (0, 1) for *_, now in result.channels)
    assert {"relid": 2, "name": "pri@storvsc1", "irq": 25, "was": 2, "cpu": 1} == result.to_json()["channels"][0]
