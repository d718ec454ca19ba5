"""At most one move of a channel under way, for hosts that drop a second MODIFYCHANNEL (ours, see Design.one_modify).

A move that comes meanwhile only says where to; the answer sends it, from a work queue. What stays unanswered is sent
again, so that a message that got lost ends in the same state as one that did not. Then an answer does not tell which
of the messages it is to: a move is over when all that the answer can be to ask for its CPU
(:meth:`vmbusirq.vmbus.channel.Moves.answered`); else it is sent once more, at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmbusirq.core import TICKS_PER_MS
from vmbusirq.errors import IrqError
from vmbusirq.log import Log
from vmbusirq.steps import Step, Steps
from vmbusirq.vmbus.channel import Channel, ChannelState, Moves
from vmbusirq.vmbus.control import Clock, Timer

__all__ = ["FORGET_TICKS", "RESENDS", "RESEND_TICKS", "OneModify"]

RESEND_TICKS: Final = 10 * TICKS_PER_MS
"""From the first MODIFYCHANNEL to the second, doubled each time: one that is lost is mended while an offline waits."""
RESENDS: Final = 8  # the last 2.5 seconds after the first
FORGET_TICKS: Final = RESEND_TICKS << RESENDS
"""From the last MODIFYCHANNEL of a channel until no answer to any of them is expected any more."""

Post = Callable[[Channel, int], Steps[None]]


@dataclass(eq=False, slots=True)
class _Move:
    """What the host is asked for, and what for next.

    Attributes:
        opening: the channel's moves; others once it has been closed and opened again, which ends this one.
        cpu: in the MODIFYCHANNEL that is sent, and sent again.
        put_off: of the move that its answer sends, None: there is none.
        asked: it counts as begun once posted, and the host has not answered it.
        busy: somebody posts it, or a work item that will is queued; whoever that is sees to what comes meanwhile.
        resent: how often it was sent again because no answer came.
        timer: set while it is asked and nobody is busy.
    """

    channel: Channel
    opening: Moves
    cpu: int
    put_off: int | None = None
    asked: bool = True
    busy: bool = True
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
        if move is not None and move.opening is not channel.moves and not move.busy:
            self._forget(move)
            move = None
        if move is not None:
            self._put_off(move, cpu)
            return
        if self._clock.now - channel.moves.asked_at >= FORGET_TICKS:
            channel.moves.expect_none()
        self._moves[channel] = move = _Move(channel, channel.moves, cpu)
        try:
            yield from self._post(channel, cpu)
        except IrqError:
            move.asked = False
            self._go_on(move)
            raise
        self._count(1, 0)
        self._go_on(move)

    def _put_off(self, move: _Move, cpu: int) -> None:
        """Have a move sent when what is under way is over, or was ended by a close and whoever is busy is done."""
        if move.opening is not move.channel.moves:
            move.opening = move.channel.moves
            if move.asked:
                self._end(move)
        self._count(move.put_off is None, 0)
        move.put_off = cpu

    def answered(self, channel: Channel, certain: bool) -> None:
        """Take note of an answer that the channel's moves know of.

        Args:
            channel: whose.
            certain: all that it can be the answer to ask for one CPU.
        """
        move = self._moves.get(channel)
        if move is None or not move.asked or move.cpu != channel.moves.host_cpu:
            return  # given up, answered before, or not posted yet
        if certain:
            self._end(move)
            if not move.busy:
                self._go_on(move)
        elif not move.busy:
            self._queue(move)

    def _go_on(self, move: _Move) -> None:
        """Do what is next after a post, or after an answer: wait, send what was put off, or be done."""
        move.busy = False
        if move.asked:
            ticks = RESEND_TICKS << move.resent
            move.timer = self._clock.call_at(self._clock.now + ticks, lambda: self._unanswered(move))
        elif move.put_off is None:
            self._forget(move)
        else:
            self._queue(move)

    def _end(self, move: _Move) -> None:
        """Be done with the move that was asked for, and with one that was put off and asks for the same."""
        move.asked = False
        self._cancel(move)
        self._count(0, 1)
        if move.put_off == move.cpu:
            move.put_off = None
            self._count(0, 1)

    def _forget(self, move: _Move) -> None:
        """Be done with a move, and with the one that was put off."""
        self._cancel(move)
        del self._moves[move.channel]
        self._count(0, move.asked + (move.put_off is not None))

    def _queue(self, move: _Move) -> None:
        """Have a work item send it."""
        move.busy = True
        self._cancel(move)
        self._queue_work(f"move channel {move.channel.relid}", self._send(move))

    def _send(self, move: _Move) -> Steps[None]:
        """Send what is asked for again or, if that was answered, what was put off."""
        channel = move.channel
        yield Step(f"channel {channel.relid}: its MODIFYCHANNEL is sent from the queue", touches=_touches(channel))
        closed = channel.state is not ChannelState.OPENED or move.opening is not channel.moves
        if closed or channel.gone or channel.rescinded:
            self._forget(move)
            return
        if not move.asked:
            if move.put_off is None:  # the answer came while this was queued
                self._forget(move)
                return
            move.cpu, move.put_off, move.asked, move.resent = move.put_off, None, True, 0
        try:
            yield from self._post(channel, move.cpu)
        except IrqError as error:
            self._log.err(f"hv_vmbus: relid {channel.relid} cannot be moved to cpu {move.cpu}: {error}")
            if move.asked:
                self._end(move)
        self._go_on(move)

    def _unanswered(self, move: _Move) -> None:
        move.timer = None
        move.resent += 1
        if move.resent > RESENDS:
            self._log.err(f"hv_vmbus: No MODIFYCHANNEL_RESPONSE for relid {move.channel.relid}")
            move.channel.moves.expect_none()
            self._forget(move)
        else:
            self._queue(move)

    @staticmethod
    def _cancel(move: _Move) -> None:
        timer, move.timer = move.timer, None
        if timer is not None:
            timer.cancel()


def _touches(channel: Channel) -> frozenset[str]:
    return frozenset({"modchan", f"channel {channel.relid}"})
