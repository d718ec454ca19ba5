"""Messages to a guest, slot by slot: synic.md 16, rows 21 to 45, in the profiles that a row speaks of."""

from __future__ import annotations

import pytest

from tests.hyperv.vp_rig import AUTO_EOI, MASKED, POLLING, SINT, VECTOR, VpRig
from vmbusirq._ffi import ffi, lib
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.messages import Buffers, Deposit
from vmbusirq.hyperv.registers import Msr

SUCCESS, INVALID_STATE, NO_BUFFERS = HvStatus.SUCCESS, HvStatus.INVALID_SYNIC_STATE, HvStatus.INSUFFICIENT_BUFFERS
TKQ = pytest.mark.parametrize("profile", ["tlfs", "kvm", "qemu"])
TKQO = pytest.mark.parametrize("profile", ["tlfs", "kvm", "qemu", "openvmm"])
TKQX = pytest.mark.parametrize("profile", ["tlfs", "kvm", "kvm-synic2", "kvm-4.5", "qemu", "xen"])
TQX = pytest.mark.parametrize("profile", ["tlfs", "qemu", "xen"])
TK = pytest.mark.parametrize("profile", ["tlfs", "kvm"])
ALL = pytest.mark.parametrize("profile", ["tlfs", "kvm", "kvm-synic2", "kvm-4.5", "qemu", "openvmm", "xen"])


@ALL
def test_synic_021_a_message_lies_in_its_slot_and_requests_the_vector_once(profile: str) -> None:
    """Type, size at 4, flags at 5, payload at 16 (TLFS 11.8; KVM synic_deliver_msg; QEMU; OpenVMM)."""
    rig = VpRig(profile)
    assert SUCCESS == rig.post(b"twelve bytes")
    raw = bytes(ffi.buffer(rig.slot(), 28))
    assert b"\x01\0\0\0" + b"\x0c\0\0\0" + bytes(8) + b"twelve bytes" == raw
    assert [VECTOR] == rig.taken()
    assert [] == rig.taken()


@TKQO
def test_synic_022_a_busy_slot_keeps_its_message_and_gets_the_pending_bit(profile: str) -> None:
    """B is queued, no interrupt (TLFS; KVM's deposit is the same; QEMU; OpenVMM)."""
    rig = VpRig(profile)
    rig.post(b"A")
    assert [VECTOR] == rig.taken()
    assert SUCCESS == rig.post(b"B")
    assert (b"A", 1, 1, []) == (rig.message(), rig.pending(), rig.waiting(), rig.taken())


@TKQ
def test_synic_023_freed_then_eom_brings_the_next(profile: str) -> None:
    """Type 0, pending seen, EOM: B, pending 0, one interrupt (TLFS; KVM; QEMU)."""
    rig = VpRig(profile)
    rig.post(b"A")
    rig.post(b"B")
    rig.taken()
    assert (b"A", 1) == (rig.free(), rig.pending())
    rig.eom()
    assert (b"B", 0, 0, [VECTOR]) == (rig.message(), rig.pending(), rig.waiting(), rig.taken())


@TK
def test_synic_024_025_each_eom_moves_one_message(profile: str) -> None:
    """B deposited, C still queued, pending 1; freed and EOM again: C, pending 0 (TLFS)."""
    rig = VpRig(profile)
    for payload in (b"A", b"B", b"C"):
        rig.post(payload)
    rig.taken()
    rig.free()
    rig.eom()
    assert (b"B", 1, 1, [VECTOR]) == (rig.message(), rig.pending(), rig.waiting(), rig.taken())
    rig.free()
    rig.eom()
    assert (b"C", 0, 0, [VECTOR]) == (rig.message(), rig.pending(), rig.waiting(), rig.taken())


@TK
def test_synic_024_two_eoms_after_freeing_once_move_one(profile: str) -> None:
    """A slot holds one message (TLFS)."""
    rig = VpRig(profile)
    for payload in (b"A", b"B", b"C"):
        rig.post(payload)
    rig.free()
    rig.eom()
    rig.eom()
    assert (b"B", 1, 1) == (rig.message(), rig.pending(), rig.waiting())


@ALL
def test_synic_026_eom_without_freeing_moves_nothing(profile: str) -> None:
    """And interrupts nobody (TLFS)."""
    rig = VpRig(profile)
    rig.post(b"A")
    rig.post(b"B")
    rig.taken()
    rig.eom()
    assert (b"A", 1, []) == (rig.message(), rig.waiting(), rig.taken())


@ALL
def test_synic_027_eom_with_nothing_to_say_is_nothing(profile: str) -> None:
    """TLFS."""
    rig = VpRig(profile)
    rig.eom()
    assert (None, 0, []) == (rig.message(), rig.waiting(), rig.taken())


@ALL
def test_synic_028_a_busy_slot_holds_up_no_other_sint(profile: str) -> None:
    """SINT5 is delivered at once (TLFS)."""
    rig = VpRig(profile)
    rig.sint(0x62, sint=5)
    rig.post(b"A")
    rig.post(b"B")
    rig.post(b"other", sint=5)
    assert (b"A", b"other", [0x62, VECTOR]) == (rig.message(), rig.message(5), rig.taken())


@ALL
def test_synic_029_messages_arrive_in_the_order_of_posting(profile: str) -> None:
    """TLFS: per VP and SINT."""
    rig = VpRig(profile)
    port = rig.port()
    sent, got = [bytes([number]) for number in range(1, 6)], []
    left = list(sent)
    while len(got) < len(sent):
        while left and port.post(1, left[0]) == SUCCESS:
            left.pop(0)
        got.append(rig.free())
        rig.eom()
    assert sent == got


@TKQX
def test_synic_030_a_masked_sint_takes_the_message_without_an_interrupt(profile: str) -> None:
    """TLFS; QEMU; Xen. In KVM, too: "undelivered" is what it calls that, and its timers alone try again (D4)."""
    rig = VpRig(profile)
    rig.sint(VECTOR | MASKED)
    assert SUCCESS == rig.post(b"A")
    assert (b"A", []) == (rig.message(), rig.taken())


@TQX
def test_synic_031_unmasking_replays_nothing(profile: str) -> None:
    """synic.md 3: neither a message in the slot nor a flag."""
    rig = VpRig(profile)
    rig.sint(VECTOR | MASKED)
    rig.post(b"A")
    rig.sint(VECTOR)
    rig.partition.settle()
    assert (b"A", []) == (rig.message(), rig.taken())


@pytest.mark.parametrize("profile", ["tlfs", "qemu"])
def test_synic_032_eom_feeds_a_masked_sint_silently(profile: str) -> None:
    """B in the slot, still no interrupt (TLFS)."""
    rig = VpRig(profile)
    rig.sint(VECTOR | MASKED)
    rig.post(b"A")
    rig.post(b"B")
    rig.free()
    rig.eom()
    assert (b"B", []) == (rig.message(), rig.taken())


@pytest.mark.parametrize(
    ("profile", "expected"),
    [*((name, Deposit.SILENT) for name in ("tlfs", "kvm", "kvm-4.5", "qemu", "xen")), ("openvmm", Deposit.LOST)],
)
def test_synic_030_what_a_timer_hears_of_a_masked_sint(profile: str, expected: Deposit) -> None:
    """D4: in the slot, and who posted past the queue sees that nobody was told; OpenVMM drops it."""
    rig = VpRig(profile)
    rig.sint(VECTOR | MASKED)
    assert expected == rig.partition.messages.deposit(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24))
    assert (None if expected is Deposit.LOST else bytes(24), []) == (rig.message(), rig.taken())


def test_synic_030_openvmm_drops_what_it_queued_for_a_masked_sint() -> None:
    """D4: success to who posted, the message is gone."""
    rig = VpRig("openvmm")
    rig.sint(VECTOR | MASKED)
    assert SUCCESS == rig.post(b"A")
    assert (None, 0, 1) == (rig.message(), rig.waiting(), rig.partition.messages.lost)


@pytest.mark.parametrize(
    ("profile", "vectors"), [("tlfs", []), ("openvmm", []), ("kvm", [VECTOR]), ("qemu", [VECTOR]), ("xen", [VECTOR])]
)
def test_synic_033_a_polled_sint_does_not_interrupt(profile: str, vectors: list[int]) -> None:
    """D5: TLFS and OpenVMM; KVM and Xen do not look at the bit."""
    rig = VpRig(profile)
    rig.sint(VECTOR | POLLING)
    assert SUCCESS == rig.post(b"A")
    assert (b"A", vectors) == (rig.message(), rig.taken())


@pytest.mark.parametrize(
    ("profile", "register", "expected"),
    [
        ("tlfs", Msr.SIMP, INVALID_STATE),
        ("tlfs", Msr.SCONTROL, INVALID_STATE),
        ("kvm", Msr.SIMP, INVALID_STATE),
        ("kvm", Msr.SCONTROL, SUCCESS),
        ("qemu", Msr.SIMP, INVALID_STATE),
        ("qemu", Msr.SCONTROL, SUCCESS),
        ("xen", Msr.SCONTROL, SUCCESS),
        ("openvmm", Msr.SCONTROL, SUCCESS),
        ("openvmm", Msr.SIMP, SUCCESS),
    ],
)
def test_synic_034_a_post_to_a_synic_that_is_off(profile: str, register: int, expected: HvStatus) -> None:
    """D6: SIM page disabled: 0x18 (TLFS, QEMU); SCONTROL is looked at by the TLFS alone; OpenVMM's page is its own."""
    rig = VpRig(profile)
    rig.vcpu().wrmsr(register, 0)
    assert expected == rig.post(b"A")
    assert (None if expected else b"A") == rig.message()
    rig.vcpu().wrmsr(register, 1)
    assert (b"A" if expected == SUCCESS else None) == rig.message()


@TK
def test_synic_035_036_what_is_queued_when_the_page_goes_waits_for_eom(profile: str) -> None:
    """Stays queued while disabled; enabled again, EOM: delivered (TLFS)."""
    rig = VpRig(profile)
    rig.post(b"A")
    rig.post(b"B")
    rig.taken()
    rig.free()
    rig.vcpu().wrmsr(Msr.SIMP, 0)
    rig.eom()
    rig.partition.settle()
    assert (1, []) == (rig.waiting(), rig.taken())
    rig.pages()
    rig.partition.settle()
    assert (1, []) == (rig.waiting(), rig.taken())
    rig.eom()
    assert (0, b"B", [VECTOR]) == (rig.waiting(), rig.message(), rig.taken())


@pytest.mark.parametrize(("profile", "left"), [("kvm", 0), ("tlfs", 0), ("xen", 1)])
def test_synic_037_one_eoi_acknowledges_all_sints_of_its_vector(profile: str, left: int) -> None:
    """D19: KVM keeps a map of vectors; Xen knows the SINT that was programmed last, SINT6."""
    rig = VpRig(profile)
    rig.sint(VECTOR, sint=6)
    for sint in (SINT, 6):
        rig.post(b"A", sint)
        rig.post(b"B", sint)
    assert VECTOR == rig.take_without_eoi()
    rig.free(SINT)
    rig.free(6)
    assert VECTOR == rig.vcpu().apic.eoi()
    assert (left, 0) == (rig.waiting(SINT), rig.waiting(6))
    assert [VECTOR] == rig.taken()


@TK
def test_synic_038_an_eoi_alone_brings_the_next(profile: str) -> None:
    """SINT without auto-EOI (TLFS; KVM)."""
    rig = VpRig(profile)
    rig.post(b"A")
    rig.post(b"B")
    assert VECTOR == rig.take_without_eoi()
    assert 1 << VECTOR == rig.vcpu().apic.isr
    rig.free()
    rig.vcpu().wrmsr(Msr.EOI, 0)
    assert (b"B", 0, [VECTOR]) == (rig.message(), rig.waiting(), rig.taken())


@TK
def test_synic_039_with_auto_eoi_only_eom_or_the_next_post_does(profile: str) -> None:
    """The freed slot stays empty (TLFS; KVM); the next post moves the oldest."""
    rig = VpRig(profile)
    rig.sint(VECTOR | AUTO_EOI)
    rig.post(b"A")
    rig.post(b"B")
    assert [VECTOR] == rig.taken()
    assert 0 == rig.vcpu().apic.isr
    rig.free()
    rig.vcpu().wrmsr(Msr.EOI, 0)
    rig.partition.settle()
    assert (None, 1, []) == (rig.message(), rig.waiting(), rig.taken())
    rig.post(b"C")
    assert (b"B", 1, 1, [VECTOR]) == (rig.message(), rig.pending(), rig.waiting(), rig.taken())
    rig.free()
    rig.eom()
    assert (b"C", 0, [VECTOR]) == (rig.message(), rig.waiting(), rig.taken())


@ALL
def test_synic_040_with_interrupts_off_three_vectors_wait_and_the_highest_goes_first(profile: str) -> None:
    """Three IRR bits; APIC priority."""
    rig = VpRig(profile)
    vectors = {4: VECTOR, 5: 0xC0, 6: 0x33}
    rig.vcpu().apic.interrupts_enabled = False
    for sint, vector in vectors.items():
        rig.sint(vector, sint)
        rig.post(b"m", sint)
    assert sum(1 << vector for vector in vectors.values()) == rig.vcpu().apic.irr
    assert [] == rig.taken()
    rig.vcpu().apic.interrupts_enabled = True
    assert [0xC0, VECTOR, 0x33] == rig.taken()


@TK
def test_synic_041_a_stale_pending_bit_costs_an_eom_and_nothing_else(profile: str) -> None:
    """Pending is advice (TLFS; KVM)."""
    rig = VpRig(profile)
    rig.post(b"A")
    rig.slot().flags = 1
    rig.taken()
    rig.free()
    rig.eom()
    assert (None, []) == (rig.message(), rig.taken())


@ALL
def test_synic_042_a_slot_freed_behind_the_hosts_back_is_filled_at_once(profile: str) -> None:
    """Between the look at the type and the pending bit: the host looks once more (OpenVMM; synic.md 5.2)."""
    rig = VpRig(profile)
    rig.post(b"A")
    rig.taken()
    seen: list[bytes | None] = []

    def on_step(_context: object, event: object) -> None:
        if event.step == lib.VI_TRACE_SYNIC_BUSY:  # type: ignore[attr-defined]
            seen.append(rig.free())

    trace = ffi.callback("void(void *, const struct vi_trace_event *)", on_step)
    machine = rig.partition.core.handle
    assert 0 == lib.vi_machine_set_trace(machine, trace, ffi.NULL)
    assert SUCCESS == rig.post(b"B")
    assert 0 == lib.vi_machine_set_trace(machine, ffi.NULL, ffi.NULL)
    assert [b"A"] == seen
    assert (b"B", 0, 0, [VECTOR]) == (rig.message(), rig.pending(), rig.waiting(), rig.taken())


@ALL
def test_synic_043_a_reset_empties_queues_and_slots(profile: str) -> None:
    """And gives the buffers back (TLFS)."""
    rig = VpRig(profile)
    port = rig.port()
    for payload in (b"A", b"B"):
        assert SUCCESS == port.post(1, payload)
    rig.vcpu().reset()
    assert (0, 0) == (rig.waiting(), port.buffers.used)
    rig.vcpu().activate_synic()
    rig.pages()
    rig.vcpu().wrmsr(Msr.SCONTROL, 1)
    rig.sint(VECTOR)
    if profile not in ("kvm-synic2",):  # the page is guest memory as it is: the guest clears it
        assert (None, []) == (rig.message(), rig.taken())
        assert SUCCESS == port.post(1, b"new")
        assert (b"new", [VECTOR]) == (rig.message(), rig.taken())


@pytest.mark.parametrize(("profile", "depth"), [("tlfs", 16), ("kvm", 16), ("qemu", 1), ("xen", 16)])
def test_synic_044_045_a_port_has_so_many_buffers(profile: str, depth: int) -> None:
    """D14: all undelivered, one more: 0x13; one is delivered: room for one. QEMU stages a single one."""
    rig = VpRig(profile)
    port = rig.port()
    assert [SUCCESS] * (1 + depth) == [port.post(1, bytes([number])) for number in range(1 + depth)]
    assert depth == rig.waiting() == port.buffers.used
    assert NO_BUFFERS == port.post(1, b"late")
    assert SUCCESS == rig.port(port_id=9).post(1, b"another port's")
    rig.free()
    rig.eom()
    assert SUCCESS == port.post(1, b"late")
    assert NO_BUFFERS == port.post(1, b"later")


def test_synic_044_openvmm_queues_without_bound() -> None:
    """D14."""
    rig = VpRig("openvmm")
    port = rig.port()
    assert {SUCCESS} == {port.post(1, b"m") for _ in range(1000)}
    assert 999 == rig.waiting()


# ---- what the rows imply


def test_a_message_made_at_the_last_moment_tells_that_moment() -> None:
    """synic.md 11.2: expiration does not move, delivery time is when the message was written."""
    rig = VpRig()
    clock, seen = rig.partition.clock, []
    rig.post(b"A")
    rig.partition.messages.post(
        0, SINT, lib.VI_MSG_TIMER_EXPIRED, lambda: clock.now.to_bytes(8, "little"), delivered=seen.append
    )
    clock.advance(500)
    rig.free()
    rig.eom()
    assert (500, [Deposit.DELIVERED]) == (int.from_bytes(rig.free() or b"", "little"), seen)


def test_a_timers_buffer_is_its_own_and_can_be_emptied() -> None:
    """synic.md 5.1 step 2, and row 110: what was not delivered is discarded."""
    rig = VpRig()
    queues = rig.partition.messages
    timers = [Buffers(1), Buffers(1)]
    port = rig.port()
    for _ in range(17):
        port.post(1, b"m")
    for timer in timers:
        assert SUCCESS == queues.post(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24), buffers=timer)
        assert NO_BUFFERS == queues.post(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24), buffers=timer)
    assert (1, 17) == (queues.withdraw(0, SINT, timers[0]), rig.waiting())
    assert (0, 1) == (queues.withdraw(0, SINT, timers[0]), timers[1].used)
    assert SUCCESS == queues.post(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24), buffers=timers[0])


def test_a_quiet_attempt_leaves_a_busy_slot_as_it_is() -> None:
    """synic.md 17, 14: KVM drops a periodic tick without the pending bit."""
    rig = VpRig("kvm")
    rig.post(b"A")
    assert Deposit.BUSY == rig.partition.messages.deposit(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24), quiet=True)
    assert 0 == rig.pending()
    assert Deposit.BUSY == rig.partition.messages.deposit(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24))
    assert 1 == rig.pending()
    rig.vcpu().wrmsr(Msr.SIMP, 0)
    assert Deposit.OFF == rig.partition.messages.deposit(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24))


def test_a_patient_host_posts_again_when_it_may_be_taken() -> None:
    """Not by trying: buffers that are freed and registers that change tell it; order is kept."""
    rig = VpRig()
    rig.vcpu().wrmsr(Msr.SIMP, 0)
    sent = [bytes([number]) for number in range(40)]
    for payload in sent:
        rig.partition.post_to_guest(0, payload, sint=SINT)
    rig.partition.settle()
    assert (0, 40) == (rig.waiting(), rig.partition.messages_waiting)
    rig.pages()
    rig.partition.settle()
    assert (16, 39) == (rig.waiting(), rig.partition.messages_waiting)
    got = []
    while rig.message() is not None:
        got.append(rig.free())
        rig.eom()
    assert (sent, 0) == (got, rig.partition.messages_waiting)


@pytest.mark.parametrize("refused", [True, False])
def test_synic_043_a_reset_ends_what_a_patient_host_has_posted(refused: bool) -> None:
    """Whether the SynIC took none or the buffers some: none of it comes after the reset; other VPs' does (TLFS)."""
    rig = VpRig()
    if refused:
        rig.vcpu().wrmsr(Msr.SIMP, 0)
    for number in range(20):
        rig.partition.post_to_guest(0, bytes([number]), sint=SINT)
        rig.partition.post_to_guest(1, bytes([number]), sint=SINT)
    rig.partition.settle()
    rig.vcpu().reset()
    assert (0, 19) == (rig.waiting(), rig.partition.messages_waiting)
    rig.pages()
    rig.vcpu().wrmsr(Msr.SCONTROL, 1)
    rig.sint(VECTOR)
    rig.partition.settle()
    assert None is rig.message()
    rig.partition.post_to_guest(0, b"new", sint=SINT)
    assert (b"new", [VECTOR]) == (rig.message(), rig.taken())
    rig.partition.reset()
    assert 0 == rig.partition.messages_waiting


@ALL
def test_a_message_past_the_queue_strands_nobody(profile: str) -> None:
    """B waits, the guest frees the slot and a timer is in it before the guest looks: it is told that B waits."""
    rig = VpRig(profile)
    rig.post(b"A")
    rig.post(b"B")
    rig.free()
    assert Deposit.DELIVERED == rig.partition.messages.deposit(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24))
    assert (bytes(24), 1, 1) == (rig.message(), rig.pending(), rig.waiting())
    rig.free()
    rig.eom()
    assert (b"B", 0, 0) == (rig.message(), rig.pending(), rig.waiting())
    rig.free()
    assert Deposit.DELIVERED == rig.partition.messages.deposit(0, SINT, lib.VI_MSG_TIMER_EXPIRED, bytes(24))
    assert 0 == rig.pending()
