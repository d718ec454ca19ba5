"""The host's side of the bus: which VP each channel interrupts, what it writes into the rings, and control messages.

The host meets the guest in rings, event flags and message slots only. Channels are attached by a direct call here;
control messages queue when the guest's slot is busy and go out one per EOM, in order.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError, check
from vmbusirq.hyperv.partition import Partition
from vmbusirq.limits import RELID_MAX, RELID_MIN

__all__ = ["HostBus", "HostChannel", "Traffic", "VspStats"]

_PACKETS_MAX: Final = 1 << 32
_WHY_NOT_DRIVEN: Final = {
    errno.EAGAIN: "nobody reads a ring that is full",
    errno.ENXIO: "the SynIC of a target CPU is off",
    errno.EMSGSIZE: "a packet is more than its ring can ever hold",
    errno.ELOOP: "a handler raises itself for ever, or a ring's writer is broken",
    errno.EIO: "the guest has broken an out ring",
    errno.ENOMEM: "out of memory",
}


@dataclass(frozen=True, slots=True)
class VspStats:
    """What a VSP has done, in units: packets, bytes (payload with padding), sums modulo 2**64, calls.

    Attributes:
        packets, bytes, checksum: written to the in ring; a reader that lost nothing has the same three numbers.
        signals: HvSignalEvent calls.
        edges: of them, flags that went from 0 to 1, which is what the guest can count.
        dropped_signals: the target's SynIC was off, so the flag was lost.
        full: writes that a full ring refused.
        responses, response_bytes: packets of the guest that :meth:`HostChannel.drain` or bulk traffic has read.
    """

    packets: int
    bytes: int
    checksum: int
    signals: int
    edges: int
    dropped_signals: int
    full: int
    responses: int
    response_bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """One line of bulk traffic: ``interrupts`` times ``packets`` packets of ``payload`` bytes on channel ``relid``."""

    relid: int
    interrupts: int
    packets: int = 1
    payload: int = 64


class HostChannel:
    """A VSP's half of one channel."""

    def __init__(self, core: Core, relid: int, ring_in: Any, ring_out: Any, target_vp: int) -> None:
        out = ffi.new("struct vi_vsp **")
        check(
            lib.vi_vsp_create(core.handle, relid, ring_in, ring_out, out),
            f"host: cannot take the rings of channel {relid}: an index in them is impossible",
        )
        self.relid: Final = relid
        self.handle: Any = ffi.gc(out[0], lib.vi_vsp_destroy)
        self._core = core
        self.target_vp = -1
        self.set_target(target_vp)

    def set_target(self, vp: int) -> None:
        """Signal ``vp`` from now on (OPENCHANNEL, MODIFYCHANNEL). EINVAL: no such VP."""
        check(lib.vi_vsp_set_target(self.handle, vp), f"host: cannot target vp {vp}: there is none")
        self.target_vp = vp

    @property
    def stats(self) -> VspStats:
        """Return a snapshot of the counters."""
        out = ffi.new("struct vi_vsp_stats *")
        lib.vi_vsp_get_stats(self.handle, out)
        return VspStats(
            out.packets,
            out.bytes,
            out.checksum,
            out.signals,
            out.edges,
            out.dropped_signals,
            out.full,
            out.responses,
            out.response_bytes,
        )

    def set_template(self, template: bytes) -> None:
        """Begin the payload of every packet sent with ``template``, and read what the guest answers; ``b""``: neither.

        Smaller payloads become as long as the template. EINVAL: more than 256 bytes.
        """
        what = f"host: a template of {len(template)} bytes: {lib.VI_VSP_TEMPLATE_MAX} at most"
        check(lib.vi_vsp_set_template(self.handle, template, len(template)), what)
        lib.vi_vsp_set_drains(self.handle, bool(template))

    def drain(self) -> int:
        """Read and count what the guest has written; return how many packets. EIO: its ring is broken."""
        return check(lib.vi_vsp_drain(self.handle), f"host: the guest has broken the out ring of channel {self.relid}")


class HostBus:
    """All channels that the host offers, and its control messages."""

    def __init__(self, partition: Partition) -> None:
        self._core = partition.core
        self._partition = partition
        self._channels: dict[int, HostChannel] = {}
        self._templates: dict[int, bytes] = {}
        self.messages_posted = 0

    @property
    def channels(self) -> Mapping[int, HostChannel]:
        """The open channels by relid."""
        return self._channels

    def open(self, relid: int, ring_in: Any, ring_out: Any, target_vp: int) -> HostChannel:
        """Take the host's ends of a channel's rings.

        EEXIST: open already; EINVAL: bad relid or VP; EIO: impossible ring.
        """
        if relid in self._channels:
            raise IrqError(errno.EEXIST, f"host: channel {relid} is open already; close it first (EEXIST)")
        channel = HostChannel(self._core, relid, ring_in, ring_out, target_vp)
        channel.set_template(self._templates.get(relid, b""))
        self._channels[relid] = channel
        return channel

    def set_template(self, relid: int, template: bytes) -> None:
        """Send packets that begin with ``template`` whenever ``relid`` is open, and read the answers; ``b""``: none.

        EINVAL: more than 256 bytes, if it is open.
        """
        if relid in self._channels:
            self._channels[relid].set_template(template)
        if template:
            self._templates[relid] = template
        else:
            self._templates.pop(relid, None)

    def close(self, relid: int) -> None:
        """Let go of a channel's rings; from here on it is never signalled."""
        self._channels.pop(relid, None)

    def modify_channel(self, relid: int, target_vp: int) -> None:
        """Apply a MODIFYCHANNEL. Unknown or closed channels are ignored, as Hyper-V does."""
        if relid in self._channels:
            self._channels[relid].set_target(target_vp)

    def send(self, relid: int, packets: int = 1, payload: int = 64) -> int:
        """Write packets into a channel's in ring and signal by the ring's rule.

        Returns:
            Packets written: fewer than asked for when the ring is full.
        Raises:
            IrqError: ENOENT no such open channel, EINVAL a negative number, EMSGSIZE a payload no packet can hold.
        """
        channel = self._find(relid)
        if not 0 <= packets < _PACKETS_MAX or payload < 0:
            raise IrqError(errno.EINVAL, f"host: cannot send {packets} packets of {payload} bytes (EINVAL)")
        what = (
            f"host: cannot send {payload}-byte packets on channel {relid}: one holds {lib.VI_RING_PAYLOAD_MAX} at most"
        )
        return check(lib.vi_vsp_send(channel.handle, packets, min(payload, 0xFFFF_FFFF)), what)

    def signal(self, relid: int) -> bool:
        """Signal a channel without writing to it; return True if its flag was newly set.

        ENXIO: the target's SynIC is off.
        """
        channel = self._find(relid)
        what = f"host: cannot signal channel {relid} on vp {channel.target_vp}: that SynIC is off"
        return bool(check(lib.vi_vsp_signal(channel.handle), what))

    def drive(self, traffic: Sequence[Traffic], seed: int) -> int:
        """Deliver bulk traffic in C, in an order drawn from ``seed``; return the vectors taken.

        Raises:
            IrqError: ENOENT no such channel, EINVAL bad numbers, EAGAIN nobody reads a full ring, ENXIO a target is
                off.
        """
        entries = ffi.new("struct vi_traffic[]", len(traffic))
        for entry, item in zip(entries, traffic, strict=True):
            entry.vsp = self._find(item.relid).handle
            self._check_traffic(item)
            entry.interrupts, entry.packets, entry.payload = item.interrupts, item.packets, item.payload
        result = int(lib.vi_drive(self._core.handle, entries, len(traffic), seed & 0xFFFF_FFFF_FFFF_FFFF))
        why = _WHY_NOT_DRIVEN.get(-result, "")
        return check(result, f"host: cannot drive channels {', '.join(str(item.relid) for item in traffic)}: {why}")

    @staticmethod
    def _check_traffic(item: Traffic) -> None:
        limits = ((item.interrupts, 0, 1 << 63), (item.packets, 1, _PACKETS_MAX), (item.payload, 0, _PACKETS_MAX))
        if not all(low <= number < high for number, low, high in limits):
            raise IrqError(
                errno.EINVAL,
                f"host: cannot drive channel {item.relid} {item.interrupts} times with {item.packets} packets of "
                f"{item.payload} bytes: none may be negative, a burst has 1 to {_PACKETS_MAX - 1} packets (EINVAL)",
            )

    def post_message(self, payload: bytes, vp: int = 0) -> None:
        """Post a control message; it waits behind others for ``vp``'s slot. Errors as Partition.post_to_guest."""
        self._partition.post_to_guest(vp, payload)
        self.messages_posted += 1

    def pump(self) -> bool:
        """Read what was answered; return True if anything moved. The partition calls it when CPUs are idle."""
        moved = False
        for relid in self._templates:
            if relid in self._channels and self._channels[relid].drain():
                moved = True
        return moved

    @property
    def messages_waiting(self) -> int:
        """Messages that no slot had room for yet."""
        return self._partition.messages_waiting

    def _find(self, relid: int) -> HostChannel:
        if relid not in self._channels:
            known = ", ".join(map(str, sorted(self._channels))) or "none"
            borders = "" if RELID_MIN <= relid <= RELID_MAX else f" (relids are {RELID_MIN} to {RELID_MAX})"
            raise IrqError(errno.ENOENT, f"host: no open channel {relid}{borders} (ENOENT); open: {known}")
        return self._channels[relid]
