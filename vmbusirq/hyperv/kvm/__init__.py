"""KVM's user-space surface over a partition: a GSI per SINT, irqfd, exits, SignalEvent by eventfd (synic.md 10).

It follows ``arch/x86/kvm/hyperv.c`` and ``virt/kvm/eventfd.c`` of v6.16, errno by errno. A VMM implementer reads here
what a VMM sees: ``examples/own_vmm.py`` is a small one.
"""

from vmbusirq.hyperv.kvm.uapi import (
    CONN_ID_MASK,
    DEASSIGN,
    EVENTFD_DEASSIGN,
    KVM_EXIT_HYPERV,
    RESAMPLE,
    HcallExit,
    KvmCap,
    SintRoute,
    SynicExit,
    unpack_exit,
)
from vmbusirq.hyperv.kvm.vcpu import Exit, Guest, Hypercall, KvmVcpu, Wrmsr
from vmbusirq.hyperv.kvm.vm import KvmVm

__all__ = [
    "CONN_ID_MASK",
    "DEASSIGN",
    "EVENTFD_DEASSIGN",
    "KVM_EXIT_HYPERV",
    "RESAMPLE",
    "Exit",
    "Guest",
    "HcallExit",
    "Hypercall",
    "KvmCap",
    "KvmVcpu",
    "KvmVm",
    "SintRoute",
    "SynicExit",
    "Wrmsr",
    "unpack_exit",
]
