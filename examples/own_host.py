"""Check a guest of VMBus with a host of one's own, which answers the guest driver without any ``HostBus``.

This host speaks whatever version it is asked for, offers a keyboard, and sends it one packet that wants a completion.
The guest is the whole driver: it negotiates, maps the relid to an IRQ, shares its rings and binds hyperv_keyboard. A
guest of your own can stand in its place if it posts to the partition's connections.

    $ .venv/bin/python examples/own_host.py
    guest: InitiateContact RequestOffers GpadlHeader OpenChannel
    relid 7 is irq 24, hyperv_keyboard has it
    sent 1 packet: 1 interrupt on cpu 0, completed: b'a key!!!'
    guest: RelidReleased
    irq 24 is gone, and all but 8 pages of the guest's memory
"""

from __future__ import annotations

from uuid import UUID

from vmbusirq import DESIGNS
from vmbusirq.core import Core
from vmbusirq.hyperv.partition import Partition
from vmbusirq.irq import IrqCore
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.wire import protocol as vmbus
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.packet import COMPLETION_REQUESTED, Packet
from vmbusirq.wire.ring import RingMemory, RingReader, RingWriter

RELID = 7
OFFER = vmbus.OfferChannel(CLASS_IDS["keyboard"], UUID(int=1), RELID, vmbus.signal_connection_id(RELID))


class OwnHost:
    """Receives at one port; whoever asks for a version gets it."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.heard: list[str] = []
        self.port = partition.create_message_port(1)
        for connection_id in (vmbus.VMBUS_MESSAGE_CONNECTION_ID, vmbus.VMBUS_MESSAGE_CONNECTION_ID_4):
            partition.connect(connection_id, 1)
        partition.add_pump(self.pump)

    def pump(self) -> bool:
        """Take one message, if there is one."""
        payload = self.port.receive()
        if payload is not None:
            message = vmbus.decode(payload, vmbus.Version.V5_3, vmbus.Direction.TO_HOST)
            self.heard.append(type(message).__name__)
            self.answer(message)
        return payload is not None

    def answer(self, message: vmbus.Message) -> None:
        """Say yes to everything."""
        match message:
            case vmbus.InitiateContact():
                self.post(vmbus.VersionResponse(1, 0, vmbus.VMBUS_MESSAGE_CONNECTION_ID_4))
            case vmbus.RequestOffers():
                self.post(OFFER)
                self.post(vmbus.AllOffersDelivered())
            case vmbus.GpadlHeader():
                (self.pages,) = vmbus.GpadlAssembly(message).ranges()
                self.post(vmbus.GpadlCreated(RELID, message.gpadl, 0))
            case vmbus.OpenChannel():
                split, fd = message.downstream_ringbuffer_pageoffset, self.partition.memory.fd
                self.out = RingMemory.map(fd, self.pages.pfns[:split])
                self.inward = RingMemory.map(fd, self.pages.pfns[split:])
                self.post(vmbus.OpenChannelResult(RELID, message.openid, 0))

    def post(self, message: vmbus.Message) -> None:
        """Post a message to VP 0."""
        self.partition.post_to_guest(0, vmbus.encode(message, vmbus.Version.V5_3))


def main() -> None:
    """Let the guest connect, send a packet, take the device away."""
    core = Core(nr_cpus=2)
    partition, irq = Partition(core), IrqCore(core.handle, nr_cpus=2, nr_irqs=2500, dynirq_base=24)
    host = OwnHost(partition)
    guest = VmbusConnection(core, irq, partition, DESIGNS["rfc"], nodes=[0b11])
    partition.add_check(irq.reraise)  # what a callback raised comes out of settle()
    guest.synic_init([0, 1])

    guest.connect()
    partition.settle()
    print("guest:", *host.heard)
    channel = guest.channels[RELID]
    assert channel.device is not None
    assert channel.device.driver is not None
    print(f"relid {RELID} is irq {channel.irq}, {channel.device.driver.name} has it")

    if RingWriter(host.inward).write(Packet(b"a key!!!", flags=COMPLETION_REQUESTED, trans_id=1)):
        partition.synic.signal(cpu=0, flag=RELID)
    partition.settle()
    answer = RingReader(host.out).first()
    assert answer is not None
    print(f"sent 1 packet: {irq.counts[channel.irq, 0]} interrupt on cpu 0, completed: {answer.payload!r}")

    host.heard.clear()
    number = channel.irq
    host.post(vmbus.RescindChannelOffer(RELID))
    partition.settle()
    print("guest:", *host.heard)
    assert number not in irq.descs
    print(f"irq {number} is gone, and all but {partition.memory.allocated_pages} pages of the guest's memory")


if __name__ == "__main__":
    main()
