"""What the explorer assumes of a kernel: preemption, interrupts, locks, stop_machine, timers (docs/deviations.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmbusirq.lab.explore.actors import Actor, at_once
from vmbusirq.lab.explore.search import Explored, all_orders
from vmbusirq.lab.explore.world import World
from vmbusirq.steps import STOP_MACHINE, Context, Lock, LockKind, Step, Steps

RAW, SPIN, MUTEX = Lock("raw"), Lock("spin", LockKind.SPINNING), Lock("mutex", LockKind.SLEEPING)


class Toy:
    """Actors that write what they do into one line of text; every order of it is collected."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.text = ""
        self.texts: set[str] = set()

    def add(self, name: str, steps: Callable[[], Steps[None]], cpu: int | None = 0, **how: object) -> None:
        """Add an actor."""
        self.actors.append(Actor(name, steps, cpu=cpu, **how))

    def section(self, letters: str, lock: Lock | None = None) -> Callable[[], Steps[None]]:
        """Return an operation that writes its letters one by one, between which it holds a lock."""

        def steps() -> Steps[None]:
            if lock is not None:
                yield Step(f"takes {lock.name}", takes=lock)
            for at, letter in enumerate(letters):
                if at:
                    yield Step(f"writes {letter}", locks=(lock,) if lock is not None else ())
                self.text += letter

        return steps

    def reset(self) -> None:
        self.text = ""

    def after_step(self) -> None:
        return

    def wrong_now(self) -> str:
        return ""

    def wrong_at_end(self) -> str:
        self.texts.add(self.text)
        return ""

    def watch(self) -> Mapping[str, object]:
        return {"text": self.text}

    def play(self) -> Explored:
        """Play all orders, nothing left out."""
        return all_orders(World(self), reduction=False)


def texts(*actors: tuple[str, Lock | None, int | None]) -> set[str]:
    """Return what is written in all orders of actors: letters, lock, CPU."""
    toy = Toy()
    for letters, lock, cpu in actors:
        toy.add(letters, toy.section(letters, lock), cpu)
    assert not toy.play().bad
    return toy.texts


def with_interrupt(letters: str, lock: Lock | None) -> set[str]:
    """Return what is written in all orders of a task and an interrupt, ``XY``, on one CPU."""
    toy = Toy()
    toy.add("task", toy.section(letters, lock))

    def interrupt() -> Steps[None]:
        toy.text += "X"
        yield Step("writes Y", Context.HARDIRQ)
        toy.text += "Y"

    toy.add("interrupt", interrupt, wants=lambda: "X" not in toy.text, context=Context.HARDIRQ)
    assert not toy.play().bad
    return toy.texts


def test_a_task_is_preempted_unless_it_holds_a_spinlock():
    """By a task of its CPU; one of another CPU comes in between whatever it holds."""
    assert {"ab1", "a1b", "1ab"} == texts(("ab", None, 0), ("1", None, 0))
    assert {"ab1", "a1b", "1ab"} == texts(("ab", MUTEX, 0), ("1", None, 0))
    for lock in (SPIN, RAW):
        assert {"ab1", "1ab"} == texts(("ab", lock, 0), ("1", None, 0))
        assert {"ab1", "a1b", "1ab"} == texts(("ab", lock, 0), ("1", None, 1))


def test_an_interrupt_keeps_tasks_off_and_a_raw_lock_keeps_it_off():
    """Nothing of the task comes between X and Y; a spinlock that leaves interrupts on lets it in."""
    for lock in (None, MUTEX, SPIN):
        assert {"abXY", "aXYb", "XYab"} == with_interrupt("ab", lock)
    assert {"abXY", "XYab"} == with_interrupt("ab", RAW)


def test_who_finds_a_lock_taken_is_not_resumed():
    """Critical sections do not mix, whatever kind of lock it is."""
    for lock in (MUTEX, SPIN, RAW):
        assert {"ab12", "12ab"} == texts(("ab", lock, 0), ("12", lock, 1))


def test_two_locks_in_two_orders_are_a_deadlock():
    """Named with who stands where and who holds what."""
    toy, other = Toy(), Lock("other")

    def nested(first: Lock, second: Lock) -> Callable[[], Steps[None]]:
        def steps() -> Steps[None]:
            yield Step(f"takes {first.name}", takes=first)
            yield Step(f"takes {second.name}", takes=second, locks=(first,))

        return steps

    toy.add("one", nested(RAW, other), 0)
    toy.add("two", nested(other, RAW), 1)
    (bad,) = toy.play().bad
    assert (
        "deadlock: one stands at “takes other”: two holds other; two stands at “takes raw”: one holds raw" == bad.what
    )


def test_whoever_can_go_gets_the_lock():
    """No queue: of two that wait either comes first. A reader comes in while a writer waits for another reader."""
    toy = Toy()
    for letter in "abc":
        toy.add(letter, toy.section(letter, MUTEX), int(letter, 16) - 10)
    toy.play()
    assert {"abc", "acb", "bac", "bca", "cab", "cba"} == toy.texts
    reads = Lock("mutex", LockKind.SLEEPING, shared=True)
    assert {"abW1", "ab1W", "a1bW", "1abW", "1Wab", "W1ab", "Wa1b", "Wab1"} == texts(
        ("ab", reads, 0), ("W", MUTEX, 1), ("1", reads, 2)
    )


def test_stop_machine_waits_for_who_is_atomic_and_stops_the_rest():
    """CPUs only: the host, which has none, goes on."""
    assert {"ab12", "12ab"} == texts(("ab", STOP_MACHINE, 0), ("12", RAW, 1))
    stopped = texts(("ab", STOP_MACHINE, 0), ("12", None, 1))
    assert {"ab12", "1ab2", "12ab"} == stopped
    assert "a1b2" in texts(("ab", STOP_MACHINE, 0), ("12", None, None))


def test_time_passes_when_nobody_else_can_go():
    """A timer that is due is the last to come; in a race that says so, at any time."""
    for last, expected in ((True, {"abT"}), (False, {"abT", "aTb", "Tab"})):
        toy = Toy()
        toy.add("task", toy.section("ab"))

        def passes(toy: Toy = toy) -> None:
            toy.text += "T"

        toy.add("time", at_once(passes), None, wants=lambda toy=toy: "T" not in toy.text, last=last)
        assert not toy.play().bad
        assert expected == toy.texts
