"""HvSignalEvent by eventfd, and hypercalls that user space answers (synic.md 10.4, 10.5; rows 73 to 75, 78, 79)."""

from __future__ import annotations

import errno

import pytest

from tests.hyperv.kvm_rig import answering, calling, counter, eventfds, made
from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.cpuid import Feature, Features
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.kvm import EVENTFD_DEASSIGN, HcallExit, KvmVm, unpack_exit
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition

FAST, MEMORY, POST = 0x1005D, 0x5D, 0x5C
CONN = 5


def called(vm, *calls, vp=0, answer=lambda exit_: HvStatus.SUCCESS):
    """Let a guest make hypercalls; return their results and the exits of user space."""
    results: list[int] = []
    vm.vcpus[vp].load(calling(*calls, results=results))
    return results, answering(vm, vp, answer)


@pytest.mark.parametrize("active", [True, False])
def test_synic_073_a_known_connection_costs_no_exit(active):
    """The eventfd has one more for each; the SynIC need not even be active."""
    with eventfds(1) as (fd,), made(**({} if active else {"cap": None})) as vm:
        vm.hyperv_eventfd(CONN, fd)
        assert ([0], []) == called(vm, (FAST, CONN))
        assert counter(fd) == 1
        assert ([0, 0, 0], []) == called(vm, *[(FAST, CONN)] * 3)
        assert counter(fd) == 3


def test_synic_074_a_flag_number_is_for_user_space():
    """Bits 47:32, not those that the kernel's document names; the parameter is handed on as it was given."""
    with eventfds(1) as (fd,), made() as vm:
        vm.hyperv_eventfd(CONN, fd)
        given = 1 << 32 | CONN
        assert ([0x12], [HcallExit(FAST, (given, 0))]) == called(vm, (FAST, given), answer=lambda exit_: 0x12)
        assert counter(fd) == 0


@pytest.mark.parametrize("value", [0x0100_0005, 1 << 31, 1 << 48, 1 << 63 | CONN])
def test_synic_075_other_bits_are_no_input(value):
    """Bits above 23 that are not of the flag number: status 3, and user space is not asked."""
    with eventfds(1) as (fd,), made() as vm:
        vm.hyperv_eventfd(CONN, fd)
        assert ([3], []) == called(vm, (FAST, value))
        assert counter(fd) == 0


def test_synic_078_a_connection_id_has_24_bits():
    """kvm_vm_ioctl_hv_eventfd(): EINVAL for wider ones; for other flags, too."""
    with eventfds(1) as (fd,), made() as vm:
        for conn_id, flags in ((0x0100_0000, 0), (-1, 0), (CONN, 2), (CONN, 1 << 31), (0x0100_0000, EVENTFD_DEASSIGN)):
            with pytest.raises(IrqError) as refused:
                vm.hyperv_eventfd(conn_id, fd, flags)
            assert errno.EINVAL == refused.value.errno
        vm.hyperv_eventfd(0x00FF_FFFF, fd)
        vm.hyperv_eventfd(0, fd)
        assert (0, 0x00FF_FFFF) == vm.connections.ids


def test_synic_079_a_connection_id_has_one_eventfd():
    """EEXIST, 0, ENOENT; the fd does not matter when it is taken away."""
    with eventfds(2) as (fd, other), made() as vm:
        vm.hyperv_eventfd(CONN, fd)
        with pytest.raises(IrqError) as refused:
            vm.hyperv_eventfd(CONN, other)
        assert errno.EEXIST == refused.value.errno
        vm.hyperv_eventfd(CONN + 1, fd)  # one eventfd may have many
        vm.hyperv_eventfd(CONN, -1, EVENTFD_DEASSIGN)
        with pytest.raises(IrqError) as refused:
            vm.hyperv_eventfd(CONN, fd, EVENTFD_DEASSIGN)
        assert errno.ENOENT == refused.value.errno
        assert ([0], [HcallExit(FAST, (CONN, 0))]) == called(vm, (FAST, CONN))
        assert counter(fd) == 0


def test_an_unknown_connection_is_for_user_space():
    """Status 0x11 inside becomes an exit: there user space's own ports are."""
    with made() as vm:
        vm.partition.create_event_port(9)
        vm.partition.connect(0x77, 9)

        def host(exit_):
            return vm.partition.hypercall(0, exit_.input, exit_.params[0], exit_.params[1])

        results, exits = called(vm, (FAST, 0x77), (FAST, 0x78), answer=host)
        assert 0 == results[0]
        assert 2 == len(exits)
        assert results[1] in (HvStatus.INVALID_PORT_ID, HvStatus.INVALID_CONNECTION_ID)
        assert [9] == [port.id for port in vm.partition.take_events()]


def test_without_an_active_synic_user_space_is_not_asked():
    """It has no way to answer then: status 3, for both calls."""
    with made(cap=None) as vm:
        assert ([3, 3], []) == called(vm, (FAST, CONN), (POST, 0x3000))


def test_a_message_is_always_for_user_space():
    """HvPostMessage: control word, address and output address as the guest had them."""
    with made() as vm:
        results, exits = called(vm, (POST, 0x3000), answer=lambda exit_: HvStatus.INSUFFICIENT_BUFFERS)
        assert ([HvStatus.INSUFFICIENT_BUFFERS], [HcallExit(POST, (0x3000, 0))]) == (results, exits)


def test_the_result_is_what_the_shared_page_holds():
    """Nobody clears it: a VMM that forgets to answer gives its guest what lay there before."""
    with made() as vm:
        results: list[int] = []
        vcpu = vm.vcpus[0]
        vcpu.load(calling((POST, 0x3000), (POST, 0x3000), results=results))
        assert isinstance(vcpu.run(), HcallExit)
        vcpu.hyperv[16:24] = (0x13).to_bytes(8, "little")
        assert isinstance(vcpu.run(), HcallExit)
        assert HcallExit(POST, (0x3000, 0), 0x13) == unpack_exit(vcpu.hyperv)
        assert vcpu.run() is None
        assert [0x13, 0x13] == results


@pytest.mark.parametrize(
    ("address", "status"),
    [(0x3000, 0), (0x3008, 0), (0x3004, 4), (0x3001, 4), (0x3FFC, 4), (1 << 20, 4), (1 << 63, 4)],
)
def test_where_the_memory_form_may_lie(address, status):
    """Misaligned, straddling (that is misaligned, too) or unreadable: status 4."""
    with eventfds(1) as (fd,), made() as vm:
        vm.hyperv_eventfd(CONN, fd)
        for at in (0x3000, 0x3008):
            vm.partition.memory.write(at, CONN.to_bytes(8, "little"))
        assert ([status], []) == called(vm, (MEMORY, address))
        assert counter(fd) == (status == 0)


def test_the_memory_form_exits_with_the_input_in_place_of_its_address():
    """kvm_hvcall_signal_event() of v6.16 reads over it; the control word still says memory form."""
    with made() as vm:
        vm.partition.memory.write(0x3000, (0x77).to_bytes(8, "little"))
        assert [HcallExit(MEMORY, (0x77, 0))] == called(vm, (MEMORY, 0x3000))[1]


@pytest.mark.parametrize("control", [1 << 32, 1 << 48, 1 << 17, 1 << 27, 1 << 44, 1 << 60])
@pytest.mark.parametrize("call", [FAST, POST])
def test_reserved_rep_and_variable_bits_come_before_the_body(control, call):
    """Status 3, no exit and no signal (KVM's order)."""
    with eventfds(1) as (fd,), made() as vm:
        vm.hyperv_eventfd(CONN, fd)
        assert ([3], []) == called(vm, (call | control, CONN))
        assert counter(fd) == 0


def test_a_missing_privilege_comes_first():
    """Status 6, whatever else is wrong (synic.md 7.2)."""
    features = Features().minus(Feature.POST_MESSAGES, Feature.SIGNAL_EVENTS)
    with eventfds(1) as (fd,):
        partition = Partition(Core(nr_cpus=1), GuestMemory(1 << 20), profile="kvm", features=features)
        with KvmVm(partition) as vm:
            vm.hyperv_eventfd(CONN, fd)
            assert ([6, 6], []) == called(vm, (FAST | 1 << 32, CONN), (POST, 4))
        partition.memory.close()


def test_other_calls_are_the_partitions():
    """An unknown code: status 2, no exit; registers have 64 bits."""
    with made() as vm:
        assert ([2], []) == called(vm, (0x0FFF, 0))
        with pytest.raises(IrqError) as refused:
            vm.hypercall(vm.vcpus[0], 1 << 64, 0)
        assert errno.EINVAL == refused.value.errno
