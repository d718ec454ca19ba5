"""The [[event]] tables of a scenario: what happens while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from vmbusirq.cpumask import bitmap_parselist
from vmbusirq.errors import IrqError
from vmbusirq.limits import RELID_MAX, RELID_MIN
from vmbusirq.scenario.spec import ACTIONS, ChannelSpec, CpuSpec, DeviceSpec, EventSpec, HostSpec
from vmbusirq.scenario.table import Table
from vmbusirq.scenario.timeline import Course, OutOfTurn
from vmbusirq.vmbus.drivers.hv_sock import CHUNK
from vmbusirq.wire.protocol import Version

__all__ = ["read_events"]

HV_SOCK_SINCE: Final = Version.V4_0
PACKETS_MAX: Final = 4096
PORT_MAX: Final = 0xFFFF_FFFE
SIDES: Final = ("guest", "host")


def read_events(
    top: Table,
    devices: Sequence[DeviceSpec],
    channels: Sequence[ChannelSpec],
    host: HostSpec,
    cpus: CpuSpec,
    arch: str,
    duration_s: int,
) -> tuple[EventSpec, ...]:
    """Read [[event]] tables and follow their course.

    Returns:
        The events in order of time; at one time, in the order of the file.
    Raises:
        ScenarioError: an event that is not well formed, or that cannot happen when it should.
    """
    reader = _Reader(devices, channels, host, cpus, arch)
    pairs = [(reader.read(table, duration_s), table) for table in top.tables("event")]
    pairs.sort(key=lambda pair: pair[0].at)
    course = Course(devices, channels)
    for event, table in pairs:
        try:
            course.apply(event)
        except OutOfTurn as error:
            raise table.fail(error.key, str(error)) from None
    return tuple(event for event, _ in pairs)


class _Reader:
    """Reads one table at a time, and knows whom it may name."""

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        channels: Sequence[ChannelSpec],
        host: HostSpec,
        cpus: CpuSpec,
        arch: str,
    ) -> None:
        self._devices = {device.name: device for device in devices}
        self._places = {spec.relid: (spec.device, spec.sub) for spec in channels}
        self._host = host
        self._cpus = cpus
        self._arch = arch
        self._bodies: Mapping[str, Callable[[Table, int], EventSpec]] = {
            "hot-add": self._hot_add,
            "rescind": self._rescind,
            "suspend": lambda _table, at: EventSpec(at, "suspend"),
            "resume": lambda _table, at: EventSpec(at, "resume"),
            "connect": self._connect,
            "disconnect": self._disconnect,
            "affinity": self._affinity,
            "offline": lambda table, at: self._hotplug("offline", table, at),
            "online": lambda table, at: self._hotplug("online", table, at),
        }

    def read(self, table: Table, duration_s: int) -> EventSpec:
        at = table.ticks("at_s", duration_s)
        event = self._bodies[table.one_of("action", ACTIONS)](table, at)
        table.done()
        return event

    def _hot_add(self, table: Table, at: int) -> EventSpec:
        return EventSpec(at, "hot-add", table.one_of("device", self._devices))

    def _rescind(self, table: Table, at: int) -> EventSpec:
        if table.given("device") and table.given("relid"):
            raise table.fail("relid", "a rescind names a device or a relid, not both")
        if table.given("relid"):
            device, sub = self._place(table)
            return EventSpec(at, "rescind", device, sub)
        return EventSpec(at, "rescind", table.one_of("device", self._devices))

    def _place(self, table: Table) -> tuple[str, int]:
        relid = table.number("relid", RELID_MIN, RELID_MAX)
        if relid not in self._places:
            known = ", ".join(map(str, sorted(self._places))) or "none"
            raise table.fail("relid", f"no [[channel]] has relid {relid}; known: {known}")
        return self._places[relid]

    def _affinity(self, table: Table, at: int) -> EventSpec:
        device, sub = self._place(table)
        cpus, mask = self._cpu_list(table)
        if not mask & ((1 << self._cpus.present) - 1) & ~self._cpus.isolated:
            raise table.fail("cpus", f"{cpus!r} has no CPU that is online and not isolated")
        return EventSpec(at, "affinity", device, sub, cpus)

    def _cpu_list(self, table: Table) -> tuple[str, int]:
        """Take a CPU list; return it and its mask."""
        cpus = table.take("cpus", str)
        try:
            return cpus, bitmap_parselist(cpus.encode(), self._cpus.possible)
        except IrqError as error:
            raise table.fail("cpus", str(error)) from None

    def _hotplug(self, action: str, table: Table, at: int) -> EventSpec:
        cpus, mask = self._cpu_list(table)
        if not mask:
            raise table.fail("cpus", f"{cpus!r} names no CPU")
        if mask >> self._cpus.present:
            raise table.fail("cpus", f"{cpus!r}: CPUs from {self._cpus.present} on are not present")
        if self._arch == "x86" and mask & 1:
            raise table.fail("cpus", f"{cpus!r}: CPU 0 of x86 is always online; leave it out")
        return EventSpec(at, action, cpus=cpus)

    def _connect(self, table: Table, at: int) -> EventSpec:
        if self._host.version < HV_SOCK_SINCE:
            raise table.fail(
                "action", f"connect needs a host of version {HV_SOCK_SINCE}; this one speaks {self._host.version}"
            )
        by_host = table.one_of("by", SIDES, "guest") == "host"
        port = table.number("port", 0, PORT_MAX)
        return EventSpec(
            at,
            "connect",
            connection=table.name("connection"),
            by_host=by_host,
            port=port,
            packets=table.number("packets", 0, PACKETS_MAX, 2),
            payload=table.number("payload", 1, CHUNK, 64),
            accepted=by_host or port in self._host.hv_sock_ports,
        )

    def _disconnect(self, table: Table, at: int) -> EventSpec:
        by_host = table.one_of("by", SIDES, "guest") == "host"
        return EventSpec(at, "disconnect", connection=table.name("connection"), by_host=by_host)
