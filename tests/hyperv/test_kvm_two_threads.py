"""A device on a thread of its own, with real eventfds and nothing else in common with the VM (synic.md 10.3)."""

from __future__ import annotations

import os
import threading

from tests.hyperv.kvm_rig import GSI, SINT4, VECTOR, WAIT_MS, eventfds, made, readable, route
from vmbusirq.hyperv.kvm import RESAMPLE
from vmbusirq.hyperv.registers import Msr

ROUNDS = 200


def device(trigger: int, resample: int, seen: list[int]) -> None:
    """Raise the line and wait until the guest has acknowledged, as vhost or a level-triggered device does."""
    for _ in range(ROUNDS):
        os.eventfd_write(trigger, 1)
        if not readable(resample):
            return
        seen.append(os.eventfd_read(resample))


def ping_pong(end, *, auto_eoi: bool) -> tuple[list[int], list[int], int]:
    """Run device and guest against each other; return what the device read, what the guest took, GSIs raised."""
    seen: list[int] = []
    taken: list[int] = []
    with eventfds(2) as (trigger, resample), made() as vm:
        route(vm)
        vm.irqfd(trigger, GSI, RESAMPLE, resample)
        vcpu = vm.vcpus[1].vcpu
        vcpu.wrmsr(SINT4, VECTOR | (1 << 17 if auto_eoi else 0))
        thread = threading.Thread(target=device, args=(trigger, resample, seen))
        thread.start()
        while len(taken) < ROUNDS and vm.pump(WAIT_MS):
            taken.append(vcpu.apic.accept())
            end(vcpu)
        thread.join()
        return seen, taken, vm.irqfds.items[0].raised


def test_a_resampler_across_two_threads_by_eoi():
    """Each write is one vector, each EOI one count: neither side ever is ahead by more than one."""
    seen, taken, raised = ping_pong(lambda vcpu: vcpu.apic.eoi(), auto_eoi=False)
    assert [1] * ROUNDS == seen
    assert [VECTOR] * ROUNDS == taken
    assert raised == ROUNDS


def test_a_resampler_across_two_threads_by_eom():
    """With auto-EOI, EOM is the only acknowledge there is."""
    seen, taken, raised = ping_pong(lambda vcpu: vcpu.wrmsr(Msr.EOM, 0), auto_eoi=True)
    assert [1] * ROUNDS == seen
    assert [VECTOR] * ROUNDS == taken
    assert raised == ROUNDS


def test_a_signal_wakes_a_thread_without_an_exit():
    """The fast path of HvSignalEvent: user space waits on its eventfd, the vCPU goes on."""
    woken: list[int] = []
    with eventfds(1) as (fd,), made() as vm:
        vm.hyperv_eventfd(5, fd)

        def worker() -> None:
            while sum(woken) < ROUNDS and readable(fd):
                woken.append(os.eventfd_read(fd))

        thread = threading.Thread(target=worker)
        thread.start()
        assert {0} == {vm.hypercall(vm.vcpus[0], 0x1005D, 5) for _ in range(ROUNDS)}
        thread.join()
    assert sum(woken) == ROUNDS
