"""The synthetic registers of one partition: which there are, who may use them, and where their values lie.

By MSR number on x86, by VP register number on arm64 and in HvCallGet/SetVpRegisters (TLFS; synic.md 2.1). What a
register means is its room's business: a room takes over its numbers with :meth:`RegisterFile.serve`. What has no
room is a plain value.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.cpuid import Feature
from vmbusirq.limits import SINTS

if TYPE_CHECKING:
    from vmbusirq.hyperv.cpuid import Features
    from vmbusirq.hyperv.profiles import Profile
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["BY_MSR", "BY_VP_REGISTER", "REGISTERS", "SINT_RESET", "STIMERS", "Msr", "Register", "RegisterFile"]

STIMERS: Final = 4
SINT_RESET: Final = 1 << 16
"""A SINT of a fresh VP is masked, vector 0."""
_VALUE_END: Final = 1 << 64

Read: TypeAlias = "Callable[[Vcpu, int], int]"
Write: TypeAlias = "Callable[[Vcpu, int, int, bool], None]"


class Msr:
    """The MSR numbers. SINTn is ``SINT0 + n``, timer t has ``STIMER0_CONFIG + 2t`` and ``STIMER0_COUNT + 2t``."""

    GUEST_OS_ID: Final = 0x4000_0000
    HYPERCALL: Final = 0x4000_0001
    VP_INDEX: Final = 0x4000_0002
    RESET: Final = 0x4000_0003
    VP_RUNTIME: Final = 0x4000_0010
    TIME_REF_COUNT: Final = 0x4000_0020
    REFERENCE_TSC: Final = 0x4000_0021
    TSC_FREQUENCY: Final = 0x4000_0022
    APIC_FREQUENCY: Final = 0x4000_0023
    EOI: Final = 0x4000_0070
    ICR: Final = 0x4000_0071
    TPR: Final = 0x4000_0072
    VP_ASSIST_PAGE: Final = 0x4000_0073
    SCONTROL: Final = 0x4000_0080
    SVERSION: Final = 0x4000_0081
    SIEFP: Final = 0x4000_0082
    SIMP: Final = 0x4000_0083
    EOM: Final = 0x4000_0084
    SINT0: Final = 0x4000_0090
    STIMER0_CONFIG: Final = 0x4000_00B0
    STIMER0_COUNT: Final = 0x4000_00B1
    GUEST_IDLE: Final = 0x4000_00F0
    CRASH_P0: Final = 0x4000_0100
    CRASH_CTL: Final = 0x4000_0105
    REENLIGHTENMENT_CONTROL: Final = 0x4000_0106
    TSC_EMULATION_CONTROL: Final = 0x4000_0107
    TSC_EMULATION_STATUS: Final = 0x4000_0108
    TSC_INVARIANT_CONTROL: Final = 0x4000_0118


@dataclass(frozen=True, slots=True)
class Register:
    """One register.

    Attributes:
        name: as synic.md 2.1 has it.
        msr: its number on x86.
        vp_register: its number on arm64, None if it has none.
        scope: one per VP, or one for all of a partition.
        access: what a guest may do with it.
        reset: its value after reset; SCONTROL's is the profile's.
        feature: the bit that offers it.
        needs_synic: it is there only while the VP's SynIC is active.
    """

    name: str
    msr: int
    vp_register: int | None
    scope: Literal["vp", "partition"]
    access: Literal["rw", "r", "w"]
    reset: int
    feature: Feature
    needs_synic: bool = False


def _table() -> tuple[Register, ...]:
    f = Feature
    timers = (
        Register(f"STIMER{t}_{what}", 0x4000_00B0 + 2 * t + i, 0xB_0000 + 2 * t + i, "vp", "rw", 0, f.STIMER, True)
        for t in range(STIMERS)
        for i, what in enumerate(("CONFIG", "COUNT"))
    )
    return (
        Register("GUEST_OS_ID", Msr.GUEST_OS_ID, 0x9_0002, "partition", "rw", 0, f.HYPERCALL),
        Register("HYPERCALL", Msr.HYPERCALL, 0x9_0001, "partition", "rw", 0, f.HYPERCALL),
        Register("VP_INDEX", Msr.VP_INDEX, 0x9_0003, "vp", "r", 0, f.VP_INDEX),
        Register("RESET", Msr.RESET, None, "partition", "rw", 0, f.RESET),
        Register("VP_RUNTIME", Msr.VP_RUNTIME, 0x9_0000, "vp", "r", 0, f.VP_RUNTIME),
        Register("TIME_REF_COUNT", Msr.TIME_REF_COUNT, 0x9_0004, "partition", "r", 0, f.TIME_REF_COUNT),
        Register("REFERENCE_TSC", Msr.REFERENCE_TSC, 0x9_0017, "partition", "rw", 0, f.REFERENCE_TSC),
        Register("TSC_FREQUENCY", Msr.TSC_FREQUENCY, 0x240, "partition", "r", 2_500_000_000, f.FREQUENCY),
        Register("APIC_FREQUENCY", Msr.APIC_FREQUENCY, 0x241, "partition", "r", 200_000_000, f.FREQUENCY),
        Register("EOI", Msr.EOI, None, "vp", "w", 0, f.APIC_ACCESS),
        Register("ICR", Msr.ICR, None, "vp", "rw", 0, f.APIC_ACCESS),
        Register("TPR", Msr.TPR, None, "vp", "rw", 0, f.APIC_ACCESS),
        Register("VP_ASSIST_PAGE", Msr.VP_ASSIST_PAGE, 0x9_0013, "vp", "rw", 0, f.APIC_ACCESS),
        Register("SCONTROL", Msr.SCONTROL, 0xA_0010, "vp", "rw", 0, f.SYNIC, True),
        Register("SVERSION", Msr.SVERSION, 0xA_0011, "vp", "r", 1, f.SYNIC, True),
        Register("SIEFP", Msr.SIEFP, 0xA_0012, "vp", "rw", 0, f.SYNIC, True),
        Register("SIMP", Msr.SIMP, 0xA_0013, "vp", "rw", 0, f.SYNIC, True),
        Register("EOM", Msr.EOM, 0xA_0014, "vp", "rw", 0, f.SYNIC, True),
        *(
            Register(f"SINT{n}", Msr.SINT0 + n, 0xA_0000 + n, "vp", "rw", SINT_RESET, f.SYNIC, True)
            for n in range(SINTS)
        ),
        *timers,
        Register("GUEST_IDLE", Msr.GUEST_IDLE, 0x250, "vp", "r", 0, f.GUEST_IDLE),
        *(Register(f"CRASH_P{n}", Msr.CRASH_P0 + n, 0x210 + n, "partition", "rw", 0, f.CRASH) for n in range(5)),
        Register("CRASH_CTL", Msr.CRASH_CTL, 0x215, "partition", "rw", 0, f.CRASH),
        *(
            Register(name, msr, None, "partition", "rw", 0, f.REENLIGHTENMENT)
            for name, msr in (
                ("REENLIGHTENMENT_CONTROL", Msr.REENLIGHTENMENT_CONTROL),
                ("TSC_EMULATION_CONTROL", Msr.TSC_EMULATION_CONTROL),
                ("TSC_EMULATION_STATUS", Msr.TSC_EMULATION_STATUS),
            )
        ),
        Register("TSC_INVARIANT_CONTROL", Msr.TSC_INVARIANT_CONTROL, None, "partition", "rw", 0, f.TSC_INVARIANT),
    )


REGISTERS: Final = _table()
BY_MSR: Final[dict[int, Register]] = {register.msr: register for register in REGISTERS}
BY_VP_REGISTER: Final[dict[int, Register]] = {
    register.vp_register: register for register in REGISTERS if register.vp_register is not None
}


def _number(msr: int) -> int:
    if not isinstance(msr, int) or not 0 <= msr < 1 << 32:
        raise IrqError(errno.EINVAL, f"registers: {msr!r} is no MSR number (EINVAL); they have 32 bits")
    return msr


class RegisterFile:
    """The values of all registers of a partition, and the rooms that serve some of them.

    Args:
        features: what is offered.
        profile: what differs between implementations.

    Attributes:
        after_write: called as (vcpu, msr, value, host) after each write that did not fault.
    """

    def __init__(self, features: Features, profile: Profile) -> None:
        self._features = features
        self._profile = profile
        self._rooms: dict[int, tuple[Read | None, Write | None]] = {}
        self._shared: dict[int, int] = {}
        self.after_write: Final[list[Write]] = []

    def serve(self, msrs: Iterable[int], read: Read | None, write: Write | None) -> None:
        """Let a room answer for registers, instead of whoever did before.

        Who may use a register is checked before; the room checks values and refuses with :meth:`Vcpu.fault`.

        Args:
            msrs: their MSR numbers; VP register numbers lead to the same.
            read: called as (vcpu, msr); None: the stored value is read.
            write: called as (vcpu, msr, value, host); it stores with :meth:`store` what is to be stored. None: any
                value is stored.
        Raises:
            IrqError: EINVAL, there is no such register.
        """
        for msr in msrs:
            if msr not in BY_MSR:
                raise IrqError(errno.EINVAL, f"registers: cannot serve msr {msr:#x}: there is none (EINVAL)")
            self._rooms[msr] = read, write

    def value(self, vcpu: Vcpu, msr: int) -> int:
        """Return what is stored, whoever may read it."""
        register = BY_MSR[msr]
        values = self._shared if register.scope == "partition" else vcpu.values
        return values.get(msr, register.reset)

    def store(self, vcpu: Vcpu, msr: int, value: int) -> None:
        """Store a value; no rule is looked at and no room hears of it."""
        values = self._shared if BY_MSR[msr].scope == "partition" else vcpu.values
        values[msr] = value

    def read(self, vcpu: Vcpu, msr: int, *, host: bool = False) -> int:
        """Read as :meth:`Vcpu.rdmsr`."""
        register = BY_MSR.get(_number(msr))
        if register is None or not (host or self._there(vcpu, register)):
            vcpu.fault(msr)
        if register.access == "w" and not host:
            vcpu.fault(msr)
        read = self._rooms.get(msr, (None, None))[0]
        return self.value(vcpu, msr) if read is None else read(vcpu, msr)

    def write(self, vcpu: Vcpu, msr: int, value: int, *, host: bool = False) -> None:
        """Write as :meth:`Vcpu.wrmsr`."""
        register = BY_MSR.get(_number(msr))
        if not isinstance(value, int) or not 0 <= value < _VALUE_END:
            raise IrqError(errno.EINVAL, f"registers: {value!r} does not fit msr {msr:#x}: 64 bits (EINVAL)")
        if register is None or not (self._host_may(vcpu, register, value) if host else self._there(vcpu, register)):
            vcpu.fault(msr, value)
        if register.access == "r" and not host:
            vcpu.fault(msr, value)
        write = self._rooms.get(msr, (None, None))[1]
        if write is not None:
            write(vcpu, msr, value, host)
        elif register.access != "r":
            self.store(vcpu, msr, value)
        for heard in self.after_write:
            heard(vcpu, msr, value, host)

    def reset_shared(self) -> None:
        """Take the partition's own registers back to their reset values: a system reset."""
        self._shared.clear()

    def _there(self, vcpu: Vcpu, register: Register) -> bool:
        return self._features.has(register.feature) and (vcpu.synic_active or not register.needs_synic)

    def _host_may(self, vcpu: Vcpu, register: Register, value: int) -> bool:
        """A host restores what it has saved, offered or not (KVM, v6.16)."""
        if not register.needs_synic or vcpu.synic_active:
            return True
        return self._profile.host_inactive_write == "any" or value == 0
