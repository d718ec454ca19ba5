"""KVM's surface: exits, GSIs, irqfds and pages (synic.md 10 and 16, rows 81 to 92; arch/x86/kvm/hyperv.c v6.16)."""

from __future__ import annotations

import errno
import os

import pytest

from tests.hyperv.kvm_rig import (
    GSI,
    SIEF,
    SIM,
    SINT,
    SINT4,
    VECTOR,
    answering,
    counter,
    eventfds,
    made,
    program,
    route,
    writing,
)
from vmbusirq.hyperv.kvm import RESAMPLE, KvmCap, KvmVm, SintRoute, SynicExit, Wrmsr
from vmbusirq.hyperv.registers import SINT_RESET, Msr
from vmbusirq.hyperv.vcpu import GeneralProtectionFault

MASKED = SINT_RESET | VECTOR


def resampled(vm: KvmVm, fds: list[int]) -> None:
    """Given of rows 84 to 89: GSI 30 leads to (VP1, SINT4), irqfd A raises it, B hears of acknowledges."""
    route(vm)
    vm.irqfd(fds[0], GSI, RESAMPLE, fds[1])


def requested(vm: KvmVm, vp: int) -> bool:
    return bool(vm.vcpus[vp].vcpu.apic.irr >> VECTOR & 1)


# ---- exits


@pytest.mark.parametrize(
    ("msr", "value", "expected"),
    [
        (Msr.SIMP, 0x9001, SynicExit(0x4000_0083, 1, SIEF | 1, 0x9001)),
        (Msr.SIEFP, 0xA000, SynicExit(0x4000_0082, 1, 0xA000, SIM | 1)),
        (Msr.SCONTROL, 0, SynicExit(0x4000_0080, 0, SIEF | 1, SIM | 1)),
    ],
)
def test_synic_081_a_guest_write_of_a_page_register_exits_with_all_three(msr, value, expected):
    """Exit 27, type 1, values after the write; before the guest's next instruction."""
    reached = []

    def guest():
        yield Wrmsr(msr, value)
        reached.append("the next instruction")

    with made() as vm:
        vcpu = vm.vcpus[0]
        vcpu.load(guest())
        assert expected == vcpu.run()
        assert expected.pack() == bytes(vcpu.hyperv)
        assert reached == []
        assert vcpu.run() is None
        assert reached == ["the next instruction"]


@pytest.mark.parametrize("msr", [Msr.SIMP, Msr.SIEFP, Msr.SCONTROL])
def test_synic_082_a_host_write_neither_exits_nor_zeroes(msr):
    """KVM_SET_MSRS restores a state; user space knows of it."""
    with made() as vm:
        vcpu = vm.vcpus[0].vcpu
        vm.partition.memory.write(SIM, b"\xaa" * 4096)
        vm.partition.memory.write(SIEF, b"\xaa" * 4096)
        vcpu.wrmsr(msr, vcpu.rdmsr(msr), host=True)
        assert vm.vcpus[0].take_exit() is None
        assert b"\xaa" * 4096 == vm.partition.memory.read(SIM, 4096) == vm.partition.memory.read(SIEF, 4096)


def test_synic_083_a_sint_or_eom_does_not_exit():
    """Only SCONTROL, SIEFP and SIMP do."""
    with made() as vm:
        vm.vcpus[0].load(writing((SINT4, VECTOR + 1), (Msr.EOM, 0), (Msr.SINT0 + 2, 0xF3), (SINT4, VECTOR)))
        assert answering(vm, 0) == []


def test_a_write_that_faults_leaves_the_register_and_does_not_exit():
    """SYNIC v1 cannot zero a page outside guest memory: #GP (synic.md 2.4); the guest may catch it."""
    seen = []

    def guest():
        try:
            yield Wrmsr(Msr.SIMP, 1 << 40 | 1)
        except GeneralProtectionFault as fault:
            seen.append((fault.msr, fault.value))
        yield Wrmsr(SINT4, 0x52)

    with made() as vm:
        vm.vcpus[0].load(guest())
        assert answering(vm, 0) == []
        assert seen == [(Msr.SIMP, 1 << 40 | 1)]
        assert SIM | 1 == vm.vcpus[0].vcpu.rdmsr(Msr.SIMP)
        vm.vcpus[0].load(writing((Msr.SVERSION, 2)))
        with pytest.raises(GeneralProtectionFault):
            vm.vcpus[0].run()


def test_an_exit_that_nobody_fetched_comes_first():
    """A write from outside KVM_RUN leaves the exit for the next entry; a second one overwrites it, as in the kernel."""
    with made() as vm:
        vcpu = vm.vcpus[1]
        vcpu.vcpu.wrmsr(Msr.SIMP, 0)
        vcpu.vcpu.wrmsr(Msr.SIEFP, 0)
        vcpu.load(writing((Msr.SCONTROL, 0)))
        assert [Msr.SIEFP, Msr.SCONTROL] == [exit_.msr for exit_ in answering(vm, 1)]


# ---- a GSI per SINT, irqfd with resampler


def test_synic_084_a_write_to_the_irqfd_requests_the_vector_of_the_sint():
    """On the VP that the route names, once however often A was written before somebody looked."""
    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        os.eventfd_write(fds[0], 3)
        assert vm.pump() == 1
        assert [False, True] == [requested(vm, vp) for vp in (0, 1)]
        (irqfd,) = vm.irqfds.items
        assert (1, 1) == (irqfd.raised, irqfd.last_result)
        assert vm.vcpus[1].vcpu.apic.accept() == VECTOR
        assert vm.pump() == 0
        assert not requested(vm, 1)


def test_synic_084_settle_looks_at_irqfds():
    """User space that lets the machine settle needs no pump of its own."""
    taken = []

    def handler(vcpu):
        taken.append(vcpu.index)
        vcpu.apic.eoi()

    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        vm.vcpus[1].vcpu.apic.handlers[VECTOR] = handler
        for expected in (1, 2):
            os.eventfd_write(fds[0], 1)
            vm.partition.settle()
            assert [1] * expected == taken
            assert counter(fds[1]) == 1


@pytest.mark.parametrize("by_msr", [False, True])
def test_synic_085_the_guests_eoi_signals_the_resample_eventfd(by_msr):
    """KVM tells by the vector whose EOI it was, however the guest wrote it."""
    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        os.eventfd_write(fds[0], 1)
        vm.pump()
        apic = vm.vcpus[1].vcpu.apic
        assert apic.accept() == VECTOR
        assert counter(fds[1]) == 0
        if by_msr:
            vm.vcpus[1].vcpu.wrmsr(Msr.EOI, 0)
        else:
            assert apic.eoi() == VECTOR
        assert counter(fds[1]) == 1
        assert apic.eoi() is None
        assert counter(fds[1]) == 0


def test_synic_086_eom_signals_it_though_nothing_was_delivered():
    """The acknowledge does not ask whether there was anything to acknowledge."""
    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        assert counter(fds[1]) == 1


def test_synic_087_eom_of_another_vp_does_not():
    """The record is one per VP and SINT."""
    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        vm.vcpus[0].vcpu.wrmsr(Msr.EOM, 0)
        assert counter(fds[1]) == 0


def test_synic_088_a_masked_sint_takes_nothing():
    """The eventfd is read, the GSI gives -ENOENT, and nobody hears of it."""
    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        vm.vcpus[1].vcpu.wrmsr(SINT4, MASKED)
        os.eventfd_write(fds[0], 1)
        vm.pump()
        assert not requested(vm, 1)
        assert -errno.ENOENT == vm.irqfds.items[0].last_result
        assert [0, 0] == [counter(fd) for fd in fds]
        vm.vcpus[1].vcpu.wrmsr(SINT4, VECTOR)
        assert not requested(vm, 1), "unmasking replays nothing"


def test_synic_089_of_a_masked_sint_eom_is_an_acknowledge_and_eoi_is_none():
    """EOI looks for unmasked SINTs of its vector, EOM takes all 16."""
    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        os.eventfd_write(fds[0], 1)
        vm.pump()
        vcpu = vm.vcpus[1].vcpu
        assert vcpu.apic.accept() == VECTOR
        vcpu.wrmsr(SINT4, MASKED)
        assert vcpu.apic.eoi() == VECTOR
        assert counter(fds[1]) == 0
        vcpu.wrmsr(Msr.EOM, 0)
        assert counter(fds[1]) == 1


def test_an_auto_eoi_sint_is_acknowledged_by_eom_alone():
    """It never is in service, so that no EOI ends it (synic.md 17, trap 6)."""
    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        vcpu = vm.vcpus[1].vcpu
        vcpu.wrmsr(SINT4, VECTOR | 1 << 17)
        os.eventfd_write(fds[0], 1)
        vm.pump()
        assert vcpu.apic.accept() == VECTOR
        assert vcpu.apic.eoi() is None
        assert counter(fds[1]) == 0
        vcpu.wrmsr(Msr.EOM, 0)
        assert counter(fds[1]) == 1


def test_one_eoi_acknowledges_every_sint_of_its_vector():
    """synic.md 3: several SINTs may share one."""
    with eventfds(4) as (a, b, c, d), made() as vm:
        vm.set_gsi_routing([SintRoute(GSI, 1, SINT), SintRoute(GSI + 1, 1, 5)])
        vm.vcpus[1].vcpu.wrmsr(Msr.SINT0 + 5, VECTOR)
        vm.irqfd(a, GSI, RESAMPLE, b)
        vm.irqfd(c, GSI + 1, RESAMPLE, d)
        os.eventfd_write(a, 1)
        vm.pump()
        apic = vm.vcpus[1].vcpu.apic
        apic.accept()
        apic.eoi()
        assert [1, 1] == [counter(b), counter(d)]


def test_every_resample_eventfd_of_a_gsi_is_signalled():
    """Resamplers of one GSI are told together, whoever raised it."""
    with eventfds(4) as (a, b, c, d), made() as vm:
        resampled(vm, [a, b])
        vm.irqfd(c, GSI, RESAMPLE, d)
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        assert [1, 1] == [counter(b), counter(d)]
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        assert [2, 2] == [counter(b), counter(d)], "eventfds count"


def test_what_a_gsi_gives():
    """kvm_hv_set_sint(): level 1 the number of APICs or an errno, level 0 always -1."""
    with made() as vm:
        vm.set_gsi_routing([SintRoute(30, 1, 4), SintRoute(31, 1, 16), SintRoute(32, 2, 4), SintRoute(33, 0, 5)])
        raised = {gsi: vm.routing.set_irq(gsi, 1) for gsi in (30, 31, 32, 33, 34)}
        assert {30: 1, 31: -errno.EINVAL, 32: -errno.EINVAL, 33: -errno.ENOENT, 34: -1} == raised
        assert vm.routing.set_irq(30, 1) == 1, "it is pending already: the APIC takes it all the same"
        assert vm.routing.set_irq(30, 0) == -1
        vm.vcpus[1].vcpu.apic.enabled = False
        assert vm.routing.set_irq(30, 1) == 0, "a disabled APIC drops it"


# ---- pages


@pytest.mark.parametrize(("msr", "gpa"), [(Msr.SIMP, SIM), (Msr.SIEFP, SIEF)])
def test_synic_090_with_synic_v1_a_rewrite_zeroes_the_page(msr, gpa):
    """Every guest write with enable set does, even one that changes nothing (D9)."""
    with made(cap=KvmCap.HYPERV_SYNIC) as vm:
        vm.partition.memory.write(gpa, b"\xaa" * 4096)
        vm.vcpus[0].vcpu.wrmsr(msr, gpa | 1)
        assert bytes(4096) == vm.partition.memory.read(gpa, 4096)


@pytest.mark.parametrize(("msr", "gpa"), [(Msr.SIMP, SIM), (Msr.SIEFP, SIEF)])
def test_synic_091_with_synic_v2_it_does_not(msr, gpa):
    """SYNIC2 leaves pages to user space, and takes any address."""
    with made(cap=KvmCap.HYPERV_SYNIC2) as vm:
        vm.partition.memory.write(gpa, b"\xaa" * 4096)
        vm.vcpus[0].vcpu.wrmsr(msr, gpa | 1)
        assert b"\xaa" * 4096 == vm.partition.memory.read(gpa, 4096)
        vm.vcpus[0].vcpu.wrmsr(msr, 1 << 40 | 1)
        assert 1 << 40 | 1 == vm.vcpus[0].vcpu.rdmsr(msr)


def test_synic_090_091_the_capability_is_each_vcpus_own():
    """One VM may have both kinds; what a partition's profile says is only the start."""
    with made("kvm-synic2", cap=None) as vm:
        vm.vcpus[0].enable_cap(KvmCap.HYPERV_SYNIC)
        vm.vcpus[1].enable_cap(KvmCap.HYPERV_SYNIC2)
        for vp, expected in ((0, 0), (1, 0xAA)):
            vm.partition.memory.write(SIM, b"\xaa" * 4096)
            vm.vcpus[vp].vcpu.wrmsr(Msr.SIMP, SIM | 1)
            assert bytes([expected] * 4096) == vm.partition.memory.read(SIM, 4096)


# ---- the record of routes


def test_synic_092_a_route_set_before_activation_is_not_acknowledged():
    """kvm_hv_set_sint_gsi() passes over a SynIC that is not active, and nobody sees; trap 8."""
    with eventfds(2) as fds, made(cap=None) as vm:
        resampled(vm, fds)
        vm.vcpus[1].enable_cap(KvmCap.HYPERV_SYNIC)
        program(vm, 1)
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        assert counter(fds[1]) == 0
        os.eventfd_write(fds[0], 1)
        vm.pump()
        assert requested(vm, 1), "raising it works, it looks at the table"
        route(vm)
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        assert counter(fds[1]) == 1


def test_the_record_is_only_written_over():
    """A route that is gone still owns its SINT's acknowledges: reusing its GSI notifies across (trap 8)."""
    with eventfds(2) as fds, made() as vm:
        resampled(vm, fds)
        vm.set_gsi_routing([])
        assert vm.routing.set_irq(GSI, 1) == -1
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        assert counter(fds[1]) == 1
        vm.set_gsi_routing([SintRoute(GSI, 0, 7)])
        for vp in (0, 1):
            vm.vcpus[vp].vcpu.wrmsr(Msr.EOM, 0)
            assert counter(fds[1]) == 1
        vm.set_gsi_routing([SintRoute(GSI + 1, 1, SINT)])
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        assert counter(fds[1]) == 0


def test_of_two_gsis_for_one_sint_the_higher_is_acknowledged():
    """The table is walked upwards, whatever its order was."""
    with made() as vm:
        vm.set_gsi_routing([SintRoute(41, 0, SINT), SintRoute(40, 0, SINT)])
        assert vm.vcpus[0].sint_to_gsi[SINT] == 41
        assert [1, 1] == [vm.routing.set_irq(gsi, 1) for gsi in (40, 41)]
