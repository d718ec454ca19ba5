"""Several operations at once, resumed in the order that a test writes down, as far as their locks allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmbusirq.steps import Lock, Step, Steps

__all__ = ["Blocked", "Operation", "Schedule"]


class Blocked(Exception):
    """The operation cannot go on: another one holds the lock that it takes next."""


class Operation:
    """One operation on its way.

    Attributes:
        step: where it stands, None when it is over; ``held``: the locks it holds there.
        result, error: what came of it.
    """

    def __init__(self, schedule: Schedule, steps: Steps[Any]) -> None:
        self._schedule = schedule
        self._steps = steps
        self.step: Step | None = None
        self.result: Any = None
        self.error: Exception | None = None
        self._next()

    @property
    def held(self) -> tuple[Lock, ...]:
        return self.step.locks if self.step is not None else ()

    @property
    def over(self) -> bool:
        return self.step is None

    @property
    def blocked(self) -> bool:
        """Whether another operation holds what this one takes next."""
        takes = self.step.takes if self.step is not None else None
        others = [lock for other in self._schedule.operations if other is not self for lock in other.held]
        return takes is not None and any(takes.excludes(lock) for lock in others)

    def _next(self) -> None:
        try:
            self.step = next(self._steps)
        except StopIteration as end:
            self.step, self.result = None, end.value
        except Exception as error:
            self.step, self.error = None, error

    def resume(self) -> None:
        """Go to the next step, after what this one waits for."""
        assert self.step is not None
        if self.blocked:
            raise Blocked(self.step.point)
        while self.step.ready is not None and not self.step.ready():
            assert self._schedule.idle(self.step), f"{self.step.point}: nothing can end this wait"
        self._next()

    def to(self, point: str) -> Operation:
        """Go on until the next step says ``point``."""
        while self.step is not None and point not in self.step.point:
            self.resume()
        assert self.step is not None, f"it was over before {point!r}: {self.error or self.result!r}"
        return self

    def finish(self) -> Any:
        """Go on to the end; return the value or raise the error."""
        while not self.over:
            self.resume()
        if self.error is not None:
            raise self.error
        return self.result


class Schedule:
    """The operations of one machine; ``idle`` lets the rest of it go on while one waits."""

    def __init__(self, idle: Callable[[Step], object]) -> None:
        self.idle = idle
        self.operations: list[Operation] = []

    def begin(self, steps: Steps[Any]) -> Operation:
        """Let an operation run to its first step."""
        operation = Operation(self, steps)
        self.operations.append(operation)
        return operation
