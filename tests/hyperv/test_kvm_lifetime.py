"""What KVM's surface holds on to, and what becomes of it: references to eventfds, pumps (synic.md 10)."""

from __future__ import annotations

import errno
import gc
import os
from typing import NoReturn

import pytest

from tests.hyperv.kvm_rig import GSI, counter, descriptors, eventfds, made, readable, route
from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.kvm import RESAMPLE, KvmVm
from vmbusirq.hyperv.kvm.eventfd import EventFd
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition


def test_a_vm_that_nobody_closes_gives_its_descriptors_back() -> None:
    """Once it is collected: closing a VM's descriptor is the kernel's last reference, too."""
    gc.collect()
    with eventfds(2) as (trigger, resample):
        before = descriptors()
        for _ in range(5):
            partition = Partition(Core(1), GuestMemory(1 << 20), profile="kvm")
            vm = KvmVm(partition)
            vm.irqfd(trigger, GSI, RESAMPLE, resample)
            vm.hyperv_eventfd(5, trigger)
            partition.memory.close()
            del vm, partition
        gc.collect()
        assert before == descriptors()
        os.eventfd_write(trigger, 3)
        assert 3 == counter(trigger)


def test_a_closed_vm_leaves_no_pump() -> None:
    """One VM after the other over the same partition; the pumps of others stay."""
    partition = Partition(Core(1), GuestMemory(1 << 20), profile="kvm")
    calls: list[int] = []

    def pump() -> None:
        calls.append(1)

    partition.add_pump(pump)
    vms = [KvmVm(partition) for _ in range(100)]
    for vm in vms:
        vm.close()
        vm.close()
    assert [pump] == [known.work for known in partition._pumps]
    partition.settle()
    partition.remove_pump(pump)
    partition.remove_pump(pump)
    partition.settle()
    assert [1] == calls
    partition.memory.close()


def test_a_pump_may_take_itself_away_while_it_runs() -> None:
    """And those after it are called all the same."""
    partition = Partition(Core(1))
    calls: list[str] = []

    def once() -> None:
        calls.append("once")
        partition.remove_pump(once)

    partition.add_pump(once)
    partition.add_pump(lambda: calls.append("other"))
    partition.settle()
    partition.settle()
    assert ["once", "other", "other"] == calls


def test_a_reference_that_could_not_be_made_closes_nothing() -> None:
    """Neither another's descriptor nor 0."""
    before = descriptors()
    for fd in (-1, 1 << 31, 9999):
        with pytest.raises(IrqError):
            EventFd(fd, "test")
    reader, writer = os.pipe()
    with pytest.raises(IrqError):
        EventFd(reader, "test")
    os.close(reader)
    os.close(writer)
    gc.collect()
    assert before == descriptors()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("flags", [0, os.EFD_SEMAPHORE, os.EFD_NONBLOCK])
def test_a_kernel_without_reads_that_never_wait(monkeypatch: pytest.MonkeyPatch, number: int, flags: int) -> None:
    """preadv2() with RWF_NOWAIT is refused for eventfds before Linux 5.8: look, then read."""

    def lacks(*_args: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    with eventfds(1, flags) as (fd,), made() as vm:
        route(vm)
        vm.irqfd(fd, GSI)
        monkeypatch.setattr(os, "preadv", lacks)
        reference = EventFd(fd, "test")
        assert 0 == reference.take()
        os.eventfd_write(fd, 2)
        expected = 1 if flags == os.EFD_SEMAPHORE else 2
        assert expected == reference.take()
        os.eventfd_write(fd, 1)
        assert 1 == vm.pump()
        assert (flags == os.EFD_SEMAPHORE) == readable(fd, 0)
        reference.close()


def test_another_error_of_a_read_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO is none of those."""

    def broken(*_args: object) -> NoReturn:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", broken)
    with eventfds(1) as (fd,):
        reference = EventFd(fd, "test")
        with pytest.raises(OSError, match="broken"):
            reference.take()
        reference.close()
