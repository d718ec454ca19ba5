"""A guest that keeps to no rule: the host logs, drops, answers, and never raises, leaks or forgets who it is.

A hypothesis state machine plays guest and host at once; a generated corpus of mutated messages goes on for longer.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.host.scripted import MEMORY_BYTES, Rig, guid, raw
from vmbusirq.errors import IrqError
from vmbusirq.host.channel import ChannelState
from vmbusirq.host.options import HostOptions
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.wire.packet import COMPLETION_REQUESTED, Packet
from vmbusirq.wire.protocol import (
    HEADER_SIZE,
    LINUX_VERSIONS,
    MESSAGES,
    CloseChannel,
    Direction,
    GpadlBody,
    GpadlHeader,
    GpadlTeardown,
    GpaRange,
    InitiateContact,
    Message,
    MessageType,
    OpenChannel,
    RequestOffers,
    TlConnectRequest,
    Unload,
    UnloadResponse,
    Version,
    encode,
    gpadl_messages,
    vsock_service_id,
)
from vmbusirq.wire.ring import RingMemory, RingWriter

SERVICE = vsock_service_id(1)
RELIDS = st.integers(0, 8) | st.sampled_from([2047, 2048, 0xFFFFFFFF])
HANDLES = st.integers(1, 5)
VPS = st.integers(0, 4) | st.just(0xFFFFFFFF)
OPTIONS = st.builds(
    HostOptions,
    modify_delay_ticks=st.sampled_from([0, 7]),
    open_delay_ticks=st.sampled_from([0, 5]),
    close_delay_ticks=st.sampled_from([0, 5]),
    gpadl_delay_ticks=st.sampled_from([0, 3]),
    gpadl_quota_bytes=st.sampled_from([64 * 4096, None]),
    throttle_after=st.sampled_from([None, 4]),
)
UNASKED = (MessageType.OFFERCHANNEL, MessageType.RESCIND_CHANNELOFFER)


def ring_mappings(rig: Rig) -> int:
    """Mappings of the rig's guest memory in this process, the one of all of it left out."""
    inode = str(os.fstat(rig.memory.fd).st_ino)
    return sum(line.split()[4] == inode for line in Path("/proc/self/maps").read_text().splitlines()) - 1


def check_relids(rig: Rig) -> None:
    """Each relid is one channel's, and every channel knows its own."""
    for connection in rig.bus.connections:
        assert all(channel.relid == relid for relid, channel in connection.relids.items())
        channels = list(connection.relids.values())
        assert len(channels) == len(set(channels))
        assert all(1 <= relid <= 2047 for relid in connection.relids)
        assert all((channel.rings is not None) == (channel.state is ChannelState.OPEN) for channel in channels)


def check_nothing_is_left(rig: Rig) -> None:
    """After UNLOAD all memory is the guest's again."""
    rig.partition.clock.advance(100_000_000)
    rig.run()
    rig.bus.default.contact(InitiateContact(Version.V5_3, 0, InitiateContact.target(), 0, 0))
    for _ in range(2):  # a channel closes, then its memory is let go of
        rig.partition.clock.advance(1000)
        rig.run()
    assert (0, 0) == (rig.bus.quota.used_bytes, len(rig.bus.default.gpadls))
    assert {} == dict(rig.bus.default.relids)
    assert all(not channel.is_open for device in rig.bus.devices for channel in device.all_channels)
    assert 0 == ring_mappings(rig)


class LyingGuest(RuleBasedStateMachine):
    """Whatever a guest can do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.posted = self.answered = 0
        self.devices = 0

    @initialize(options=OPTIONS, version=st.sampled_from(LINUX_VERSIONS))
    def boot(self, options: HostOptions, version: Version) -> None:
        self.rig = Rig(version=version, options=options)
        self.first = self.rig.memory.alloc(64)
        for _ in range(4):
            self.add_device()
        self.rig.bus.hv_sock.listen(SERVICE, lambda _endpoint: GenericVsp("sock", SERVICE))
        self.rig.connect()
        self.posted = self.rig.bus.messages_posted

    def say(self, *messages: Message) -> None:
        for message in messages:
            try:
                payload = encode(message, self.rig.version)
            except OSError:
                return  # this version has no such message
            self.say_raw(payload, self.rig.msg_conn_id)

    def say_raw(self, payload: bytes, connection_id: int) -> None:
        status = self.rig.post(payload, connection_id)
        self.posted += status == HvStatus.SUCCESS
        self.rig.run()

    # ---- the guest

    @rule(
        version=st.sampled_from([*LINUX_VERSIONS, 0, 0x60000]),
        vp=VPS,
        sint=st.sampled_from([2, 2, 2, 0, 5, 16]),
        pages=st.sampled_from([(0, 0), (4096, 8192), (4096, 0), (4096, MEMORY_BYTES)]),
        by=st.sampled_from([1, 4]),
    )
    def contact(self, version: int, vp: int, sint: int, pages: tuple[int, int], by: int) -> None:
        target = InitiateContact.target(msg_sint=sint)
        message = InitiateContact(version, vp, target, *pages)
        self.say_raw(encode(message, Version.find(version)), by)
        if self.rig.bus.default.is_connected:
            agreed = self.rig.bus.default.version
            assert agreed is not None
            self.rig.version = agreed
            self.rig.msg_conn_id = self.rig.bus.default.msg_conn_id if agreed >= Version.V5_0 else 1
            self.say(RequestOffers())

    @rule(kind=st.sampled_from([RequestOffers, Unload]))
    def whole_connection(self, kind: type[Message]) -> None:
        self.say(kind())

    @rule(relid=RELIDS, handle=HANDLES, pages=st.integers(1, 60), start=st.integers(0, 40))
    def gpadl(self, relid: int, handle: int, pages: int, start: int) -> None:
        pfns = [self.first + (start + number) % 64 for number in range(pages)]
        self.say(*gpadl_messages(relid, handle, [GpaRange.of_pages(pfns)]))

    @rule(
        relid=RELIDS,
        handle=HANDLES,
        size=st.integers(0, 600),
        count=st.integers(0, 3),
        words=st.lists(st.sampled_from([0, 1, 4096, 8192, 1 << 32, 5 << 32 | 4096, (1 << 64) - 1]), max_size=27),
    )
    def odd_gpadl(self, relid: int, handle: int, size: int, count: int, words: list[int]) -> None:
        self.say(GpadlHeader(relid, handle, size, count, tuple(words)))

    @rule(handle=HANDLES, words=st.lists(st.integers(0, 70), max_size=28))
    def body(self, handle: int, words: list[int]) -> None:
        self.say(GpadlBody(handle, tuple(words)))

    @rule(relid=RELIDS, handle=HANDLES, vp=VPS, split=st.integers(0, 61))
    def open(self, relid: int, handle: int, vp: int, split: int) -> None:
        self.say(OpenChannel(relid, relid, handle, vp, split))

    @rule(relid=st.integers(1, 6), handle=HANDLES, vp=st.integers(0, 3), start=st.integers(0, 50), reset=st.booleans())
    def open_well(self, relid: int, handle: int, vp: int, start: int, reset: bool) -> None:
        """As an honest guest would, unless the pages are in use already: rings may lie over one another."""
        relids = [number for number, channel in self.rig.bus.default.relids.items() if channel.is_offered]
        relid = relids[relid % len(relids)] if relids else relid
        pfns = [self.first + (start + number) % 64 for number in range(8)]
        for header in (pfns[0], pfns[4]) if reset else ():
            self.rig.memory.write(header * 4096, bytes(64) + b"\1")
        self.say(*gpadl_messages(relid, handle, [GpaRange.of_pages(pfns)]))
        self.rig.partition.clock.advance(3)
        self.rig.run()
        self.say(OpenChannel(relid, relid, handle, vp, 4))

    @rule(relid=st.integers(1, 6), wants=st.booleans(), packets=st.integers(1, 90))
    def guest_writes(self, relid: int, wants: bool, packets: int) -> None:
        """Packets in the out ring of an open channel, by the rules."""
        channels = list(self.rig.bus.channels.values())
        if not channels:
            return
        channel = channels[relid % len(channels)]
        assert channel.ring_gpadl is not None
        relid = channel.relid
        with RingMemory.map(self.rig.memory.fd, channel.ring_gpadl.ranges[0].pfns[:4]) as ring:
            try:
                writer = RingWriter(ring, strict=True)
                for number in range(packets):
                    writer.write(Packet(b"12345678", flags=int(wants), trans_id=number))
            except IrqError:
                pass  # full, or scribbled upon
        self.rig.signal(relid)
        self.rig.run()

    @rule(
        kind=st.sampled_from(["close", "release", "teardown", "modify", "reserved", "close_reserved"]),
        relid=RELIDS,
        handle=HANDLES,
        vp=VPS,
    )
    def about_a_channel(self, kind: str, relid: int, handle: int, vp: int) -> None:
        payload = {
            "close": raw(MessageType.CLOSECHANNEL, relid),
            "release": raw(MessageType.RELID_RELEASED, relid),
            "teardown": raw(MessageType.GPADL_TEARDOWN, relid, handle),
            "modify": raw(MessageType.MODIFYCHANNEL, relid, vp),
            "reserved": raw(MessageType.OPEN_RESERVED_CHANNEL, relid, vp, 2, handle, 3),
            "close_reserved": raw(MessageType.CLOSE_RESERVED_CHANNEL, relid, vp, 2),
        }[kind]
        self.say_raw(payload, self.rig.msg_conn_id)

    @rule(endpoint=st.integers(0, 3), known=st.booleans())
    def tl_connect(self, endpoint: int, known: bool) -> None:
        self.say(TlConnectRequest(guid(1000 + endpoint), SERVICE if known else guid(1)))

    @rule(payload=st.binary(max_size=240), by=st.sampled_from([1, 4, 0x24, 0]))
    def noise(self, payload: bytes, by: int) -> None:
        self.say_raw(payload, by)

    @rule(page=st.integers(0, 63), offset=st.sampled_from([0, 4, 8, 12, 64]), value=st.integers(0, 0xFFFFFFFF))
    def scribble(self, page: int, offset: int, value: int) -> None:
        """Write into what may be a ring's control page, then signal everybody."""
        self.rig.memory.write((self.first + page) * 4096 + offset, struct.pack("<I", value))
        for relid in range(1, 9):
            self.rig.signal(relid)
        self.rig.run()

    # ---- the host

    @rule()
    def add_device(self) -> None:
        number = self.devices % 7  # one that was there before may come back
        self.devices += 1
        if self.rig.bus.find_instance(self.rig.bus.default, guid(number)) is None:
            self.rig.device(number)

    @rule(relid=st.integers(1, 8))
    def rescind(self, relid: int) -> None:
        channel = self.rig.bus.default.channel(relid)
        if channel is not None and channel.is_offered:
            self.rig.bus.rescind(relid)

    @rule(count=st.integers(0, 3))
    def sub_channels(self, count: int) -> None:
        for device in self.rig.bus.devices[:1]:
            device.offer_sub_channels(count)

    @rule(relid=st.integers(1, 8), size=st.integers(0, 300), flags=st.sampled_from([0, COMPLETION_REQUESTED]))
    def host_writes(self, relid: int, size: int, flags: int) -> None:
        for channel in list(self.rig.bus.channels.values())[:relid]:
            channel.write(Packet(bytes(size), flags=flags, trans_id=1))

    @rule(ticks=st.integers(1, 10))
    def time_passes(self, ticks: int) -> None:
        self.rig.partition.clock.advance(ticks)
        self.rig.run()

    # ---- what is always true

    @invariant()
    def relids_are_unique(self) -> None:
        check_relids(self.rig)

    @invariant()
    def answers_are_bounded(self) -> None:
        """No message of the guest brings more than one answer, offers and rescinds aside."""
        self.rig.run()
        types = [int.from_bytes(payload[:4], "little") for _vp, payload in self.rig.received]
        self.rig.received.clear()
        self.answered += sum(msgtype not in UNASKED for msgtype in types)
        assert self.answered <= self.posted

    @invariant()
    def the_quota_holds(self) -> None:
        quota = self.rig.bus.quota
        assert 0 <= quota.used_bytes <= quota.limit_bytes
        assert quota.used_bytes == sum(gpadl.charge for gpadl in self.rig.bus.default.gpadls)

    def teardown(self) -> None:
        for relid, channel in tuple(self.rig.bus.default.relids.items()):
            if channel.is_reserved:
                self.rig.post(raw(MessageType.CLOSE_RESERVED_CHANNEL, relid, 0, 2), self.rig.msg_conn_id)
                self.rig.run()
        check_nothing_is_left(self.rig)


TestLyingGuest = LyingGuest.TestCase
TestLyingGuest.settings = settings(max_examples=60, stateful_step_count=40)


def mutations(source: random.Random, version: Version) -> Callable[[], bytes]:
    """A generator of messages that are nearly right: kept as code and a seed, not as files."""
    kinds = [kind for kind in MESSAGES.values() if kind.wire.direction is Direction.TO_HOST]
    small = [0, 1, 2, 3, 4, 5, 7, 8, 16, 24, 0xE1E10, 2047, 2048, 4096, 0x7FFFFFFF, 0xFFFFFFFF]

    def one() -> bytes:
        kind = source.choice(kinds)
        size = max(kind.wire.size, source.choice([0, 0, 56, 156, 240]))
        data = bytearray(size)
        data[:4] = int(kind.wire.msgtype).to_bytes(4, "little")
        for at in range(HEADER_SIZE, min(size, 60) - 3, 4):
            data[at : at + 4] = source.choice(small).to_bytes(4, "little")
        if kind is InitiateContact and source.random() < 0.8:
            data[8:24] = struct.pack("<IIQ", source.choice([version, *LINUX_VERSIONS]), 0, 2)
            data[24:40] = bytes(16)
        for _ in range(source.choice([0, 0, 1, 3])):
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        return bytes(data[: source.choice([len(data)] * 8 + [source.randrange(len(data) + 1)])])

    return one


def test_mutated_messages_do_no_harm(seed: int) -> None:
    """Issue 3, bad input: 6000 messages of each kind of wrong, on every version; the seed is in the report."""
    for version in LINUX_VERSIONS:
        source = random.Random(f"{seed} {version}")
        rig = Rig(version=version, options=HostOptions(gpadl_quota_bytes=1 << 20, modify_delay_ticks=3))
        for number in range(1, 5):
            rig.device(number)
        rig.connect()
        rig.open(1)
        make = mutations(source, version)
        for _ in range(750):
            rig.post(make(), source.choice([1, 4, rig.msg_conn_id, rig.bus.default.msg_conn_id]))
            rig.run()
            if not rig.bus.default.offers_sent and rig.bus.default.is_connected:
                agreed = rig.bus.default.version
                assert agreed is not None
                rig.post(raw(MessageType.REQUESTOFFERS), rig.bus.default.msg_conn_id if agreed >= Version.V5_0 else 1)
            check_relids(rig)
        rig.partition.clock.advance(1000)
        rig.run()
        for relid, channel in tuple(rig.bus.default.relids.items()):
            if channel.is_reserved:
                rig.bus.default.handle(raw(MessageType.CLOSE_RESERVED_CHANNEL, relid, 0, 2))
        rig.run()
        check_nothing_is_left(rig)


def test_a_flood_stops_at_the_ports_buffers() -> None:
    """TLFS: 16 buffers, then INSUFFICIENT_BUFFERS; a guest that reads no answers is not served without end."""
    rig = Rig()
    rig.device()
    rig.connect()
    statuses = [rig.post(raw(MessageType.REQUESTOFFERS)) for _ in range(20)]
    assert [HvStatus.SUCCESS] * 16 + [HvStatus.INSUFFICIENT_BUFFERS] * 4 == statuses
    rig.run()
    rig.partition.suspend_guest(10)
    for handle in range(6000):
        rig.post(raw(MessageType.GPADL_HEADER, 99, handle, 0))
        rig.run()
    assert 4096 >= rig.partition.messages_waiting
    rig.partition.clock.advance(10)
    rig.run()
    assert 0 == rig.partition.messages_waiting
    rig.received.clear()
    rig.one(UnloadResponse, rig.send(Unload()))


def test_scribbled_rings_do_no_harm(seed: int) -> None:
    """vmbus.md 1.15: whatever lies in a ring, even rings that share pages, ends one worker at worst."""
    source = random.Random(seed)
    rig = Rig()
    vsp = rig.device().vsp
    rig.connect()
    first = rig.memory.alloc(8)
    odd = [0, 1, 2, 4, 8, 16, 24, 4096, 12280, 12288, 12296, 0x7FFFFFF8, 0xFFFFFFF8, 0xFFFFFFFF]
    channel = rig.channel(1)
    for round_number in range(150):
        rig.memory.write(first * 4096, bytes(8 * 4096))
        pfns = [first + source.randrange(8) for _ in range(8)] if round_number % 3 == 0 else range(first, first + 8)
        handle, status = rig.gpadl(1, pfns)
        assert 0 == status
        rig.send(OpenChannel(1, 1, handle, 0, 4))
        for _ in range(30):
            for _ in range(source.randrange(4)):
                page = source.choice([0, 0, 1, 4, 5])
                at = source.choice([0, 0, 4, 8, 12, 64] if page in (0, 4) else range(0, 128, 2))
                value = source.choice(odd) if source.random() < 0.5 else source.getrandbits(16) & 0xFFF8
                rig.memory.write((pfns[page]) * 4096 + at, struct.pack("<I", value))
            if page := source.randrange(2):  # a packet that is right, more or less
                packet = struct.pack("<HHHHQ", source.choice([6, 9, 11]), source.choice([2, 3]), page + 3, 1, 7)
                rig.memory.write((pfns[1]) * 4096, packet)
                rig.memory.write(pfns[0] * 4096, struct.pack("<I", source.choice([32, 40, 64])))
            rig.signal(1)
            if channel.is_open and channel.stats.packets < 1 << 40:
                channel.write(Packet(bytes(source.randrange(0, 4000)), trans_id=1))
                rig.bus.send(1, source.randrange(3))
            rig.run()
        rig.send(CloseChannel(1), GpadlTeardown(1, handle))
        assert not channel.is_open
    assert 50 < channel.failures
    assert isinstance(vsp, GenericVsp)
    assert 0 < vsp.packets
    check_nothing_is_left(rig)
