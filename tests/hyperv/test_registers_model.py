"""The register file against a plain reading of its rules, for any order of reads, writes and resets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hyperv.hv_rig import ALL, END, make
from tests.reference.registers import GP, Registers
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.vcpu import GeneralProtectionFault, Vcpu

MSRS = st.one_of(
    st.sampled_from([Msr.GUEST_OS_ID, Msr.HYPERCALL, Msr.SIMP, Msr.SIEFP, Msr.VP_ASSIST_PAGE, Msr.SVERSION, Msr.EOM]),
    st.sampled_from([Msr.SCONTROL, Msr.VP_INDEX, Msr.RESET, Msr.EOI, Msr.CRASH_P0, Msr.TSC_EMULATION_STATUS]),
    st.integers(Msr.SINT0, Msr.SINT0 + 15),
    st.sampled_from([0x4000_0085, 0x4000_00A0, 0x4000_0004]),
)
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 0xF, 0x10, 0x1000F, 0x200F3, END | 1, END - 4096 | 1, END, 0x7FFE, (1 << 64) - 1]),
    st.builds(lambda pfn, low: pfn << 12 | low, st.integers(0, 300), st.sampled_from([0, 1, 1, 1, 3, 0xFFF])),
    st.integers(0, (1 << 64) - 1),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), MSRS, VALUES, st.booleans()),
        st.tuples(st.just("guest"), st.integers(0, 1), MSRS, VALUES, st.just(False)),
        st.tuples(st.just("reset"), st.integers(0, 1), MSRS, VALUES, st.booleans()),
        st.tuples(st.just("activate"), st.integers(0, 1), MSRS, VALUES, st.just(True)),
    ),
    max_size=40,
)
SINTS = range(Msr.SINT0, Msr.SINT0 + 16)
WATCHED = (*SINTS, Msr.SIMP, Msr.SIEFP, Msr.SCONTROL, Msr.SVERSION, Msr.EOM, Msr.HYPERCALL)
OTHERS = (Msr.GUEST_OS_ID, Msr.VP_INDEX, Msr.VP_ASSIST_PAGE, Msr.EOI, Msr.RESET, Msr.CRASH_P0, 0x4000_0085)


def assert_in_force(partition: Partition, vcpu: Vcpu) -> None:
    """C has what the register file has; of a SynIC that is not active, what is after a reset: all is off."""

    def value(msr: int) -> int:
        return partition.registers.value(vcpu, msr)

    def page(msr: int) -> int:
        return value(msr) & ~int(partition.synic_registers.page(vcpu, msr) is None)  # no page: as if disabled

    found = partition.synic.registers(vcpu.index)
    got = (found.scontrol, found.siefp, found.simp, *found.sint)
    if vcpu.synic_active:
        assert (value(Msr.SCONTROL), page(Msr.SIEFP), page(Msr.SIMP), *map(value, SINTS)) == got
    else:
        assert (0, 0, 0, *[0x10000] * 16) == got


@pytest.mark.parametrize("profile", ALL)
@given(steps=STEPS)
@settings(max_examples=40, deadline=None)
def test_any_order_of_writes_leaves_what_the_plain_reading_does(profile: str, steps: list[tuple[object, ...]]) -> None:
    """Faults and values of both VPs, after each step; and pages are where the registers say (synic.md 2 and 9).

    What signals and messages go by is what the registers say, however late the VMM activates the SynIC.
    """
    partition, model = make(profile, activate=False), Registers(profile, END, 2)
    for what, vp, msr, value, host in steps:
        assert isinstance(vp, int)
        assert isinstance(msr, int)
        assert isinstance(value, int)
        vcpu = partition.vcpus[vp]
        if what == "reset":
            vcpu.reset()
            model.reset(vp)
            assert_in_force(partition, vcpu)
            continue
        if what == "activate":
            vcpu.activate_synic()
            model.activate(vp)
            assert_in_force(partition, vcpu)
            continue
        expected = model.write(vp, msr, value, bool(host))
        try:
            vcpu.wrmsr(msr, value, host=bool(host))
            assert expected is None
        except GeneralProtectionFault:
            assert GP == expected
        assert_in_force(partition, vcpu)
    for vp, vcpu in enumerate(partition.vcpus):
        for msr in (*WATCHED, *OTHERS):
            found: int | str
            try:
                found = vcpu.rdmsr(msr)
            except GeneralProtectionFault:
                found = GP
            assert model.read(vp, msr) == found, hex(msr)
        for msr in (Msr.SIMP, Msr.SIEFP):
            if not vcpu.rdmsr(msr, host=True) & 1:
                assert partition.synic_registers.page(vcpu, msr) is None
