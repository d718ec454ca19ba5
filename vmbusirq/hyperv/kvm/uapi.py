"""Numbers and structs of KVM's interface that concern the SynIC (``include/uapi/linux/kvm.h``, v6.16; synic.md 10)."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from vmbusirq.errors import IrqError

__all__ = [
    "CONN_ID_MASK",
    "DEASSIGN",
    "EVENTFD_DEASSIGN",
    "EXIT_SIZE",
    "GSI_MAX",
    "KVM_EXIT_HYPERV",
    "KVM_HYPERV_EVENTFD",
    "RESAMPLE",
    "ROUTING_HV_SINT",
    "ExitType",
    "HcallExit",
    "KvmCap",
    "SintRoute",
    "SynicExit",
    "unpack_exit",
]

KVM_EXIT_HYPERV: Final = 27
"""``exit_reason`` of both exits."""
KVM_HYPERV_EVENTFD: Final = 0x4018_AEBD
"""The request number: _IOW(0xAE, 0xbd, 24 bytes)."""
EXIT_SIZE: Final = 40
"""Bytes of ``kvm_run.hyperv`` that SYNIC and HCALL exits use."""
ROUTING_HV_SINT: Final = 4
"""KVM_IRQ_ROUTING_HV_SINT."""
GSI_MAX: Final = 4096
"""KVM_MAX_IRQ_ROUTES: GSIs are below it, and no table has more entries."""
DEASSIGN: Final = 1
"""KVM_IRQFD_FLAG_DEASSIGN."""
RESAMPLE: Final = 2
"""KVM_IRQFD_FLAG_RESAMPLE."""
EVENTFD_DEASSIGN: Final = 1
"""KVM_HYPERV_EVENTFD_DEASSIGN."""
CONN_ID_MASK: Final = 0x00FF_FFFF
"""KVM_HYPERV_CONN_ID_MASK."""

_SYNIC: Final = struct.Struct("<IIIIQQQ")  # type, pad, msr, pad, control, evt_page, msg_page
_HCALL: Final = struct.Struct("<IIQQQQ")  # type, pad, input, result, params[2]
_ROUTE: Final = struct.Struct("<IIIIII24x")  # gsi, type, flags, pad, then of 32 bytes of union: vcpu, sint


class KvmCap(IntEnum):
    """Capabilities. SYNIC2 differs from SYNIC by not zeroing pages."""

    HYPERV_SYNIC = 123
    HYPERV_SYNIC2 = 148
    HYPERV_VP_INDEX = 149
    HYPERV_EVENTFD = 154


class ExitType(IntEnum):
    """``kvm_run.hyperv.type``. SYNDBG exits never happen here: there is no synthetic debugger."""

    SYNIC = 1
    HCALL = 2
    SYNDBG = 3


@dataclass(frozen=True, slots=True)
class SintRoute:
    """One entry of a routing table, ``struct kvm_irq_routing_entry``.

    Attributes:
        gsi: which GSI.
        vcpu: the VP index: neither the vCPU id (that was v4.5) nor a Linux CPU number.
        sint: which SINT of that VP.
        type, flags: :data:`ROUTING_HV_SINT` and 0; anything else is refused when it is set.
    """

    gsi: int
    vcpu: int
    sint: int
    type: int = ROUTING_HV_SINT
    flags: int = 0

    def pack(self) -> bytes:
        """Return the 48 bytes of the struct."""
        return _ROUTE.pack(self.gsi, self.type, self.flags, 0, self.vcpu, self.sint)

    @classmethod
    def unpack(cls, data: bytes) -> SintRoute:
        """Return the entry in 48 bytes. EINVAL: another length."""
        if len(data) != _ROUTE.size:
            raise IrqError(errno.EINVAL, f"kvm: a routing entry has {_ROUTE.size} bytes, not {len(data)} (EINVAL)")
        gsi, type_, flags, _pad, vcpu, sint = _ROUTE.unpack(data)
        return cls(gsi, vcpu, sint, type_, flags)


@dataclass(frozen=True, slots=True)
class SynicExit:
    """The guest wrote SCONTROL, SIEFP or SIMP.

    Attributes:
        msr: which it wrote.
        control, evt_page, msg_page: SCONTROL, SIEFP and SIMP after the write.
    """

    msr: int
    control: int
    evt_page: int
    msg_page: int

    def pack(self) -> bytes:
        """Return the :data:`EXIT_SIZE` bytes at the start of ``kvm_run.hyperv``."""
        return _SYNIC.pack(ExitType.SYNIC, 0, self.msr, 0, self.control, self.evt_page, self.msg_page)


@dataclass(frozen=True, slots=True)
class HcallExit:
    """The guest made a hypercall that user space is to answer.

    Attributes:
        input: the control word.
        params: input and output: guest-physical addresses, or the input itself in the fast form.
        result: what user space stored; the guest gets it at re-entry.
    """

    input: int
    params: tuple[int, int]
    result: int = 0

    def pack(self) -> bytes:
        """Return the :data:`EXIT_SIZE` bytes at the start of ``kvm_run.hyperv``."""
        return _HCALL.pack(ExitType.HCALL, 0, self.input, self.result, *self.params)


RESULT_OFFSET: Final = 16
"""Where user space stores the result of an HCALL exit, 8 bytes."""


def unpack_exit(data: bytes | bytearray) -> SynicExit | HcallExit:
    """Return the exit in the first :data:`EXIT_SIZE` bytes of ``kvm_run.hyperv``.

    Raises:
        IrqError: EINVAL, there are fewer bytes, or they hold neither a SYNIC nor an HCALL exit.
    """
    kind = int.from_bytes(data[:4], "little")
    if len(data) >= EXIT_SIZE and kind == ExitType.SYNIC:
        _type, _pad, msr, _pad2, *values = _SYNIC.unpack_from(data)
        return SynicExit(msr, *values)
    if len(data) >= EXIT_SIZE and kind == ExitType.HCALL:
        _type, _pad, control, result, *params = _HCALL.unpack_from(data)
        return HcallExit(control, (params[0], params[1]), result)
    raise IrqError(errno.EINVAL, f"kvm: {len(data)} bytes of type {kind} are no SYNIC or HCALL exit (EINVAL)")
