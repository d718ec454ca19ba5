"""irq/affinity: irq_set_affinity and its states, pending moves, hints, notifiers, first affinity."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.irq.rig import Rig
from vmbusirq.errors import IrqError
from vmbusirq.irq import Flow, Fwnode, IrqAffinityNotify, IrqDomainOps
from vmbusirq.irq.settings import (
    IRQ_HIDDEN,
    IRQ_MOVE_PCNTXT,
    IRQ_PER_CPU,
    IRQ_SET_MASK_OK,
    IRQ_SET_MASK_OK_DONE,
    IRQ_SET_MASK_OK_NOCOPY,
    IRQD_AFFINITY_ON_ACTIVATE,
    IRQD_AFFINITY_SET,
    IRQD_MANAGED_SHUTDOWN,
    IRQF_NO_AUTOEN,
    IRQF_NOBALANCING,
    NUMA_NO_NODE,
)
from vmbusirq.steps import Context, LockKind, run

EBUSY, EINVAL, EIO, ENOSPC = errno.EBUSY, errno.EINVAL, errno.EIO, errno.ENOSPC


def masks(desc):
    """Return what was asked, what the chip does, and what is still to be moved."""
    return desc.affinity, desc.effective_affinity, desc.pending_mask


def refused(call, *arguments):
    """Return the errno that a call raises."""
    with pytest.raises(IrqError) as caught:
        call(*arguments)
    return caught.value.errno


# ---- irq_set_affinity


def test_the_chip_sees_online_cpus_and_the_core_stores_the_request():
    """Traps 19 and 21: a partly offline mask is stored whole; the effective one is the chip's."""
    rig = Rig(online=0b0111_1111)
    desc = rig.requested()
    rig.core.irq_set_affinity(desc.irq, 0b1100_0000)
    assert (24, 0b0100_0000, False) == rig.affinity_calls[-1]
    assert (0b1100_0000, 0b0100_0000, 0) == masks(desc)


def test_a_mask_of_offline_cpus_is_refused():
    """Trap 19: EINVAL, with the message of design.md 7; the chip is not asked."""
    rig = Rig(online=0b0111_1111)
    desc = rig.requested()
    before = masks(desc), len(rig.affinity_calls)
    with pytest.raises(IrqError) as caught:
        rig.core.irq_set_affinity_user(desc.irq, 0b1000_0000)
    assert "irq 24: cannot move to cpu 7: cpu 7 is offline (EINVAL); online: 0-6" == str(caught.value)
    for mask in (0, 0b1000_0000):
        assert EINVAL == refused(rig.core.irq_set_affinity_user, desc.irq, mask)
        assert EINVAL == refused(rig.core.irq_set_affinity, desc.irq, mask)
    assert before == (masks(desc), len(rig.affinity_calls))


@pytest.mark.parametrize("mask", [1 << 8, 0x1FF, -1])
def test_a_mask_past_the_last_cpu_is_refused(mask):
    """Trap 15: never silently cut."""
    rig = Rig()
    desc = rig.requested()
    for call, arguments in [
        (rig.core.irq_set_affinity, (desc.irq, mask)),
        (rig.core.irq_set_affinity_user, (desc.irq, mask)),
        (rig.core.set_default_affinity, (mask,)),
    ]:
        assert EINVAL == refused(call, *arguments)


@pytest.mark.parametrize(
    ("result", "affinity"),
    [(IRQ_SET_MASK_OK, 0xF0), (IRQ_SET_MASK_OK_NOCOPY, 0xFF), (IRQ_SET_MASK_OK_DONE, 0xF0)],
)
def test_results_of_the_chip(result, affinity):
    """genirq.md 2.8: OK and DONE let the core copy the mask, NOCOPY does not."""
    rig = Rig()
    desc = rig.requested()
    rig.affinity_result = result
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    assert (affinity, 0x10, 0) == masks(desc)


@pytest.mark.parametrize("code", [EINVAL, EIO, ENOSPC])
def test_errors_of_the_chip_come_back(code):
    """genirq.md 2.8: nothing is changed but AFFINITY_SET (trap 23)."""
    rig = Rig()
    desc = rig.requested()
    assert 0 == desc.state & IRQD_AFFINITY_SET
    rig.affinity_result = IrqError(code, "no")
    assert code == refused(rig.core.irq_set_affinity, desc.irq, 0xF0)
    assert (0xFF, 0x01, 0) == masks(desc)
    assert IRQD_AFFINITY_SET == desc.state & IRQD_AFFINITY_SET


def test_nonsense_from_a_chip_is_told():
    """A chip must return an IRQ_SET_MASK_* value."""
    rig = Rig()
    desc = rig.requested()
    rig.affinity_result = 7
    with pytest.raises(IrqError, match="chip VMBus irq_set_affinity returned 7"):
        rig.core.irq_set_affinity(desc.irq, 0xF0)
    assert 0xFF == desc.affinity


def test_the_same_mask_again_calls_the_chip_again():
    """genirq.md 2.8, last line."""
    rig = Rig()
    desc = rig.requested()
    calls = len(rig.affinity_calls)
    for _ in range(2):
        rig.core.irq_set_affinity(desc.irq, 0xF0)
    assert calls + 2 == len(rig.affinity_calls)


def test_a_chip_without_the_callback():
    """kernel/irq/manage.c v6.10: EINVAL from the call; the proc file asks can_set_affinity_usr before."""
    rig = Rig()
    desc = rig.requested(name="sim", irq_set_affinity=None)
    with pytest.raises(IrqError, match="its chip VMBus cannot") as caught:
        rig.core.irq_set_affinity(desc.irq, 1)
    assert EINVAL == caught.value.errno
    assert (0xFF, 0, 0) == masks(desc)
    assert not rig.core.can_set_affinity_usr(desc)


def test_who_may_set_the_affinity():
    """genirq.md 2.3, step 1: not per-CPU, not exempt, a chip that can, not managed; hidden makes no difference."""
    rig = Rig()
    ordinary = rig.requested(1)
    rig.core.modify_status(ordinary.irq, set_=IRQ_HIDDEN)
    exempt = rig.requested(2, flags=IRQF_NOBALANCING)
    percpu = rig.irq(3)
    rig.core.modify_status(percpu.irq, set_=IRQ_PER_CPU)
    managed = rig.core.irq_to_desc(rig.core.irq_create_mapping(rig.domain, 4, affinity=0xF0, managed=True))
    unmapped = rig.core.irq_to_desc(rig.core.alloc_descs())
    every = [ordinary, exempt, percpu, managed, unmapped]
    assert [True, False, False, True, False] == [rig.core.can_set_affinity(desc) for desc in every]
    assert [True, False, False, False, False] == [rig.core.can_set_affinity_usr(desc) for desc in every]


def test_a_freed_irq_can_still_be_moved():
    """genirq.md 2.8: no action any more, but the chip is still set."""
    rig = Rig()
    desc = rig.requested()
    rig.core.free_irq(desc.irq, "heartbeat")
    rig.core.irq_set_affinity_user(desc.irq, 0x20)
    assert (0x20, 0x20, 0) == masks(desc)


def test_a_forgetful_chip_is_warned_of_once():
    """genirq.md 2.8: the effective mask stays empty, and one warning says so."""
    rig = Rig()
    for hwirq in (1, 2):
        desc = rig.requested(hwirq, irq_set_affinity=lambda desc, mask, force: IRQ_SET_MASK_OK)
        assert (0xFF, 0, 0) == masks(desc)
    assert ["genirq: irq_chip VMBus did not update eff. affinity mask of irq 24"] == rig.core.log.texts()


def test_force_passes_the_mask_as_it_is():
    """genirq.md 2.8: the chip then sees offline CPUs too, and EBUSY is not deferred."""
    rig = Rig(online=0x0F)
    desc = rig.requested()
    rig.core.irq_set_affinity(desc.irq, 0xF0, force=True)
    assert (24, 0xF0, True) == rig.affinity_calls[-1]
    rig.affinity_result = IrqError(EBUSY, "busy")
    with pytest.raises(IrqError):
        rig.core.irq_set_affinity(desc.irq, 0x01, force=True)
    assert not desc.move_pending


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_interrupts_are_counted_where_they_are_delivered(engine):
    """A channel's flag is scanned on the CPU the host signals; every CPU counts its own, whoever owns the slot."""
    rig = Rig(engine=engine)
    desc = rig.requested()
    for mask in (0x04, 0x80, 0x01):
        rig.core.irq_set_affinity(desc.irq, mask)
        for cpu in range(8):
            rig.signal(7, cpu)
    assert [3] * 8 == desc.kstat_irqs()
    assert 24 == len(rig.calls)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.sampled_from([0, 1, 2, -EIO])), max_size=12))
def test_masks_stay_what_the_rules_say(moves):
    """genirq.md 2.8 as a model: any masks, any online sets, any results of the chip."""
    rig = Rig()
    desc = rig.requested()
    affinity, effective = desc.affinity, desc.effective_affinity
    for mask, online, result in moves:
        rig.core.online = online
        rig.affinity_result = result if result >= 0 else IrqError(-result, "no")
        prog = mask & online
        if not prog:
            assert EINVAL == refused(rig.core.irq_set_affinity, desc.irq, mask)
        elif result < 0:
            assert EIO == refused(rig.core.irq_set_affinity, desc.irq, mask)
        else:
            rig.core.irq_set_affinity(desc.irq, mask)
            affinity = affinity if result == IRQ_SET_MASK_OK_NOCOPY else mask
            effective = prog & -prog
        assert (affinity, effective, 0) == masks(desc)


# ---- as steps


def test_moving_is_one_step_under_the_lock():
    """design.md 4: the kernel can be overtaken before it has desc->lock, and sees the host under it."""
    rig = Rig()
    desc = rig.requested()
    steps = list(rig.core.irq_set_affinity_steps(desc.irq, 0x30))
    assert ["irq 24: irq_set_affinity takes desc->lock", "irq 24: VMBus irq_set_affinity(cpus 4-5)"] == [
        step.point for step in steps
    ]
    assert [(desc.lock, ()), (None, (desc.lock,))] == [(step.takes, step.locks) for step in steps]
    assert [False, True] == [step.irqs_off for step in steps]
    assert {Context.TASK} == {step.context for step in steps}
    assert (LockKind.RAW, "irq 24 desc->lock") == (desc.lock.kind, desc.lock.name)


def test_a_cpu_can_go_between_the_steps():
    """The online mask is looked at under the lock, not when the call was made."""
    rig = Rig()
    desc = rig.requested()
    steps = rig.core.irq_set_affinity_steps(desc.irq, 0x30)
    next(steps)
    rig.core.online = 0xEF
    run(steps)
    assert (0x30, 0x20, 0) == masks(desc)


def test_a_chip_may_be_written_as_steps():
    """The chip's own steps run under desc->lock."""
    rig = Rig()
    inner = []

    def set_affinity(desc, mask, force):
        def steps():
            inner.append(mask)
            yield step_of_the_host
            desc.update_effective_affinity(mask & -mask)
            return IRQ_SET_MASK_OK_NOCOPY

        return steps()

    step_of_the_host = next(rig.core.irq_set_affinity_steps(rig.requested(1).irq, 1))
    desc = rig.requested(2, irq_set_affinity=set_affinity)
    points = list(rig.core.irq_set_affinity_steps(desc.irq, 0x30))
    assert (desc.lock,) == points[-1].locks
    assert [0xFF, 0x30] == inner
    assert (0xFF, 0x10, 0) == masks(desc)


# ---- pending moves


def pending_rig(**options):
    """Return a rig whose IRQs move from their own interrupt only, and one such IRQ."""
    rig = Rig(**options)
    desc = rig.requested()
    rig.core.modify_status(desc.irq, clear=IRQ_MOVE_PCNTXT)
    return rig, desc


def test_a_pending_move_shows_the_future():
    """Trap 25: smp_affinity the pending mask, effective_affinity the old CPU, until the next interrupt."""
    rig, desc = pending_rig()
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    assert (0xFF, 0x01, 0xF0) == masks(desc)
    assert (True, 0xF0) == (desc.move_pending, desc.shown_affinity)
    rig.core.irq_set_affinity(desc.irq, 0x30)
    rig.core.irq_move_irq(desc.irq)
    assert (0x30, 0x10, 0) == masks(desc)
    assert (False, 0x30) == (desc.move_pending, desc.shown_affinity)
    calls = len(rig.affinity_calls)
    rig.core.irq_move_irq(desc.irq)
    assert calls == len(rig.affinity_calls)


def test_a_simple_irq_without_the_flag_stays_pending():
    """genirq.md 2.9: handle_simple_irq has no such path, which is why RFC patch 08 sets IRQ_MOVE_PCNTXT."""
    rig, desc = pending_rig()
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    rig.fire(desc, times=3)
    assert (True, 0x01) == (desc.move_pending, desc.effective_affinity)


def test_arm64_has_no_pending_moves():
    """genirq.md 2.8, 2.9: without CONFIG_GENERIC_PENDING_IRQ every move is at once, and EBUSY is EBUSY."""
    rig, desc = pending_rig(generic_pending_irq=False)
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    assert (0xF0, 0x10, 0) == masks(desc)
    rig.affinity_result = IrqError(EBUSY, "busy")
    assert EBUSY == refused(rig.core.irq_set_affinity, desc.irq, 0x01)
    assert not desc.move_pending


def test_a_busy_chip_makes_the_move_pending():
    """genirq.md 2.8, try_set: on x86 EBUSY becomes a pending move; busy again leaves it pending."""
    rig = Rig()
    desc = rig.requested()
    rig.affinity_result = IrqError(EBUSY, "busy")
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    assert (0xFF, 0x01, 0xF0) == masks(desc)
    rig.core.irq_move_irq(desc.irq)
    assert (True, 0xF0) == (desc.move_pending, desc.pending_mask)
    rig.affinity_result = IRQ_SET_MASK_OK
    rig.core.irq_set_affinity(desc.irq, 0x04)  # a move is pending: this one waits too
    assert (0xFF, 0x01, 0x04) == masks(desc)
    rig.core.irq_move_irq(desc.irq)
    assert (0x04, 0x04, 0) == masks(desc)


def test_pending_moves_that_come_to_nothing():
    """kernel/irq/migration.c v6.10: dropped for lack of a CPU, by an error, if per-CPU; it waits while disabled."""
    rig, desc = pending_rig()
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    rig.core.disable_irq(desc.irq)
    rig.core.irq_move_irq(desc.irq)
    assert desc.move_pending
    rig.core.enable_irq(desc.irq)
    rig.core.online = 0x0F
    rig.core.irq_move_irq(desc.irq)
    assert (0xFF, 0x01, 0) == masks(desc)
    rig.core.irq_set_affinity(desc.irq, 0x02)
    rig.affinity_result = IrqError(EIO, "no")
    rig.core.irq_move_irq(desc.irq)
    assert (0xFF, 0x01, 0, False) == (*masks(desc), desc.move_pending)
    rig.core.irq_set_affinity(desc.irq, 0x02)
    rig.core.modify_status(desc.irq, set_=IRQ_PER_CPU)
    rig.core.irq_move_irq(desc.irq)
    assert ["WARNING: irq 24: a per-CPU irq has a pending move"] == rig.core.log.texts()


def test_a_pending_move_masks_the_irq_meanwhile():
    """kernel/irq/migration.c v6.10: mask, move, unmask, unless it is masked already."""
    told = []
    rig = Rig()
    desc = rig.requested(
        irq_mask=lambda desc, cpu: told.append("mask"), irq_unmask=lambda desc, cpu: told.append("unmask")
    )
    rig.core.modify_status(desc.irq, clear=IRQ_MOVE_PCNTXT)
    rig.core.irq_set_affinity(desc.irq, 0x02)
    told.clear()
    rig.core.irq_move_irq(desc.irq)
    assert ["mask", "unmask"] == told


def test_since_6_14_chips_opt_out():
    """genirq.md 8: MOVE_PCNTXT is gone; IRQCHIP_MOVE_DEFERRED is what makes a move wait."""
    rig, desc = pending_rig(move_pcntxt_is_default=True)
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    assert (0xF0, 0x10, 0) == masks(desc)
    deferred = rig.requested(8, move_deferred=True)
    rig.core.irq_set_affinity(deferred.irq, 0xF0)
    assert (0xFF, 0x01, 0xF0) == masks(deferred)


def test_affinity_before_activation():
    """genirq.md 2.8: with AFFINITY_ON_ACTIVATE an inactive IRQ stores the mask as affinity and as effective."""
    rig = Rig()
    desc = rig.irq()
    rig.core._modify_state(desc, set_=IRQD_AFFINITY_ON_ACTIVATE)
    rig.core.irq_set_affinity(desc.irq, 0xC0)
    assert (0xC0, 0xC0, 0) == masks(desc)
    assert [] == rig.affinity_calls
    rig.core.request_irq(desc.irq, rig.handler)
    rig.core.irq_set_affinity(desc.irq, 0x03)
    assert (0x03, 0x01, 0) == masks(desc)


# ---- hints


def test_the_hint_is_the_drivers():
    """Trap 22: it stays where the driver put it; a failing move is not told."""
    rig = Rig()
    desc = rig.requested()
    rig.core.irq_set_affinity_and_hint(desc.irq, 0x04)
    assert (0x04, 0x04, 0x04) == (desc.affinity, desc.effective_affinity, desc.affinity_hint)
    rig.core.irq_set_affinity_user(desc.irq, 0xF0)
    assert (0xF0, 0x04) == (desc.affinity, desc.affinity_hint)
    rig.affinity_result = IrqError(EIO, "channel is not open")
    rig.core.irq_set_affinity_and_hint(desc.irq, 0x08)
    assert (0xF0, 0x08) == (desc.affinity, desc.affinity_hint)
    rig.core.irq_set_affinity_and_hint(desc.irq, None)
    assert None is desc.affinity_hint


def test_hints_need_an_irq():
    """genirq.md 2.10: EINVAL without descriptor and for a per-CPU-devid IRQ."""
    rig = Rig()
    rig.core.irq_set_percpu_devid(rig.irq().irq)
    for irq in (24, 99):
        assert EINVAL == refused(rig.core.irq_update_affinity_hint, irq, 1)
        assert EINVAL == refused(rig.core.irq_set_affinity_and_hint, irq, 1)


# ---- notifiers


def test_several_changes_give_one_notification():
    """genirq.md 2.10: later, in process context, with the mask as it is then; an error notifies, too."""
    rig = Rig()
    desc = rig.requested()
    heard = []
    rig.core.irq_set_affinity_notifier(desc.irq, IrqAffinityNotify(heard.append))
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    rig.core.irq_set_affinity(desc.irq, 0x0F)
    assert [] == heard
    assert [1, 0] == [rig.core.run_work(), rig.core.run_work()]
    assert [0x0F] == heard
    rig.affinity_result = IrqError(EIO, "no")
    assert EIO == refused(rig.core.irq_set_affinity, desc.irq, 0x30)
    rig.core.run_work()
    assert [0x0F, 0x0F] == heard
    rig.core.modify_status(desc.irq, clear=IRQ_MOVE_PCNTXT)
    rig.core.irq_set_affinity(desc.irq, 0x30)
    rig.core.run_work()
    assert [0x0F, 0x0F, 0x30] == heard


def test_a_notifier_replaces_the_one_before():
    """genirq.md 2.10: its queued work is cancelled and its release called."""
    rig = Rig()
    desc = rig.requested()
    heard = []
    first = IrqAffinityNotify(lambda mask: heard.append("first"), lambda: heard.append("released"))
    rig.core.irq_set_affinity_notifier(desc.irq, first)
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    rig.core.irq_set_affinity_notifier(desc.irq, IrqAffinityNotify(lambda mask: heard.append("second")))
    rig.core.irq_set_affinity(desc.irq, 0x0F)
    rig.core.run_work()
    rig.core.irq_set_affinity_notifier(desc.irq, None)
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    rig.core.run_work()
    assert ["released", "second"] == heard
    assert EINVAL == refused(rig.core.irq_set_affinity_notifier, 99, None)


def test_a_notifier_left_at_free_is_dropped():
    """genirq.md 2.10: a warning; work that is queued does not outlive the descriptor."""
    rig = Rig()
    desc = rig.requested()
    heard = []
    rig.core.irq_set_affinity_notifier(desc.irq, IrqAffinityNotify(heard.append))
    rig.core.irq_set_affinity(desc.irq, 0xF0)
    rig.core.free_irq(desc.irq, "heartbeat")
    assert ["WARNING: irq 24: free_irq with an affinity notifier still set"] == rig.core.log.texts()
    rig.core.irq_dispose_mapping(desc.irq)
    rig.core.run_work()
    assert [] == heard


# ---- the first affinity


def test_startup_chooses_online_cpus_of_the_default():
    """Trap 24: default ff with CPU 7 offline starts as 7f; without any online CPU in it, on all that are."""
    rig = Rig(online=0x7F)
    assert (0x7F, 0x01, 0) == masks(rig.requested(1))
    rig.core.default_affinity = 0x80
    assert (0x7F, 0x01, 0) == masks(rig.requested(2))
    rig.core.set_default_affinity(0x84)
    desc = rig.irq(3)
    assert 0x84 == desc.affinity
    rig.core.request_irq(desc.irq, rig.handler)
    assert (0x04, 0x04, 0) == masks(desc)
    assert 0 == desc.state & IRQD_AFFINITY_SET


def test_default_affinity_is_for_irqs_to_come():
    """genirq.md 2.3: existing IRQs keep theirs; a mask without an online CPU is refused."""
    rig = Rig(online=0x7F)
    desc = rig.requested()
    rig.core.set_default_affinity(0x02)
    assert 0x7F == desc.affinity
    for mask in (0, 0x80):
        assert EINVAL == refused(rig.core.set_default_affinity, mask)
    assert 0x02 == rig.core.default_affinity


def test_a_users_choice_survives_free_and_request():
    """Trap 23: AFFINITY_SET keeps the mask at the next startup, as long as a CPU of it is online."""
    rig = Rig()
    desc = rig.requested()
    rig.core.irq_set_affinity_user(desc.irq, 0xC0)
    rig.core.free_irq(desc.irq, "heartbeat")
    rig.core.online = 0x7F
    rig.core.request_irq(desc.irq, rig.handler)
    assert (0x40, 0x40, 0) == masks(desc)
    rig.core.irq_set_affinity_user(desc.irq, 0x40)
    rig.core.free_irq(desc.irq)
    rig.core.online = 0x3F
    rig.core.request_irq(desc.irq, rig.handler)
    assert (0x3F, 0x01, 0) == masks(desc)
    assert 0 == desc.state & IRQD_AFFINITY_SET


def test_even_a_failed_choice_is_kept():
    """Trap 23: AFFINITY_SET is set by an error, too; then startup goes by the affinity there was."""
    rig = Rig()
    desc = rig.irq()
    rig.core.set_default_affinity(0x0F)
    rig.affinity_result = IrqError(EIO, "no")
    assert EIO == refused(rig.core.irq_set_affinity, desc.irq, 0x02)
    rig.affinity_result = IRQ_SET_MASK_OK
    rig.core.request_irq(desc.irq, rig.handler)
    assert (0xFF, 0x01, 0) == masks(desc)


def test_a_chip_that_refuses_does_not_stop_startup():
    """genirq.md 2.11: the result is ignored; affinity stays as allocated, effective stays empty."""
    rig = Rig()
    rig.affinity_result = IrqError(EIO, "channel is not open")
    desc = rig.requested()
    assert (0xFF, 0, 0) == masks(desc)
    assert desc.started


@pytest.mark.parametrize(
    ("node", "online", "affinity"),
    [(1, 0xFF, 0xF0), (0, 0xFF, 0x0F), (NUMA_NO_NODE, 0xFF, 0xFF), (1, 0x0F, 0x0F)],
)
def test_startup_stays_near_the_node(node, online, affinity):
    """genirq.md 2.11: the CPUs of the node, if one of them is in the mask."""
    rig = Rig(online=online, cpumask_of_node=lambda node: 0x0F << 4 * node)
    desc = rig.irq()
    desc.node = node
    rig.core.request_irq(desc.irq, rig.handler)
    assert affinity == desc.affinity


@pytest.mark.parametrize(
    ("text", "mask"), [(b"2-3", 0x0D), (b"0", 0x01), (b"nonsense", 0x01), (b"9", 0x01), (None, 0xFF)]
)
def test_boot_option_irqaffinity(text, mask):
    """genirq.md 2.11: a list; bad text is ignored, the boot CPU is always in it; without it all CPUs."""
    assert mask == Rig(irqaffinity=text).core.default_affinity


def test_affinity_is_chosen_before_startup_where_the_chip_wants_it():
    """genirq.md 4.6: IRQCHIP_AFFINITY_PRE_STARTUP."""
    rig = Rig()
    told = []

    def set_affinity(desc, mask, force):
        told.append("affinity")
        return rig.set_affinity(desc, mask, force)

    for pre in (False, True):
        rig.chip = rig.make_chip(
            irq_set_affinity=set_affinity,
            irq_startup=lambda desc, cpu: told.append("startup"),
            affinity_pre_startup=pre,
        )
        rig.core.request_irq(rig.irq(1 + pre).irq, rig.handler)
    assert ["startup", "affinity", "affinity", "startup"] == told


def test_per_cpu_irqs_have_no_effective_affinity():
    """Trap 39: the default mask as of allocation, and an empty effective one."""
    rig = Rig()
    desc = rig.irq()
    rig.core.irq_set_percpu_devid(desc.irq)
    rig.core.request_percpu_irq(desc.irq, rig.handler, "Hyper-V VMbus", [None] * 8)
    assert (0xFF, 0, 0) == masks(desc)
    assert not desc.proc_affinity_writable


# ---- managed


def managed(rig, mask, hwirq=7):
    """Map a managed IRQ, as block multiqueue does, and return its descriptor."""
    return rig.core.irq_to_desc(rig.core.irq_create_mapping(rig.domain, hwirq, affinity=mask, managed=True))


def test_managed_irqs_start_on_their_own_mask():
    """genirq.md 2.11, 4.6: the spread mask, whatever the default; the whole of it is kept."""
    rig = Rig(online=0x7F)
    rig.core.set_default_affinity(0x01)
    desc = managed(rig, 0xF0)
    assert IRQD_MANAGED_SHUTDOWN == desc.state & (IRQD_MANAGED_SHUTDOWN | IRQD_AFFINITY_SET)
    rig.core.request_irq(desc.irq, rig.handler)
    assert (0xF0, 0x10, 0) == masks(desc)
    assert 0 == desc.state & IRQD_MANAGED_SHUTDOWN


def test_since_6_18_managed_irqs_start_with_affinity_set():
    """genirq.md 8."""
    assert IRQD_AFFINITY_SET & managed(Rig(managed_starts_set=True), 0xF0).state


def test_a_managed_irq_without_a_cpu_stays_shut_down():
    """genirq.md 4.6: no online CPU in its mask: depth 0, not started; enabling it by hand warns."""
    rig = Rig(online=0x0F)
    desc = managed(rig, 0xF0)
    rig.core.request_irq(desc.irq, rig.handler)
    assert (0, False, IRQD_MANAGED_SHUTDOWN) == (desc.depth, desc.started, desc.state & IRQD_MANAGED_SHUTDOWN)
    other = managed(rig, 0xF0, 8)
    rig.core.request_irq(other.irq, rig.handler, IRQF_NO_AUTOEN)
    rig.core.enable_irq(other.irq)
    assert not other.started
    assert ["WARNING: irq 25 is managed and was enabled"] == rig.core.log.texts()


@pytest.mark.parametrize(("isolated", "online", "seen"), [(0x30, 0xFF, 0xC0), (0xF0, 0xFF, 0xF0), (0x30, 0x3F, 0x30)])
def test_managed_irqs_keep_off_isolated_cpus(isolated, online, seen):
    """genirq.md 2.8, do_set: when an online housekeeping CPU remains in the mask."""
    rig = Rig(isolated=isolated, online=online)
    desc = managed(rig, 0xF0)
    rig.core.request_irq(desc.irq, rig.handler)
    assert (24, seen, False) == rig.affinity_calls[-1]
    assert 0xF0 == desc.affinity
    ordinary = rig.requested(8)
    rig.core.irq_set_affinity(ordinary.irq, 0xF0)
    assert 0xF0 & online == rig.affinity_calls[-1][1]


def test_other_domains_have_affinity_too():
    """An IRQ outside the demultiplexed domain: the IO-APIC's."""
    rig = Rig()
    ioapic = rig.make_chip("IO-APIC")
    ops = IrqDomainOps(
        map=lambda domain, irq, hwirq: rig.core.set_chip_and_handler(irq, ioapic, Flow.FASTEOI, "fasteoi")
    )
    domain = rig.core.irq_domain_create_linear(Fwnode.named_id("IO-APIC", 0), 24, ops)
    desc = rig.core.irq_to_desc(rig.core.irq_create_mapping(domain, 9))
    rig.core.modify_status(desc.irq, set_=IRQ_MOVE_PCNTXT)
    rig.core.request_irq(desc.irq, rig.handler, 0, "acpi")
    rig.core.irq_set_affinity(desc.irq, 0x20)
    assert (0x20, 0x20, 0) == masks(desc)
