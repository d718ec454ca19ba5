"""Synthetic registers: numbers, reset values, what faults and what is kept (synic.md 2 and 16, rows 1 to 20)."""

from __future__ import annotations

import errno

import pytest

from tests.hyperv.hv_rig import ALL, END, SIEF, SIM, SINT4, faults, make, refused, switched_on
from vmbusirq.hyperv.cpuid import Feature, Features
from vmbusirq.hyperv.hypercall import HvStatus, HypercallRefused
from vmbusirq.hyperv.profiles import PROFILES
from vmbusirq.hyperv.registers import BY_VP_REGISTER, REGISTERS, Msr

KVM = [name for name in ALL if PROFILES[name].needs_activation]
MSRS = {register.name: register.msr for register in REGISTERS}
STIMERS = range(Msr.STIMER0_CONFIG, Msr.STIMER0_CONFIG + 8)


def test_numbers_of_all_registers() -> None:
    """synic.md 2.1: each MSR once, and the VP register numbers of the SynIC and the timers."""
    assert len(REGISTERS) == len(MSRS) == len({register.msr for register in REGISTERS})
    assert {0xA_0000 + n for n in range(16)} == {n for n in BY_VP_REGISTER if n >> 4 == 0xA000}
    assert {0xA_0010 + n for n in range(5)} == {n for n in BY_VP_REGISTER if n >> 4 == 0xA001}
    assert {0xB_0000 + n for n in range(8)} == {n for n in BY_VP_REGISTER if n >> 4 == 0xB000}
    pairs = {"GUEST_OS_ID": 0x9_0002, "HYPERCALL": 0x9_0001, "VP_INDEX": 0x9_0003, "VP_ASSIST_PAGE": 0x9_0013}
    pairs |= {"SCONTROL": 0xA_0010, "SIEFP": 0xA_0012, "SIMP": 0xA_0013, "EOM": 0xA_0014, "STIMER3_COUNT": 0xB_0007}
    assert pairs == {name: number for number, r in BY_VP_REGISTER.items() for name in [r.name] if name in pairs}
    assert (0x4000_00B7, 0x4000_009F) == (MSRS["STIMER3_COUNT"], MSRS["SINT15"])


@pytest.mark.parametrize("profile", ALL)
def test_synic_001_002_003_a_fresh_vp(profile: str) -> None:
    """Reset values (T K O X); SCONTROL is 0 or 1 (D1)."""
    for vcpu in make(profile).vcpus:
        assert [0x10000] * 16 == [vcpu.rdmsr(Msr.SINT0 + n) for n in range(16)]
        assert [0] * 10 == [vcpu.rdmsr(msr) for msr in (Msr.SIMP, Msr.SIEFP, *STIMERS)]
        assert 1 == vcpu.rdmsr(Msr.SVERSION)
        assert PROFILES[profile].scontrol_reset == vcpu.rdmsr(Msr.SCONTROL)


@pytest.mark.parametrize("profile", ALL)
def test_synic_004_sversion_can_only_be_read(profile: str) -> None:
    """#GP, still 1 (T K O X); KVM lets its VMM overwrite it."""
    (vcpu, _) = make(profile).vcpus
    faults(vcpu, Msr.SVERSION, 1)
    faults(vcpu, Msr.SVERSION, 2)
    assert 1 == vcpu.rdmsr(Msr.SVERSION)
    vcpu.wrmsr(Msr.SVERSION, 2, host=True)
    assert (2 if PROFILES[profile].host_writes_sversion else 1) == vcpu.rdmsr(Msr.SVERSION)


@pytest.mark.parametrize("profile", ALL)
def test_synic_005_eom_takes_anything_and_reads_0(profile: str) -> None:
    """With nothing pending, too (T K O X)."""
    (vcpu, _) = switched_on(profile).vcpus
    for value in (7, 0, (1 << 64) - 1):
        vcpu.wrmsr(Msr.EOM, value)
        assert 0 == vcpu.rdmsr(Msr.EOM)
    refused(errno.EINVAL, vcpu.wrmsr, Msr.EOM, 1 << 64)
    refused(errno.EINVAL, vcpu.wrmsr, Msr.EOM, -1)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("vector", range(16))
def test_synic_006_008_vectors_below_16(profile: str, vector: int) -> None:
    """D8: #GP unless masked, but for OpenVMM; D7: masked, v4.5 and Xen fault as well."""
    (vcpu, _) = switched_on(profile).vcpus
    choice = PROFILES[profile]
    before = vcpu.rdmsr(SINT4)
    if choice.unmasked_low_vector_faults:
        faults(vcpu, SINT4, vector)
        assert before == vcpu.rdmsr(SINT4)
    else:
        vcpu.wrmsr(SINT4, vector)
        assert vector == vcpu.rdmsr(SINT4)
    if choice.masked_low_vector_faults:
        faults(vcpu, SINT4, 0x10000 | vector)
    else:
        vcpu.wrmsr(SINT4, 0x10000 | vector)
        assert 0x10000 | vector == vcpu.rdmsr(SINT4)
    vcpu.wrmsr(SINT4, vector, host=True)
    assert vector == vcpu.rdmsr(SINT4)


@pytest.mark.parametrize("profile", ALL)
def test_synic_007_009_sints_keep_what_was_written(profile: str) -> None:
    """Vector 16 is the first; preserved bits are read back as they were written (K O X)."""
    partition = switched_on(profile)
    (vcpu, other) = partition.vcpus
    for value in (0x10, 0xFF, 0x1_0051, 0xABCD_0000_0001_0E51, 0xFFFF_FFFF_FFFF_FFFF):
        vcpu.wrmsr(SINT4, value)
        assert value == vcpu.rdmsr(SINT4)
    assert 0x51 == other.rdmsr(SINT4)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("name", ["TIME_REF_COUNT", "VP_INDEX", "TSC_FREQUENCY", "APIC_FREQUENCY", "VP_RUNTIME"])
def test_synic_010_what_can_only_be_read(profile: str, name: str) -> None:
    """#GP of a guest (T K O); a host that restores it changes nothing."""
    partition = make(profile)
    for vcpu in partition.vcpus:
        faults(vcpu, MSRS[name], 5)
        before = vcpu.rdmsr(MSRS[name])
        vcpu.wrmsr(MSRS[name], before + 77, host=True)
        assert before == vcpu.rdmsr(MSRS[name])
    assert [0, 1] == [vcpu.rdmsr(Msr.VP_INDEX) for vcpu in partition.vcpus]


@pytest.mark.parametrize("profile", ALL)
def test_synic_011_eoi_can_only_be_written(profile: str) -> None:
    """K X."""
    (vcpu, _) = make(profile).vcpus
    assert 0x4000_0070 == Msr.EOI
    faults(vcpu, Msr.EOI)
    vcpu.wrmsr(Msr.EOI, 0)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("msr", [0x4000_0085, 0x4000_008F, 0x4000_00A0, 0x4000_00AF, 0x4000_00B8, 0x3FFF_FFFF, 0x1B])
def test_synic_012_unknown_registers(profile: str, msr: int) -> None:
    """#GP, whoever asks, and nothing changed (K O)."""
    (vcpu, _) = switched_on(profile).vcpus
    for host in (False, True):
        faults(vcpu, msr, host=host)
        faults(vcpu, msr, 1, host=host)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("msr", [Msr.SIMP, Msr.SIEFP])
def test_synic_013_014_a_disabled_page_keeps_its_address(profile: str, msr: int) -> None:
    """T: the address bits stay readable, the page is not used; each VP has its own."""
    partition = switched_on(profile)
    (vcpu, other) = partition.vcpus
    theirs = other.rdmsr(msr)
    vcpu.wrmsr(msr, SIM | 1)
    assert partition.synic_registers.page(vcpu, msr) is not None
    vcpu.wrmsr(msr, SIM)
    assert SIM == vcpu.rdmsr(msr)
    assert partition.synic_registers.page(vcpu, msr) is None
    assert theirs == other.rdmsr(msr)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("name", ["REFERENCE_TSC", "GUEST_OS_ID", "CRASH_P0", "REENLIGHTENMENT_CONTROL"])
def test_synic_015_registers_of_the_partition(profile: str, name: str) -> None:
    """One value, whichever VP looks (T K)."""
    one, two = make(profile).vcpus
    one.wrmsr(MSRS[name], 0x9000)
    assert 0x9000 == one.rdmsr(MSRS[name]) == two.rdmsr(MSRS[name])


@pytest.mark.parametrize("profile", ALL)
def test_synic_016_no_hypercall_page_without_identity(profile: str) -> None:
    """T: no fault, enable stays 0; KVM drops the whole write; OpenVMM does not look."""
    (vcpu, _) = make(profile).vcpus
    vcpu.wrmsr(Msr.HYPERCALL, 0x9001)
    expected = {"enable": 0x9000, "write": 0, "unchecked": 0x9001}[PROFILES[profile].os_id_gates_hypercall]
    assert expected == vcpu.rdmsr(Msr.HYPERCALL)


@pytest.mark.parametrize("profile", ALL)
def test_synic_017_no_identity_no_hypercall_page(profile: str) -> None:
    """T K: GUEST_OS_ID written 0 clears enable; OpenVMM leaves it."""
    partition = make(profile)
    (vcpu, other) = partition.vcpus
    vcpu.wrmsr(Msr.GUEST_OS_ID, 0x8100_0006_0A00_0000)
    vcpu.wrmsr(Msr.HYPERCALL, 0x9001)
    assert 0x9001 == other.rdmsr(Msr.HYPERCALL)
    assert b"\x0f\x01\xc1\xc3" == partition.memory.read(0x9000, 4)
    other.wrmsr(Msr.GUEST_OS_ID, 0)
    expected = 0x9000 if PROFILES[profile].os_id_zero_disables else 0x9001
    assert expected == vcpu.rdmsr(Msr.HYPERCALL)


@pytest.mark.parametrize("profile", ALL)
def test_synic_018_a_locked_hypercall_page(profile: str) -> None:
    """Bit 1: #GP for every write until the system is reset (O; T: immutable)."""
    partition = make(profile)
    (vcpu, other) = partition.vcpus
    vcpu.wrmsr(Msr.GUEST_OS_ID, 1)
    vcpu.wrmsr(Msr.HYPERCALL, 0x9003)
    for value in (0, 0x9003, 0xA001):
        faults(vcpu, Msr.HYPERCALL, value)
        faults(other, Msr.HYPERCALL, value)
    vcpu.reset()
    assert 0x9003 == vcpu.rdmsr(Msr.HYPERCALL)
    partition.reset()
    assert (0, 0) == (vcpu.rdmsr(Msr.HYPERCALL), vcpu.rdmsr(Msr.GUEST_OS_ID))
    vcpu.wrmsr(Msr.HYPERCALL, 0)


@pytest.mark.parametrize("profile", [name for name in ALL if PROFILES[name].needs_activation])
def test_synic_019_a_synic_that_was_never_activated(profile: str) -> None:
    """KVM: #GP for guests, timers too; a host reads, and restores 0 (v6.16) or anything (v5.10 and before)."""
    (vcpu, other) = make(profile, activate=False).vcpus
    for msr in (Msr.SCONTROL, Msr.SVERSION, Msr.SIMP, Msr.SIEFP, SINT4, *STIMERS):
        faults(vcpu, msr)
        faults(vcpu, msr, 0)
        vcpu.rdmsr(msr, host=True)
        vcpu.wrmsr(msr, 0, host=True)
    faults(vcpu, Msr.EOM, 0)
    if PROFILES[profile].host_inactive_write == "zero":
        faults(vcpu, Msr.SIMP, 0x7001, host=True)
    else:
        vcpu.wrmsr(Msr.SIMP, 0x7001, host=True)
    vcpu.activate_synic()
    assert PROFILES[profile].scontrol_reset == vcpu.rdmsr(Msr.SCONTROL)
    faults(other, Msr.SCONTROL)
    vcpu.rdmsr(Msr.VP_INDEX)


@pytest.mark.parametrize("profile", ALL)
def test_synic_020_registers_that_are_not_offered(profile: str) -> None:
    """#GP without the CPUID bit, whichever it is (K with ENFORCE_CPUID, X); a host reads them all the same."""
    for register in REGISTERS:
        features = Features().plus(Feature.TSC_INVARIANT)
        (vcpu, _) = make(profile, features=features.minus(register.feature)).vcpus
        faults(vcpu, register.msr)
        faults(vcpu, register.msr, 0)
        vcpu.rdmsr(register.msr, host=True)
        (vcpu, _) = make(profile, features=features).vcpus
        if register.access != "w":
            vcpu.rdmsr(register.msr)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("msr", [Msr.SIMP, Msr.SIEFP])
def test_a_page_outside_memory(profile: str, msr: int) -> None:
    """D10: #GP or a page that nobody reaches; both sides of the border; a host is believed."""
    partition = make(profile)
    (vcpu, _) = partition.vcpus
    vcpu.wrmsr(msr, END - 4096 | 1)
    for address in (END, 0xFFFF_FFFF_FFFF_F000):
        if PROFILES[profile].page_outside_faults:
            faults(vcpu, msr, address | 1)
        else:
            vcpu.wrmsr(msr, address | 1)
            assert address | 1 == vcpu.rdmsr(msr)
        vcpu.wrmsr(msr, address)
        vcpu.wrmsr(msr, address | 1, host=True)
    vcpu.wrmsr(msr, SIM | 1)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("name", ["SIMP", "SIEFP", "VP_ASSIST_PAGE", "HYPERCALL"])
def test_preserved_bits_of_page_registers(profile: str, name: str) -> None:
    """Between address and enable: kept as written; #GP in OpenVMM. So an unaligned page cannot be asked for."""
    (vcpu, _) = make(profile).vcpus
    vcpu.wrmsr(Msr.GUEST_OS_ID, 1)
    value = 0x9000 | 0xFFC | 1
    if PROFILES[profile].page_preserve_faults:
        faults(vcpu, MSRS[name], value)
    else:
        vcpu.wrmsr(MSRS[name], value)
        assert value == vcpu.rdmsr(MSRS[name])


@pytest.mark.parametrize("profile", ALL)
def test_a_hypercall_page_outside_memory(profile: str) -> None:
    """#GP (T K O)."""
    (vcpu, _) = make(profile).vcpus
    vcpu.wrmsr(Msr.GUEST_OS_ID, 1)
    faults(vcpu, Msr.HYPERCALL, END | 1)
    vcpu.wrmsr(Msr.HYPERCALL, END)


def test_tsc_emulation_status_takes_0_only() -> None:
    """K616; the host sets it when it migrates the guest."""
    (vcpu, _) = make("kvm").vcpus
    vcpu.wrmsr(Msr.TSC_EMULATION_STATUS, 1, host=True)
    assert 1 == vcpu.rdmsr(Msr.TSC_EMULATION_STATUS)
    faults(vcpu, Msr.TSC_EMULATION_STATUS, 1)
    vcpu.wrmsr(Msr.TSC_EMULATION_STATUS, 0)
    assert 0 == vcpu.rdmsr(Msr.TSC_EMULATION_STATUS)


def test_reset_is_asked_for_and_reads_0() -> None:
    """synic.md 2.1: bit 0 of RESET; a host's write asks for nothing."""
    partition = make()
    (vcpu, _) = partition.vcpus
    for value, host, expected in ((0, False, False), (2, False, False), (1, True, False), (1, False, True)):
        vcpu.wrmsr(Msr.RESET, value, host=host)
        assert expected is partition.partition_registers.reset_requested
        assert 0 == vcpu.rdmsr(Msr.RESET)
    partition.reset()
    assert not partition.partition_registers.reset_requested


def test_a_crash_is_told_with_its_message() -> None:
    """CRASH_CTL: bit 63 tells, bit 62 brings a text at P3 of P4 bytes; what is not there is no text."""
    partition = make()
    (_, vcpu) = partition.vcpus
    partition.memory.write(0x3000, b"kernel panic")
    for n, value in enumerate((1, 2, 3, 0x3000, 12)):
        vcpu.wrmsr(Msr.CRASH_P0 + n, value)
    vcpu.wrmsr(Msr.CRASH_CTL, 1 << 62)
    vcpu.wrmsr(Msr.CRASH_CTL, 1 << 63)
    vcpu.wrmsr(Msr.CRASH_CTL, 3 << 62)
    vcpu.wrmsr(Msr.CRASH_P0 + 3, END - 1)
    vcpu.wrmsr(Msr.CRASH_CTL, 3 << 62)
    crashes = partition.partition_registers.crashes
    assert [None, b"kernel panic", None] == [crash.message for crash in crashes]
    assert (1, (1, 2, 3, 0x3000, 12)) == (crashes[1].vp, crashes[1].parameters)
    assert 3 << 62 == vcpu.rdmsr(Msr.CRASH_CTL)


def test_vp_register_numbers_lead_to_the_same_registers() -> None:
    """arm64's way (synic.md 2.1); refusals are INVALID_PARAMETER instead of a fault."""
    (vcpu, _) = make(arch="arm64").vcpus
    vcpu.set_vp_register(0xA_0004, 0x12)
    assert (0x12, 0x12) == (vcpu.get_vp_register(0xA_0004), vcpu.rdmsr(SINT4))
    for name, value in ((0xA_0004, 5), (0xA_0011, 2), (0xA_0015, 0), (0x4000_0094, 0x51), (0xA_0020, 0)):
        with pytest.raises(HypercallRefused) as refusal:
            vcpu.set_vp_register(name, value)
        assert HvStatus.INVALID_PARAMETER == refusal.value.status
    with pytest.raises(HypercallRefused, match="INVALID_PARAMETER"):
        vcpu.get_vp_register(0xA_0015)


def test_rooms_serve_registers_and_hear_of_writes() -> None:
    """A room may refuse and store; who listens hears of what was not refused."""
    partition = make()
    (vcpu, _) = partition.vcpus
    heard: list[tuple[int, int, int, bool]] = []
    partition.registers.after_write.append(lambda vcpu, *rest: heard.append((vcpu.index, *rest)))
    refused(errno.EINVAL, partition.registers.serve, [0x4000_0085], None, None)

    def write(vcpu: object, msr: int, value: int, _host: bool) -> None:
        if value == 1:
            partition.vcpus[0].fault(msr, value)

    partition.registers.serve([Msr.ICR], lambda _vcpu, _msr: 77, write)
    faults(vcpu, Msr.ICR, 1)
    vcpu.wrmsr(Msr.ICR, 2, host=True)
    assert 77 == vcpu.rdmsr(Msr.ICR)
    faults(vcpu, Msr.SVERSION, 2)
    vcpu.wrmsr(SINT4, 0x51)
    assert [(0, Msr.ICR, 2, True), (0, SINT4, 0x51, False)] == heard


@pytest.mark.parametrize("profile", ALL)
def test_reset_of_a_vp_takes_its_registers_back(profile: str) -> None:
    """synic.md 2.3; the other VP and the partition's registers keep theirs."""
    partition = switched_on(profile)
    (vcpu, other) = partition.vcpus
    fresh, theirs = dict(make(profile).vcpus[0].values), dict(other.values)
    vcpu.wrmsr(Msr.VP_ASSIST_PAGE, 0xC001)
    vcpu.wrmsr(Msr.GUEST_OS_ID, 5)
    gone: list[int] = []
    partition.on_vp_reset.append(lambda vcpu: gone.append(vcpu.index))
    vcpu.reset()
    assert (fresh, theirs, [0]) == (vcpu.values, other.values, gone)
    assert (5, 0) == (vcpu.rdmsr(Msr.GUEST_OS_ID), vcpu.rdmsr(Msr.VP_ASSIST_PAGE))
    assert partition.synic_registers.page(vcpu, Msr.SIMP) is None


def test_profiles_have_a_name_each() -> None:
    """EINVAL: no such profile; the default is the TLFS's."""
    assert ALL == sorted(profile.name for profile in PROFILES.values())
    refused(errno.EINVAL, make, "hyper-v")
    own = PROFILES["kvm"]
    assert own is make(own).profile
    assert "tlfs" == make().profile.name


def test_cpuid_leaves_say_what_is_offered() -> None:
    """synic.md 2.5: each feature is one bit; direct mode is bit 19 on x86 and 13 on arm64."""
    features = Features()
    assert (0x4000_0006, b"Microsoft Hv") == (
        features.leaf(0x4000_0000).eax,
        b"".join(getattr(features.leaf(0x4000_0000), name).to_bytes(4, "little") for name in ("ebx", "ecx", "edx")),
    )
    assert b"Hv#1" == features.leaf(0x4000_0001).eax.to_bytes(4, "little")
    assert 1 << 19 == Features(frozenset({Feature.STIMER_DIRECT})).leaf(0x4000_0003).edx
    assert 1 << 13 == Features(frozenset({Feature.STIMER_DIRECT}), "arm64").leaf(0x4000_0003).edx
    assert 0 == Features().leaf(0x4000_0007).eax == Features().leaf(0x4000_0004).eax
    deprecated = Features().plus(Feature.AUTO_EOI_DEPRECATED)
    assert 1 << 9 == deprecated.leaf(0x4000_0004).eax
    for feature in Feature:
        alone = Features(frozenset({feature}))
        assert alone.offered == Features.of(alone.leaves().items()).offered
        assert 1 == sum(
            bin(getattr(leaf, name)).count("1")
            for number, leaf in alone.leaves().items()
            for name in ("eax", "ebx", "ecx", "edx")
            if number in (0x4000_0003, 0x4000_0004)
        )
    refused(errno.EINVAL, Features, arch="riscv")


@pytest.mark.parametrize("profile", KVM)
def test_a_synic_that_is_activated_late_does_what_its_registers_say(profile: str) -> None:
    """KVM_ENABLE_CAP sets SCONTROL, each time (v6.16; v4.5 leaves it): signals go by what the guest reads."""
    partition = make(profile, 1, activate=False)
    vcpu = partition.vcpus[0]
    vcpu.wrmsr(Msr.SCONTROL, 0, host=True)  # a VMM that resets registers first
    vcpu.activate_synic()
    vcpu.wrmsr(Msr.SIEFP, SIEF | 1)
    vcpu.wrmsr(SINT4, 0x51)
    port = partition.create_guest_event_port(5, 0, 4, 0, 8)
    on = PROFILES[profile].scontrol_reset
    assert (on, on) == (vcpu.rdmsr(Msr.SCONTROL), partition.synic.registers(0).scontrol)
    assert (HvStatus.SUCCESS if on else HvStatus.INVALID_SYNIC_STATE) == port.signal(0)
    vcpu.wrmsr(Msr.SCONTROL, 0)
    vcpu.activate_synic()
    assert (on, on) == (vcpu.rdmsr(Msr.SCONTROL), partition.synic.registers(0).scontrol)


def test_a_host_may_program_a_synic_that_nobody_has_activated_and_it_takes_nothing() -> None:
    """KVM v4.5 stores the registers; signals of a vCPU without a SynIC are refused until it has one."""
    partition = make("kvm-4.5", 1, activate=False)
    vcpu = partition.vcpus[0]
    for msr, value in ((Msr.SIEFP, SIEF | 1), (Msr.SIMP, SIM | 1), (Msr.SCONTROL, 1), (SINT4, 0x51)):
        vcpu.wrmsr(msr, value, host=True)
    port = partition.create_guest_event_port(5, 0, 4)
    assert HvStatus.INVALID_SYNIC_STATE == port.signal(0)
    assert HvStatus.INVALID_SYNIC_STATE == partition.messages.post(0, 4, 1, b"m")
    vcpu.activate_synic()
    assert (HvStatus.SUCCESS, (0,)) == (port.signal(0), partition.synic.flags_set(0, 4))
    assert HvStatus.SUCCESS == partition.messages.post(0, 4, 1, b"m")
    assert 1 << 0x51 == vcpu.apic.irr
