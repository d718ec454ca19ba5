"""CPUs going offline and coming back (kernel/cpu.c, v6.10): who is asked, in which order, and what is undone.

On the way down VMBus is asked first, on the CPU that goes, while everything still works: it may refuse. The online
mask, genirq, which moves interrupts off the CPU, and its timer come last; on the way up they come first.
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
from vmbusirq.steps import STOP_MACHINE, Context, Step, Steps, each, holding, run
from vmbusirq.vmbus.clockevent import ClockEvents
from vmbusirq.vmbus.connection import VmbusConnection

__all__ = ["CpuSwitch"]

_ONLINE: Final = frozenset({"online"})


class CpuSwitch:
    """Takes the CPUs of a machine offline and brings them back.

    Args:
        irq, partition, vmbus, clockevents: the machine's.
        present: mask of the CPUs that the host really has.
        hotpluggable: mask of those of them that can go offline at all.
    """

    def __init__(
        self,
        irq: IrqCore,
        partition: Partition,
        vmbus: VmbusConnection,
        clockevents: ClockEvents,
        *,
        present: int,
        hotpluggable: int,
    ) -> None:
        self._irq = irq
        self._partition = partition
        self._vmbus = vmbus
        self._clockevents = clockevents
        self._present = present
        self.hotpluggable: Final = hotpluggable
        self._left_at: dict[int, int] = {}
        self._away: dict[int, int] = {}  # until it came back last

    def online_ticks(self, cpu: int) -> int:
        """Return how long a CPU has been online since boot, in ticks of 100 ns; 0: it never was."""
        if not self._present >> cpu & 1:
            return 0
        return self._left_at.get(cpu, self._partition.clock.now) - self._away.get(cpu, 0)

    def set_online(self, cpu: int, online: bool) -> None:
        """Take a CPU offline or bring it back; nothing happens to one that is where it shall be.

        Raises:
            IrqError: EINVAL there is no such CPU, or it was announced and never came; EPERM it cannot go offline at
                all; EBUSY it is the last one, or VMBus needs it: the machine is as it was; EDEADLK inside a handler.
            Exception: what a handler raised meanwhile. A CPU that has not left the online mask by then stays.
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
        yield Step(f"cpu {cpu}: cpu_down takes cpu_hotplug_lock", takes=CPUS_WRITE_LOCK, touches=_ONLINE)
        yield from holding(CPUS_WRITE_LOCK, self._down(cpu))

    def _down(self, cpu: int) -> Steps[None]:
        if not self._irq.online >> cpu & 1:
            return
        if self._irq.online == 1 << cpu:
            raise IrqError(errno.EBUSY, f"cpu {cpu}: cannot go offline: it is the last one that is online (EBUSY)")
        moves = yield from self._vmbus.cpuhp.synic_cleanup(cpu)
        try:
            self._clockevents.move_reenlightenment(cpu, self._irq.online)
            point = f"cpu {cpu}: takes what was raised before stop_machine"
            yield Step(point, takes=STOP_MACHINE, ready=lambda: self._is_quiet(cpu))
        except Exception:
            yield from self._vmbus.cpuhp.roll_back(cpu, moves)
            raise
        yield from holding(STOP_MACHINE, self._die(cpu))

    def _die(self, cpu: int) -> Steps[None]:
        """Leave the online mask while no other CPU runs (take_cpu_down)."""
        self._irq.set_cpu_online(cpu, False)
        self._left_at[cpu] = self._partition.clock.now
        self._clockevents.cpu_dying(cpu)
        yield Step(f"cpu {cpu}: has left the online mask", Context.HARDIRQ, touches=frozenset())
        yield from self._irq.irq_migrate_all_off_steps(cpu)
        if self._partition.core.redirect:  # works queued before their IRQ was moved, without their interrupt
            yield Step(f"cpu {cpu}: smpcfd_dying_cpu runs its irq_works", Context.HARDIRQ)
            check(lib.vi_irq_work_flush(self._irq.machine, cpu), f"cpu {cpu}: its irq_works cannot be run")

    def _is_quiet(self, cpu: int) -> bool:
        return not lib.vi_vcpu_pending(self._irq.machine, cpu)

    # ---- up

    def up(self, cpu: int) -> Steps[None]:
        """Yield the steps of bringing a CPU back (device_online, cpu_up)."""
        self._check(cpu)
        yield Step(f"cpu {cpu}: cpu_up takes cpu_hotplug_lock", takes=CPUS_WRITE_LOCK, touches=_ONLINE)
        yield from holding(CPUS_WRITE_LOCK, self._up(cpu))

    def _up(self, cpu: int) -> Steps[None]:
        if self._irq.online >> cpu & 1:
            return
        self._irq.set_cpu_online(cpu, True)
        if cpu in self._left_at:
            self._away[cpu] = self._away.get(cpu, 0) + self._partition.clock.now - self._left_at.pop(cpu)
        self._clockevents.cpu_starting(cpu)
        yield Step(f"cpu {cpu}: is in the online mask, its SynIC is still off", touches=frozenset())
        yield from each(self._irq.irq_affinity_online_steps(cpu), self._vmbus.cpuhp.synic_init(cpu))
