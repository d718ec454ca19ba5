"""cpumask: the kernel's two CPU set texts, by the vectors of genirq.md 2.6 and 2.7 and by a second, slow reading."""

from __future__ import annotations

import errno

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.reference import cpumask as reference
from vmbusirq.cpumask import (
    bitmap_parse,
    bitmap_parselist,
    cpumask_all,
    cpumask_first,
    cpumask_next,
    cpumask_of,
    cpus_of,
    format_pb,
    format_pbl,
)
from vmbusirq.errors import IrqError

EINVAL, EOVERFLOW, ERANGE = errno.EINVAL, errno.EOVERFLOW, errno.ERANGE
EMPTY = 0  # parsed, and refused only because no CPU of it is online
LARGE = 4 * 2**20 - 1  # the longest write that the kernel copies


def groups(**words: str) -> str:
    """Return the mask text of 2048 CPUs with these groups, g0 the rightmost."""
    return ",".join(words.get(f"g{63 - i}", "00000000") for i in range(64))


MASKS = [
    ("M1", 4, b"f\n", "f", "0-3"),
    ("M2", 4, b"F", "f", "0-3"),
    ("M3", 4, b"0f", "f", "0-3"),
    ("M7", 4, b"f,\n", "f", "0-3"),
    ("M8", 4, b",,f", "f", "0-3"),
    ("M9", 4, b" \t5 \n", "5", "0,2"),
    ("M10", 4, b"5\nzzz", "5", "0,2"),
    ("M17", 4, b"x00000003", "3", "0-1"),
    ("M22", 4, b"5\r\n", "5", "0,2"),
    ("M23", 4, b"5\0f", "5", "0,2"),
    ("M24", 8, b"80\n", "80", "7"),
    ("M27", 64, b"1\n", "00000000,00000001", "0"),
    ("M28", 64, b"1,00000000\n", "00000001,00000000", "32"),
    ("M29", 64, b"1,0", "00000001,00000000", "32"),
    ("M30", 64, b"8000,1", "00008000,00000001", "0,47"),
    ("M31", 64, b"ffffffff,ffffffff", "ffffffff,ffffffff", "0-63"),
    ("M35", 64, b"0x00000003", "00000000,00000003", "0-1"),
    ("M36", 64, b"1 0", "00000001,00000000", "32"),
    ("M37", 64, b"80000000\t,00000001\n", "80000000,00000001", "0,63"),
    ("M38", 64, b"f\x0bf", "0000000f,0000000f", "0-3,32-35"),
    ("M39", 2048, b"1", groups(g0="00000001"), "0"),
    ("M40", 2048, b"f" + 63 * b",0", groups(g63="0000000f"), "2016-2019"),
    ("M42", 2048, b"80000000" + 63 * b",00000000", groups(g63="80000000"), "2047"),
    ("M44", 2048, b"deadbeef,0\n", groups(g1="deadbeef"), "32-35,37-39,41-45,47-48,50-51,53,55,57-60,62-63"),
    ("trap 14", 64, b"3 3", "00000003,00000003", "0-1,32-33"),
    ("newline, then 4 MiB", 2, b"3\n".ljust(LARGE, b"z"), "3", "0-1"),
    ("byte 0xa0 is a blank", 2, b"\xa03\xa0", "3", "0-1"),
]

MASKS_REFUSED = [
    ("M4", 4, b"1f\n", EOVERFLOW),
    ("M5", 4, b"00000010\n", EOVERFLOW),
    ("M6", 4, b"0,f\n", EOVERFLOW),
    ("M11", 4, b"\n5", EMPTY),
    ("M12", 4, b"", EMPTY),
    ("M13", 4, b"\n", EMPTY),
    ("M14", 4, b"0\n", EMPTY),
    ("M15", 4, b"0x3", EINVAL),
    ("M16", 4, b"0x00000003", EOVERFLOW),
    ("M18", 4, b"3 3", EOVERFLOW),
    ("M19", 4, b"g", EINVAL),
    ("M20", 4, b"1-3", EINVAL),
    ("M21", 4, b"000000003", EOVERFLOW),
    ("M25", 8, b"100", EOVERFLOW),
    ("M26", 8, b"ff,00000000", EOVERFLOW),
    ("M32", 64, b"ffffffffffffffff", EOVERFLOW),
    ("M33", 64, b"100000000", EOVERFLOW),
    ("M34", 64, b"1,0,0", EOVERFLOW),
    ("M41", 2048, 64 * b"0," + b"1", EOVERFLOW),
    ("M43", 2048, b"1" + 64 * b",0", EOVERFLOW),
    ("M45", 4, b"g,1", EOVERFLOW),
    ("M46", 4, b"1,g", EINVAL),
    ("M47", 64, b"g,1", EINVAL),
    ("seen 0,3", 2, b"0,3", EOVERFLOW),
    ("seen f", 2, b"f", EOVERFLOW),
    ("seen 7", 2, b"7", EOVERFLOW),
    ("seen 4", 2, b"4", EOVERFLOW),
    ("seen 3 3", 2, b"3 3", EOVERFLOW),
    ("seen 00000000,00000003", 2, b"00000000,00000003", EOVERFLOW),
]

LISTS = [
    ("L1", 4, b"0-3\n", "f", "0-3"),
    ("L2", 4, b"ALL\n", "f", "0-3"),
    ("L3", 4, b"0,2,", "5", "0,2"),
    ("L4", 4, b" 1 , 3 \n", "a", "1,3"),
    ("L7", 4, b"N", "8", "3"),
    ("L9", 4, b"1-N", "e", "1-3"),
    ("L10", 4, b"0-3:1/2", "5", "0,2"),
    ("L16", 4, b"1-3:1/4294967295", "3", "0-1"),
    ("L20", 4, b"1\n2", "2", "1"),
    ("L21", 4, b"\n2", "4", "2"),
    ("L22", 4, b"1,\n2", "6", "1-2"),
    ("L23", 4, b"0-1:1/2\n3", "9", "0,3"),
    ("L24", 4, b"0-0:1/2N", "9", "0,3"),
    ("L25", 4, b"0-0:1/1all", "f", "0-3"),
    ("L34", 4, b"1\0,2", "2", "1"),
    ("L35", 8, b"0-7:1/2\n", "55", "0,2,4,6"),
    ("L36", 8, b"1-7:2/3", "b6", "1-2,4-5,7"),
    ("L38", 8, b"0-N:2/4", "33", "0-1,4-5"),
    ("L39", 8, b"all:1/4", "11", "0,4"),
    ("L40", 8, b"6-7,0-1", "c3", "0-1,6-7"),
    ("L41", 64, b"0-10:2/4", "00000000,00000333", "0-1,4-5,8-9"),
    ("L42", 64, b"60-N", "f0000000,00000000", "60-63"),
    ("L43", 64, b"0-31:8/16,63", "80000000,00ff00ff", "0-7,16-23,63"),
    (
        "L45",
        2048,
        b"0-1023:2/256",
        groups(g24="00000003", g16="00000003", g8="00000003", g0="00000003"),
        "0-1,256-257,512-513,768-769",
    ),
    ("L47", 2048, b"1024-1031", groups(g32="000000ff"), "1024-1031"),
    (
        "L48",
        2048,
        b"all:1/512",
        groups(g48="00000001", g32="00000001", g16="00000001", g0="00000001"),
        "0,512,1024,1536",
    ),
    ("L49", 2048, b"0-N:N/N", ",".join(["ffffffff"] * 64), "0-2047"),
    ("seen 0\\0,1", 2, b"0\0,1", "1", "0"),
    ("leading zeros", 2, b"0000000000000000000001", "2", "1"),
]

LISTS_REFUSED = [
    ("L5", 4, b"3-1", EINVAL),
    ("L6", 4, b"4", ERANGE),
    ("L8", 4, b"n", EINVAL),
    ("L11", 4, b"0-3:3/2", EINVAL),
    ("L12", 4, b"0-3:0/2", EMPTY),
    ("L13", 4, b"0-3:1/0", EINVAL),
    ("L14", 4, b"0-3:1", EINVAL),
    ("L15", 4, b"2:1/2", EINVAL),
    ("L17", 4, b"4294967294", ERANGE),
    ("L18", 4, b"4294967295", EINVAL),
    ("L19", 4, b"4294967296", EOVERFLOW),
    ("L26", 4, b"0x1", EINVAL),
    ("L27", 4, b"1-", EINVAL),
    ("L28", 4, b"1 -2", EINVAL),
    ("L29", 4, b"1;2", EINVAL),
    ("L30", 4, b"", EMPTY),
    ("L31", 4, b"\n", EMPTY),
    ("L32", 4, b",", EMPTY),
    ("L33", 4, b"f", EINVAL),
    ("L37", 8, b"0-10:2/4", ERANGE),
    ("L44", 64, b"64", ERANGE),
    ("L46", 2048, b"2048", ERANGE),
    ("L50", 2048, b"0,2048", ERANGE),
    ("seen 2", 2, b"2", ERANGE),
    ("seen 0-2", 2, b"0-2", ERANGE),
    ("seen 1,,2", 2, b"1,,2", ERANGE),
    ("seen 0-1:2/1", 2, b"0-1:2/1", EINVAL),
    ("seen 0-1:1/0", 2, b"0-1:1/0", EINVAL),
    ("seen 0-4294967295", 2, b"0-4294967295", EINVAL),
    ("seen 0 - 1", 2, b"0 - 1", EINVAL),
    ("seen 0 -1", 2, b"0 -1", EINVAL),
    ("seen allx", 2, b"allx", EINVAL),
    ("seen all-1", 2, b"all-1", EINVAL),
    ("seen 0-1:4294967296/1", 2, b"0-1:4294967296/1", EOVERFLOW),
    ("10000 digits", 2, b"9" * 10000, EOVERFLOW),
]


def names(vectors):
    """Return the ids of a table of vectors."""
    return [vector[0] for vector in vectors]


def outcome(parse, text, nr_cpu_ids):
    """What a parser makes of a text: a set of CPUs, or an errno."""
    try:
        return set(cpus_of(parse(text, nr_cpu_ids)))
    except IrqError as error:
        return error.errno


@pytest.mark.parametrize(("_id", "nr", "text", "mask", "cpulist"), MASKS, ids=names(MASKS))
def test_mask_text_accepted(_id, nr, text, mask, cpulist):
    """genirq.md 2.6: what smp_affinity and smp_affinity_list show after the write."""
    parsed = bitmap_parse(text, nr)
    assert mask == format_pb(parsed, nr)
    assert cpulist == format_pbl(parsed)


@pytest.mark.parametrize(("_id", "nr", "text", "expected"), MASKS_REFUSED, ids=names(MASKS_REFUSED))
def test_mask_text_refused(_id, nr, text, expected):
    """genirq.md 2.6: the errno, or the empty mask that the write refuses in its next step."""
    assert (expected or set()) == outcome(bitmap_parse, text, nr)


@pytest.mark.parametrize(("_id", "nr", "text", "mask", "cpulist"), LISTS, ids=names(LISTS))
def test_list_text_accepted(_id, nr, text, mask, cpulist):
    """genirq.md 2.7: what smp_affinity and smp_affinity_list show after the write."""
    parsed = bitmap_parselist(text, nr)
    assert mask == format_pb(parsed, nr)
    assert cpulist == format_pbl(parsed)


@pytest.mark.parametrize(("_id", "nr", "text", "expected"), LISTS_REFUSED, ids=names(LISTS_REFUSED))
def test_list_text_refused(_id, nr, text, expected):
    """genirq.md 2.7: the errno, or the empty mask that the write refuses in its next step."""
    assert (expected or set()) == outcome(bitmap_parselist, text, nr)


def test_every_numbered_vector_is_here():
    """The tables above hold M1 to M47 and L1 to L50, none twice."""
    ids = names(MASKS + MASKS_REFUSED + LISTS + LISTS_REFUSED)
    numbered = [i for i in ids if i[0] in "ML" and i[1:].isdigit()]
    assert sorted([f"M{i}" for i in range(1, 48)] + [f"L{i}" for i in range(1, 51)]) == sorted(numbered)


@pytest.mark.parametrize(
    ("nr", "first", "every"),
    [
        (1, "1", "1"),
        (2, "1", "3"),
        (4, "1", "f"),
        (5, "01", "1f"),
        (6, "01", "3f"),
        (8, "01", "ff"),
        (32, "00000001", "ffffffff"),
        (33, "0,00000001", "1,ffffffff"),
        (36, "0,00000001", "f,ffffffff"),
        (64, "00000000,00000001", "ffffffff,ffffffff"),
        (2048, "00000000," * 63 + "00000001", ",".join(["ffffffff"] * 64)),
    ],
)
def test_mask_width_follows_nr_cpu_ids(nr, first, every):
    """lib/vsprintf.c v6.10: groups of 32 bits, the first one as many digits as its bits need."""
    assert first == format_pb(1, nr)
    assert every == format_pb(cpumask_all(nr), nr)


@pytest.mark.parametrize(
    ("cpus", "text"),
    [((), ""), ((0,), "0"), ((0, 1), "0-1"), ((0, 2, 3), "0,2-3"), ((7, 5, 6), "5-7"), ((2046, 2047), "2046-2047")],
)
def test_list_text_joins_two_or_more_in_a_range(cpus, text):
    """lib/vsprintf.c v6.10: {0,1} is 0-1, never 0,1; the empty mask prints nothing."""
    assert text == format_pbl(cpumask_of(*cpus))


def test_walks_over_a_mask():
    """First, next and all CPUs of a mask, both sides of its ends."""
    mask = cpumask_of(3, 64, 2047)
    assert [3, 64, 2047] == list(cpus_of(mask))
    assert 3 == cpumask_first(mask)
    assert -1 == cpumask_first(0)
    assert [3, 64, 64, 2047, -1] == [cpumask_next(cpu, mask) for cpu in (-1, 3, 63, 64, 2047)]


def test_messages_name_the_fault_and_the_errno():
    """design.md 7: what was asked, what is true, the errno."""
    with pytest.raises(IrqError, match=r"cpu 8 is past the last; cpus are 0-7 \(ERANGE\)"):
        bitmap_parselist(b"8", 8)
    with pytest.raises(IrqError, match=r"'g' is not a hex digit \(EINVAL\)"):
        bitmap_parse(b"g", 8)


@pytest.mark.parametrize("text", [b"0-2047:1/2,", b"2047-2047:1/4294967295 ", b"00000000,", b" ", b"9", b"0"])
def test_the_longest_write_ends_soon(text):
    """fs/proc: a write of up to 4 MiB - 1 bytes reaches the parsers; none of them may take time by the square."""
    long_text = (text * (2**17 // len(text) + 1))[: 2**17]
    for parse in (bitmap_parse, bitmap_parselist):
        outcome(parse, long_text, 2048)


widths = st.sampled_from([1, 2, 4, 8, 31, 32, 33, 63, 64, 65, 128, 2048])


@given(st.data(), widths)
def test_formats_round_trip_and_equal_the_reference(data, nr):
    """Parsing what was printed gives the mask back, for any width."""
    mask = data.draw(st.integers(0, cpumask_all(nr)))
    cpus = set(cpus_of(mask))
    assert reference.mask_text(cpus, nr) == format_pb(mask, nr)
    assert reference.list_text(cpus) == format_pbl(mask)
    assert mask == bitmap_parse(format_pb(mask, nr).encode() + b"\n", nr)
    assert mask == bitmap_parselist(format_pbl(mask).encode() + b"\n", nr)


mask_alphabet = st.sampled_from([bytes([b]) for b in b"0013fFx, \t\n\0\xa0"] + [b"00000000", b"ffffffff", b"80000000"])
list_alphabet = st.sampled_from(
    [bytes([b]) for b in b"00123:/-Nn, \t\n\0\xa0"]
    + [b"all", b"ALL", b"0-3:1/2", b"1-3", b"31", b"63", b"2047", b"4294967294", b"4294967295", b"4294967296"]
)


@given(st.lists(mask_alphabet, max_size=20).map(b"".join), widths)
@example(b"x00000003", 4)
@example(b"1,\n2", 64)
def test_mask_parser_equals_the_reference(text, nr):
    """lib/bitmap-str.c v6.10: any text gives the same CPUs or the same errno as the slow reading."""
    assert reference.parse_mask(text, nr) == outcome(bitmap_parse, text, nr)


@given(st.lists(list_alphabet, max_size=20).map(b"".join), widths)
@example(b"1-3:1/4294967295", 4)
@example(b"3-3:2/4294967294", 4)
@example(b"2-3:1/4294967294", 4)
@example(b"2047-2047:1/4294967295", 2048)
def test_list_parser_equals_the_reference(text, nr):
    """lib/bitmap-str.c v6.10: any text gives the same CPUs or the same errno as the slow reading."""
    assert reference.parse_list(text, nr) == outcome(bitmap_parselist, text, nr)


@given(st.binary(max_size=40), widths)
def test_parsers_take_any_bytes(text, nr):
    """No byte string makes a parser fail in any way but the kernel's."""
    assert reference.parse_mask(text, nr) == outcome(bitmap_parse, text, nr)
    assert reference.parse_list(text, nr) == outcome(bitmap_parselist, text, nr)


small = st.integers(0, 80)


@given(small, small, small, st.sampled_from([0, 1, 2, 3, 7, 64, 2048]), st.sampled_from([64, 70]))
@example(63, 63, 1, 1, 64)
@example(0, 63, 64, 64, 64)
def test_patterns_equal_the_reference(start, end, used, distance, nr):
    """``start-end:used/group``, with groups that count up and groups that wrap and count down."""
    for group in (distance, 2**32 - distance):
        text = f"{start}-{end}:{used}/{group}".encode()
        assert reference.parse_list(text, nr) == outcome(bitmap_parselist, text, nr)
