"""Overlay pages over guest memory (TLFS, GPA overlay pages; synic.md 9 and 16, rows 90, 91 and 93 to 97)."""

from __future__ import annotations

import errno

import pytest

from tests.hyperv.hv_rig import ALL, END, SIEF, SIM, SINT4, make, refused, switched_on
from vmbusirq.hyperv.memory import HV_PAGE, GuestMemory
from vmbusirq.hyperv.overlay import Overlay
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.profiles import PROFILES
from vmbusirq.hyperv.registers import Msr

P, R = 0x20_000, 0x30_000
RAM = bytes([0x55]) * HV_PAGE
OVERLAID = [name for name in ALL if PROFILES[name].page_on_enable == "overlay"]
SLOT4 = 4 * 256


def page(partition: Partition, gpa: int) -> bytes:
    return partition.memory.read(gpa, HV_PAGE)


def filled(profile: str) -> Partition:
    """Return a partition that is on, with P and R filled and the message page at P."""
    partition = switched_on(profile)
    partition.memory.write(P, RAM)
    partition.memory.write(R, RAM)
    partition.vcpus[0].wrmsr(Msr.SIMP, P | 1)
    return partition


@pytest.mark.parametrize("profile", OVERLAID)
def test_synic_093_094_095_096_097_a_message_page_moves_with_its_message(profile: str) -> None:
    """The overlay hides memory, keeps its bytes, and is not cleared by the same value written again (T)."""
    partition = filled(profile)
    vcpu = partition.vcpus[0]
    assert bytes(HV_PAGE) == page(partition, P)
    partition.synic.post(0, b"first", sint=4)
    shown = page(partition, P)
    assert (1, 5, b"first") == (shown[SLOT4], shown[SLOT4 + 4], shown[SLOT4 + 16 : SLOT4 + 21])
    vcpu.wrmsr(Msr.SIMP, P | 1)
    assert shown == page(partition, P)
    vcpu.wrmsr(Msr.SIMP, R | 1)
    assert (RAM, shown) == (page(partition, P), page(partition, R))
    vcpu.wrmsr(Msr.SIMP, R)
    assert (RAM, RAM) == (page(partition, P), page(partition, R))
    vcpu.wrmsr(Msr.SIMP, P | 1)
    assert (shown, RAM) == (page(partition, P), page(partition, R))
    vcpu.reset()
    assert RAM == page(partition, P)
    vcpu.wrmsr(Msr.SIMP, P | 1)
    assert bytes(HV_PAGE) == page(partition, P)


@pytest.mark.parametrize("profile", ["kvm", "kvm-4.5", "xen"])
def test_synic_090_pages_in_guest_memory_are_zeroed_by_every_enabling_write(profile: str) -> None:
    """SYNIC v1; rewriting the same value, too; not by a host's write; memory does not come back."""
    partition = filled(profile)
    vcpu = partition.vcpus[0]
    assert bytes(HV_PAGE) == page(partition, P)
    partition.memory.write(P, RAM)
    vcpu.wrmsr(Msr.SIMP, P | 1, host=True)
    assert RAM == page(partition, P)
    vcpu.wrmsr(Msr.SIMP, P)
    assert RAM == page(partition, P)
    vcpu.wrmsr(Msr.SIMP, P | 1)
    partition.synic.post(0, b"first", sint=4)
    assert b"first" == page(partition, P)[SLOT4 + 16 : SLOT4 + 21]
    vcpu.wrmsr(Msr.SIMP, R | 1)
    assert b"first" == page(partition, P)[SLOT4 + 16 : SLOT4 + 21]
    assert bytes(HV_PAGE) == page(partition, R)


def test_synic_091_pages_in_guest_memory_stay_as_they_are() -> None:
    """SYNIC v2; a stale type looks like a message that is there."""
    partition = filled("kvm-synic2")
    assert RAM == page(partition, P)
    assert not partition.synic.post(0, b"busy", sint=4)
    partition.memory.write(P + SLOT4, bytes(4))
    assert partition.synic.post(0, b"free", sint=4)
    assert b"free" == page(partition, P)[SLOT4 + 16 : SLOT4 + 20]


@pytest.mark.parametrize("profile", ALL)
def test_event_flags_are_seen_where_the_register_says(profile: str) -> None:
    """The data plane and guest memory have the same bytes, both ways."""
    partition = switched_on(profile)
    assert partition.synic.signal(0, 77, sint=4)
    assert 1 << 5 == partition.memory.read(SIEF + SLOT4 + 9, 1)[0]
    partition.memory.write(SIEF + SLOT4 + 9, b"\0")
    assert () == partition.synic.flags_set(0, sint=4)
    assert partition.synic.signal(0, 77, sint=4)
    assert not partition.synic.signal(0, 77, sint=4)
    assert partition.synic.signal(1, 77, sint=4)


def test_qemu_takes_page_0_for_disabled() -> None:
    """synic.md 9; in other profiles page 0 is a page."""
    for profile, expected in (("qemu", RAM), ("tlfs", bytes(HV_PAGE))):
        partition = switched_on(profile)
        partition.memory.write(0, RAM)
        partition.vcpus[0].wrmsr(Msr.SIMP, 1)
        assert (1, expected) == (partition.vcpus[0].rdmsr(Msr.SIMP), page(partition, 0))


def test_two_overlays_on_one_page() -> None:
    """Rule 5: when the upper goes away the lower appears."""
    partition = switched_on()
    one, two = partition.vcpus
    one.wrmsr(Msr.SIMP, P | 1)
    two.wrmsr(Msr.SIMP, P | 1)
    partition.synic.post(0, b"one", sint=4)
    partition.synic.post(1, b"two", sint=4)
    assert b"two" == page(partition, P)[SLOT4 + 16 : SLOT4 + 19]
    two.wrmsr(Msr.SIMP, P)
    assert b"one" == page(partition, P)[SLOT4 + 16 : SLOT4 + 19]


def test_a_page_out_of_memory_is_an_overlay_that_nobody_reaches() -> None:
    """D10, T: messages go there all the same, and show when it is moved."""
    partition = switched_on()
    vcpu = partition.vcpus[0]
    vcpu.wrmsr(Msr.SIMP, END | 1)
    assert partition.synic.post(0, b"far", sint=4)
    refused(errno.EFAULT, partition.memory.read, END, 1)
    vcpu.wrmsr(Msr.SIMP, SIM | 1)
    assert b"far" == page(partition, SIM)[SLOT4 + 16 : SLOT4 + 19]


def test_a_page_out_of_memory_in_kvm_is_no_page() -> None:
    """D10, K v2: accepted, and signals find no page."""
    partition = switched_on("kvm-synic2")
    vcpu = partition.vcpus[0]
    vcpu.wrmsr(Msr.SIEFP, END | 1)
    refused(errno.ENXIO, partition.synic.signal, 0, 1, sint=4)
    vcpu.wrmsr(Msr.SIEFP, SIEF | 1)
    assert partition.synic.signal(0, 1, sint=4)


def test_the_hypercall_page_can_only_be_read() -> None:
    """Rule 8: a write faults; nothing of a write across it is done; memory reappears behind it."""
    partition = make()
    vcpu = partition.vcpus[0]
    partition.memory.write(P, RAM)
    vcpu.wrmsr(Msr.GUEST_OS_ID, 1)
    vcpu.wrmsr(Msr.HYPERCALL, P | 1)
    code = page(partition, P)
    assert b"\x0f\x01\xc1\xc3" == code[:4]
    refused(errno.EACCES, partition.memory.write, P, b"x")
    refused(errno.EACCES, partition.memory.write, P - 4, bytes([1]) * 8)
    assert (bytes(4), code) == (partition.memory.read(P - 4, 4), page(partition, P))
    vcpu.wrmsr(Msr.HYPERCALL, 0)
    assert RAM == page(partition, P)


@pytest.mark.parametrize("profile", ALL)
def test_the_assist_page(profile: str) -> None:
    """Lies over memory; or is memory, the first 4 bytes of which are cleared (K616), or all of it (K45)."""
    partition = make(profile)
    vcpu = partition.vcpus[0]
    partition.memory.write(P, RAM)
    vcpu.wrmsr(Msr.VP_ASSIST_PAGE, P | 1)
    choice = PROFILES[profile]
    cleared = HV_PAGE if choice.overlays else choice.assist_cleared_bytes
    assert bytes(cleared) + RAM[cleared:] == page(partition, P)
    partition.memory.write(P + 8, b"assist")
    vcpu.wrmsr(Msr.VP_ASSIST_PAGE, P)
    assert choice.overlays == (RAM == page(partition, P))


def test_reads_writes_and_views_meet_overlays() -> None:
    """Across page borders, too; allocations, and the page itself, do not."""
    with GuestMemory(END) as memory:
        overlay = Overlay("test page")
        memory.write(P, RAM)
        memory.overlays.place(overlay, P // HV_PAGE)
        memory.write(P - 2, b"abcd")
        memory.write(P + HV_PAGE - 2, b"efgh")
        assert (b"ab", b"cd", b"ef", b"gh") == (
            memory.read(P - 2, 2),
            overlay.read(0, 2),
            overlay.read(HV_PAGE - 2, 2),
            memory.read(P + HV_PAGE, 2),
        )
        assert b"abcd" == memory.read(P - 2, 4)
        assert b"ab" + overlay.read(0, HV_PAGE) + b"gh" == memory.read(P - 2, HV_PAGE + 4)
        view = memory.view(P, 4)
        view[2:4] = b"XY"
        assert b"cdXY" == overlay.read(0, 4)
        refused(errno.EINVAL, memory.view, P - 1, 2)
        refused(errno.EFAULT, memory.view, END, 1)
        memory.overlays.place(overlay, None)
        assert RAM[:-2] == memory.read(P, HV_PAGE - 2)
        assert not memory.overlays
        overlay.clear()
        assert bytes(HV_PAGE) == overlay.read(0, HV_PAGE)


def test_moving_a_sint_page_does_not_lose_a_waiting_message() -> None:
    """The slot that is busy is busy wherever the page lies."""
    partition = switched_on()
    vcpu = partition.vcpus[0]
    assert partition.synic.post(0, b"a", sint=4)
    vcpu.wrmsr(Msr.SIMP, R | 1)
    assert not partition.synic.post(0, b"b", sint=4)
    assert 1 == partition.memory.read(R + SLOT4 + 5, 1)[0] & 1
    assert SINT4 == Msr.SINT0 + 4
