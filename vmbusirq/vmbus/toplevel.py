"""The top level of VMBus interrupts: the relid domain and its chip, the arm64 PPI, the IRQ of control messages.

See RFC patches 06, 07 and 09, and the review of patch 06 for the IRQ of control messages.
"""

from __future__ import annotations

from typing import Any, Final

from vmbusirq._ffi import lib
from vmbusirq.core import Core
from vmbusirq.designs import Design
from vmbusirq.errors import check
from vmbusirq.irq import Flow, Fwnode, IrqChip, IrqCore, IrqDomain, IrqDomainOps, nop
from vmbusirq.irq.settings import IRQ_HIDDEN, IRQ_MOVE_PCNTXT
from vmbusirq.limits import RELIDS
from vmbusirq.vmbus.affinity import CONNECT_CPU

__all__ = ["MESSAGE_HWIRQ", "make_domain", "request_message_irq", "request_ppi"]

MESSAGE_HWIRQ: Final = 0  # no channel has relid 0
MESSAGE_IRQ_NAME: Final = "vmbus-msg"
PPI_IRQ_NAME: Final = "Hyper-V VMbus"


def make_domain(irq: IrqCore, set_affinity: Any, host_data: object) -> IrqDomain:
    """Make the linear domain keyed by relid, whose mappings get chip "VMBus" and the simple flow (RFC patch 07)."""
    chip = IrqChip("VMBus", irq_set_affinity=set_affinity, irq_mask=nop, irq_unmask=nop)

    def map_relid(domain: IrqDomain, virq: int, hwirq: int) -> None:
        irq.set_chip_and_handler(virq, chip, Flow.SIMPLE)

    return irq.irq_domain_create_linear(
        Fwnode.named("hv-vmbus"), RELIDS, IrqDomainOps(map=map_relid), host_data, demux=True
    )


def request_ppi(core: Core, irq: IrqCore, design: Design, ppi_irq: int) -> None:
    """Let the per-CPU interrupt of arm64 serve the top level, with the flow that the design gives it."""
    irq.set_chip_and_handler(ppi_irq, irq.irq_to_desc(ppi_irq).chip, Flow(design.toplevel_flow))
    if design.toplevel_hidden:
        irq.modify_status(ppi_irq, set_=IRQ_HIDDEN)
    cookies = [core.handle] * core.nr_cpus
    irq.request_percpu_irq(ppi_irq, lib.vi_handler_percpu_isr(), PPI_IRQ_NAME, cookies)
    check(lib.vi_machine_set_toplevel_irq(core.handle, ppi_irq), f"irq {ppi_irq}: cannot serve the top level")


def request_message_irq(core: Core, irq: IrqCore, domain: IrqDomain) -> None:
    """Give control messages an IRQ of their own: hwirq 0 of the domain, on the connect CPU."""
    virq = irq.irq_create_mapping(domain, MESSAGE_HWIRQ)
    irq.modify_status(virq, set_=IRQ_MOVE_PCNTXT)  # as channels: the simple flow does no pending moves
    irq.request_irq(virq, lib.vi_handler_message(), 0, MESSAGE_IRQ_NAME)
    irq.irq_set_affinity_and_hint(virq, 1 << CONNECT_CPU)
    check(lib.vi_machine_set_message_irq(core.handle, virq), f"irq {virq}: cannot serve control messages")
