"""Synthetic timers: four per VP, one-shot or periodic, by message or by vector (TLFS 12.4; synic.md 11).

A timer is a state machine over a small port (:class:`TimerPort`): what time it is, who wakes it, where a message or a
vector goes. What implementations do differently is a record, :class:`TimerRules`; the machine asks it for a field and
never for a name. All times are reference time, ticks of 100 ns.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from vmbusirq.hyperv.messages import Deposit

__all__ = [
    "CONFIG_AUTO_ENABLE",
    "CONFIG_DIRECT",
    "CONFIG_ENABLE",
    "CONFIG_LAZY",
    "CONFIG_PERIODIC",
    "STIMERS",
    "TIMER_EXPIRED",
    "SyntheticTimer",
    "TimerPort",
    "TimerRules",
    "config_sint",
    "config_vector",
    "next_due",
]

STIMERS: Final = 4
TIMER_EXPIRED: Final = 0x8000_0010
CONFIG_ENABLE: Final = 1 << 0
CONFIG_PERIODIC: Final = 1 << 1
CONFIG_LAZY: Final = 1 << 2
CONFIG_AUTO_ENABLE: Final = 1 << 3
CONFIG_DIRECT: Final = 1 << 12
ALMOST_DUE: Final = 4
"""A deferred lazy signal is skipped within this part of a period before the next; the TLFS has no figure."""
CATCH_UP_MAX: Final = 3


def config_vector(config: int) -> int:
    """Return the APIC vector of direct mode, bits 11:4 of STIMERn_CONFIG."""
    return config >> 4 & 0xFF


def config_sint(config: int) -> int:
    """Return the SINT of message mode, bits 19:16 of STIMERn_CONFIG."""
    return config >> 16 & 0xF


class Wakeup(Protocol):
    """What :meth:`TimerPort.call_at` returns."""

    def cancel(self) -> None:
        """Take it back; nothing happens if it ran."""


class TimerPort(Protocol):
    """What a timer needs of its partition."""

    @property
    def now(self) -> int:
        """Reference time."""

    def call_at(self, due: int, function: Callable[[], object]) -> Wakeup:
        """Call ``function`` when reference time has reached ``due``, which lies ahead."""

    def runs(self, vp: int) -> bool:
        """Whether that VP is scheduled now; a timer of one that is not waits."""

    def enter_later(self, timer: SyntheticTimer) -> None:
        """Call :meth:`SyntheticTimer.process` when its VP is entered the next time."""

    def try_message(self, vp: int, sint: int, payload: bytes, *, set_pending: bool) -> Deposit:
        """Write a timer message into the slot, or say why not; ``set_pending``: mark a busy slot."""

    def queue_message(
        self, vp: int, sint: int, payload: Callable[[], bytes], taken: Callable[[], None]
    ) -> Callable[[], object]:
        """Queue a message whose payload is made when the slot takes it; ``taken`` is called then, perhaps at once.

        Returns:
            What takes it back, while it is queued.
        """

    def request_vector(self, vp: int, vector: int) -> bool:
        """Request an APIC vector; False: the APIC is disabled and drops it."""


@dataclass(frozen=True, slots=True)
class TimerRules:
    """How one implementation treats its timers (synic.md 11, 15).

    Attributes:
        queues: an expiry joins the SynIC's queue with the timer's own buffer (TLFS); else it is tried at once, and a
            timer that could not deliver keeps an undelivered mark.
        retry: when an undelivered expiry is tried again: at an EOI or EOM of its SINT, or whenever the VP is entered.
        sint_0: D11, message mode with SINT 0: never enabled; disabled only by a write to an enabled timer; allowed.
        zero_count_disables: a COUNT of 0 clears enable; else it only stops the timer.
        drops_busy_ticks: D12, a periodic tick that finds the slot busy is lost, and sets no pending bit.
        masked_is_delivered: D4, a message in the slot of a masked SINT is delivered; else it will be sent once more.
        lost_vector_is_delivered: a direct expiry that a disabled APIC drops is over; else the timer is stuck with it.
        late: D13, the next due time of a periodic timer that is late.
        lazy: what the lazy bit does: nothing, or ``skip`` (one deferred signal, none when the next is almost due), or
            ``drift`` (the next period begins now).
        enabled_until_delivered: a one-shot keeps enable until its message is in the slot.
    """

    queues: bool = False
    retry: Literal["ack", "entry"] = "ack"
    sint_0: Literal["never", "if-enabled", "allowed"] = "never"
    zero_count_disables: bool = True
    drops_busy_ticks: bool = False
    masked_is_delivered: bool = True
    lost_vector_is_delivered: bool = True
    late: Literal["phase", "drift", "catch-up"] = "catch-up"
    lazy: Literal["ignored", "skip", "drift"] = "ignored"
    enabled_until_delivered: bool = False


def next_due(rules: TimerRules, config: int, due: int, period: int, now: int) -> int:
    """Return when a periodic timer is due again that was due at ``due`` and is served at ``now`` (synic.md 11.2)."""
    late = rules.late
    if config & CONFIG_LAZY and rules.lazy != "ignored":
        late = "drift" if rules.lazy == "drift" else "phase"
    if late == "phase":
        return now + period - (now - due) % period
    if late == "drift":
        return now + period
    following = due + period
    if now < following:
        return following
    missed = (now - following) // period + 1
    return now + (period // missed or 1) if missed <= CATCH_UP_MAX else now + period


class SyntheticTimer:
    """One timer of one VP.

    Attributes:
        vp, index: whose, and which of its four.
        due: when it expires next, 0 when it does not; the due time of an expiry that is not delivered yet.
        undelivered: it has expired, and its message is still to be written.
        expirations: messages written and vectors requested since the reset.
    """

    __slots__ = (
        "_config",
        "_count",
        "_marked",
        "_port",
        "_recall",
        "_rules",
        "_wakeup",
        "due",
        "expirations",
        "index",
        "undelivered",
        "vp",
    )

    def __init__(self, port: TimerPort, rules: TimerRules, vp: int, index: int) -> None:
        self.vp: Final = vp
        self.index: Final = index
        self._port = port
        self._rules = rules
        self._config = 0
        self._count = 0
        self.due = 0
        self.undelivered = False
        self.expirations = 0
        self._marked = False
        self._wakeup: Wakeup | None = None
        self._recall: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<SyntheticTimer {self.vp}/{self.index} config {self._config:#x} count {self._count} due {self.due}>"

    # ---- the two registers

    @property
    def config(self) -> int:
        """STIMERn_CONFIG as it reads now."""
        expired = self.undelivered and not self._rules.enabled_until_delivered
        return self._config & ~CONFIG_ENABLE if expired and not self._periodic else self._config

    @property
    def count(self) -> int:
        """STIMERn_COUNT as last written: a due time, or a period."""
        return self._count

    def write_config(self, value: int) -> None:
        """Write STIMERn_CONFIG: what is under way is dropped, and the timer starts anew if it is enabled."""
        was_enabled = bool(self._config & CONFIG_ENABLE)
        self._drop()
        self._config = value
        rule = self._rules.sint_0
        if self._has_no_sint and (rule == "never" or (rule == "if-enabled" and was_enabled)):
            self._config &= ~CONFIG_ENABLE
        self._mark_if_enabled()

    def write_count(self, value: int, *, host: bool = False) -> None:
        """Write STIMERn_COUNT; a guest's write of 0 stops the timer, another one starts it if it is auto-enabled.

        A host that restores a register enables nothing (Linux v6.7).
        """
        self._drop()
        self._count = value
        if not host and value == 0 and self._rules.zero_count_disables:
            self._config &= ~CONFIG_ENABLE
        never = self._has_no_sint and self._rules.sint_0 == "never"
        if not host and value and self._config & CONFIG_AUTO_ENABLE and not never:
            self._config |= CONFIG_ENABLE
        self._mark_if_enabled()

    def reset(self) -> None:
        """Take it back to its state at VP creation."""
        self._drop()
        self._config = self._count = self.expirations = 0

    def settle_batch(self, count: int) -> None:
        """Note that the guest has set the one-shot again and again outside, lastly to ``count``, and it expired."""
        self._drop()
        self._count = count
        self._config &= ~CONFIG_ENABLE

    # ---- running

    def process(self) -> bool:
        """Do what is due, if the VP runs; return whether anything was done. Called whenever the VP is entered."""
        before = self.expirations
        did = self._marked and self._port.runs(self.vp)
        if self._port.runs(self.vp):
            self._marked |= self.undelivered and self._rules.retry == "entry"
            while self._marked:
                self._marked = False
                if self._config & CONFIG_ENABLE:
                    self._serve()
        if self._marked or (self.undelivered and self._rules.retry == "entry"):
            self._port.enter_later(self)
        return did or self.expirations != before

    def acknowledge(self) -> bool:
        """Hear of an EOI or EOM of the SINT: an undelivered message is tried again. Return whether there was one."""
        if not (self.undelivered and self._config & CONFIG_ENABLE) or self._config & CONFIG_DIRECT:
            return False
        self._marked = True
        self.process()
        return True

    def _serve(self) -> None:
        now = self._port.now
        if self.due and now >= self.due:
            self._expire(now)
        if self._config & CONFIG_ENABLE and self._count:
            if not self.undelivered:
                self._start()
        else:
            self._stop()

    def _start(self) -> None:
        now = self._port.now
        if not self._periodic:
            self.due = self._count
            if now >= self._count:  # in the past: expires at once
                self._marked = True
                return
        elif not self.due:
            self.due = now + self._count
        elif now >= self.due:
            self.due = next_due(self._rules, self._config, self.due, self._count, now)
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup = self._port.call_at(self.due, self._wake)

    def _wake(self) -> None:
        self._wakeup = None
        self._marked = True
        self.process()

    def _expire(self, now: int) -> None:
        if self._is_skipped(now):
            return
        if self._config & CONFIG_DIRECT:
            took = self._port.request_vector(self.vp, config_vector(self._config))
            delivered = took or self._rules.lost_vector_is_delivered
        elif self._rules.queues:
            took = delivered = self._queue()
        else:
            took, delivered = self._try(now)
        self.expirations += took
        self.undelivered = not delivered
        if delivered and not self._periodic:
            self._config &= ~CONFIG_ENABLE

    def _try(self, now: int) -> tuple[bool, bool]:
        """Return whether a message was written, and whether the expiry is over."""
        no_retry = self._periodic and self._rules.drops_busy_ticks
        payload = self._payload(self.due, now)
        result = self._port.try_message(self.vp, config_sint(self._config), payload, set_pending=not no_retry)
        written = result in (Deposit.DELIVERED, Deposit.SILENT)
        over = result is Deposit.DELIVERED or (result is Deposit.SILENT and self._rules.masked_is_delivered)
        return written, over or (result is Deposit.BUSY and no_retry)

    def _queue(self) -> bool:
        """Let the timer's only buffer wait for the slot; a tick that comes while it waits merges with it."""
        if self._recall is not None:
            return True
        due = self.due
        in_slot = False

        def taken() -> None:
            nonlocal in_slot
            in_slot = True
            self._recall = None

        recall = self._port.queue_message(
            self.vp, config_sint(self._config), lambda: self._payload(due, self._port.now), taken
        )
        if not in_slot:
            self._recall = recall
        return True

    def _payload(self, expiration: int, delivery: int) -> bytes:
        return struct.pack("<IIQQ", self.index, 0, expiration, delivery)

    def _is_skipped(self, now: int) -> bool:
        """Whether a lazy signal that was put off comes too shortly before the next one."""
        if not (self._periodic and self._config & CONFIG_LAZY and self._rules.lazy == "skip") or now <= self.due:
            return False
        return (next_due(self._rules, self._config, self.due, self._count, now) - now) * ALMOST_DUE < self._count

    @property
    def _periodic(self) -> bool:
        return bool(self._config & CONFIG_PERIODIC)

    @property
    def _has_no_sint(self) -> bool:
        return not self._config & CONFIG_DIRECT and config_sint(self._config) == 0

    def _mark_if_enabled(self) -> None:
        self._marked = bool(self._config & CONFIG_ENABLE)
        self.process()

    def _stop(self) -> None:
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup = None
        self._marked = False
        self.undelivered = False
        self.due = 0

    def _drop(self) -> None:
        """Stop it, and take back what is still queued."""
        self._stop()
        recall, self._recall = self._recall, None
        if recall is not None:
            recall()
