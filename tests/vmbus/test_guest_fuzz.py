"""A generated corpus of host messages and ring contents: the guest logs, drops, and goes on.

The generator's seed is printed with a failure (``--seed``); the corpus is the same for the same seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.vmbus.scripted import Guest, offer_of
from vmbusirq.errors import IrqError
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import MESSAGES, Direction

CLASSES = {"heartbeat": 1, "scsi": 2, "netvsc": 3, "keyboard": 4, "shutdown": 5, "timesync": 6}
INTERESTING = (0, 1, 2, 3, 5, 0x7F, 0xFF, 0xFFFF, 2047, 2048, 0xE1E10, 0xE1E11, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
INDICES = (0, 1, 7, 8, 16, 4088, 4096, 12280, 12288, 0x7FFF_FFF8, 0xFFFF_FFF8, 0xFFFF_FFFF)
FIELDS = ("write_index", "read_index", "interrupt_mask", "pending_send_sz", "feature_bits")


def messages(draw: random.Random, count: int) -> Iterator[bytes]:
    """Yield messages: known types of either direction with words that matter, cut, lengthened, or mere noise."""
    kinds = list(MESSAGES.values())
    template = [bytes(kind.wire.size) for kind in kinds]
    for _ in range(count):
        choice = draw.randrange(10)
        if choice == 0:
            yield draw.randbytes(draw.randrange(241))
            continue
        n = draw.randrange(len(kinds))
        to_guest = kinds[n].wire.direction is Direction.TO_GUEST
        payload = bytearray(draw.randbytes(len(template[n])) if choice == 1 or not to_guest else template[n])
        payload[0:4] = int(kinds[n].wire.msgtype).to_bytes(4, "little")
        for at in range(8, len(payload) - 3, 4):
            if draw.randrange(3):
                payload[at : at + 4] = draw.choice(INTERESTING).to_bytes(4, "little")
        if choice == 2:
            del payload[draw.randrange(len(payload)) :]
        elif choice == 3:
            payload += draw.randbytes(draw.randrange(241 - len(payload)))
        yield bytes(payload)


def boot(engine: str, design: str) -> Guest:
    offers = [offer_of(name, relid, name) for name, relid in CLASSES.items()]
    guest = Guest(design, engine=engine, offers=offers)
    assert all(channel.state is ChannelState.OPENED for channel in guest.vmbus.channels.values())
    return guest


def works(guest: Guest) -> bool:
    """True if a new device comes, gets a packet, sends one, and goes."""
    guest.host.instances.clear()
    relid = next(n for n in range(100, 2048) if n not in guest.vmbus.channels)
    channel = guest.opened("keyboard", relid, f"new{relid}")
    guest.host.write(relid, Packet(b"key"))
    guest.settle()
    channel.send(b"led")
    ok = channel.stats.packets == 1
    guest.host.rescind(relid)
    guest.settle()
    return ok and channel.gone


@pytest.mark.parametrize("design", ["rfc", "legacy"])
@pytest.mark.parametrize("engine", ["fast", "linux"])
@pytest.mark.parametrize("part", range(4))
def test_no_message_of_the_host_harms(engine: str, design: str, part: int, seed: int) -> None:
    """Bad input: no crash, no hang, no leak; every slot is freed; the guest goes on working."""
    draw = random.Random(f"{seed}/{engine}/{design}/{part}")
    guest = boot(engine, design)
    guest.vmbus.control.traces = lambda _: None  # tracepoints see the same bytes
    for payload in messages(draw, 400):
        guest.host.raw(payload, vp=draw.choice((0, 0, 0, 3)))
        if draw.randrange(3) == 0:
            guest.settle()
    guest.settle()
    assert 0 == guest.partition.messages_waiting
    assert all(guest.synic.take_message(cpu) is None for cpu in range(4))
    assert [] == guest.vmbus.work.stuck
    assert guest.pages_in_use() == guest.pages_allocated
    assert 0 == guest.vmbus.manager.offers_in_progress
    assert works(guest)
    assert len(guest.log) < 3000


@pytest.mark.parametrize("part", range(4))
def test_no_message_harms_while_an_operation_waits(part: int, seed: int) -> None:
    """The same while opens and closes are on their way, answered by chance or not."""
    draw = random.Random(f"{seed}/{part}")
    guest = Guest(drivers=False)
    for relid in (1, 2, 3):
        guest.offered("heartbeat", relid, f"d{relid}")
    for payload in messages(draw, 150):
        guest.host.raw(payload)
        live = list(guest.vmbus.channels.values())
        if live and draw.randrange(2):
            channel = draw.choice(live)
            action = guest.vmbus.open if channel.state is ChannelState.OPEN else guest.vmbus.close
            with suppress(IrqError):
                action(channel)
    guest.settle()
    assert [] == guest.vmbus.control.requests
    assert guest.pages_in_use() == guest.pages_allocated
    for relid in tuple(guest.vmbus.channels):
        guest.host.rescind(relid)
    guest.settle()
    assert {} == dict(guest.vmbus.channels)
    assert 3 + guest.vmbus.stranded_pages == guest.pages_allocated


def corrupt(draw: random.Random, guest: Guest, relid: int) -> None:
    for ring in guest.host.rings[relid]:
        for _ in range(draw.randrange(6)):
            header = b"".join(
                draw.choice((0, 1, 2, 3, 6, 7, 9, 11, 15, 0xFFFF)).to_bytes(2, "little") for _ in range(4)
            )
            at = draw.randrange(0, ring.data_size - 256, 8)
            ring.poke(at, header + draw.randbytes(draw.randrange(0, 200)))
        for field in FIELDS:
            if draw.randrange(3) == 0:
                choices = (*INDICES, ring.data_size, ring.data_size - 8, draw.randrange(1 << 32))
                ring.poke_control(field, draw.choice(choices))


@pytest.mark.parametrize("engine", ["fast", "linux"])
@pytest.mark.parametrize("name", CLASSES)
def test_no_contents_of_a_ring_harm(engine: str, name: str, seed: int) -> None:
    """Indices out of range or misaligned, lengths past the ring, types that are none (vmbus.md 1.15, trap 27).

    A write index outside the in ring, or between its units of 8, is never reached: there is nothing to read then.
    """
    draw = random.Random(f"{seed}/{engine}/{name}")
    guest = boot(engine, "rfc")
    relid = CLASSES[name]
    for _ in range(60):
        corrupt(draw, guest, relid)
        with suppress(IrqError):
            guest.host.signal(relid)
        guest.settle()
        with suppress(IrqError):
            guest.vmbus.channels[relid].send(draw.randbytes(draw.randrange(3000)))
        for ring in guest.host.rings[relid]:  # and a moment of sense
            ring.poke_control("write_index", 0)
            ring.poke_control("read_index", 0)
            ring.poke_control("interrupt_mask", 0)
        guest.settle()
    guest.host.rescind(relid)
    guest.settle()
    assert relid not in guest.vmbus.channels
    assert guest.pages_in_use() == guest.pages_allocated
    others = [other for other in CLASSES.values() if other != relid]
    for other in others:
        guest.host.write(other, Packet(b"x" * 40))
    guest.settle()
    assert all(guest.vmbus.channels[other].stats.interrupts == 1 for other in others)


def test_the_corpus_is_the_same_for_the_same_seed() -> None:
    """A failure can be repeated."""
    first, second = (list(messages(random.Random(7), 200)) for _ in range(2))
    assert first == second
    assert {int.from_bytes(payload[:4], "little") for payload in first} >= set(range(25)) - {0}
