"""Registers of no other room: identity, hypercall page, VP assist page, reset, crash, reenlightenment (synic.md 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.overlay import ENABLE, LOCKED, Overlay, put_page
from vmbusirq.hyperv.registers import Msr

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["CRASH_MESSAGE", "CRASH_NOTIFY", "Crash", "PartitionRegisters"]

CRASH_NOTIFY: Final = 1 << 63
CRASH_MESSAGE: Final = 1 << 62
_CODE: Final = b"\x0f\x01\xc1\xc3"  # vmcall; ret
_CRASH_TEXT_MAX: Final = lib.VI_PAGE


@dataclass(frozen=True, slots=True)
class Crash:
    """What a crashing guest told.

    Attributes:
        vp: on which VP it crashed.
        parameters: CRASH_P0 to P4.
        message: the text at address P3, P4 bytes, if it told of one.
    """

    vp: int
    parameters: tuple[int, ...]
    message: bytes | None


class PartitionRegisters:
    """The rules of those registers.

    Attributes:
        hypercall_page: the page that a guest calls to make a hypercall.
        reset_requested: a guest has written 1 to RESET; :meth:`Partition.reset` is what it wants.
        crashes: what it told by CRASH_CTL, oldest first.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._file = partition.registers
        self._assist: dict[int, Overlay] = {}
        self.hypercall_page: Final = Overlay("hypercall page", writable=False)
        self.hypercall_page.fill(_CODE)
        self.reset_requested = False
        self.crashes: Final[list[Crash]] = []
        serve = self._file.serve
        serve([Msr.VP_INDEX], lambda vcpu, _msr: vcpu.index, None)
        serve([Msr.TIME_REF_COUNT, Msr.VP_RUNTIME], lambda _vcpu, _msr: partition.clock.now, None)
        serve([Msr.GUEST_OS_ID], None, self._write_os_id)
        serve([Msr.HYPERCALL], None, self._write_hypercall)
        serve([Msr.VP_ASSIST_PAGE], None, self._write_assist)
        serve([Msr.RESET], lambda _vcpu, _msr: 0, self._write_reset)
        serve([Msr.CRASH_CTL], lambda _vcpu, _msr: CRASH_NOTIFY | CRASH_MESSAGE, self._write_crash)
        serve([Msr.TSC_EMULATION_STATUS], None, self._write_emulation_status)
        serve([Msr.TSC_INVARIANT_CONTROL], None, self._write_invariant)

    def assist_page(self, vcpu: Vcpu) -> Overlay:
        """Return the VP assist page of a VP, wherever it lies."""
        if vcpu.index not in self._assist:
            self._assist[vcpu.index] = Overlay(f"VP assist page of vp {vcpu.index}")
        return self._assist[vcpu.index]

    def _write_os_id(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        self._file.store(vcpu, msr, value)
        page = self._file.value(vcpu, Msr.HYPERCALL)
        if value == 0 and page & ENABLE and self._partition.profile.os_id_zero_disables:
            self._place_hypercall(vcpu, page & ~ENABLE, host)

    def _write_hypercall(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        profile = self._partition.profile
        if self._file.value(vcpu, msr) & LOCKED and not host:
            if profile.locked_faults:
                vcpu.fault(msr, value)
            return
        if not host and self._file.value(vcpu, Msr.GUEST_OS_ID) == 0:
            if profile.os_id_gates_hypercall == "write":
                return
            if profile.os_id_gates_hypercall == "enable":
                value &= ~ENABLE
        self._place_hypercall(vcpu, value, host)

    def _place_hypercall(self, vcpu: Vcpu, value: int, host: bool) -> None:
        covers = self._partition.profile.overlays
        page = put_page(vcpu, Msr.HYPERCALL, value, self.hypercall_page, host=host, covers=covers, outside_faults=True)
        if page is not None and not covers and not host:
            ffi.memmove(page, _CODE, len(_CODE))
        self._file.store(vcpu, Msr.HYPERCALL, value)

    def _write_assist(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        profile = self._partition.profile
        page = put_page(
            vcpu,
            msr,
            value,
            self.assist_page(vcpu),
            host=host,
            covers=profile.overlays,
            outside_faults=profile.page_outside_faults or not profile.overlays,
        )
        if page is not None and not profile.overlays and not host:
            ffi.memmove(page, bytes(profile.assist_cleared_bytes), profile.assist_cleared_bytes)
        self._file.store(vcpu, msr, value)

    def _write_reset(self, _vcpu: Vcpu, _msr: int, value: int, host: bool) -> None:
        self.reset_requested |= bool(value & 1) and not host

    def _write_crash(self, vcpu: Vcpu, _msr: int, value: int, host: bool) -> None:
        if host or not value & CRASH_NOTIFY:
            return
        parameters = tuple(self._file.value(vcpu, Msr.CRASH_P0 + n) for n in range(5))
        message = None
        if value & CRASH_MESSAGE:
            try:
                message = self._partition.memory.read(parameters[3], min(parameters[4], _CRASH_TEXT_MAX))
            except IrqError:
                message = None  # what a crashing guest says of itself need not be true
        self.crashes.append(Crash(vcpu.index, parameters, message))

    def _write_emulation_status(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        if value and not host:
            vcpu.fault(msr, value)
        self._file.store(vcpu, msr, value)

    def _write_invariant(self, vcpu: Vcpu, msr: int, value: int, host: bool) -> None:
        if value & ~1 and not host:
            vcpu.fault(msr, value)
        self._file.store(vcpu, msr, value)

    def reset_vp(self, vcpu: Vcpu) -> None:
        """Take a VP's assist page away and make it zeroes."""
        page = self._assist.pop(vcpu.index, None)
        if page is not None and page.pfn is not None:
            self._partition.memory.overlays.place(page, None)

    def reset(self) -> None:
        """Take the hypercall page away and forget requests and crashes; the registers are reset already."""
        if self.hypercall_page.pfn is not None:
            self._partition.memory.overlays.place(self.hypercall_page, None)
        self.reset_requested = False
        self.crashes.clear()
