"""hv_utils: heartbeat, shutdown, time synchronization, key-value pairs, volume snapshots (drivers/hv/hv_util.c, v6.10).

Each service first agrees on versions, then answers each request under the request's own transaction id. Bodies of
key-value pairs and snapshots are opaque and sent back as they came.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.steps import Steps
from vmbusirq.vmbus.drivers.base import Attention, Bus, Driver
from vmbusirq.wire.ic import (
    FRAME_VERSIONS,
    HV_E_FAIL,
    HV_S_OK,
    MESSAGE_VERSIONS,
    Heartbeat,
    IcMessage,
    IcType,
    IcVersion,
    Negotiate,
    ShutdownRequest,
    TimeSample,
    choose_versions,
)
from vmbusirq.wire.packet import COMPLETION, Packet
from vmbusirq.wire.record import PayloadError

if TYPE_CHECKING:
    from vmbusirq.vmbus.channel import Channel
    from vmbusirq.vmbus.device import HvDevice

__all__ = ["UtilDriver", "UtilService"]

SHUTDOWN_FLAGS: Final = 6
"""Shut down, forced; restart, forced; hibernate, forced."""
KINDS: Final = {
    "heartbeat": IcType.HEARTBEAT,
    "shutdown": IcType.SHUTDOWN,
    "timesync": IcType.TIMESYNC,
    "kvp": IcType.KVP,
    "vss": IcType.VSS,
}


class UtilService:
    """One service (struct hv_util_service).

    Attributes:
        kind: the only type of message it takes besides negotiations.
        versions: frame and message version that were agreed on, None before.
        negotiations: how many were answered.
        dropped: packets that meant nothing.
        shutdowns: requests to shut down, restart or hibernate that were accepted, oldest first.
        sample: the last time sample that the driver itself has answered; those that the channel's reader answers are
            counted and not kept.
    """

    def __init__(self, name: str, channel: Channel) -> None:
        self.name: Final = name
        self.channel: Final = channel
        self.kind: Final = KINDS[name]
        self.versions: tuple[IcVersion, IcVersion] | None = None
        self.negotiations = self.dropped = 0
        self._answered = 0
        self._replies_before = channel.stats.replies  # of an earlier binding
        self.shutdowns: Final[list[ShutdownRequest]] = []
        self.sample: TimeSample | None = None

    @property
    def answered(self) -> int:
        """Requests that were answered, those that the channel's reader answers among them."""
        return self._answered + (0 if self.channel.gone else self.channel.stats.replies - self._replies_before)

    def answer(self, request: IcMessage) -> IcMessage:
        """Return the answer to a request. PayloadError: it makes no sense."""
        if request.header.icmsgtype == IcType.NEGOTIATE:
            return self._negotiate(request)
        if request.header.icmsgtype != self.kind:
            raise PayloadError(f"{self.name}: invalid request type {request.header.icmsgtype}")
        status, body = HV_S_OK, request.body
        if self.kind is IcType.HEARTBEAT:
            beat = Heartbeat.from_bytes(body)
            body = replace(beat, seq_num=(beat.seq_num + 1) & (1 << 64) - 1).to_bytes() + body[Heartbeat.size() :]
        elif self.kind is IcType.SHUTDOWN:
            status = self._shut_down(ShutdownRequest.from_bytes(body))
        elif self.kind is IcType.TIMESYNC:
            self.sample = TimeSample.from_bytes(body)
        self._answered += 1
        return request.response(body, status)

    def _negotiate(self, request: IcMessage) -> IcMessage:
        chosen = choose_versions(Negotiate.from_bytes(request.body), FRAME_VERSIONS, MESSAGE_VERSIONS[self.name])
        self.versions = chosen
        self.negotiations += 1
        answer = Negotiate((chosen[0],), (chosen[1],)) if chosen else Negotiate((), ())
        return request.response(answer.to_bytes())

    def _shut_down(self, request: ShutdownRequest) -> int:
        if request.flags >= SHUTDOWN_FLAGS:
            return HV_E_FAIL
        self.shutdowns.append(request)
        return HV_S_OK


class UtilDriver(Driver):
    """The driver of all integration services.

    Attributes:
        devices: those in service.
    """

    name: ClassVar = "hv_utils"
    attention: ClassVar = Attention.SPECIAL  # heartbeat and timesync requests are answered in C (csrc/vmbus/util.c)

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.devices: Final[dict[HvDevice, UtilService]] = {}
        self._by_channel: Final[dict[Channel, UtilService]] = {}

    def probe(self, device: HvDevice) -> Steps[None]:
        """Open the channel; the host begins to talk.

        Raises:
            IrqError: ENODEV for a class that is no service, forced on the driver; else as opening.
        """
        if device.device_class.name not in KINDS:
            what = device.device_class.name or "unknown"
            raise IrqError(errno.ENODEV, f"hv_utils: device {device.guid}: class {what} is no service (ENODEV)")
        service = UtilService(device.device_class.name, device.primary)
        self._by_channel[device.primary] = service
        try:
            yield from self.bus.open_steps(device.primary)
        except BaseException:
            del self._by_channel[device.primary]
            raise
        self.devices[device] = service

    def remove(self, device: HvDevice) -> Steps[None]:
        """Close the channel."""
        service = self.devices.pop(device, None)
        if service is not None:
            try:
                yield from self.bus.close_steps(service.channel)
            finally:
                self._by_channel.pop(service.channel, None)

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Answer a request, in-band and under its transaction id; drop what is none."""
        service = self._by_channel.get(channel)
        if service is None:
            return
        try:
            if packet.type == COMPLETION:
                raise PayloadError(f"{service.name}: a completion of {packet.trans_id}, which nobody asked for")
            answer = service.answer(IcMessage.from_bytes(packet.payload)).to_bytes()
            channel.send(answer, trans_id=packet.trans_id)
        except (PayloadError, IrqError) as error:
            service.dropped += 1
            self.bus.log.err(f"hv_utils: {error}")
