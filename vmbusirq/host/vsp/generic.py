"""A device whose payloads mean nothing to the host: it completes what wants completion, and can ask itself."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from vmbusirq.host.vsp.base import Vsp
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, Packet

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel

__all__ = ["GenericVsp"]


class GenericVsp(Vsp):
    """Opaque bytes both ways.

    Args:
        class_name, if_type, chn_flags, user_def, mmio_megabytes, max_sub_channels: as in :class:`Vsp`.

    Attributes:
        packets: received, completions of own requests not counted.
        completed: of them, answered with a completion of the same transaction id and no payload.
        requests: sent with :meth:`ask`.
        replies: completions that the guest sent for those.
        channels_opened, channels_closed: how often.
        releases: calls of :meth:`released`.
    """

    def __init__(
        self,
        class_name: str,
        if_type: UUID,
        *,
        chn_flags: int = 0,
        user_def: bytes = b"",
        mmio_megabytes: int = 0,
        max_sub_channels: int = 0,
    ) -> None:
        self.class_name = class_name
        self.if_type = if_type
        self.chn_flags = chn_flags
        self.user_def = user_def
        self.mmio_megabytes = mmio_megabytes
        self.max_sub_channels = max_sub_channels
        self.packets = 0
        self.completed = 0
        self.requests = 0
        self.replies = 0
        self.channels_opened = 0
        self.channels_closed = 0
        self.releases = 0

    def opened(self, channel: HostChannel) -> None:
        """Count it."""
        self.channels_opened += 1

    def closed(self, channel: HostChannel) -> None:
        """Count it."""
        self.channels_closed += 1

    def released(self) -> None:
        """Count it."""
        self.releases += 1

    def packet(self, channel: HostChannel, packet: Packet) -> None:
        """Complete the packet if its sender asked for it."""
        self.packets += 1
        if packet.flags & COMPLETION_REQUESTED:
            channel.write(Packet(type=COMPLETION, trans_id=packet.trans_id))
            self.completed += 1

    def ask(self, channel: HostChannel, payload: bytes) -> int:
        """Send a request that wants a completion; return its transaction id."""
        self.requests += 1
        return channel.request(payload, self._replied)

    def _replied(self, _packet: Packet) -> None:
        self.replies += 1
