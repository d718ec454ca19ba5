"""The guest's ticks: one by one through stimer0's registers, and in bulk (synic.md 11.4, 13; rows 121 to 124 of 16)."""

from __future__ import annotations

import errno

import pytest

from vmbusirq import Machine
from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.registers import Msr
from vmbusirq.scenario.schema import ScenarioError, parse_scenario

DEFAULT_TICKS = 183391 + 109695 + 128814 + 117203 + 142377 + 121960 + 181539 + 339239


def rows(machine: Machine) -> dict[str, int]:
    """Return the sum over the CPUs of each row that has no number."""
    found = {}
    for line in machine.fs.read("/proc/interrupts").decode().splitlines()[1:]:
        label, _, rest = line.strip().partition(":")
        if not label.isdigit():
            found[label] = sum(int(word) for word in rest.split() if word.isdigit())
    return found


def ticking(mode: str, cpus: int = 2, design: str = "rfc", **options: object) -> Machine:
    machine = Machine(cpus, design=design, timers=mode, **options)  # type: ignore[arg-type]
    machine.connect()
    return machine


def tick_fifty(machine: Machine, cpu: int = 1) -> None:
    """Set the next event in each event, as Linux does."""
    left = 50

    def event(of: int) -> None:
        nonlocal left
        assert cpu == of
        left -= 1
        if left:
            machine.clockevents.set_next_event(cpu, 10_000)

    machine.clockevents.on_event.append(event)
    machine.clockevents.set_next_event(cpu, 10_000)
    while machine.clock.next_due is not None and left:
        machine.clock.advance_to_next()
        machine.settle()
    assert 0 == left


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_synic_121_fifty_ticks_by_message_are_fifty_of_hyp(design: str) -> None:
    """A timer message is a message: both designs count it; there is no HVS row."""
    machine = ticking("message", design=design)
    before = rows(machine)
    tick_fifty(machine)
    after = rows(machine)
    assert (50, False) == (after["HYP"] - before["HYP"], "HVS" in after)
    assert 50 == lib.vi_synic_stimer_count(machine.core.handle, 1)


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_synic_122_fifty_ticks_in_direct_mode_are_fifty_of_hvs(design: str) -> None:
    """A vector of its own; HYP is the same as before."""
    machine = ticking("direct", design=design)
    before = rows(machine)
    tick_fifty(machine)
    after = rows(machine)
    assert (50, 0) == (after["HVS"] - before["HVS"], after["HYP"] - before["HYP"])


def test_ticks_of_the_apics_timer_are_loc() -> None:
    """Where there is no stimer."""
    machine = ticking("lapic")
    tick_fifty(machine)
    assert (50, False) == (rows(machine)["LOC"], "HVS" in rows(machine))


@pytest.mark.parametrize(("mode", "shown"), [("direct", True), ("message", False), ("lapic", False)])
def test_synic_123_the_hvs_row_is_there_with_direct_mode_alone(mode: str, shown: bool) -> None:
    """The vector is claimed if CPUID offers it; the other rows stay in their order."""
    labels = list(rows(Machine(2, timers=mode)))
    assert shown == ("HVS" in labels)
    assert labels.index("HRE") == labels.index("HYP") + 1


def test_synic_124_arm64_has_none_of_those_rows() -> None:
    """One per-CPU IRQ "Hyper-V VMbus" serves the bus; the ticks are the architected timer's."""
    machine = Machine.load("arm64-8vcpu")
    machine.run()
    text = machine.fs.read("/proc/interrupts").decode()
    assert 1 == text.count("Hyper-V VMbus")
    assert not {"HYP", "HVS", "HRE", "LOC"} & set(rows(machine))
    assert "arch" == machine.clockevents.mode
    for call in (lambda: machine.clockevents.set_next_event(0, 5), lambda: machine.clockevents.tick(0, 1, 0, 1)):
        with pytest.raises(IrqError) as error:
            call()
        assert errno.EINVAL == error.value.errno


@pytest.mark.parametrize(("mode", "config"), [("direct", 0x1ED9), ("message", 0x20009)])
def test_linux_uses_timer_0_alone_one_shot_and_auto_enabled(mode: str, config: int) -> None:
    """hv_ce_set_oneshot and hv_ce_set_next_event: the values of synic.md 2.2."""
    machine = ticking(mode)
    machine.clockevents.set_next_event(0, 10_000)
    vcpu = machine.vcpus[0]
    assert config == vcpu.rdmsr(Msr.STIMER0_CONFIG)
    assert machine.clocksources.reference_time() + 10_000 == vcpu.rdmsr(Msr.STIMER0_COUNT)
    assert [0, 0, 0] == [vcpu.rdmsr(Msr.STIMER0_CONFIG + 2 * timer) for timer in (1, 2, 3)]
    machine.clockevents.shutdown(0)
    machine.clock.advance(100_000)
    machine.settle()
    assert (0, 0) == (vcpu.rdmsr(Msr.STIMER0_CONFIG), rows(machine).get("HVS", 0))


@pytest.mark.parametrize("delta", [0, -1, 1 << 32])
@pytest.mark.parametrize("mode", ["direct", "lapic"])
def test_deltas_outside_the_devices_range(mode: str, delta: int) -> None:
    """1 to 0xFFFFFFFF ticks (clockevents_config_and_register)."""
    with pytest.raises(IrqError) as error:
        ticking(mode).clockevents.set_next_event(0, delta)
    assert errno.EINVAL == error.value.errno


def test_a_host_that_moves_the_guest_raises_hre_once() -> None:
    """The handler defers its work by HZ/10, ends the emulation, and reads the new frequency."""
    machine = ticking("direct")
    heard: list[int] = []
    machine.clockevents.on_tsc_change.append(heard.append)
    machine.clockevents.set_tsc_change_callback(1)
    before = machine.clocksources.reference_time()
    machine.partition.refclock.migrate(3_000_000_000)
    machine.settle()
    assert (1, []) == (rows(machine)["HRE"], heard)
    machine.clock.advance(1_000_000)
    assert [3_000_000_000] == heard
    assert machine.clocksources.reference_time() - before in (999_999, 1_000_000)


# ---- in bulk


@pytest.mark.parametrize(("mode", "row"), [("direct", "HVS"), ("message", "HYP"), ("lapic", "LOC")])
@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_a_batch_counts_what_its_ticks_would_have(mode: str, row: str, engine: str) -> None:
    """Also while a control message is in the slot, and while channels interrupt."""
    machine = ticking(mode, engine=engine)
    machine.attach("scsi", relid=3)
    before = rows(machine)
    machine.host.send(relid=3)
    machine.partition.post_to_guest(1, bytes(24))
    machine.clockevents.tick(1, 1000, machine.now, machine.now + 10**7)
    machine.settle()
    assert 1000 + (row == "HYP") == rows(machine)[row] - before[row]
    assert (1000 if mode == "message" else 0) == lib.vi_synic_stimer_count(machine.core.handle, 1)


def test_a_batch_leaves_the_timer_expired() -> None:
    """As the last of its one-shots did."""
    machine = ticking("direct")
    machine.clockevents.start(0)
    machine.clockevents.tick(0, 5, 0, 50)
    vcpu = machine.vcpus[0]
    assert (0x1ED8, 50) == (vcpu.rdmsr(Msr.STIMER0_CONFIG), vcpu.rdmsr(Msr.STIMER0_COUNT))


def test_batches_that_cannot_be() -> None:
    """No such CPU, time that runs backwards, a SynIC that is off: and nothing was counted."""
    machine = ticking("message")
    for cpu, start, end in ((2, 0, 1), (0, 2, 1)):
        with pytest.raises(IrqError) as error:
            machine.clockevents.tick(cpu, 1, start, end)
        assert errno.EINVAL == error.value.errno
    before = rows(machine)
    machine.vcpus[0].wrmsr(Msr.SCONTROL, 0)
    with pytest.raises(IrqError) as error:
        machine.clockevents.tick(0, 5, 0, 10)
    assert (errno.ENXIO, before) == (error.value.errno, rows(machine))


# ---- in a scenario


def test_direct_and_message_mode_differ_by_the_timer_messages() -> None:
    """Design rfc: what HVS loses HYP gains, and no other row or channel changes."""
    direct, message = (Machine.load("rfc-gen2-8vcpu", timers=mode) for mode in ("direct", "message"))
    direct.run()
    message.run()
    by_vector, by_message = rows(direct), rows(message)
    messages = sum(lib.vi_synic_stimer_count(message.core.handle, cpu) for cpu in range(8))
    assert DEFAULT_TICKS == messages == by_vector.pop("HVS") == by_message.pop("HYP") - by_vector.pop("HYP")
    assert by_vector == by_message
    assert (direct.irq.counts == message.irq.counts).all()


@pytest.mark.parametrize("mode", ["direct", "message", "lapic"])
def test_ticks_come_evenly_and_not_while_suspended(mode: str) -> None:
    """A guest that is hibernated has no clock; in all they are what the scenario says."""
    text = f"""
        duration_s = 100
        cpus.possible = 2
        timers = {{ mode = "{mode}", ticks = [600, 60] }}
        event = [{{ at_s = 20, action = "suspend" }}, {{ at_s = 60, action = "resume" }}]
        """
    machine = Machine.load(parse_scenario(text, "ticks"))
    row = {"direct": lib.VI_ROW_HVS, "message": lib.VI_ROW_HYP, "lapic": lib.VI_ROW_LOC}[mode]
    ticks: list[tuple[int, int]] = []
    real = machine.clockevents.tick

    def noted(cpu: int, n: int, start: int, end: int) -> None:
        ticks.append((cpu, n))
        before = machine.core.arch_row(cpu, row)
        real(cpu, n, start, end)
        assert n == machine.core.arch_row(cpu, row) - before

    machine.clockevents.tick = noted  # type: ignore[method-assign]
    machine.run()
    assert [600, 60] == [sum(n for cpu, n in ticks if cpu == of) for of in (0, 1)]
    assert 200 == sum(n for cpu, n in ticks[:-2] if cpu == 0)


@pytest.mark.parametrize("mode", ["direct", "message", "lapic"])
def test_a_cpu_that_is_offline_does_not_tick(mode: str) -> None:
    """Its SynIC is off and so is its timer; the others' ticks come."""
    text = f"""
        duration_s = 10
        cpus.possible = 2
        platform.rows = ["LOC", "HYP", "HVS"]
        timers = {{ mode = "{mode}", ticks = [30, 50] }}
        """
    machine = Machine.load(parse_scenario(text, "ticks"))
    machine.boot()
    machine.offline_cpu(1)
    before = rows(machine)
    machine.run()
    row = {"direct": "HVS", "message": "HYP", "lapic": "LOC"}[mode]
    assert 30 == rows(machine)[row] - before[row]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[timers]\nmode = "hpet"', "timers.mode: no 'hpet'; choose from direct, message, lapic"),
        ("[timers]\nticks = [1, 2, 3, 4, 5]", "timers.ticks: has 5 numbers for 4 CPUs"),
        ("[timers]\nticks = [0, 0, 0, 1]", "timers.ticks: CPUs from 3 on are not present"),
        ("[timers]\ntsc_hz = 10000000", "timers.tsc_hz: 10000000 is out of range"),
        ("[timers]\nrate = 5", "timers.rate: unknown key"),
        ("[timers]\n[presets]\nHVS = [1]", "timers.mode: its ticks are counted in row HVS"),
        ('[timers]\nmode = "lapic"\n[presets]\nLOC = [1]', "timers.mode: its ticks are counted in row LOC"),
    ],
)
def test_timers_that_cannot_be(text: str, what: str) -> None:
    """The message names the place."""
    with pytest.raises(ScenarioError) as error:
        parse_scenario("[cpus]\npossible = 4\npresent = 3\n" + text, "t")
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("text", "mode", "what"),
    [
        ("", "hpet", "no 'hpet'"),
        ('arch = "arm64"', "direct", "architected timer"),
        ("presets.HVS = [1]", "message", "row HVS is a preset"),
        ("presets.LOC = [1]\ntimers.ticks = [1]", "lapic", "row LOC is a preset"),
    ],
)
def test_a_mode_that_a_scenario_cannot_have(text: str, mode: str, what: str) -> None:
    """Ticks that are presets cannot come in another way."""
    scenario = parse_scenario("cpus.possible = 1\n" + text, "t")
    with pytest.raises(ScenarioError) as error:
        Machine.load(scenario, timers=mode)
    assert what in str(error.value)
