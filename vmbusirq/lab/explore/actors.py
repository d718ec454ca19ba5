"""Who takes steps in a race: operations, CPUs that take interrupts, the host, time; and who may go next.

An actor is an operation of :mod:`vmbusirq.steps`, held between two of its steps. One that has a condition to begin, an
interrupt that is requested or a message that waits, begins anew whenever it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from vmbusirq.steps import STOP_MACHINE, Context, Lock, LockKind, Step, Steps

__all__ = ["Actor", "at_once", "may_go"]


class Actor:
    """Somebody who takes steps.

    Args:
        name: for stories and files.
        begin: makes the operation.
        cpu: the CPU that it runs on; None: it is no CPU of the guest's, or any that is free.
        wants: when it begins, again and again; None: once, at any time.
        context: of its first step.
        point: what its first step is, in words.
        touches: what the code before the operation's first yield reads or writes, see :class:`Step`; or what tells.
        whole: nobody comes between its steps: it has one.
        last: it goes only when nobody else can.
        may_fail: errno values that the operation may end with.

    Attributes:
        step: where it stands, None when it is over for good.
        running: it is somewhere inside its operation.
        result, error: what came of an operation that ran once.
    """

    __slots__ = (
        "_begin",
        "_rest",
        "_steps",
        "_touches",
        "cpu",
        "error",
        "last",
        "may_fail",
        "name",
        "result",
        "running",
        "step",
        "whole",
    )

    def __init__(
        self,
        name: str,
        begin: Callable[[], Steps[Any]],
        *,
        cpu: int | None = None,
        wants: Callable[[], bool] | None = None,
        context: Context = Context.TASK,
        point: str = "",
        touches: frozenset[str] | Callable[[], frozenset[str] | None] | None = None,
        whole: bool = False,
        last: bool = False,
        may_fail: Sequence[int] = (),
    ) -> None:
        self.name: Final = name
        self.cpu: Final = cpu
        self.may_fail: Final = frozenset(may_fail)
        self.whole: Final = whole
        self.last: Final = last
        self._begin: Final = begin
        self._touches: Final = touches
        self._rest: Final = Step(point or f"{name} begins", context, ready=wants)
        self._steps: Steps[Any] | None = None
        self.step: Step | None = self._rest
        self.running = False
        self.result: Any = None
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return f"<Actor {self.name} at {self.step.point if self.step else 'its end'}>"

    @property
    def repeats(self) -> bool:
        """It begins anew whenever its condition holds."""
        return self._rest.ready is not None

    @property
    def locks(self) -> tuple[Lock, ...]:
        """The locks that it holds."""
        return self.step.locks if self.running and self.step is not None else ()

    @property
    def waits(self) -> bool:
        """It has gone to sleep, or is at rest: its CPU is free. Who waits under a spinlock does not sleep."""
        return not self.running or (self.step is not None and self.step.ready is not None and not self.is_atomic)

    @property
    def is_atomic(self) -> bool:
        """It is in an interrupt, or holds a spinlock: no task preempts it, and it cannot sleep."""
        step = self.step
        if not self.running or step is None:
            return False
        return step.context is not Context.TASK or any(lock.kind is not LockKind.SLEEPING for lock in step.locks)

    @property
    def touches(self) -> frozenset[str] | None:
        """What its next step reads or writes, None for anything.

        Who goes only when nobody else can is tied to everybody: whoever it wakes goes before the others like it. So is
        who stops the machine, which any CPU with interrupts off prevents, and which stops all of them.
        """
        step = self.step
        assert step is not None, "who goes stands somewhere"
        touched = step.touches
        if not self.running:
            touched = self._touches() if callable(self._touches) else self._touches
        if touched is None or self.last or step.takes == STOP_MACHINE:
            return None
        return touched if step.takes is None else touched | {step.takes.name}

    @property
    def keeps_off(self) -> bool:
        """Its next step may keep others off its CPU: it enters an interrupt, is in one, or takes a spinlock."""
        step = self.step
        if self.cpu is None or self.whole or step is None:
            return False
        takes = step.takes
        return step.context is not Context.TASK or (takes is not None and takes.kind is not LockKind.SLEEPING)

    def go(self) -> None:
        """Go on to the next step, or to the end."""
        if self._steps is None:
            self._steps = self._begin()
            self.running = True
        try:
            self.step = next(self._steps)
        except StopIteration as end:
            self._end(end.value, None)
        except Exception as error:
            self._end(None, error)

    def _end(self, result: Any, error: Exception | None) -> None:
        self._steps = None
        self.running = False
        self.result, self.error = result, error
        self.step = self._rest if self.repeats else None

    def drop(self) -> None:
        """Forget an operation that is under way, and be as at first."""
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()
        self.step, self.running = self._rest, False
        self.result = self.error = None


def at_once(function: Callable[[], object]) -> Callable[[], Steps[None]]:
    """Return what makes an operation of a function that nobody overtakes."""

    def steps() -> Steps[None]:
        function()
        yield from ()

    return steps


_RANK: Final = {Context.TASK: 0, Context.SOFTIRQ: 1, Context.HARDIRQ: 2}


def may_go(actor: Actor, running: Sequence[Actor]) -> bool:
    """Return whether an actor can take its next step now: its condition holds, the lock is free, its CPU its own.

    Args:
        actor: who wants to go.
        running: who is inside an operation, the actor itself perhaps among them. Others are in nobody's way.
    """
    step = actor.step
    if step is None or (step.takes is not None and _is_held(step.takes, running)):
        return False
    if _is_stopped(actor, step, running) or (actor.cpu is not None and _is_kept_off(actor, step, running)):
        return False
    return step.ready is None or step.ready()


def _is_held(lock: Lock, running: Sequence[Actor]) -> bool:
    """Whether somebody holds what excludes a lock; who holds it already waits for itself."""
    return any(lock.excludes(held) for actor in running for held in actor.locks)


def _is_stopped(actor: Actor, step: Step, running: Sequence[Actor]) -> bool:
    """Whether somebody has stopped the machine, or keeps the actor from doing so."""
    stops = step.takes == STOP_MACHINE
    for other in running:
        if other is actor:
            continue
        if stops and other.cpu is not None and other.is_atomic:
            return True
        if actor.cpu is not None and STOP_MACHINE in other.locks:
            return True
    return False


def _is_kept_off(actor: Actor, step: Step, running: Sequence[Actor]) -> bool:
    """Whether somebody else has the actor's CPU: what interrupts it, or what it cannot interrupt."""
    rank = _RANK[step.context]
    for other in running:
        if other is actor or other.cpu != actor.cpu or other.waits:
            continue
        at = other.step
        assert at is not None, "who runs stands somewhere"
        if _RANK[at.context] > rank or at.irqs_off:
            return True
        if rank == _RANK[at.context] and other.is_atomic:
            return True
    return False
