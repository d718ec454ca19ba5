"""Software resend: one remembered arrival, replayed once (genirq.md 4.7; kernel/irq/resend.c, v6.10)."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.reference.accounting import HANDLED
from tests.rig import ENGINES, Rig, chip_ops
from vmbusirq._ffi import lib

IRQ = 9


def noting(order: list[int], what: int) -> Callable[[int], int]:
    """Return a handler that appends ``what`` whenever it runs."""

    def handler(_cpu: int) -> int:
        order.append(what)
        return HANDLED

    return handler


PENDING, REPLAY = lib.VI_IRQS_PENDING, lib.VI_IRQS_REPLAY


def remembered(
    engine: str, flow: int = lib.VI_FLOW_SIMPLE, *, ops: tuple[str, ...] = ("mask", "unmask"), cpus: int = 2
) -> Rig:
    """Return a rig whose disabled IRQ has missed an arrival."""
    rig = Rig(engine, cpus=cpus)
    rig.alloc(IRQ, flow, ops=chip_ops(*ops))
    rig.request(IRQ, HANDLED)
    assert 1 == lib.vi_irq_disable(rig.m, IRQ)
    rig.arrive(IRQ, cpus - 1)
    rig.calls.clear()
    return rig


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_to_replay_is_no_error(engine: str) -> None:
    """check_irq_resend() returns 0 when nothing is PENDING."""
    with Rig(engine) as rig:
        rig.alloc(IRQ)
        assert 0 == lib.vi_irq_check_resend(rig.m, IRQ)
        assert 0 == rig.run(0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_level_irq_is_not_replayed(engine: str) -> None:
    """EINVAL, and PENDING is cleared: the line itself still says so."""
    with remembered(engine) as rig:
        assert 0 == lib.vi_irq_modify_settings(rig.m, IRQ, 0, lib.VI_IRQ_LEVEL)
        assert -errno.EINVAL == lib.vi_irq_check_resend(rig.m, IRQ)
        assert 0 == rig.c(IRQ).istate
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        assert 0 == rig.run(0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_replay_on_its_way_is_busy(engine: str) -> None:
    """REPLAY set: EBUSY, until an arrival clears it."""
    with remembered(engine) as rig:
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        assert REPLAY == rig.c(IRQ).istate
        assert -errno.EBUSY == lib.vi_irq_check_resend(rig.m, IRQ)
        rig.settle()
        assert 0 == lib.vi_irq_check_resend(rig.m, IRQ)
        assert 1 == rig.cnt(IRQ)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_chip_that_can_retrigger_does_it_itself(engine: str) -> None:
    """chip.irq_retrigger before the software resend."""
    with remembered(engine, ops=("retrigger",)) as rig:
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        assert [("retrigger", 0)] == rig.calls
        assert REPLAY == rig.c(IRQ).istate
        assert 0 == rig.run(0)
        rig.arrive(IRQ, 1)
        assert (0, 1) == (rig.c(IRQ).istate, rig.cnt(IRQ, 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_replay_runs_on_the_boot_cpu_wherever_the_arrival_was(engine: str) -> None:
    """The resend tasklet belongs to the CPU that enables; here that is the boot CPU."""
    with remembered(engine, cpus=4) as rig:
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        assert [0, 0, 0] == [rig.run(cpu) for cpu in (1, 2, 3)]
        assert 1 == rig.run(0)
        assert [1, 0, 0, 0] == [rig.cnt(IRQ, cpu) for cpu in range(4)]
        assert 0 == rig.run(0)


@pytest.mark.parametrize("engine", ENGINES)
def test_disabled_again_before_the_replay_it_is_remembered_again(engine: str) -> None:
    """The tasklet calls the flow handler, which finds the IRQ disabled and sets PENDING."""
    with remembered(engine) as rig:
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        assert 1 == lib.vi_irq_disable(rig.m, IRQ)
        rig.settle()
        assert (PENDING, 0) == (rig.c(IRQ).istate, rig.cnt(IRQ))


@pytest.mark.parametrize("engine", ENGINES)
def test_shutdown_drops_the_queued_replay(engine: str) -> None:
    """clear_irq_resend(); REPLAY stays, as in v6.10."""
    with remembered(engine) as rig:
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        assert 0 == lib.vi_irq_shutdown(rig.m, IRQ)
        rig.settle()
        assert (REPLAY, 0, 1) == (rig.c(IRQ).istate, rig.cnt(IRQ), rig.c(IRQ).depth)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_freed_irq_is_not_replayed(engine: str) -> None:
    """The tasklet skips numbers that are gone, and does not take a new owner of the number for the old one."""
    with remembered(engine) as rig:
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        rig.free(rig.descs[IRQ].actions[0])
        assert 0 == lib.vi_irq_free_desc(rig.m, IRQ)
        del rig.descs[IRQ]
        rig.alloc(IRQ)
        rig.settle()
        assert (0, 0) == (rig.c(IRQ).istate, rig.cnt(IRQ))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flow", ["edge", "fasteoi"])
def test_edge_and_fasteoi_replay_too(engine: str, flow: str) -> None:
    """What was masked by the arrival is unmasked by the enable, then replayed."""
    with remembered(engine, getattr(lib, f"VI_FLOW_{flow.upper()}"), ops=("ack", "eoi", "mask", "unmask")) as rig:
        assert rig.c(IRQ).state & lib.VI_IRQD_MASKED
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        assert [("unmask", 0)] == rig.calls
        rig.settle()
        assert 1 == rig.cnt(IRQ, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_irqs_replay_in_one_tasklet_run(engine: str) -> None:
    """One list for all of them, walked in the order of their numbers; the softirq counts once."""
    with Rig(engine) as rig:
        order: list[int] = []
        for irq in (40, 3, 17):
            rig.alloc(irq)
            rig.arrive(irq, 1)
            rig.request(irq, noting(order, irq))
        assert 1 == rig.run(0)
        assert [3, 17, 40] == order
        assert 1 == rig.softirq(lib.VI_SOFTIRQ_TASKLET)
