"""Synthetic timers by their registers, in every profile that a rule speaks of (synic.md 11; rows 98 to 110 of 16)."""

from __future__ import annotations

import errno

import pytest

from tests.hyperv.stimer_rig import AUTO, DIRECT, ENABLE, LAZY, PERIODIC, PROFILES, SINT4, VECTOR, Tick, TimerRig
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.cpuid import Feature, Features
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.vcpu import GeneralProtectionFault

every_profile = pytest.mark.parametrize("profile", PROFILES)
DIRECT_61 = DIRECT | 0x61 << 4


@every_profile
def test_synic_098_a_one_shot_expires_once_at_its_count(profile: str) -> None:
    """Not a tick before; the message tells when it was due; enable reads 0 afterwards (TLFS 12.4)."""
    rig = TimerRig(profile)
    rig.count(2, rig.now + 500)
    rig.config(2, ENABLE | SINT4)
    rig.to(1499)
    assert ((0, 0, None), [], True) == (rig.slot(), rig.vectors, rig.enabled(2))
    rig.to(1500)
    assert Tick(2, 1500, 1500) == rig.slot()[2]
    assert ([(1500, VECTOR)], False) == (rig.vectors, rig.enabled(2))
    rig.free()
    rig.to(10_000)
    assert ((0, 0, None), 1) == ((*rig.slot()[:1], 0, None), len(rig.vectors))


@every_profile
def test_synic_099_a_count_in_the_past_expires_at_once(profile: str) -> None:
    """The expiration time is the count, not the moment (TLFS 12.4; KVM, v6.16)."""
    rig = TimerRig(profile)
    rig.count(0, rig.now - 1)
    rig.config(0, ENABLE | SINT4)
    rig.partition.settle()
    assert (Tick(0, 999, 1000), False) == (rig.slot()[2], rig.enabled(0))


@every_profile
def test_synic_100_a_count_enables_an_auto_enabled_timer(profile: str) -> None:
    """Each write starts it anew (TLFS 12.4)."""
    rig = TimerRig(profile)
    rig.config(1, AUTO | SINT4)
    assert not rig.enabled(1)
    rig.count(1, rig.now + 500)
    assert rig.enabled(1)
    rig.to(5000)
    assert (Tick(1, 1500, 1500), False, 1) == (rig.free(), rig.enabled(1), len(rig.vectors))


@every_profile
def test_a_host_that_restores_a_count_enables_nothing(profile: str) -> None:
    """KVM since v6.7: a restored COUNT must not start what CONFIG says is stopped."""
    rig = TimerRig(profile)
    rig.config(1, AUTO | SINT4, host=True)
    rig.count(1, rig.now + 500, host=True)
    rig.to(5000)
    assert (False, []) == (rig.enabled(1), rig.vectors)


@every_profile
def test_synic_101_a_count_of_0_stops_the_timer(profile: str) -> None:
    """Whatever auto-enable says; OpenVMM leaves the enable bit alone (synic.md 11.1)."""
    rig = TimerRig(profile)
    rig.config(0, AUTO | SINT4)
    rig.count(0, rig.now + 500)
    rig.count(0, 0)
    rig.to(5000)
    assert (profile == "openvmm", []) == (rig.enabled(0), rig.vectors)


@every_profile
def test_synic_102_the_first_period_begins_when_the_timer_is_enabled(profile: str) -> None:
    """Due at 300, 600, 900 of its own time, and enable stays 1 (TLFS 12.4)."""
    rig = TimerRig(profile, start=0)
    rig.count(0, 300)
    rig.config(0, ENABLE | PERIODIC | DIRECT_61)
    rig.to(1000)
    assert ([(300, 0x61), (600, 0x61), (900, 0x61)], True) == (rig.vectors, rig.enabled(0))


@every_profile
def test_synic_102_periodic_messages_tell_their_due_times(profile: str) -> None:
    """One message per period, for a guest that keeps up."""
    rig = TimerRig(profile, start=0)
    rig.count(0, 300)
    rig.config(0, ENABLE | PERIODIC | SINT4)
    got = []
    for due in (300, 600, 900):
        rig.to(due)
        got.append(rig.free())
    assert [Tick(0, due, due) for due in (300, 600, 900)] == got


@pytest.mark.parametrize(
    ("profile", "was_enabled", "expected"),
    [
        ("tlfs", True, False),
        ("tlfs", False, False),
        ("kvm", True, False),
        ("kvm", False, True),
        ("xen", True, False),
        ("xen", False, False),
        ("openvmm", True, True),
        ("openvmm", False, True),
    ],
)
def test_synic_103_message_mode_with_sint_0_disables_the_timer(profile: str, was_enabled: bool, expected: bool) -> None:
    """KVM only if it was enabled before; OpenVMM does not look (D11)."""
    rig = TimerRig(profile)
    rig.count(0, 10_000)
    if was_enabled:
        rig.config(0, ENABLE | SINT4)
    rig.config(0, ENABLE)
    assert expected == rig.enabled(0)


@every_profile
def test_sint_0_is_no_matter_in_direct_mode(profile: str) -> None:
    """The SINT field is not looked at (TLFS 12.4)."""
    rig = TimerRig(profile)
    rig.count(0, 1500)
    rig.config(0, ENABLE | DIRECT_61)
    rig.config(0, ENABLE | DIRECT_61)
    rig.to(1500)
    assert [(1500, 0x61)] == rig.vectors


@every_profile
def test_synic_104_a_one_shot_waits_for_a_busy_slot(profile: str) -> None:
    """The pending bit and no interrupt; then the original expiration, and the time at which it was written."""
    rig = TimerRig(profile)
    rig.count(0, 1500)
    rig.config(0, ENABLE | SINT4)
    rig.fill()
    rig.to(1500)
    assert ((1, 1, None), []) == (rig.slot(), rig.vectors)
    rig.to(1700)
    rig.free()
    assert (Tick(0, 1500, 1700), [(1700, VECTOR)], False) == (rig.slot()[2], rig.vectors, rig.enabled(0))


@pytest.mark.parametrize(("profile", "while_waiting"), [("tlfs", False), ("kvm", True), ("xen", False)])
def test_synic_104_the_enable_bit_of_an_undelivered_one_shot(profile: str, while_waiting: bool) -> None:
    """It has expired; KVM keeps the bit until the message is in the slot (synic.md 11.2)."""
    rig = TimerRig(profile)
    rig.count(0, 1500)
    rig.config(0, ENABLE | SINT4)
    rig.fill()
    rig.to(1500)
    assert while_waiting == rig.enabled(0)


def test_synic_105_kvm_drops_periodic_ticks_that_find_the_slot_busy() -> None:
    """No pending bit either; the next message belongs to the next due time (D12)."""
    rig = TimerRig("kvm")
    rig.config(0, AUTO | PERIODIC | SINT4)
    rig.count(0, 100)
    rig.fill()
    rig.to(1350)
    assert ((1, 0, None), []) == (rig.slot(), rig.vectors)
    rig.free()
    assert (0, 0, None) == rig.slot()
    rig.to(1400)
    assert Tick(0, 1400, 1400) == rig.slot()[2]


@pytest.mark.parametrize(
    ("profile", "next_due"),
    [("tlfs", 1400), ("openvmm", 1450), ("xen", 1400)],  # of Xen 1350 + 100 / 2
)
def test_synic_105_others_keep_the_first_tick(profile: str, next_due: int) -> None:
    """It is in the slot as soon as that is free; what came after it has merged (D12)."""
    rig = TimerRig(profile)
    rig.config(0, AUTO | PERIODIC | SINT4)
    rig.count(0, 100)
    rig.fill()
    rig.to(1350)
    rig.free()
    assert Tick(0, 1100, 1350) == rig.slot()[2]
    rig.free()
    rig.to(next_due - 1)
    assert rig.slot()[2] is None
    rig.to(next_due)
    assert Tick(0, next_due, next_due) == rig.slot()[2]


def test_synic_106_kvm_forgets_a_message_that_found_no_page_until_eom() -> None:
    """Enabling the page later does not help; an EOM, an EOI or a rewrite of COUNT does."""
    rig = TimerRig("kvm")
    vcpu = rig.partition.vcpus[0]
    vcpu.wrmsr(Msr.SIMP, 0x7000)
    rig.config(0, AUTO | SINT4)
    rig.count(0, 1500)
    rig.to(1600)
    vcpu.wrmsr(Msr.SIMP, 0x7001)
    rig.to(1700)
    assert ((0, 0, None), True) == (rig.slot(), rig.enabled(0))
    rig.eom()
    assert (Tick(0, 1500, 1700), False) == (rig.slot()[2], rig.enabled(0))


def test_synic_106_kvm_a_rewritten_count_helps_too() -> None:
    """What hosts do for guests that boot that way: the same COUNT once more."""
    rig = TimerRig("kvm")
    vcpu = rig.partition.vcpus[0]
    vcpu.wrmsr(Msr.SIMP, 0x7000)
    rig.config(0, AUTO | SINT4)
    rig.count(0, 1500)
    rig.to(1600)
    vcpu.wrmsr(Msr.SIMP, 0x7001)
    rig.count(0, 1500)
    assert Tick(0, 1500, 1600) == rig.slot()[2]


def test_synic_106_tlfs_delivers_once_the_page_is_enabled() -> None:
    """The message waits in its buffer until the SynIC takes messages: a choice of ours, see deviations.md."""
    rig = TimerRig("tlfs")
    vcpu = rig.partition.vcpus[0]
    vcpu.wrmsr(Msr.SIMP, 0x7000)
    rig.config(0, AUTO | SINT4)
    rig.count(0, 1500)
    rig.to(1600)
    vcpu.wrmsr(Msr.SIMP, 0x7001)
    rig.partition.settle()
    assert Tick(0, 1500, 1600) == rig.slot()[2]


@every_profile
def test_synic_107_direct_mode_needs_no_page(profile: str) -> None:
    """The vector, and no message (TLFS 12.4)."""
    rig = TimerRig(profile)
    vcpu = rig.partition.vcpus[0]
    vcpu.wrmsr(Msr.SCONTROL, 0)
    vcpu.wrmsr(Msr.SIMP, 0x7000)
    rig.config(3, AUTO | DIRECT_61)
    rig.count(3, 1500)
    rig.to(1500)
    assert ([(1500, 0x61)], False) == (rig.vectors, rig.enabled(3))
    vcpu.wrmsr(Msr.SIMP, 0x7001)
    assert (0, 0, None) == rig.slot()


@every_profile
def test_synic_108_two_timers_on_one_sint_come_one_after_the_other(profile: str) -> None:
    """First one message with the pending bit, after EOM the other; two interrupts in all."""
    rig = TimerRig(profile)
    for timer in (0, 1):
        rig.config(timer, AUTO | SINT4)
        rig.count(timer, 1500)
    rig.to(1500)
    _type, pending, first = rig.slot()
    assert (1, Tick(0, 1500, 1500)) == (pending, first)
    rig.to(1600)
    rig.free()
    assert Tick(1, 1500, 1600) == rig.slot()[2]
    rig.free()
    assert ((0, None), 2) == (rig.slot()[::2], len(rig.vectors))


@pytest.mark.parametrize(
    ("profile", "lazy", "expected"),
    [
        ("kvm", 0, 10_000),
        ("kvm", LAZY, 10_000),
        ("openvmm", 0, 10_300),
        ("openvmm", LAZY, 10_300),
        ("xen", 0, 9633),
        ("xen", LAZY, 10_300),
        ("tlfs", 0, 9633),
        ("tlfs", LAZY, 10_000),
    ],
)
def test_synic_109_the_next_due_time_after_a_late_tick(profile: str, lazy: int, expected: int) -> None:
    """Due at 6000, period 1000, the VP unavailable until 9300: one message, then as the profile says (D13)."""
    rig = TimerRig(profile, start=5000)
    rig.config(0, AUTO | PERIODIC | lazy | SINT4)
    rig.count(0, 1000)
    rig.partition.suspend_guest(4300)
    rig.to(9299)
    assert (0, 0, None) == rig.slot()
    rig.to(9300)
    assert Tick(0, 6000, 9300) == rig.free()
    rig.to(expected - 1)
    assert (0, None) == rig.slot()[::2]
    rig.to(expected)
    assert Tick(0, expected, expected) == rig.slot()[2]


def test_a_lazy_signal_is_skipped_when_the_next_is_almost_due() -> None:
    """TLFS 12.4; that a quarter of a period is almost is our figure."""
    rig = TimerRig("tlfs", start=5000)
    rig.config(0, AUTO | PERIODIC | LAZY | SINT4)
    rig.count(0, 1000)
    rig.partition.suspend_guest(4800)
    rig.to(9999)
    assert (0, None) == rig.slot()[::2]
    rig.to(10_000)
    assert Tick(0, 10_000, 10_000) == rig.slot()[2]


@every_profile
def test_synic_110_a_rewrite_discards_what_was_not_delivered(profile: str) -> None:
    """A later EOM delivers nothing; in a slot it would stay (KVM; the others here too)."""
    rig = TimerRig(profile)
    rig.config(0, AUTO | SINT4)
    rig.count(0, 1500)
    rig.fill()
    rig.to(1600)
    rig.config(0, 0)
    rig.free()
    rig.eom()
    assert ((0, None), []) == (rig.slot()[::2], rig.vectors)


def test_kvm_sends_once_more_what_a_masked_sint_had() -> None:
    """The message is in the slot, but no interrupt came of it: the same expiry again after EOM (synic.md 17, 15)."""
    rig = TimerRig("kvm")
    rig.partition.vcpus[0].wrmsr(Msr.SINT0 + 4, VECTOR | 1 << 16)
    rig.config(0, AUTO | SINT4)
    rig.count(0, 1500)
    rig.to(1500)
    assert (Tick(0, 1500, 1500), True) == (rig.slot()[2], rig.enabled(0))
    rig.to(1600)
    rig.partition.vcpus[0].wrmsr(Msr.SINT0 + 4, VECTOR)
    assert Tick(0, 1500, 1500) == rig.free()
    rig.eom()
    assert (Tick(0, 1500, 1600), [(1600, VECTOR)], False) == (rig.slot()[2], rig.vectors, rig.enabled(0))


def test_openvmm_keeps_a_tick_due_while_its_sint_is_masked() -> None:
    """It is refused, and tried at each entry (D4)."""
    rig = TimerRig("openvmm")
    rig.partition.vcpus[0].wrmsr(Msr.SINT0 + 4, VECTOR | 1 << 16)
    rig.config(0, AUTO | SINT4)
    rig.count(0, 1500)
    rig.to(1600)
    assert (0, 0, None) == rig.slot()
    rig.partition.vcpus[0].wrmsr(Msr.SINT0 + 4, VECTOR)
    rig.partition.settle()
    assert Tick(0, 1500, 1600) == rig.slot()[2]


@every_profile
def test_synic_020_direct_mode_that_is_not_offered_faults(profile: str) -> None:
    """The register keeps its value (KVM, v6.16, with enforced CPUID)."""
    rig = TimerRig(profile, features=Features().minus(Feature.STIMER_DIRECT))
    rig.config(0, AUTO | SINT4)
    with pytest.raises(GeneralProtectionFault):
        rig.config(0, AUTO | DIRECT_61)
    assert AUTO | SINT4 == rig.read(0)


@every_profile
def test_synic_020_timers_that_are_not_offered_fault(profile: str) -> None:
    """Both registers, both ways (K X)."""
    rig = TimerRig(profile, features=Features().minus(Feature.STIMER))
    for access in (lambda: rig.read(0), lambda: rig.config(0, 0), lambda: rig.count(3, 0)):
        with pytest.raises(GeneralProtectionFault):
            access()


@every_profile
def test_enabling_without_a_count_does_not_start(profile: str) -> None:
    """Linux enables its timer first and sets the count later (hv_ce_set_oneshot); nothing may come of that."""
    rig = TimerRig(profile)
    for mode in (0, PERIODIC):
        rig.config(0, ENABLE | AUTO | mode | SINT4)
        rig.to(rig.now + 10_000)
    assert [] == rig.vectors


@every_profile
@pytest.mark.parametrize("count", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("mode", [0, PERIODIC])
def test_counts_beyond_all_time_never_come(profile: str, count: int, mode: int) -> None:
    """No storm from a sum that wraps (synic.md 11.1)."""
    rig = TimerRig(profile)
    rig.config(0, AUTO | mode | DIRECT_61)
    rig.count(0, count)
    rig.to(1_000_000)
    assert ([], True) == (rig.vectors, rig.enabled(0))


def test_a_count_has_64_bits() -> None:
    """More is a mistake of the caller."""
    with pytest.raises(IrqError) as error:
        TimerRig().count(0, 1 << 64)
    assert errno.EINVAL == error.value.errno


@every_profile
def test_a_reset_stops_all_timers(profile: str) -> None:
    """Their registers are 0, and what waited for the slot is gone (TLFS: VP reset empties the queues)."""
    rig = TimerRig(profile)
    for timer in range(4):
        rig.config(timer, AUTO | SINT4)
        rig.count(timer, 1500)
    rig.fill()
    rig.to(1400)
    rig.partition.vcpus[0].reset()
    rig.to(2000)
    assert ([0] * 4, []) == ([rig.read(timer) for timer in range(4)], rig.vectors)


@every_profile
def test_a_direct_vector_that_the_apic_drops_is_lost(profile: str) -> None:
    """One-shots are over then; KVM's is stuck, for nothing acknowledges a vector of its own (v6.16)."""
    rig = TimerRig(profile)
    rig.partition.vcpus[0].apic.enabled = False
    rig.config(0, AUTO | DIRECT_61)
    rig.count(0, 1500)
    rig.to(1600)
    rig.partition.vcpus[0].apic.enabled = True
    rig.eom()
    rig.to(5000)
    assert ([], profile == "kvm") == (rig.vectors, rig.enabled(0))


@every_profile
def test_timers_of_two_vps_know_nothing_of_each_other(profile: str) -> None:
    """Four per VP."""
    rig = TimerRig(profile)
    rig.config(0, AUTO | SINT4, vp=1)
    rig.count(0, 1500, vp=1)
    rig.to(1500)
    assert ((0, 0, None), Tick(0, 1500, 1500)) == (rig.slot(), rig.slot(vp=1)[2])
    assert 0 == rig.read(0, vp=0)
