"""A VM as KVM shows it to user space: what the SynIC's part of KVM's interface does to a partition (synic.md 10).

User space is the host of this project, a VMM's own code, or a test. Interrupts go in through GSIs, raised by hand or
by an eventfd; acknowledges come out through resample eventfds; register writes and hypercalls come out as exits.

All calls belong to the thread that made the VM; the eventfds belong to everybody.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.cpuid import Feature
from vmbusirq.hyperv.hypercall import HVCALL_POST_MESSAGE, HVCALL_SIGNAL_EVENT, Control, HvStatus
from vmbusirq.hyperv.kvm.connections import EventConnections
from vmbusirq.hyperv.kvm.irqfd import Irqfds
from vmbusirq.hyperv.kvm.routing import GsiRouting
from vmbusirq.hyperv.kvm.uapi import DEASSIGN, RESAMPLE, HcallExit, KvmCap, SintRoute
from vmbusirq.hyperv.kvm.vcpu import KvmVcpu
from vmbusirq.hyperv.memory import HV_PAGE

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["KvmVm"]

_INPUT: Final = 8
"""Bytes of input of HvSignalEvent."""
_U32_END: Final = 1 << 32
_U64_END: Final = 1 << 64
_PRIVILEGE: Final = {HVCALL_POST_MESSAGE: Feature.POST_MESSAGES, HVCALL_SIGNAL_EVENT: Feature.SIGNAL_EVENTS}


class KvmVm:
    """KVM's user-space surface over a partition; a context manager.

    Args:
        partition: made with the profile ``kvm``.
        irqchip: the interrupt controllers are in the kernel already; otherwise :meth:`create_irqchip` puts them there.
    Raises:
        IrqError: EINVAL, the partition's profile is not one of KVM's.

    Attributes:
        partition: what user space itself is given, too: ports, memory.
        vcpus: by VP index.
        routing: the GSIs and where they lead.
        irqfds: eventfds that raise them; they are looked at in each :meth:`Partition.settle` and :meth:`pump`.
        connections: eventfds by connection id.
        irqchip: there are interrupt controllers.
    """

    def __init__(self, partition: Partition, *, irqchip: bool = True) -> None:
        if not partition.profile.needs_activation:
            name = partition.profile.name
            raise IrqError(errno.EINVAL, f"kvm: the partition behaves as {name!r} (EINVAL); make it with profile='kvm'")
        self.partition: Final = partition
        self.irqchip = irqchip
        self._owner = get_ident()
        self.vcpus: Final = tuple(KvmVcpu(self, vcpu) for vcpu in partition.vcpus)
        self.routing: Final = GsiRouting(self.vcpus)
        self.irqfds: Final = Irqfds(self.routing.set_irq)
        self.connections: Final = EventConnections()
        partition.registers.after_write.append(self._wrote)
        for vcpu in partition.vcpus:
            vcpu.apic.on_eoi.append(self._eoi)
            vcpu.apic.on_eom.append(self._eom)
        partition.add_pump(self.irqfds.pump)

    def check_owner(self) -> None:
        """Raise EBUSY on another thread than the one that made the VM."""
        if get_ident() != self._owner:
            raise IrqError(errno.EBUSY, "kvm: the VM belongs to the thread that made it (EBUSY); write to its eventfds")

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION: 1 for a capability there is, 0 for any other number."""
        return int(cap in tuple(KvmCap))

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP. EEXIST: there is one."""
        self.check_owner()
        if self.irqchip:
            raise IrqError(errno.EEXIST, "kvm: there is an irqchip (EEXIST); one is enough")
        self.irqchip = True

    def set_gsi_routing(self, routes: Iterable[SintRoute], flags: int = 0) -> None:
        """KVM_SET_GSI_ROUTING: :meth:`GsiRouting.replace`; EINVAL also without an irqchip."""
        self.check_owner()
        if not self.irqchip:
            raise IrqError(errno.EINVAL, "kvm: no irqchip to route a GSI with (EINVAL); create_irqchip() first")
        self.routing.replace(routes, flags)

    def irqfd(self, fd: int, gsi: int, flags: int = 0, resamplefd: int = -1) -> None:
        """KVM_IRQFD.

        Args:
            fd: the eventfd that raises the GSI.
            gsi: which; it need not be routed yet.
            flags: :data:`DEASSIGN`, :data:`RESAMPLE`.
            resamplefd: signalled at each acknowledge of the GSI; looked at with :data:`RESAMPLE` alone.
        Raises:
            IrqError: EINVAL, other flags, a gsi that is no u32; EAGAIN, assigned without an irqchip; EBUSY, an irqfd
                has that eventfd; EBADF or EINVAL for what is not open or no eventfd.
        """
        self.check_owner()
        if flags & ~(DEASSIGN | RESAMPLE) or not 0 <= gsi < _U32_END:
            raise IrqError(
                errno.EINVAL, f"kvm: irqfd {fd} for gsi {gsi} with flags {flags:#x}: a u32, flags 1 and 2 (EINVAL)"
            )
        if flags & DEASSIGN:
            self.irqfds.deassign(fd, gsi)
            return
        if not self.irqchip:
            raise IrqError(errno.EAGAIN, f"kvm: irqfd {fd}: there is no irqchip yet (EAGAIN); create_irqchip() first")
        self.irqfds.assign(fd, gsi, resamplefd if flags & RESAMPLE else None)

    def hyperv_eventfd(self, conn_id: int, fd: int, flags: int = 0) -> None:
        """KVM_HYPERV_EVENTFD: :meth:`EventConnections.request`."""
        self.check_owner()
        self.connections.request(conn_id, fd, flags)

    def pump(self, timeout_ms: int = 0) -> int:
        """Raise the GSIs of eventfds that were written to, and wait for the first: :meth:`Irqfds.pump`."""
        self.check_owner()
        return self.irqfds.pump(timeout_ms)

    def hypercall(self, vcpu: KvmVcpu, control: int, value: int, output: int = 0) -> int | HcallExit:
        """Carry out a hypercall as far as the kernel does.

        Args:
            vcpu: who makes it.
            control: the control word.
            value: input address, or the input itself in the fast form.
            output: output address.
        Returns:
            The result word; or the exit for user space, which answers it: PostMessage always, SignalEvent when no
            eventfd is meant. Other calls are the partition's. SignalEvent in memory form exits with the input itself
            in place of its address, and nothing says so: kvm_hvcall_signal_event() reads over it (v6.16).
        """
        if not all(0 <= word < _U64_END for word in (control, value, output)):
            raise IrqError(errno.EINVAL, "kvm: a hypercall's registers have 64 bits (EINVAL)")
        word = Control.of(control)
        privilege = _PRIVILEGE.get(word.code)
        if privilege is None:
            return self.partition.hypercall(vcpu.vcpu.index, control, value, output)
        if not self.partition.features.has(privilege):
            return HvStatus.ACCESS_DENIED
        if word.reserved or word.rep_count or word.rep_start or word.variable:
            return HvStatus.INVALID_HYPERCALL_INPUT
        if word.code == HVCALL_SIGNAL_EVENT:
            parameter = value if word.fast else self._read(value)
            status = HvStatus.INVALID_ALIGNMENT if parameter is None else self.connections.signal(parameter)
            if parameter is None or status != HvStatus.INVALID_PORT_ID:
                return status
            value = parameter
        if not vcpu.synic_active:  # user space has no way to answer
            return HvStatus.INVALID_HYPERCALL_INPUT
        return HcallExit(control, (value, output))

    def _read(self, gpa: int) -> int | None:
        """Return the input of HvSignalEvent in memory form; None where it may not lie."""
        if gpa % _INPUT or gpa % HV_PAGE + _INPUT > HV_PAGE:
            return None
        try:
            return int.from_bytes(self.partition.memory.read(gpa, _INPUT), "little")
        except IrqError:
            return None

    def _wrote(self, vcpu: Vcpu, msr: int, _value: int, host: bool) -> None:
        self.vcpus[vcpu.index].wrote(msr, host)

    def _eoi(self, vcpu: Vcpu, vector: int) -> None:
        self.vcpus[vcpu.index].eoi(vector)

    def _eom(self, vcpu: Vcpu) -> None:
        self.vcpus[vcpu.index].eom()

    def close(self) -> None:
        """Let go of the partition and of all eventfds; the callers' own stay open. A second call does nothing.

        A VM that is dropped without it gives the eventfds back as well, when it is collected.
        """
        self.partition.remove_pump(self.irqfds.pump)
        self.irqfds.close()
        self.connections.close()
        if self._wrote in self.partition.registers.after_write:
            self.partition.registers.after_write.remove(self._wrote)
            for vcpu in self.partition.vcpus:
                vcpu.apic.on_eoi.remove(self._eoi)
                vcpu.apic.on_eom.remove(self._eom)

    def __enter__(self) -> Self:
        """Return the VM."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close it."""
        self.close()
