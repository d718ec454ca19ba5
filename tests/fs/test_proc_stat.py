"""/proc/stat: what is counted where, and what is a model (genirq.md 3.2, 4.5, traps 8 to 11; real-clients.md 4)."""

from __future__ import annotations

from errno import EIO

import pytest

from tests.fs.kernel import Kernel, refused
from vmbusirq._ffi import lib
from vmbusirq.fs import CpuTimes, StatPresets
from vmbusirq.generations import X86_ROWS
from vmbusirq.irq import Flow
from vmbusirq.irq.settings import IRQ_HIDDEN, IRQF_PERCPU

NOT_IN_TOTAL = {"TLB", "DFR", "MIS", "PIN", "NPI", "PIW", "PMN"}


def stat(kernel):
    """Return the lines by their first word, as words."""
    text = kernel.fs.read("/proc/stat").decode()
    assert text.endswith("\n")
    return {line.split(" ", 1)[0]: line.split()[1:] for line in text.splitlines()}


def total(kernel):
    """Return the first number of the intr line."""
    return int(stat(kernel)["intr"][0])


def number(kernel, desc):
    """Return an IRQ's number on the intr line, by its position."""
    return int(stat(kernel)["intr"][1 + desc.irq])


# ---- the file


def test_the_whole_file():
    """3.2: the lines in their order; guest time is part of user time and not taken from idle again."""
    kernel = Kernel(2, nr_irqs=26)
    kernel.stat_presets = StatPresets(
        cpu_times={0: CpuTimes(user=1, nice=2, system=3, iowait=4, irq=5, softirq=6, steal=7, guest=8, guest_nice=9)},
        ctxt=1000,
        processes=200,
        procs_running=3,
        procs_blocked=4,
    )
    desc = kernel.rig.requested()
    kernel.rig.fire(desc, 1, times=5)
    assert (
        "cpu  1 2 3 11971 4 5 6 7 8 9\n"
        "cpu0 1 2 3 5972 4 5 6 7 8 9\n"
        "cpu1 0 0 0 5999 0 0 0 0 0 0\n"
        f"intr 5{' 0' * 24} 5 0\n"
        "ctxt 1000\n"
        "btime 1718000000\n"
        "processes 200\n"
        "procs_running 3\n"
        "procs_blocked 4\n"
        "softirq 0 0 0 0 0 0 0 0 0 0 0\n"
    ) == kernel.fs.read("/proc/stat").decode()


def test_it_cannot_be_written():
    """2.1: procfs opens it, write gives EIO."""
    with Kernel(1).fs.open("/proc/stat", "w") as handle, refused(EIO):
        handle.write("0")


def test_cpu_lines_are_those_of_the_online_cpus():
    """Clients count them against the columns of /proc/interrupts (real-clients.md 4.4)."""
    kernel = Kernel(4)
    kernel.irq.online = 0b1101
    assert ["cpu", "cpu0", "cpu2", "cpu3"] == [key for key in stat(kernel) if key.startswith("cpu")]


def test_time_in_handlers_is_booked_and_idle_is_what_is_left():
    """A model: one microsecond per interrupt and per softirq; an offline CPU is not idle, it is not there."""
    kernel = Kernel(2)
    kernel.irq.counters.irqs_sum[8] = 30_000
    kernel.count_row("HYP", 1, 20_000)
    kernel.irq.counters.softirq[lib.VI_SOFTIRQ_STRIDE + lib.VI_SOFTIRQ_NET_RX] = 70_000
    assert ["0", "0", "0", "5988", "0", "5", "7", "0", "0", "0"] == stat(kernel)["cpu1"]
    kernel.irq.online = 0b01
    assert ["0", "0", "0", "6000", "0", "5", "7", "0", "0", "0"] == stat(kernel)["cpu"]


def test_idle_is_never_negative():
    """A preset may claim more than the uptime."""
    kernel = Kernel(1)
    kernel.stat_presets = StatPresets(cpu_times={0: CpuTimes(user=10**9)})
    assert ["1000000000", "0", "0", "0"] == stat(kernel)["cpu0"][:4]


# ---- numbers per IRQ


@pytest.mark.parametrize("nr_irqs", [26, 472, 1432])
def test_exactly_nr_irqs_numbers_follow_the_total(nr_irqs):
    """3.2; real-clients.md 4.8."""
    assert 1 + nr_irqs == len(stat(Kernel(2, nr_irqs=nr_irqs))["intr"])


def test_the_line_grows_with_nr_irqs():
    """4.2: an allocation past nr_irqs raises it."""
    kernel = Kernel(2)
    kernel.irq.alloc_descs(999)
    assert 1 + 1000 == len(stat(kernel)["intr"])


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_an_ordinary_irqs_number_is_the_same_in_both_engines(engine):
    """The fast engine keeps no tot_count; the sum of the counts is the same number."""
    kernel = Kernel(2, engine=engine)
    desc = kernel.rig.requested()
    for cpu in (0, 1, 1):
        kernel.rig.signal(7, cpu)
    assert (3, 3) == (number(kernel, desc), total(kernel))
    assert desc.tot_count == number(kernel, desc)


def test_a_number_wraps_at_2_to_the_32_and_the_total_does_not():
    """Trap 11."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.count(desc, 0, 2**32 - 1)
    kernel.count(desc, 1, 3)
    kernel.irq.counters.irqs_sum[0] = 2**32 - 1
    kernel.irq.counters.irqs_sum[8] = 3
    assert (2, 2**32 + 2) == (number(kernel, desc), total(kernel))


def test_offline_cpus_count_in_numbers_and_total():
    """3.2: possible CPUs."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.rig.fire(desc, 1, times=4)
    kernel.irq.online = 0b01
    assert (4, 4) == (number(kernel, desc), total(kernel))


def test_the_total_keeps_what_a_freed_irq_had():
    """Trap 10."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.rig.fire(desc, times=4)
    kernel.irq.free_irq(desc.irq, "heartbeat")
    assert (4, 4) == (number(kernel, desc), total(kernel))
    irq = desc.irq
    kernel.irq.irq_dispose_mapping(irq)
    assert "0" == stat(kernel)["intr"][1 + irq]
    assert 4 == total(kernel)
    again = kernel.rig.requested()
    assert (0, 4) == (number(kernel, again), total(kernel))


def test_a_hidden_irq_is_in_both():
    """Trap 8."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.irq.modify_status(desc.irq, set_=IRQ_HIDDEN)
    kernel.rig.fire(desc, times=2)
    assert (2, 2) == (number(kernel, desc), total(kernel))


def test_a_per_cpu_irq_has_the_sum_of_its_counts():
    """3.2; 4.5: percpu_devid bumps no tot_count."""
    kernel = Kernel(2, arch="arm64")
    desc = kernel.percpu()
    kernel.rig.fire(desc, 0)
    kernel.rig.fire(desc, 1, times=2)
    assert (3, 3) == (number(kernel, desc), total(kernel))


@pytest.mark.parametrize(
    ("hidden", "shown", "in_total"),
    [(False, 1, 0), (True, 0, 0)],
)
def test_the_nostat_flow_is_in_its_row_and_slot_but_not_in_the_total(hidden, shown, in_total):
    """Review of RFC patch 06: visible it counts on its own row, hidden nowhere."""
    kernel = Kernel(2, arch="arm64")
    desc = kernel.percpu(flow=Flow.PERCPU_NOSTAT, hidden=hidden)
    kernel.rig.fire(desc, 1)
    assert shown == desc.kstat_irqs_cpu(1)
    assert (shown, in_total) == (number(kernel, desc), total(kernel))


def test_a_flow_that_counts_per_cpu_on_an_irq_that_is_not_marked_prints_0():
    """3.2: tot_count stays 0, though /proc/interrupts shows the counts."""
    kernel = Kernel(2)
    irq = kernel.irq.alloc_descs()
    kernel.irq.set_chip_and_handler(irq, kernel.rig.chip, Flow.PERCPU)
    kernel.irq.request_irq(irq, kernel.rig.handler, 0, "odd")
    desc = kernel.irq.irq_to_desc(irq)
    kernel.rig.fire(desc, 1)
    assert b" 24:          0          1     VMBus      odd" == kernel.line(b" 24:")
    assert (0, 1) == (number(kernel, desc), total(kernel))


def test_a_percpu_request_marks_the_irq():
    """4.4: IRQF_PERCPU sets PER_CPU, so the slot is the sum."""
    kernel = Kernel(2)
    irq = kernel.irq.alloc_descs()
    kernel.irq.set_chip_and_handler(irq, kernel.rig.chip, Flow.PERCPU)
    kernel.irq.request_irq(irq, kernel.rig.handler, IRQF_PERCPU, "timer")
    desc = kernel.irq.irq_to_desc(irq)
    kernel.rig.fire(desc, 1)
    assert (1, 1) == (number(kernel, desc), total(kernel))


# ---- the total


def test_the_rows_of_x86_that_are_part_of_the_total():
    """1.6; trap 9: TLB is in CAL already, the others are left out."""
    kernel = Kernel(2, rows=[row.label for row in X86_ROWS])
    labels = [row.label for row in X86_ROWS if row.text is not None]
    for label in labels:
        before = total(kernel)
        kernel.count_row(label, 1, 1000)
        assert (0 if label in NOT_IN_TOTAL else 1000) == total(kernel) - before
    before = total(kernel)
    kernel.irq.counters.irq_err_count[0] = 7
    kernel.irq.counters.irq_mis_count[0] = 100
    assert 7 == total(kernel) - before


def test_err_is_not_part_of_the_total_on_arm64():
    """3.2: both arch sums are 0 there."""
    kernel = Kernel(2, arch="arm64")
    kernel.irq.counters.irq_err_count[0] = 7
    assert 0 == total(kernel)


def test_the_ipis_of_arm64_are_part_of_the_total_and_have_a_slot_though_they_are_hidden():
    """1.7."""
    kernel = Kernel(2, arch="arm64")
    desc = kernel.irq.irq_to_desc(kernel.ipi_irqs[0])
    kernel.rig.fire(desc, 1, times=3)
    assert (3, 3) == (number(kernel, desc), total(kernel))
    assert [b"IPI0:", b"0", b"3"] == kernel.line(b"IPI0:").split()[:3]


def test_a_row_may_be_left_out_of_the_total_by_the_design():
    """design.md 6: mgmt-irq-nostat shows the top level on HYP but does not add it up."""
    kernel = Kernel(2)
    kernel.count_row("HYP", 0, 71)
    assert 71 == total(kernel)
    kernel.arch_rows = tuple(
        row if row.label != "HYP" else type(row)(row.label, row.text, False) for row in kernel.arch_rows
    )
    assert 0 == total(kernel)


# ---- softirqs


def test_softirqs_are_summed_over_possible_cpus_and_only_the_total_is_64_bit():
    """fs/proc/stat.c: per-softirq sums are unsigned int."""
    kernel = Kernel(2)
    stride = lib.VI_SOFTIRQ_STRIDE
    kernel.irq.counters.softirq[lib.VI_SOFTIRQ_TIMER] = 2**32 - 1
    kernel.irq.counters.softirq[stride + lib.VI_SOFTIRQ_TIMER] = 2
    kernel.irq.counters.softirq[stride + lib.VI_SOFTIRQ_RCU] = 5
    kernel.irq.online = 0b01
    assert [str(2**32 + 6), "0", "1", "0", "0", "0", "0", "0", "0", "0", "5"] == stat(kernel)["softirq"]


def test_the_numbers_of_a_large_machine():
    """1.1: 2048 CPUs have 16792 slots."""
    kernel = Kernel(2048, nr_irqs=16792, nr_irqs_max=17000)
    first, last = kernel.rig.requested(1), kernel.rig.requested(2)
    kernel.rig.fire(first, 2047)
    kernel.rig.fire(last, 0, times=2)
    assert (1, 2, 3) == (number(kernel, first), number(kernel, last), total(kernel))
    assert 16793 == len(stat(kernel)["intr"])


def test_the_c_helper_checks_its_range():
    """EINVAL past the table, nothing read."""
    kernel = Kernel(1, nr_irqs_max=100, nr_irqs=100)
    assert -22 == lib.vi_irq_stat(kernel.rig.machine, 99, 2, kernel.irq.counters.irq)
    assert -22 == lib.vi_irq_stat(kernel.rig.machine, 101, 0, kernel.irq.counters.irq)
    assert 0 == lib.vi_irq_stat(kernel.rig.machine, 100, 0, kernel.irq.counters.irq)
