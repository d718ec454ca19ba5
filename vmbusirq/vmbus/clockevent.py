"""The guest's clock ticks: stimer0 of each CPU, or its local APIC's timer (drivers/clocksource/hyperv_timer.c, v6.10).

Linux uses timer 0 alone, one-shot and auto-enabled: the next event is a write of COUNT. It prefers direct mode, a
vector of its own (row HVS); where the host has none, the timer sends messages to SINT 2, and each is one more
interrupt of the callback vector (row HYP). Without stimers the APIC's own timer ticks (row LOC).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import TICKS_PER_S, Core
from vmbusirq.cpumask import cpumask_first
from vmbusirq.errors import IrqError, check
from vmbusirq.hyperv.clock import Timer
from vmbusirq.hyperv.cpuid import Feature
from vmbusirq.hyperv.registers import Msr
from vmbusirq.vmbus.clocksource import Clocksources

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["CONFIG_BY_MODE", "REENLIGHTENMENT_VECTOR", "STIMER0_VECTOR", "ClockEvents"]

STIMER0_VECTOR: Final = 0xED
REENLIGHTENMENT_VECTOR: Final = 0xEE
CONFIG_BY_MODE: Final = {"direct": 0x1ED9, "message": 0x2_0009}
"""STIMER0_CONFIG: enable, auto-enable, and the vector of direct mode or SINT 2."""
DELTA_MIN: Final = 1
DELTA_MAX: Final = 0xFFFF_FFFF
REENLIGHTENMENT_DELAY: Final = TICKS_PER_S // 10  # HZ / 10
_NAMES: Final = {"direct": "Hyper-V clockevent", "message": "Hyper-V clockevent", "lapic": "lapic"}
_MODES: Final = {
    "lapic": lib.VI_TICKS_LAPIC,
    "direct": lib.VI_TICKS_DIRECT,
    "message": lib.VI_TICKS_MESSAGE,
}


class ClockEvents:
    """The clockevent devices of one guest.

    Attributes:
        mode: ``direct``, ``message``, ``lapic``; ``arch`` on arm64, whose ticks are those of an ordinary IRQ.
        name: of the devices, as sysfs shows it.
        on_event: called with the CPU at each event that was set.
        on_tsc_change: called when the guest has ended TSC emulation after a migration.
    """

    def __init__(self, core: Core, partition: Partition, clocksources: Clocksources) -> None:
        self._core = core
        self._hv = partition
        self._clock = clocksources
        self.mode: Final = _mode_of(partition)
        self.name: Final = _NAMES.get(self.mode, "arch_sys_timer")
        self.on_event: Final[list[Callable[[int], object]]] = []
        self.on_tsc_change: Final[list[Callable[[int], object]]] = []
        self._armed: dict[int, int] = {}
        self._set_up: set[int] = set()
        self._in_use = False
        self._offline: set[int] = set()
        self._reenlightened: int | None = None
        self._apic_timers: dict[int, Timer] = {}
        if self.mode == "message":
            partition.add_pump(self._hear_messages, guest=True)

    # ---- CPUs that come and go

    def cpu_starting(self, cpu: int) -> None:
        """Set the timer of a CPU up that has come, where it needs no SynIC (hv_stimer_init, direct mode)."""
        self._offline.discard(cpu)
        if self._in_use and self.mode == "direct":
            self.start(cpu)

    def cpu_dying(self, cpu: int) -> None:
        """Stop the timer of a CPU that has left the online mask (hv_stimer_cleanup, lapic_shutdown)."""
        self._offline.add(cpu)
        if cpu in self._set_up or cpu in self._apic_timers:
            self.shutdown(cpu)

    def legacy_init(self, cpu: int) -> None:
        """Set the timer of a CPU up whose SynIC is on, if it sends messages (hv_stimer_legacy_init)."""
        if self._in_use and self.mode == "message":
            self.start(cpu)

    def legacy_cleanup(self, cpu: int) -> None:
        """Stop the timer of a CPU whose SynIC goes off, if it sends messages (hv_stimer_legacy_cleanup)."""
        if self.mode == "message" and cpu in self._set_up:
            self.shutdown(cpu)

    # ---- one event

    def start(self, cpu: int) -> None:
        """Set the CPU's timer up: one-shot, auto-enabled, nothing due yet (hv_ce_set_oneshot)."""
        self._in_use = True
        self._set_up.add(cpu)
        vcpu = self._hv.vcpus[cpu]
        if self.mode == "direct":
            vcpu.apic.handlers[STIMER0_VECTOR] = self._direct_isr
        if self.mode in CONFIG_BY_MODE:
            vcpu.wrmsr(Msr.STIMER0_CONFIG, CONFIG_BY_MODE[self.mode])

    def set_next_event(self, cpu: int, delta: int) -> None:
        """Let the CPU have its next event in ``delta`` ticks of 100 ns (hv_ce_set_next_event).

        Raises:
            IrqError: EINVAL, the device cannot wait that short or long, or there is none: on arm64, of a CPU that is
                offline.
        """
        self._check_online(cpu)
        if not DELTA_MIN <= delta <= DELTA_MAX or self.mode == "arch":
            raise IrqError(
                errno.EINVAL,
                f"clockevent {cpu}: cannot be set to {delta}: {self.name} takes {DELTA_MIN} to {DELTA_MAX} (EINVAL)",
            )
        if self.mode == "lapic":
            self._set_apic_timer(cpu, delta)
            return
        vcpu = self._hv.vcpus[cpu]
        if not vcpu.rdmsr(Msr.STIMER0_CONFIG):
            self.start(cpu)
        self._armed[cpu] = lib.vi_synic_stimer_count(self._core.handle, cpu)
        vcpu.wrmsr(Msr.STIMER0_COUNT, self._clock.reference_time() + delta)

    def shutdown(self, cpu: int) -> None:
        """Stop the CPU's timer (hv_ce_shutdown)."""
        timer = self._apic_timers.pop(cpu, None)
        if timer is not None:
            timer.cancel()
        self._armed.pop(cpu, None)
        self._set_up.discard(cpu)
        if self.mode in CONFIG_BY_MODE:
            self._hv.vcpus[cpu].wrmsr(Msr.STIMER0_COUNT, 0)
            self._hv.vcpus[cpu].wrmsr(Msr.STIMER0_CONFIG, 0)

    def _direct_isr(self, vcpu: Vcpu) -> None:
        self._count(vcpu.index, lib.VI_ROW_HVS)
        self._event(vcpu.index)
        vcpu.apic.eoi()

    def _hear_messages(self) -> bool:
        """The data plane has counted timer messages in the hard interrupt; let their events happen."""
        heard = False
        for cpu, seen in tuple(self._armed.items()):
            count = lib.vi_synic_stimer_count(self._core.handle, cpu)
            if count != seen:
                heard = True
                self._armed.pop(cpu)
                self._event(cpu)
        return heard

    def _set_apic_timer(self, cpu: int, delta: int) -> None:
        def expire() -> None:
            self._apic_timers.pop(cpu, None)
            self._count(cpu, lib.VI_ROW_LOC)
            self._event(cpu)

        if (timer := self._apic_timers.pop(cpu, None)) is not None:
            timer.cancel()
        self._apic_timers[cpu] = self._hv.clock.call_at(self._hv.clock.now + delta, expire)

    def _check_online(self, cpu: int) -> None:
        if cpu in self._offline:
            raise IrqError(errno.EINVAL, f"clockevent {cpu}: cpu {cpu} is offline: it has none (EINVAL)")

    def _event(self, cpu: int) -> None:
        for heard in tuple(self.on_event):
            heard(cpu)

    def _count(self, cpu: int, row: int) -> None:
        self._core.set_arch_row(cpu, row, self._core.arch_row(cpu, row) + 1 & 0xFFFF_FFFF)

    # ---- many events

    def tick(self, cpu: int, ticks: int, start: int, end: int) -> None:
        """Let a CPU tick, evenly over ``start`` to ``end``, with nothing else going on; all of it in C.

        Raises:
            IrqError: EINVAL for a CPU, a time or arm64, ENXIO: its SynIC is off; EBUSY: its interrupts are.
        """
        self._check_online(cpu)
        what = f"clockevent {cpu}: cannot tick {ticks} times by {self.name}"
        if self.mode not in _MODES:
            raise IrqError(errno.EINVAL, f"{what}: an arm64 guest has the ticks of an IRQ (EINVAL)")
        batch = ffi.new(
            "struct vi_ticks *", {"cpu": cpu, "mode": _MODES[self.mode], "n": ticks, "start": start, "end": end}
        )
        check(lib.vi_timer_ticks(self._core.handle, batch), what)
        if ticks and self.mode in CONFIG_BY_MODE:
            self._hv.stimers.timer(cpu, 0).settle_batch(end)

    # ---- a new host

    def set_tsc_change_callback(self, cpu: int) -> None:
        """Ask to be interrupted after a migration, and for TSC emulation until then (set_hv_tscchange_cb).

        Raises:
            IrqError: EOPNOTSUPP, the host does not offer it.
        """
        if not self._hv.features.has(Feature.REENLIGHTENMENT):
            raise IrqError(errno.EOPNOTSUPP, "reenlightenment: the host does not offer it (EOPNOTSUPP)")
        self._hv.vcpus[cpu].wrmsr(Msr.TSC_EMULATION_CONTROL, 1)
        self._reenlighten_on(cpu)

    def _reenlighten_on(self, cpu: int) -> None:
        self._reenlightened = cpu
        vcpu = self._hv.vcpus[cpu]
        vcpu.apic.handlers[REENLIGHTENMENT_VECTOR] = self._reenlightenment_isr
        vcpu.wrmsr(Msr.REENLIGHTENMENT_CONTROL, cpu << 32 | 1 << 16 | REENLIGHTENMENT_VECTOR)

    def move_reenlightenment(self, cpu: int, online: int) -> None:
        """Let the interrupt after a migration come to another online CPU than the one that goes (hv_cpu_die)."""
        if self._reenlightened == cpu:
            self._reenlighten_on(cpumask_first(online & ~(1 << cpu)))

    def _reenlightenment_isr(self, vcpu: Vcpu) -> None:
        self._count(vcpu.index, lib.VI_ROW_HRE)
        clock = self._hv.clock
        clock.call_at(clock.now + REENLIGHTENMENT_DELAY, lambda: self._reenlighten(vcpu))
        vcpu.apic.eoi()

    def _reenlighten(self, vcpu: Vcpu) -> None:
        if vcpu.rdmsr(Msr.TSC_EMULATION_STATUS) & 1:
            vcpu.wrmsr(Msr.TSC_EMULATION_STATUS, 0)
            hz = vcpu.rdmsr(Msr.TSC_FREQUENCY)
            for heard in tuple(self.on_tsc_change):
                heard(hz)


def _mode_of(partition: Partition) -> str:
    if partition.core.arch == "arm64":
        return "arch"
    if not partition.features.has(Feature.STIMER):
        return "lapic"
    return "direct" if partition.features.has(Feature.STIMER_DIRECT) else "message"
