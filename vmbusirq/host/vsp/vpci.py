"""The host's end of PCI pass-through: opaque messages, each completed with a u32 status of 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, Packet

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel

__all__ = ["PciVsp"]


class PciVsp(GenericVsp):
    """A pass-through device.

    Args:
        status: of every completion; one with the top bit set is a refusal.

    Attributes:
        messages: types of the messages that came, oldest first, the last 64.
    """

    def __init__(self, status: int = 0) -> None:
        super().__init__("vpci", CLASS_IDS["vpci"])
        self.status = status
        self.messages: list[int] = []

    def packet(self, channel: HostChannel, packet: Packet) -> None:
        """Complete the packet if its sender asked for it."""
        self.packets += 1
        self.messages = [*self.messages[-63:], int.from_bytes(packet.payload[:4], "little")]
        if packet.flags & COMPLETION_REQUESTED:
            channel.write(Packet(self.status.to_bytes(4, "little"), COMPLETION, trans_id=packet.trans_id))
            self.completed += 1
