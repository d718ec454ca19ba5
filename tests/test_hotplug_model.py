"""CPUs and channels moved at random through their files, against a model that is a set and a dictionary."""

from __future__ import annotations

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.footprint import ledger
from vmbusirq import DESIGNS, Machine, parse_interrupts
from vmbusirq.errors import IrqError
from vmbusirq.scenario.schema import parse_scenario

CPUS = 4
LATE_MS = 3
cpus = st.integers(0, CPUS - 1)
relids = st.integers(1, 3)


class HotplugModel(RuleBasedStateMachine):
    """The model: who is online, and where each channel is."""

    def __init__(self) -> None:
        super().__init__()
        self._books = ledger()
        self.books = self._books.__enter__()

    def teardown(self) -> None:
        self._books.__exit__(None, None, None)

    @initialize(
        design=st.sampled_from(sorted(DESIGNS)),
        engine=st.sampled_from(["fast", "linux"]),
        version=st.sampled_from(["4.1", "5.2", "5.3"]),
        timers=st.sampled_from(["direct", "message", "lapic"]),
        late_us=st.sampled_from([0, LATE_MS * 1000]),
    )
    def boot(self, design: str, engine: str, version: str, timers: str, late_us: int) -> None:
        if version != "5.3" and not DESIGNS[design].wait_modifychannel:
            late_us = 0  # nobody waits for such a host: race A, which loses signals
        text = f'cpus.possible = {CPUS}\nhost.version = "{version}"\nhost.modify_delay_us = {late_us}'
        self.m = Machine.load(parse_scenario(text, "model"), design=design, engine=engine, timers=timers)
        self.m.boot()
        for relid in (1, 2, 3):
            self.m.attach("scsi", relid=relid)
        self.online = set(range(CPUS))
        self.on = {relid: self.m.vmbus.channels[relid].target_cpu for relid in (1, 2, 3)}

    def _write(self, path: str, text: str) -> int:
        """Return 0, or the errno."""
        try:
            self.m.fs.write(path, text)
        except IrqError as error:
            return error.errno or 0
        finally:
            self.m.settle()
        return 0

    @rule(relid=relids, cpu=cpus)
    def move(self, relid: int, cpu: int) -> None:
        """EINVAL if it is offline; the model follows if not.

        From 5.3 on a host drops what it is asked while it carries out another move (vmbus.md 10, trap 11), so that one
        is waited for.
        """
        if self.m.vmbus.retarget.modchan_completed < self.m.vmbus.retarget.modchan_sent:
            self.wait(LATE_MS)
        channel = self.m.vmbus.channels[relid]
        assert channel.device is not None
        path = f"/sys/bus/vmbus/devices/{channel.device.guid}/channels/{relid}/cpu"
        wanted = 0 if cpu in self.online else errno.EINVAL
        assert wanted == self._write(path, str(cpu))
        if not wanted:
            self.on[relid] = cpu

    @rule(cpu=st.integers(1, CPUS - 1), state=st.sampled_from("01"))
    def hotplug(self, cpu: int, state: str) -> None:
        """EBUSY if a channel is there; else done, or done already."""
        leaves = state == "0" and cpu in self.online
        wanted = errno.EBUSY if leaves and cpu in self.on.values() else 0
        assert wanted == self._write(f"/sys/devices/system/cpu/cpu{cpu}/online", state)
        if not wanted:
            (self.online.discard if state == "0" else self.online.add)(cpu)

    @rule(relid=relids, packets=st.integers(1, 5))
    def send(self, relid: int, packets: int) -> None:
        """What the host sends arrives, wherever the host believes the channel to be."""
        self.m.host.send(relid, packets)
        self.m.settle()
        assert self.books.sent() == self.books.read(self.m)

    @rule(ms=st.integers(1, 50))
    def wait(self, ms: int) -> None:
        self.m.clock.advance(ms * 10_000)
        self.m.settle()

    @rule(cpu=cpus)
    def tick(self, cpu: int) -> None:
        """An event that is set comes, if the CPU is there to take it, and stays there."""
        heard: list[int] = []
        self.m.clockevents.on_event[:] = [heard.append]
        if cpu not in self.online:
            with pytest.raises(IrqError, match="EINVAL"):
                self.m.clockevents.set_next_event(cpu, 1_000)
            return
        self.m.clockevents.set_next_event(cpu, 1_000)
        self.m.clock.advance(2_000)
        self.m.settle()
        assert [cpu] == heard

    @invariant()
    def files_and_state_agree(self) -> None:
        """No channel is on an offline CPU; columns, lists, SynICs and masks say the same."""
        m = self.m
        assert self.on == {relid: channel.target_cpu for relid, channel in m.vmbus.channels.items()}
        assert set(self.on.values()) <= self.online
        assert sum(1 << cpu for cpu in self.online) == m.online_mask == m.vmbus.synics_on
        assert m.online_mask == m.vmbus.retarget.synic_online or not m.design.set_affinity_lock
        assert tuple(sorted(self.online)) == parse_interrupts(m.fs.read("/proc/interrupts")).cpus
        for cpu in range(1, CPUS):
            shown = m.fs.read(f"/sys/devices/system/cpu/cpu{cpu}/online")
            assert b"%d\n" % (cpu in self.online) == shown


HotplugModel.TestCase.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)
TestHotplugModel = HotplugModel.TestCase
