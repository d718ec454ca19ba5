"""Actions: who is called when an interrupt comes (struct irqaction, v6.10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbusirq._ffi import ffi, lib

if TYPE_CHECKING:
    from vmbusirq.irq.callbacks import Owner
    from vmbusirq.irq.desc import IrqDesc

__all__ = ["CHandler", "IrqAction", "same_cookie"]

ACTION_DIR_NAME_MAX: Final = 127  # MAX_NAMELEN - 1, kernel/irq/proc.c


@dataclass(frozen=True, slots=True)
class CHandler:
    """A handler in C that knows by itself what to put into a ``struct vi_irqaction``.

    Attributes:
        bind: gets the ``struct vi_irqaction *`` before it is installed and fills in handler and dev_id; gets NULL when
            that struct is no longer installed and must be forgotten.
    """

    bind: Callable[[Any], None]


class IrqAction:
    """One handler on an IRQ (struct irqaction).

    Attributes:
        desc: the IRQ.
        handler: a Python callable, a ``vi_handler_t`` or a :class:`CHandler`.
        dev_id: the cookie that free_irq names it by.
        percpu_dev_id: one cookie per CPU, None for an ordinary IRQ.
        name: shown in /proc/interrupts; None for none.
        batched: the handler takes an IrqBatch and returns one irqreturn each.
        has_dir: it owns the directory /proc/irq/N/NAME.
        c: the ``struct vi_irqaction *``; lives as long as this object.
    """

    __slots__ = (
        "_keep",
        "batched",
        "c",
        "desc",
        "dev_id",
        "handler",
        "has_dir",
        "name",
        "owner",
        "percpu_dev_id",
        "wake_warned",
        "woke_thread",
    )

    def __init__(
        self,
        desc: IrqDesc,
        handler: Any,
        flags: int,
        name: str | None,
        dev_id: Any,
        percpu_dev_id: Sequence[Any] | None = None,
        batched: bool = False,
    ) -> None:
        self.desc = desc
        self.owner: Owner = desc.table.owner
        self.handler = handler
        self.name = name
        self.dev_id = dev_id
        self.percpu_dev_id = percpu_dev_id
        self.batched = batched
        self.has_dir = False
        self.woke_thread = False
        self.wake_warned = False
        self.c = ffi.new("struct vi_irqaction *")
        self.c.flags = flags
        self._keep: Any = None

    @property
    def flags(self) -> int:
        """The IRQF_* bits, with what the core has added."""
        return int(self.c.flags)

    @property
    def dir_name(self) -> str:
        """The name as a directory: cut at 127 bytes."""
        return (self.name or "").encode()[:ACTION_DIR_NAME_MAX].decode(errors="ignore")

    def bind(self) -> None:
        """Tell C what to call."""
        if isinstance(self.handler, CHandler):
            self.handler.bind(self.c)
        elif isinstance(self.handler, ffi.CData):
            self.c.handler = self.handler
            self.c.dev_id = ffi.NULL if self.dev_id is None else self.dev_id
            if self.percpu_dev_id is not None:
                self._keep = ffi.new("void *[]", list(self.percpu_dev_id))
                self.c.percpu_dev_id = self._keep
        else:
            self._keep = ffi.new_handle(self)
            self.c.handler = lib.vi_py_handler
            self.c.dev_id = self._keep
            self.c.batched = self.batched
            self.c.exact = not self.batched

    def unbind(self) -> None:
        """Let go of what C was told."""
        if isinstance(self.handler, CHandler):
            self.handler.bind(ffi.NULL)
        self._keep = None


def same_cookie(one: Any, other: Any) -> bool:
    """Return True if two dev_id are the same object, or equal numbers, strings or C pointers."""
    return one is other or (type(one) is type(other) and isinstance(one, int | str | ffi.CData) and bool(one == other))
