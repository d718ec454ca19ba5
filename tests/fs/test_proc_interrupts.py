"""/proc/interrupts of a running machine: which rows and columns there are, and that they stay live (genirq.md 1, 6, 9).

Whole files are written out here by the format rules, byte for byte; a dot stands for a blank.
"""

from __future__ import annotations

from errno import EIO

import pytest

from tests.fs.kernel import Kernel, refused
from vmbusirq._ffi import ffi
from vmbusirq.fs.procfs.interrupts import ARCH_ROW_INDEX, InterruptsText
from vmbusirq.generations import GENERATIONS, X86_ROWS
from vmbusirq.irq import Flow, IrqChip, nop
from vmbusirq.irq.settings import IRQ_HIDDEN, IRQ_LEVEL, IRQF_SHARED

SINCE_6_12 = [name for name in GENERATIONS if name != "v6.10"]


def text(kernel):
    """Return the whole file."""
    return kernel.fs.read("/proc/interrupts")


def lines(*rows):
    """Return a file of these rows; dots keep trailing blanks visible."""
    return "".join(f"{row}\n" for row in rows).replace(".", " ").encode()


def two_cpus(generation, arch="x86"):
    """One VMBus channel with 16841 on CPU 0, one IRQ of another chip without domain, and one count in each arch row."""
    kernel = Kernel(2, generation=generation, arch=arch, rows=("NMI", "HYP", "ERR", "MIS"))
    desc = kernel.rig.requested()
    kernel.count(desc, 0, 16841)
    plain = kernel.irq.alloc_descs(40)
    chip = IrqChip("IO-APIC-long", irq_set_affinity=kernel.rig.set_affinity, irq_mask=nop, irq_unmask=nop)
    kernel.irq.set_chip_and_handler(plain, chip, Flow.FASTEOI, "fasteoi")
    kernel.irq.modify_status(plain, set_=IRQ_LEVEL)
    kernel.irq.request_irq(plain, kernel.rig.handler, IRQF_SHARED, "acpi", "1")
    kernel.irq.request_irq(plain, kernel.rig.handler, IRQF_SHARED, "ahci", "2")
    if arch == "x86":
        kernel.count_row("HYP", 1, 71)
    else:
        for number, irq in enumerate(kernel.ipi_irqs):
            kernel.count(kernel.irq.irq_to_desc(irq), 1, number)
    kernel.irq.counters.irq_err_count[0] = 3
    return kernel


X86_FILES = {
    "v6.10": lines(
        "...........CPU0.......CPU1.......",
        ".24:......16841..........0.....VMBus...7..heartbeat",
        ".40:..........0..........0..IO-APIC-long....-fasteoi...acpi,.ahci",
        "NMI:..........0..........0...Non-maskable.interrupts",
        "HYP:..........0.........71...Hypervisor.callback.interrupts",
        "ERR:..........3",
        "MIS:..........0",
    ),
    "v6.13": lines(
        "...........CPU0.......CPU1.......",
        ".24:......16841..........0....VMBus...7..heartbeat",
        ".40:..........0..........0.IO-APIC-long....-fasteoi...acpi,.ahci",
        "NMI:..........0..........0...Non-maskable.interrupts",
        "HYP:..........0.........71...Hypervisor.callback.interrupts",
        "ERR:..........3",
        "MIS:..........0",
    ),
    "v7.1": lines(
        "............CPU0.......CPU1.......",
        "..24:......16841..........0..VMBus...........7..heartbeat",
        "..40:..........0..........0..IO-APIC-long......-fasteoi...acpi,.ahci",
        ".NMI:..........0..........0..Non-maskable.interrupts",
        ".HYP:..........0.........71..Hypervisor.callback.interrupts",
        ".ERR:..........3",
        ".MIS:..........0",
    ),
}


@pytest.mark.parametrize(
    ("generation", "like"),
    [("v6.10", "v6.10"), ("v6.12", "v6.10"), ("v6.13", "v6.13"), ("v6.18", "v6.13"), ("v7.1", "v7.1")],
)
def test_the_whole_file_on_x86(generation, like):
    """1.2, 1.3, 1.6 and 9; traps 1 to 5."""
    assert X86_FILES[like] == text(two_cpus(generation))


def test_the_whole_file_on_arm64_in_v6_10():
    """1.7: a Level or Edge column, which x86 has not, and six IPI rows; the IPIs' own IRQs are hidden."""
    assert lines(
        "...........CPU0.......CPU1.......",
        "..7:......16841..........0.....VMBus...7.Edge......heartbeat",
        ".40:..........0..........0..IO-APIC-long.....Level...-fasteoi...acpi,.ahci",
        "IPI0:.........0..........0.......Rescheduling.interrupts",
        "IPI1:.........0..........1.......Function.call.interrupts",
        "IPI2:.........0..........2.......CPU.stop.interrupts",
        "IPI3:.........0..........3.......CPU.stop.(for.crash.dump).interrupts",
        "IPI4:.........0..........4.......Timer.broadcast.interrupts",
        "IPI5:.........0..........5.......IRQ.work.interrupts",
        "Err:..........3",
    ) == text(two_cpus("v6.10", "arm64"))


def test_arm64_has_eight_ipi_rows_since_6_12():
    """Genirq.md 1.7."""
    shown = text(two_cpus("v6.12", "arm64")).splitlines()
    assert [b"CPU stop NMIs", b"CPU backtrace interrupts", b"KGDB roundup interrupts"] == [
        line.split(None, 3)[3] for line in shown if line.startswith((b"IPI3", b"IPI6", b"IPI7"))
    ]


def test_arch_rows_are_named_after_their_counters():
    """Every x86 row with a description has a column of counters, and no column is without a row."""
    assert {row.label for row in X86_ROWS if row.text is not None} == {
        label for label in ARCH_ROW_INDEX if label != "ARCH_ROWS"
    }


def test_every_x86_row_shows_its_own_counter():
    """Genirq.md 1.6."""
    kernel = Kernel(2, rows=[row.label for row in X86_ROWS])
    for number, label in enumerate(ARCH_ROW_INDEX, 1):
        kernel.count_row(label, 1, number)
    kernel.irq.counters.irq_err_count[0] = 100
    kernel.irq.counters.irq_mis_count[0] = 101
    for number, label in enumerate(ARCH_ROW_INDEX, 1):
        assert [b"0", str(number).encode()] == kernel.line(f"{label}:".encode()).split()[1:3]
    assert b"ERR:        100" == kernel.line(b"ERR:")
    assert b"MIS:        101" == kernel.line(b"MIS:")


def test_only_the_rows_of_this_machine_are_shown():
    """Genirq.md 1.6, column "present when"."""
    assert [b"NMI", b"HYP", b"ERR"] == [line.split(b":")[0] for line in text(Kernel(2)).splitlines()[1:]]


# ---- which rows (1.4; traps 7, 8)


def test_a_mapped_irq_has_no_row_and_a_requested_one_has_zeros():
    """Genirq.md 1.4."""
    kernel = Kernel(2)
    desc = kernel.rig.irq()
    assert kernel.line(b" 24:") is None
    kernel.irq.request_irq(desc.irq, kernel.rig.handler, 0, "heartbeat")
    assert b" 24:          0          0     VMBus   7  heartbeat" == kernel.line(b" 24:")


def test_a_freed_irq_with_counts_is_shown_nameless_in_v6_10():
    """The row ends with the padding of the hwirq column (trap 2)."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.rig.fire(desc, 1)
    kernel.irq.free_irq(desc.irq, "heartbeat")
    assert b" 24:          0          1     VMBus   7" == kernel.line(b" 24:")


def test_a_freed_irq_without_counts_has_no_row():
    """Genirq.md 1.4."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.irq.free_irq(desc.irq, "heartbeat")
    assert kernel.line(b" 24:") is None


@pytest.mark.parametrize("generation", SINCE_6_12)
def test_a_freed_irq_has_no_row_since_6_12(generation):
    """Genirq.md 1.4 and 8."""
    kernel = Kernel(2, generation=generation)
    desc = kernel.rig.requested()
    kernel.rig.fire(desc, 1)
    kernel.irq.free_irq(desc.irq, "heartbeat")
    assert kernel.line(b" 24:") is None
    assert kernel.line(b"  24:") is None


def test_a_nameless_row_appears_with_its_first_count():
    """An arrival on an IRQ that has a chip but no flow handler is counted as bad, and makes a row in v6.10."""
    kernel = Kernel(2)
    irq = kernel.irq.alloc_descs()
    kernel.irq.set_chip_and_handler(irq, kernel.rig.chip, Flow.BAD)
    assert kernel.line(b" 24:") is None
    kernel.irq.generic_handle_irq(irq, 1)
    assert b" 24:          0          1     VMBus    " == kernel.line(b" 24:")


def test_the_count_of_a_nameless_row_includes_offline_cpus_unless_the_irq_is_per_cpu():
    """tot_count for an ordinary IRQ, the sum over online CPUs for a per-CPU one."""
    kernel = Kernel(4)
    desc = kernel.rig.requested()
    kernel.rig.fire(desc, 3)
    kernel.irq.free_irq(desc.irq, "heartbeat")
    percpu = kernel.percpu()
    kernel.count(percpu, 3, 5)
    for cpu in range(4):
        kernel.irq.disable_percpu_irq(percpu.irq, cpu)
    kernel.irq.free_percpu_irq(percpu.irq, percpu.actions[0].percpu_dev_id)
    label = b"%3d:" % percpu.irq
    assert kernel.line(label) is not None
    kernel.irq.online = 0x7
    assert b" 24:          0          0          0     VMBus   7" == kernel.line(b" 24:")
    assert kernel.line(label) is None


def test_a_hidden_irq_has_no_row_with_or_without_action():
    """Genirq.md 1.4: IRQ_HIDDEN comes first."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.rig.fire(desc)
    kernel.irq.modify_status(desc.irq, set_=IRQ_HIDDEN)
    assert kernel.line(b" 24:") is None
    kernel.irq.free_irq(desc.irq, "heartbeat")
    assert kernel.line(b" 24:") is None


def test_a_disposed_irq_has_no_row():
    """Genirq.md 5: disposed means no row, whatever it had counted."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.rig.fire(desc)
    text(kernel)
    kernel.irq.free_irq(desc.irq, "heartbeat")
    kernel.irq.irq_dispose_mapping(desc.irq)
    assert kernel.line(b" 24:") is None


def test_rows_come_in_the_order_of_the_numbers_not_of_creation():
    """Genirq.md 1: positions 0 to nr_irqs."""
    kernel = Kernel(2)
    kernel.irq.alloc_descs(30)
    kernel.irq.set_chip_and_handler(30, kernel.rig.chip, Flow.EDGE)
    kernel.irq.request_irq(30, kernel.rig.handler)
    kernel.rig.requested()
    numbers = [line.split(b":")[0] for line in text(kernel).splitlines()[1:3]]
    assert [b" 24", b" 30"] == numbers


# ---- columns and widths (1.1, 1.2, 1.5; traps 3, 6)


def test_columns_are_the_online_cpus_and_counts_of_an_offline_cpu_come_back():
    """Genirq.md 1.5; trap 6."""
    kernel = Kernel(4)
    desc = kernel.rig.requested()
    for cpu in range(4):
        kernel.rig.fire(desc, cpu, times=cpu + 1)
    whole = text(kernel)
    kernel.irq.online = 0b1101
    shown = text(kernel).splitlines()
    assert b"           CPU0       CPU2       CPU3       " == shown[0]
    assert b" 24:          1          3          4     VMBus   7  heartbeat" == shown[1]
    kernel.irq.online = 0b1111
    assert whole == text(kernel)


def test_the_width_of_the_number_column_follows_nr_irqs_and_changes_at_run_time():
    """Trap 3: nr_irqs passes 1000 and every row, the header included, gets wider."""
    kernel = Kernel(2, nr_irqs=999)
    kernel.rig.requested()
    assert b" 24:          0          0     VMBus   7  heartbeat" == kernel.line(b" 24:")
    kernel.irq.alloc_descs(999)
    assert b"  24:          0          0     VMBus    7  heartbeat" == kernel.line(b"  24:")
    assert b" NMI:          0          0   Non-maskable interrupts" == kernel.line(b" NMI:")
    assert text(kernel).startswith(b"            CPU0       CPU1       \n")


def test_the_chip_column_of_v7_1_is_as_wide_as_the_longest_name_ever_set():
    """9: the width stays when the chip with the long name has gone."""
    kernel = Kernel(2, generation="v7.1")
    kernel.rig.requested()
    irq = kernel.irq.alloc_descs()
    chip = IrqChip("Hyper-V PCIe MSI", irq_mask=nop, irq_unmask=nop)
    kernel.irq.set_chip_and_handler(irq, chip, Flow.EDGE)
    kernel.irq.free_descs(irq)
    assert b"  24:          0          0  VMBus               7  heartbeat" == kernel.line(b"  24:")


@pytest.mark.parametrize(
    ("chip", "shown"),
    [
        (IrqChip(None, irq_mask=nop, irq_unmask=nop), b"        -    "),
        (IrqChip("x", irq_mask=nop, irq_unmask=nop, irq_print_chip=lambda desc: f"GIC-{desc.irq}"), b"GIC-24    "),
    ],
)
def test_a_chip_may_have_no_name_or_print_itself(chip, shown):
    """1.3 step 3: "-" in a field of 8, or its own text, which no field pads."""
    kernel = Kernel(1)
    irq = kernel.irq.alloc_descs()
    kernel.irq.set_chip_and_handler(irq, chip, Flow.EDGE)
    kernel.irq.request_irq(irq, kernel.rig.handler, 0, "x")
    assert b" 24:          0 " + shown + b"  x" == kernel.line(b" 24:")


def test_an_action_without_a_name_prints_as_printf_does():
    """The kernel's %s of a NULL pointer."""
    kernel = Kernel(1)
    kernel.rig.requested(name=None)
    assert b" 24:          0     VMBus   7  (null)" == kernel.line(b" 24:")


# ---- live


def test_the_layout_is_kept_until_something_but_counts_changes():
    """A re-read with unchanged rows is one call into C."""
    kernel = Kernel(2)
    interrupts = InterruptsText(kernel)
    desc = kernel.rig.requested()
    table = interrupts.table()
    kernel.rig.fire(desc, 1, times=3)
    assert table is interrupts.table()
    assert b" 24:          0          3 " in interrupts.show()
    changes = [
        lambda: kernel.irq.request_irq(kernel.rig.irq(8).irq, kernel.rig.handler, 0, "b", "b"),
        lambda: kernel.irq.free_irq(25, "b"),
        lambda: kernel.irq.irq_dispose_mapping(25),
        lambda: kernel.irq.modify_status(24, set_=IRQ_HIDDEN),
        lambda: kernel.irq.set_chip_and_handler(24, kernel.rig.chip, Flow.SIMPLE, "edge"),
        lambda: setattr(kernel.irq, "online", 1),
        lambda: setattr(kernel, "arch_rows", ()),
        lambda: kernel.irq.alloc_descs(1000),
    ]
    for change in changes:
        before = interrupts.table()
        change()
        assert before is not interrupts.table()
        assert interrupts.table() is interrupts.table()


def test_a_nameless_irq_costs_no_new_layout_while_nothing_changes():
    """Only a count that begins or ends makes a new layout."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.rig.fire(desc)
    kernel.irq.free_irq(desc.irq, "heartbeat")
    interrupts = InterruptsText(kernel)
    assert interrupts.table() is interrupts.table()


def test_counters_wrap_at_2_to_the_32():
    """Trap 11."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    kernel.count(desc, 0, 2**32 - 1)
    assert b" 24: 4294967295          0     VMBus   7  heartbeat" == kernel.line(b" 24:")
    kernel.rig.fire(desc)
    assert b" 24:          0          0     VMBus   7  heartbeat" == kernel.line(b" 24:")


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_both_engines_show_the_same(engine):
    """Design.md 4: two engines, one truth."""
    kernel = Kernel(2, engine=engine)
    kernel.rig.requested()
    kernel.rig.signal(7, 1)
    kernel.rig.signal(7, 0)
    assert b" 24:          1          1     VMBus   7  heartbeat" == kernel.line(b" 24:")


def test_writing_opens_and_gives_eio():
    """Genirq.md 1."""
    kernel = Kernel(2)
    with kernel.fs.open("/proc/interrupts", "w") as handle, refused(EIO):
        handle.write("0")


def test_a_large_machine_is_rendered_whole():
    """Genirq.md 1.2: four-digit CPU ids fill their eleven bytes."""
    kernel = Kernel(2048)
    for hwirq in range(1, 33):
        kernel.rig.requested(hwirq)
    header, first, *_ = text(kernel).splitlines()
    assert header.endswith(b"CPU2047    ")
    assert len(b" 24: ") + 2048 * 11 + len(b"    VMBus   1  heartbeat") == len(first)
    assert ffi.sizeof("uint32_t") * 2048 < len(text(kernel))
