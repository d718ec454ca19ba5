"""The guest's work queues: operations that may sleep, one at a time per queue, each as steps.

hv_vmbus_con processes offers, hv_vmbus_rescind rescinds, hv_pri_chan and hv_sub_chan make devices and open sub-channels
(drivers/hv/connection.c, v6.10); each is fed from one CPU and runs one item at a time. An item that waits keeps its own
queue waiting and no other, which is why rescinds do not share a queue with offers, nor removals one with rescinds: a
removal waits for a probe, which may be waiting for what only the next rescind ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from vmbusirq.steps import Step, Steps

__all__ = ["WorkQueue", "WorkQueues"]


class WorkQueue:
    """One queue: items run in the order they were queued, or in the order of their ``rank``.

    Attributes:
        current: where the running item waits, None when there is none.
    """

    def __init__(self, name: str, on_error: Callable[[BaseException], object]) -> None:
        self.name: Final = name
        self._on_error = on_error
        self._waiting: deque[tuple[int, str, Steps[None]]] = deque()
        self._active: Steps[None] | None = None
        self._label = ""
        self._running = False
        self.current: Step | None = None

    def queue(self, label: str, steps: Steps[None], rank: int = 0) -> None:
        """Add an item; among those that wait a lower rank goes first."""
        place = len(self._waiting)
        while place and self._waiting[place - 1][0] > rank:
            place -= 1
        self._waiting.insert(place, (rank, label, steps))

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self._active is None and not self._waiting

    def take(self) -> Steps[None]:
        """Take the next item away, for who runs it step by step. IndexError: none waits."""
        return self._waiting.popleft()[2]

    @property
    def stuck_at(self) -> str:
        """What the running item waits for, in words; empty when there is none."""
        return f"{self._label}: {self.current.point}" if self.current is not None else ""

    def advance(self) -> bool:
        """Run items until one waits or none is left; return whether anything ran."""
        if self._running:
            return False  # an item's own call came back here
        moved = False
        self._running = True
        try:
            while self._active is not None or self._waiting:
                if self._active is None:
                    _, self._label, self._active = self._waiting.popleft()
                elif self.current is not None and self.current.ready is not None and not self.current.ready():
                    break
                moved = True
                self._step(self._active)
        finally:
            self._running = False
        return moved

    def close(self) -> None:
        """Drop everything, undone or not begun: the machine ends."""
        active, self._active, self.current = self._active, None, None
        self._waiting.clear()
        if active is not None:
            active.close()

    def _step(self, steps: Steps[None]) -> None:
        try:
            self.current = next(steps)
        except StopIteration:
            self._active = self.current = None
        except Exception as error:
            self._active = self.current = None
            self._on_error(error)


class WorkQueues:
    """All of them.

    Args:
        on_error: hears of an exception that an item let out; the item is over then.
    """

    def __init__(self, on_error: Callable[[BaseException], object]) -> None:
        self.con: Final = WorkQueue("hv_vmbus_con", on_error)
        self.rescind: Final = WorkQueue("hv_vmbus_rescind", on_error)
        self.removal: Final = WorkQueue("hv_vmbus_removal", on_error)
        """What becomes of a channel that was rescinded: the second half of Linux's item on hv_vmbus_rescind."""
        self.pri_chan: Final = WorkQueue("hv_pri_chan", on_error)
        self.sub_chan: Final = WorkQueue("hv_sub_chan", on_error)
        self.system: Final = WorkQueue("events", on_error)
        """The system's own queue, for what drivers put off."""
        self._bus: Final = (self.con, self.rescind, self.removal, self.pri_chan, self.sub_chan)
        self._all: Final = (*self._bus, self.system)

    def pump(self) -> bool:
        """Let every queue go on until it waits; return whether anything ran.

        Once round only: what an item waits for is often done by others, the host above all.
        """
        return sum(queue.advance() for queue in self._all) > 0

    def close(self) -> None:
        """Drop everything, at the end of the machine."""
        for queue in self._all:
            queue.close()

    @property
    def bus_idle(self) -> bool:
        """The queues of the bus are empty."""
        return all(queue.idle for queue in self._bus)

    @property
    def stuck(self) -> list[str]:
        """What each queue that waits is waiting for."""
        return [f"{queue.name}: {queue.stuck_at}" for queue in self._all if queue.stuck_at]
