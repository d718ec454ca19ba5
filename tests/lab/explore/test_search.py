"""The search itself, on races small enough to count by hand: orders, bounds, the shortest bad one, drawn orders."""

from __future__ import annotations

from collections import Counter
from math import factorial, prod
from typing import Any

import pytest
from hypothesis import assume, given, settings

from tests.lab.explore.test_reduction import programs
from tests.lab.explore.toys import Recorder, Toy, explored
from tests.reference.orders import Doer, Order, Program
from vmbusirq.lab.explore.search import (
    STEPS_MAX,
    Bad,
    all_orders,
    pct_orders,
    play,
    random_orders,
    shortest,
)
from vmbusirq.lab.explore.world import World


def _tasks(*lengths: int, shared: bool = True) -> Program:
    """Tasks of so many steps each, the beginning included, on counters of their own or on one."""
    names = [f"t{number}" for number in range(len(lengths))]
    doers = [
        Doer(name, ((("add", "a" if shared else name),) * (length - 1)))
        for name, length in zip(names, lengths, strict=True)
    ]
    return Program(tuple(doers), tuple((name, 0) for name in ("a", *names)))


@pytest.mark.parametrize("lengths", [(1,), (2, 3), (3, 3, 2), (2, 2, 2, 2)])
def test_plain_search_counts_the_multinomial(lengths: tuple[int, ...]) -> None:
    found, ends = explored(Toy(_tasks(*lengths)), reduction=False)
    expected = factorial(sum(lengths)) // prod(map(factorial, lengths))
    assert (expected, expected) == (found.orders, len(set(ends)))
    assert (0, 0, True) == (found.pruned, found.beyond, found.complete)


@pytest.mark.parametrize("lengths", [(1,), (2, 3), (3, 3, 2), (4, 4, 4, 4)])
def test_actors_that_touch_nothing_in_common_have_one_order(lengths: tuple[int, ...]) -> None:
    found, _ = explored(Toy(_tasks(*lengths, shared=False)))
    assert (1, True) == (found.orders, found.complete)


def test_one_shared_step_each_has_as_many_orders_as_there_are_of_those() -> None:
    doers = tuple(Doer(f"t{n}", (("add", f"own{n}"), ("add", "a"), ("add", f"own{n}"))) for n in range(4))
    program = Program(doers, tuple((name, 0) for name in ("a", *(f"own{n}" for n in range(4)))))
    assert factorial(4) == explored(Toy(program))[0].orders


def test_the_steps_of_replayed_prefixes_are_counted() -> None:
    found, ends = explored(Toy(_tasks(2, 2)), reduction=False)
    assert sum(len(order) for order, _, _ in ends) == found.steps


# ---- a bound on preemptions, and the shortest bad order


def _all_orders(program: Program, most: int = 300) -> dict[Order, Any]:
    orders = program.orders(most)
    assume(orders is not None)
    assert orders is not None
    return orders


@settings(max_examples=25)
@given(programs())
def test_a_bound_leaves_out_exactly_what_is_beyond_it(program: Program) -> None:
    """Musuvathi and Qadeer, PLDI 2007: a preemption is a switch although the one before could have gone on."""
    orders = _all_orders(program, 150)
    used = {order: program.preemptions(order, states) for order, states in orders.items()}
    for bound in range(max(used.values()) + 2):
        found, ends = explored(Toy(program), preemptions=bound)
        within = sorted(order for order in orders if used[order] <= bound)
        assert within == sorted(order for order, _, _ in ends)
        assert (len(within), 0) == (found.orders, found.pruned)
        assert (len(within) == len(orders)) == found.complete == (not found.beyond)


@settings(max_examples=25)
@given(programs())
def test_the_shortest_bad_order_is_the_shortest(program: Program) -> None:
    """Of all orders that end badly in the same way the one with the fewest preemptions, and of those the fewest steps."""
    orders = _all_orders(program, 100)
    ends = sorted({states[-1][0] for states in orders.values()})
    bad = {end: f"bad {'even' if at % 2 else 'odd'} {at}" for at, end in enumerate(ends) if at % 3}
    assume(bad)
    toy = Toy(program, bad=bad)
    found, _ = explored(toy)
    lengths: dict[str, tuple[int, int]] = {}
    for order, states in orders.items():
        world = World(toy)
        play(world, order)
        length = (program.preemptions(order, states), len(order))
        if wrong := world.end():
            kind = Bad(wrong, (), 0).kind
            lengths[kind] = min(length, lengths.get(kind, length))
    assert sorted(lengths) == sorted(one.kind for one in found.bad)
    for one in found.bad:
        short, proven = shortest(World(toy), one)
        assert proven
        assert lengths[one.kind] == (short.preemptions, len(short.order))
        assert short == play(World(toy), short.order)


def test_what_the_shortest_is_stays_unknown_after_too_many_orders() -> None:
    toy = Toy(_tasks(4, 4), bad={(6, 0, 0): "wrong"})
    known = Bad("wrong", ("t0", "t1") * 4, 7)
    other = Bad("another", known.order, 7)
    assert (other, False) == shortest(World(toy), other, most=1)
    assert (Bad("wrong", ("t0",) * 4 + ("t1",) * 4, 0), True) == shortest(World(toy), known)
    assert not shortest(World(toy), known, most=1)[1]


def test_bad_orders_of_one_kind_differ_only_in_numbers() -> None:
    assert Bad("cpu 5 stands", (), 0).kind == Bad("cpu 12 stands", (), 0).kind
    assert Bad("cpu 5 stands", (), 0).kind != Bad("cpu 5 sits", (), 0).kind


def test_of_each_kind_the_shortest_order_played_is_kept() -> None:
    """t0 and t1 both add once, and every order is bad."""
    found, ends = explored(Toy(_tasks(2, 2), bad={(2, 0, 0): "wrong"}), reduction=False)
    assert (len(ends), 1) == (found.bad_orders, len(found.bad))
    assert (0, ("t0", "t0", "t1", "t1")) == (found.bad[0].preemptions, found.bad[0].order)


def test_an_order_ends_where_something_is_wrong() -> None:
    """wrong_now: nothing after it is played."""
    found, _ = explored(Toy(_tasks(3, 3), bad_now={(1, 0, 0): "one"}), reduction=False)
    assert {2, 3} == {len(bad.order) for bad in found.bad} | {3}
    assert found.orders == found.bad_orders > 0
    assert all("one" == bad.what for bad in found.bad)


@settings(max_examples=30)
@given(programs())
def test_reduction_finds_something_wrong_now_if_anything_is(program: Program) -> None:
    """An order that ends early hides what follows, so another kind of bug may be met; never none."""
    orders = _all_orders(program)
    states = sorted({state[0] for order in orders.values() for state in order} - {program.start[0]})
    for wrong in states[:: max(len(states) // 5, 1)]:
        toy = Toy(program, bad_now={wrong: "wrong"})
        assert ["wrong"] == [bad.what for bad in explored(toy)[0].bad if bad.what == "wrong"]


# ---- searches that stop


@pytest.mark.parametrize(("most", "orders", "complete"), [(1, 1, False), (5, 5, False), (6, 6, True), (7, 6, True)])
def test_a_search_stops_after_so_many_orders(most: int, orders: int, complete: bool) -> None:
    """Six orders there are; six is enough for all of them."""
    found, _ = explored(Toy(_tasks(2, 2)), reduction=False, most=most)
    assert (orders, complete) == (found.orders, complete)


def _ping_pong() -> Toy:
    ping = Doer("ping", (("set", "a", "0"), ("add", "b")), trigger="a")
    pong = Doer("pong", (("set", "b", "0"), ("add", "a")), trigger="b")
    return Toy(Program((ping, pong), (("a", 1), ("b", 0))))


def test_actors_that_wake_each_other_for_ever_are_a_bug() -> None:
    """One such order is enough: without an end there are infinitely many."""
    found = all_orders(World(_ping_pong()))
    assert (1, 1, False) == (found.orders, found.bad_orders, found.complete)
    assert "goes on for ever: its actors wake each other" == found.bad[0].what
    assert STEPS_MAX == len(found.bad[0].order)
    assert found.bad[0] == play(World(_ping_pong()), ())
    short, proven = shortest(World(_ping_pong()), found.bad[0])
    assert (STEPS_MAX, 0, True) == (len(short.order), short.preemptions, proven)


def test_progress_goes_from_nothing_to_all() -> None:
    for how in ({"reduction": False}, {}, {"preemptions": 2}):
        heard: list[tuple[float, int]] = []
        world = World(Toy(_tasks(3, 2, 3)))
        found = all_orders(world, progress=lambda part, orders, to=heard: to.append((part, orders)), **how)
        parts = [part for part, _ in heard]
        assert parts == sorted(parts)
        assert 0 <= parts[0] < 0.2
        assert 1 == parts[-1]
        assert all(part < 1 for part in parts[:-1])
        assert found.orders == heard[-1][1]


# ---- drawn orders


@pytest.mark.parametrize("search", [random_orders, pct_orders])
def test_a_seed_draws_the_same_orders_and_another_draws_others(search: Any) -> None:
    drawn = []
    for seed in (7, 7, 8):
        world = Recorder(Toy(_tasks(3, 3, 3)))
        found = search(world, 20, seed=seed)
        assert (20, False) == (found.orders, found.complete)
        ends = [order for order, _, _ in world.ends][-20:]
        assert sum(map(len, ends)) == found.steps
        drawn.append(ends)
    assert drawn[0] == drawn[1] != drawn[2]


def test_random_orders_draw_each_choice_evenly() -> None:
    world = Recorder(Toy(_tasks(1, 1, 1)))
    random_orders(world, 3000, seed=1)
    seen = Counter(order for order, _, _ in world.ends)
    assert 6 == len(seen)
    assert all(400 < count < 600 for count in seen.values())


def test_pct_meets_a_bug_of_depth_two_as_often_as_is_guaranteed() -> None:
    """Burckhardt et al., ASPLOS 2010: with probability 1 / (n k) at least, where an even draw is all but hopeless.

    The reader must read between the writer's only two stores that matter, and the writer has many steps.
    """
    writer = (*[("add", "own")] * 4, ("set", "a", "1"), ("set", "a", "0"), *[("add", "own")] * 4)
    doers = (Doer("writer", writer), Doer("reader", (*[("add", "other")] * 6, ("copy", "b", "a"))))
    program = Program(doers, (("a", 0), ("b", 0), ("own", 0), ("other", 0)))
    toy = Toy(program, bad={(0, 1, 8, 6): "the reader has seen it"})
    steps = len(play(World(toy), ()).order)
    assert 11 + 8 == steps
    runs, chance = 1500, 1 / (len(doers) * steps)  # which is all there is here: the writer first, and one change
    found = pct_orders(World(toy), runs, depth=2, seed=3)
    assert abs(found.bad_orders - runs * chance) < 3 * (runs * chance * (1 - chance)) ** 0.5
    assert 0 == pct_orders(World(toy), 200, depth=1, seed=3).bad_orders


def test_drawn_orders_tell_their_progress() -> None:
    heard: list[tuple[float, int]] = []
    random_orders(World(Toy(_tasks(2, 2))), 4, progress=lambda *said: heard.append(said))
    assert [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)] == heard


# ---- playing one order


def test_an_order_goes_on_by_itself_where_none_is_given() -> None:
    """Whoever goes goes on, else the first."""
    toy = Toy(_tasks(3, 2))
    assert ("t0", "t0", "t0", "t1", "t1") == play(World(toy), ()).order
    assert ("t1", "t1", "t0", "t0", "t0") == play(World(toy), ("t1",)).order
    assert 1 == play(World(toy), ("t0", "t1")).preemptions
    assert 2 == play(World(toy), ("t0", "t1", "t0")).preemptions


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (("t9",), "step 1: 't9' cannot go here; who can: t0, t1"),
        (("t0", "t0", "t0"), "step 3: 't0' cannot go here; who can: t1"),
        (("t0", "t0", "t1", "t1", "t1"), "step 5: 't1' cannot go here; nobody can"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(order: Order, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}$"):
        play(World(Toy(_tasks(2, 2))), order)
