"""/proc/stat (fs/proc/stat.c, v6.10): CPU times, interrupts, softirqs.

Interrupts and softirqs are counted; CPU times are a model. Virtual time does not pass inside a handler, so each
interrupt and each softirq is booked as one microsecond, a CPU is idle for the rest of the time in which it is online,
and everything else is a preset of the scenario.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.cpumask import cpus_of
from vmbusirq.errors import check
from vmbusirq.fs.procfs.interrupts import ARCH_ROW_INDEX
from vmbusirq.fs.procfs.softirqs import SOFTIRQ_NAMES
from vmbusirq.fs.view import CpuTimes, KernelView
from vmbusirq.generations import ArchRow

__all__ = ["StatText"]

NS_PER_JIFFY: Final = 10_000_000  # USER_HZ is 100
NS_PER_TICK: Final = 100
HANDLER_NS: Final = 1_000  # booked per interrupt and per softirq
IRQS_SUM_STRIDE: Final[int] = lib.VI_IRQS_SUM_STRIDE
U32: Final = 1 << 32

_Times = tuple[int, ...]  # user nice system idle iowait irq softirq steal guest guest_nice, in ns


class StatText:
    """The text of /proc/stat."""

    def __init__(self, view: KernelView) -> None:
        self._view = view

    def show(self) -> bytes:
        """Return the whole file."""
        presets = self._view.stat_presets
        arch = self._arch_sums()
        sums = self._irqs_sums()
        softirqs = self._softirq_columns()
        lines = [
            *self._cpu_lines([count + more for count, more in zip(sums, arch, strict=True)], softirqs),
            self._intr_line(sum(sums) + sum(arch)),
            f"ctxt {presets.ctxt}",
            f"btime {self._view.btime}",
            f"processes {presets.processes}",
            f"procs_running {presets.procs_running}",
            f"procs_blocked {presets.procs_blocked}",
            self._softirq_line(softirqs),
        ]
        return ("\n".join(lines) + "\n").encode()

    # ---- counters of all possible CPUs, by CPU (those of a CPU that cannot be are 0)

    def _irqs_sums(self) -> list[int]:
        """Return, by CPU, all interrupts that had an IRQ, freed ones included."""
        irq = self._view.irq
        return _columns(irq.counters.irqs_sum, irq.nr_cpus, IRQS_SUM_STRIDE, [0])[0]

    def _arch_sums(self) -> list[int]:
        """Return, by CPU, the rows of the architecture that are part of the total (arch_irq_stat_cpu)."""
        irq = self._view.irq
        rows = [ARCH_ROW_INDEX[row.label] for row in self._rows_in_total() if row.text is not None]
        columns = _columns(irq.counters.arch, irq.nr_cpus, lib.VI_ARCH_STRIDE, rows)
        return [sum(counts) for counts in zip(*columns, strict=True)] if columns else [0] * irq.nr_cpus

    def _rows_in_total(self) -> list[ArchRow]:
        """Return the rows of the architecture that are part of the total; arm64 has none, since its IPIs are IRQs."""
        if self._view.arch == "arm64":
            return []
        return [row for row in self._view.arch_rows if row.in_total]

    def _softirq_columns(self) -> list[list[int]]:
        """Return, by softirq, the counts by CPU."""
        irq = self._view.irq
        return _columns(irq.counters.softirq, irq.nr_cpus, lib.VI_SOFTIRQ_STRIDE, range(len(SOFTIRQ_NAMES)))

    # ---- lines

    def _cpu_lines(self, interrupts: list[int], softirqs: list[list[int]]) -> list[str]:
        """Return the line of all possible CPUs, and one per online CPU."""
        online = self._view.irq.online
        presets = self._view.stat_presets.cpu_times
        times = {}
        for cpu in cpus_of(self._view.irq.possible):
            times[cpu] = _cpu_times(
                presets.get(cpu, _NO_TIMES),
                interrupts[cpu] * HANDLER_NS,
                sum(column[cpu] for column in softirqs) * HANDLER_NS,
                self._view.online_ticks(cpu) * NS_PER_TICK,
            )
        total = [sum(column) for column in zip(*times.values(), strict=True)]
        lines = [_cpu_line("cpu ", total)]
        lines += [_cpu_line(f"cpu{cpu}", times[cpu]) for cpu in cpus_of(online)]
        return lines

    def _intr_line(self, per_cpu_total: int) -> str:
        """Return the total, and a number for every slot, allocated or not."""
        irq = self._view.irq
        numbers = ffi.new("uint32_t[]", irq.nr_irqs)
        check(lib.vi_irq_stat(irq.machine, 0, irq.nr_irqs, numbers), "proc/stat: more IRQ slots than descriptors")
        errors = any(row.label == "ERR" for row in self._rows_in_total())  # arch_irq_stat
        total = per_cpu_total + (int(irq.counters.irq_err_count[0]) if errors else 0)
        return " ".join(["intr", str(total), *map(str, ffi.unpack(numbers, irq.nr_irqs))])

    def _softirq_line(self, softirqs: list[list[int]]) -> str:
        """Return the total in 64 bits, and each softirq's sum, which wraps at 2**32."""
        sums = [sum(column) for column in softirqs]
        return " ".join(["softirq", str(sum(sums)), *(str(count % U32) for count in sums)])


def _columns(counters: Any, nr_cpus: int, stride: int, which: Iterable[int]) -> list[list[int]]:
    """Return, for each of ``which``, the counters of all CPUs, which lie ``stride`` elements apart."""
    every = ffi.unpack(counters, nr_cpus * stride)
    return [every[column::stride] for column in which]


_NO_TIMES: Final = CpuTimes()


def _cpu_times(preset: CpuTimes, irq_ns: int, softirq_ns: int, online_ns: int) -> _Times:
    """Return one CPU's times in ns; idle is what is left of its time online. Guest time is part of user and nice."""
    user, nice, system, iowait, irq, softirq, steal, guest, guest_nice = (
        jiffies * NS_PER_JIFFY
        for jiffies in (
            preset.user,
            preset.nice,
            preset.system,
            preset.iowait,
            preset.irq,
            preset.softirq,
            preset.steal,
            preset.guest,
            preset.guest_nice,
        )
    )
    irq += irq_ns
    softirq += softirq_ns
    idle = max(0, online_ns - user - nice - system - iowait - irq - softirq - steal)
    return user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice


def _cpu_line(label: str, times: _Times | list[int]) -> str:
    return " ".join([label, *(str(ns // NS_PER_JIFFY) for ns in times)])
