"""How the guest programs its SynICs: the registers, their order, their values (synic.md 14; drivers/hv/hv.c, v6.10)."""

from __future__ import annotations

import pytest

from tests.vmbus.scripted import Guest
from vmbusirq import Machine
from vmbusirq.core import Core
from vmbusirq.hyperv.cpuid import Feature, Features
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.profiles import PROFILES
from vmbusirq.hyperv.registers import Msr
from vmbusirq.vmbus.synic import LINUX_OS_ID, GuestSynic

SINT2 = Msr.SINT0 + 2


def written(arch: str, features: Features, do: str) -> list[tuple[int, int]]:
    """Return the writes of a guest of one CPU that switches its SynIC on, and then off."""
    partition = Partition(Core(1, nr_irqs_max=1, arch=arch), features=features)
    partition.vcpus[0].wrmsr(Msr.SIMP, 0xFE0)  # bits that somebody wants to be preserved
    writes: list[tuple[int, int]] = []
    synic = GuestSynic(partition)
    partition.registers.after_write.append(lambda _vcpu, msr, value, _host: writes.append((msr, value)))
    synic.enable([0])
    if do == "disable":
        writes.clear()
        synic.disable(0)
        synic.cleanup(0)
    return writes


def test_x86_switches_its_synic_on() -> None:
    """OS id, hypercall page, SIMP, SIEFP, SINT2, SCONTROL; auto-EOI unless it is deprecated."""
    pages = [(Msr.SIMP, 0x2FE1), (Msr.SIEFP, 0x3001)]
    first = [(Msr.GUEST_OS_ID, LINUX_OS_ID), (Msr.HYPERCALL, 0x1001), *pages]
    assert [*first, (SINT2, 0x200F3), (Msr.SCONTROL, 1)] == written("x86", Features(), "enable")
    deprecated = Features().plus(Feature.AUTO_EOI_DEPRECATED)
    assert [*first, (SINT2, 0xF3), (Msr.SCONTROL, 1)] == written("x86", deprecated, "enable")


def test_arm64_switches_its_synic_on() -> None:
    """No hypercall page, a PPI for a vector, never auto-EOI."""
    expected = [(Msr.GUEST_OS_ID, LINUX_OS_ID), (Msr.SIMP, 0x1FE1), (Msr.SIEFP, 0x2001), (SINT2, 18), (Msr.SCONTROL, 1)]
    assert expected == written("arm64", Features(arch="arm64"), "enable")


def test_it_is_switched_off_again() -> None:
    """Masked, pages away with their address, SCONTROL; hypercall page and OS id at the end (hyperv_cleanup)."""
    off = [(SINT2, 0x300F3), (Msr.SIMP, 0xFE0), (Msr.SIEFP, 0), (Msr.SCONTROL, 0)]
    assert [*off, (Msr.HYPERCALL, 0), (Msr.GUEST_OS_ID, 0)] == written("x86", Features(), "disable")


def test_every_cpu_has_pages_of_its_own() -> None:
    """What is shared is said by page numbers, until kexec takes it back."""
    guest = Guest(cpus=4)
    vcpus = guest.partition.vcpus
    pages = {vcpu.rdmsr(msr) >> 12 for vcpu in vcpus for msr in (Msr.SIMP, Msr.SIEFP)}
    assert 8 == len(pages)
    shared = guest.vmbus.shared_pages()
    assert pages == {pfn for name, pfns in shared.items() if name.startswith("cpu ") for pfn in pfns}
    assert {cpu: cpu for cpu in range(4)} == guest.vmbus.synic.vp_index
    guest.vmbus.kexec()
    assert [0] * 8 == [vcpu.rdmsr(msr) for vcpu in vcpus for msr in (Msr.SIMP, Msr.SIEFP)]
    assert (0, 0) == (vcpus[0].rdmsr(Msr.HYPERCALL), vcpus[0].rdmsr(Msr.GUEST_OS_ID))
    assert not guest.memory.overlays


@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_machine_is_the_same_in_every_profile(arch: str, profile: str) -> None:
    """What the guest does is all by the rules that profiles share."""

    def played(name: str) -> bytes:
        machine = Machine(cpus=3, arch=arch, profile=name)
        machine.attach("scsi", relid=5)
        machine.attach("heartbeat", relid=6)
        machine.host.send(relid=5, packets=7)
        machine.settle()
        return machine.fs.read("/proc/interrupts")

    assert played("tlfs") == played(profile)
