"""A profile says nothing that no code asks for (synic.md 15)."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import vmbusirq.hyperv
from tests.hyperv.stimer_rig import AUTO, DIRECT, LAZY, PERIODIC, SINT4, VECTOR, Tick, TimerRig
from tests.hyperv.vp_rig import MASKED
from vmbusirq.hyperv.profiles import PROFILES, Profile
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.stimer_registers import timer_rules

HOME = Path(next(iter(vmbusirq.hyperv.__path__)))


@pytest.mark.parametrize("field", [field.name for field in fields(Profile)])
def test_every_field_of_a_profile_is_asked_for(field: str) -> None:
    """Outside of the table itself."""
    readers = [
        path.name
        for path in HOME.rglob("*.py")
        if path.name != "profiles.py" and f".{field}" in path.read_text(encoding="utf-8")
    ]
    assert [] != readers


@pytest.mark.parametrize("profile", PROFILES)
def test_d11_to_d13_and_d4_of_timers_are_the_profiles(profile: str) -> None:
    """Whatever family its other rules are of: KVM's timers are below QEMU as well."""
    record = PROFILES[profile]
    rules = timer_rules(record)
    kvm = record.needs_activation
    assert kvm == (record.message_to_masked == "undelivered") == (not rules.masked_is_delivered)
    assert kvm == (rules.sint_0 == "if-enabled") == rules.drops_busy_ticks == (rules.late == "phase")
    assert timer_rules(replace(record, message_to_masked="deposited")).masked_is_delivered


@pytest.mark.parametrize(("choice", "comes_again"), [("undelivered", True), ("deposited", False)])
def test_synic_030_what_counts_as_undelivered_comes_again(
    choice: Literal["undelivered", "deposited"], comes_again: bool
) -> None:
    """D4: a one-shot whose message lay in the slot of a masked SINT, which the guest then unmasks and ends by EOM."""
    rig = TimerRig(replace(PROFILES["kvm"], message_to_masked=choice))
    sint = Msr.SINT0 + 4
    rig.partition.vcpus[0].wrmsr(sint, VECTOR | MASKED)
    rig.config(0, AUTO | SINT4)
    rig.count(0, 1500)
    rig.to(1600)
    rig.partition.vcpus[0].wrmsr(sint, VECTOR)
    assert Tick(0, 1500, 1500) == rig.free()
    rig.eom()
    assert (Tick(0, 1500, 1600) if comes_again else None) == rig.slot()[2]


def told_by(profile: Profile) -> list[object]:
    """Return what a guest sees of its timers and its clock: late, lazy, busy, masked and stopped ones, and the page."""
    rig = TimerRig(profile)
    told: list[object] = []
    vcpu = rig.partition.vcpus[0]
    rig.partition.memory.write(0x9000, b"\xfe\xff\xff\xff")
    for value in (0x9001, 0x9000, 0x9001):
        vcpu.wrmsr(Msr.REFERENCE_TSC, value)
        told.append(rig.partition.memory.read(0x9000, 24))
    vcpu.wrmsr(Msr.REFERENCE_TSC, 0)
    for lazy in (0, LAZY):
        rig.config(1, AUTO | PERIODIC | SINT4 | lazy)
        rig.count(1, 1000)
        rig.partition.suspend_guest(4300)
        for step in range(8):
            rig.to(rig.now + 700)
            told.append((rig.slot(), rig.read(1)))
            told.append(rig.free() if step % 3 else None)
        rig.count(1, 0)
        told.append((rig.read(1), rig.free()))
    vcpu.apic.enabled = False
    rig.config(2, AUTO | DIRECT | 0x61 << 4)
    rig.count(2, rig.now + 10)
    rig.to(rig.now + 20)
    told.append(rig.read(2))
    return [*told, rig.vectors]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_under_another_name_behaves_the_same(profile: str) -> None:
    """Code asks for fields, never for the name."""
    record = PROFILES[profile]
    for name in ("mine", "tlfs", "kvm-mine", "xen"):
        assert told_by(record) == told_by(replace(record, name=name))


def test_what_is_told_tells_families_apart() -> None:
    """Else the test above would see nothing."""
    told = [told_by(PROFILES[name]) for name in ("tlfs", "kvm", "openvmm", "xen")]
    assert all(one != other for i, one in enumerate(told) for other in told[:i])


@pytest.mark.parametrize(
    "field", [name for name, hint in get_type_hints(Profile).items() if get_origin(hint) is Literal]
)
def test_a_word_that_is_no_choice_is_refused(field: str) -> None:
    """With the choices there are; each of those is taken."""
    choices = get_args(get_type_hints(Profile)[field])
    assert all(word == getattr(replace(PROFILES["kvm"], **{field: word}), field) for word in choices)
    for wrong in ("sometimes", choices[0].upper(), None, True):
        with pytest.raises(ValueError, match=f"{field}: no {wrong!r}; choose from {', '.join(choices)}"):
            replace(PROFILES["kvm"], **{field: wrong})


@pytest.mark.parametrize("kept", [True, False])
def test_what_tsc_emulation_does_to_the_page_is_a_choice(kept: bool) -> None:
    """All implementations keep it; one that does not gives the guest its new TSC at once."""
    clock = TimerRig(replace(PROFILES["tlfs"], tsc_emulation_keeps_page=kept)).partition
    clock.vcpus[0].wrmsr(Msr.TSC_EMULATION_CONTROL, 1)
    clock.refclock.migrate(3_000_000_000)
    assert (2_500_000_000 if kept else 3_000_000_000) == clock.vcpus[0].rdmsr(Msr.TSC_FREQUENCY)
