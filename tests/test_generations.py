"""Kernel generations: widths, visibility, errno and modes (genirq.md 1.1, 1.4, 1.7, 2.1, 2.3, 8 and 9)."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from tests.reference import interrupts as reference
from vmbusirq.errors import IrqError
from vmbusirq.generations import (
    DEFAULT_GENERATION,
    GENERATIONS,
    X86_ROWS,
    generation,
    nr_irqs_at_boot,
    prec,
)

NAMES = ("v6.10", "v6.12", "v6.13", "v6.18", "v7.1")


def test_the_default_is_what_the_rfc_builds_on():
    """The series applies to 6.10-rc2."""
    assert NAMES == tuple(GENERATIONS)
    assert DEFAULT_GENERATION is GENERATIONS["v6.10"]
    assert generation("v6.18") is GENERATIONS["v6.18"]


def test_an_unknown_generation_is_refused_with_the_known_ones():
    """EINVAL, and what to write instead."""
    with pytest.raises(IrqError, match=r"'v5\.4' is not known.*v6\.10, v6\.12, v6\.13, v6\.18, v7\.1") as caught:
        generation("v5.4")
    assert errno.EINVAL == caught.value.errno


def test_a_generation_cannot_be_changed():
    """Records are frozen; so is their table."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT_GENERATION.prec_floor = 5
    with pytest.raises(TypeError):
        GENERATIONS["v9"] = DEFAULT_GENERATION


@pytest.mark.parametrize(
    ("nr_irqs", "width"),
    [(1, 3), (999, 3), (1000, 4), (9999, 4), (10_000, 5), (99_999, 5), (100_000, 6), (2**31 - 1, 10)],
)
def test_number_width_grows_with_nr_irqs(nr_irqs, width):
    """genirq.md 1.1; v7.1 starts at 4 (9)."""
    assert width == prec(nr_irqs)
    for name in NAMES:
        assert (max(4, width) if name == "v7.1" else width) == GENERATIONS[name].prec(nr_irqs)
        assert reference.prec_of(name, nr_irqs) == GENERATIONS[name].prec(nr_irqs)


def test_number_width_ends_at_ten():
    """The loop of kernel/irq/proc.c stops there."""
    assert 10 == prec(10**30)


@pytest.mark.parametrize(
    ("legacy", "cpus", "nr_irqs", "width"),
    [
        (0, 2, 424, 3),
        (16, 8, 488, 3),
        (0, 8, 472, 3),
        (16, 71, 992, 3),
        (16, 72, 1000, 4),
        (0, 73, 992, 3),
        (0, 74, 1000, 4),
        (0, 128, 1432, 4),
        (0, 2048, 16792, 5),
    ],
)
def test_nr_irqs_at_boot_of_x86(legacy, cpus, nr_irqs, width):
    """The table of genirq.md 1.1; its first line was seen on a real guest."""
    assert nr_irqs == nr_irqs_at_boot("x86", cpus, legacy_irqs=legacy)
    assert width == prec(nr_irqs)


def test_nr_irqs_at_boot_is_limited():
    """256 per CPU, NR_IRQS, and 8 per CPU without an IO-APIC beyond the legacy lines."""
    assert 256 == nr_irqs_at_boot("x86", 1, gsi_top=120, legacy_irqs=16)
    assert 16640 == nr_irqs_at_boot("x86", 2048, limit=16640)
    assert 16 + 16 + 8 * 4 + 8 * 4 == nr_irqs_at_boot("x86", 4, gsi_top=16, legacy_irqs=16)
    assert 17 + 16 + 8 * 4 + 16 * 17 == nr_irqs_at_boot("x86", 4, gsi_top=17, legacy_irqs=16)


def test_nr_irqs_at_boot_of_arm64():
    """Nothing is preallocated: 64 whatever the machine."""
    assert 64 == nr_irqs_at_boot("arm64", 1) == nr_irqs_at_boot("arm64", 2048)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nr_irqs_at_boot("riscv", 1),
        lambda: nr_irqs_at_boot("x86", 0),
        lambda: nr_irqs_at_boot("x86", 1, gsi_top=-1),
        lambda: nr_irqs_at_boot("x86", 1, legacy_irqs=-1),
    ],
)
def test_nr_irqs_at_boot_refuses_nonsense(call):
    """EINVAL at the public edge."""
    with pytest.raises(IrqError) as caught:
        call()
    assert errno.EINVAL == caught.value.errno


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("has_action", [False, True])
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_which_rows_are_shown(name, has_action, chained, counted):
    """genirq.md 1.4: the table, cell by cell; a hidden IRQ never has a row."""
    expected = (has_action and not chained) or (name == "v6.10" and counted)
    shows = GENERATIONS[name].shows
    assert expected == shows(has_action=has_action, chained=chained, hidden=False, counted=counted)
    assert not shows(has_action=has_action, chained=chained, hidden=True, counted=counted)


@pytest.mark.parametrize("name", NAMES)
def test_an_immovable_irq(name):
    """genirq.md 2.1 and 2.3: EIO and 0644 in v6.10, EPERM and 0444 since."""
    known = GENERATIONS[name]
    assert ((errno.EIO, 0o644) if name == "v6.10" else (errno.EPERM, 0o444)) == (
        known.affinity_fixed_errno,
        known.affinity_fixed_mode,
    )


@pytest.mark.parametrize("name", NAMES)
def test_ipi_rows_of_arm64(name):
    """genirq.md 1.7: six in v6.10, eight since."""
    assert reference.ipi_texts(name) == list(GENERATIONS[name].arm64_ipis)


def test_what_came_later():
    """genirq.md 8 and 9."""
    flags = {
        name: (
            known.move_pcntxt_flag,
            known.shutdown_adds_depth,
            known.hides_impossible_rows,
        )
        for name, known in GENERATIONS.items()
    }
    assert flags == {
        "v6.10": (True, False, False),
        "v6.12": (True, False, False),
        "v6.13": (True, False, False),
        "v6.18": (False, True, False),
        "v7.1": (False, True, True),
    }


def test_rows_of_x86():
    """genirq.md 1.6: order, texts, and the seven rows that /proc/stat's total leaves out."""
    labels = "NMI LOC SPU PMI IWI RTR PLT RES CAL TLB TRM THR DFR MCE MCP HYP HRE HVS ERR MIS PIN NPI PIW PMN"
    assert labels == " ".join(row.label for row in X86_ROWS)
    assert ["TLB", "DFR", "MIS", "PIN", "NPI", "PIW", "PMN"] == [row.label for row in X86_ROWS if not row.in_total]
    texts = {row.label: row.text for row in X86_ROWS}
    assert reference.X86_DESCRIPTIONS.items() <= texts.items()
    assert ["ERR", "MIS"] == [row.label for row in X86_ROWS if row.text is None]
