"""Everything that KVM's surface refuses, with its errno (synic.md 10), and that nothing is left behind."""

from __future__ import annotations

import errno
import os
import struct
import threading

import pytest

from tests.hyperv.kvm_rig import GSI, SINT, counter, descriptors, eventfds, made, route, writing
from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.kvm import (
    DEASSIGN,
    RESAMPLE,
    HcallExit,
    KvmCap,
    KvmVm,
    SintRoute,
    SynicExit,
    unpack_exit,
)
from vmbusirq.hyperv.kvm.uapi import EXIT_SIZE, KVM_EXIT_HYPERV, KVM_HYPERV_EVENTFD
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.registers import Msr


def refused(call, *args, **kwargs) -> int:
    """Return the errno with which it is refused."""
    with pytest.raises(IrqError) as error:
        call(*args, **kwargs)
    assert errno.errorcode[error.value.errno] in str(error.value)
    return error.value.errno


# ---- capabilities


@pytest.mark.parametrize(
    ("cap", "args", "flags", "expected"),
    [
        (KvmCap.HYPERV_SYNIC, (), 1, errno.EINVAL),
        (KvmCap.HYPERV_SYNIC2, (), 1 << 31, errno.EINVAL),
        (KvmCap.HYPERV_SYNIC2, (1,), 0, errno.EINVAL),
        (KvmCap.HYPERV_SYNIC, (0,) * 5, 0, errno.EINVAL),
        (KvmCap.HYPERV_VP_INDEX, (), 0, errno.EINVAL),
        (0, (), 0, errno.EINVAL),
    ],
)
def test_a_capability_that_cannot_be_enabled(cap, args, flags, expected):
    """kvm_vcpu_ioctl_enable_cap(); the SynIC stays inactive, and a guest's access a #GP."""
    with made(cap=None) as vm:
        assert expected == refused(vm.vcpus[0].enable_cap, cap, args, flags)
        assert not vm.vcpus[0].synic_active


def test_a_synic_needs_an_irqchip():
    """EINVAL without one, EEXIST for a second one; SYNIC does not look at its argument."""
    with made(cap=None, irqchip=False) as vm:
        assert errno.EINVAL == refused(vm.vcpus[0].enable_cap, KvmCap.HYPERV_SYNIC)
        vm.create_irqchip()
        assert errno.EEXIST == refused(vm.create_irqchip)
        vm.vcpus[0].enable_cap(KvmCap.HYPERV_SYNIC, (7,))
        vm.vcpus[1].enable_cap(KvmCap.HYPERV_SYNIC2, (0, 7))
        assert all(vcpu.synic_active for vcpu in vm.vcpus)
        assert [1, 1] == [vcpu.vcpu.rdmsr(Msr.SCONTROL) for vcpu in vm.vcpus]


def test_what_there_is():
    """KVM_CHECK_EXTENSION: 0 for what is not known."""
    with made(cap=None) as vm:
        assert [1, 1, 1, 1, 0, 0] == [vm.check_extension(cap) for cap in (123, 148, 149, 154, 161, 10**6)]


def test_a_partition_that_is_none_of_kvms():
    """Its SynIC would be active without anybody having asked."""
    assert errno.EINVAL == refused(KvmVm, Partition(Core(nr_cpus=1)))


# ---- routing


@pytest.mark.parametrize(
    "routes",
    [
        [SintRoute(4096, 0, SINT)],
        [SintRoute(-1, 0, SINT)],
        [SintRoute(1, 0, SINT, type=2)],
        [SintRoute(1, 0, SINT, flags=1)],
        [SintRoute(1, 0, SINT), SintRoute(1, 1, SINT)],
        [SintRoute(1, 1 << 32, SINT)],
        [SintRoute(1, 0, -1)],
        [SintRoute(gsi, 0, SINT) for gsi in range(4097)],
        [SintRoute(0, 0, SINT)] * 4097,
    ],
    ids=["gsi 4096", "gsi -1", "type", "flags", "twice", "wide vp", "negative sint", "4097 gsis", "4097 entries"],
)
def test_a_table_that_is_refused_leaves_the_old_one(routes):
    """kvm_set_irq_routing(): EINVAL; neither table nor record change."""
    with made() as vm:
        route(vm)
        assert errno.EINVAL == refused(vm.set_gsi_routing, [SintRoute(GSI + 1, 1, SINT), *routes])
        assert (GSI,) == tuple(vm.routing.routes)
        assert vm.vcpus[1].sint_to_gsi[SINT] == GSI


def test_limits_of_a_table():
    """4096 entries, GSI 4095; VPs and SINTs are not looked at before they are raised; flags are refused."""
    with made() as vm:
        vm.set_gsi_routing(SintRoute(gsi, gsi, gsi) for gsi in range(4096))
        assert 4096 == len(vm.routing.routes)
        assert errno.EINVAL == refused(vm.set_gsi_routing, [], 1)


def test_no_irqchip_no_gsis():
    """EINVAL for a table, EAGAIN for an irqfd: kvm_arch_can_set_irq_routing(), kvm_arch_intc_initialized()."""
    with eventfds(1) as (fd,), made(cap=None, irqchip=False) as vm:
        assert errno.EINVAL == refused(vm.set_gsi_routing, [])
        assert errno.EAGAIN == refused(vm.irqfd, fd, GSI)
        assert errno.EAGAIN == refused(vm.irqfd, -1, GSI), "before the descriptor is looked at"
        vm.irqfd(fd, GSI, DEASSIGN)


# ---- irqfd


def test_an_irqfd_that_is_refused():
    """kvm_irqfd(): flags first, then descriptors, then whether the eventfd is taken; nothing stays assigned."""
    read_end, write_end = os.pipe()
    with eventfds(3) as (a, b, c), made() as vm:
        vm.irqfd(c, GSI)
        before = descriptors()
        assert errno.EINVAL == refused(vm.irqfd, a, GSI, 4)
        assert errno.EINVAL == refused(vm.irqfd, a, 1 << 32)
        assert errno.EINVAL == refused(vm.irqfd, a, -1)
        assert errno.EBADF == refused(vm.irqfd, -1, GSI)
        assert errno.EBADF == refused(vm.irqfd, 1 << 20, GSI)
        assert errno.EBADF == refused(vm.irqfd, 1 << 40, GSI)
        assert errno.EINVAL == refused(vm.irqfd, read_end, GSI)
        assert errno.EBADF == refused(vm.irqfd, a, GSI, RESAMPLE, -1)
        assert errno.EBADF == refused(vm.irqfd, a, GSI, RESAMPLE)
        assert errno.EINVAL == refused(vm.irqfd, a, GSI, RESAMPLE, write_end)
        assert errno.EBUSY == refused(vm.irqfd, c, GSI)
        assert errno.EBUSY == refused(vm.irqfd, c, GSI + 1, RESAMPLE, b)
        assert errno.EBADF == refused(vm.irqfd, -1, GSI, DEASSIGN)
        assert errno.EINVAL == refused(vm.irqfd, write_end, GSI, DEASSIGN)
        assert before == descriptors()
        assert 1 == len(vm.irqfds.items)
    os.close(read_end)
    os.close(write_end)


def test_the_eventfd_counts_and_not_its_number():
    """A copy of a descriptor is the same eventfd: EBUSY, and it can be deassigned by it."""
    with eventfds(1) as (fd,), made() as vm:
        vm.irqfd(fd, GSI)
        copy = os.dup(fd)
        assert errno.EBUSY == refused(vm.irqfd, copy, GSI + 1)
        vm.irqfd(copy, GSI + 1, DEASSIGN)
        assert 1 == len(vm.irqfds.items), "another gsi: nothing is taken away, and that is no error"
        vm.irqfd(copy, GSI, DEASSIGN)
        assert () == vm.irqfds.items
        vm.irqfd(copy, GSI, DEASSIGN)
        os.close(copy)


def test_an_irqfd_outlives_the_callers_descriptor():
    """The kernel keeps the eventfd, not the number: another file may have that by now."""
    with made() as vm:
        route(vm)
        fd = os.eventfd(0)
        vm.irqfd(fd, GSI)
        other_end = os.dup(fd)
        os.close(fd)
        os.eventfd_write(other_end, 1)
        assert vm.pump() == 1
        os.close(other_end)
        assert vm.pump() == 0


def test_what_was_written_before_it_was_assigned_counts():
    """kvm_irqfd_assign() looks once by itself."""
    with eventfds(1) as (fd,), made() as vm:
        route(vm)
        os.eventfd_write(fd, 5)
        vm.irqfd(fd, GSI)
        assert vm.pump() == 1
        assert counter(fd) == 0


def test_a_full_resample_eventfd_stays_full():
    """eventfd_signal() never waits for a reader; neither does an acknowledge here."""
    with eventfds(2) as (a, b), made() as vm:
        route(vm)
        vm.irqfd(a, GSI, RESAMPLE, b)
        os.eventfd_write(b, (1 << 64) - 2)
        vm.vcpus[1].vcpu.wrmsr(Msr.EOM, 0)
        assert (1 << 64) - 2 == counter(b)


def test_a_pump_without_anything_does_not_wait():
    """There is nobody who could end the wait."""
    with made() as vm:
        assert vm.pump(timeout_ms=-1) == 0


def test_somebody_else_may_read_a_trigger():
    """A wake-up without a count raises nothing and hangs nobody."""
    with eventfds(1) as (fd,), made() as vm:
        route(vm)
        vm.irqfd(fd, GSI)
        os.eventfd_write(fd, 1)
        assert os.eventfd_read(fd) == 1
        assert vm.pump() == 0
        assert vm.irqfds.items[0].trigger.take() == 0


# ---- who may call, and what is left


def test_the_vm_belongs_to_one_thread():
    """EBUSY from any other; its eventfds are everybody's."""
    seen = []
    with eventfds(1) as (fd,), made() as vm:
        calls = (
            vm.pump,
            vm.create_irqchip,
            vm.vcpus[0].run,
            lambda: vm.set_gsi_routing([]),
            lambda: vm.irqfd(fd, GSI),
            lambda: vm.hyperv_eventfd(1, fd),
            lambda: vm.vcpus[0].enable_cap(KvmCap.HYPERV_SYNIC),
        )

        def other():
            for call in calls:
                try:
                    call()
                except IrqError as error:
                    seen.append(error.errno)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [errno.EBUSY] * len(calls) == seen


def test_no_descriptor_leaks_and_none_of_the_callers_is_closed():
    """Ours are duplicates; closing twice is no error, and a closed VM hears of nothing."""
    with eventfds(3) as fds:
        before = descriptors()
        partition = Partition(Core(nr_cpus=2), GuestMemory(1 << 20), profile="kvm")
        vm = KvmVm(partition)
        for vcpu in vm.vcpus:
            vcpu.enable_cap(KvmCap.HYPERV_SYNIC)
        route(vm)
        vm.irqfd(fds[0], GSI, RESAMPLE, fds[1])
        vm.hyperv_eventfd(5, fds[2])
        vm.close()
        vm.close()
        partition.vcpus[1].wrmsr(Msr.EOM, 0)
        partition.vcpus[1].wrmsr(Msr.SIMP, 0)
        partition.settle()
        partition.memory.close()
        assert before == descriptors()
        for fd in fds:
            os.eventfd_write(fd, 1)
        assert [1, 1, 1] == [counter(fd) for fd in fds]


def test_nothing_to_run():
    """KVM_RUN of a vCPU without a guest, or with one that has ended or died."""

    def dying():
        yield from writing((Msr.EOM, 0))
        raise RuntimeError("the guest's own")

    with made() as vm:
        vcpu = vm.vcpus[0]
        assert errno.EINVAL == refused(vcpu.run)
        vcpu.load(dying())
        with pytest.raises(RuntimeError):
            vcpu.run()
        assert errno.EINVAL == refused(vcpu.run)


# ---- structs


def test_exits_to_the_byte():
    """synic.md 10.4, offsets from the start of the union."""
    assert (27, 40, 0x4018_AEBD) == (KVM_EXIT_HYPERV, EXIT_SIZE, KVM_HYPERV_EVENTFD)
    synic = SynicExit(0x4000_0083, 1, 0x6001, 0x7001)
    data = synic.pack()
    assert struct.pack("<IIIIQQQ", 1, 0, 0x4000_0083, 0, 1, 0x6001, 0x7001) == data
    assert (0x4000_0083).to_bytes(4, "little") == data[8:12]
    assert [1, 0x6001, 0x7001] == [int.from_bytes(data[at : at + 8], "little") for at in (16, 24, 32)]
    hcall = HcallExit(0x5C, (0x3000, 0x4000), 0x13)
    assert struct.pack("<IIQQQQ", 2, 0, 0x5C, 0x13, 0x3000, 0x4000) == hcall.pack()
    assert (synic, hcall) == (unpack_exit(data), unpack_exit(bytearray(hcall.pack()) + bytes(16)))


@pytest.mark.parametrize("data", [b"", bytes(40), b"\x03" + bytes(39), b"\x01" + bytes(38)])
def test_bytes_that_are_no_exit(data):
    """Too short, or of another type; SYNDBG among them."""
    assert errno.EINVAL == refused(unpack_exit, data)


def test_a_routing_entry_to_the_byte():
    """Struct kvm_irq_routing_entry: 48 bytes, the union at 16."""
    entry = SintRoute(30, 1, 4)
    assert struct.pack("<6I24x", 30, 4, 0, 0, 1, 4) == entry.pack()
    assert entry == SintRoute.unpack(entry.pack())
    assert errno.EINVAL == refused(SintRoute.unpack, bytes(47))
