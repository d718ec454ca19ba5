"""The partition reference clock as its guest reads it: a counter, and a page to read it from with the TSC (TLFS 12).

Reference time is 10 MHz, whatever the TSC's frequency. While the reference TSC page is valid, the counter register
follows the page's formula: ``floor()`` makes that line a little slower than exact arithmetic, and a guest that changes
between the two must never see time run backwards.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import TICKS_PER_S
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.overlay import Overlay, put_page
from vmbusirq.hyperv.registers import Msr

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = [
    "CLOCK_RULES",
    "TSC_HZ_DEFAULT",
    "ClockRules",
    "ReferenceClock",
    "TscPage",
    "kvmclock_scale",
    "read_tsc_page",
    "tsc_scale",
]

TSC_HZ_DEFAULT: Final = 2_500_000_000
TSC_HZ_MAX: Final = 1 << 40
_LAYOUT: Final = struct.Struct("<IIQq")
_U64: Final = (1 << 64) - 1
_NS_PER_S: Final = 1_000_000_000
_REENLIGHTENMENT_ENABLED: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class TscPage:
    """The content of the reference TSC page: sequence at 0, scale at 8, offset at 16."""

    sequence: int
    scale: int
    offset: int

    def encode(self) -> bytes:
        """Return its first 24 bytes."""
        return _LAYOUT.pack(self.sequence, 0, self.scale, self.offset)

    @classmethod
    def decode(cls, data: bytes) -> TscPage:
        """Read it from the bytes of a page."""
        sequence, _reserved, scale, offset = _LAYOUT.unpack_from(data)
        return cls(sequence, scale, offset)

    def reference(self, tsc: int) -> int:
        """Return reference time at a TSC value: the high half of the product, and a sum that wraps at 64 bits."""
        return (tsc * self.scale >> 64) + self.offset & _U64


def tsc_scale(frequency_hz: int) -> int:
    """Return ``floor(10^7 * 2^64 / f)``.

    EINVAL: 10 MHz or less, which takes more than 64 bits, or no frequency.
    """
    if not isinstance(frequency_hz, int) or not TICKS_PER_S < frequency_hz <= TSC_HZ_MAX:
        raise IrqError(
            errno.EINVAL,
            f"reference clock: a TSC of {frequency_hz!r} Hz cannot be scaled: it must be faster than 10 MHz (EINVAL)",
        )
    return (TICKS_PER_S << 64) // frequency_hz


def kvmclock_scale(frequency_hz: int) -> int:
    """Return the scale as Linux's KVM has it from a clock multiplier of 32 bits (v6.16).

    EINVAL as :func:`tsc_scale`, and for a multiplier that is too large for the page.
    """
    tsc_scale(frequency_hz)
    frequency, nanoseconds, shift = frequency_hz, _NS_PER_S, 0
    while frequency > 2 * nanoseconds or frequency >> 32:
        frequency >>= 1
        shift -= 1
    while frequency <= nanoseconds:
        if frequency >> 31:
            nanoseconds >>= 1
        else:
            frequency <<= 1
        shift += 1
    multiplier = (nanoseconds << 32) // frequency
    if multiplier >= 100 << (32 - shift):
        raise IrqError(errno.EINVAL, f"reference clock: a TSC of {frequency_hz} Hz is too slow for KVM (EINVAL)")
    return (multiplier << (32 + shift)) // 100


@dataclass(frozen=True, slots=True)
class ClockRules:
    """What implementations do differently (synic.md 12).

    Attributes:
        scale: how the scale is had from the frequency.
        sequence: where the next sequence comes from: a count of the partition's, or the guest's page.
        clears_page: enabling clears the page, so that the sequence begins at 1 again.
        skips_all_ones: 0xFFFFFFFF is never published, which old readers take for invalid.
        emulation_keeps_page: while the guest has TSC emulation, its page stays as it is.
    """

    scale: Callable[[int], int] = tsc_scale
    sequence: Literal["partition", "page"] = "partition"
    clears_page: bool = False
    skips_all_ones: bool = True
    emulation_keeps_page: bool = True


def _coarse_scale(frequency_hz: int) -> int:
    return tsc_scale(frequency_hz) & ~0xFFFF_FFFF


CLOCK_RULES: Final = {
    "tlfs": ClockRules(),
    "kvm": ClockRules(scale=kvmclock_scale, sequence="page"),
    "openvmm": ClockRules(skips_all_ones=False),
    "xen": ClockRules(scale=_coarse_scale, clears_page=True, sequence="page", skips_all_ones=False),
}
"""TLFS; Linux 6.16; OpenVMM (2026); Xen 4.17."""


def _rules_of(profile: str) -> ClockRules:
    family = "kvm" if profile == "qemu" else profile.partition("-")[0]
    return CLOCK_RULES.get(family, CLOCK_RULES["tlfs"])


class ClockPort(Protocol):
    """Who a guest reader asks."""

    def page(self) -> bytes:
        """Return the reference TSC page as the guest sees it now."""

    def rdtsc(self) -> int:
        """Return the time stamp counter."""

    def time_ref_count(self) -> int:
        """Return the counter register, which costs an exit."""


def read_tsc_page(port: ClockPort) -> int:
    """Read reference time as a guest does (TLFS 12.6): by the page, or by the register while the sequence is 0.

    Scale and offset are used only if the sequence was the same before and after.
    """
    while True:
        before = TscPage.decode(port.page()).sequence
        if before == 0:
            return port.time_ref_count()
        page = TscPage.decode(port.page())
        tsc = port.rdtsc()
        if TscPage.decode(port.page()).sequence == before:
            return page.reference(tsc)


class ReferenceClock:
    """Reference time, the TSC, and the page between them, of one partition.

    Args:
        partition: whose.
        frequency_hz: of the host's TSC, which is the guest's until the first migration.
        rules: by default those of the partition's profile.

    Attributes:
        frequency_hz: of the host's TSC.
        guest_hz: of the TSC that the guest reads; the old host's while its TSC is emulated.
        on_publish: called when a step of an update is in the page: with sequence 0 first, then the new one.
    """

    def __init__(
        self, partition: Partition, frequency_hz: int = TSC_HZ_DEFAULT, rules: ClockRules | None = None
    ) -> None:
        self._partition = partition
        self._rules = rules or _rules_of(partition.profile.name)
        self.frequency_hz = frequency_hz
        self.guest_hz = frequency_hz
        self._tsc_base = 0
        self._tick_base = 0
        self._sequence = 0
        self._line: TscPage | None = None
        self.overlay: Final = Overlay("reference TSC page", writable=False)
        self._data: Any = self.overlay.data
        self.on_publish: Final[list[Callable[[TscPage], object]]] = []
        self._rules.scale(frequency_hz)
        self._serve()
        partition.on_reset.append(self.reset)

    def __repr__(self) -> str:
        return f"<ReferenceClock {self.time()} ticks, TSC {self.guest_hz} Hz, page {self._line}>"

    # ---- reading

    def time(self) -> int:
        """Return reference time: by the page's formula while there is one, else the partition's clock."""
        now = self._partition.clock.now
        return now if self._line is None else self._line.reference(self.tsc())

    def tsc(self) -> int:
        """Return the guest's TSC at this tick."""
        return self._tsc_base + (self._partition.clock.now - self._tick_base) * self.guest_hz // TICKS_PER_S & _U64

    def page(self) -> bytes:
        """Return the beginning of the guest's page as it is now; zeroes while it has none."""
        return bytes(ffi.buffer(self._data, _LAYOUT.size)) if self._line is not None else bytes(_LAYOUT.size)

    def rdtsc(self) -> int:
        """Return the TSC, as :func:`read_tsc_page` asks for it."""
        return self.tsc()

    def time_ref_count(self) -> int:
        """Return TIME_REF_COUNT, as :func:`read_tsc_page` asks for it."""
        return self.time()

    @property
    def enabled(self) -> bool:
        """Whether the guest has a reference TSC page."""
        return self._line is not None

    def clock_tick(self, reference: int) -> int:
        """Return a tick of the partition's clock by which reference time may have come to ``reference``."""
        return self._partition.clock.now + max(reference - self.time(), 0)

    # ---- the host moves the guest

    def migrate(self, new_frequency_hz: int, *, restart_tsc: int | None = None) -> None:
        """Let the guest go on at a host whose TSC has another frequency; reference time goes on as it was.

        A guest that has switched TSC emulation on keeps its frequency and its page until it ends the emulation; it
        gets the reenlightenment interrupt. For others the page is invalid for a moment, then follows the new TSC.

        Args:
            new_frequency_hz: of the new host's TSC.
            restart_tsc: what the guest's TSC begins with there; None: it continues. An emulated one continues.
        Raises:
            IrqError: EINVAL, that frequency cannot be scaled, or the TSC value has more than 64 bits.
        """
        self._rules.scale(new_frequency_hz)
        if restart_tsc is not None and not 0 <= restart_tsc <= _U64:
            raise IrqError(errno.EINVAL, f"reference clock: the TSC cannot begin at {restart_tsc}: 64 bits (EINVAL)")
        emulates = self._read(Msr.TSC_EMULATION_CONTROL) & 1 and self._rules.emulation_keeps_page
        self.frequency_hz = new_frequency_hz
        if emulates:
            self._store(Msr.TSC_EMULATION_STATUS, int(self.guest_hz != new_frequency_hz))
        else:
            self._change_tsc(new_frequency_hz, restart_tsc)
        self._reenlighten()

    def _change_tsc(self, frequency_hz: int, restart_tsc: int | None) -> None:
        """Give the guest another TSC, and the page a line that goes on where the old one is now."""
        reference, tsc = self.time(), self.tsc()
        self._tsc_base = tsc if restart_tsc is None else restart_tsc
        self._tick_base = self._partition.clock.now
        self.guest_hz = frequency_hz
        if self._line is not None:
            self._publish(reference)

    def _reenlighten(self) -> None:
        """Interrupt the VP that wants to hear of a new host."""
        control = self._read(Msr.REENLIGHTENMENT_CONTROL)
        target = control >> 32
        if control & _REENLIGHTENMENT_ENABLED and target < len(self._partition.vcpus):
            self._partition.vcpus[target].apic.request(control & 0xFF)

    def reset(self) -> None:
        """Forget the page after a reset of the system; its time goes on."""
        self._line = None
        self._data = self.overlay.data
        self.overlay.clear()
        if self.overlay.pfn is not None:
            self._partition.memory.overlays.place(self.overlay, None)
        if self.guest_hz != self.frequency_hz:
            self._change_tsc(self.frequency_hz, None)

    # ---- the page

    def _publish(self, reference: int) -> None:
        """Write the line that is at ``reference`` now: invalid, then scale and offset, then a new sequence."""
        scale = self._rules.scale(self.guest_hz)
        offset = (reference - (self.tsc() * scale >> 64) + (1 << 63) & _U64) - (1 << 63)
        sequence = self._next_sequence()
        invalid = self._partition.profile.tsc_sequence_invalid & 0xFFFF_FFFF
        self._line = TscPage(sequence, scale, offset)  # the register follows the new line already
        self._write(0, struct.pack("<I", invalid))
        self._tell(TscPage(invalid, scale, offset))
        self._write(8, struct.pack("<Qq", scale, offset))
        self._write(0, struct.pack("<I", sequence))
        self._tell(self._line)

    def _tell(self, page: TscPage) -> None:
        for heard in self.on_publish:
            heard(page)

    def _next_sequence(self) -> int:
        published = TscPage.decode(bytes(ffi.buffer(self._data, _LAYOUT.size))).sequence
        last = published if self._rules.sequence == "page" else self._sequence
        following = last + 1 & 0xFFFF_FFFF
        if following == 0 or (following == 0xFFFF_FFFF and self._rules.skips_all_ones):
            following = 1
        self._sequence = following
        return following

    def _write(self, offset: int, data: bytes) -> None:
        ffi.memmove(self._data + offset, data, len(data))

    # ---- registers

    def _serve(self) -> None:
        serve = self._partition.registers.serve
        serve([Msr.TIME_REF_COUNT], lambda _vcpu, _msr: self.time(), None)
        serve([Msr.TSC_FREQUENCY], lambda _vcpu, _msr: self.guest_hz, None)
        serve([Msr.REFERENCE_TSC], None, self._write_reference_tsc)
        serve([Msr.TSC_EMULATION_STATUS], None, self._write_emulation_status)

    def _write_reference_tsc(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        old, was_enabled, reference = self._read(msr), self._line is not None, self.time()
        covers = self._partition.profile.overlays
        page = put_page(vcpu, msr, value, self.overlay, host=host, covers=covers, outside_faults=False)
        self._store(msr, value)
        if page is None:  # without an overlay the guest's page stays as it is, and is written to no more
            self._line = None
        elif not was_enabled or old != value:
            self._data = page
            if self._rules.clears_page:
                ffi.memmove(page, bytes(lib.VI_PAGE), lib.VI_PAGE)
            self._publish(reference)

    def _write_emulation_status(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        if value and not host:
            vcpu.fault(msr, value)
        was = self._read(msr)
        self._store(msr, value)
        if was and not value and self.guest_hz != self.frequency_hz:
            self._change_tsc(self.frequency_hz, None)

    def _read(self, msr: int) -> int:
        return self._partition.registers.value(self._partition.vcpus[0], msr)

    def _store(self, msr: int, value: int) -> None:
        self._partition.registers.store(self._partition.vcpus[0], msr, value)
