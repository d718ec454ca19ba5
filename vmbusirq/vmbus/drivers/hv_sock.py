"""hv_sock: stream sockets between guest and host, one channel each (net/vmw_vsock/hyperv_transport.c, v6.10).

A connection is an offer; it ends when both sides have said FIN, the guest has closed and the host has rescinded
(vmbus.md 1.16 and 7.6).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.steps import Steps
from vmbusirq.vmbus.drivers.base import TICKS_PER_S, Attention, Bus, Driver
from vmbusirq.wire.packet import DATA_INBAND, Packet
from vmbusirq.wire.pipe import PIPE_PAYLOAD_MAX, pipe_bytes, pipe_payload
from vmbusirq.wire.record import PayloadError

if TYPE_CHECKING:
    from vmbusirq.vmbus.channel import Channel
    from vmbusirq.vmbus.device import HvDevice

__all__ = ["Connection", "HvSockDriver"]

CLOSE_TIMEOUT_TICKS: Final = 8 * TICKS_PER_S
"""How long a graceful close waits for the host's FIN (HVS_CLOSE_TIMEOUT)."""
CHUNK: Final = 4096 - 8
"""Bytes that Linux puts into one packet: what is left of a page (HVS_SEND_BUF_SIZE)."""


class Connection:
    """One connection.

    Attributes:
        received: bytes that nobody has taken yet.
        fin_received, fin_sent: who has ended its stream.
        bytes_sent, bytes_received: in all.
        dropped: packets that meant nothing.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel: Final = channel
        self.received = bytearray()
        self.fin_received = self.fin_sent = False
        self.bytes_sent = self.bytes_received = self.dropped = 0

    def take(self, data: bytes) -> None:
        """Take data from the host, or its FIN. PayloadError: data behind a FIN."""
        if self.fin_received:
            raise PayloadError("data behind the end of the stream")
        self.fin_received = not data
        self.received += data
        self.bytes_received += len(data)

    def finish(self) -> None:
        """Say FIN, once."""
        if not self.fin_sent:
            self.fin_sent = True
            self.channel.send(pipe_bytes(b""))


class HvSockDriver(Driver):
    """The driver of all connections.

    Attributes:
        devices: the connections that are open.
    """

    name: ClassVar = "hv_sock"
    attention: ClassVar = Attention.ALL

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.devices: Final[dict[HvDevice, Connection]] = {}
        self._by_channel: Final[dict[Channel, Connection]] = {}

    def probe(self, device: HvDevice) -> Steps[None]:
        """Open the connection (hvs_open_connection)."""
        connection = Connection(device.primary)
        self._by_channel[device.primary] = connection
        try:
            yield from self.bus.open_steps(device.primary)
        except BaseException:
            del self._by_channel[device.primary]
            raise
        self.devices[device] = connection

    def remove(self, device: HvDevice) -> Steps[None]:
        """End the stream if it goes on, close the channel."""
        connection = self.devices.pop(device, None)
        if connection is None:
            return
        self._say_fin(connection)
        try:
            yield from self.bus.close_steps(connection.channel)
        finally:
            self._by_channel.pop(connection.channel, None)

    def shutdown(self, device: HvDevice) -> Steps[None]:
        """Close gracefully: FIN, wait up to 8 seconds for the host's, close; the host then rescinds the channel."""
        connection = self._connection(device)
        self._say_fin(connection)
        yield from self.bus.wait(
            "hv_sock: the host's FIN",
            lambda: connection.fin_received or connection.channel.rescinded,
            CLOSE_TIMEOUT_TICKS,
        )
        yield from self.remove(device)

    def _say_fin(self, connection: Connection) -> None:
        if connection.channel.rescinded:
            return
        try:
            connection.finish()
        except IrqError as error:
            self.bus.log.err(f"hv_sock: cannot send FIN: {error}")

    def suspend(self, device: HvDevice) -> Steps[None]:
        """Leave it open: the bus rescinds connections itself (vmbus.md 7.4)."""
        yield from ()

    def resume(self, device: HvDevice) -> Steps[None]:
        """Do nothing: connections do not come back."""
        yield from ()

    def send(self, device: HvDevice, data: bytes) -> int:
        """Send as much as the ring takes, in packets of at most a page; return the bytes sent.

        Raises:
            IrqError: ENOTCONN no connection, EPIPE its stream is ended, EAGAIN not even one packet fits.
        """
        connection = self._connection(device)
        if connection.fin_sent:
            raise IrqError(errno.EPIPE, f"device {device.guid}: the stream is ended (EPIPE)")
        sent = 0
        for at in range(0, len(data), min(CHUNK, PIPE_PAYLOAD_MAX)):
            piece = data[at : at + CHUNK]
            try:
                connection.channel.send(pipe_bytes(piece))
            except IrqError as error:
                if error.errno != errno.EAGAIN or not sent:
                    raise
                break
            sent += len(piece)
            connection.bytes_sent += len(piece)
        return sent

    def receive(self, device: HvDevice, size: int) -> bytes:
        """Return up to ``size`` bytes of what came; empty when there is nothing. ENOTCONN: no connection."""
        connection = self._connection(device)
        data = bytes(connection.received[: max(0, size)])
        del connection.received[: len(data)]
        return data

    def _connection(self, device: HvDevice) -> Connection:
        connection = self.devices.get(device)
        if connection is None:
            raise IrqError(errno.ENOTCONN, f"device {device.guid}: no hv_sock connection is open (ENOTCONN)")
        return connection

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Take data or FIN; drop what is neither."""
        connection = self._by_channel.get(channel)
        if connection is None:
            return
        try:
            if packet.type != DATA_INBAND:
                raise PayloadError(f"packet of type {packet.type}")
            connection.take(pipe_payload(packet.payload))
        except PayloadError as error:
            connection.dropped += 1
            self.bus.log.err(f"hv_sock: {error}")
