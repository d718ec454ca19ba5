"""Every channel to CPU 0, every other CPU offline and back, all as before: LISA's CPU hot-plug (real-clients.md 5.11).

The guest is touched as the suite does it: by reads and writes of files below /sys and /proc.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.footprint import Ledger, footprint, ledger
from tests.fs.lsvmbus import lsvmbus
from vmbusirq import DESIGNS, Machine, parse_interrupts
from vmbusirq.designs import OfflinePolicy
from vmbusirq.errors import IrqError
from vmbusirq.fs import FileSystem
from vmbusirq.fs.node import File
from vmbusirq.generations import GENERATIONS

CPUS = "/sys/devices/system/cpu"
DEVICES = "/sys/bus/vmbus/devices"
PACKETS = 3

# what counts, or is where a ring stands
COUNTERS = {
    "interrupts", "events", "intr_in_full", "intr_out_empty", "out_full_first", "out_full_total", "per_cpu_count",
    "softirqs", "stat", "spurious",
    *(f"{way}_{what}" for way in ("in", "out") for what in ("read_index", "write_index", "read_bytes_avail",
                                                            "write_bytes_avail", "intr_mask")),
    "read_avail", "write_avail", "in_mask", "out_mask",
}  # fmt: skip


class Tool:
    """What a shell script can do, and has noted."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs

    def cpu_files(self) -> dict[str, bytes]:
        """Return the text of every channel's ``cpu``, by path."""
        found = {}
        for device in self.fs.listdir(DEVICES):
            for relid in self.fs.listdir(f"{DEVICES}/{device}/channels"):
                path = f"{DEVICES}/{device}/channels/{relid}/cpu"
                found[path] = self.fs.read(path)
        return found

    def move_all(self, cpus: dict[str, bytes]) -> None:
        """Write each channel's ``cpu`` where it says something else: one that nobody has opened is EIO (4.2, row 8)."""
        for path, text in cpus.items():
            if self.fs.read(path).strip() != text.strip():
                assert len(text) == self.fs.write(path, text)

    def targets(self) -> set[int]:
        """Return the CPUs that channels are on, from channel_vp_mapping: ``relid:cpu`` lines."""
        texts = [self.fs.read(f"{DEVICES}/{device}/channel_vp_mapping") for device in self.fs.listdir(DEVICES)]
        return {int(line.split(b":")[1]) for text in texts for line in text.splitlines()}

    def cpus(self) -> list[int]:
        """Return the CPUs that can go offline."""
        names = [name for name in self.fs.listdir(CPUS) if name[3:].isdigit()]
        return sorted(int(name[3:]) for name in names if "online" in self.fs.listdir(f"{CPUS}/{name}"))

    def set_online(self, cpu: int, state: bytes) -> None:
        path = f"{CPUS}/cpu{cpu}/online"
        assert len(state) == self.fs.write(path, state)
        assert state[:1] + b"\n" == self.fs.read(path)

    def columns(self) -> tuple[int, ...]:
        return parse_interrupts(self.fs.read("/proc/interrupts")).cpus

    def stat_cpus(self) -> list[bytes]:
        lines = self.fs.read("/proc/stat").splitlines()
        return [line.split()[0] for line in lines if line.startswith(b"cpu")][1:]

    def snapshot(self) -> dict[str, bytes | int]:
        """Return the text of every file that can be read and does not count, or its errno."""
        found: dict[str, bytes | int] = {}
        for path, node in self.fs.walk():
            if isinstance(node, File) and node.name not in COUNTERS:
                try:
                    found[path] = self.fs.read(path)
                except IrqError as error:
                    found[path] = error.errno or 0
        return found


def traffic(machine: Machine, books: Ledger) -> dict[int, list[int]]:
    """Let the host send on every open channel; return by IRQ which CPUs counted it. Nothing may be lost."""
    before = {irq: machine.irq.counts[irq].copy() for irq in machine.irq.descs}
    relids = [relid for relid, channel in machine.host.channels.items() if channel.is_open]
    for relid in relids:
        assert PACKETS == machine.host.send(relid, packets=PACKETS)
    machine.settle()
    assert books.sent() == books.read(machine)
    assert all(machine.vmbus.channels[relid].ring_in.bytes_to_read == 0 for relid in relids)
    assert 0 == sum(channel.stats.dropped_signals for channel in machine.host.channels.values())
    moved = {irq: machine.irq.counts[irq] - counts for irq, counts in before.items()}
    return {irq: [cpu for cpu, count in enumerate(counts) if count] for irq, counts in moved.items() if counts.any()}


def run_sequence(machine: Machine, books: Ledger, send_each: int = 1) -> None:
    """Take the whole sequence; the host sends after every ``send_each`` CPUs that went or came."""
    machine.boot()
    machine.settle()
    tool = Tool(machine.fs)
    home, everyone = tool.cpu_files(), tool.cpus()
    before, listing, taken = tool.snapshot(), lsvmbus(machine.fs, 2), footprint(machine)
    total = machine.scenario.cpus.present
    assert list(range(1, total)) == everyone
    assert len(home) == len(machine.vmbus.channels)
    used = sorted(tool.targets() - {0})
    assert used

    if machine.design.offline_policy is OfflinePolicy.REFUSE:  # a CPU that is used stays
        with pytest.raises(IrqError) as caught:
            tool.set_online(used[-1], b"0")
        assert errno.EBUSY == caught.value.errno
        assert before == tool.snapshot()

    tool.move_all(dict.fromkeys(home, b"0"))
    assert {0} == tool.targets()
    assert "target_cpu=0" in lsvmbus(machine.fs, 2)[0]
    assert {f"Rel_ID={channel.relid}, target_cpu=0" for channel in machine.vmbus.channels.values()} == {
        line.strip() for line in lsvmbus(machine.fs, 2)[0].splitlines() if "Rel_ID" in line
    }

    left = set(range(total))
    for cpu in everyone:
        tool.set_online(cpu, b"0")
        left.remove(cpu)
        assert tuple(sorted(left)) == tool.columns()
        assert tool.targets() <= left
        if not cpu % send_each:
            traffic(machine, books)
    assert (b"0\n", (0,), [b"cpu0"]) == (machine.fs.read(f"{CPUS}/online"), tool.columns(), tool.stat_cpus())
    assert all(cpus == [0] for cpus in traffic(machine, books).values())

    for cpu in everyone:
        tool.set_online(cpu, b"1")
        if not cpu % send_each:
            traffic(machine, books)
    assert tuple(range(total)) == tool.columns()
    assert [b"cpu%d" % cpu for cpu in range(total)] == tool.stat_cpus()
    assert {0} == tool.targets()  # a CPU that comes back takes nothing from the others

    tool.move_all(home)
    machine.settle()
    assert before == tool.snapshot()
    assert (home, listing, taken) == (tool.cpu_files(), lsvmbus(machine.fs, 2), footprint(machine))
    counted = traffic(machine, books)
    for channel in machine.vmbus.channels.values():
        if channel.irq:
            assert [channel.target_cpu] == counted[channel.irq]
    assert [] == [text for text in str(machine.log).splitlines() if "Timed out" in text or "pending" in text]


@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_every_channel_to_cpu_0_and_back(design: str) -> None:
    """The default scenario, in every design; vmbus.md 6.5."""
    with ledger() as books:
        run_sequence(Machine.load("rfc-gen2-8vcpu", design=design), books)


@pytest.mark.parametrize(
    ("engine", "generation"), [("linux", "v6.10"), *(("fast", name) for name in sorted(GENERATIONS)[1:])]
)
def test_in_every_generation_and_by_the_kernels_own_steps(engine: str, generation: str) -> None:
    """Text differs, what happens does not."""
    with ledger() as books:
        run_sequence(Machine.load("rfc-gen2-8vcpu", engine=engine, generation=generation), books)


@pytest.mark.parametrize("scenario", ["gen1-4vcpu", "hibernate"])
def test_on_other_machines(scenario: str) -> None:
    """Generation 1; one that is going to hibernate."""
    with ledger() as books:
        run_sequence(Machine.load(scenario), books)


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_on_96_cpus(design: str) -> None:
    """72 channels, 95 CPUs that go and come."""
    with ledger() as books:
        run_sequence(Machine.load("azure-96vcpu", design=design), books, send_each=16)


def after_a_run(machine: Machine) -> None:
    """The scenario's whole traffic first."""
    machine.run()


def in_reverse(machine: Machine) -> None:
    """Its CPUs have gone and come in the other order before."""
    machine.boot()
    tool = Tool(machine.fs)
    home = tool.cpu_files()
    tool.move_all(dict.fromkeys(home, b"0"))
    for state in (b"0", b"1"):
        for cpu in reversed(tool.cpus()):
            tool.set_online(cpu, state)
    tool.move_all(home)
    machine.settle()


@pytest.mark.parametrize("first", [after_a_run, in_reverse], ids=lambda first: first.__name__)
def test_it_does_not_matter_what_was_before(first: Callable[[Machine], None]) -> None:
    """The sequence leaves nothing that a second one would find."""
    with ledger() as books:
        machine = Machine.load("rfc-gen2-8vcpu")
        first(machine)
        run_sequence(machine, books)
