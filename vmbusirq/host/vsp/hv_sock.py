"""The host's end of hv_sock connections: services that send back what comes, or swallow it (vmbus.md 1.16, 7.6)."""

from __future__ import annotations

import errno
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.host.vsp.base import Vsp
from vmbusirq.wire.packet import DATA_INBAND, Packet
from vmbusirq.wire.pipe import pipe_bytes, pipe_payload
from vmbusirq.wire.protocol import OfferFlags, hv_sock_user_def
from vmbusirq.wire.record import PayloadError

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel

__all__ = ["HvSockVsp", "Service"]


class Service(Enum):
    """What a connection does with what comes."""

    ECHO = "sends it back"
    SINK = "counts it"


class HvSockVsp(Vsp):
    """One connection; both ends' FIN, then the guest's close, then the host's rescind end it.

    Args:
        if_type: the service's GUID.
        service: what it does.
        host_initiated: the host connects.

    Attributes:
        channel: its open channel, None while there is none.
        bytes_received, bytes_sent: of data.
        fin_received, fin_sent: who has ended its stream.
        dropped: packets that meant nothing.
    """

    class_name = "hv_sock"
    closes_for_good = True

    def __init__(self, if_type: UUID, service: Service = Service.ECHO, *, host_initiated: bool = False) -> None:
        self.if_type = if_type
        self.service = service
        self.chn_flags = int(
            OfferFlags.TLNPI_PROVIDER | OfferFlags.NAMED_PIPE_MODE | OfferFlags.ENUMERATE_DEVICE_INTERFACE
        )
        self.user_def = hv_sock_user_def(host_initiated=host_initiated)
        self.channel: HostChannel | None = None
        self.bytes_received = self.bytes_sent = self.dropped = 0
        self.fin_received = self.fin_sent = False

    def opened(self, channel: HostChannel) -> None:
        """The connection is made."""
        self.channel = channel
        self.fin_received = self.fin_sent = False

    def closed(self, channel: HostChannel) -> None:
        """The connection is over."""
        self.channel = None

    def packet(self, channel: HostChannel, packet: Packet) -> None:
        """Take data or FIN."""
        try:
            if packet.type != DATA_INBAND or self.fin_received:
                raise PayloadError("no data packet, or one behind the end of the stream")
            data = pipe_payload(packet.payload)
        except PayloadError:
            self.dropped += 1
            return
        self.bytes_received += len(data)
        if not data:
            self.fin_received = True
            self.finish()
        elif self.service is Service.ECHO and not self.fin_sent:
            self.send(data)

    def send(self, data: bytes) -> None:
        """Send data, 1 to 16384 bytes.

        Raises:
            IrqError: ENOTCONN no connection, EPIPE its stream is ended, EINVAL no data, EMSGSIZE too many.
        """
        if self.fin_sent:
            raise IrqError(errno.EPIPE, "host: hv_sock: the stream is ended (EPIPE)")
        if not data:
            raise IrqError(errno.EINVAL, "host: hv_sock: no data would be the end of the stream (EINVAL); use finish()")
        self._open_channel().write(Packet(pipe_bytes(data)))
        self.bytes_sent += len(data)

    def finish(self) -> None:
        """Say FIN; a second call does nothing. ENOTCONN: no connection."""
        if not self.fin_sent:
            self._open_channel().write(Packet(pipe_bytes(b"")))
            self.fin_sent = True

    def _open_channel(self) -> HostChannel:
        if self.channel is None:
            raise IrqError(errno.ENOTCONN, "host: hv_sock: there is no connection (ENOTCONN)")
        return self.channel
