"""Drivers whose payloads mean nothing here: keyboard, mouse, framebuffer, balloon, uio_hv_generic.

They open the one channel, complete what wants completion, and can ask the host themselves; bytes stay opaque.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.steps import Steps
from vmbusirq.vmbus.drivers.base import Bus, Driver, Exchange
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, Packet

if TYPE_CHECKING:
    from vmbusirq.vmbus.channel import Channel
    from vmbusirq.vmbus.device import HvDevice

__all__ = [
    "BalloonDriver",
    "FramebufferDriver",
    "GenericDevice",
    "GenericDriver",
    "KeyboardDriver",
    "MouseDriver",
    "UioDriver",
]

ASK_ID: Final = 1
"""Transaction id of the driver's own requests, of which one at a time is out."""


class GenericDevice:
    """One device.

    Attributes:
        channel: its channel.
        requests: of the host, all completed.
        dropped: packets that meant nothing.
    """

    def __init__(self, bus: Bus, channel: Channel) -> None:
        self.channel: Final = channel
        self.exchange: Final = Exchange(bus)
        self.requests = self.dropped = 0
        self.opened = False

    def complete(self, packet: Packet) -> str:
        """Serve a packet; return what is wrong with it, empty if nothing is."""
        if packet.type == COMPLETION:
            is_awaited = packet.trans_id == ASK_ID and self.exchange.complete(packet.payload)
            return "" if is_awaited else f"Invalid transaction ID {packet.trans_id:x}"
        if packet.flags & COMPLETION_REQUESTED:
            self.requests += 1
            self.channel.send(packet.payload, type=COMPLETION, trans_id=packet.trans_id)
        return ""


class GenericDriver(Driver):
    """A driver of devices with one channel.

    Attributes:
        devices: those in service.
    """

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.devices: Final[dict[HvDevice, GenericDevice]] = {}
        self._by_channel: Final[dict[Channel, GenericDevice]] = {}

    def probe(self, device: HvDevice) -> Steps[None]:
        """Open the channel."""
        state = GenericDevice(self.bus, device.primary)
        self._by_channel[device.primary] = state
        try:
            yield from self.bus.open_steps(device.primary)
        except BaseException:
            del self._by_channel[device.primary]
            raise
        state.opened = True
        self.devices[device] = state

    def remove(self, device: HvDevice) -> Steps[None]:
        """Close the channel."""
        state = self.devices.pop(device, None)
        if state is not None:
            state.opened = False
            try:
                yield from self.bus.close_steps(state.channel)
            finally:
                self._by_channel.pop(state.channel, None)

    def ask(self, device: HvDevice, payload: bytes, timeout_ticks: int | None = None) -> Steps[bytes]:
        """Send opaque bytes and return what the completion carries.

        Raises:
            IrqError: ENODEV not in service or rescinded, ETIMEDOUT, EAGAIN ring full.
        """
        state = self.devices.get(device)
        if state is None:
            raise IrqError(errno.ENODEV, f"device {device.guid}: {self.name} does not serve it (ENODEV)")
        channel = state.channel

        def send() -> None:
            channel.send(payload, flags=COMPLETION_REQUESTED, trans_id=ASK_ID)

        return (yield from state.exchange.ask(channel, f"{self.name}: request", send, timeout_ticks))

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Complete the host's request with its own bytes; drop what makes no sense."""
        state = self._by_channel.get(channel)
        if state is None:
            return
        try:
            problem = state.complete(packet)
        except IrqError as error:
            problem = str(error)
        if problem:
            state.dropped += 1
            self.bus.log.err(f"{self.name}: {problem}")


class KeyboardDriver(GenericDriver):
    """drivers/input/serio/hyperv-keyboard.c."""

    name: ClassVar = "hyperv_keyboard"


class MouseDriver(GenericDriver):
    """drivers/hid/hid-hyperv.c."""

    name: ClassVar = "hid_hyperv"


class FramebufferDriver(GenericDriver):
    """drivers/video/fbdev/hyperv_fb.c."""

    name: ClassVar = "hyperv_fb"


class BalloonDriver(GenericDriver):
    """drivers/hv/hv_balloon.c."""

    name: ClassVar = "hv_balloon"


class UioDriver(GenericDriver):
    """drivers/uio/uio_hv_generic.c: binds what new_id names, and cannot suspend."""

    name: ClassVar = "uio_hv_generic"

    def suspend(self, device: HvDevice) -> Steps[None]:
        """Fail with EOPNOTSUPP, as a driver does that has no suspend method (vmbus.md 7.4)."""
        yield from ()
        raise IrqError(errno.EOPNOTSUPP, f"device {device.guid}: {self.name} cannot suspend (EOPNOTSUPP); unbind it")
