"""The host's end of the integration services: it asks, the guest answers under the same transaction id.

First versions are agreed on, over the channel, as soon as the guest has opened it (see :mod:`vmbusirq.wire.ic`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.host.vsp.base import Vsp
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.ic import (
    FRAME_VERSIONS,
    HV_S_OK,
    MESSAGE_VERSIONS,
    Heartbeat,
    IcFlags,
    IcMessage,
    IcType,
    IcVersion,
    Negotiate,
    ShutdownRequest,
    TimeFlags,
    TimeSample,
)
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.record import PayloadError

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel

__all__ = ["HeartbeatVsp", "IcVsp", "KvpVsp", "ShutdownVsp", "TimesyncVsp", "VssVsp"]

OnAnswer = Callable[[IcMessage], object]


class IcVsp(Vsp):
    """An integration service.

    Attributes:
        kind: type of its requests.
        versions: frame and message version that were agreed on, None before.
        channel: open channel, None while there is none.
        requests, replies: sent, and answered as they should be; negotiations not counted.
        failures: replies with a status other than 0, which count as replies too.
        dropped: packets of the guest that meant nothing.
        last_problem: what was wrong with the last of them.
    """

    class_name: str
    kind: ClassVar[IcType]

    def __init__(self) -> None:
        self.if_type = CLASS_IDS[self.class_name]
        self.frame_versions: tuple[IcVersion, ...] = tuple(reversed(FRAME_VERSIONS))
        self.message_versions: tuple[IcVersion, ...] = tuple(reversed(MESSAGE_VERSIONS[self.class_name]))
        self.versions: tuple[IcVersion, IcVersion] | None = None
        self.channel: HostChannel | None = None
        self.requests = self.replies = self.failures = self.dropped = 0
        self.last_problem = ""
        self._ic_id = 0

    # ---- life of the channel

    def opened(self, channel: HostChannel) -> None:
        """Begin the negotiation."""
        self.channel = channel
        self.versions = None
        body = Negotiate(self.frame_versions, self.message_versions).to_bytes()
        self._send(channel, IcMessage.request(IcType.NEGOTIATE, body), self._negotiated)

    def closed(self, channel: HostChannel) -> None:
        """Forget what was agreed on."""
        self.channel = None
        self.versions = None

    def released(self) -> None:
        """Forget what was agreed on."""
        self.channel = None
        self.versions = None

    def packet(self, channel: HostChannel, packet: Packet) -> None:
        """Drop what answers no request."""
        self._drop(f"packet of type {packet.type}, id {packet.trans_id}: answers no request")

    # ---- requests

    def ask(self, body: bytes, on_answer: OnAnswer | None = None) -> int:
        """Send a request of this service and return its transaction id.

        Args:
            body: what follows the headers.
            on_answer: called with the answer, once, if it makes sense and its status is 0.
        Raises:
            IrqError: ENOTCONN the guest has not opened the channel, or not agreed on versions.
        """
        channel, versions = self.channel, self.versions
        if channel is None or versions is None:
            why = "the guest has not opened it" if channel is None else "no versions are agreed on"
            raise IrqError(errno.ENOTCONN, f"host: {self.class_name}: cannot ask: {why} (ENOTCONN)")
        self._ic_id = self._ic_id + 1 & 0xFF
        request = IcMessage.request(self.kind, body, frame=versions[0], message=versions[1], ic_id=self._ic_id)

        def answered(answer: IcMessage) -> None:
            self.replies += 1
            if answer.header.status != HV_S_OK:
                self.failures += 1
            elif on_answer is not None:
                on_answer(answer)

        trans_id = self._send(channel, request, answered)
        self.requests += 1
        return trans_id

    def _send(self, channel: HostChannel, request: IcMessage, on_answer: OnAnswer) -> int:
        def replied(packet: Packet) -> None:
            try:
                answer = IcMessage.from_bytes(packet.payload)
                self._check(request, answer)
                on_answer(answer)
            except PayloadError as error:
                self._drop(str(error))

        return channel.request(request.to_bytes(), replied, flags=0)

    @staticmethod
    def _check(request: IcMessage, answer: IcMessage) -> None:
        if not answer.header.icflags & IcFlags.RESPONSE:
            raise PayloadError("the answer is no response")
        if answer.header.icmsgtype != request.header.icmsgtype:
            raise PayloadError(f"the answer has type {answer.header.icmsgtype}, not {request.header.icmsgtype}")
        if answer.header.ictransaction_id != request.header.ictransaction_id:
            raise PayloadError(f"the answer has IC id {answer.header.ictransaction_id}")

    def _negotiated(self, answer: IcMessage) -> None:
        chosen = Negotiate.from_bytes(answer.body)
        if len(chosen.frame) != 1 or len(chosen.message) != 1:
            raise PayloadError("the guest knows none of the versions")
        if chosen.frame[0] not in self.frame_versions or chosen.message[0] not in self.message_versions:
            raise PayloadError(
                f"the guest chose versions that were not offered: {chosen.frame[0]}, {chosen.message[0]}"
            )
        self.versions = chosen.frame[0], chosen.message[0]
        self.agreed()

    def agreed(self) -> None:
        """Versions are agreed on: requests can be sent."""

    def _bulk_request(self, body: bytes) -> bytes:
        """Return a request as bulk traffic repeats it: its answers are counted, not looked at."""
        frame, message = self.versions or (self.frame_versions[-1], self.message_versions[-1])
        return IcMessage.request(self.kind, body, frame=frame, message=message).to_bytes()

    def _drop(self, why: str) -> None:
        self.dropped += 1
        self.last_problem = why


class HeartbeatVsp(IcVsp):
    """Asks whether the guest lives.

    Attributes:
        sequence: number of the last request.
        beats: answers with the number that follows the request's.
    """

    class_name = "heartbeat"
    kind: ClassVar = IcType.HEARTBEAT

    def __init__(self) -> None:
        super().__init__()
        self.sequence = 0
        self.beats = 0

    def beat(self) -> int:
        """Send a request; return its transaction id. ENOTCONN: see :meth:`ask`."""
        sequence = self.sequence + 1
        trans_id = self.ask(Heartbeat(sequence).to_bytes(), lambda answer: self._beaten(sequence, answer))
        self.sequence = sequence
        return trans_id

    def _beaten(self, sequence: int, answer: IcMessage) -> None:
        found = Heartbeat.from_bytes(answer.body).seq_num
        if found != sequence + 1:
            raise PayloadError(f"heartbeat {sequence} is answered by {found}")
        self.beats += 1

    @property
    def bulk_template(self) -> bytes:
        """A request with number 0."""
        return self._bulk_request(Heartbeat(0).to_bytes())

    @property
    def missing(self) -> int:
        """Requests without a good answer so far."""
        return self.requests - self.beats


class ShutdownVsp(IcVsp):
    """Asks the guest to shut down, restart or hibernate.

    Attributes:
        results: statuses of the answers, oldest first; 0: the guest will do it.
    """

    class_name = "shutdown"
    kind: ClassVar = IcType.SHUTDOWN

    def __init__(self) -> None:
        super().__init__()
        self.results: Final[list[int]] = []

    def request(self, reason: int = 0, timeout_seconds: int = 0, flags: int = 0, message: str = "") -> int:
        """Send a request; return its transaction id.

        Args:
            reason: reason code, for the guest's log.
            timeout_seconds: how long the guest may take.
            flags: 0 shut down, 1 forced; 2 restart, 3 forced; 4 hibernate, 5 forced.
            message: to show, cut at 2048 bytes.
        Raises:
            IrqError: ENOTCONN see :meth:`ask`; EINVAL a number above 32 bits.
        """
        text = message.encode()[:2048].ljust(2048, b"\0")
        return self.ask(ShutdownRequest(reason, timeout_seconds, flags, text).to_bytes())

    def _send(self, channel: HostChannel, request: IcMessage, on_answer: OnAnswer) -> int:
        def noted(answer: IcMessage) -> None:
            if request.header.icmsgtype == self.kind:
                self.results.append(answer.header.status)
            on_answer(answer)

        return super()._send(channel, request, noted)


class TimesyncVsp(IcVsp):
    """Tells the guest the time.

    Args:
        now: the host's time in 100 ns units.

    Attributes:
        samples: answered time samples.
        last: what was sent last.
    """

    class_name = "timesync"
    kind: ClassVar = IcType.TIMESYNC

    def __init__(self, now: Callable[[], int] = lambda: 0) -> None:
        super().__init__()
        self.now = now
        self.samples = 0
        self.last: TimeSample | None = None

    def sample(self, flags: TimeFlags = TimeFlags.SAMPLE) -> int:
        """Send the time, to compare with or (SYNC) to set; return the transaction id. ENOTCONN: see :meth:`ask`."""
        sample = TimeSample(self.now(), flags=int(flags))
        trans_id = self.ask(sample.to_bytes(), self._sampled)
        self.last = sample
        return trans_id

    @property
    def bulk_template(self) -> bytes:
        """A time sample."""
        return self._bulk_request(TimeSample(0, flags=int(TimeFlags.SAMPLE)).to_bytes())

    def sync(self) -> int:
        """Send the time to set; as :meth:`sample`."""
        return self.sample(TimeFlags.SYNC)

    def _sampled(self, _answer: IcMessage) -> None:
        self.samples += 1


class KvpVsp(IcVsp):
    """Key-value pairs; bodies are opaque."""

    class_name = "kvp"
    kind: ClassVar = IcType.KVP


class VssVsp(IcVsp):
    """Volume snapshots; bodies are opaque."""

    class_name = "vss"
    kind: ClassVar = IcType.VSS
