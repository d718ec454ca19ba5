"""The partition clock and its timers: each at its own tick, in an order that can be told beforehand."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.clock import Clock, Timer


@pytest.fixture
def clock() -> Clock:
    return Clock(Core(1, nr_irqs_max=1))


def test_a_timer_runs_at_its_own_tick_and_once(clock: Clock) -> None:
    """Time stands still inside its function, and goes on to where it was asked to."""
    seen: list[int] = []
    clock.call_at(30, lambda: seen.append(clock.now))
    clock.call_at(10, lambda: seen.append(clock.now))
    assert 10 == clock.next_due
    clock.advance(9)
    assert [] == seen
    clock.advance(1)
    assert [10] == seen
    clock.advance_to(100)
    assert ([10, 30], 100, None) == (seen, clock.now, clock.next_due)
    clock.advance(1000)
    assert [10, 30] == seen


@given(st.lists(st.integers(0, 5), max_size=30))
def test_equal_ticks_run_in_the_order_of_creation(ticks: list[int]) -> None:
    """Whatever order the heap keeps them in."""
    clock = Clock(Core(1, nr_irqs_max=1))
    seen: list[tuple[int, int]] = []
    for number, tick in enumerate(ticks):
        clock.call_at(tick, lambda number=number, tick=tick: seen.append((tick, number)))  # type: ignore[misc]
    clock.advance_to(5)
    assert sorted((tick, number) for number, tick in enumerate(ticks)) == seen


def test_a_timer_may_make_timers(clock: Clock) -> None:
    """Those that are due on the way run on the way, those of this very tick after it."""
    seen: list[tuple[str, int]] = []

    def first() -> None:
        seen.append(("first", clock.now))
        clock.call_at(clock.now, lambda: seen.append(("same tick", clock.now)))
        clock.call_at(25, lambda: seen.append(("on the way", clock.now)))
        clock.call_at(31, lambda: seen.append(("beyond", clock.now)))

    clock.call_at(10, first)
    clock.call_at(20, lambda: seen.append(("second", clock.now)))
    clock.advance_to(30)
    assert [("first", 10), ("same tick", 10), ("second", 20), ("on the way", 25)] == seen
    assert (30, 31) == (clock.now, clock.next_due)


def test_a_timer_may_advance_the_clock(clock: Clock) -> None:
    """An operation that waits inside a timer takes time; nothing runs twice and time does not go back."""
    seen: list[tuple[str, int]] = []

    def waits() -> None:
        clock.advance_to(50)
        seen.append(("waited", clock.now))

    clock.call_at(10, waits)
    clock.call_at(20, lambda: seen.append(("second", clock.now)))
    clock.advance_to(30)
    assert [("second", 20), ("waited", 50)] == seen
    assert 50 == clock.now


def test_a_cancelled_timer_does_not_run(clock: Clock) -> None:
    """Not from outside, not from a timer of the same tick; and a second cancel, or one too late, does nothing."""
    seen: list[str] = []
    first = clock.call_at(10, lambda: (seen.append("first"), third.cancel()))
    second = clock.call_at(10, lambda: seen.append("second"))
    third = clock.call_at(10, lambda: seen.append("third"))
    assert (True, 10) == (second.waiting, second.when)
    second.cancel()
    second.cancel()
    assert not second.waiting
    clock.advance(10)
    assert ["first"] == seen
    first.cancel()
    assert clock.next_due is None


def test_cancelled_timers_do_not_pile_up(clock: Clock) -> None:
    """A timeout that is always cancelled would stay until its tick."""
    kept = [clock.call_at(1 << 40, lambda: None) for _ in range(10)]
    for _ in range(10_000):
        clock.call_at(1 << 41, lambda: None).cancel()
    assert len(clock._timers) < 200
    for timer in kept:
        timer.cancel()
    assert clock.next_due is None


def test_the_clock_goes_to_its_next_timer(clock: Clock) -> None:
    """One timer a call; False when nothing is left to happen."""
    seen: list[str] = []
    clock.call_at(10, lambda: seen.append("a"))
    clock.call_at(10, lambda: seen.append("b"))
    assert (True, ["a"], 10) == (clock.advance_to_next(), seen, clock.now)
    assert (True, ["a", "b"], 10) == (clock.advance_to_next(), seen, clock.now)
    assert (False, 10) == (clock.advance_to_next(), clock.now)


def test_what_is_due_now_runs_without_time(clock: Clock) -> None:
    """run_due(): this tick and no other."""
    seen: list[str] = []
    clock.call_at(0, lambda: seen.append("now"))
    clock.call_at(1, lambda: seen.append("later"))
    assert (True, ["now"]) == (clock.run_due(), seen)
    assert (False, 0) == (clock.run_due(), clock.now)


def test_an_error_of_a_timer_is_the_callers_and_the_others_wait(clock: Clock) -> None:
    """The clock stands at its tick."""
    seen: list[int] = []

    def breaks() -> None:
        raise ValueError("broken")

    clock.call_at(10, breaks)
    clock.call_at(20, lambda: seen.append(clock.now))
    with pytest.raises(ValueError, match="broken"):
        clock.advance_to(30)
    assert (10, []) == (clock.now, seen)
    clock.advance_to(30)
    assert [20] == seen


@pytest.mark.parametrize("tick", [4, -1, 1 << 63, 7.0, None])
def test_time_does_not_run_backwards(clock: Clock, tick: int) -> None:
    """EINVAL: a tick that has passed, or is none; no timer runs."""
    seen: list[int] = []
    clock.advance_to(5)
    clock.call_at(6, lambda: seen.append(1))
    with pytest.raises(IrqError) as error:
        clock.call_at(tick, lambda: None)
    assert errno.EINVAL == error.value.errno
    with pytest.raises(IrqError) as error:
        clock.advance_to(tick)
    assert errno.EINVAL == error.value.errno
    assert (5, []) == (clock.now, seen)
    assert isinstance(clock.call_at(5, lambda: None), Timer)
