"""The synthetic timers of one partition: their registers, and the port by which they reach time, slots and APICs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from vmbusirq.core import TICKS_MAX
from vmbusirq.hyperv.clock import Timer
from vmbusirq.hyperv.cpuid import Feature
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.messages import Buffers, Deposit
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.stimer import (
    CONFIG_DIRECT,
    STIMERS,
    TIMER_EXPIRED,
    SyntheticTimer,
    TimerRules,
    config_sint,
)
from vmbusirq.limits import SINTS

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.profiles import Profile
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["Stimers", "timer_rules"]

_SINT_0: Final[dict[str, Literal["never", "if-enabled", "allowed"]]] = {
    "disabled": "never",
    "disabled-if-enabled": "if-enabled",
    "allowed": "allowed",
}
_LATE: Final[dict[str, Literal["phase", "drift", "catch-up"]]] = {
    "phase": "phase",
    "now": "drift",
    "catch-up": "catch-up",
}


def timer_rules(profile: Profile) -> TimerRules:
    """Return how timers behave in a profile: its own choices, in a timer's words."""
    return TimerRules(
        queues=profile.stimer_queues,
        retry=profile.stimer_retry,
        sint_0=_SINT_0[profile.stimer_sint0],
        zero_count_disables=profile.stimer_zero_count_disables,
        drops_busy_ticks=profile.busy_periodic_tick == "dropped",
        masked_is_delivered=profile.message_to_masked != "undelivered",
        lost_vector_is_delivered=profile.stimer_lost_vector_is_delivered,
        late=_LATE[profile.late_periodic],
        lazy=profile.stimer_lazy,
        enabled_until_delivered=profile.stimer_enabled_until_delivered,
    )


class _Wakeup:
    """A call at a reference time, which may lag behind the partition's clock: then it is put off."""

    __slots__ = ("_due", "_function", "_stimers", "_timer")

    def __init__(self, stimers: Stimers, due: int, function: Callable[[], object]) -> None:
        self._stimers = stimers
        self._due = due
        self._function = function
        self._timer: Timer | None = None
        self._set()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self) -> None:
        partition = self._stimers.partition
        tick = partition.refclock.clock_tick(self._due)
        self._timer = partition.clock.call_at(tick, self._wake) if tick < TICKS_MAX else None

    def _wake(self) -> None:
        if self._stimers.now < self._due:
            self._set()
        else:
            self._function()


class Stimers:
    """The timers of all VPs of a partition; those that nobody has written to are not even there.

    Attributes:
        partition: whose.
        rules: how they behave.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition: Final = partition
        self.rules: Final = timer_rules(partition.profile)
        self._timers: dict[tuple[int, int], SyntheticTimer] = {}
        self._later: dict[SyntheticTimer, None] = {}
        self._seen: set[int] = set()
        self._refused: dict[int, list[Callable[[], bool]]] = {}
        registers = range(Msr.STIMER0_CONFIG, Msr.STIMER0_CONFIG + 2 * STIMERS)
        partition.registers.serve(registers, self._read, self._write)
        partition.on_vp_reset.append(self._reset)
        partition.synic_registers.changed.append(lambda vcpu, _msr, _old, _new: self._registers_changed(vcpu))

    def timer(self, vp: int, index: int) -> SyntheticTimer:
        """Return one timer."""
        timer = self._timers.get((vp, index))
        if timer is None:
            if vp not in self._seen and self.rules.retry == "ack" and not self.rules.queues:
                apic = self.partition.vcpus[vp].apic
                apic.on_eoi.append(self._ended)
                apic.on_eom.append(lambda vcpu: self._acknowledge(vcpu, (1 << SINTS) - 1))
            self._seen.add(vp)
            timer = self._timers[vp, index] = SyntheticTimer(self, self.rules, vp, index)
        return timer

    def enter(self) -> bool:
        """Serve the timers that wait for their VP, or for a slot; called while the guest runs. Return if any moved."""
        if not self._later:
            return False
        waiting, self._later = list(self._later), {}
        return sum(timer.process() for timer in waiting) > 0

    def _acknowledge(self, vcpu: Vcpu, sints: int) -> None:
        """Hear of an EOI or EOM for the SINTs of a bitmap."""
        for index in range(STIMERS):
            timer = self._timers.get((vcpu.index, index))
            if timer is not None and sints >> config_sint(timer.config) & 1:
                timer.acknowledge()

    # ---- registers

    def _read(self, vcpu: Vcpu, msr: int) -> int:
        index, is_count = divmod(msr - Msr.STIMER0_CONFIG, 2)
        timer = self._timers.get((vcpu.index, index))
        if timer is None:
            return 0
        return timer.count if is_count else timer.config

    def _write(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        index, is_count = divmod(msr - Msr.STIMER0_CONFIG, 2)
        direct = self.partition.features.has(Feature.STIMER_DIRECT)
        if not is_count and value & CONFIG_DIRECT and not direct and not host:
            vcpu.fault(msr, value)
        timer = self.timer(vcpu.index, index)
        if is_count:
            timer.write_count(value, host=host)
        else:
            timer.write_config(value)

    def _reset(self, vcpu: Vcpu) -> None:
        for index in range(STIMERS):
            if (timer := self._timers.get((vcpu.index, index))) is not None:
                timer.reset()
                self._later.pop(timer, None)

    # ---- what a timer asks for

    @property
    def now(self) -> int:
        """Reference time."""
        return self.partition.refclock.time()

    def call_at(self, due: int, function: Callable[[], object]) -> _Wakeup:
        """Call ``function`` when reference time has come to ``due``."""
        return _Wakeup(self, due, function)

    def runs(self, vp: int) -> bool:
        """Whether the VP runs: not while the host keeps the guest suspended."""
        return not self.partition.guest_suspended

    def enter_later(self, timer: SyntheticTimer) -> None:
        """Process a timer when its VP is entered."""
        self._later[timer] = None

    def request_vector(self, vp: int, vector: int) -> bool:
        """Request a vector of the VP's APIC."""
        return self.partition.vcpus[vp].apic.request(vector)

    def try_message(self, vp: int, sint: int, payload: bytes, *, set_pending: bool) -> Deposit:
        """Write a message into the slot, or say why not."""
        return self.partition.messages.deposit(vp, sint, TIMER_EXPIRED, payload, quiet=not set_pending)

    def queue_message(
        self, vp: int, sint: int, payload: Callable[[], bytes], taken: Callable[[], None]
    ) -> Callable[[], object]:
        """Queue a message for the slot; where the SynIC takes none now, it is queued once it does."""
        messages, buffers = self.partition.messages, Buffers(1)
        refused = self._refused.setdefault(vp, [])

        def post() -> bool:
            status = messages.post(vp, sint, TIMER_EXPIRED, payload, buffers=buffers, delivered=lambda _result: taken())
            return status == HvStatus.SUCCESS

        def recall() -> None:
            if post in refused:
                refused.remove(post)
            messages.withdraw(vp, sint, buffers)

        if not post():
            refused.append(post)
        return recall

    def _registers_changed(self, vcpu: Vcpu) -> None:
        """The SynIC may take messages again."""
        refused = self._refused.get(vcpu.index)
        if refused:
            refused[:] = [post for post in tuple(refused) if not post()]

    def _ended(self, vcpu: Vcpu, vector: int) -> None:
        """An EOI counts for all unmasked SINTs of its vector."""
        last = self.partition.profile.shared_vector_eoi == "last"
        sints = self.partition.synic.sints_of(vcpu.index, vector, last=last)
        self._acknowledge(vcpu, sum(1 << sint for sint in sints))
