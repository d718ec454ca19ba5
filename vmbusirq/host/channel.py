"""The host's half of one channel: where it stands, whom it interrupts, and its two rings while it is open."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from vmbusirq.errors import IrqError
from vmbusirq.host.stats import VspStats
from vmbusirq.wire.packet import COMPLETION_REQUESTED, DATA_INBAND, Packet
from vmbusirq.wire.protocol import INVALID_RELID, OpenChannel, OpenReservedChannel

if TYPE_CHECKING:
    from vmbusirq.host.device import HostDevice
    from vmbusirq.host.gpadl import HostGpadl
    from vmbusirq.host.rings import HostRings

__all__ = ["ChannelState", "HostChannel"]

FIRST_TRANS_ID: Final = 1
"""Of the host's own requests: 0 stands for "unsolicited" (vmbus.md 1.14)."""


class ChannelState(Enum):
    """Where a channel stands (OpenVMM's names, vmbus.md 2.10)."""

    CLIENT_RELEASED = "not offered: no relid"
    CLOSED = "offered"
    OPENING = "the device is asked to open"
    OPEN = "open"
    CLOSING = "the device is asked to close"
    CLOSING_REOPEN = "closing, and the guest has asked to open again"
    REVOKED = "rescinded; the guest has not released the relid"
    REOFFERED = "rescinded, and to be offered again when the guest releases the relid"
    CLOSING_CLIENT_RELEASE = "closing, and the guest knows nothing of it any more"
    OPENING_CLIENT_RELEASE = "opening, and the guest knows nothing of it any more"


_KNOWN_TO_NOBODY: Final = (
    ChannelState.CLIENT_RELEASED,
    ChannelState.REVOKED,
    ChannelState.REOFFERED,
    ChannelState.CLOSING_CLIENT_RELEASE,
    ChannelState.OPENING_CLIENT_RELEASE,
)


class HostChannel:
    """A VSP's half of one channel, from its first offer on; counters survive close, re-open and re-contact.

    Attributes:
        device, sub_channel_index: whose channel, and which; 0 is the primary.
        fixed_relid: the relid that it always gets, None for the lowest that is free.
        monitor: its monitor id, None: signalled by hypercall.
        relid: INVALID_RELID while it is not offered.
        state: see :class:`ChannelState`.
        modifying, pending_target: a MODIFYCHANNEL is being carried out; the VP of the next one, before 5.3.
        target_vp: whom it interrupts; -1 while closed, VP_INDEX_NONE for nobody.
        open_message: the OPENCHANNEL that opened it.
        opens: how often it was opened.
        stray_completions: completions that the guest sent for no request.
        unnecessary_signals: signals of the guest that found nothing to do.
        failure: why its worker has ended, empty while it has not; a new open starts a new worker.
        failures: how often that happened.
    """

    def __init__(
        self,
        device: HostDevice,
        sub_channel_index: int,
        *,
        fixed_relid: int | None = None,
        monitor: int | None = None,
    ) -> None:
        self.device: Final = device
        self.sub_channel_index: Final = sub_channel_index
        self.fixed_relid: Final = fixed_relid
        self.monitor: Final = monitor
        self.relid = INVALID_RELID
        self.state = ChannelState.CLIENT_RELEASED
        self.modifying = False
        self.pending_target: int | None = None
        self.modifies_seen = 0
        self.target_vp = -1
        self.open_message: OpenChannel | OpenReservedChannel | None = None
        self.opens = 0
        self.stray_completions = 0
        self.unnecessary_signals = 0
        self.failure = ""
        self.failures = 0
        self.rings: HostRings | None = None
        self.ring_gpadl: HostGpadl | None = None
        self._past = VspStats()
        self._next_trans_id = FIRST_TRANS_ID
        self._requests: dict[int, tuple[int, Callable[[Packet], object] | None]] = {}

    @property
    def name(self) -> str:
        """The device's name and the sub-channel's number, for log lines."""
        return f"{self.device.name}/{self.sub_channel_index}"

    @property
    def is_offered(self) -> bool:
        """The guest knows of it."""
        return self.state not in _KNOWN_TO_NOBODY

    @property
    def is_open(self) -> bool:
        """It has rings."""
        return self.rings is not None

    @property
    def is_reserved(self) -> bool:
        """It was opened by OPEN_RESERVED_CHANNEL: it outlives UNLOAD and cannot be moved."""
        return isinstance(self.open_message, OpenReservedChannel)

    @property
    def userdata(self) -> bytes:
        """The 120 bytes that came with OPENCHANNEL; empty while closed and for reserved channels."""
        return getattr(self.open_message, "userdata", b"") if self.is_open else b""

    @property
    def handle(self) -> Any:
        """The ``struct vi_vsp *``. ENOTCONN: the channel is closed."""
        return self._open_rings("take").vsp

    @property
    def stats(self) -> VspStats:
        """A snapshot of the counters."""
        return self._past if self.rings is None else self._past + self.rings.stats

    def set_target(self, vp: int) -> None:
        """Signal ``vp`` from now on; VP_INDEX_NONE: nobody. EINVAL: no such VP; ENOTCONN: closed."""
        self._open_rings("move").set_target(vp)
        self.target_vp = vp

    def write(self, packet: Packet) -> None:
        """Write a packet into the in ring and signal by the ring's rule; it waits its turn while the ring is full.

        On a channel whose worker has failed the packet is dropped.

        Raises:
            IrqError(ENOTCONN): the channel is closed.
            IrqError(EMSGSIZE): more than the ring can ever hold.
            IrqError(EINVAL): not in the format, see :meth:`RingWriter.write`.
        """
        rings = self._open_rings("write to")
        if not self.failure:
            rings.write(packet)

    def request(
        self,
        payload: bytes,
        on_reply: Callable[[Packet], object] | None,
        *,
        flags: int = COMPLETION_REQUESTED,
        packet_type: int = DATA_INBAND,
        ranges: bytes = b"",
    ) -> int:
        """Send a packet with a transaction id of its own and return the id.

        Args:
            payload: any bytes.
            packet_type: in-band data unless given.
            ranges: what stands before the payload, as in :class:`Packet`.
            on_reply: called with the guest's answer, once: the completion of that id or, with ``flags`` 0, the next
                packet that carries it. Requests still unanswered when the channel closes are forgotten.
            flags: COMPLETION_REQUESTED or 0.
        Raises:
            IrqError: as :meth:`write`.
        """
        trans_id = self._next_trans_id
        self.write(Packet(payload, packet_type, flags, trans_id, ranges))
        self._next_trans_id = trans_id + 1
        self._requests[trans_id] = (flags, on_reply)
        return trans_id

    @property
    def unanswered(self) -> int:
        """Own requests without an answer."""
        return len(self._requests)

    def take_reply(self, packet: Packet, *, is_completion: bool) -> bool:
        """Give a packet to the request that it answers; False if it answers none."""
        flags, on_reply = self._requests.get(packet.trans_id, (COMPLETION_REQUESTED, None))
        if packet.trans_id not in self._requests or (bool(flags) and not is_completion):
            self.stray_completions += is_completion
            return is_completion
        del self._requests[packet.trans_id]
        if on_reply is not None:
            on_reply(packet)
        return True

    def gpadl(self, handle: int) -> HostGpadl | None:
        """Return an accepted GPADL of this channel, None if there is none of that handle."""
        return self.device.connection.gpadls.accepted(self.relid, handle)

    def fail(self, why: str) -> None:
        """End the channel's worker: nothing is read or written until the channel is opened again."""
        if not self.failure:
            self.failure = why
            self.failures += 1
            self.device.bus.complain(f"channel {self.relid} ({self.name}): {why}; its worker has ended")

    def rings_made(self, rings: HostRings) -> None:
        """Begin to use rings: the channel is open."""
        self.rings = rings
        self.failure = ""
        self.opens += 1

    def drop_rings(self) -> None:
        """Unmap the rings and forget what waits; a closed channel stays as it is."""
        if self.rings is not None:
            self._past = self.stats
            self.rings.close()
            self.rings = None
        self._requests.clear()
        self.target_vp = -1

    def _open_rings(self, what: str) -> HostRings:
        if self.rings is None:
            raise IrqError(
                errno.ENOTCONN,
                f"host: cannot {what} channel {self.relid} ({self.name}): {self.state.value} (ENOTCONN); "
                "wait until the guest opens it",
            )
        return self.rings
