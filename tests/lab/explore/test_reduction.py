"""Sleep sets leave out only what cannot differ: against all orders, grouped by brute force (Godefroid, 1996).

The programs have what races in a kernel have: CPUs that tasks share, interrupts that go in one step or in several,
locks that spin or sleep, waits, stop_machine, and who comes only when nobody else can.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.lab.explore.toys import Toy, explored
from tests.reference.orders import Doer, Program, classes

COUNTERS = ("a", "b", "w")
ORDERS_MAX = 400

_op = st.sampled_from(
    [("add", "a"), ("add", "b"), ("set", "a", "5"), ("set", "b", "0"), ("copy", "a", "b"), ("add", "w"), ("wait", "w")]
)
_plain = _op.filter(lambda op: op[0] != "wait")


@st.composite
def _ops(draw: Any, op: Any, locks: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """A few operations, and locks around some of them, properly nested."""
    ops = draw(st.lists(op, min_size=1, max_size=3))
    for lock in draw(st.lists(st.sampled_from(locks), max_size=2, unique=True)) if locks else ():
        begin = draw(st.integers(0, len(ops)))
        end = draw(st.integers(begin, len(ops)))
        inside = ops[begin:end]
        if _balanced(inside):
            ops = [*ops[:begin], ("lock", lock), *inside, ("unlock", lock), *ops[end:]]
    return tuple(ops)


def _balanced(ops: list[tuple[str, ...]]) -> bool:
    depth = 0
    for op in ops:
        depth += {"lock": 1, "unlock": -1}.get(op[0], 0)
        if depth < 0:
            return False
    return depth == 0


_cpu = st.sampled_from([0, 0, 1])


@st.composite
def _doer(draw: Any, number: int) -> Doer:
    kind = draw(st.sampled_from(["task", "task", "task", "host", "softirq", "hardirq", "whole", "last", "stop"]))
    name = f"{kind} {number}"
    if kind in ("task", "stop"):
        locks = ("raw", "spin", "mutex", "mutex_shared", *(["stop"] * (kind == "stop")))
        return Doer(name, draw(_ops(_op, locks)), draw(_cpu))
    if kind == "host":
        return Doer(name, draw(_ops(_op, ())))
    if kind == "last":
        return Doer(name, draw(_ops(_plain, ())), last=True)
    trigger = draw(st.sampled_from(["i", "j"]))
    taken = ("set", trigger, "0")
    if kind == "whole":
        return Doer(name, (taken, *draw(_ops(_plain, ()))), draw(_cpu), "hardirq", trigger, whole=True)
    locks = ("raw", "spin")
    return Doer(name, (taken, *draw(_ops(_plain, locks))), draw(_cpu), kind, trigger)


@st.composite
def programs(draw: Any) -> Program:
    """Two or three actors; what requests their interrupts is requested at first, or by one of them."""
    doers = [draw(_doer(number)) for number in range(draw(st.integers(2, 3)))]
    raised = {doer.trigger for doer in doers if doer.trigger}
    first = []
    for trigger in ("i", "j"):
        how = draw(st.sampled_from(["first", "raised"])) if trigger in raised else "never"
        first.append((trigger, int(how == "first")))
        tasks = [place for place, doer in enumerate(doers) if not doer.trigger]
        if how == "raised" and tasks:
            place = draw(st.sampled_from(tasks))
            ops = doers[place].ops
            doers[place] = Doer(**{**vars(doers[place]), "ops": (*ops, ("add", trigger))})
    return Program(tuple(doers), (*((name, 0) for name in COUNTERS), *first))


def _all(program: Program) -> Any:
    orders = program.orders(ORDERS_MAX)
    assume(orders is not None)
    return orders


def _bad(orders: Any) -> dict[tuple[int, ...], str]:
    """Call every second of the ends bad, each in words of its own."""
    ends = sorted({states[-1][0] for states in orders.values()})
    return {end: f"bad {chr(97 + at % 26) * (at // 26 + 1)}" for at, end in enumerate(ends[::2])}


@settings(max_examples=60)
@given(programs())
def test_plain_search_plays_every_order_the_kernel_allows_once(program: Program) -> None:
    """The rules of who may go, and the depth-first search, against the model."""
    orders = _all(program)
    found, ends = explored(Toy(program), reduction=False)
    assert sorted(orders) == sorted(order for order, _, _ in ends)
    assert (len(orders), 0, 0, True) == (found.orders, found.pruned, found.beyond, found.complete)
    assert {order: states[-1][0] for order, states in orders.items()} == {order: end for order, end, _ in ends}


def check_reduction(program: Program) -> None:
    """One of each class of what touches nothing in common, and so at least one of whatever can differ at all."""
    orders = _all(program)
    bad = _bad(orders)
    found, ends = explored(Toy(program, bad=bad))
    played = [order for order, _, _ in ends]
    assert set(played) <= set(orders)
    by_trying = classes(program, orders, by_trying=True)
    assert set(by_trying.values()) == {by_trying[order] for order in played}
    by_labels = classes(program, orders, by_trying=False)
    assert sorted(set(by_labels.values())) == sorted(by_labels[order] for order in played)
    assert {states[-1][0] for states in orders.values()} == {end for _, end, _ in ends}
    plain, _ = explored(Toy(program, bad=bad), reduction=False)
    assert {one.kind for one in plain.bad} == {one.kind for one in found.bad}
    assert found.complete


def _program(*doers: Doer, **first: int) -> Program:
    return Program(doers, tuple((name, first.get(name, 0)) for name in (*COUNTERS, "i", "j")))


RAW = (("lock", "raw"), ("add", "a"), ("unlock", "raw"))
TAKES_I = (("set", "i", "0"), ("add", "a"))


@settings(max_examples=100)
@example(_program(Doer("task", RAW, 0), Doer("other", (("add", "a"),), 0)))  # the lock keeps the other task off
@example(_program(Doer("task", RAW, 0), Doer("irq", TAKES_I, 0, "hardirq", "i"), i=1))
@example(_program(Doer("task", RAW, 0), Doer("irq", TAKES_I, 0, "hardirq", "i", whole=True), i=1))
@example(_program(Doer("task", (("add", "b"), ("add", "a")), 0), Doer("irq", TAKES_I, 0, "softirq", "i"), i=1))
@example(_program(Doer("stop", (("lock", "stop"), ("unlock", "stop")), 0), Doer("task", RAW, 1)))
@example(_program(Doer("stop", (("lock", "stop"), ("unlock", "stop"))), Doer("irq", TAKES_I, 1, "softirq", "i"), i=1))
@example(
    _program(
        Doer("late", (("add", "w"),), last=True),
        Doer("later", (("add", "a"),), last=True),
        Doer("wakes", (("wait", "w"), ("set", "a", "5"))),
    )
)
@example(_program(Doer("task", (("lock", "mutex"), ("lock", "mutex"))), Doer("other", (("lock", "mutex_shared"),))))
@given(programs())
def test_reduced_search_plays_one_order_of_each_class(program: Program) -> None:
    """Exactly one, the same ends and the same bugs; the examples are the ways in which one step can disable another."""
    check_reduction(program)


@pytest.mark.soak
@settings(max_examples=10_000)
@given(programs())
def test_reduced_search_plays_one_order_of_each_of_many_classes(program: Program) -> None:
    """The long one."""
    check_reduction(program)
