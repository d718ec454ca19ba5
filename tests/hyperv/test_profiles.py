"""A profile says nothing that no code asks for (synic.md 15)."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import pytest

import vmbusirq.hyperv
from tests.hyperv.stimer_rig import AUTO, SINT4, VECTOR, Tick, TimerRig
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
