"""Interrupt designs as data: who counts at the top level, who has an IRQ, who serves control messages.

A design is one frozen record. Nothing else in the package asks for a design by name: rooms read its fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from vmbusirq._ffi import lib

__all__ = ["DEFAULT_DESIGN", "DESIGNS", "Design", "HypCount"]


class HypCount(IntEnum):
    """When the x86 entry bumps the HYP row of /proc/interrupts."""

    ALWAYS = lib.VI_HYP_ALWAYS
    MESSAGE = lib.VI_HYP_MESSAGE
    NEVER = lib.VI_HYP_NEVER


@dataclass(frozen=True, slots=True)
class Design:
    """One way to make VMBus interrupts visible.

    Attributes:
        name: as the command line takes it.
        summary: one line for people.
        channel_irqs: each channel has a Linux IRQ in the relid domain (RFC patches 07 to 09).
        hyp_count: when x86 counts the top level on the HYP row.
        hyp_row: x86 shows a HYP row at all.
        hyp_in_total: the HYP row is part of the total of /proc/stat's intr line.
        toplevel_flow: flow handler of the arm64 PPI, a value of ``enum vi_flow``.
        toplevel_hidden: the PPI is marked IRQ_HIDDEN.
        message_irq: control messages have an IRQ of their own, hwirq 0 of the domain.
        wait_modifychannel: a CPU that goes offline waits for the MODIFYCHANNELs that are under way (RFC patch 11).
        set_affinity_lock: a move, from its look at the SynICs to the new target, and the search for channels on a CPU
            that goes offline exclude each other (RFC patch 12); nothing to ask for without channel IRQs, where moves
            hold cpus_read_lock instead.
        source: where the design comes from.
        one_modify: from 5.3 on, a move of a channel whose last MODIFYCHANNEL is unanswered waits for the answer, and
            what stays unanswered is sent again (ours). The RFC sends each at once, and a host may drop the second.
    """

    name: str
    summary: str
    channel_irqs: bool
    hyp_count: HypCount
    hyp_row: bool
    hyp_in_total: bool
    toplevel_flow: int
    toplevel_hidden: bool
    message_irq: bool
    wait_modifychannel: bool
    set_affinity_lock: bool
    source: str
    one_modify: bool = False


_ALL = (
    Design(
        name="legacy",
        summary="no channel IRQs; every interrupt is counted on the top level",
        channel_irqs=False,
        hyp_count=HypCount.ALWAYS,
        hyp_row=True,
        hyp_in_total=True,
        toplevel_flow=lib.VI_FLOW_PERCPU_DEVID,
        toplevel_hidden=False,
        message_irq=False,
        wait_modifychannel=False,
        set_affinity_lock=False,
        source="drivers/hv/vmbus_drv.c, v6.10",
    ),
    Design(
        name="rfc",
        summary="an IRQ per channel; the top level counts control messages only",
        channel_irqs=True,
        hyp_count=HypCount.MESSAGE,
        hyp_row=True,
        hyp_in_total=True,
        toplevel_flow=lib.VI_FLOW_PERCPU_DEMUX,
        toplevel_hidden=False,
        message_irq=False,
        wait_modifychannel=True,
        set_affinity_lock=True,
        source="RFC patches 06 to 12",
    ),
    Design(
        name="mgmt-irq",
        summary="an IRQ per channel and one for control messages; the top level counts everything once more",
        channel_irqs=True,
        hyp_count=HypCount.ALWAYS,
        hyp_row=True,
        hyp_in_total=True,
        toplevel_flow=lib.VI_FLOW_PERCPU_DEVID,
        toplevel_hidden=False,
        message_irq=True,
        wait_modifychannel=True,
        set_affinity_lock=True,
        source="review of RFC patch 06, second proposal",
    ),
    Design(
        name="mgmt-irq-nostat",
        summary="an IRQ per channel and one for control messages; the top level has a row that no total includes",
        channel_irqs=True,
        hyp_count=HypCount.ALWAYS,
        hyp_row=True,
        hyp_in_total=False,
        toplevel_flow=lib.VI_FLOW_PERCPU_NOSTAT,
        toplevel_hidden=False,
        message_irq=True,
        wait_modifychannel=True,
        set_affinity_lock=True,
        source="review of RFC patch 06, last proposal, row kept",
    ),
    Design(
        name="mgmt-irq-hidden",
        summary="an IRQ per channel and one for control messages; the top level counts nothing and has no row",
        channel_irqs=True,
        hyp_count=HypCount.NEVER,
        hyp_row=False,
        hyp_in_total=False,
        toplevel_flow=lib.VI_FLOW_PERCPU_NOSTAT,
        toplevel_hidden=True,
        message_irq=True,
        wait_modifychannel=True,
        set_affinity_lock=True,
        source="review of RFC patch 06, last proposal, as agreed",
    ),
)

DESIGNS: Final[dict[str, Design]] = {design.name: design for design in _ALL}
DEFAULT_DESIGN: Final = "rfc"
