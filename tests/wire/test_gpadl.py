"""Guest memory lists: split as Linux does it, put together and checked as OpenVMM does (vmbus.md 1.17, 2.8, 2.10)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.errors import IrqError
from vmbusirq.wire.protocol import (
    STATUS_UNSUCCESSFUL,
    Direction,
    GpadlAssembly,
    GpadlBody,
    GpadlError,
    GpadlFault,
    GpadlHeader,
    GpaRange,
    Version,
    decode,
    encode,
    gpadl_message_count,
    gpadl_messages,
    gpadl_ranges,
)

RELID, GPADL = 14, 0xE1E10
PFNS = st.integers(0, 2**52 - 1)


def over_the_wire(ranges: list[GpaRange]) -> GpadlAssembly:
    """Split, encode, decode and put together."""
    messages = [
        decode(encode(message, Version.V5_3), Version.V5_3, Direction.TO_HOST)
        for message in gpadl_messages(RELID, GPADL, ranges)
    ]
    header, *bodies = messages
    assert isinstance(header, GpadlHeader)
    assembly = GpadlAssembly(header)
    for body in bodies:
        assert not assembly.complete
        assert isinstance(body, GpadlBody)
        assembly.add(body)
    return assembly


@pytest.mark.parametrize(
    ("pages", "count"),
    [(1, 1), (2, 1), (25, 1), (26, 1), (27, 2), (54, 2), (55, 3), (64, 3), (82, 3), (83, 4), (256, 10)],
)
def test_pages_take_so_many_messages(pages: int, count: int) -> None:
    """vmbus.md 1.17: 26 pages = 1 message, 27 = 2, 64 = 3, 256 = 10; range_buflen = 8 + 8 * pages."""
    messages = gpadl_messages(RELID, GPADL, [GpaRange.of_pages(range(pages))])
    assert count == len(messages) == gpadl_message_count(pages)
    header, *bodies = messages
    assert GpadlHeader(RELID, GPADL, 8 + 8 * pages, 1, (pages * 4096, *range(min(pages, 26)))) == header
    for number, body in enumerate(bodies):
        first = 26 + 28 * number
        assert GpadlBody(GPADL, tuple(range(first, min(first + 28, pages)))) == body
    assert all(len(encode(message, Version.V5_3)) <= 240 for message in messages)


def test_a_full_message_has_236_and_240_bytes() -> None:
    """vmbus.md 2.8: 20 + 27 words, 16 + 28 words."""
    sizes = [len(encode(m, Version.V5_3)) for m in gpadl_messages(RELID, GPADL, [GpaRange.of_pages(range(55))])]
    assert [236, 240, 24] == sizes


@pytest.mark.parametrize(("pages", "good"), [(8190, True), (8191, False)])
def test_range_buflen_has_16_bits(pages: int, good: bool) -> None:
    """8 + 8 * 8190 = 65528 is the last."""
    ranges = [GpaRange.of_pages(range(pages))]
    if good:
        assert tuple(ranges) == over_the_wire(ranges).ranges()
        return
    with pytest.raises(IrqError) as caught:
        gpadl_messages(RELID, GPADL, ranges)
    assert errno.EINVAL == caught.value.errno
    assert "gpadl 0xe1e10" in str(caught.value)


@pytest.mark.parametrize("wrong", [GpaRange(1 << 32, 0, (1,)), GpaRange(1, 1 << 32, (1,)), GpaRange(-1, 0, (1,))])
def test_a_ranges_halves_have_32_bits(wrong: GpaRange) -> None:
    """They share one word."""
    most = GpaRange(0xFFFF_FFFF, 0xFFFF_FFFF, ())
    assert (2**64 - 1,) == most.words
    assert (0,) == GpaRange(0, 0, ()).words
    with pytest.raises(IrqError) as caught:
        gpadl_messages(RELID, GPADL, [wrong])
    assert errno.EINVAL == caught.value.errno


@st.composite
def good_ranges(draw: st.DrawFn) -> GpaRange:
    pfns = tuple(draw(st.lists(PFNS, min_size=1, max_size=40)))
    offset = draw(st.integers(0, 4095))
    end = draw(st.integers(max(offset + 1, (len(pfns) - 1) * 4096 + 1), len(pfns) * 4096))
    return GpaRange(end - offset, offset, pfns)


@given(ranges=st.lists(good_ranges(), max_size=6))
def test_ranges_survive_the_way(ranges: list[GpaRange]) -> None:
    """Any number of ranges, at any offset."""
    assembly = over_the_wire(ranges)
    assert (RELID, GPADL) == (assembly.child_relid, assembly.gpadl)
    assert assembly.complete
    assert tuple(ranges) == assembly.ranges()


@given(words=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9000), max_size=40), rangecount=st.integers(0, 0xFFFF))
def test_any_words_are_ranges_or_a_fault(words: list[int], rangecount: int) -> None:
    """Whatever a guest sends; accepted ranges are the words again, in front of words to spare."""
    try:
        ranges = gpadl_ranges(words, rangecount)
    except GpadlError as error:
        fault = error
    else:
        again = [word for item in ranges for word in item.words]
        assert (rangecount, words[: len(again)]) == (len(ranges), again)
        return
    assert STATUS_UNSUCCESSFUL == fault.status
    assert 0 <= fault.index < rangecount


@pytest.mark.parametrize(
    ("count", "offset", "pages", "fault"),
    [
        (0, 0, 1, GpadlFault.EMPTY_BYTE_COUNT),
        (0, 0x1000, 0, GpadlFault.EMPTY_BYTE_COUNT),
        (1, 0, 1, None),
        (1, 0xFFF, 1, None),
        (1, 0x1000, 2, GpadlFault.OFFSET_TOO_LARGE),
        (2, 0xFFF, 1, GpadlFault.RANGE_TOO_SMALL),
        (2, 0xFFF, 2, None),
        (4096, 0, 1, None),
        (4097, 0, 1, GpadlFault.RANGE_TOO_SMALL),
        (4096, 1, 1, GpadlFault.RANGE_TOO_SMALL),
        (4096, 1, 3, None),
        (0xFFFF_F000, 0, 1, GpadlFault.RANGE_TOO_SMALL),
        (0xFFFF_F001, 0, 1, GpadlFault.OVERFLOW),
        (0xFFFF_E001, 0xFFF, 1, GpadlFault.RANGE_TOO_SMALL),
        (0xFFFF_E002, 0xFFF, 1, GpadlFault.OVERFLOW),
        (0xFFFF_FFFF, 0xFFF, 1, GpadlFault.OVERFLOW),
        (1, 0, 0, GpadlFault.RANGE_TOO_SMALL),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_a_range_is_checked_as_openvmm_does(
    count: int, offset: int, pages: int, fault: GpadlFault | None, before: int
) -> None:
    """vmbus.md 2.10, GPADL checks: both sides of each; also behind a good range, whose fault has its number then."""
    words = [*GpaRange.of_pages([7] * before).words] if before else []
    words += [count | offset << 32, *range(pages)]
    if fault is None:
        needed = (count + offset + 4095) // 4096
        assert GpaRange(count, offset, tuple(range(needed))) == gpadl_ranges(words, before + 1)[-1]
        return
    with pytest.raises(GpadlError) as caught:
        gpadl_ranges(words, before + 1)
    assert (fault, before, 0x8000FFFF) == (caught.value.fault, caught.value.index, caught.value.status)
    assert f"range {before}: {fault.value}" == str(caught.value)


@pytest.mark.parametrize("rangecount", [1, 2, 0xFFFF])
def test_more_ranges_than_words_is_an_empty_range(rangecount: int) -> None:
    """vmbus.md 2.10: "empty range"; no range at all is fine."""
    assert () == gpadl_ranges([], 0)
    with pytest.raises(GpadlError, match=f"range {rangecount - 1}"):
        gpadl_ranges(GpaRange.of_pages([5]).words * (rangecount - 1), rangecount)


def test_words_beyond_the_announced_are_cut() -> None:
    """vmbus.md 2.10: total = range_buflen / 8, in the header as in bodies."""
    header = GpadlHeader(RELID, GPADL, 3 * 8 + 7, 1, (8192, 1))
    assembly = GpadlAssembly(header)
    assert (3, False) == (assembly.total, assembly.complete)
    assembly.add(GpadlBody(GPADL, (2, 3, 4)))
    assert assembly.complete
    assembly.add(GpadlBody(GPADL, (5,)))
    assert (GpaRange.of_pages([1, 2]),) == assembly.ranges()
    assembly = GpadlAssembly(GpadlHeader(RELID, GPADL, 16, 1, (4096, 9, 10, 11)))
    assert (GpaRange.of_pages([9]),) == assembly.ranges()


@pytest.mark.parametrize("buflen", [0, 7])
def test_nothing_announced_is_complete_and_empty(buflen: int) -> None:
    """A header with words but no length."""
    assembly = GpadlAssembly(GpadlHeader(RELID, GPADL, buflen, 1, (4096, 1)))
    assert assembly.complete
    with pytest.raises(GpadlError) as caught:
        assembly.ranges()
    assert GpadlFault.EMPTY_RANGE is caught.value.fault


def test_bodies_may_come_in_any_size() -> None:
    """An empty body changes nothing; words count in the order they come, whatever msgnumber says."""
    assembly = GpadlAssembly(GpadlHeader(RELID, GPADL, 8 + 8 * 5, 1))
    for number, words in enumerate([(5 * 4096,), (), (1, 2), (3, 4, 5)]):
        assert not assembly.complete
        assembly.add(GpadlBody(GPADL, words, msgnumber=99 - number))
    assert (GpaRange.of_pages([1, 2, 3, 4, 5]),) == assembly.ranges()
