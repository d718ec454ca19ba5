"""MODIFYCHANNEL: an open channel interrupts another VP from now on (vmbus.md 2.10, 4.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmbusirq.host.channel import ChannelState, HostChannel
from vmbusirq.steps import Step, Steps
from vmbusirq.wire.protocol import (
    STATUS_SUCCESS,
    STATUS_UNSUCCESSFUL,
    VP_INDEX_NONE,
    ModifyChannel,
    ModifyChannelResponse,
    Unlock,
)

if TYPE_CHECKING:
    from vmbusirq.host.connection import HostConnection

__all__ = ["IN_FLIGHT_MAX", "ModifyControl"]

IN_FLIGHT_MAX: Final = 4096
"""Late moves of one client at a time (ours): a guest that closes and opens again could begin any number."""


class ModifyControl:
    """Carries MODIFYCHANNEL out, at once or late, always in order.

    From 5.3 on the answer follows the move, so that nothing comes to the old VP after it; flags that are set there
    stay. Before, nothing is ever answered.
    """

    def __init__(self, connection: HostConnection) -> None:
        self._connection = connection
        self._bus = connection.bus
        self._in_flight = 0

    def modify(self, message: ModifyChannel) -> None:
        """Take the message."""
        channel = self._connection.find(message)
        if channel is None:
            return
        channel.modifies_seen += 1
        lose = self._bus.options.lose_modify
        if lose is not None and lose(channel.relid, channel.modifies_seen):
            return
        why = self._why_not(channel, message.target_vp)
        if why:
            self._connection.drop(message, f"channel {channel.relid} cannot be moved: {why}")
            self._answer(channel.relid, STATUS_UNSUCCESSFUL)
        elif not channel.modifying and self._in_flight >= IN_FLIGHT_MAX:
            self._connection.drop(message, f"{IN_FLIGHT_MAX} are being carried out")
        elif not channel.modifying:
            self._begin(channel, message.target_vp)
        elif self._answers:
            self._connection.drop(message, f"channel {channel.relid} is being moved")
        else:
            channel.pending_target = message.target_vp  # the last one wins

    @property
    def _answers(self) -> bool:
        version = self._connection.version
        return version is not None and version.has(Unlock.MODIFYCHANNEL_RESPONSE)

    def _why_not(self, channel: HostChannel, vp: int) -> str:
        if channel.state is not ChannelState.OPEN:
            return f"it is in state {channel.state.name}"
        if channel.is_reserved:
            return "it is reserved"
        if channel.target_vp == VP_INDEX_NONE or vp == VP_INDEX_NONE:
            return "it has no interrupts, or shall have none"
        return "" if vp < self._bus.partition.core.nr_cpus else f"there is no vp {vp}"

    def _begin(self, channel: HostChannel, vp: int) -> None:
        channel.modifying = True
        self._in_flight += 1
        time, opens = self._bus.options.modify_delay_ticks, channel.opens
        self._bus.later(time, lambda: self._bus.execute(self._finish(channel, channel.relid, opens, vp)))

    def _finish(self, channel: HostChannel, relid: int, opens: int, vp: int) -> Steps[None]:
        """Move the event port; then answer, then see to what came meanwhile."""
        yield Step(f"host: re-targets channel {relid} to vp {vp}", touches=frozenset({"host target", "host moves"}))
        self._in_flight -= 1
        if channel.state is not ChannelState.OPEN or channel.opens != opens:
            if self._connection.channel(relid) is channel and channel.is_offered:
                self._answer(relid, STATUS_UNSUCCESSFUL)
            return
        channel.set_target(vp)
        if self._answers:
            point = f"host: channel {relid} interrupts vp {vp}, the answer is next"
            vp = self._connection.target_vp
            yield Step(point, touches=frozenset({f"slot cpu{vp}", f"vector cpu{vp}", "host moves"}))
        channel.modifying = False
        self._answer(relid, STATUS_SUCCESS)
        if channel.pending_target is not None:
            vp, channel.pending_target = channel.pending_target, None
            self._begin(channel, vp)

    def _answer(self, relid: int, status: int) -> None:
        if self._answers:
            self._connection.send(ModifyChannelResponse(relid, status))
