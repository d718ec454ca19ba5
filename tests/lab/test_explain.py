"""Explanations are what happened: each design, engine, architecture, callback mode and state, held against counters."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from vmbusirq import Machine
from vmbusirq._ffi import ffi, lib
from vmbusirq.designs import DESIGNS, HypCount
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.registers import Msr
from vmbusirq.lab.explain import STATES, Explanation, explain, prepare
from vmbusirq.lab.trace import Event, tracing

ROOT = Path(__file__).parent.parent.parent
SCENARIOS = {"x86": "rfc-gen2-8vcpu", "arm64": "arm64-8vcpu"}
ENGINES = ("fast", "linux")
SCSI = 14  # BATCHED, on both machines
UTIL = {"x86": 7, "arm64": 2}  # heartbeat: DIRECT, answers
NIC = {"x86": 13, "arm64": 15}  # ISR, NAPI
KINDS = {"batched": {"x86": SCSI, "arm64": SCSI}, "direct": UTIL, "isr": NIC}


def booted(arch: str = "x86", design: str = "rfc", engine: str = "fast") -> Machine:
    machine = Machine.load(SCENARIOS[arch], design=design, engine=engine)
    machine.boot()
    return machine


def changes(explanation: Explanation) -> dict[str, int]:
    """Return name -> by how much, of everything that moved and did not move back."""
    return {item.counter: item.after - item.before for item in explanation.moved}


def functions(explanation: Explanation) -> list[str]:
    """Return the function that reports each step."""
    return [step.places[0].function for step in explanation.steps]


def step_of(explanation: Explanation, function: str):
    """Return the first step that names a function."""
    return next(step for step in explanation.steps if any(place.function == function for place in step.places))


def everything(machine: Machine) -> tuple:
    """Return all counters that files show, and those of the channels."""
    files = ("/proc/interrupts", "/proc/stat", "/proc/softirqs")
    return (
        *(machine.fs.read(path) for path in files),
        {relid: channel.stats for relid, channel in machine.vmbus.channels.items()},
        {relid: channel.stats for relid, channel in machine.host.channels.items()},
        machine.core.lost(),
    )


def row_of_irq(machine: Machine, irq: int, cpu: int) -> int:
    return int(machine.irq.counts[irq, cpu]) if irq else 0


# ---- what is said is what moved


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", SCENARIOS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("design", DESIGNS)
def test_what_is_counted_is_what_the_design_counts(design: str, engine: str, arch: str, kind: str) -> None:
    """design.md 6, vmbus.md 3.3: who adds to what for one channel interrupt, against the machine's own counters."""
    machine = booted(arch, design, engine)
    record = DESIGNS[design]
    relid = KINDS[kind][arch]
    channel = machine.vmbus.channels[relid]
    cpu = channel.target_cpu
    ppi = machine.platform.vmbus_ppi

    def look() -> list[int]:
        irqs_sum = int(machine.core.counters.irqs_sum[cpu * lib.VI_IRQS_SUM_STRIDE])
        top = machine.core.arch_row(cpu, lib.VI_ROW_HYP) if arch == "x86" else row_of_irq(machine, ppi, cpu)
        stats = channel.stats
        return [row_of_irq(machine, channel.irq, cpu), irqs_sum, top, stats.interrupts, stats.packets]

    before = look()
    explanation = explain(machine, relid)
    moved = [after - now for now, after in zip(before, look(), strict=True)]
    said = changes(explanation)
    top = f"HYP on CPU {cpu}" if arch == "x86" else f"IRQ {ppi} (PPI) cnt on CPU {cpu}"
    names = [
        f"IRQ {channel.irq} cnt on CPU {cpu}",
        f"irqs_sum on CPU {cpu}",
        top,
        "channel interrupts",
        "channel packets",
    ]
    assert moved == [said.get(name, 0) for name in names]

    if arch == "x86":
        tops, top_in_sum = int(record.hyp_count == HypCount.ALWAYS), 0
    else:
        tops = int(record.toplevel_flow == lib.VI_FLOW_PERCPU_DEVID or (design == "mgmt-irq-nostat"))
        top_in_sum = int(record.toplevel_flow == lib.VI_FLOW_PERCPU_DEVID)
    own = int(record.channel_irqs)
    assert [own, own + top_in_sum, tops, 1, 1] == moved


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("arch", SCENARIOS)
def test_a_traced_machine_counts_what_an_untraced_one_counts(arch: str, design: str, engine: str, kind: str) -> None:
    """The twins of the hot functions do what these do: every file and counter is the same, and so is what follows."""
    machines = [booted(arch, design, engine) for _ in range(2)]
    relid = KINDS[kind][arch]
    explain(machines[0], relid)
    machines[1].host.send(relid)
    machines[1].settle()
    assert everything(machines[0]) == everything(machines[1])
    for machine in machines:
        machine.host.send(relid, packets=3)
        machine.settle()
    assert everything(machines[0]) == everything(machines[1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_steps_add_up_to_the_whole(design: str, state: str, engine: str) -> None:
    """Each step begins where the one before it ended, so that nothing moves unsaid."""
    machine = booted(design=design, engine=engine)
    prepare(machine, SCSI, state)
    explanation = explain(machine, SCSI)
    values: dict[str, list[int]] = {}
    for number, step in enumerate(explanation.steps, 1):
        assert number == step.number
        for item in step.moved:
            seen = values.setdefault(item.counter, [item.before])
            assert seen[-1] == item.before != item.after
            seen.append(item.after)
    ends = {name: (seen[0], seen[-1]) for name, seen in values.items() if seen[0] != seen[-1]}
    assert ends == {item.counter: (item.before, item.after) for item in explanation.moved}
    assert state == explanation.state


@pytest.mark.parametrize("engine", ENGINES)
def test_a_redirected_interrupt_is_told_on_both_cpus(engine: str) -> None:
    """genirq.md 10: the flag is claimed where the host sets it; a work takes the handler to the target."""
    machine = booted(design="redirect", engine=engine)
    explanation = explain(machine, SCSI, cpu=5)
    channel = machine.vmbus.channels[SCSI]
    steps = explanation.steps
    sent_for = next(
        n for n, step in enumerate(steps) if f"irq_work for it is queued on CPU {channel.target_cpu}" in step.what
    )
    taken = next(n for n, step in enumerate(steps) if "takes the interrupt of an irq_work" in step.what)
    assert sent_for < taken
    assert ("CPU 5, hard interrupt", f"CPU {channel.target_cpu}, hard interrupt") == (
        steps[sent_for].where,
        steps[taken].where,
    )
    ends = {item.counter: item.after - item.before for item in explanation.moved}
    assert 1 == ends[f"IWI on CPU {channel.target_cpu}"] == ends[f"IRQ {channel.irq} cnt on CPU {channel.target_cpu}"]
    assert f"IRQ {channel.irq} cnt on CPU 5" not in ends


def test_every_function_named_is_there() -> None:
    """A path and a name of this project at each step, and each function is defined in the file beside it."""
    seen = set()
    for arch in SCENARIOS:
        for design in DESIGNS:
            for engine in ENGINES:
                machine = booted(arch, design, engine)
                relids = [kind[arch] for kind in KINDS.values()]
                for cpu in (None, 5):
                    for relid in relids:
                        seen |= {place for step in explain(machine, relid, cpu=cpu).steps for place in step.places}
    assert 20 < len(seen)
    for place in seen:
        assert re.search(rf"\b{place.function}\(", (ROOT / place.file).read_text(encoding="utf-8")), place


# ---- the way it goes


def test_the_fast_engine_of_the_rfc() -> None:
    """architecture.md, One interrupt's journey, in order."""
    explanation = explain(booted(), SCSI)
    assert [
        *["vi_vsp_send"] * 3,
        *["vi_synic_signal"] * 2,
        "vi_vsp_signal",
        "vi_vcpu_run",
        "take_vector",
        *["scan_traced"] * 2,
        "run_slot",
        "batched",
        "run_slot",
        "scan_traced",
        "vmbus_isr",
        "take_vector",
        "vi_do_softirq",
        "event_call",
        "drain",
        "event_complete",
        "vi_vcpu_run",
    ] == functions(explanation)
    assert (28, 0, 0, "BATCHED", "idle") == (
        explanation.irq,
        explanation.cpu,
        explanation.target,
        explanation.mode,
        explanation.state,
    )
    where = list(dict.fromkeys(step.where for step in explanation.steps))
    assert ["host", "hypervisor", "CPU 0, hard interrupt", "CPU 0, softirq"] == where
    assert ["in ring interrupt_mask"] == [item.counter for item in step_of(explanation, "batched").moved]
    assert explanation.end.startswith("arrivals: 1; packets read: 1; counted: ")


def test_the_linux_engine_counts_before_the_action() -> None:
    """v6.10: cnt, irqs_sum and tot_count, then IN_PROGRESS, then the handler (genirq.md, handle_simple_irq)."""
    explanation = explain(booted(engine="linux"), SCSI)
    steps = [step for step in explanation.steps if step.places[0].function in ("simple_irq", "arrival")]
    moved = [{item.counter for item in step.moved} for step in steps]
    assert ["simple_irq", "arrival", "simple_irq"] == [step.places[0].function for step in steps]
    assert {"IRQ 28 tot_count", "irqs_sum on CPU 0", "IRQ 28 cnt on CPU 0"} == moved[0]
    assert {"IRQ 28 IN_PROGRESS", "channel interrupts", "in ring interrupt_mask"} == moved[1]
    assert {"IRQ 28 IN_PROGRESS"} == moved[2]
    assert "entropy sample" in steps[2].what


@pytest.mark.parametrize("engine", ENGINES)
def test_legacy_has_no_irq_and_no_flow_handler(engine: str) -> None:
    """v6.10: the channel is called from the scan, and HYP alone counts."""
    explanation = explain(booted(design="legacy", engine=engine), SCSI)
    assert 0 == explanation.irq
    assert "simple_irq" not in functions(explanation)
    assert not any("generic_handle" in step.kernel or "kernel/irq" in step.kernel for step in explanation.steps)
    assert ["HYP on CPU 0"] == [item.counter for item in step_of(explanation, "take_vector").moved]


def test_arm64_runs_the_flow_handler_of_the_ppi() -> None:
    """vmbus.md 3.3: DEVID counts before its action, DEMUX only what was handled, NOSTAT after it."""
    first = {
        design: step_of(explain(booted("arm64", design), SCSI), flow)
        for design, flow in (
            ("legacy", "handle_percpu_devid_irq"),
            ("rfc", "handle_percpu_demux_irq"),
            ("mgmt-irq-nostat", "handle_percpu_nostat_irq"),
        )
    }
    assert [2, 0, 0] == [len(step.moved) for step in first.values()]
    explanation = explain(booted("arm64", "mgmt-irq-nostat"), SCSI)
    last = [step for step in explanation.steps if step.places[0].function == "handle_percpu_nostat_irq"][-1]
    assert ["IRQ 10 (PPI) cnt on CPU 0"] == [item.counter for item in last.moved]


@pytest.mark.parametrize("engine", ENGINES)
def test_napi_masks_in_the_interrupt_and_reads_in_net_rx(engine: str) -> None:
    """netvsc: mode ISR, the callback schedules a poll."""
    explanation = explain(booted(engine=engine), NIC["x86"])
    assert "CPU 2, hard interrupt" == step_of(explanation, "vi_read_napi").where
    assert "CPU 2, softirq" == step_of(explanation, "vi_ring_drain").where
    assert 1 == changes(explanation)["NET_RX on CPU 2"]
    assert "TASKLET on CPU 2" not in changes(explanation)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_heartbeat_is_answered_and_the_host_reads_the_answer(engine: str) -> None:
    """The reader signals the host, whose pump takes the packet."""
    explanation = explain(booted(engine=engine), UTIL["x86"])
    said = changes(explanation)
    assert (1, 1) == (said["channel replies"], said["channel sig_events"])
    assert said["out ring write_index"] == said["out ring read_index"] > 0
    assert "vmbusirq/host/rings.py" == explanation.steps[-1].places[0].file
    assert ["channel sig_events"] == [item.counter for item in step_of(explanation, "vi_channel_setevent").moved]


# ---- no signal, no interrupt


@pytest.mark.parametrize("engine", ENGINES)
def test_a_ring_that_is_not_empty_is_not_signalled(engine: str) -> None:
    """vmbus.md 1.9: the reader has been told already; it reads both packets in one interrupt."""
    machine = booted(engine=engine)
    prepare(machine, SCSI, "busy")
    explanation = explain(machine, SCSI)
    said = changes(explanation)
    assert "no signal, for the guest has not read what was there" in explanation.steps[2].what
    assert "host signals" not in said
    assert (1, 2) == (said["channel interrupts"], said["channel packets"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_masked_ring_is_not_signalled(engine: str) -> None:
    """vmbus.md 1.9: nothing happens until the guest unmasks, and looks again."""
    machine = booted(engine=engine)
    prepare(machine, SCSI, "masked")
    explanation = explain(machine, SCSI)
    assert "no signal, for the guest has masked the ring" in explanation.steps[-1].what
    assert 3 == len(explanation.steps)
    assert explanation.end.startswith("no interrupt: the packet waits")
    assert lib.vi_ring_end_read(lib.vi_channel_in(machine.vmbus.channels[SCSI].c)) > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_late_signal_to_a_closed_channel(engine: str) -> None:
    """The relid is mapped but its IRQ not requested: remembered as PENDING, as v6.10's simple flow does."""
    machine = booted(engine=engine)
    prepare(machine, SCSI, "closed")
    explanation = explain(machine, SCSI)
    assert {"IRQ 28 PENDING": 1} == changes(explanation)
    assert "nobody to call on IRQ 28" in step_of(explanation, "simple_irq").what


@pytest.mark.parametrize("engine", ENGINES)
def test_a_late_signal_to_a_closed_channel_of_legacy(engine: str) -> None:
    """v6.10 finds no callback: HYP has counted, the channel has not."""
    machine = booted(design="legacy", engine=engine)
    prepare(machine, SCSI, "closed")
    said = changes(explain(machine, SCSI))
    assert {"HYP on CPU 0": 1, "channel no_callback": 1, "lost no_callback": 1} == said


# ---- another CPU


@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_another_cpu_takes_the_locked_way_in_the_fast_engine(design: str) -> None:
    """irqdomain.c rule 1: only the owner calls the slot without a lock. The count is on the CPU that took it."""
    machine = booted(design=design)
    explanation = explain(machine, SCSI, cpu=3)
    assert (0, 3) == (explanation.target, explanation.cpu)
    assert "owned by CPU 0" in step_of(explanation, "vi_slot_handle_irq").what
    assert {"CPU 3, hard interrupt", "CPU 3, softirq"} == {s.where for s in explanation.steps if "CPU" in s.where}
    if design == "rfc":
        assert 1 == changes(explanation)["IRQ 28 cnt on CPU 3"]
    back = explain(machine, SCSI)
    assert (0, 0) == (back.target, back.cpu)
    assert "vi_slot_handle_irq" not in [place.function for step in back.steps for place in step.places]
    assert 0 == machine.host.channels[SCSI].target_vp


def test_the_linux_engine_takes_one_way_on_any_cpu() -> None:
    """No owner: the descriptor's lock serves all CPUs."""
    machine = booted(engine="linux")
    here, there = explain(machine, SCSI), explain(machine, SCSI, cpu=3)
    assert functions(here) == functions(there)


def test_the_guests_own_choice_by_name_is_nothing_else() -> None:
    """--cpu with the target."""
    assert functions(explain(booted(), SCSI)) == functions(explain(booted(), SCSI, cpu=0))


def test_a_cpu_whose_synic_is_off_loses_the_signal() -> None:
    """synic.md: HvSignalEvent fails, the flag stays untouched; the packet is in the ring all the same."""
    machine = booted()
    machine.vcpus[3].wrmsr(Msr.SCONTROL, 0)
    explanation = explain(machine, SCSI, cpu=3)
    said = changes(explanation)
    assert (1, 1) == (said["host dropped_signals"], said["host packets"])
    assert "that SynIC is off" in explanation.steps[-1].what
    assert explanation.end.startswith("the signal is lost")
    prepare(machine, SCSI, "closed")
    with pytest.raises(IrqError) as caught:
        explain(machine, SCSI, cpu=3)
    assert errno.ENXIO == caught.value.errno


# ---- bad input


@pytest.mark.parametrize("relid", [-1, 0, 2, 99, 2047, 2048, 1 << 40])
def test_no_such_channel(relid: int) -> None:
    """It lists those that there are. Relid 2 is offered, and dropped at once (RFC patch 01)."""
    with pytest.raises(IrqError, match=r"relid -?\d+: the guest has no such channel.*1,3-5,7-11,13-24") as caught:
        explain(booted(), relid)
    assert errno.ENOENT == caught.value.errno


@pytest.mark.parametrize("cpu", [-1, 8, 1 << 32])
def test_no_such_cpu(cpu: int) -> None:
    """Both sides of the border: 7 exists."""
    machine = booted()
    with pytest.raises(IrqError, match="0 to 7") as caught:
        explain(machine, SCSI, cpu=cpu)
    assert errno.EINVAL == caught.value.errno
    assert 7 == explain(machine, SCSI, cpu=7).cpu


def test_no_such_state_and_no_channel_at_all() -> None:
    """Names are those of STATES; a bare machine has no channel."""
    with pytest.raises(IrqError, match="idle, busy, masked, closed"):
        prepare(booted(), SCSI, "asleep")
    with pytest.raises(IrqError, match="it has: none"):
        explain(Machine(cpus=1), SCSI)


# ---- the trace itself


def test_nothing_is_heard_outside() -> None:
    """The twins are gone again when the block ends, and with them the listener."""
    machine, heard = booted(), []
    with tracing(machine.core, heard.append):
        machine.host.send(SCSI)
        machine.settle()
    number = len(heard)
    machine.host.send(SCSI)
    machine.settle()
    assert number == len(heard) > 10


def test_events_of_several_flags_come_in_order() -> None:
    """Flags are claimed lowest first; each is dispatched before the next is claimed, as in v6.10."""
    for engine in ENGINES:
        machine, heard = booted(engine=engine), []
        relids = (14, 1, 4, 21, 3)
        with tracing(machine.core, heard.append):
            for relid in relids:
                machine.host.send(relid)
            machine.settle()
        claims = [event.id for event in heard if event.step == lib.VI_TRACE_CLAIM]
        assert sorted(relids) == claims
        ends = [event.value for event in heard if event.step == lib.VI_TRACE_SCAN_END]
        assert [len(relids)] == ends


def test_an_error_of_the_listener_comes_out_at_the_end() -> None:
    """An exception cannot cross C: the machine goes on, the first error is raised when the block ends."""
    machine = booted()

    def refuse(event: Event) -> None:
        raise ValueError(f"step {event.step}")

    def run() -> None:
        with tracing(machine.core, refuse):
            machine.host.send(SCSI)
            machine.settle()

    before = machine.vmbus.channels[SCSI].stats.packets
    with pytest.raises(ValueError, match=f"step {lib.VI_TRACE_RING_PUT}"):
        run()
    assert before + 1 == machine.vmbus.channels[SCSI].stats.packets


def test_tracing_cannot_be_switched_inside_an_interrupt() -> None:
    """EDEADLK: a CPU is on its way through the very functions that are exchanged."""
    machine, results = booted(), []

    def switch(event: Event) -> None:
        if event.step == lib.VI_TRACE_CLAIM:
            results.append(lib.vi_machine_set_trace(machine.core.handle, ffi.NULL, ffi.NULL))

    with tracing(machine.core, switch):
        machine.host.send(SCSI)
        machine.settle()
    assert [-errno.EDEADLK] == results


def test_every_step_can_be_told() -> None:
    """A new step of the C core needs its words."""
    from vmbusirq.lab import journey

    assert set(range(lib.VI_TRACE_STEPS)) == set(journey._TELLERS)
