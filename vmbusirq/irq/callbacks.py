"""Where C calls Python: one trampoline per kind of callee, the object travels as a handle.

An exception cannot cross C. What a callee raises makes its arrival IRQ_NONE, is kept by the :class:`Owner` of the
machine, and is raised again at the public edge by :meth:`Owner.reraise`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmbusirq._ffi import ffi, lib
from vmbusirq.irq.settings import IRQ_WAKE_THREAD

if TYPE_CHECKING:
    from vmbusirq.irq.action import IrqAction
    from vmbusirq.irq.core import IrqCore

__all__ = ["IrqBatch", "Owner", "in_chip_callback", "in_handler", "owner_of", "running", "smp_processor_id"]

_U32_MASK = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class IrqBatch:
    """What a batched handler gets: the interrupts of one scan of one CPU, in the order of the scan."""

    cpu: int
    irqs: Sequence[int]
    hwirqs: Sequence[int]
    dev_ids: Sequence[Any]

    def __len__(self) -> int:
        return len(self.irqs)


class _Running(threading.local):
    """What Python code this thread runs on behalf of C."""

    cpu: int | None = None
    handlers = 0
    chip_callbacks = 0


_running = _Running()


def smp_processor_id() -> int | None:
    """Return the virtual CPU on whose behalf this thread runs a callback, None outside callbacks."""
    return _running.cpu


def in_handler() -> bool:
    """Return True inside an interrupt handler or channel callback."""
    return _running.handlers > 0


def in_chip_callback() -> bool:
    """Return True inside a chip callback that C calls with the descriptor's lock held."""
    return _running.chip_callbacks > 0


@contextmanager
def running(cpu: int) -> Iterator[None]:
    """Mark this thread as running a handler on ``cpu``."""
    before = _running.cpu
    _running.cpu = cpu
    _running.handlers += 1
    try:
        yield
    finally:
        _running.handlers -= 1
        _running.cpu = before


class Owner:
    """What one C machine knows of Python: its rooms, its hooks, and the first error that a callback raised.

    Attributes:
        irq: the genirq core.
        rooms: other rooms that have callbacks of their own, by name.
    """

    def __init__(self, machine: Any, irq: IrqCore) -> None:
        self.irq = irq
        self.rooms: dict[str, Any] = {}
        self._machine = machine
        self._handle = ffi.new_handle(self)
        self._hooks = ffi.new("struct vi_hooks *")
        self._error: BaseException | None = None
        self._errors_after = 0
        lib.vi_machine_set_owner(machine, self._handle)
        self.set_hooks(batch=lib.vi_py_batch, report=lib.vi_py_report)

    def set_hooks(self, **hooks: Any) -> None:
        """Set members of ``struct vi_hooks``; the others stay as they are."""
        for name, function in hooks.items():
            setattr(self._hooks, name, function)
        lib.vi_machine_set_hooks(self._machine, self._hooks)

    def keep(self, error: BaseException) -> None:
        """Keep what a callback raised; of several the first."""
        if self._error is None:
            self._error = error
        else:
            self._errors_after += 1

    def reraise(self) -> None:
        """Raise the kept error, if there is one, and forget it."""
        error, after = self._error, self._errors_after
        self._error, self._errors_after = None, 0
        if error is None:
            return
        if after:
            error.add_note(f"{after} more exception(s) were raised by callbacks after this one")
        raise error


def owner_of(cpu: Any) -> Owner:
    """Return the owner of the machine that a ``struct vi_cpu *`` belongs to."""
    owner: Owner = ffi.from_handle(lib.vi_cpu_owner(cpu))
    return owner


def _py_handler(cpu: Any, irq: int, dev_id: Any) -> int:
    """Run one action for one arrival."""
    action: IrqAction = ffi.from_handle(dev_id)
    try:
        with running(lib.vi_cpu_id(cpu)):
            result = _call_one(action, lib.vi_cpu_id(cpu), irq)
    except BaseException as error:
        action.owner.keep(error)
        return int(lib.VI_IRQ_NONE)
    if result & IRQ_WAKE_THREAD:
        action.woke_thread = True
    return result


def _call_one(action: IrqAction, cpu: int, irq: int) -> int:
    if action.batched:
        (result,) = action.handler(IrqBatch(cpu, (irq,), (action.desc.hwirq,), (action.dev_id,)))
    else:
        dev_id = action.dev_id if action.percpu_dev_id is None else action.percpu_dev_id[cpu]
        result = action.handler(irq, dev_id)
    return int(result) & _U32_MASK


def _py_batch(cpu: Any, n: int, irqs: Any, results: Any) -> None:
    """Run the batched actions of one scan: each callable once, with everything that is its own."""
    owner = owner_of(cpu)
    cpu_id = lib.vi_cpu_id(cpu)
    places: dict[Any, list[int]] = {}
    actions = [owner.irq.descs[irq].actions[0] for irq in ffi.unpack(irqs, n)]
    for place, action in enumerate(actions):
        places.setdefault(action.handler, []).append(place)
    for handler, mine in places.items():
        descs = [actions[place].desc for place in mine]
        batch = IrqBatch(
            cpu_id,
            [desc.irq for desc in descs],
            [desc.hwirq for desc in descs],
            [actions[place].dev_id for place in mine],
        )
        try:
            with running(cpu_id):
                returned = [int(result) & _U32_MASK for result in handler(batch)]
            if len(returned) != len(mine):
                raise ValueError(f"batched handler returned {len(returned)} results for {len(mine)} interrupts")
        except BaseException as error:
            owner.keep(error)
            continue  # the results are IRQ_NONE already
        for place, result in zip(mine, returned, strict=True):
            results[place] = result


def _py_chip_call(cpu: Any, irq: int, op: int) -> None:
    """Run a chip callback, under the descriptor's lock."""
    owner = owner_of(cpu)
    before = _running.cpu
    _running.cpu = lib.vi_cpu_id(cpu)
    _running.chip_callbacks += 1
    try:
        desc = owner.irq.descs[irq]
        desc.chip.op(op)(desc, lib.vi_cpu_id(cpu))
    except BaseException as error:
        owner.keep(error)
    finally:
        _running.chip_callbacks -= 1
        _running.cpu = before


def _py_report(cpu: Any, what: int, irq: int, value: int) -> None:
    """Hear what the data plane has to say."""
    owner_of(cpu).irq.report(what, irq, value, lib.vi_cpu_id(cpu))


ffi.def_extern(name="vi_py_handler")(_py_handler)
ffi.def_extern(name="vi_py_batch")(_py_batch)
ffi.def_extern(name="vi_py_chip_call")(_py_chip_call)
ffi.def_extern(name="vi_py_report")(_py_report)
