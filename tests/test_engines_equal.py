"""Two engines, one truth: all counters are the same for any order of events on one thread, at any vector width."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig import SIMDS, VMBUS_SINT, Rig
from tests.synic import switch_synic
from vmbusirq._ffi import lib

CPUS = 3
RELIDS = (1, 2, 63, 64, 700, 2047)
# Rings for some, a bare count for others; every mode.
KINDS = (
    (lib.VI_CALL_ISR, lib.VI_CALLBACK_COUNT),
    (lib.VI_CALL_BATCHED, lib.VI_CALLBACK_DRAIN),
    (lib.VI_CALL_DIRECT, lib.VI_CALLBACK_COUNT),
    (lib.VI_CALL_ISR, lib.VI_CALLBACK_NAPI),
    (lib.VI_CALL_DIRECT, lib.VI_CALLBACK_DRAIN),
    (lib.VI_CALL_ISR, lib.VI_CALLBACK_DRAIN),
)
HANDLED, NONE, WAKE, BOGUS = 1, 0, 2, 9

channels = st.integers(0, len(RELIDS) - 1)
cpus = st.integers(0, CPUS - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("signal"), st.sampled_from([0, *RELIDS, 65, 1999]), cpus),
        st.tuples(st.just("run"), cpus, st.just(0)),
        st.tuples(st.just("scan"), cpus, st.just(0)),
        st.tuples(st.just("post"), cpus, st.sampled_from([lib.VI_MSG_VMBUS, lib.VI_MSG_TIMER_EXPIRED])),
        st.tuples(st.just("send"), channels, st.integers(1, 20)),
        st.tuples(st.sampled_from(["target", "owner"]), channels, cpus),
        st.tuples(
            st.sampled_from(["close", "open", "rescind", "unrescind", "disable", "enable", "free", "request"]),
            channels,
            st.just(0),
        ),
        st.tuples(st.just("irq"), channels, cpus),
        st.tuples(st.just("answer"), st.sampled_from([HANDLED, NONE, WAKE, BOGUS]), st.just(0)),
        st.tuples(st.just("plain"), cpus, st.just(0)),
        st.tuples(st.just("synic"), cpus, st.integers(0, 1)),
        st.tuples(st.just("time"), st.integers(0, 200), st.just(0)),
        st.tuples(st.just("settle"), st.just(0), st.just(0)),
    ),
    max_size=60,
)
PLAIN_RELID = 900


class Machine:
    """One engine with six channels, and a plain IRQ whose Python handler answers what it is told."""

    def __init__(self, engine: str, design: str, simd: str) -> None:
        self.rig = rig = Rig(engine, design=design, simd=simd, cpus=CPUS, irqs=24 + 2048)
        self.channels = [
            rig.channel(relid, mode=mode, callback=callback, ring=8192, cpu=i % CPUS)
            for i, (relid, (mode, callback)) in enumerate(zip(RELIDS, KINDS, strict=True))
        ]
        self.requested = [True] * len(RELIDS)
        self.answer, self.now = HANDLED, 0
        self.ran: list[int] = []
        if design == "rfc":
            rig.alloc(9, hwirq=PLAIN_RELID)
            rig.request(9, self._handler, exact=False)

    def _handler(self, cpu: int) -> int:
        self.ran.append(cpu)
        return self.answer

    def step(self, what: str, a: int, b: int) -> Any:
        """Do one thing; return what it said."""
        rig, m = self.rig, self.rig.m
        if what == "signal":
            return rig.signal(a, b)
        if what == "run":
            return rig.run(a)
        if what == "scan":
            return lib.vi_scan(m, a)
        if what == "post":
            return lib.vi_synic_post(m, a, VMBUS_SINT, b, b"payload", 7)
        if what == "answer":
            self.answer = a
        elif what == "plain":
            return rig.signal(PLAIN_RELID, a)
        elif what == "synic":
            return switch_synic(m, a, bool(b))
        elif what == "settle":
            return rig.settle()
        elif what == "time":
            self.now += a
            lib.vi_machine_set_time(m, self.now)
        else:
            return self._channel(what, a, b)
        return None

    def _channel(self, what: str, i: int, arg: int) -> Any:
        rig, m, ch = self.rig, self.rig.m, self.channels[i]
        if what == "send":
            return lib.vi_vsp_send(ch.vsp, arg, arg * 13)
        if what == "target":
            return lib.vi_vsp_set_target(ch.vsp, arg)
        if what == "owner":
            return lib.vi_channel_set_cpu(ch.c, arg)
        if what == "close":
            return rig.close(ch)
        if what == "open":
            return rig.open(ch, KINDS[i][1])
        if what in ("rescind", "unrescind"):
            return lib.vi_channel_set_rescind(ch.c, what == "rescind")
        if not ch.irq:
            return None  # design legacy: there is no IRQ to do anything to
        if what == "irq":
            return lib.vi_generic_handle_irq(m, arg, ch.irq)
        if what == "disable":
            return lib.vi_irq_disable(m, ch.irq)
        if what == "enable":
            return lib.vi_irq_enable(m, ch.irq)
        assert ch.action is not None
        if what == "free" and self.requested[i]:
            self.requested[i] = False
            return rig.free(ch.action)
        if what == "request" and not self.requested[i]:
            self.requested[i] = True
            return rig.add(ch.action)
        return None

    def snapshot(self) -> dict[str, Any]:
        """Return everything that must be equal."""
        said = {"ran": self.ran, "reports": self.rig.reports, "messages": self.rig.messages}
        return self.rig.snapshot() | said


def run_both(design: str, simds: tuple[tuple[str, str], ...], steps: list[tuple[str, int, int]]) -> None:
    """Do the same on every machine; compare what each step says, and everything in the end."""
    with ExitStack() as stack:
        first, *others = [Machine(engine, design, simd) for engine, simd in simds]
        for machine in (first, *others):
            stack.enter_context(machine.rig)
        for step in [*steps, ("settle", 0, 0)]:
            said = first.step(*step)
            for other in others:
                assert said == other.step(*step), step
        expected = first.snapshot()
        for other in others:
            assert expected == other.snapshot()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["rfc", "legacy"]), STEPS)
def test_both_engines_leave_the_same_counters(design: str, steps: list[tuple[str, int, int]]) -> None:
    """Flags, packets, messages, retargets, other CPUs, closing, rescinds, disabling, freeing, unhandled arrivals."""
    run_both(design, (("linux", "scalar"), ("fast", "scalar")), steps)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_every_vector_width_leaves_the_same_counters(steps: list[tuple[str, int, int]]) -> None:
    """The scan's result does not depend on what this CPU has."""
    run_both("rfc", tuple(("fast", simd) for simd in SIMDS), steps)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SIMDS), st.lists(st.sets(st.integers(0, 2047), min_size=1, max_size=2048), min_size=1, max_size=3)
)
def test_any_set_of_flags_is_claimed_by_every_width_as_by_the_linux_engine(simd: str, scans: list[set[int]]) -> None:
    """Few words and many, neighbours and strangers, with nothing mapped: all consumed, all accounted as lost."""
    with Rig("linux") as linux, Rig("fast", simd=simd) as fast:
        for flags in scans:
            for flag in flags:
                assert 1 == linux.signal(flag) == fast.signal(flag)
            assert lib.vi_scan(linux.m, 0) == lib.vi_scan(fast.m, 0) == len(flags - {0})
            assert [] == fast.flags()
            assert linux.lost() == fast.lost()
