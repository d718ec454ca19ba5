"""The reference clock, its page, and migration (TLFS 12; synic.md 12; rows 111 to 116 of 16)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.hyperv.stimer_rig import AUTO, DIRECT, PROFILES, TimerRig
from vmbusirq.core import TICKS_PER_S, Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.refclock import TscPage, coarse_scale, kvmclock_scale, read_tsc_page, tsc_scale
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.vcpu import GeneralProtectionFault

PAGE = 0x9000
WAITS = st.lists(st.integers(0, 1 << 40), min_size=4, max_size=4)
every_profile = pytest.mark.parametrize("profile", PROFILES)


def partition(profile: str = "tlfs", hz: int = 2_500_000_000) -> Partition:
    return Partition(Core(2, nr_irqs_max=1), GuestMemory(1 << 20), profile=profile, tsc_hz=hz)


def enable(p: Partition, gpa: int = PAGE) -> None:
    p.vcpus[0].wrmsr(Msr.REFERENCE_TSC, gpa | 1)


def page_of(p: Partition, gpa: int = PAGE) -> TscPage:
    return TscPage.decode(p.memory.read(gpa, 24))


@pytest.mark.parametrize(
    ("hz", "exact", "coarse"),
    [
        (1_000_000_000, 0x028F5C28F5C28F5C, 0x028F5C2800000000),
        (2_000_000_000, 0x0147AE147AE147AE, 0x0147AE1400000000),
        (2_394_000_000, 0x0111C04470111C04, 0x0111C04400000000),
        (2_500_000_000, 0x010624DD2F1A9FBE, 0x010624DD00000000),
        (3_000_000_000, 0x00DA740DA740DA74, 0x00DA740D00000000),
    ],
)
def test_the_scale_is_that_of_the_table(hz: int, exact: int, coarse: int) -> None:
    """Synic.md 12; KVM's has the precision of a 32-bit multiplier."""
    assert (exact, coarse) == (tsc_scale(hz), coarse_scale(hz))
    assert exact - (exact >> 30) < kvmclock_scale(hz) <= exact


@given(hz=st.integers(10_000_001, 1 << 40))
@example(hz=4_000_000_003)
@example(hz=2_000_000_001)
def test_no_scale_is_faster_than_the_tsc(hz: int) -> None:
    """A page that runs ahead would be ahead of the register, too; KVM's multiplier has 31 bits at least."""
    exact = tsc_scale(hz)
    assert exact - (exact >> 30) < kvmclock_scale(hz) <= exact
    assert exact - (1 << 32) < coarse_scale(hz) <= exact
    assert exact * hz <= TICKS_PER_S << 64


@given(khz=st.integers(10_001, 16_000_000))
def test_kvms_scale_of_a_frequency_in_khz_is_the_kernels(khz: int) -> None:
    """kvm_get_time_scale() and compute_tsc_page_parameters() as they are, with what they shift out (v6.16)."""
    divisor, nanoseconds, shift = khz * 1000, 10**9, 0
    while divisor > 2 * nanoseconds or divisor >> 32:
        divisor >>= 1
        shift -= 1
    while divisor <= nanoseconds:
        divisor <<= 1
        shift += 1
    assert ((nanoseconds << 32) // divisor << (32 + shift)) // 100 == kvmclock_scale(khz * 1000)


def test_synic_111_the_formula() -> None:
    """High half of the product, offset signed, the sum wraps."""
    page = TscPage(7, tsc_scale(2_500_000_000), 0)
    assert (3_999_999_999, 99_999_999) == (page.reference(10**12), page.reference(25 * 10**9))
    assert 3_998_765_432 == TscPage(7, page.scale, -1_234_567).reference(10**12)
    assert TscPage.decode(page.encode()) == page


@every_profile
def test_synic_112_while_the_sequence_is_0_readers_use_the_register(profile: str) -> None:
    """No page, no formula."""
    p = partition(profile)
    p.clock.advance_to(123_456)
    assert [123_456] * 2 == [read_tsc_page(p.refclock), p.vcpus[1].rdmsr(Msr.TIME_REF_COUNT)]
    enable(p)
    p.clock.advance(10_000)
    assert p.vcpus[1].rdmsr(Msr.TIME_REF_COUNT) == read_tsc_page(p.refclock)
    assert read_tsc_page(p.refclock) in range(133_456 - 1, 133_457)


def test_synic_113_a_reader_uses_one_consistent_pair() -> None:
    """A host that updates the page between two of its reads makes it begin again."""
    old, new = TscPage(1, tsc_scale(2_500_000_000), 5), TscPage(2, tsc_scale(3_000_000_000), 10**9)

    class Port:
        """The page changes after the second read; torn pages carry the new scale and the old offset."""

        reads = 0

        def page(self) -> bytes:
            self.reads += 1
            torn = TscPage(1, new.scale, old.offset)
            return ({1: old, 2: torn}.get(self.reads, new)).encode()

        def rdtsc(self) -> int:
            return 10**12

        def time_ref_count(self) -> int:
            raise AssertionError("the sequence is never 0")

    assert new.reference(10**12) == read_tsc_page(Port())


def test_synic_114_kvm_continues_the_sequence_of_the_guests_page() -> None:
    """After 0xFFFFFFFE comes 1: neither 0 nor 0xFFFFFFFF is ever published."""
    for before, after in ((0xFFFF_FFFE, 1), (0xFFFF_FFFF, 1), (41, 42)):
        p = partition("kvm")
        p.memory.write(PAGE, before.to_bytes(4, "little"))
        enable(p)
        assert after == page_of(p).sequence


@every_profile
def test_synic_115_a_migration_goes_on_where_the_clock_was(profile: str) -> None:
    """2.5 to 3.0 GHz, TSC continued or restarted: no step back, 10 000 000 per second (synic.md 12)."""
    for restart in (None, 5 * 10**9):
        p = partition(profile)
        enable(p)
        p.clock.advance_to(4 * 10**9)
        before = read_tsc_page(p.refclock)
        seen = []
        p.refclock.on_publish.append(lambda _page, p=p, seen=seen: seen.append(read_tsc_page(p.refclock)))
        p.refclock.migrate(3_000_000_000, restart_tsc=restart)
        assert [before, before, before] == [*seen, read_tsc_page(p.refclock)]
        p.clock.advance(TICKS_PER_S)
        assert read_tsc_page(p.refclock) - before in (TICKS_PER_S - 1, TICKS_PER_S)
        assert 3_000_000_000 == p.vcpus[0].rdmsr(Msr.TSC_FREQUENCY)


def test_synic_115_the_worked_numbers() -> None:
    """Guest TSC 10^12 at 2.5 GHz, then 3.0 GHz: the offsets of synic.md 12."""
    for restart, offset in ((None, 666_666_666), (5 * 10**9, 3_983_333_333)):
        p = partition()
        enable(p)
        p.clock.advance_to(4 * 10**9)
        assert (10**12, 3_999_999_999) == (p.refclock.tsc(), read_tsc_page(p.refclock))
        p.refclock.migrate(3_000_000_000, restart_tsc=restart)
        assert (61489146912365172, offset) == (page_of(p).scale, page_of(p).offset)
        p.clock.advance(TICKS_PER_S)
        assert 4_009_999_999 == read_tsc_page(p.refclock)


@every_profile
@given(data=st.data())
def test_synic_115_the_guests_clock_never_runs_backwards(profile: str, data: st.DataObject) -> None:
    """Whatever the order of reads by page and register, migrations, and the page being enabled or not."""
    p = partition(profile)
    last = 0
    lines: list[object] = []  # whole TSC cycles can put each a tick ahead
    p.refclock.on_publish.append(lines.append)
    for _ in range(data.draw(st.integers(1, 20))):
        what = data.draw(st.sampled_from(["page on", "page off", "migrate", "time", "time"]))
        if what == "migrate":
            restart = data.draw(st.none() | st.integers(0, 1 << 60))
            p.refclock.migrate(data.draw(st.integers(1_000_000_000, 4_000_000_000)), restart_tsc=restart)
        elif what == "time":
            p.clock.advance(data.draw(st.integers(0, 10**8)))
        else:
            p.vcpus[0].wrmsr(Msr.REFERENCE_TSC, PAGE | (what == "page on"))
        for now in (read_tsc_page(p.refclock), p.vcpus[1].rdmsr(Msr.TIME_REF_COUNT)):
            assert last <= now <= p.clock.now + len(lines)
            last = now
    drift = 1 + p.clock.now * (1 if profile != "xen" else 1 << 20) // 10**8
    assert p.clock.now - last <= 20 + drift


@every_profile
def test_synic_116_enabling_again_gives_another_sequence(profile: str) -> None:
    """Never 0; Xen clears the page, so that it is 1 each time."""
    p = partition(profile)
    enable(p)
    first = page_of(p).sequence
    p.vcpus[0].wrmsr(Msr.REFERENCE_TSC, PAGE)
    enable(p)
    second = page_of(p).sequence
    assert first
    assert second
    assert (profile == "xen") == (first == second)


def test_synic_015_the_page_is_the_partitions() -> None:
    """Written on one VP, read on another."""
    p = partition()
    enable(p)
    assert PAGE | 1 == p.vcpus[1].rdmsr(Msr.REFERENCE_TSC)


def test_the_page_covers_guest_memory_and_cannot_be_written() -> None:
    """An overlay (synic.md 9); what lies under it comes back."""
    p = partition()
    p.memory.write(PAGE, b"\x55" * 64)
    enable(p)
    assert 0 == page_of(p).offset
    assert 1 == page_of(p).sequence
    with pytest.raises(IrqError) as error:
        p.memory.write(PAGE, b"\0")
    assert errno.EACCES == error.value.errno
    p.vcpus[0].wrmsr(Msr.REFERENCE_TSC, PAGE)
    assert b"\x55" * 64 == p.memory.read(PAGE, 64)


def test_the_same_value_again_changes_nothing() -> None:
    """Rule 4 of synic.md 9: not even the sequence."""
    p = partition()
    enable(p)
    before = page_of(p)
    enable(p)
    assert before == page_of(p)


@every_profile
def test_a_page_outside_memory_is_never_valid_to_the_guest(profile: str) -> None:
    """Nobody can read it; the register still counts."""
    p = partition(profile)
    p.vcpus[0].wrmsr(Msr.REFERENCE_TSC, 1 << 40 | 1)
    p.clock.advance_to(1000)
    assert p.vcpus[0].rdmsr(Msr.TIME_REF_COUNT) in (999, 1000)


@pytest.mark.parametrize("hz", [0, 1, 10_000_000, -5, 1 << 50])
def test_frequencies_that_cannot_be_scaled(hz: int) -> None:
    """A scale has 64 bits (synic.md 17, 22); nothing has changed afterwards."""
    p = partition()
    with pytest.raises(IrqError) as error:
        p.refclock.migrate(hz)
    assert (errno.EINVAL, 2_500_000_000) == (error.value.errno, p.refclock.frequency_hz)


@pytest.mark.parametrize("profile", ["tlfs", "kvm"])
def test_tsc_emulation_keeps_page_and_frequency_until_the_guest_ends_it(profile: str) -> None:
    """Then both are the new host's, and time has gone on (synic.md 12, 13)."""
    p = partition(profile)
    vcpu = p.vcpus[0]
    enable(p)
    vcpu.wrmsr(Msr.TSC_EMULATION_CONTROL, 1)
    p.clock.advance_to(10**7)
    before = page_of(p)
    p.refclock.migrate(3_000_000_000)
    assert (before, 1, 2_500_000_000) == (
        page_of(p),
        vcpu.rdmsr(Msr.TSC_EMULATION_STATUS),
        vcpu.rdmsr(Msr.TSC_FREQUENCY),
    )
    now = read_tsc_page(p.refclock)
    with pytest.raises(GeneralProtectionFault):
        vcpu.wrmsr(Msr.TSC_EMULATION_STATUS, 1)
    vcpu.wrmsr(Msr.TSC_EMULATION_STATUS, 0)
    assert (3_000_000_000, now) == (vcpu.rdmsr(Msr.TSC_FREQUENCY), read_tsc_page(p.refclock))
    assert before.sequence != page_of(p).sequence


def test_the_reenlightenment_interrupt_goes_to_the_vp_that_asked() -> None:
    """REENLIGHTENMENT_CONTROL: vector, enabled, target VP."""
    p = partition()
    p.vcpus[0].wrmsr(Msr.REENLIGHTENMENT_CONTROL, 1 << 32 | 1 << 16 | 0xEE)
    p.refclock.migrate(3_000_000_000)
    assert (0, 1 << 0xEE) == (p.vcpus[0].apic.irr, p.vcpus[1].apic.irr)
    p.vcpus[0].wrmsr(Msr.REENLIGHTENMENT_CONTROL, 9 << 32 | 1 << 16 | 0xEE)
    p.refclock.migrate(2_000_000_000)  # a VP that does not exist gets nothing


@every_profile
def test_timers_follow_reference_time_and_not_the_hosts(profile: str) -> None:
    """Never earlier than requested, although the page's line lags behind (TLFS 12.4)."""
    rig = TimerRig(profile)
    p = rig.partition
    p.vcpus[0].wrmsr(Msr.REFERENCE_TSC, PAGE | 1)
    p.clock.advance_to(10**12)
    due = read_tsc_page(p.refclock) + 500
    rig.config(0, AUTO | DIRECT | 0x61 << 4)
    rig.count(0, due)
    seen: list[int] = []
    p.vcpus[0].apic.handlers[0x61] = lambda vcpu: (seen.append(read_tsc_page(p.refclock)), vcpu.apic.eoi())
    rig.to(10**12 + 600)
    assert [due] == seen


def test_a_reset_of_the_system_takes_the_page_away() -> None:
    """Registers 0, memory as it was; time goes on."""
    p = partition()
    enable(p)
    p.clock.advance_to(5000)
    p.reset()
    assert (0, bytes(24)) == (p.vcpus[0].rdmsr(Msr.REFERENCE_TSC), p.memory.read(PAGE, 24))
    assert 5000 == p.vcpus[0].rdmsr(Msr.TIME_REF_COUNT)
    p = partition("kvm", 4_000_000_003)
    enable(p)
    p.clock.advance(10**11)
    before = read_tsc_page(p.refclock)
    p.reset()
    assert before <= p.vcpus[0].rdmsr(Msr.TIME_REF_COUNT) == 10**11


@every_profile
@pytest.mark.parametrize("what", ["disable", "re-enable", "move", "reset", "migrate", "migrate elsewhere"])
@given(hz=st.integers(10_000_001, 40_000_000_000).map(lambda hz: hz | 1), waits=WAITS, restart=st.integers(0, 1 << 60))
@example(hz=4_000_000_003, waits=[10**11, 0, 0, 0], restart=0)
def test_no_change_of_the_page_steps_back(profile: str, what: str, hz: int, waits: list[int], restart: int) -> None:
    """TLFS 12: reference time never decreases; between changes it is 10 MHz within what the scale is rounded by."""
    p = partition(profile)
    last = 0

    def look() -> None:
        nonlocal last
        for now in (read_tsc_page(p.refclock), p.vcpus[1].rdmsr(Msr.TIME_REF_COUNT)):
            assert last <= now
            last = now

    def let_pass(ticks: int) -> None:
        before, ends = last, p.clock.now + ticks
        p.clock.advance(ticks)
        look()
        if p.refclock.enabled:
            slack = {"tlfs": 50, "openvmm": 50, "kvm": 30, "xen": 18}[profile]
            assert -2 - (ticks >> slack) <= last - before - ticks <= 2
        else:
            assert last == max(before, ends)

    p.refclock.migrate(hz, restart_tsc=restart)
    for wait in waits:
        enable(p)
        look()
        let_pass(wait)
        if what == "migrate":
            p.refclock.migrate(hz + 1_000_003)
        elif what == "migrate elsewhere":
            p.refclock.migrate(10_000_000 + hz // 3, restart_tsc=restart // 3)
        elif what == "move":
            enable(p, PAGE + 0x1000)
        elif what == "reset":
            p.reset()
        else:
            p.vcpus[0].wrmsr(Msr.REFERENCE_TSC, PAGE)
        look()
        if what == "re-enable":
            enable(p)
            look()
        let_pass(wait // 7)


def test_the_register_waits_for_the_clock_when_the_page_was_a_tick_ahead() -> None:
    """The TSC's whole cycles and the page's whole ticks: one tick, although the scale is rounded down."""
    p = partition()
    p.clock.advance(315)
    p.refclock.migrate(13_418_383, restart_tsc=1_082_178_570_120_477_062)
    p.clock.advance(90)
    enable(p)
    p.clock.advance(7)
    assert (412, 413) == (p.clock.now, read_tsc_page(p.refclock))
    p.vcpus[0].wrmsr(Msr.REFERENCE_TSC, PAGE)
    seen = [p.vcpus[0].rdmsr(Msr.TIME_REF_COUNT)]
    for _ in range(2):
        p.clock.advance(1)
        seen.append(p.vcpus[0].rdmsr(Msr.TIME_REF_COUNT))
    assert [413, 413, 414] == seen
