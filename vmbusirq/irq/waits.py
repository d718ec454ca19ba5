"""What a control path waits for before it frees what an interrupt may have in its hands (kernel/irq/manage.c, v6.10).

A thread that drives a CPU is waited for in C, in the call that unlinks. These are the waits for CPUs that are run step
by step (``vi_step_*``): over at once where there are none. ``DescTable.without`` leaves some of them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmbusirq._ffi import lib
from vmbusirq.steps import Lock, Step, Steps

if TYPE_CHECKING:
    from vmbusirq.irq.desc import DescTable, IrqDesc

__all__ = ["GRACE_PERIOD", "SYNCHRONIZE_IRQ", "grace_period", "handlers_done"]

GRACE_PERIOD: Final = "grace period"
SYNCHRONIZE_IRQ: Final = "synchronize_irq"


def grace_period(table: DescTable, what: str, touches: frozenset[str] | None = None) -> Steps[None]:
    """Wait until every CPU has left the interrupt that it is in now, softirqs included (RCU).

    What was unlinked before is in nobody's hands after it; interrupts that begin later do not count.
    """
    if GRACE_PERIOD in table.without:
        return
    machine = table.machine
    began = {cpu: seq for cpu in range(table.nr_cpus) if (seq := lib.vi_step_seq(machine, cpu))}

    def is_over() -> bool:
        return all(lib.vi_step_seq(machine, cpu) != seq for cpu, seq in began.items())

    yield Step(f"{what} waits for a grace period", ready=is_over, touches=touches)


def handlers_done(
    table: DescTable,
    desc: IrqDesc,
    what: str,
    locks: tuple[Lock, ...] = (),
    touches: frozenset[str] | None = None,
) -> Steps[None]:
    """Wait until no CPU is in a handler of an IRQ (__synchronize_irq); ``touches``: what comes after, see Step."""
    if SYNCHRONIZE_IRQ in table.without:
        return
    irq = desc.irq
    yield Step(
        f"irq {irq}: {what} waits for running handlers",
        locks=locks,
        ready=lambda: not lib.vi_step_running(table.machine, irq),
        touches=touches,
    )
