"""Signals that tell the host nothing, and what a host does about a guest that sends too many (vmbus.md 1.9).

That hosts throttle is known, at which figures is not: those of :class:`HostOptions` are ours.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmbusirq.host.options import HostOptions
    from vmbusirq.hyperv.partition import Partition

__all__ = ["Throttle"]


class Throttle:
    """Counts unnecessary signals of one guest.

    Attributes:
        unnecessary: how many there were.
        suspensions: how often the guest was suspended for them.
    """

    def __init__(self, partition: Partition, options: HostOptions) -> None:
        self._partition = partition
        self._options = options
        self._times: deque[int] = deque()
        self.unnecessary = 0
        self.suspensions = 0

    def note(self) -> bool:
        """Count one; True if the guest is suspended for it."""
        self.unnecessary += 1
        after = self._options.throttle_after
        if after is None:
            return False
        now = self._partition.clock.now
        self._times.append(now)
        while self._times[0] + self._options.throttle_window_ticks <= now:
            self._times.popleft()
        if len(self._times) <= after:
            return False
        self._times.clear()
        self.suspensions += 1
        self._partition.suspend_guest(self._options.throttle_ticks)
        return True
