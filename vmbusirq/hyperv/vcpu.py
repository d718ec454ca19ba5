"""A virtual processor as its guest programs it: registers by number, faults, reset (TLFS; synic.md 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from vmbusirq.hyperv.apic import LocalApic
from vmbusirq.hyperv.hypercall import HvStatus, HypercallRefused
from vmbusirq.hyperv.registers import BY_MSR, BY_VP_REGISTER, Msr

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition

__all__ = ["GeneralProtectionFault", "Vcpu"]


class GeneralProtectionFault(Exception):
    """#GP: the guest takes the fault, and the register keeps its old value.

    Attributes:
        msr: which register was meant.
        value: what was to be written, None for a read.
        vp: on which VP.
    """

    def __init__(self, msr: int, value: int | None, vp: int) -> None:
        register = BY_MSR.get(msr)
        name = f"msr {msr:#x}" + (f" ({register.name})" if register else "")
        what = f"read {name}" if value is None else f"write {value:#x} to {name}"
        super().__init__(f"vp {vp}: cannot {what}: general protection fault")
        self.msr: Final = msr
        self.value: Final = value
        self.vp: Final = vp


class Vcpu:
    """One VP; ``partition.vcpus[i]`` has index i.

    Attributes:
        index: its VP index.
        partition: whose it is.
        apic: its interrupt controller.
        profile: how its SIM and SIEF pages behave when they are enabled: the partition's, unless a VMM activated its
            SynIC in another way (KVM's SYNIC and SYNIC2).
        values: what its registers hold, by MSR; those that were never written are missing.
        synic_active: its SynIC exists; false until :meth:`activate_synic` in profiles that want to be asked.
    """

    __slots__ = ("apic", "index", "partition", "profile", "synic_active", "values")

    def __init__(self, partition: Partition, index: int) -> None:
        self.partition: Final = partition
        self.index: Final = index
        self.profile = partition.profile
        self.apic: Final = LocalApic(self)
        self.values: Final[dict[int, int]] = {}
        self.synic_active = not partition.profile.needs_activation
        self._reset_scontrol()

    def rdmsr(self, msr: int, *, host: bool = False) -> int:
        """Read a register by its MSR number.

        Args:
            msr: which.
            host: the VMM saves state (KVM_GET_MSRS); what the guest is not offered can be read, too.
        Raises:
            GeneralProtectionFault: there is none, it is not offered, or it can only be written.
        """
        return self.partition.registers.read(self, msr, host=host)

    def wrmsr(self, msr: int, value: int, *, host: bool = False) -> None:
        """Write a register by its MSR number.

        Args:
            msr: which.
            value: 64 bits.
            host: the VMM restores state (KVM_SET_MSRS): registers that only say something take no notice.
        Raises:
            GeneralProtectionFault: there is none, it is not offered, it can only be read, or not take that value.
            IrqError: EINVAL, the value has more than 64 bits.
        """
        self.partition.registers.write(self, msr, value, host=host)

    def get_vp_register(self, name: int) -> int:
        """Read a register by its VP register number, as arm64 guests do. INVALID_PARAMETER instead of a fault."""
        try:
            return self.rdmsr(_msr_of(name))
        except GeneralProtectionFault as fault:
            raise HypercallRefused(HvStatus.INVALID_PARAMETER, str(fault)) from fault

    def set_vp_register(self, name: int, value: int) -> None:
        """Write a register by its VP register number. INVALID_PARAMETER instead of a fault."""
        try:
            self.wrmsr(_msr_of(name), value)
        except GeneralProtectionFault as fault:
            raise HypercallRefused(HvStatus.INVALID_PARAMETER, str(fault)) from fault

    def fault(self, msr: int, value: int | None = None) -> NoReturn:
        """Raise #GP for a register of this VP."""
        raise GeneralProtectionFault(msr, value, self.index)

    def activate_synic(self) -> None:
        """Give it a SynIC (KVM_ENABLE_CAP of KVM_CAP_HYPERV_SYNIC); it has one already unless the profile asks.

        SCONTROL takes its reset value, each time; what a host has put into the other registers before is in force
        from now on.
        """
        self.synic_active = True
        self.partition.synic_registers.activate(self)

    def reset(self) -> None:
        """Take the VP back to what it was when it was created: its registers, then what rooms keep for it."""
        old = dict(self.values)
        self.values.clear()
        self._reset_scontrol()
        self.partition.synic_registers.reset(self, old)
        self.partition.partition_registers.reset_vp(self)
        for heard in self.partition.on_vp_reset:
            heard(self)

    def _reset_scontrol(self) -> None:
        if self.synic_active and self.partition.profile.scontrol_reset:
            self.values[Msr.SCONTROL] = self.partition.profile.scontrol_reset


def _msr_of(name: int) -> int:
    register = BY_VP_REGISTER.get(name)
    if register is None:
        raise HypercallRefused(HvStatus.INVALID_PARAMETER, f"there is no VP register {name:#x}")
    return register.msr
