"""A partition: ports and connections, messages to the guest, and the loop that runs it (TLFS; synic.md 5 and 7)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmbusirq.vmbus.callbacks  # noqa: F401 - the trampoline that takes messages
from vmbusirq import Machine
from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import Hung, IrqError
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.registers import Msr
from vmbusirq.steps import Context, Lock, LockKind, Step, Steps, run
from vmbusirq.vmbus.synic import GuestSynic

TASK = Step("wait")
IRQS_OFF = Step("wait", Context.TASK, (Lock("desc->lock", LockKind.RAW),))


class Guest:
    """A partition whose guest notes every control message that it reads."""

    def __init__(self, cpus: int = 2) -> None:
        self.messages: list[tuple[int, int, bytes]] = []
        self.on_read: Callable[[bytes], object] = lambda payload: None
        self.rooms = {"vmbus": self}
        self.errors: list[BaseException] = []
        core = Core(cpus, nr_irqs_max=1)
        self._handle = ffi.new_handle(self)
        lib.vi_machine_set_owner(core.handle, self._handle)
        lib.vi_machine_set_hooks(core.handle, ffi.new("struct vi_hooks *", {"message": lib.vi_py_message}))
        self.partition = Partition(core)
        for cpu in range(cpus):
            GuestSynic(self.partition).enable(cpu)

    def keep(self, error: BaseException) -> None:
        self.errors.append(error)

    def on_message(self, message_type: int, size: int, payload: bytes) -> None:
        assert size == len(payload)
        self.messages.append((message_type, size, payload))
        self.on_read(payload)

    @property
    def payloads(self) -> list[bytes]:
        assert [] == self.errors
        return [payload for _type, _size, payload in self.messages]


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def partition(guest: Guest) -> Partition:
    return guest.partition


def refused(number: int, call: Callable[..., object], *args: Any, **more: Any) -> str:
    with pytest.raises(IrqError) as error:
        call(*args, **more)
    assert number == error.value.errno
    return str(error.value)


# ---- ports and connections


def test_a_message_port_has_16_buffers(partition: Partition) -> None:
    """synic.md 5.1: none free: INSUFFICIENT_BUFFERS; each receive frees one; first in, first out."""
    port = partition.create_message_port(1)
    partition.connect(4, 1)
    statuses = [partition.hv_post_message(4, 1, bytes([number])) for number in range(17)]
    assert [HvStatus.SUCCESS] * 16 + [HvStatus.INSUFFICIENT_BUFFERS] == statuses
    assert (16, 16, b"\0") == (len(port), port.buffers, port.receive())
    assert HvStatus.SUCCESS == partition.hv_post_message(4, 1, b"last")
    assert [*(bytes([number]) for number in range(1, 16)), b"last"] == list(iter(port.receive, None))
    assert (None, 0) == (port.receive(), len(port))


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (240, 0), (241, 5)])
def test_a_posted_message_has_0_to_240_bytes(partition: Partition, size: int, expected: int) -> None:
    """synic.md 7.3; a copy is taken."""
    port = partition.create_message_port(1)
    partition.connect(4, 1)
    payload = bytearray(size)
    assert expected == partition.hv_post_message(4, 1, payload)
    payload[:] = b"x" * size
    assert (None if expected else bytes(size)) == port.receive()


def test_two_connections_may_lead_to_one_port(partition: Partition) -> None:
    """And disconnecting leaves queued messages alone (synic.md 7.1)."""
    port = partition.create_message_port(1, buffers=2)
    for connection in (1, 4):
        partition.connect(connection, 1)
        assert HvStatus.SUCCESS == partition.hv_post_message(connection, 1, bytes([connection]))
        partition.disconnect(connection)
        assert HvStatus.INVALID_CONNECTION_ID == partition.hv_post_message(connection, 1, b"")
    assert [b"\1", b"\4"] == list(iter(port.receive, None))


def test_a_deleted_port_loses_its_messages_and_its_senders_hear_of_it(partition: Partition) -> None:
    """INVALID_PORT_ID until they disconnect; another port of that id is another port."""
    message, event = partition.create_message_port(1), partition.create_event_port(2)
    partition.connect(4, 1)
    partition.connect(5, 2)
    assert (0, 0) == (partition.hv_post_message(4, 1, b"lost"), partition.hv_signal_event(5))
    for port_id in (1, 2):
        partition.delete_port(port_id)
    statuses = (partition.hv_post_message(4, 1, b""), partition.hv_signal_event(5))
    assert (HvStatus.INVALID_PORT_ID, HvStatus.INVALID_PORT_ID) == statuses
    again = (partition.create_message_port(1), partition.create_event_port(2))
    assert statuses == (partition.hv_post_message(4, 1, b""), partition.hv_signal_event(5))
    assert (0, [], 0) == (len(again[0]), partition.take_events(), event.signals)
    assert again[0] is not message
    partition.disconnect(4)
    partition.connect(4, 1)
    assert HvStatus.SUCCESS == partition.hv_post_message(4, 1, b"new")
    assert b"new" == again[0].receive()


def test_events_are_taken_once_and_in_the_order_of_port_ids(partition: Partition) -> None:
    """Coalesced: signals between two calls are one; deleting a port takes no signal from another."""
    for port_id in (900, 3, 70, 0xFF_FFFF):
        partition.create_event_port(port_id)
        partition.connect(0x2000 + port_id if port_id < 1000 else 7, port_id)
    for connection in (0x2000 + 900, 7, 0x2003, 0x2003, 0x2000 + 70):
        assert HvStatus.SUCCESS == partition.hv_signal_event(connection)
    partition.delete_port(70)
    assert [(3, 1), (900, 1), (0xFF_FFFF, 1)] == [(port.id, port.signals) for port in partition.take_events()]
    assert [] == partition.take_events()
    partition.hv_signal_event(0x2003)
    assert [(3, 2)] == [(port.id, port.signals) for port in partition.take_events()]


def test_c_and_python_signal_the_same_ports(partition: Partition) -> None:
    """A channel's hypercall does not pass Python."""
    port = partition.create_event_port(14)
    partition.connect(0x200E, 14)
    assert 0 == lib.vi_signal_event(partition.core.handle, 0x200E, 0)
    assert [port] == partition.take_events()


def test_a_channel_signals_its_connection() -> None:
    """vmbus_setevent(): by hypercall it counts sig_events, by the monitor page it does not (vmbus.md 2.6)."""
    machine = Machine(2)
    with GuestMemory(1 << 20) as memory:
        machine.partition._memory = memory
        channel = machine.attach("netvsc", 9)
        machine.vmbus.channels[9].clear_callback()
        page = memory.alloc(1)
        port = machine.partition.create_event_port(9)
        machine.partition.connect(0x2009, 9)
        channel.set_signal(0x2009, send_int_page=ffi.cast("uint64_t *", memory.address(page)))
        lib.vi_channel_setevent(channel.c)
        assert ([port], 1) == (machine.partition.take_events(), channel.stats.sig_events)
        assert 1 << 9 == int.from_bytes(memory.read(page * 4096, 8), "little")
        group = ffi.cast("uint32_t *", memory.address(page)) + 100
        channel.set_signal(0x2009, monitor_pending=group, monitor_bit=31)
        lib.vi_channel_setevent(channel.c)
        assert ([], 1, 1 << 31) == (machine.partition.take_events(), channel.stats.sig_events, group[0])
        refused(errno.EINVAL, channel.set_signal, 1 << 24)
        refused(errno.EINVAL, channel.set_signal, -1)
        refused(errno.EINVAL, channel.set_signal, 5, monitor_bit=32)
        channel.set_callback(lambda _channel: None)
        refused(errno.EBUSY, channel.set_signal, 0x2009)
        machine.detach(9)
        refused(errno.ENODEV, channel.set_signal, 0x2009)


def test_ports_and_connections_that_cannot_be(partition: Partition) -> None:
    """Both sides of every border: 24 bits, one port per id, 4096 event ports."""
    partition.create_message_port(0)
    partition.create_event_port(0xFF_FFFF)
    for create in (partition.create_message_port, partition.create_event_port):
        refused(errno.EINVAL, create, -1)
        refused(errno.EINVAL, create, 0x100_0000)
        refused(errno.EEXIST, create, 0)
        refused(errno.EEXIST, create, 0xFF_FFFF)
    refused(errno.EINVAL, partition.create_message_port, 1, buffers=0)
    refused(errno.ENOENT, partition.delete_port, 1)
    refused(errno.ENOENT, partition.connect, 5, 1)
    refused(errno.EINVAL, partition.connect, 0, 0)
    refused(errno.EINVAL, partition.connect, 0x100_0000, 0)
    refused(errno.ENOENT, partition.disconnect, 5)
    partition.connect(0xFF_FFFF, 0)
    refused(errno.EEXIST, partition.connect, 0xFF_FFFF, 0)
    for port_id in range(1, 4096):
        partition.create_event_port(port_id)
    refused(errno.ENOSPC, partition.create_event_port, 5000)
    partition.delete_port(77)
    partition.create_event_port(5000)
    partition.connect(5, 5000)
    assert HvStatus.SUCCESS == partition.hv_signal_event(5)
    assert [5000] == [port.id for port in partition.take_events()]


def test_there_is_room_for_6144_connections(partition: Partition) -> None:
    """ENOSPC, and room again after a disconnect."""
    partition.create_event_port(1)
    for connection in range(1, 6145):
        partition.connect(connection, 1)
    refused(errno.ENOSPC, partition.connect, 7000, 1)
    partition.disconnect(1)
    partition.connect(7000, 1)
    assert HvStatus.SUCCESS == partition.hv_signal_event(7000)


# ---- messages to the guest


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=40))
def test_messages_arrive_once_and_in_the_order_of_posting(posts: list[tuple[int, bool]]) -> None:
    """Per VP and SINT, however often the guest runs in between (synic.md 5.1)."""
    guest = Guest()
    for number, (vp, settle) in enumerate(posts):
        guest.partition.post_to_guest(vp, bytes([vp, number]))
        if settle:
            guest.partition.settle()
    guest.partition.settle()
    assert 0 == guest.partition.messages_waiting
    for vp in (0, 1):
        sent = [bytes([vp, number]) for number, (to, _) in enumerate(posts) if to == vp]
        assert sent == [payload for payload in guest.payloads if payload[0] == vp]


def test_a_message_that_finds_the_slot_busy_waits_with_the_pending_bit(guest: Guest) -> None:
    """vmbus.md 2.2: one in the slot, the others in the queue; the guest writes EOM for each that it is told of."""
    partition = guest.partition
    for payload in (b"a", b"b", b"c"):
        partition.post_to_guest(1, payload, message_type=0x7)
    slot = lib.vi_synic_slot(partition.core.handle, 1, 2)
    assert (2, 1, b"a") == (partition.messages_waiting, slot.flags, bytes(slot.payload)[:1])
    assert 3 == partition.settle()
    assert [(7, 1, b"a"), (7, 1, b"b"), (7, 1, b"c")] == guest.messages
    assert 0 == partition.messages_waiting


def test_a_message_for_a_synic_that_is_off_waits_for_it(guest: Guest) -> None:
    """Settling ends, others go by, and when it is switched on the messages come in order."""
    partition = guest.partition
    partition.vcpus[1].wrmsr(Msr.SCONTROL, 0)
    for payload in (b"1", b"2"):
        partition.post_to_guest(1, payload)
    partition.post_to_guest(0, b"0")
    assert 1 == partition.settle()
    assert ([b"0"], 2) == (guest.payloads, partition.messages_waiting)
    assert not partition.idle(TASK)
    partition.vcpus[1].wrmsr(Msr.SCONTROL, 1)
    assert partition.idle(TASK)
    assert ([b"0", b"1", b"2"], 0) == (guest.payloads, partition.messages_waiting)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_message_that_cannot_be_is_refused_at_once(guest: Guest, waiting: bool) -> None:
    """EMSGSIZE, EINVAL: not when its turn comes."""
    partition = guest.partition
    if waiting:
        partition.post_to_guest(0, b"a")
        partition.post_to_guest(0, b"b")
    refused(errno.EMSGSIZE, partition.post_to_guest, 0, bytes(241))
    refused(errno.EINVAL, partition.post_to_guest, 2, b"")
    refused(errno.EINVAL, partition.post_to_guest, -1, b"")
    refused(errno.EINVAL, partition.post_to_guest, 0, b"", message_type=0)
    refused(errno.EINVAL, partition.post_to_guest, 0, b"", sint=16)
    partition.settle()
    assert ([b"a", b"b"] if waiting else []) == guest.payloads


# ---- running


def test_all_messages_are_read_before_a_pump_runs(guest: Guest) -> None:
    """CPUs and slots go first until quiet, then each pump once, in the order in which they were added."""
    partition = guest.partition
    seen: list[tuple[str, int]] = []
    left = [2]

    def first() -> bool:
        seen.append(("first", len(guest.messages)))
        left[0] -= 1
        if left[0] >= 0:
            partition.post_to_guest(0, b"c")
            partition.post_to_guest(0, b"d")
        return left[0] >= 0

    partition.add_pump(first)
    partition.add_pump(lambda: seen.append(("second", len(guest.messages))), guest=True)
    for payload in (b"a", b"b"):
        partition.post_to_guest(0, payload)
    partition.settle()
    assert [("first", 2), ("second", 2), ("first", 4), ("second", 4), ("first", 6), ("second", 6)] == seen


def test_a_pump_that_settles_is_not_called_by_that(guest: Guest) -> None:
    """Others are; so an operation of the guest may wait inside its work queue."""
    partition = guest.partition
    seen: list[str] = []

    def waits() -> bool:
        if seen:
            return False
        seen.append("in")
        partition.post_to_guest(0, b"a")
        partition.settle()
        seen.append(f"read {len(guest.messages)}")
        return True

    partition.add_pump(waits)
    partition.add_pump(lambda: seen.append("other") if len(seen) == 1 else None)
    partition.settle()
    assert ["in", "other", "read 1"] == seen


def test_a_pump_that_fails_runs_again(partition: Partition) -> None:
    """Its error is the caller's."""
    calls: list[int] = []

    def fails() -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("broken")
        return False

    partition.add_pump(fails)
    with pytest.raises(ValueError, match="broken"):
        partition.settle()
    partition.settle()
    assert 2 == len(calls)


def test_settling_takes_no_time(partition: Partition) -> None:
    """But runs the timers of this tick."""
    seen: list[str] = []
    partition.clock.call_at(0, lambda: seen.append("now"))
    partition.clock.call_at(1, lambda: seen.append("later"))
    assert 0 == partition.settle()
    assert (["now"], 0) == (seen, partition.clock.now)


def test_idle_takes_the_clock_to_the_next_timer_if_nothing_else_moves(guest: Guest) -> None:
    """One settle a call; False: nothing is left."""
    partition = guest.partition
    partition.post_to_guest(0, b"a")
    seen: list[int] = []
    partition.clock.call_at(100, lambda: seen.append(partition.clock.now))
    partition.clock.call_at(200, lambda: seen.append(partition.clock.now))
    assert (True, [b"a"], 0) == (partition.idle(TASK), guest.payloads, partition.clock.now)
    assert (True, [100]) == (partition.idle(TASK), seen)
    assert (True, [100, 200]) == (partition.idle(TASK), seen)
    assert not partition.idle(TASK)


def test_with_interrupts_off_only_others_run(guest: Guest) -> None:
    """The host goes on and fills slots; the guest's CPUs and work queues wait."""
    partition = guest.partition
    seen: list[str] = []
    work = {"host": 1, "guest": 1}

    def pump(who: str) -> Callable[[], bool]:
        def one() -> bool:
            if not work[who]:
                return False
            work[who] -= 1
            seen.append(who)
            return True

        return one

    partition.add_pump(pump("guest"), guest=True)
    partition.add_pump(pump("host"))
    partition.post_to_guest(0, b"a")
    assert partition.idle(IRQS_OFF)
    assert not partition.idle(IRQS_OFF)
    assert (["host"], []) == (seen, guest.payloads)
    assert partition.idle(TASK)
    assert (["host", "guest"], [b"a"]) == (seen, guest.payloads)


def test_a_wait_ends_by_the_host_by_time_or_is_hung(guest: Guest) -> None:
    """steps.run(steps, partition.idle): the three ways."""
    partition = guest.partition

    def waits(ready: Callable[[], bool]) -> Steps[int]:
        yield Step("response", ready=ready)
        return partition.clock.now

    partition.post_to_guest(1, b"response")
    assert 0 == run(waits(lambda: b"response" in guest.payloads), partition.idle)
    partition.clock.call_at(500, lambda: partition.post_to_guest(0, b"late"))
    assert 500 == run(waits(lambda: b"late" in guest.payloads), partition.idle)
    with pytest.raises(Hung, match="response"):
        run(waits(lambda: False), partition.idle)


def test_a_suspended_guest_runs_no_cpu_until_its_time(guest: Guest) -> None:
    """Throttled: messages lie in their slots, the host goes on, the later end of two counts."""
    partition = guest.partition
    seen: list[str] = []
    partition.add_pump(lambda: seen.append("guest"), guest=True)
    partition.suspend_guest(100)
    partition.suspend_guest(50)
    assert partition.guest_suspended
    partition.post_to_guest(0, b"a")
    assert 0 == partition.settle()
    partition.clock.advance(99)
    assert (0, [], []) == (partition.settle(), seen, guest.payloads)
    partition.suspend_guest(51)
    partition.clock.advance(50)
    assert 0 == partition.settle()
    partition.clock.advance(1)
    assert not partition.guest_suspended
    assert 1 == partition.settle()
    assert (["guest"], [b"a"]) == (seen, guest.payloads)
    refused(errno.EINVAL, partition.suspend_guest, -1)


def test_a_wait_of_a_suspended_guest_lasts_as_long(guest: Guest) -> None:
    """The end of it is a timer, so idle() gets there."""
    partition = guest.partition
    partition.suspend_guest(1000)
    partition.post_to_guest(0, b"a")

    def waits() -> Steps[int]:
        yield Step("response", ready=lambda: bool(guest.messages))
        return partition.clock.now

    assert 1000 == run(waits(), partition.idle)


def test_a_check_runs_at_the_end_of_each_settle(guest: Guest) -> None:
    """Whatever was kept meanwhile is raised when all is quiet."""
    partition = guest.partition

    def check() -> None:
        if len(guest.messages) == 2:
            raise ValueError("kept")

    partition.add_check(check)
    partition.settle()
    for payload in (b"a", b"b"):
        partition.post_to_guest(0, payload)
    with pytest.raises(ValueError, match="kept"):
        partition.settle()
    assert 0 == partition.messages_waiting


def test_memory_is_made_when_it_is_asked_for() -> None:
    """Or is the caller's."""
    partition = Partition(Core(1, nr_irqs_max=1))
    memory = partition.memory
    assert memory is partition.memory
    memory.close()
    with GuestMemory(1 << 20) as other:
        assert other is Partition(Core(1, nr_irqs_max=1), other).memory


def test_a_machine_is_run_by_its_partition() -> None:
    """One clock, one SynIC, one loop."""
    machine = Machine(2)
    assert machine.clock is machine.partition.clock
    assert machine.synic is machine.partition.synic
    seen: list[int] = []
    machine.partition.add_pump(lambda: seen.append(1))
    machine.host.post_message(b"\x04" + bytes(7))
    machine.host.post_message(b"\x04" + bytes(7))
    assert 1 == machine.host.messages_waiting
    assert 2 == machine.settle()
    assert ([1], 0, 2) == (seen, machine.host.messages_waiting, sum(machine.vmbus.messages_received.values()))
