"""Interrupts that every CPU has for itself, with a cookie per CPU (kernel/irq/manage.c, v6.10, the percpu half)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from vmbusirq._ffi import lib
from vmbusirq.cpumask import cpumask_first
from vmbusirq.errors import IrqError, check
from vmbusirq.irq.action import IrqAction
from vmbusirq.irq.desc import IrqDesc
from vmbusirq.irq.manage import ManageLayer, check_handler
from vmbusirq.irq.settings import (
    IRQ_NOAUTOEN,
    IRQ_NOPROBE,
    IRQ_NOREQUEST,
    IRQ_PER_CPU,
    IRQ_PER_CPU_DEVID,
    IRQF_NO_SUSPEND,
    IRQF_PERCPU,
    IRQF_TIMER,
)
from vmbusirq.steps import run

__all__ = ["PercpuLayer"]


class PercpuLayer(ManageLayer):
    """Per-CPU-devid IRQs."""

    def irq_set_percpu_devid(self, irq: int) -> None:
        """Mark an IRQ as one that every CPU has for itself, with a cookie of its own."""
        self.modify_status(irq, set_=IRQ_NOAUTOEN | IRQ_PER_CPU | IRQ_NOPROBE | IRQ_PER_CPU_DEVID)

    def request_percpu_irq(
        self, irq: int, handler: Any, name: str | None, percpu_dev_id: Sequence[Any] | None, flags: int = 0
    ) -> None:
        """Set the handler of a per-CPU-devid IRQ; every CPU enables it for itself.

        ``percpu_dev_id`` holds one cookie per possible CPU; the handler gets that of the CPU it runs on.

        Raises:
            IrqError(EINVAL): no cookies or not one per CPU, no such IRQ, not a per-CPU-devid one, flags other than
                IRQF_TIMER.
            IrqError: as request_irq().
        """
        self.check_owner()
        if percpu_dev_id is None:
            raise IrqError(errno.EINVAL, f"irq {irq}: a per-CPU request needs a cookie per CPU")
        if len(percpu_dev_id) != self.nr_cpus:
            raise IrqError(
                errno.EINVAL,
                f"irq {irq}: {len(percpu_dev_id)} cookies; give one for each of {self.nr_cpus} cpus",
            )
        desc = self.irq_to_desc(irq)
        if desc.settings & IRQ_NOREQUEST or not desc.settings & IRQ_PER_CPU_DEVID:
            raise IrqError(errno.EINVAL, f"irq {irq}: is not a per-CPU irq with cookies; irq_set_percpu_devid first")
        if flags not in (0, IRQF_TIMER):
            raise IrqError(errno.EINVAL, f"irq {irq}: flags {flags:#x}: a per-CPU request takes IRQF_TIMER only")
        check_handler(irq, handler, IRQF_PERCPU, batched=False)
        flags |= IRQF_PERCPU | IRQF_NO_SUSPEND
        run(self._setup_irq(desc, IrqAction(desc, handler, flags, name, None, percpu_dev_id)))

    def free_percpu_irq(self, irq: int, percpu_dev_id: Sequence[Any]) -> str | None:
        """Remove the handler of a per-CPU-devid IRQ and return its name.

        A warning in the log and None: the handler has other cookies, or a CPU has the IRQ still enabled.

        Raises:
            IrqError(EINVAL): no such IRQ, or not a per-CPU-devid one.
            IrqError(EDEADLK): called from an interrupt handler.
        """
        self.may_wait(f"irq {irq}: free_percpu_irq")
        desc = self._percpu_desc(irq)
        action = desc.actions[0] if desc.actions else None
        if action is None or action.percpu_dev_id is not percpu_dev_id:
            self.log.warn(f"Trying to free already-free IRQ {irq}")
            return None
        enabled = self.percpu_enabled(irq)
        if enabled:
            self.log.warn(f"percpu IRQ {irq} still enabled on CPU{cpumask_first(enabled)}!")
            return None
        self._unlink_action(desc, action)
        action.unbind()
        return action.name

    def _percpu_desc(self, irq: int) -> IrqDesc:
        desc = self.irq_to_desc(irq)
        if not desc.settings & IRQ_PER_CPU_DEVID:
            raise IrqError(errno.EINVAL, f"irq {irq}: has no cookies per CPU; use enable_irq and disable_irq")
        return desc

    def percpu_enabled(self, irq: int) -> int:
        """Return the mask of CPUs that have a per-CPU-devid IRQ enabled."""
        words = self._percpu_desc(irq).c.percpu_enabled
        return sum(int(words[word]) << (64 * word) for word in range((self.nr_cpus + 63) // 64))

    def enable_percpu_irq(self, irq: int, cpu: int) -> None:
        """Let ``cpu`` take a per-CPU-devid IRQ. Raises IrqError(EINVAL): no such IRQ or CPU, or not such an IRQ."""
        self._set_percpu(irq, cpu, on=True)

    def disable_percpu_irq(self, irq: int, cpu: int) -> None:
        """Undo enable_percpu_irq()."""
        self._set_percpu(irq, cpu, on=False)

    def _set_percpu(self, irq: int, cpu: int, *, on: bool) -> None:
        self.check_owner()
        self._percpu_desc(irq)
        if not 0 <= cpu < self.nr_cpus:
            raise IrqError(errno.EINVAL, f"irq {irq}: cpu {cpu} does not exist; cpus are 0-{self.nr_cpus - 1}")
        check(lib.vi_irq_percpu_enable(self.machine, irq, cpu, on), f"irq {irq}: cannot be switched on cpu {cpu}")
