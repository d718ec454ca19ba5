"""The guest's VMBus driver: the relid domain, the top level, channels from offer to removal.

See drivers/hv, v6.10 with RFC patches 07-12.

Operations that the host or another CPU can overtake are step generators; the ordinary calls run the same code to its
end.
"""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import UUID

from vmbusirq._ffi import lib
from vmbusirq.core import Core
from vmbusirq.cpumask import format_pbl
from vmbusirq.designs import Design
from vmbusirq.errors import IrqError, check
from vmbusirq.hyperv.synic import Synic
from vmbusirq.irq import CHandler, Flow, Fwnode, IrqChip, IrqCore, IrqDesc, IrqDomain, IrqDomainOps, nop
from vmbusirq.irq.settings import IRQ_HIDDEN, IRQ_MOVE_PCNTXT, IRQ_SET_MASK_OK
from vmbusirq.limits import MSG_PAYLOAD, RELID_MAX, RELID_MIN, RELIDS
from vmbusirq.steps import Step, Steps, run
from vmbusirq.vmbus.affinity import CONNECT_CPU, CpuPicker, VpAssignment
from vmbusirq.vmbus.callbacks import ROOM
from vmbusirq.vmbus.channel import Channel, ChannelState, RingPair
from vmbusirq.vmbus.device import HvDevice, make_instance_id
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE

__all__ = ["HostLink", "Offer", "VmbusConnection"]

MESSAGE_HWIRQ: Final = 0  # no channel has relid 0
MESSAGE_IRQ_NAME: Final = "vmbus-msg"
PPI_IRQ_NAME: Final = "Hyper-V VMbus"
CHANNELMSG_COUNT: Final = 25
SCSI_HOST_MAX: Final = 65535
_SCAN_U: Final = re.compile(rb"[ \t\n\v\f\r\xa0]*([0-9]+)")  # isspace() as the kernel has it


class HostLink(Protocol):
    """What the guest asks of the host. Each call is a message or hypercall on a real machine."""

    def open(self, relid: int, ring_in: Any, ring_out: Any, target_vp: int) -> object:
        """OPENCHANNEL with the rings of the GPADL."""

    def close(self, relid: int) -> None:
        """CLOSECHANNEL."""

    def modify_channel(self, relid: int, target_vp: int) -> None:
        """MODIFYCHANNEL."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One OFFERCHANNEL as far as the guest acts on it.

    Which device of which class, which of its channels, which relid. A device without an instance GUID is given one.
    """

    device: str
    device_class: str
    relid: int
    sub_channel_index: int = 0
    scsi_host: int | None = None
    instance: UUID | None = None


class VmbusConnection:
    """The guest's end of VMBus.

    Args:
        nodes: mask of online CPUs of each NUMA node.
        isolated: CPUs under isolcpus=managed_irq, which init_vp_index and irq_set_affinity keep away from.
        ppi_irq: Linux IRQ of the per-CPU interrupt that serves the top level (arm64), 0 on x86.
        seed: from which instance GUIDs are made that no offer gives.
    """

    def __init__(
        self,
        core: Core,
        irq: IrqCore,
        synic: Synic,
        host: HostLink,
        design: Design,
        *,
        nodes: Sequence[int],
        isolated: int = 0,
        ppi_irq: int = 0,
        seed: int = 0,
    ) -> None:
        self._core = core
        self._irq = irq
        self._host = host
        self._synic = synic
        self.design: Final = design
        self.isolated: Final = isolated
        self.synic_online = 0
        self.messages_received: dict[int, int] = {}
        self._channels: dict[int, Channel] = {}
        self._devices: dict[UUID, HvDevice] = {}
        self._nodes = tuple(nodes)
        self._seed = seed
        self._assignment = VpAssignment(nodes, irq.possible & ~isolated)
        self._picker = CpuPicker()
        self._chip = IrqChip("VMBus", irq_set_affinity=self._chip_set_affinity, irq_mask=nop, irq_unmask=nop)
        self.domain: Final[IrqDomain] = irq.irq_domain_create_linear(
            Fwnode.named("hv-vmbus"), RELIDS, IrqDomainOps(map=self._map), self, demux=True
        )
        irq.owner.rooms[ROOM] = self
        irq.owner.set_hooks(message=lib.vi_py_message, packet=lib.vi_py_packet)
        if ppi_irq:
            self._request_ppi(ppi_irq)
        if design.message_irq:
            self._request_message_irq()

    @property
    def channels(self) -> Mapping[int, Channel]:
        """Offered channels by relid."""
        return self._channels

    @property
    def devices(self) -> Mapping[UUID, HvDevice]:
        """Devices by instance GUID, in the order in which they came."""
        return self._devices

    def cpu_to_node(self, cpu: int) -> int:
        """Return the NUMA node of a CPU."""
        return next((node for node, cpus in enumerate(self._nodes) if cpus >> cpu & 1), 0)

    # ---- top level

    def _request_ppi(self, irq: int) -> None:
        flow = Flow(self.design.toplevel_flow)
        self._irq.set_chip_and_handler(irq, self._irq.irq_to_desc(irq).chip, flow)
        if self.design.toplevel_hidden:
            self._irq.modify_status(irq, set_=IRQ_HIDDEN)
        cookies = [self._core.handle] * self._core.nr_cpus
        self._irq.request_percpu_irq(irq, lib.vi_handler_percpu_isr(), PPI_IRQ_NAME, cookies)
        check(lib.vi_machine_set_toplevel_irq(self._core.handle, irq), f"irq {irq}: cannot serve the top level")

    def _request_message_irq(self) -> None:
        irq = self._irq.irq_create_mapping(self.domain, MESSAGE_HWIRQ)
        self._irq.request_irq(irq, lib.vi_handler_message(), 0, MESSAGE_IRQ_NAME)
        self._irq.irq_set_affinity_and_hint(irq, 1 << CONNECT_CPU)
        check(lib.vi_machine_set_message_irq(self._core.handle, irq), f"irq {irq}: cannot serve control messages")

    def synic_init(self, cpus: Iterable[int]) -> None:
        """Switch the SynICs of CPUs on (hv_synic_init)."""
        for cpu in cpus:
            self._synic.enable(cpu)
            self.synic_online |= 1 << cpu

    def on_message(self, message_type: int, size: int, payload: bytes) -> None:
        """Take one control message (vmbus_on_msg_dpc).

        What Linux refuses is logged and dropped; the slot is freed either way.
        """
        if size > MSG_PAYLOAD or len(payload) < 8:
            self._irq.log.warn(f"hv_vmbus: payload size is too {'large' if size > MSG_PAYLOAD else 'small'} ({size})")
            return
        (msgtype,) = struct.unpack_from("<I", payload)
        if msgtype >= CHANNELMSG_COUNT:
            self._irq.log.warn(f"hv_vmbus: unknown msgtype={msgtype}")
            return
        self.messages_received[msgtype] = self.messages_received.get(msgtype, 0) + 1

    # ---- offer and removal

    def offer(self, offer: Offer) -> Channel:
        """Take up an offered channel: choose its CPU, map its relid to an IRQ (vmbus_process_offer, RFC patch 08).

        Raises:
            IrqError: EINVAL a relid outside 1..2047 or an unknown device class, EEXIST a relid, a device's primary or
                an instance in use, ENOMEM no IRQ left.
        """
        return run(self.offer_steps(offer))

    def offer_steps(self, offer: Offer) -> Steps[Channel]:
        """Yield the steps of :meth:`offer`."""
        self._irq.check_owner()
        self._check_offer(offer)
        device_class = CATALOGUE[offer.device_class]
        name = device_class.irq_name(offer.sub_channel_index, offer.scsi_host)
        channel = Channel(self._core, offer.relid, offer.device, device_class, offer.sub_channel_index, name)
        others = [other.target_cpu for other in self._of_device(offer.device)]
        cpu = self._assignment.assign(device_class.perf, offer.sub_channel_index, others)
        channel.set_cpu(cpu)
        yield Step(f"channel {offer.relid}: map the relid")
        irq = 0
        if self.design.channel_irqs:
            irq = self._irq.irq_create_mapping(self.domain, offer.relid)
            if not irq:
                channel.destroy()
                raise IrqError(errno.ENOMEM, f"channel {offer.relid}: no irq could be mapped; see the log (ENOMEM)")
            self._irq.set_handler_data(irq, channel)
            self._irq.modify_status(irq, set_=IRQ_MOVE_PCNTXT)
        channel.map(irq)
        self._channels[offer.relid] = channel
        self._register(offer, channel)
        channel.state = ChannelState.OPEN
        self._irq.log.info(
            f"hv_vmbus: offer of relid {offer.relid}: {name}, cpu {cpu}" + (f", irq {irq}" if irq else "")
        )
        return channel

    def _check_offer(self, offer: Offer) -> None:
        relid = offer.relid
        if not RELID_MIN <= relid <= RELID_MAX:
            borders = f"relids are {RELID_MIN} to {RELID_MAX}"
            raise IrqError(errno.EINVAL, f"channel {relid}: cannot be offered: {borders} (EINVAL)")
        if offer.device_class not in CATALOGUE:
            known = ", ".join(sorted(CATALOGUE))
            raise IrqError(
                errno.EINVAL, f"channel {relid}: no device class {offer.device_class!r} (EINVAL); known: {known}"
            )
        if not offer.device.isprintable() or not 0 <= offer.sub_channel_index <= RELID_MAX:
            raise IrqError(
                errno.EINVAL,
                f"channel {relid}: device {offer.device!r}, sub-channel {offer.sub_channel_index}: a name is "
                f"printable, an index 0 to {RELID_MAX} (EINVAL)",
            )
        if not (offer.scsi_host is None or 0 <= offer.scsi_host <= SCSI_HOST_MAX):
            raise IrqError(
                errno.EINVAL, f"channel {relid}: scsi host {offer.scsi_host!r}; hosts are 0 to {SCSI_HOST_MAX} (EINVAL)"
            )
        if relid in self._channels:
            owner = self._channels[relid].irq_name
            raise IrqError(errno.EEXIST, f"channel {relid}: is in use by {owner}; remove it first (EEXIST)")
        self._check_device(offer)

    def _check_device(self, offer: Offer) -> None:
        """Refuse a second primary of a device, one instance for two devices, and two for one."""
        instance = self._instance_of(offer)
        named, present = self._named(offer.device_class, offer.device), self._devices.get(instance)
        if named is not present:
            other = named or present
            assert other is not None
            raise IrqError(
                errno.EEXIST,
                f"channel {offer.relid}: cannot be of {offer.device_class} {offer.device}, instance {instance}: there "
                f"is {other.device_class.name} {other.name}, instance {other.instance}",
            )
        if present is not None and not offer.sub_channel_index:
            raise IrqError(
                errno.EEXIST,
                f"channel {offer.relid}: {present.name} has a primary, channel {present.primary.relid}, already",
            )

    def _instance_of(self, offer: Offer) -> UUID:
        if offer.instance is not None:
            return offer.instance
        known = self._named(offer.device_class, offer.device)
        return make_instance_id(offer.device_class, offer.device, self._seed) if known is None else known.instance

    def _named(self, device_class: str, name: str) -> HvDevice | None:
        devices = self._devices.values()
        return next(
            (device for device in devices if (device.device_class.name, device.name) == (device_class, name)), None
        )

    def _register(self, offer: Offer, channel: Channel) -> None:
        """Give a channel its place in sysfs: the first of an instance makes the device."""
        instance = self._instance_of(offer)
        device = self._devices.get(instance)
        if device is None:
            self._devices[instance] = HvDevice(offer.device, instance, channel.device_class, channel)
        else:
            device.channels.append(channel)

    def _unregister(self, channel: Channel) -> None:
        """Take it away again. The device goes with its primary, whatever sub-channels are left."""
        device = self._named(channel.device_class.name, channel.device)
        if device is None or channel not in device.channels:
            return
        if channel is device.primary:
            device.removed = True
            del self._devices[device.instance]
        else:
            device.channels.remove(channel)

    def _of_device(self, device: str) -> list[Channel]:
        return [channel for channel in self._channels.values() if channel.device == device]

    def _map(self, domain: IrqDomain, irq: int, hwirq: int) -> None:
        """Give a new mapping its chip and flow handler (RFC patch 07)."""
        self._irq.set_chip_and_handler(irq, self._chip, Flow.SIMPLE)

    def remove(self, channel: Channel) -> None:
        """Take a channel away: close it if it is open, free its IRQ, forget the relid. EDEADLK inside an interrupt."""
        self._irq.may_wait(f"channel {channel.relid}: remove")
        if channel.state is ChannelState.OPENED:
            self.close(channel)
        lib.vi_channel_set_rescind(channel.c, 1)
        self._free_irq(channel)
        channel.unmap()
        if channel.irq:
            self._irq.irq_dispose_mapping(channel.irq)
        del self._channels[channel.relid]
        self._unregister(channel)
        cpu = channel.target_cpu
        if channel.device_class.perf and not self._perf_channel_on(cpu):
            self._assignment.unmark(cpu)
        channel.destroy()

    def _perf_channel_on(self, cpu: int) -> bool:
        return any(other.device_class.perf and other.target_cpu == cpu for other in self._channels.values())

    # ---- open and close

    def open(self, channel: Channel, callback: Callable[[Channel], object] | None = None) -> None:
        """Share rings with the host, request the IRQ, open the channel (__vmbus_open, RFC patch 09).

        Args:
            channel: as :meth:`offer` returned it.
            callback: called with the channel where its mode says; None for the driver's own reader, which counts what
                it reads.
        Raises:
            IrqError: EINVAL unless it is offered and closed; EDEADLK inside a handler; ENOMEM; whatever request_irq or
                the host refuses with.
        """
        run(self.open_steps(channel, callback))

    def open_steps(self, channel: Channel, callback: Callable[[Channel], object] | None = None) -> Steps[None]:
        """Yield the steps of :meth:`open`. An error undoes exactly what was done."""
        self._irq.may_wait(f"channel {channel.relid}: open")
        if channel.state is not ChannelState.OPEN:
            raise IrqError(
                errno.EINVAL,
                f"channel {channel.relid}: cannot open: its state is {channel.state.name}, not OPEN (EINVAL)",
            )
        channel.state = ChannelState.OPENING
        rings = RingPair(channel.device_class.ring_bytes)
        try:
            channel.share_rings(rings)
            channel.set_callback(callback)
            yield Step(f"channel {channel.relid}: rings are shared, request_irq")
            self._request_irq(channel)
            yield Step(f"channel {channel.relid}: send OPENCHANNEL")
            self._host.open(channel.relid, rings.ring_in, rings.ring_out, channel.target_cpu)
        except BaseException:
            self._free_irq(channel)
            channel.clear_callback()
            channel.share_rings(None)
            channel.state = ChannelState.OPEN
            raise
        channel.state = ChannelState.OPENED

    def _request_irq(self, channel: Channel) -> None:
        if not channel.irq:
            return
        self._irq.request_irq(channel.irq, CHandler(channel.bind_action), 0, channel.irq_name, channel)
        channel.irq_requested = True
        self._irq.irq_set_affinity_and_hint(channel.irq, 1 << channel.target_cpu)

    def _free_irq(self, channel: Channel) -> None:
        if channel.irq_requested:
            self._irq.irq_update_affinity_hint(channel.irq, None)
            self._irq.free_irq(channel.irq, channel)
            channel.irq_requested = False

    def close(self, channel: Channel) -> None:
        """Stop the callback, tell the host, take the rings back, free the IRQ (vmbus_close).

        The RFC as posted keeps the IRQ until the relid is unmapped, so that a re-open meets EBUSY; that is mended here.

        Raises:
            IrqError: EINVAL unless it is open; EDEADLK from inside an interrupt.
        """
        if channel.state is not ChannelState.OPENED:
            raise IrqError(
                errno.EINVAL,
                f"channel {channel.relid}: cannot close: its state is {channel.state.name}, not OPENED (EINVAL)",
            )
        self._irq.may_wait(f"channel {channel.relid}: close")
        channel.clear_callback()
        channel.state = ChannelState.OPEN
        self._host.close(channel.relid)
        channel.share_rings(None)
        self._free_irq(channel)

    # ---- affinity

    def _chip_set_affinity(self, desc: IrqDesc, mask: int, force: bool) -> Steps[int]:
        """Move a channel to a CPU of ``mask`` (vmbus_irq_set_affinity, RFC patches 10 and 12)."""
        channel = desc.handler_data
        if not isinstance(channel, Channel):
            return (yield from self._message_set_affinity(desc, mask))
        allowed = mask & ~self.isolated
        if allowed >> channel.target_cpu & 1:
            desc.update_effective_affinity(1 << channel.target_cpu)
            return IRQ_SET_MASK_OK
        allowed &= self.synic_online
        if not allowed:
            raise IrqError(
                errno.EINVAL,
                f"irq {desc.irq}: cannot move channel {channel.relid} to cpu {format_pbl(mask)}: isolated, or its "
                f"SynIC is off (EINVAL); usable: {format_pbl(self.synic_online & ~self.isolated) or 'none'}",
            )
        cpu = self._picker.pick(allowed)
        if channel.state is not ChannelState.OPENED:
            raise IrqError(
                errno.EIO,
                f"irq {desc.irq}: cannot move channel {channel.relid}: it is not open ({channel.state.name}) (EIO)",
            )
        yield Step(f"channel {channel.relid}: send MODIFYCHANNEL to cpu {cpu}")
        self._host.modify_channel(channel.relid, cpu)
        self._moved(channel, cpu)
        desc.update_effective_affinity(1 << cpu)
        return IRQ_SET_MASK_OK

    def target_cpu_store(self, channel: Channel, text: bytes) -> int:
        """Take a write to channels/<relid>/cpu: move the channel; return the bytes taken.

        With channel IRQs this is irq_set_affinity() with one CPU (RFC patch 10); without, the channel is retargeted
        directly (target_cpu_store in drivers/hv/vmbus_drv.c, v6.10). The RFC as posted returns 0 bytes where it
        succeeds; that is mended here.

        Raises:
            IrqError: EIO no number, or a channel that is not open and would have to move; EINVAL a CPU that is past the
                last, offline, isolated or without SynIC; what the host refuses with, in a design without channel IRQs
                always EIO.
        """
        return run(self.target_cpu_store_steps(channel, text))

    def target_cpu_store_steps(self, channel: Channel, text: bytes) -> Steps[int]:
        """Yield the steps of :meth:`target_cpu_store`."""
        self._irq.check_owner()
        cpu = _scan_cpu(channel, text)
        if cpu >= self._irq.nr_cpus:
            last = self._irq.nr_cpus - 1
            raise IrqError(errno.EINVAL, f"channel {channel.relid}: cpu {cpu} is past the last; cpus are 0-{last}")
        if self.design.channel_irqs:
            yield from self._irq.irq_set_affinity_steps(channel.irq, 1 << cpu)
        else:
            yield from self._retarget(channel, cpu)
        return len(text)

    def _retarget(self, channel: Channel, cpu: int) -> Steps[None]:
        """Move a channel that has no IRQ."""
        what = f"channel {channel.relid}: cannot move to cpu {cpu}"
        if self.isolated >> cpu & 1:
            raise IrqError(errno.EINVAL, f"{what}: it is isolated (EINVAL); isolated: {format_pbl(self.isolated)}")
        if not self._irq.online >> cpu & 1:
            raise IrqError(errno.EINVAL, f"{what}: it is offline (EINVAL); online: {format_pbl(self._irq.online)}")
        if channel.state is not ChannelState.OPENED:
            raise IrqError(errno.EIO, f"{what}: it is not open ({channel.state.name})")
        if cpu == channel.target_cpu:
            return
        yield Step(f"channel {channel.relid}: send MODIFYCHANNEL to cpu {cpu}")
        try:
            self._host.modify_channel(channel.relid, cpu)
        except IrqError as error:
            raise IrqError(errno.EIO, f"{what}: MODIFYCHANNEL failed (EIO): {error}") from error
        self._moved(channel, cpu)

    def _message_set_affinity(self, desc: IrqDesc, mask: int) -> Steps[int]:
        """Control messages come to the connect CPU; a mask with it changes nothing, any other is refused."""
        yield Step(f"irq {desc.irq}: control messages stay on cpu {CONNECT_CPU}")
        if not mask >> CONNECT_CPU & 1:
            raise IrqError(
                errno.EINVAL,
                f"irq {desc.irq}: control messages cannot leave cpu {CONNECT_CPU} (EINVAL); include it in the mask",
            )
        desc.update_effective_affinity(1 << CONNECT_CPU)
        return IRQ_SET_MASK_OK

    def _moved(self, channel: Channel, cpu: int) -> None:
        old = channel.target_cpu
        channel.set_cpu(cpu)
        if channel.device_class.perf:
            if not self._perf_channel_on(old):
                self._assignment.unmark(old)
            self._assignment.mark(cpu)


def _scan_cpu(channel: Channel, text: bytes) -> int:
    """Read a number as ``sscanf("%u")`` does: blanks before it and anything after it are ignored, it wraps at 2**32."""
    number = _SCAN_U.match(text)
    if number is None:
        raise IrqError(
            errno.EIO, f"channel {channel.relid}: {text[:40].decode('latin-1')!a} is not a cpu; write its number"
        )
    return int(number[1][-32:]) % (1 << 32)  # which divides 10**32
