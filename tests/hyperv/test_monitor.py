"""Monitor pages: a pending bit of an enabled group signals its connection within its latency (synic.md 8)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.memory import HV_PAGE, GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.steps import Step

END = 64 * HV_PAGE


class Rig:
    """A partition whose guest has two monitor pages and a port for every monitor id."""

    def __init__(self, memory: GuestMemory) -> None:
        self.partition = Partition(Core(1, nr_irqs_max=1), memory)
        self.memory = memory
        self.page = memory.alloc(2) * HV_PAGE + HV_PAGE
        for monitor_id in range(128):
            self.partition.create_event_port(monitor_id)
            self.partition.connect(0x3000 + monitor_id, monitor_id)
            self.parameter(monitor_id, 0x3000 + monitor_id)
        self.enable(0b1111)
        self.partition.set_monitor_pages(self.page - HV_PAGE, self.page)

    def enable(self, groups: int) -> None:
        self.memory.write(self.page, struct.pack("<I", groups))

    def parameter(self, monitor_id: int, connection: int, flag: int = 0, latency: int = 0) -> None:
        self.memory.write(self.page + 0x440 + 8 * monitor_id, struct.pack("<IHH", connection, flag, 0))
        self.latency(monitor_id, latency)

    def latency(self, monitor_id: int, ticks: int) -> None:
        self.memory.write(self.page + 0x240 + 2 * monitor_id, struct.pack("<H", ticks))

    def trigger(self, monitor_id: int, *, on: bool = True) -> None:
        at = self.page + 8 + 8 * (monitor_id // 32)
        (pending,) = struct.unpack("<I", self.memory.read(at, 4))
        bit = 1 << monitor_id % 32
        self.memory.write(at, struct.pack("<I", pending | bit if on else pending & ~bit))

    def pending(self) -> list[int]:
        words = [struct.unpack("<I", self.memory.read(self.page + 8 + 8 * group, 4))[0] for group in range(4)]
        return [32 * group + bit for group in range(4) for bit in range(32) if words[group] >> bit & 1]

    def signalled(self) -> list[int]:
        return [port.id for port in self.partition.take_events()]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with GuestMemory(END) as memory:
        yield Rig(memory)


@pytest.mark.parametrize("monitor_id", [0, 1, 31, 32, 63, 64, 95, 96, 127])
def test_a_bit_signals_its_own_connection(rig: Rig, monitor_id: int) -> None:
    """Group = id / 32, bit = id % 32; latency 0: at once, and the bit is cleared."""
    rig.trigger(monitor_id)
    rig.partition.settle()
    assert ([monitor_id], []) == (rig.signalled(), rig.pending())
    rig.partition.settle()
    assert [] == rig.signalled()


def test_a_bit_waits_for_its_latency_and_no_longer(rig: Rig) -> None:
    """In units of 100 ns, counted from when the page was looked at; triggers meanwhile are one signal."""
    rig.latency(5, 1000)
    rig.latency(6, 65535)
    rig.trigger(5)
    rig.trigger(6)
    rig.partition.settle()
    assert ([], [5, 6]) == (rig.signalled(), rig.pending())
    rig.partition.clock.advance(999)
    rig.trigger(5)
    rig.partition.settle()
    assert [] == rig.signalled()
    rig.partition.clock.advance(1)
    assert ([5], [6]) == (rig.signalled(), rig.pending())
    rig.trigger(5)
    rig.partition.settle()
    rig.partition.clock.advance_to(65535)
    assert ([5, 6], []) == (rig.signalled(), rig.pending())
    assert rig.partition.clock.next_due is None


def test_a_wait_takes_the_clock_to_the_latency(rig: Rig) -> None:
    """Nothing moves but a bit that is not due: idle() goes to its tick."""
    rig.latency(5, 1000)
    rig.trigger(5)
    assert rig.partition.idle(Step("wait"))
    assert ([5], 1000) == (rig.signalled(), rig.partition.clock.now)
    assert not rig.partition.idle(Step("wait"))


def test_only_enabled_groups_are_looked_at(rig: Rig) -> None:
    """Bits 3:0 of the trigger state; a bit that waits for its group is signalled when that is enabled."""
    rig.enable(0b1011)
    for monitor_id in (31, 32, 64, 96):
        rig.trigger(monitor_id)
    rig.partition.settle()
    assert ([31, 32, 96], [64]) == (rig.signalled(), rig.pending())
    rig.enable(0b0100)
    rig.partition.settle()
    assert ([64], []) == (rig.signalled(), rig.pending())


def test_a_group_disabled_or_a_bit_taken_back_before_the_time_signals_nothing(rig: Rig) -> None:
    """Looked at once more when due; the bit of a disabled group stays, and starts anew with the group."""
    for monitor_id in (5, 40):
        rig.latency(monitor_id, 10)
        rig.trigger(monitor_id)
    rig.partition.settle()
    rig.enable(0b0001)
    rig.trigger(5, on=False)
    rig.partition.clock.advance(10)
    rig.partition.settle()
    assert ([], [40]) == (rig.signalled(), rig.pending())
    rig.enable(0b0010)
    rig.partition.settle()
    rig.partition.clock.advance(10)
    assert [40] == rig.signalled()


def test_a_bit_without_a_connection_is_cleared_and_that_is_all(rig: Rig) -> None:
    """synic.md 8: unknown ids are ignored; so is a flag that the port does not have."""
    rig.parameter(7, 0x77)
    rig.parameter(8, 0x3008, flag=1)
    rig.trigger(7)
    rig.trigger(8)
    rig.partition.settle()
    assert ([], []) == (rig.signalled(), rig.pending())


def test_pages_can_be_taken_away(rig: Rig) -> None:
    """0 is no page; what was pending is forgotten, its timer too."""
    rig.latency(5, 10)
    rig.trigger(5)
    rig.partition.settle()
    rig.partition.set_monitor_pages(0, 0)
    rig.partition.clock.advance(10)
    rig.partition.settle()
    assert ([], [5]) == (rig.signalled(), rig.pending())
    rig.partition.set_monitor_pages(rig.page, 0)
    rig.partition.settle()
    assert [] == rig.signalled()


@pytest.mark.parametrize(
    ("h2g", "g2h", "number"),
    [(0, 8, errno.EINVAL), (8, 0, errno.EINVAL), (0, END, errno.EFAULT), (END, 0, errno.EFAULT)],
)
def test_a_page_is_a_page_of_guest_memory(rig: Rig, h2g: int, g2h: int, number: int) -> None:
    """EINVAL and EFAULT; the old pages stay."""
    with pytest.raises(IrqError) as error:
        rig.partition.set_monitor_pages(h2g, g2h)
    assert number == error.value.errno
    rig.trigger(9)
    rig.partition.settle()
    assert [9] == rig.signalled()


def test_the_last_page_of_memory_will_do(rig: Rig) -> None:
    """The other side of the border."""
    rig.partition.set_monitor_pages(0, END - HV_PAGE)
    rig.partition.settle()
    assert [] == rig.signalled()
