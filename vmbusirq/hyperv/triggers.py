"""What a guest did that its hypervisor answers: EOM, EOI, a SynIC register, a vector for who handles it.

The data plane leaves a notice (``vi_take_notices()``); nobody looks for a message or a vector without one. Each call
brings kinds and VPs together, so looking at these VPs for these kinds misses nothing (``csrc/hyperv/lapic.c``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import check
from vmbusirq.hyperv.apic import callback_vector

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition

__all__ = ["Triggers"]


class Triggers:
    """The notices of one partition."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._words = ffi.new("uint64_t[]", lib.VI_CPU_WORDS)
        self._callback = callback_vector(partition.core.arch)
        self._eoms: dict[int, int] = {}
        self._eois: dict[int, int] = {}
        self._vectors: set[int] = set()

    def take(self) -> bool:
        """Do what follows from everything since the last call; True if there was anything."""
        what = lib.vi_take_notices(self._partition.core.handle, self._words)
        if not what:
            return False
        moved = False
        if what & (lib.VI_NOTICE_EOM | lib.VI_NOTICE_EOI | lib.VI_NOTICE_VECTOR):
            for vp in self._vps():
                moved |= self._look(vp, what)
        if what & lib.VI_NOTICE_REGISTERS:
            moved |= self._partition.retry_posts()
        return moved

    def run_vectors(self) -> bool:
        """Let the guest's VPs take vectors that have a handler; True if one did."""
        moved = False
        for vp in sorted(self._vectors):
            apic = self._partition.vcpus[vp].apic
            moved |= apic.run_handlers() > 0
            if not apic.irr & ~(1 << self._callback):
                self._vectors.discard(vp)
        return moved

    def _vps(self) -> list[int]:
        found = []
        for number, word in enumerate(ffi.unpack(self._words, lib.VI_CPU_WORDS)):
            while word:
                bit = word & -word
                found.append(number * 64 + bit.bit_length() - 1)
                word ^= bit
        return found

    def _look(self, vp: int, what: int) -> bool:
        machine, apic = self._partition.core.handle, self._partition.vcpus[vp].apic
        if what & lib.VI_NOTICE_VECTOR:
            self._vectors.add(vp)
        ended = int(lib.vi_lapic_eoi_count(machine, vp))
        moved = ended != self._eois.get(vp, 0)
        if moved:
            self._eois[vp] = ended
            apic.ended(self._callback)
            if not apic.on_eoi and not self._partition.messages.waiting(vp):
                check(lib.vi_lapic_watch_eoi(machine, vp, False), "triggers: no such VP")
        while self._eoms.get(vp, 0) != lib.vi_synic_eom_count(machine, vp):
            self._eoms[vp] = self._eoms.get(vp, 0) + 1
            apic.eom_written()
            moved = True
        return moved
