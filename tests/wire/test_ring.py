"""The ring: sizes, borders, signalling, flow control (vmbus.md 1, check values of 1.17)."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from vmbusirq.errors import IrqError
from vmbusirq.wire.packet import (
    COMPLETION,
    COMPLETION_REQUESTED,
    DATA_USING_GPA_DIRECT,
    DATA_USING_XFER_PAGES,
    RING_HDR,
    Packet,
    vmbus_ring_size,
)
from vmbusirq.wire.ring import Control, ReaderStats, RingMemory, RingReader, RingWriter, WriterStats, Written


class Ring:
    """Both ends of one ring."""

    def __init__(self, data_size: int, *, strict: bool = False, max_pkt_size: int = 1 << 20) -> None:
        self.memory = RingMemory(RING_HDR + data_size)
        self.writer = RingWriter(self.memory, strict=strict)
        self.reader = RingReader(self.memory, strict=strict, max_pkt_size=max_pkt_size)


@pytest.fixture
def ring() -> Iterator[Ring]:
    """The smallest ring of hv_utils."""
    made = Ring(12288)
    yield made
    made.memory.close()


@pytest.mark.parametrize("ring_bytes", [-4096, 0, 4095, 4096, 8191, 8193, 2**30 + 4096, 2**32, 2**32 + 8192])
def test_a_ring_is_a_control_page_and_whole_pages_of_data(ring_bytes: int) -> None:
    """vmbus.md 1.2: vmbus_alloc_ring returns EINVAL for anything else."""
    with pytest.raises(IrqError) as caught:
        RingMemory(ring_bytes)
    assert errno.EINVAL == caught.value.errno
    assert str(ring_bytes) in str(caught.value)


def test_smallest_ring_has_one_page_of_data() -> None:
    """vmbus.md 1.2, QEMU's rule: at least one data page."""
    with RingMemory(8192) as memory:
        assert 4096 == memory.data_size
        assert Control(0, 0, 0, 0, 1) == memory.control


@pytest.mark.parametrize(
    ("payload", "ring_bytes"),
    [
        (12288, 16384),
        (16384, 20480),
        (36864, 36864),
        (131072, 131072),
        (524288, 524288),
        (28672, 32768),
        (32768, 32768),
    ],
)
def test_driver_ring_sizes(payload: int, ring_bytes: int) -> None:
    """VMBUS_RING_SIZE, include/linux/hyperv.h, v6.10: below 32 KiB the header is added."""
    assert ring_bytes == vmbus_ring_size(payload)


def test_data_is_mapped_twice(ring: Ring) -> None:
    """vmbus.md 1.3."""
    ring.memory.poke(12288 - 2, b"abcd")
    assert b"cd" == ring.memory.peek(0, 2)
    assert b"abcd" == ring.memory.peek(12288 - 2, 4)


def test_check_value_100_byte_payload(ring: Ring) -> None:
    """vmbus.md 1.17: len8 15, offset8 2, 128 bytes of ring, trailer 0."""
    assert ring.writer.write(Packet(bytes(range(100)), trans_id=0x0102030405060708)) is True
    head = bytes.fromhex("0600 0200 0f00 0000 0807060504030201")
    assert head + bytes(range(100)) + bytes(4) + bytes(8) == ring.memory.peek(0, 128)
    assert 128 == ring.memory.control.write_index
    assert 128 == ring.memory.bytes_to_read
    assert 12288 - 128 == ring.memory.bytes_to_write


def test_check_value_empty_packet(ring: Ring) -> None:
    """vmbus.md 1.17: len8 2, 24 bytes of ring, trailer's high word is where the packet began."""
    ring.writer.write(Packet(bytes(100)))
    ring.memory.poke(128, b"\xff" * 24)
    assert ring.writer.write(Packet(type=COMPLETION, flags=COMPLETION_REQUESTED)) is False
    assert bytes.fromhex("0b00 0200 0200 0100") + bytes(8) + bytes.fromhex("00000000 80000000") == ring.memory.peek(
        128, 24
    )
    assert 152 == ring.memory.control.write_index


def test_padding_is_zero_whatever_was_there(ring: Ring) -> None:
    """vmbus.md 1.5: padding zero bytes belong to len8."""
    for size in range(18):
        at = ring.memory.control.write_index
        ring.memory.poke(at, b"\xee" * 64)
        ring.writer.write(Packet(b"\xaa" * size))
        assert (b"\xaa" * size).ljust(-(-size // 8) * 8, b"\0") == ring.memory.peek(at + 16, -(-size // 8) * 8)


def test_check_value_fill() -> None:
    """vmbus.md 1.17: four packets of 4024 bytes fit 16384, the fifth does not with 288 left."""
    ring = Ring(16384)
    assert Written(4, True) == ring.writer.write_batch([Packet(bytes(4000))] * 5)
    assert 288 == ring.memory.bytes_to_write
    with pytest.raises(IrqError) as caught:
        ring.writer.write(Packet(bytes(4000)))
    assert errno.EAGAIN == caught.value.errno
    assert "more than 4024 bytes must be free, 288 are (EAGAIN)" in str(caught.value)
    assert WriterStats(1, 2, 1) == ring.writer.stats


@pytest.mark.parametrize("size", [0, 7, 8, 248])
def test_a_packet_that_fills_the_ring_is_refused(size: int) -> None:
    """vmbus.md 1.8: refused if avail <= total, so that a full ring never looks empty."""
    ring = Ring(4096)
    ring.writer.write(Packet(bytes(4096 - 24 - Packet(bytes(size)).ring_bytes)))
    assert Packet(bytes(size)).ring_bytes == ring.memory.bytes_to_write
    with pytest.raises(IrqError) as caught:
        ring.writer.write(Packet(bytes(size)))
    assert errno.EAGAIN == caught.value.errno
    assert ring.reader.next() is not None
    ring.reader.skip()
    ring.reader.close()
    ring.writer.write(Packet(bytes(4096 - 24 - Packet(bytes(size)).ring_bytes - 8)))
    assert ring.writer.write(Packet(bytes(size))) is False
    assert 8 == ring.memory.bytes_to_write


def test_write_that_ends_at_the_end_of_data_wraps_to_0() -> None:
    """vmbus.md 1.3."""
    ring = Ring(4096)
    ring.writer.write(Packet(bytes(2048 - 24)))
    assert ring.reader.read(4096) == (bytes(2024), 0, False)
    ring.writer.write(Packet(b"\x01" * (2048 - 24)))
    assert 0 == ring.memory.control.write_index
    assert 2048 == ring.memory.bytes_to_read
    assert ring.reader.read(4096) == (b"\x01" * 2024, 0, False)
    assert 0 == ring.memory.control.read_index


@pytest.mark.parametrize("step", [40, 120, 1000])
def test_packets_survive_the_wrap_at_every_offset(step: int) -> None:
    """vmbus.md 1.3: copies run over the end of the data."""
    ring = Ring(4096)
    payload = bytes(i * 7 & 255 for i in range(step))
    for i in range(4096 // 8 + 3):
        assert ring.writer.write(Packet(payload, trans_id=i)) is True
        assert ring.reader.read(4096) == (payload, i, False)


def test_page_ranges_stand_between_descriptor_and_payload(ring: Ring) -> None:
    """vmbus.md 1.7: type 9, offset8 = descriptor / 8; a page buffer range is 16 bytes."""
    ranges = bytes.fromhex("00000000 01000000 00100000 00000000 3412000000000000")
    packet = Packet(b"scsi", DATA_USING_GPA_DIRECT, COMPLETION_REQUESTED, 77, ranges)
    ring.writer.write(packet)
    assert bytes.fromhex("0900 0500 0600 0100") == ring.memory.peek(0, 8)
    assert Packet(b"scsi\0\0\0\0", packet.type, packet.flags, 77, ranges) == ring.reader.first()


def test_transfer_pages_round_trip(ring: Ring) -> None:
    """vmbus.md 1.7: type 7, pageset id, range count, ranges."""
    ranges = bytes.fromhex("adde 01 00 01000000 f8050000 00000000")
    ring.writer.write(Packet(b"", DATA_USING_XFER_PAGES, 1, 5, ranges))
    assert Packet(b"", DATA_USING_XFER_PAGES, 1, 5, ranges) == ring.reader.first(view=True)


@pytest.mark.parametrize("kind", [*range(6), 8, 10, *range(12, 17), 65535])
def test_unused_packet_types_are_not_written(kind: int, ring: Ring) -> None:
    """vmbus.md 1.5: only 6, 7, 9 and 0xb are in use."""
    with pytest.raises(IrqError) as caught:
        ring.writer.write(Packet(type=kind))
    assert errno.EINVAL == caught.value.errno
    assert 0 == ring.memory.control.write_index


@pytest.mark.parametrize(
    "packet",
    [
        Packet(flags=2),
        Packet(flags=0x8001),
        Packet(type=DATA_USING_GPA_DIRECT),
        Packet(type=DATA_USING_XFER_PAGES),
        Packet(type=DATA_USING_GPA_DIRECT, ranges=bytes(12)),
        Packet(type=-1),
        Packet(type=65542),
        Packet(flags=-1),
        Packet(trans_id=-1),
        Packet(trans_id=2**64),
    ],
)
def test_what_the_descriptor_cannot_say_is_refused(packet: Packet, ring: Ring) -> None:
    """vmbus.md 1.5 and 1.7."""
    for attempt in (ring.writer.write, ring.writer.put, lambda p: ring.writer.write_batch([p])):
        with pytest.raises(IrqError) as caught:
            attempt(packet)
        assert errno.EINVAL == caught.value.errno
    assert 0 == ring.memory.control.write_index


def test_largest_packet_of_the_format() -> None:
    """vmbus.md 1.4: len8 is 16 bits, so 524280 bytes and a trailer."""
    ring = Ring(1 << 20)
    assert ring.writer.write(Packet(b"\x07" * (524280 - 16))) is True
    got = ring.reader.first()
    assert got is not None
    assert b"\x07" * (524280 - 16) == got.payload
    with pytest.raises(IrqError) as caught:
        ring.writer.write(Packet(bytes(524280 - 15)))
    assert errno.EMSGSIZE == caught.value.errno


def test_a_packet_larger_than_the_ring() -> None:
    """vmbus.md 1.4 and 1.8: Linux says EAGAIN for ever, OpenVMM refuses from datasize - 8 on."""
    for strict, size, error in [
        (False, 4096 - 24, errno.EAGAIN),
        (False, 9000, errno.EAGAIN),
        (True, 4096 - 8 - 24, errno.EMSGSIZE),
        (True, 9000, errno.EMSGSIZE),
    ]:
        with pytest.raises(IrqError) as caught:
            Ring(4096, strict=strict).writer.write(Packet(bytes(size)))
        assert error == caught.value.errno
    assert Ring(4096).writer.write(Packet(bytes(4096 - 8 - 24))) is True
    assert Ring(4096, strict=True).writer.write(Packet(bytes(4096 - 16 - 24))) is True


def test_batch_stops_at_the_first_bad_packet(ring: Ring) -> None:
    """A batch does what single writes up to the first error would do."""
    assert Written(2, True) == ring.writer.write_batch([Packet(), Packet(), Packet(type=1), Packet()])
    with pytest.raises(IrqError) as caught:
        ring.writer.write_batch([Packet(type=1), Packet()])
    assert errno.EINVAL == caught.value.errno
    assert Written(0, False) == ring.writer.write_batch([])
    assert 48 == ring.memory.control.write_index


def test_writer_signals_only_a_drained_unmasked_reader(ring: Ring) -> None:
    """vmbus.md 1.9: interrupt_mask 0 and old write_index == read_index."""
    assert ring.writer.write(Packet()) is True
    assert ring.writer.write(Packet()) is False
    ring.reader.drain()
    ring.reader.begin_read()
    assert 1 == ring.memory.control.interrupt_mask
    assert ring.writer.write(Packet()) is False
    assert 24 == ring.reader.end_read()
    assert 0 == ring.memory.control.interrupt_mask
    assert 1 == ring.reader.drain().packets
    assert 0 == ring.reader.end_read()
    assert Written(3, True) == ring.writer.write_batch([Packet()] * 3)
    assert 2 == ring.writer.stats.intr_out_empty


def test_end_read_counts_from_the_shared_index(ring: Ring) -> None:
    """vmbus.md 1.12: what was stepped over but not closed still waits."""
    ring.writer.write_batch([Packet(), Packet()])
    assert 2 == len(list(ring.reader.packets()))
    assert 48 == ring.reader.end_read()
    ring.reader.close()
    assert 0 == ring.reader.end_read()


def test_steps_of_a_write(ring: Ring) -> None:
    """design.md 4: copy, publish, signal check are steps of their own."""
    ring.writer.put(Packet(b"one"))
    assert ring.reader.first() is None
    assert 0 == ring.memory.control.write_index
    assert ring.writer.publish() is True
    assert ring.writer.must_signal() is True
    assert ring.writer.publish() is False
    assert ring.writer.must_signal() is False
    assert Packet(b"one\0\0\0\0\0") == ring.reader.first()


def test_steps_of_a_close(ring: Ring) -> None:
    """vmbus.md 1.11: the index is stored before pending_send_sz is read."""
    ring.writer.write(Packet(bytes(4000)))
    ring.writer.set_pending_send_size(12288 - 8)
    assert ring.reader.publish_read() is False
    assert ring.reader.first() is not None
    ring.reader.skip()
    assert 0 == ring.memory.control.read_index
    assert ring.reader.publish_read() is True
    assert 4024 == ring.memory.control.read_index
    assert ring.reader.must_signal_writer() is True


@pytest.mark.parametrize("strict", [False, True])
def test_flow_control_check_value(strict: bool) -> None:
    """vmbus.md 1.17, OpenVMM's test: pending size 8048, reads signal no, yes, no."""
    ring = Ring(16384, strict=strict)
    ring.writer.write_batch([Packet(bytes(4000))] * 4)
    ring.writer.set_pending_send_size(8048)
    signals = []
    for _ in range(4):
        got = ring.reader.read(4096)
        assert got is not None
        signals.append(got[2])
    assert [False, True, False, False] == signals
    assert ReaderStats(1) == ring.reader.stats


@pytest.mark.parametrize(
    ("pending", "signal"), [(0, False), (4312, False), (4311, True), (4304, True), (288, True), (287, False)]
)
def test_flow_control_borders(pending: int, signal: bool) -> None:
    """vmbus.md 1.11: exactly the wanted size is not enough; room from before is no news. 288 -> 4312 free."""
    ring = Ring(16384)
    ring.writer.write_batch([Packet(bytes(4000))] * 4)
    ring.writer.set_pending_send_size(pending)
    got = ring.reader.read(4096)
    assert got is not None
    assert signal is got[2]


def test_no_flow_control_without_the_feature_bit() -> None:
    """vmbus.md 1.1: if the peer's bit is clear, the writer polls and the reader must not signal."""
    ring = Ring(16384)
    ring.memory.poke_control("feature_bits", 0)
    ring.writer.write_batch([Packet(bytes(4000))] * 4)
    ring.writer.set_pending_send_size(4024)
    got = ring.reader.read(4096)
    assert got is not None
    assert got[2] is False


def test_flow_control_ignores_the_interrupt_mask() -> None:
    """vmbus.md 1.11: interrupt_mask is not consulted."""
    ring = Ring(16384)
    ring.writer.write_batch([Packet(bytes(4000))] * 4)
    ring.writer.set_pending_send_size(4024)
    ring.reader.begin_read()
    got = ring.reader.read(4096)
    assert got is not None
    assert got[2] is True


def test_ring_size_less_one_means_empty() -> None:
    """vmbus.md 1.11: some guests ask for ring size - 1; both rules signal when the ring is empty."""
    for strict in (False, True):
        ring = Ring(4096, strict=strict)
        ring.writer.write_batch([Packet(), Packet()])
        ring.memory.poke_control("pending_send_sz", 4095)
        signals = [got[2] for got in (ring.reader.read(64), ring.reader.read(64)) if got]
        assert [False, True] == signals


def test_pending_send_size_counts_an_episode_once(ring: Ring) -> None:
    """vmbus.md 1.11: set_channel_pending_send_size counts as a refused packet."""
    ring.writer.set_pending_send_size(100)
    ring.writer.set_pending_send_size(200)
    assert WriterStats(1, 2, 0) == ring.writer.stats
    assert 200 == ring.memory.control.pending_send_sz
    ring.writer.set_pending_send_size(0)
    ring.writer.set_pending_send_size(100)
    assert WriterStats(2, 3, 0) == ring.writer.stats


def test_strict_pending_send_size_is_rounded_and_bounded() -> None:
    """vmbus.md 1.11: OpenVMM writers round up to 8 and refuse more than datasize - 8."""
    ring = Ring(4096, strict=True)
    ring.writer.set_pending_send_size(4081)
    assert 4088 == ring.memory.control.pending_send_sz
    for size in (4089, 2**32 - 1, 2**32, -1):
        with pytest.raises(IrqError) as caught:
            ring.writer.set_pending_send_size(size)
        assert errno.EINVAL == caught.value.errno
    assert 4088 == ring.memory.control.pending_send_sz


def test_recvpacket(ring: Ring) -> None:
    """vmbus.md 1.10: empty is no error; too small a buffer consumes nothing; raw has the descriptor."""
    assert ring.reader.read(64) is None
    ring.writer.write(Packet(b"x" * 24, trans_id=5))
    for size in (1, 23):
        with pytest.raises(IrqError) as caught:
            ring.reader.read(size)
        assert errno.ENOBUFS == caught.value.errno
        assert "24 bytes" in str(caught.value)
    with pytest.raises(IrqError) as caught:
        ring.reader.read(39, raw=True)
    assert "40 bytes" in str(caught.value)
    assert 0 == ring.memory.control.read_index
    assert (bytes.fromhex("0600 0200 0500 0000 0500000000000000") + b"x" * 24, 5, False) == ring.reader.read(
        40, raw=True
    )
    assert 48 == ring.memory.control.read_index
    ring.writer.write(Packet(trans_id=6))
    assert (b"", 6, False) == ring.reader.read(1)
    assert ring.reader.read(1) is None


@pytest.mark.parametrize("size", [0, -1, 2**32])
def test_recvpacket_needs_a_buffer(size: int, ring: Ring) -> None:
    """vmbus.md 1.10: buflen 0 is EINVAL, packet or not."""
    with pytest.raises(IrqError) as caught:
        ring.reader.read(size)
    assert errno.EINVAL == caught.value.errno


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_drain_takes_up_to_its_budget(count: int, ring: Ring) -> None:
    """performance.md 3: room is given back every 64 packets."""
    sent = [Packet(i.to_bytes(8, "little"), trans_id=i << 56) for i in range(200)]
    ring.writer.write_batch(sent)
    tally = ring.reader.drain(count)
    assert count == tally.packets
    assert 8 * count == tally.payload_bytes
    assert sum(i + (i << 56) for i in range(count)) % 2**64 == tally.checksum
    assert 32 * count == ring.memory.control.read_index
    assert 200 - count == ring.reader.drain().packets
    assert 0 == ring.reader.drain(0).packets


def test_ends_are_opened_where_the_indices_stand() -> None:
    """An end may be taken over; an impossible index is not."""
    memory = RingMemory(8192)
    RingWriter(memory).write(Packet(b"early"))
    assert Packet(b"early\0\0\0") == RingReader(memory).first()
    RingWriter(memory).write(Packet(b"late"))
    assert 2 == len(list(RingReader(memory).packets()))
    for field, value in [("write_index", 4096), ("write_index", 4), ("read_index", 4096), ("read_index", 12)]:
        memory.reset()
        memory.poke_control(field, value)
        for end in (RingWriter, RingReader):
            with pytest.raises(IrqError) as caught:
                end(memory)
            assert errno.EIO == caught.value.errno


@pytest.mark.parametrize("size", [-1, 0, 15, 2**32])
def test_copy_buffer_holds_a_descriptor(size: int) -> None:
    """Every packet begins with 16 bytes."""
    with RingMemory(8192) as memory, pytest.raises(IrqError) as caught:
        RingReader(memory, max_pkt_size=size)
    assert errno.EINVAL == caught.value.errno


def test_a_closed_ring_is_not_touched() -> None:
    """Unmapped memory must raise, not crash."""
    memory = RingMemory(8192)
    writer, reader = RingWriter(memory), RingReader(memory)
    memory.close()
    memory.close()
    assert memory.closed
    for call in (
        lambda: writer.write(Packet()),
        lambda: writer.write_batch([Packet()]),
        writer.publish,
        reader.first,
        reader.close,
        reader.drain,
        reader.begin_read,
        lambda: reader.read(10),
        lambda: memory.control,
        lambda: memory.peek(0, 1),
        lambda: RingReader(memory),
    ):
        with pytest.raises(IrqError) as caught:
            call()
        assert errno.EBADF == caught.value.errno


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (24576, 1), (12288, 12289)])
def test_peek_and_poke_stay_inside(offset: int, size: int, ring: Ring) -> None:
    """Two mappings of 12288 bytes, no more."""
    with pytest.raises(IrqError) as caught:
        ring.memory.peek(offset, size)
    assert errno.EINVAL == caught.value.errno


@pytest.mark.parametrize(("field", "value"), [("reserved1", 0), ("write_index", -1), ("read_index", 2**32)])
def test_control_page_has_these_fields(field: str, value: int, ring: Ring) -> None:
    """vmbus.md 1.1."""
    with pytest.raises(IrqError) as caught:
        ring.memory.poke_control(field, value)
    assert errno.EINVAL == caught.value.errno
