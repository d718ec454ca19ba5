"""One delivery as steps: the same code as the whole path, and what can come in between (design.md 4; genirq.md 2)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
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


@pytest.mark.parametrize("design", ["legacy", "rfc", "mgmt-irq"])
@both_engines
def test_run_to_its_end_a_delivery_leaves_what_the_whole_path_leaves(
    engine: str, design: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """design.md 4: the code that is explored is the code that users run."""
    whole = busy_guest(engine, design, monkeypatch, stepped=False)
    stepped = busy_guest(engine, design, monkeypatch, stepped=True)
    assert state(whole) == state(stepped)


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
