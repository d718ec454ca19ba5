"""Any order of register writes, posts, signals, EOM and EOI leaves what the plain reading of the tables leaves."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.hyperv.vp_rig import AUTO_EOI, MASKED, POLLING, SINT, VECTOR, VpRig
from tests.reference.synic_vp import ReferenceVp
from vmbusirq._ffi import lib
from vmbusirq.hyperv.registers import Msr

SINTS = st.sampled_from([1, 2, 4, 5, 15])
# few vectors, so that SINTs share them; 0xF3 is the doorbell
VECTORS = st.sampled_from([0x10, 0x30, VECTOR, 0x52, 0x60, 0xF3, 0xFF])
MODES = st.sampled_from([0, 0, 0, MASKED, AUTO_EOI, POLLING, MASKED | AUTO_EOI, AUTO_EOI | POLLING])
FLAGS = st.sampled_from([0, 1, 63, 64, 77, 2047, 2048])


class SynicMachine(RuleBasedStateMachine):
    """The rig and the reference take each step together; subclasses choose the profile."""

    profile, column = "tlfs", "T"

    def __init__(self) -> None:
        super().__init__()
        self.rig = VpRig(self.profile)
        self.reference = ReferenceVp(self.column)
        self.reference.sints[SINT] = VECTOR
        self.posted = 0

    @rule(sint=SINTS, vector=VECTORS, mode=MODES)
    def write_sint(self, sint: int, vector: int, mode: int) -> None:
        self.rig.sint(vector | mode, sint)
        self.reference.sints[sint] = vector | mode

    @rule(on=st.booleans())
    def write_scontrol(self, on: bool) -> None:
        self.rig.vcpu().wrmsr(Msr.SCONTROL, int(on))
        self.reference.control = int(on)

    @rule(on=st.booleans(), which=st.sampled_from(["simp", "siefp"]))
    def write_page(self, on: bool, which: str) -> None:
        msr, page = (Msr.SIMP, 0x1000) if which == "simp" else (Msr.SIEFP, 0x2000)
        self.rig.vcpu().wrmsr(msr, page | int(on))
        setattr(self.reference, which, int(on))

    @rule(sint=SINTS, size=st.integers(0, 240))
    def post(self, sint: int, size: int) -> None:
        self.posted += 1
        payload = bytes([self.posted & 0xFF]) * size
        assert self.reference.post(sint, 1, payload) == self.rig.post(payload, sint)

    @rule(sint=SINTS, flag=FLAGS)
    def signal(self, sint: int, flag: int) -> None:
        assert self.reference.signal(sint, flag) == self.rig.signal(flag, sint)

    @rule(sint=SINTS)
    def free(self, sint: int) -> None:
        self.reference.free(sint)
        self.rig.free(sint)

    @precondition(lambda self: any(self.reference.flags))
    @rule(data=st.data())
    def clear_flag(self, data: st.DataObject) -> None:
        places = [(sint, flag) for sint, flags in enumerate(self.reference.flags) for flag in flags]
        sint, flag = data.draw(st.sampled_from(places))
        self.reference.flags[sint].discard(flag)
        self.rig.clear_flag(flag, sint)

    @rule()
    def eom(self) -> None:
        self.reference.eom()
        self.rig.vcpu().wrmsr(Msr.EOM, 0)

    @rule()
    def accept(self) -> None:
        assert self.reference.accept() == self.rig.vcpu().apic.accept()

    @rule()
    def eoi(self) -> None:
        assert self.reference.eoi() == self.rig.vcpu().apic.eoi()

    @rule(vector=st.integers(0, 255))
    def request(self, vector: int) -> None:
        assert self.reference.request(vector) == self.rig.vcpu().apic.request(vector)

    @rule(tpr=st.sampled_from([0, 0, 0x1F, 0x50, 0x5F, 0x60, 0xF3, 0xFF]))
    def write_tpr(self, tpr: int) -> None:
        self.reference.tpr = tpr
        self.rig.vcpu().wrmsr(Msr.TPR, tpr)

    @rule(on=st.booleans(), which=st.sampled_from(["interrupts", "apic"]))
    def switch(self, on: bool, which: str) -> None:
        setattr(self.reference, which, on)
        setattr(self.rig.vcpu().apic, {"interrupts": "interrupts_enabled", "apic": "enabled"}[which], on)

    @rule()
    def enter_without_interrupts(self) -> None:
        """The doorbell of SINT2 is the data plane's to take: keep it from that."""
        apic = self.rig.vcpu().apic
        apic.interrupts_enabled = False
        self.rig.partition.settle()
        apic.interrupts_enabled = self.reference.interrupts
        self.reference.enter()

    @invariant()
    def all_is_as_the_tables_say(self) -> None:
        rig, reference, apic = self.rig, self.reference, self.rig.vcpu().apic
        expected = sum(1 << vector for vector in reference.irr), sum(1 << vector for vector in reference.isr)
        assert expected == (apic.irr, apic.isr)
        assert (reference.tpr, reference.ppr) == (apic.tpr, apic.ppr)
        for sint in range(16):
            slot, c = reference.slots[sint], rig.slot(sint)
            assert (slot.type, slot.pending) == (c.type, bool(c.flags & 1)), sint
            if slot.type:
                assert slot.payload == rig.message(sint)
            assert tuple(sorted(reference.flags[sint])) == rig.flags(sint), sint
            assert len(reference.queues[sint]) == rig.waiting(sint), sint
        held = not reference.interrupts or reference.ppr >> 4 >= 0xF
        cpu = lib.vi_vcpu_pending(rig.partition.core.handle, 0)
        assert (0xF3 in reference.irr) == bool(cpu)
        assert held == (apic.acceptable() is None) or 0xF3 not in reference.irr


def _machine(profile: str, column: str) -> type:
    case = type(f"On_{profile}", (SynicMachine,), {"profile": profile, "column": column}).TestCase
    case.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
    return case


class TestTlfs(_machine("tlfs", "T")):  # type: ignore[misc]
    """Profile tlfs."""


class TestQemu(_machine("qemu", "K")):  # type: ignore[misc]
    """Profile qemu: KVM's SynIC with pages that keep their content."""


class TestOpenvmm(_machine("openvmm", "O")):  # type: ignore[misc]
    """Profile openvmm."""
