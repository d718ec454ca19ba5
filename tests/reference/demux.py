"""A slow second reading of the demultiplexer: flags -> relids -> counts, for designs legacy and rfc (vmbus.md 3).

The page is a set of numbers, the domain a dict, a scan a sorted loop. No engine, no ownership, no words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Channel:
    """What the scan finds behind a relid."""

    irq: int
    callback: bool = True
    rescind: bool = False
    action: bool = True
    disabled: bool = False
    pending: bool = False
    interrupts: int = 0


@dataclass
class Demux:
    """All CPUs of a guest. ``flags``, ``doorbell`` and ``message`` are by CPU; counts by (irq, cpu) or cpu."""

    design: str
    cpus: int
    channels: dict[int, Channel] = field(default_factory=dict)
    flags: list[set[int]] = field(default_factory=list)
    doorbell: list[bool] = field(default_factory=list)
    message: list[bool] = field(default_factory=list)
    cnt: Counter[tuple[int, int]] = field(default_factory=Counter)
    irqs_sum: Counter[int] = field(default_factory=Counter)
    hyp: Counter[int] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.flags = [set() for _ in range(self.cpus)]
        self.doorbell = [False] * self.cpus
        self.message = [False] * self.cpus

    def signal(self, cpu: int, flag: int) -> int:
        """Set a flag; 1 if it was clear, and only then is the vector requested."""
        if flag in self.flags[cpu]:
            return 0
        self.flags[cpu].add(flag)
        self.doorbell[cpu] = True
        return 1

    def post(self, cpu: int) -> bool:
        """Fill the message slot; False if it is full."""
        if self.message[cpu]:
            return False
        self.message[cpu] = self.doorbell[cpu] = True
        return True

    def run(self, cpu: int) -> bool:
        """Take the vector: every flag in ascending order, then the slot, which is the top level's own interrupt."""
        if not self.doorbell[cpu]:
            return False
        self.doorbell[cpu] = False
        if self.design == "legacy":
            self.hyp[cpu] += 1
        flags, self.flags[cpu] = sorted(self.flags[cpu]), set()
        for flag in flags:
            self._one(cpu, flag)
        if self.message[cpu]:
            self.message[cpu] = False
            if self.design == "rfc":
                self.hyp[cpu] += 1
        return True

    def _one(self, cpu: int, relid: int) -> None:
        channel = self.channels.get(relid)
        if relid == 0:
            self.lost["flag_zero"] += 1
        elif channel is None:
            self.lost["unmapped"] += 1
        elif channel.rescind:
            self.lost["rescinded"] += 1
        elif self.design == "rfc":
            self.handle_irq(cpu, channel)
        else:
            self._arrive(channel)

    def handle_irq(self, cpu: int, channel: Channel) -> None:
        """Run handle_simple_irq() and vmbus_chan_handler()."""
        if channel.disabled or not channel.action:
            channel.pending = True
            return
        channel.pending = False
        self.cnt[channel.irq, cpu] += 1
        self.irqs_sum[cpu] += 1
        self._arrive(channel)

    def _arrive(self, channel: Channel) -> None:
        if channel.callback:
            channel.interrupts += 1
        else:
            self.lost["no_callback"] += 1
