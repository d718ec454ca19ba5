"""storvsc: SCSI, IDE and fiber channel controllers (drivers/scsi/storvsc_drv.c, v6.10; vmbus.md 1.14, 1.15, 4.3, 5.4).

SCSI commands are opaque bytes in the union of a vstor packet. The driver's transaction ids are its own: the tag of a
command plus 1, and two that stand for initialization and reset.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.steps import Steps
from vmbusirq.vmbus.drivers.base import TICKS_PER_S, Bus, Driver, Exchange, close_after_error
from vmbusirq.vmbus.requestor import RQST_INIT, RQST_RESET
from vmbusirq.wire.packet import COMPLETION_REQUESTED, Packet
from vmbusirq.wire.record import PayloadError
from vmbusirq.wire.vstor import (
    LINUX_VERSIONS,
    ChannelProperties,
    Operation,
    ProtocolVersion,
    StorFlags,
    SubChannelCount,
    VstorPacket,
)

if TYPE_CHECKING:
    from vmbusirq.vmbus.channel import Channel
    from vmbusirq.vmbus.device import HvDevice

__all__ = ["StorDevice", "StorvscDriver"]

INIT_TIMEOUT_TICKS: Final = 180 * TICKS_PER_S
SUB_CHANNEL_TIMEOUT_TICKS: Final = 10 * TICKS_PER_S
TAGS_MAX: Final = 1 << 16
UNSOLICITED: Final = 0
OPERATION_BYTES: Final = 4
USERDATA: Final = bytes(ChannelProperties.size())

OnDone = Callable[[VstorPacket], object]


class StorDevice:
    """One controller (struct storvsc_device).

    Attributes:
        host_no: its SCSI host number.
        primary: its first channel.
        opened: the primary is open.
        version: of the protocol, major number in the high byte; 0 before it is negotiated.
        properties: what the host said of the controller.
        num_sc: sub-channels that were asked for.
        stor_chns: the channel that serves a CPU; CPUs without one get theirs at their first command.
        alloced_cpus: the CPUs that channels interrupt.
        requests, completions: commands sent and completed.
        rescans: times that the host asked to look at the bus anew.
        dropped: packets that meant nothing.
    """

    def __init__(self, bus: Bus, host_no: int, primary: Channel) -> None:
        self.host_no: Final = host_no
        self.primary: Final = primary
        self.exchange: Final = Exchange(bus)
        self.subs: Final[list[Channel]] = []
        self.opened = False
        self.version = 0
        self.properties = ChannelProperties()
        self.num_sc = 0
        self.stor_chns: Final[dict[int, Channel]] = {}
        self.alloced_cpus: Final[set[int]] = set()
        self.commands: Final[dict[int, OnDone | None]] = {}
        self.requests = self.completions = self.rescans = self.dropped = 0

    def add(self, channel: Channel) -> None:
        """Let a channel serve the CPU that it interrupts."""
        self.stor_chns[channel.target_cpu] = channel
        self.alloced_cpus.add(channel.target_cpu)

    def change_target_cpu(self, channel: Channel, old: int, new: int) -> None:
        """Follow a channel that now interrupts another CPU (storvsc_change_target_cpu; vmbus.md 4.3)."""
        others = (other for other in (self.primary, *self.subs) if other is not channel and other.target_cpu == old)
        other = next(others, None)
        if other is not None:
            self.stor_chns[old] = other
        else:
            self.alloced_cpus.discard(old)
        for cpu in [cpu for cpu in self.stor_chns if cpu not in self.alloced_cpus]:
            del self.stor_chns[cpu]
        self.stor_chns[new] = channel
        self.alloced_cpus.add(new)

    def channel_of(self, cpu: int, cpu_to_node: Callable[[int], int] = lambda _cpu: 0) -> Channel:
        """Return the channel that sends a CPU's commands: its own, else one of its node in turn (get_og_chn)."""
        if cpu in self.stor_chns:
            return self.stor_chns[cpu]
        node = cpu_to_node(cpu)
        near = [other for other in sorted(self.alloced_cpus) if cpu_to_node(other) == node]
        channel = self.stor_chns[near[cpu % len(near)]] if self.num_sc and near else self.primary
        self.stor_chns[cpu] = channel
        return channel

    def forget_channels(self) -> None:
        """The channels are closed."""
        self.subs.clear()
        self.stor_chns.clear()
        self.alloced_cpus.clear()
        self.commands.clear()
        self.num_sc = 0
        self.opened = False


class StorvscDriver(Driver):
    """The driver of all three kinds of controllers.

    Attributes:
        devices: those in service, in the order of their probes.
    """

    name: ClassVar = "hv_storvsc"

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.devices: Final[dict[HvDevice, StorDevice]] = {}
        self._by_channel: Final[dict[Channel, StorDevice]] = {}

    # ---- life of a controller

    def probe(self, device: HvDevice) -> Steps[None]:
        """Open the primary, initialize the controller, ask for sub-channels. Undone if the host refuses."""
        stor = StorDevice(self.bus, self._host_number(device), device.primary)
        self.devices[device] = stor  # the number is taken from here on
        try:
            yield from self._connect(device, stor)
        except BaseException:
            self._forget(device)
            raise

    def _host_number(self, device: HvDevice) -> int:
        taken = {stor.host_no for stor in self.devices.values()}
        wanted = self.bus.options.scsi_hosts.get(device.guid)
        if wanted is not None and wanted not in taken:
            return wanted
        taken |= set(self.bus.options.scsi_hosts.values())
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def _connect(self, device: HvDevice, stor: StorDevice) -> Steps[None]:
        channel = device.primary
        channel.irq_name = device.device_class.irq_name(0, stor.host_no)
        channel.requestor = None  # the ids are the driver's own
        channel.change_target_cpu = stor.change_target_cpu
        self._by_channel[channel] = stor
        yield from self.bus.open_steps(channel, userdata=USERDATA)
        stor.opened = True
        yield from close_after_error(self.bus, channel, self._initialize(device, stor))

    def remove(self, device: HvDevice) -> Steps[None]:
        """Close all channels; commands that wait are forgotten."""
        stor = self.devices.get(device)
        if stor is not None:
            try:
                yield from self._close(stor)
            finally:
                self._forget(device)

    def suspend(self, device: HvDevice) -> Steps[None]:
        """Close all channels; the host number stays (storvsc_suspend)."""
        yield from self._close(self.devices[device])

    def resume(self, device: HvDevice) -> Steps[None]:
        """Open and initialize again (storvsc_resume)."""
        stor = self.devices[device]
        try:
            yield from self._connect(device, stor)
        except Exception:
            self._drop_channels(stor)
            raise

    def _close(self, stor: StorDevice) -> Steps[None]:
        if stor.opened:
            stor.opened = False  # a sub-channel that comes now is not opened any more
            yield from self.bus.close_steps(stor.primary)
        self._drop_channels(stor)

    def _drop_channels(self, stor: StorDevice) -> None:
        for channel in (stor.primary, *stor.subs):
            self._by_channel.pop(channel, None)
        stor.forget_channels()

    def _forget(self, device: HvDevice) -> None:
        stor = self.devices.pop(device)
        self._drop_channels(stor)
        stor.primary.change_target_cpu = None

    # ---- initialization

    def _initialize(self, device: HvDevice, stor: StorDevice) -> Steps[None]:
        yield from self._must(stor, Operation.BEGIN_INITIALIZATION)
        yield from self._negotiate(stor)
        reply = yield from self._must(stor, Operation.QUERY_PROPERTIES)
        stor.properties = ChannelProperties.from_bytes(reply.body)
        if device.device_class.name == "fc":
            yield from self._must(stor, Operation.FCHBA_DATA)
        yield from self._must(stor, Operation.END_INITIALIZATION)
        stor.add(stor.primary)
        if stor.properties.flags & StorFlags.SUPPORTS_MULTI_CHANNEL:
            yield from self._ask_for_sub_channels(stor)

    def _negotiate(self, stor: StorDevice) -> Steps[None]:
        for version in LINUX_VERSIONS:
            body = ProtocolVersion(version).to_bytes()
            reply = yield from self._execute(stor, Operation.QUERY_PROTOCOL_VERSION, body)
            if reply.operation != Operation.COMPLETE_IO:
                break
            if not reply.status:
                stor.version = version
                return
        raise IrqError(errno.EINVAL, f"storvsc host {stor.host_no}: the host takes no version of the protocol (EINVAL)")

    def _ask_for_sub_channels(self, stor: StorDevice) -> Steps[None]:
        """Ask for min(online CPUs - 1, host's most); the host decides. Without them the primary does all the work."""
        stor.num_sc = min(self.bus.nr_online_cpus - 1, stor.properties.max_channel_cnt)
        if stor.num_sc <= 0:
            stor.num_sc = 0
            return
        body = SubChannelCount(stor.num_sc).to_bytes()
        try:
            reply = yield from self._execute(stor, Operation.CREATE_SUB_CHANNELS, body, SUB_CHANNEL_TIMEOUT_TICKS)
        except IrqError as error:
            if error.errno != errno.ETIMEDOUT:
                raise
            self.bus.log.err("hv_storvsc: Failed to create sub-channel: timed out")
            return
        if reply.operation != Operation.COMPLETE_IO or reply.status:
            self.bus.log.err(f"hv_storvsc: Failed to create sub-channel: op={reply.operation}, sts={reply.status:#x}")

    def _must(self, stor: StorDevice, operation: Operation) -> Steps[VstorPacket]:
        reply = yield from self._execute(stor, operation)
        if reply.operation != Operation.COMPLETE_IO or reply.status:
            raise IrqError(
                errno.EINVAL,
                f"storvsc host {stor.host_no}: {operation.name}: the host answers operation {reply.operation}, "
                f"status {reply.status:#x} (EINVAL)",
            )
        return reply

    def _execute(
        self, stor: StorDevice, operation: Operation, body: bytes = b"", timeout_ticks: int = INIT_TIMEOUT_TICKS
    ) -> Steps[VstorPacket]:
        """Send a packet of the initialization and return its answer (storvsc_execute_vstor_op)."""
        channel = stor.primary
        payload = VstorPacket(int(operation), body=body).to_bytes()
        send = partial(channel.send, payload, flags=COMPLETION_REQUESTED, trans_id=RQST_INIT)
        reply = yield from stor.exchange.ask(channel, f"storvsc: {operation.name}", send, timeout_ticks)
        return VstorPacket.from_bytes(reply)

    def sub_channel(self, channel: Channel) -> Steps[None]:
        """Open a sub-channel and let it serve its CPU (handle_sc_creation)."""
        device = channel.device
        stor = self.devices.get(device) if device is not None else None
        if stor is None or device is None or not stor.opened:
            return
        channel.irq_name = device.device_class.irq_name(channel.sub_channel_index, stor.host_no)
        channel.requestor = None
        self._by_channel[channel] = stor
        try:
            yield from self.bus.open_steps(channel, userdata=USERDATA)
        except IrqError as error:
            self._by_channel.pop(channel, None)
            self.bus.log.err(f"hv_storvsc: sub-channel {channel.relid}: {error}")
            return
        stor.subs.append(channel)
        stor.add(channel)

    # ---- commands

    def submit(self, device: HvDevice, command: bytes, cpu: int = 0, on_done: OnDone | None = None) -> int:
        """Send a SCSI command; return its tag.

        Args:
            device: one that the driver serves.
            command: opaque bytes, at most 52.
            cpu: who sends it; its channel is used.
            on_done: called in softirq context with the host's answer.
        Raises:
            IrqError: ENODEV the driver does not serve it now, EBUSY all tags are out, EINVAL too long, EAGAIN ring
                full.
        """
        stor = self.devices.get(device)
        if stor is None or not stor.opened:
            raise IrqError(errno.ENODEV, f"device {device.guid}: no storvsc controller in service (ENODEV)")
        tag = next((tag for tag in range(len(stor.commands) + 1) if tag not in stor.commands), TAGS_MAX)
        if tag >= TAGS_MAX:
            raise IrqError(errno.EBUSY, f"storvsc host {stor.host_no}: all {TAGS_MAX} tags are out (EBUSY)")
        try:
            packet = VstorPacket(Operation.EXECUTE_SRB, body=command).to_bytes()
        except PayloadError as error:
            raise IrqError(errno.EINVAL, f"storvsc host {stor.host_no}: {error} (EINVAL)") from None
        stor.channel_of(cpu).send(packet, flags=COMPLETION_REQUESTED, trans_id=tag + 1)
        stor.commands[tag] = on_done
        stor.requests += 1
        return tag

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Take what the host sent, if it makes sense (storvsc_on_channel_callback)."""
        stor = self._by_channel.get(channel)
        if stor is not None:
            problem = self._take(stor, packet)
            if problem:
                stor.dropped += 1
                self.bus.log.err(f"hv_storvsc: {problem}")

    def _take(self, stor: StorDevice, packet: Packet) -> str:
        """Return what is wrong with the packet, in Linux's words; empty if nothing is."""
        trans_id, size = packet.trans_id, len(packet.payload)
        least = OPERATION_BYTES if trans_id == UNSOLICITED else VstorPacket.size()
        if size < least:
            return f"Invalid pkt: id={trans_id}, len={size}, minlen={least}"
        if trans_id == UNSOLICITED:
            return self._take_unsolicited(stor, int.from_bytes(packet.payload[:OPERATION_BYTES], "little"))
        if trans_id in (RQST_INIT, RQST_RESET):
            is_awaited = trans_id == RQST_INIT and stor.exchange.complete(packet.payload[: VstorPacket.size()])
            return "" if is_awaited else "Incorrect transaction ID"
        tag = trans_id - 1
        if tag not in stor.commands:
            return "Incorrect transaction ID"
        answer = VstorPacket.from_bytes(packet.payload)
        if answer.operation == Operation.COMPLETE_IO:
            on_done = stor.commands.pop(tag)
            stor.completions += 1
            if on_done is not None:
                on_done(answer)
        return ""

    @staticmethod
    def _take_unsolicited(stor: StorDevice, operation: int) -> str:
        if operation in (Operation.COMPLETE_IO, Operation.FCHBA_DATA):
            return "Invalid packet with ID of 0"
        if operation in (Operation.REMOVE_DEVICE, Operation.ENUMERATE_BUS):
            stor.rescans += 1
        return ""
