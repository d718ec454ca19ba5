"""/proc/softirqs (genirq.md 3.3; trap 6)."""

from __future__ import annotations

from errno import EIO

from tests.fs.kernel import Kernel, refused
from vmbusirq._ffi import lib

NAMES = ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"]


def count(kernel, vector, cpu, value):
    """Set a counter."""
    kernel.irq.counters.softirq[cpu * lib.VI_SOFTIRQ_STRIDE + vector] = value


def test_the_whole_file():
    """A leading blank per number, none behind the last; the header ends in blanks."""
    kernel = Kernel(2)
    for vector in range(lib.VI_SOFTIRQS):
        count(kernel, vector, 1, 10**vector)
    count(kernel, lib.VI_SOFTIRQ_TIMER, 0, 25469)
    assert (
        b"                    CPU0       CPU1       \n"
        b"          HI:          0          1\n"
        b"       TIMER:      25469         10\n"
        b"      NET_TX:          0        100\n"
        b"      NET_RX:          0       1000\n"
        b"       BLOCK:          0      10000\n"
        b"    IRQ_POLL:          0     100000\n"
        b"     TASKLET:          0    1000000\n"
        b"       SCHED:          0   10000000\n"
        b"     HRTIMER:          0  100000000\n"
        b"         RCU:          0 1000000000\n"
    ) == kernel.fs.read("/proc/softirqs")


def test_columns_are_the_possible_cpus_whether_online_or_not():
    """Trap 6."""
    kernel = Kernel(4)
    before = kernel.fs.read("/proc/softirqs")
    kernel.irq.online = 0b0001
    assert before == kernel.fs.read("/proc/softirqs")
    assert before.startswith(b" " * 20 + b"CPU0       CPU1       CPU2       CPU3       \n")


def test_wide_ids_and_wide_numbers():
    """Four-digit ids and ten-digit counts fill their eleven bytes."""
    kernel = Kernel(2048)
    count(kernel, lib.VI_SOFTIRQ_RCU, 2047, 2**32 - 1)
    rows = kernel.fs.read("/proc/softirqs").splitlines()
    assert rows[0].endswith(b"CPU2047    ")
    assert rows[-1].endswith(b" 4294967295")
    assert NAMES == [row.split(b":")[0].strip().decode() for row in rows[1:]]


def test_a_tasklet_that_ran_is_counted():
    """The resend tasklet: an arrival before the request replays in softirq context."""
    kernel = Kernel(2)
    desc = kernel.rig.irq()
    kernel.rig.fire(desc)
    kernel.irq.request_irq(desc.irq, kernel.rig.handler)
    kernel.rig.settle()
    (row,) = [line for line in kernel.fs.read("/proc/softirqs").splitlines() if b"TASKLET" in line]
    assert [b"TASKLET:", b"1", b"0"] == row.split()


def test_it_cannot_be_written():
    """2.1: procfs opens it, write gives EIO."""
    with Kernel(1).fs.open("/proc/softirqs", "w") as handle, refused(EIO):
        handle.write("0")
