"""What every driver of a synthetic device has in common, and what it may ask of the bus.

A driver serves all devices of its classes. Its operations are steps (:mod:`vmbusirq.steps`); :meth:`Driver.packet` runs
in softirq context and must not wait: it keeps the packet, and the operation that waits for it goes on.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from vmbusirq.errors import IrqError
from vmbusirq.log import Log
from vmbusirq.steps import Steps
from vmbusirq.vmbus.drivers.catalogue import Attention
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import Version

if TYPE_CHECKING:
    from vmbusirq.vmbus.channel import Channel
    from vmbusirq.vmbus.context import GuestOptions
    from vmbusirq.vmbus.device import HvDevice
    from vmbusirq.vmbus.pages import GuestPages

__all__ = ["Attention", "Bus", "Driver", "Exchange", "close_after_error"]

TICKS_PER_S: Final = 10_000_000


class Bus(Protocol):
    """What a driver asks of :class:`vmbusirq.vmbus.connection.VmbusConnection`."""

    @property
    def log(self) -> Log:
        """The guest's log."""

    @property
    def options(self) -> GuestOptions:
        """Choices of the guest."""

    @property
    def version(self) -> Version | None:
        """Protocol version of the connection."""

    @property
    def nr_online_cpus(self) -> int:
        """CPUs that are online."""

    def open_steps(
        self, channel: Channel, callback: Callable[[Channel], object] | None = None, *, userdata: bytes = b""
    ) -> Steps[None]:
        """Open a channel."""

    def close_steps(self, channel: Channel) -> Steps[None]:
        """Close a primary channel and its sub-channels."""

    def establish_gpadl_steps(self, channel: Channel, pages: GuestPages) -> Steps[int]:
        """Share memory, which is the bus's from here on, an error included; the result is its handle."""

    def teardown_gpadl_steps(self, channel: Channel, handle: int, pages: GuestPages) -> Steps[None]:
        """Have the host let go of memory, and free it; if the host does not, nobody gets it."""

    def alloc_pages(self, pages: int) -> GuestPages:
        """Return memory that can be shared."""

    def wait(self, point: str, ready: Callable[[], bool], timeout_ticks: int | None = None) -> Steps[bool]:
        """Wait; False when the time is over."""

    def queue_work(self, label: str, steps: Steps[None]) -> None:
        """Run steps later."""


class Driver:
    """One driver of the guest.

    Attributes:
        name: as in /sys/bus/vmbus/drivers.
        attention: which packets :meth:`packet` gets.
    """

    name: ClassVar[str]
    attention: ClassVar[Attention] = Attention.SPECIAL

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    def probe(self, device: HvDevice) -> Steps[None]:
        """Take a device into service. An error undoes exactly what was done."""
        raise NotImplementedError

    def remove(self, device: HvDevice) -> Steps[None]:
        """Let a device go: unbound, rescinded, or the guest shuts down."""
        raise NotImplementedError

    def suspend(self, device: HvDevice) -> Steps[None]:
        """Close its channels for hibernation. EOPNOTSUPP from drivers that cannot."""
        yield from self.remove(device)

    def resume(self, device: HvDevice) -> Steps[None]:
        """Open it again; its primary may have another relid."""
        yield from self.probe(device)

    def sub_channel(self, channel: Channel) -> Steps[None]:
        """Take a sub-channel that the host offers (sc_creation_callback); most drivers never ask for any."""
        self.bus.log.warn(f"{self.name}: channel {channel.relid}: a sub-channel that nobody asked for")
        yield from ()

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Take a packet that wants attention; it is a copy already, and nothing in it is to be believed."""


class Exchange:
    """A request of a handshake, and the completion that answers it: one at a time (struct completion).

    Attributes:
        reply: payload of the completion, None until it is here.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._awaited = False
        self.reply: bytes | None = None

    def ask(
        self, channel: Channel, point: str, send: Callable[[], object], timeout_ticks: int | None = None
    ) -> Steps[bytes]:
        """Send, wait for the completion, return its payload.

        Raises:
            IrqError: ENODEV the channel was rescinded, ETIMEDOUT the time is over, else what ``send`` raises.
        """
        self.reply = None
        self._awaited = True
        try:
            send()
            came = yield from self._bus.wait(point, lambda: self.reply is not None or channel.rescinded, timeout_ticks)
        finally:
            self._awaited = False
        if self.reply is not None:
            return self.reply
        if came:
            raise IrqError(errno.ENODEV, f"channel {channel.relid}: {point}: the host has rescinded it (ENODEV)")
        raise IrqError(errno.ETIMEDOUT, f"channel {channel.relid}: {point}: no answer from the host (ETIMEDOUT)")

    def complete(self, payload: bytes) -> bool:
        """Take a completion; False if nobody waits for one, or one is here already."""
        if not self._awaited or self.reply is not None:
            return False
        self.reply = payload
        return True


def close_after_error(bus: Bus, channel: Channel, steps: Steps[None]) -> Steps[None]:
    """Yield the steps of a handshake on an open channel; if they raise, close the channel and let the error on."""
    try:
        yield from steps
    except Exception:
        yield from bus.close_steps(channel)
        raise
