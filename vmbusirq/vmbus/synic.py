"""How the guest sets Hyper-V and each CPU's SynIC up, register by register.

See arch/x86/hyperv/hv_init.c and hv_synic_{enable,disable}_regs of drivers/hv/hv.c, v6.10; synic.md 14. On x86
registers are MSRs, on arm64 they are reached by their VP register numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from vmbusirq.hyperv.apic import callback_vector
from vmbusirq.hyperv.cpuid import Feature
from vmbusirq.hyperv.overlay import ENABLE
from vmbusirq.hyperv.registers import BY_MSR, Msr
from vmbusirq.hyperv.synic_registers import PAGE_MASK, SINT_AUTO_EOI, SINT_MASKED, SINT_VECTOR
from vmbusirq.limits import SINT_VMBUS
from vmbusirq.vmbus.pages import HV_PAGE

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition

__all__ = ["LINUX_OS_ID", "GuestSynic"]

LINUX_OS_ID: Final = 0x8100_0006_0A00_0000
"""GUEST_OS_ID of Linux 6.10.0: open source, Linux, version in bits 47:16."""
_SINT: Final = Msr.SINT0 + SINT_VMBUS


class GuestSynic:
    """The guest's hands on its registers.

    Args:
        hv: its partition.

    Attributes:
        vp_index: VP index by CPU, as each CPU reads it.
        pages: guest page numbers of each CPU's message page and event flag page; kept until the guest ends.
    """

    def __init__(self, hv: Partition) -> None:
        self._hv = hv
        self._arm64 = hv.core.arch == "arm64"
        self._hypercall_pfn: int | None = None
        self.vp_index: Final[dict[int, int]] = {}
        self.pages: Final[dict[int, tuple[int, int]]] = {}

    @property
    def pages_in_use(self) -> int:
        """How many pages the guest keeps for it: two per CPU, and the hypercall page."""
        return 2 * len(self.pages) + (self._hypercall_pfn is not None)

    def enable(self, cpus: Iterable[int]) -> None:
        """Switch SynICs on; the first call introduces the guest to its hypervisor (hyperv_init, hv_synic_init)."""
        cpus = list(cpus)
        self._introduce()
        self._alloc([cpu for cpu in cpus if cpu not in self.pages])
        for cpu in cpus:
            self._enable_regs(cpu)

    def disable(self, cpu: int) -> None:
        """Switch a CPU's SynIC off, and take its pages back from the hypervisor (hv_synic_disable_regs)."""
        self._write(cpu, _SINT, self._read(cpu, _SINT) | SINT_MASKED)
        for msr in (Msr.SIMP, Msr.SIEFP):
            self._write(cpu, msr, self._read(cpu, msr) & ~(PAGE_MASK | ENABLE))
        self._write(cpu, Msr.SCONTROL, self._read(cpu, Msr.SCONTROL) & ~ENABLE)

    def cleanup(self, cpu: int) -> None:
        """Leave the hypervisor's acquaintance: hypercall page and OS id (hyperv_cleanup)."""
        if self._hypercall_pfn is not None:
            self._write(cpu, Msr.HYPERCALL, 0)
            self._hv.memory.free(self._hypercall_pfn)
            self._hypercall_pfn = None
        self._write(cpu, Msr.GUEST_OS_ID, 0)

    def _introduce(self) -> None:
        if self._read(0, Msr.GUEST_OS_ID):
            return
        self._write(0, Msr.GUEST_OS_ID, LINUX_OS_ID)
        if self._arm64:
            return  # hypercalls are made by HVC there, without a page
        self._hypercall_pfn = self._hv.memory.alloc(1)
        page = self._read(0, Msr.HYPERCALL) & ~PAGE_MASK
        self._write(0, Msr.HYPERCALL, page | self._hypercall_pfn * HV_PAGE | ENABLE)

    def _alloc(self, cpus: list[int]) -> None:
        """Allocate two pages per CPU (hv_synic_alloc), in one run: nobody sees the difference."""
        if cpus:
            first = self._hv.memory.alloc(2 * len(cpus))
            self.pages.update({cpu: (first + 2 * n, first + 2 * n + 1) for n, cpu in enumerate(cpus)})

    def _enable_regs(self, cpu: int) -> None:
        self.vp_index[cpu] = self._read(cpu, Msr.VP_INDEX)
        for msr, pfn in zip((Msr.SIMP, Msr.SIEFP), self.pages[cpu], strict=True):
            kept = self._read(cpu, msr) & ~PAGE_MASK
            self._write(cpu, msr, kept | pfn * HV_PAGE | ENABLE)
        sint = self._read(cpu, _SINT) & ~(SINT_VECTOR | SINT_MASKED | SINT_AUTO_EOI)
        auto_eoi = not self._arm64 and not self._hv.features.has(Feature.AUTO_EOI_DEPRECATED)
        self._write(cpu, _SINT, sint | callback_vector(self._hv.core.arch) | (SINT_AUTO_EOI if auto_eoi else 0))
        self._write(cpu, Msr.SCONTROL, self._read(cpu, Msr.SCONTROL) | ENABLE)

    def _read(self, cpu: int, msr: int) -> int:
        vcpu = self._hv.vcpus[cpu]
        return vcpu.get_vp_register(_vp_register(msr)) if self._arm64 else vcpu.rdmsr(msr)

    def _write(self, cpu: int, msr: int, value: int) -> None:
        vcpu = self._hv.vcpus[cpu]
        if self._arm64:
            vcpu.set_vp_register(_vp_register(msr), value)
        else:
            vcpu.wrmsr(msr, value)


def _vp_register(msr: int) -> int:
    number = BY_MSR[msr].vp_register
    assert number is not None
    return number
