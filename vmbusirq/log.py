"""The guest's log: what the emulated kernel prints, with the machine's virtual time, as ``dmesg`` shows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = ["Entry", "Level", "Log"]

TICKS_PER_US: Final = 10
TICKS_PER_S: Final = 10_000_000
RATELIMIT_INTERVAL_TICKS: Final = 5 * TICKS_PER_S  # DEFAULT_RATELIMIT_INTERVAL, include/linux/ratelimit_types.h
RATELIMIT_BURST: Final = 10  # DEFAULT_RATELIMIT_BURST
ENTRIES_MAX: Final = 65_536


class Level(IntEnum):
    """How urgent a line is (KERN_*, include/linux/kern_levels.h)."""

    EMERG = 0
    ALERT = 1
    CRIT = 2
    ERR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log: virtual time in 100 ns units, level, text."""

    time: int
    level: Level
    text: str

    def __str__(self) -> str:
        """Return the line as ``dmesg`` prints it: ``[    5.123456] text``."""
        seconds, ticks = divmod(self.time, TICKS_PER_S)
        return f"[{seconds:5d}.{ticks // TICKS_PER_US:06d}] {self.text}"


@dataclass(slots=True)
class _Ratelimit:
    """Window of one rate-limited place (struct ratelimit_state)."""

    begin: int
    printed: int = 0
    missed: int = 0


class Log:
    """A ring of log lines: the newest 65 536 are kept, ``dropped`` says how many older ones went.

    ``clock`` gives the virtual time in 100 ns units. Appending is safe from any thread.
    """

    def __init__(self, clock: Callable[[], int] = lambda: 0) -> None:
        self.clock = clock
        self.dropped = 0
        self._entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)
        self._once: set[Hashable] = set()
        self._ratelimits: dict[Hashable, _Ratelimit] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries, oldest first."""
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __str__(self) -> str:
        """Return the whole log as ``dmesg`` prints it; empty, or lines that each end in a newline."""
        return "".join(f"{entry}\n" for entry in self)

    def texts(self, level: Level = Level.DEBUG) -> list[str]:
        """Return the texts of all entries at ``level`` or more urgent, oldest first."""
        return [entry.text for entry in self if entry.level <= level]

    def printk(self, level: Level, text: str) -> None:
        """Append ``text``; each of its lines becomes an entry of its own."""
        now = self.clock()
        for line in text.split("\n"):
            if len(self._entries) == ENTRIES_MAX:
                self.dropped += 1
            self._entries.append(Entry(now, level, line))

    def err(self, text: str) -> None:
        """Append an error."""
        self.printk(Level.ERR, text)

    def warn(self, text: str) -> None:
        """Append a warning."""
        self.printk(Level.WARNING, text)

    def info(self, text: str) -> None:
        """Append a notice without urgency."""
        self.printk(Level.INFO, text)

    def once(self, key: Hashable, level: Level, text: str) -> None:
        """Append ``text`` unless an entry with this ``key`` was made before (pr_warn_once, WARN_ON_ONCE)."""
        if key not in self._once:
            self._once.add(key)
            self.printk(level, text)

    def ratelimited(self, key: Hashable, level: Level, text: str) -> None:
        """Append ``text`` unless ``key`` had 10 in the last 5 seconds of virtual time (printk_ratelimited).

        When a window ends, how many were held back is said first, as the kernel says it.
        """
        now = self.clock()
        limit = self._ratelimits.setdefault(key, _Ratelimit(now))
        if now > limit.begin + RATELIMIT_INTERVAL_TICKS:
            if limit.missed:
                self.warn(f"{key}: {limit.missed} callbacks suppressed")
            limit.begin, limit.printed, limit.missed = now, 0, 0
        if limit.printed < RATELIMIT_BURST:
            limit.printed += 1
            self.printk(level, text)
        else:
            limit.missed += 1
