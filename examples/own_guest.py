"""Check a host of VMBus with a guest of one's own, which speaks to ``HostBus`` and to nothing else.

This guest has no driver and no interrupt handler. It posts messages, polls its message slot, shares two rings of two
pages each, sends one packet that wants a completion, and leaves. A host of your own can stand where ``HostBus`` does if
it receives at the partition's ports.

    $ .venv/bin/python examples/own_guest.py
    version 5.3, post to connection 0x24
    relid 1: 5620e0c7-8062-4dce-aeb7-520c7ef76171, signal connection 0x2001
    gpadl 0xe1e10: status 0; open: status 0
    the host signals flags (1,); completion of 42, 0 bytes
    after unload the host knows 0 relids
"""

from __future__ import annotations

from vmbusirq.core import Core
from vmbusirq.host.server import HostBus
from vmbusirq.host.vsp import make_vsp
from vmbusirq.hyperv.partition import Partition
from vmbusirq.steps import Context, Step
from vmbusirq.vmbus.synic import GuestSynic
from vmbusirq.wire import protocol as vmbus
from vmbusirq.wire.devices import INSTANCE_IDS
from vmbusirq.wire.packet import COMPLETION_REQUESTED, Packet
from vmbusirq.wire.ring import RingMemory, RingReader, RingWriter

CPU, VMBUS_MESSAGE, RING_PAGES = 0, 1, 2
POLLING = Step("poll the message slot", Context.HARDIRQ)  # interrupts off: no handler takes the message first


class OwnGuest:
    """Speaks 5.3 and believes its host."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.connection_id = vmbus.VMBUS_MESSAGE_CONNECTION_ID_4

    def say(self, *messages: vmbus.Message) -> list[vmbus.Message]:
        """Post messages and return what the host says until it is quiet."""
        for message in messages:
            self.partition.hv_post_message(self.connection_id, VMBUS_MESSAGE, vmbus.encode(message, vmbus.Version.V5_3))
        heard = []
        while self.partition.idle(POLLING):
            payload = self.partition.synic.take_message(CPU)
            if payload is not None:
                heard.append(vmbus.decode(payload, vmbus.Version.V5_3, vmbus.Direction.TO_GUEST))
        return heard


def main() -> None:
    """Connect, open a channel, exchange a packet, leave."""
    partition = Partition(Core(nr_cpus=1))
    GuestSynic(partition).enable(CPU)
    host = HostBus(partition)
    host.add_device(make_vsp("framebuffer"), INSTANCE_IDS["framebuffer"][0], name="framebuffer")
    guest, memory = OwnGuest(partition), partition.memory

    (response,) = guest.say(vmbus.InitiateContact(vmbus.Version.V5_3, CPU, vmbus.InitiateContact.target(), 0, 0))
    guest.connection_id = response.msg_conn_id
    print(f"version {vmbus.Version.V5_3}, post to connection {guest.connection_id:#x}")
    offer, *_ = guest.say(vmbus.RequestOffers())
    relid = offer.child_relid
    print(f"relid {relid}: {offer.if_instance}, signal connection {offer.connection_id:#x}")

    first = memory.alloc(2 * RING_PAGES)
    pfns = range(first, first + 2 * RING_PAGES)
    out, inward = (RingMemory.map(memory.fd, half) for half in (pfns[:RING_PAGES], pfns[RING_PAGES:]))
    out.reset()
    inward.reset()
    (created,) = guest.say(*vmbus.gpadl_messages(relid, vmbus.FIRST_GPADL_HANDLE, [vmbus.GpaRange.of_pages(pfns)]))
    (result,) = guest.say(vmbus.OpenChannel(relid, relid, created.gpadl, CPU, RING_PAGES))
    print(f"gpadl {created.gpadl:#x}: status {created.creation_status}; open: status {result.status}")

    if RingWriter(out).write(Packet(b"what you like", flags=COMPLETION_REQUESTED, trans_id=42)):
        partition.hv_signal_event(offer.connection_id)
    guest.say()
    answer = RingReader(inward).first()
    print(f"the host signals flags {partition.synic.flags_set(CPU)}", end="; ")
    print(f"completion of {answer.trans_id}, {len(answer.payload)} bytes")

    guest.say(vmbus.CloseChannel(relid), vmbus.GpadlTeardown(relid, created.gpadl), vmbus.Unload())
    print(f"after unload the host knows {len(host.default.relids)} relids")
    out.close()
    inward.close()
    memory.free(first)


if __name__ == "__main__":
    main()
