"""Interrupt designs as data: who counts at the top level, who has an IRQ, who serves control messages.

A design is one frozen record. Nothing else in the package asks for a design by name: rooms read its fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Final

from vmbusirq._ffi import lib

__all__ = ["DEFAULT_DESIGN", "DESIGNS", "Design", "HypCount", "OfflinePolicy"]


class HypCount(IntEnum):
    """When the x86 entry bumps the HYP row of /proc/interrupts."""

    ALWAYS = lib.VI_HYP_ALWAYS
    MESSAGE = lib.VI_HYP_MESSAGE
    NEVER = lib.VI_HYP_NEVER


class OfflinePolicy(Enum):
    """What becomes of the channels of a CPU that goes offline.

    REFUSE: they keep it online, EBUSY (v6.10, and the RFC).
    MAINLINE: each is moved to an online CPU from a random one on, and the host has to confirm it (6.16,
        hv_pick_new_cpu).
    REDIRECT: the host is asked to interrupt another CPU; the IRQ core moves the handlers, as it does with ordinary IRQs
        (genirq's interrupt redirection, 2025).
    HANDOVER: each is moved to the least used CPU of its affinity, and poked there in case a signal was lost (our own).
    """

    REFUSE = "refuse"
    MAINLINE = "mainline"
    REDIRECT = "redirect"
    HANDOVER = "handover"


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
        offline_policy: what becomes of the channels of a CPU that goes offline; REDIRECT is also how they are moved at
            any other time, and needs channel IRQs.
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
    offline_policy: OfflinePolicy
    source: str
    one_modify: bool = False

    @property
    def redirects(self) -> bool:
        """Channel IRQs run on a CPU of their effective mask, whatever CPU the host interrupts."""
        return self.offline_policy is OfflinePolicy.REDIRECT


_LEGACY: Final = Design(
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
    offline_policy=OfflinePolicy.REFUSE,
    source="drivers/hv/vmbus_drv.c, v6.10",
)
_RFC: Final = Design(
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
    offline_policy=OfflinePolicy.REFUSE,
    source="RFC patches 06 to 12",
)
_MGMT_IRQ: Final = Design(
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
    offline_policy=OfflinePolicy.REFUSE,
    source="review of RFC patch 06, second proposal",
)
_MGMT_IRQ_NOSTAT: Final = replace(
    _MGMT_IRQ,
    name="mgmt-irq-nostat",
    summary="an IRQ per channel and one for control messages; the top level has a row that no total includes",
    hyp_in_total=False,
    toplevel_flow=lib.VI_FLOW_PERCPU_NOSTAT,
    source="review of RFC patch 06, last proposal, row kept",
)
_MGMT_IRQ_HIDDEN: Final = replace(
    _MGMT_IRQ_NOSTAT,
    name="mgmt-irq-hidden",
    summary="an IRQ per channel and one for control messages; the top level counts nothing and has no row",
    hyp_count=HypCount.NEVER,
    hyp_row=False,
    toplevel_hidden=True,
    source="review of RFC patch 06, last proposal, as agreed",
)
_REDIRECT: Final = replace(
    _MGMT_IRQ_HIDDEN,
    name="redirect",
    summary="as mgmt-irq-hidden; channel IRQs run where the guest wants them, wherever the host interrupts",
    offline_policy=OfflinePolicy.REDIRECT,
    source="genirq's interrupt redirection, December 2025",
)

_ALL = (
    _LEGACY,
    _RFC,
    _MGMT_IRQ,
    _MGMT_IRQ_NOSTAT,
    _MGMT_IRQ_HIDDEN,
    _REDIRECT,
    replace(
        _LEGACY,
        name="mainline-6.16",
        summary="as legacy; channels of a CPU that goes offline are moved, and the host has to confirm it",
        offline_policy=OfflinePolicy.MAINLINE,
        source="drivers/hv/hv.c hv_pick_new_cpu(), v6.16",
    ),
    replace(
        _RFC,
        name="rfc-pick",
        summary="as rfc; channels of a CPU that goes offline are moved as in mainline-6.16",
        offline_policy=OfflinePolicy.MAINLINE,
        source="RFC patches 06 to 12, with hv_pick_new_cpu() of v6.16",
    ),
    replace(
        _RFC,
        name="rfc-handover",
        summary="as rfc; channels of a CPU that goes offline are moved within their affinity, and poked",
        offline_policy=OfflinePolicy.HANDOVER,
        source="RFC patches 06 to 12, and an answer of our own to what they leave open",
    ),
)

DESIGNS: Final[dict[str, Design]] = {design.name: design for design in _ALL}
DEFAULT_DESIGN: Final = "rfc"
