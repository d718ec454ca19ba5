"""steps: operations as generators."""

from __future__ import annotations

import errno

import pytest

from vmbusirq.errors import Hung, IrqError
from vmbusirq.steps import Context, Lock, LockKind, Step, each, holding, run

MUTEX = Lock("mutex", LockKind.SLEEPING)
SPIN = Lock("spin")


def operation(value):
    """Two steps, and a value."""
    got = yield Step("first", takes=MUTEX)
    assert got is None
    yield Step("second", locks=(MUTEX,))
    return value


def test_run_returns_the_value():
    """The ordinary call drives an operation to its end."""
    assert 42 == run(operation(42))


def test_run_lets_errors_through():
    """What an operation raises is the call's."""

    def fails():
        yield Step("before")
        raise OSError(5, "x")

    with pytest.raises(OSError, match="x"):
        run(fails())


def test_run_waits_for_the_rest_of_the_machine():
    """A step that waits lets idle() work until the condition holds, and says which step it is."""
    left = [3]
    seen = []

    def waits():
        yield Step("wait", locks=(SPIN,), ready=lambda: left[0] == 0)
        return "done"

    def idle(step):
        seen.append((step.point, step.irqs_off))
        left[0] -= 1
        return True

    assert "done" == run(waits(), idle)
    assert [("wait", True)] * 3 == seen


@pytest.mark.parametrize("idle", [None, lambda step: False])
def test_a_wait_that_nothing_can_end_is_hung(idle):
    """Never a hang: ETIMEDOUT."""

    def waits():
        yield Step("for ever", ready=lambda: False)

    with pytest.raises(Hung, match="for ever") as error:
        run(waits(), idle)
    assert isinstance(error.value, IrqError)
    assert errno.ETIMEDOUT == error.value.errno


def _broken_idle(step):
    raise ValueError(step.point)


@pytest.mark.parametrize(("idle", "error"), [(None, Hung), (_broken_idle, ValueError)])
def test_an_operation_that_ends_early_undoes_its_work(idle, error):
    """Its error path has run when the caller hears of it."""
    done = ["request"]

    def waits():
        try:
            yield Step("wait", ready=lambda: False)
        except BaseException:
            done.remove("request")
            raise

    operation = waits()
    with pytest.raises(error):
        run(operation, idle)
    assert [] == done
    assert operation.gi_frame is None


def test_holding_adds_the_lock_in_front():
    """What is called under a lock runs under it, and its value comes back."""
    values = []

    def outer():
        values.append((yield from holding(SPIN, operation("value"))))

    seen = list(outer())
    assert ["value"] == values
    assert [(SPIN,), (SPIN, MUTEX)] == [step.locks for step in seen]
    assert [MUTEX, None] == [step.takes for step in seen]


@pytest.mark.parametrize(
    ("step", "off"),
    [
        (Step("a"), False),
        (Step("a", locks=(MUTEX,)), False),
        (Step("a", locks=(MUTEX, SPIN)), True),
        (Step("a", Context.SOFTIRQ), False),
        (Step("a", Context.HARDIRQ), True),
    ],
)
def test_interrupts_are_off_under_raw_locks_and_in_hard_interrupts(step, off):
    """design.md 4: context and locks say whether a vector can be taken here."""
    assert off == step.irqs_off


def test_steps_are_values():
    """Equal by what they say; the condition is no part of it."""
    assert Step("a", ready=lambda: True) == Step("a")


def test_each_runs_all_and_raises_the_first_error():
    """An error of one operation keeps none of the others from running."""
    done = []

    def failing(name):
        yield Step(name)
        done.append(name)
        raise ValueError(name)

    def working(name):
        yield Step(name)
        done.append(name)

    with pytest.raises(ValueError, match=r"^b$"):
        run(each(working("a"), failing("b"), failing("c"), working("d")))
    assert ["a", "b", "c", "d"] == done
