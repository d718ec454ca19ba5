"""The host's ends of a channel's rings, and the worker that moves packets through them.

Strict rules (OpenVMM's): the guest's indices, lengths, types and flags are checked, and a packet is copied before its
VSP sees it. Anything impossible ends the worker, never the host.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, MachineBug, check
from vmbusirq.host.stats import VspStats
from vmbusirq.steps import Step, Steps, run
from vmbusirq.wire.packet import COMPLETION, Packet
from vmbusirq.wire.protocol import VP_INDEX_NONE
from vmbusirq.wire.ring import RingMemory, RingReader, RingWriter

if TYPE_CHECKING:
    from vmbusirq.core import Core
    from vmbusirq.host.channel import HostChannel

__all__ = ["BACKLOG_MAX", "HostRings"]

BACKLOG_MAX: Final = 256
"""Packets that may wait for room in the in ring before the worker stops reading (ours): the guest reads or waits."""
_POLL_MAX: Final = 1024  # packets of one poll, so that one channel cannot keep the host for itself
_GIVE_BACK_EVERY: Final = 64  # packets between two closes of the read iterator


class HostRings:
    """Both rings of an open channel, mapped from the guest's memory.

    Args:
        core: the machine.
        fd: the guest's memory.
        channel: whose worker this is.
        pfns: the GPADL's pages; the out ring's, then the in ring's.
        split: the in ring's first page.
        sint, flag: by which the guest is interrupted.
    Raises:
        IrqError(EINVAL): a ring has less than two pages, or a page is outside the memory.
        IrqError(EIO): an index in a ring is impossible already.
        IrqError(ENOMEM): no mapping left.
    """

    __slots__ = ("_backlog", "_channel", "_in", "_out", "_python", "_reader", "_seen", "_writer", "unfinished", "vsp")

    def __init__(
        self, core: Core, fd: int, channel: HostChannel, pfns: Sequence[int], split: int, *, sint: int, flag: int
    ) -> None:
        self._channel = channel
        self._backlog: deque[Packet] = deque()
        self._python = VspStats()
        self._out = RingMemory.map(fd, pfns[:split])
        try:
            self._in = RingMemory.map(fd, pfns[split:])
        except IrqError:
            self._out.close()
            raise
        try:
            self.vsp: Any = self._make_vsp(core, sint, flag)
        except IrqError:
            self._out.close()
            self._in.close()
            raise
        self._reader = RingReader.wrap(lib.vi_vsp_out(self.vsp), self._out)
        self._writer = RingWriter.wrap(lib.vi_vsp_in(self.vsp), self._in)
        # what the writing end promises (vmbus.md 1.1); Linux has done it already
        self._in.poke_control("feature_bits", lib.VI_RING_FEAT_PENDING_SEND_SZ)
        self._in.poke_control("pending_send_sz", 0)
        self._reader.begin_read()
        self._seen = self._position
        self.unfinished = True  # something may be there already: look once without a signal

    def _make_vsp(self, core: Core, sint: int, flag: int) -> Any:
        out = ffi.new("struct vi_vsp **")
        relid = self._channel.relid
        result = lib.vi_vsp_create(core.handle, relid, self._in.struct, self._out.struct, out)
        check(result, f"host: cannot take the rings of channel {relid}: an index in them is impossible")
        vsp = ffi.gc(out[0], lib.vi_vsp_destroy)
        check(lib.vi_vsp_set_interrupt(vsp, sint, flag), f"host: no sint {sint} with flag {flag}")
        return vsp

    def close(self) -> None:
        """Unmap both rings; what waits for room is dropped."""
        self._backlog.clear()
        if not self._out.kept:
            ffi.release(self.vsp)
        self._out.close()
        self._in.close()

    @property
    def closed(self) -> bool:
        """The rings are unmapped."""
        return self._out.closed

    def set_target(self, vp: int) -> None:
        """Interrupt ``vp`` from now on, nobody for VP_INDEX_NONE. EINVAL: no such VP."""
        check(lib.vi_vsp_set_target(self.vsp, vp & VP_INDEX_NONE), f"host: cannot target vp {vp}: there is none")

    @property
    def stats(self) -> VspStats:
        """What this pair of rings has counted."""
        out = ffi.new("struct vi_vsp_stats *")
        lib.vi_vsp_get_stats(self.vsp, out)
        return VspStats.from_c(out) + self._python

    @property
    def backlog(self) -> int:
        """Packets that wait for room in the in ring."""
        return len(self._backlog)

    # ---- towards the guest

    def write(self, packet: Packet) -> None:
        """Write a packet, or queue it behind those that wait; errors as :meth:`HostChannel.write`."""
        if self._backlog:
            self._check_fits(packet)
            self._backlog.append(packet)
        elif not self._try_write(packet):
            self._backlog.append(packet)
            self._wait_for_room()

    def _check_fits(self, packet: Packet) -> None:
        most = self._in.data_size - 16
        if packet.ring_bytes > most:
            raise IrqError(
                errno.EMSGSIZE,
                f"host: channel {self._channel.relid}: a packet of {packet.ring_bytes} bytes never fits (EMSGSIZE); "
                f"at most {most}",
            )

    def _try_write(self, packet: Packet) -> bool:
        """Write and signal by the ring's rule; False: no room. A corrupt ring ends the worker."""
        try:
            run(self.write_steps(packet))
        except IrqError as error:
            if error.errno == errno.EAGAIN:
                return False
            if error.errno != errno.EIO:
                raise
            self._channel.fail(f"in ring: {error}")
        return True

    def write_steps(self, packet: Packet) -> Steps[bool]:
        """Yield the steps of writing one packet; return whether the guest was signalled (vmbus.md 1.8, 1.9).

        Rings that the guest closes meanwhile take nothing more, and nobody is signalled for them. Errors as
        :meth:`RingWriter.write`.
        """
        relid = self._channel.relid
        ring = frozenset({f"ring {relid} in"})
        yield Step(f"host: copies a packet into the in ring of channel {relid}", touches=ring)
        if self.closed:
            return False
        self._writer.put(packet)
        yield Step(f"host: publishes the write index of channel {relid}", touches=ring)
        if self.closed:
            return False
        self._writer.publish()
        self._count(packet)
        yield Step(f"host: looks whether the reader of channel {relid} wants a signal", touches=ring)
        if self.closed or not self._writer.must_signal():
            return False
        yield Step(f"host: signals channel {relid}", touches=self._signal_touches)
        if self.closed:
            return False
        self.signal()
        return True

    @property
    def _signal_touches(self) -> frozenset[str]:
        cpus = range(self._channel.device.bus.partition.core.nr_cpus)
        return frozenset({"host target", *(f"{what} cpu{cpu}" for cpu in cpus for what in ("flags", "vector"))})

    def _count(self, packet: Packet) -> None:
        """Add up what a reader's tally adds up: vi_vsp_send() does the same in C."""
        padded = packet.payload.ljust(-(-len(packet.payload) // 8) * 8, b"\0")
        words = sum(memoryview(padded).cast("Q")) if padded else 0
        self._python += VspStats(packets=1, bytes=len(padded), checksum=words + packet.trans_id)

    def _wait_for_room(self) -> None:
        """Ask to be signalled, then look again: the guest may have read in between (vmbus.md 1.11)."""
        self._writer.set_pending_send_size(self._backlog[0].ring_bytes)
        self.flush()

    def flush(self) -> bool:
        """Write what waits as far as there is room; True if anything went out."""
        moved = False
        while self._backlog and not self._channel.failure and self._try_write(self._backlog[0]):
            self._backlog.popleft()
            moved = True
            self._writer.set_pending_send_size(self._backlog[0].ring_bytes if self._backlog else 0)
        return moved

    def signal(self) -> None:
        """Signal the guest: HvSignalEvent. A SynIC that is off loses it, and the stats say so."""
        lib.vi_vsp_signal(self.vsp)

    # ---- from the guest

    def read_steps(self) -> Steps[int]:
        """Yield the steps of reading what is there packet by packet, for nobody; return how many (vmbus.md 1.10, 1.11).

        After each the room is given back, and the guest signalled if it waits for that much. Errors as
        :meth:`RingReader.first`.
        """
        relid, count = self._channel.relid, 0
        ring = frozenset({f"ring {relid} out"})
        while True:
            yield Step(f"host: looks for a packet in the out ring of channel {relid}", touches=ring)
            if self._reader.first(view=True) is None:
                return count
            count += 1
            self._reader.skip()
            yield Step(f"host: gives the room of a packet of channel {relid} back", touches=ring)
            self._reader.publish_read()
            yield Step(f"host: looks whether the writer of channel {relid} waits for room", touches=ring)
            if self._reader.must_signal_writer():
                yield Step(f"host: signals channel {relid}: there is room", touches=self._signal_touches)
                self.signal()

    @property
    def _position(self) -> int:
        return int(self._reader.struct.priv_read_index)

    def has_reason_to_signal(self) -> bool:
        """Return whether a signal of the guest that comes now tells the host anything (vmbus.md 1.9, 1.11)."""
        drained_by_another = self._position != self._seen
        return bool(drained_by_another or self._backlog or self._out.bytes_to_read)

    def poll(self) -> bool:
        """Serve both rings once; True if anything moved. Call it when the guest signals, and while it is unfinished."""
        moved = self.flush()
        self.unfinished = False
        budget = _POLL_MAX
        while budget > 0 and not self.closed and not self._channel.failure:
            self._reader.begin_read()
            read = self._read(budget)
            budget -= read
            moved |= read > 0
            if self.closed or self._channel.failure:
                break
            self._seen = self._position
            if len(self._backlog) >= BACKLOG_MAX or budget <= 0:
                self.unfinished = True
                break
            if not self._reader.end_read():
                break
        return moved

    def _read(self, budget: int) -> int:
        """Hand packets to the VSP until the ring is empty or the guest does not take the answers; return how many."""
        count = 0
        try:
            while count < budget and len(self._backlog) < BACKLOG_MAX:
                packet = self._reader.first(view=True)
                if packet is None:
                    break
                self._reader.skip()
                count += 1
                self._dispatch(packet)
                if self.closed or self._channel.failure:
                    return count
                if count % _GIVE_BACK_EVERY == 0 and self._reader.close():
                    self.signal()
            if self._reader.close():
                self.signal()
        except IrqError as error:
            if self.closed or error.errno != errno.EIO:
                raise MachineBug(f"channel {self._channel.relid}: {error}") from error
            self._channel.fail(f"out ring: {error}")
        return count

    def _dispatch(self, packet: Packet) -> None:
        """Give one packet to who waits for it. What a VSP cannot stand ends its worker, as a panic would."""
        channel = self._channel
        try:
            if not channel.take_reply(packet, is_completion=packet.type == COMPLETION):
                channel.device.vsp.packet(channel, packet)
        except MachineBug:
            raise
        except Exception as error:
            channel.fail(f"{channel.device.vsp.class_name}: {type(error).__name__}: {error}")
