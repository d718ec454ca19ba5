"""The two monitor pages of a connection as the guest reads them (struct hv_monitor_page; vmbus.md 2.5).

A channel whose offer has a monitor signals the host through a bit of the second page; the first is for the other
direction, and nobody uses it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.monitor import GROUP_BITS, LATENCY, PARAMETER, PENDING
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.pages import GuestPages

__all__ = ["Monitor", "MonitorPage", "Monitors"]

CONNECTION_ID_MASK: Final = 0xFF_FFFF  # union hv_connection_id: 24 bits, the rest is reserved


class MonitorPage(Enum):
    """Which page; the values are the connection's names for them."""

    SERVER = "monitor page 1"  # host to guest
    CLIENT = "monitor page 2"  # guest to host


@dataclass(frozen=True, slots=True)
class Monitor:
    """What one page says of one monitor.

    Attributes:
        pending: the pending word of its whole group, 32 bits.
        latency: how long a signal may take, in units of 100 ns.
        connection_id: whom a signal goes to.
    """

    pending: int
    latency: int
    connection_id: int


class Monitors:
    """Looks into the monitor pages.

    Args:
        pages: pages of the connection by name.
    """

    def __init__(self, pages: Mapping[str, GuestPages]) -> None:
        self._pages = pages

    def look(self, channel: Channel, which: MonitorPage) -> Monitor:
        """Return what a page says of a channel's monitor now.

        As in Linux the id of the offer is believed: one above 127 gives what lies behind the tables, in the same page.

        Raises:
            IrqError(ENODEV): the guest has no monitor pages, because it is not connected.
        """
        page = self._pages.get(which.value)
        if page is None:
            raise IrqError(errno.ENODEV, f"channel {channel.relid}: there are no monitor pages: not connected (ENODEV)")
        monitor_id = channel.offer.monitorid

        def number(offset: int, size: int) -> int:
            return int.from_bytes(page.read(offset, size), "little")

        return Monitor(
            pending=number(PENDING + 8 * (monitor_id // GROUP_BITS), 4),
            latency=number(LATENCY + 2 * monitor_id, 2),
            connection_id=number(PARAMETER + 8 * monitor_id, 4) & CONNECTION_ID_MASK,
        )
