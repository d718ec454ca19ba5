"""What a partition offers its guest: the enlightenment CPUID leaves as data (TLFS, feature discovery; synic.md 2.5).

A feature is one bit of one leaf. It gates registers (#GP without it) and hypercalls (ACCESS_DENIED without it), and
the guest reads the same bits to learn what it may use. An arm64 guest has no CPUID: it gets the same groups of bits
from a VP register, in which stimer direct mode has another number.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from vmbusirq.errors import IrqError

__all__ = ["LEAF_FIRST", "LEAF_LAST", "CpuidLeaf", "Feature", "Features"]

LEAF_FIRST: Final = 0x4000_0000
LEAF_LAST: Final = 0x4000_0006
_FEATURES: Final = 0x4000_0003
_HINTS: Final = 0x4000_0004
_DIRECT_BIT_ARM64: Final = 13


class Feature(Enum):
    """One bit: leaf, register, number of the bit on x86."""

    VP_RUNTIME = (_FEATURES, "eax", 0)
    TIME_REF_COUNT = (_FEATURES, "eax", 1)
    SYNIC = (_FEATURES, "eax", 2)
    STIMER = (_FEATURES, "eax", 3)
    APIC_ACCESS = (_FEATURES, "eax", 4)
    HYPERCALL = (_FEATURES, "eax", 5)
    VP_INDEX = (_FEATURES, "eax", 6)
    RESET = (_FEATURES, "eax", 7)
    REFERENCE_TSC = (_FEATURES, "eax", 9)
    GUEST_IDLE = (_FEATURES, "eax", 10)
    FREQUENCY = (_FEATURES, "eax", 11)
    REENLIGHTENMENT = (_FEATURES, "eax", 13)
    TSC_INVARIANT = (_FEATURES, "eax", 15)
    POST_MESSAGES = (_FEATURES, "ebx", 4)
    SIGNAL_EVENTS = (_FEATURES, "ebx", 5)
    VP_REGISTERS = (_FEATURES, "ebx", 17)
    EXTENDED_HYPERCALLS = (_FEATURES, "ebx", 20)
    XMM_INPUT = (_FEATURES, "edx", 4)
    FREQUENCY_USABLE = (_FEATURES, "edx", 8)
    CRASH = (_FEATURES, "edx", 10)
    STIMER_DIRECT = (_FEATURES, "edx", 19)
    APIC_HINT = (_HINTS, "eax", 3)
    AUTO_EOI_DEPRECATED = (_HINTS, "eax", 9)


_GEN2: Final = frozenset(
    {
        *{Feature.VP_RUNTIME, Feature.TIME_REF_COUNT, Feature.SYNIC, Feature.STIMER, Feature.APIC_ACCESS},
        *{Feature.HYPERCALL, Feature.VP_INDEX, Feature.RESET, Feature.REFERENCE_TSC, Feature.GUEST_IDLE},
        *{Feature.FREQUENCY, Feature.REENLIGHTENMENT, Feature.POST_MESSAGES, Feature.SIGNAL_EVENTS},
        *{Feature.VP_REGISTERS, Feature.XMM_INPUT, Feature.FREQUENCY_USABLE, Feature.CRASH, Feature.STIMER_DIRECT},
    }
)


@dataclass(frozen=True, slots=True)
class CpuidLeaf:
    """What CPUID leaves in the four registers."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


@dataclass(frozen=True, slots=True)
class Features:
    """What is offered; the default is all that Linux expects of a Generation 2 guest, TSC invariance excepted.

    Auto-EOI is not deprecated: a guest then saves the EOI of each callback vector.

    Attributes:
        offered: the bits that are 1.
        arch: ``"x86"`` or ``"arm64"``: where the bit of stimer direct mode stands.
        vendor: twelve bytes, EBX, ECX and EDX of leaf 0x40000000.
        version: major, minor and build number of the hypervisor, leaf 0x40000002.
        max_vps: leaf 0x40000005.
    """

    offered: frozenset[Feature] = _GEN2
    arch: str = "x86"
    vendor: bytes = b"Microsoft Hv"
    version: tuple[int, int, int] = (10, 0, 20348)
    max_vps: int = 2048

    def __post_init__(self) -> None:
        if self.arch not in ("x86", "arm64") or len(self.vendor) != 12:
            raise IrqError(errno.EINVAL, f"features: arch {self.arch!r}, vendor {self.vendor!r}: no such (EINVAL)")

    def has(self, feature: Feature) -> bool:
        """Return whether the bit is 1."""
        return feature in self.offered

    def plus(self, *features: Feature) -> Features:
        """Return the same with more bits."""
        return replace(self, offered=self.offered | set(features))

    def minus(self, *features: Feature) -> Features:
        """Return the same with fewer bits."""
        return replace(self, offered=self.offered - set(features))

    def leaf(self, number: int) -> CpuidLeaf:
        """Return one leaf; all zeroes outside 0x40000000 to 0x40000006."""
        if number == LEAF_FIRST:
            words = (int.from_bytes(self.vendor[at : at + 4], "little") for at in (0, 4, 8))
            return CpuidLeaf(LEAF_LAST, *words)
        if number == LEAF_FIRST + 1:
            return CpuidLeaf(eax=int.from_bytes(b"Hv#1", "little"))
        if number == LEAF_FIRST + 2:
            major, minor, build = self.version
            return CpuidLeaf(eax=build, ebx=major << 16 | minor)
        if number == LEAF_FIRST + 5:
            return CpuidLeaf(eax=self.max_vps)
        return CpuidLeaf(**self._bits(number))

    def leaves(self) -> dict[int, CpuidLeaf]:
        """Return all leaves by number."""
        return {number: self.leaf(number) for number in range(LEAF_FIRST, LEAF_LAST + 1)}

    @classmethod
    def of(cls, leaves: Iterable[tuple[int, CpuidLeaf]], arch: str = "x86") -> Features:
        """Return what those leaves offer, as a guest reads them; bits without a name are passed over."""
        by_number = dict(leaves)
        empty = cls(frozenset(), arch)
        offered = {
            feature
            for feature in Feature
            if getattr(by_number.get(feature.value[0], CpuidLeaf()), feature.value[1]) >> empty.bit(feature) & 1
        }
        return replace(empty, offered=frozenset(offered))

    def bit(self, feature: Feature) -> int:
        """Return the number of a feature's bit in its register."""
        direct_arm64 = feature is Feature.STIMER_DIRECT and self.arch == "arm64"
        return _DIRECT_BIT_ARM64 if direct_arm64 else feature.value[2]

    def _bits(self, number: int) -> dict[str, int]:
        words = dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0)
        for feature in self.offered:
            leaf, register, _bit = feature.value
            if leaf == number:
                words[register] |= 1 << self.bit(feature)
        return words
