"""Guest-physical memory: what is inside, who has which page, and what becomes of what was there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbusirq._ffi import ffi
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.memory import HV_PAGE, GuestMemory

GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Eight pages, of which 1 to 7 can be allocated."""
    with GuestMemory(8 * HV_PAGE) as made:
        yield made


def kept_bytes(memory: GuestMemory) -> int:
    """Return what the file takes of the system's memory."""
    return os.fstat(memory.fd).st_blocks * 512


def names(memory: GuestMemory) -> int:
    """Return how many mappings of guest memory this process has."""
    assert memory.fd >= 0
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:guest-memory")


def descriptors_open() -> int:
    """Return how many descriptors this process has, and one for looking."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("size", [-4096, 0, 1, 4096, 4097, 8191, 8193, 2**44 + 4096, 2**64, 2**70])
def test_memory_is_whole_pages(size: int) -> None:
    """One page would be pfn 0 alone, which is never handed out."""
    with pytest.raises(IrqError) as caught:
        GuestMemory(size)
    assert errno.EINVAL == caught.value.errno
    assert str(size) in str(caught.value)


def test_a_big_guest_costs_only_what_it_touches() -> None:
    """The file is sparse, the mapping unreserved."""
    with GuestMemory(64 * GIB) as memory:
        memory.write(64 * GIB - 3, b"end")
        memory.write(40 * GIB, b"middle")
        assert b"middle\0" == memory.read(40 * GIB, 7)
        assert b"end" == memory.read(64 * GIB - 3, 3)
        assert kept_bytes(memory) <= 1 << 22  # two pages, or two large ones
        assert 64 * GIB == os.fstat(memory.fd).st_size


def test_the_file_never_changes_its_size(memory: GuestMemory) -> None:
    """So what is mapped from it cannot end in SIGBUS (memfd_create(2), file sealing)."""
    for size in (0, 7 * HV_PAGE, 9 * HV_PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)


@pytest.mark.parametrize(("gpa", "size"), [(0, 8 * HV_PAGE), (8 * HV_PAGE, 0), (8 * HV_PAGE - 1, 1), (4095, 2), (0, 0)])
def test_what_is_inside_can_be_read_and_written(memory: GuestMemory, gpa: int, size: int) -> None:
    """Allocated or not."""
    data = bytes(i % 251 + 1 for i in range(size))
    assert bytes(size) == memory.read(gpa, size)
    memory.write(gpa, data)
    assert data == memory.read(gpa, size)


@pytest.mark.parametrize(
    ("gpa", "size"), [(-1, 1), (0, 8 * HV_PAGE + 1), (8 * HV_PAGE, 1), (8 * HV_PAGE - 1, 2), (2**64, 1), (2**70, 0)]
)
def test_what_is_not_all_inside_is_efault(memory: GuestMemory, gpa: int, size: int) -> None:
    """Nothing is written then."""
    for what in (lambda: memory.read(gpa, size), lambda: memory.write(gpa, b"\xff" * size)):
        with pytest.raises(IrqError) as caught:
            what()
        assert errno.EFAULT == caught.value.errno
        assert "EFAULT" in str(caught.value)
    assert bytes(8 * HV_PAGE) == memory.read(0, 8 * HV_PAGE)


def test_a_negative_size_is_efault(memory: GuestMemory) -> None:
    """And no slice from the end."""
    with pytest.raises(IrqError) as caught:
        memory.read(4096, -1)
    assert errno.EFAULT == caught.value.errno


def test_c_sees_the_same_bytes(memory: GuestMemory) -> None:
    """The address of a page, and its border."""
    memory.write(7 * HV_PAGE + 1, b"here")
    assert b"\0here" == bytes(ffi.buffer(memory.address(7), 5))
    memory.address(0)[0] = 0x5A
    assert b"\x5a\0" == memory.read(0, 2)
    for pfn in (8, -1, 2**60):
        with pytest.raises(IrqError) as caught:
            memory.address(pfn)
        assert errno.EFAULT == caught.value.errno


# ---- who has which page


def test_the_lowest_pages_come_first_and_never_page_0(memory: GuestMemory) -> None:
    """A freed hole is filled before what lies behind it."""
    assert [1, 2, 4] == [memory.alloc(1), memory.alloc(2), memory.alloc(1)]
    memory.free(2)
    assert [2, 5, 3] == [memory.alloc(1), memory.alloc(2), memory.alloc(1)]
    assert 6 == memory.allocated_pages


@pytest.mark.parametrize(("align", "pfn"), [(1, 2), (2, 2), (3, 3), (4, 4), (5, 5), (7, 7)])
def test_align_is_in_pages_and_what_it_skips_stays_free(memory: GuestMemory, align: int, pfn: int) -> None:
    """Any number of pages, as Linux's compound pages or a DMA engine want it."""
    memory.alloc(1)
    assert pfn == memory.alloc(1, align)
    assert [*range(2, pfn), *range(pfn + 1, 8)] == [memory.alloc(1) for _ in range(5)]


@pytest.mark.parametrize(("pages", "align"), [(0, 1), (-1, 1), (1, 0), (1, -4)])
def test_no_pages_cannot_be_allocated(memory: GuestMemory, pages: int, align: int) -> None:
    """EINVAL says what was asked."""
    with pytest.raises(IrqError, match=f"{pages} pages aligned to {align}") as caught:
        memory.alloc(pages, align)
    assert errno.EINVAL == caught.value.errno


@pytest.mark.parametrize(("pages", "align"), [(7, 1), (6, 4), (1, 8), (2**30, 1), (1, 2**70), (2**70, 1)])
def test_what_does_not_fit_is_enomem_and_takes_nothing(memory: GuestMemory, pages: int, align: int) -> None:
    """The message says what the longest free run is."""
    memory.alloc(1)
    with pytest.raises(IrqError, match="longest free run has 6") as caught:
        memory.alloc(pages, align)
    assert errno.ENOMEM == caught.value.errno
    assert 1 == memory.allocated_pages
    assert 2 == memory.alloc(6)


def test_full_memory_says_so(memory: GuestMemory) -> None:
    """All seven pages."""
    assert 1 == memory.alloc(7)
    with pytest.raises(IrqError, match="7 of 8 are allocated, the longest free run has 0") as caught:
        memory.alloc(1)
    assert errno.ENOMEM == caught.value.errno


@pytest.mark.parametrize("pfn", [0, 2, 4, 7, 8, -1])
def test_only_the_first_page_of_an_allocation_can_be_freed(memory: GuestMemory, pfn: int) -> None:
    """EINVAL inside one, in the free, outside; and twice."""
    assert [1, 3] == [memory.alloc(2), memory.alloc(2)]
    with pytest.raises(IrqError, match="no allocation begins there") as caught:
        memory.free(pfn)
    assert errno.EINVAL == caught.value.errno
    memory.free(3)
    with pytest.raises(IrqError):
        memory.free(3)
    assert 2 == memory.allocated_pages


def test_pages_are_zero_when_they_are_allocated(memory: GuestMemory) -> None:
    """Whatever was there: from before, or from somebody who wrote to a free page."""
    memory.write(0, b"\xff" * 8 * HV_PAGE)
    pfn = memory.alloc(2)
    assert bytes(2 * HV_PAGE) == memory.read(pfn * HV_PAGE, 2 * HV_PAGE)
    assert b"\xff" * HV_PAGE == memory.read(0, HV_PAGE)
    assert b"\xff" * HV_PAGE * 5 == memory.read(3 * HV_PAGE, 5 * HV_PAGE)


def test_freeing_drops_the_contents_at_once() -> None:
    """The system has the memory back."""
    with GuestMemory() as memory:
        before = kept_bytes(memory)
        pfn = memory.alloc(1024)
        memory.write(pfn * HV_PAGE, b"\xff" * 1024 * HV_PAGE)
        assert before + 1024 * HV_PAGE <= kept_bytes(memory)
        memory.free(pfn)
        assert before >= kept_bytes(memory)
        assert bytes(1024 * HV_PAGE) == memory.read(pfn * HV_PAGE, 1024 * HV_PAGE)


def test_closed_memory_is_ebadf_and_leaves_nothing_behind() -> None:
    """Neither mapping nor descriptor; a second close does nothing."""
    with GuestMemory(2 * HV_PAGE) as other:
        before, descriptors = names(other), descriptors_open()
        memory = GuestMemory(2 * HV_PAGE)
        assert (before + 1, descriptors + 1) == (names(other), descriptors_open())
        memory.close()
        memory.close()
        assert (before, descriptors) == (names(other), descriptors_open())
    calls = (
        lambda: memory.fd,
        lambda: memory.alloc(1),
        lambda: memory.free(1),
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        lambda: memory.address(1),
    )
    for call in calls:
        with pytest.raises(IrqError) as caught:
            call()
        assert errno.EBADF == caught.value.errno


def test_thousands_of_small_holes() -> None:
    """4000 one-page holes: 2000 requests for two pages pass them by, then 4000 requests for one page fill them."""
    with GuestMemory(GIB) as memory:
        pfns = [memory.alloc(1) for _ in range(8000)]
        assert list(range(1, 8001)) == pfns
        for pfn in pfns[::2]:
            memory.free(pfn)
        assert list(range(8001, 12001, 2)) == [memory.alloc(2) for _ in range(2000)]
        assert pfns[::2] == [memory.alloc(1) for _ in range(4000)]
        assert 12000 == memory.allocated_pages


PAGES = 40


class Plain:
    """The allocator as a row of pages, each free or not."""

    def __init__(self) -> None:
        self.used = [True] + [False] * (PAGES - 1)
        self.live: dict[int, int] = {}

    def alloc(self, pages: int, align: int) -> int | None:
        for pfn in range(0, PAGES - pages + 1, align):
            if not any(self.used[pfn : pfn + pages]):
                self.used[pfn : pfn + pages] = [True] * pages
                self.live[pfn] = pages
                return pfn
        return None

    def free(self, pfn: int) -> None:
        pages = self.live.pop(pfn)
        self.used[pfn : pfn + pages] = [False] * pages


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("alloc"), st.integers(1, 9), st.sampled_from([1, 1, 1, 2, 3, 4, 8])),
            st.tuples(st.just("free"), st.integers(0, PAGES), st.just(0)),
        ),
        max_size=80,
    )
)
def test_any_order_gives_what_a_plain_model_gives(steps: list[tuple[str, int, int]]) -> None:
    """Lowest first, no page twice, neighbours joined again; new pages are zero and keep what is written."""
    model = Plain()
    with GuestMemory(PAGES * HV_PAGE) as memory:
        for what, number, align in steps:
            if what == "free":
                live = sorted(model.live)
                if live:
                    pfn = live[number % len(live)]
                    assert bytes([pfn]) * 8 == memory.read(pfn * HV_PAGE, 8)
                    model.free(pfn)
                    memory.free(pfn)
                continue
            expected = model.alloc(number, align)
            if expected is None:
                with pytest.raises(IrqError) as caught:
                    memory.alloc(number, align)
                assert errno.ENOMEM == caught.value.errno
                continue
            assert expected == memory.alloc(number, align)
            assert bytes(number * HV_PAGE) == memory.read(expected * HV_PAGE, number * HV_PAGE)
            memory.write(expected * HV_PAGE, bytes([expected]) * number * HV_PAGE)
        assert sum(model.live.values()) == memory.allocated_pages
        for pfn in list(model.live):
            memory.free(pfn)
        assert 0 == memory.allocated_pages
        assert 1 == memory.alloc(PAGES - 1)
