"""Interrupt controllers: what each can do, in Python callables or in nothing at all (struct irq_chip, v6.10).

A callback that does nothing still matters: without ``irq_mask`` and ``irq_unmask`` an IRQ stays MASKED in its state for
ever. Such a callback is :func:`nop`; the core then never leaves C for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from vmbusirq._ffi import ffi, lib
from vmbusirq.steps import Steps

if TYPE_CHECKING:
    from vmbusirq.irq.desc import IrqDesc

__all__ = ["DUMMY_IRQ_CHIP", "NO_IRQ_CHIP", "IrqChip", "nop"]

ChipOp: TypeAlias = "Callable[[IrqDesc, int], object]"  # descriptor and the CPU it runs on
SetAffinity: TypeAlias = "Callable[[IrqDesc, int, bool], int | Steps[int]]"
SetType: TypeAlias = "Callable[[IrqDesc, int], int]"
ResourceOp: TypeAlias = "Callable[[IrqDesc], object]"
PrintChip: TypeAlias = "Callable[[IrqDesc], str]"

_OPS: Final[dict[str, int]] = {
    "irq_ack": lib.VI_CHIP_ACK,
    "irq_eoi": lib.VI_CHIP_EOI,
    "irq_mask": lib.VI_CHIP_MASK,
    "irq_unmask": lib.VI_CHIP_UNMASK,
    "irq_mask_ack": lib.VI_CHIP_MASK_ACK,
    "irq_enable": lib.VI_CHIP_ENABLE,
    "irq_disable": lib.VI_CHIP_DISABLE,
    "irq_startup": lib.VI_CHIP_STARTUP,
    "irq_shutdown": lib.VI_CHIP_SHUTDOWN,
    "irq_retrigger": lib.VI_CHIP_RETRIGGER,
}


_OP_NAMES: Final = {bit: name for name, bit in _OPS.items()}


def nop(desc: IrqDesc, cpu: int) -> None:
    """Do nothing: the callback exists, and that is all."""


@dataclass(frozen=True, slots=True, eq=False)
class IrqChip:
    """One kind of interrupt controller.

    Attributes:
        name: shown in /proc/interrupts; None for a chip without one.
        irq_set_affinity: (desc, mask, force) with ``mask`` already cut to online CPUs unless forced. Sets the effective
            mask and returns IRQ_SET_MASK_OK, _NOCOPY or _DONE, or raises IrqError; may be a step generator doing that.
        irq_set_type: (desc, IRQ_TYPE_* bits), returns as above.
        irq_request_resources, irq_release_resources: called before the first and after the last action.
        irq_print_chip: text for /proc/interrupts instead of the name.
        irq_ack ... irq_retrigger: (desc, cpu). They run under the descriptor's lock and may not call the core.
        eoi_if_handled, oneshot_safe: IRQCHIP_EOI_IF_HANDLED, IRQCHIP_ONESHOT_SAFE.
        affinity_pre_startup: IRQCHIP_AFFINITY_PRE_STARTUP.
        move_deferred: IRQCHIP_MOVE_DEFERRED, which since 6.14 says what the lack of IRQ_MOVE_PCNTXT said before.
    """

    name: str | None
    irq_set_affinity: SetAffinity | None = None
    irq_set_type: SetType | None = None
    irq_request_resources: ResourceOp | None = None
    irq_release_resources: ResourceOp | None = None
    irq_print_chip: PrintChip | None = None
    irq_ack: ChipOp | None = None
    irq_eoi: ChipOp | None = None
    irq_mask: ChipOp | None = None
    irq_unmask: ChipOp | None = None
    irq_mask_ack: ChipOp | None = None
    irq_enable: ChipOp | None = None
    irq_disable: ChipOp | None = None
    irq_startup: ChipOp | None = None
    irq_shutdown: ChipOp | None = None
    irq_retrigger: ChipOp | None = None
    eoi_if_handled: bool = False
    oneshot_safe: bool = False
    affinity_pre_startup: bool = False
    move_deferred: bool = False
    c: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the C side of the chip, which must live as long as any descriptor that uses it."""
        ops = {bit: getattr(self, name) for name, bit in _OPS.items() if getattr(self, name) is not None}
        chip = ffi.new("struct vi_irq_chip *")
        chip.ops = sum(ops)
        chip.flags = (lib.VI_CHIP_EOI_IF_HANDLED if self.eoi_if_handled else 0) | (
            lib.VI_CHIP_ONESHOT_SAFE if self.oneshot_safe else 0
        )
        if any(op is not nop for op in ops.values()):
            chip.call = lib.vi_py_chip_call
        object.__setattr__(self, "c", chip)

    def op(self, bit: int) -> ChipOp:
        """Return the callback behind one enum vi_chip_op bit."""
        callback: ChipOp = getattr(self, _OP_NAMES[bit]) or nop
        return callback


NO_IRQ_CHIP: Final = IrqChip("none", irq_ack=nop, irq_enable=nop, irq_disable=nop, irq_startup=nop, irq_shutdown=nop)
DUMMY_IRQ_CHIP: Final = IrqChip(
    "dummy",
    irq_ack=nop,
    irq_mask=nop,
    irq_unmask=nop,
    irq_enable=nop,
    irq_disable=nop,
    irq_startup=nop,
    irq_shutdown=nop,
)
