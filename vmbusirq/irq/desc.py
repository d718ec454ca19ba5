"""Descriptors: one IrqDesc per Linux IRQ, and how IRQ numbers are handed out (kernel/irq/irqdesc.c, v6.10).

The half of a descriptor that an interrupt touches lives in C and is read from there; names, masks and policy live here.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.cpumask import cpumask_all, cpumask_first, format_pbl
from vmbusirq.errors import IrqError, check
from vmbusirq.irq.callbacks import in_chip_callback, in_handler
from vmbusirq.irq.chip import NO_IRQ_CHIP, IrqChip
from vmbusirq.irq.settings import (
    IRQ_PER_CPU,
    IRQ_PER_CPU_DEVID,
    IRQD_AFFINITY_MANAGED,
    IRQD_AFFINITY_SET,
    IRQD_IRQ_INPROGRESS,
    IRQD_IRQ_STARTED,
    IRQD_LEVEL,
    IRQD_MANAGED_SHUTDOWN,
    IRQD_PER_CPU,
    IRQD_SETAFFINITY_PENDING,
    NUMA_NO_NODE,
    Flow,
)
from vmbusirq.irq.waits import grace_period
from vmbusirq.log import Log
from vmbusirq.steps import Lock, LockKind, Step, Steps, run

if TYPE_CHECKING:
    from vmbusirq.irq.action import IrqAction
    from vmbusirq.irq.affinity import IrqAffinityNotify
    from vmbusirq.irq.callbacks import Owner
    from vmbusirq.irq.domain import IrqDomain

__all__ = ["DescTable", "IrqDesc", "SpuriousStats"]

U32: Final = 1 << 32
INITIAL_JIFFIES_MS: Final = -300_000  # jiffies start five minutes before they wrap (include/linux/jiffies.h)


@dataclass(frozen=True, slots=True)
class SpuriousStats:
    """The three numbers of /proc/irq/N/spurious; ``last_unhandled_ms`` as shown: jiffies in ms, 0 when never."""

    count: int
    unhandled: int
    last_unhandled_ms: int


class IrqDesc:
    """One Linux IRQ (struct irq_desc).

    Attributes:
        irq: its number.
        table: the core that it belongs to.
        chip: never None; NO_IRQ_CHIP when nobody has set one.
        name: the flow name, ``edge``; None for none.
        domain: the irqdomain that maps it, None for none.
        handler_data: whatever the mapping room wants to find again.
        affinity, effective_affinity, pending_mask: masks as integers. What was asked, what the chip does, and what is
            still to be moved; the core never derives one from another.
        affinity_hint: the mask that the driver suggests, None for none.
        affinity_notify: who hears of changes.
        node: NUMA node, -1 for none.
        actions: in chain order.
        proc_dir: /proc/irq/N exists; proc_affinity_writable: the user could set the affinity when it was made.
        freed: the descriptor is gone; everything that reads C raises IrqError(EIO), as an open file of it does.
    """

    __slots__ = (
        "_c",
        "actions",
        "affinity",
        "affinity_hint",
        "affinity_notify",
        "chip",
        "domain",
        "effective_affinity",
        "handler_data",
        "irq",
        "lock",
        "name",
        "node",
        "pending_mask",
        "proc_affinity_writable",
        "proc_dir",
        "request_mutex",
        "table",
    )

    def __init__(self, table: DescTable, irq: int, affinity: int, node: int, locks: tuple[Lock, Lock]) -> None:
        self.table = table
        self.irq = irq
        self.affinity = affinity
        self.effective_affinity = 0
        self.pending_mask = 0
        self.affinity_hint: int | None = None
        self.affinity_notify: IrqAffinityNotify | None = None
        self.node = node
        self.chip: IrqChip = NO_IRQ_CHIP
        self.name: str | None = None
        self.domain: IrqDomain | None = None
        self.handler_data: Any = None
        self.actions: list[IrqAction] = []
        self.proc_dir = False
        self.proc_affinity_writable = False
        self.lock, self.request_mutex = locks
        self._c: Any = lib.vi_irq_to_desc(table.machine, irq)

    def __repr__(self) -> str:
        return f"<IrqDesc irq {self.irq}{' freed' if self.freed else ''}>"

    @property
    def freed(self) -> bool:
        """True once the descriptor was given back."""
        return self._c is None

    @property
    def c(self) -> Any:
        """The ``struct vi_irq_desc *``."""
        if self._c is None:
            raise IrqError(errno.EIO, f"irq {self.irq}: its descriptor was freed")
        return self._c

    def forget(self) -> None:
        """Let go of the C half, which is about to be freed."""
        self._c = None

    @property
    def hwirq(self) -> int:
        """The number inside the domain, 0 without one."""
        return int(self.c.hwirq)

    @property
    def state(self) -> int:
        """IRQD_* bits."""
        return int(self.c.state)

    @property
    def settings(self) -> int:
        """IRQ_* bits."""
        return int(self.c.settings)

    @property
    def istate(self) -> int:
        """IRQS_* bits."""
        return int(self.c.istate)

    @property
    def depth(self) -> int:
        """Disable depth, 0 = enabled."""
        return int(self.c.depth)

    @property
    def flow(self) -> Flow:
        """The flow handler."""
        return Flow(self.c.flow)

    @property
    def irq_count(self) -> int:
        """Arrivals since the first unhandled one."""
        return int(self.c.irq_count)

    @property
    def irqs_unhandled(self) -> int:
        """Unhandled arrivals of the current window."""
        return int(self.c.irqs_unhandled)

    @property
    def spurious(self) -> SpuriousStats:
        """What /proc/irq/N/spurious shows."""
        last_ms = int(self.c.last_unhandled_ms)
        shown = (last_ms + INITIAL_JIFFIES_MS) % U32 if last_ms else 0
        return SpuriousStats(self.irq_count, self.irqs_unhandled, shown)

    @property
    def in_progress(self) -> bool:
        """True while a CPU runs the actions on the locked path."""
        return bool(self.state & IRQD_IRQ_INPROGRESS)

    @property
    def started(self) -> bool:
        """True between startup and shutdown."""
        return bool(self.state & IRQD_IRQ_STARTED)

    @property
    def is_level(self) -> bool:
        """True for a level triggered IRQ: the ``type`` file and the Level column."""
        return bool(self.state & IRQD_LEVEL)

    @property
    def is_per_cpu(self) -> bool:
        """True for per-CPU IRQs of either kind."""
        return bool(self.settings & (IRQ_PER_CPU | IRQ_PER_CPU_DEVID) or self.state & IRQD_PER_CPU)

    @property
    def move_pending(self) -> bool:
        """True while a new affinity waits for the next interrupt."""
        return bool(self.state & IRQD_SETAFFINITY_PENDING)

    @property
    def shown_affinity(self) -> int:
        """What smp_affinity shows: the pending mask if a move is pending, else the affinity."""
        return self.pending_mask if self.move_pending else self.affinity

    def kstat_irqs_cpu(self, cpu: int) -> int:
        """Return the count of one CPU."""
        assert 0 <= cpu < self.table.nr_cpus
        return int(self.c.kstat_irqs[cpu * self.table.counters.irq_stride])

    def kstat_irqs(self) -> list[int]:
        """Return the counts of all possible CPUs (per_cpu_count)."""
        row, stride = self.c.kstat_irqs, self.table.counters.irq_stride
        return [int(row[cpu * stride]) for cpu in range(self.table.nr_cpus)]

    @property
    def tot_count(self) -> int:
        """The IRQ's number in /proc/stat: all its interrupts, modulo 2**32.

        A flow handler that counts per CPU only leaves it 0, unless the IRQ is marked per-CPU: then it is the sum.
        """
        out = ffi.new("uint32_t *")
        check(lib.vi_irq_stat(self.table.machine, self.c.irq, 1, out), f"irq {self.irq}: has no number in /proc/stat")
        return int(out[0])

    def action_dirs(self) -> list[str]:
        """Return the names of the directories /proc/irq/N/NAME, in chain order."""
        return [action.dir_name for action in self.actions if action.has_dir]

    def update_effective_affinity(self, mask: int) -> None:
        """Say which CPUs the chip delivers to from now on (irq_data_update_effective_affinity).

        The first of them owns the IRQ's slot; where interrupts are redirected, it is their target.
        """
        self.effective_affinity = mask
        if self.c.slot != ffi.NULL and mask:
            words = ffi.from_buffer("uint64_t[]", mask.to_bytes(8 * lib.VI_CPU_WORDS, "little"))
            check(
                lib.vi_irq_set_effective(self.table.machine, self.irq, words, cpumask_first(mask)),
                f"irq {self.irq}: cannot be owned by cpu {cpumask_first(mask)}",
            )


class DescTable:
    """All descriptors of a machine, and the numbers that are free.

    Attributes:
        layout_version: changes whenever the rows of /proc/interrupts may have changed in anything but counts and CPUs.
        chip_name_width: bytes of the longest chip name ever set on a descriptor.
        without: waits that are left out, to see what they are for (:mod:`vmbusirq.irq.waits`).
    """

    def __init__(
        self,
        machine: Any,
        *,
        nr_cpus: int,
        nr_irqs: int,
        dynirq_base: int = 0,
        online: int | None = None,
        log: Log | None = None,
        managed_starts_set: bool = False,
        without: frozenset[str] = frozenset(),
    ) -> None:
        self.machine = machine
        self.without: Final = without
        self.nr_cpus = nr_cpus
        self.possible: Final = cpumask_all(nr_cpus)
        self.online = self.possible if online is None else online
        self.default_affinity = self.possible
        self.nr_irqs_max: Final = int(lib.vi_machine_nr_irqs_max(machine))
        self.nr_irqs = min(nr_irqs, self.nr_irqs_max)
        self.dynirq_base = dynirq_base
        self.log = Log() if log is None else log
        self.descs: dict[int, IrqDesc] = {}
        self.counters = ffi.new("struct vi_counters *")
        lib.vi_machine_counters(machine, self.counters)
        self.owner: Owner
        self.idle: Callable[[Step], object] | None = None
        """Lets others go on while a chip's callback waits, see :func:`vmbusirq.steps.run`."""
        self._managed_state = IRQD_AFFINITY_MANAGED | IRQD_MANAGED_SHUTDOWN
        if managed_starts_set:
            self._managed_state |= IRQD_AFFINITY_SET
        self.layout_version = 0
        self.chip_name_width = 0
        self._allocated = 0
        self._thread = threading.get_ident()

    def __iter__(self) -> Iterator[IrqDesc]:
        """Yield the descriptors in the order of their numbers."""
        return iter([self.descs[irq] for irq in sorted(self.descs)])

    def check_owner(self) -> None:
        """Refuse callers that may not change the control plane now."""
        if threading.get_ident() != self._thread:
            raise IrqError(errno.EBUSY, "irq core: called from a thread that does not own the machine")
        if in_chip_callback():
            raise IrqError(
                errno.EDEADLK, "irq core: called from a chip callback, which runs under the descriptor's lock"
            )

    def may_wait(self, what: str) -> None:
        """Refuse to wait inside a handler for that handler to end."""
        self.check_owner()
        if in_handler():
            raise IrqError(errno.EDEADLK, f"{what}: would wait for running handlers, and is called from one")

    def irq_to_desc(self, irq: int) -> IrqDesc:
        """Return the descriptor of ``irq``. Raises IrqError(EINVAL) when it is not allocated."""
        desc = self.descs.get(irq)
        if desc is None:
            raise IrqError(errno.EINVAL, f"irq {irq}: no such irq; allocated: {format_pbl(self._allocated) or 'none'}")
        return desc

    def alloc_descs(
        self,
        irq: int = -1,
        *,
        from_: int = 0,
        cnt: int = 1,
        node: int = NUMA_NO_NODE,
        affinity: int | None = None,
        managed: bool = False,
    ) -> int:
        """Allocate ``cnt`` consecutive descriptors and return the first number (irq_alloc_descs).

        A negative ``irq`` asks for the lowest free run at or above ``from_``; on x86 the end of the GSI space stands in
        for ``from_``, whatever it says. Any other ``irq`` asks for exactly that number. ``affinity`` stands in for the
        default mask; ``managed`` leaves it to the core for good (block multiqueue). nr_irqs grows if need be.

        Raises:
            IrqError(EINVAL): ``cnt`` below 1, ``from_`` above ``irq``, an empty affinity.
            IrqError(EEXIST): that exact number is taken.
            IrqError(ENOMEM): past the last descriptor of the machine.
        """
        self.check_owner()
        if cnt < 1:
            raise IrqError(errno.EINVAL, f"irq: cannot allocate {cnt} descriptors")
        if irq >= 0:
            if from_ > irq:
                raise IrqError(errno.EINVAL, f"irq {irq}: is below {from_}, from where the search starts")
            from_ = irq
        else:
            from_ = self.dynirq_base or from_
        if affinity is not None and not affinity & self.possible:
            raise IrqError(errno.EINVAL, f"irq: an affinity without any possible cpu; cpus are 0-{self.nr_cpus - 1}")
        start = self._find_free_area(from_, cnt)
        if irq >= 0 and start != irq:
            raise IrqError(errno.EEXIST, f"irq {irq}: already allocated")
        if start + cnt > self.nr_irqs_max:
            raise IrqError(errno.ENOMEM, f"irq {start}: past the last descriptor; this machine has {self.nr_irqs_max}")
        self.nr_irqs = max(self.nr_irqs, start + cnt)
        for number in range(start, start + cnt):
            self._create_desc(number, node, affinity, managed)
        return start

    def _find_free_area(self, from_: int, cnt: int) -> int:
        """Return the lowest number >= ``from_`` at which ``cnt`` numbers are free."""
        runs = ~(self._allocated >> from_)
        length = 1
        while length < cnt:
            more = min(length, cnt - length)
            runs &= runs >> more
            length += more
        return from_ + cpumask_first(runs)

    def _create_desc(self, irq: int, node: int, affinity: int | None, managed: bool) -> None:
        check(lib.vi_irq_alloc_desc(self.machine, irq), f"irq {irq}: cannot allocate the descriptor")
        self._allocated |= 1 << irq
        locks = Lock(f"irq {irq} desc->lock"), Lock(f"irq {irq} request_mutex", LockKind.SLEEPING)
        mask = self.default_affinity if affinity is None else affinity & self.possible
        desc = IrqDesc(self, irq, mask, node, locks)
        self.descs[irq] = desc
        self.layout_version += 1
        if managed:
            self._modify_state(desc, set_=self._managed_state)

    def free_descs(self, irq: int, cnt: int = 1) -> None:
        """Give descriptors back (irq_free_descs). Their counts return to 0; the CPUs' sums keep them.

        Raises:
            IrqError(EBUSY): an action is left, or a domain still maps it. The kernel would free it under its user.
        """
        run(self.free_descs_steps(irq, cnt))

    def free_descs_steps(self, irq: int, cnt: int = 1) -> Steps[None]:
        """Yield the steps of free_descs(): the kernel frees them by call_rcu()."""
        self.may_wait(f"irq {irq}: free descriptor")
        descs = [self.irq_to_desc(number) for number in range(irq, irq + cnt)]
        for desc in descs:
            self._check_free(desc)
        yield from grace_period(self, f"irq {irq}: free_desc", frozenset(f"irq {desc.irq}" for desc in descs))
        for desc in descs:
            check(lib.vi_irq_free_desc(self.machine, desc.irq), f"irq {desc.irq}: cannot free the descriptor")
            desc.forget()
            desc.proc_dir = False
            self._allocated &= ~(1 << desc.irq)
            del self.descs[desc.irq]
            self.layout_version += 1

    def _check_free(self, desc: IrqDesc) -> None:
        if desc.actions:
            names = ", ".join(str(action.name) for action in desc.actions)
            raise IrqError(errno.EBUSY, f"irq {desc.irq}: cannot be freed: {names} still uses it; free_irq first")
        if desc.domain is not None:
            raise IrqError(
                errno.EBUSY, f"irq {desc.irq}: cannot be freed: {desc.domain.name} maps it; dispose the mapping instead"
            )

    def _modify_state(self, desc: IrqDesc, *, clear: int = 0, set_: int = 0) -> None:
        check(lib.vi_irq_modify_state(self.machine, desc.irq, clear, set_), f"irq {desc.irq}: cannot change its state")

    def modify_status(self, irq: int, *, clear: int = 0, set_: int = 0) -> None:
        """Change IRQ_* settings and the state that follows them (irq_modify_status)."""
        self.check_owner()
        desc = self.irq_to_desc(irq)
        check(lib.vi_irq_modify_settings(self.machine, desc.irq, clear, set_), f"irq {irq}: cannot change its settings")
        self.layout_version += 1

    def set_chip_and_handler(self, irq: int, chip: IrqChip | None, flow: Flow, name: str | None = None) -> None:
        """Set chip, flow handler and flow name (irq_set_chip_and_handler_name). No chip means NO_IRQ_CHIP."""
        self.check_owner()
        desc = self.irq_to_desc(irq)
        c_chip = ffi.NULL if chip is None or chip is NO_IRQ_CHIP else chip.c
        check(lib.vi_irq_set_chip_and_flow(self.machine, irq, c_chip, flow), f"irq {irq}: no flow handler {int(flow)}")
        desc.chip = NO_IRQ_CHIP if chip is None else chip
        desc.name = name
        self.chip_name_width = max(self.chip_name_width, len(os.fsencode(desc.chip.name or "")))
        self.layout_version += 1

    def set_handler_data(self, irq: int, data: Any) -> None:
        """Remember ``data`` with the IRQ (irq_set_handler_data)."""
        self.check_owner()
        self.irq_to_desc(irq).handler_data = data
