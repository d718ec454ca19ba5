"""The run of a scenario: its devices on the host, its traffic laid out in time, its events between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, Protocol
from uuid import UUID

from vmbusirq.core import TICKS_PER_S
from vmbusirq.cpumask import bitmap_parselist, cpus_of, format_pbl
from vmbusirq.designs import Design
from vmbusirq.errors import IrqError, MachineBug
from vmbusirq.fs import FileSystem
from vmbusirq.host.channel import HostChannel
from vmbusirq.host.device import HostDevice
from vmbusirq.host.server import HostBus
from vmbusirq.host.stats import Traffic
from vmbusirq.host.vsp.hv_sock import HvSockVsp, Service
from vmbusirq.hyperv.partition import Partition
from vmbusirq.irq import IrqCore
from vmbusirq.limits import RELID_MAX, RELID_MIN
from vmbusirq.scenario.spec import DeviceSpec, EventSpec, Scenario
from vmbusirq.scenario.timeline import BOOT_TICKS, plan
from vmbusirq.scenario.timers import TickPlan
from vmbusirq.steps import Steps, run
from vmbusirq.vmbus.clockevent import ClockEvents
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.drivers.hv_sock import HvSockDriver
from vmbusirq.wire.protocol import vsock_service_id

__all__ = ["Happened", "Progress", "Script", "Stage"]

Progress = Callable[[int, int, str], None]
_PROBES_TICKS: Final = 10 * TICKS_PER_S
_SHARE_WORK: Final = 1_000_000  # packets of half a KiB, about: a fraction of a second


class Stage(Protocol):
    """The machine, as far as a scenario moves it."""

    @property
    def scenario(self) -> Scenario:
        """What to play."""

    @property
    def seed(self) -> int:
        """Fixes the order of deliveries."""

    @property
    def design(self) -> Design:
        """Whether channels have IRQs."""

    @property
    def partition(self) -> Partition:
        """Time, and what waits."""

    @property
    def irq(self) -> IrqCore:
        """The guest's interrupts."""

    @property
    def host(self) -> HostBus:
        """The host."""

    @property
    def vmbus(self) -> VmbusConnection:
        """The guest."""

    @property
    def clockevents(self) -> ClockEvents:
        """The guest's clock ticks."""

    @property
    def fs(self) -> FileSystem:
        """The guest's files."""

    @property
    def online_mask(self) -> int:
        """CPUs that take interrupts."""

    def settle(self) -> int:
        """Deliver until nothing is deliverable."""

    def make_instance(self, device_class: str, name: str) -> UUID:
        """Return the instance GUID of a device that nobody gave one."""

    def plug(self, device: DeviceSpec, relids: Sequence[int]) -> HostDevice:
        """Give the host a device, with the relids of its channels."""


@dataclass(frozen=True, slots=True)
class Happened:
    """What became of an event.

    Attributes:
        event: of the scenario.
        now: when it was over, in ticks.
        ok: it went as it should; a connection that nobody takes is refused, and so should be.
        result: what came of it, in words.
    """

    event: EventSpec
    now: int
    ok: bool
    result: str


class Script:
    """Plays a machine's scenario.

    Attributes:
        happened: its events so far.
        undelivered: interrupts that could not be raised, since the channel was not open, by the scenario's relid.
    """

    def __init__(self, stage: Stage) -> None:
        scenario = stage.scenario
        self._stage = stage
        self._specs: Final = {device.name: device for device in scenario.devices}
        rows = sorted(scenario.channels, key=lambda spec: spec.sub)
        self._relids = {name: [spec.relid for spec in rows if spec.device == name] for name in self._specs}
        self._open_before: set[tuple[str, int]] = set()  # the suspend
        self._devices: dict[str, list[HostDevice]] = {name: [] for name in self._specs}
        self._sockets: dict[str, tuple[UUID, HvSockVsp]] = {}
        self._sockets_made = 0
        self._driven = 0
        self._ticks = TickPlan((), (), 0)
        self._ticked: list[int] = []
        self._ticked_to = 0
        self._earlier: dict[tuple[str, int], int] = {}
        self.happened: Final[list[Happened]] = []
        self.undelivered: Final[dict[int, int]] = {}

    # ---- who is there

    def populate(self) -> None:
        """Give the host its services, and the devices of the boot in the order of their primary channels."""
        for port in self._stage.scenario.host.hv_sock_ports:
            self._stage.host.hv_sock.listen(vsock_service_id(port), lambda endpoint, port=port: self._accept(port))  # type: ignore[misc]
        for spec in self._stage.scenario.channels:
            if not spec.sub and self._specs[spec.device].present:
                self._plug(spec.device)

    def _plug(self, name: str) -> None:
        self._devices[name].append(self._stage.plug(self._specs[name], self._relids[name]))

    def _present(self) -> dict[str, HostDevice]:
        """Return the scenario's devices that the host has now, in the order in which it got them."""
        names = {devices[-1]: name for name, devices in self._devices.items() if devices}
        return {names[device]: device for device in self._stage.host.devices if device in names}

    def channel(self, device: str, sub: int) -> HostChannel | None:
        """Return the host's half of a channel of the scenario, None if it has none now."""
        now = self._devices[device][-1].all_channels if self._devices[device] else ()
        return next((channel for channel in now if channel.sub_channel_index == sub and channel.is_offered), None)

    def interrupts(self, device: str, sub: int) -> int:
        """Return how often a channel of the scenario has interrupted the guest, by whatever relid."""
        lives = [channel for life in self._devices[device] for channel in life.all_channels]
        return sum(channel.stats.edges for channel in lives if channel.sub_channel_index == sub)

    # ---- the run

    def play(self, progress: Progress | None = None) -> None:
        """Drive the traffic in order of time, with the events between; then go to the scenario's end.

        Called again, the same traffic comes once more on the channels that are there; events happen once.
        """
        scenario = self._stage.scenario
        if self._driven:
            scenario = replace(scenario, devices=self._as_they_are(), events=())
            self._earlier = {
                (spec.device, spec.sub): self.interrupts(spec.device, spec.sub) for spec in scenario.channels
            }
        total = sum(spec.interrupts for spec in scenario.channels)
        done = 0
        self._plan_ticks(scenario)
        self._let_probes_end()
        for segment in plan(scenario):
            for share, parts in self._shares(scenario, segment.due):
                if progress is not None:
                    progress(done, total, "traffic")
                self._go_to(segment.start + (segment.end - segment.start) * parts[0] // parts[1])
                self._stage.host.drive(share, self._stage.seed + self._driven)
                self._driven += 1
                done += sum(item.interrupts for item in share)
            self._go_to(segment.end)
            if segment.event is not None:
                self._happen(segment.event)

    def _go_to(self, tick: int) -> None:
        """Let time pass, and each thing that is due happen at its own."""
        clock = self._stage.partition.clock
        self._stage.settle()
        while clock.next_due is not None and clock.next_due <= tick:
            clock.advance_to_next()
            self._stage.settle()
        clock.advance_to(max(clock.now, tick))
        self._stage.settle()
        self._tick(tick)

    def _plan_ticks(self, scenario: Scenario) -> None:
        ticks = scenario.timers.ticks if scenario.timers is not None else ()
        end = max(BOOT_TICKS, scenario.duration_s * TICKS_PER_S)
        self._ticks = TickPlan(ticks, scenario.events, end)
        self._ticked = [0] * len(ticks)

    def _tick(self, tick: int) -> None:
        """Let each CPU have the clock ticks that it has had by then, in a batch."""
        until = max(self._ticked_to, tick)
        for cpu, done in enumerate(self._ticked):
            due = self._ticks.due(cpu, tick)
            if due > done and self._stage.online_mask >> cpu & 1:  # one that is offline has none, and they are lost
                self._stage.clockevents.tick(cpu, due - done, self._ticked_to, until)
            self._ticked[cpu] = due
        self._ticked_to = until
        self._stage.settle()

    def _let_probes_end(self) -> None:
        """Give the guest the time that it waits for slow answers: a monitored channel is looked at now and then."""
        clock, work = self._stage.partition.clock, self._stage.vmbus.work
        limit = clock.now + _PROBES_TICKS
        while not (work.bus_idle and work.system.idle) and clock.next_due is not None and clock.next_due <= limit:
            clock.advance_to_next()
            self._stage.settle()

    def _as_they_are(self) -> tuple[DeviceSpec, ...]:
        present = self._present()
        return tuple(replace(device, present=device.name in present) for device in self._stage.scenario.devices)

    def _shares(self, scenario: Scenario, due: Sequence[int | None]) -> list[tuple[list[Traffic], tuple[int, int]]]:
        """Return what is to be driven until the totals are ``due``, in shares, and which share of how many it is.

        What a device's own negotiation has caused is part of the total, and so is not driven.
        """
        traffic = []
        for spec, total in zip(scenario.channels, due, strict=True):
            if total is None:
                continue
            place = spec.device, spec.sub
            left = total - (self.interrupts(*place) - self._earlier.get(place, 0))
            channel = self.channel(*place)
            if left <= 0:
                self.undelivered.pop(spec.relid, None)
            elif channel is None or not channel.is_open:
                self.undelivered[spec.relid] = left
            else:
                self.undelivered.pop(spec.relid, None)
                traffic.append(Traffic(channel.relid, left, spec.packets, spec.payload))
        cuts = _cut(traffic)
        return [(cut, (index, len(cuts))) for index, cut in enumerate(cuts)]

    # ---- events

    def _happen(self, event: EventSpec) -> None:
        handler: Callable[[EventSpec], tuple[bool, str]] = getattr(self, f"_{event.action.replace('-', '_')}")
        try:
            ok, result = handler(event)
            self._stage.settle()
            self._let_probes_end()
        except MachineBug:
            raise
        except IrqError as error:  # the guest lives on, as a kernel would; the report says what went wrong
            ok, result = False, str(error)
        self.happened.append(Happened(event, self._stage.partition.clock.now, ok, result))

    def _guest_does(self, steps: Steps[None]) -> None:
        run(steps, self._stage.partition.idle)
        self._stage.settle()

    def _hot_add(self, event: EventSpec) -> tuple[bool, str]:
        self._plug(event.device)
        self._stage.settle()
        return self._describe(event.device, 0)

    def _describe(self, device: str, sub: int) -> tuple[bool, str]:
        """Return whether the guest has opened a channel, and where it is now."""
        host = self.channel(device, sub)
        guest = self._stage.vmbus.channels.get(host.relid) if host is not None else None
        if host is None or guest is None:
            return self._stage.vmbus.version is None, "not offered"
        irq = f", irq {guest.irq}" if guest.irq else ""
        where = f"relid {host.relid}{irq}, cpu {guest.target_cpu}"
        return host.is_open, where if host.is_open else f"{where}: not open; see dmesg"

    def _rescind(self, event: EventSpec) -> tuple[bool, str]:
        host = self._stage.host
        if event.sub:
            channel = self.channel(event.device, event.sub)
            if channel is None:
                return False, "not offered"
            host.rescind(channel.relid)
        else:
            host.remove_device(self._devices[event.device][-1])
        self._stage.settle()
        return self.channel(event.device, event.sub) is None, "gone"

    def _suspend(self, _event: EventSpec) -> tuple[bool, str]:
        self._open_before = {place for place in self._places() if self._is_open(*place)}
        self._stage.vmbus.suspend()
        self._sockets.clear()
        return True, "suspended"

    def _resume(self, _event: EventSpec) -> tuple[bool, str]:
        if self._stage.scenario.host.relids_change_on_resume and not self._stage.vmbus.control.connected:
            self._renumber()
        self._stage.vmbus.resume()
        self._stage.settle()
        self._let_probes_end()
        present = self._present()
        back = {(name, 0) for name in present} | {place for place in self._open_before if place[0] in present}
        missing = [f"{name}/{sub}" if sub else name for name, sub in sorted(back) if not self._is_open(name, sub)]
        return not missing, f"without {', '.join(missing)}" if missing else "resumed"

    def _places(self) -> Iterator[tuple[str, int]]:
        return ((spec.device, spec.sub) for spec in self._stage.scenario.channels)

    def _is_open(self, device: str, sub: int) -> bool:
        channel = self.channel(device, sub)
        return channel is not None and channel.is_open

    def _renumber(self) -> None:
        """Give every channel another relid: the next one's, the last the first one's.

        A primary keeps the directory that its first relid has named, so that none of its sub-channels may get that one
        (vmbus.md 7.4); if going further round does not help either, relids that nobody has are taken.
        """
        names = list(self._present())
        used = sorted(relid for name in names for relid in self._relids[name])
        free = [relid for relid in range(RELID_MIN, RELID_MAX + 1) if relid not in used]
        rounds = ([*used[n:], *used[:n]] for n in range(1, len(used)))
        fresh = (free[n : n + len(used)] for n in range(max(1, len(free) - len(used) + 1)))
        for numbers in chain(rounds, fresh):
            following = dict(zip(used, numbers, strict=False))
            if len(following) == len(used) and not any(self._collides(name, following) for name in names):
                break
        else:
            return  # every relid there is, on one device: they stay
        for device in self._present().values():
            self._stage.host.remove_device(device)
        for name in names:
            self._relids[name] = [following[relid] for relid in self._relids[name]]
        for name in names:
            self._plug(name)

    def _collides(self, name: str, following: Mapping[int, int]) -> bool:
        device = self._stage.vmbus.devices.get(self._devices[name][-1].instance)
        kept = device.primary.dir_name if device is not None else ""
        return any(str(following[relid]) == kept for relid in self._relids[name][1:])

    def _affinity(self, event: EventSpec) -> tuple[bool, str]:
        host = self.channel(event.device, event.sub)
        channel = self._stage.vmbus.channels.get(host.relid) if host is not None else None
        if channel is None:
            return False, "not offered"
        if channel.irq:
            self._stage.fs.write(f"/proc/irq/{channel.irq}/smp_affinity_list", event.cpus.encode())
        else:  # a design without channel IRQs has the channel's own file only
            mask = bitmap_parselist(event.cpus.encode(), self._stage.scenario.cpus.possible)
            mask = mask & self._stage.online_mask or mask
            self._stage.vmbus.target_cpu_store(channel, str((mask & -mask).bit_length() - 1).encode())
        self._stage.settle()
        return self._describe(event.device, event.sub)

    def _offline(self, event: EventSpec) -> tuple[bool, str]:
        return self._hotplug(event, b"0")

    def _online(self, event: EventSpec) -> tuple[bool, str]:
        return self._hotplug(event, b"1")

    def _hotplug(self, event: EventSpec, state: bytes) -> tuple[bool, str]:
        """Write to the CPUs' online files, in ascending order; one that is refused does not keep the next from it."""
        refusals = []
        for cpu in cpus_of(bitmap_parselist(event.cpus.encode(), self._stage.scenario.cpus.possible)):
            path = f"/sys/devices/system/cpu/cpu{cpu}/online"
            try:
                self._stage.fs.write(path, state)
            except IrqError as error:
                refusals.append(str(error))
            self._stage.settle()
        return not refusals, "; ".join([*refusals, f"online: {format_pbl(self._stage.online_mask)}"])

    # ---- connections

    @property
    def _driver(self) -> HvSockDriver:
        driver = self._stage.vmbus.devices.drivers[HvSockDriver.name]
        assert isinstance(driver, HvSockDriver)
        return driver

    def _accept(self, port: int) -> HvSockVsp:
        self._peer = HvSockVsp(vsock_service_id(port), Service.SINK)
        return self._peer

    def _connect(self, event: EventSpec) -> tuple[bool, str]:
        stage, service = self._stage, vsock_service_id(event.port)
        self._sockets_made += 1
        endpoint = stage.make_instance("hv_sock", f"{event.connection}/{self._sockets_made}")
        if event.by_host:
            self._peer = HvSockVsp(service, Service.SINK, host_initiated=True)
            stage.host.hv_sock.connect(service, self._peer, endpoint)
            stage.settle()
        else:
            self._guest_does(stage.vmbus.tl_connect_steps(endpoint, service))
        device = stage.vmbus.devices.get(endpoint)
        if device is None or device not in self._driver.devices:
            return not event.accepted, "refused"
        self._sockets[event.connection] = endpoint, self._peer
        self._talk(device, self._peer, event)
        channel = device.primary
        irq = f", irq {channel.irq}" if channel.irq else ""
        return event.accepted, f"relid {channel.relid}{irq}, cpu {channel.target_cpu}"

    def _talk(self, device: HvDevice, peer: HvSockVsp, event: EventSpec) -> None:
        """Send packets by turns; the guest reads what came."""
        data = bytes(event.payload)
        for _ in range(event.packets):
            self._driver.send(device, data)
            self._stage.settle()
            peer.send(data)
            self._stage.settle()
            self._driver.receive(device, event.payload)

    def _disconnect(self, event: EventSpec) -> tuple[bool, str]:
        endpoint, peer = self._sockets.pop(event.connection, (None, None))
        device = self._stage.vmbus.devices.get(endpoint) if endpoint is not None else None
        if device is None or peer is None:
            return False, "not connected"
        if event.by_host:
            peer.finish()
            self._stage.settle()
        self._guest_does(self._driver.shutdown(device))  # whoever began: the guest closes the channel
        gone = device.instance not in self._stage.vmbus.devices
        return gone, "closed" if gone else "still there"


def _cut(traffic: Sequence[Traffic]) -> list[list[Traffic]]:
    """Cut long traffic into shares of about the same work, each with its part of every channel's."""
    work = sum(item.interrupts * item.packets * (1 + item.payload // 512) for item in traffic)
    parts = min(max(1, work // _SHARE_WORK), max((item.interrupts for item in traffic), default=1) or 1)
    cuts = (
        [
            replace(item, interrupts=item.interrupts * (part + 1) // parts - item.interrupts * part // parts)
            for item in traffic
        ]
        for part in range(parts)
    )
    return [[item for item in cut if item.interrupts] for cut in cuts]
