"""The partition reference clock: 100 ns ticks of virtual time, advanced by whoever drives the machine, and its timers.

Time stands still while code runs. A timer's function runs at its own tick, on whoever advances the clock over it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from vmbusirq.core import TICKS_MAX, TICKS_PER_S, Core
from vmbusirq.errors import IrqError

__all__ = ["Clock", "Timer"]

_RUNS_MAX: Final = 1 << 16  # timers of one tick, run at once
_DEAD_MAX: Final = 64  # cancelled timers that may lie in the heap besides as many live ones


class Timer:
    """One function that runs once, unless it is cancelled before.

    Attributes:
        when: its tick.
    """

    __slots__ = ("_clock", "_function", "_order", "when")

    def __init__(self, clock: Clock, when: int, order: int, function: Callable[[], object]) -> None:
        self.when: Final = when
        self._clock = clock
        self._order = order
        self._function: Callable[[], object] | None = function

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self._order) < (other.when, other._order)

    @property
    def waiting(self) -> bool:
        """True until it runs or is cancelled."""
        return self._function is not None

    def cancel(self) -> None:
        """Take it back; nothing happens if it ran or was cancelled before."""
        if self._take() is not None:
            self._clock._forget_dead()

    def _take(self) -> Callable[[], object] | None:
        function, self._function = self._function, None
        if function is not None:
            self._clock._live -= 1
        return function


class Clock:
    """Virtual time of one machine."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._timers: list[Timer] = []
        self._created = 0
        self._live = 0

    @property
    def now(self) -> int:
        """Ticks since boot."""
        return self._core.now

    @property
    def seconds(self) -> float:
        """Seconds since boot."""
        return self._core.now / TICKS_PER_S

    def call_at(self, tick: int, function: Callable[[], object]) -> Timer:
        """Call ``function`` at ``tick``; those of one tick run in the order in which they were made.

        Raises:
            IrqError: EINVAL for a tick that has passed, or that is no tick.
        """
        if not self._is_ahead(tick):
            raise IrqError(errno.EINVAL, f"clock: no timer can be set to {tick!r}: it is tick {self.now} (EINVAL)")
        timer = Timer(self, tick, self._created, function)
        self._created += 1
        self._live += 1
        heappush(self._timers, timer)
        return timer

    @property
    def next_due(self) -> int | None:
        """The tick of the next timer, None if there is none."""
        self._drop_dead_heads()
        return self._timers[0].when if self._timers else None

    def advance(self, ticks: int) -> None:
        """Let ``ticks`` pass; errors as :meth:`advance_to`."""
        self.advance_to(self._core.now + ticks)

    def advance_to(self, tick: int) -> None:
        """Let time pass until ``tick`` and run what is due on the way, each timer at its own tick.

        Raises:
            IrqError: EINVAL for a tick that has passed: time does not run backwards.
            Exception: what a timer raised; the clock stands at its tick, later ones still wait.
        """
        if not self._is_ahead(tick):
            self._core.set_time(tick)  # says what is wrong with it
        while (due := self.next_due) is not None and due <= tick:
            self._run_first()
        self._go_to(tick)

    def advance_to_next(self) -> bool:
        """Let time pass until the next timer and run that one; False if there is none."""
        if self.next_due is None:
            return False
        self._run_first()
        return True

    def run_due(self) -> bool:
        """Run the timers of this very tick; True if there were any. No time passes.

        Raises:
            IrqError: ELOOP, they set each other to this tick for ever.
        """
        for runs in range(_RUNS_MAX):
            if self.next_due != self._core.now:
                return runs > 0
            self._run_first()
        raise IrqError(errno.ELOOP, f"clock: timers of tick {self.now} set each other to it for ever (ELOOP)")

    def _is_ahead(self, tick: int) -> bool:
        return isinstance(tick, int) and self._core.now <= tick < TICKS_MAX

    def _go_to(self, tick: int) -> None:
        self._core.set_time(max(tick, self._core.now))  # a timer may have advanced the clock itself

    def _run_first(self) -> None:
        timer = heappop(self._timers)
        function = timer._take()
        self._go_to(timer.when)
        if function is not None:
            function()

    def _drop_dead_heads(self) -> None:
        while self._timers and not self._timers[0].waiting:
            heappop(self._timers)

    def _forget_dead(self) -> None:
        """Timeouts are cancelled most of the time: do not keep them all until their tick."""
        if len(self._timers) > 2 * self._live + _DEAD_MAX:
            self._timers = [timer for timer in self._timers if timer.waiting]
            heapify(self._timers)
