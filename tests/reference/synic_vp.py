"""One VP's SynIC and interrupt controller, read plainly from synic.md 3, 5 and 6 and the Intel SDM: no sharing of code.

Everything is looked up when it is needed; nothing is worked out ahead, and nothing is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MASKED, AUTO_EOI, POLLING = 1 << 16, 1 << 17, 1 << 18


@dataclass
class Slot:
    type: int = 0
    payload: bytes = b""
    pending: bool = False


@dataclass
class ReferenceVp:
    """What the tables of synic.md say, for one column of them: ``T``, ``K`` (with QEMU's posts) or ``O``."""

    column: str
    control: int = 1
    simp: int = 1
    siefp: int = 1
    sints: list[int] = field(default_factory=lambda: [MASKED] * 16)
    slots: list[Slot] = field(default_factory=lambda: [Slot() for _ in range(16)])
    flags: list[set[int]] = field(default_factory=lambda: [set() for _ in range(16)])
    queues: list[list[tuple[int, bytes]]] = field(default_factory=lambda: [[] for _ in range(16)])
    irr: set[int] = field(default_factory=set)
    isr: set[int] = field(default_factory=set)
    tpr: int = 0
    interrupts: bool = True
    apic: bool = True

    # ---- interrupts

    def request(self, vector: int) -> bool:
        if not self.apic or vector < 16:
            return False
        self.irr.add(vector)
        return True

    def interrupt_of(self, sint: int) -> None:
        value = self.sints[sint]
        if value & MASKED:
            return
        if value & POLLING and self.column in ("T", "O"):
            return
        self.request(value & 0xFF)

    @property
    def ppr(self) -> int:
        service = max(self.isr, default=0) & 0xF0
        return self.tpr if self.tpr & 0xF0 >= service else service

    def accept(self) -> int | None:
        if not self.irr or not self.interrupts:
            return None
        vector = max(self.irr)
        if vector >> 4 <= self.ppr >> 4:
            return None
        self.irr.remove(vector)
        mine = [value for value in self.sints if not value & MASKED and value & 0xFF == vector]
        if not any(value & AUTO_EOI for value in mine):
            self.isr.add(vector)
        return vector

    def eoi(self) -> int | None:
        if not self.isr:
            return None
        vector = max(self.isr)
        self.isr.remove(vector)
        for sint, value in enumerate(self.sints):
            if not value & MASKED and value & 0xFF == vector:
                self.examine(sint)
        return vector

    # ---- messages

    def post(self, sint: int, message_type: int, payload: bytes) -> int:
        off = not self.simp and self.column != "O"
        if off or (not self.control and self.column == "T"):
            return 0x18
        self.queues[sint].append((message_type, payload))
        self.examine(sint)
        return 0

    def examine(self, sint: int) -> None:
        queue, slot = self.queues[sint], self.slots[sint]
        if not queue:
            return
        if self.column == "O" and self.sints[sint] & MASKED:
            queue.pop(0)
            return
        if (not self.simp and self.column != "O") or (not self.control and self.column == "T"):
            return
        if slot.type:
            slot.pending = True
            return
        message_type, payload = queue.pop(0)
        self.slots[sint] = Slot(message_type, payload, bool(queue))
        self.interrupt_of(sint)

    def free(self, sint: int) -> None:
        self.slots[sint].type = 0

    def eom(self) -> None:
        if self.column != "O":
            for sint in range(16):
                self.examine(sint)

    def enter(self) -> None:
        """The VP is entered: where EOM means nothing, what waits is looked at, until nothing moves."""
        if self.column == "O":
            for sint in range(16):
                before = -1
                while before != len(self.queues[sint]):
                    before = len(self.queues[sint])
                    self.examine(sint)

    # ---- flags

    def signal(self, sint: int, flag: int) -> int:
        refused = 0 if self.column == "O" else 0x18
        if flag >= 2048:
            return 5
        if not self.control or (not self.siefp and self.column != "O"):
            return refused
        if self.sints[sint] & MASKED and self.column != "K":
            return refused
        if flag not in self.flags[sint]:
            self.flags[sint].add(flag)
            self.interrupt_of(sint)
        return 0
