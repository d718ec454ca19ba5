"""A guest with a scripted host: no host/ import, so that what is tested is the guest alone.

The script answers what it is not told to keep to itself; every message that the guest posted is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID, uuid5

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.designs import DESIGNS
from vmbusirq.hyperv.partition import Partition
from vmbusirq.irq import IrqCore
from vmbusirq.log import Log
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.context import GuestOptions
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.protocol import (
    STATUS_SUCCESS,
    AllOffersDelivered,
    Direction,
    GpadlAssembly,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    InitiateContact,
    Message,
    ModifyChannel,
    ModifyChannelResponse,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
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
from vmbusirq.wire.ring import RingMemory

INSTANCES = UUID("6e0c1a52-3f1f-4b0e-9d6b-1f8a2f4c9b11")


def instance(name: str) -> UUID:
    """Return the instance GUID of a device that a test names."""
    return uuid5(INSTANCES, name)


def offer_of(device_class: str, relid: int, name: str = "d", sub: int = 0, **fields: Any) -> OfferChannel:
    """Return the offer of a channel."""
    if_type = fields.pop("if_type", CLASS_IDS.get(device_class, INSTANCES))
    return OfferChannel(if_type, instance(name), relid, signal_connection_id(relid), sub, **fields)


class ScriptedHost:
    """Answers as a host does, from a list of what it is to do differently.

    Attributes:
        version: the newest version that it speaks.
        got: every message of the guest, in order.
        mute: types of the guest's messages that get no answer.
        status: answers other than success, by the type of the guest's message.
        offers: what REQUESTOFFERS brings.
        rings: of open channels, (in, out), mapped from what the guest shared.
    """

    def __init__(self, partition: Partition, version: Version = Version.V5_3) -> None:
        self.partition = partition
        self.version = version
        self.agreed: Version | None = None
        self.got: list[Message] = []
        self.mute: set[type[Message]] = set()
        self.status: dict[type[Message], int] = {}
        self.offers: list[OfferChannel] = []
        self.targets: dict[int, int] = {}
        self.rings: dict[int, tuple[RingMemory, RingMemory]] = {}
        self._gpadls: dict[int, GpadlAssembly] = {}
        self.port = partition.create_message_port(1)
        partition.connect(1, 1)
        if version >= Version.V5_0:
            partition.connect(4, 1)
        partition.add_pump(self.pump)

    def pump(self) -> bool:
        moved = False
        while (payload := self.port.receive()) is not None:
            message = decode(payload, self.agreed or Version.V5_3, Direction.TO_HOST)
            self.got.append(message)
            moved = True
            if type(message) not in self.mute:
                self._answer(message)
        return moved

    def post(self, message: Message) -> None:
        self.partition.post_to_guest(0, encode(message, self.agreed or Version.V5_3))

    def raw(self, payload: bytes, vp: int = 0) -> None:
        self.partition.post_to_guest(vp, payload)

    def of_type(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.got if isinstance(message, kind)]

    def _answer(self, message: Message) -> None:
        status = self.status.get(type(message), STATUS_SUCCESS)
        match message:
            case InitiateContact():
                ok = message.version <= self.version
                self.agreed = Version(message.version) if ok else None
                new = message.version >= Version.V5_0
                self.partition.post_to_guest(
                    0, encode(VersionResponse(int(ok), 0, 1 if new else message.version), Version(message.version))
                )
            case RequestOffers():
                for offer in self.offers:
                    self.post(offer)
                self.post(AllOffersDelivered())
            case GpadlHeader():
                self._gpadls[message.gpadl] = GpadlAssembly(message)
                self._created(message.gpadl, status)
            case GpadlBody():
                self._gpadls[message.gpadl].add(message)
                self._created(message.gpadl, status)
            case GpadlTeardown():
                self.post(GpadlTorndown(message.gpadl))
            case OpenChannel():
                if not status:
                    self._opened(message)
                self.post(OpenChannelResult(message.child_relid, message.openid, status))
            case ModifyChannel():
                self.targets[message.child_relid] = message.target_vp
                if self.agreed == Version.V5_3:
                    self.post(ModifyChannelResponse(message.child_relid, status))
            case Unload():
                self.post(UnloadResponse())

    def _created(self, gpadl: int, status: int) -> None:
        assembly = self._gpadls[gpadl]
        if assembly.complete:
            self.post(GpadlCreated(assembly.child_relid, gpadl, status))

    def _opened(self, message: OpenChannel) -> None:
        (pages,) = self._gpadls[message.ringbuffer_gpadlhandle].ranges()
        half = message.downstream_ringbuffer_pageoffset
        out, inward = (
            RingMemory.map(self.partition.memory.fd, pfns) for pfns in (pages.pfns[:half], pages.pfns[half:])
        )
        self.rings[message.child_relid] = inward, out
        self.targets[message.child_relid] = message.target_vp

    def rescind(self, relid: int) -> None:
        self.post(RescindChannelOffer(relid))


class Guest:
    """A guest with 4 CPUs, a partition, and a scripted host."""

    def __init__(
        self,
        design: str = "rfc",
        *,
        cpus: int = 4,
        nodes: Iterable[int] | None = None,
        version: Version = Version.V5_3,
        engine: str = "fast",
        connect: bool = True,
        offers: Iterable[OfferChannel] = (),
        **options: Any,
    ) -> None:
        record = DESIGNS[design]
        self.core = Core(cpus, hyp_count=record.hyp_count, channel_irqs=record.channel_irqs, engine=engine)
        self.partition = Partition(self.core)
        self.synic = self.partition.synic
        self.log = Log(lambda: self.core.now)
        self.irq = IrqCore(self.core.handle, nr_cpus=cpus, nr_irqs=456, dynirq_base=24, log=self.log)
        self.host = ScriptedHost(self.partition, version)
        self.host.offers = list(offers)
        self.vmbus = VmbusConnection(
            self.core,
            self.irq,
            self.partition,
            record,
            nodes=list(nodes or [(1 << cpus) - 1]),
            options=GuestOptions(**options),
        )
        self.vmbus.synic_init(range(cpus))
        if connect:
            self.vmbus.connect()
            self.settle()

    def settle(self) -> None:
        self.partition.settle()
        self.irq.reraise()

    def offered(self, device_class: str = "", relid: int = 5, name: str = "d", sub: int = 0, **fields: Any) -> Channel:
        """Offer a channel and return it; without a class nobody binds it."""
        self.host.post(offer_of(device_class, relid, name, sub, **fields))
        self.settle()
        return self.vmbus.channels[relid]

    def hostile_message(self, msgtype: int, size: int, payload: bytes = b"") -> None:
        """Put a message into CPU 0's slot as a host can that keeps to no rule, its size field included."""
        slot = lib.vi_synic_slot(self.core.handle, 0, 2)
        body = msgtype.to_bytes(4, "little") + bytes(4) + payload
        ffi.memmove(slot.payload, body, len(body))
        slot.payload_size = size
        slot.type = lib.VI_MSG_VMBUS
