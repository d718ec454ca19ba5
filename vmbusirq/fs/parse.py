"""The strict reader of /proc/interrupts: any generation, any size, and an exact place for every complaint."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vmbusirq._ffi import ffi, lib
from vmbusirq.fs import seq
from vmbusirq.fs.rows import CHIP_WIDTH_MIN, LEADING, TRAILING, IrqText
from vmbusirq.fs.split import STRANGE, Reading, doubt, from_bytes, split_loose, split_strict
from vmbusirq.generations import GENERATIONS, Generation, TextLayout

__all__ = ["InterruptsRow", "InterruptsTable", "Notice", "ParseError", "RowKind", "parse_interrupts"]

RowKind = Literal["irq", "cpu", "ipi", "single", "text"]

COUNT_MAX: Final = 2**32 - 1
SINGLE_MAX: Final = 2**64 - 1
CPU_ID_MAX: Final = 2**31 - 1
PREC_MIN: Final = 3
PREC_MAX: Final = 10
EXCERPT: Final = 24
"""Bytes of the file that a message quotes."""

SINGLES: Final = frozenset(("ERR", "MIS", "Err", "BAD"))
"""Rows with one number however many CPUs there are: x86 and others, arm64, older powerpc."""
TEXT_ONLY: Final = frozenset(("FIQ",))
"""Rows without numbers: 32-bit Arm."""

LAYOUTS: Final = tuple({known.layout.name: known.layout for known in GENERATIONS.values()}.values())

_WORD = re.compile(rb"\S+")
_CPU = re.compile(rb"CPU(0|[1-9]\d{0,9})")
_LABEL = re.compile(rb"[ \t]*([^\s:]+):")
_IPI = re.compile(rb"IPI(0|[1-9]\d{0,8})")


class ParseError(ValueError):
    """The text is not a /proc/interrupts: what was expected and what is there, with line and column from 1."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(f"{line}:{column}: {message}")
        self.line = line
        self.column = column
        self.message = message


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a reader should know about a file that was read all the same."""

    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.message}"


@dataclass(frozen=True, slots=True)
class InterruptsRow:
    """One row of the file."""

    label: str
    """What stands before the colon, without blanks."""
    kind: RowKind
    """``irq`` (a number), ``cpu`` (NMI, LOC, …), ``ipi`` (IPI0, …), ``single`` (ERR, MIS, Err), ``text`` (FIQ)."""
    counts: Sequence[int]
    """The numbers of the row in the order of the columns; a read-only memoryview of uint32, a tuple in a ``single``."""
    irq: IrqText | None = None
    """What the row of an IRQ says after its counts."""
    text: str = ""
    """Description of any other row."""

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain dicts, lists, strings and numbers."""
        out: dict[str, Any] = {"label": self.label, "kind": self.kind, "counts": list(self.counts)}
        if self.irq is None:
            if self.kind != "single":
                out["text"] = self.text
            return out
        out |= {"irq": int(self.label), "chip": self.irq.chip, "hwirq": self.irq.hwirq, "level": self.irq.level}
        return out | {"flow": self.irq.flow, "actions": list(self.irq.actions)}


@dataclass(frozen=True, slots=True)
class InterruptsTable:
    """A whole /proc/interrupts."""

    cpus: tuple[int, ...]
    """CPU ids of the columns, ascending, not necessarily without gaps."""
    prec: int
    """Width of the number column."""
    rows: tuple[InterruptsRow, ...]
    exact: bool
    """:meth:`render` gives the bytes that were read."""
    generations: tuple[str, ...]
    """Names of the kernel generations that may have printed an exact table, oldest first."""
    notices: tuple[Notice, ...]
    layout: TextLayout
    """The layout that the table was read with."""
    chip_width: int = CHIP_WIDTH_MIN
    """Width of the chip field, where the layout lets it grow."""

    def render(self, generation: Generation | None = None) -> bytes:
        """Return the table as text, as a generation prints it; by default in the layout it was read with."""
        if generation is None:
            generation = next(known for known in GENERATIONS.values() if known.layout is self.layout)
            prec, width = self.prec, self.chip_width
        else:
            prec, width = max(self.prec, generation.prec_floor), CHIP_WIDTH_MIN
        rows = [_printable(row, prec) for row in self.rows]
        return seq.interrupts_table(generation, prec, self.cpus, rows, chip_width=width, live=False).render()

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain dicts, lists, strings and numbers."""
        return {
            "cpus": list(self.cpus),
            "prec": self.prec,
            "exact": self.exact,
            "generations": list(self.generations),
            "notices": [
                {"line": notice.line, "column": notice.column, "message": notice.message} for notice in self.notices
            ],
            "rows": [row.to_json() for row in self.rows],
        }


def _printable(row: InterruptsRow, prec: int) -> seq.Row:
    if row.kind == "single":
        return seq.SingleRow(row.label, row.counts[0])
    if row.kind == "text":
        return seq.TextRow(row.label, row.text)
    assert isinstance(row.counts, memoryview)
    counts = seq.Counts.of(row.counts)
    if row.irq is not None:
        return seq.IrqRow(int(row.label), row.irq, counts, len(row.counts))
    if row.kind == "ipi":
        return seq.IpiRow(int(row.label[3:]), row.text, counts, len(row.counts))
    return seq.CpuRow(row.label, row.text, counts, len(row.counts))


@dataclass(slots=True)
class _Line:
    """One row on its way: its place in the file, and the ways to read what follows the counts."""

    line: int
    label: str
    kind: RowKind
    counts: Sequence[int]
    column: int
    """Where ``rest`` begins."""
    rest: bytes
    readings: Mapping[str, Sequence[Reading]] = field(default_factory=dict)
    """By name of the layout; rows without an IRQ have none."""


def parse_interrupts(data: bytes) -> InterruptsTable:
    """Read the whole of a /proc/interrupts, of this machine or another, of any generation.

    A table that a known generation printed is ``exact``: printing it gives the same bytes. One that was printed
    by an older kernel or another architecture, or whose blanks were changed on the way, is read when there is only
    one way to understand it, and says in ``notices`` where it departs.

    Raises:
        ParseError: anything else, a file that ends within a row included.
    """
    if b"\0" in data:
        line, column = _place(data, data.index(b"\0"))
        raise ParseError(line, column, "expected text, found a NUL byte")
    lines = _lines(data)
    _, first = next(lines)
    cpus = _parse_header(first)
    prec = len(first) - len(first.lstrip(b" ")) - 8
    reader = _Reader(data, cpus, prec if PREC_MIN <= prec <= PREC_MAX else PREC_MIN)
    rows = [reader.parse(number, start, line) for number, (start, line) in enumerate(lines, start=2)]
    layouts, shape = _matching_layouts(rows)
    layout = layouts[0] if layouts else _likeliest_layout(rows)
    finished = tuple(_finish(row, layout if layouts else None, shape) for row in rows)
    table = InterruptsTable(cpus, reader.prec, finished, False, (), (), layout, shape.width)
    printed = table.render()
    exact = printed == data
    notices = [*reader.notices] if exact else [*reader.notices, _first_difference(data, printed)]
    names = tuple(name for name, known in GENERATIONS.items() if exact and _could_print(known, layouts, table))
    return InterruptsTable(cpus, reader.prec, table.rows, exact, names, tuple(notices), layout, shape.width)


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line without its end) of the file; raise at a last line that has no end.

    Lines end with CR LF if the header does: such a file went through another system.
    """
    start, number, crlf = 0, 1, False
    while start < len(data) or number == 1:
        end = data.find(b"\n", start)
        if end < 0:
            what = "the file is empty" if not data else "the file ends here"
            wanted = "the header ('CPU0 ...')" if number == 1 else "the rest of the row and a newline"
            raise ParseError(number, len(data) - start + 1, f"expected {wanted}, but {what}")
        line = data[start:end]
        if number == 1 and line.endswith(b"\r"):
            crlf = True
        yield start, line.removesuffix(b"\r") if crlf else line
        start, number = end + 1, number + 1


def _place(data: bytes, offset: int) -> tuple[int, int]:
    before = data[:offset]
    return before.count(b"\n") + 1, offset - (before.rfind(b"\n") + 1) + 1


def _quote(rest: bytes) -> str:
    """Return the beginning of some text as a message shows it."""
    words = rest.strip()
    if not words:
        return "the end of the line"
    return ascii(from_bytes(words[:EXCERPT])) + ("…" if len(words) > EXCERPT else "")


def _parse_header(line: bytes) -> tuple[int, ...]:
    cpus: list[int] = []
    for word in _WORD.finditer(line):
        match = _CPU.fullmatch(word[0])
        if not match or int(match[1]) > CPU_ID_MAX:
            raise ParseError(1, word.start() + 1, f"expected 'CPU' and a number, found {_quote(word[0])}")
        cpu = int(match[1])
        if cpus and cpu <= cpus[-1]:
            raise ParseError(1, word.start() + 1, f"expected a CPU above {cpus[-1]}, found 'CPU{cpu}'")
        cpus.append(cpu)
    if not cpus:
        raise ParseError(1, len(line) + 1, f"expected the header ('CPU0 ...'), found {_quote(line)}")
    if len(cpus) > lib.VI_SEQ_CELLS_MAX:
        raise ParseError(1, 1, f"expected at most {lib.VI_SEQ_CELLS_MAX} CPUs, found {len(cpus)}")
    return tuple(cpus)


class _Reader:
    """Reads row after row of one file; counts of all rows lie in one buffer, which the rows' views keep alive."""

    def __init__(self, data: bytes, cpus: tuple[int, ...], prec: int) -> None:
        self.cpus = cpus
        self.prec = prec
        self.notices: list[Notice] = []
        self._data = ffi.from_buffer("char[]", data)
        memory = bytearray(4 * (len(data) // 10 + 1))
        self._counts = memoryview(memory).cast("I")
        self._c_counts = ffi.from_buffer("uint32_t[]", memory)
        self._used = 0
        self._first_line: dict[int, int] = {}

    def parse(self, number: int, start: int, line: bytes) -> _Line:
        """Read one row: line ``number`` of the file, ``start`` bytes into it."""
        match = _LABEL.match(line)
        if not match:
            column = len(line) - len(line.lstrip()) + 1
            raise ParseError(number, column, f"expected a row label and a colon, found {_quote(line)}")
        label, after = from_bytes(match[1]), match.end()
        kind: RowKind = "irq" if match[1].isdigit() else "ipi" if _IPI.fullmatch(match[1]) else "cpu"
        if kind == "irq":
            self._check_irq(number, match.start(1) + 1, label)
        if label in TEXT_ONLY and not line[after:].lstrip()[:1].isdigit():
            return _Line(number, label, "text", (), after, line[after:])
        counts, end = self._cells(start, line, after, TRAILING if kind == "ipi" and self.prec < 4 else LEADING)
        if len(counts) < len(self.cpus) or (label in SINGLES and len(counts) == 1):
            if label in SINGLES and _WORD.match(line[after:].strip()) and len(line[after:].split()) == 1:
                return self._single(number, label, line, after)
            counts, end = self._words(number, line, after, kind)
        if len(counts) > len(self.cpus):
            many = f"row {label} has {len(counts)} counts for {len(self.cpus)} CPUs"
            self.notices.append(Notice(number, after + 1, many))
        out = _Line(number, label, kind, counts, end, line[end:])
        if kind == "irq":
            self._split(out)
        return out

    def _check_irq(self, number: int, column: int, label: str) -> None:
        if len(label) > PREC_MAX or int(label) > CPU_ID_MAX:
            raise ParseError(number, column, f"expected an IRQ number up to {CPU_ID_MAX}, found '{label[:EXCERPT]}'")
        seen = self._first_line.setdefault(int(label), number)
        if seen != number:
            raise ParseError(number, column, f"expected each IRQ once, but {label} has a row on line {seen} already")

    def _cells(self, start: int, line: bytes, after: int, style: int) -> tuple[memoryview, int]:
        """Read the cells that stand where the kernel puts them. Return them and the column after the last."""
        room = min(len(self._counts) - self._used, lib.VI_SEQ_CELLS_MAX)
        n = lib.vi_seq_scan(self._data + start + after, len(line) - after, style, room, self._c_counts + self._used)
        cells = self._counts[self._used : self._used + n].toreadonly()
        end = after + n * lib.VI_SEQ_CELL - (style == TRAILING and n > 0)
        if n >= len(self.cpus):
            self._used += n
        return cells, end

    def _words(self, number: int, line: bytes, after: int, kind: RowKind) -> tuple[memoryview, int]:
        """Read the numbers of a row whose cells are out of place: as many as there are CPUs, at least."""
        found = array("I")
        ends = [after]
        position = after
        while match := _WORD.search(line, position):
            if not match[0].isdigit():
                break
            if len(match[0]) > 20 or int(match[0]) > COUNT_MAX:
                wanted = f"expected a count up to {COUNT_MAX}, found {_quote(match[0])}"
                raise ParseError(number, match.start() + 1, wanted)
            found.append(int(match[0]))
            ends.append(match.end())
            position = match.end()
        columns = len(self.cpus)
        if len(found) < columns:
            rest = line[position:]
            column = len(line) - len(rest.lstrip()) + 1
            wanted = f"expected count {len(found) + 1} of {columns}, of CPU{self.cpus[len(found)]}"
            raise ParseError(number, column, f"{wanted}, found {_quote(rest)}")
        if len(found) > columns and kind == "irq":
            longer = split_loose(line[position:])
            if longer is None or (longer.hwirq is None and longer.flow is None):
                del found[columns:]  # a chip name of digits, not one more count
        return memoryview(found).toreadonly(), ends[len(found)]

    def _single(self, number: int, label: str, line: bytes, after: int) -> _Line:
        word = line[after:].strip()
        column = line.index(word, after) + 1
        if not word.isdigit() or len(word) > 20 or int(word) > SINGLE_MAX:
            raise ParseError(number, column, f"expected one number up to {SINGLE_MAX}, found {_quote(word)}")
        return _Line(number, label, "single", (int(word),), len(line), b"")

    def _split(self, row: _Line) -> None:
        if not row.rest.strip():
            raise ParseError(row.line, row.column + 1, "expected a chip name, found the end of the line")
        readings = {layout.name: split_strict(layout, self.prec, row.rest) for layout in LAYOUTS}
        if not any(readings.values()) and split_loose(row.rest) is None:
            column = row.column + len(row.rest) - len(row.rest.lstrip()) + 1
            raise ParseError(row.line, column, f"expected a chip name, found {_quote(row.rest)}")
        row.readings = readings


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the IRQ rows of one table have in common."""

    width: int = CHIP_WIDTH_MIN
    """Of the chip field."""
    levels: bool = False
    """There is a level column: a matter of the kernel's configuration, so it is in all rows or in none."""

    def pick(self, options: Sequence[Reading]) -> IrqText:
        """Return the likeliest reading of a row that can be in such a table."""
        return next(
            text for width, text in options if width in (None, self.width) and (text.level is not None) == self.levels
        )


def _matching_layouts(rows: Sequence[_Line]) -> tuple[list[TextLayout], _Shape]:
    """Return the likeliest layouts that explain every row, and the shape that the table has in them."""
    found = []
    for layout in LAYOUTS:
        if all(_explains(layout, row) for row in rows):
            shapes = _shapes(layout, [row.readings[layout.name] for row in rows if row.kind == "irq"])
            if shapes:
                found.append((*min(shapes), layout))
    if not found:
        return [], _Shape()
    least, likeliest_levels, _, _ = min(found, key=lambda entry: entry[:2])
    likeliest = [
        (width, layout) for doubts, levels, width, layout in found if (doubts, levels) == (least, likeliest_levels)
    ]
    return [layout for _, layout in likeliest], _Shape(max(width for width, _ in likeliest), likeliest_levels)


def _shapes(layout: TextLayout, rows: Sequence[Sequence[Reading]]) -> list[tuple[float, bool, int]]:
    """Return the shapes that a layout can give to a table of these rows: (how doubtful it is, levels, chip width)."""
    costs = []
    for options in rows:
        cost: dict[tuple[int | None, bool], int] = {}
        for width, text in reversed(options):
            cost[width, text.level is not None] = doubt(layout, text)
        costs.append(cost)
    seen = {fit for cost in costs for fit in cost}
    widths = {width for width, _ in seen if width is not None} or {CHIP_WIDTH_MIN}
    shapes = []
    for levels in {levels for _, levels in seen} or {False}:
        for width in widths:
            fits = ((width, levels), (None, levels))
            total = sum(min(cost.get(fit, math.inf) for fit in fits) for cost in costs)
            if total < math.inf:
                shapes.append((total, levels, width))
    return shapes


def _explains(layout: TextLayout, row: _Line) -> bool:
    if row.kind == "irq":
        return bool(row.readings[layout.name])
    if row.kind == "cpu":
        return len(row.rest) - len(row.rest.lstrip(b" ")) == layout.text_gap
    return True


def _likeliest_layout(rows: Sequence[_Line]) -> TextLayout:
    return max(LAYOUTS, key=lambda layout: sum(_explains(layout, row) for row in rows))


def _finish(row: _Line, layout: TextLayout | None, shape: _Shape) -> InterruptsRow:
    """Make the row of the table; without a layout that explains all rows, words count for more than columns."""
    if row.kind != "irq":
        return InterruptsRow(row.label, row.kind, row.counts, text=from_bytes(row.rest.strip()))
    if layout is not None:
        irq = shape.pick(row.readings[layout.name])
    else:
        strict = [(known, text) for known in LAYOUTS for _, text in row.readings[known.name]]
        with_hwirq = (text for known, text in strict if text.hwirq is not None and doubt(known, text) < STRANGE)
        irq = next(with_hwirq, None) or split_loose(row.rest) or strict[0][1]
    return InterruptsRow(row.label, row.kind, row.counts, irq)


def _could_print(known: Generation, layouts: Sequence[TextLayout], table: InterruptsTable) -> bool:
    """Tell whether a generation may have printed an exact table."""
    if known.layout not in layouts or table.prec < known.prec_floor:
        return False
    for row in table.rows:
        if row.irq is not None and not row.irq.actions and not known.shows_nameless:
            return False
        if row.kind == "ipi":
            number = int(row.label[3:])
            if number >= len(known.arm64_ipis) or known.arm64_ipis[number] != row.text:
                return False
    return True


def _first_difference(data: bytes, printed: bytes) -> Notice:
    """Say where a file departs from what its layout prints; halve until the place is found."""
    offset, end = 0, min(len(data), len(printed))
    while offset < end:
        middle = (offset + end + 1) // 2
        if data[offset:middle] == printed[offset:middle]:
            offset = middle
        else:
            end = middle - 1
    line, column = _place(data, offset)
    wanted, found = (text[offset:].partition(b"\n")[0] for text in (printed, data))
    return Notice(line, column, f"expected {_show(wanted)}, found {_show(found)}")


def _show(rest: bytes) -> str:
    return ascii(from_bytes(rest[:EXCERPT])) if rest else "the end of the line"
