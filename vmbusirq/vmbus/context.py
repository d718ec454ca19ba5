"""What all rooms of the guest driver work with: the kernel around it, the hypervisor, the choices made at boot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vmbusirq.core import Core
from vmbusirq.designs import Design
from vmbusirq.irq import IrqCore
from vmbusirq.steps import Lock, LockKind
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.control import Control
from vmbusirq.vmbus.pages import HV_PAGE

__all__ = ["CHANNEL_MUTEX", "SET_AFFINITY_LOCK", "Context", "GuestOptions"]

CHANNEL_MUTEX = Lock("channel_mutex", LockKind.SLEEPING)
SET_AFFINITY_LOCK = Lock("set_affinity_lock", LockKind.SPINNING)


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """Choices of the guest.

    Attributes:
        strict_rfc: keep the defects of the RFC as posted (vmbus.md 10): close keeps the IRQ, a write to a channel's cpu
            file returns 0, hv_synic_cleanup takes set_affinity_lock with interrupts on.
        page_bytes: 4096; on arm64 also 16384 and 65536.
        isolated: CPUs under isolcpus=managed_irq, which init_vp_index and irq_set_affinity keep away from.
        isolation: the guest is a confidential VM, which takes offers of few classes only.
        hibernation: the hypervisor says that the machine may hibernate.
        max_version: newest protocol version to try (hv_vmbus.max_version), 0x50003 for 5.3.
        scsi_hosts: SCSI host number of a device, by the text of its instance GUID; the others get the lowest free one.
        seed: of what the guest draws at random.
        probe_order: instances in the order in which their probes run, others after them in the order of their offers.
    """

    strict_rfc: bool = False
    page_bytes: int = HV_PAGE
    isolated: int = 0
    isolation: bool = False
    hibernation: bool = False
    max_version: int = 0x50003
    scsi_hosts: dict[str, int] = field(default_factory=dict)
    probe_order: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Context:
    """The kernel and the hypervisor as the driver sees them.

    Attributes:
        hv: the partition: memory, SynICs, hypercalls, time.
        control: messages to and from the host.
        channels: those that can be found by relid.
    """

    core: Core
    irq: IrqCore
    hv: Any
    control: Control
    design: Design
    options: GuestOptions
    channels: dict[int, Channel] = field(default_factory=dict)

    @property
    def set_affinity_lock(self) -> Lock:
        """RFC patch 12's lock as a task takes it.

        The RFC takes it with interrupts on, although irq_set_affinity takes it under desc->lock: a channel interrupt
        that comes then can wait for a desc->lock whose holder waits for this CPU (vmbus.md 10, trap 8). That is mended
        here unless ``strict_rfc`` is set.
        """
        return SET_AFFINITY_LOCK if self.options.strict_rfc else replace(SET_AFFINITY_LOCK, kind=LockKind.RAW)
