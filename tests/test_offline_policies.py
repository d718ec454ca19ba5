"""CPUs with channels that go offline, on a whole machine: what the files say after it, policy by policy."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.footprint import footprint, ledger
from tests.test_cpu_hotplug import CPU, columns, machine, pass_ms, refused
from vmbusirq import DESIGNS, Machine, parse_interrupts
from vmbusirq.designs import OfflinePolicy
from vmbusirq.generations import X86_ROWS
from vmbusirq.scenario.schema import parse_scenario
from vmbusirq.steps import run
from vmbusirq.vmbus.channel import Channel

ENGINES = ("fast", "linux")
MOVING = [name for name, design in DESIGNS.items() if design.offline_policy is not OfflinePolicy.REFUSE]


def cpu_file(m: Machine, relid: int) -> str:
    channel = m.vmbus.channels[relid]
    assert channel.device is not None
    return f"/sys/bus/vmbus/devices/{channel.device.guid}/channels/{relid}/cpu"


def mapping(m: Machine, relid: int) -> list[str]:
    channel = m.vmbus.channels[relid]
    assert channel.device is not None
    return m.fs.read(f"/sys/bus/vmbus/devices/{channel.device.guid}/channel_vp_mapping").decode().split()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("design", MOVING)
def test_every_file_follows(design: str, engine: str) -> None:
    """/proc/irq, the cpu file, channel_vp_mapping and the counters; data goes on, before, meanwhile and after."""
    with ledger() as books:
        m = machine(late_us=2000, design=design, engine=engine)
        channel = m.vmbus.channels[1]
        m.fs.write(cpu_file(m, 1), "2")
        pass_ms(m, 10)
        m.host.send(1, packets=3)
        m.fs.write(f"{CPU}/cpu2/online", "0")
        assert ["CPU0", "CPU1", "CPU3"] == columns(m)
        pass_ms(m, 2000)
        cpu = channel.target_cpu
        assert 2 != cpu
        assert f"{cpu}\n".encode() == m.fs.read(cpu_file(m, 1))
        assert [f"1:{cpu}"] == mapping(m, 1)
        assert cpu == m.host.channels[1].target_vp
        if channel.irq:
            said = m.fs.read(f"/proc/irq/{channel.irq}/effective_affinity_list").decode()
            assert said in (f"{cpu}\n", "0-1,3\n")  # all of the mask where interrupts are redirected
            assert b"0-1,3\n" == m.fs.read(f"/proc/irq/{channel.irq}/smp_affinity_list")
            assert f"IRQ {channel.irq}: no longer affine to CPU2" in str(m.log)
        before = channel.stats.interrupts
        m.host.send(1)
        m.settle()
        assert 1 == channel.stats.interrupts - before
        if channel.irq:
            assert channel.stats.interrupts == sum(m.irq.counts[channel.irq].tolist())
        assert books.sent() == books.read(m)


@pytest.mark.parametrize("design", MOVING)
def test_a_cpu_that_comes_back_can_be_used_again(design: str) -> None:
    """Nothing moves by itself; the footprint is what it was."""
    m = machine(design=design)
    before = footprint(m)
    for _ in range(2):
        m.fs.write(cpu_file(m, 1), "2")
        pass_ms(m, 5)
        m.offline_cpu(2)
        pass_ms(m, 2000)
        cpu = m.vmbus.channels[1].target_cpu
        m.online_cpu(2)
        pass_ms(m, 5)
        assert cpu == m.vmbus.channels[1].target_cpu != 2
    assert before == footprint(m)


@pytest.mark.parametrize("version", ["4.0", "4.1", "5.2", "5.3"])
@pytest.mark.parametrize("design", MOVING)
def test_from_which_protocol_version_on(design: str, version: str) -> None:
    """Mainline's policy 5.3, the others 4.1: below the CPU stays, and everything is as it was."""
    m = machine(version=version, design=design)
    channel = m.vmbus.channels[1]
    if version == "4.0":
        m.offline_cpu(3)  # nobody can have moved it there
        assert (0, 0b0111) == (channel.target_cpu, m.online_mask)
        return
    m.fs.write(cpu_file(m, 1), "2")
    pass_ms(m, 5)
    if DESIGNS[design].offline_policy is OfflinePolicy.MAINLINE and version != "5.3":
        before = footprint(m), m.fs.read("/proc/interrupts"), m.now
        refused(errno.EBUSY, m.fs.write, f"{CPU}/cpu2/online", "0")
        assert before == (footprint(m), m.fs.read("/proc/interrupts"), m.now)
        return
    m.offline_cpu(2)
    assert channel.target_cpu != 2


@pytest.mark.parametrize("design", MOVING)
def test_all_but_one_cpu_go_one_after_the_other_and_come_back(design: str) -> None:
    """Twelve channels end on CPU 0 and are all served."""
    with ledger() as books:
        m = Machine(8, design=design, seed=3)
        for relid in range(1, 13):
            m.attach("netvsc" if relid % 2 else "scsi", relid)
        for cpu in (5, 1, 7, 2, 3, 6, 4):
            m.offline_cpu(cpu)
            pass_ms(m, 1)
        pass_ms(m, 2000)
        assert {0} == {channel.target_cpu for channel in m.vmbus.channels.values()}
        assert {0} == {channel.target_vp for channel in m.host.channels.values()}
        for relid in range(1, 13):
            m.host.send(relid, packets=2)
        m.settle()
        assert books.sent() == books.read(m)
        for cpu in range(1, 8):
            m.online_cpu(cpu)
        assert 0xFF == m.online_mask == m.vmbus.synics_on


# ---- what fails late leaves no trace


STOPS = "takes what was raised before stop_machine"


def whereabouts(m: Machine) -> dict[str, Any]:
    """What an offline that fails leaves as it was."""
    retarget = m.vmbus.retarget
    return {
        "footprint": footprint(m),
        "online": (m.online_mask, m.vmbus.synics_on, retarget.synic_online),
        "targets": {relid: channel.target_cpu for relid, channel in m.vmbus.channels.items()},
        "host": {relid: channel.target_vp for relid, channel in m.host.channels.items()},
        "affinity": {irq: (desc.affinity, desc.effective_affinity) for irq, desc in m.irq.descs.items()},
        "allocated": list(m.vmbus.manager.assignment.allocated),
    }


def throw_at(m: Machine, point: str) -> None:
    """Take CPU 2 offline up to a step, and let a handler fail there."""
    offline = m.hotplug.down(2)
    for step in offline:
        while step.ready is not None and point not in step.point and not step.ready():
            m.partition.idle(step)
        if point in step.point:
            break
    offline.throw(RuntimeError("a handler"))
    with pytest.raises(RuntimeError, match="a handler"):
        run(offline, m.partition.idle)


def on_cpu_2(design: str, late_us: int = 0) -> Machine:
    """Two disks on CPU 2, one of them allowed on CPU 3 as well."""
    m = machine(late_us=late_us, design=design)
    m.attach("scsi", relid=2)
    for relid in (1, 2):
        m.fs.write(cpu_file(m, relid), "2")
        pass_ms(m, 100)
    if irq := m.vmbus.channels[2].irq:
        m.fs.write(f"/proc/irq/{irq}/smp_affinity_list", "2-3")
    return m


@pytest.mark.parametrize("design", MOVING)
def test_what_fails_when_the_synic_is_off_already_brings_channels_back(design: str) -> None:
    """What was torn down comes back (cpuhp_reset_state), and so does what was moved before it."""
    with ledger() as books:
        m = on_cpu_2(design)
        before = whereabouts(m)
        throw_at(m, STOPS)
        pass_ms(m, 100)
        assert before == whereabouts(m)
        for relid in (1, 2):
            m.host.send(relid)
        m.settle()
        assert books.sent() == books.read(m)
        pass_ms(m, 2000)
        m.fs.write(f"{CPU}/cpu2/online", "0")
        assert 0b1011 == m.online_mask


@pytest.mark.parametrize("version", ["5.2", "5.3"])
def test_a_signal_that_was_lost_before_it_failed_is_made_good(version: str) -> None:
    """A hand-over loses nothing, even one that is called off before the host has followed."""
    with ledger() as books:
        m = machine(late_us=60_000, version=version, design="rfc-handover")
        m.fs.write(cpu_file(m, 1), "2")
        pass_ms(m, 100)
        offline = m.hotplug.down(2)
        while STOPS not in (step := next(offline)).point:
            while step.ready is not None and not step.ready():
                m.partition.idle(step)
        m.settle()  # the poke with which it went is over
        assert 0 == m.vmbus.synics_on >> 2 & 1
        m.host.send(1)
        assert 1 == m.host.channels[1].stats.dropped_signals
        offline.throw(RuntimeError("a handler"))
        with pytest.raises(RuntimeError, match="a handler"):
            run(offline, m.partition.idle)
        m.settle()
        assert books.sent() == books.read(m)
        pass_ms(m, 300)
        m.host.send(1)
        m.settle()
        assert books.sent() == books.read(m)


def test_a_poke_that_raises_keeps_the_cpu_online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SynIC is off by then: it is switched on again, and channels go back."""
    m = on_cpu_2("rfc-handover")
    before = whereabouts(m)
    with monkeypatch.context() as patch:

        def fails(channel: Channel) -> bool:
            raise RuntimeError(f"poke {channel.relid}")

        patch.setattr(m.vmbus.retarget, "poke", fails)
        with pytest.raises(RuntimeError, match="poke 1"):
            m.offline_cpu(2)
    pass_ms(m, 2000)
    assert before == whereabouts(m)


# ---- redirection: the table adds up


def total(m: Machine) -> int:
    line = next(line for line in m.fs.read("/proc/stat").splitlines() if line.startswith(b"intr "))
    return int(line.split()[1])


def table(m: Machine) -> dict[str, list[int]]:
    rows = parse_interrupts(m.fs.read("/proc/interrupts")).rows
    return {row.label: list(row.counts) for row in rows}


def moves_late(engine: str) -> Machine:
    """A disk that is moved half-way, by a host that does not follow before the end."""
    text = """
duration_s = 100
cpus.possible = 4
platform.rows = ["NMI"]
[host]
modify_delay_us = 900_000_000
[[device]]
class = "scsi"
name = "disk"
[[channel]]
device = "disk"
relid = 1
interrupts = 2000
[[event]]
at_s = 50
action = "affinity"
relid = 1
cpus = "3"
"""
    return Machine.load(parse_scenario(text, "late"), design="redirect", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_works_are_counted_as_iwi_and_the_table_adds_up(engine: str) -> None:
    """Each event that is sent for has an IWI on the target; the row is shown, and part of the total."""
    m = moves_late(engine)
    m.run()
    rows, irq = table(m), str(m.vmbus.channels[1].irq)
    assert 2000 == sum(rows[irq])
    assert rows[irq][3] == rows["IWI"][3] == sum(rows["IWI"]) > 800
    in_total = {row.label for row in X86_ROWS if row.in_total}
    assert sum(sum(counts) for label, counts in rows.items() if label.isdigit() or label in in_total) == total(m)
    assert 3 == m.vmbus.channels[1].target_cpu


def test_redirecting_counts_the_same_in_both_engines() -> None:
    """One thread, one order: every file is equal."""
    texts: list[Any] = []
    for engine in ENGINES:
        m = moves_late(engine)
        m.run()
        texts.append([m.fs.read(f"/proc/{name}") for name in ("interrupts", "stat", "softirqs")])
    assert texts[0] == texts[1]
