"""A VP's interrupt controller: requests, priorities, service, EOI (Intel SDM 3, chapter 11; TLFS; synic.md 3)."""

from __future__ import annotations

import errno

import pytest

from tests.hyperv.vp_rig import AUTO_EOI, MASKED, SINT, VECTOR, VpRig
from vmbusirq import Machine
from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.vcpu import Vcpu


@pytest.fixture
def rig() -> VpRig:
    return VpRig()


@pytest.mark.parametrize(("vector", "taken"), [(0, False), (15, False), (16, True), (255, True)])
def test_vectors_from_16_on_can_be_requested(rig: VpRig, vector: int, taken: bool) -> None:
    """Those below are exceptions."""
    apic = rig.vcpu().apic
    assert taken == apic.request(vector)
    assert (1 << vector if taken else 0) == apic.irr
    assert (0, 0) == (apic.isr, rig.vcpu(1).apic.irr)


@pytest.mark.parametrize("vector", [-1, 256])
def test_a_vector_has_8_bits(rig: VpRig, vector: int) -> None:
    """EINVAL, nothing requested."""
    with pytest.raises(IrqError) as refused:
        rig.vcpu().apic.request(vector)
    assert (errno.EINVAL, 0) == (refused.value.errno, rig.vcpu().apic.irr)


def test_a_vector_is_taken_if_its_class_is_above_the_priority(rig: VpRig) -> None:
    """PPR is the task priority, or the class in service; vectors of one class do not interrupt each other."""
    apic = rig.vcpu().apic
    for vector in (0x51, 0x58, 0x60):
        apic.request(vector)
    assert (0x60, 0x60) == (apic.accept(), apic.ppr)
    assert apic.accept() is None
    assert (0x60, 0x58, 0x50) == (apic.eoi(), apic.accept(), apic.ppr)
    assert apic.accept() is None
    assert (0x58, 0x51, 0x51, None) == (apic.eoi(), apic.accept(), apic.eoi(), apic.eoi())


@pytest.mark.parametrize(("tpr", "taken"), [(0x00, True), (0x4F, True), (0x50, False), (0xFF, False)])
def test_the_task_priority_keeps_classes_away(rig: VpRig, tpr: int, taken: bool) -> None:
    """By register or by hand; lowered again, the vector is taken."""
    apic = rig.vcpu().apic
    rig.vcpu().wrmsr(Msr.TPR, tpr)
    assert (tpr, tpr) == (rig.vcpu().rdmsr(Msr.TPR), apic.ppr)
    apic.request(VECTOR)
    assert (VECTOR if taken else None) == apic.acceptable()
    apic.tpr = 0
    assert VECTOR == apic.accept()
    with pytest.raises(IrqError):
        apic.tpr = 256


def test_the_priority_is_the_higher_of_task_and_service(rig: VpRig) -> None:
    """Equal classes: the task priority with its low half."""
    apic = rig.vcpu().apic
    apic.request(VECTOR)
    apic.accept()
    for tpr, ppr in ((0x4F, 0x50), (0x57, 0x57), (0x61, 0x61)):
        apic.tpr = tpr
        assert ppr == apic.ppr


def test_a_disabled_apic_drops_requests(rig: VpRig) -> None:
    """Of SINTs too; what was requested before stays. The message is in its slot all the same (synic.md 5.1)."""
    apic = rig.vcpu().apic
    apic.request(0x60)
    apic.enabled = False
    assert not apic.enabled
    assert not apic.request(0x61)
    rig.post(b"A")
    rig.signal(3)
    assert (1 << 0x60, b"A", (3,)) == (apic.irr, rig.message(), rig.flags())
    apic.enabled = True
    assert apic.request(0x61)
    assert [0x61, 0x60] == rig.taken()


def test_auto_eoi_leaves_nothing_in_service(rig: VpRig) -> None:
    """IRR cleared, ISR untouched, priority as before (synic.md 3); an EOI would hit another vector."""
    rig.sint(VECTOR | AUTO_EOI)
    apic = rig.vcpu().apic
    apic.request(0x41)
    assert 0x41 == apic.accept()
    rig.signal(1)
    assert (VECTOR, 1 << 0x41, 0, 0x40) == (apic.accept(), apic.isr, apic.irr, apic.ppr)
    assert 0x41 == apic.eoi()


def test_facts_for_who_virtualizes_the_apic(rig: VpRig) -> None:
    """KVM, 2015: SINT vectors are in the EOI exit bitmap; auto-EOI ones are never posted interrupts."""
    rig.sint(0x62 | AUTO_EOI, 5)
    rig.sint(0x73 | MASKED, 6)
    rig.sint(0x51 | AUTO_EOI, 7)
    apic = rig.vcpu().apic
    assert 1 << VECTOR | 1 << 0x62 == apic.eoi_exit_bitmap
    assert 1 << VECTOR | 1 << 0x62 == apic.auto_eoi_vectors
    rig.sint(MASKED, 7)
    assert (1 << VECTOR | 1 << 0x62, 1 << 0x62) == (apic.eoi_exit_bitmap, apic.auto_eoi_vectors)


def test_eoi_and_eom_are_heard(rig: VpRig) -> None:
    """Once each; an EOI with nothing in service is nobody's."""
    heard: list[tuple[str, int, int]] = []
    for vcpu in rig.partition.vcpus:
        vcpu.apic.on_eoi.append(lambda vcpu, vector: heard.append(("eoi", vcpu.index, vector)))
        vcpu.apic.on_eom.append(lambda vcpu: heard.append(("eom", vcpu.index, 0)))
    rig.vcpu().wrmsr(Msr.EOI, 0)
    rig.signal(1, vp=1)
    rig.taken(1)
    rig.eom()
    rig.vcpu(1).apic.eom()
    rig.vcpu(1).wrmsr(Msr.EOM, 7)
    assert [("eoi", 1, VECTOR), ("eom", 0, 0), ("eom", 1, 0), ("eom", 1, 0)] == heard
    assert (1, 2) == tuple(lib.vi_synic_eom_count(rig.partition.core.handle, vp) for vp in (0, 1))


def test_settle_runs_handlers_highest_first_and_leaves_other_vectors(rig: VpRig) -> None:
    """A vector without handler stays requested; one that is handled later is found then."""
    seen: list[int] = []
    apic = rig.vcpu(1).apic

    def handler(vector: int) -> None:
        def run(vcpu: Vcpu) -> None:
            assert 1 << vector == vcpu.apic.isr
            seen.append(vector)
            vcpu.apic.eoi()

        apic.handlers[vector] = run

    for vector in (0x40, 0x90, 0xA0):
        apic.request(vector)
    handler(0x40)
    handler(0x90)
    rig.partition.settle()
    assert ([0x90, 0x40], 1 << 0xA0) == (seen, apic.irr)
    handler(0xA0)
    apic.interrupts_enabled = False
    rig.partition.settle()
    assert 2 == len(seen)
    apic.interrupts_enabled = True
    rig.partition.settle()
    assert ([0x90, 0x40, 0xA0], 0) == (seen, apic.irr)


def test_a_suspended_guest_takes_no_vector(rig: VpRig) -> None:
    """Its time comes."""
    seen: list[int] = []
    apic = rig.vcpu().apic
    apic.handlers[0x60] = lambda vcpu: seen.append(vcpu.apic.eoi() or 0)
    rig.partition.suspend_guest(10)
    apic.request(0x60)
    rig.partition.settle()
    assert [] == seen
    rig.partition.clock.advance(10)
    rig.partition.settle()
    assert [0x60] == seen


def test_a_vector_that_requests_itself_for_ever_is_an_error(rig: VpRig) -> None:
    """ELOOP instead of standing still."""
    apic = rig.vcpu().apic

    def run(vcpu: Vcpu) -> None:
        vcpu.apic.eoi()
        vcpu.apic.request(0x60)

    apic.handlers[0x60] = run
    apic.request(0x60)
    with pytest.raises(IrqError) as error:
        rig.partition.settle()
    assert errno.ELOOP == error.value.errno


@pytest.mark.parametrize(
    ("icr", "targets"),
    [
        (0x60, [0]),
        (0x60 | 1 << 56, [1]),
        (0x60 | 1 << 18, [2]),
        (0x60 | 2 << 18, [0, 1, 2]),
        (0x60 | 3 << 18, [0, 1]),
        (0x60 | 0xFF << 56, [0, 1, 2]),
        (0x60 | 7 << 56, []),
        (0x0F | 1 << 18, []),
        (0x60 | 4 << 8, []),
        (0x60 | 1 << 11, []),
    ],
)
def test_an_ipi_goes_where_icr_says(icr: int, targets: list[int]) -> None:
    """Physical destination, self, all, all but self; NMI and logical destinations send nothing here."""
    rig = VpRig(cpus=3)
    rig.vcpu(2).wrmsr(Msr.ICR, icr)
    assert icr == rig.vcpu(2).rdmsr(Msr.ICR)
    assert targets == [vp for vp in range(3) if rig.vcpu(vp).apic.irr]


def test_reset_forgets_requests_and_services(rig: VpRig) -> None:
    """Handlers and hooks are the machine's."""
    apic = rig.vcpu().apic
    apic.handlers[0x60] = lambda _vcpu: None
    apic.request(0x70)
    apic.accept()
    apic.request(0x60)
    apic.tpr, apic.enabled, apic.interrupts_enabled = 0x20, False, False
    rig.vcpu().reset()
    assert (0, 0, 0, True, True) == (apic.irr, apic.isr, apic.tpr, apic.enabled, apic.interrupts_enabled)
    assert [0x60] == list(apic.handlers)


# ---- the callback vector, which the data plane takes by itself


@pytest.mark.parametrize(("arch", "vector"), [("x86", 0xF3), ("arm64", 18)])
def test_the_doorbell_is_a_bit_of_the_irr(arch: str, vector: int) -> None:
    """And waits there while interrupts are off or the priority is as high; then it is taken."""
    machine = Machine(2, arch=arch)
    channel = machine.attach("netvsc", 9)
    apic = machine.partition.vcpus[0].apic
    machine.settle()
    before = int(machine.irq.counts[channel.irq].sum())
    apic.interrupts_enabled = False
    machine.synic.signal(0, 9)
    machine.settle()
    assert (1 << vector, before) == (apic.irr, int(machine.irq.counts[channel.irq].sum()))
    apic.interrupts_enabled = True
    apic.tpr = vector
    machine.settle()
    assert 1 << vector == apic.irr
    apic.tpr = 0
    machine.settle()
    assert (0, before + 1) == (apic.irr, int(machine.irq.counts[channel.irq].sum()))


def test_another_sint_on_the_callback_vector_calls_the_guest(rig: VpRig) -> None:
    """One vector, two sources (synic.md 17, 28)."""
    rig.sint(0xF3, SINT)
    rig.sint(0xF3, 2)
    rig.signal(5)
    rig.signal(5, sint=2)
    assert 1 << 0xF3 == rig.vcpu().apic.irr
    assert [0xF3] == rig.taken()


def test_vmbus_on_another_vector_rings_no_doorbell(rig: VpRig) -> None:
    """SINT2 = 0x52: a vector as any other."""
    rig.sint(0x52, 2)
    rig.signal(5, sint=2)
    assert 0 == lib.vi_vcpu_pending(rig.partition.core.handle, 0)
    assert [0x52] == rig.taken()


def test_an_eoi_of_the_callback_vector_is_heard_if_there_is_one() -> None:
    """SINT2 without auto-EOI: the service routine ends it; told once per settle."""
    machine = Machine(2)
    vcpu = machine.partition.vcpus[0]
    heard: list[int] = []
    vcpu.apic.on_eoi.append(lambda _vcpu, vector: heard.append(vector))
    machine.synic.signal(0, 77)
    machine.settle()
    assert [] == heard
    assert 0 == lib.vi_synic_set_sint(machine.core.handle, 0, 2, 0xF3)
    machine.synic.signal(0, 77)
    machine.settle()
    assert ([0xF3], 1, 0) == (heard, lib.vi_lapic_eoi_count(machine.core.handle, 0), vcpu.apic.isr)


def test_numbers_that_do_not_exist(rig: VpRig) -> None:
    """EINVAL for each function of the interface."""
    m = rig.partition.core.handle
    words = [0] * 4
    bad = [
        lib.vi_lapic_request(m, 2, 0x60),
        lib.vi_lapic_request(m, 0, 256),
        lib.vi_lapic_irr(m, 2, words),
        lib.vi_lapic_clear(m, 2, 0x60),
        lib.vi_lapic_clear(m, 0, 256),
        lib.vi_lapic_enable(m, 2, 1),
        lib.vi_lapic_hold(m, 2, 1),
        lib.vi_synic_set_sint(m, 2, 0, 0),
        lib.vi_synic_set_sint(m, 0, 16, 0),
        lib.vi_synic_set_control(m, 2, 0),
        lib.vi_synic_set_siefp(m, 2, 0),
        lib.vi_synic_set_simp(m, 2, 0),
        lib.vi_synic_reset(m, 2),
        lib.vi_synic_write_eom(m, 2),
        lib.vi_synic_takes_messages(m, 0, 16),
        lib.vi_synic_set_pages(m, 2, *([lib.vi_synic_own_flags(m, 0)] * 2)),
    ]
    assert [-errno.EINVAL] * len(bad) == bad
    assert not any((lib.vi_synic_own_flags(m, 2), lib.vi_synic_own_messages(m, 2), lib.vi_synic_registers(m, 2)))
    assert 0 == lib.vi_lapic_eoi_count(m, 2)


def test_a_host_restores_icr_and_sends_nothing(rig: VpRig) -> None:
    """KVM_SET_MSRS of what KVM_GET_MSRS gave: the interrupt was sent long ago."""
    vcpu = rig.vcpu()
    vcpu.wrmsr(Msr.ICR, 1 << 56 | 0x60)
    assert [0x60] == rig.taken(1)
    saved = vcpu.rdmsr(Msr.ICR, host=True)
    vcpu.reset()
    assert 0 == vcpu.rdmsr(Msr.ICR)
    vcpu.wrmsr(Msr.ICR, saved, host=True)
    assert ([], saved) == (rig.taken(1), vcpu.rdmsr(Msr.ICR))


def test_a_hosts_write_of_eoi_ends_no_service(rig: VpRig) -> None:
    """Nor does it tell anybody; the guest's own does."""
    vcpu, heard = rig.vcpu(), []
    vcpu.apic.on_eoi.append(lambda _vcpu, vector: heard.append(vector))
    rig.post(b"A")
    assert VECTOR == rig.take_without_eoi()
    vcpu.wrmsr(Msr.EOI, 0, host=True)
    assert (1 << VECTOR, []) == (vcpu.apic.isr, heard)
    vcpu.wrmsr(Msr.EOI, 0)
    assert (0, [VECTOR]) == (vcpu.apic.isr, heard)
