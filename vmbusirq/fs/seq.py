"""Counters to text: the C renderer over a table whose text is laid out once and whose counters stay live."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, check
from vmbusirq.fs import rows as text
from vmbusirq.generations import Generation

__all__ = [
    "SIMD_BEST",
    "Counts",
    "CpuRow",
    "IpiRow",
    "IrqRow",
    "Row",
    "SeqRow",
    "SeqTable",
    "SingleRow",
    "TextRow",
    "interrupts_table",
]

SIMD_BEST: Final[int] = lib.VI_SIMD_BEST

Buffer = bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Counts:
    """Where the counters of one row are: uint32, the one of column i at ``pointer[index(i) * stride]``.

    The index of a column is its CPU id in a live table, its position in a saved one.
    """

    pointer: Any
    """cffi ``uint32_t *``; a pointer into a machine's memory does not keep the machine alive."""
    stride: int
    """Elements from one index to the next; 0 for one counter that belongs to no CPU."""
    owner: object = None
    """Whatever must live as long as the counters are read."""

    @classmethod
    def of(cls, values: memoryview) -> Counts:
        """Return counters that lie one after the other in a view of uint32, which is kept alive and not copied.

        The pointer is taken and the export given back at once: the garbage collector of CPython 3.11 crashes on a
        cycle that holds a memoryview together with a lasting ``from_buffer`` of it.
        """
        with ffi.from_buffer("uint32_t[]", values) as exported:
            return cls(ffi.cast("uint32_t *", exported), 1, values)


@dataclass(frozen=True, slots=True)
class SeqRow:
    """One row as the renderer takes it: text, and cells between prefix and suffix."""

    text: text.RowText
    cells: int = 0
    counts: Counts | None = None


class SeqTable:
    """A table ready to be rendered any number of times; rendering costs one call into C.

    The text is laid out by the constructor and counters are read by each rendering, so a table stays right while
    interrupts run and must be made anew when a row, a name or the set of online CPUs changes. It may be rendered
    from several threads.
    """

    __slots__ = ("_buffer", "_keep", "_lock", "_table", "size")

    size: int
    """Bytes of one rendering, exactly; counters do not change it."""

    def __init__(self, rows: Sequence[SeqRow], index: Sequence[int] | None = None, owner: object = None) -> None:
        """Lay out a table.

        Args:
            rows: in the order of the text, header included.
            index: what column i is to :class:`Counts`; None: i.
            owner: whatever must live as long as the counters are read.
        """
        blob = ffi.from_buffer("char[]", b"".join(part for row in rows for part in (row.text.prefix, row.text.suffix)))
        c_rows = ffi.new("struct vi_seq_row[]", len(rows))
        offset = 0
        for out, row in zip(c_rows, rows, strict=True):
            out.text_off = offset
            out.prefix_len = len(row.text.prefix)
            out.suffix_len = len(row.text.suffix)
            out.style = row.text.style
            offset += out.prefix_len + out.suffix_len
            if row.counts is not None:
                out.cells = row.cells
                out.counts = row.counts.pointer
                out.stride = row.counts.stride
        columns = ffi.NULL if index is None else ffi.new("uint32_t[]", list(index))
        self._table = ffi.new("struct vi_seq_table *")
        self._table.rows = c_rows
        self._table.nr_rows = len(rows)
        self._table.text = blob
        self._table.text_len = offset
        self._table.index = columns
        self._table.nr_index = 0 if index is None else len(index)
        self._keep = (blob, c_rows, columns, [row.counts for row in rows], owner)
        self._lock = threading.Lock()
        self._buffer: Any = None
        self.size = check(lib.vi_seq_size(self._table), "table of text: a row has cells without counts or suffix")

    @property
    def c_table(self) -> Any:
        """The ``struct vi_seq_table *`` of this table, valid as long as the table lives."""
        return self._table

    def render(self, simd: int = SIMD_BEST) -> bytes:
        """Return the text, with vectors up to ``simd``.

        Raises:
            IrqError(EOPNOTSUPP): this CPU lacks the vectors.
            IrqError(EINVAL): no such level.
        """
        with self._lock:
            if self._buffer is None:
                self._buffer = ffi.new("char[]", self.size or 1)
            self._render(self._buffer, self.size, simd)
            return bytes(ffi.buffer(self._buffer, self.size))

    def render_into(self, buffer: Buffer, simd: int = SIMD_BEST) -> int:
        """Write the text into a buffer of the caller's and return its length.

        Raises:
            IrqError(ENOSPC): the buffer is smaller than :attr:`size`.
            IrqError(EOPNOTSUPP): this CPU lacks the vectors.
            IrqError(EINVAL): no such level.
        """
        with ffi.from_buffer(buffer, require_writable=True) as target:
            return self._render(target, len(target), simd)

    def _render(self, target: Any, room: int, simd: int) -> int:
        result = int(lib.vi_seq_render(self._table, simd, target, room))
        if result == -errno.ENOSPC:
            raise IrqError(
                errno.ENOSPC, f"cannot render {self.size} bytes into a buffer of {room} (ENOSPC); see SeqTable.size"
            )
        return check(result, f"cannot render with vector level {simd}: this CPU lacks it or it does not exist")


@dataclass(frozen=True, slots=True)
class IrqRow:
    """A row of an IRQ."""

    irq: int
    text: text.IrqText
    counts: Counts
    cells: int | None = None
    """Numbers in the row; None: one per column of the header."""


@dataclass(frozen=True, slots=True)
class CpuRow:
    """A per-CPU row of the architecture, as x86 has them."""

    label: str
    text: str
    counts: Counts
    cells: int | None = None


@dataclass(frozen=True, slots=True)
class IpiRow:
    """An IPI row, as arm64 has them."""

    number: int
    text: str
    counts: Counts
    cells: int | None = None


@dataclass(frozen=True, slots=True)
class SingleRow:
    """A row with one number: ERR, MIS, Err."""

    label: str
    value: Counts | int
    """One live counter (stride 0), or the number itself, which may need 64 bits (Err of arm64)."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row without numbers: FIQ of 32-bit Arm."""

    label: str
    text: str


Row = IrqRow | CpuRow | IpiRow | SingleRow | TextRow


def interrupts_table(
    generation: Generation,
    prec: int,
    cpus: Sequence[int],
    rows: Sequence[Row],
    *,
    chip_width: int = text.CHIP_WIDTH_MIN,
    live: bool = True,
    owner: object = None,
) -> SeqTable:
    """Lay out /proc/interrupts for one state of a machine.

    Args:
        generation: whose text; which rows to show is the caller's (see :meth:`Generation.shows`).
        prec: width of the number column, from :meth:`Generation.prec`.
        cpus: online CPU ids, ascending.
        rows: in the order of the file, without the header.
        chip_width: longest chip name ever set on any descriptor, for generations that remember it.
        live: counters are indexed by CPU id; else by column, as in a saved table.
        owner: whatever must live as long as the counters are read.
    See: show_interrupts() in kernel/irq/proc.c.
    """
    names = (len(text.to_bytes(row.text.chip)) for row in rows if isinstance(row, IrqRow) and not row.text.chip_prints)
    width = max(text.CHIP_WIDTH_MIN, chip_width, *names)
    laid_out = [SeqRow(text.header_row(prec, cpus))]
    laid_out += [_lay_out(row, generation, prec, len(cpus), width) for row in rows]
    return SeqTable(laid_out, cpus if live else None, owner)


def _lay_out(row: Row, generation: Generation, prec: int, columns: int, chip_width: int) -> SeqRow:
    match row:
        case SingleRow(label, Counts() as counter):
            return SeqRow(text.single_row(prec, label), 1, counter)
        case SingleRow(label, int() as number):
            around = text.single_row(prec, label)
            return SeqRow(text.RowText(around.prefix + b" %10d" % number, around.suffix))
        case TextRow(label, words):
            return SeqRow(text.text_row(prec, label, words))
        case IrqRow(irq, words, counts, cells):
            around = text.irq_row(generation.layout, prec, chip_width, irq, words)
        case CpuRow(label, words, counts, cells):
            around = text.cpu_row(generation.layout, prec, label, words)
        case IpiRow(number, words, counts, cells):
            around = text.ipi_row(prec, number, words)
    return SeqRow(around, columns if cells is None else cells, counts)
