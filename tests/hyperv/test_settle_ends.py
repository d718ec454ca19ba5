"""A settle comes to an end on any input: who feeds itself is told so (``Partition.settle``)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.hyperv.kvm_rig import GSI, VECTOR, eventfds, made, route
from tests.hyperv.vp_rig import VpRig
from vmbusirq.errors import IrqError
from vmbusirq.hyperv import clock, partition
from vmbusirq.hyperv.kvm import RESAMPLE


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure is a figure: the same bound, sooner."""
    assert 1 << 16 == partition._ROUNDS_MAX == clock._RUNS_MAX
    monkeypatch.setattr(partition, "_ROUNDS_MAX", 500)
    monkeypatch.setattr(clock, "_RUNS_MAX", 500)


def endless(call: Callable[[], object]) -> None:
    """Assert ELOOP."""
    with pytest.raises(IrqError) as refused:
        call()
    assert errno.ELOOP == refused.value.errno


def test_two_vps_that_interrupt_each_other() -> None:
    """Neither of them requests its own vector: the bound of one VP's handlers does not see it."""
    rig = VpRig()
    vcpus = rig.partition.vcpus
    for vcpu, other in (vcpus, reversed(vcpus)):
        vcpu.apic.handlers[0x60] = lambda v, other=other: (v.apic.eoi(), other.apic.request(0x60))
    vcpus[0].apic.request(0x60)
    endless(rig.partition.settle)
    vcpus[0].apic.handlers[0x60] = lambda v: v.apic.eoi()
    assert 0 == rig.partition.settle()
    assert [0, 0] == [vcpu.apic.irr for vcpu in vcpus]


def test_an_irqfd_whose_resampler_is_itself() -> None:
    """Each acknowledge raises the GSI anew."""
    with eventfds(1) as (fd,), made() as vm:
        route(vm)
        vm.irqfd(fd, GSI, RESAMPLE, fd)
        vm.vcpus[1].vcpu.apic.handlers[VECTOR] = lambda v: v.apic.eoi()
        os.eventfd_write(fd, 1)
        endless(vm.partition.settle)


def test_a_pump_that_is_never_done_and_one_that_is_at_the_last_moment() -> None:
    """499 rounds with something to do and one without; one more is too many."""
    part = VpRig().partition
    left = [499]

    def pump() -> bool:
        left[0] -= 1
        return left[0] >= 0

    part.add_pump(pump)
    part.settle()
    assert -1 == left[0]
    left[0] = 500
    endless(part.settle)


def test_a_timer_that_sets_itself_to_the_tick_that_is() -> None:
    """No time passes in a settle."""
    part = VpRig().partition

    def again() -> None:
        part.clock.call_at(part.clock.now, again)

    again()
    endless(part.settle)
