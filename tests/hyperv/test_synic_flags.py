"""Event flags, edge by edge: synic.md 16, rows 46 to 61, in the profiles that a row speaks of."""

from __future__ import annotations

import errno
import threading

import pytest

from tests.hyperv.vp_rig import MASKED, POLLING, SINT, VECTOR, VpRig
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.registers import Msr

SUCCESS, INVALID_STATE = HvStatus.SUCCESS, HvStatus.INVALID_SYNIC_STATE
TKO = pytest.mark.parametrize("profile", ["tlfs", "kvm", "openvmm"])
ALL = pytest.mark.parametrize("profile", ["tlfs", "kvm", "kvm-synic2", "qemu", "openvmm"])


@TKO
def test_synic_046_a_new_flag_is_one_bit_and_one_interrupt(profile: str) -> None:
    """Byte 4 * 256 + 9, bit 5 (TLFS; KVM; OpenVMM)."""
    rig = VpRig(profile)
    assert SUCCESS == rig.signal(77)
    assert (1 << 5, 1) == (rig.area(SINT)[9], sum(byte.bit_count() for byte in rig.area(SINT)))
    assert bytes(256) * 15 == b"".join(rig.area(sint) for sint in range(16) if sint != SINT)
    assert [VECTOR] == rig.taken()


@TKO
def test_synic_047_a_flag_that_is_set_is_success_without_an_interrupt(profile: str) -> None:
    """TLFS; KVM; OpenVMM."""
    rig = VpRig(profile)
    rig.signal(77)
    rig.taken()
    before = rig.area(SINT)
    assert SUCCESS == rig.signal(77)
    assert (before, []) == (rig.area(SINT), rig.taken())


@ALL
def test_synic_048_049_the_rule_is_per_flag(profile: str) -> None:
    """Another flag interrupts; so does the same one after the guest has cleared it (TLFS)."""
    rig = VpRig(profile)
    rig.signal(77)
    rig.taken()
    assert SUCCESS == rig.signal(78)
    assert [VECTOR] == rig.taken()
    rig.clear_flag(77)
    assert SUCCESS == rig.signal(77)
    assert ([VECTOR], (77, 78)) == (rig.taken(), rig.flags())


@ALL
def test_synic_050_requests_merge_flags_do_not(profile: str) -> None:
    """Ten flags while the vector waits: one interrupt (TLFS; APIC)."""
    rig = VpRig(profile)
    rig.vcpu().apic.interrupts_enabled = False
    rig.signal(77)
    for flag in range(100, 110):
        assert SUCCESS == rig.signal(flag)
    rig.vcpu().apic.interrupts_enabled = True
    assert ([VECTOR], (77, *range(100, 110))) == (rig.taken(), rig.flags())


@ALL
def test_synic_050_one_more_request_waits_while_its_vector_is_served(profile: str) -> None:
    """Standard APIC: IRR and ISR, one each (synic.md 3)."""
    rig = VpRig(profile)
    apic = rig.vcpu().apic
    rig.signal(1)
    assert VECTOR == rig.take_without_eoi()
    rig.signal(2)
    rig.signal(3)
    assert (None, 1 << VECTOR, 1 << VECTOR) == (apic.accept(), apic.irr, apic.isr)
    apic.eoi()
    assert ([VECTOR], []) == (rig.taken(), rig.taken())


@ALL
def test_synic_051_a_flag_set_again_during_its_handler_interrupts_again(profile: str) -> None:
    """Cleared before it is handled (Linux vmbus_chan_sched)."""
    rig = VpRig(profile)
    rig.signal(9)
    assert VECTOR == rig.take_without_eoi()
    rig.clear_flag(9)
    assert SUCCESS == rig.signal(9)
    rig.vcpu().apic.eoi()
    assert ([VECTOR], (9,)) == (rig.taken(), rig.flags())


@ALL
@pytest.mark.parametrize("sint", [1, 2, SINT, 15])
def test_synic_052_the_first_and_the_last_flag(profile: str, sint: int) -> None:
    """Byte s * 256 bit 0, byte s * 256 + 255 bit 7 (TLFS)."""
    rig = VpRig(profile)
    rig.sint(VECTOR, sint)
    assert [SUCCESS, SUCCESS] == [rig.signal(0, sint), rig.signal(2047, sint)]
    assert b"\x01" + bytes(254) + b"\x80" == rig.area(sint)


@ALL
def test_synic_053_there_is_no_flag_2048(profile: str) -> None:
    """Not the next SINT's first one either; QEMU's bound is off by one, and is not inherited (TLFS; OpenVMM)."""
    rig = VpRig(profile)
    assert HvStatus.INVALID_PARAMETER == rig.signal(2048)
    with pytest.raises(IrqError) as refused:
        rig.partition.synic.signal(0, 2048, SINT)
    assert (errno.EINVAL, bytes(256), bytes(256), []) == (
        refused.value.errno,
        rig.area(SINT),
        rig.area(5),
        rig.taken(),
    )


@pytest.mark.parametrize(
    ("profile", "register", "status", "flags"),
    [
        ("tlfs", Msr.SCONTROL, INVALID_STATE, ()),
        ("kvm", Msr.SCONTROL, INVALID_STATE, ()),
        ("openvmm", Msr.SCONTROL, SUCCESS, ()),
        ("tlfs", Msr.SIEFP, INVALID_STATE, ()),
        ("kvm", Msr.SIEFP, INVALID_STATE, ()),
        ("openvmm", Msr.SIEFP, SUCCESS, (3,)),
    ],
)
def test_synic_054_055_a_signal_to_a_synic_that_is_off(
    profile: str, register: int, status: HvStatus, flags: tuple[int, ...]
) -> None:
    """synic.md 6: refused, flag untouched; OpenVMM tells nobody, and its page is its own."""
    rig = VpRig(profile)
    rig.vcpu().wrmsr(register, 0)
    assert status == rig.signal(3)
    if register == Msr.SIEFP:
        rig.pages()
    assert (flags, [VECTOR] if flags else []) == (rig.flags(), rig.taken())


def test_synic_056_a_masked_sint_refuses_flags() -> None:
    """Profile tlfs: 0x18, flag 0."""
    rig = VpRig("tlfs")
    rig.sint(VECTOR | MASKED)
    assert INVALID_STATE == rig.signal(77)
    assert ((), []) == (rig.flags(), rig.taken())


@pytest.mark.parametrize("profile", ["kvm", "kvm-synic2", "kvm-4.5", "qemu"])
def test_synic_057_a_masked_sint_takes_flags_and_unmasking_replays_none(profile: str) -> None:
    """Profile kvm: status 0, flag 1, no interrupt."""
    rig = VpRig(profile)
    rig.sint(VECTOR | MASKED)
    assert SUCCESS == rig.signal(77)
    rig.sint(VECTOR)
    rig.partition.settle()
    assert ((77,), []) == (rig.flags(), rig.taken())
    assert SUCCESS == rig.signal(77)
    assert [] == rig.taken()


def test_synic_056_057_openvmm_does_neither() -> None:
    """D3: silently not set."""
    rig = VpRig("openvmm")
    rig.sint(VECTOR | MASKED)
    assert SUCCESS == rig.signal(77)
    assert ((), []) == (rig.flags(), rig.taken())


@pytest.mark.parametrize(("profile", "vectors"), [("tlfs", []), ("openvmm", []), ("kvm", [VECTOR]), ("qemu", [VECTOR])])
def test_a_polled_sint_takes_flags(profile: str, vectors: list[int]) -> None:
    """D5, synic.md 6: set; whether it interrupts differs."""
    rig = VpRig(profile)
    rig.sint(VECTOR | POLLING)
    assert SUCCESS == rig.signal(77)
    assert ((77,), vectors) == (rig.flags(), rig.taken())


@ALL
def test_synic_059_060_a_retargeted_port_signals_the_new_vp_alone(profile: str) -> None:
    """VP3's page and vector, VP0 untouched (OpenVMM); what was set there stays for the guest to find (Linux)."""
    rig = VpRig(profile, cpus=4)
    port = rig.event_port()
    assert SUCCESS == port.signal(5)
    port.vp = 3
    assert SUCCESS == port.signal(5)
    assert ([VECTOR], [], [], [VECTOR]) == tuple(rig.taken(vp) for vp in range(4))
    assert ((5,), (), (), (5,)) == tuple(rig.flags(vp=vp) for vp in range(4))
    rig.clear_flag(5)
    assert SUCCESS == port.signal(5)
    assert ((), []) == (rig.flags(), rig.taken())
    port.vp = 4
    assert HvStatus.INVALID_VP_INDEX == port.signal(5)


@ALL
def test_synic_061_of_two_signallers_one_requests_the_interrupt(profile: str) -> None:
    """One atomic or decides (TLFS); tests/c/test_synic.c does the same under the thread sanitizer."""
    rig = VpRig(profile)
    edges: list[bool] = []

    def signal(barrier: threading.Barrier) -> None:
        barrier.wait()
        edges.append(rig.partition.synic.signal(0, 77, SINT))

    for _ in range(50):
        barrier = threading.Barrier(2)
        threads = [threading.Thread(target=signal, args=(barrier,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [False, True] == sorted(edges)
        assert [VECTOR] == rig.taken()
        edges.clear()
        rig.clear_flag(77)
