"""A device of the host: one VSP, and its channels, of which the guest sees those that are offered."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.host.channel import HostChannel

if TYPE_CHECKING:
    from vmbusirq.host.connection import HostConnection
    from vmbusirq.host.server import HostBus
    from vmbusirq.host.vsp.base import Vsp

__all__ = ["HostDevice"]


class HostDevice:
    """One device; :meth:`HostBus.add_device` makes it.

    Attributes:
        bus, connection: the host, and the client that the device is offered to.
        vsp, instance, name: what it is.
        max_sub_channels: offered at most, however many the guest asks for.
    """

    def __init__(
        self,
        bus: HostBus,
        connection: HostConnection,
        vsp: Vsp,
        instance: UUID,
        *,
        name: str,
        relid: int | None = None,
        sub_relids: Sequence[int] = (),
        monitor: int | None = None,
    ) -> None:
        self.bus: Final = bus
        self.connection: Final = connection
        self.vsp: Final = vsp
        self.instance: Final = instance
        self.name: Final = name
        self.max_sub_channels = max(vsp.max_sub_channels, len(sub_relids))
        self.primary: Final = HostChannel(self, 0, fixed_relid=relid, monitor=monitor)
        self._sub_relids: tuple[int | None, ...] = tuple(sub_relids)
        self._subs: list[HostChannel] = []

    @property
    def sub_channels(self) -> tuple[HostChannel, ...]:
        """Every sub-channel there ever was, offered now or not."""
        return tuple(self._subs)

    @property
    def all_channels(self) -> tuple[HostChannel, ...]:
        """The primary and every sub-channel there ever was, offered now or not."""
        return (self.primary, *self._subs)

    @property
    def channels(self) -> tuple[HostChannel, ...]:
        """The channels that the guest knows of, primary first."""
        return tuple(channel for channel in self.all_channels if channel.is_offered)

    @property
    def fixed_relids(self) -> tuple[int, ...]:
        """Relids that are kept for this device."""
        own = () if self.primary.fixed_relid is None else (self.primary.fixed_relid,)
        return own + tuple(relid for relid in self._sub_relids if relid is not None)

    def offer_sub_channels(self, count: int) -> list[int]:
        """Offer sub-channels that are not offered yet, at most ``count`` and at most :attr:`max_sub_channels` in all.

        Returns:
            Their relids; fewer when relids ran out, none while the primary is not offered.
        """
        relids = []
        for index in range(1, min(count, self.max_sub_channels) + 1):
            channel = self._sub_channel(index)
            if not channel.is_offered and self.primary.is_offered and self.connection.offer(channel):
                relids.append(channel.relid)
        return relids

    def add_sub_channel(self, relid: int | None, index: int) -> HostChannel:
        """Offer one more sub-channel now, whatever the guest has asked for.

        Raises:
            IrqError: EEXIST the relid is kept for another channel; EINVAL no such relid, or not the next index.
        """
        if index != len(self._sub_relids) + 1:
            raise IrqError(
                errno.EINVAL,
                f"host: {self.name} has {len(self._sub_relids)} sub-channels: {index} is not the next (EINVAL)",
            )
        self.bus.keep_relid(self.connection, relid)
        self._sub_relids = (*self._sub_relids, relid)
        self.max_sub_channels = max(self.max_sub_channels, index)
        channel = self._sub_channel(index)
        self.connection.offer(channel)
        return channel

    def _sub_channel(self, index: int) -> HostChannel:
        if index > len(self._subs):
            fixed = self._sub_relids[index - 1] if index <= len(self._sub_relids) else None
            self._subs.append(HostChannel(self, index, fixed_relid=fixed))
        return self._subs[index - 1]
