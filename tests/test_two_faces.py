"""Both faces of affinity under anything that may happen to a channel: a state machine against a plain model.

Writes of any text to smp_affinity, smp_affinity_list and the cpu file, drivers that come and go, devices too, CPUs, a
host that takes its time, interrupts at any moment. The model (tests/reference/affinity.py) says what each write
returns. After every step all faces agree with it and with each other, the books of init_vp_index are right, and every
interrupt has been counted once, on a CPU that the host interrupted.
"""

from __future__ import annotations

import errno
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.reference.affinity import Faces
from vmbusirq import Machine
from vmbusirq.errors import IrqError
from vmbusirq.irq.settings import IRQD_AFFINITY_SET
from vmbusirq.scenario.schema import parse_scenario
from vmbusirq.vmbus.channel import Channel, ChannelState

CPUS = 4
BUS = "/sys/bus/vmbus"
DISK, SUB, KEYBOARD = 1, 2, 3
DRIVERS = {DISK: "hv_storvsc", KEYBOARD: "hyperv_keyboard"}
SCENARIO = """
cpus = {{ possible = 4, isolated = "{isolated}" }}
host = {{ version = "{version}", modify_delay_us = {lag_us} }}

[[device]]
name = "disk"
class = "scsi"
[[channel]]
device = "disk"
relid = 1
count = 2

[[device]]
name = "keyboard"
class = "keyboard"
[[channel]]
device = "keyboard"
relid = 3
"""

relids = st.sampled_from((DISK, SUB, KEYBOARD))
devices = st.sampled_from((DISK, KEYBOARD))
cpus = st.integers(0, CPUS - 1)
masks = st.integers(0, (1 << CPUS) - 1)
numbers = st.integers(0, CPUS + 1).map(lambda cpu: (str(cpu), cpu))
good_cpus = st.sampled_from([("3abc", 3), (" \t2\n", 2), ("0x1", 0), (str((1 << 32) + 1), 1), ("4294967295", 1 << 31)])
bad_cpus = st.sampled_from([("abc", None), ("-1", None), ("\n", None)])
cpu_texts = st.one_of(numbers, good_cpus, bad_cpus)
mask_texts = masks.map(lambda mask: (f"{mask:x}\n", mask))
list_texts = masks.map(lambda mask: (",".join(str(cpu) for cpu in range(CPUS) if mask >> cpu & 1), mask))
BAD_MASKS = (("10", "EOVERFLOW"), ("x", "EINVAL"), ("0x1", "EINVAL"), ("0,f", "EOVERFLOW"))
BAD_LISTS = (("4", "ERANGE"), ("3-1", "EINVAL"), ("0-3:1/0", "EINVAL"), ("4294967296", "EOVERFLOW"))


def result_of(call: Any, *arguments: Any) -> Any:
    """Return what a call returns, or the errno that it raises, negative."""
    try:
        return call(*arguments)
    except IrqError as error:
        return -(error.errno or 0)


class TwoFaces(RuleBasedStateMachine):
    """A machine, its model, and what both do."""

    def __init__(self) -> None:
        super().__init__()
        self.machine: Machine
        self.model: Faces

    @initialize(
        version=st.sampled_from([(4, 0), (4, 1), (5, 2), (5, 3)]),
        strict=st.booleans(),
        isolated=st.sampled_from(["", "", "3", "0", "0-1"]),
        lag_us=st.sampled_from([0, 0, 300, 8_000, 60_000]),
        engine=st.sampled_from(["fast", "linux"]),
    )
    def boot(self, version: tuple[int, int], strict: bool, isolated: str, lag_us: int, engine: str) -> None:
        """A disk of two channels and a keyboard."""
        text = SCENARIO.format(isolated=isolated, version=f"{version[0]}.{version[1]}", lag_us=lag_us)
        self.machine = Machine.load(parse_scenario(text, "faces"), strict_rfc=strict, engine=engine)
        self.machine.boot()
        isolated_mask = {"": 0, "3": 0b1000, "0": 0b0001, "0-1": 0b0011}[isolated]
        self.model = Faces(CPUS, isolated_mask, version, strict, lag_us * 10, now=self.machine.now)
        self.specs = dict(zip((DISK, KEYBOARD), self.machine.scenario.devices, strict=True))
        self.guids = {relid: self.device(relid).guid for relid in (DISK, KEYBOARD)}
        self.model.offer(DISK, True)
        self.model.offer(KEYBOARD, False)
        self.probe(DISK)
        self.probe(KEYBOARD)
        self.seen: dict[int, list[int]] = {}
        self.handshakes_are_counted_on_targets({})
        self.note_counts()

    # ---- helpers

    def device(self, relid: int) -> Any:
        return self.machine.vmbus.channels[relid].device

    def channel(self, relid: int) -> Channel:
        return self.machine.vmbus.channels[relid]

    def there(self, relid: int) -> bool:
        return relid in self.model.channels

    def probe(self, relid: int) -> int:
        """Let the model open a device: storvsc asks for a sub-channel if a CPU is left for it."""
        error = self.model.open(relid)
        if not error and relid == DISK and self.model.online.bit_count() > 1:
            self.model.offer(SUB, True, (DISK,))
            self.model.open(SUB)
        return error

    def finish(self) -> None:
        """Let everything happen that happens now, in both."""
        self.machine.settle()
        self.model.host_until(self.machine.now)

    def counts(self, relid: int) -> list[int]:
        counts: list[int] = self.machine.irq.counts[self.channel(relid).irq].tolist()
        return counts

    def handshakes_are_counted_on_targets(self, vps: dict[int, int]) -> None:
        """How many there are is no business of the model; ``vps``: whom the host interrupted before."""
        for relid, chan in self.model.channels.items():
            others = [cpu for cpu in range(CPUS) if cpu not in (vps.get(relid), chan.vp)]
            assert [0] * len(others) == [self.raised(relid)[cpu] for cpu in others]

    def vps(self) -> dict[int, int]:
        return {relid: chan.vp for relid, chan in self.model.channels.items()}

    def note_counts(self) -> None:
        """Remember the counts; an IRQ that is made anew begins at 0."""
        self.seen = {relid: self.counts(relid) for relid in self.model.channels}

    def raised(self, relid: int) -> list[int]:
        """Return the interrupts of a channel that were not there before, by CPU."""
        return [now - before for now, before in zip(self.counts(relid), self.seen.get(relid, [0] * CPUS), strict=True)]

    def path(self, relid: int, face: str) -> str:
        if face == "cpu":
            return f"{BUS}/devices/{self.device(relid).guid}/channels/{self.channel(relid).dir_name}/cpu"
        return f"/proc/irq/{self.channel(relid).irq}/{face}"

    def write(self, relid: int, face: str, text: str) -> Any:
        return result_of(self.machine.fs.write, self.path(relid, face), text)

    def one_interrupt(self, relid: int) -> list[int]:
        """Let the host write a packet; return which CPU has an interrupt more when all is over, in the model."""
        self.machine.host.send(relid)
        cpu = self.model.signalled(relid)
        return [int(cpu == one) for one in range(CPUS)]

    # ---- writes

    @precondition(lambda self: self.model.channels)
    @rule(relid=relids, written=cpu_texts, interrupt=st.booleans())
    def write_cpu(self, relid: int, written: tuple[str, int | None], interrupt: bool) -> None:
        if self.there(relid):
            text, number = written
            expected = self.one_interrupt(relid) if interrupt and self.model.channels[relid].opening else [0] * CPUS
            error = self.model.write_cpu(relid, number)
            taken = 0 if self.model.strict else len(text)
            assert (-error or taken) == self.write(relid, "cpu", text)
            self.finish()
            assert expected == self.raised(relid)

    def write_parsed(self, relid: int, face: str, written: tuple[str, int], interrupt: bool) -> None:
        text, mask = written
        expected = self.one_interrupt(relid) if interrupt and self.model.channels[relid].opening else [0] * CPUS
        error = self.model.write_mask(relid, mask)
        assert (-error or len(text)) == (self.write(relid, face, text) if text else -error)
        if not error:
            assert f"{mask:x}\n".encode() == self.machine.fs.read(self.path(relid, "smp_affinity"))
        self.finish()
        assert expected == self.raised(relid)

    @rule(relid=relids, written=mask_texts, interrupt=st.booleans())
    def write_smp_affinity(self, relid: int, written: tuple[str, int], interrupt: bool) -> None:
        if self.there(relid):
            self.write_parsed(relid, "smp_affinity", written, interrupt)

    @rule(relid=relids, written=list_texts, interrupt=st.booleans())
    def write_smp_affinity_list(self, relid: int, written: tuple[str, int], interrupt: bool) -> None:
        if self.there(relid):
            self.write_parsed(relid, "smp_affinity_list", written, interrupt)

    @rule(
        relid=relids,
        written=st.one_of(
            st.sampled_from(BAD_MASKS).map(lambda bad: ("smp_affinity", *bad)),
            st.sampled_from(BAD_LISTS).map(lambda bad: ("smp_affinity_list", *bad)),
        ),
    )
    def write_rubbish(self, relid: int, written: tuple[str, str, str]) -> None:
        if self.there(relid):
            face, text, name = written
            assert -getattr(errno, name) == self.write(relid, face, text)

    # ---- drivers and devices

    @rule(relid=devices)
    def unbind_or_bind(self, relid: int) -> None:
        if not self.there(relid):
            return
        driver, vps = f"{BUS}/drivers/{DRIVERS[relid]}", self.vps()
        if self.model.channels[relid].opening:
            self.machine.fs.write(f"{driver}/unbind", self.guids[relid])
            if relid == DISK and self.there(SUB):
                self.model.remove(SUB)
            self.model.close(relid)
        else:
            error = self.probe(relid)
            expected = -error or len(self.guids[relid])
            assert expected == result_of(self.machine.fs.write, f"{driver}/bind", self.guids[relid])
        self.finish()
        self.handshakes_are_counted_on_targets(vps)

    @rule(relid=devices)
    def rescind_or_hot_add(self, relid: int) -> None:
        vps = self.vps()
        if self.there(relid):
            self.machine.detach(relid)
            for one in (SUB, DISK) if relid == DISK else (KEYBOARD,):
                if self.there(one):
                    self.model.remove(one)
        else:
            self.machine.plug(self.specs[relid], (DISK, SUB) if relid == DISK else (KEYBOARD,))
            self.machine.settle()
            self.model.offer(relid, relid == DISK)
            self.probe(relid)
        self.finish()
        self.handshakes_are_counted_on_targets(vps)

    # ---- CPUs and time

    @rule(cpu=cpus, relid=relids, interrupt=st.booleans())
    def cpu_offline(self, cpu: int, relid: int, interrupt: bool) -> None:
        expected = [0] * CPUS
        if interrupt and self.there(relid) and self.model.channels[relid].opening:
            expected = self.one_interrupt(relid)
        error = self.model.refuses_offline(cpu)
        file = f"/sys/devices/system/cpu/cpu{cpu}/online"
        call = self.machine.offline_cpu if cpu == 0 else lambda cpu: self.machine.fs.write(file, "0")
        assert (-error or 1) == result_of(call, cpu)
        if not error:
            self.model.host_until(self.machine.now)
            self.model.gone_offline(cpu, sorted(self.model.channels, key=lambda one: self.channel(one).irq))
        self.finish()
        if self.there(relid):
            assert expected == self.raised(relid)

    @rule(cpu=cpus)
    def cpu_online(self, cpu: int) -> None:
        self.machine.online_cpu(cpu)
        self.model.online |= 1 << cpu
        self.finish()

    @rule(us=st.sampled_from([1, 299, 300, 8_000, 60_000]))
    def time_passes(self, us: int) -> None:
        """The host carries out what is due, each thing in its time."""
        clock = self.machine.clock
        end = clock.now + us * 10
        while clock.next_due is not None and clock.next_due <= end:
            clock.advance_to_next()
            self.machine.settle()
        clock.advance_to(end)
        self.finish()

    @rule(relid=relids)
    def interrupt(self, relid: int) -> None:
        if self.there(relid) and self.model.channels[relid].opening:
            expected = self.one_interrupt(relid)
            self.finish()
            assert expected == self.raised(relid)

    @rule(relid=relids, to=cpus)
    def leave_a_cpu_that_goes(self, relid: int, to: int) -> None:
        """Patch 11's wait is over before a very late host has moved: what comes then is lost (vmbus.md 10, trap 12)."""
        if self.there(relid) and self.model.channels[relid].opening:
            cpu = self.model.channels[relid].target
            self.write_cpu(relid, (str(to), to), False)
            self.cpu_offline(cpu, relid, False)
            self.interrupt(relid)

    # ---- what must be true

    @invariant()
    def the_faces_are_the_models(self) -> None:
        machine, model = self.machine, self.model
        assert set(model.channels) == set(machine.vmbus.channels)
        for relid, chan in model.channels.items():
            channel, read = self.channel(relid), machine.fs.read
            desc = machine.irq.irq_to_desc(channel.irq)
            shown = {face: read(self.path(relid, face)) for face in ("cpu", "smp_affinity", "effective_affinity")}
            assert {
                "cpu": b"%d\n" % chan.target,
                "smp_affinity": b"%x\n" % chan.irq.affinity,
                "effective_affinity": b"%x\n" % chan.irq.effective,
            } == shown, relid
            assert b"%x\n" % chan.irq.hint == read(self.path(relid, "affinity_hint"))
            assert (chan.irq.is_set, chan.irq.started) == (bool(desc.state & IRQD_AFFINITY_SET), desc.started)
            assert bool(chan.opening) == (channel.state is ChannelState.OPENED)
            assert chan.vp == (machine.host.channels[relid].target_vp if relid in machine.host.channels else -1)
            mapping = read(f"{BUS}/devices/{channel.device.guid}/channel_vp_mapping").split()
            assert b"%d:%d" % (relid, chan.target) in mapping

    @invariant()
    def the_faces_agree(self) -> None:
        """Without any model: the effective CPU is the cpu file's and lies in what was asked for."""
        for channel in self.machine.vmbus.channels.values():
            desc = self.machine.irq.irq_to_desc(channel.irq)
            assert desc.effective_affinity in (0, 1 << channel.target_cpu)
            assert desc.effective_affinity & ~desc.affinity == 0
            if not desc.effective_affinity:
                assert self.model.isolated >> channel.target_cpu & 1
            assert self.machine.online_mask >> channel.target_cpu & 1

    @invariant()
    def the_books_are_right(self) -> None:
        """Marks of init_vp_index, MODIFYCHANNELs, the cursor, CPUs."""
        retarget = self.machine.vmbus.retarget
        assert [self.model.marks] == retarget._assignment.allocated
        targets = {chan.target for chan in self.model.channels.values() if chan.perf}
        assert self.model.marks & ~sum(1 << cpu for cpu in targets) == 0
        assert (self.model.sent, self.model.cursor) == (retarget.modchan_sent, retarget._picker._cursor)
        assert retarget.modchan_completed <= (retarget.modchan_sent if self.model.version >= (5, 3) else 0)
        assert (self.model.online,) * 2 == (self.machine.online_mask, retarget.synic_online)

    @invariant()
    def interrupts_are_counted_once(self) -> None:
        """The counts of an IRQ are what its channel took, open or not."""
        for relid in self.model.channels:
            stats = self.channel(relid).stats
            assert stats.interrupts + stats.no_callback == sum(self.counts(relid))
        self.note_counts()


TestTwoFaces = TwoFaces.TestCase
TestTwoFaces.settings = settings(
    max_examples=60, stateful_step_count=40, phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
)
