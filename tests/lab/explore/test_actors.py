"""Who keeps whom off a CPU, and what a world says of who cannot go on."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from vmbusirq.errors import IrqError
from vmbusirq.lab.explore.actors import Actor, at_once, may_go
from vmbusirq.lab.explore.search import Bad, play
from vmbusirq.lab.explore.world import Choice, World
from vmbusirq.steps import STOP_MACHINE, Context, Lock, LockKind, Step, Steps

RAW = Lock("raw")
SPINNING = Lock("spinning", LockKind.SPINNING)
SLEEPING = Lock("sleeping", LockKind.SLEEPING)
READING = Lock("sleeping", LockKind.SLEEPING, shared=True)
TASK, SOFTIRQ, HARDIRQ = Context.TASK, Context.SOFTIRQ, Context.HARDIRQ


def _steps(*steps: Step) -> Callable[[], Steps[None]]:
    def operation() -> Steps[None]:
        yield from steps

    return operation


def _at(step: Step, cpu: int | None = 0, name: str = "there") -> Actor:
    """Return an actor that stands at a step of its operation."""
    actor = Actor(name, _steps(step), cpu=cpu)
    actor.go()
    return actor


def _wants(context: Context = TASK, cpu: int | None = 0, **how: Any) -> Actor:
    """Return an actor that is about to begin."""
    return Actor("comes", _steps(), cpu=cpu, context=context, **how)


def _step(context: Context = TASK, *locks: Lock, **how: Any) -> Step:
    return Step("a step", context, locks, **how)


NEVER = {"ready": lambda: False}
ONCE = {"ready": lambda: True}

# who stands there | which of a task, a softirq and a hard interrupt of the same CPU may begin beside it
RULES = [
    (_step(), {TASK, SOFTIRQ, HARDIRQ}),
    (_step(TASK, SLEEPING), {TASK, SOFTIRQ, HARDIRQ}),
    (_step(TASK, READING), {TASK, SOFTIRQ, HARDIRQ}),
    (_step(TASK, SPINNING), {SOFTIRQ, HARDIRQ}),
    (_step(TASK, SLEEPING, SPINNING), {SOFTIRQ, HARDIRQ}),
    (_step(TASK, RAW), set()),
    (_step(TASK, SPINNING, RAW), set()),
    (_step(SOFTIRQ), {HARDIRQ}),
    (_step(SOFTIRQ, SPINNING), {HARDIRQ}),
    (_step(SOFTIRQ, RAW), set()),
    (_step(HARDIRQ), set()),
    (_step(TASK, **NEVER), {TASK, SOFTIRQ, HARDIRQ}),
    (_step(TASK, SLEEPING, **ONCE), {TASK, SOFTIRQ, HARDIRQ}),
    (_step(TASK, SPINNING, **NEVER), {SOFTIRQ, HARDIRQ}),  # who waits under a spinlock does not sleep
    (_step(TASK, RAW, **NEVER), set()),
    (_step(SOFTIRQ, **NEVER), {HARDIRQ}),
    (_step(HARDIRQ, **NEVER), set()),
    (_step(takes=RAW), {TASK, SOFTIRQ, HARDIRQ}),  # not yet
    (_step(SOFTIRQ, takes=RAW), {HARDIRQ}),
]


@pytest.mark.parametrize(("step", "may"), RULES, ids=lambda it: str(it)[:60])
def test_who_runs_keeps_others_off_its_cpu(step: Step, may: set[Context]) -> None:
    """Documentation/kernel-hacking/locking.rst, v6.10; and nobody off another CPU, nor the host."""
    there = _at(step)
    for context in Context:
        comes = _wants(context)
        assert (context in may) == may_go(comes, [there, comes]), context
        for cpu in (1, None):
            elsewhere = _wants(context, cpu=cpu)
            assert may_go(elsewhere, [there, elsewhere])


@pytest.mark.parametrize("step", [step for step, _ in RULES], ids=lambda it: str(it)[:60])
def test_who_is_not_on_a_cpu_keeps_nobody_off(step: Step) -> None:
    there = _at(step, cpu=None)
    for context in Context:
        comes = _wants(context)
        assert may_go(comes, [there, comes])


def test_who_rests_or_is_over_keeps_nobody_off() -> None:
    rests = _wants(HARDIRQ, wants=lambda: True)
    over = _at(_step(HARDIRQ))
    over.go()
    assert over.step is None
    assert not may_go(over, [over])
    comes = _wants()
    assert may_go(comes, [rests, over, comes])


@pytest.mark.parametrize(
    ("held", "taken", "may"),
    [
        (RAW, RAW, False),
        (RAW, SPINNING, True),
        (SLEEPING, SLEEPING, False),
        (SLEEPING, READING, False),
        (READING, SLEEPING, False),
        (READING, READING, True),
    ],
)
def test_a_lock_that_is_held_is_not_taken(held: Lock, taken: Lock, may: bool) -> None:
    """By whoever holds it either: who takes a lock twice waits for itself."""
    holder, comes = _at(_step(TASK, held)), _at(_step(takes=taken), cpu=1)
    assert may == may_go(comes, [holder, comes])
    twice = _at(_step(TASK, held, takes=taken))
    assert may == may_go(twice, [twice])


@pytest.mark.parametrize("cpu", [0, None])
@pytest.mark.parametrize(
    ("step", "may"),
    [
        (_step(), True),
        (_step(TASK, SLEEPING), True),
        (_step(TASK, SPINNING), False),
        (_step(TASK, RAW), False),
        (_step(SOFTIRQ), False),
        (_step(HARDIRQ), False),
    ],
    ids=lambda it: str(it)[:60],
)
def test_stop_machine_waits_for_who_is_atomic_on_any_cpu(step: Step, may: bool, cpu: int | None) -> None:
    stops = _at(_step(takes=STOP_MACHINE), cpu=cpu)
    there = _at(step, cpu=1)
    assert may == may_go(stops, [stops, there])
    host = _at(step, cpu=None)
    assert may_go(stops, [stops, host])


@pytest.mark.parametrize("cpu", [0, None])
def test_while_the_machine_is_stopped_only_the_host_goes_on(cpu: int | None) -> None:
    stopped = _at(_step(TASK, STOP_MACHINE), cpu=cpu)
    for where in (0, 1):
        for comes in (_wants(HARDIRQ, cpu=where), _at(_step(), cpu=where)):
            assert not may_go(comes, [stopped, comes])
    host = _at(_step(), cpu=None)
    assert may_go(host, [stopped, host])
    assert may_go(stopped, [stopped, host])


def test_conditions_are_waited_for() -> None:
    allowed = {"now": False}
    waits = _at(_step(ready=lambda: allowed["now"]))
    begins = _wants(wants=lambda: allowed["now"])
    assert (False, False) == (may_go(waits, [waits]), may_go(begins, [begins]))
    allowed["now"] = True
    assert (True, True) == (may_go(waits, [waits]), may_go(begins, [begins]))


# ---- an actor's life


def test_an_operation_runs_once_and_keeps_its_result() -> None:
    def operation() -> Steps[int]:
        yield _step()
        return 7

    actor = Actor("one", operation, point="is about to begin")
    assert "<Actor one at is about to begin>" == repr(actor)
    actor.go()
    assert actor.running
    actor.go()
    assert (7, None, None, False) == (actor.result, actor.error, actor.step, actor.running)
    assert "<Actor one at its end>" == repr(actor)
    actor.drop()
    assert (None, False, "is about to begin") == (actor.result, actor.running, actor.step and actor.step.point)


def test_what_has_a_condition_begins_anew() -> None:
    begun: list[int] = []
    actor = Actor("again", at_once(lambda: begun.append(1)), wants=lambda: len(begun) < 2)
    while may_go(actor, [actor]):
        actor.go()
    assert ([1, 1], True, False) == (begun, actor.repeats, actor.running)


def test_what_is_dropped_is_closed() -> None:
    closed: list[int] = []

    def operation() -> Steps[None]:
        try:
            yield _step()
        finally:
            closed.append(1)

    actor = Actor("one", operation)
    actor.go()
    actor.drop()
    actor.drop()
    assert [1] == closed


# ---- what the labels of a choice say


@pytest.mark.parametrize(
    ("how", "touches"),
    [
        ({"touches": None}, None),
        ({"touches": frozenset("a")}, frozenset("a")),
        ({"touches": lambda: frozenset("b")}, frozenset("b")),
        ({"touches": lambda: None}, None),
        ({"touches": frozenset("a"), "last": True}, None),
    ],
)
def test_what_a_beginning_touches(how: Any, touches: frozenset[str] | None) -> None:
    assert touches == _wants(**how).touches


@pytest.mark.parametrize(
    ("step", "touches"),
    [
        (_step(), None),
        (_step(touches=frozenset("a")), frozenset("a")),
        (_step(touches=frozenset("a"), takes=READING), frozenset({"a", "sleeping"})),
        (_step(touches=frozenset("a"), takes=STOP_MACHINE), None),
    ],
)
def test_what_a_step_touches(step: Step, touches: frozenset[str] | None) -> None:
    assert touches == _at(step).touches


@pytest.mark.parametrize(
    ("actor", "keeps"),
    [
        (_wants(TASK), False),
        (_wants(SOFTIRQ), True),
        (_wants(HARDIRQ), True),
        (_wants(HARDIRQ, whole=True), False),
        (_wants(HARDIRQ, cpu=None), False),
        (_at(_step(takes=SLEEPING)), False),
        (_at(_step(takes=SPINNING)), True),
        (_at(_step(takes=RAW)), True),
        (_at(_step(SOFTIRQ)), True),
    ],
)
def test_whose_next_step_may_keep_others_off(actor: Actor, keeps: bool) -> None:
    assert keeps == actor.keeps_off


@pytest.mark.parametrize(
    ("one", "other", "conflicts"),
    [
        (("a", 0, False), ("b", 0, False), False),
        (("a", 0, False), ("ab", 1, False), True),
        (("", None, False), ("", None, True), False),
        (("a", 0, True), ("b", 0, False), True),
        (("a", 0, True), ("b", 1, True), False),
        ((None, 0, False), ("", 1, False), True),
    ],
)
def test_choices_conflict_either_way(one: Any, other: Any, conflicts: bool) -> None:
    def choice(touches: str | None, cpu: int | None, keeps_off: bool) -> Choice:
        return Choice("it", None if touches is None else frozenset(touches), cpu, keeps_off)

    assert conflicts == choice(*one).conflicts(choice(*other)) == choice(*other).conflicts(choice(*one))


# ---- what a world says


class _Scene:
    def __init__(self, *actors: Actor, now: str = "", end: str = "") -> None:
        self.actors: Sequence[Actor] = actors
        self.stepped = 0
        self._now, self._end = now, end

    def reset(self) -> None:
        self.stepped = 0

    def after_step(self) -> None:
        self.stepped += 1

    def wrong_now(self) -> str:
        return self._now

    def wrong_at_end(self) -> str:
        return self._end

    def watch(self) -> Mapping[str, object]:
        return {"steps": self.stepped}


def _task(name: str, *steps: Step, cpu: int | None = None, **how: Any) -> Actor:
    return Actor(name, _steps(*steps), cpu=cpu, **how)


def test_a_deadlock_is_told_with_who_holds_what() -> None:
    """Two that take two locks the other way round."""
    one = _task("one", Step("takes raw", takes=RAW), Step("takes spinning", locks=(RAW,), takes=SPINNING))
    two = _task("two", Step("takes spinning", takes=SPINNING), Step("takes raw", locks=(SPINNING,), takes=RAW))
    order = ("one", "one", "two", "two")
    what = "deadlock: one stands at “takes spinning”: two holds spinning; two stands at “takes raw”: one holds raw"
    assert Bad(what, order, 1) == play(World(_Scene(one, two)), order)


def test_who_takes_a_lock_twice_deadlocks_with_itself() -> None:
    one = _task("one", Step("takes raw", takes=RAW), Step("takes it again", locks=(RAW,), takes=RAW))
    what = "deadlock: one stands at “takes it again”: one holds raw"
    assert what == play(World(_Scene(one)), ()).what


def test_who_waits_for_what_never_comes_hangs() -> None:
    one = _task("one", Step("waits for an answer", **NEVER))
    assert "hangs for ever: one stands at “waits for an answer”" == play(World(_Scene(one)), ()).what


def test_an_interrupt_that_spins_for_the_lock_of_the_task_below_it_is_a_deadlock() -> None:
    task = _task("task", Step("takes spinning", takes=SPINNING), Step("works", locks=(SPINNING,)), cpu=0)
    irq = _task("irq", Step("spins", HARDIRQ, takes=SPINNING), cpu=0, context=HARDIRQ)
    what = "deadlock: task stands at “works”: its cpu 0 is not free; irq stands at “spins”: task holds spinning"
    assert what == play(World(_Scene(task, irq)), ("task", "task", "irq")).what


def test_who_never_began_is_stuck_too_but_not_who_begins_on_demand() -> None:
    never = _task("never", cpu=0)
    spins = _task("spins", Step("waits", HARDIRQ, **NEVER), cpu=0, context=HARDIRQ)
    idle = _task("idle", wants=lambda: False)
    what = "hangs for ever: spins stands at “waits”; never stands at “never begins”: its cpu 0 is not free"
    assert what == play(World(_Scene(never, spins, idle)), ("spins",)).what


def test_an_error_is_wrong_unless_it_is_expected() -> None:
    def fails() -> Steps[None]:
        yield _step()
        raise IrqError(errno.EBUSY, "cpu 1: cannot go (EBUSY)")

    assert "" == play(World(_Scene(Actor("one", fails, may_fail=(errno.EBUSY,)))), ()).what
    for other in ((), (errno.EINVAL,)):
        bad = play(World(_Scene(Actor("one", fails, may_fail=other))), ())
        assert "one failed: cpu 1: cannot go (EBUSY)" == bad.what


def test_an_error_without_words_is_told_by_its_name() -> None:
    def fails() -> Steps[None]:
        yield _step()
        raise ZeroDivisionError

    assert "one failed: ZeroDivisionError" == play(World(_Scene(Actor("one", fails))), ()).what


def test_invariants_are_asked_after_each_step_and_at_the_end() -> None:
    assert Bad("now", ("one",), 0) == play(World(_Scene(_task("one", _step()), now="now", end="end")), ())
    assert Bad("end", ("one", "one"), 0) == play(World(_Scene(_task("one", _step()), end="end")), ())


def test_a_world_begins_again() -> None:
    scene = _Scene(_task("one", _step()), _task("two"))
    world = World(scene)
    assert "" == world.take("one") == world.take("two")
    assert (["one", "two"], 2) == (world.taken, scene.stepped)
    world.reset()
    assert ([], 0) == (world.taken, scene.stepped)
    assert ["one", "two"] == [choice.name for choice in world.choices()]


def test_who_goes_last_goes_when_nobody_else_can() -> None:
    scene = _Scene(_task("late", last=True), _task("one", _step()))
    world = World(scene)
    assert ["one"] == [choice.name for choice in world.choices()]
    assert ("one", "one", "late") == play(world, ()).order
