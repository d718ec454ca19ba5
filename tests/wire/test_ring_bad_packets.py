"""What each side does with a bad packet or index: every row of vmbus.md 1.15, for both readers and both writers."""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbusirq.errors import IrqError
from vmbusirq.wire.packet import DATA_INBAND, DATA_USING_GPA_DIRECT, DATA_USING_XFER_PAGES, Packet
from vmbusirq.wire.ring import RingMemory, RingReader, RingWriter

DATA = 4096
WORDS = bytes(range(64))


def descriptor(type: int = DATA_INBAND, offset8: int = 2, len8: int = 10, flags: int = 0) -> bytes:  # noqa: A002
    """Return the first 8 bytes of a packet."""
    return b"".join(field.to_bytes(2, "little") for field in (type, offset8, len8, flags))


def forged(head: bytes, *, more: int = 1) -> RingMemory:
    """Return a ring of one packet with 64 bytes of payload whose descriptor was overwritten, and ``more`` good ones."""
    memory = RingMemory(4096 + DATA)
    RingWriter(memory).write_batch([Packet(WORDS, trans_id=3)] + [Packet(b"good", trans_id=4)] * more)
    memory.poke(0, head)
    return memory


def refusal(memory: RingMemory, look: Callable[[RingReader], object] = RingReader.first) -> str:
    """Return why a strict reader fails; check that it stays failed and consumes nothing, whatever the peer does."""
    reader = RingReader(memory, strict=True)
    for _ in range(2):
        with pytest.raises(IrqError) as caught:
            look(reader)
        assert errno.EIO == caught.value.errno
        memory.poke(0, descriptor())
        memory.poke_control("write_index", 88)
    assert reader.close() is False
    assert 0 == memory.control.read_index
    assert reader.failure in str(caught.value)
    return reader.failure


LOOKS = [RingReader.first, lambda r: r.first(view=True), lambda r: r.read(4096), RingReader.drain, RingReader.next]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (descriptor(len8=0), "len8 is less"),
        (descriptor(len8=1), "len8 is less"),
        (descriptor(len8=11), "longer than what was published"),
        (descriptor(len8=65535), "longer than what was published"),
        (descriptor(offset8=0), "offset8 is less"),
        (descriptor(offset8=1), "offset8 is less"),
        (descriptor(offset8=11), "len8 is less than offset8"),
        (descriptor(offset8=65535), "len8 is less than offset8"),
        (descriptor(flags=2), "a flag other than 1"),
        (descriptor(flags=0x8001), "a flag other than 1"),
        (descriptor(type=0), "the packet type is not"),
        (descriptor(type=1), "the packet type is not"),
        (descriptor(type=10), "the packet type is not"),
        (descriptor(type=12), "the packet type is not"),
        (descriptor(type=65535), "the packet type is not"),
        (descriptor(type=DATA_USING_GPA_DIRECT, offset8=2), "offset8 is less"),
        (descriptor(type=DATA_USING_XFER_PAGES, offset8=2), "offset8 is less"),
        (descriptor(type=DATA_USING_GPA_DIRECT, offset8=3) + bytes(8) + bytes(8), "no range"),
    ],
)
def test_strict_reader_fails_the_channel(head: bytes, reason: str, look: Callable[[RingReader], object]) -> None:
    """vmbus.md 1.15, OpenVMM: corrupt; flags, type, lengths, ranges."""
    assert reason in refusal(forged(head, more=0), look)


@pytest.mark.parametrize(
    ("write_index", "reason"),
    [
        (8, "less than a packet descriptor"),
        (4, "index is outside the ring or not a multiple of 8"),
        (12, "index is outside"),
        (DATA, "index is outside"),
        (DATA + 88, "index is outside"),
        (2**32 - 8, "index is outside"),
        (16, "longer than what was published"),
        (80, "longer than what was published"),
    ],
)
def test_strict_reader_checks_what_was_published(write_index: int, reason: str) -> None:
    """vmbus.md 1.15: avail < 16, index out of range or unaligned; a packet without its trailer is not all there."""
    memory = RingMemory(4096 + DATA)
    reader = RingReader(memory, strict=True)
    RingWriter(memory).write(Packet(WORDS))
    memory.poke_control("write_index", write_index)
    for _ in range(2):
        with pytest.raises(IrqError) as caught:
            reader.first()
        assert errno.EIO == caught.value.errno
        memory.poke_control("write_index", 88)
    assert reason in reader.failure


def test_strict_reader_takes_what_is_just_right() -> None:
    """vmbus.md 1.15, the other side of each border."""
    gpa = descriptor(type=DATA_USING_GPA_DIRECT, offset8=3) + bytes(8) + bytes(4) + b"\1\0\0\0"
    for head in (
        descriptor(len8=10),
        descriptor(offset8=10),
        descriptor(flags=1),
        descriptor(type=11),
        descriptor(type=DATA_USING_XFER_PAGES, offset8=3),
        gpa,
    ):
        for view in (False, True):
            assert RingReader(forged(head), strict=True).first(view=view) is not None


def test_good_packets_before_a_bad_one_are_read() -> None:
    """A drain reports what came before; the failure is the next call's."""
    memory = RingMemory(4096 + DATA)
    RingWriter(memory).write_batch([Packet(WORDS)] * 3)
    memory.poke(88, descriptor(flags=4))
    reader = RingReader(memory, strict=True)
    assert 1 == reader.drain().packets
    assert 88 == memory.control.read_index
    with pytest.raises(IrqError) as caught:
        reader.drain()
    assert "ring offset 88" in str(caught.value)


def test_strict_reader_refuses_what_its_buffer_cannot_take() -> None:
    """No OpenVMM row: it has no copy buffer. Nothing is cut, nothing fails, a view reads it."""
    memory = RingMemory(4096 + DATA)
    RingWriter(memory).write(Packet(WORDS))
    reader = RingReader(memory, strict=True, max_pkt_size=72)
    for look in (RingReader.first, RingReader.drain):
        with pytest.raises(IrqError) as caught:
            look(reader)
        assert errno.ENOBUFS == caught.value.errno
    assert Packet(WORDS) == reader.first(view=True)
    assert (WORDS, 0, False) == reader.read(64)


@pytest.mark.parametrize(
    ("head", "payload", "len8"),
    [
        (descriptor(len8=0), 88 + 32 - 16, 15),
        (descriptor(len8=1), 88 + 32 - 16, 15),
        (descriptor(len8=2), 0, 2),
        (descriptor(len8=15), 88 + 32 - 16, 15),
        (descriptor(len8=16), 88 + 32 - 16, 15),
        (descriptor(len8=65535), 88 + 32 - 16, 15),
        (descriptor(offset8=0), 64, 10),
        (descriptor(offset8=1), 64, 10),
        (descriptor(offset8=3), 56, 10),
        (descriptor(offset8=10), 0, 10),
        (descriptor(offset8=11), 64, 10),
        (descriptor(offset8=65535), 64, 10),
        (descriptor(flags=0xFFFE), 64, 10),
        (descriptor(type=0), 64, 10),
        (descriptor(type=99), 64, 10),
        (descriptor(type=DATA_USING_GPA_DIRECT), 64, 10),
    ],
)
def test_linux_reader_mends_and_goes_on(head: bytes, payload: int, len8: int) -> None:
    """vmbus.md 1.15, Linux: len := min(avail, pkt_buffer_size), offset := 16; the rest is the driver's."""
    for view in (False, True):
        memory = forged(head)
        reader = RingReader(memory)
        got = reader.first(view=view)
        assert got is not None
        assert payload == len(got.payload)
        assert int.from_bytes(head[:2], "little") == got.type
        assert int.from_bytes(head[6:8], "little") == got.flags
        assert 3 == got.trans_id
        reader.skip()
        reader.close()
        assert len8 * 8 + 8 == memory.control.read_index
    raw = RingReader(forged(head)).read(4096, raw=True)
    assert raw is not None
    assert len8 * 8 == len(raw[0]) == 8 * int.from_bytes(raw[0][4:6], "little")


@pytest.mark.parametrize(("size", "kept"), [(16, 0), (24, 8), (79, 56), (80, 64), (81, 64)])
def test_linux_reader_cuts_to_its_copy_buffer(size: int, kept: int) -> None:
    """vmbus.md 1.15: packet > copy buffer is truncated to the buffer; vmbus_recvpacket copies from there."""
    memory = forged(descriptor())
    reader = RingReader(memory, max_pkt_size=size)
    got = reader.first()
    assert got is not None
    assert WORDS[:kept] == got.payload
    assert (WORDS[:kept], 3, False) == RingReader(memory, max_pkt_size=size).read(4096)


@pytest.mark.parametrize("write_index", [8, 12, 15])
def test_linux_reader_takes_less_than_a_descriptor_for_empty(write_index: int) -> None:
    """vmbus.md 1.15: avail < 16 is "empty"."""
    memory = RingMemory(4096 + DATA)
    memory.poke_control("write_index", 0)
    reader = RingReader(memory)
    memory.poke_control("write_index", write_index)
    assert reader.first() is None
    assert reader.read(10) is None
    assert 0 == reader.drain().packets


@pytest.mark.parametrize("write_index", [DATA, DATA + 8, 2**31, 2**32 - 1, 4093])
def test_linux_reader_believes_any_index_but_stays_in_the_ring(write_index: int) -> None:
    """vmbus.md 1.15: not checked by Linux; here no index leads outside the two mappings."""
    memory = RingMemory(4096 + DATA)
    reader = RingReader(memory, max_pkt_size=1 << 20)
    memory.poke_control("write_index", write_index)
    for view in (False, True):
        for _ in range(20):
            got = reader.next(view=view)
            assert got is None or len(got.payload) <= DATA
    reader.close()
    assert memory.control.read_index < DATA


@pytest.mark.parametrize("write_index", [12, DATA, 2**32 - 1, 4093])
def test_linux_drain_ends(write_index: int) -> None:
    """An index that is never reached must not keep a callback for ever; nor a packet that overtakes it."""
    memory = RingMemory(4096 + DATA)
    reader = RingReader(memory)
    memory.poke_control("write_index", write_index)
    assert reader.drain().packets <= 64
    memory = forged(descriptor(len8=16), more=1)
    assert 1 == RingReader(memory).drain().packets


@pytest.mark.parametrize("read_index", [DATA, 2**31, 2**32 - 8, 12])
def test_linux_writer_believes_any_index_but_stays_in_the_ring(read_index: int) -> None:
    """vmbus.md 1.4: Linux does not validate the peer's index."""
    memory = RingMemory(4096 + DATA)
    writer = RingWriter(memory)
    memory.poke_control("read_index", read_index)
    for size in (4000, 100, 0, 600) * 5:
        try:
            writer.write(Packet(bytes(size)))
        except IrqError as error:
            assert errno.EAGAIN == error.errno  # noqa: PT017 - either is fine
        assert memory.control.write_index < DATA
    with pytest.raises(IrqError) as caught:
        writer.write(Packet(bytes(DATA)))
    assert errno.EAGAIN == caught.value.errno


@pytest.mark.parametrize("read_index", [DATA, 2**31, 2**32 - 8, 12])
def test_strict_writer_fails_the_channel(read_index: int) -> None:
    """vmbus.md 1.4: OpenVMM rejects any peer index that is not below the data size or not 8-aligned."""
    memory = RingMemory(4096 + DATA)
    writer = RingWriter(memory, strict=True)
    writer.write(Packet(bytes(4000)))
    memory.poke_control("read_index", read_index)
    for _ in range(2):
        with pytest.raises(IrqError) as caught:
            writer.write(Packet(bytes(400)))
        assert errno.EIO == caught.value.errno
        memory.poke_control("read_index", 4024)


@pytest.mark.parametrize("write_index", [DATA, 12])
def test_strict_reader_does_not_signal_by_a_bad_index(write_index: int) -> None:
    """OpenVMM's commit_read: no signal if the writer's index is impossible."""
    memory = RingMemory(4096 + DATA)
    writer, reader = RingWriter(memory), RingReader(memory, strict=True)
    writer.write(Packet(bytes(4000)))
    writer.set_pending_send_size(1000)
    assert reader.first() is not None
    reader.skip()
    memory.poke_control("write_index", write_index)
    assert reader.close() is False


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1).map(lambda seed: Random(seed).randbytes(DATA)),
    st.integers(0, 2**32 - 1) | st.integers(0, DATA // 8).map(lambda i: i * 8),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.integers(16, 10000),
)
def test_no_ring_contents_crash_a_reader(data: bytes, write_index: int, pending: int, strict: bool, size: int) -> None:
    """The guest does not trust the host, nor the host the guest: any bytes end in packets, "empty" or EIO."""
    with RingMemory(4096 + DATA) as memory:
        reader = RingReader(memory, strict=strict, max_pkt_size=size)
        memory.poke(0, data)
        memory.poke_control("write_index", write_index)
        memory.poke_control("pending_send_sz", pending)
        for i in range(30):
            try:
                reader.next(view=bool(i & 1))
                reader.close()
                reader.read(1 + i * 50)
                reader.drain(2)
            except IrqError as error:
                assert error.errno in (errno.EIO, errno.ENOBUFS)  # noqa: PT017 - either is fine
        assert memory.control.read_index < DATA
        assert 0 == memory.control.read_index % 8
