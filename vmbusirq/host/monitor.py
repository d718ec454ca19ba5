"""Monitor pages: signals that the hypervisor collects instead of taking a hypercall for each (vmbus.md 2.5).

The host names the pages to the hypervisor, and writes into them how each monitored channel is signalled and how often
the hypervisor looks. Both pages get the same entries; only the guest-to-host page is looked at.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vmbusirq.hyperv.monitor import GROUP_BITS, LATENCY, PARAMETER, TRIGGER_STATE
from vmbusirq.wire.protocol import GPADL_PAGE

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition

__all__ = ["MONITORS", "MonitorPages"]

MONITORS: Final = 128
"""Monitor ids of one pair of pages: 4 groups of 32."""


class MonitorPages:
    """The pair of pages of one connection.

    Args:
        partition: the hypervisor, which polls the guest-to-host page.
        host_to_guest, guest_to_host: guest-physical addresses of whole pages.
    """

    def __init__(self, partition: Partition, host_to_guest: int, guest_to_host: int) -> None:
        self._partition = partition
        self._pages: Final = (host_to_guest, guest_to_host)

    @staticmethod
    def are_usable(partition: Partition, host_to_guest: int, guest_to_host: int) -> bool:
        """Return whether both are whole pages that the guest has."""
        last = partition.memory.size_bytes - GPADL_PAGE
        return all(gpa % GPADL_PAGE == 0 and 0 < gpa <= last for gpa in (host_to_guest, guest_to_host))

    def start(self) -> None:
        """Let the hypervisor look at the guest-to-host page."""
        self._partition.set_monitor_pages(*self._pages)

    def stop(self) -> None:
        """No longer look at it."""
        self._partition.set_monitor_pages(0, 0)

    def enable(self, monitor: int, connection_id: int, latency: int) -> None:
        """Say how a monitored channel is signalled."""
        memory = self._partition.memory
        for gpa in self._pages:
            (enabled,) = struct.unpack("<I", memory.read(gpa + TRIGGER_STATE, 4))
            memory.write(gpa + TRIGGER_STATE, struct.pack("<I", enabled | 1 << monitor // GROUP_BITS))
            memory.write(gpa + LATENCY + 2 * monitor, struct.pack("<H", latency))
            memory.write(gpa + PARAMETER + 8 * monitor, struct.pack("<IHH", connection_id, 0, 0))
