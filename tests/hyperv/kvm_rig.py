"""A VM of two vCPUs for the tests of KVM's surface, set up as synic.md 16 has it: SynIC on, SINT4 = vector 0x51."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmbusirq.core import Core
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.kvm import Guest, HcallExit, Hypercall, KvmCap, KvmVm, SintRoute, Wrmsr
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.profiles import Profile
from vmbusirq.hyperv.registers import Msr

SINT, VECTOR, GSI = 4, 0x51, 30
SINT4 = Msr.SINT0 + SINT
SIEF, SIM = 0x6000, 0x7000
WAIT_MS = 10_000
"""How long a test waits for another thread before it fails; none sleeps."""


def program(vm: KvmVm, vp: int) -> None:
    """Enable pages and SINT4 of one VP, as its guest does; no exit is left behind."""
    vcpu = vm.vcpus[vp].vcpu
    for msr, value in ((Msr.SCONTROL, 1), (Msr.SIEFP, vp << 16 | SIEF | 1), (Msr.SIMP, vp << 16 | SIM | 1)):
        vcpu.wrmsr(msr, value)
    vcpu.wrmsr(SINT4, VECTOR)
    vm.vcpus[vp].take_exit()


@contextmanager
def made(
    profile: str | Profile = "kvm", *, cap: KvmCap | None = KvmCap.HYPERV_SYNIC, irqchip: bool = True
) -> Iterator[KvmVm]:
    """Make a VM; with a capability its SynICs are active and programmed."""
    partition = Partition(Core(nr_cpus=2), GuestMemory(1 << 20), profile=profile)
    with KvmVm(partition, irqchip=irqchip) as vm:
        for vp in range(2 if cap else 0):
            vm.vcpus[vp].enable_cap(cap)
            program(vm, vp)
        yield vm
    partition.memory.close()


@contextmanager
def eventfds(count: int, flags: int = 0) -> Iterator[list[int]]:
    """Make eventfds of the test's own; they are still open at the end, whatever the VM did."""
    fds = [os.eventfd(0, flags) for _ in range(count)]
    yield fds
    for fd in fds:
        os.close(fd)


def counter(fd: int) -> int:
    """Take what an eventfd has counted, 0 if nothing."""
    return os.eventfd_read(fd) if readable(fd, 0) else 0


def readable(fd: int, timeout_ms: int = WAIT_MS) -> bool:
    """Wait until an eventfd can be read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def route(vm: KvmVm, vp: int = 1, sint: int = SINT, gsi: int = GSI) -> None:
    """Set a table of one route."""
    vm.set_gsi_routing([SintRoute(gsi, vp, sint)])


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the directory itself is one of them, each time


def calling(*calls: tuple[int, int], results: list[int]) -> Guest:
    """Make those hypercalls, control word and input, and note their results."""
    for control, value in calls:
        results.append((yield Hypercall(control, value)))


def writing(*writes: tuple[int, int]) -> Guest:
    """Write those MSRs."""
    for msr, value in writes:
        yield Wrmsr(msr, value)


def answering(vm: KvmVm, vp: int, answer: Callable[[HcallExit], int] = lambda exit_: HvStatus.SUCCESS) -> list[object]:
    """Be user space: run a vCPU to the end of its guest, answer its hypercalls, return its exits."""
    exits: list[object] = []
    while (exit_ := vm.vcpus[vp].run()) is not None:
        exits.append(exit_)
        if isinstance(exit_, HcallExit):
            vm.vcpus[vp].store_result(answer(exit_))
    return exits
