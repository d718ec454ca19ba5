"""Operations that another CPU or the host can overtake, written as generators of steps.

An operation yields a :class:`Step` at each point where the kernel could be interrupted, or waits. :func:`run` drives
one to its end, which is what the ordinary calls do; an explorer holds several and resumes them in any order that the
steps' locks and conditions allow. Between two yields nothing else happens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias, TypeVar

from vmbusirq.errors import Hung

__all__ = ["STOP_MACHINE", "Context", "Lock", "LockKind", "Step", "Steps", "each", "holding", "run"]

T = TypeVar("T")


class Context(Enum):
    """Where the kernel runs an operation; a later member interrupts the earlier ones of its CPU."""

    TASK = "task"
    SOFTIRQ = "softirq"
    HARDIRQ = "hardirq"


class LockKind(Enum):
    """How the kernel's lock waits."""

    RAW = "raw"  # spins, interrupts off
    SPINNING = "spinning"  # spins, interrupts stay as they are
    SLEEPING = "sleeping"  # a mutex: its holder may be scheduled away


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock of the kernel, by name: ``irq 28 desc->lock``.

    Attributes:
        shared: taken by a reader, of which there may be several; the name is that of the writer's lock.
    """

    name: str
    kind: LockKind = LockKind.RAW
    shared: bool = False

    def excludes(self, other: Lock) -> bool:
        """Return whether two operations cannot hold these at once."""
        return self.name == other.name and not (self.shared and other.shared)


STOP_MACHINE: Final = Lock("stop_machine")
"""Who takes it waits until no other CPU of the guest has interrupts off, and while it is held none of them runs."""


@dataclass(frozen=True, slots=True)
class Step:
    """A point where an operation can be overtaken.

    Attributes:
        point: what comes next, in the kernel's words: ``irq 28: take desc->lock``.
        context: where the operation runs.
        locks: held here, in the order they were taken.
        takes: the lock that the next step takes; it may not be resumed while another operation holds that.
        ready: the condition waited for, None when there is none; resumed only when it is true.
        touches: what the code up to the next step reads or writes, by names such as ``irq 28`` and ``ring 5 in``, for
            who leaves orders out that cannot differ; None: it may be anything. The lock taken is not among them.
    """

    point: str
    context: Context = Context.TASK
    locks: tuple[Lock, ...] = ()
    takes: Lock | None = None
    ready: Callable[[], bool] | None = field(default=None, compare=False)
    touches: frozenset[str] | None = None

    @property
    def irqs_off(self) -> bool:
        """True in a hard interrupt and under a raw lock."""
        return self.context is Context.HARDIRQ or any(lock.kind is LockKind.RAW for lock in self.locks)


Steps: TypeAlias = Generator[Step, None, T]


HANGS_MAX: Final = 4096
"""Waits that one operation may be thrown out of: its error path may wait as well, and a close does for each channel."""


def run(steps: Steps[T], idle: Callable[[Step], object] | None = None) -> T:
    """Drive an operation to its end and return its value.

    ``idle`` lets the rest of the machine go on while a step waits, and is told which one; it returns false when there
    was nothing left to do. Then :class:`Hung` is raised inside the operation, whose error path undoes its work; so is
    what ``idle`` raises. An operation that is only dropped undoes nothing: its machine may be gone already.

    Raises:
        Hung: a step waits for what nobody is going to do.
        Exception: what the operation raised, or ``idle``.
    """
    hangs = 0
    try:
        step = next(steps)
        while True:
            error = _wait(step, idle)
            hangs += error is not None
            if error is None:
                step = next(steps)
            elif hangs <= HANGS_MAX:
                step = steps.throw(error)
            else:
                raise error
    except StopIteration as end:
        value: T = end.value
        return value


def _wait(step: Step, idle: Callable[[Step], object] | None) -> Exception | None:
    """Wait until a step can be resumed; return why it never can."""
    try:
        while step.ready is not None and not step.ready():
            if idle is None or not idle(step):
                return Hung(f"{step.point}: waits, and nothing that is left to run can end the wait")
    except Exception as error:
        return error
    return None


def holding(lock: Lock, steps: Steps[T]) -> Steps[T]:
    """Yield the steps of an operation that is called under ``lock``."""
    try:
        step = next(steps)
        while True:
            try:
                yield Step(step.point, step.context, (lock, *step.locks), step.takes, step.ready, step.touches)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = next(steps)
    except StopIteration as end:
        value: T = end.value
        return value


def each(*operations: Steps[object]) -> Steps[None]:
    """Yield the steps of all operations in turn, whatever becomes of those before; then raise the first error."""
    failure: Exception | None = None
    for operation in operations:
        try:
            yield from operation
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
