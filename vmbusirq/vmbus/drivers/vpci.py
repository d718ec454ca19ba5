"""hv_pci: PCI Express pass-through, a bus of its own per device (drivers/pci/controller/pci-hyperv.c, v6.10).

Messages are opaque behind their u32 type; vmbus.md does not lay them out, the numbers are the driver's.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.steps import Steps
from vmbusirq.vmbus.drivers.base import TICKS_PER_S, Bus, Driver, Exchange, close_after_error
from vmbusirq.vmbus.requestor import RQST_ERROR, Requestor
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, Packet

if TYPE_CHECKING:
    from vmbusirq.vmbus.channel import Channel
    from vmbusirq.vmbus.device import HvDevice

__all__ = ["PciBus", "PciDriver", "choose_domain"]

REQUESTOR_IDS: Final = 64  # HV_PCI_RQSTOR_SIZE
PROTOCOL_1_4: Final = 0x10004
QUERY_PROTOCOL_VERSION: Final = 0x4249_0013
D0_ENTRY: Final = 0x4249_0007
D0_EXIT: Final = 0x4249_0008
D0_EXIT_TIMEOUT_TICKS: Final = 10 * TICKS_PER_S
STATUS_BYTES: Final = 4
DOMAINS: Final = 1 << 16
_ADDRESS: Final = 1  # what the requestor keeps: one request at a time is out


def choose_domain(instance: UUID, taken: Collection[int]) -> int:
    """Return the PCI domain of a bus: bytes 5 and 4 of its instance GUID; the lowest free one if 0 or taken.

    Raises:
        IrqError(ENOSPC): all 65535 are taken.
    """
    data = instance.bytes_le
    wanted = data[5] << 8 | data[4]
    if wanted and wanted not in taken:
        return wanted
    for domain in range(1, DOMAINS):
        if domain not in taken:
            return domain
    raise IrqError(errno.ENOSPC, f"device {instance}: all {DOMAINS - 1} PCI domains are taken (ENOSPC)")


class PciBus:
    """One pass-through device (struct hv_pcibus_device).

    Attributes:
        domain: its PCI domain.
        in_d0: the device has power.
        dropped: packets that meant nothing.
    """

    def __init__(self, bus: Bus, domain: int, channel: Channel) -> None:
        self.domain: Final = domain
        self.channel: Final = channel
        self.exchange: Final = Exchange(bus)
        self.opened = self.in_d0 = False
        self.dropped = 0


class PciDriver(Driver):
    """The driver of all pass-through devices.

    Attributes:
        devices: those in service.
    """

    name: ClassVar = "hv_pci"

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.devices: Final[dict[HvDevice, PciBus]] = {}
        self._by_channel: Final[dict[Channel, PciBus]] = {}

    def probe(self, device: HvDevice) -> Steps[None]:
        """Open the channel, agree on a version, give the device power."""
        domain = choose_domain(device.instance, {other.domain for other in self.devices.values()})
        state = PciBus(self.bus, domain, device.primary)
        self.devices[device] = state  # the domain is taken from here on
        try:
            yield from self._connect(state)
        except BaseException:
            self._forget(device)
            raise

    def _connect(self, state: PciBus) -> Steps[None]:
        channel = state.channel
        channel.irq_name = f"vpci:{state.domain:04x}"
        channel.requestor = Requestor(REQUESTOR_IDS)
        self._by_channel[channel] = state
        yield from self.bus.open_steps(channel)
        state.opened = True
        yield from close_after_error(self.bus, channel, self._power_up(state))

    def _power_up(self, state: PciBus) -> Steps[None]:
        yield from self._ask(state, QUERY_PROTOCOL_VERSION, PROTOCOL_1_4)
        yield from self._ask(state, D0_ENTRY, 0)
        state.in_d0 = True

    def _ask(self, state: PciBus, message: int, value: int, timeout_ticks: int | None = None) -> Steps[None]:
        payload = message.to_bytes(4, "little") + value.to_bytes(4, "little")
        send = partial(state.channel.send, payload, flags=COMPLETION_REQUESTED, trans_id=_ADDRESS)
        reply = yield from state.exchange.ask(state.channel, f"hv_pci: message {message:#x}", send, timeout_ticks)
        status = int.from_bytes(reply[:STATUS_BYTES], "little")
        if len(reply) < STATUS_BYTES or status >> 31:
            raise IrqError(
                errno.EPROTO,
                f"hv_pci {state.domain:04x}: message {message:#x}: the host's status is {status:#x} (EPROTO)",
            )

    def remove(self, device: HvDevice) -> Steps[None]:
        """Take power away, close the channel."""
        state = self.devices.get(device)
        if state is not None:
            try:
                yield from self._close(state)
            finally:
                self._forget(device)

    def suspend(self, device: HvDevice) -> Steps[None]:
        """Take power away, close the channel; the domain stays."""
        yield from self._close(self.devices[device])

    def resume(self, device: HvDevice) -> Steps[None]:
        """Open again under the same name."""
        yield from self._connect(self.devices[device])

    def _close(self, state: PciBus) -> Steps[None]:
        if state.in_d0 and not state.channel.rescinded:
            try:
                yield from self._ask(state, D0_EXIT, 0, D0_EXIT_TIMEOUT_TICKS)
            except IrqError as error:
                self.bus.log.err(f"hv_pci: Couldn't send or wait for D0 exit: {error}")
        state.in_d0 = False
        if state.opened:
            state.opened = False
            yield from self.bus.close_steps(state.channel)
        self._by_channel.pop(state.channel, None)

    def _forget(self, device: HvDevice) -> None:
        state = self.devices.pop(device)
        self._by_channel.pop(state.channel, None)
        state.channel.requestor = None

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Take a completion whose id is out; other messages of the host are opaque and change nothing."""
        state = self._by_channel.get(channel)
        if state is None or packet.type != COMPLETION:
            return
        requestor = channel.requestor
        address = RQST_ERROR if requestor is None else requestor.release(packet.trans_id)
        if address == RQST_ERROR or not state.exchange.complete(packet.payload):
            state.dropped += 1
            self.bus.log.err(f"hv_pci: Invalid transaction ID {packet.trans_id:x}")
