"""A guest with a scripted host: no host/ import, so that what is tested is the guest alone.

The script answers what it is not told to keep to itself; every message that the guest posted is remembered.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import TICKS_PER_S, Core
from vmbusirq.designs import DESIGNS, Design
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.partition import Partition
from vmbusirq.irq import IrqCore
from vmbusirq.log import Log
from vmbusirq.steps import Steps
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.context import GuestOptions
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.drivers.base import Attention, Driver
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import (
    STATUS_SUCCESS,
    AllOffersDelivered,
    CloseChannel,
    Direction,
    GpadlAssembly,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    GpaRange,
    InitiateContact,
    Message,
    ModifyChannel,
    ModifyChannelResponse,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    Unload,
    UnloadResponse,
    Version,
    VersionResponse,
    decode,
    encode,
    signal_connection_id,
)
from vmbusirq.wire.ring import RingMemory, RingWriter

INSTANCES = UUID("6e0c1a52-3f1f-4b0e-9d6b-1f8a2f4c9b11")
CONNECTION_PAGES = 3
MSG_CONN_ID = 0x24  # what this host hands out from 5.0 on, so that a guest that does not adopt it is found out


def instance(name: str) -> UUID:
    """Return the instance GUID of a device that a test names."""
    return uuid5(INSTANCES, name)


def offer_of(device_class: str, relid: int, name: str = "d", sub: int = 0, **fields: Any) -> OfferChannel:
    """Return the offer of a channel."""
    if_type = fields.pop("if_type", CLASS_IDS.get(device_class, INSTANCES))
    connection_id = fields.pop("connection_id", signal_connection_id(relid % 2048))
    return OfferChannel(if_type, instance(name), relid, connection_id, sub, **fields)


@contextmanager
def refused(number: int, says: str = "") -> Iterator[None]:
    """Expect an IrqError with this errno, and this in its text."""
    with pytest.raises(IrqError) as caught:
        yield
    assert number == caught.value.errno, str(caught.value)
    assert says in str(caught.value)


class ScriptedHost:
    """Answers as a host does, from a list of what it is to do differently.

    Attributes:
        version: the newest version that it speaks.
        got: every message of the guest, in order.
        mute: types of the guest's messages that get no answer.
        status: answers other than success, by the type of the guest's message.
        instead: called with a message instead of answering it, by its type.
        offers: what REQUESTOFFERS brings.
        rescinds_subs: a close of a primary rescinds the sub-channels that were offered for it.
        targets: VP of each channel, as the guest asked last.
        rings: of open channels, (in, out), mapped from what the guest shared.
        msg_conn_id: where a guest of 5.0 and later must post after contact.
    """

    def __init__(self, partition: Partition, version: Version = Version.V5_3, buffers: int = 16) -> None:
        self.partition = partition
        self.version = version
        self.agreed: Version | None = None
        self.got: list[Message] = []
        self.mute: set[type[Message]] = set()
        self.status: dict[type[Message], int] = {}
        self.instead: dict[type[Message], Callable[[Any], object]] = {}
        self.offers: list[OfferChannel] = []
        self.rescinds_subs = True
        self.subs: dict[UUID, set[int]] = {}
        self.instances: dict[int, OfferChannel] = {}
        self.targets: dict[int, int] = {}
        self.rings: dict[int, tuple[RingMemory, RingMemory]] = {}
        self.msg_conn_id = MSG_CONN_ID
        self.gpadls: dict[int, GpadlAssembly] = {}
        self.port = partition.create_message_port(1, buffers)
        partition.connect(1, 1)
        if version >= Version.V5_0:
            partition.connect(4, 1)
            partition.connect(MSG_CONN_ID, 1)
        partition.add_pump(self.pump)

    def pump(self) -> bool:
        moved = False
        while (payload := self.port.receive()) is not None:
            message = decode(payload, self.agreed or Version.V5_3, Direction.TO_HOST)
            self.got.append(message)
            moved = True
            if type(message) in self.instead:
                self.instead[type(message)](message)
            elif type(message) not in self.mute:
                self.answer(message)
        return moved

    def post(self, message: Message, vp: int = 0) -> None:
        """Post a message to the guest."""
        if isinstance(message, OfferChannel):
            self.instances[message.child_relid] = message
            if message.sub_channel_index:
                self.subs.setdefault(message.if_instance, set()).add(message.child_relid)
        self.partition.post_to_guest(vp, encode(message, self.agreed or Version.V5_3))

    def raw(self, payload: bytes, vp: int = 0) -> None:
        """Post bytes."""
        self.partition.post_to_guest(vp, payload)

    def of_type(self, kind: type[Any]) -> list[Any]:
        """Return the guest's messages of one type."""
        return [message for message in self.got if isinstance(message, kind)]

    @property
    def names(self) -> list[str]:
        """Return the types of the guest's messages, in order."""
        return [type(message).__name__ for message in self.got]

    def answer(self, message: Message) -> None:
        """Answer a message as hosts do."""
        status = self.status.get(type(message), STATUS_SUCCESS)
        match message:
            case InitiateContact():
                self._contacted(message)
            case RequestOffers():
                for offer in self.offers:
                    self.post(offer)
                self.post(AllOffersDelivered())
            case GpadlHeader():
                self.gpadls[message.gpadl] = GpadlAssembly(message)
                self._created(message.gpadl, status)
            case GpadlBody():
                if message.gpadl not in self.gpadls:
                    return
                self.gpadls[message.gpadl].add(message)
                self._created(message.gpadl, self.status.get(GpadlHeader, STATUS_SUCCESS))
            case GpadlTeardown():
                self.gpadls.pop(message.gpadl, None)
                self.post(GpadlTorndown(message.gpadl))
            case OpenChannel():
                if not status:
                    self.opened(message)
                self.post(OpenChannelResult(message.child_relid, message.openid, status))
            case CloseChannel():
                self._closed(message.child_relid)
            case ModifyChannel():
                self.targets[message.child_relid] = message.target_vp
                if self.agreed == Version.V5_3:
                    self.post(ModifyChannelResponse(message.child_relid, status))
            case RelidReleased():
                self._forget_rings(message.child_relid)
                self.instances.pop(message.child_relid, None)
            case Unload():
                for relid in tuple(self.rings):
                    self._forget_rings(relid)
                self.gpadls.clear()
                self.subs.clear()
                self.post(UnloadResponse())

    def _contacted(self, message: InitiateContact) -> None:
        ok = message.version <= self.version
        self.agreed = Version(message.version) if ok else None
        new = message.version >= Version.V5_0
        response = VersionResponse(int(ok), 0, self.msg_conn_id if new else message.version)
        self.partition.post_to_guest(0, encode(response, Version(message.version)))

    def _created(self, gpadl: int, status: int) -> None:
        assembly = self.gpadls[gpadl]
        if assembly.complete:
            self.post(GpadlCreated(assembly.child_relid, gpadl, status))

    def opened(self, message: OpenChannel) -> None:
        """Map the rings of a channel that the guest opens."""
        (pages,) = self.gpadls[message.ringbuffer_gpadlhandle].ranges()
        half = message.downstream_ringbuffer_pageoffset
        out, inward = (
            RingMemory.map(self.partition.memory.fd, pfns) for pfns in (pages.pfns[:half], pages.pfns[half:])
        )
        self._forget_rings(message.child_relid)
        self.rings[message.child_relid] = inward, out
        self.targets[message.child_relid] = message.target_vp

    def _closed(self, relid: int) -> None:
        self._forget_rings(relid)
        offer = self.instances.get(relid)
        if self.rescinds_subs and offer is not None and not offer.sub_channel_index:
            for sub in sorted(self.subs.pop(offer.if_instance, ())):
                self.rescind(sub)

    def _forget_rings(self, relid: int) -> None:
        for ring in self.rings.pop(relid, ()):
            ring.close()

    def rescind(self, relid: int) -> None:
        """Take a channel away."""
        self.post(RescindChannelOffer(relid))

    def write(self, relid: int, *packets: Packet) -> bool:
        """Write packets into a channel's in ring and signal by the ring's rule; return whether that said so."""
        written = RingWriter(self.rings[relid][0]).write_batch(list(packets))
        assert len(packets) == written.accepted
        if written.signal:
            self.signal(relid)
        return written.signal

    def signal(self, relid: int) -> bool:
        """Signal a channel's VP; return whether its flag was newly set."""
        return self.partition.synic.signal(self.targets[relid], relid)


class PlainDriver(Driver):
    """A driver of every class that opens and closes its channels, and has nothing to say to the host.

    Attributes:
        can_suspend: hibernation is not refused.
    """

    name = "plain"
    attention = Attention.NONE
    can_suspend = True

    def probe(self, device: HvDevice) -> Steps[None]:
        yield from self.bus.open_steps(device.primary)

    def remove(self, device: HvDevice) -> Steps[None]:
        yield from self.bus.close_steps(device.primary)

    def suspend(self, device: HvDevice) -> Steps[None]:
        if not self.can_suspend:
            raise IrqError(errno.EOPNOTSUPP, f"device {device.guid}: {self.name} cannot suspend (EOPNOTSUPP)")
        yield from self.remove(device)

    def sub_channel(self, channel: Channel) -> Steps[None]:
        yield from self.bus.open_steps(channel)


class Guest:
    """A guest with 4 CPUs, a partition, and a scripted host.

    Args:
        design, engine, cpus, nodes: as the guest's own; a design by name, or a record of one's own.
        version: the newest that the host speaks.
        buffers: of the port that the host receives messages at.
        connect: negotiate now.
        drivers: True: a :class:`PlainDriver` binds every class; False: nobody does, tests open and close by hand.
        offers: what REQUESTOFFERS brings.
        options: of GuestOptions.
    """

    def __init__(
        self,
        design: str | Design = "rfc",
        *,
        cpus: int = 4,
        nodes: Iterable[int] | None = None,
        version: Version = Version.V5_3,
        engine: str = "fast",
        buffers: int = 16,
        connect: bool = True,
        drivers: bool = True,
        offers: Iterable[OfferChannel] = (),
        **options: Any,
    ) -> None:
        record = design if isinstance(design, Design) else DESIGNS[design]
        self.core = Core(
            cpus,
            hyp_count=record.hyp_count,
            channel_irqs=record.channel_irqs,
            redirect=record.redirects,
            engine=engine,
        )
        self.partition = Partition(self.core)
        self.synic = self.partition.synic
        self.memory = self.partition.memory
        self.log = Log(lambda: self.core.now)
        self.irq = IrqCore(self.core.handle, nr_cpus=cpus, nr_irqs=2500, dynirq_base=24, log=self.log)
        self.host = ScriptedHost(self.partition, version, buffers)
        self.host.offers = list(offers)
        self.vmbus = VmbusConnection(
            self.core,
            self.irq,
            self.partition,
            record,
            nodes=list(nodes or [(1 << cpus) - 1]),
            options=GuestOptions(**options),
        )
        names = {device_class.driver for device_class in CATALOGUE.values()} - {""} if drivers else set()
        self.vmbus.devices.drivers.clear()
        for name in sorted(names):
            self.vmbus.devices.drivers[name] = type("Plain", (PlainDriver,), {"name": name})(self.vmbus)
        self.partition.add_check(self.irq.reraise)
        self.vmbus.synic_init(range(cpus))
        if connect:
            self.vmbus.connect()
            self.settle()

    def settle(self) -> None:
        """Let everything run until nothing moves; an error of a callback or of work is raised."""
        self.partition.settle()

    def pass_time(self, seconds: float) -> None:
        """Let virtual time pass, and everything that waits for it run on the way."""
        clock, end = self.partition.clock, self.core.now + int(seconds * TICKS_PER_S)
        self.settle()
        while clock.next_due is not None and clock.next_due <= end:
            clock.advance_to_next()
            self.settle()
        clock.advance_to(end)

    def offered(self, device_class: str = "", relid: int = 5, name: str = "d", sub: int = 0, **fields: Any) -> Channel:
        """Offer a channel and return it; without a class nobody binds it."""
        self.host.post(offer_of(device_class, relid, name, sub, **fields))
        self.settle()
        return self.vmbus.channels[relid]

    def opened(self, device_class: str = "heartbeat", relid: int = 5, name: str = "d") -> Channel:
        """Offer a channel, open it if no driver did, and return it."""
        channel = self.offered(device_class, relid, name)
        if channel.rings is None:
            self.vmbus.open(channel)
        return channel

    def hostile_message(self, msgtype: int, size: int, payload: bytes = b"") -> None:
        """Put a message into CPU 0's slot as a host can that keeps to no rule, its size field included."""
        slot = lib.vi_synic_slot(self.core.handle, 0, 2)
        body = msgtype.to_bytes(4, "little") + bytes(4) + payload
        ffi.memmove(slot.payload, body, len(body))
        slot.payload_size = size
        slot.type = lib.VI_MSG_VMBUS
        self.synic.signal(0, 0)  # for the vector: flag 0 is nobody's

    def hyp(self, cpu: int = 0) -> int:
        """Return a CPU's HYP row."""
        return self.core.arch_row(cpu, lib.VI_ROW_HYP)

    # ---- what must be as it was before

    @property
    def mappings(self) -> int:
        """Mappings of guest memory that this process has, the host's included."""
        inode = str(os.fstat(self.memory.fd).st_ino)
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        return sum(inode == line.split()[4] for line in lines)

    def footprint(self) -> dict[str, Any]:
        """Return what an operation that fails must leave as it was; see also the channel's own :func:`traces`."""
        return {
            "pages": self.pages_allocated,
            "mappings": self.mappings,
            "irqs": sorted(self.irq.descs),
            "actions": {irq: len(desc.actions) for irq, desc in self.irq.descs.items()},
            "hints": {irq: desc.affinity_hint for irq, desc in self.irq.descs.items()},
            "shared": self.vmbus.shared_pages(),
            "stranded": self.vmbus.stranded_pages,
            "requests": list(self.vmbus.control.requests),
            "relids": sorted(self.vmbus.channels),
        }

    @property
    def pages_allocated(self) -> int:
        """Pages that the guest's driver has allocated, those of the SynICs and of hypercalls aside."""
        return self.memory.allocated_pages - self.vmbus.synic.pages_in_use

    def pages_in_use(self) -> int:
        """Return the pages that the guest should have: its connection's, its rings', those that a host kept."""
        rings = [channel.rings for channel in self.vmbus.devices.all_channels()]
        return CONNECTION_PAGES + sum(pair.pages for pair in rings if pair) + self.vmbus.stranded_pages


def traces(channel: Channel) -> tuple[Any, ...]:
    """Return what an open leaves on a channel."""
    return channel.state, channel.rings, channel.irq_requested, channel.gpadl, channel.gone or channel._callback_handle


def gpadl_range(guest: Guest, handle: int) -> GpaRange:
    """Return the one range of a GPADL that the host has taken."""
    (pages,) = guest.host.gpadls[handle].ranges()
    return pages
