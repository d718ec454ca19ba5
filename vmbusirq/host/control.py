"""What a host does with the messages about one channel: open, close, move, release (vmbus.md 2.10, 4.4).

Rules are OpenVMM's. What a table does not allow is logged and gets no answer, unless the table says so.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from vmbusirq.errors import IrqError
from vmbusirq.host.channel import ChannelState, HostChannel
from vmbusirq.host.rings import HostRings
from vmbusirq.wire.protocol import (
    STATUS_SUCCESS,
    STATUS_UNSUCCESSFUL,
    VP_INDEX_NONE,
    CloseChannel,
    CloseReservedChannel,
    CloseReservedResponse,
    OpenChannel,
    OpenChannelResult,
    OpenReservedChannel,
    RelidReleased,
    signal_connection_id,
)

if TYPE_CHECKING:
    from vmbusirq.host.connection import HostConnection

__all__ = ["ChannelControl"]

_GUEST_CHOSEN: Final = range(0x1000, 1 << 22)
"""Connection ids that a 6.0 guest may choose for its signals: below and above lie those of messages (vmbus.md 2.3)."""
_IGNORED: Final = (ChannelState.REVOKED, ChannelState.REOFFERED)


class ChannelControl:
    """The channels of one connection."""

    def __init__(self, connection: HostConnection) -> None:
        self._connection = connection
        self._bus = connection.bus

    # ---- open

    def open(self, message: OpenChannel | OpenReservedChannel) -> None:
        """OPENCHANNEL, OPEN_RESERVED_CHANNEL."""
        channel = self._connection.find(message)
        if channel is None or channel.state in _IGNORED:
            return
        if channel.state is ChannelState.CLOSED:
            self._begin_open(channel, message)
        elif channel.state is ChannelState.CLOSING:
            channel.state = ChannelState.CLOSING_REOPEN
            channel.open_message = message
        else:
            self._connection.drop(message, f"channel {channel.relid} is in state {channel.state.name}")

    def _begin_open(self, channel: HostChannel, message: OpenChannel | OpenReservedChannel) -> None:
        channel.state = ChannelState.OPENING
        channel.open_message = message
        self._bus.later(self._bus.options.open_delay_ticks, lambda: self._finish_open(channel))

    def _finish_open(self, channel: HostChannel) -> None:
        """The device has answered."""
        if channel.state is ChannelState.OPENING_CLIENT_RELEASE:
            self._begin_close(channel, ChannelState.CLOSING_CLIENT_RELEASE)
            return
        if channel.state is not ChannelState.OPENING:  # rescinded meanwhile
            return
        message = channel.open_message
        assert message is not None, "a channel opens because of a message"
        try:
            self._map(channel, message)
        except IrqError as error:
            channel.state = ChannelState.CLOSED
            self._bus.complain(f"channel {channel.relid} ({channel.name}): not opened: {error}")
            self._answer_open(channel, message, STATUS_UNSUCCESSFUL)
            return
        channel.state = ChannelState.OPEN
        self._answer_open(channel, message, STATUS_SUCCESS)
        self._bus.run_vsp(channel, lambda: channel.device.vsp.opened(channel))

    def _answer_open(self, channel: HostChannel, message: OpenChannel | OpenReservedChannel, status: int) -> None:
        if isinstance(message, OpenChannel):
            self._connection.send(OpenChannelResult(channel.relid, message.openid, status))
        else:
            result = OpenChannelResult(channel.relid, 0, status)
            self._connection.send_to(result, message.target_vp, message.target_sint)

    def _map(self, channel: HostChannel, message: OpenChannel | OpenReservedChannel) -> None:
        """Map the rings and make the channel's port. IrqError: why it cannot be opened."""
        vp = self._target(message)
        gpadl = channel.gpadl(message.ringbuffer_gpadlhandle)
        if gpadl is None:
            raise IrqError(errno.ENOENT, f"no gpadl {message.ringbuffer_gpadlhandle:#x} of this channel")
        ranges, split = gpadl.ranges, message.downstream_ringbuffer_pageoffset
        if len(ranges) != 1 or ranges[0].byte_offset or ranges[0].byte_count % 4096:
            raise IrqError(errno.EINVAL, "a ring's gpadl must be one range of whole pages")
        pfns = ranges[0].pfns
        if not 0 < split < len(pfns):
            raise IrqError(errno.EINVAL, f"the in ring cannot begin at page {split} of {len(pfns)}")
        sint, flag, signal_id = self._signal_parameters(channel, message)
        rings = HostRings(
            self._bus.partition.core, self._bus.partition.memory.fd, channel, pfns, split, sint=sint, flag=flag
        )
        try:
            rings.set_target(vp)
            self._bus.open_port(channel, signal_id)
        except IrqError:
            rings.close()
            raise
        channel.rings_made(rings)
        channel.ring_gpadl = gpadl.hold()
        channel.target_vp = vp

    def _target(self, message: OpenChannel | OpenReservedChannel) -> int:
        vp = message.target_vp
        if vp != VP_INDEX_NONE and vp >= self._bus.partition.core.nr_cpus:
            raise IrqError(errno.EINVAL, f"there is no vp {vp}")
        return vp

    def _signal_parameters(
        self, channel: HostChannel, message: OpenChannel | OpenReservedChannel
    ) -> tuple[int, int, int]:
        """Return SINT and event flag towards the guest, and the connection id by which the guest signals."""
        if isinstance(message, OpenReservedChannel):
            sint = message.target_sint
            return sint, channel.relid, signal_connection_id(channel.relid, self._connection.sint, self._connection.vtl)
        own = signal_connection_id(channel.relid, self._connection.sint, self._connection.vtl)
        flag = channel.relid if message.event_flag is None else message.event_flag
        signal_id = message.connection_id or own
        if signal_id not in _GUEST_CHOSEN:
            raise IrqError(errno.EINVAL, f"connection id {signal_id:#x} is not for channels")
        return self._connection.sint, flag, signal_id

    # ---- close

    def close(self, message: CloseChannel) -> None:
        """CLOSECHANNEL; never answered."""
        channel = self._connection.find(message)
        if channel is None or channel.state in _IGNORED:
            return
        if channel.state is not ChannelState.OPEN or channel.is_reserved:
            self._connection.drop(message, f"channel {channel.relid} is in state {channel.state.name}")
            return
        self._begin_close(channel, ChannelState.CLOSING)

    def close_reserved(self, message: CloseReservedChannel) -> None:
        """CLOSE_RESERVED_CHANNEL; answered to the VP and SINT that it names, connected or not."""
        channel = self._connection.find(message)
        if channel is None:
            return
        if channel.state is not ChannelState.OPEN or not channel.is_reserved:
            self._connection.drop(message, f"channel {channel.relid} is not open as a reserved channel")
            return
        known = self._connection.is_connected
        gpadls = self._connection.gpadls.of(channel)
        self._begin_close(channel, ChannelState.CLOSING if known else ChannelState.CLOSING_CLIENT_RELEASE)
        self._connection.send_to(CloseReservedResponse(message.child_relid), message.target_vp, message.target_sint)
        if not known:
            for gpadl in gpadls:  # nobody is left to tear them down
                self._connection.gpadl_control.release(gpadl)

    def _begin_close(self, channel: HostChannel, state: ChannelState) -> None:
        """Signal nobody from here on; the device answers later."""
        channel.state = state
        self._unmap(channel)
        self._bus.later(self._bus.options.close_delay_ticks, lambda: self._finish_close(channel))

    def _unmap(self, channel: HostChannel) -> None:
        """Use the rings no more, if there are any, and tell the device."""
        was_open = channel.is_open
        self._bus.close_port(channel)
        channel.drop_rings()
        channel.modifying, channel.pending_target = False, None
        if was_open:
            self._bus.run_vsp(channel, lambda: channel.device.vsp.closed(channel))

    def _let_go(self, channel: HostChannel) -> None:
        """Give the memory of the rings back: the guest may be told now that it was torn down."""
        gpadl, channel.ring_gpadl = channel.ring_gpadl, None
        if gpadl is not None:
            gpadl.release()

    def _finish_close(self, channel: HostChannel) -> None:
        """The device has answered. Sub-channels are rescinded before the guest hears that its memory is free."""
        if channel.state is ChannelState.CLOSING_REOPEN:
            message = channel.open_message
            assert message is not None, "CLOSING_REOPEN keeps the message"
            self._let_go(channel)
            self._begin_open(channel, message)
        elif channel.state is ChannelState.CLOSING:
            channel.state = ChannelState.CLOSED
            channel.open_message = None
            if channel.device.vsp.closes_for_good:
                self._bus.remove_device(channel.device)
            elif not channel.sub_channel_index:
                self._revoke_sub_channels(channel)
            self._let_go(channel)
        elif channel.state is ChannelState.CLOSING_CLIENT_RELEASE:
            self._let_go(channel)
            self._connection.forget(channel)
            self._connection.check_released()

    def _revoke_sub_channels(self, primary: HostChannel) -> None:
        """Sub-channels go with the close of their primary: who opens it again asks for them again (vmbus.md 7.4)."""
        for channel in primary.device.sub_channels:
            self.revoke(channel)

    # ---- the end of an offer

    def relid_released(self, message: RelidReleased) -> None:
        """RELID_RELEASED; never answered. A channel that waits for it is offered again, under the same relid."""
        channel = self._connection.find(message)
        if channel is None:
            return
        if channel.state is ChannelState.REOFFERED:
            self._drop_gpadls(channel)
            relid = channel.relid
            self._connection.forget(channel)
            self._connection.offer(channel, relid)
        elif channel.state is ChannelState.CLOSING:
            channel.state = ChannelState.CLOSING_CLIENT_RELEASE
            self._drop_gpadls(channel)
        elif channel.state in (ChannelState.CLOSED, ChannelState.REVOKED):
            self._drop_gpadls(channel)
            self._connection.forget(channel)
        else:
            self._connection.drop(message, f"channel {channel.relid} is in state {channel.state.name}")

    def _drop_gpadls(self, channel: HostChannel) -> None:
        for gpadl in self._connection.gpadls.of(channel):
            self._connection.gpadls.remove(gpadl)

    def revoke(self, channel: HostChannel) -> bool:
        """Rescind a channel; False if the guest does not know of it. What the guest waits for is answered first."""
        if channel.state is ChannelState.REOFFERED:
            channel.state = ChannelState.REVOKED
            return True
        if not channel.is_offered:
            return False
        channel.state = ChannelState.REVOKED
        self._unmap(channel)
        self._let_go(channel)
        for gpadl in self._connection.gpadls.of(channel):
            self._connection.gpadl_control.revoke(gpadl)
        self._connection.rescinded(channel)
        return True

    def release(self, channel: HostChannel) -> None:
        """The guest has gone: bring the channel to CLIENT_RELEASED, by way of its device if that is needed."""
        state = channel.state
        if channel.is_reserved and state is ChannelState.OPEN:
            return
        if state is ChannelState.OPEN:
            self._begin_close(channel, ChannelState.CLOSING_CLIENT_RELEASE)
        elif state is ChannelState.OPENING:
            channel.state = ChannelState.OPENING_CLIENT_RELEASE
        elif state in (ChannelState.CLOSING, ChannelState.CLOSING_REOPEN):
            channel.state = ChannelState.CLOSING_CLIENT_RELEASE
        elif state in (ChannelState.CLOSED, ChannelState.REVOKED, ChannelState.REOFFERED):
            self._connection.forget(channel)
