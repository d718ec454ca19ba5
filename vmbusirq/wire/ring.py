"""The VMBus ring: a writing end and a reading end over memory that guest and host share.

Bytes in, bytes out; the work is done by ``csrc/wire``. Whether the other end must be signalled is returned, never done:
that is for who owns a channel. Layout and rules: ``drivers/hv/ring_buffer.c``, v6.10; the strict rules are OpenVMM's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.wire.packet import PKT_DESC, PKT_TRAILER, Packet, packet_from_c, packets_to_c
from vmbusirq.wire.ring_memory import Control, RingMemory

__all__ = [
    "Control",
    "ReaderStats",
    "RingMemory",
    "RingReader",
    "RingWriter",
    "Tally",
    "WriterStats",
    "Written",
]

MAX_PKT_SIZE: Final = 4096
"""Bytes of a channel's copy buffer unless its driver asks for more (VMBUS_DEFAULT_MAX_PKT_SIZE)."""

_REASONS: Final = {
    lib.VI_RING_BAD_INDEX: "the other end's index is outside the ring or not a multiple of 8",
    lib.VI_RING_BAD_AVAIL: "less than a packet descriptor was published",
    lib.VI_RING_BAD_LENGTH: "len8 is less than offset8, or the packet is longer than what was published",
    lib.VI_RING_BAD_OFFSET: "offset8 is less than the descriptor",
    lib.VI_RING_BAD_FLAGS: "a flag other than 1 (completion requested) is set",
    lib.VI_RING_BAD_TYPE: "the packet type is not 6, 7, 9 or 11",
    lib.VI_RING_BAD_RANGES: "a GPA direct packet has no range",
}


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch: how many packets went in, and whether the reader must be signalled."""

    accepted: int
    signal: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """What a drain has read.

    Attributes:
        packets: how many.
        payload_bytes: of payload, padding included.
        checksum: transaction ids and payload words (64 bits, little-endian), added up modulo 2**64.
        signal: whether the writer must be signalled.
    """

    packets: int
    payload_bytes: int
    checksum: int
    signal: bool


@dataclass(frozen=True, slots=True)
class WriterStats:
    """Counters of a writing end, as ``/sys/bus/vmbus/devices/*/channels/*`` names them."""

    out_full_first: int
    out_full_total: int
    intr_out_empty: int


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """Counters of a reading end, as ``/sys/bus/vmbus/devices/*/channels/*`` names them."""

    intr_in_full: int


class RingWriter:
    """The writing end of a ring. One thread at a time.

    Args:
        strict: check what the reader writes and fail with EIO, as OpenVMM does; otherwise believe it, as Linux does.
    Raises:
        IrqError(EIO): a shared index is impossible already.
        IrqError(EBADF): the memory is closed; every method.
    """

    __slots__ = ("_accepted", "_memory", "_writer")

    def __init__(self, memory: RingMemory, *, strict: bool = False) -> None:
        self._memory = memory
        self._writer: Any = ffi.new("struct vi_ring_writer *")
        self._accepted: Any = ffi.new("uint32_t *")
        result = lib.vi_ring_writer_init(self._writer, memory.struct, _rules(strict))
        _check_opened(result, memory)

    @classmethod
    def wrap(cls, struct: Any, memory: RingMemory) -> Self:
        """Return an end over a ``struct vi_ring_writer *`` that C has opened on ``memory`` and keeps.

        It is the same end, with the same rules and counters: the C side must not use it meanwhile, and must outlive it.

        Raises:
            IrqError(EINVAL): it writes to another ring, or to none.
        """
        _check_wrapped(struct, memory)
        end = cls.__new__(cls)
        end._memory = memory
        end._writer = struct
        end._accepted = ffi.new("uint32_t *")
        return end

    @property
    def struct(self) -> Any:
        """The ``struct vi_ring_writer *`` behind it."""
        _ = self._memory.struct
        return self._writer

    def write(self, packet: Packet) -> bool:
        """Write one packet and return whether the reader must be signalled (``hv_ringbuffer_write``).

        Raises:
            IrqError(EAGAIN): no room.
            IrqError(EINVAL): a type or flag outside the format, ranges missing or not a multiple of 8 bytes.
            IrqError(EMSGSIZE): more than the format can say; strict: more than the ring can ever hold.
            IrqError(EIO): strict, the reader's index is impossible.
        """
        c_packet, keep = packets_to_c([packet])
        result = lib.vi_ring_write_packet(self.struct, c_packet)
        del keep
        if result < 0:
            raise self._refused(-result, packet)
        return bool(result)

    def write_batch(self, packets: Sequence[Packet]) -> Written:
        """Write packets until one is refused; publish once and decide about one signal.

        Raises:
            IrqError: as :meth:`write`, if the very first packet was refused.
        """
        c_packets, keep = packets_to_c(packets)
        result = lib.vi_ring_write_batch(self.struct, c_packets, len(packets), self._accepted)
        del keep
        if result < 0:
            raise self._refused(-result, packets[0])
        return Written(accepted=int(self._accepted[0]), signal=bool(result))

    def put(self, packet: Packet) -> None:
        """Copy a packet behind the last one, unpublished: the first step of :meth:`write`."""
        c_packet, keep = packets_to_c([packet])
        result = lib.vi_ring_put(self.struct, c_packet)
        del keep
        if result < 0:
            raise self._refused(-result, packet)

    def publish(self) -> bool:
        """Let the reader see what was put and return whether there was anything: the second step."""
        return bool(lib.vi_ring_publish(self.struct))

    def must_signal(self) -> bool:
        """Return whether the last publish must be signalled: the third step. Counts, so ask once per publish."""
        return bool(lib.vi_ring_must_signal(self.struct))

    def set_pending_send_size(self, size_bytes: int) -> None:
        """Ask to be signalled when more than so many bytes are free; 0 takes it back.

        Raises:
            IrqError(EINVAL): not a 32-bit number; strict: more than the ring can hold.
        """
        writer = self.struct
        if not 0 <= size_bytes < 1 << 32 or lib.vi_ring_set_pending_send_size(writer, size_bytes):
            raise IrqError(
                errno.EINVAL,
                f"pending send size {size_bytes}: the ring never has so much room (EINVAL); "
                f"at most {self._memory.data_size - 8}",
            )

    @property
    def stats(self) -> WriterStats:
        """What was counted since the end was opened."""
        w = self.struct
        return WriterStats(int(w.out_full_first), int(w.out_full_total), int(w.intr_out_empty))

    def _refused(self, error: int, packet: Packet) -> IrqError:
        what = f"packet of type {packet.type} with {len(packet.payload)} bytes of payload"
        if error == errno.EAGAIN:
            free = self._memory.bytes_to_write
            need = packet.ring_bytes
            return IrqError(error, f"{what}: more than {need} bytes must be free, {free} are (EAGAIN); read first")
        if error == errno.EMSGSIZE:
            need, most = packet.ring_bytes, min(int(lib.VI_PKT_LEN_MAX) + PKT_TRAILER, self._memory.data_size - 16)
            return IrqError(error, f"{what}: it takes {need} bytes of this ring (EMSGSIZE); at most {most} can be")
        if error == errno.EIO:
            return IrqError(error, f"{what}: {_REASONS[self._writer.error]} (EIO); the channel is failed")
        return IrqError(
            error,
            f"{what}, flags {packet.flags:#x} and {len(packet.ranges)} bytes of ranges: not in the format (EINVAL); "
            "types are 6 and 11, and 7 and 9 with 8 or more bytes of ranges in multiples of 8; flags are 0 and 1",
        )


class RingReader:
    """The reading end of a ring. One thread at a time.

    Args:
        strict: fail with EIO at the first impossible packet, as OpenVMM does; otherwise mend it, as Linux does.
        max_pkt_size: bytes of the copy buffer; Linux cuts longer packets to it, the strict rules refuse them.
    Raises:
        IrqError(EINVAL): ``max_pkt_size`` is below 16 or above 32 bits.
        IrqError(EIO): a shared index is impossible already; or a packet, see :attr:`failure`.
        IrqError(EBADF): the memory is closed; every method.
    """

    __slots__ = ("_actual", "_buffer", "_memory", "_packet", "_reader", "_tally", "_trans_id")

    def __init__(self, memory: RingMemory, *, strict: bool = False, max_pkt_size: int = MAX_PKT_SIZE) -> None:
        if not PKT_DESC <= max_pkt_size < 1 << 32:
            raise IrqError(
                errno.EINVAL, f"max_pkt_size {max_pkt_size}: a descriptor alone is {PKT_DESC} bytes (EINVAL); give more"
            )
        self._buffer: Any = ffi.new("uint8_t[]", max_pkt_size)
        self._take(ffi.new("struct vi_ring_reader *"), memory)
        result = lib.vi_ring_reader_init(self._reader, memory.struct, _rules(strict), self._buffer, max_pkt_size)
        _check_opened(result, memory)

    @classmethod
    def wrap(cls, struct: Any, memory: RingMemory) -> Self:
        """Return an end over a ``struct vi_ring_reader *`` that C has opened on ``memory`` and keeps.

        It is the same end, with the same rules, counters and copy buffer: the C side must not use it meanwhile, and
        must outlive it. One without a copy buffer, as a VSP's is, hands packets out with ``view=True`` only.

        Raises:
            IrqError(EINVAL): it reads another ring, or none.
        """
        _check_wrapped(struct, memory)
        end = cls.__new__(cls)
        end._buffer = None  # C has one
        end._take(struct, memory)
        return end

    def _take(self, struct: Any, memory: RingMemory) -> None:
        self._memory = memory
        self._reader: Any = struct
        self._packet: Any = ffi.new("struct vi_packet *")
        self._tally: Any = ffi.new("struct vi_ring_tally *")
        self._actual: Any = ffi.new("uint32_t *")
        self._trans_id: Any = ffi.new("uint64_t *")

    @property
    def struct(self) -> Any:
        """The ``struct vi_ring_reader *`` behind it."""
        _ = self._memory.struct
        return self._reader

    def first(self, *, view: bool = False) -> Packet | None:
        """Return the first unread packet, None when there is none (``hv_pkt_iter_first``).

        Args:
            view: check it where it stands, without the copy buffer and its limit.
        Raises:
            IrqError(EIO): strict, and it is impossible; nothing is consumed and the reader stays failed.
            IrqError(ENOBUFS): strict, and it is longer than ``max_pkt_size``.
        """
        look = lib.vi_ring_first_view if view else lib.vi_ring_first
        return self._handed_out(look(self.struct, self._packet))

    def next(self, *, view: bool = False) -> Packet | None:
        """Step over the packet handed out, if any, and return the one behind it as :meth:`first` does."""
        look = lib.vi_ring_next_view if view else lib.vi_ring_next
        return self._handed_out(look(self.struct, self._packet))

    def skip(self) -> None:
        """Step over the packet handed out, if any."""
        lib.vi_ring_skip(self.struct)

    def close(self) -> bool:
        """Give the room of what was stepped over back; return whether the writer must be signalled."""
        return bool(lib.vi_ring_close(self.struct))

    def publish_read(self) -> bool:
        """Give room back and return whether there was any: the first step of :meth:`close`."""
        return bool(lib.vi_ring_publish_read(self.struct))

    def must_signal_writer(self) -> bool:
        """Return whether the last :meth:`publish_read` must be signalled: the second step. Counts: ask once."""
        return bool(lib.vi_ring_must_signal_writer(self.struct))

    def packets(self, *, view: bool = False) -> Iterator[Packet]:
        """Yield all packets there are; call :meth:`close` afterwards."""
        packet = self.first(view=view)
        while packet is not None:
            yield packet
            packet = self.next(view=view)

    def read(self, buffer_bytes: int, *, raw: bool = False) -> tuple[bytes, int, bool] | None:
        """Read one packet as ``vmbus_recvpacket`` does: its payload (``raw``: all of it), transaction id, signal.

        Returns:
            None when there is no packet.
        Raises:
            IrqError(ENOBUFS): it is longer than ``buffer_bytes``; the message says how long, nothing is consumed.
            IrqError(EINVAL): ``buffer_bytes`` is 0, negative or beyond 32 bits.
            IrqError(EIO): strict, and it is impossible.
        """
        if not 0 < buffer_bytes < 1 << 32:
            raise IrqError(errno.EINVAL, f"a buffer of {buffer_bytes} bytes takes no packet (EINVAL); give at least 1")
        reader = self.struct
        buf = ffi.new("uint8_t[]", min(buffer_bytes, self._memory.data_size))
        before = int(reader.priv_read_index)
        result = lib.vi_ring_read(reader, buf, len(buf), raw, self._actual, self._trans_id)
        if result == -errno.ENOBUFS:
            raise IrqError(
                errno.ENOBUFS, f"a packet of {self._actual[0]} bytes does not fit a buffer of {buffer_bytes} (ENOBUFS)"
            )
        if result < 0:
            raise self._failed()
        if before == int(reader.priv_read_index):
            return None
        return bytes(ffi.buffer(buf, self._actual[0])), int(self._trans_id[0]), bool(result)

    def drain(self, budget: int = 1 << 31) -> Tally:
        """Read up to ``budget`` packets, look at every byte, give the room back every 64 of them.

        Raises:
            IrqError(EIO), IrqError(ENOBUFS): as :meth:`first`, if not one packet came before.
        """
        tally = self._tally
        tally.packets = tally.bytes = tally.checksum = 0
        result = lib.vi_ring_drain(self.struct, budget, tally)
        if result < 0:
            raise self._unreadable(-result)
        return Tally(int(tally.packets), int(tally.bytes), int(tally.checksum), bool(result))

    def begin_read(self) -> None:
        """Ask for no signals while polling (``hv_begin_read``)."""
        lib.vi_ring_begin_read(self.struct)

    def end_read(self) -> int:
        """Ask for signals again and return the bytes that raced in; not 0: begin again (``hv_end_read``)."""
        return int(lib.vi_ring_end_read(self.struct))

    @property
    def failure(self) -> str:
        """Why a strict reader failed, in words; empty while it has not."""
        return _REASONS.get(self._reader.error, "")

    @property
    def stats(self) -> ReaderStats:
        """What was counted since the end was opened."""
        return ReaderStats(int(self.struct.intr_in_full))

    def _handed_out(self, result: int) -> Packet | None:
        if result < 0:
            raise self._unreadable(-result)
        if result == 0:
            return None
        return packet_from_c(self._packet)

    def _unreadable(self, error: int) -> IrqError:
        if error == errno.ENOBUFS:
            size = int(self._reader.pkt_buffer_size)
            return IrqError(error, f"the next packet is longer than max_pkt_size {size} (ENOBUFS); read it in place")
        return self._failed()

    def _failed(self) -> IrqError:
        where = int(self._reader.priv_read_index)
        return IrqError(errno.EIO, f"packet at ring offset {where}: {self.failure} (EIO); the channel is failed")


def _rules(strict: bool) -> int:
    return int(lib.VI_RING_STRICT if strict else lib.VI_RING_LINUX)


def _check_opened(result: int, memory: RingMemory) -> None:
    if result:
        raise IrqError(
            -result,
            f"cannot open an end of the ring: its indices must be multiples of 8 below {memory.data_size} (EIO), not "
            f"{memory.control.write_index} and {memory.control.read_index}; reset it",
        )


def _check_wrapped(struct: Any, memory: RingMemory) -> None:
    if struct.hdr != memory.struct.hdr:
        what = "has no ring" if struct.hdr == ffi.NULL else "works on another mapping"
        raise IrqError(
            errno.EINVAL, f"cannot wrap this end of a ring: it {what} (EINVAL); give the memory that it was opened on"
        )
