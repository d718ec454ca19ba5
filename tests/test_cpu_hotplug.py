"""CPUs that go offline and come back, on a whole machine with its host (kernel/cpu.c; vmbus.md 4.5 and 4.6)."""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import takewhile
from typing import Any

import pytest

from tests.footprint import footprint
from tests.schedule import Blocked, Schedule
from vmbusirq import Machine, parse_interrupts
from vmbusirq.designs import DESIGNS
from vmbusirq.errors import IrqError
from vmbusirq.fs.sysfs.cpu import kstrtobool
from vmbusirq.generations import GENERATIONS
from vmbusirq.hyperv.registers import Msr
from vmbusirq.irq import Flow, IrqChip, nop
from vmbusirq.irq.settings import IRQ_HANDLED, IRQ_MOVE_PCNTXT, IRQ_SET_MASK_OK
from vmbusirq.scenario.schema import parse_scenario

RFC = DESIGNS["rfc"]
NEITHER = replace(RFC, name="rfc without patches 11 and 12", wait_modifychannel=False, set_affinity_lock=False)
CPU = "/sys/devices/system/cpu"
ENGINES = ("fast", "linux")


def machine(
    late_us: int = 0, version: str = "5.3", cpus: str = "possible = 4", arch: str = "x86", **how: Any
) -> Machine:
    """A machine with one disk, relid 1 on CPU 0, whose host moves channels so much later."""
    text = f'arch = "{arch}"\ncpus.{cpus}\nhost.modify_delay_us = {late_us}\nhost.version = "{version}"'
    made = Machine.load(parse_scenario(text, "hotplug"), **how)
    made.attach("scsi", relid=1)
    return made


def move(m: Machine, cpu: int) -> None:
    m.fs.write(f"/proc/irq/{m.vmbus.channels[1].irq}/smp_affinity_list", str(cpu))


def pass_ms(m: Machine, ms: int) -> None:
    m.settle()
    m.clock.advance(ms * 10_000)
    m.settle()


def unread(m: Machine) -> int:
    return m.vmbus.channels[1].ring_in.bytes_to_read


def columns(m: Machine) -> list[str]:
    return m.fs.read("/proc/interrupts").decode().splitlines()[0].split()


def refused(number: int, *call: Any) -> str:
    with pytest.raises(IrqError) as caught:
        call[0](*call[1:])
    assert number == caught.value.errno, str(caught.value)
    return str(caught.value)


# ---- files and methods


def test_a_cpu_that_is_offline_has_no_column_and_keeps_its_counts() -> None:
    """genirq.md 1.5: they reappear unchanged."""
    m = machine()
    move(m, 2)
    m.host.send(1)
    m.settle()
    move(m, 1)
    m.settle()
    before = m.fs.read("/proc/interrupts")
    m.offline_cpu(2)
    assert ["CPU0", "CPU1", "CPU3"] == columns(m)
    row = m.fs.read("/proc/interrupts").decode().splitlines()[1].split()
    counts = m.irq.counts[m.vmbus.channels[1].irq].tolist()
    assert [str(counts[cpu]) for cpu in (0, 1, 3)] == row[1:4]
    assert [b"0-1,3\n", b"2\n", b"0-3\n", b"0-3\n"] == [
        m.fs.read(f"{CPU}/{name}") for name in ("online", "offline", "present", "possible")
    ]
    m.online_cpu(2)
    assert before == m.fs.read("/proc/interrupts")
    move(m, 2)
    m.settle()
    m.host.send(1)
    m.settle()
    assert (counts[2] + 1, 0) == (int(m.irq.counts[m.vmbus.channels[1].irq][2]), unread(m))


@pytest.mark.parametrize("text", ["0", "0\n", "n", "No", "f", "false", "off", "OFF\n", "of", "0x1"])
def test_texts_that_take_a_cpu_offline(text: str) -> None:
    """kstrtobool: the first letter decides, of "off" the first two."""
    m = Machine(4)
    assert len(text) == m.fs.write(f"{CPU}/cpu3/online", text)
    assert (b"0\n", b"3\n") == (m.fs.read(f"{CPU}/cpu3/online"), m.fs.read(f"{CPU}/offline"))


@pytest.mark.parametrize("text", ["1", "1\n", "y", "Yes", "t", "true", "on", "ON\n", "10"])
def test_texts_that_bring_it_back(text: str) -> None:
    """The same for true; the state that it has succeeds too."""
    m = Machine(4)
    m.offline_cpu(3)
    for _ in range(2):
        assert len(text) == m.fs.write(f"{CPU}/cpu3/online", text)
        assert b"1\n" == m.fs.read(f"{CPU}/cpu3/online")
    for _ in range(2):
        m.fs.write(f"{CPU}/cpu3/online", "0")


@pytest.mark.parametrize("text", ["2", " 1", "\n", "o", "-1", "\0", "x", "\xe9", "o\0n", "o n", "\n1", "e", "d"])
def test_other_texts_are_einval(text: str) -> None:
    """And nothing happens; an empty write is none."""
    m = Machine(4)
    refused(errno.EINVAL, m.fs.write, f"{CPU}/cpu3/online", text.encode("latin-1"))
    assert 0 == m.fs.write(f"{CPU}/cpu3/online", b"")
    assert 0xF == m.online_mask


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
@pytest.mark.parametrize("rest", [b"", b"\n", b"\0", b"~" * 5000])
def test_kstrtobool_of_every_first_byte(generation: str, rest: bytes) -> None:
    """lib/kstrtox.c: 1yYtT and 0nNfF, whatever follows; since 6.16 eE ("enabled") and dD ("disabled"), too."""
    letters = GENERATIONS[generation].kstrtobool_letters
    newer = generation in ("v6.18", "v7.1")
    true, false = (b"1yYtTeE", b"0nNfFdD") if newer else (b"1yYtT", b"0nNfF")
    for first in range(256):
        data = bytes([first]) + rest
        if first in true + false:
            assert (first in true) == kstrtobool(data, letters)
        else:
            refused(errno.EINVAL, kstrtobool, data, letters)


def test_kstrtobool_of_every_byte_after_an_o() -> None:
    """[oO][nN] is true, [oO][fF] is false; the third byte does not matter."""
    letters = GENERATIONS["v6.10"].kstrtobool_letters
    for first in b"oO":
        for second in range(256):
            for rest in (b"", b"f", b"\n"):
                data = bytes([first, second]) + rest
                if second in b"nNfF":
                    assert (second in b"nN") == kstrtobool(data, letters)
                else:
                    refused(errno.EINVAL, kstrtobool, data, letters)


def test_the_file_takes_what_its_kernel_takes() -> None:
    """The words enabled and disabled since 6.16."""
    m = Machine(4, generation="v6.18")
    assert 9 == m.fs.write(f"{CPU}/cpu3/online", "disabled\n")
    assert 0b0111 == m.online_mask
    assert 8 == m.fs.write(f"{CPU}/cpu3/online", "Enabled\n")
    assert 0b1111 == m.online_mask


def test_who_has_the_file() -> None:
    """CPU 0 of x86 cannot go; of arm64 it can, if nothing holds it; CPUs that never come have no directory."""
    m = machine(cpus="possible = 4\ncpus.present = 3")
    assert ["cpu0", "cpu1", "cpu2", "offline", "online", "possible", "present"] == m.fs.listdir(CPU)
    assert [[], ["online"]] == [m.fs.listdir(f"{CPU}/cpu{cpu}") for cpu in (0, 1)]
    assert 0o644 == m.fs.stat(f"{CPU}/cpu1/online").st_mode & 0o777
    refused(errno.EPERM, m.offline_cpu, 0)
    for cpu in (3, 4, -1):
        refused(errno.EINVAL, m.offline_cpu, cpu)
        refused(errno.EINVAL, m.online_cpu, cpu)


def test_cpu_0_of_arm64_is_held_by_the_connection() -> None:
    """The connect CPU is EBUSY (vmbus.md 4.5); without a host it can go, and the last one never can."""
    m = machine(arch="arm64", cpus="possible = 2")
    refused(errno.EBUSY, m.fs.write, f"{CPU}/cpu0/online", "0")
    alone = Machine(2, arch="arm64")
    alone.offline_cpu(0)
    assert ["CPU1"] == columns(alone)
    assert "last" in refused(errno.EBUSY, alone.offline_cpu, 1)
    alone.online_cpu(0)
    assert 0b11 == alone.online_mask


def test_hotplug_is_not_for_handlers() -> None:
    """It waits."""
    m = Machine(4)
    seen: list[str] = []
    channel = m.attach("heartbeat", relid=1)
    channel.set_callback(lambda channel: seen.append(refused(errno.EDEADLK, m.offline_cpu, 3)))
    m.host.send(1)
    m.settle()
    assert 1 == len(seen)


# ---- what every file makes of a CPU that is away


@pytest.mark.parametrize("design", ["legacy", "rfc"])
@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_which_files_have_a_place_for_an_offline_cpu(generation: str, arch: str, design: str) -> None:
    """genirq.md 1.5, 3.1 to 3.3: /proc/interrupts and cpuN of /proc/stat online CPUs, all others the possible ones."""
    m = machine(arch=arch, generation=generation, design=design)
    m.host.send(1)
    m.settle()
    irq = line_on(m, 0).irq
    before = {path: m.fs.read(path) for path in ("/proc/softirqs", f"/sys/kernel/irq/{irq}/per_cpu_count")}
    m.offline_cpu(2)
    text = m.fs.read("/proc/interrupts").decode().splitlines()
    assert ["CPU0", "CPU1", "CPU3"] == text[0].split()
    for line in text[1:]:
        label, *words = line.split()
        numbers = len(list(takewhile(str.isdigit, words)))
        assert numbers >= 3 or label in ("ERR:", "MIS:", "Err:"), line
    assert (0, 1, 3) == parse_interrupts(m.fs.read("/proc/interrupts")).cpus
    lines = [line.split()[0] for line in m.fs.read("/proc/stat").decode().splitlines()]
    assert ["cpu", "cpu0", "cpu1", "cpu3", "intr"] == lines[:5]
    assert before == {path: m.fs.read(path) for path in before}
    assert 4 == len(before[f"/sys/kernel/irq/{irq}/per_cpu_count"].split(b","))


def test_the_time_that_a_cpu_is_away_is_no_idle_time() -> None:
    """/proc/stat: the idle time that it had stays in the sum, which never falls, and goes on where it was."""
    m = Machine(2)

    def idle() -> list[int]:
        lines = m.fs.read("/proc/stat").decode().splitlines()
        return [int(line.split()[4]) for line in lines if line.startswith("cpu")]

    second = 10_000_000
    m.clock.advance_to(10 * second)
    m.offline_cpu(1)
    assert [2000, 1000] == idle()
    m.clock.advance_to(30 * second)
    assert [4000, 3000] == idle()
    m.online_cpu(1)
    assert [4000, 3000, 1000] == idle()
    m.clock.advance_to(35 * second)
    m.offline_cpu(1)
    m.clock.advance_to(36 * second)
    m.online_cpu(1)
    m.clock.advance_to(40 * second)
    assert [5900, 4000, 1900] == idle()


def test_a_cpu_that_never_came_has_no_time() -> None:
    """Announced, not present."""
    m = machine(cpus="possible = 4\ncpus.present = 3")
    m.clock.advance_to(10_000_000)
    assert [10_000_000] * 3 + [0] == [m.online_ticks(cpu) for cpu in range(4)]


# ---- timers


@pytest.mark.parametrize("mode", ["direct", "message", "lapic"])
def test_the_timer_of_a_cpu_stops_when_it_goes_and_is_set_up_when_it_comes(mode: str) -> None:
    """hv_stimer_cleanup and hv_stimer_init: what was due does not come; in message mode the SynIC goes off after it."""
    m = Machine(4, timers=mode)
    m.boot()
    vcpu = m.vcpus[2]
    config = vcpu.rdmsr(Msr.STIMER0_CONFIG) if mode != "lapic" else 0
    assert (mode != "lapic") == bool(config)
    heard: list[int] = []
    m.clockevents.on_event.append(heard.append)
    for cpu in (1, 2):
        m.clockevents.set_next_event(cpu, 10_000)
    m.offline_cpu(2)
    if mode != "lapic":
        assert (0, 0) == (vcpu.rdmsr(Msr.STIMER0_CONFIG), vcpu.rdmsr(Msr.STIMER0_COUNT))
    refused(errno.EINVAL, m.clockevents.set_next_event, 2, 10_000)
    refused(errno.EINVAL, m.clockevents.tick, 2, 1, m.now, m.now + 10)
    assert b"" == m.fs.read("/sys/devices/system/clockevents/clockevent2/current_device")
    pass_ms(m, 10)
    assert [1] == heard
    m.online_cpu(2)
    pass_ms(m, 10)
    assert [1] == heard
    assert config == (vcpu.rdmsr(Msr.STIMER0_CONFIG) if mode != "lapic" else 0)
    m.clockevents.set_next_event(2, 10_000)
    pass_ms(m, 10)
    assert [1, 2] == heard


@pytest.mark.parametrize("mode", ["direct", "message", "lapic"])
def test_a_refused_offline_leaves_the_timer_running(mode: str) -> None:
    """hv_synic_cleanup stops it after its checks only."""
    m = machine(timers=mode)
    m.boot()
    m.vmbus.target_cpu_store(m.vmbus.channels[1], b"2")
    heard: list[int] = []
    m.clockevents.on_event.append(heard.append)
    m.clockevents.set_next_event(2, 10_000)
    refused(errno.EBUSY, m.offline_cpu, 2)
    pass_ms(m, 10)
    assert [2] == heard


def test_a_cpu_that_comes_after_boot_gets_its_timer() -> None:
    """One that was offline when the others got theirs."""
    m = Machine(4)
    m.offline_cpu(3)
    m.boot()
    assert 0 == m.vcpus[3].rdmsr(Msr.STIMER0_CONFIG)
    m.online_cpu(3)
    assert m.vcpus[1].rdmsr(Msr.STIMER0_CONFIG) == m.vcpus[3].rdmsr(Msr.STIMER0_CONFIG) != 0


def test_the_interrupt_after_a_migration_goes_to_another_cpu() -> None:
    """hv_cpu_die: REENLIGHTENMENT_CONTROL names the first other CPU that is online (synic.md 13)."""
    m = Machine(4)
    m.boot()
    heard: list[int] = []
    m.clockevents.on_tsc_change.append(heard.append)
    m.clockevents.set_tsc_change_callback(2)
    m.offline_cpu(3)
    assert 2 == m.vcpus[0].rdmsr(Msr.REENLIGHTENMENT_CONTROL) >> 32
    m.offline_cpu(2)
    assert 0 == m.vcpus[0].rdmsr(Msr.REENLIGHTENMENT_CONTROL) >> 32
    m.partition.refclock.migrate(3_000_000_000)
    pass_ms(m, 200)
    assert [3_000_000_000] == heard
    (row,) = [row for row in parse_interrupts(m.fs.read("/proc/interrupts")).rows if row.label == "HRE"]
    assert [1, 0] == list(row.counts)


# ---- check 14, and who is asked in which order


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("design", ["legacy", "rfc", "mgmt-irq-hidden"])
def test_check_14_a_cpu_with_a_channel_stays_and_nothing_has_changed(engine: str, design: str) -> None:
    """-EBUSY, synic_online restored, machine unchanged."""
    m = machine(engine=engine, design=design)
    m.vmbus.target_cpu_store(m.vmbus.channels[1], b"2")
    m.settle()
    before = footprint(m), m.fs.read("/proc/interrupts"), m.now, str(m.log), dict(m.vmbus.messages_received)
    assert "channels 1 " in refused(errno.EBUSY, m.fs.write, f"{CPU}/cpu2/online", "0")
    assert before == (footprint(m), m.fs.read("/proc/interrupts"), m.now, str(m.log), dict(m.vmbus.messages_received))
    assert (0xF, 0xF, 0xF) == (m.online_mask, m.vmbus.synics_on, m.vmbus.retarget.synic_online)
    m.host.send(1)
    m.settle()
    assert 0 == unread(m)


def line_on(m: Machine, cpu: int) -> Any:
    """Request an IRQ of no bus, on a CPU."""

    def set_affinity(desc: Any, mask: int, force: bool) -> int:
        desc.update_effective_affinity(mask & -mask)
        return IRQ_SET_MASK_OK

    irq = m.irq.alloc_descs()
    m.irq.set_chip_and_handler(irq, IrqChip("PCI-MSI", irq_set_affinity=set_affinity, irq_ack=nop), Flow.EDGE)
    m.irq.modify_status(irq, set_=IRQ_MOVE_PCNTXT)
    m.irq.request_irq(irq, lambda irq, dev_id: IRQ_HANDLED, 0, "nvme0q0", None)
    m.irq.irq_set_affinity(irq, 1 << cpu)
    return m.irq.irq_to_desc(irq)


def test_vmbus_is_asked_before_genirq_moves_anything() -> None:
    """cpuhp: hyperv/vmbus:online goes down long before stop_machine; a refusal leaves ordinary IRQs alone, too."""
    m = machine()
    move(m, 2)
    m.settle()
    line = line_on(m, 2)
    refused(errno.EBUSY, m.offline_cpu, 2)
    assert (0b0100, 0b0100) == (line.affinity, line.effective_affinity)
    move(m, 1)
    m.settle()  # so that it need not wait for the host
    points = [step.point for step in m.hotplug.down(2)]
    order = [
        "cpu_hotplug_lock",
        "channel_mutex",
        "has searched",
        "SynIC off",
        "left the online mask",
        f"irq {line.irq}",
    ]
    found = [next(at for at, point in enumerate(points) if what in point) for what in order]
    assert sorted(found) == found
    assert (0b1011, 0b0001) == (line.affinity, line.effective_affinity)
    assert f"IRQ {line.irq}: no longer affine to CPU2" == m.log.texts()[-1]
    channel = m.irq.irq_to_desc(m.vmbus.channels[1].irq)
    assert (0b0010, 0b0010) == (channel.affinity, channel.effective_affinity)


def test_on_the_way_up_the_online_mask_comes_before_the_synic() -> None:
    """RFC 12: in between the CPU is online and no channel may go there; without it one may, and is lost."""
    for design in (RFC, NEITHER):
        m = machine(design=design)
        m.offline_cpu(2)
        schedule = Schedule(m.partition.idle)
        up = schedule.begin(m.hotplug.up(2)).to("its SynIC is still off")
        assert ["CPU0", "CPU1", "CPU2", "CPU3"] == columns(m)
        if design is RFC:
            refused(errno.EINVAL, move, m, 2)
        else:
            move(m, 2)
        m.host.send(1)
        up.finish()
        m.settle()
        assert (unread(m) == 0) == (design is RFC)


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_what_was_torn_down_comes_back_when_the_cpu_stays_after_all(design: str) -> None:
    """Cpuhp undoes what it did: a handler's error ends the offline when the SynIC is off already."""
    m = machine(design=design, timers="message")
    m.boot()
    m.vmbus.target_cpu_store(m.vmbus.channels[1], b"1")
    m.settle()
    before = footprint(m), m.vcpus[2].rdmsr(Msr.STIMER0_CONFIG)
    offline = m.hotplug.down(2)
    assert any("takes what was raised" in step.point for step in offline)
    assert 0b1011 == m.vmbus.synics_on
    offline.throw(RuntimeError("a handler"))
    with pytest.raises(RuntimeError, match="a handler"):
        list(offline)
    assert (0xF, 0xF, 0xF) == (m.online_mask, m.vmbus.synics_on, m.vmbus.retarget.synic_online)
    assert before == (footprint(m), m.vcpus[2].rdmsr(Msr.STIMER0_CONFIG))
    m.vmbus.target_cpu_store(m.vmbus.channels[1], b"2")
    m.settle()
    m.host.send(1)
    m.settle()
    assert 0 == unread(m)


def test_a_chip_that_fails_keeps_no_other_irq_on_the_cpu() -> None:
    """stop_machine cannot be undone: all others leave, the CPU is offline, and the caller hears of it."""
    m = machine()
    first, second = line_on(m, 2), line_on(m, 2)
    chip = first.chip

    def fails(desc: Any, mask: int, force: bool) -> int:
        raise RuntimeError("chip")

    m.irq.set_chip_and_handler(first.irq, replace(chip, irq_set_affinity=fails), Flow.EDGE)
    with pytest.raises(RuntimeError, match="chip"):
        m.offline_cpu(2)
    assert 0b1011 == m.online_mask
    assert (0b0001, 0b0100) == (second.effective_affinity, first.effective_affinity)
    m.irq.set_chip_and_handler(first.irq, chip, Flow.EDGE)
    m.online_cpu(2)
    assert 0xF == m.vmbus.synics_on


def test_ordinary_irqs_that_leave_are_told_ten_times_in_five_seconds() -> None:
    """pr_debug_ratelimited: of twelve, ten; the rest is counted when the window is over."""
    m = machine()
    lines = [line_on(m, 2) for _ in range(12)]
    m.offline_cpu(2)
    told = [f"IRQ {line.irq}: no longer affine to CPU2" for line in lines[:10]]
    assert told == [text for text in m.log.texts() if "affine" in text]
    m.clock.advance(50_000_001)
    m.irq.irq_set_affinity(lines[0].irq, 0b1000)
    m.offline_cpu(3)
    missed = "irq_migrate_all_off_this_cpu: 2 callbacks suppressed"
    assert [missed, f"IRQ {lines[0].irq}: no longer affine to CPU3"] == m.log.texts()[-2:]


def test_io_apic_lines_of_a_scenario_leave_too() -> None:
    """Affinity broken for good: all CPUs that were online then."""
    m = Machine.load("rfc-gen2-8vcpu")
    m.boot()
    line = m.scenario.irqs[0]
    m.fs.write(f"/proc/irq/{line.irq}/smp_affinity_list", "7")
    m.irq.irq_move_irq(line.irq)
    for relid, channel in m.vmbus.channels.items():
        if channel.target_cpu == 7:
            m.vmbus.target_cpu_store(m.vmbus.channels[relid], b"0")
    m.settle()
    m.offline_cpu(7)
    assert f"IRQ {line.irq}: no longer affine to CPU7" in m.log.texts()
    assert (b"7f\n", b"0\n") == (
        m.fs.read(f"/proc/irq/{line.irq}/smp_affinity"),
        m.fs.read(f"/proc/irq/{line.irq}/effective_affinity_list"),
    )
    m.online_cpu(7)
    assert b"0-6\n" == m.fs.read(f"/proc/irq/{line.irq}/smp_affinity_list")


def test_sub_channels_are_spread_over_the_cpus_that_are_online() -> None:
    """init_vp_index knows online CPUs only."""
    m = Machine(4)
    m.offline_cpu(2)
    m.attach("netvsc", relid=1)
    for sub in (1, 2, 3):
        m.attach("netvsc", relid=1 + sub, device="netvsc-1", sub=sub)
    assert [0, 1, 3, 0] == [channel.target_cpu for channel in m.vmbus.channels.values()]


def test_before_the_series_a_writer_keeps_cpus_from_going() -> None:
    """vmbus.md 4.2, row 12: the cpu file holds cpus_read_lock, so that a CPU cannot go while a channel moves there."""
    m = machine(late_us=5000, design="legacy")
    schedule = Schedule(m.partition.idle)
    writer = schedule.begin(m.vmbus.target_cpu_store_steps(m.vmbus.channels[1], b"2")).to("wait for MODIFYCHANNEL")
    offline = schedule.begin(m.hotplug.down(2))
    with pytest.raises(Blocked, match="cpu_hotplug_lock"):
        offline.finish()
    writer.finish()
    with pytest.raises(IrqError, match="EBUSY"):
        offline.finish()
    m.host.send(1)
    m.settle()
    assert 0 == unread(m)


def test_a_machine_takes_a_design_of_ones_own() -> None:
    """A record, for what no name has."""
    assert "rfc without patches 11 and 12" == machine(design=NEITHER).design.name
    refused(errno.EINVAL, lambda: Machine(2, design="rfc without patches 11 and 12"))


def test_a_host_has_carried_out_what_was_due_before_it_reads_on() -> None:
    """Time that passes in one leap changes no order: a move that was due is over when the next one is posted."""
    m = machine(15_000)
    for cpu in (2, 1):
        move(m, cpu)
        m.settle()
        m.clock.advance(200_000)
    m.settle()
    assert (1, 2, 2) == (
        m.host.channels[1].target_vp,
        m.vmbus.retarget.modchan_sent,
        m.vmbus.retarget.modchan_completed,
    )


# ---- check 15 with the real host


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("version", ["4.1", "5.2", "5.3"])
@pytest.mark.parametrize("fixed", [True, False])
def test_check_15_race_a_with_the_host(engine: str, version: str, fixed: bool) -> None:
    """The flag of a device that signals a CPU whose SynIC has gone is lost; the host keeps it nowhere."""
    m = machine(15_000, version, design=RFC if fixed else NEITHER, engine=engine)
    move(m, 2)
    pass_ms(m, 20)
    move(m, 1)
    m.offline_cpu(2)
    sent = m.host.channels[1]
    m.host.send(1)
    m.settle()
    assert (0 if fixed else 1, 1 if fixed else 2) == (sent.stats.dropped_signals, sent.target_vp)
    assert (unread(m) == 0) == fixed
    pass_ms(m, 100)
    m.host.send(1)
    pass_ms(m, 100)
    assert 1 == sent.target_vp
    assert (0 if fixed else 1) == sent.stats.dropped_signals  # the ring was not empty, so it has not signalled again
    assert (unread(m) == 0) == fixed
    m.online_cpu(2)
    m.settle()
    assert (unread(m) == 0) == fixed


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("version", ["4.1", "5.2", "5.3"])
@pytest.mark.parametrize("fixed", [True, False])
def test_check_15_race_b_with_the_host(engine: str, version: str, fixed: bool) -> None:
    """Genirq moves the channel once more, off the CPU that goes, and that does not bring the lost flag back."""
    m = machine(0, version, design=RFC if fixed else NEITHER, engine=engine)
    move(m, 1)
    m.settle()
    irq = m.vmbus.channels[1].irq
    schedule = Schedule(m.partition.idle)
    offline = schedule.begin(m.hotplug.down(2)).to("has searched")
    setter = schedule.begin(m.irq.irq_set_affinity_steps(irq, 1 << 2))
    if fixed:
        assert "SynIC" in refused(errno.EINVAL, setter.finish)
    else:
        setter.finish()
    offline.to("takes what was raised")  # the SynIC is off
    m.host.send(1)
    m.settle()
    assert (0 if fixed else 1) == m.host.channels[1].stats.dropped_signals
    offline.finish()
    m.settle()
    m.host.send(1)
    pass_ms(m, 100)
    assert (unread(m) == 0) == fixed
    desc = m.irq.irq_to_desc(irq)
    assert (0b0010 if fixed else 0b1011) == desc.affinity
    assert m.host.channels[1].target_vp == m.vmbus.channels[1].target_cpu != 2
    broken = [text for text in m.log.texts() if "no longer affine" in text]
    assert ([] if fixed else [f"IRQ {irq}: no longer affine to CPU2"]) == broken


@pytest.mark.parametrize("posted", [True, False])
def test_check_15_race_b_the_other_way_round(posted: bool) -> None:
    """A move that is there first keeps its CPU: EBUSY, whether the search meets the lock or the new target."""
    m = machine()
    schedule = Schedule(m.partition.idle)
    setter = schedule.begin(m.irq.irq_set_affinity_steps(m.vmbus.channels[1].irq, 1 << 2))
    setter.to("is posted") if posted else setter.finish()
    offline = schedule.begin(m.hotplug.down(2))
    if posted:
        with pytest.raises(Blocked, match="set_affinity_lock"):
            offline.finish()
        setter.finish()
    refused(errno.EBUSY, offline.finish)
    assert (0xF, 0xF) == (m.online_mask, m.vmbus.retarget.synic_online)
    m.settle()
    m.host.send(1)
    m.settle()
    assert 0 == unread(m)
