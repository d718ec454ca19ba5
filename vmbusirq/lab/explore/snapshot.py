"""The state of a stage, saved once and put back before each order, in place: who holds a part of it still holds it.

Three layers: the C machine (``vi_machine_save``), the guest's memory, and the Python objects that can be reached from
the stage. Of those, containers, instance variables, closure variables and structures that Python owns are saved, one
level each, and everything is found by walking them. Rings that an order closes stay mapped, out of its sight.
"""

from __future__ import annotations

import enum
import functools
import random
import re
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID
from weakref import ReferenceType

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import check
from vmbusirq.host.rings import HostRings
from vmbusirq.hyperv.memory import HV_PAGE, GuestMemory
from vmbusirq.wire.ring_memory import RingMemory

__all__ = ["Snapshot"]

_FIXED: Final = (
    type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.MappingProxyType, type(None),
    bool, int, float, str, bytes, range, slice, enum.Enum, UUID, PurePath, re.Pattern, ReferenceType, property,
)  # fmt: skip
"""Values that never change, and what belongs to no stage."""
_CDATA: Final = ffi.CData
Restore = Callable[[], object]


class Snapshot:
    """What a stage is like now.

    Args:
        root: every Python object that is to be saved is reachable from it.
        machine: the C machine.
        memory: the guest's memory.
    Raises:
        TypeError: something reachable cannot be saved: an operation that is under way, an iterator.
    """

    def __init__(self, root: object, machine: Any, memory: GuestMemory) -> None:
        self._seen: dict[int, object] = {}
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._restores: list[Restore] = []
        self._machine = machine
        size = check(lib.vi_machine_save(machine, ffi.NULL, 0), "machine: cannot be saved")
        self._size = size
        self._image: Any = ffi.new("uint64_t[]", size // 8 + 1)
        check(lib.vi_machine_save(machine, self._image, size), "machine: cannot be saved")
        for pfn, pages in memory.allocations():
            self._save_bytes(ffi.buffer(memory.ram(pfn), pages * HV_PAGE))
        self._walk(root)

    @property
    def objects(self) -> int:
        """How many Python objects it holds."""
        return len(self._seen)

    def restore(self) -> None:
        """Be as then."""
        for item, items in self._dicts:
            item.clear()
            item.update(items)
        for array, content in self._arrays:
            array[:] = content
        for restore in self._restores:
            restore()
        check(lib.vi_machine_restore(self._machine, self._image, self._size), "machine: cannot be restored")

    # ---- finding everything

    def _walk(self, root: object) -> None:
        todo = [root]
        while todo:
            item = todo.pop()
            if id(item) not in self._seen and not isinstance(item, _FIXED):
                self._seen[id(item)] = item
                todo.extend(self._save(item))

    def _save(self, item: Any) -> Iterator[object]:
        """Save one object, one level deep, and yield what it refers to."""
        if isinstance(item, dict):
            yield from self._save_dict(item)
        elif isinstance(item, list | set | deque | bytearray):
            yield from self._save_container(item)
        elif isinstance(item, tuple | frozenset):
            yield from item
        elif isinstance(item, _CDATA):
            self._save_struct(item)
        elif isinstance(item, types.FunctionType):
            yield from self._save_function(item)
        elif isinstance(item, types.MethodType):
            yield item.__self__
        elif isinstance(item, functools.partial):
            yield from (item.func, item.args, item.keywords)
        elif isinstance(item, random.Random):
            state = item.getstate()
            self._restores.append(lambda: item.setstate(state))
        else:
            yield from self._save_instance(item)

    def _save_dict(self, item: dict[Any, Any]) -> Iterator[object]:
        saved = dict(item)
        self._dicts.append((item, saved))
        yield from saved
        yield from saved.values()

    def _save_container(self, item: Any) -> Iterator[object]:
        saved = item.copy()
        if isinstance(item, list | bytearray):
            self._arrays.append((item, saved))
        else:
            add = item.update if isinstance(item, set) else item.extend

            def restore() -> None:
                item.clear()
                add(saved)

            self._restores.append(restore)
        if not isinstance(item, bytearray):
            yield from saved

    def _save_struct(self, item: Any) -> None:
        """Save a structure that Python owns; what is merely pointed to is the C machine's."""
        if "owning" not in repr(item) or ffi.typeof(item).kind not in ("pointer", "array"):
            return
        self._save_bytes(ffi.buffer(item))

    def _save_bytes(self, memory: Any) -> None:
        self._arrays.append((memory, bytes(memory)))

    def _save_function(self, item: types.FunctionType) -> Iterator[object]:
        for cell in item.__closure__ or ():
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self._restores.append(functools.partial(setattr, cell, "cell_contents", cell.cell_contents))
                yield cell.cell_contents
        yield from item.__defaults__ or ()

    def _save_instance(self, item: Any) -> Iterator[object]:
        kind = type(item)
        slots = [name for base in kind.__mro__ for name in _names(base.__dict__.get("__slots__", ()))]
        if kind.__module__.split(".")[0] not in ("vmbusirq", "collections") and not hasattr(item, "__dict__"):
            raise TypeError(f"a stage cannot be saved: it reaches {kind.__module__}.{kind.__qualname__} {item!r:.80}")
        if isinstance(item, RingMemory):
            item.kept = True
        elif isinstance(item, HostRings):
            self._save_bytes(ffi.buffer(ffi.cast("uint8_t *", item.vsp), lib.vi_vsp_state_bytes()))
        fixed = is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        for name in slots:
            name = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name
            if hasattr(item, name):
                value = getattr(item, name)
                if not fixed:
                    self._restores.append(functools.partial(setattr, item, name, value))
                yield value
        if hasattr(item, "__dict__"):
            yield item.__dict__


def _names(slots: str | tuple[str, ...]) -> tuple[str, ...]:
    return (
        (slots,) if isinstance(slots, str) else tuple(name for name in slots if name not in ("__weakref__", "__dict__"))
    )
