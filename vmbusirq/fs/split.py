"""What follows the counts of a numbered row, taken apart: chip, hwirq, level, flow name, action names.

The text has no quotes and no escapes: chip names hold blanks and digits, and fields push each other right. So
every place that can be the hwirq is tried, and a reading counts only if printing it gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from vmbusirq.fs.rows import CHIP_WIDTH_MIN, FLOW_WIDTH, IrqText, irq_suffix
from vmbusirq.generations import GENERATIONS, TextLayout

__all__ = ["STRANGE", "Reading", "doubt", "from_bytes", "split_loose", "split_strict"]

Reading = tuple[int | None, IrqText]
"""Width of the chip field (None: the row does not tell), and what the row says."""

STRANGE: Final = 4
"""A reading as doubtful as this counts only for want of a better one."""

_SHOW_NAMELESS: Final = frozenset(known.layout.name for known in GENERATIONS.values() if known.shows_nameless)
"""Layouts with rows that have no action."""

_HWIRQ = re.compile(rb"(?<= )\d+(?=$|-|  | Level   | Edge    )")
_WORD_END = re.compile(rb"(?<=[^ ])(?= |$)")
_FLOW = re.compile(rb"-([^ ]+)( *)")
_FIELD_LIKE = re.compile(r"-|Level   |Edge    ")

_GLUED = re.compile(rb"(\S+?)-(edge|fasteoi|level|percpu|simple)(?:\s+(\S.*))?$")
_SPACED = re.compile(rb"(\S+(?: \S+)*?)\s+(\d+)(?:\s+(Level|Edge))?(?:\s*-(\S+))?(?:\s+(\S.*))?$")
_BARE = re.compile(rb"(\S+)(?:\s+(\S.*))?$")


def from_bytes(name: bytes) -> str:
    """Return a name as text; bytes that are not UTF-8 become surrogates, which go back to the same bytes."""
    return name.decode("utf-8", "surrogateescape")


def split_strict(layout: TextLayout, prec: int, rest: bytes) -> list[Reading]:
    """Take apart what follows the last digit of a row's counts, exactly as one layout prints it.

    Args:
        layout: whose text.
        prec: width of the hwirq column.
        rest: from the byte after the last digit to the end of the line, newline excluded.
    Returns:
        Every reading that prints these bytes, the likeliest first; empty if the layout cannot have printed them.
    """
    readings = [
        (width, text)
        for width, text in (*_with_hwirq(layout, prec, rest), *_without_domain(layout, prec, rest))
        if irq_suffix(layout, prec, width or CHIP_WIDTH_MIN, text) == rest
    ]
    if len(readings) > 1:
        readings.sort(key=lambda reading: doubt(layout, reading[1]))
    return readings


def doubt(layout: TextLayout, text: IrqText) -> int:
    """Return how doubtful a reading is; 0 is a row with hwirq and name.

    IRQs without domain are fewer than those with one, and nameless rows are gone since v6.12. Strange, and all the
    stranger together, are chips that print themselves, actions whose names begin like the level or the flow name, and
    names that are empty or whose blanks look like the edge of a field. Stranger than all of that is a nameless row in
    a layout that has none.
    """
    strange = 0
    if text.chip_prints:
        strange += 1
    if text.actions:
        strange += _FIELD_LIKE.match(text.actions[0]) is not None
        strange += 2 * any(map(_is_odd, text.actions))
    elif layout.name not in _SHOW_NAMELESS:
        strange += 5
    return (text.hwirq is None) + 2 * (not text.actions) + STRANGE * strange


def _is_odd(name: str) -> bool:
    return not name or "  " in name or name[0] == " " or name[-1] == " "


def _with_hwirq(layout: TextLayout, prec: int, rest: bytes) -> Iterator[Reading]:
    for match in _HWIRQ.finditer(rest):
        tail = _split_tail(rest[match.end() :])
        if tail is not None:
            field = min(match.start() - 1, match.end() - prec - 1)
            hwirq = int(match.group())
            for width, chip, prints in _chips(layout, rest, field):
                yield width, IrqText(chip, hwirq, *tail, prints)


def _without_domain(layout: TextLayout, prec: int, rest: bytes) -> Iterator[Reading]:
    """Try each run of blanks as the empty field, less the one or two blanks that a level or an action brings."""
    for match in _WORD_END.finditer(rest):
        after = len(rest) - len(rest[match.end() :].lstrip(b" "))
        for lead in (0, 1, 2):
            field = after - lead - prec - layout.no_domain_blanks
            tail = _split_tail(rest[after - lead :])
            if tail is not None and field >= match.end():
                for width, chip, prints in _chips(layout, rest, field):
                    yield width, IrqText(chip, None, *tail, prints)


def _chips(layout: TextLayout, rest: bytes, end: int) -> Iterator[tuple[int | None, str, bool]]:
    """Yield the ways to read the bytes before ``end`` as a chip: (width of the field, text, printed by the chip).

    Names hold single blanks only; a run of them is the edge of a field.
    """
    if b"  " in rest[:end].strip():
        return
    field = rest[layout.chip_gap : max(end, 0)]
    chip = field.rstrip() if layout.chip_left else field if len(field) > CHIP_WIDTH_MIN else field.lstrip()
    if chip and len(field) >= CHIP_WIDTH_MIN and chip == chip.strip():
        yield len(field) if layout.chip_left else None, from_bytes(chip), False
    printed = rest[layout.printed_chip_gap : max(end, 0)]
    if printed and printed == printed.strip():
        yield None, from_bytes(printed), True


def _split_tail(tail: bytes) -> tuple[str | None, str | None, tuple[str, ...]] | None:
    """Take apart what follows the hwirq: level, flow name, action names."""
    level = flow = None
    if tail.startswith((b" Level   ", b" Edge    ")):
        level = from_bytes(tail[1:9].rstrip())
        tail = tail[9:]
    match = _FLOW.match(tail)
    if match:
        flow = from_bytes(match[1])
        tail = tail[1 + max(FLOW_WIDTH, len(match[1])) :]
    if not tail:
        return level, flow, ()
    if not tail.startswith(b"  "):
        return None
    return level, flow, tuple(map(from_bytes, tail[2:].split(b", ")))


def split_loose(rest: bytes) -> IrqText | None:
    """Read what follows the counts of a row that no known layout printed, by its words alone.

    Understands kernels that glue the flow name to the chip (``IO-APIC-edge  timer``) and rows whose blanks were
    lost or added on the way. Returns None where a chip name is missing.
    """
    words = rest.strip()
    match = _GLUED.match(words)
    if match and not match[1].isdigit():
        return IrqText(from_bytes(match[1]), None, None, from_bytes(match[2]), _names(match[3]))
    match = _SPACED.match(words)
    if match:
        level = from_bytes(match[3]) if match[3] else None
        flow = from_bytes(match[4]) if match[4] else None
        return IrqText(from_bytes(match[1]), int(match[2]), level, flow, _names(match[5]))
    match = _BARE.match(words)
    if match and not match[1].isdigit():
        return IrqText(from_bytes(match[1]), None, None, None, _names(match[2]))
    return None


def _names(words: bytes | None) -> tuple[str, ...]:
    return tuple(from_bytes(name.strip()) for name in words.split(b", ")) if words else ()
