"""A slow ring in plain Python, both ends, written from vmbus.md 1: what the C ring is compared with.

One bytearray, no double mapping: every byte goes to its offset modulo the data size. No private copies of the peer's
index, no fast paths. Linux rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DESC, TRAILER = 16, 8
IN_BAND, XFER_PAGES, GPA_DIRECT, COMPLETION = 6, 7, 9, 11


@dataclass(frozen=True)
class Sent:
    """A packet as the model's writer takes it and its reader gives it back (payload padded then)."""

    payload: bytes
    type: int = IN_BAND
    flags: int = 0
    trans_id: int = 0
    ranges: bytes = b""


def little(value: int, size: int) -> bytes:
    """Return a little-endian integer."""
    return value.to_bytes(size, "little")


@dataclass
class ReferenceRing:
    """Shared memory and both ends; the shared fields are plain attributes."""

    data_size: int
    max_pkt_size: int = 4096
    write_index: int = 0
    read_index: int = 0
    interrupt_mask: int = 0
    pending_send_sz: int = 0
    feature_bits: int = 1
    data: bytearray = field(default_factory=bytearray)
    # the writer's own
    end_of_put: int = 0
    before_publish: int = 0
    full: bool = False
    out_full_first: int = 0
    out_full_total: int = 0
    intr_out_empty: int = 0
    # the reader's own
    private_read: int = 0
    current: int = 0
    intr_in_full: int = 0
    # of both, since the beginning
    bytes_put: int = 0
    bytes_read: int = 0

    def __post_init__(self) -> None:
        self.data = bytearray(self.data_size)

    def _store(self, at: int, raw: bytes) -> None:
        for i, byte in enumerate(raw):
            self.data[(at + i) % self.data_size] = byte

    def _load(self, at: int, size: int) -> bytes:
        return bytes(self.data[(at + i) % self.data_size] for i in range(size))

    def _free(self, write: int) -> int:
        return self.data_size - (write - self.read_index) % self.data_size

    @property
    def bytes_to_read(self) -> int:
        """1.4: equal indices are an empty ring."""
        return (self.write_index - self.read_index) % self.data_size

    @property
    def bytes_to_write(self) -> int:
        """1.4: an empty ring has all of its data free."""
        return self._free(self.write_index)

    @property
    def overtaken(self) -> bool:
        """Whether a corrupt packet has led the reader past the writer; free space means nothing from then on."""
        return self.bytes_read > self.bytes_put

    def put(self, packet: Sent) -> bool:
        """1.8, steps 4 to 8; False without room."""
        raw = packet.ranges + packet.payload
        length = -(-(DESC + len(raw)) // 8) * 8
        if self._free(self.end_of_put) <= length + TRAILER:
            self.out_full_total += 1
            self.out_full_first += not self.full
            self.full = True
            return False
        self.full = False
        offset = DESC + len(packet.ranges)
        head = b"".join(little(v, 2) for v in (packet.type, offset // 8, length // 8, packet.flags))
        body = (head + little(packet.trans_id, 8) + raw).ljust(length, b"\0")
        self._store(self.end_of_put, body + little(self.end_of_put << 32, 8))
        self.end_of_put = (self.end_of_put + length + TRAILER) % self.data_size
        self.bytes_put += length + TRAILER
        return True

    def publish(self) -> None:
        """1.8, step 9."""
        self.before_publish, self.write_index = self.write_index, self.end_of_put

    def must_signal(self) -> bool:
        """1.9."""
        signal = self.interrupt_mask == 0 and self.read_index == self.before_publish != self.write_index
        self.intr_out_empty += signal
        return signal

    def write_batch(self, packets: list[Sent]) -> tuple[int, bool]:
        """Put until one does not fit; one publish, one decision."""
        accepted = 0
        while accepted < len(packets) and self.put(packets[accepted]):
            accepted += 1
        if accepted == 0:
            return 0, False
        self.publish()
        return accepted, self.must_signal()

    def set_pending_send_size(self, size: int) -> None:
        """1.11, the writer going to sleep."""
        if size:
            self.out_full_total += 1
            self.out_full_first += not self.full
        self.full = size != 0
        self.pending_send_sz = size

    def first(self, limit: int | None = None) -> Sent | None:
        """1.10 and the first column of 1.15; ``limit`` None: in place."""
        self.current = 0
        avail = (self.write_index - self.private_read) % self.data_size
        if avail < DESC:
            return None
        if limit is not None:
            avail = min(avail, limit) // 8 * 8
        kind, offset8, len8, flags = (
            int.from_bytes(self._load(self.private_read + i, 2), "little") for i in (0, 2, 4, 6)
        )
        length = len8 * 8 if DESC <= len8 * 8 <= avail else avail
        offset = offset8 * 8 if DESC <= offset8 * 8 <= length else DESC
        raw = self._load(self.private_read, length)
        self.current = length
        return Sent(raw[offset:], kind, flags, int.from_bytes(raw[8:16], "little"), raw[DESC:offset])

    def skip(self) -> None:
        """Step over the packet handed out."""
        if self.current:
            self.private_read = (self.private_read + self.current + TRAILER) % self.data_size
            self.bytes_read += self.current + TRAILER
        self.current = 0

    def close(self) -> bool:
        """1.11, the reader."""
        given = (self.private_read - self.read_index) % self.data_size
        self.read_index = self.private_read
        now, pending = self.bytes_to_write, self.pending_send_sz
        before = (now - given) % 2**32  # the kernel's u32: huge once the reader has overtaken the writer
        signal = bool(given and self.feature_bits & 1 and pending and before <= pending < now)
        self.intr_in_full += signal
        return signal

    def drain(self, budget: int) -> tuple[int, int, int, bool]:
        """Read, add up, close every 64 packets; a packet that reaches past the writer's index is the last one.

        What is left is dropped then: the reader goes on where the writer stands.
        """
        packets = size = checksum = 0
        signal = broken = False
        while packets < budget and not broken and (packet := self.first(self.max_pkt_size)) is not None:
            packets += 1
            broken = self.current + TRAILER > (self.write_index - self.private_read) % self.data_size
            size += len(packet.payload)
            words = (packet.payload[i : i + 8] for i in range(0, len(packet.payload), 8))
            checksum += packet.trans_id + sum(int.from_bytes(word, "little") for word in words)
            self.skip()
            if packets % 64 == 0:
                signal |= self.close()
                broken |= not (self.write_index < self.data_size and self.write_index % 8 == 0)
        left = packets < budget and not broken and self.write_index != self.private_read
        if (broken or left) and self.write_index < self.data_size and self.write_index % 8 == 0:
            self.private_read = self.write_index
        if packets or left:
            signal |= self.close()
        return packets, size, checksum % 2**64, signal
