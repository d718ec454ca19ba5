"""At most one MODIFYCHANNEL of a channel under way, for hosts that drop a second one (ours, see Design.one_modify).

A move that comes meanwhile only says where to; the answer sends it, from a work queue. What stays unanswered is sent
again, so that a message that got lost ends in the same state as one that did not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmbusirq.core import TICKS_PER_MS
from vmbusirq.errors import IrqError
from vmbusirq.log import Log
from vmbusirq.steps import Step, Steps
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.vmbus.control import Clock, Timer

__all__ = ["RESENDS", "RESEND_TICKS", "OneModify"]

RESEND_TICKS: Final = 10 * TICKS_PER_MS
"""From the first MODIFYCHANNEL to the second, doubled each time: one that is lost is mended while an offline waits."""
RESENDS: Final = 8  # the last 2.5 seconds after the first

Post = Callable[[Channel, int], Steps[None]]


@dataclass(eq=False, slots=True)
class _Move:
    """What the host was asked for, and what for next.

    Attributes:
        cpu: in the MODIFYCHANNEL that was sent last.
        put_off: of the move that its answer sends, None: there is none.
        asked: it was sent, and the host has not answered.
        resent: how often it was sent again.
    """

    channel: Channel
    cpu: int
    put_off: int | None = None
    asked: bool = False
    resent: int = 0
    timer: Timer | None = None


class OneModify:
    """Keeps the MODIFYCHANNELs of a channel apart.

    Args:
        clock: for what stays unanswered.
        log: where that is said.
        post: yields the steps of posting one.
        queue_work: runs steps later.
        count: called with how many moves were begun, and how many are done with: a move that is put off counts as
            begun, whatever becomes of its target later, so that who waits for all that were begun waits for it.
    """

    def __init__(
        self,
        clock: Clock,
        log: Log,
        *,
        post: Post,
        queue_work: Callable[[str, Steps[None]], None],
        count: Callable[[int, int], None],
    ) -> None:
        self._clock = clock
        self._log = log
        self._post = post
        self._queue_work = queue_work
        self._count = count
        self._moves: dict[Channel, _Move] = {}

    def move(self, channel: Channel, cpu: int) -> Steps[None]:
        """Ask the host to interrupt another CPU, or see that it is asked as soon as it has answered.

        Raises:
            IrqError: what posting it now fails with.
        """
        touches = _touches(channel)
        yield Step(f"channel {channel.relid}: looks whether a MODIFYCHANNEL is under way", touches=touches)
        move = self._moves.get(channel)
        if move is not None:
            self._count(move.put_off is None, 0)
            move.put_off = cpu
            return
        self._moves[channel] = move = _Move(channel, cpu)
        try:
            yield from self._send(move)
        except IrqError:
            del self._moves[channel]
            raise
        self._count(1, 0)

    def answered(self, relid: int) -> None:
        """Take note of an answer; nothing to do for a move that was given up, or sent twice and answered before."""
        move = next((move for move in self._moves.values() if move.asked and move.channel.relid == relid), None)
        if move is None:
            return
        move.asked = False
        self._cancel(move)
        if move.put_off in (None, move.cpu):
            self._forget(move)
        else:
            self._count(0, 1)
            self._queue_work(f"move channel {relid}", self._send_next(move))

    def _forget(self, move: _Move) -> None:
        """Be done with a move, and with the one that was put off."""
        del self._moves[move.channel]
        self._count(0, 1 if move.put_off is None else 2)

    def _send(self, move: _Move) -> Steps[None]:
        yield from self._post(move.channel, move.cpu)
        move.asked = True
        ticks = RESEND_TICKS << move.resent
        move.timer = self._clock.call_at(self._clock.now + ticks, lambda: self._unanswered(move))

    def _send_next(self, move: _Move) -> Steps[None]:
        """Send the move that was put off."""
        channel = move.channel
        yield Step(f"channel {channel.relid}: the move that was put off is sent", touches=_touches(channel))
        assert move.put_off is not None, "that is why this was queued"
        move.cpu, move.put_off, move.resent = move.put_off, None, 0
        yield from self._send_from_work(move)

    def _send_again(self, move: _Move) -> Steps[None]:
        channel = move.channel
        yield Step(f"channel {channel.relid}: an unanswered MODIFYCHANNEL is sent again", touches=_touches(channel))
        if move.asked:
            yield from self._send_from_work(move)

    def _send_from_work(self, move: _Move) -> Steps[None]:
        channel = move.channel
        if channel.gone or channel.rescinded or channel.state is not ChannelState.OPENED:
            self._forget(move)
            return
        try:
            yield from self._send(move)
        except IrqError as error:
            self._log.err(f"hv_vmbus: relid {channel.relid} cannot be moved to cpu {move.cpu}: {error}")
            self._forget(move)

    def _unanswered(self, move: _Move) -> None:
        move.timer = None
        move.resent += 1
        if move.resent > RESENDS:
            self._log.err(f"hv_vmbus: No MODIFYCHANNEL_RESPONSE for relid {move.channel.relid}")
            self._forget(move)
        else:
            self._queue_work(f"move channel {move.channel.relid} again", self._send_again(move))

    @staticmethod
    def _cancel(move: _Move) -> None:
        timer, move.timer = move.timer, None
        if timer is not None:
            timer.cancel()


def _touches(channel: Channel) -> frozenset[str]:
    return frozenset({"modchan", f"channel {channel.relid}"})
