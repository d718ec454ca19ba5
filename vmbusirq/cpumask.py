"""CPU sets as plain integers (bit n is CPU n), and the kernel's two texts for them: hex groups and ranges.

The parsers do what ``bitmap_parse`` and ``bitmap_parselist`` do with every byte string, right ones and wrong ones
(lib/bitmap-str.c, the same in v6.10 and v6.18); the formats are ``%*pb`` and ``%*pbl`` (lib/vsprintf.c).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from vmbusirq.errors import IrqError

__all__ = [
    "bitmap_parse",
    "bitmap_parselist",
    "cpumask_all",
    "cpumask_first",
    "cpumask_next",
    "cpumask_of",
    "cpus_of",
    "format_pb",
    "format_pbl",
]

_BLANKS: Final = b" \t\n\v\f\r\xa0,"  # the kernel's isspace() and the comma: equal separators in both texts
_HEX: Final = b"0123456789abcdefABCDEF"
_BLANK_RUN: Final = re.compile(rb"[ \t\n\v\f\r\xa0,]*")
_DIGITS: Final = re.compile(rb"[0-9]*")
_U32: Final = 1 << 32
_CHUNK_BITS: Final = 32
_CHUNK_DIGITS: Final = 8


def cpumask_all(nr_cpu_ids: int) -> int:
    """Return the mask of CPUs 0 to ``nr_cpu_ids`` - 1."""
    return (1 << nr_cpu_ids) - 1


def cpumask_of(*cpus: int) -> int:
    """Return the mask that holds these CPUs."""
    mask = 0
    for cpu in cpus:
        mask |= 1 << cpu
    return mask


def cpus_of(mask: int) -> Iterator[int]:
    """Yield the CPUs of a mask, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def cpumask_first(mask: int) -> int:
    """Return the lowest CPU of a mask, -1 when it is empty."""
    return (mask & -mask).bit_length() - 1


def cpumask_next(cpu: int, mask: int) -> int:
    """Return the lowest CPU of a mask after ``cpu``, -1 when there is none."""
    return cpumask_first(mask >> (cpu + 1) << (cpu + 1))


def format_pb(mask: int, nr_cpu_ids: int) -> str:
    """Return ``mask`` as ``%*pb`` prints it: groups of 8 hex digits, highest first, the first as short as can be.

    The text depends on the width, not on the mask: 36 CPUs give ``0,00000001`` for CPU 0.
    """
    assert 0 <= mask <= cpumask_all(nr_cpu_ids)
    digits = f"{mask:0{(nr_cpu_ids + 3) // 4}x}"
    first = len(digits) % _CHUNK_DIGITS
    groups = [digits[i : i + _CHUNK_DIGITS] for i in range(first, len(digits), _CHUNK_DIGITS)]
    return ",".join([digits[:first], *groups] if first else groups)


def format_pbl(mask: int) -> str:
    """Return ``mask`` as ``%*pbl`` prints it: ascending ranges, ``0-2,5``; nothing for the empty mask."""
    assert mask >= 0
    regions = []
    base = 0
    while mask:
        skip = cpumask_first(mask)
        mask >>= skip
        run = cpumask_first(~mask)
        start = base + skip
        regions.append(str(start) if run == 1 else f"{start}-{start + run - 1}")
        mask >>= run
        base = start + run
    return ",".join(regions)


def bitmap_parse(text: bytes, nr_cpu_ids: int) -> int:
    """Return the mask that ``text`` says in the syntax of smp_affinity: hex chunks of 32 bits, read from the right.

    Everything from the first NUL or newline on is ignored. An empty text is the empty mask.

    Raises:
        IrqError(EINVAL): a chunk does not end in a hex digit, or has something else inside.
        IrqError(EOVERFLOW): a chunk of more than 8 digits, more chunks than the machine has, a bit past its last CPU.

    See: lib/bitmap-str.c, bitmap_parse, v6.10.
    """
    text = re.split(rb"[\0\n]", text, maxsplit=1)[0]
    chunks = (nr_cpu_ids + _CHUNK_BITS - 1) // _CHUNK_BITS
    mask = 0
    parsed = 0
    while text := text.rstrip(_BLANKS):
        if parsed == chunks:
            raise IrqError(
                errno.EOVERFLOW,
                f"cpu mask {_quoted(text)}: more than {chunks} group(s) of 32 bits; this machine has {nr_cpu_ids} cpus",
            )
        value, left = _chunk_from_right(text)
        mask |= value << (_CHUNK_BITS * parsed)
        parsed += 1
        text = text[:left]
    if mask >> nr_cpu_ids:
        raise IrqError(
            errno.EOVERFLOW, f"cpu mask: cpu {mask.bit_length() - 1} is past the last; cpus are 0-{nr_cpu_ids - 1}"
        )
    return mask


def _chunk_from_right(text: bytes) -> tuple[int, int]:
    """Read the last chunk of ``text``; return its value and how many bytes are left of it."""
    end = len(text)
    left = end
    while left and end - left < _CHUNK_DIGITS:
        if text[left - 1] not in _HEX:
            raise IrqError(
                errno.EINVAL, f"cpu mask {_quoted(text)}: {_quoted(text[left - 1 : left])} is not a hex digit"
            )
        left -= 1
        if not left or text[left - 1] in _BLANKS:
            return int(text[left:end], 16), left
    if text[left - 1] in _HEX:
        raise IrqError(
            errno.EOVERFLOW,
            f"cpu mask {_quoted(text)}: more than 8 hex digits in one group; write groups as 1,00000000",
        )
    # The kernel tests the byte after a full chunk for a ninth digit and steps over it, whatever it is.
    return int(text[left:end], 16), left - 1


class _Region(NamedTuple):
    """CPUs start..end, of which the first ``used`` of every ``group``."""

    start: int
    end: int
    used: int
    group: int


def bitmap_parselist(text: bytes, nr_cpu_ids: int) -> int:
    """Return the mask that ``text`` says in the syntax of smp_affinity_list: ``0-3,8``, ``0-7:1/2``, ``all``, ``N``.

    Everything from the first NUL on is ignored, and so is what follows a newline right after a number, a range or
    ``all``. A text without any region is the empty mask.

    Raises:
        IrqError(EINVAL): malformed, a range that runs backwards, or a pattern that uses more than its group.
        IrqError(EOVERFLOW): a number of 2**32 or more.
        IrqError(ERANGE): a CPU past the last one.

    See: lib/bitmap-str.c, bitmap_parselist, v6.10.
    """
    text = text.partition(b"\0")[0]
    mask = 0
    at: int | None = 0
    while at is not None:
        at = _end_of(_BLANK_RUN, text, at)
        if at == len(text):
            break
        region, at = _parse_region(text, at, nr_cpu_ids)
        mask |= _region_mask(region, nr_cpu_ids)
    return mask


def _end_of(run: re.Pattern[bytes], text: bytes, at: int) -> int:
    match = run.match(text, at)
    assert match is not None
    return match.end()


def _ends_region(text: bytes, at: int) -> bool:
    return at == len(text) or text[at] in _BLANKS


def _parse_region(text: bytes, at: int, nr_cpu_ids: int) -> tuple[_Region, int | None]:
    """Read one region; return it and where to go on, None when it was the last."""
    if text[at : at + 3].lower() == b"all":
        start, end = 0, nr_cpu_ids - 1
        at += 3
    else:
        start, at = _parse_number(text, at, nr_cpu_ids)
        if _ends_region(text, at):
            return _plain(start, start, text, at)
        at = _expect(text, at, b"-")
        end, at = _parse_number(text, at, nr_cpu_ids)
    if _ends_region(text, at):
        return _plain(start, end, text, at)
    at = _expect(text, at, b":")
    used, at = _parse_number(text, at, nr_cpu_ids)
    at = _expect(text, at, b"/")
    group, at = _parse_number(text, at, nr_cpu_ids)
    return _Region(start, end, used, group), at


def _plain(start: int, end: int, text: bytes, at: int) -> tuple[_Region, int | None]:
    length = (end + 1) % _U32
    last = at == len(text) or text[at] == ord("\n")
    return _Region(start, end, length, length), None if last else at


def _parse_number(text: bytes, at: int, nr_cpu_ids: int) -> tuple[int, int]:
    if text[at : at + 1] == b"N":
        return nr_cpu_ids - 1, at + 1
    end = _end_of(_DIGITS, text, at)
    if end == at:
        raise IrqError(errno.EINVAL, f"cpu list {_quoted(text)}: a cpu number is missing at byte {at}")
    digits = text[at:end].lstrip(b"0")
    if len(digits) > 10 or int(digits or b"0") >= _U32:
        raise IrqError(errno.EOVERFLOW, f"cpu list: {_quoted(text[at:end])} is not below 2^32")
    return int(digits or b"0"), end


def _expect(text: bytes, at: int, byte: bytes) -> int:
    if text[at : at + 1] != byte:
        raise IrqError(errno.EINVAL, f"cpu list {_quoted(text)}: '{byte.decode()}' is missing at byte {at}")
    return at + 1


def _region_mask(region: _Region, nr_cpu_ids: int) -> int:
    start, end, used, group = region
    if start > end or group == 0 or used > group:
        raise IrqError(
            errno.EINVAL,
            f"cpu list: {start}-{end}:{used}/{group} must have start <= end and used <= group, group not 0",
        )
    if end >= nr_cpu_ids:
        raise IrqError(errno.ERANGE, f"cpu list: cpu {end} is past the last; cpus are 0-{nr_cpu_ids - 1}")
    if start + group < _U32:
        step, first, last = group, start, end - (end - start) % group
    else:  # the sum wraps: the kernel's loop runs downwards, to the last step that is not below CPU 0
        step, first, last = _U32 - group, start % (_U32 - group), start
    used, step = min(used, end + 1), min(step, end + 1)  # no longer than the machine, for the numbers below
    if used >= step:
        return cpumask_all(min(last + used, end + 1)) >> first << first
    steps = (last - first) // step + 1
    every_step = cpumask_all(step * steps) // cpumask_all(step)
    return (cpumask_all(used) * every_step << first) & cpumask_all(end + 1)


def _quoted(text: bytes) -> str:
    """Return the text as a message can show it: escaped, and cut when it is long."""
    shown = ascii(text[:40].decode("latin-1"))
    return shown if len(text) <= 40 else f"{shown}..."
