"""A partition without a guest: registers written, slots and flags looked at by hand, as synic.md 16 has it.

Every VP has its SynIC enabled, SIM and SIEF enabled, SINT4 on vector 0x51 unmasked.
"""

from __future__ import annotations

from typing import Any

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.messages import GuestMessagePort
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.ports import GuestEventPort
from vmbusirq.hyperv.profiles import PROFILES
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.vcpu import Vcpu

VECTOR = 0x51
SINT = 4
MASKED, AUTO_EOI, POLLING = 1 << 16, 1 << 17, 1 << 18


class VpRig:
    """The partition, and what its guest sees and does."""

    def __init__(self, profile: str = "tlfs", cpus: int = 2) -> None:
        self.memory = GuestMemory(1 << 20)
        self.partition = Partition(Core(cpus, nr_irqs_max=1), self.memory, profile=profile)
        self._event_ports: dict[tuple[int, int], GuestEventPort] = {}
        self.depth = PROFILES[profile].posted_depth
        for vcpu in self.partition.vcpus:
            vcpu.activate_synic()
            self.pages(vcpu.index)
            vcpu.wrmsr(Msr.SCONTROL, 1)
            self.sint(VECTOR, vp=vcpu.index)

    # ---- the guest

    def vcpu(self, vp: int = 0) -> Vcpu:
        return self.partition.vcpus[vp]

    def pages(self, vp: int = 0) -> None:
        """Enable both pages, wherever they were."""
        for number, msr in enumerate((Msr.SIMP, Msr.SIEFP)):
            self.vcpu(vp).wrmsr(msr, (1 + 2 * vp + number) << 12 | 1)

    def sint(self, value: int, sint: int = SINT, vp: int = 0) -> None:
        self.vcpu(vp).wrmsr(Msr.SINT0 + sint, value)

    def slot(self, sint: int = SINT, vp: int = 0) -> Any:
        return lib.vi_synic_slot(self.partition.core.handle, vp, sint)

    def flags(self, sint: int = SINT, vp: int = 0) -> tuple[int, ...]:
        return self.partition.synic.flags_set(vp, sint)

    def area(self, sint: int, vp: int = 0) -> bytes:
        return bytes(ffi.buffer(lib.vi_synic_flags(self.partition.core.handle, vp, sint), 256))

    def clear_flag(self, flag: int, sint: int = SINT, vp: int = 0) -> None:
        words = lib.vi_synic_flags(self.partition.core.handle, vp, sint)
        words[flag // 64] &= ~(1 << flag % 64)

    def message(self, sint: int = SINT, vp: int = 0) -> bytes | None:
        """The payload in a slot, None if it is empty."""
        slot = self.slot(sint, vp)
        return bytes(slot.payload)[: slot.payload_size] if slot.type else None

    def pending(self, sint: int = SINT, vp: int = 0) -> int:
        return int(self.slot(sint, vp).flags & 1)

    def free(self, sint: int = SINT, vp: int = 0) -> bytes | None:
        """Take the message out and free the slot; no EOM."""
        payload = self.message(sint, vp)
        self.slot(sint, vp).type = 0
        return payload

    def eom(self, vp: int = 0) -> None:
        """Write EOM; enter the VP again, which is when OpenVMM looks."""
        self.vcpu(vp).wrmsr(Msr.EOM, 0)
        self.partition.settle()

    def taken(self, vp: int = 0) -> list[int]:
        """Take all that can be taken, each ended by an EOI if it is in service: the vectors in order."""
        apic, vectors = self.vcpu(vp).apic, []
        while (vector := apic.accept()) is not None:
            vectors.append(vector)
            if apic.isr:
                apic.eoi()
        return vectors

    def take_without_eoi(self, vp: int = 0) -> int | None:
        return self.vcpu(vp).apic.accept()

    # ---- the host

    def post(self, payload: bytes, sint: int = SINT, vp: int = 0) -> HvStatus:
        return self.partition.messages.post(vp, sint, 1, payload)

    def port(self, sint: int = SINT, vp: int = 0, port_id: int = 7) -> GuestMessagePort:
        return GuestMessagePort(self.partition.messages, port_id, vp, sint, self.depth)

    def event_port(self, sint: int = SINT, vp: int = 0) -> GuestEventPort:
        """A port for all flags of a SINT; it is made once."""
        place = sint, vp
        if place not in self._event_ports:
            port_id = 100 + len(self._event_ports)
            self._event_ports[place] = self.partition.create_guest_event_port(port_id, vp, sint, 0, 2048)
        return self._event_ports[place]

    def signal(self, flag: int, sint: int = SINT, vp: int = 0) -> HvStatus:
        return self.event_port(sint, vp).signal(flag)

    def waiting(self, sint: int | None = None, vp: int = 0) -> int:
        return self.partition.messages.waiting(vp, sint)
