"""Where an IRQ is delivered: what was asked, what the chip did, hints, notifiers.

The core passes the online part of a request to the chip and stores the request itself. It never touches the effective
mask, which is the chip's to update, except for an IRQ that can only be set once it is activated (kernel/irq/manage.c
and migration.c, v6.10).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Final

from vmbusirq.cpumask import bitmap_parselist, format_pbl
from vmbusirq.errors import IrqError
from vmbusirq.irq.desc import DescTable, IrqDesc
from vmbusirq.irq.settings import (
    IRQ_PER_CPU_DEVID,
    IRQ_SET_MASK_OK,
    IRQ_SET_MASK_OK_DONE,
    IRQ_SET_MASK_OK_NOCOPY,
    IRQD_ACTIVATED,
    IRQD_AFFINITY_MANAGED,
    IRQD_AFFINITY_ON_ACTIVATE,
    IRQD_AFFINITY_SET,
    IRQD_IRQ_DISABLED,
    IRQD_IRQ_MASKED,
    IRQD_MOVE_PCNTXT,
    IRQD_NO_BALANCING,
    IRQD_PER_CPU,
    IRQD_SETAFFINITY_PENDING,
    NUMA_NO_NODE,
)
from vmbusirq.log import Level
from vmbusirq.steps import Step, Steps, holding, run

__all__ = ["AffinityLayer", "IrqAffinityNotify"]

SET_MASK_RESULTS: Final = (IRQ_SET_MASK_OK, IRQ_SET_MASK_OK_NOCOPY, IRQ_SET_MASK_OK_DONE)


class IrqAffinityNotify:
    """Who hears of affinity changes of one IRQ (struct irq_affinity_notify).

    ``notify`` gets the new mask, later and in process context; several changes before that give one call. ``release``
    is called when another notifier, or none, takes its place.
    """

    def __init__(self, notify: Callable[[int], object], release: Callable[[], object] = lambda: None) -> None:
        self.notify = notify
        self.release = release


class AffinityLayer(DescTable):
    """Affinity of IRQs.

    Attributes:
        isolated: CPUs that managed IRQs keep away from when they can (isolcpus=managed_irq).
        no_irq_affinity: user space may move nothing, as on chipsets whose quirk says so (kernel/irq/proc.c).
        cpumask_of_node: the CPUs of a NUMA node.
    """

    def __init__(
        self,
        machine: Any,
        *,
        generic_pending_irq: bool = True,
        move_pcntxt_is_default: bool = False,
        isolated: int = 0,
        cpumask_of_node: Callable[[int], int] | None = None,
        irqaffinity: bytes | None = None,
        boot_cpu: int = 0,
        **table: Any,
    ) -> None:
        super().__init__(machine, **table)
        self.isolated = isolated
        self.no_irq_affinity = False
        self.cpumask_of_node: Callable[[int], int] = cpumask_of_node or (lambda node: self.possible)
        self._generic_pending_irq = generic_pending_irq
        self._move_pcntxt_is_default = move_pcntxt_is_default
        self._work: deque[tuple[IrqDesc, IrqAffinityNotify]] = deque()
        if irqaffinity is not None:
            self.default_affinity = self._boot_affinity(irqaffinity) | 1 << boot_cpu

    def _boot_affinity(self, text: bytes) -> int:
        """What the boot option irqaffinity= says; a bad text says nothing."""
        try:
            return bitmap_parselist(text, self.nr_cpus)
        except IrqError:
            return 0

    # ---- may it be moved

    def can_set_affinity(self, desc: IrqDesc) -> bool:
        """Return True if the chip can move the IRQ, which is not per-CPU or exempt (irq_can_set_affinity)."""
        return desc.chip.irq_set_affinity is not None and not desc.state & (IRQD_PER_CPU | IRQD_NO_BALANCING)

    def can_set_affinity_usr(self, desc: IrqDesc) -> bool:
        """Return True if user space may move it, too: not for managed IRQs (irq_can_set_affinity_usr)."""
        return self.can_set_affinity(desc) and not desc.state & IRQD_AFFINITY_MANAGED

    def _can_move_pcntxt(self, desc: IrqDesc) -> bool:
        if not self._generic_pending_irq:
            return True
        if self._move_pcntxt_is_default:
            return not desc.chip.move_deferred
        return bool(desc.state & IRQD_MOVE_PCNTXT)

    # ---- moving

    def irq_set_affinity(self, irq: int, mask: int, *, force: bool = False) -> None:
        """Move an IRQ to the CPUs of ``mask``; what is offline in it is stored and shown, but not used.

        Raises:
            IrqError(EINVAL): no such IRQ, a chip that cannot move it, no CPU of the mask is online.
            IrqError: whatever the chip raises.

        See: kernel/irq/manage.c, irq_set_affinity, v6.10.
        """
        run(self.irq_set_affinity_steps(irq, mask, force=force), self.idle)

    def irq_set_affinity_user(self, irq: int, mask: int) -> None:
        """Do what a write to smp_affinity does with the mask it parsed.

        Whether user space may set it at all is can_set_affinity_usr(); the errno of a refusal is the caller's.

        Raises:
            IrqError(EINVAL): no CPU of the mask is online; others as irq_set_affinity().
        """
        self.check_owner()
        self.irq_to_desc(irq)
        self._check_mask(f"irq {irq}", mask)
        if not mask & self.online:
            raise self._not_online(f"irq {irq}", mask)
        self.irq_set_affinity(irq, mask)

    def irq_set_affinity_steps(self, irq: int, mask: int, *, force: bool = False) -> Steps[None]:
        """Yield the steps of irq_set_affinity()."""
        self.check_owner()
        desc = self.irq_to_desc(irq)
        self._check_mask(f"irq {irq}", mask)
        touches = frozenset({f"irq {irq}", "online"})
        yield Step(f"irq {irq}: irq_set_affinity takes desc->lock", takes=desc.lock, touches=touches)
        yield from holding(desc.lock, self._set_affinity_locked(desc, mask, force))

    def _set_affinity_locked(self, desc: IrqDesc, mask: int, force: bool) -> Steps[None]:
        if desc.chip.irq_set_affinity is None:
            raise IrqError(
                errno.EINVAL,
                f"irq {desc.irq}: cannot move to {cpus_text(mask)}: its chip {desc.chip.name} cannot",
            )
        if desc.state & IRQD_AFFINITY_ON_ACTIVATE and not desc.state & IRQD_ACTIVATED:
            desc.affinity = mask
            desc.update_effective_affinity(mask)
            self._modify_state(desc, set_=IRQD_AFFINITY_SET)
            return
        try:
            if self._can_move_pcntxt(desc) and not desc.move_pending:
                yield from self._try_set_affinity(desc, mask, force)
            else:
                self._set_pending(desc, mask)
        except Exception:
            self._affinity_was_set(desc)  # an error changes nothing about that
            raise
        self._affinity_was_set(desc)

    def _affinity_was_set(self, desc: IrqDesc) -> None:
        if desc.affinity_notify is not None:
            self._schedule_notify(desc, desc.affinity_notify)
        self._modify_state(desc, set_=IRQD_AFFINITY_SET)

    def _try_set_affinity(self, desc: IrqDesc, mask: int, force: bool) -> Steps[None]:
        try:
            yield from self._do_set_affinity(desc, mask, force)
        except IrqError as error:
            if error.errno != errno.EBUSY or force or not self._generic_pending_irq:
                raise
            self._set_pending(desc, mask)

    def _set_pending(self, desc: IrqDesc, mask: int) -> None:
        desc.pending_mask = mask
        self._modify_state(desc, set_=IRQD_SETAFFINITY_PENDING)

    def _do_set_affinity(self, desc: IrqDesc, mask: int, force: bool = False) -> Steps[None]:
        """Let the chip do it, and store the request if the chip says so (irq_do_set_affinity)."""
        prog = mask
        if desc.state & IRQD_AFFINITY_MANAGED and self.isolated and mask & ~self.isolated & self.online:
            prog = mask & ~self.isolated
        prog = mask if force else prog & self.online
        if not prog and not force:
            raise self._not_online(f"irq {desc.irq}", mask)
        set_affinity = desc.chip.irq_set_affinity
        assert set_affinity is not None
        # of others a chip's callback touches nothing before its own first step
        touches = frozenset({f"irq {desc.irq}"})
        yield Step(f"irq {desc.irq}: {desc.chip.name} irq_set_affinity({cpus_text(prog)})", touches=touches)
        result = set_affinity(desc, prog, force)
        if isinstance(result, Generator):
            result = yield from result
        if result not in SET_MASK_RESULTS:
            raise IrqError(
                errno.EINVAL,
                f"irq {desc.irq}: chip {desc.chip.name} irq_set_affinity returned {result}",
            )
        if result != IRQ_SET_MASK_OK_NOCOPY:
            desc.affinity = mask
        if not desc.effective_affinity:
            self.log.once(
                "irq_validate_effective_affinity",
                Level.WARNING,
                f"genirq: irq_chip {desc.chip.name} did not update eff. affinity mask of irq {desc.irq}",
            )

    def _check_mask(self, who: str, mask: int) -> None:
        if mask < 0:
            raise IrqError(errno.EINVAL, f"{who}: {mask} is no mask; bit n is cpu n (EINVAL)")
        if mask & ~self.possible:
            raise IrqError(
                errno.EINVAL,
                f"{who}: cpu {mask.bit_length() - 1} is past the last; cpus are 0-{self.nr_cpus - 1}",
            )

    def _not_online(self, who: str, mask: int) -> IrqError:
        online = format_pbl(self.online)
        if not mask:
            return IrqError(errno.EINVAL, f"{who}: an empty cpu set (EINVAL); online: {online}")
        cpus = cpus_text(mask)
        offline = f"{cpus} {'is' if mask.bit_count() == 1 else 'are'} offline"
        return IrqError(errno.EINVAL, f"{who}: cannot move to {cpus}: {offline} (EINVAL); online: {online}")

    # ---- moves that wait for the IRQ's next interrupt

    def irq_move_irq(self, irq: int) -> None:
        """Do a move that waits for this IRQ's next interrupt, now that one has come (irq_move_irq).

        Nothing happens while the IRQ is disabled. A chip that is busy leaves the move pending. The kernel calls it from
        the chip's ack; here the descriptor's lock is held there, so who delivers to such a chip calls it afterwards.
        """
        self.check_owner()
        desc = self.irq_to_desc(irq)
        if not desc.move_pending or desc.state & IRQD_IRQ_DISABLED:
            return
        masked = desc.state & IRQD_IRQ_MASKED
        cpu = 0
        if not masked and desc.chip.irq_mask is not None:
            desc.chip.irq_mask(desc, cpu)
        self._move_masked_irq(desc)
        if not masked and desc.chip.irq_unmask is not None:
            desc.chip.irq_unmask(desc, cpu)

    def _move_masked_irq(self, desc: IrqDesc) -> None:
        self._modify_state(desc, clear=IRQD_SETAFFINITY_PENDING)
        if desc.is_per_cpu:
            self.log.warn(f"WARNING: irq {desc.irq}: a per-CPU irq has a pending move")
            return
        if not desc.pending_mask or desc.chip.irq_set_affinity is None:
            return
        if desc.pending_mask & self.online:
            try:
                run(self._do_set_affinity(desc, desc.pending_mask), self.idle)
            except IrqError as error:
                if error.errno == errno.EBUSY:
                    self._modify_state(desc, set_=IRQD_SETAFFINITY_PENDING)
                    return
        desc.pending_mask = 0

    # ---- the first affinity

    def _setup_affinity(self, desc: IrqDesc) -> None:
        """Choose where a starting IRQ goes: a user's earlier choice or the default, online, near its node."""
        if not self.can_set_affinity(desc):
            return
        wanted = self.default_affinity
        if desc.state & (IRQD_AFFINITY_MANAGED | IRQD_AFFINITY_SET):
            if desc.affinity & self.online:
                wanted = desc.affinity
            else:
                self._modify_state(desc, clear=IRQD_AFFINITY_SET)
        mask = wanted & self.online or self.online
        if desc.node != NUMA_NO_NODE:
            mask = mask & self.cpumask_of_node(desc.node) or mask
        self._start_on(desc, mask)

    def _start_on(self, desc: IrqDesc, mask: int) -> None:
        with suppress(IrqError):  # startup goes on wherever the chip delivers to now, as in the kernel
            run(self._do_set_affinity(desc, mask), self.idle)

    def set_default_affinity(self, mask: int) -> None:
        """Set the mask of IRQs that are allocated or started later (a write to default_smp_affinity).

        Raises:
            IrqError(EINVAL): no CPU of the mask is online.
        """
        self.check_owner()
        self._check_mask("default_smp_affinity", mask)
        if not mask & self.online:
            raise self._not_online("default_smp_affinity", mask)
        self.default_affinity = mask

    # ---- hints and notifiers

    def irq_update_affinity_hint(self, irq: int, hint: int | None) -> None:
        """Set what affinity_hint shows; None takes it back.

        Raises:
            IrqError(EINVAL): no such IRQ, or a per-CPU-devid one.
        """
        self.check_owner()
        desc = self.irq_to_desc(irq)
        if desc.settings & IRQ_PER_CPU_DEVID:
            raise IrqError(errno.EINVAL, f"irq {irq}: per-CPU interrupts take no affinity hint")
        desc.affinity_hint = hint

    def irq_set_affinity_and_hint(self, irq: int, hint: int | None) -> None:
        """Set the hint and move the IRQ there; that the move fails is not told, as in the kernel.

        Raises:
            IrqError(EINVAL): no such IRQ, or a per-CPU-devid one.
        """
        self.irq_update_affinity_hint(irq, hint)
        if hint is not None:
            with suppress(IrqError):
                self.irq_set_affinity(irq, hint)

    def irq_set_affinity_notifier(self, irq: int, notify: IrqAffinityNotify | None) -> None:
        """Let ``notify`` hear of affinity changes; the one before is released and hears of nothing that was queued.

        Raises:
            IrqError(EINVAL): no such IRQ.
        """
        self.check_owner()
        desc = self.irq_to_desc(irq)
        before, desc.affinity_notify = desc.affinity_notify, notify
        if before is not None:
            self._work = deque(work for work in self._work if work[1] is not before)
            before.release()

    def _schedule_notify(self, desc: IrqDesc, notify: IrqAffinityNotify) -> None:
        if all(queued is not notify for _, queued in self._work):
            self._work.append((desc, notify))

    def run_work(self) -> int:
        """Run what was left for process context, notifiers of affinity changes; return how many ran."""
        self.check_owner()
        ran = 0
        while self._work:
            desc, notify = self._work.popleft()
            ran += 1
            if not desc.freed:
                notify.notify(desc.shown_affinity)
        return ran


def cpus_text(mask: int) -> str:
    """Return ``cpu 7``, ``cpus 2-5`` or ``no cpu``, for messages."""
    if not mask:
        return "no cpu"
    return f"cpu{'s' if mask.bit_count() > 1 else ''} {format_pbl(mask)}"
