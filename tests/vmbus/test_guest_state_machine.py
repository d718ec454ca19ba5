"""Any host against any use of the guest: a state machine.

The host offers, re-offers, rescinds, answers, refuses, is silent, answers what nobody asked, cuts and mutates
messages, and writes rubbish into the rings.

After every step: no exception but IrqError out of a public call; the slot is free; descriptors are those of mapped
relids; pages are those of the connection, of open rings, and of rings that a silent host never let go of; counts are
conserved. At the end no mapping is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.vmbus.scripted import CONNECTION_PAGES, Guest, offer_of
from vmbusirq.errors import Hung, IrqError
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import (
    INVALID_RELID,
    STATUS_UNSUCCESSFUL,
    AllOffersDelivered,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    Message,
    MessageType,
    ModifyChannelResponse,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    Unload,
    UnloadResponse,
    Version,
    VersionResponse,
    encode,
)

RELIDS = (1, 2, 3, 4, 5, 2047)
CLASSES = ("heartbeat", "scsi", "keyboard", "shutdown", "")
SILENT: tuple[type[Message], ...] = (GpadlHeader, GpadlTeardown, OpenChannel, Unload)
REFUSED: tuple[type[Message], ...] = (GpadlHeader, OpenChannel)
ANSWERS: dict[MessageType, Callable[..., Message]] = {
    MessageType.GPADL_CREATED: lambda relid, handle: GpadlCreated(relid, handle, STATUS_UNSUCCESSFUL),
    MessageType.GPADL_TORNDOWN: GpadlTorndown,
    MessageType.OPENCHANNEL_RESULT: lambda relid, openid: OpenChannelResult(relid, openid, STATUS_UNSUCCESSFUL),
}
relids = st.sampled_from(RELIDS)
odd_relids = st.sampled_from((0, *RELIDS, 2048, 0xFFFF_FFFF))
names = st.sampled_from(("a", "b", "c"))
seeds = st.integers(0, 1 << 32)


class GuestMachine(RuleBasedStateMachine):
    """The guest, a host without rules, and what must stay true."""

    def __init__(self) -> None:
        super().__init__()
        self.guest: Guest

    @initialize(
        design=st.sampled_from(("rfc", "legacy", "mgmt-irq-hidden")),
        engine=st.sampled_from(("fast", "linux")),
        strict_rfc=st.booleans(),
        version=st.sampled_from((Version.V5_3, Version.V5_0, Version.V4_0, Version.V2_4)),
        drivers=st.booleans(),
    )
    def boot(self, design: str, engine: str, strict_rfc: bool, version: Version, drivers: bool) -> None:
        """Connect to a host that offers two devices."""
        self.guest = Guest(
            design,
            engine=engine,
            strict_rfc=strict_rfc,
            version=version,
            drivers=drivers,
            offers=[offer_of("heartbeat", 1, "a"), offer_of("scsi", 2, "b")],
        )
        self.fixed = len(self.guest.irq.descs) - len(self.mapped())
        self.suspended = False

    # ---- helpers

    def mapped(self) -> set[int]:
        return {channel.irq for channel in self.guest.vmbus.channels.values() if channel.irq}

    def channel(self, relid: int) -> Channel | None:
        return self.guest.vmbus.channels.get(relid)

    def device(self, relid: int) -> HvDevice | None:
        channel = self.channel(relid)
        return channel.device if channel is not None else None

    def settle(self) -> None:
        self.guest.settle()

    # ---- the host, by the rules

    @rule(relid=relids, name=names, device_class=st.sampled_from(CLASSES), sub=st.integers(0, 2))
    def offer(self, relid: int, name: str, device_class: str, sub: int) -> None:
        self.guest.host.post(offer_of(device_class, relid, name, sub))
        self.settle()

    @rule(relid=odd_relids, name=names, sub=st.integers(0, 1), flags=st.sampled_from((0, 0x2000)), seed=seeds)
    def odd_offer(self, relid: int, name: str, sub: int, flags: int, seed: int) -> None:
        draw = random.Random(seed)
        offer = offer_of(
            draw.choice(CLASSES),
            relid,
            name,
            sub,
            chn_flags=flags,
            monitorid=draw.randrange(256),
            monitor_allocated=draw.randrange(2),
            is_dedicated_interrupt=draw.randrange(2),
            connection_id=draw.choice((0, relid % 2048, 0xFF_FFFF, 0xFFFF_FFFF)),
        )
        self.guest.host.post(offer)
        self.settle()

    @rule(relid=odd_relids)
    def rescind(self, relid: int) -> None:
        self.guest.host.rescind(relid)
        self.settle()

    @rule(relid=relids, name=names)
    def offer_and_rescind_in_one_go(self, relid: int, name: str) -> None:
        self.guest.host.post(offer_of("heartbeat", relid, name))
        self.guest.host.rescind(relid)
        self.settle()

    @rule(relid=relids, packets=st.integers(1, 5), signal=st.booleans())
    def host_writes(self, relid: int, packets: int, signal: bool) -> None:
        if relid in self.guest.host.rings:
            with suppress(IrqError, AssertionError):  # full, or its indices are rubbish
                self.guest.host.write(relid, *[Packet(b"x" * 16)] * packets)
        if signal:
            with suppress(IrqError):
                self.guest.synic.signal(self.guest.host.targets.get(relid, 0), relid)
        self.settle()

    # ---- the host, as it is now

    @rule(kind=st.sampled_from(SILENT))
    def go_silent(self, kind: type[Message]) -> None:
        self.guest.host.mute.add(kind)

    @rule(kind=st.sampled_from(REFUSED))
    def refuse(self, kind: type[Message]) -> None:
        self.guest.host.status[kind] = STATUS_UNSUCCESSFUL

    @rule()
    def be_a_good_host_again(self) -> None:
        self.guest.host.mute.clear()
        self.guest.host.status.clear()

    @rule()
    def rescind_while_it_waits(self) -> None:
        """The next open of this host's is answered by a rescind, and only then."""
        host = self.guest.host

        def answer(message: OpenChannel) -> None:
            del host.instead[OpenChannel]
            host.rescind(message.child_relid)
            host.answer(message)

        host.instead[OpenChannel] = answer

    # ---- the host, without rules

    @rule(seed=seeds)
    def answers_that_nobody_asked_for(self, seed: int) -> None:
        draw = random.Random(seed)
        relid, handle = draw.choice((0, *RELIDS, 2048)), 0xE1E10 + draw.randrange(8)
        status = draw.choice((0, STATUS_UNSUCCESSFUL))
        messages: list[Message] = [
            GpadlCreated(relid, handle, status),
            GpadlTorndown(handle),
            OpenChannelResult(relid, relid, status),
            ModifyChannelResponse(relid, status),
            UnloadResponse(),
            VersionResponse(draw.randrange(2), 0, 0x24),
            AllOffersDelivered(),
        ]
        for message in draw.sample(messages, 3):
            self.guest.host.raw(encode(message, Version.V5_3))
        self.settle()

    @rule(seed=seeds)
    def mutated_messages(self, seed: int) -> None:
        draw = random.Random(seed)
        messages: list[Message] = [
            offer_of("heartbeat", draw.choice(RELIDS), "a"),
            GpadlCreated(1, 0xE1E10, 0),
            OpenChannelResult(1, 1, 0),
        ]
        payload = bytearray(encode(draw.choice(messages), Version.V5_3))
        for _ in range(draw.randrange(4)):
            payload[draw.randrange(len(payload))] = draw.randrange(256)
        self.guest.host.raw(bytes(payload[: draw.randrange(len(payload) + 1)] if draw.randrange(2) else payload))
        self.settle()

    @rule(seed=seeds)
    def hostile_slot(self, seed: int) -> None:
        draw = random.Random(seed)
        self.guest.hostile_message(draw.randrange(40), draw.randrange(256), draw.randbytes(draw.randrange(200)))
        self.settle()

    @rule(relid=relids, seed=seeds)
    def corrupt_a_ring(self, relid: int, seed: int) -> None:
        draw = random.Random(seed)
        for ring in self.guest.host.rings.get(relid, ()):
            for _ in range(draw.randrange(4)):
                ring.poke(draw.randrange(ring.data_size - 64) // 8 * 8, draw.randbytes(64))
            if draw.randrange(2):
                field = draw.choice(("write_index", "read_index", "interrupt_mask", "pending_send_sz", "feature_bits"))
                ring.poke_control(field, draw.choice((0, 8, 4096, ring.data_size - 8, ring.data_size, 0xFFFF_FFFF, 3)))
        if relid in self.guest.host.rings:
            with suppress(IrqError):
                self.guest.host.signal(relid)
        self.settle()

    # ---- the guest

    @rule(relid=relids)
    def open(self, relid: int) -> None:
        channel = self.channel(relid)
        if channel is None:
            return
        before = channel.state
        try:
            self.guest.vmbus.open(channel)
            assert before is ChannelState.OPEN
            assert channel.state is ChannelState.OPENED
        except IrqError:
            if before is ChannelState.OPEN:
                assert channel.state is ChannelState.OPEN
                assert channel.rings is None
        self.settle()

    @rule(relid=relids)
    def close(self, relid: int) -> None:
        channel = self.channel(relid)
        if channel is None:
            return
        with suppress(IrqError):
            self.guest.vmbus.close(channel)
        self.settle()

    @rule(relid=relids, size=st.sampled_from((0, 8, 2000)))
    def send(self, relid: int, size: int) -> None:
        channel = self.channel(relid)
        if channel is None:
            return
        with suppress(IrqError):
            channel.send(bytes(size))
        self.settle()

    @rule(relid=relids, mask=st.integers(1, 15))
    def affinity(self, relid: int, mask: int) -> None:
        channel = self.channel(relid)
        if channel is None or not channel.irq:
            return
        with suppress(IrqError):
            self.guest.irq.irq_set_affinity(channel.irq, mask)
        self.settle()

    @rule(relid=relids, text=st.sampled_from((b"0", b"3", b"4", b"", b"-1", b"2x")))
    def store_cpu(self, relid: int, text: bytes) -> None:
        channel = self.channel(relid)
        if channel is None:
            return
        with suppress(IrqError):
            self.guest.vmbus.target_cpu_store(channel, text)
        self.settle()

    @rule(relid=relids)
    def unbind(self, relid: int) -> None:
        device = self.device(relid)
        if device is not None:
            with suppress(IrqError):
                self.guest.vmbus.unbind(device)
        self.settle()

    @rule(relid=relids)
    def bind(self, relid: int) -> None:
        device = self.device(relid)
        if device is not None:
            with suppress(IrqError):
                self.guest.vmbus.bind(device.device_class.driver, device)
        self.settle()

    @precondition(lambda self: not self.suspended)
    @rule()
    def suspend(self) -> None:
        with suppress(IrqError):
            self.guest.vmbus.suspend()
        self.suspended = not self.guest.vmbus.control.connected
        self.settle()

    @precondition(lambda self: self.suspended)
    @rule(shift=st.integers(0, 2), lost=st.integers(0, 3))
    def resume(self, shift: int, lost: int) -> None:
        """The host offers what it had, under other relids; perhaps not all of it."""
        host = self.guest.host
        primaries = [offer for offer in host.instances.values() if not offer.sub_channel_index]
        host.offers = [
            offer_like(offer, RELIDS[(n + shift) % len(RELIDS)]) for n, offer in enumerate(primaries[: len(RELIDS)])
        ][lost if lost < 2 else 0 :]
        host.instances.clear()
        with suppress(IrqError):
            self.guest.vmbus.resume()
        self.suspended = not self.guest.vmbus.control.connected
        self.settle()

    # ---- what must be true

    @invariant()
    def the_slots_are_free(self) -> None:
        for cpu in range(4):
            assert self.guest.synic.take_message(cpu) is None
        assert 0 == self.guest.partition.messages_waiting

    @invariant()
    def descriptors_are_those_of_mapped_relids(self) -> None:
        assert len(self.mapped()) + self.fixed == len(self.guest.irq.descs)
        for relid, channel in self.guest.vmbus.channels.items():
            assert relid == channel.relid
            assert not channel.gone
            if channel.irq:
                assert relid == self.guest.irq.irq_to_desc(channel.irq).hwirq
        for channel in self.guest.vmbus.devices.all_channels():
            assert self.channel(channel.relid) is channel or channel.relid == INVALID_RELID

    @invariant()
    def pages_are_accounted_for(self) -> None:
        opening = [
            channel
            for channel in self.guest.vmbus.devices.all_channels()
            if channel.state is ChannelState.OPENING and channel.rings is None
        ]
        assert len(opening) <= len(self.guest.vmbus.work.stuck)  # undoing an open waits too
        waiting_close = sum(
            len(pfns) for name, pfns in self.guest.vmbus.shared_pages().items() if name.startswith("GPADL")
        )
        assert self.guest.pages_in_use() <= self.guest.pages_allocated
        if not self.guest.vmbus.work.stuck:
            assert self.guest.pages_in_use() == self.guest.pages_allocated
        assert waiting_close <= self.guest.pages_allocated

    @invariant()
    def counts_are_conserved(self) -> None:
        for channel in self.guest.vmbus.channels.values():
            stats = channel.stats
            if channel.irq:
                assert int(self.guest.irq.counts[channel.irq].sum()) >= 0
            assert stats.interrupts + stats.no_callback >= 0
        assert self.guest.vmbus.manager.close_on_suspend >= 0
        assert self.guest.vmbus.manager.fixup_on_resume >= 0
        assert self.guest.vmbus.manager.offers_in_progress == 0 or self.guest.vmbus.work.stuck

    @invariant()
    def nobody_waits_but_who_is_stuck(self) -> None:
        assert len(self.guest.vmbus.control.requests) <= len(self.guest.vmbus.work.stuck)

    def teardown(self) -> None:
        """A good host takes everything away: nothing is left."""
        if not hasattr(self, "guest"):
            return
        guest = self.guest
        self.be_a_good_host_again()
        guest.host.instead.clear()
        if self.suspended:
            guest.host.offers = []
            with suppress(Hung):
                guest.vmbus.resume()
        for _ in range(4):
            for relid in tuple(guest.vmbus.channels):
                guest.host.rescind(relid)
            # a rescind waits behind the probes before its own, as with v6.10's queues
            for request in tuple(guest.vmbus.control.requests):
                guest.host.post(ANSWERS[request.kind](*request.key))
            guest.settle()
        guest.host.answer(Unload())
        guest.settle()
        lost = [channel for channel in guest.vmbus.devices.all_channels() if channel.relid == INVALID_RELID]
        assert len(lost) == guest.vmbus.manager.fixup_on_resume
        # open sub-channels of a device that is missing since a resume wait for the close of their primary
        left = [channel for channel in guest.vmbus.channels.values() if channel.primary not in lost]
        assert [] == left, guest.vmbus.work.stuck
        assert self.fixed + len(self.mapped()) == len(guest.irq.descs)
        assert [] == guest.vmbus.work.stuck
        assert guest.pages_in_use() == guest.pages_allocated
        if guest.vmbus.control.connected:
            guest.vmbus.unload()
            assert 0 == guest.vmbus.stranded_pages or guest.vmbus.control.version == Version.V2_4  # has no UNLOAD
        if not guest.vmbus.channels:
            assert CONNECTION_PAGES + guest.vmbus.stranded_pages == guest.pages_allocated
            assert 1 == guest.mappings  # the memory's own


def offer_like(offer: OfferChannel, relid: int) -> OfferChannel:
    fields: dict[str, Any] = {name: getattr(offer, name) for name in offer.__slots__}
    return OfferChannel(**{**fields, "child_relid": relid, "connection_id": relid | 0x3000})


TestGuest = GuestMachine.TestCase
# a failure is not made smaller: that takes minutes, and the steps are printed as they are
TestGuest.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, phases=(Phase.generate,))
