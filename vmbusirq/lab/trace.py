"""Hear of every step of an interrupt while it happens (csrc/trace.c).

What is measured elsewhere is not slowed by this: the hot functions have twins that tell, and those run while somebody
listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import check

__all__ = ["NO_CPU", "Event", "tracing"]

NO_CPU: Final[int] = lib.VI_VP_NONE
"""The CPU of an event that concerns none."""


@dataclass(frozen=True, slots=True)
class Event:
    """One step that has just been done.

    Attributes:
        step: a value of ``enum vi_trace_step``, which says what ``id`` and ``value`` are.
        cpu: the CPU that did it, for the host's steps the one that it signals, or NO_CPU.
        id, value: see above.
        file, function: who reports it, as the compiler was told: ``csrc/...`` and a name.
    """

    step: int
    cpu: int
    id: int
    value: int
    file: str
    function: str


class _Listener:
    """What is behind the handle that C passes back."""

    def __init__(self, on_event: Callable[[Event], object]) -> None:
        self._on_event = on_event
        self.error: BaseException | None = None

    def hear(self, event: Any) -> None:
        try:
            self._on_event(_event_from_c(event))
        except BaseException as error:  # cannot cross C
            self.error = self.error or error


def _event_from_c(event: Any) -> Event:
    path = ffi.string(event.file).decode()
    at = path.rfind("csrc/")
    name = ffi.string(event.function).decode()
    return Event(event.step, event.cpu, event.id, event.value, path[max(at, 0) :], name)


@contextmanager
def tracing(core: Core, on_event: Callable[[Event], object]) -> Iterator[None]:
    """Call ``on_event`` with every step that this thread's calls make the machine take inside the ``with``.

    Only the owner's thread may run the machine meanwhile. One listener at a time: an inner one takes the place of an
    outer one, which hears nothing any more.

    Raises:
        IrqError: EDEADLK from inside an interrupt.
        Exception: the first one that ``on_event`` raised, at the end.
    """
    listener = _Listener(on_event)
    handle = ffi.new_handle(listener)
    what = "trace: cannot be switched from inside an interrupt"
    check(lib.vi_machine_set_trace(core.handle, lib.vi_py_trace, handle), what)
    try:
        yield
    finally:
        check(lib.vi_machine_set_trace(core.handle, ffi.NULL, ffi.NULL), what)
    if listener.error is not None:
        raise listener.error


def _py_trace(context: Any, event: Any) -> None:
    ffi.from_handle(context).hear(event)


ffi.def_extern(name="vi_py_trace")(_py_trace)
