"""Channels that are moved, used, closed and opened while CPUs come and go, in any order, under each policy."""

from __future__ import annotations

import errno
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vmbusirq import Machine
from vmbusirq.core import TICKS_PER_MS
from vmbusirq.errors import IrqError
from vmbusirq.scenario.schema import parse_scenario
from vmbusirq.vmbus.channel import ChannelState

CPUS = 4
RELIDS = (1, 2, 3)
# how late a host may be without a loss: as the waits allow, and for a hand-over as its last poke does
LATE_MS = {"rfc-handover": (0, 15, 60, 600), "redirect": (0, 15), "rfc-pick": (0, 15, 600), "mainline-6.16": (0, 600)}


class Policies(RuleBasedStateMachine):
    """Nothing is lost, nobody is left on a CPU that is offline, and every face says the same."""

    @initialize(
        which=st.sampled_from([(design, late) for design, lates in LATE_MS.items() for late in lates]),
        engine=st.sampled_from(("fast", "linux")),
        version=st.sampled_from(("4.1", "5.2", "5.3")),
        seed=st.integers(0, 9),
    )
    def boot(self, which: tuple[str, int], engine: str, version: str, seed: int) -> None:
        design, late = which
        text = f'cpus.possible = {CPUS}\nhost.modify_delay_us = {late * 1000}\nhost.version = "{version}"'
        self.m = Machine.load(parse_scenario(text, "model"), design=design, engine=engine, seed=seed)
        self.sent = dict.fromkeys(RELIDS, 0)
        for relid in RELIDS:
            self.m.attach("scsi", relid)
        self.read = {relid: self.m.vmbus.channels[relid].stats.packets for relid in RELIDS}
        self.moves_alone = self.m.design.redirects or version == "5.3" or design == "rfc-handover"

    def channel(self, relid: int) -> Any:
        return self.m.vmbus.channels[relid]

    def send(self, relid: int) -> None:
        if self.channel(relid).state is ChannelState.OPENED:
            self.sent[relid] += self.m.host.send(relid)

    @rule(relid=st.sampled_from(RELIDS))
    def use(self, relid: int) -> None:
        self.send(relid)
        self.m.settle()

    @rule(relid=st.sampled_from(RELIDS), mask=st.integers(1, (1 << CPUS) - 1))
    def affinity(self, relid: int, mask: int) -> None:
        channel = self.channel(relid)
        if channel.irq and mask & self.m.online_mask and channel.state is ChannelState.OPENED:
            self.m.fs.write(f"/proc/irq/{channel.irq}/smp_affinity", f"{mask:x}")
        self.m.settle()

    @rule(relid=st.sampled_from(RELIDS), cpu=st.integers(0, CPUS - 1))
    def cpu_file(self, relid: int, cpu: int) -> None:
        channel = self.channel(relid)
        if self.m.online_mask >> cpu & 1 and channel.state is ChannelState.OPENED:
            self.m.vmbus.target_cpu_store(channel, str(cpu).encode())
        self.m.settle()

    @rule(cpu=st.integers(1, CPUS - 1), uses=st.sets(st.sampled_from(RELIDS)))
    def offline(self, cpu: int, uses: set[int]) -> None:
        was_online = self.m.online_mask >> cpu & 1
        before = [self.channel(relid).target_cpu for relid in RELIDS]
        try:
            self.m.offline_cpu(cpu)
        except IrqError as error:
            if error.errno != errno.EBUSY:
                raise
            closed = any(self.channel(relid).state is not ChannelState.OPENED for relid in RELIDS)
            assert cpu in before
            assert not self.moves_alone or (closed and self.m.design.name in ("rfc-pick", "mainline-6.16"))
            assert before == [self.channel(relid).target_cpu for relid in RELIDS]
            assert self.m.online_mask >> cpu & 1
        else:
            assert not self.m.online_mask >> cpu & 1 or not was_online
        for relid in uses:  # at once, while the host may still be behind
            self.send(relid)

    @rule(cpu=st.integers(1, CPUS - 1))
    def online(self, cpu: int) -> None:
        self.m.online_cpu(cpu)

    @rule(relid=st.sampled_from(RELIDS), again=st.booleans())
    def close(self, relid: int, again: bool) -> None:
        channel = self.channel(relid)
        self.quiet()
        if channel.state is ChannelState.OPENED:
            self.m.vmbus.close(channel)
        if again or channel.state is not ChannelState.OPENED:
            self.m.vmbus.open(channel)

    def quiet(self) -> None:
        self.m.settle()
        for _ in range(4):
            self.m.clock.advance(600 * TICKS_PER_MS)
            self.m.settle()

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "m"):
            return
        self.quiet()
        for relid in RELIDS:
            channel = self.channel(relid)
            cpu = channel.target_cpu
            assert self.m.online_mask >> cpu & 1
            assert self.sent[relid] == channel.stats.packets - self.read[relid]
            assert channel.device is not None
            folder = f"/sys/bus/vmbus/devices/{channel.device.guid}"
            assert f"{cpu}\n".encode() == self.m.fs.read(f"{folder}/channels/{relid}/cpu")
            assert f"{relid}:{cpu}\n".encode() == self.m.fs.read(f"{folder}/channel_vp_mapping")
            if channel.state is ChannelState.OPENED and channel.irq:
                desc = self.m.irq.irq_to_desc(channel.irq)
                assert desc.effective_affinity >> cpu & 1
                assert desc.affinity & desc.effective_affinity
                assert not desc.effective_affinity & ~self.m.online_mask
                assert channel.stats.interrupts == sum(self.m.irq.counts[channel.irq].tolist())
            if channel.state is ChannelState.OPENED:
                assert channel.moves.host_cpu == self.m.host.channels[relid].target_vp
                assert self.m.vmbus.synics_on >> channel.moves.host_cpu & 1


TestPolicies = Policies.TestCase
TestPolicies.settings = settings(max_examples=20, stateful_step_count=10, deadline=None)
