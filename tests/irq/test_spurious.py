"""Spurious detection: an IRQ is judged stuck, switched off, revived (genirq.md 4.8; kernel/irq/spurious.c, v6.10)."""

from __future__ import annotations

import pytest

from tests.reference.accounting import HANDLED, LIMIT, NONE, SAMPLE, WAKE_THREAD, Desc
from tests.rig import ENGINES, Channel, Rig
from vmbusirq._ffi import lib

IRQ = 9


def stuck(engine: str, *, sample: int = SAMPLE - 1, unhandled: int = SAMPLE - 1) -> Rig:
    """Return a rig one arrival before the end of a sample."""
    rig = Rig(engine)
    rig.alloc(IRQ)
    rig.request(IRQ, lambda _cpu: rig.result)  # type: ignore[attr-defined]
    rig.result = NONE  # type: ignore[attr-defined]
    rig.arrive(IRQ)
    rig.c(IRQ).irq_count = sample
    rig.c(IRQ).irqs_unhandled = unhandled
    return rig


@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_cared_at_the_100000th_unhandled_arrival(engine: str) -> None:
    """The whole way, arrival by arrival, against the twin: disabled at the 100 000th, with depth 1 more."""
    twin = Desc(1, "simple", replay=engine == "fast")
    twin.add(lambda _cpu: NONE)
    twin.startup()
    with Rig(engine, cpus=1) as rig:
        rig.alloc(IRQ)
        rig.request(IRQ, NONE)
        for _ in range(SAMPLE - 1):
            rig.arrive(IRQ)
            twin.arrive(0)
        assert [] == rig.reports
        assert SAMPLE - 1 == rig.c(IRQ).irq_count
        rig.arrive(IRQ)
        twin.arrive(0)
        assert [("nobody_cared", IRQ, SAMPLE)] == rig.reports
        assert twin.reports == ["nobody_cared"]
        desc = rig.c(IRQ)
        assert (twin.depth, twin.cnt[0], 0, 0) == (desc.depth, rig.cnt(IRQ), desc.irq_count, desc.irqs_unhandled)
        assert 1 == desc.depth
        assert lib.VI_IRQS_SPURIOUS_DISABLED & desc.istate
        assert lib.VI_IRQD_DISABLED & desc.state
        rig.arrive(IRQ)
        assert SAMPLE == rig.cnt(IRQ)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("before", "killed"), [(LIMIT - 1, False), (LIMIT, True)])
def test_more_than_99900_of_100000_must_be_unhandled(engine: str, before: int, killed: bool) -> None:
    """Both sides of the border; the sample starts anew either way."""
    with stuck(engine, unhandled=before) as rig:
        rig.arrive(IRQ)
        assert killed == bool(rig.reports)
        assert (0, 0) == (rig.c(IRQ).irq_count, rig.c(IRQ).irqs_unhandled)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("later_ms", "unhandled"), [(100, 51), (101, 1)])
def test_an_unhandled_arrival_after_a_quiet_tenth_of_a_second_starts_at_one(
    engine: str, later_ms: int, unhandled: int
) -> None:
    """time_after(jiffies, last_unhandled + HZ/10): strictly later."""
    with stuck(engine, sample=50, unhandled=50) as rig:
        rig.c(IRQ).last_unhandled_ms = 1000
        lib.vi_machine_set_time(rig.m, 1000 + later_ms)
        rig.arrive(IRQ)
        assert unhandled == rig.c(IRQ).irqs_unhandled
        assert 51 == rig.c(IRQ).irq_count


@pytest.mark.parametrize("engine", ENGINES)
def test_irq_count_runs_only_while_something_is_unhandled(engine: str) -> None:
    """A line that is always handled keeps no account at all; one bad arrival starts it, good ones are counted along."""
    with stuck(engine, sample=0, unhandled=0) as rig:
        rig.result = HANDLED  # type: ignore[attr-defined]
        rig.arrive(IRQ)
        assert (0, 0) == (rig.c(IRQ).irq_count, rig.c(IRQ).irqs_unhandled)
        rig.result = NONE  # type: ignore[attr-defined]
        rig.arrive(IRQ)
        rig.result = HANDLED  # type: ignore[attr-defined]
        rig.arrive(IRQ)
        assert (2, 1) == (rig.c(IRQ).irq_count, rig.c(IRQ).irqs_unhandled)


@pytest.mark.parametrize("setting", ["VI_IRQ_NO_DEBUG", "VI_IRQ_IS_POLLED"])
def test_a_polled_or_undebugged_irq_is_not_judged(setting: str) -> None:
    """irq_settings_is_polled(), irq_settings_no_debug() (boot option noirqdebug)."""
    with stuck("fast") as rig:
        assert 0 == lib.vi_irq_modify_settings(rig.m, IRQ, 0, getattr(lib, setting))
        rig.arrive(IRQ)
        assert [] == rig.reports
        assert SAMPLE - 1 == rig.c(IRQ).irq_count


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("result", "bogus"), [(3, False), (4, True), (0xFFFF_FFFF, True)])
def test_a_bogus_return_value_is_reported_and_not_judged(engine: str, result: int, bogus: bool) -> None:
    """bad_action_ret(): more than HANDLED | WAKE_THREAD."""
    with Rig(engine) as rig:
        rig.alloc(IRQ)
        rig.request(IRQ, result)
        rig.arrive(IRQ)
        assert ([("bogus_return", IRQ, result)] if bogus else []) == rig.reports
        assert (0, 0) == (rig.c(IRQ).irq_count, rig.c(IRQ).irqs_unhandled)


@pytest.mark.parametrize("engine", ENGINES)
def test_wake_thread_is_judged_by_the_next_wake(engine: str) -> None:
    """The first is remembered; then it is unhandled unless threads_handled has moved since the last look."""
    with stuck(engine, sample=0, unhandled=0) as rig:
        desc = rig.c(IRQ)
        rig.result = WAKE_THREAD  # type: ignore[attr-defined]
        rig.arrive(IRQ)
        assert (0, 1 << 31) == (desc.irqs_unhandled, desc.threads_handled_last)
        rig.arrive(IRQ)
        assert (1, 1) == (desc.irqs_unhandled, desc.irq_count)
        desc.threads_handled = 5
        rig.arrive(IRQ)
        assert (1, 2, 1 << 31 | 5) == (desc.irqs_unhandled, desc.irq_count, desc.threads_handled_last)
        rig.result = HANDLED  # type: ignore[attr-defined]
        rig.arrive(IRQ)
        assert 1 << 31 | 5 == desc.threads_handled_last  # a plain HANDLED leaves the judgement open
        rig.result = HANDLED | WAKE_THREAD  # type: ignore[attr-defined]
        rig.arrive(IRQ)
        assert desc.threads_handled_last == 5
        assert [("wake_without_thread", IRQ, WAKE_THREAD)] * 3 == rig.reports


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_action_revives_a_killed_line_and_replays_what_it_missed(engine: str) -> None:
    """__setup_irq(): SPURIOUS_DISABLED -> __enable_irq(), which is a startup with resend."""
    with stuck(engine) as rig:
        rig.arrive(IRQ)
        assert 1 == rig.c(IRQ).depth
        rig.arrive(IRQ)
        before = rig.cnt(IRQ)
        rig.request(IRQ, HANDLED, startup=False)
        assert 0 == rig.c(IRQ).depth
        assert lib.VI_IRQS_REPLAY == rig.c(IRQ).istate
        rig.settle()
        assert before + 1 == rig.cnt(IRQ)
        assert 0 == rig.c(IRQ).irqs_unhandled


def unhandled_channel(rig: Rig) -> Channel:
    """Return a channel whose IRQ has a handler that may run from its slot and answers IRQ_NONE."""
    ch = rig.channel(5, callback=None, request=False)
    rig.request(ch.irq, NONE, exact=False)
    return ch


@pytest.mark.parametrize("engine", ENGINES)
def test_the_scan_keeps_the_same_account(engine: str) -> None:
    """The fast engine leaves its unlocked path at the first unhandled arrival, and comes back when the sample ends."""
    with Rig(engine) as rig:
        ch = unhandled_channel(rig)
        for _ in range(3):
            assert 1 == rig.signal(5)
            assert 1 == rig.run()
        desc = rig.c(ch.irq)
        assert (3, 3, 3, 3) == (desc.irq_count, desc.irqs_unhandled, rig.cnt(ch.irq), rig.irqs_sum())
        desc.irq_count = desc.irqs_unhandled = SAMPLE - 1
        rig.signal(5)
        rig.run()
        assert [("nobody_cared", ch.irq, SAMPLE)] == rig.reports
        rig.signal(5)
        rig.run()
        assert 4 == rig.cnt(ch.irq)
        assert lib.VI_IRQS_PENDING & desc.istate


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_request_forgets_the_account_of_the_last_one(engine: str) -> None:
    """irq_count and irqs_unhandled restart at request; tot_count and cnt do not."""
    with stuck(engine, sample=7, unhandled=7) as rig:
        rig.free(rig.descs[IRQ].actions[0])
        rig.request(IRQ, HANDLED)
        assert (0, 0) == (rig.c(IRQ).irq_count, rig.c(IRQ).irqs_unhandled)
        assert 1 == rig.cnt(IRQ)


def test_an_empty_percpu_irq_is_judged_too() -> None:
    """handle_percpu_irq() notes whatever its chain of no actions said: IRQ_NONE."""
    with Rig() as rig:
        rig.alloc(IRQ, lib.VI_FLOW_PERCPU)
        rig.arrive(IRQ)
        assert (1, 1) == (rig.c(IRQ).irq_count, rig.c(IRQ).irqs_unhandled)
