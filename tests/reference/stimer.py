"""A synthetic timer in plain words: no state but what happened, and what follows from reading it again.

A second reading of synic.md 11.3 (KVM, v6.16) and of direct mode in every profile. Time is a loop over ticks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ENABLE, PERIODIC, AUTO, DIRECT = 1, 2, 8, 1 << 12


@dataclass
class KvmTimer:
    """One timer of KVM; ``slot`` is whose message lies in its SINT's slot: None, "other", or (expiration, delivery)."""

    config: int = 0
    count: int = 0
    due: int = 0
    undelivered: bool = False
    marked: bool = False
    slot: object = None
    pending: bool = False
    vectors: list[int] = field(default_factory=list)

    def write_config(self, value: int, now: int) -> None:
        was = self.config & ENABLE
        self.due, self.undelivered, self.marked = 0, False, False
        if was and not value & DIRECT and not value >> 16 & 15:
            value &= ~ENABLE
        self.config = value
        self.marked = bool(value & ENABLE)
        self.enter(now)

    def write_count(self, value: int, now: int) -> None:
        self.due, self.undelivered, self.marked = 0, False, False
        self.count = value
        if value == 0:
            self.config &= ~ENABLE
        elif self.config & AUTO:
            self.config |= ENABLE
        self.marked = bool(self.config & ENABLE)
        self.enter(now)

    def tick(self, now: int, *, asleep: bool = False) -> None:
        """One tick has passed; a started timer whose time has come is marked, and served if the VP runs."""
        if self.config & ENABLE and self.count and self.due == now and not self.undelivered:
            self.marked = True
        if not asleep:
            self.enter(now)

    def enter(self, now: int) -> None:
        while self.marked:
            self.marked = False
            if not self.config & ENABLE:
                continue
            if self.due and now >= self.due:
                self.expire(now)
            if self.config & ENABLE and self.count:
                if not self.undelivered:
                    self.start(now)
            else:
                self.due, self.undelivered = 0, False

    def start(self, now: int) -> None:
        if self.config & PERIODIC:
            if not self.due:
                self.due = now + self.count
            elif now >= self.due:
                self.due = now + self.count - (now - self.due) % self.count
        else:
            self.due = self.count
            self.marked = now >= self.count

    def expire(self, now: int) -> None:
        self.undelivered = True
        if self.config & DIRECT:
            self.vectors.append(now)
        elif self.slot is not None:
            if not self.config & PERIODIC:
                self.pending = True
                return
        else:
            self.slot, self.pending = (self.due, now), False
        self.undelivered = False
        if not self.config & PERIODIC:
            self.config &= ~ENABLE

    def acknowledge(self, now: int) -> None:
        if self.undelivered and self.config & ENABLE and not self.config & DIRECT:
            self.marked = True
            self.enter(now)
