"""The registers of each VP's SynIC: SCONTROL, SVERSION, SIEFP, SIMP, EOM and SINT0 to 15 (TLFS; synic.md 2.2 to 2.4).

Values and refusals are here. What a value means for signals and messages is told to who delivers them, in
:attr:`SynicRegisters.changed` and :attr:`SynicRegisters.eom`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vmbusirq.hyperv.registers import Msr
from vmbusirq.limits import SINTS

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["ENABLE", "PAGE_MASK", "SINT_AUTO_EOI", "SINT_MASKED", "SINT_POLLING", "SINT_VECTOR", "SynicRegisters"]

ENABLE: Final = 1
PAGE_MASK: Final = ~0xFFF & (1 << 64) - 1
SINT_VECTOR: Final = 0xFF
SINT_MASKED: Final = 1 << 16
SINT_AUTO_EOI: Final = 1 << 17
SINT_POLLING: Final = 1 << 18
_VECTOR_MIN: Final = 16
_SINT_LAST: Final = Msr.SINT0 + SINTS - 1


class SynicRegisters:
    """The rules of those registers.

    Attributes:
        changed: called as (vcpu, msr, old, new) when SCONTROL, SIEFP, SIMP or a SINT was written, by guest or host,
            and when a reset takes one back; the new value is stored already.
        eom: called with the VP whose guest wrote EOM.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._file = partition.registers
        self.changed: Final[list[Callable[[Vcpu, int, int, int], object]]] = []
        self.eom: Final[list[Callable[[Vcpu], object]]] = []
        serve = self._file.serve
        serve([Msr.SCONTROL, Msr.SIEFP, Msr.SIMP], None, self._store)
        serve([Msr.SVERSION], None, self._write_sversion)
        serve([Msr.EOM], lambda _vcpu, _msr: 0, self._write_eom)
        serve(range(Msr.SINT0, _SINT_LAST + 1), None, self._write_sint)

    def _store(self, vcpu: Vcpu, msr: int, value: int, _host: bool) -> None:
        old = self._file.value(vcpu, msr)
        self._file.store(vcpu, msr, value)
        for heard in self.changed:
            heard(vcpu, msr, old, value)

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
