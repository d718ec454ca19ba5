"""Scenarios: who is there and who does what. TOML in, frozen records out; data, no policy.

A scenario is read strictly: an unknown key, a wrong type or a number out of range is an error that names the place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from vmbusirq.cpumask import bitmap_parselist
from vmbusirq.errors import IrqError
from vmbusirq.generations import X86_ROWS
from vmbusirq.limits import CPUS_MAX, RELID_MAX, RELID_MIN
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE, UNKNOWN, DeviceClass
from vmbusirq.wire.devices import UNSUPPORTED_CLASS_IDS
from vmbusirq.wire.protocol import Version

__all__ = [
    "ChannelSpec",
    "CpuSpec",
    "DeviceSpec",
    "HostSpec",
    "PlatformIrq",
    "Scenario",
    "ScenarioError",
    "bare_scenario",
    "builtin_names",
    "load_scenario",
    "parse_scenario",
]

T = TypeVar("T")
ROWS_SELDOM_BUILT: Final = ("PLT", "PMN")  # UV machines; CONFIG_X86_POSTED_MSI, off by default
IPI_LABELS: Final = [f"IPI{number}" for number in range(8)]
_COUNT_MAX: Final = 0xFFFF_FFFF
_TOML_WORDS: Final[dict[type, str]] = {
    str: "a string",
    int: "an integer",
    float: "a float",
    bool: "a boolean",
    list: "an array",
    dict: "a table",
}


class ScenarioError(ValueError):
    """A scenario that cannot be used; the message names the file, the key and what is allowed."""


@dataclass(frozen=True, slots=True)
class CpuSpec:
    """The CPUs of a machine.

    Attributes:
        possible: how many the kernel reserves room for (nr_cpu_ids).
        present: how many the host really has; the others were announced and never come.
        isolated: mask of CPUs under isolcpus=managed_irq.
        nodes: mask of the possible CPUs of each NUMA node.
    """

    possible: int
    present: int
    isolated: int
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlatformIrq:
    """An IRQ outside VMBus: an IO-APIC line. ``counts`` are the interrupts to raise, by CPU."""

    irq: int
    name: str
    chip: str
    hwirq: int
    flow: str
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device: its name here, its class in the catalogue, its instance GUID, its SCSI host number if it is one."""

    name: str
    device_class: str
    instance: str
    scsi_host: int | None


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """One channel, in the order in which offers are processed.

    Attributes:
        device: name of its device.
        relid: 1 to 2047.
        sub: sub-channel index, 0 for the primary.
        interrupts: how many the traffic raises.
        packets: packets per interrupt.
        payload: bytes per packet.
    """

    device: str
    relid: int
    sub: int
    interrupts: int
    packets: int
    payload: int


@dataclass(frozen=True, slots=True)
class HostSpec:
    """How the host behaves.

    Attributes:
        version: the newest protocol version that it speaks.
        modify_delay_us: from MODIFYCHANNEL to its effect, in microseconds.
    """

    version: Version = Version.V5_3
    modify_delay_us: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A machine and its traffic.

    Attributes:
        source: what errors call it: a path or a built-in name.
        arch: ``x86`` or ``arm64``.
        gsi_top: first IRQ above the IO-APICs (x86), which is where dynamic IRQs begin.
        legacy_irqs: IRQs of a PIC, 0 on a Generation 2 machine.
        rows: x86 architecture rows that this kernel configuration shows.
        impossible: of them, rows whose cause cannot occur on this machine; some kernels leave those out.
        presets: values of rows and counters that nothing models; a row has one number per possible CPU.
        host: how the host behaves.
        probe_order: names of devices in the order in which their drivers probe them; the others follow in the order of
            their offers.
        duration_s: virtual time that the traffic takes.
    """

    name: str
    description: str
    source: str
    arch: str
    cpus: CpuSpec
    gsi_top: int
    legacy_irqs: int
    rows: tuple[str, ...]
    impossible: tuple[str, ...]
    irqs: tuple[PlatformIrq, ...]
    devices: tuple[DeviceSpec, ...]
    channels: tuple[ChannelSpec, ...]
    host: HostSpec
    probe_order: tuple[str, ...]
    duration_s: int
    presets: Mapping[str, tuple[int, ...]]
    stat: Mapping[str, int]


def bare_scenario(cpus: int, arch: str) -> Scenario:
    """Return a scenario with nobody in it. Whether the numbers make sense is for the machine to say."""
    rows = tuple(row.label for row in X86_ROWS if row.label not in ROWS_SELDOM_BUILT) if arch == "x86" else ()
    return Scenario(
        name="bare",
        description="a machine without devices",
        source="bare",
        arch=arch,
        cpus=CpuSpec(cpus, cpus, 0, ((1 << max(cpus, 0)) - 1,)),
        gsi_top=24,
        legacy_irqs=0,
        rows=rows,
        impossible=(),
        irqs=(),
        devices=(),
        channels=(),
        host=HostSpec(),
        probe_order=(),
        duration_s=0,
        presets={},
        stat={},
    )


class _Table:
    """A TOML table that knows where it is and complains about what nobody asked for."""

    def __init__(self, where: str, data: Mapping[str, Any]) -> None:
        self.where = where
        self._data = dict(data)
        self._asked: list[str] = []

    def fail(self, key: str, what: str) -> ScenarioError:
        return ScenarioError(f"{self.where}{key}: {what}")

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        self._asked.append(key)
        if key not in self._data:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        value = self._data.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fail(key, f"wants {_TOML_WORDS[kind]}, not {_TOML_WORDS.get(type(value), 'a date or time')}")
        return value

    def name(self, key: str, default: str | None = None) -> str:
        value = self.take(key, str, default)
        if not value or not value.isprintable():
            raise self.fail(key, f"{value!r} is no name: one line of printable characters")
        return value

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.take(key, int, default)
        if not low <= value <= high:
            raise self.fail(key, f"{value} is out of range; {low} to {high} is allowed")
        return value

    def one_of(self, key: str, choices: Mapping[str, Any] | tuple[str, ...], default: str | None = None) -> str:
        value = self.take(key, str, default)
        if value not in choices:
            raise self.fail(key, f"no {value!r}; choose from {', '.join(choices)}")
        return value

    def tables(self, key: str) -> list[_Table]:
        rows = self.take(key, list, [])
        if not all(isinstance(row, dict) for row in rows):
            raise self.fail(key, f"wants [[{key}]] tables")
        return [_Table(f"{self.where}{key}[{i}].", row) for i, row in enumerate(rows)]

    def table(self, key: str) -> _Table:
        return _Table(f"{self.where}{key}.", self.take(key, dict, {}))

    def rest(self) -> dict[str, Any]:
        rest, self._data = self._data, {}
        return rest

    def counts(self, key: str, value: Any, possible: int) -> tuple[int, ...]:
        if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= _COUNT_MAX for n in value):
            raise self.fail(key, "wants a list of counts, 0 to 4294967295")
        if len(value) > possible:
            raise self.fail(key, f"has {len(value)} numbers for {possible} CPUs")
        return tuple(value) + (0,) * (possible - len(value))

    def done(self) -> None:
        for key in self._data:
            near = get_close_matches(key, self._asked, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(self._asked)}"
            raise self.fail(key, f"unknown key{hint}")


def builtin_names() -> list[str]:
    """Return the names of the built-in scenarios, sorted."""
    folder = resources.files("vmbusirq.scenario") / "builtin"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_scenario(name: str) -> Scenario:
    """Read a built-in scenario by name, or a TOML file by path.

    Raises:
        ScenarioError: no such scenario, or one that cannot be used.
    """
    if name in builtin_names():
        text = (resources.files("vmbusirq.scenario") / "builtin" / f"{name}.toml").read_text(encoding="utf-8")
        return parse_scenario(text, name)
    path = Path(name)
    if not name:
        raise ScenarioError(f"a scenario needs a name or a path; built in: {', '.join(builtin_names())}")
    try:
        return parse_scenario(path.read_bytes().decode("utf-8"), path.stem, str(path))
    except FileNotFoundError:
        built_in = ", ".join(builtin_names())
        raise ScenarioError(f"no scenario {name!r}: it is neither a file nor built in ({built_in})") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ScenarioError(f"cannot read scenario {name!r}: {reason}") from None


def parse_scenario(text: str, name: str, source: str | None = None) -> Scenario:
    """Read a scenario from TOML text. ``name`` is used when the text has none; ``source`` is what errors call it."""
    where = f"{source or name}: "
    try:
        top = _Table(where, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{where}{error}") from None
    arch = top.one_of("arch", ("x86", "arm64"), "x86")
    cpus = _read_cpus(top.table("cpus"))
    platform = top.table("platform")
    gsi_top = platform.number("gsi_top", 0, 1024, 24)
    boot = top.table("boot")
    presets = top.table("presets")
    stat = presets.table("stat")
    devices = tuple(_read_device(table) for table in top.tables("device"))
    scenario = Scenario(
        name=top.take("name", str, name),
        description=top.take("description", str, ""),
        source=source or name,
        arch=arch,
        cpus=cpus,
        gsi_top=gsi_top,
        legacy_irqs=platform.number("legacy_irqs", 0, 16, 0),
        rows=_read_rows(platform, "rows"),
        impossible=_read_rows(platform, "impossible"),
        irqs=_read_irqs(top, cpus.possible, gsi_top),
        devices=devices,
        channels=_read_channels(top, devices),
        host=_read_host(top.table("host")),
        probe_order=_read_probe_order(boot, devices),
        duration_s=top.number("duration_s", 0, 10_000_000, 0),
        stat={key: stat.number(key, 0, 1 << 62, 0) for key in ("btime", "ctxt", "processes")},
        presets=_read_presets(presets, arch, cpus.possible),
    )
    for table in (platform, boot, stat, presets, top):
        table.done()
    return scenario


def _read_cpus(table: _Table) -> CpuSpec:
    possible = table.number("possible", 1, CPUS_MAX)
    present = table.number("present", 1, possible, possible)
    isolated = _read_mask(table, "isolated", table.take("isolated", str, ""), possible)
    nodes = table.take("nodes", list, [f"0-{possible - 1}"])
    masks = tuple(_read_mask(table, "nodes", node, possible) for node in nodes)
    everybody = 0
    for mask in masks:
        if mask & everybody:
            raise table.fail("nodes", "a CPU is in two nodes")
        everybody |= mask
    if everybody != (1 << possible) - 1:
        raise table.fail("nodes", f"together they must hold CPUs 0 to {possible - 1}")
    table.done()
    return CpuSpec(possible, present, isolated, masks)


def _read_mask(table: _Table, key: str, text: Any, possible: int) -> int:
    if not isinstance(text, str):
        raise table.fail(key, 'wants a CPU list such as "0-3,6"')
    try:
        return bitmap_parselist(text.encode(), possible)
    except IrqError as error:
        raise table.fail(key, str(error)) from None


def _read_rows(platform: _Table, key: str) -> tuple[str, ...]:
    rows = platform.take(key, list, [])
    known = [row.label for row in X86_ROWS]
    for row in rows:
        if row not in known:
            raise platform.fail(key, f"no row {row!r}; known: {', '.join(known)}")
    return tuple(rows)


def _read_presets(table: _Table, arch: str, possible: int) -> dict[str, tuple[int, ...]]:
    known = [row.label for row in X86_ROWS if row.text is not None] if arch == "x86" else IPI_LABELS
    presets = {}
    for label, value in table.rest().items():
        if label not in known:
            raise table.fail(label, f"no such row; known: {', '.join(known)}")
        presets[label] = table.counts(label, value, possible)
    return presets


def _read_irqs(top: _Table, possible: int, gsi_top: int) -> tuple[PlatformIrq, ...]:
    irqs: list[PlatformIrq] = []
    for table in top.tables("irq"):
        line = PlatformIrq(
            irq=table.number("irq", 0, max(gsi_top - 1, 0)),
            name=table.name("name"),
            chip=table.name("chip", "IO-APIC"),
            hwirq=table.number("hwirq", 0, max(gsi_top - 1, 0)),
            flow=table.one_of("flow", ("edge", "fasteoi", "level")),
            counts=table.counts("counts", table.take("counts", list, []), possible),
        )
        table.done()
        for other in irqs:
            if line.irq == other.irq or line.hwirq == other.hwirq:
                raise table.fail("irq", f"{line.irq} or its hwirq {line.hwirq} is used twice")
        irqs.append(line)
    return tuple(irqs)


def _read_host(table: _Table) -> HostSpec:
    try:
        version = Version.parse(table.take("version", str, str(Version.V5_3)))
    except ValueError as error:
        raise table.fail("version", str(error)) from None
    host = HostSpec(version, table.number("modify_delay_us", 0, 1_000_000_000, 0))
    table.done()
    return host


def _read_probe_order(boot: _Table, devices: tuple[DeviceSpec, ...]) -> tuple[str, ...]:
    names = [device.name for device in devices]
    order = boot.take("probe_order", list, [])
    for name in order:
        if name not in names:
            raise boot.fail("probe_order", f"no device {name!r}; known: {', '.join(names) or 'none'}")
    if len(set(order)) < len(order):
        raise boot.fail("probe_order", "a device is named twice")
    return tuple(order)


def _read_device(table: _Table) -> DeviceSpec:
    host = table.number("scsi_host", -1, 65535, -1)
    device = DeviceSpec(
        name=table.name("name"),
        device_class=table.one_of("class", (*CATALOGUE, *UNSUPPORTED_CLASS_IDS)),
        instance=_read_guid(table, "instance"),
        scsi_host=None if host < 0 else host,
    )
    table.done()
    return device


def _read_guid(table: _Table, key: str) -> str:
    text = table.take(key, str, "")
    try:
        return str(UUID(text)) if text else ""
    except ValueError:
        raise table.fail(key, f"{text!r} is not a GUID; write 8-4-4-4-12 hex digits") from None


def _read_channels(top: _Table, devices: tuple[DeviceSpec, ...]) -> tuple[ChannelSpec, ...]:
    classes = {device.name: CATALOGUE.get(device.device_class, UNKNOWN) for device in devices}
    if len(classes) < len(devices):
        raise top.fail("device", "two devices have the same name")
    relids: set[int] = set()
    places: set[tuple[str, int]] = set()
    channels: list[ChannelSpec] = []
    for table in top.tables("channel"):
        for channel in _read_channel(table, classes):
            if channel.relid in relids:
                raise table.fail("relid", f"{channel.relid} is used twice")
            if (channel.device, channel.sub) in places:
                raise table.fail("sub", f"{channel.device} has a channel {channel.sub} already")
            if channel.sub and (channel.device, 0) not in places:
                raise table.fail("sub", f"{channel.device} needs its primary channel first")
            relids.add(channel.relid)
            places.add((channel.device, channel.sub))
            channels.append(channel)
    return tuple(channels)


def _read_channel(table: _Table, classes: Mapping[str, DeviceClass]) -> list[ChannelSpec]:
    """Read one [[channel]]: ``count`` of them, with relids and sub-channel indices that go up by one."""
    count = table.number("count", 1, RELID_MAX, 1)
    device = table.one_of("device", classes)
    first = ChannelSpec(
        device=device,
        relid=table.number("relid", RELID_MIN, RELID_MAX + 1 - count),
        sub=table.number("sub", 0, RELID_MAX, 0),
        interrupts=table.number("interrupts", 0, _COUNT_MAX, 0),
        packets=table.number("packets", 1, 4096, 1),
        payload=table.number("payload", 0, classes[device].max_payload, min(64, classes[device].max_payload)),
    )
    table.done()
    return [replace(first, relid=first.relid + i, sub=first.sub + i) for i in range(count)]
