"""A small partition with registers set as synic.md 16 has them, for tests."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.cpuid import Features
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.profiles import PROFILES, Profile
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.vcpu import GeneralProtectionFault, Vcpu

ALL = sorted(PROFILES)
END = 1 << 20
SIM, SIEF = 0x7000, 0x8000
SINT4, VECTOR = Msr.SINT0 + 4, 0x51


def make(
    profile: str | Profile = "tlfs",
    cpus: int = 2,
    *,
    arch: str = "x86",
    features: Features | None = None,
    activate: bool = True,
) -> Partition:
    """Return a partition with a megabyte of memory, its SynICs active and otherwise as after reset."""
    core = Core(cpus, nr_irqs_max=1, arch=arch)
    partition = Partition(core, GuestMemory(END), profile=profile, features=features)
    for vcpu in partition.vcpus if activate else ():
        vcpu.activate_synic()
    return partition


def switched_on(profile: str | Profile = "tlfs", cpus: int = 2, **more: Any) -> Partition:
    """Return one whose VPs have all on: pages at 0x7000 and 0x8000, 0x2000 further for each VP; SINT4 is 0x51."""
    partition = make(profile, cpus, **more)
    for vcpu in partition.vcpus:
        vcpu.wrmsr(Msr.SIMP, SIM + 0x2000 * vcpu.index | 1)
        vcpu.wrmsr(Msr.SIEFP, SIEF + 0x2000 * vcpu.index | 1)
        vcpu.wrmsr(SINT4, VECTOR)
        vcpu.wrmsr(Msr.SCONTROL, 1)
    return partition


def faults(vcpu: Vcpu, msr: int, value: int | None = None, *, host: bool = False) -> None:
    """Assert that an access is #GP and changes no register."""
    before = dict(vcpu.values), dict(vcpu.partition.registers._shared)
    with pytest.raises(GeneralProtectionFault) as fault:
        vcpu.rdmsr(msr, host=host) if value is None else vcpu.wrmsr(msr, value, host=host)
    assert (msr, value, vcpu.index) == (fault.value.msr, fault.value.value, fault.value.vp)
    assert before == (vcpu.values, vcpu.partition.registers._shared)


def refused(number: int, call: Callable[..., object], *args: Any, **more: Any) -> None:
    """Assert an IrqError."""
    with pytest.raises(IrqError) as error:
        call(*args, **more)
    assert errno.errorcode[number] == errno.errorcode[error.value.errno or 0]
