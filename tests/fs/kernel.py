"""A kernel to look at through its files: a genirq core over a C machine, and what the files need to know besides."""

from __future__ import annotations

import errno as _errno
from contextlib import contextmanager

import pytest

from tests.irq.rig import Rig
from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.fs import StatPresets, kernel_files
from vmbusirq.generations import GENERATIONS, X86_ROWS
from vmbusirq.irq import Flow, IrqChip, nop
from vmbusirq.irq.settings import IRQ_HIDDEN

GIC = IrqChip("GICv3", irq_eoi=nop, irq_mask=nop, irq_unmask=nop)


class Kernel:
    """Implements KernelView: ``rig`` drives interrupts, ``fs`` shows them; channel IRQs have RFC patch 07's chip."""

    def __init__(self, nr_cpus=8, generation="v6.10", arch="x86", rows=("NMI", "HYP", "ERR"), **options):
        self.arch = arch
        self.generation = GENERATIONS[generation]
        config = {"hyp_count": lib.VI_HYP_MESSAGE}
        if arch == "arm64":
            config["arch"] = lib.VI_ARCH_ARM64
            options = {"nr_irqs": 64, "dynirq_base": 0, "generic_pending_irq": False} | options
        self.rig = Rig(nr_cpus, config=config, **options)
        self.irq = self.rig.core
        self.present_mask = self.irq.possible
        self.hotpluggable_mask = self.present_mask & ~1
        self.arch_rows = tuple(row for row in X86_ROWS if row.label in rows) if arch == "x86" else ()
        self.ipi_irqs = tuple(self._ipi() for _ in self.generation.arm64_ipis) if arch == "arm64" else ()
        self.now = 600_000_000  # one minute
        self.btime = 1_718_000_000
        self.stat_presets = StatPresets()
        self.fs = kernel_files(self)

    def set_cpu_online(self, cpu, online):
        """Nobody but the core is asked."""
        self.irq.set_cpu_online(cpu, online)

    def online_ticks(self, cpu):
        """Whoever is online has been from the start, the others never were."""
        return self.now if self.irq.online >> cpu & 1 else 0

    def _ipi(self):
        irq = self.irq.alloc_descs(from_=1)
        self.irq.set_chip_and_handler(irq, GIC, Flow.PERCPU_DEVID)
        self.irq.irq_set_percpu_devid(irq)
        self.irq.modify_status(irq, set_=IRQ_HIDDEN)
        return irq

    def percpu(self, name="Hyper-V VMbus", flow=Flow.PERCPU_DEVID, hidden=False):
        """Request a per-CPU IRQ, as the PPI of VMBus on arm64 is one, and enable it everywhere."""
        irq = self.irq.alloc_descs(from_=1)
        self.irq.set_chip_and_handler(irq, GIC, flow)
        self.irq.irq_set_percpu_devid(irq)
        if hidden:
            self.irq.modify_status(irq, set_=IRQ_HIDDEN)
        self.irq.request_percpu_irq(irq, self.rig.handler, name, [None] * self.irq.nr_cpus)
        for cpu in range(self.irq.nr_cpus):
            self.irq.enable_percpu_irq(irq, cpu)
        return self.irq.irq_to_desc(irq)

    def count(self, desc, cpu, value):
        """Set a counter, as if the IRQ had been handled that often on this CPU."""
        self.irq.counters.irq[cpu * self.irq.counters.irq_stride + desc.irq] = value

    def count_row(self, label, cpu, value):
        """Set a counter of the architecture."""
        self.irq.counters.arch[cpu * lib.VI_ARCH_STRIDE + getattr(lib, f"VI_ROW_{label}")] = value

    def line(self, start):
        """Return the line of /proc/interrupts that starts so, without its newline; None when there is none."""
        lines = [line for line in self.fs.read("/proc/interrupts").splitlines() if line.startswith(start)]
        assert len(lines) <= 1
        return lines[0] if lines else None


@contextmanager
def refused(errno, *words):
    """Expect IrqError with this errno, which its message names together with ``words``."""
    with pytest.raises(IrqError) as caught:
        yield
    assert _errno.errorcode[errno] == _errno.errorcode[caught.value.errno]
    for word in (_errno.errorcode[errno], *words):
        assert word in str(caught.value)
