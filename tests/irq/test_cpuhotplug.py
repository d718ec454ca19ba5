"""Interrupts that leave a CPU which goes offline, and managed ones that come back (genirq.md 4.10)."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.irq.rig import Rig
from vmbusirq.errors import IrqError
from vmbusirq.irq.cpuhotplug import CPUS_READ_LOCK, CPUS_WRITE_LOCK
from vmbusirq.irq.settings import (
    IRQ_MOVE_PCNTXT,
    IRQD_AFFINITY_MANAGED,
    IRQD_MANAGED_SHUTDOWN,
    IRQD_SINGLE_TARGET,
    IRQF_PERCPU,
)
from vmbusirq.log import Level
from vmbusirq.steps import run


def on(rig, mask, hwirq=7, **how):
    """Request an IRQ and give it an affinity."""
    desc = rig.requested(hwirq, **how)
    rig.core.irq_set_affinity(desc.irq, mask)
    rig.affinity_calls.clear()
    return desc


def offline(rig, cpu):
    rig.core.set_cpu_online(cpu, False)
    run(rig.core.irq_migrate_all_off_steps(cpu))


def online(rig, cpu):
    rig.core.set_cpu_online(cpu, True)
    run(rig.core.irq_affinity_online_steps(cpu))


def masks(desc):
    return desc.affinity, desc.effective_affinity


def test_an_irq_goes_to_another_online_cpu_of_its_affinity():
    """The affinity stays as it was written, offline CPUs included; nothing is said."""
    rig = Rig(4)
    desc = on(rig, 0b0110)
    offline(rig, 1)
    assert (0b0110, 0b0100) == masks(desc)
    assert [(24, 0b0100, False)] == rig.affinity_calls
    assert [] == rig.core.log.texts()


def test_without_such_a_cpu_its_affinity_is_broken_for_good():
    """It becomes all online CPUs, and does not revert when the CPU returns."""
    rig = Rig(4)
    desc = on(rig, 0b0100)
    offline(rig, 2)
    assert (0b1011, 0b0001) == masks(desc)
    assert ["IRQ 24: no longer affine to CPU2"] == rig.core.log.texts()
    assert [] == rig.core.log.texts(Level.INFO)  # a debug message
    online(rig, 2)
    assert (0b1011, 0b0001) == masks(desc)


@pytest.mark.parametrize("mask", [0b0001, 0b1010])
def test_an_irq_that_is_delivered_elsewhere_is_left_alone(mask):
    """Its effective mask is asked, not its affinity."""
    rig = Rig(4)
    desc = on(rig, mask)
    before = masks(desc)
    offline(rig, 3)
    assert (before, []) == (masks(desc), rig.affinity_calls)


def test_an_empty_effective_mask_is_judged_by_the_affinity():
    """vmbus.md 4.5: a channel on an isolated CPU has one."""
    rig = Rig(4)
    desc = on(rig, 0b1100)
    desc.update_effective_affinity(0)
    offline(rig, 3)
    assert (0b1100, 0b0100) == masks(desc)


@pytest.mark.parametrize("how", ["not started", "per-CPU", "no chip callback"])
def test_what_cannot_be_moved_is_left_alone(how):
    """Per-CPU, not started, a chip without irq_set_affinity."""
    rig = Rig(4)
    if how == "not started":
        desc = rig.irq()
    elif how == "per-CPU":
        desc = rig.requested(flags=IRQF_PERCPU)
    else:
        desc = rig.requested(irq_set_affinity=None)
    desc.update_effective_affinity(0b0010)
    rig.affinity_calls.clear()
    offline(rig, 1)
    assert (0b0010, []) == (desc.effective_affinity, rig.affinity_calls)


@pytest.mark.parametrize(
    ("pending", "wanted"),
    [(0b1000, (0b1000, 0b1000)), (0b0010, (0b1101, 0b0001)), (0b0011, (0b0011, 0b0001))],
)
def test_a_pending_move_is_done_at_once_if_it_has_an_online_cpu(pending, wanted):
    """x86 without IRQ_MOVE_PCNTXT; else it is dropped, and the affinity decides."""
    rig = Rig(4)
    desc = on(rig, 0b0010)
    rig.core.modify_status(desc.irq, clear=IRQ_MOVE_PCNTXT)
    rig.core.irq_set_affinity(desc.irq, pending)
    assert desc.move_pending
    offline(rig, 1)
    assert (wanted, False) == (masks(desc), desc.move_pending)


def test_a_pending_move_to_the_cpu_that_goes_is_dropped():
    """The IRQ itself is elsewhere and stays there."""
    rig = Rig(4)
    desc = on(rig, 0b0010)
    rig.core.modify_status(desc.irq, clear=IRQ_MOVE_PCNTXT)
    rig.core.irq_set_affinity(desc.irq, 0b1000)
    offline(rig, 3)
    assert ((0b0010, 0b0010), False, []) == (masks(desc), desc.move_pending, rig.affinity_calls)


def test_a_chip_that_refuses_is_logged_and_keeps_it():
    """No broken affinity then."""
    rig = Rig(4)
    desc = on(rig, 0b0100)
    rig.affinity_result = IrqError(errno.EIO, "no")
    offline(rig, 2)
    assert (0b0100, 0b0100) == masks(desc)
    assert ["IRQ24: set affinity failed(-5)."] == rig.core.log.texts()


def test_a_chip_without_room_is_asked_for_any_cpu():
    """ENOSPC, and not managed: once more with all online CPUs."""
    rig = Rig(4)
    asked = []

    def set_affinity(desc, mask, force):
        asked.append(mask)
        if mask == 0b1000:
            raise IrqError(errno.ENOSPC, "no vector")
        desc.update_effective_affinity(mask & -mask)
        return 0

    desc = rig.requested(irq_set_affinity=set_affinity)
    rig.core.irq_set_affinity(desc.irq, 0b1100)
    offline(rig, 2)
    assert ([0b1000, 0b1011], (0b1011, 0b0001)) == (asked[-2:], masks(desc))
    retried = "IRQ24: set affinity failed for 2-3, re-try with online CPUs"
    assert [retried, "IRQ 24: no longer affine to CPU2"] == rig.core.log.texts()
    assert [] == rig.core.log.texts(Level.INFO)


def test_an_irq_that_was_missed_is_warned_of_and_moved_with_the_next_cpu():
    """irq_needs_fixup: its effective mask has offline CPUs only, and others than the one that goes."""
    rig = Rig(4)
    desc = on(rig, 0b0100)
    rig.affinity_result = IrqError(errno.EIO, "no")
    offline(rig, 2)
    rig.affinity_result = 0
    offline(rig, 3)
    warned = "Eff. affinity 2 of IRQ 24 contains only offline CPUs after offlining CPU 3"
    assert [warned] == rig.core.log.texts(Level.WARNING)[1:]
    assert "IRQ 24: no longer affine to CPU3" == rig.core.log.texts()[-1]
    assert (0b0011, 0b0001) == masks(desc)


def test_a_chip_that_cannot_move_is_mentioned():
    """A debug message, without a limit."""
    rig = Rig(4)
    desc = rig.requested(irq_set_affinity=None)
    offline(rig, 1)
    assert [f"IRQ {desc.irq}: Unable to migrate away"] == rig.core.log.texts()
    assert [] == rig.core.log.texts(Level.INFO)


def managed(rig, mask):
    irq = rig.core.alloc_descs(affinity=mask, managed=True)
    rig.core.irq_domain_associate(rig.domain, irq, 9)
    rig.core.request_irq(irq, rig.handler, 0, "queue", "queue")
    rig.affinity_calls.clear()
    return rig.core.irq_to_desc(irq)


def test_a_managed_irq_is_shut_down_with_its_last_cpu_and_comes_back_with_the_first():
    """Its affinity is the core's for good."""
    rig = Rig(4)
    desc = managed(rig, 0b0110)
    offline(rig, 1)
    assert ((0b0110, 0b0100), True) == (masks(desc), desc.started)
    offline(rig, 2)
    assert (0b0110, False) == (desc.affinity, desc.started)
    assert desc.state & IRQD_MANAGED_SHUTDOWN
    online(rig, 3)
    assert not desc.started
    online(rig, 2)
    assert ((0b0110, 0b0100), True) == (masks(desc), desc.started)
    assert not desc.state & IRQD_MANAGED_SHUTDOWN
    rig.fire(desc, 2)
    assert [(desc.irq, "queue")] == rig.calls


@pytest.mark.parametrize("single", [False, True])
def test_a_managed_irq_that_runs_is_spread_again(single):
    """Unless it has one target anyway."""
    rig = Rig(4)
    desc = managed(rig, 0b0110)
    if single:
        rig.core._modify_state(desc, set_=IRQD_SINGLE_TARGET)
    offline(rig, 1)
    rig.affinity_calls.clear()
    online(rig, 1)
    assert ([] if single else [(desc.irq, 0b0110, False)]) == rig.affinity_calls
    assert desc.state & IRQD_AFFINITY_MANAGED


@pytest.mark.parametrize(("comes", "moves"), [(1, True), (2, False)])
def test_a_managed_irq_leaves_isolated_cpus_when_another_one_comes(comes, moves):
    """hk_should_isolate: even one of a single target, if a housekeeping CPU of its mask has come."""
    rig = Rig(4, isolated=0b1100)
    desc = managed(rig, 0b1110)
    rig.core._modify_state(desc, set_=IRQD_SINGLE_TARGET)
    offline(rig, comes)
    desc.update_effective_affinity(0b1000)
    rig.affinity_calls.clear()
    online(rig, comes)
    assert ([(desc.irq, 0b0010, False)] if moves else []) == rig.affinity_calls


def test_what_is_refused_when_a_cpu_comes_keeps_nobody_away():
    """Neither the chip's nor the domain's error is anybody's; the IRQ stays shut down until the next CPU comes."""
    rig = Rig(4)
    desc = managed(rig, 0b0110)
    offline(rig, 1)
    rig.affinity_result = IrqError(errno.ENOSPC, "no")
    online(rig, 1)
    rig.affinity_result = 0
    offline(rig, 1)
    offline(rig, 2)

    def activate(domain, irq):
        raise IrqError(errno.ENOSPC, "no vector")

    ops = rig.domain.ops
    rig.domain.ops = replace(ops, activate=activate)
    online(rig, 1)
    assert (False, True) == (desc.started, bool(desc.state & IRQD_MANAGED_SHUTDOWN))
    assert f"WARNING: irq {desc.irq}: irq_domain_activate_irq failed (-28)" == rig.core.log.texts()[-1]
    rig.domain.ops = ops
    online(rig, 2)
    assert (True, False) == (desc.started, bool(desc.state & IRQD_MANAGED_SHUTDOWN))


def test_every_descriptor_is_looked_at_under_its_lock():
    """With interrupts off: stop_machine; one that is freed meanwhile is passed over."""
    rig = Rig(4)
    first, second = on(rig, 0b0010, 7), on(rig, 0b0010, 8, name="b", dev_id="b")
    rig.core.set_cpu_online(1, False)
    steps = rig.core.irq_migrate_all_off_steps(1)
    seen = [next(steps)]
    rig.core.free_irq(second.irq, "b")
    rig.core.irq_dispose_mapping(second.irq)
    seen += list(steps)
    assert all(step.irqs_off for step in seen)
    assert first.lock == seen[0].takes
    assert 0b0001 == first.effective_affinity


@pytest.mark.parametrize(("cpu", "number"), [(-1, errno.EINVAL), (2, errno.EINVAL), (0, errno.EBUSY)])
def test_the_online_mask_never_gets_empty(cpu, number):
    """The last CPU stays; there is none past the last."""
    rig = Rig(2)
    rig.core.set_cpu_online(1, False)
    with pytest.raises(IrqError) as caught:
        rig.core.set_cpu_online(cpu, False)
    assert (number, 0b01) == (caught.value.errno, rig.core.online)


def test_readers_of_the_hotplug_lock_do_not_exclude_each_other():
    """cpus_read_lock() and cpus_write_lock() are one lock."""
    assert not CPUS_READ_LOCK.excludes(CPUS_READ_LOCK)
    assert CPUS_READ_LOCK.excludes(CPUS_WRITE_LOCK)
    assert CPUS_WRITE_LOCK.excludes(CPUS_READ_LOCK)
    assert CPUS_WRITE_LOCK.excludes(CPUS_WRITE_LOCK)
