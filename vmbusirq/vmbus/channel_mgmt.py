"""Channels from their offer to their removal (drivers/hv/channel_mgmt.c, v6.10, with RFC patches 01, 07 and 08).

An offer makes a channel: its CPU is chosen, its relid mapped to an IRQ, a device made of it or a sub-channel handed to
its device's driver. A rescind undoes all that, in the order that lets no interrupt find half a channel.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from vmbusirq.errors import IrqError, errno_name
from vmbusirq.irq import IrqDomain
from vmbusirq.irq.settings import IRQ_MOVE_PCNTXT
from vmbusirq.limits import RELID_MAX, RELID_MIN
from vmbusirq.steps import Step, Steps, holding
from vmbusirq.vmbus.affinity import VpAssignment
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.vmbus.context import CHANNEL_MUTEX, Context
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.devices import Devices
from vmbusirq.vmbus.drivers.catalogue import find_class
from vmbusirq.vmbus.open import Opener
from vmbusirq.vmbus.waits import free_channel, reset_channel_cb
from vmbusirq.vmbus.work import WorkQueues
from vmbusirq.wire.devices import UNSUPPORTED_CLASS_IDS
from vmbusirq.wire.protocol import (
    INVALID_RELID,
    Message,
    OfferChannel,
    RelidReleased,
    RescindChannelOffer,
)

__all__ = ["ChannelManager"]

_UNSUPPORTED: Final = frozenset(UNSUPPORTED_CLASS_IDS.values())
_ISOLATED_CLASSES: Final = frozenset(
    ("scsi", "netvsc", "vpci", "timesync", "heartbeat", "shutdown", "hv_sock")  # vmbus.md 5.1, column iso
)


class ChannelManager:
    """All channels of one guest.

    Attributes:
        ignore_offers: a suspend is on its way: offers are dropped in the tasklet, and rescinds when no more of them are
            awaited (``close_on_suspend``).
        offers_in_progress: offers queued and not yet processed; a rescind waits for 0.
        close_on_suspend: sub-channels and hv_sock channels that must go before a suspend can end.
        fixup_on_resume: primaries that wait for their next offer after a suspend.
        resuming: a resume waits for the offers, and sees to the devices that they bring back.
        take_up_late: sees to a device whose offer comes after that.
    """

    def __init__(
        self,
        context: Context,
        opener: Opener,
        devices: Devices,
        work: WorkQueues,
        domain: IrqDomain,
        set_signal: Callable[[Channel], None],
        assignment: VpAssignment,
    ) -> None:
        self._ctx = context
        self._opener = opener
        self._devices = devices
        self._work = work
        self._domain = domain
        self._set_signal = set_signal
        self._log = context.irq.log
        self.assignment: Final = assignment
        self.channels: Final = context.channels
        self.ignore_offers = False
        self.offers_in_progress = 0
        self.close_on_suspend = 0
        self.fixup_on_resume = 0
        self.resuming = False
        self.take_up_late: Callable[[HvDevice], Steps[None]] | None = None

    # ---- what the tasklet queues

    def queue_offer(self, message: Message) -> None:
        """Take OFFERCHANNEL out of the tasklet."""
        assert isinstance(message, OfferChannel)
        if not self.ignore_offers:
            self.offers_in_progress += 1
            self._work.con.queue(f"offer of relid {message.child_relid}", self.onoffer(message))

    def queue_rescind(self, message: Message) -> None:
        """Take RESCIND_CHANNELOFFER out of the tasklet."""
        assert isinstance(message, RescindChannelOffer)
        if not self.ignore_offers or self.close_on_suspend > 0:
            self._work.rescind.queue(f"rescind of relid {message.child_relid}", self.onrescind(message))

    # ---- offer

    def onoffer(self, offer: OfferChannel) -> Steps[None]:
        """Process an offer (vmbus_onoffer)."""
        control = self._ctx.control
        if not control.connected:  # unloaded meanwhile
            self.offers_in_progress -= 1
            return
        control.trace_received(offer)
        if not self._is_wanted(offer):
            self.offers_in_progress -= 1
            return
        earlier = self._devices.find(offer.if_instance)
        if offer.sub_channel_index == 0 and earlier is not None:
            self.offers_in_progress -= 1
            yield from self._reoffered(earlier.primary, offer)
            return
        channel = self._make(offer)
        if channel is None:
            self.offers_in_progress -= 1
            if offer.child_relid not in self.channels:
                yield from self._release(offer.child_relid)
            return
        yield from self._process(channel)

    def _is_wanted(self, offer: OfferChannel) -> bool:
        device_class = find_class(offer.if_type, hv_sock=offer.is_hv_sock)
        if self._ctx.options.isolation and device_class.name not in _ISOLATED_CLASSES:
            self._log.err(f"hv_vmbus: Invalid offer {offer.child_relid} from the host supporting isolation")
            return False
        # RFC patch 01: no channel, no IRQ, no release of the relid; a rescind will find nothing
        return not (self._ctx.design.channel_irqs and offer.if_type in _UNSUPPORTED)

    def _make(self, offer: OfferChannel) -> Channel | None:
        """Make the channel of an offer; None and a warning for what no channel can be."""
        relid = offer.child_relid
        if not RELID_MIN <= relid <= RELID_MAX:
            self._log.warn(f"hv_vmbus: offer of relid {relid:#x} refused: relids are {RELID_MIN} to {RELID_MAX}")
            return None
        if relid in self.channels:
            self._log.warn(f"hv_vmbus: offer of relid {relid} refused: it is in use by {self.channels[relid].irq_name}")
            return None
        device = self._devices.find(offer.if_instance)
        if device is not None and device.class_id != offer.if_type:  # sub-channels are matched by both GUIDs
            self._log.warn(f"hv_vmbus: offer of relid {relid} refused: {device.guid} is of class {device.class_id}")
            return None
        primary = device.primary if device is not None else None
        try:
            return Channel(self._ctx.core, offer, find_class(offer.if_type, hv_sock=offer.is_hv_sock), primary)
        except IrqError as error:
            self._log.err(f"hv_vmbus: Unable to allocate channel object: {error}")
            return None

    def _process(self, channel: Channel) -> Steps[None]:
        """Choose the CPU, list it, map the relid, queue what comes next (vmbus_process_offer)."""
        yield Step(f"channel {channel.relid}: process the offer", takes=CHANNEL_MUTEX)
        channel.set_cpu(self._choose_cpu(channel))
        if channel.is_hv_sock or channel.primary is not None:
            self.close_on_suspend += 1
        self.offers_in_progress -= 1
        self.channels[channel.relid] = channel
        self._devices.enlist(channel)
        self._set_signal(channel)
        mapped = self._map(channel)
        irq = f", irq {channel.irq}" if channel.irq else ""
        self._log.info(
            f"hv_vmbus: offer of relid {channel.relid}: {channel.irq_name or 'unknown'}, cpu {channel.target_cpu}{irq}"
        )
        label = f"add channel {channel.relid}"
        if channel.primary is not None:
            self._work.sub_chan.queue(label, self._add_channel_work(channel, mapped))
        else:
            order = self._ctx.options.probe_order
            instance = str(channel.offer.if_instance)
            rank = order.index(instance) if instance in order else len(order)
            self._work.pri_chan.queue(label, self._add_channel_work(channel, mapped), rank)

    def _choose_cpu(self, channel: Channel) -> int:
        primary = channel.primary
        used: list[int] = []
        if primary is not None and primary.device is not None:
            used = [other.target_cpu for other in primary.device.channels]
        return self.assignment.assign(channel.device_class.perf, channel.sub_channel_index, used)

    def _map(self, channel: Channel) -> bool:
        """Map the relid (vmbus_channel_map_relid, RFC patch 08); False and a log line if it cannot be."""
        irq_core, irq = self._ctx.irq, 0
        try:
            if self._ctx.design.channel_irqs:
                irq = irq_core.irq_create_mapping(self._domain, channel.relid)
                if not irq:
                    return False
                irq_core.set_handler_data(irq, channel)
                irq_core.modify_status(irq, set_=IRQ_MOVE_PCNTXT)
            channel.map(irq)
        except IrqError as error:
            self._log.err(f"hv_vmbus: relid {channel.relid} cannot be mapped: {error}")
            return False
        return True

    def _add_channel_work(self, channel: Channel, mapped: bool) -> Steps[None]:
        """Make a device of a primary channel, or hand a sub-channel to its driver (vmbus_add_channel_work)."""
        channel.state = ChannelState.OPEN
        if not mapped:
            yield from self._add_failed(channel)
            return
        try:
            if channel.primary is not None:
                yield from self._devices.add_sub_channel(channel)
            elif channel.device is not None:
                yield from self._devices.add(channel.device)
        except IrqError as error:
            self._log.err(f"hv_vmbus: unable to add child device object (relid {channel.relid}): {error}")
            channel.probe_done = True
            yield from self._add_failed(channel)
            return
        channel.probe_done = True

    def _add_failed(self, channel: Channel) -> Steps[None]:
        if not channel.gone:
            yield from self.process_removal(channel)

    # ---- offered again after a suspend

    def _reoffered(self, channel: Channel, offer: OfferChannel) -> Steps[None]:
        """Give a primary that lost its relid in a suspend the one of its new offer (vmbus.md 7.4)."""
        relid = offer.child_relid
        if channel.relid != INVALID_RELID or not RELID_MIN <= relid <= RELID_MAX or relid in self.channels:
            self._log.warn(f"hv_vmbus: WARNING: offer of relid {relid} for {offer.if_instance}, which has a channel")
            if relid not in self.channels:
                yield from self._release(relid)
            return
        yield Step(f"channel {relid}: take up the offer after a suspend", takes=CHANNEL_MUTEX)
        changed = channel.offer.connection_id != offer.connection_id
        channel.rename(relid)
        channel.offer = offer
        self.channels[relid] = channel
        self._set_signal(channel)
        if not self._map(channel):
            return
        what = " and another connection id" if changed else ""
        self._log.info(f"hv_vmbus: {channel.irq_name} is back as relid {relid}{what}")
        self.fixup_on_resume -= 1
        if not self.resuming and self.take_up_late is not None and channel.device is not None:
            self._work.pri_chan.queue(f"resume channel {relid}", self.take_up_late(channel.device))

    # ---- rescind

    def onrescind(self, message: RescindChannelOffer) -> Steps[None]:
        """Process a rescind (vmbus_onoffer_rescind): end what its channel waits for; what has to wait comes later."""
        control = self._ctx.control
        if not control.connected:
            return
        control.trace_received(message)
        yield from control.wait("rescind: wait for the offers in progress", lambda: self.offers_in_progress == 0)
        channel = self.channels.get(message.child_relid)
        if channel is None or channel.rescind_ref:
            return
        yield from self._mark_rescinded(channel)
        self._work.removal.queue(f"removal of relid {channel.relid}", self._see_to_its_end(channel))

    def rescind(self, channel: Channel) -> Steps[None]:
        """Rescind a channel without the host, and see its device, or the sub-channel, to its end."""
        yield from self._mark_rescinded(channel)
        yield from self._see_to_its_end(channel)

    def _mark_rescinded(self, channel: Channel) -> Steps[None]:
        """Let nothing through any more, and end every wait for the host."""
        channel.rescind_ref = True
        yield Step(f"channel {channel.relid}: rescind", touches=frozenset({f"channel {channel.relid}"}))
        if channel.gone:  # its device could not be added, and it was removed for that
            return
        yield from reset_channel_cb(self._ctx, channel)
        channel.rescind()
        self._ctx.control.rescind_channel(channel)

    def _see_to_its_end(self, channel: Channel) -> Steps[None]:
        """Wait for the probe of a rescinded channel, let its driver go, remove it; a sub-channel that is in use stays.

        A primary whose driver closes sub-channels waits for the probe of those that are rescinded, not for their turn
        on this queue.
        """
        point = f"channel {channel.relid}: wait for its probe"
        yield from self._ctx.control.wait(point, lambda: channel.probe_done or channel.gone)
        if channel.gone:
            return
        if channel.primary is None:
            if channel.device is not None:
                yield from self._devices.unregister(channel.device)
            if not channel.gone:
                yield from self.process_removal(channel)
        elif ChannelState.OPEN in (channel.state, channel.primary.state) or channel.primary.gone:
            yield from self.process_removal(channel)
        else:
            channel.rescind_event = True  # the close of its primary does the rest

    def process_removal(self, channel: Channel) -> Steps[None]:
        """Unmap the relid, forget the channel, give its relid back (hv_process_channel_removal)."""
        relid = channel.relid
        touches = frozenset({f"channel {relid}", f"relid {relid}", f"irq {channel.irq}"})
        yield Step(f"channel {relid}: remove", takes=CHANNEL_MUTEX, touches=touches)
        if channel.gone:
            return
        yield from holding(CHANNEL_MUTEX, self._remove(channel))
        if relid != INVALID_RELID and self._ctx.control.connected:
            yield from self._release(relid)
        for sub in channel.device.sub_channels if channel.primary is None and channel.device is not None else ():
            if sub.rescind_event:  # nobody is left to close their primary
                yield from self.process_removal(sub)

    def _remove(self, channel: Channel) -> Steps[None]:
        if not channel.rescinded:
            channel.rescind()
        yield from self._drop_rings(channel)
        yield from self.unmap(channel)
        yield from free_channel(self._ctx, channel)
        if channel.is_hv_sock or channel.primary is not None:
            self.close_on_suspend -= 1
        self._devices.forget(channel)
        self._opener.let_go(channel)
        cpu = channel.target_cpu
        channel.destroy()
        if channel.device_class.perf and not self.perf_channel_on(cpu):
            self.assignment.unmark(cpu)

    def _release(self, relid: int) -> Steps[None]:
        """Give a relid back; a host that does not take the message keeps it (vmbus_release_relid)."""
        try:
            yield from self._ctx.control.post(RelidReleased(relid), touches=frozenset({f"channel {relid}"}))
        except IrqError as error:
            self._log.err(f"hv_vmbus: relid {relid} could not be released: {errno_name(error.errno or errno.EIO)}")

    def _drop_rings(self, channel: Channel) -> Steps[None]:
        """A channel whose driver never closed it (an unbound device, a sub-channel of nobody) gives its rings back."""
        if channel.rings is not None:
            rings = channel.rings
            yield from reset_channel_cb(self._ctx, channel)
            channel.share_rings(None)
            channel.gpadl = 0
            channel.state = ChannelState.OPEN
            rings.free()

    def unmap(self, channel: Channel) -> Steps[None]:
        """Free the IRQ and dispose of its mapping; the relid is nobody's now (vmbus_channel_unmap_relid)."""
        if self.channels.get(channel.relid) is not channel:
            return
        yield from self._opener.free_irq(channel)
        if channel.mapped:
            touches = frozenset({f"relid {channel.relid}", f"channel {channel.relid}", f"irq {channel.irq}"})
            yield Step(f"channel {channel.relid}: vmbus_channel_unmap_relid", touches=touches)
            channel.unmap()
        if channel.irq:
            yield from self._ctx.irq.irq_dispose_mapping_steps(channel.irq)
            channel.irq = 0
        del self.channels[channel.relid]

    def perf_channel_on(self, cpu: int) -> bool:
        """Whether any performance channel interrupts a CPU."""
        return any(other.device_class.perf and other.target_cpu == cpu for other in self._devices.all_channels())

    # ---- suspend

    def forget_relids(self) -> Steps[None]:
        """Unmap every primary and take its relid away: the host will offer it anew."""
        for device in tuple(self._devices.values()):
            channel = device.primary
            if channel.relid == INVALID_RELID:
                continue
            yield from self.unmap(channel)
            channel.relid = INVALID_RELID
            self.fixup_on_resume += 1
