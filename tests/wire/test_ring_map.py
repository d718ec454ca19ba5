"""A ring in guest memory: guest and host each map the same pages for themselves (vmbus.md 1.1 to 1.3, 1.17)."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig import Rig
from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.memory import HV_PAGE, GuestMemory
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, RING_HDR, Packet
from vmbusirq.wire.ring import Control, RingMemory, RingReader, RingWriter, WriterStats, Written

PAGES = 64
SCATTERED = (9, 3, 60, 4, 5)
"""A control page and four of data, of which two are neighbours."""


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Guest memory of 64 pages."""
    with GuestMemory(PAGES * HV_PAGE) as made:
        yield made


class Shared:
    """One ring, mapped twice: the guest opens it and writes, the host reads."""

    def __init__(self, memory: GuestMemory, pfns: Sequence[int], *, strict: bool = False) -> None:
        self.guest = RingMemory.map(memory.fd, pfns)
        self.guest.reset()
        self.host = RingMemory.map(memory.fd, pfns)
        self.writer = RingWriter(self.guest, strict=strict)
        self.reader = RingReader(self.host, strict=strict, max_pkt_size=1 << 20)


def descriptors_open() -> int:
    """Return how many descriptors this process has, and one for looking."""
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings() -> int:
    """Return how many mappings this process has that could be of a ring: pieces of guest memory, reserved room.

    Any other may come and go with the heap.
    """
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sum("memfd:guest-memory" in line or line.split()[1] == "---p" for line in lines)


def mappings_of(ring: RingMemory) -> int:
    """Return how many mappings make up one ring."""
    first = int(ffi.cast("uintptr_t", ring.struct.map))
    beyond = first + int(ring.struct.map_bytes)
    starts = [int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    return sum(first <= start < beyond for start in starts)


def refused(fd: int, pfns: Sequence[int]) -> IrqError:
    """Return why a ring cannot be mapped."""
    with pytest.raises(IrqError) as caught:
        RingMemory.map(fd, pfns)
    return caught.value


# ---- where things are


def test_page_0_of_the_list_is_control_and_the_others_are_data_in_order(memory: GuestMemory) -> None:
    """vmbus.md 1.1: the data begin after the first 4 KiB; the pages need not be neighbours."""
    ring = RingMemory.map(memory.fd, SCATTERED)
    for i, pfn in enumerate(SCATTERED[1:]):
        ring.poke(i * HV_PAGE + 7, bytes([pfn]))
        assert bytes([0, pfn, 0]) == memory.read(pfn * HV_PAGE + 6, 3)
    ring.poke_control("write_index", 0x1234)
    ring.poke_control("feature_bits", 1)
    assert b"\x34\x12\0\0" == memory.read(9 * HV_PAGE, 4)
    assert b"\x01" == memory.read(9 * HV_PAGE + 64, 1)
    assert (4 * HV_PAGE, 5 * HV_PAGE) == (ring.data_size, int(ring.struct.bytes))


def test_the_data_is_mapped_twice_in_a_row(memory: GuestMemory) -> None:
    """vmbus.md 1.3: past the last page comes the first again, byte for byte."""
    ring = RingMemory.map(memory.fd, SCATTERED)
    for pfn in SCATTERED[1:]:
        memory.write(pfn * HV_PAGE, bytes([pfn]) * HV_PAGE)
    once = b"".join(bytes([pfn]) * HV_PAGE for pfn in SCATTERED[1:])
    assert once + once == ring.peek(0, 8 * HV_PAGE)
    ring.poke(4 * HV_PAGE - 2, b"abcd")
    assert b"ab" == memory.read(6 * HV_PAGE - 2, 2)
    assert b"cd" == memory.read(3 * HV_PAGE, 2)


def test_mapping_leaves_the_ring_as_it_stands(memory: GuestMemory) -> None:
    """vmbus.md 1.1: the guest sets indices and feature bit at open; a host that maps finds them."""
    pfn = memory.alloc(4)
    guest = RingMemory.map(memory.fd, range(pfn, pfn + 4))
    assert Control(0, 0, 0, 0, 0) == guest.control
    guest.reset()
    guest.poke_control("interrupt_mask", 1)
    assert Control(0, 0, 1, 0, 1) == RingMemory.map(memory.fd, range(pfn, pfn + 4)).control


@pytest.mark.parametrize(
    ("pfns", "runs"),
    [
        ([1, 2], 1),  # control and data, and the data again: the second copy is a mapping of its own
        ([1, 2, 3, 4, 5], 1),
        ([1, 3], 2),
        ([9, 3, 60, 4, 5], 4),
        ([5, 4, 3, 2, 1], 5),
    ],
)
def test_neighbours_take_one_mapping(memory: GuestMemory, pfns: list[int], runs: int) -> None:
    """A ring of thousands of pages in one piece takes two mappings: there are 65530 per process."""
    again = runs - (pfns[1] != pfns[0] + 1)
    assert runs + again == mappings_of(RingMemory.map(memory.fd, pfns))


def test_a_guest_with_large_pages_leaves_the_rest_of_its_header_page_out(memory: GuestMemory) -> None:
    """vmbus.md 1.1: with 16 KiB pages three of the first four pfns are not shared."""
    shared = Shared(memory, [4, *range(8, 16)])
    shared.writer.write(Packet(b"x" * 30000))
    assert bytes(3 * HV_PAGE) == memory.read(5 * HV_PAGE, 3 * HV_PAGE)
    packet = shared.reader.first()
    assert packet is not None
    assert b"x" * 30000 == packet.payload
    assert b"x" == memory.read(8 * HV_PAGE + 16, 1)


def test_mappings_outlive_the_file_that_they_came_from() -> None:
    """What is mapped stays, as the pages of a guest do while a host has them mapped."""
    memory = GuestMemory(PAGES * HV_PAGE)
    shared = Shared(memory, SCATTERED)
    memory.close()
    shared.writer.write(Packet(b"still the"))
    assert (b"still the" + bytes(7), 0, False) == shared.reader.read(100)


def test_freed_pages_read_as_zeroes_in_a_ring_that_still_maps_them(memory: GuestMemory) -> None:
    """The contents are dropped, not the mapping: a host that is late reads an empty ring."""
    pfn = memory.alloc(3)
    shared = Shared(memory, range(pfn, pfn + 3))
    shared.writer.write(Packet(b"gone"))
    memory.free(pfn)
    assert Control(0, 0, 0, 0, 0) == shared.host.control
    assert bytes(2 * HV_PAGE) == shared.host.peek(0, 2 * HV_PAGE)


# ---- the two ends


@pytest.mark.parametrize("strict", [False, True])
def test_check_values_across_two_mappings(memory: GuestMemory, strict: bool) -> None:
    """vmbus.md 1.17: 100 bytes take 128 with trailer 0; then 0 bytes take 24, trailer's high word 128."""
    shared = Shared(memory, [2, 5, 4, 8], strict=strict)
    assert 12288 == shared.host.data_size
    assert shared.writer.write(Packet(bytes(range(100)), trans_id=0x0102030405060708)) is True
    assert shared.writer.write(Packet(type=COMPLETION, flags=COMPLETION_REQUESTED)) is False
    first = bytes.fromhex("0600 0200 0f00 0000 0807060504030201") + bytes(range(100)) + bytes(4) + bytes(8)
    second = bytes.fromhex("0b00 0200 0200 0100") + bytes(8) + bytes.fromhex("00000000 80000000")
    assert first + second == shared.host.peek(0, 152) == memory.read(5 * HV_PAGE, 152)
    assert Control(152, 0, 0, 0, 1) == shared.host.control
    expected = [Packet(bytes(range(100)) + bytes(4), trans_id=0x0102030405060708), Packet(b"", COMPLETION, 1)]
    assert expected == list(shared.reader.packets())
    assert shared.reader.close() is False
    assert Control(152, 152, 0, 0, 1) == shared.guest.control


def test_check_value_fill_and_pending_size_across_two_mappings(memory: GuestMemory) -> None:
    """vmbus.md 1.17: four packets of 4024 fit 16384; pending size 8048: reads 1 to 3 signal as no, yes, no."""
    shared = Shared(memory, SCATTERED)
    assert Written(4, True) == shared.writer.write_batch([Packet(bytes(4000))] * 5)
    assert 288 == shared.host.bytes_to_write
    shared.writer.set_pending_send_size(8048)
    assert 8048 == shared.host.control.pending_send_sz
    signals = []
    for _ in range(3):
        got = shared.reader.read(4096)
        assert got is not None
        signals.append(got[2])
    assert [False, True, False] == signals
    assert WriterStats(1, 2, 1) == shared.writer.stats


@pytest.mark.parametrize("before", range(8, 129, 8))
def test_a_packet_wraps_across_the_end_of_scattered_data(memory: GuestMemory, before: int) -> None:
    """vmbus.md 1.3: it begins so many bytes before the end, and its rest lies in the first data page."""
    shared = Shared(memory, SCATTERED)
    end = 4 * HV_PAGE
    shared.writer.write(Packet(bytes(end - before - 24)))
    assert shared.reader.read(end) is not None
    assert end - before == shared.host.control.read_index
    payload = bytes(range(1, 105))
    assert shared.writer.write(Packet(payload, trans_id=7)) is True
    raw = bytes.fromhex("0600 0200 0f00 0000 0700000000000000") + payload
    split = memory.read(6 * HV_PAGE - before, before) + memory.read(3 * HV_PAGE, 128 - before)
    assert raw + bytes(4) + (end - before).to_bytes(4, "little") == split
    assert 128 - before == shared.guest.control.write_index
    assert (payload, 7, False) == shared.reader.read(4096)
    assert 128 - before == shared.guest.control.read_index


def test_one_ring_both_ways_at_random(memory: GuestMemory, seed: int) -> None:
    """Two rings, guest to host and back, on shuffled pages: everything arrives once, in order, byte for byte."""
    draw = random.Random(seed)
    pfns = draw.sample(range(PAGES), 12)
    there, back = Shared(memory, pfns[:5]), Shared(memory, pfns[5:])
    for shared in (there, back):
        sent: list[Packet] = []
        for number in range(2000):
            packet = Packet(draw.randbytes(8 * draw.randrange(200)), trans_id=number)
            if packet.ring_bytes >= shared.guest.bytes_to_write:
                assert sent == list(shared.reader.packets())
                shared.reader.close()
                sent.clear()
            shared.writer.write(packet)
            sent.append(packet)
        assert sent == list(shared.reader.packets())


@settings(max_examples=100)
@given(st.permutations(range(10)), st.integers(2, 10), st.lists(st.integers(0, 9000), max_size=20))
def test_any_order_of_pages_is_the_same_ring(order: list[int], n: int, sizes: list[int]) -> None:
    """What the host reads, and what lies where, is what a ring of its own memory has."""
    with GuestMemory(10 * HV_PAGE) as memory, RingMemory(n * HV_PAGE) as plain:
        shared = Shared(memory, order[:n])
        writer, reader = RingWriter(plain), RingReader(plain, max_pkt_size=1 << 20)
        for size in sizes:
            packet = Packet(bytes(i % 255 for i in range(size)), trans_id=size)
            if packet.ring_bytes < plain.bytes_to_write:
                assert writer.write(packet) == shared.writer.write(packet)
            assert plain.peek(0, 2 * plain.data_size) == shared.host.peek(0, 2 * plain.data_size)
            if size % 3:
                assert list(reader.packets()) == list(shared.reader.packets())
                assert reader.close() == shared.reader.close()
            assert plain.control == shared.host.control == shared.guest.control


# ---- what cannot be mapped


@pytest.mark.parametrize("pfns", [[], [1]])
def test_a_ring_has_a_control_page_and_one_of_data(memory: GuestMemory, pfns: list[int]) -> None:
    """vmbus.md 1.2: each ring has at least one data page."""
    error = refused(memory.fd, pfns)
    assert errno.EINVAL == error.errno
    assert f"a ring of {len(pfns)} pages" in str(error)
    assert 4096 == RingMemory.map(memory.fd, [1, 2]).data_size


def test_a_ring_has_at_most_the_bytes_that_a_ring_can_have() -> None:
    """1 GiB, VI_RING_BYTES_MAX: one page more is EINVAL."""
    most = lib.VI_RING_BYTES_MAX // HV_PAGE
    with GuestMemory(2 << 30) as memory:
        assert errno.EINVAL == refused(memory.fd, range(most + 1)).errno
        with RingMemory.map(memory.fd, range(1, most + 1)) as ring:
            assert lib.VI_RING_BYTES_MAX - RING_HDR == ring.data_size
            ring.poke(ring.data_size - 1, b"ab")
            assert b"a" == memory.read((most + 1) * HV_PAGE - 1, 1)
            assert b"b" == memory.read(2 * HV_PAGE, 1)


@pytest.mark.parametrize("bad", [PAGES, PAGES + 1, 2**52, 2**63, 2**64 - 1, 2**64, 2**70, -1])
@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_a_page_outside_the_file_is_einval_and_leaves_nothing(memory: GuestMemory, bad: int, place: int) -> None:
    """It would be SIGBUS at the first access; 2**52 and up would wrap the offset."""
    pfns = [9, 3, 60, 4, PAGES - 1]
    RingMemory.map(memory.fd, pfns).close()
    pfns[place] = bad
    before = mappings()
    error = refused(memory.fd, pfns)
    assert errno.EINVAL == error.errno
    assert f"no page {bad} in it" in str(error)
    assert f"last one is {PAGES - 1}" in str(error)
    assert before == mappings()


def test_a_torn_page_at_the_end_of_a_file_is_outside(tmp_path: Path) -> None:
    """Any file will do; only whole pages count."""
    path = tmp_path / "memory"
    path.write_bytes(bytes(3 * HV_PAGE - 1))
    with path.open("r+b") as file:
        assert errno.EINVAL == refused(file.fileno(), [0, 2]).errno
        ring = RingMemory.map(file.fileno(), [0, 1])
    ring.poke(0, b"kept")
    ring.close()
    assert b"kept" == path.read_bytes()[HV_PAGE : HV_PAGE + 4]


def test_what_is_no_file_of_memory_is_refused(tmp_path: Path) -> None:
    """EBADF where there is none; ENOMEM where it cannot be mapped for writing, and nothing is left behind."""
    path = tmp_path / "memory"
    path.write_bytes(bytes(3 * HV_PAGE))
    before = mappings()
    for fd in (-1, 2**31, 2**31 - 1):
        assert errno.EBADF == refused(fd, [0, 1]).errno
    reading, writing = os.pipe()
    assert errno.EINVAL == refused(reading, [0, 1]).errno
    os.close(reading)
    os.close(writing)
    with path.open("rb") as file:
        assert errno.ENOMEM == refused(file.fileno(), [0, 1]).errno
    assert before == mappings()


def test_too_many_runs_are_enomem_and_leave_nothing() -> None:
    """vm.max_map_count: a ring of single pages takes two mappings for each; where that suffices, the largest maps."""
    limit = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
    most = lib.VI_RING_BYTES_MAX // HV_PAGE
    with GuestMemory() as memory:
        before = mappings()
        if limit // 2 + 2 > most:
            RingMemory.map(memory.fd, range(0, 2 * most, 2)).close()
        else:
            assert errno.ENOMEM == refused(memory.fd, range(0, 2 * (limit // 2 + 2), 2)).errno
        assert before == mappings()


def test_nothing_is_left_of_a_ring_that_is_closed(memory: GuestMemory) -> None:
    """Every piece of it, and no descriptor was taken."""
    before, descriptors = mappings(), descriptors_open()
    for _ in range(100):
        ring = RingMemory.map(memory.fd, SCATTERED)
        assert descriptors == descriptors_open()
        ring.close()
        ring.close()
        assert ring.closed
    assert before == mappings()


# ---- Python ends over those that C has


class Ends:
    """A channel's C ends in guest memory, and the host's."""

    def __init__(self, rig: Rig, memory: GuestMemory) -> None:
        self.rig = rig
        self.ring_in, self.ring_out = (RingMemory.map(memory.fd, range(n, n + 5)) for n in (10, 20))
        self.host_in, self.host_out = (RingMemory.map(memory.fd, range(n, n + 5)) for n in (10, 20))
        self.ring_in.reset()
        self.ring_out.reset()
        out = ffi.new("struct vi_channel **")
        assert 0 == lib.vi_channel_create(rig.m, 5, lib.VI_CALL_BATCHED, out)
        self.channel = out[0]
        assert 0 == lib.vi_channel_set_rings(self.channel, self.ring_in.struct, self.ring_out.struct, 4096)
        vsp = ffi.new("struct vi_vsp **")
        assert 0 == lib.vi_vsp_create(rig.m, 5, self.host_in.struct, self.host_out.struct, vsp)
        self.vsp = vsp[0]

    def close(self) -> None:
        lib.vi_vsp_destroy(self.vsp)
        assert 0 == lib.vi_channel_set_rings(self.channel, ffi.NULL, ffi.NULL, 0)
        lib.vi_channel_destroy(self.channel)


@pytest.fixture
def ends(memory: GuestMemory) -> Iterator[Ends]:
    """A channel and its host's half, closed."""
    with Rig() as rig:
        made = Ends(rig, memory)
        yield made
        made.close()


def test_wrapped_ends_are_the_ends_that_c_has(ends: Ends) -> None:
    """Packets and counters are the C end's: what one side does, the other goes on from."""
    guest_out = RingWriter.wrap(lib.vi_channel_out(ends.channel), ends.ring_out)
    host_out = RingReader.wrap(lib.vi_vsp_out(ends.vsp), ends.host_out)
    assert guest_out.write(Packet(b"to the host", trans_id=3)) is True
    assert [Packet(b"to the host" + bytes(5), trans_id=3)] == list(host_out.packets(view=True))
    assert host_out.close() is False
    assert 1 == lib.vi_channel_out(ends.channel).intr_out_empty == guest_out.stats.intr_out_empty
    host_in = RingWriter.wrap(lib.vi_vsp_in(ends.vsp), ends.host_in)
    guest_in = RingReader.wrap(lib.vi_channel_in(ends.channel), ends.ring_in)
    assert Written(2, True) == host_in.write_batch([Packet(b"12345678"), Packet(b"x" * 2000)])
    assert (b"12345678", 0, False) == guest_in.read(100)
    assert 1 == guest_in.drain().packets
    assert lib.vi_channel_in(ends.channel).read_index == ends.host_in.control.read_index == 32 + 2024


def test_a_wrapped_reader_keeps_its_copy_buffer_and_rules(ends: Ends) -> None:
    """vmbus.md 1.15: a packet longer than the copy buffer is cut to it, as hv_pkt_iter_first() does."""
    RingWriter.wrap(lib.vi_vsp_in(ends.vsp), ends.host_in).write(Packet(b"y" * 8000))
    reader = RingReader.wrap(lib.vi_channel_in(ends.channel), ends.ring_in)
    packet = reader.first()
    assert packet is not None
    assert 4096 - 16 == len(packet.payload)
    assert "" == reader.failure


def test_a_wrapped_reader_without_a_copy_buffer_reads_in_place(ends: Ends) -> None:
    """A VSP's end has none: ENOBUFS says so and consumes nothing."""
    RingWriter.wrap(lib.vi_channel_out(ends.channel), ends.ring_out).write(Packet(b"z" * 9000))
    reader = RingReader.wrap(lib.vi_vsp_out(ends.vsp), ends.host_out)
    with pytest.raises(IrqError, match="read it in place") as caught:
        reader.first()
    assert errno.ENOBUFS == caught.value.errno
    assert [Packet(b"z" * 9000)] == list(reader.packets(view=True))


def test_an_end_of_another_mapping_cannot_be_wrapped(ends: Ends) -> None:
    """The memory says when the end must not be used any more, so it must be the one in use."""
    for call in (
        lambda: RingReader.wrap(lib.vi_channel_in(ends.channel), ends.host_in),
        lambda: RingWriter.wrap(lib.vi_channel_out(ends.channel), ends.ring_in),
    ):
        with pytest.raises(IrqError, match="another mapping") as caught:
            call()
        assert errno.EINVAL == caught.value.errno
    assert 0 == lib.vi_channel_set_rings(ends.channel, ffi.NULL, ffi.NULL, 0)
    with pytest.raises(IrqError, match="no ring") as caught:
        RingReader.wrap(lib.vi_channel_in(ends.channel), ends.ring_in)
    assert errno.EINVAL == caught.value.errno


def test_wrapped_ends_of_closed_memory_are_ebadf(ends: Ends) -> None:
    """Instead of an access to what is no longer mapped."""
    writer = RingWriter.wrap(lib.vi_channel_out(ends.channel), ends.ring_out)
    ends.ring_out.close()
    for call in (
        lambda: writer.write(Packet()),
        lambda: RingWriter.wrap(lib.vi_channel_out(ends.channel), ends.ring_out),
    ):
        with pytest.raises(IrqError) as caught:
            call()
        assert errno.EBADF == caught.value.errno


def test_a_ring_that_is_kept_stays_mapped_when_it_is_closed() -> None:
    """Who puts back how things were finds the ring where it was; to everybody else it is closed."""
    ring = RingMemory(2 * HV_PAGE)
    ring.kept = True
    where = ring.struct.map
    ring.close()
    assert ring.closed
    with pytest.raises(IrqError, match="closed") as caught:
        _ = ring.struct
    assert (errno.EBADF, where) == (caught.value.errno, ring._mem.map)
