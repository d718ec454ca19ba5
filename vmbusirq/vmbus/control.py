"""The guest's control path: posting messages to the host, waiting for answers, taking messages out of the slot.

See drivers/hv/connection.c (vmbus_post_msg), drivers/hv/vmbus_drv.c (vmbus_on_msg_dpc) and the message table of
drivers/hv/channel_mgmt.c, v6.10.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from vmbusirq._ffi import lib
from vmbusirq.errors import Hung, IrqError
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.log import Level, Log
from vmbusirq.steps import Lock, Step, Steps, holding
from vmbusirq.vmbus.channel import Channel
from vmbusirq.wire.protocol import (
    VMBUS_MESSAGE_CONNECTION_ID,
    Direction,
    InitiateContact,
    Message,
    MessageType,
    ProtocolError,
    Version,
    decode,
    encode,
    message_trace,
    trace_event,
)

__all__ = ["Control", "Hypervisor", "Request"]

POST_ATTEMPTS: Final = 100
_TICKS_PER_US: Final = 10
_DOUBLINGS: Final = 21  # 1, 2, 4 ... 2 097 152 microseconds
_ONCE_ONLY: Final = frozenset((MessageType.GPADL_CREATED, MessageType.GPADL_TORNDOWN))  # no handle is used twice
_SHORT_DELAY_US: Final = 1000  # below, the kernel spins: here others get a turn and no time passes


class Timer(Protocol):
    """A timer that was set."""

    def cancel(self) -> None:
        """Forget it."""


class Clock(Protocol):
    """Virtual time."""

    @property
    def now(self) -> int:
        """Ticks since boot."""

    def call_at(self, tick: int, function: Callable[[], object]) -> Timer:
        """Call a function then."""


class Hypervisor(Protocol):
    """What the driver asks of the hypervisor; :class:`vmbusirq.hyperv.partition.Partition` has it."""

    @property
    def clock(self) -> Clock:
        """Time."""

    def hv_post_message(self, connection_id: int, message_type: int, payload: bytes) -> int:
        """HvPostMessage."""


@dataclass(eq=False, slots=True)
class Request:
    """Something asked of the host whose answer is awaited (struct vmbus_channel_msginfo).

    Attributes:
        kind: the type of the answer.
        key: what the answer must name: a relid, a GPADL handle, nothing.
        channel: whose rescind ends the wait.
        late: called in the tasklet with an answer that comes when nobody waits for it any more.
        answer: the message that came; ``rescinded``: none will.
    """

    kind: MessageType
    key: tuple[int, ...] = ()
    channel: Channel | None = None
    late: Callable[[Message], object] | None = None
    answer: Message | None = None
    rescinded: bool = False

    @property
    def done(self) -> bool:
        """The wait is over."""
        return self.answer is not None or self.rescinded


@dataclass(slots=True)
class Control:
    """Messages to and from the host.

    Attributes:
        version: agreed upon last; None before.
        connected: the host knows the guest.
        suspended: a suspend has left the host, and resume alone brings the guest back.
        msg_conn_id: connection that messages are posted to.
        received: messages that were taken out of the slot, by type.
        requests: what is being waited for.
        given_up: requests whose wait was given up: the next answers of their kind and key are theirs.
        handlers: who takes a message of each type, in the tasklet.
        traces: hears of the tracepoints of system hyperv, if set.
    """

    hv: Hypervisor
    log: Log
    version: Version | None = None
    connected: bool = False
    suspended: bool = False
    msg_conn_id: int = VMBUS_MESSAGE_CONNECTION_ID
    received: dict[int, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    given_up: list[Request] = field(default_factory=list)
    handlers: dict[MessageType, Callable[[Message], object]] = field(default_factory=dict)
    traces: Callable[[str], object] | None = None

    # ---- waiting

    def wait(
        self,
        point: str,
        ready: Callable[[], bool],
        timeout_ticks: int | None = None,
        *,
        touches: frozenset[str] | None = None,
    ) -> Steps[bool]:
        """Wait until ``ready``, or so many ticks; return whether it came true. ``touches``: see :class:`Step`."""
        if timeout_ticks is None:
            if not ready():
                yield Step(point, ready=ready, touches=touches)
            return True
        clock = self.hv.clock
        end = clock.now + timeout_ticks
        timer = clock.call_at(end, lambda: None)  # so that idle time ends no later
        try:
            while not ready() and clock.now < end:
                yield Step(point, ready=lambda: ready() or clock.now >= end, touches=touches)
        finally:
            timer.cancel()
        return ready()

    def _delay(self, point: str, microseconds: int) -> Steps[None]:
        if microseconds >= _SHORT_DELAY_US:
            yield from self.wait(point, lambda: False, microseconds * _TICKS_PER_US)
            return
        turns: list[None] = []
        clock = self.hv.clock
        timer = clock.call_at(clock.now, lambda: turns.append(None))  # of this very tick: whoever settles runs it
        try:
            yield Step(point, ready=lambda: bool(turns))
        finally:
            timer.cancel()

    # ---- to the host

    def post(self, message: Message, what: str = "", touches: frozenset[str] | None = None) -> Steps[None]:
        """Post a message; retry while the host has no buffer for it (vmbus_post_msg).

        Args:
            message: the message.
            what: it, in words.
            touches: what is touched beside the host's queue until the caller's next step; None: maybe anything.
        Raises:
            IrqError: EAGAIN, ENOBUFS after 100 attempts; EINVAL at once for what no retry mends, an unknown connection
                at first contact among it.
        """
        touched = None if touches is None else touches | {"host queue"}
        yield Step(what or f"send {message.msgtype.name}", touches=touched)
        payload = encode(message, self.version)
        error = 0
        for attempt in range(POST_ATTEMPTS):
            error = self._post_once(message, payload)
            if error in (0, errno.EINVAL):
                break
            yield from self._delay(f"{message.msgtype.name}: the host has no buffer", 1 << min(attempt, _DOUBLINGS))
        self._trace_sent(message, -error)
        if error:
            raise IrqError(error, f"vmbus: {message.msgtype.name} could not be posted ({errno.errorcode[error]})")

    def post_nowait(self, message: Message) -> bool:
        """Post a message where nobody can wait; return False if the host has no buffer for it, or wants none."""
        error = self._post_once(message, encode(message, self.version))
        self._trace_sent(message, -error)
        return not error

    def _post_once(self, message: Message, payload: bytes) -> int:
        status = self.hv.hv_post_message(self.msg_conn_id, lib.VI_MSG_VMBUS, payload)
        if status == HvStatus.SUCCESS:
            return 0
        if status == HvStatus.INVALID_CONNECTION_ID:
            return errno.EINVAL if isinstance(message, InitiateContact) else errno.EAGAIN
        if status in (HvStatus.INSUFFICIENT_MEMORY, HvStatus.INSUFFICIENT_BUFFERS):
            return errno.ENOBUFS
        self.log.err(f"hv_vmbus: hv_post_msg() failed; error code:{int(status)}")
        return errno.EINVAL

    def ask(
        self,
        request: Request,
        *messages: Message,
        locks: Sequence[Lock] = (),
        touches: frozenset[str] | None = None,
    ) -> Steps[Message | None]:
        """Post messages and wait, without limit, for the answer; None: the channel was rescinded instead.

        A host answers in the order of the questions: as long as one of the same kind and key is unanswered, its answer
        comes first. If no other follows, the host has dropped that question, and what it said is the answer to ours.

        Args:
            request: what is asked.
            messages: how.
            locks: held while they are posted and dropped for the wait.
            touches: what the caller touches after it, up to its next step; None: maybe anything.
        Raises:
            Hung: the host will not answer; what it says later is not taken for the answer to another question.
        """
        touched = None if touches is None else touches | {"requests"}
        self.requests.append(request)
        try:
            for message in messages:
                posting = self.post(message, touches=touched)
                for lock in reversed(locks):
                    posting = holding(lock, posting)
                yield from posting
            earlier = [other for other in self.given_up if (other.kind, other.key) == (request.kind, request.key)]
            try:
                yield from self.wait(f"wait for {request.kind.name}", lambda: request.done, touches=touched)
            except Hung:
                said = [other.answer for other in earlier if other.answer is not None]
                if not said:
                    self._give_up(request)
                    raise
                request.answer = said[-1]
        finally:
            self.requests.remove(request)
        return request.answer

    def _give_up(self, request: Request) -> None:
        if request.kind not in _ONCE_ONLY:
            self.given_up.append(request)

    def forget(self, channel: Channel | None = None) -> None:
        """Expect no late answers any more, of one channel or at all: the host has let go."""
        self.given_up[:] = [request for request in self.given_up if channel not in (None, request.channel)]

    def rescind_channel(self, channel: Channel) -> None:
        """End every wait that belongs to a channel."""
        self.forget(channel)
        for request in self.requests:
            if request.channel is channel:
                request.rescinded = True

    # ---- from the host

    def on_message(self, message_type: int, size: int, payload: bytes) -> None:
        """Take one message out of the slot, in the tasklet; what Linux refuses is logged once and dropped."""
        msgtype = int.from_bytes(payload[:4], "little")
        self._trace(str(message_trace("vmbus_on_msg_dpc", msgtype)))
        try:
            message = decode(payload, self.version, Direction.TO_GUEST, size=size)
        except ProtocolError as error:
            if not error.is_silent:
                self.log.once(error.refusal, Level.WARNING, f"hv_vmbus: {error}")  # a WARN_ONCE() for each reason
            return
        self.received[msgtype] = self.received.get(msgtype, 0) + 1
        handler = self.handlers.get(message.msgtype)
        if handler is not None:
            handler(message)

    def answer(self, message: Message, *key: int) -> bool:
        """Hand an answer to the first request that waits for it, or has given up; return False if there is none."""
        self.trace_received(message)
        for request in self.given_up:
            if (request.kind, request.key) == (message.msgtype, key):
                self.given_up.remove(request)
                request.answer = message
                if request.late is not None:
                    request.late(message)
                return True
        for request in self.requests:
            if (request.kind, request.key) == (message.msgtype, key) and not request.done:
                request.answer = message
                return True
        return False

    # ---- tracepoints

    def trace_received(self, message: Message) -> None:
        """Emit the event of a message that is being handled."""
        if self.traces is not None:
            event = trace_event(message)
            if event is not None:
                self._trace(str(event))

    def _trace_sent(self, message: Message, ret: int) -> None:
        if self.traces is not None:
            event = trace_event(message, ret)
            if event is not None:
                self._trace(str(event))

    def _trace(self, text: str) -> None:
        if self.traces is not None:
            self.traces(text)
