"""What most races are played on: a guest of few CPUs and channels, its host, and all that can go on between them.

It is made of the same rooms as a machine, without a boot: no files, no devices but those of the race, no ticks. It is
made once for each race; every order begins with putting it back (:mod:`vmbusirq.lab.explore.snapshot`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from uuid import UUID, uuid5

from vmbusirq._ffi import lib
from vmbusirq.core import Core
from vmbusirq.cpumask import format_pbl
from vmbusirq.designs import DESIGNS, Design, OfflinePolicy
from vmbusirq.errors import check
from vmbusirq.host.options import HostOptions
from vmbusirq.host.server import HostBus
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.hotplug import CpuSwitch
from vmbusirq.hyperv.partition import Partition
from vmbusirq.irq import IrqCore
from vmbusirq.lab.explore.actors import Actor, at_once
from vmbusirq.lab.explore.world import Invariant
from vmbusirq.log import Log
from vmbusirq.steps import Context, Step, Steps, run
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.clockevent import ClockEvents
from vmbusirq.vmbus.clocksource import Clocksources
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.context import GuestOptions
from vmbusirq.vmbus.isr import deliverable, vcpu_steps
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import MessageType, Unlock, Version

__all__ = ["Stage"]

_HOST_ENDS: Final = frozenset({"host queue", "host target", "host rings"})
_HOST_TOUCHES: Final[dict[int | None, frozenset[str]]] = {
    MessageType.MODIFYCHANNEL: frozenset({"host queue"}),
    MessageType.CLOSECHANNEL: _HOST_ENDS,
    MessageType.GPADL_TEARDOWN: _HOST_ENDS | {"slot cpu0", "vector cpu0"},  # it answers
    MessageType.RELID_RELEASED: _HOST_ENDS,
}
"""What the host touches when it takes a message, see Step; of others it is not known."""
_INSTANCES: Final = UUID("2b7f6a52-8c11-4d5e-9a53-0f1e2d3c4b5a")
_IRQS: Final = 64
_MOVES: Final = frozenset({"host moves"})
_REACH_OTHERS: Final = (OfflinePolicy.REDIRECT, OfflinePolicy.HANDOVER)
"""Policies under which an interrupt of one CPU sends work to another one, or pokes it."""


class Stage:
    """A guest and its host, ready for a race.

    Args:
        cpus: of the guest.
        design: how it deals with interrupts.
        version: that both speak.
        channels: the CPU of each open channel, by relid.
        device_class: of the channels' devices.
        engine: ``linux``: v6.10's own steps; or ``fast``.
        strict_rfc: keep the defects of the RFC as posted.
        options: of the host.
        without: waits that are left out, see :mod:`vmbusirq.irq.waits`.

    Attributes:
        core, partition, irq, host, vmbus, switch, log: the rooms of a machine.
    """

    def __init__(
        self,
        *,
        cpus: int = 2,
        design: Design = DESIGNS["rfc"],
        version: Version = Version.V5_3,
        channels: Mapping[int, int] | None = None,
        device_class: str = "keyboard",
        engine: str = "linux",
        strict_rfc: bool = False,
        options: HostOptions | None = None,
        without: Iterable[str] = (),
    ) -> None:
        self.core: Final = Core(
            cpus,
            nr_irqs_max=_IRQS,
            hyp_count=design.hyp_count,
            channel_irqs=design.channel_irqs,
            redirect=design.redirects,
            engine=engine,
        )
        self.partition: Final = Partition(self.core)
        self.log: Final = Log(lambda: self.core.now)
        if engine == "linux" and design.channel_irqs:
            check(lib.vi_machine_set_own_waits(self.core.handle, 1), "stage: who unlinks cannot wait by steps")
        self.irq: Final = IrqCore(
            self.core.handle,
            nr_cpus=cpus,
            nr_irqs=_IRQS,
            dynirq_base=24,
            log=self.log,
            without=frozenset(without),
        )
        self.host: Final = HostBus(self.partition, version=version, options=options)
        for relid in channels or {}:
            vsp = GenericVsp(device_class, CLASS_IDS[device_class])
            self.host.add_device(vsp, uuid5(_INSTANCES, str(relid)), name=f"device {relid}", relid=relid)
        self.vmbus: Final = VmbusConnection(
            self.core,
            self.irq,
            self.partition,
            design,
            nodes=[(1 << cpus) - 1],
            options=GuestOptions(strict_rfc=strict_rfc, max_version=int(version)),
        )
        present = (1 << cpus) - 1
        self.switch: Final = CpuSwitch(
            self.irq,
            self.partition,
            self.vmbus,
            ClockEvents(self.core, self.partition, Clocksources(self.partition)),
            present=present,
            hotpluggable=present & ~1,
        )
        self.vmbus.devices.drivers.clear()
        self.partition.add_check(self.irq.reraise)
        self._connect(channels or {})
        self._begun: deque[Steps[None]] = deque()
        self.irq.idle = None  # whoever waits is an actor

    def _connect(self, channels: Mapping[int, int]) -> None:
        """Negotiate, open the channels, move each to its CPU."""
        self.vmbus.synic_init(range(self.core.nr_cpus))
        self.vmbus.connect()
        self.partition.settle()
        for relid, cpu in channels.items():
            channel = self.vmbus.channels[relid]
            self.vmbus.open(channel)
            if channel.irq:
                self.irq.irq_set_affinity(channel.irq, 1 << cpu)
            elif cpu != channel.target_cpu:
                self.vmbus.target_cpu_store(channel, str(cpu).encode())
            self.partition.settle()

    # ---- who goes on

    def channel(self, relid: int) -> Channel:
        """Return a channel of the guest."""
        return self.vmbus.channels[relid]

    def task(self, name: str, begin: Callable[[], Steps[Any]], cpu: int | None = None, **how: Any) -> Actor:
        """Return an actor that runs one operation, which looks at nothing before its first step."""
        return Actor(name, begin, cpu=cpu, **{"touches": frozenset(), **how})

    def cpus(self, *, whole: bool = False, deliver: Callable[[Core, int], Steps[Any]] = vcpu_steps) -> list[Actor]:
        """Return the CPUs, which take interrupts whenever some are requested.

        Args:
            whole: nobody comes in between.
            deliver: what an interrupt does else.
        """
        return [self._cpu(cpu, whole, deliver) for cpu in range(self.core.nr_cpus)]

    def _cpu(self, cpu: int, whole: bool, deliver: Callable[[Core, int], Steps[Any]]) -> Actor:
        core = self.core
        own = [f"{what} cpu{cpu}" for what in ("vector", "interrupt", "flags", "slot", "softirq")]
        if whole:  # what all parts touch; of messages only answers come in such races
            own += ["modchan", "requests", "resend"]
            if self.vmbus.design.offline_policy in _REACH_OTHERS:
                own += [f"{what} cpu{other}" for what in ("vector", "flags") for other in range(core.nr_cpus)]
            own += [
                name
                for relid, channel in self.vmbus.channels.items()
                for name in (f"relid {relid}", f"channel {relid}", f"ring {relid} in", f"irq {channel.irq}")
            ]
        return Actor(
            f"cpu {cpu}",
            at_once(lambda: lib.vi_vcpu_run(core.handle, cpu)) if whole else lambda: deliver(core, cpu),
            cpu=cpu,
            wants=lambda: deliverable(core, cpu),
            context=Context.HARDIRQ,
            point=f"cpu {cpu} takes the interrupt",
            touches=frozenset(own if whole else own[:2]),
            whole=whole,
        )

    def host_control(self, *, slow: bool = False) -> Actor:
        """Return the host as it takes control messages, one at a time.

        ``slow``: only when the guest can go no further, and what it does about one message at once.
        """
        return Actor(
            "host",
            at_once(lambda: run(self.host.message_steps())) if slow else self.host.message_steps,
            wants=lambda: self.host.unread_messages > 0,
            point="host: takes the next control message" + (", carries it out and answers" if slow else ""),
            touches=None if slow else self._next_message_touches,
            last=slow,
        )

    def host_in_two(self) -> list[Actor]:
        """Return the host as it takes control messages, and its worker, which does what takes time meanwhile."""
        begun = self._begun
        return [
            Actor(
                "host",
                at_once(lambda: self.host.take_message(begun.append)),
                wants=lambda: self.host.unread_messages > 0,
                point="host: takes the next control message",
                touches=lambda: touches | _MOVES if (touches := self._next_message_touches()) else None,
                whole=True,
            ),
            Actor(
                "host worker",
                begun.popleft,
                wants=lambda: bool(begun),
                point="host: the worker takes up what was asked for",
                touches=_MOVES,
            ),
        ]

    def work(self) -> Actor:
        """Return the system's work queue, whose items see to moves."""
        queue = self.vmbus.work.system
        return Actor(
            "work",
            queue.take,
            wants=lambda: not queue.idle,
            point="events: takes the next item",
            touches=frozenset({"modchan"}),
        )

    def _next_message_touches(self) -> frozenset[str] | None:
        return _HOST_TOUCHES.get(self.host.next_message_type)

    def device(self, relid: int, packets: int = 1, name: str = "", when: Callable[[], bool] | None = None) -> Actor:
        """Return a device that writes packets, one after the other; ``when``: not before that has come true."""
        return Actor(
            name or f"device {relid}", lambda: self._write(relid, packets, when), touches=frozenset({"host rings"})
        )

    def signal(self, relid: int, *, read_already: bool = False) -> None:
        """Let a device write a packet and signal, now; nobody takes the interrupt yet.

        ``read_already``: whoever ran before has seen the packet before its signal, and read it.
        """
        channel = self.host.default.channel(relid)
        rings = channel.rings if channel is not None else None
        assert rings is not None, "the guest has opened it"
        if read_already:
            rings.signal()
        else:
            run(rings.write_steps(Packet(b"x")))

    def slow_device(self, relid: int, packets: int = 1) -> Actor:
        """Return a device that writes a packet, and signals, only when the guest can go no further."""
        point = f"host: writes a packet into the in ring of channel {relid}, and signals if it must"

        def write() -> Steps[None]:
            for left in reversed(range(packets)):
                run(self._write(relid, 1, None))
                if left:
                    yield Step(point)

        return Actor(f"device {relid}", write, point=point, last=True)

    def _write(self, relid: int, packets: int, when: Callable[[], bool] | None) -> Steps[None]:
        if when is not None:
            yield Step(f"device of channel {relid}: has nothing to write yet", ready=when)
        for _ in range(packets):
            channel = self.host.default.channel(relid)
            if channel is None or channel.rings is None:
                return
            yield from channel.rings.write_steps(Packet(b"x"))

    def time(self, *, at_any_time: bool = False, within: int | None = None) -> Actor:
        """Return time: it goes to the next timer when nobody else can go on, or at any moment.

        A wait of milliseconds is long beside everything that needs no wait. At any moment means a host, or CPUs, that
        can be slower than any wait. What timers do is anything: they queue work, poke CPUs, end waits.

        Args:
            at_any_time: at any moment.
            within: to no timer that is more than so many ticks from now; the time beyond is another actor.
        """
        clock = self.partition.clock
        end = None if within is None else clock.now + within

        def is_near() -> bool:
            due = clock.next_due
            return due is not None and (end is None or due <= end)

        return Actor(
            "time" if within is None else "early time",
            at_once(clock.advance_to_next),
            wants=is_near,
            point="time passes",
            last=not at_any_time,
        )

    def after_step(self) -> None:
        """Fill the message slots that were freed, by EOM or without, and raise what callbacks raised."""
        while self.partition.triggers.take() | self.partition.messages.poll():
            pass
        self.irq.reraise()

    # ---- what must not be

    def invariants(self) -> tuple[Invariant, ...]:
        """Return all that must hold when nobody can go on."""
        return (
            self.stranded,
            self.lost_flags,
            self.on_offline_cpu,
            self.outside_mask,
            self.host_disagrees,
            self.not_conserved,
        )

    @property
    def _redirects(self) -> bool:
        return self.vmbus.design.redirects

    def stranded(self) -> str:
        """Packets wait in a ring whose reader has been told of them by nobody."""
        for relid, channel in self.vmbus.channels.items():
            if channel.rings is not None and (waits := channel.ring_in.bytes_to_read):
                return f"channel {relid} hangs: {waits} bytes wait in its ring, and no signal is on its way"
        return ""

    def lost_flags(self) -> str:
        """Event flags are set that nobody is going to serve."""
        for cpu in range(self.core.nr_cpus):
            flags = [flag for flag in self.partition.synic.flags_set(cpu) if flag]
            if flags:
                return f"flags {','.join(map(str, flags))} are stranded on cpu {cpu}"
        return ""

    def on_offline_cpu(self) -> str:
        """A channel interrupts a CPU that is offline, or whose SynIC is off."""
        usable = self.irq.online & self.vmbus.synics_on
        for relid, channel in self.vmbus.channels.items():
            if not usable >> channel.target_cpu & 1:
                return f"channel {relid} targets cpu {channel.target_cpu}, which is offline"
        return ""

    def outside_mask(self) -> str:
        """A channel is where its IRQ's affinity does not allow it, or where the two faces disagree."""
        for relid, channel in self.vmbus.channels.items():
            if not channel.irq:
                continue
            desc = self.irq.irq_to_desc(channel.irq)
            there = desc.effective_affinity
            if self._redirects:  # the first of those that may run it is its target
                there &= -there
            if there != 1 << channel.target_cpu:
                effective = format_pbl(desc.effective_affinity) or "none"
                return f"channel {relid} targets cpu {channel.target_cpu}, its IRQ says {effective}"
            if not desc.affinity >> channel.target_cpu & 1:
                return f"channel {relid} targets cpu {channel.target_cpu}, outside of {format_pbl(desc.affinity)}"
        return ""

    def host_disagrees(self) -> str:
        """The host interrupts another CPU than the guest believes, for ever.

        Where interrupts are redirected any CPU does that takes them.
        """
        usable = self.irq.online & self.vmbus.synics_on
        for relid, channel in self.vmbus.channels.items():
            there = self.host.default.channel(relid)
            if there is None or not there.is_open or there.target_vp == channel.target_cpu:
                continue
            if not self._redirects or not usable >> there.target_vp & 1:
                target = channel.target_cpu
                return f"the host interrupts cpu {there.target_vp} for channel {relid}, the guest expects {target}"
        return ""

    def not_conserved(self) -> str:
        """Packets were read that nobody wrote, or not read although the ring is empty; or an arrival counts twice."""
        for relid, channel in self.vmbus.channels.items():
            there = self.host.default.channel(relid)
            if there is None or not there.is_open or channel.rings is None:
                continue
            written, read = there.stats.packets, channel.stats.packets
            if read > written or (read < written and not channel.ring_in.bytes_to_read):
                return f"channel {relid}: {written} packets were written, {read} were read"
            if channel.irq:
                counted = int(self.irq.counts[channel.irq].sum())
                if counted > there.stats.edges:
                    return f"irq {channel.irq}: {there.stats.edges} signals came, {counted} interrupts are counted"
        return ""

    def watch(self) -> Mapping[str, object]:
        """Return what a story tells about."""
        seen: dict[str, object] = {
            "online": format_pbl(self.irq.online),
            "SynICs on": format_pbl(self.vmbus.synics_on) or "none",
            "messages to the host": self.host.unread_messages,
            "interrupts dropped, the handler ran elsewhere": self.core.lost().in_progress,
        }
        version = self.vmbus.version
        if version is not None and version.has(Unlock.MODIFYCHANNEL_RESPONSE):
            retarget = self.vmbus.retarget
            seen["moves unanswered"] = retarget.modchan_sent - retarget.modchan_completed
        for relid, channel in self.vmbus.channels.items():
            seen[f"channel {relid} target"] = channel.target_cpu
            there = self.host.default.channel(relid)
            if there is not None and there.is_open:
                seen[f"host's target of {relid}"] = there.target_vp
                seen[f"signals of {relid} to a SynIC that is off"] = there.stats.dropped_signals
            if channel.rings is not None:
                seen[f"bytes in ring {relid}"] = channel.ring_in.bytes_to_read
        for cpu in range(self.core.nr_cpus):
            flags = [flag for flag in self.partition.synic.flags_set(cpu) if flag]
            seen[f"flags of cpu {cpu}"] = ",".join(map(str, flags)) or "none"
        return seen
