"""A second, slow reading of genirq.md 1, 8 and 9: /proc/interrupts in plain Python, version by version.

Shares nothing with the package: formats are written out where they are used, branches ask for the version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

VERSIONS = ("v6.10", "v6.12", "v6.13", "v6.18", "v7.1")

X86_DESCRIPTIONS = {
    "NMI": "Non-maskable interrupts",
    "LOC": "Local timer interrupts",
    "SPU": "Spurious interrupts",
    "PMI": "Performance monitoring interrupts",
    "IWI": "IRQ work interrupts",
    "RTR": "APIC ICR read retries",
    "RES": "Rescheduling interrupts",
    "CAL": "Function call interrupts",
    "TLB": "TLB shootdowns",
    "TRM": "Thermal event interrupts",
    "THR": "Threshold APIC interrupts",
    "DFR": "Deferred Error APIC interrupts",
    "MCE": "Machine check exceptions",
    "MCP": "Machine check polls",
    "HYP": "Hypervisor callback interrupts",
    "HRE": "Hyper-V reenlightenment interrupts",
    "HVS": "Hyper-V stimer0 interrupts",
    "ERR": None,
    "MIS": None,
    "PIN": "Posted-interrupt notification event",
    "NPI": "Nested posted-interrupt event",
    "PIW": "Posted-interrupt wakeup event",
}


@dataclass(frozen=True)
class Irq:
    """A numbered row."""

    irq: int
    counts: Sequence[int]
    chip: str
    hwirq: int | None = None
    level: str | None = None
    flow: str | None = None
    actions: tuple[str, ...] = ()
    chip_prints: bool = False


@dataclass(frozen=True)
class Cpu:
    """A row like NMI."""

    label: str
    counts: Sequence[int]
    text: str


@dataclass(frozen=True)
class Ipi:
    """A row like IPI0."""

    number: int
    counts: Sequence[int]
    text: str


@dataclass(frozen=True)
class Single:
    """A row like ERR."""

    label: str
    value: int


def ipi_texts(version: str) -> list[str]:
    """Return the descriptions of arm64's IPIs (genirq.md 1.7)."""
    texts = ["Rescheduling interrupts", "Function call interrupts", "CPU stop interrupts"]
    texts += ["CPU stop (for crash dump) interrupts" if version == "v6.10" else "CPU stop NMIs"]
    texts += ["Timer broadcast interrupts", "IRQ work interrupts"]
    if version != "v6.10":
        texts += ["CPU backtrace interrupts", "KGDB roundup interrupts"]
    return texts


def prec_of(version: str, nr_irqs: int) -> int:
    """Return the number width (genirq.md 1.1 and 9)."""
    prec, j = (4, 10000) if version == "v7.1" else (3, 1000)
    while prec < 10 and j <= nr_irqs:
        prec += 1
        j *= 10
    return prec


def render(version: str, prec: int, cpus: Sequence[int], rows: Sequence[object], chip_width: int = 8) -> bytes:
    """Return the file; ``chip_width`` is the longest chip name ever set, which v7.1 remembers."""
    assert version in VERSIONS
    out = "%*s" % (prec + 8, "") + "".join("CPU%-8d" % cpu for cpu in cpus) + "\n"
    for row in rows:
        if isinstance(row, Irq):
            out += irq_row(version, prec, row, chip_width)
        elif isinstance(row, Cpu):
            out += cpu_row(version, prec, row)
        elif isinstance(row, Ipi):
            out += "%*s%u:%s" % (prec - 1, "IPI", row.number, " " if prec >= 4 else "")
            out += "".join("%10u " % count for count in row.counts) + "      " + row.text + "\n"
        elif isinstance(row, Single):
            out += "%*s: %10u\n" % (prec, row.label, row.value)
    return out.encode("utf-8", "surrogateescape")


def cpu_row(version: str, prec: int, row: Cpu) -> str:
    """Return a row of x86 (genirq.md 1.6 and 9)."""
    if version == "v7.1":
        return "%*s:" % (prec, row.label) + "".join(" %10u" % n for n in row.counts) + "  " + row.text + "\n"
    return "%*s: " % (prec, row.label) + "".join("%10u " % n for n in row.counts) + "  " + row.text + "\n"


def irq_row(version: str, prec: int, row: Irq, chip_width: int) -> str:
    """Return a numbered row (genirq.md 1.3 and 9)."""
    chip_bytes = len(row.chip.encode("utf-8", "surrogateescape"))
    if version in ("v6.10", "v6.12"):
        out = "%*d: " % (prec, row.irq) + "".join("%10u " % n for n in row.counts)
        out += row.chip if row.chip_prints else " " + " " * (8 - chip_bytes) + row.chip
    elif version in ("v6.13", "v6.18"):
        out = "%*d:" % (prec, row.irq) + "".join(" %10u" % n for n in row.counts) + " "
        out += row.chip if row.chip_prints else " " * (8 - chip_bytes) + row.chip
    else:
        out = "%*d:" % (prec, row.irq) + "".join(" %10u" % n for n in row.counts) + "  "
        out += row.chip if row.chip_prints else row.chip + " " * (max(8, chip_width) - chip_bytes)
    if row.hwirq is not None:
        out += " %*u" % (prec, row.hwirq)
    elif version == "v7.1":
        out += " " + " " + "%*s" % (prec, "")
    else:
        out += " " + "%*s" % (prec, "")
    if row.level is not None:
        out += " %-8s" % row.level
    if row.flow is not None:
        out += "-%-8s" % row.flow
    if row.actions:
        out += "  " + row.actions[0]
        for name in row.actions[1:]:
            out += ", " + name
    return out + "\n"
