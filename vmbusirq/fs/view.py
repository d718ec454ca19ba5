"""What the emulated files need to know of a machine. The machine implements it; tests use a small stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vmbusirq.generations import ArchRow, Generation
from vmbusirq.irq.core import IrqCore

__all__ = ["CpuTimes", "KernelView", "StatPresets"]


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Busy time of one CPU since boot, in jiffies of user space (USER_HZ, 10 ms); idle is what is left."""

    user: int = 0
    nice: int = 0
    system: int = 0
    iowait: int = 0
    irq: int = 0
    softirq: int = 0
    steal: int = 0
    guest: int = 0
    guest_nice: int = 0


@dataclass(frozen=True, slots=True)
class StatPresets:
    """The part of /proc/stat that nothing models: a scenario says it.

    Attributes:
        cpu_times: by CPU; time spent in interrupts is added to ``irq`` and ``softirq``, idle time is derived.
        ctxt: context switches.
        processes: forks.
        procs_running: runnable threads, the reader included.
        procs_blocked: threads that wait for I/O.
    """

    cpu_times: Mapping[int, CpuTimes] = field(default_factory=dict)
    ctxt: int = 0
    processes: int = 0
    procs_running: int = 1
    procs_blocked: int = 0


class KernelView(Protocol):
    """A running kernel as the code behind its files sees it.

    CPU sets, the default affinity, nr_irqs and the counters are those of ``irq``.
    """

    @property
    def arch(self) -> str:
        """``x86`` or ``arm64``."""

    @property
    def generation(self) -> Generation:
        """Whose text, modes and errno."""

    @property
    def irq(self) -> IrqCore:
        """The genirq core."""

    @property
    def present_mask(self) -> int:
        """CPUs that are there, online or not: between ``irq.online`` and ``irq.possible``."""

    @property
    def hotpluggable_mask(self) -> int:
        """CPUs of them that can go offline at all, and so have a file ``online``."""

    def set_cpu_online(self, cpu: int, online: bool) -> None:
        """Take a CPU offline or bring it back; IrqError: what the kernel refuses with."""

    def online_ticks(self, cpu: int) -> int:
        """Return how long a CPU has been online since boot, in 100 ns ticks."""

    @property
    def arch_rows(self) -> tuple[ArchRow, ...]:
        """x86: the rows shown below the IRQs, in the order of X86_ROWS, and whether each is part of the total."""

    @property
    def ipi_irqs(self) -> tuple[int, ...]:
        """arm64: the hidden IRQs behind the IPI rows, IPI0 first."""

    @property
    def now(self) -> int:
        """Time since boot in 100 ns ticks."""

    @property
    def btime(self) -> int:
        """When the machine booted, in seconds since 1970."""

    @property
    def stat_presets(self) -> StatPresets:
        """What nothing models."""
