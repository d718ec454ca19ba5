"""All that a stage is, as values that can be compared: Python's part by its paths, and C's as bytes."""

from __future__ import annotations

import errno
import functools
import random
import types
from collections import deque
from collections.abc import Iterator
from typing import Any
from weakref import ReferenceType

from vmbusirq._ffi import ffi, lib
from vmbusirq.host.rings import HostRings
from vmbusirq.hyperv.memory import HV_PAGE
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.log import Log


def image(stage: Stage) -> bytes:
    """Return the machine as C saves it, nothing while a CPU is in an interrupt; an entropy pool has the time in it."""
    size = lib.vi_machine_save(stage.core.handle, ffi.NULL, 0)
    if size == -errno.EBUSY:
        return b""
    buffer = ffi.new("uint64_t[]", size // 8 + 1)
    assert size == lib.vi_machine_save(stage.core.handle, buffer, size)
    return bytes(ffi.buffer(buffer))


def guest_memory(stage: Stage) -> dict[int, bytes]:
    """Return the guest's pages that are in use, rings included, by the first page of each allocation."""
    memory = stage.partition.memory
    return {pfn: bytes(ffi.buffer(memory.ram(pfn), pages * HV_PAGE)) for pfn, pages in memory.allocations()}


def objects(stage: Stage, *, log: bool = False) -> dict[str, str]:
    """Return every value that can be reached from a stage by Python, by its path; without the log if order is none."""
    return dict(_walk(stage, log))


def _walk(root: object, log: bool) -> Iterator[tuple[str, str]]:
    seen: dict[int, str] = {}
    keep = []
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        path, item = todo.pop()
        if _is_atom(item):
            yield path, repr(item)
        elif id(item) in seen:
            yield path, f"see {seen[id(item)]}"
        elif not isinstance(item, Log) or log:
            seen[id(item)] = path
            keep.append(item)
            atom, parts = _parts(item)
            yield path, atom
            todo.extend((f"{path}{name}", part) for name, part in reversed(parts))


def _is_atom(item: object) -> bool:
    return item is None or isinstance(item, int | float | str | bytes | type | types.ModuleType | ReferenceType)


def _parts(item: Any) -> tuple[str, list[tuple[str, Any]]]:
    """Return a value of an object's own, and what it refers to, by name."""
    kind = type(item).__name__
    if isinstance(item, dict):
        plain = sorted(item, key=repr) if all(map(_is_atom, item)) else list(item)
        return f"{kind} of {len(item)}", [(f"[{key!r:.40}]", item[key]) for key in plain]
    if isinstance(item, set | frozenset):
        return f"{kind} {sorted(map(repr, item)) if all(map(_is_atom, item)) else len(item)}", []
    if isinstance(item, list | tuple | deque):
        return f"{kind} of {len(item)}", [(f"[{at}]", part) for at, part in enumerate(item)]
    if isinstance(item, bytearray):
        return repr(item), []
    if isinstance(item, ffi.CData):
        owned = "owning" in repr(item) and ffi.typeof(item).kind in ("pointer", "array")
        return bytes(ffi.buffer(item)).hex() if owned else str(ffi.typeof(item)), []
    if isinstance(item, types.FunctionType):
        cells = [(f".{name}", cell.cell_contents) for name, cell in _cells(item)]
        return item.__qualname__, [*cells, *((f".default{at}", it) for at, it in enumerate(item.__defaults__ or ()))]
    if isinstance(item, types.MethodType):
        return item.__qualname__, [(".self", item.__self__)]
    if isinstance(item, functools.partial):
        return kind, [(".func", item.func), (".args", item.args), (".keywords", item.keywords)]
    if isinstance(item, random.Random):
        return str(hash(item.getstate())), []
    own = bytes(ffi.buffer(ffi.cast("uint8_t *", item.vsp), lib.vi_vsp_state_bytes())) if _is_rings(item) else b""
    return f"{kind} {own.hex()}", [(f".{name}", getattr(item, name)) for name in _attributes(item)]


def _is_rings(item: object) -> bool:
    return isinstance(item, HostRings) and not item.vsp == ffi.NULL


def _cells(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    yield from zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _attributes(item: Any) -> list[str]:
    names = set(getattr(item, "__dict__", {}))
    for base in type(item).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            if name not in ("__weakref__", "__dict__") and hasattr(item, mangled):
                names.add(mangled)
    return sorted(names)
