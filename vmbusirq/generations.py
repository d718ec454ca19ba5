"""Kernel generations: what a reader of the IRQ files can tell them apart by, one frozen record each.

Every difference is a field. Code that renders, lists or refuses asks the record; nothing asks for a version.
Sources: kernel/irq/proc.c, arch/x86/kernel/irq.c and arch/arm64/kernel/smp.c of the versions named.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from vmbusirq.errors import IrqError

__all__ = [
    "DEFAULT_GENERATION",
    "GENERATIONS",
    "X86_ROWS",
    "ArchRow",
    "Generation",
    "TextLayout",
    "generation",
    "nr_irqs_at_boot",
    "prec",
]

PREC_MAX: Final = 10
"""Widest number column: nr_irqs is an int, so ten digits always suffice."""

NR_IRQS_X86: Final = 256 + 64 * 8192
"""NR_IRQS of an x86 kernel built for 8192 CPUs, as distributions build it (arch/x86/include/asm/irq_vectors.h)."""

NR_IRQS_ARM64: Final = 64
"""NR_IRQS of arm64: where nr_irqs starts, not a limit."""


@dataclass(frozen=True, slots=True)
class TextLayout:
    """The text of one row of /proc/interrupts, as far as it changed between versions.

    A cell is the same eleven bytes in all of them: a blank and ``%10u``. Up to v6.12 the blank belongs to the
    end of a cell ("%10u "), later to its beginning (" %10u"); since the label brings the other blank, only the
    gap behind the last cell shows it. Gaps are blanks between the last digit of a row and what follows.
    """

    name: str
    chip_gap: int
    """Before the field of the chip name."""
    printed_chip_gap: int
    """Before what a chip prints itself (irq_print_chip), which no field pads."""
    text_gap: int
    """Before the description of an x86 row."""
    chip_left: bool
    """The chip name is left-aligned, in a width that grows with the longest name; else right-aligned in 8."""
    no_domain_blanks: int
    """Width in place of the hwirq of an IRQ without domain, over ``prec``."""


_TRAILING: Final = TextLayout(
    "trailing", chip_gap=2, printed_chip_gap=1, text_gap=3, chip_left=False, no_domain_blanks=1
)
_LEADING: Final = TextLayout("leading", chip_gap=1, printed_chip_gap=1, text_gap=3, chip_left=False, no_domain_blanks=1)
_LEFT: Final = TextLayout("left", chip_gap=2, printed_chip_gap=2, text_gap=2, chip_left=True, no_domain_blanks=2)


@dataclass(frozen=True, slots=True)
class ArchRow:
    """A row that belongs to no IRQ: a per-CPU counter of the architecture."""

    label: str
    text: str | None
    """The description; None: the row has a single number and no description."""
    in_total: bool
    """Part of the total of /proc/stat's intr line (arch_irq_stat_cpu, arch_irq_stat)."""


X86_ROWS: Final = (
    ArchRow("NMI", "Non-maskable interrupts", True),
    ArchRow("LOC", "Local timer interrupts", True),
    ArchRow("SPU", "Spurious interrupts", True),
    ArchRow("PMI", "Performance monitoring interrupts", True),
    ArchRow("IWI", "IRQ work interrupts", True),
    ArchRow("RTR", "APIC ICR read retries", True),
    ArchRow("PLT", "Platform interrupts", True),
    ArchRow("RES", "Rescheduling interrupts", True),
    ArchRow("CAL", "Function call interrupts", True),
    ArchRow("TLB", "TLB shootdowns", False),
    ArchRow("TRM", "Thermal event interrupts", True),
    ArchRow("THR", "Threshold APIC interrupts", True),
    ArchRow("DFR", "Deferred Error APIC interrupts", False),
    ArchRow("MCE", "Machine check exceptions", True),
    ArchRow("MCP", "Machine check polls", True),
    ArchRow("HYP", "Hypervisor callback interrupts", True),
    ArchRow("HRE", "Hyper-V reenlightenment interrupts", True),
    ArchRow("HVS", "Hyper-V stimer0 interrupts", True),
    ArchRow("ERR", None, True),
    ArchRow("MIS", None, False),
    ArchRow("PIN", "Posted-interrupt notification event", False),
    ArchRow("NPI", "Nested posted-interrupt event", False),
    ArchRow("PIW", "Posted-interrupt wakeup event", False),
    ArchRow("PMN", "Posted MSI notification event", False),
)
"""Rows of x86 in the order of the file (arch/x86/kernel/irq.c, v6.10; the same list in v6.18)."""

IRQ_WORK_IPI: Final = "IRQ work interrupts"
_IPIS_6: Final = (
    "Rescheduling interrupts",
    "Function call interrupts",
    "CPU stop interrupts",
    "CPU stop (for crash dump) interrupts",
    "Timer broadcast interrupts",
    IRQ_WORK_IPI,
)
_IPIS_8: Final = (
    "Rescheduling interrupts",
    "Function call interrupts",
    "CPU stop interrupts",
    "CPU stop NMIs",
    "Timer broadcast interrupts",
    IRQ_WORK_IPI,
    "CPU backtrace interrupts",
    "KGDB roundup interrupts",
)


def prec(nr_irqs: int, floor: int = 3) -> int:
    """Return the width of the number column for ``nr_irqs`` slots, never less than ``floor`` (kernel/irq/proc.c)."""
    width = floor
    while width < PREC_MAX and 10**width <= nr_irqs:
        width += 1
    return width


def nr_irqs_at_boot(
    arch: str, nr_cpu_ids: int, *, gsi_top: int = 24, legacy_irqs: int = 0, limit: int = NR_IRQS_X86
) -> int:
    """Return how many IRQ slots a machine starts with; allocation may raise it later (CONFIG_PCI_MSI on).

    Args:
        arch: ``x86`` or ``arm64``; arm64 preallocates nothing and starts at 64 whatever the rest says.
        nr_cpu_ids: highest possible CPU id + 1.
        gsi_top: first GSI above the IO-APICs, 24 for one of 24 pins.
        legacy_irqs: IRQs of the legacy PIC, 16 or 0.
        limit: NR_IRQS of the kernel, which depends on the CPUs it was built for.
    Raises:
        IrqError(EINVAL): unknown architecture or a count out of range.
    See: arch/x86/kernel/apic/vector.c, v6.10.
    """
    if arch not in ("x86", "arm64"):
        raise IrqError(errno.EINVAL, f"architecture {arch!r} is not known (EINVAL); known: x86, arm64")
    if nr_cpu_ids < 1 or gsi_top < 0 or legacy_irqs < 0:
        raise IrqError(
            errno.EINVAL,
            f"nr_irqs of {nr_cpu_ids} CPUs, GSIs up to {gsi_top}, {legacy_irqs} legacy IRQs: a count is too small "
            "(EINVAL); at least 1 CPU and no negative count",
        )
    if arch == "arm64":
        return NR_IRQS_ARM64
    wanted = gsi_top + legacy_irqs + 8 * nr_cpu_ids
    wanted += 8 * nr_cpu_ids if gsi_top <= 16 else 16 * gsi_top
    return min(limit, 256 * nr_cpu_ids, wanted)


@dataclass(frozen=True, slots=True)
class Generation:
    """One kernel generation: everything about it that shows in a file, an errno or a counter."""

    name: str
    layout: TextLayout
    prec_floor: int
    """Width of the number column on a small machine."""
    shows_nameless: bool
    """An IRQ without action, or with a chained handler, has a row once it was counted; else it has none."""
    hides_impossible_rows: bool
    """x86 rows whose cause cannot occur on the machine are left out."""
    affinity_fixed_errno: int
    """errno of a write to the smp_affinity of an IRQ that cannot be moved."""
    affinity_fixed_mode: int
    """Mode of smp_affinity and smp_affinity_list of such an IRQ; 0644 for all others."""
    arm64_ipis: tuple[str, ...]
    """Descriptions of the IPI rows of arm64, IPI0 first."""
    move_pcntxt_flag: bool
    """IRQ_MOVE_PCNTXT exists: moving in process context is what a chip asks for, not the default."""
    shutdown_adds_depth: bool
    """Shutting an IRQ down adds 1 to its disable depth; else it sets it to 1."""
    managed_starts_set: bool
    """Managed IRQs are made with AFFINITY_SET."""
    request_cond_oneshot: bool
    """request_irq adds IRQF_COND_ONESHOT: a plain request may share a line with a ONESHOT one."""
    kstrtobool_letters: tuple[str, str]
    """First letters, in either case, of what a boolean attribute takes for true, and for false, besides on and off."""

    def prec(self, nr_irqs: int) -> int:
        """Return the width of the number column for ``nr_irqs`` slots."""
        return prec(nr_irqs, self.prec_floor)

    def shows(self, *, has_action: bool, chained: bool, hidden: bool, counted: bool) -> bool:
        """Tell whether an IRQ has a row in /proc/interrupts.

        Args:
            has_action: somebody requested it.
            chained: a chained handler is installed.
            hidden: IRQ_HIDDEN is set.
            counted: tot_count is not 0 (per-CPU IRQs: the sum over online CPUs).
        See: show_interrupts() in kernel/irq/proc.c, v6.10 and v6.12.
        """
        if hidden:
            return False
        return (has_action and not chained) or (self.shows_nameless and counted)


_V6_10: Final = Generation(
    name="v6.10",
    layout=_TRAILING,
    prec_floor=3,
    shows_nameless=True,
    hides_impossible_rows=False,
    affinity_fixed_errno=errno.EIO,
    affinity_fixed_mode=0o644,
    arm64_ipis=_IPIS_6,
    move_pcntxt_flag=True,
    shutdown_adds_depth=False,
    managed_starts_set=False,
    request_cond_oneshot=False,
    kstrtobool_letters=("1yt", "0nf"),
)
_V6_12: Final = replace(
    _V6_10,
    name="v6.12",
    shows_nameless=False,
    affinity_fixed_errno=errno.EPERM,
    affinity_fixed_mode=0o444,
    arm64_ipis=_IPIS_8,
    request_cond_oneshot=True,
)
_V6_13: Final = replace(_V6_12, name="v6.13", layout=_LEADING)
_V6_18: Final = replace(
    _V6_13,
    name="v6.18",
    move_pcntxt_flag=False,
    shutdown_adds_depth=True,
    managed_starts_set=True,
    kstrtobool_letters=("1yte", "0nfd"),
)
_V7_1: Final = replace(_V6_18, name="v7.1", layout=_LEFT, prec_floor=4, hides_impossible_rows=True)

GENERATIONS: Final[Mapping[str, Generation]] = MappingProxyType(
    {known.name: known for known in (_V6_10, _V6_12, _V6_13, _V6_18, _V7_1)}
)
"""The known generations by name, oldest first."""

DEFAULT_GENERATION: Final = _V6_10
"""What the RFC series is based on."""


def generation(name: str) -> Generation:
    """Return the generation of that name; ``v6.10`` is the default of everything that has one.

    Raises:
        IrqError(EINVAL): no such generation.
    """
    try:
        return GENERATIONS[name]
    except KeyError:
        known = ", ".join(GENERATIONS)
        raise IrqError(errno.EINVAL, f"kernel generation {name!r} is not known (EINVAL); known: {known}") from None
