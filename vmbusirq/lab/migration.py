"""Which interrupts genirq moves off CPUs that go offline, found out beforehand (kernel/irq/cpuhotplug.c, v6.10)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vmbusirq.cpumask import cpumask_first, cpus_of, format_pbl
from vmbusirq.irq import IrqDesc
from vmbusirq.irq.settings import IRQD_AFFINITY_MANAGED
from vmbusirq.machine import Machine

__all__ = ["Migration", "find_migrations"]


@dataclass(frozen=True, slots=True)
class Migration:
    """An interrupt that genirq moves off the CPU by itself (irq_migrate_all_off_this_cpu).

    Attributes:
        to: list of the CPUs of which it gets one; empty: it is managed, and shut down until one of its own returns.
        no_longer_affine: none of the CPUs that it was allowed on is left.
    """

    irq: int
    name: str
    chip: str
    cpu: int
    to: str
    no_longer_affine: bool


def find_migrations(machine: Machine, leaving: int, settled: Collection[int]) -> list[tuple[IrqDesc, Migration]]:
    """Look ahead at migrate_one_irq() of each CPU that goes, lowest first.

    Args:
        machine: looked at as it is.
        leaving: mask of the CPUs, which are online.
        settled: IRQs that will have left by then.
    Returns:
        the descriptors that are touched, in the order of their numbers, with what becomes of them.
    """
    found = []
    for irq, desc in sorted(machine.irq.descs.items()):
        if irq in settled or desc.chip.irq_set_affinity is None or desc.is_per_cpu or not desc.started:
            continue
        if (desc.effective_affinity or desc.affinity) & leaving:
            found.append((desc, _migrate(desc, machine.online_mask, leaving)))
    return found


def _migrate(desc: IrqDesc, online: int, leaving: int) -> Migration:
    """Follow one IRQ from CPU to CPU; where its chip may choose, the lowest stands for all."""
    first = desc.effective_affinity or desc.affinity
    effective, wanted, pending, broken = first, desc.affinity, desc.pending_mask, False
    for cpu in cpus_of(leaving):
        online &= ~(1 << cpu)
        pending = pending if pending & online else 0
        if not effective >> cpu & 1:
            continue
        wanted, pending = pending or wanted, 0
        if not wanted & online:
            if desc.state & IRQD_AFFINITY_MANAGED:
                return _migration(desc, first & leaving, 0, broken=False)
            wanted, broken = online, True
        effective = 1 << cpumask_first(wanted & online)
    return _migration(desc, first & leaving, wanted & online, broken=broken)


def _migration(desc: IrqDesc, off: int, to: int, *, broken: bool) -> Migration:
    name = ", ".join(action.name or "-" for action in desc.actions)
    return Migration(desc.irq, name, desc.chip.name or "-", cpumask_first(off), format_pbl(to), broken)
