"""The partition reference clock: 100 ns ticks of virtual time, advanced by whoever drives the machine."""

from __future__ import annotations

from vmbusirq.core import TICKS_PER_S, Core

__all__ = ["Clock"]


class Clock:
    """Virtual time of one machine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def now(self) -> int:
        """Ticks since boot."""
        return self._core.now

    @property
    def seconds(self) -> float:
        """Seconds since boot."""
        return self._core.now / TICKS_PER_S

    def advance(self, ticks: int) -> None:
        """Let ``ticks`` pass. EINVAL for a negative number: time does not run backwards."""
        self._core.set_time(self._core.now + ticks)
