"""One delivery as steps: the same code as the whole path, and what can come in between (design.md 4; genirq.md 2)."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.schedule import Schedule
from tests.vmbus.scripted import Guest, offer_of, refused
from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.steps import Context, Lock, Step, Steps, holding, run
from vmbusirq.vmbus.isr import deliverable, in_interrupt, sched_lock, vcpu_steps
from vmbusirq.wire.packet import Packet

ENGINES = ("fast", "linux")
CLASSES = ("keyboard", "heartbeat", "netvsc", "scsi")  # BATCHED; DIRECT; ISR with a NAPI poll; BATCHED, busy

both_engines = pytest.mark.parametrize("engine", ENGINES)


def irq_of(guest: Guest, relid: int) -> int:
    return int(guest.vmbus.channels[relid].irq)


def opened(engine: str = "linux", design: str = "rfc", cpu: int = 1, **how: Any) -> Guest:
    """A guest with channel 5, a keyboard, open and on a CPU."""
    guest = Guest(design, engine=engine, drivers=False, **how)
    channel = guest.opened("keyboard", 5)
    if channel.irq:
        guest.irq.irq_set_affinity(channel.irq, 1 << cpu)
    else:
        guest.vmbus.target_cpu_store(channel, str(cpu).encode())
    guest.settle()
    return guest


def send(guest: Guest, relid: int = 5, packets: int = 1) -> None:
    guest.host.write(relid, *[Packet(b"x")] * packets)


def drain(channel: Any) -> int:
    """Read all packets of a channel, as a driver's own callback does, and return how many there were."""
    tally = ffi.new("struct vi_ring_tally *")
    lib.vi_ring_drain(lib.vi_channel_in(channel.c), 1000, tally)
    return int(tally.packets)


def points(steps: Steps[Any]) -> list[Step]:
    """Run an operation to its end and return where it could have been overtaken."""
    seen: list[Step] = []
    try:
        while True:
            seen.append(next(steps))
    except StopIteration:
        return seen


def by_steps(core: Core) -> int:
    """Do what Core.settle() does, step by step."""
    runs = 0
    while any(deliverable(core, cpu) for cpu in range(core.nr_cpus)):
        runs += sum(run(vcpu_steps(core, cpu)) for cpu in range(core.nr_cpus))
    return runs


def lost_in_progress(guest: Guest) -> int:
    return int(guest.core.lost().in_progress)


# ---- the same as the whole path


def state(guest: Guest) -> dict[str, Any]:
    """Everything that an interrupt can have changed."""
    core, counters = guest.core, guest.core.counters
    cpus = range(core.nr_cpus)
    return {
        "counts": guest.irq.counts.tolist(),
        "arch": [[counters.arch[cpu * lib.VI_ARCH_STRIDE + row] for row in range(lib.VI_ARCH_ROWS)] for cpu in cpus],
        "softirq": [[counters.softirq[cpu * lib.VI_SOFTIRQ_STRIDE + v] for v in range(10)] for cpu in cpus],
        "sums": [counters.irqs_sum[cpu * lib.VI_IRQS_SUM_STRIDE] for cpu in cpus],
        "lost": core.lost(),
        "flags": [guest.synic.flags_set(cpu) for cpu in cpus],
        "eom": [lib.vi_synic_eom_count(core.handle, cpu) for cpu in cpus],
        "pending": [lib.vi_vcpu_pending(core.handle, cpu) for cpu in cpus],
        "channels": {r: (c.stats, c.ring_in, c.ring_out) for r, c in guest.vmbus.channels.items() if c.rings},
        "descs": {i: (d.c.state, d.c.istate, d.c.depth, d.c.tot_count) for i, d in guest.irq.descs.items()},
        "log": guest.log.texts(),
    }


def busy_guest(engine: str, design: str, monkeypatch: pytest.MonkeyPatch, *, stepped: bool) -> Guest:
    """A guest under a workload that takes every way through an interrupt, run by one of the two."""
    if stepped:
        monkeypatch.setattr(Core, "settle", by_steps)
    guest = Guest(design, engine=engine, drivers=False)
    calls: list[int] = []
    for relid, name in enumerate(CLASSES, 5):
        guest.opened(name, relid, name)
    guest.vmbus.channels[5].set_callback(lambda channel: calls.append(drain(channel)))
    for turn in range(12):
        for relid in range(5, 9):
            if (turn + relid) % 3 and relid in guest.host.rings:
                send(guest, relid, 1 + turn * relid % 70)
        for cpu in range(4):
            if turn % 4 == cpu:
                guest.synic.signal(cpu, 0)
                guest.synic.signal(cpu, 900 + turn)
                guest.synic.signal(cpu, 5 + turn % 3)  # wherever its channel is
        irq = irq_of(guest, 6)
        if irq and turn in (3, 7):
            (guest.irq.disable_irq_nosync if turn == 3 else guest.irq.enable_irq)(irq)
        if turn == 5:
            guest.host.post(offer_of("keyboard", 30, "more"))
        if turn == 9:
            guest.vmbus.close(guest.vmbus.channels[8])
            guest.host.rescind(7)
        guest.settle()
    monkeypatch.undo()
    assert calls
    return guest


@pytest.mark.parametrize("design", ["legacy", "rfc", "mgmt-irq", "redirect"])
@both_engines
def test_run_to_its_end_a_delivery_leaves_what_the_whole_path_leaves(
    engine: str, design: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """design.md 4: the code that is explored is the code that users run."""
    whole = busy_guest(engine, design, monkeypatch, stepped=False)
    stepped = busy_guest(engine, design, monkeypatch, stepped=True)
    assert state(whole) == state(stepped)
    works = [whole.core.arch_row(cpu, lib.VI_ROW_IWI) for cpu in range(whole.core.nr_cpus)]
    assert (design == "redirect") == any(works)


@both_engines
def test_a_cpu_without_work_has_one_step_and_does_nothing(engine: str) -> None:
    guest = opened(engine)
    assert not deliverable(guest.core, 1)
    (step,) = points(vcpu_steps(guest.core, 1))
    assert "takes the callback vector" in step.point
    assert 0 == run(vcpu_steps(guest.core, 1))


def test_a_cpu_that_does_not_exist() -> None:
    guest = opened()
    with refused(errno.EINVAL, "cpu 4"):
        run(vcpu_steps(guest.core, 4))
    assert not deliverable(guest.core, 4)
    assert not in_interrupt(guest.core, 4)


# ---- where it can be overtaken


def test_each_point_of_a_delivery_is_there() -> None:
    """v6.10: vector, claim, lookup, flow entry, actions, flow exit, message slot, end, tasklet, ring, end."""
    guest = opened()
    irq = irq_of(guest, 5)
    send(guest)
    lock = Lock(f"irq {irq} desc->lock")
    assert guest.irq.descs[irq].lock == lock
    steps = points(vcpu_steps(guest.core, 1))
    expected = [
        ("cpu 1: takes the callback vector", None),
        ("cpu 1: vmbus_chan_sched claims the next event flag from 0 on", None),
        ("cpu 1: vmbus_chan_sched has claimed relid 5, looks it up", None),
        (f"irq {irq}: handle_simple_irq takes desc->lock on cpu 1", lock),
        (f"irq {irq}: handle_irq_event runs the actions on cpu 1", sched_lock(5)),
        (f"irq {irq}: handle_irq_event takes desc->lock again on cpu 1, clears IN_PROGRESS", lock),
        ("cpu 1: vmbus_chan_sched claims the next event flag from 6 on", None),
        ("cpu 1: vmbus_isr looks at the message slot", None),
        ("cpu 1: ends the hard interrupt", None),
        ("channel 5: vmbus_on_event begins on cpu 1", None),
        ("channel 5: vmbus_on_event calls the driver on cpu 1", None),
        ("channel 5: vmbus_on_event unmasks the ring on cpu 1 (hv_end_read)", None),
        ("channel 5: vmbus_on_event looks on cpu 1 for what raced in", None),
        ("cpu 1: irq_exit", None),
    ]
    assert expected == [(step.point, step.takes) for step in steps]
    assert [Context.HARDIRQ] * 9 + [Context.SOFTIRQ] * 5 == [step.context for step in steps]
    assert all(not step.locks for step in steps)
    assert 1 == guest.vmbus.channels[5].stats.packets


def test_what_each_step_touches() -> None:
    """The channel's own reader is known to the last name; a driver's Python callback may do anything."""
    guest = opened()
    irq = irq_of(guest, 5)
    send(guest)
    touches = [step.touches and set(step.touches) for step in points(vcpu_steps(guest.core, 1))]
    ring, soft = {"channel 5", "ring 5 in"}, {"softirq cpu1"}
    assert [
        {"vector cpu1", "interrupt cpu1"} | soft,
        {"flags cpu1"},
        {"relid 5", "channel 5"},
        {f"irq {irq}"},
        {f"irq {irq}"} | ring | soft,
        {f"irq {irq}"},
        {"flags cpu1"},
        {"slot cpu1"} | soft,
        {"vector cpu1", "slot cpu1"},
        {"channel 5"} | soft,
        ring | soft | {"host"},
        ring,
        ring | soft,
        {"interrupt cpu1"},
    ] == touches
    guest.vmbus.channels[5].set_callback(drain)
    send(guest)
    anything = [step.point for step in points(vcpu_steps(guest.core, 1)) if step.touches is None]
    assert ["channel 5: vmbus_on_event calls the driver on cpu 1"] == anything


def test_a_redirected_interrupt_has_its_points_on_both_cpus() -> None:
    """genirq.md 10: under desc->lock it is queued on its target, which takes an interrupt for what it finds there."""
    guest = opened(design="redirect")
    irq = irq_of(guest, 5)
    guest.synic.signal(0, 5)
    there = points(vcpu_steps(guest.core, 0))
    lock = Lock(f"irq {irq} desc->lock")
    point = f"irq {irq}: generic_handle_demux_domain_irq takes desc->lock on cpu 0"
    assert (point, lock, {f"irq {irq}", *(f"vector cpu{cpu}" for cpu in range(4))}) == (
        there[3].point,
        there[3].takes,
        set(there[3].touches or ()),
    )
    assert "cpu 0: vmbus_chan_sched claims the next event flag from 6 on" == there[4].point
    assert deliverable(guest.core, 1)
    here = points(vcpu_steps(guest.core, 1))
    assert [
        ("cpu 1: takes the callback vector", None),
        ("cpu 1: irq_work_run takes the next work", None),
        (f"irq {irq}: handle_simple_irq takes desc->lock on cpu 1", lock),
        (f"irq {irq}: handle_irq_event runs the actions on cpu 1", sched_lock(5)),
        (f"irq {irq}: handle_irq_event takes desc->lock again on cpu 1, clears IN_PROGRESS", lock),
        ("cpu 1: irq_work_run takes the next work", None),
        ("channel 5: vmbus_on_event begins on cpu 1", None),
    ] == [(step.point, step.takes) for step in here][:7]
    assert [Context.HARDIRQ] * 6 == [step.context for step in here[:6]]
    assert [{"vector cpu1"}, {"vector cpu1"}] == [set(here[n].touches or ()) for n in (1, 5)]
    assert not deliverable(guest.core, 1)


def test_in_the_fast_engine_a_work_runs_as_a_whole() -> None:
    guest = opened("fast", "redirect")
    irq = irq_of(guest, 5)
    guest.synic.signal(0, 5)
    run(vcpu_steps(guest.core, 0))
    steps = points(vcpu_steps(guest.core, 1))
    assert f"irq {irq}: its work runs the flow handler on cpu 1" == steps[2].point
    assert steps[2].touches is None
    assert 1 == guest.vmbus.channels[5].stats.interrupts


def test_the_fast_engine_claims_words_and_dispatches_slots() -> None:
    guest = opened("fast")
    send(guest)
    expected = [
        "cpu 1: takes the callback vector",
        "cpu 1: the scan claims the next word of event flags from 0 on",
        "cpu 1: the scan has claimed relid 5, dispatches it",
        "cpu 1: the scan claims the next word of event flags from 64 on",
        "cpu 1: vmbus_isr looks at the message slot",
    ]
    assert expected == [step.point for step in points(vcpu_steps(guest.core, 1))][:5]


def test_a_channel_without_an_irq_takes_sched_lock_at_once() -> None:
    """v6.10 without the RFC: relid, channel, sched_lock."""
    guest = opened(design="legacy")
    send(guest)
    steps = points(vcpu_steps(guest.core, 1))
    assert ("channel 5: vmbus_chan_sched takes sched_lock on cpu 1", sched_lock(5)) == (steps[3].point, steps[3].takes)


def test_the_message_tasklet_copies_hands_on_and_frees() -> None:
    """vmbus_on_msg_dpc: the slot is freed after the message was taken, and EOM may let the next one in."""
    guest = opened()
    guest.host.post(offer_of("keyboard", 30, "more"))
    steps = [step.point for step in points(vcpu_steps(guest.core, 0))]
    assert [
        "cpu 0: vmbus_on_msg_dpc begins on cpu 0",
        "cpu 0: vmbus_on_msg_dpc copies the message",
        "cpu 0: vmbus_on_msg_dpc hands the message on",
        "cpu 0: vmbus_signal_eom frees the message slot",
        "cpu 0: irq_exit",
    ] == steps[-5:]
    guest.settle()
    assert 30 in guest.vmbus.channels


def test_a_message_irq_has_the_points_of_its_flow() -> None:
    """Designs mgmt-irq*: control messages have an IRQ of their own, by the simple flow."""
    guest = opened(design="mgmt-irq")
    (irq,) = [irq for irq, desc in guest.irq.descs.items() if "vmbus-msg" in map(str, (a.name for a in desc.actions))]
    guest.host.post(offer_of("keyboard", 30, "more"))
    assert [
        f"irq {irq}: handle_simple_irq takes desc->lock on cpu 0",
        f"irq {irq}: handle_irq_event runs the actions on cpu 0",
        f"irq {irq}: handle_irq_event takes desc->lock again on cpu 0, clears IN_PROGRESS",
    ] == [step.point for step in points(vcpu_steps(guest.core, 0)) if step.point.startswith("irq")]


def test_holding_keeps_what_a_step_touches() -> None:
    """steps.holding() adds a lock and nothing else."""

    def one() -> Steps[None]:
        yield Step("here", touches=frozenset({"irq 1"}))

    (step,) = points(holding(Lock("a"), one()))
    assert (frozenset({"irq 1"}), (Lock("a"),)) == (step.touches, step.locks)


# ---- what comes in between


def twice_at_once(guest: Guest) -> Schedule:
    """Interrupt CPU 2 while the handler of channel 5 runs on CPU 1, and let both come to their end."""
    schedule = Schedule(lambda step: False)
    send(guest)
    first = schedule.begin(vcpu_steps(guest.core, 1)).to("runs the actions")
    guest.synic.signal(2, 5)
    schedule.begin(vcpu_steps(guest.core, 2)).finish()
    first.finish()
    return schedule


def test_v6_10_drops_an_arrival_while_the_handler_runs_elsewhere() -> None:
    """genirq.md 2: handle_simple_irq returns while IN_PROGRESS is set; nothing remembers the arrival."""
    guest = opened()
    irq = irq_of(guest, 5)
    before = guest.irq.counts[irq].copy()
    twice_at_once(guest)
    assert 1 == lost_in_progress(guest)
    assert [0, 1, 0, 0] == (guest.irq.counts[irq] - before).tolist()


def test_later_kernels_replay_it_where_the_handler_ran() -> None:
    """The resend of later kernels: PENDING, and once more on the CPU that is at it."""
    guest = opened()
    irq = irq_of(guest, 5)
    guest.irq.descs[irq].c.replay = 1
    before = guest.irq.counts[irq].copy()
    twice_at_once(guest)
    assert 0 == lost_in_progress(guest)
    assert [0, 2, 0, 0] == (guest.irq.counts[irq] - before).tolist()


@both_engines
def test_a_disable_between_claim_and_flow_is_remembered(engine: str) -> None:
    """The claimed flag meets a disabled IRQ: PENDING; enabling it replays the arrival."""
    guest = opened(engine)
    irq = irq_of(guest, 5)
    schedule = Schedule(lambda step: False)
    send(guest)
    delivery = schedule.begin(vcpu_steps(guest.core, 1)).to("has claimed relid 5")
    guest.irq.disable_irq_nosync(irq)
    delivery.finish()
    assert 0 == guest.vmbus.channels[5].stats.packets
    assert guest.irq.descs[irq].c.istate & lib.VI_IRQS_PENDING
    guest.irq.enable_irq(irq)
    guest.settle()
    assert 1 == guest.vmbus.channels[5].stats.packets


def test_a_rescind_between_claim_and_lookup_takes_the_arrival() -> None:
    """vmbus_chan_sched looks at channel->rescind after the flag is gone."""
    guest = opened()
    schedule = Schedule(lambda step: False)
    send(guest)
    delivery = schedule.begin(vcpu_steps(guest.core, 1)).to("has claimed relid 5")
    guest.vmbus.channels[5].rescind()
    delivery.finish()
    assert (1, 0) == (guest.core.lost().rescinded, guest.vmbus.channels[5].stats.packets)


def test_a_callback_is_cleared_between_flow_entry_and_actions() -> None:
    """vmbus_reset_channel_cb: sched_lock alone decides; the arrival is counted and finds nobody to call."""
    guest = opened()
    schedule = Schedule(lambda step: False)
    send(guest)
    delivery = schedule.begin(vcpu_steps(guest.core, 1)).to("runs the actions")
    guest.vmbus.channels[5].clear_callback()
    delivery.finish()
    assert 1 == guest.core.lost().no_callback


def test_a_host_that_writes_while_the_ring_is_masked_is_seen_after_it() -> None:
    """hv_end_read: no signal while masked; what raced in is found by looking once more (vmbus.md 1)."""
    guest = opened()
    schedule = Schedule(lambda step: False)
    send(guest)
    delivery = schedule.begin(vcpu_steps(guest.core, 1)).to("unmasks the ring")
    assert not guest.host.write(5, Packet(b"x"))
    delivery.to("looks on cpu 1 for what raced in")
    assert 0 == guest.vmbus.channels[5].ring_in.interrupt_mask
    delivery.to("begins on cpu 1").finish()
    assert 2 == guest.vmbus.channels[5].stats.packets


@both_engines
def test_the_control_plane_is_not_inside_the_interrupt_that_it_overtakes(engine: str) -> None:
    """What need not wait works between two steps; what would wait for ever is EBUSY, and nothing has changed."""
    guest = opened(engine)
    irq = irq_of(guest, 5)
    schedule = Schedule(lambda step: False)
    send(guest)
    delivery = schedule.begin(vcpu_steps(guest.core, 1)).to("has claimed relid 5")
    assert in_interrupt(guest.core, 1)
    assert not in_interrupt(guest.core, 0)
    guest.irq.irq_set_affinity(irq, 1 << 2)
    with refused(errno.EBUSY):
        guest.vmbus.channels[5].unmap()
    delivery.finish()
    assert not in_interrupt(guest.core, 1)
    guest.settle()
    assert 1 == guest.vmbus.channels[5].stats.packets
