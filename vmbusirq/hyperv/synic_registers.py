"""The registers of each VP's SynIC: SCONTROL, SVERSION, SIEFP, SIMP, EOM and SINT0 to 15 (TLFS; synic.md 2.2 to 2.4).

Values, refusals and pages are here. What a value means for signals and messages is told to who delivers them, in
:attr:`SynicRegisters.changed` and :attr:`SynicRegisters.eom`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.hyperv.overlay import Overlay, put_page
from vmbusirq.hyperv.registers import SINT_RESET, Msr
from vmbusirq.limits import SINTS

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["PAGE_MASK", "SINT_AUTO_EOI", "SINT_MASKED", "SINT_POLLING", "SINT_VECTOR", "SynicRegisters"]

PAGE_MASK: Final = ~0xFFF & (1 << 64) - 1
SINT_VECTOR: Final = 0xFF
SINT_MASKED: Final = 1 << 16
SINT_AUTO_EOI: Final = 1 << 17
SINT_POLLING: Final = 1 << 18
_VECTOR_MIN: Final = 16
_SINTS: Final = range(Msr.SINT0, Msr.SINT0 + SINTS)
_PAGES: Final = (Msr.SIMP, Msr.SIEFP)
_WITH_EFFECT: Final = (Msr.SCONTROL, *_PAGES, *_SINTS)


class SynicRegisters:
    """The rules of those registers.

    Attributes:
        changed: called as (vcpu, msr, old, new) when SCONTROL, SIEFP, SIMP or a SINT of an active SynIC was written,
            by guest or host, when it is activated, and when a reset takes one back; the new value is stored already,
            and :meth:`page` says where pages are.
        eom: called with the VP whose guest wrote EOM.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._file = partition.registers
        self._overlays: dict[tuple[int, int], Overlay] = {}
        self._pages: dict[tuple[int, int], Any] = {}
        self.changed: Final[list[Callable[[Vcpu, int, int, int], object]]] = []
        self.eom: Final[list[Callable[[Vcpu], object]]] = []
        serve = self._file.serve
        serve([Msr.SCONTROL], None, self._store)
        serve(_PAGES, None, self._write_page)
        serve([Msr.SVERSION], None, self._write_sversion)
        serve([Msr.EOM], lambda _vcpu, _msr: 0, self._write_eom)
        serve(_SINTS, None, self._write_sint)

    # ---- for who delivers

    def page(self, vcpu: Vcpu, msr: int) -> Any | None:
        """Return where the page of SIMP or SIEFP is, ``uint8_t *``: the overlay's bytes, or guest memory.

        None: it is disabled, or outside the memory that it would have to be in.
        """
        return self._pages.get((vcpu.index, msr))

    def overlay(self, vcpu: Vcpu, msr: int) -> Overlay:
        """Return the overlay page of SIMP or SIEFP; its bytes are what C has as that VP's page from the start."""
        key = vcpu.index, msr
        if key not in self._overlays:
            handle = self._partition.core.handle
            own = lib.vi_synic_own_messages if msr == Msr.SIMP else lib.vi_synic_own_flags
            data = ffi.cast("uint8_t *", own(handle, vcpu.index))
            name = "message page" if msr == Msr.SIMP else "event flag page"
            self._overlays[key] = Overlay(f"{name} of vp {vcpu.index}", data=data)
        return self._overlays[key]

    # ---- writes

    def _store(self, vcpu: Vcpu, msr: int, value: int, _host: bool) -> None:
        old = self._file.value(vcpu, msr)
        self._file.store(vcpu, msr, value)
        self._tell(vcpu, msr, old, value)

    def _tell(self, vcpu: Vcpu, msr: int, old: int, new: int) -> None:
        if vcpu.synic_active:  # the registers of one that is not take no flag and no message yet
            for heard in self.changed:
                heard(vcpu, msr, old, new)

    def _write_page(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        profile = vcpu.profile
        page = put_page(
            vcpu,
            msr,
            value,
            self.overlay(vcpu, msr),
            host=host,
            covers=profile.page_on_enable == "overlay",
            outside_faults=profile.page_outside_faults,
        )
        if page is not None and profile.page_zero_is_none and not value & PAGE_MASK:
            self._partition.memory.overlays.place(self.overlay(vcpu, msr), None)
            page = None
        if page is not None and profile.page_on_enable == "zeroed" and not host:
            ffi.memmove(page, bytes(lib.VI_PAGE), lib.VI_PAGE)
        self._pages[vcpu.index, msr] = page
        self._store(vcpu, msr, value, host)

    def _write_sversion(self, vcpu: Vcpu, msr: int, value: int, _host: bool) -> None:
        if self._partition.profile.host_writes_sversion:
            self._file.store(vcpu, msr, value)

    def _write_eom(self, vcpu: Vcpu, _msr: int, _value: int, host: bool) -> None:
        if not host:
            for heard in self.eom:
                heard(vcpu)

    def _write_sint(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        profile = self._partition.profile
        faults = profile.masked_low_vector_faults if value & SINT_MASKED else profile.unmasked_low_vector_faults
        if value & SINT_VECTOR < _VECTOR_MIN and faults and not host:
            vcpu.fault(msr, value)
        self._store(vcpu, msr, value, host)

    def activate(self, vcpu: Vcpu) -> None:
        """Put the registers of a SynIC in force that was activated a moment ago, SCONTROL as after reset."""
        if (on := self._partition.profile.scontrol_reset) != 0:
            self._file.store(vcpu, Msr.SCONTROL, on)
        for msr in _WITH_EFFECT:
            value = self._file.value(vcpu, msr)
            self._tell(vcpu, msr, value, value)

    def reset(self, vcpu: Vcpu, old: dict[int, int]) -> None:
        """Take a VP's pages away and make them zeroes; tell what changed.

        Args:
            vcpu: its registers have their reset values already.
            old: what they were, by MSR.
        """
        for msr in _PAGES:
            overlay = self._overlays.get((vcpu.index, msr))
            if overlay is not None and overlay.pfn is not None:
                self._partition.memory.overlays.place(overlay, None)
            self._pages.pop((vcpu.index, msr), None)
            if self._partition.profile.page_on_enable == "overlay":
                self.overlay(vcpu, msr).clear()
        for msr in _WITH_EFFECT:
            before, now = old.get(msr, SINT_RESET if msr in _SINTS else 0), self._file.value(vcpu, msr)
            if before != now:
                self._tell(vcpu, msr, before, now)
