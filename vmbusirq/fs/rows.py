"""The text of /proc/interrupts around its counts: labels, chip names, hwirqs, flow names and action names.

Everything here is bytes that stay as long as nobody is requested, freed, plugged or unplugged; the counts
between prefix and suffix are the renderer's (:mod:`vmbusirq.fs.seq`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vmbusirq._ffi import lib
from vmbusirq.generations import TextLayout

__all__ = [
    "CHIP_WIDTH_MIN",
    "NAMELESS_CHIP",
    "NO_CHIP",
    "IrqText",
    "RowText",
    "cpu_row",
    "header_row",
    "ipi_row",
    "irq_row",
    "irq_suffix",
    "single_row",
    "text_row",
    "to_bytes",
]

LEADING: Final[int] = lib.VI_SEQ_LEADING
TRAILING: Final[int] = lib.VI_SEQ_TRAILING

CHIP_WIDTH_MIN: Final = 8
"""Narrowest field of a chip name, in every generation."""
FLOW_WIDTH: Final = 8
LEVEL_WIDTH: Final = 8
IPI_GAP: Final = 6
"""Blanks between the last cell of an IPI row and its description (arch/arm64/kernel/smp.c)."""
TEXT_ROW_GAP: Final = 14
"""Blanks before the text of a row without counts: FIQ of 32-bit Arm (arch/arm/kernel/fiq.c)."""

NO_CHIP: Final = "None"
"""Chip text of an IRQ without any chip."""
NAMELESS_CHIP: Final = "-"
"""Chip text of an IRQ whose chip has no name."""


def to_bytes(name: str) -> bytes:
    """Return the bytes of a name; names that are not UTF-8 travel as surrogates and come out as they went in."""
    return name.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class RowText:
    """What is printed around the cells of one row; the suffix includes the newline."""

    prefix: bytes
    suffix: bytes
    style: int = LEADING
    """Where a cell has its blank: ``VI_SEQ_LEADING`` or ``VI_SEQ_TRAILING``."""


@dataclass(frozen=True, slots=True)
class IrqText:
    """What the row of an IRQ says after its counts."""

    chip: str
    """Name of the chip, :data:`NO_CHIP`, :data:`NAMELESS_CHIP`, or what the chip prints itself."""
    hwirq: int | None = None
    """None: the IRQ belongs to no domain."""
    level: str | None = None
    """``Level`` or ``Edge``; None where the kernel has no such column (x86)."""
    flow: str | None = None
    """Flow name, ``edge`` or ``fasteoi``; VMBus IRQs have none."""
    actions: tuple[str, ...] = ()
    """Names in the order of the chain; empty for a nameless row."""
    chip_prints: bool = False
    """The chip has irq_print_chip: its text is neither padded nor aligned."""


def header_row(prec: int, cpus: Sequence[int]) -> RowText:
    """Return the header for the online CPUs, with the trailing blanks that belong to it."""
    return RowText(b"", b" " * (prec + 8) + b"".join(b"CPU%-8d" % cpu for cpu in cpus) + b"\n")


def irq_row(layout: TextLayout, prec: int, chip_width: int, irq: int, text: IrqText) -> RowText:
    """Return the row of an IRQ (show_interrupts() in kernel/irq/proc.c)."""
    return RowText(b"%*d:" % (prec, irq), irq_suffix(layout, prec, chip_width, text) + b"\n")


def irq_suffix(layout: TextLayout, prec: int, chip_width: int, text: IrqText) -> bytes:
    """Return what follows the last digit of an IRQ's counts, without the newline."""
    chip = to_bytes(text.chip)
    if text.chip_prints:
        out = b" " * layout.printed_chip_gap + chip
    elif layout.chip_left:
        out = b" " * layout.chip_gap + chip.ljust(chip_width)
    else:
        out = b" " * layout.chip_gap + chip.rjust(CHIP_WIDTH_MIN)
    out += b" " * (layout.no_domain_blanks + prec) if text.hwirq is None else b" %*d" % (prec, text.hwirq)
    if text.level is not None:
        out += b" " + to_bytes(text.level).ljust(LEVEL_WIDTH)
    if text.flow is not None:
        out += b"-" + to_bytes(text.flow).ljust(FLOW_WIDTH)
    if text.actions:
        out += b"  " + b", ".join(map(to_bytes, text.actions))
    return out


def cpu_row(layout: TextLayout, prec: int, label: str, text: str) -> RowText:
    """Return a per-CPU row of x86 (arch_show_interrupts() in arch/x86/kernel/irq.c)."""
    return RowText(to_bytes(label).rjust(prec) + b":", b" " * layout.text_gap + to_bytes(text) + b"\n")


def ipi_row(prec: int, number: int, text: str) -> RowText:
    """Return an IPI row of arm64 (show_ipi_list() in arch/arm64/kernel/smp.c)."""
    prefix = b"IPI".rjust(prec - 1) + b"%d:" % number + (b" " if prec >= 4 else b"")
    return RowText(prefix, b" " * IPI_GAP + to_bytes(text) + b"\n", TRAILING)


def single_row(prec: int, label: str) -> RowText:
    """Return a row with one number and nothing else: ERR and MIS of x86, Err of arm64."""
    return RowText(to_bytes(label).rjust(prec) + b":", b"\n")


def text_row(prec: int, label: str, text: str) -> RowText:
    """Return a row without counts: FIQ of 32-bit Arm."""
    return RowText(to_bytes(label).rjust(prec) + b":", b" " * TEXT_ROW_GAP + to_bytes(text) + b"\n")
