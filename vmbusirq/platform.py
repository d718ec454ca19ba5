"""What a machine has besides VMBus: the IO-APIC's lines on x86, the GIC's PPIs and IPIs on arm64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.cpumask import cpumask_first
from vmbusirq.errors import check
from vmbusirq.generations import IRQ_WORK_IPI, Generation
from vmbusirq.irq import Flow, Fwnode, IrqChip, IrqCore, IrqDesc, IrqDomainOps, nop
from vmbusirq.irq.settings import IRQ_HIDDEN, IRQ_LEVEL, IRQ_SET_MASK_OK
from vmbusirq.scenario.schema import PlatformIrq

__all__ = ["IPI_IRQS", "Platform", "arm64_platform", "x86_platform"]

IPI_IRQS: Final = 8  # SGIs that the GIC driver hands to the kernel; fewer may be used
GIC_TIMER_HWIRQ: Final = 20  # INTID of the virtual timer PPI
GIC_VMBUS_HWIRQ: Final = 18  # INTID of the VMBus device in Microsoft's open VMM, edge-triggered
_FLOWS: Final = {"edge": Flow.EDGE, "fasteoi": Flow.FASTEOI, "level": Flow.LEVEL}


@dataclass(frozen=True, slots=True)
class Platform:
    """IRQ numbers of the platform: the VMBus PPI (0 on x86) and the IPIs (none on x86)."""

    vmbus_ppi: int = 0
    ipis: tuple[int, ...] = field(default=())


def _first_cpu(desc: IrqDesc, mask: int, force: bool) -> int:
    """Deliver to the lowest CPU of the mask."""
    desc.update_effective_affinity(1 << cpumask_first(mask))
    return IRQ_SET_MASK_OK


def x86_platform(irq: IrqCore, lines: Sequence[PlatformIrq], gsi_top: int) -> Platform:
    """Request the IO-APIC lines of a scenario."""
    if not lines:
        return Platform()
    chips = {
        name: IrqChip(name, irq_set_affinity=_first_cpu, irq_ack=nop, irq_eoi=nop, irq_mask=nop, irq_unmask=nop)
        for name in sorted({line.chip for line in lines})
    }
    domain = irq.irq_domain_create_linear(Fwnode.named("IO-APIC-0"), max(gsi_top, 1), IrqDomainOps())
    for line in lines:
        number = irq.alloc_descs(line.irq)
        irq.irq_domain_associate(domain, number, line.hwirq)
        irq.set_chip_and_handler(number, chips[line.chip], _FLOWS[line.flow], line.flow)
        if line.flow != "edge":
            irq.modify_status(number, set_=IRQ_LEVEL)
        irq.request_irq(number, lib.vi_handler_always_handled(), 0, line.name)
    return Platform()


def arm64_platform(irq: IrqCore, generation: Generation) -> Platform:
    """Set up the GIC: IPIs as hidden per-CPU IRQs, the architected timer, the PPI of VMBus."""
    gic = IrqChip("GICv3", irq_set_affinity=_first_cpu, irq_eoi=nop, irq_mask=nop, irq_unmask=nop)
    domain = irq.irq_domain_create_linear(Fwnode.named("GICv3"), 1024, IrqDomainOps())
    cookies = [ffi.NULL] * irq.nr_cpus

    def ppi(hwirq: int, level: bool, hidden: bool = False) -> int:
        number = irq.alloc_descs(from_=1)
        irq.irq_domain_associate(domain, number, hwirq)
        irq.irq_set_percpu_devid(number)
        irq.set_chip_and_handler(number, gic, Flow.PERCPU_DEVID)
        irq.modify_status(number, set_=(IRQ_LEVEL if level else 0) | (IRQ_HIDDEN if hidden else 0))
        return number

    ipis = tuple(ppi(hwirq, level=False, hidden=True) for hwirq in range(IPI_IRQS))
    for number in ipis[: len(generation.arm64_ipis)]:
        irq.request_percpu_irq(number, lib.vi_handler_always_handled(), "IPI", cookies)
    work = ipis[generation.arm64_ipis.index(IRQ_WORK_IPI)]
    check(lib.vi_machine_set_irq_work_irq(irq.machine, work), f"irq {work}: cannot run irq_works")
    timer = ppi(GIC_TIMER_HWIRQ, level=True)
    irq.request_percpu_irq(timer, lib.vi_handler_always_handled(), "arch_timer", cookies)
    return Platform(ppi(GIC_VMBUS_HWIRQ, level=False), ipis[: len(generation.arm64_ipis)])
