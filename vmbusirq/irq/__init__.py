"""genirq's control plane (kernel/irq, v6.10): descriptors, chips, domains, requests, affinity; no bus, no host."""

from __future__ import annotations

from vmbusirq.irq.action import CHandler, IrqAction
from vmbusirq.irq.affinity import IrqAffinityNotify
from vmbusirq.irq.callbacks import IrqBatch
from vmbusirq.irq.chip import DUMMY_IRQ_CHIP, NO_IRQ_CHIP, IrqChip, nop
from vmbusirq.irq.core import IrqCore
from vmbusirq.irq.desc import IrqDesc, SpuriousStats
from vmbusirq.irq.domain import Fwnode, IrqDomain, IrqDomainOps
from vmbusirq.irq.settings import Flow

__all__ = [
    "DUMMY_IRQ_CHIP",
    "NO_IRQ_CHIP",
    "CHandler",
    "Flow",
    "Fwnode",
    "IrqAction",
    "IrqAffinityNotify",
    "IrqBatch",
    "IrqChip",
    "IrqCore",
    "IrqDesc",
    "IrqDomain",
    "IrqDomainOps",
    "SpuriousStats",
    "nop",
]
