"""A VP's local interrupt controller: requested vectors, those in service, priorities, EOI (Intel SDM 3, chapter 11).

Edge-triggered fixed interrupts only, as SINTs and direct-mode timers ask for. What any thread may set, the IRR, lies
in C (``csrc/hyperv/lapic.c``); what only the VP changes is here. The callback vector of VMBus is taken by the data
plane itself, which knows of this controller only whether it must wait; in service it is never seen from here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Self

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, check
from vmbusirq.hyperv.registers import Msr

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["LocalApic", "callback_vector", "serve_apic"]

VECTORS: Final[int] = lib.VI_VECTORS
VECTOR_MIN: Final[int] = lib.VI_VECTOR_MIN
_RUNS_MAX: Final = 1 << 16
_WORD: Final = 64
_ICR_LOGICAL: Final = 1 << 11
_ICR_ALL: Final = 0xFF


def callback_vector(arch: str) -> int:
    """Return the vector by which VMBus calls a guest of this architecture: on arm64 the INTID of its PPI."""
    return int(lib.VI_VECTOR_CALLBACK if arch == "x86" else lib.VI_INTID_CALLBACK)


def bitmap(words: object) -> int:
    """Return four 64-bit words of C as one number, bit v for vector v."""
    return sum(int(word) << number * _WORD for number, word in enumerate(ffi.unpack(words, lib.VI_IRR_WORDS)))


def serve_apic(partition: Partition) -> None:
    """Put the rules of the EOI, ICR and TPR registers in force; of TPR the low 8 bits count, as in KVM.

    A host restores what ICR and TPR hold: nothing is sent by that, and nothing ended.
    """
    serve = partition.registers.serve

    def write_eoi(vcpu: Vcpu, _msr: int, _value: int, host: bool) -> None:
        if not host:
            vcpu.apic.eoi()

    def write_icr(vcpu: Vcpu, _msr: int, value: int, host: bool) -> None:
        if host:
            vcpu.apic.icr = value
        else:
            vcpu.apic.send(value)

    def write_tpr(vcpu: Vcpu, _msr: int, value: int, _host: bool) -> None:
        vcpu.apic.tpr = value & 0xFF

    serve([Msr.EOI], None, write_eoi)
    serve([Msr.ICR], lambda vcpu, _msr: vcpu.apic.icr, write_icr)
    serve([Msr.TPR], lambda vcpu, _msr: vcpu.apic.tpr, write_tpr)


def _class_of(vector: int) -> int:
    return vector >> 4


class LocalApic:
    """One VP's controller.

    Attributes:
        handlers: what the guest runs for a vector, called with the VP by :meth:`Partition.settle` once the vector has
            been accepted; it ends with :meth:`eoi`, unless the vector is auto-EOI. Vectors without one stay requested.
        on_eoi: called with the VP and the vector whose service has ended. EOIs that the data plane writes for the
            callback vector are told once per settle, however many there were.
        on_eom: called with the VP for each write of EOM.
    """

    __slots__ = ("_enabled", "_icr", "_interrupts", "_isr", "_tpr", "_vcpu", "handlers", "on_eoi", "on_eom")

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.handlers: Final[dict[int, Callable[[Vcpu], object]]] = {}
        self.on_eoi: Final[list[Callable[[Vcpu, int], object]]] = []
        self.on_eom: Final[list[Callable[[Vcpu], object]]] = []
        self._isr = self._tpr = self._icr = 0
        self._enabled = self._interrupts = True

    # ---- registers

    @property
    def irr(self) -> int:
        """Requested vectors, bit v for vector v; the callback vector's doorbell among them."""
        words = ffi.new("uint64_t[]", lib.VI_IRR_WORDS)
        check(lib.vi_lapic_irr(self._partition.core.handle, self._vcpu.index, words), "apic: no such VP")
        return bitmap(words)

    @property
    def isr(self) -> int:
        """Vectors in service."""
        return self._isr

    @property
    def tpr(self) -> int:
        """Task priority, 0 to 255. EINVAL: more than 8 bits."""
        return self._tpr

    @tpr.setter
    def tpr(self, value: int) -> None:
        if not 0 <= value <= 0xFF:
            raise IrqError(errno.EINVAL, f"apic: a task priority has 8 bits, not {value:#x} (EINVAL)")
        self._tpr = value
        self._priority_changed()

    @property
    def ppr(self) -> int:
        """Processor priority: the task priority, or the class of what is in service if that is higher."""
        serviced = _class_of(self._isr.bit_length() - 1) if self._isr else 0
        return self._tpr if _class_of(self._tpr) >= serviced else serviced << 4

    @property
    def enabled(self) -> bool:
        """Software enable (bit 8 of the spurious vector register); off, requests are dropped, not kept.

        True from the start: a guest's boot up to its APIC driver is not modelled.
        """
        return self._enabled

    @enabled.setter
    def enabled(self, on: bool) -> None:
        self._enabled = bool(on)
        check(lib.vi_lapic_enable(self._partition.core.handle, self._vcpu.index, self._enabled), "apic: no such VP")

    @property
    def interrupts_enabled(self) -> bool:
        """RFLAGS.IF of the VP; off, vectors wait in the IRR."""
        return self._interrupts

    @interrupts_enabled.setter
    def interrupts_enabled(self, on: bool) -> None:
        self._interrupts = bool(on)
        self._priority_changed()

    @property
    def icr(self) -> int:
        """The interrupt command register as last written, high half above the low one; setting it sends nothing."""
        return self._icr

    @icr.setter
    def icr(self, value: int) -> None:
        self._icr = value

    # ---- requests

    def request(self, vector: int) -> bool:
        """Ask for an edge-triggered fixed interrupt; a vector that is requested already coalesces.

        Returns:
            False: dropped, because the APIC is software-disabled or the vector below 16.
        Raises:
            IrqError: EINVAL, a vector has 8 bits.
        """
        result = lib.vi_lapic_request(self._partition.core.handle, self._vcpu.index, vector & 0xFFFF_FFFF)
        return bool(check(result, f"apic: vp {self._vcpu.index} has no vector {vector}; they have 8 bits"))

    def send(self, icr: int) -> int:
        """Write ICR: a fixed interrupt to VPs by APIC id, which is the VP index, or by shorthand.

        Other delivery modes (NMI, INIT, SIPI) and logical destinations are stored and send nothing.

        Returns:
            How many VPs took the request.
        """
        self._icr = icr
        if icr >> 8 & 7 not in (0, 1) or (icr & _ICR_LOGICAL and not icr >> 18 & 3):
            return 0
        return sum(vcpu.apic.request(icr & 0xFF) for vcpu in self._targets(icr))

    def _targets(self, icr: int) -> list[Vcpu]:
        shorthand, destination = icr >> 18 & 3, icr >> 56
        everyone = list(self._partition.vcpus)
        if shorthand == 1:
            return [self._vcpu]
        if shorthand or destination == _ICR_ALL:
            return [vcpu for vcpu in everyone if shorthand != 3 or vcpu is not self._vcpu]
        return everyone[destination : destination + 1]

    # ---- the VP takes and ends them

    def acceptable(self) -> int | None:
        """Return the vector that the VP would take now: the highest requested one above its priority."""
        return self._best(self.irr)

    def accept(self) -> int | None:
        """Take that vector: IRR to ISR, or out of the IRR alone if the vector is auto-EOI (synic.md 3)."""
        vector = self.acceptable()
        if vector is not None:
            self._take(vector)
        return vector

    def eoi(self) -> int | None:
        """End the highest vector in service, and look at the message queues of its SINTs; None: nothing was."""
        if not self._isr:
            return None
        vector = self._isr.bit_length() - 1
        self._isr ^= 1 << vector
        self._priority_changed()
        self.ended(vector)
        return vector

    def eom(self) -> None:
        """Write EOM: the queues of all SINTs of this VP are looked at, each moves one message at most."""
        check(lib.vi_synic_write_eom(self._partition.core.handle, self._vcpu.index), "apic: no such VP")
        self._partition.triggers.take()

    def run_handlers(self) -> int:
        """Take and handle what has a handler, highest vector first; return how many. ELOOP: there is no end to it."""
        for runs in range(_RUNS_MAX):
            vector = self._best(self.irr & self._handled) if self._interrupts else None
            if vector is None:
                return runs
            self._take(vector)
            self.handlers[vector](self._vcpu)
        raise IrqError(errno.ELOOP, f"vp {self._vcpu.index}: a vector requests itself for ever (ELOOP)")

    def ended(self, vector: int) -> None:
        """The service of ``vector`` has ended by an EOI: do what follows from that."""
        self._partition.messages.eoi(self._vcpu.index, vector)
        for heard in tuple(self.on_eoi):
            heard(self._vcpu, vector)

    def eom_written(self) -> None:
        """EOM was written: do what follows from that."""
        self._partition.messages.eom(self._vcpu.index)
        for heard in tuple(self.on_eom):
            heard(self._vcpu)

    # ---- facts for who virtualizes it (seed: KVM, 2015)

    @property
    def eoi_exit_bitmap(self) -> int:
        """Vectors whose EOI must reach the hypervisor: those of all unmasked SINTs, auto-EOI or not."""
        return bitmap(self._partition.synic.registers(self._vcpu.index).vectors)

    @property
    def auto_eoi_vectors(self) -> int:
        """Vectors of unmasked auto-EOI SINTs: hardware would leave them in service, so they are never posted."""
        return bitmap(self._partition.synic.registers(self._vcpu.index).auto_eoi)

    def reset(self) -> Self:
        """Forget requests, services, priority and ICR; handlers and hooks stay. Returns itself."""
        for vector in range(VECTORS):
            if self.irr >> vector & 1:
                check(lib.vi_lapic_clear(self._partition.core.handle, self._vcpu.index, vector), "apic: no such VP")
        self._isr = self._tpr = self._icr = 0
        self.interrupts_enabled = True
        if not self._enabled:
            self.enabled = True
        return self

    @property
    def _partition(self) -> Partition:
        return self._vcpu.partition

    @property
    def _handled(self) -> int:
        return sum(1 << vector for vector in self.handlers)

    def _best(self, requested: int) -> int | None:
        if not requested or not self._interrupts:
            return None
        vector = requested.bit_length() - 1
        return vector if _class_of(vector) > _class_of(self.ppr) else None

    def _take(self, vector: int) -> None:
        check(lib.vi_lapic_clear(self._partition.core.handle, self._vcpu.index, vector), "apic: no such VP")
        if not self.auto_eoi_vectors >> vector & 1:
            self._isr |= 1 << vector
            self._priority_changed()

    def _priority_changed(self) -> None:
        held = not self._interrupts or _class_of(callback_vector(self._partition.core.arch)) <= _class_of(self.ppr)
        check(lib.vi_lapic_hold(self._partition.core.handle, self._vcpu.index, held), "apic: no such VP")
