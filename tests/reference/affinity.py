"""A slow second reading of vmbus.md 4.1 to 4.4 and genirq.md 2.8 and 2.11: where channels are, and what a write does.

No hypervisor, no rings, no steps: one channel after the other, as the tables have it. Results are 0 or an errno.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EBUSY, EINVAL, EIO, EPERM

Version = tuple[int, int]


@dataclass
class Irq:
    """What the IRQ core knows of one channel's IRQ (genirq.md 2.8)."""

    affinity: int
    effective: int = 0
    hint: int = 0
    is_set: bool = False
    started: bool = False


@dataclass
class Move:
    """A MODIFYCHANNEL that the host carries out later."""

    due: int
    relid: int
    opening: int
    vp: int


@dataclass
class Chan:
    """One channel, and the host's half of it.

    Attributes:
        opening: number of the opening, 0 while it is closed.
        vp: whom the host interrupts, -1 while it is closed.
        modifying: the host has begun a move; ``pending``: the VP of the one after it, before 5.3.
        hung: a signal was lost and the ring is not empty: nothing is signalled any more until it is opened anew.
    """

    relid: int
    perf: bool
    target: int
    irq: Irq
    opening: int = 0
    vp: int = -1
    modifying: bool = False
    pending: int | None = None
    hung: bool = False


@dataclass
class Faces:
    """A guest of one NUMA node, its channels and its host.

    Attributes:
        lag: ticks from MODIFYCHANNEL to its effect.
        strict: the IRQ outlives a close, and cannot be requested again (the RFC as posted).
        cursor: of vmbus_irq_set_affinity, one for all.
        marks: CPUs given away to performance channels.
        sent: MODIFYCHANNELs posted.
    """

    cpus: int
    isolated: int
    version: Version
    strict: bool
    lag: int
    now: int = 0
    online: int = 0
    cursor: int = 0
    marks: int = 0
    sent: int = 0
    openings: int = 0
    channels: dict[int, Chan] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.online = self.possible

    @property
    def possible(self) -> int:
        return (1 << self.cpus) - 1

    # ---- 4.1: offers, and who is marked

    def offer(self, relid: int, perf: bool, device: tuple[int, ...] = ()) -> None:
        """Add a channel; ``device``: relids of the channels that its device has already."""
        target = self.first_cpu({self.channels[other].target for other in device}) if perf else 0
        self.channels[relid] = Chan(relid, perf, target, Irq(self.possible))

    def first_cpu(self, used: set[int]) -> int:
        """Choose a CPU as init_vp_index does, for a sub-channel index below the number of CPUs.

        Where it would search for ever, because all that is left is isolated, CPU 0 is taken (docs/deviations.md).
        """
        ncpu = self.online.bit_count()
        usable = [cpu for cpu in range(self.cpus) if (self.online & ~self.isolated) >> cpu & 1]
        if not usable:
            self.marks |= 1
            return 0
        for attempt in range(1, ncpu + 2):
            if all(self.marks >> cpu & 1 for cpu in usable):
                self.marks = 0
            target = next(cpu for cpu in usable if not self.marks >> cpu & 1)
            self.marks |= 1 << target
            if attempt > ncpu or target not in used:
                break
        return target

    def unmark(self, cpu: int) -> None:
        if not any(other.perf and other.target == cpu for other in self.channels.values()):
            self.marks &= ~(1 << cpu)

    def remove(self, relid: int) -> None:
        self.close(relid)
        channel = self.channels.pop(relid)
        if channel.perf:
            self.unmark(channel.target)

    # ---- open and close

    def open(self, relid: int) -> int:
        """Request the IRQ, set affinity and hint, whose errors nobody sees, and tell the host."""
        channel, irq = self.channels[relid], self.channels[relid].irq
        if irq.started:
            return EBUSY
        irq.started = True
        wanted = self.possible
        if irq.is_set and irq.affinity & self.online:
            wanted = irq.affinity
        else:
            irq.is_set = False
        self.do_set_affinity(channel, wanted & self.online or self.online)
        irq.hint = 1 << channel.target
        self.set_affinity(channel, irq.hint)
        self.openings += 1
        channel.opening, channel.vp, channel.hung = self.openings, channel.target, False
        return 0

    def close(self, relid: int) -> None:
        channel = self.channels[relid]
        channel.opening, channel.vp, channel.modifying, channel.pending = 0, -1, False, None
        if not self.strict:
            channel.irq.started, channel.irq.hint = False, 0

    # ---- 4.2 and 4.3: writes

    def write_cpu(self, relid: int, number: int | None) -> int:
        """Write to the cpu file; None: what sscanf finds no number in."""
        if self.version < (4, 1) or number is None:
            return EIO
        if number >= self.cpus:
            return EINVAL
        return self.set_affinity(self.channels[relid], 1 << number)

    def write_mask(self, relid: int, mask: int) -> int:
        """Write a mask that could be parsed to smp_affinity or smp_affinity_list."""
        if not mask & self.online:
            return EINVAL
        return self.set_affinity(self.channels[relid], mask)

    def set_affinity(self, channel: Chan, mask: int) -> int:
        error = self.do_set_affinity(channel, mask)
        channel.irq.is_set = True
        return error

    def do_set_affinity(self, channel: Chan, mask: int) -> int:
        error = self.chip(channel, mask & self.online) if mask & self.online else EINVAL
        if not error:
            channel.irq.affinity = mask
        return error

    def chip(self, channel: Chan, mask: int) -> int:
        """Do what vmbus_irq_set_affinity does; a SynIC is on where its CPU is online."""
        mask &= ~self.isolated
        if not mask >> channel.target & 1:
            if not mask:
                return EINVAL
            allowed = [cpu for cpu in range(self.cpus) if mask >> cpu & 1]
            self.cursor = next((cpu for cpu in allowed if cpu > self.cursor), allowed[0])
            if not channel.opening:
                return EIO
            if self.version < (4, 1):
                return EINVAL
            self.move(channel, self.cursor)
        channel.irq.effective = 1 << channel.target
        return 0

    def move(self, channel: Chan, cpu: int) -> None:
        self.sent += 1
        self.host_takes(channel, cpu)
        old, channel.target = channel.target, cpu
        if channel.perf:
            self.marks |= 1 << cpu
            self.unmark(old)

    # ---- 4.4: the host

    def host_takes(self, channel: Chan, vp: int) -> None:
        if not channel.modifying:
            channel.modifying = True
            self.moves.append(Move(self.now + self.lag, channel.relid, channel.opening, vp))
            self.host_until(self.now)
        elif self.version < (5, 3):
            channel.pending = vp

    def host_until(self, now: int) -> None:
        """Let the host do what is due; what it begins then takes its time from there."""
        while self.moves and min(move.due for move in self.moves) <= now:
            move = min(self.moves, key=lambda move: move.due)
            self.moves.remove(move)
            self.now = max(self.now, move.due)
            channel = self.channels.get(move.relid)
            if channel is None or channel.opening != move.opening:
                continue
            channel.vp, channel.modifying = move.vp, False
            if channel.pending is not None:
                vp, channel.pending = channel.pending, None
                self.host_takes(channel, vp)
        self.now = max(self.now, now)

    def signalled(self, relid: int) -> int | None:
        """Write to an empty ring and signal; return the CPU that takes the interrupt, None if nobody does."""
        channel = self.channels[relid]
        if channel.hung or not self.online >> channel.vp & 1:
            channel.hung = True
            return None
        return channel.vp

    # ---- 4.5: CPUs

    def refuses_offline(self, cpu: int) -> int:
        """Return the errno of taking a CPU offline; CPU 0 of x86 never can."""
        if cpu == 0:
            return EPERM
        return EBUSY if any(channel.target == cpu for channel in self.channels.values()) else 0

    def gone_offline(self, cpu: int, relids: list[int]) -> None:
        """Take a CPU out; genirq moves an IRQ without effective CPU by its affinity, if that has this one.

        ``relids``: all, in the order of their IRQ numbers.
        """
        if not self.online >> cpu & 1:
            return
        self.online &= ~(1 << cpu)
        for channel in map(self.channels.__getitem__, relids):  # the CPU of an effective mask is refused before
            wanted = channel.irq.affinity
            if channel.irq.started and not channel.irq.effective and wanted >> cpu & 1:
                self.do_set_affinity(channel, wanted if wanted & self.online else self.online)
