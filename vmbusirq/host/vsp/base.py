"""What every virtual service provider (VSP), the host's end of a device, has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from vmbusirq.wire.packet import Packet

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel
    from vmbusirq.host.device import HostDevice

__all__ = ["Vsp"]


class Vsp:
    """One device's host end: what its offer says, and what it does with the packets of its guest.

    The methods run inside :meth:`HostBus.pump`. What a guest sends is believed in nothing; a VSP that raises because of
    it fails its channel's worker (:attr:`HostChannel.failure`), as a corrupt ring does, and never the host.

    Attributes:
        class_name: for people and for log lines.
        if_type: the class GUID of the offer.
        chn_flags: of the offer, see OfferFlags.
        user_def: of the offer, at most 120 bytes.
        mmio_megabytes: of the offer.
        max_sub_channels: how many sub-channels the device offers at most, whatever the guest asks for.
        closes_for_good: the host rescinds the device when the guest has closed its channel, as with hv_sock
            connections (vmbus.md 7.6).
        device: set when the VSP is added to a bus.
    """

    class_name: str
    if_type: UUID
    chn_flags: int = 0
    user_def: bytes = b""
    mmio_megabytes: int = 0
    max_sub_channels: int = 0
    closes_for_good: bool = False
    device: HostDevice

    def opened(self, channel: HostChannel) -> None:
        """The guest has opened a channel; both rings can be used from here on."""

    def closed(self, channel: HostChannel) -> None:
        """The channel is closed or taken away; its rings are gone already."""

    def packet(self, channel: HostChannel, packet: Packet) -> None:
        """Take one packet from the guest's out ring; replies to :meth:`HostChannel.request` do not come here."""

    @property
    def bulk_template(self) -> bytes:
        """What bulk packets of this device begin with, if the guest answers each of them."""
        return b""

    def released(self) -> None:
        """The guest has unloaded, or the device is revoked: forget all that a connection agreed on."""
