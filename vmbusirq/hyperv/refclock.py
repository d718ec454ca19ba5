"""The partition reference clock as its guest reads it: a counter, and a page to read it from with the TSC (TLFS 12).

Reference time is 10 MHz, whatever the TSC's frequency. While the reference TSC page is valid, the counter register
follows the page's formula. Every scale is rounded down, so that this line is a little slower than exact arithmetic and
the register goes on ahead of it when the page goes. Whole TSC cycles and ticks may still put the line a single tick
ahead of the partition's clock: the register then waits there, for a guest that changes between the two must never see
time run backwards.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import TICKS_PER_S
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.overlay import Overlay, put_page
from vmbusirq.hyperv.registers import Msr

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = [
    "TSC_HZ_DEFAULT",
    "ReferenceClock",
    "TscPage",
    "coarse_scale",
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

    The multiplier is that of the whole frequency, rounded down. The kernel divides by a frequency that has lost the
    bits shifted out of it; of one in kHz up to 16 GHz, as the kernel's are, those are zeroes: both come to the same.

    EINVAL as :func:`tsc_scale`, and for a multiplier that is too large for the page.
    """
    tsc_scale(frequency_hz)
    shift = 0
    while frequency_hz > 2 * _NS_PER_S << -shift:
        shift -= 1
    while frequency_hz << max(shift, 0) <= _NS_PER_S:
        shift += 1
    multiplier = (_NS_PER_S << (32 - shift)) // frequency_hz
    if multiplier >= 100 << (32 - shift):
        raise IrqError(errno.EINVAL, f"reference clock: a TSC of {frequency_hz} Hz is too slow for KVM (EINVAL)")
    return (multiplier << (32 + shift)) // 100


def coarse_scale(frequency_hz: int) -> int:
    """Return the scale as Xen has it: its low half is 0 (4.17). EINVAL as :func:`tsc_scale`."""
    return tsc_scale(frequency_hz) & ~0xFFFF_FFFF


_SCALES: Final[dict[str, Callable[[int], int]]] = {
    "exact": tsc_scale,
    "multiplier": kvmclock_scale,
    "high-half": coarse_scale,
}


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

    Attributes:
        frequency_hz: of the host's TSC.
        guest_hz: of the TSC that the guest reads; the old host's while its TSC is emulated.
        on_publish: called when a step of an update is in the page: with sequence 0 first, then the new one.
    """

    def __init__(self, partition: Partition, frequency_hz: int = TSC_HZ_DEFAULT) -> None:
        self._partition = partition
        self._profile: Final = partition.profile
        self._scale: Final = _SCALES[self._profile.tsc_rounding]
        self.frequency_hz = frequency_hz
        self.guest_hz = frequency_hz
        self._tsc_base = 0
        self._tick_base = 0
        self._sequence = 0
        self._line: TscPage | None = None
        self._last = 0
        self.overlay: Final = Overlay("reference TSC page", writable=False)
        self._data: Any = self.overlay.data
        self.on_publish: Final[list[Callable[[TscPage], object]]] = []
        self._scale(frequency_hz)
        self._serve()
        partition.on_reset.append(self.reset)

    def __repr__(self) -> str:
        return f"<ReferenceClock {self.time()} ticks, TSC {self.guest_hz} Hz, page {self._line}>"

    # ---- reading

    def time(self) -> int:
        """Return reference time: by the page's formula while there is one, else the partition's clock.

        The latter never comes before the last time by a page.
        """
        return max(self._partition.clock.now, self._last) if self._line is None else self._line.reference(self.tsc())

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
        self._scale(new_frequency_hz)
        if restart_tsc is not None and not 0 <= restart_tsc <= _U64:
            raise IrqError(errno.EINVAL, f"reference clock: the TSC cannot begin at {restart_tsc}: 64 bits (EINVAL)")
        emulates = self._read(Msr.TSC_EMULATION_CONTROL) & 1 and self._profile.tsc_emulation_keeps_page
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
        self._end_line()
        self._data = self.overlay.data
        self.overlay.clear()
        if self.overlay.pfn is not None:
            self._partition.memory.overlays.place(self.overlay, None)
        if self.guest_hz != self.frequency_hz:
            self._change_tsc(self.frequency_hz, None)

    # ---- the page

    def _publish(self, reference: int) -> None:
        """Write the line that is at ``reference`` now: invalid, then scale and offset, then a new sequence."""
        scale = self._scale(self.guest_hz)
        offset = (reference - (self.tsc() * scale >> 64) + (1 << 63) & _U64) - (1 << 63)
        sequence = self._next_sequence()
        invalid = self._profile.tsc_sequence_invalid & 0xFFFF_FFFF
        self._line = TscPage(sequence, scale, offset)  # the register follows the new line already
        self._write(0, struct.pack("<I", invalid))
        self._tell(TscPage(invalid, scale, offset))
        self._write(8, struct.pack("<Qq", scale, offset))
        self._write(0, struct.pack("<I", sequence))
        self._tell(self._line)

    def _end_line(self) -> None:
        """Go on without a page, from where its line is."""
        self._last = self.time()
        self._line = None

    def _tell(self, page: TscPage) -> None:
        for heard in self.on_publish:
            heard(page)

    def _next_sequence(self) -> int:
        published = TscPage.decode(bytes(ffi.buffer(self._data, _LAYOUT.size))).sequence
        last = published if self._profile.tsc_sequence_from == "page" else self._sequence
        following = last + 1 & 0xFFFF_FFFF
        if following == 0 or (following == 0xFFFF_FFFF and self._profile.tsc_skips_all_ones):
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
        covers = self._profile.overlays
        page = put_page(vcpu, msr, value, self.overlay, host=host, covers=covers, outside_faults=False)
        self._store(msr, value)
        if page is None:  # without an overlay the guest's page stays as it is, and is written to no more
            self._end_line()
        elif not was_enabled or old != value:
            self._data = page
            if self._profile.tsc_enable_clears:
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
