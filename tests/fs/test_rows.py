"""The text around the counts, row by row, as genirq.md 1.9 and 9 write it out (a dot stands for a blank)."""

from __future__ import annotations

from array import array

import pytest

from vmbusirq.fs.rows import NAMELESS_CHIP, NO_CHIP, IrqText, header_row
from vmbusirq.fs.seq import Counts, CpuRow, IpiRow, IrqRow, SingleRow, interrupts_table
from vmbusirq.generations import GENERATIONS


def line(version, prec, row, *values, **options):
    """Return the one row that ``row(counts)`` makes, with dots for blanks."""
    counts = Counts.of(memoryview(array("I", values)))
    cpus = range(len(values))
    text = interrupts_table(GENERATIONS[version], prec, cpus, [row(counts)], live=False, **options).render()
    return text.decode().splitlines()[1].replace(" ", ".")


def heartbeat(counts):
    return IrqRow(24, IrqText("VMBus", 7, actions=("heartbeat",)), counts)


def acpi(counts):
    return IrqRow(9, IrqText("IO-APIC", 9, flow="fasteoi", actions=("acpi",)), counts)


def rtc(counts):
    return IrqRow(8, IrqText("IO-APIC", 8, flow="edge", actions=("rtc0",)), counts)


@pytest.mark.parametrize(
    ("version", "prec", "row", "expected"),
    [
        ("v6.10", 3, heartbeat, ".24:......16841..........0.....VMBus...7..heartbeat"),
        ("v6.12", 3, heartbeat, ".24:......16841..........0.....VMBus...7..heartbeat"),
        ("v6.13", 3, heartbeat, ".24:......16841..........0....VMBus...7..heartbeat"),
        ("v6.18", 3, heartbeat, ".24:......16841..........0....VMBus...7..heartbeat"),
        ("v7.1", 4, heartbeat, "..24:......16841..........0..VMBus.......7..heartbeat"),
        ("v6.10", 4, heartbeat, "..24:......16841..........0.....VMBus....7..heartbeat"),
        ("v6.10", 3, acpi, "..9:......16841..........0...IO-APIC...9-fasteoi...acpi"),
        ("v6.10", 4, acpi, "...9:......16841..........0...IO-APIC....9-fasteoi...acpi"),
        ("v6.10", 3, rtc, "..8:......16841..........0...IO-APIC...8-edge......rtc0"),
        ("v6.18", 3, rtc, "..8:......16841..........0..IO-APIC...8-edge......rtc0"),
    ],
)
def test_worked_rows(version, prec, row, expected):
    """genirq.md 1.9 and 9: every byte."""
    assert expected == line(version, prec, row, 16841, 0)


@pytest.mark.parametrize(
    ("version", "text", "expected"),
    [
        ("v6.10", IrqText("GIC-0", 29, level="Level"), ".20:..........1.GIC-0..29.Level..."),
        ("v6.18", IrqText("GIC-0", 29, level="Level"), ".20:..........1.GIC-0..29.Level..."),
        ("v7.1", IrqText("GIC-0", 29, level="Level"), ".20:..........1..GIC-0..29.Level..."),
    ],
)
def test_a_chip_that_prints_itself_is_neither_padded_nor_aligned(version, text, expected):
    """genirq.md 1.8: one space before it in v6.10 and later alike."""
    printed = IrqText(text.chip, text.hwirq, text.level, chip_prints=True)
    assert expected == line(version, 3, lambda counts: IrqRow(20, printed, counts), 1)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("v6.10", ".47:..........1......None......x"), ("v6.13", ".47:..........1.....None......x")],
)
def test_an_irq_without_domain_has_blanks_for_its_hwirq(version, expected):
    """genirq.md 1.3 step 4: prec + 1 of them, then two before the action."""
    assert expected == line(version, 3, lambda counts: IrqRow(47, IrqText(NO_CHIP, actions=("x",)), counts), 1)


def test_an_irq_without_domain_in_v7_1():
    """genirq.md 9: a space, one more, and P of them."""
    row = line("v7.1", 4, lambda counts: IrqRow(47, IrqText(NAMELESS_CHIP, actions=("x",)), counts), 1)
    assert "..47:..........1..-" + "." * 7 + "." * 6 + "..x" == row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (IrqText("VMBus", 7), ".24:..........1.....VMBus...7"),
        (IrqText("VMBus", 7, level="Edge"), ".24:..........1.....VMBus...7.Edge...."),
        (IrqText("VMBus", 7, flow="edge"), ".24:..........1.....VMBus...7-edge...."),
        (IrqText("VMBus", 7, flow="fasteoi-long"), ".24:..........1.....VMBus...7-fasteoi-long"),
    ],
)
def test_a_nameless_row_keeps_the_padding_of_its_last_field(text, expected):
    """genirq.md 1.3, last lines."""
    assert expected == line("v6.10", 3, lambda counts: IrqRow(24, text, counts), 1)


def test_nothing_is_cut():
    """A long chip name or hwirq pushes the rest to the right; actions are joined by a comma and a blank."""
    text = IrqText("Hyper-V PCIe MSI", 524288, flow="edge", actions=("nvme0q0", "a,b"))
    expected = ".45:..........1..Hyper-V.PCIe.MSI.524288-edge......nvme0q0,.a,b"
    assert expected == line("v6.10", 3, lambda counts: IrqRow(45, text, counts), 1)


def test_the_chip_field_of_v7_1_is_as_wide_as_the_longest_name_ever():
    """genirq.md 9: W = max(8, longest chip name ever set on any desc)."""
    assert "..24:..........1..VMBus.........7..heartbeat" == line("v7.1", 4, heartbeat, 1, chip_width=10)
    assert "..24:..........1..VMBus.......7..heartbeat" == line("v7.1", 4, heartbeat, 1, chip_width=3)
    assert ".24:..........1.....VMBus...7..heartbeat" == line("v6.10", 3, heartbeat, 1, chip_width=10)


@pytest.mark.parametrize(
    ("version", "prec", "expected"),
    [
        ("v6.10", 3, "NMI:..........0..........0...Non-maskable.interrupts"),
        ("v6.18", 3, "NMI:..........0..........0...Non-maskable.interrupts"),
        ("v6.10", 4, ".NMI:..........0..........0...Non-maskable.interrupts"),
        ("v7.1", 4, ".NMI:..........0..........0..Non-maskable.interrupts"),
    ],
)
def test_x86_rows(version, prec, expected):
    """genirq.md 1.6: three blanks before the description, two in v7.1."""
    assert expected == line(version, prec, lambda counts: CpuRow("NMI", "Non-maskable interrupts", counts), 0, 0)


@pytest.mark.parametrize(
    ("prec", "expected"),
    [
        (3, "IPI0:.........1.4294967295.......Rescheduling.interrupts"),
        (4, "IPI0:..........1.4294967295.......Rescheduling.interrupts"),
        (5, ".IPI0:..........1.4294967295.......Rescheduling.interrupts"),
    ],
)
def test_ipi_rows(prec, expected):
    """genirq.md 1.7: at prec 3 no blank between the colon and a number of ten digits, seven before the text."""
    row = line("v6.10", prec, lambda counts: IpiRow(0, "Rescheduling interrupts", counts), 1, 2**32 - 1)
    assert expected == row


def test_a_row_with_one_number_ends_with_it():
    """genirq.md 1.6 and 1.7: ERR, MIS, Err; the last is an unsigned long on 64 bits."""
    assert "ERR:.........71" == line("v6.10", 3, lambda counts: SingleRow("ERR", Counts(counts.pointer, 0)), 71, 5)
    assert ".ERR:..........0" == line("v7.1", 4, lambda counts: SingleRow("ERR", 0), 0)
    assert "Err:.18446744073709551615" == line("v6.10", 3, lambda counts: SingleRow("Err", 2**64 - 1), 0)


def test_the_header_keeps_its_trailing_blanks():
    """genirq.md 1.2: prec + 8 blanks, then eleven bytes per CPU, however long its number is."""
    assert b" " * 11 + b"CPU0       CPU10      CPU128     \n" == header_row(3, (0, 10, 128)).suffix
    assert b" " * 12 + b"CPU2047    \n" == header_row(4, (2047,)).suffix
