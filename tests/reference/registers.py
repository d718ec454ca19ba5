"""A plain reading of the rules of a VP's registers, one list of ifs (synic.md 2.2 to 2.5); its twin.

It branches by the profile's name on purpose, and knows nothing of rooms, overlays or tables.
"""

from __future__ import annotations

KVM = ("kvm", "kvm-synic2", "kvm-4.5", "qemu")
PAGES = {0x4000_0001, 0x4000_0073, 0x4000_0082, 0x4000_0083}
SHARED = {0x4000_0000, 0x4000_0001, *range(0x4000_0100, 0x4000_0105), 0x4000_0106, 0x4000_0107, 0x4000_0108}
GP = "#GP"


class Registers:
    """Two or more VPs of one partition; ``read`` and ``write`` return ``GP`` for a fault."""

    def __init__(self, profile: str, memory_bytes: int, cpus: int) -> None:
        self.profile = profile
        self.memory_bytes = memory_bytes
        self.shared: dict[int, int] = {}
        self.vps: list[dict[int, int]] = [{} for _ in range(cpus)]
        self.active = [profile not in KVM] * cpus
        for vp in range(cpus):
            self.reset(vp)

    def reset(self, vp: int) -> None:
        self.vps[vp] = {0x4000_0090 + n: 0x10000 for n in range(16)}
        self.vps[vp][0x4000_0081] = 1
        if self.active[vp] and self.profile in ("kvm", "kvm-synic2", "qemu", "openvmm"):
            self.vps[vp][0x4000_0080] = 1

    def activate(self, vp: int) -> None:
        self.active[vp] = True
        if self.profile in ("kvm", "kvm-synic2", "qemu", "openvmm"):
            self.vps[vp][0x4000_0080] = 1

    def of_synic(self, msr: int) -> bool:
        return 0x4000_0080 <= msr <= 0x4000_0084 or 0x4000_0090 <= msr <= 0x4000_009F

    def known(self, msr: int) -> bool:
        low = msr - 0x4000_0000
        singles = {0, 1, 2, 3, 0x70, 0x73, *range(0x80, 0x85)}
        return low in singles or 0x90 <= low <= 0x9F or 0x100 <= low <= 0x104 or low in (0x106, 0x107, 0x108)

    def read(self, vp: int, msr: int) -> int | str:
        if not self.known(msr) or msr == 0x4000_0070 or (self.of_synic(msr) and not self.active[vp]):
            return GP
        if msr == 0x4000_0002:
            return vp
        if msr in (0x4000_0003, 0x4000_0084):
            return 0
        return (self.shared if msr in SHARED else self.vps[vp]).get(msr, 0)

    def write(self, vp: int, msr: int, value: int, host: bool) -> str | None:
        if not self.known(msr):
            return GP
        if self.of_synic(msr) and not self.active[vp] and (not host or (value and self.profile != "kvm-4.5")):
            return GP
        if msr in (0x4000_0002, 0x4000_0081):
            if not host:
                return GP
            if msr == 0x4000_0081 and self.profile in KVM:
                self.vps[vp][msr] = value
            return None
        if msr in (0x4000_0003, 0x4000_0070, 0x4000_0084):
            return None
        if 0x4000_0090 <= msr <= 0x4000_009F and value & 0xFF < 16 and not host:
            masked = value >> 16 & 1
            if masked and self.profile in ("kvm-4.5", "xen"):
                return GP
            if not masked and self.profile != "openvmm":
                return GP
        if msr == 0x4000_0108 and value and not host:
            return GP
        if msr in PAGES:
            return self.write_page(vp, msr, value, host)
        (self.shared if msr in SHARED else self.vps[vp])[msr] = value
        if msr == 0x4000_0000 and value == 0 and self.profile != "openvmm":
            self.shared[0x4000_0001] = self.shared.get(0x4000_0001, 0) & ~1
        return None

    def write_page(self, vp: int, msr: int, value: int, host: bool) -> str | None:
        hypercall = msr == 0x4000_0001
        if hypercall and not host:
            if self.shared.get(msr, 0) & 2:
                return GP
            if self.shared.get(0x4000_0000, 0) == 0:
                if self.profile in KVM:
                    return None
                if self.profile != "openvmm":
                    value &= ~1
        if self.profile == "openvmm" and value & (0xFFC if hypercall else 0xFFE) and not host:
            return GP
        outside = value & 1 and (value >> 12) * 4096 >= self.memory_bytes
        in_ram = self.profile in (*KVM, "xen")
        if outside and not host:
            if hypercall or (msr == 0x4000_0073 and in_ram):
                return GP
            if self.profile in ("kvm", "kvm-4.5", "openvmm"):
                return GP
        (self.shared if hypercall else self.vps[vp])[msr] = value
        return None
