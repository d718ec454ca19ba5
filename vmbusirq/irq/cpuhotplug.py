"""What becomes of interrupts when a CPU goes offline or comes back (kernel/irq/cpuhotplug.c, v6.10).

The core moves ordinary IRQs off a CPU that has left the online mask, in the last moment, when nobody can be waited for.
Whatever has to be waited for must have been moved before, by its own driver.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import Final

from vmbusirq._ffi import lib
from vmbusirq.cpumask import format_pbl
from vmbusirq.errors import IrqError, check
from vmbusirq.irq.desc import IrqDesc
from vmbusirq.irq.domain import DomainLayer
from vmbusirq.irq.settings import (
    IRQD_ACTIVATED,
    IRQD_AFFINITY_MANAGED,
    IRQD_IRQ_MASKED,
    IRQD_MANAGED_SHUTDOWN,
    IRQD_SETAFFINITY_PENDING,
    IRQD_SINGLE_TARGET,
)
from vmbusirq.log import Level
from vmbusirq.steps import Context, Lock, LockKind, Step, Steps, each, holding

__all__ = ["CPUS_READ_LOCK", "CPUS_WRITE_LOCK", "CpuHotplugLayer"]

CPUS_WRITE_LOCK: Final = Lock("cpu_hotplug_lock", LockKind.SLEEPING)
CPUS_READ_LOCK: Final = Lock("cpu_hotplug_lock", LockKind.SLEEPING, shared=True)


class CpuHotplugLayer(DomainLayer):
    """CPUs that come and go."""

    def set_cpu_online(self, cpu: int, online: bool) -> None:
        """Change the online mask, and nothing else (set_cpu_online).

        Raises:
            IrqError: EINVAL no such CPU; EBUSY the last one that is online cannot leave.
        """
        self.check_owner()
        if not 0 <= cpu < self.nr_cpus:
            raise IrqError(errno.EINVAL, f"cpu {cpu}: does not exist; cpus are 0-{self.nr_cpus - 1}")
        if not online and self.online == 1 << cpu:
            raise IrqError(errno.EBUSY, f"cpu {cpu}: cannot go offline: it is the last one that is online (EBUSY)")
        self.online = self.online | 1 << cpu if online else self.online & ~(1 << cpu)

    # ---- a CPU goes

    def irq_migrate_all_off_steps(self, cpu: int) -> Steps[None]:
        """Yield the steps of moving every IRQ off a CPU that has left the online mask (irq_migrate_all_off_this_cpu).

        An IRQ goes to an online CPU of its affinity; if there is none, to any online CPU, and that stays its affinity
        when the CPU returns. A managed IRQ is shut down instead. What the chip refuses is logged.

        Raises:
            Exception: the first that a chip raised and that is no IrqError; the other IRQs have moved all the same.
        """
        self.check_owner()
        yield from each(*(self._migrate(irq, cpu) for irq in sorted(self.descs)))

    def _migrate(self, irq: int, cpu: int) -> Steps[None]:
        desc = self.descs.get(irq)
        if desc is None:
            return
        touches = frozenset({f"irq {irq}", "online"})
        yield Step(
            f"irq {irq}: migration off cpu {cpu} takes desc->lock", Context.HARDIRQ, takes=desc.lock, touches=touches
        )
        if desc.freed:
            return
        if (yield from holding(desc.lock, self._migrate_one(desc, cpu))):
            text = f"IRQ {irq}: no longer affine to CPU{cpu}"
            self.log.ratelimited("irq_migrate_all_off_this_cpu", Level.DEBUG, text)

    def _migrate_one(self, desc: IrqDesc, cpu: int) -> Steps[bool]:
        """Move one IRQ if it must be; return whether its affinity was broken (migrate_one_irq)."""
        if desc.chip.irq_set_affinity is None:
            self.log.printk(Level.DEBUG, f"IRQ {desc.irq}: Unable to migrate away")
            return False
        if desc.is_per_cpu or not desc.started or not self._needs_fixup(desc, cpu):
            self._drop_lost_move(desc)
            return False
        wanted = desc.affinity
        self._drop_lost_move(desc)
        if desc.move_pending:
            self._modify_state(desc, clear=IRQD_SETAFFINITY_PENDING)
            wanted, desc.pending_mask = desc.pending_mask, 0
        masked = not self._can_move_pcntxt(desc) and not desc.state & IRQD_IRQ_MASKED
        if masked and desc.chip.irq_mask is not None:
            desc.chip.irq_mask(desc, cpu)
        broken = yield from self._move_to_online(desc, wanted)
        if masked and desc.started and desc.chip.irq_unmask is not None:
            desc.chip.irq_unmask(desc, cpu)
        return broken

    def _needs_fixup(self, desc: IrqDesc, cpu: int) -> bool:
        """Return whether an IRQ is delivered to the CPU that goes, or to none that is online (irq_needs_fixup).

        The latter is what a chip leaves behind that has refused before.
        """
        mask = desc.effective_affinity or desc.affinity
        if mask & ~(1 << cpu) and not mask & self.online:
            self.log.warn(
                f"Eff. affinity {format_pbl(mask)} of IRQ {desc.irq} contains only offline CPUs after offlining "
                f"CPU {cpu}"
            )
            return True
        return bool(mask >> cpu & 1)

    def _drop_lost_move(self, desc: IrqDesc) -> None:
        """Forget a move that waits for an interrupt and has no online CPU left to go to."""
        if desc.move_pending and not desc.pending_mask & self.online:
            self._modify_state(desc, clear=IRQD_SETAFFINITY_PENDING)
            desc.pending_mask = 0

    def _move_to_online(self, desc: IrqDesc, wanted: int) -> Steps[bool]:
        managed = bool(desc.state & IRQD_AFFINITY_MANAGED)
        broken = not wanted & self.online
        if broken and managed:
            self._shut_down_managed(desc)
            return False
        try:
            try:
                yield from self._do_set_affinity(desc, self.online if broken else wanted)
            except IrqError as error:
                if error.errno != errno.ENOSPC or managed or broken:
                    raise
                text = f"IRQ{desc.irq}: set affinity failed for {format_pbl(wanted)}, re-try with online CPUs"
                self.log.printk(Level.DEBUG, text)
                broken = True
                yield from self._do_set_affinity(desc, self.online)
        except IrqError as error:
            text = f"IRQ{desc.irq}: set affinity failed({-(error.errno or errno.EIO)})."
            self.log.ratelimited("migrate_one_irq", Level.WARNING, text)
            return False
        return broken

    def _shut_down_managed(self, desc: IrqDesc) -> None:
        self._modify_state(desc, set_=IRQD_MANAGED_SHUTDOWN)
        check(lib.vi_irq_shutdown(self.machine, desc.irq), f"irq {desc.irq}: cannot be shut down")
        if desc.domain is not None and desc.domain.ops.deactivate is not None:
            desc.domain.ops.deactivate(desc.domain, desc.irq)
        self._modify_state(desc, clear=IRQD_ACTIVATED)

    # ---- a CPU comes

    def irq_affinity_online_steps(self, cpu: int) -> Steps[None]:
        """Yield the steps of giving a CPU that has come its managed IRQs back (irq_affinity_online_cpu).

        Ordinary ones stay where they are. What a chip or a domain refuses does not keep the CPU away.
        """
        self.check_owner()
        for irq in sorted(self.descs):
            desc = self.descs.get(irq)
            if desc is None:
                continue
            touches = frozenset({f"irq {irq}", "online"})
            yield Step(f"irq {irq}: restored on cpu {cpu}, takes desc->lock", takes=desc.lock, touches=touches)
            if not desc.freed:
                yield from holding(desc.lock, self._restore_affinity(desc, cpu))

    def _restore_affinity(self, desc: IrqDesc, cpu: int) -> Steps[None]:
        if not desc.state & IRQD_AFFINITY_MANAGED or not desc.actions or not desc.affinity >> cpu & 1:
            return
        if desc.chip.irq_set_affinity is None:
            return
        if desc.state & IRQD_MANAGED_SHUTDOWN and not self._start_managed(desc):
            return
        if not desc.state & IRQD_SINGLE_TARGET or self._should_isolate(desc, cpu):
            with suppress(IrqError):
                yield from self._set_affinity_locked(desc, desc.affinity, force=False)

    def _start_managed(self, desc: IrqDesc) -> bool:
        """Start an IRQ that was shut down with its last CPU; return whether its domain let it."""
        try:
            if desc.domain is not None and desc.domain.ops.activate is not None:
                desc.domain.ops.activate(desc.domain, desc.irq)
        except IrqError as error:
            self.log.warn(f"WARNING: irq {desc.irq}: irq_domain_activate_irq failed ({-(error.errno or errno.EIO)})")
            return False
        self._modify_state(desc, set_=IRQD_ACTIVATED)
        self._startup(desc, force=False)
        return True

    def _should_isolate(self, desc: IrqDesc, cpu: int) -> bool:
        """Return whether an IRQ leaves isolated CPUs, now that a housekeeping one has come (hk_should_isolate)."""
        return bool(desc.effective_affinity & self.isolated) and not self.isolated >> cpu & 1
