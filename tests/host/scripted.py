"""A guest by script: it posts messages and reads what comes back, with nothing of ``vmbusirq/vmbus``."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.host.channel import HostChannel
from vmbusirq.host.device import HostDevice
from vmbusirq.host.options import HostOptions
from vmbusirq.host.server import HostBus
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.vmbus.synic import GuestSynic
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import (
    FIRST_GPADL_HANDLE,
    Direction,
    FeatureFlags,
    GpadlCreated,
    GpaRange,
    InitiateContact,
    Message,
    MessageType,
    OfferChannel,
    OpenChannel,
    RequestOffers,
    Version,
    VersionResponse,
    decode,
    encode,
    gpadl_messages,
    signal_connection_id,
)
from vmbusirq.wire.ring import RingMemory, RingReader, RingWriter

M = TypeVar("M", bound=Message)

NIC = CLASS_IDS["netvsc"]
MEMORY_BYTES = 1 << 30


def guid(number: int) -> UUID:
    return UUID(int=number << 64 | 0xACE)


@dataclass
class GuestRings:
    """The guest's ends of a channel's rings, and the pages they lie in."""

    gpadl: int
    pfns: range
    split: int
    out_ring: RingMemory
    in_ring: RingMemory
    writer: RingWriter
    reader: RingReader


@dataclass
class Rig:
    """A host, its partition, and a guest that does what it is told."""

    version: Version = Version.V5_3
    host_version: Version = Version.V5_3
    options: HostOptions = field(default_factory=HostOptions)
    cpus: int = 4

    def __post_init__(self) -> None:
        self.log: list[str] = []
        self.received: list[tuple[int, bytes]] = []  # by VP
        self.core = Core(self.cpus, nr_irqs_max=1)
        self._callback = ffi.callback("void(struct vi_cpu *, const struct vi_message *)", self._on_message)
        lib.vi_machine_set_hooks(self.core.handle, ffi.new("struct vi_hooks *", {"message": self._callback}))
        self.memory = GuestMemory(MEMORY_BYTES)
        self.partition = Partition(self.core, self.memory)
        for cpu in range(self.cpus):
            GuestSynic(self.partition).enable(cpu)
        options = replace(self.options, log=self.log.append)
        self.bus = HostBus(self.partition, version=self.host_version, options=options)
        self.features = FeatureFlags.NONE
        self.msg_conn_id = 1
        self.next_gpadl = FIRST_GPADL_HANDLE
        self.hooks: list[Callable[[bytes], object]] = []

    def _on_message(self, cpu: Any, message: Any) -> None:
        self.received.append((int(lib.vi_cpu_id(cpu)), bytes(ffi.buffer(message.payload, message.payload_size))))

    # ---- messages

    def run(self) -> None:
        """Let everything happen that takes no time."""
        self.partition.settle()

    def post(self, payload: bytes, connection_id: int | None = None) -> HvStatus:
        return self.partition.hv_post_message(self.msg_conn_id if connection_id is None else connection_id, 1, payload)

    def send(self, *messages: Message) -> list[Message]:
        """Post messages one after the other, and return what the host says to all of them."""
        self.take()
        for message in messages:
            assert HvStatus.SUCCESS == self.post(encode(message, self.version, self.features))
            self.run()
        return self.take()

    def take(self) -> list[Message]:
        """What came since the last call."""
        self.run()
        payloads, self.received = self.received, []
        return [decode(payload, self.version, Direction.TO_GUEST, self.features) for _vp, payload in payloads]

    def wait(self, ticks: int) -> list[Message]:
        """Let time pass."""
        self.partition.clock.advance(ticks)
        return self.take()

    def one(self, kind: type[M], messages: Sequence[Message]) -> M:
        assert [kind] == [type(message) for message in messages], (messages, self.log)
        (message,) = messages
        assert isinstance(message, kind)
        return message

    # ---- the usual course

    def device(self, number: int = 1, **more: Any) -> HostDevice:
        vsp = GenericVsp(f"dev{number}", NIC, max_sub_channels=more.pop("max_sub_channels", 4))
        return self.bus.add_device(vsp, guid(number), name=f"dev{number}", **more)

    def contact_message(self, version: int | None = None, **more: Any) -> InitiateContact:
        number = self.version if version is None else version
        fields = {"target_vcpu": 0, "monitor_page1": 0, "monitor_page2": 0}
        fields["interrupt_page"] = InitiateContact.target(features=self.features) if number >= Version.V5_0 else 0
        return InitiateContact(number, **(fields | more))

    def contact(self, version: int | None = None, **more: Any) -> VersionResponse:
        """Negotiate, and go on by the connection id that the host gives."""
        message = self.contact_message(version, **more)
        known = Version.find(message.version)
        self.take()
        by = 4 if message.version >= Version.V5_0 else 1
        assert HvStatus.SUCCESS == self.post(encode(message, known), by)
        response = self.one(VersionResponse, self.take())
        if known is not None and known >= Version.V5_0 and response.version_supported:
            self.msg_conn_id = response.msg_conn_id
        elif response.version_supported:
            self.msg_conn_id = 1
        return response

    def connect(self) -> list[OfferChannel]:
        """Negotiate and ask for offers."""
        assert 1 == self.contact().version_supported
        messages = self.send(RequestOffers())
        assert MessageType.ALLOFFERS_DELIVERED == messages[-1].msgtype
        return [message for message in messages if isinstance(message, OfferChannel)]

    def gpadl(self, relid: int, pfns: Sequence[int]) -> tuple[int, int]:
        """Establish a GPADL; return its handle and the host's status."""
        handle, self.next_gpadl = self.next_gpadl, self.next_gpadl + 1
        answers = self.send(*gpadl_messages(relid, handle, [GpaRange.of_pages(pfns)]))
        created = self.one(GpadlCreated, answers)
        assert (relid, handle) == (created.child_relid, created.gpadl)
        return handle, created.creation_status

    def rings(self, relid: int, pages: int = 4) -> GuestRings:
        """Make rings of ``pages`` pages each and give them to the host."""
        first = self.memory.alloc(2 * pages)
        pfns = range(first, first + 2 * pages)
        out_ring, in_ring = (
            RingMemory.map(self.memory.fd, pfns[:pages]),
            RingMemory.map(self.memory.fd, pfns[pages:]),
        )
        out_ring.reset()
        in_ring.reset()
        handle, status = self.gpadl(relid, pfns)
        assert 0 == status, self.log
        return GuestRings(handle, pfns, pages, out_ring, in_ring, RingWriter(out_ring), RingReader(in_ring))

    def open_message(self, relid: int, rings: GuestRings, vp: int = 0, **more: Any) -> OpenChannel:
        return OpenChannel(relid, relid, rings.gpadl, vp, rings.split, **more)

    def open(self, relid: int, vp: int = 0, pages: int = 4) -> GuestRings:
        """Open a channel, and see that it worked."""
        rings = self.rings(relid, pages)
        (result,) = self.send(self.open_message(relid, rings, vp))
        assert (MessageType.OPENCHANNEL_RESULT, 0) == (result.msgtype, result.status)  # type: ignore[attr-defined]
        return rings

    def channel(self, relid: int) -> HostChannel:
        channel = self.bus.default.channel(relid)
        assert channel is not None
        return channel

    # ---- packets

    def signal(self, relid: int) -> HvStatus:
        return self.partition.hv_signal_event(signal_connection_id(relid))

    def write(self, relid: int, rings: GuestRings, *packets: Packet) -> None:
        """Write packets and signal by the ring's rule."""
        for packet in packets:
            if rings.writer.write(packet):
                self.signal(relid)

    def read(self, relid: int, rings: GuestRings, most: int = 1 << 20) -> list[Packet]:
        """Read packets and signal by the ring's rule."""
        found: list[Packet] = []
        packet = rings.reader.first()
        while packet is not None:
            found.append(packet)
            if len(found) >= most:
                rings.reader.skip()
                break
            packet = rings.reader.next()
        if rings.reader.close():
            self.signal(relid)
        return found


def raw(msgtype: int, *words: int) -> bytes:
    """A message from numbers of 32 bits."""
    return struct.pack(f"<II{len(words)}I", msgtype, 0, *words)
