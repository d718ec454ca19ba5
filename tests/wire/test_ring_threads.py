"""Two threads with nothing but a ring and the signals it asks for: no packet lost or altered, no wake-up missed."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from random import Random

import pytest

from vmbusirq.errors import IrqError
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.ring import RingMemory, RingReader, RingWriter

PATIENCE_S = 60.0
"""A lost wake-up is a hang; this makes it a failure."""


def numbered(seed: int, count: int) -> list[Packet]:
    """Return packets whose size and content follow from the seed."""
    random = Random(seed)
    return [Packet(random.randbytes(random.choice([0, 8, 64, 200, 1400])), trans_id=i) for i in range(count)]


def send(
    memory: RingMemory, packets: list[Packet], ring_reader: Callable[[], object], bell: threading.Semaphore
) -> None:
    """Write all packets in batches; sleep when there is no room, until the ring's flow control wakes us."""
    writer = RingWriter(memory)
    while packets:
        try:
            written = writer.write_batch(packets[:16])
        except IrqError as error:
            assert errno.EAGAIN == error.errno  # noqa: PT017 - any other must fail
            writer.set_pending_send_size(packets[0].ring_bytes)
            try:
                written = writer.write_batch(packets[:16])
            except IrqError:
                assert bell.acquire(timeout=PATIENCE_S)
                continue
            writer.set_pending_send_size(0)
        packets = packets[written.accepted :]
        if written.signal:
            ring_reader()


def receive(
    memory: RingMemory, count: int, ring_writer: Callable[[], object], bell: threading.Semaphore
) -> list[Packet]:
    """Read so many packets; mask while polling, sleep when the ring is empty, until it signals."""
    reader = RingReader(memory)
    got: list[Packet] = []
    while len(got) < count:
        reader.begin_read()
        for _ in range(16):
            packet = reader.next(view=bool(len(got) & 1))
            if packet is None:
                break
            got.append(packet)
        reader.skip()
        if reader.close():
            ring_writer()
        if reader.end_read() == 0 and len(got) < count:
            assert bell.acquire(timeout=PATIENCE_S)
    return got


def exchange(seed: int, count: int) -> None:
    """Send packets from one thread to another through a small ring."""
    packets = numbered(seed, count)
    to_reader, to_writer = threading.Semaphore(0), threading.Semaphore(0)
    with RingMemory(4096 + 8192) as memory:
        thread = threading.Thread(target=send, args=(memory, packets, to_reader.release, to_writer), daemon=True)
        thread.start()
        got = receive(memory, count, to_writer.release, to_reader)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert packets == got


def test_two_threads_lose_and_alter_nothing() -> None:
    """vmbus.md 1.13: the barriers that two real threads need."""
    exchange(seed=1, count=6000)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_two_threads_lose_and_alter_nothing_for_long(seed: int) -> None:
    """The same, at length; tests/c/test_ring.c does 10^8."""
    exchange(seed, count=200_000)
