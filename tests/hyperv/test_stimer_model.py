"""Any order of what a guest can do with a timer, against a plain reading of the rules (tests/reference/stimer.py)."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.hyperv.stimer_rig import AUTO, DIRECT, ENABLE, PERIODIC, SINT4, Tick, TimerRig
from tests.reference.stimer import KvmTimer
from vmbusirq.hyperv.registers import Msr

DIRECT_61 = DIRECT | 0x61 << 4
CONFIGS = [a | b | c for a in (0, ENABLE, AUTO, AUTO | ENABLE) for b in (0, PERIODIC) for c in (SINT4, DIRECT_61, 0)]


class KvmTimerMachine(RuleBasedStateMachine):
    """Timer 1 of VP 0 in profile kvm."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = TimerRig("kvm", start=50)
        self.rig.partition.vcpus[0].apic.handlers.pop(0x51)  # nobody ends it: EOM alone acknowledges
        self.model = KvmTimer()

    @rule(config=st.sampled_from([c for c in CONFIGS if c & DIRECT or c >> 16]), sint_0=st.booleans())
    def config(self, config: int, sint_0: bool) -> None:
        value = config & ~SINT4 if sint_0 and config & ENABLE and self.model.config & ENABLE else config
        self.rig.config(1, value)
        self.model.write_config(value, self.rig.now)
        self.rig.partition.settle()

    @rule(ahead=st.integers(-40, 60), absolute=st.booleans())
    def count(self, ahead: int, absolute: bool) -> None:
        value = max(0, self.rig.now + ahead if absolute else ahead)
        self.rig.count(1, value)
        self.model.write_count(value, self.rig.now)
        self.rig.partition.settle()

    @rule(period=st.integers(1, 60), mode=st.sampled_from([SINT4, DIRECT_61]))
    def start_periodic(self, period: int, mode: int) -> None:
        """What the two rules above seldom come to."""
        self.rig.config(1, AUTO | PERIODIC | mode)
        self.model.write_config(AUTO | PERIODIC | mode, self.rig.now)
        self.rig.count(1, period)
        self.model.write_count(period, self.rig.now)
        self.rig.partition.settle()

    @rule(ticks=st.integers(1, 80))
    def pass_time(self, ticks: int) -> None:
        for _ in range(ticks):
            self.rig.to(self.rig.now + 1)
            self.model.tick(self.rig.now)

    @rule(ticks=st.integers(1, 200))
    def keep_from_running(self, ticks: int) -> None:
        """The VP is not scheduled meanwhile."""
        self.rig.partition.suspend_guest(ticks)
        for left in reversed(range(ticks)):
            self.rig.to(self.rig.now + 1)
            self.model.tick(self.rig.now, asleep=left > 0)

    @rule()
    def fill_slot(self) -> None:
        if self.model.slot is None:
            self.rig.fill()
            self.model.slot, self.model.pending = "other", False

    @rule()
    def free_slot(self) -> None:
        if self.model.slot is not None:
            self.model.slot = None
            self.rig.free()
            if self.model.pending:
                self.model.acknowledge(self.rig.now)

    @rule()
    def eom(self) -> None:
        self.rig.eom()
        self.model.acknowledge(self.rig.now)

    @invariant()
    def registers_agree(self) -> None:
        timer = self.rig.partition.stimers.timer(0, 1)
        expected = (self.model.config, self.model.count)
        assert expected == (self.rig.read(1), self.rig.partition.vcpus[0].rdmsr(Msr.STIMER0_COUNT + 2))
        assert (self.model.due, self.model.undelivered) == (timer.due, timer.undelivered)

    @invariant()
    def the_slot_agrees(self) -> None:
        kind, pending, tick = self.rig.slot()
        expected = Tick(1, *self.model.slot) if isinstance(self.model.slot, tuple) else None
        assert (self.model.slot is not None, expected) == (kind != 0, tick)
        assert kind == 0 or self.model.pending == bool(pending)

    @invariant()
    def the_vectors_agree(self) -> None:
        assert self.model.vectors == [tick for tick, vector in self.rig.vectors if vector == 0x61]


TestKvmTimer = KvmTimerMachine.TestCase
TestKvmTimer.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
