"""The genirq core of one machine: descriptors, affinity, requests and domains over one C data plane."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, check
from vmbusirq.irq.callbacks import Owner
from vmbusirq.irq.cpuhotplug import CpuHotplugLayer
from vmbusirq.irq.domain import IrqDomain
from vmbusirq.log import Level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["IrqCore"]

BOGUS_REPORTS_MAX = 100  # kernel/irq/spurious.c, report_bad_irq


class IrqCore(CpuHotplugLayer):
    """genirq over a ``struct vi_machine *``.

    The machine is kept alive as long as this object. Everything that changes something belongs to the thread that made
    it; other threads get IrqError(EBUSY). What would wait for handlers raises IrqError(EDEADLK) inside one.

    Args:
        machine: the C machine; the core becomes its owner (vi_machine_set_owner) and sets its hooks.
        nr_cpus: possible CPUs, as the machine was made with.
        nr_irqs: slots at boot; grows when a higher number is allocated (see generations.nr_irqs_at_boot).
        dynirq_base: lowest dynamic IRQ, the end of the GSI space on x86; 0 where the architecture sets none.
        online: mask of online CPUs at boot, all possible ones by default; the ``online`` attribute follows hotplug.
        log: where the kernel's messages go.
        generic_pending_irq: moves can wait for the next interrupt (CONFIG_GENERIC_PENDING_IRQ: x86 yes, arm64 no).
        move_pcntxt_is_default: since 6.14: chips say when they cannot move in process context, not when they can.
        managed_starts_set: since 6.18: managed descriptors start with AFFINITY_SET.
        cond_oneshot: since 6.11: request_irq adds IRQF_COND_ONESHOT.
        isolated: CPUs that managed IRQs keep away from.
        cpumask_of_node: the CPUs of a NUMA node.
        irqaffinity: text of the boot option of that name.
        boot_cpu: always in the default affinity that the option sets.
        noirqdebug: the boot option of that name.
        without: waits that are left out, to see what they are for.
    """

    def __init__(self, machine: Any, *, nr_cpus: int, nr_irqs: int, **options: Any) -> None:
        super().__init__(machine, nr_cpus=nr_cpus, nr_irqs=nr_irqs, **options)
        self.owner = Owner(machine, self)
        self._bogus_reports = 0

    @property
    def counts(self) -> NDArray[np.uint32]:
        """Interrupts handled since boot.

        Returns:
            uint32, shape (nr_irqs, n_possible_cpus), in interrupts; row i is IRQ i, column c is CPU c. A live read-only
            view on C memory, which it keeps alive: later interrupts change it; copy it to keep it. Wraps at 2**32.
        """
        import numpy as np

        keep = self.machine
        first = ffi.gc(self.counters.irq, lambda _: keep)  # the memory is the machine's: the view holds it through this
        stride = self.counters.irq_stride
        memory = ffi.buffer(first, self.nr_cpus * stride * 4)
        counts = np.frombuffer(memory, dtype=np.uint32).reshape(self.nr_cpus, stride).T[: self.nr_irqs]
        counts.flags.writeable = False
        return counts

    # ---- delivery

    def generic_handle_irq(self, irq: int, cpu: int, times: int = 1) -> None:
        """Let the flow handler of an IRQ run on a CPU, ``times`` over. Raises IrqError(EINVAL): no such IRQ or CPU."""
        what = f"irq {irq}: no such irq, or no cpu {cpu}"
        if not (0 <= irq < self.nr_irqs_max and 0 <= cpu < self.nr_cpus and 0 <= times < 1 << 32):
            raise IrqError(errno.EINVAL, what)
        check(lib.vi_generic_handle_irq_times(self.machine, cpu, irq, times), what)

    def generic_handle_domain_irq(self, domain: IrqDomain, hwirq: int, cpu: int) -> None:
        """Let the flow handler behind a hwirq run on a CPU. Raises IrqError(EINVAL): not mapped, or no such CPU."""
        irq = self.irq_find_mapping(domain, hwirq)
        if not irq:
            raise IrqError(errno.EINVAL, f"{domain.name}: hwirq {hwirq} is not mapped")
        self.generic_handle_irq(irq, cpu)

    def reraise(self) -> None:
        """Raise the first exception that a callback raised since the last call, if any did."""
        self.owner.reraise()

    # ---- what the data plane has to say

    def report(self, what: int, irq: int, value: int, cpu: int) -> None:
        """Put a report of the data plane (enum vi_report) into the log, in the kernel's words."""
        if what == lib.VI_REPORT_NOBODY_CARED:
            self._report_bad_irq(irq, f'irq {irq}: nobody cared (try booting with the "irqpoll" option)')
            self.log.printk(Level.EMERG, f"Disabling IRQ #{irq}")
        elif what == lib.VI_REPORT_BOGUS_RETURN:
            self._bogus_reports += 1
            if self._bogus_reports <= BOGUS_REPORTS_MAX:
                self._report_bad_irq(irq, f"irq event {irq}: bogus return value {value:x}")
        elif what == lib.VI_REPORT_BAD_IRQ:
            self.log.ratelimited("ack_bad_irq", Level.ERR, f"unexpected IRQ trap at vector {irq:02x}")
        elif what == lib.VI_REPORT_SPURIOUS_PERCPU:
            unmasked = " and unmasked" if value else ""
            self.log.once(
                "handle_percpu_devid_irq", Level.ERR, f"genirq: Spurious{unmasked} percpu IRQ{irq} on CPU{cpu}"
            )
        elif what == lib.VI_REPORT_WAKE_WITHOUT_THREAD:
            self._warn_no_thread(irq)

    def _report_bad_irq(self, irq: int, text: str) -> None:
        self.log.err(f"{text}\nhandlers:")
        for action in self.descs[irq].actions:
            self.log.err(f"[<{int(ffi.cast('uintptr_t', action.c.handler)):016x}>] {action.name}")

    def _warn_no_thread(self, irq: int) -> None:
        actions = self.descs[irq].actions
        action = next((action for action in actions if action.woke_thread), actions[0])
        action.woke_thread = False
        if not action.wake_warned:
            action.wake_warned = True
            self.log.warn(
                f"genirq: IRQ {irq} device {action.name} returned IRQ_WAKE_THREAD but no thread function available."
            )
