"""CPUs going offline and coming back (kernel/cpu.c, v6.10): who is asked, in which order, and what is undone.

On the way down VMBus is asked first, on the CPU that goes, while everything still works: it may refuse. The online
mask, and genirq, which moves interrupts off the CPU, come last; on the way up they come first.
"""

from __future__ import annotations

import errno
from typing import Final

from vmbusirq._ffi import lib
from vmbusirq.cpumask import format_pbl
from vmbusirq.errors import IrqError, check
from vmbusirq.hyperv.partition import Partition
from vmbusirq.irq import IrqCore
from vmbusirq.irq.cpuhotplug import CPUS_WRITE_LOCK
from vmbusirq.steps import Context, Step, Steps, holding, run
from vmbusirq.vmbus.connection import VmbusConnection

__all__ = ["CpuSwitch"]


class CpuSwitch:
    """Takes the CPUs of a machine offline and brings them back.

    Args:
        irq, partition, vmbus: the machine's.
        present: mask of the CPUs that the host really has.
        hotpluggable: mask of those of them that can go offline at all.
    """

    def __init__(
        self, irq: IrqCore, partition: Partition, vmbus: VmbusConnection, *, present: int, hotpluggable: int
    ) -> None:
        self._irq = irq
        self._partition = partition
        self._vmbus = vmbus
        self._present = present
        self.hotpluggable: Final = hotpluggable

    def set_online(self, cpu: int, online: bool) -> None:
        """Take a CPU offline or bring it back; nothing happens to one that is where it shall be.

        Raises:
            IrqError: EINVAL there is no such CPU, or it was announced and never came; EPERM it cannot go offline at
                all; EBUSY it is the last one, or VMBus needs it: the machine is as it was; EDEADLK inside a handler.
        """
        run(self.up(cpu) if online else self.down(cpu), self._partition.idle)

    def _check(self, cpu: int) -> None:
        self._irq.may_wait(f"cpu {cpu}: hotplug")
        if not isinstance(cpu, int) or not 0 <= cpu < self._irq.nr_cpus or not self._present >> cpu & 1:
            raise IrqError(
                errno.EINVAL, f"cpu {cpu}: is not present (EINVAL); cpus {format_pbl(self._present)} are present"
            )

    # ---- down

    def down(self, cpu: int) -> Steps[None]:
        """Yield the steps of taking a CPU offline (device_offline, cpu_down)."""
        self._check(cpu)
        if not self.hotpluggable >> cpu & 1:
            raise IrqError(errno.EPERM, f"cpu {cpu}: cannot go offline on this architecture (EPERM)")
        yield Step(f"cpu {cpu}: cpu_down takes cpu_hotplug_lock", takes=CPUS_WRITE_LOCK)
        yield from holding(CPUS_WRITE_LOCK, self._down(cpu))

    def _down(self, cpu: int) -> Steps[None]:
        if not self._irq.online >> cpu & 1:
            return
        if self._irq.online == 1 << cpu:
            raise IrqError(errno.EBUSY, f"cpu {cpu}: cannot go offline: it is the last one that is online (EBUSY)")
        yield from self._vmbus.cpuhp.synic_cleanup(cpu)
        yield Step(f"cpu {cpu}: takes what was raised before stop_machine", ready=lambda: self._is_quiet(cpu))
        self._irq.set_cpu_online(cpu, False)
        yield Step(f"cpu {cpu}: has left the online mask", Context.HARDIRQ)
        yield from self._irq.irq_migrate_all_off_steps(cpu)
        # in stop_machine still: works queued before their IRQ was moved, without their interrupt (smpcfd_dying_cpu)
        check(lib.vi_irq_work_flush(self._irq.machine, cpu), f"cpu {cpu}: its irq_works cannot be run")

    def _is_quiet(self, cpu: int) -> bool:
        return not lib.vi_vcpu_pending(self._irq.machine, cpu)

    # ---- up

    def up(self, cpu: int) -> Steps[None]:
        """Yield the steps of bringing a CPU back (device_online, cpu_up)."""
        self._check(cpu)
        yield Step(f"cpu {cpu}: cpu_up takes cpu_hotplug_lock", takes=CPUS_WRITE_LOCK)
        yield from holding(CPUS_WRITE_LOCK, self._up(cpu))

    def _up(self, cpu: int) -> Steps[None]:
        if self._irq.online >> cpu & 1:
            return
        self._irq.set_cpu_online(cpu, True)
        yield Step(f"cpu {cpu}: is in the online mask, its SynIC is still off")
        yield from self._irq.irq_affinity_online_steps(cpu)
        yield from self._vmbus.cpuhp.synic_init(cpu)
