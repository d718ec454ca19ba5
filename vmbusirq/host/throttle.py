"""Signals that tell the host nothing, and what a host does about a guest that sends too many (vmbus.md 1.9).

That hosts throttle is known, at which figures is not: those of :class:`HostOptions` are ours.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmbusirq.host.server import HostBus

__all__ = ["Throttle"]


class Throttle:
    """Counts unnecessary signals of one guest.

    Attributes:
        unnecessary: how many there were.
        suspensions: how often the guest was suspended for them.
    """

    def __init__(self, bus: HostBus) -> None:
        self._bus = bus
        self._times: deque[int] = deque()
        self.unnecessary = 0
        self.suspensions = 0

    def note(self) -> bool:
        """Count one; True if the guest is suspended for it."""
        self.unnecessary += 1
        partition, options = self._bus.partition, self._bus.options
        after = options.throttle_after
        if after is None:
            return False
        now = partition.clock.now
        self._times.append(now)
        while self._times[0] + options.throttle_window_ticks <= now:
            self._times.popleft()
        if len(self._times) <= after:
            return False
        self._times.clear()
        self.suspensions += 1
        partition.suspend_guest(options.throttle_ticks)
        return True
