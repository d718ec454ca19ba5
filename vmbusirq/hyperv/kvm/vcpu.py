"""One vCPU as KVM shows it to user space: capabilities, KVM_RUN with its exits, SINTs raised and acknowledged."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.kvm.routing import NO_GSI
from vmbusirq.hyperv.kvm.uapi import EXIT_SIZE, RESULT_OFFSET, HcallExit, KvmCap, SynicExit
from vmbusirq.hyperv.profiles import PROFILES
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.synic_registers import SINT_MASKED, SINT_VECTOR
from vmbusirq.hyperv.vcpu import GeneralProtectionFault, Vcpu
from vmbusirq.limits import SINTS

if TYPE_CHECKING:
    from vmbusirq.hyperv.kvm.vm import KvmVm

__all__ = ["Exit", "Guest", "Hypercall", "KvmVcpu", "Wrmsr"]

Exit: TypeAlias = SynicExit | HcallExit
_EXITING: Final = (Msr.SCONTROL, Msr.SIEFP, Msr.SIMP)
_CAP_ARGS: Final = 4
_PAGES_ZEROED: Final = PROFILES["kvm"]
_PAGES_STAY: Final = PROFILES["kvm-synic2"]


@dataclass(frozen=True, slots=True)
class Wrmsr:
    """Write an MSR. A #GP is raised inside the guest, where it was yielded."""

    msr: int
    value: int


@dataclass(frozen=True, slots=True)
class Hypercall:
    """Make a hypercall; the guest is sent the result word."""

    control: int
    input: int
    output: int = 0


Guest: TypeAlias = Generator[Wrmsr | Hypercall, int, None]
"""What a vCPU runs: it yields what may exit to user space and does all else to its :class:`Vcpu` itself."""


class KvmVcpu:
    """One vCPU of a :class:`KvmVm`; ``vm.vcpus[i]`` has VP index i.

    Attributes:
        vm, vcpu: whose it is, and the registers and the local APIC behind it.
        sint_to_gsi: whose acknowledge an EOI or EOM of a SINT is; :data:`NO_GSI`, nobody's.
        hyperv: the bytes of ``kvm_run.hyperv``, shared with user space: the last exit, and the result it stores.
    """

    def __init__(self, vm: KvmVm, vcpu: Vcpu) -> None:
        self.vm: Final = vm
        self.vcpu: Final = vcpu
        self.sint_to_gsi: Final = [NO_GSI] * SINTS
        self.hyperv: Final = bytearray(EXIT_SIZE)
        self._guest: Guest | None = None
        self._step: Callable[[Guest], Wrmsr | Hypercall] | None = None  # how the guest goes on; None: result in hyperv
        self._synic_exit: SynicExit | None = None

    @property
    def synic_active(self) -> bool:
        """KVM_ENABLE_CAP was called with one of the SynIC's capabilities."""
        return self.vcpu.synic_active

    def enable_cap(self, cap: int, args: Sequence[int] = (), flags: int = 0) -> None:
        """KVM_ENABLE_CAP: activate the SynIC.

        Args:
            cap: :attr:`KvmCap.HYPERV_SYNIC`, guest writes that enable SIM or SIEF zero the page;
                :attr:`KvmCap.HYPERV_SYNIC2`, they do not.
            args: up to four; the first must be 0 for SYNIC2.
            flags: none is defined.
        Raises:
            IrqError: EINVAL: flags; no in-kernel irqchip; SYNIC2 with an argument; more than four; another capability.
        """
        self.vm.check_owner()
        what = f"kvm: vcpu {self.vcpu.index}: cannot enable capability {cap}"
        if flags or len(args) > _CAP_ARGS:
            raise IrqError(errno.EINVAL, f"{what}: flags {flags:#x}, args {list(args)}: no flags, up to 4 (EINVAL)")
        if cap not in (KvmCap.HYPERV_SYNIC, KvmCap.HYPERV_SYNIC2):
            raise IrqError(errno.EINVAL, f"{what}: a vCPU has 123 and 148, SYNIC and SYNIC2 (EINVAL)")
        if cap == KvmCap.HYPERV_SYNIC2 and args and args[0]:
            raise IrqError(errno.EINVAL, f"{what}: its argument is {args[0]:#x} and must be 0 (EINVAL)")
        if not self.vm.irqchip:
            raise IrqError(errno.EINVAL, f"{what}: there is no irqchip in the kernel (EINVAL); create_irqchip() first")
        profile = self.vcpu.profile
        if profile.page_on_enable != "overlay":  # as QEMU has it: pages that lie elsewhere are nobody's to zero
            pages = _PAGES_STAY if cap == KvmCap.HYPERV_SYNIC2 else _PAGES_ZEROED
            self.vcpu.profile = replace(
                profile, page_on_enable=pages.page_on_enable, page_outside_faults=pages.page_outside_faults
            )
        self.vcpu.activate_synic()

    # ---- SINTs

    def raise_sint(self, sint: int) -> int:
        """Request the vector of a SINT, as a GSI does.

        Returns:
            1: the local APIC took it, be it pending already; 0: the APIC is disabled; -EINVAL: no such SINT;
            -ENOENT: it is masked.
        """
        if not 0 <= sint < SINTS:
            return -errno.EINVAL
        value = self._sint(sint)
        if value & SINT_MASKED:
            return -errno.ENOENT
        return int(self.vcpu.apic.request(value & SINT_VECTOR))

    def eoi(self, vector: int) -> None:
        """Acknowledge every unmasked SINT with that vector: the local APIC ended its service."""
        for sint in range(SINTS):
            value = self._sint(sint)
            if value & SINT_VECTOR == vector and not value & SINT_MASKED:
                self._acked(sint)

    def eom(self) -> None:
        """Acknowledge all SINTs, masked ones too, whether or not anything was delivered: the guest wrote EOM."""
        for sint in range(SINTS):
            self._acked(sint)

    def _acked(self, sint: int) -> None:
        gsi = self.sint_to_gsi[sint]
        if gsi != NO_GSI:
            self.vm.irqfds.acked(gsi)

    def _sint(self, sint: int) -> int:
        return self.vcpu.partition.registers.value(self.vcpu, Msr.SINT0 + sint)

    # ---- exits

    def wrote(self, msr: int, host: bool) -> None:
        """Hear of a write of this VP: guest writes of SCONTROL, SIEFP and SIMP exit."""
        if host or msr not in _EXITING:
            return
        control, evt_page, msg_page = (self.vcpu.partition.registers.value(self.vcpu, which) for which in _EXITING)
        self._synic_exit = SynicExit(msr, control, evt_page, msg_page)

    def take_exit(self) -> SynicExit | None:
        """Return the exit that a write outside of :meth:`run` left for the next KVM_RUN, None if there is none."""
        taken, self._synic_exit = self._synic_exit, None
        return taken

    def load(self, guest: Guest) -> None:
        """Give the vCPU something to run, from its start."""
        self._guest = guest
        self._step = next

    def store_result(self, status: int) -> None:
        """Store what a hypercall gives, where user space does: :attr:`hyperv`, 8 bytes at 16. EINVAL: not 64 bits."""
        if not 0 <= status < 1 << 64:
            raise IrqError(errno.EINVAL, f"kvm: vcpu {self.vcpu.index}: a result has 64 bits, not {status:#x} (EINVAL)")
        self.hyperv[RESULT_OFFSET : RESULT_OFFSET + 8] = status.to_bytes(8, "little")

    def run(self) -> Exit | None:
        """KVM_RUN: run the guest until it exits with KVM_EXIT_HYPERV, and finish first what it had exited for.

        A hypercall's result is what :attr:`hyperv` holds at re-entry; nobody clears it in between, so one that user
        space forgets to store is what lay there before.

        Returns:
            The exit, which :attr:`hyperv` has as bytes; None: the guest has come to its end.
        Raises:
            IrqError: EINVAL, there is no guest to run; EBUSY, from another thread than the machine's.
            GeneralProtectionFault: the guest did not catch it.
        """
        self.vm.check_owner()
        if self._guest is None:
            raise IrqError(errno.EINVAL, f"kvm: vcpu {self.vcpu.index} has nothing to run (EINVAL); load() a guest")
        guest, step = self._guest, self._step or self._completed()
        while True:
            left = self._left(self.take_exit(), step)  # such as one of a write before this entry
            if left is not None:
                return left
            try:
                instruction = step(guest)
            except StopIteration:
                self._guest = None
                return None
            except BaseException:
                self._guest = None
                raise
            if isinstance(instruction, Hypercall):
                result = self.vm.hypercall(self, instruction.control, instruction.input, instruction.output)
                if isinstance(result, HcallExit):
                    return self._left(result, None)
                step = _send(result)
            elif isinstance(instruction, Wrmsr):
                step = self._write(instruction)
            else:
                self._guest = None
                raise TypeError(f"kvm: a guest yields Wrmsr or Hypercall, not {instruction!r}")

    def _write(self, instruction: Wrmsr) -> Callable[[Guest], Wrmsr | Hypercall]:
        try:
            self.vcpu.wrmsr(instruction.msr, instruction.value)
        except GeneralProtectionFault as fault:
            return _throw(fault)
        return _send(0)

    def _left(self, exit_: Exit | None, step: Callable[[Guest], Wrmsr | Hypercall] | None) -> Exit | None:
        """Leave the guest, if there is an exit, and remember how it goes on."""
        if exit_ is not None:
            self._step = step
            self.hyperv[:] = exit_.pack() if isinstance(exit_, SynicExit) else self._packed(exit_)
        return exit_

    def _packed(self, exit_: HcallExit) -> bytes:
        packed = bytearray(exit_.pack())
        packed[RESULT_OFFSET : RESULT_OFFSET + 8] = self.hyperv[RESULT_OFFSET : RESULT_OFFSET + 8]
        return bytes(packed)

    def _completed(self) -> Callable[[Guest], Wrmsr | Hypercall]:
        return _send(int.from_bytes(self.hyperv[RESULT_OFFSET : RESULT_OFFSET + 8], "little"))


def _send(result: int) -> Callable[[Guest], Wrmsr | Hypercall]:
    return lambda guest: guest.send(result)


def _throw(fault: GeneralProtectionFault) -> Callable[[Guest], Wrmsr | Hypercall]:
    return lambda guest: guest.throw(fault)
