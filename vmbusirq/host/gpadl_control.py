"""What a host does with the messages about GPADLs, and when it lets go of guest memory (vmbus.md 2.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbusirq.host.channel import ChannelState
from vmbusirq.host.gpadl import GpadlState, HostGpadl
from vmbusirq.wire.protocol import (
    STATUS_SUCCESS,
    STATUS_UNSUCCESSFUL,
    GpadlBody,
    GpadlCreated,
    GpadlError,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
)

if TYPE_CHECKING:
    from vmbusirq.host.connection import HostConnection

__all__ = ["GpadlControl"]


class GpadlControl:
    """The GPADLs of one connection."""

    def __init__(self, connection: HostConnection) -> None:
        self._connection = connection
        self._table = connection.gpadls
        self._bus = connection.bus

    # ---- messages

    def header(self, message: GpadlHeader) -> None:
        """GPADL_HEADER. Whatever is wrong is answered: the message names its channel."""
        channel = self._connection.channel(message.child_relid)
        if channel is None or not channel.is_offered:
            self._refuse(message.child_relid, message.gpadl, "there is no such channel")
            return
        gpadl = self._table.begin(channel, message)
        if isinstance(gpadl, str):
            self._refuse(message.child_relid, message.gpadl, gpadl)
        else:
            self._check_complete(gpadl)

    def body(self, message: GpadlBody) -> None:
        """GPADL_BODY. One that nobody waits for names no channel, so that there is no answer."""
        gpadl = self._table.incomplete(message.gpadl)
        if gpadl is None or gpadl.assembly is None:
            self._connection.drop(message, f"no gpadl {message.gpadl:#x} waits for it")
            return
        gpadl.assembly.add(message)
        self._check_complete(gpadl)

    def _check_complete(self, gpadl: HostGpadl) -> None:
        if gpadl.assembly is None or not gpadl.assembly.complete:
            return
        try:
            gpadl.ranges = gpadl.assembly.ranges()
        except GpadlError as error:
            self._table.remove(gpadl)
            self._refuse(gpadl.relid, gpadl.handle, str(error))
            return
        if not self._table.fits(gpadl):
            self._table.remove(gpadl)
            self._refuse(gpadl.relid, gpadl.handle, "the guest has no such page")
            return
        self._table.completed(gpadl)
        gpadl.assembly = None
        gpadl.state = GpadlState.OFFERED
        self._bus.later(self._bus.options.gpadl_delay_ticks, lambda: self._device_answers(gpadl))

    def _device_answers(self, gpadl: HostGpadl) -> None:
        """The device has taken the memory."""
        if self._table.find(gpadl.relid, gpadl.handle) is not gpadl:
            return  # rescinded or released meanwhile
        if gpadl.state is GpadlState.OFFERED:
            gpadl.state = GpadlState.ACCEPTED
            self._connection.send(GpadlCreated(gpadl.relid, gpadl.handle, STATUS_SUCCESS))
        elif gpadl.state is GpadlState.OFFERED_TEARING_DOWN:
            self._torn_down(gpadl)

    def _refuse(self, relid: int, handle: int, why: str) -> None:
        self._bus.complain(f"gpadl {handle:#x} for channel {relid} refused: {why}")
        self._connection.send(GpadlCreated(relid, handle, STATUS_UNSUCCESSFUL))

    def teardown(self, message: GpadlTeardown) -> None:
        """GPADL_TEARDOWN. Memory under an open ring is let go of when the channel closes."""
        gpadl = self._table.find(message.child_relid, message.gpadl)
        if gpadl is None or gpadl.state is not GpadlState.ACCEPTED:
            state = "unknown" if gpadl is None else gpadl.state.name
            self._connection.drop(message, f"gpadl {message.gpadl:#x} of channel {message.child_relid} is {state}")
        elif gpadl.channel.state in (ChannelState.REVOKED, ChannelState.REOFFERED):
            self._table.remove(gpadl)
            self._connection.send(GpadlTorndown(gpadl.handle))
        else:
            self._begin_teardown(gpadl)

    def _begin_teardown(self, gpadl: HostGpadl) -> None:
        gpadl.state = GpadlState.TEARING_DOWN
        if not gpadl.users:
            self.unused(gpadl)

    # ---- what else ends one

    def unused(self, gpadl: HostGpadl) -> None:
        """No ring lies in it any more."""
        if gpadl.state is GpadlState.TEARING_DOWN and not gpadl.users:
            self._bus.later(self._bus.options.gpadl_delay_ticks, lambda: self._torn_down(gpadl))

    def _torn_down(self, gpadl: HostGpadl) -> None:
        """The device has let go."""
        if self._table.find(gpadl.relid, gpadl.handle) is not gpadl:
            return  # the channel was rescinded meanwhile, and that was answered
        self._table.remove(gpadl)
        if self._connection.is_connected:
            self._connection.send(GpadlTorndown(gpadl.handle))
        self._connection.check_released()

    def revoke(self, gpadl: HostGpadl) -> None:
        """Its channel is rescinded: answer what the guest waits for. Accepted ones stay until the guest's teardown."""
        if gpadl.state in (GpadlState.IN_PROGRESS, GpadlState.OFFERED):
            self._table.remove(gpadl)
            self._connection.send(GpadlCreated(gpadl.relid, gpadl.handle, STATUS_UNSUCCESSFUL))
        elif gpadl.state is GpadlState.TEARING_DOWN:
            self._table.remove(gpadl)
            self._connection.send(GpadlTorndown(gpadl.handle))

    def release(self, gpadl: HostGpadl) -> None:
        """The guest has gone and wants no answer."""
        if gpadl.state is GpadlState.IN_PROGRESS or gpadl.channel.state in (
            ChannelState.REVOKED,
            ChannelState.REOFFERED,
        ):
            self._table.remove(gpadl)
        elif gpadl.state is GpadlState.OFFERED:
            gpadl.state = GpadlState.OFFERED_TEARING_DOWN
        elif gpadl.state is GpadlState.ACCEPTED:
            self._begin_teardown(gpadl)
