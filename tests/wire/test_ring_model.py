"""The C ring against the plain-Python one of tests/reference/ring.py, for any sequence of operations on both ends."""

from __future__ import annotations

import errno
from dataclasses import asdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.reference.ring import COMPLETION, GPA_DIRECT, IN_BAND, XFER_PAGES, ReferenceRing, Sent
from vmbusirq.errors import IrqError
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.ring import Control, RingMemory, RingReader, RingWriter

DATA = 4096
MAX_PKT = 1040

payloads = st.binary(max_size=40) | st.integers(0, 1500).map(lambda n: bytes(i * 37 & 255 for i in range(n)))
plain = st.builds(Sent, payloads, st.sampled_from([IN_BAND, COMPLETION]), st.integers(0, 1), st.integers(0, 2**64 - 1))
ranged = st.builds(
    Sent,
    payloads,
    st.sampled_from([XFER_PAGES, GPA_DIRECT]),
    st.integers(0, 1),
    st.integers(0, 2**64 - 1),
    st.integers(1, 40).map(lambda n: (b"range" * 8 * n)[: 8 * n]),
)
packets = plain | ranged


def given_to_c(sent: Sent) -> Packet:
    """Return the same packet for the C ring."""
    return Packet(**asdict(sent))


class RingMachine(RuleBasedStateMachine):
    """Both rings get the same operations; answers, shared fields, counters and bytes must agree after each.

    A writer remembers how much room it saw, which an honest reader only makes more; it is left alone once a corrupt
    packet has led the reader past it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = RingMemory(4096 + DATA)
        self.writer = RingWriter(self.memory)
        self.reader = RingReader(self.memory, max_pkt_size=MAX_PKT)
        self.model = ReferenceRing(DATA, max_pkt_size=MAX_PKT)

    def teardown(self) -> None:
        """Give the mappings back."""
        self.memory.close()

    @precondition(lambda self: not self.model.overtaken)
    @rule(sent=packets)
    def write(self, sent: Sent) -> None:
        accepted, signal = self.model.write_batch([sent])
        if accepted:
            assert signal is self.writer.write(given_to_c(sent))
        else:
            with pytest.raises(IrqError) as caught:
                self.writer.write(given_to_c(sent))
            assert errno.EAGAIN == caught.value.errno

    @precondition(lambda self: not self.model.overtaken)
    @rule(batch=st.lists(packets, min_size=1, max_size=12))
    def write_batch(self, batch: list[Sent]) -> None:
        expected = self.model.write_batch(batch)
        if expected[0]:
            written = self.writer.write_batch([given_to_c(sent) for sent in batch])
            assert expected == (written.accepted, written.signal)
        else:
            with pytest.raises(IrqError) as caught:
                self.writer.write_batch([given_to_c(sent) for sent in batch])
            assert errno.EAGAIN == caught.value.errno

    @precondition(lambda self: not self.model.overtaken)
    @rule(sent=plain)
    def put(self, sent: Sent) -> None:
        if self.model.put(sent):
            self.writer.put(given_to_c(sent))
        else:
            with pytest.raises(IrqError) as caught:
                self.writer.put(given_to_c(sent))
            assert errno.EAGAIN == caught.value.errno

    @rule()
    def publish_and_decide(self) -> None:
        self.model.publish()
        self.writer.publish()
        assert self.model.must_signal() is self.writer.must_signal()

    @rule(size=st.integers(0, 5000) | st.sampled_from([0, DATA - 1, DATA, 2**32 - 1]))
    def set_pending_send_size(self, size: int) -> None:
        self.model.set_pending_send_size(size)
        self.writer.set_pending_send_size(size)

    @rule(bit=st.integers(0, 1))
    def change_feature_bit(self, bit: int) -> None:
        self.model.feature_bits = bit
        self.memory.poke_control("feature_bits", bit)

    @rule(view=st.booleans())
    def first(self, view: bool) -> None:
        self.compare_packet(self.model.first(None if view else MAX_PKT), self.reader.first(view=view))

    @rule(view=st.booleans())
    def next(self, view: bool) -> None:
        self.model.skip()
        self.compare_packet(self.model.first(None if view else MAX_PKT), self.reader.next(view=view))

    @rule()
    def skip(self) -> None:
        self.model.skip()
        self.reader.skip()

    @rule()
    def close(self) -> None:
        assert self.model.close() is self.reader.close()

    @rule(budget=st.integers(0, 200))
    def drain(self, budget: int) -> None:
        tally = self.reader.drain(budget)
        assert self.model.drain(budget) == (tally.packets, tally.payload_bytes, tally.checksum, tally.signal)

    @rule(size=st.integers(1, 1600), raw=st.booleans())
    def read(self, size: int, raw: bool) -> None:
        sent = self.model.first(MAX_PKT)
        if sent is None:
            assert self.reader.read(size, raw=raw) is None
            return
        whole = self.model._load(self.model.private_read, self.model.current)
        expected = whole[:2] + (2 + len(sent.ranges) // 8).to_bytes(2, "little") if raw else sent.payload
        expected = expected + (len(whole) // 8).to_bytes(2, "little") + whole[6:] if raw else expected
        if len(expected) > size:
            self.model.current = 0
            with pytest.raises(IrqError) as caught:
                self.reader.read(size, raw=raw)
            assert errno.ENOBUFS == caught.value.errno
            return
        self.model.skip()
        assert (expected, sent.trans_id, self.model.close()) == self.reader.read(size, raw=raw)

    @rule()
    def begin_read(self) -> None:
        self.model.interrupt_mask = 1
        self.reader.begin_read()

    @rule()
    def end_read(self) -> None:
        self.model.interrupt_mask = 0
        assert self.model.bytes_to_read == self.reader.end_read()

    @precondition(lambda self: self.model.bytes_to_read)
    @rule(at=st.integers(0, 2**16), head=st.binary(min_size=1, max_size=8))
    def corrupt(self, at: int, head: bytes) -> None:
        """Overwrite what was published, as a writer could that keeps to no rule."""
        at = (self.model.read_index + at % self.model.bytes_to_read) % DATA
        self.model._store(at, head)
        self.memory.poke(at, head)

    def compare_packet(self, expected: Sent | None, got: Packet | None) -> None:
        """Compare what the two readers hand out."""
        if expected is None or got is None:
            assert expected is None
            assert got is None
        else:
            assert given_to_c(expected) == got

    @invariant()
    def shared_memory_agrees(self) -> None:
        """Control page, data, free space."""
        m = self.model
        control = Control(m.write_index, m.read_index, m.interrupt_mask, m.pending_send_sz, m.feature_bits)
        assert control == self.memory.control
        assert bytes(m.data) == self.memory.peek(0, DATA)
        assert (m.bytes_to_read, m.bytes_to_write) == (self.memory.bytes_to_read, self.memory.bytes_to_write)

    @invariant()
    def counters_agree(self) -> None:
        """Statistics of both ends."""
        w, m = self.writer.stats, self.model
        assert (m.out_full_first, m.out_full_total, m.intr_out_empty) == (
            w.out_full_first,
            w.out_full_total,
            w.intr_out_empty,
        )
        assert m.intr_in_full == self.reader.stats.intr_in_full


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestRingMachineLong(RingMachine.TestCase):  # type: ignore[name-defined,misc]
    """The same for as long as a campaign may take."""

    pytestmark = pytest.mark.soak
    settings = settings(max_examples=3000, stateful_step_count=100, deadline=None)
