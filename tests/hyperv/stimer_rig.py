"""A VP that programs its synthetic timers by register, and reads its slots out of guest memory (synic.md 16)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vmbusirq.core import Core
from vmbusirq.hyperv.cpuid import Features
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.profiles import Profile
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.vcpu import Vcpu

SIMP = 0x7000
SIEFP = 0x8000
VECTOR = 0x51
ENABLE, PERIODIC, LAZY, AUTO, DIRECT = 1, 2, 4, 8, 1 << 12
SINT4 = 4 << 16
TIMER_EXPIRED = 0x8000_0010
PROFILES = ("tlfs", "kvm", "openvmm", "xen")


@dataclass(frozen=True)
class Tick:
    """A timer message."""

    index: int
    expiration: int
    delivery: int


class TimerRig:
    """Two VPs; on each SINT4 has vector 0x51, and whoever gets a vector notes it and ends it."""

    def __init__(self, profile: str | Profile = "tlfs", *, start: int = 1000, features: Features | None = None) -> None:
        self.partition = Partition(Core(2, nr_irqs_max=1), GuestMemory(1 << 20), profile=profile, features=features)
        self.vectors: list[tuple[int, int]] = []
        for vcpu in self.partition.vcpus:
            if not vcpu.synic_active:
                vcpu.activate_synic()
            for vector in (VECTOR, 0x61):
                vcpu.apic.handlers[vector] = self._handler(vector)
            vcpu.wrmsr(Msr.SCONTROL, 1)
            vcpu.wrmsr(Msr.SIMP, SIMP + 0x2000 * vcpu.index | 1)
            vcpu.wrmsr(Msr.SIEFP, SIEFP + 0x2000 * vcpu.index | 1)
            vcpu.wrmsr(Msr.SINT0 + 4, VECTOR)
        self.partition.clock.advance_to(start)
        self.partition.settle()

    def _handler(self, vector: int):  # type: ignore[no-untyped-def]
        def handle(vcpu: Vcpu) -> None:
            self.vectors.append((self.now, vector))
            vcpu.apic.eoi()

        return handle

    @property
    def now(self) -> int:
        return self.partition.clock.now

    def config(self, timer: int, value: int, vp: int = 0, *, host: bool = False) -> None:
        self.partition.vcpus[vp].wrmsr(Msr.STIMER0_CONFIG + 2 * timer, value, host=host)

    def count(self, timer: int, value: int, vp: int = 0, *, host: bool = False) -> None:
        self.partition.vcpus[vp].wrmsr(Msr.STIMER0_COUNT + 2 * timer, value, host=host)

    def read(self, timer: int, vp: int = 0) -> int:
        return self.partition.vcpus[vp].rdmsr(Msr.STIMER0_CONFIG + 2 * timer)

    def enabled(self, timer: int, vp: int = 0) -> bool:
        return bool(self.read(timer, vp) & ENABLE)

    def to(self, tick: int) -> None:
        """Let time pass, and the guest run at each tick at which something is due."""
        clock = self.partition.clock
        while clock.next_due is not None and clock.next_due <= tick:
            clock.advance_to_next()
            self.partition.settle()
        clock.advance_to(tick)
        self.partition.settle()

    def slot(self, sint: int = 4, vp: int = 0) -> tuple[int, int, Tick | None]:
        """Return type, pending bit, and the timer message."""
        data = self.partition.memory.read(SIMP + 0x2000 * vp + sint * 256, 256)
        kind, size, flags = struct.unpack_from("<IBB", data)
        index, _zero, expiration, delivery = struct.unpack_from("<IIQQ", data, 16)
        if kind != TIMER_EXPIRED:
            return kind, flags & 1, None
        assert (24, 0) == (size, _zero)
        return kind, flags & 1, Tick(index, expiration, delivery)

    def fill(self, sint: int = 4, vp: int = 0) -> None:
        """Put a message of somebody else into the slot."""
        self.partition.memory.write(SIMP + 0x2000 * vp + sint * 256, struct.pack("<IBBH", 1, 0, 0, 0))

    def free(self, sint: int = 4, vp: int = 0) -> Tick | None:
        """Take the message out of the slot, as a guest does: EOM only if the pending bit is set."""
        tick = self.slot(sint, vp)[2]
        base = SIMP + 0x2000 * vp + sint * 256
        self.partition.memory.write(base, bytes(4))
        if self.partition.memory.read(base + 5, 1)[0] & 1:
            self.eom(vp)
        self.partition.settle()
        return tick

    def eom(self, vp: int = 0) -> None:
        self.partition.vcpus[vp].wrmsr(Msr.EOM, 0)
        self.partition.settle()
