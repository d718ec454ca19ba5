"""One interrupt, step by step, from a trace of the real run: who did it, who does it in Linux, what moved.

Before the first step and after each one all counters that have to do with the channel are read; what differs is what
the step did. So an explanation cannot name a counter that did not move, nor leave out one that did.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbusirq._ffi import lib
from vmbusirq.cpumask import format_pbl
from vmbusirq.errors import IrqError
from vmbusirq.lab.journey import HOST, Place, Setting, tell
from vmbusirq.lab.trace import Event, tracing
from vmbusirq.machine import Machine

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel
    from vmbusirq.vmbus.channel import Channel

__all__ = ["STATES", "Explanation", "Moved", "Step", "explain", "prepare"]

Snapshot = dict[str, int]


@dataclass(frozen=True, slots=True)
class Moved:
    """A counter, an index or a bit of state that one step has changed."""

    counter: str
    before: int
    after: int

    def __str__(self) -> str:
        if max(self.before, self.after) >= 1 << 32:  # a sum, which says nothing as a number
            return f"{self.counter}: {self.before:#x} -> {self.after:#x}"
        return f"{self.counter}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        number: from 1.
        where: ``host``, ``hypervisor``, or a CPU with its context.
        what: what happens, in words.
        places: the function that reports the step, then those that do its work.
        kernel: file and function of Linux that do the same, or the part of the TLFS.
        moved: what differs from the step before.
    """

    number: int
    where: str
    what: str
    places: tuple[Place, ...]
    kernel: str
    moved: tuple[Moved, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """All steps from the host's write to the end, of one packet on one channel.

    Attributes:
        relid, name, irq, mode: the channel; IRQ 0: it has none.
        state: how the channel stood when the host wrote, see :data:`STATES`.
        target, cpu: the CPU that the guest wants, and the one that the host signalled.
        scenario, design, engine, arch: of the machine.
        steps: what happened.
        moved: what differs between the first step and the last.
        end: how it ended.
    """

    relid: int
    name: str
    irq: int
    mode: str
    state: str
    target: int
    cpu: int
    scenario: str
    design: str
    engine: str
    arch: str
    steps: tuple[Step, ...]
    moved: tuple[Moved, ...]
    end: str

    @property
    def title(self) -> str:
        """One line: which interrupt this is."""
        irq = f"IRQ {self.irq}" if self.irq else "no IRQ"
        cpu = f"CPU {self.cpu}" + (f" (the guest wants CPU {self.target})" if self.cpu != self.target else "")
        return (
            f"relid {self.relid}, {self.name}: {irq}, {cpu}, mode {self.mode}, {self.state}; "
            f"{self.scenario}, design {self.design}, engine {self.engine}, {self.arch}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the explanation as plain text."""
        lines = [self.title]
        where = ""
        for step in self.steps:
            if step.where != where:
                where = step.where
                lines += ["", where]
            lines.append(f"{step.number:3} {step.what}")
            lines.append(f"      here    {', '.join(map(str, step.places))}")
            if step.kernel:
                lines.append(f"      as in   {step.kernel}")
            if step.moved:
                lines.append(f"      moved   {'; '.join(map(str, step.moved))}")
        return "\n".join([*lines, "", self.end])


# ---- what is watched


class _Counters:
    """Everything that an interrupt of one channel can move, by name, on the CPUs it has to do with."""

    def __init__(self, machine: Machine, channel: Channel, cpus: tuple[int, ...]) -> None:
        self._machine = machine
        self._channel = channel
        self._cpus = cpus
        self._softirqs = {"TASKLET": lib.VI_SOFTIRQ_TASKLET, "NET_RX": lib.VI_SOFTIRQ_NET_RX}

    def read(self) -> Snapshot:
        """Return the numbers of this moment."""
        now: Snapshot = {}
        for read in (self._host, self._rings, self._irq, self._guest):
            now |= read()
        for cpu in self._cpus:
            now |= {f"{name} on CPU {cpu}": number for name, number in self._cpu(cpu).items()}
        return now

    def _host(self) -> Snapshot:
        channel = self._machine.host.default.channel(self._channel.relid)
        if channel is None:
            return {}
        return {f"host {name}": number for name, number in asdict(channel.stats).items()}

    def _rings(self) -> Snapshot:
        if self._channel.rings is None:
            return {}
        now = {"in ring intr_out_empty": int(lib.vi_vsp_in(self._vsp()).intr_out_empty)} if self._vsp() else {}
        for name, ring in (("in", self._channel.rings.ring_in), ("out", self._channel.rings.ring_out)):
            hdr = ring.struct.hdr
            for field in ("write_index", "read_index", "interrupt_mask"):
                now[f"{name} ring {field}"] = int(getattr(hdr, field))
        return now

    def _vsp(self) -> Any:
        channel = self._machine.host.channels.get(self._channel.relid)
        return None if channel is None else channel.handle

    def _irq(self) -> Snapshot:
        irq = self._channel.irq
        if not irq:
            return {}
        desc = lib.vi_irq_to_desc(self._machine.core.handle, irq)
        return {
            f"IRQ {irq} tot_count": int(desc.tot_count),
            f"IRQ {irq} IN_PROGRESS": int(bool(desc.state & lib.VI_IRQD_INPROGRESS)),
            f"IRQ {irq} PENDING": int(bool(desc.istate & lib.VI_IRQS_PENDING)),
        }

    def _guest(self) -> Snapshot:
        now = {f"channel {name}": number for name, number in asdict(self._channel.stats).items()}
        return now | {f"lost {name}": number for name, number in asdict(self._machine.core.lost()).items()}

    def _cpu(self, cpu: int) -> Snapshot:
        core, irq = self._machine.core, self._channel.irq
        counters = core.counters
        row = cpu * counters.irq_stride
        flags = lib.vi_synic_flags(core.handle, cpu, lib.VI_SINT_VMBUS)
        relid = self._channel.relid
        now = {
            f"event flag {relid}": int(flags[relid // 64] >> relid % 64 & 1),
            "vector requested": int(lib.vi_vcpu_pending(core.handle, cpu)),
            "irqs_sum": int(counters.irqs_sum[cpu * lib.VI_IRQS_SUM_STRIDE]),
        }
        if irq:
            now[f"IRQ {irq} cnt"] = int(counters.irq[row + irq])
        if core.arch == "x86":
            now["HYP"] = core.arch_row(cpu, lib.VI_ROW_HYP)
            now["IWI"] = core.arch_row(cpu, lib.VI_ROW_IWI)
        else:
            ppi = self._machine.platform.vmbus_ppi
            now[f"IRQ {ppi} (PPI) cnt"] = int(counters.irq[row + ppi])
        softirq = cpu * lib.VI_SOFTIRQ_STRIDE
        return now | {name: int(counters.softirq[softirq + vec]) for name, vec in self._softirqs.items()}


def _difference(before: Snapshot, after: Snapshot) -> tuple[Moved, ...]:
    return tuple(
        Moved(name, before.get(name, 0), number) for name, number in after.items() if number != before.get(name, 0)
    )


# ---- recording


class _Recorder:
    """Makes steps of events."""

    def __init__(self, setting: Setting, counters: _Counters) -> None:
        self._setting = setting
        self._counters = counters
        self._context = ""
        self.steps: list[Step] = []
        self.seen: list[Event] = []
        self.first = self.last = counters.read()

    def hear(self, event: Event) -> None:
        """Take one event of the trace."""
        now = self._counters.read()
        if event.step in (lib.VI_TRACE_VECTOR, lib.VI_TRACE_IRQ_WORK):
            self._context = f"CPU {event.cpu}, hard interrupt"
        elif event.step == lib.VI_TRACE_SOFTIRQ:
            self._context = f"CPU {event.cpu}, softirq"
        telling = tell(event, self._setting)
        what = telling.what
        if event.step == lib.VI_TRACE_RING_DECIDE and not event.value:
            masked = self.last.get("in ring interrupt_mask")
            what += ", for the guest has masked the ring" if masked else ", for the guest has not read what was there"
        summed = any("irqs_sum" in item.counter for item in _difference(self.last, now))
        if event.step == lib.VI_TRACE_SCAN_END and summed:
            what += "; the total of this CPU is added to once per scan"
        self.seen.append(event)
        places = (Place(event.file, event.function), *telling.inner)
        self._add(telling.where or self._context, what, places, telling.kernel, now)

    def finish(self) -> None:
        """Add what has moved since the last event, if anything has: only the host's pump acts without telling."""
        now = self._counters.read()
        if _difference(self.last, now):
            place = Place("vmbusirq/host/rings.py", "poll")
            self._add(HOST, "takes what the guest has sent, and gives the room back", (place,), "", now)

    def _add(self, where: str, what: str, places: tuple[Place, ...], kernel: str, now: Snapshot) -> None:
        moved = _difference(self.last, now)
        self.last = now
        self.steps.append(Step(len(self.steps) + 1, where, what, places, kernel, moved))


# ---- the experiment

STATES: Final = {
    "idle": "the ring is empty and nobody reads",
    "busy": "a packet waits in the ring already",
    "masked": "the guest has masked the ring, as it does while it polls",
    "closed": "the guest has closed the channel; a signal comes late",
}
"""How a channel can stand when the host writes, for :func:`prepare`."""


def prepare(machine: Machine, relid: int, state: str) -> None:
    """Bring an idle channel into one of :data:`STATES`.

    Raises:
        IrqError: EINVAL no such state, or a sub-channel is to be closed; ENOENT no such channel.
    """
    channel = _find(machine, relid)
    if state not in STATES:
        raise IrqError(errno.EINVAL, f"channel {relid}: no state {state!r} (EINVAL); choose from {', '.join(STATES)}")
    if state == "busy":
        machine.host.send(relid)
    elif state == "masked":
        lib.vi_ring_begin_read(lib.vi_channel_in(channel.c))
    elif state == "closed":
        machine.vmbus.close(channel)
        machine.settle()


def explain(machine: Machine, relid: int, *, cpu: int | None = None) -> Explanation:
    """Let the host send one packet on a channel, run the machine until it is quiet, and say what has happened.

    On a closed channel, where the host has no ring, the event flag alone is set, as by a signal that was on its way.

    Args:
        machine: a booted machine; the channel may be in any state.
        relid: the channel.
        cpu: the CPU that the host signals, as if it had not heard yet of a move; None: the one the guest has named.
    Raises:
        IrqError: ENOENT the guest has no channel of that relid, EINVAL no such CPU, ENXIO a late signal to a CPU whose
            SynIC is off.
    """
    channel = _find(machine, relid)
    nr_cpus = machine.core.nr_cpus
    if cpu is not None and not 0 <= cpu < nr_cpus:
        raise IrqError(errno.EINVAL, f"cpu {cpu}: there is none (EINVAL); 0 to {nr_cpus - 1}")
    target = channel.target_cpu
    signalled = target if cpu is None else cpu
    host = machine.host.channels.get(relid)
    setting = Setting(
        machine.design, machine.core.engine == "linux", machine.arch == "arm64", machine.core.nr_irqs_max, target
    )
    recorder = _Recorder(setting, _Counters(machine, channel, tuple(sorted({signalled, target}))))
    state = _state(channel)
    send: Callable[[], object] = lambda: machine.synic.signal(signalled, relid)  # noqa: E731
    if host is not None:
        send = lambda: machine.host.send(relid)  # noqa: E731
    with _towards(host, cpu), tracing(machine.core, recorder.hear):
        send()
        machine.settle()
    recorder.finish()
    moved = _difference(recorder.first, recorder.last)
    return Explanation(
        relid=relid,
        name=channel.irq_name,
        irq=channel.irq,
        mode=channel.mode.name,
        state=state,
        target=target,
        cpu=signalled,
        scenario=machine.scenario.name,
        design=machine.design.name,
        engine=machine.core.engine,
        arch=machine.arch,
        steps=tuple(recorder.steps),
        moved=moved,
        end=_end(recorder.seen, {item.counter: item.after - item.before for item in moved}),
    )


def _find(machine: Machine, relid: int) -> Channel:
    channel = machine.vmbus.channels.get(relid)
    if channel is None:
        known = format_pbl(sum(1 << number for number in machine.vmbus.channels)) or "none"
        raise IrqError(errno.ENOENT, f"relid {relid}: the guest has no such channel (ENOENT); it has: {known}")
    return channel


def _state(channel: Channel) -> str:
    if channel.rings is None:
        return "closed"
    ring = channel.ring_in
    return "masked" if ring.interrupt_mask else "busy" if ring.bytes_to_read else "idle"


@contextmanager
def _towards(host: HostChannel | None, cpu: int | None) -> Iterator[None]:
    """Let the host signal another CPU meanwhile."""
    if host is None or cpu is None:
        yield
        return
    before = host.target_vp
    host.set_target(cpu)
    try:
        yield
    finally:
        host.set_target(before)


_COUNTED: Final = re.compile(r"HYP |irqs_sum |IRQ .* cnt ")


def _end(events: list[Event], change: dict[str, int]) -> str:
    """Say how it ended, from what happened and what moved."""
    steps = {event.step for event in events}
    if not steps & {lib.VI_TRACE_VECTOR}:
        if change.get("host dropped_signals"):
            return "the signal is lost, and the packet waits for the next one"
        if change.get("host packets"):
            return "no interrupt: the packet waits until the guest looks at the ring by itself"
        return "no interrupt, and nothing written"
    arrivals = change.get("channel interrupts", 0)
    packets = change.get("channel packets", 0) + change.get("channel attended", 0)
    rows = [f"{name} +{by}" for name, by in change.items() if _COUNTED.match(name)]
    return f"arrivals: {arrivals}; packets read: {packets}; counted: {', '.join(rows) or 'nowhere in /proc/interrupts'}"
