"""Scenarios: who is there and who does what. TOML in, frozen records out; data, no policy.

A scenario is read strictly: an unknown key, a wrong type or a number out of range is an error that names the place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from vmbusirq.cpumask import bitmap_parselist
from vmbusirq.errors import IrqError
from vmbusirq.generations import X86_ROWS
from vmbusirq.limits import CPUS_MAX, RELID_MAX, RELID_MIN
from vmbusirq.scenario.events import read_events
from vmbusirq.scenario.spec import (
    OFFER_ORDERS,
    ChannelSpec,
    CpuSpec,
    DeviceSpec,
    EventSpec,
    HostSpec,
    PlatformIrq,
    Scenario,
    TimerSpec,
    bare_scenario,
    usual_rows,
)
from vmbusirq.scenario.table import COUNT_MAX, ScenarioError, Table
from vmbusirq.scenario.timeline import check_traffic
from vmbusirq.scenario.timers import read_timers
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE, UNKNOWN, DeviceClass
from vmbusirq.wire.devices import SUB_CHANNEL_CLASSES, UNSUPPORTED_CLASS_IDS
from vmbusirq.wire.protocol import Version

__all__ = [
    "ChannelSpec",
    "CpuSpec",
    "DeviceSpec",
    "EventSpec",
    "HostSpec",
    "PlatformIrq",
    "Scenario",
    "ScenarioError",
    "TimerSpec",
    "bare_scenario",
    "builtin_names",
    "load_scenario",
    "parse_scenario",
]

IPI_LABELS: Final = [f"IPI{number}" for number in range(8)]
MONITOR_IDS: Final = 128
PORT_MAX: Final = 0xFFFF_FFFE  # the last one is VMADDR_PORT_ANY
NETVSC_CHANNELS: Final = 8  # VRSS_CHANNEL_DEFAULT, v6.10


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
        top = Table(where, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{where}{error}") from None
    arch = top.one_of("arch", ("x86", "arm64"), "x86")
    cpus = _read_cpus(top.table("cpus"))
    platform = top.table("platform")
    gsi_top = platform.number("gsi_top", 0, 1024, 24)
    boot = top.table("boot")
    presets = top.table("presets")
    stat = presets.table("stat")
    preset_rows = _read_presets(presets, arch, cpus.possible)
    devices = _read_devices(top)
    channels = _read_channels(top, devices, cpus.present)
    host = _read_host(top.table("host"))
    duration_s = top.number("duration_s", 0, 10_000_000, 0)
    scenario = Scenario(
        name=top.take("name", str, name),
        description=top.take("description", str, ""),
        source=source or name,
        arch=arch,
        cpus=cpus,
        gsi_top=gsi_top,
        legacy_irqs=platform.number("legacy_irqs", 0, 16, 0),
        rows=_read_rows(platform, "rows", usual_rows(arch)),
        impossible=_read_rows(platform, "impossible", ()),
        irqs=_read_irqs(top, cpus.possible, gsi_top),
        devices=devices,
        channels=channels,
        host=host,
        probe_order=_read_probe_order(boot, devices),
        duration_s=duration_s,
        stat={key: stat.number(key, 0, 1 << 62, 0) for key in ("btime", "ctxt", "processes")},
        presets=preset_rows,
        events=read_events(top, devices, channels, host, cpus, arch, duration_s),
        page_kib=_read_page_kib(platform, arch),
        timers=read_timers(top, arch, cpus, preset_rows),
    )
    check_traffic(top, scenario)
    for table in (platform, boot, stat, presets, top):
        table.done()
    return scenario


def _read_cpus(table: Table) -> CpuSpec:
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


def _read_mask(table: Table, key: str, text: Any, possible: int) -> int:
    if not isinstance(text, str):
        raise table.fail(key, 'wants a CPU list such as "0-3,6"')
    try:
        return bitmap_parselist(text.encode(), possible)
    except IrqError as error:
        raise table.fail(key, str(error)) from None


def _read_rows(platform: Table, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    rows = platform.take(key, list, list(default))
    known = [row.label for row in X86_ROWS]
    for row in rows:
        if row not in known:
            raise platform.fail(key, f"no row {row!r}; known: {', '.join(known)}")
    return tuple(rows)


def _read_presets(table: Table, arch: str, possible: int) -> dict[str, tuple[int, ...]]:
    known = [row.label for row in X86_ROWS if row.text is not None] if arch == "x86" else IPI_LABELS
    presets = {}
    for label, value in table.rest().items():
        if label not in known:
            raise table.fail(label, f"no such row; known: {', '.join(known)}")
        presets[label] = table.counts(label, value, possible)
    return presets


def _read_irqs(top: Table, possible: int, gsi_top: int) -> tuple[PlatformIrq, ...]:
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


def _read_page_kib(platform: Table, arch: str) -> int:
    kib = platform.number("page_kib", 4, 64, 4)
    sizes = (4,) if arch == "x86" else (4, 16, 64)
    if kib not in sizes:
        raise platform.fail("page_kib", f"{kib} is no page size of {arch}; choose from {', '.join(map(str, sizes))}")
    return kib


def _read_host(table: Table) -> HostSpec:
    text = table.take("version", str, str(Version.V5_3))
    try:
        version = Version.parse(text)
    except ValueError as error:
        raise table.fail("version", str(error)) from None
    quota = table.number("gpadl_quota_mb", -1, 1 << 20, -1)
    after = table.number("throttle_after", -1, COUNT_MAX, -1)
    host = HostSpec(
        version=version,
        modify_delay_us=table.number("modify_delay_us", 0, 1_000_000_000, 0),
        gpadl_quota_mb=None if quota < 0 else quota,
        throttle_after=None if after < 0 else after,
        throttle_window_us=table.number("throttle_window_us", 1, 1_000_000_000, 1_000_000),
        throttle_us=table.number("throttle_us", 1, 1_000_000_000, 100_000),
        offer_order=table.one_of("offer_order", OFFER_ORDERS, OFFER_ORDERS[0]),
        relids_change_on_resume=table.take("relids_change_on_resume", bool, False),
        hv_sock_ports=_read_ports(table, "hv_sock_ports"),
    )
    table.done()
    return host


def _read_ports(table: Table, key: str) -> tuple[int, ...]:
    ports = table.take(key, list, [])
    for port in ports:
        if type(port) is not int or not 0 <= port <= PORT_MAX:
            raise table.fail(key, f"{port!r} is no port; 0 to {PORT_MAX} is allowed")
    if len(set(ports)) < len(ports):
        raise table.fail(key, "a port is named twice")
    return tuple(ports)


def _read_probe_order(boot: Table, devices: tuple[DeviceSpec, ...]) -> tuple[str, ...]:
    names = [device.name for device in devices]
    order = boot.take("probe_order", list, [])
    for name in order:
        if name not in names:
            raise boot.fail("probe_order", f"no device {name!r}; known: {', '.join(names) or 'none'}")
    if len(set(order)) < len(order):
        raise boot.fail("probe_order", "a device is named twice")
    return tuple(order)


def _read_devices(top: Table) -> tuple[DeviceSpec, ...]:
    devices: list[DeviceSpec] = []
    for table in top.tables("device"):
        device = _read_device(table)
        if any(other.monitored == device.monitored is not None for other in devices):
            raise table.fail("monitored", f"id {device.monitored} is used twice")
        if device.instance and any(other.instance == device.instance for other in devices):
            raise table.fail("instance", f"{device.instance} is used twice")
        devices.append(device)
    return tuple(devices)


def _read_device(table: Table) -> DeviceSpec:
    host = table.number("scsi_host", -1, 65535, -1)
    monitored = table.number("monitored", -1, MONITOR_IDS - 1, -1)
    device = DeviceSpec(
        name=table.name("name"),
        device_class=table.one_of("class", (*CATALOGUE, *UNSUPPORTED_CLASS_IDS)),
        instance=_read_guid(table, "instance"),
        scsi_host=None if host < 0 else host,
        present=table.take("present", bool, True),
        monitored=None if monitored < 0 else monitored,
    )
    table.done()
    return device


def _read_guid(table: Table, key: str) -> str:
    text = table.take(key, str, "")
    try:
        return str(UUID(text)) if text else ""
    except ValueError:
        raise table.fail(key, f"{text!r} is not a GUID; write 8-4-4-4-12 hex digits") from None


def _read_channels(top: Table, devices: tuple[DeviceSpec, ...], cpus: int) -> tuple[ChannelSpec, ...]:
    specs = {device.name: device for device in devices}
    if len(specs) < len(devices):
        raise top.fail("device", "two devices have the same name")
    relids: set[int] = set()
    highest: dict[str, int] = {}
    channels: list[ChannelSpec] = []
    for table in top.tables("channel"):
        for channel in _read_channel(table, specs):
            if channel.relid in relids:
                raise table.fail("relid", f"{channel.relid} is used twice")
            _check_sub(table, channel, specs[channel.device].device_class, highest.get(channel.device, -1), cpus)
            relids.add(channel.relid)
            highest[channel.device] = channel.sub
            channels.append(channel)
    return tuple(channels)


def _check_sub(table: Table, channel: ChannelSpec, device_class: str, highest: int, cpus: int) -> None:
    """Refuse a channel that there cannot be: sub-channels come when the guest's driver asks for them, in order."""
    device, sub = channel.device, channel.sub
    if sub <= highest:
        raise table.fail("sub", f"{device} has a channel {sub} already")
    if sub and highest < 0:
        raise table.fail("sub", f"{device} needs its primary channel first")
    most, rule = _sub_channels_asked_for(device_class, cpus)
    if sub > most:
        count = f"{most} sub-channels" if most else "no sub-channel"
        raise table.fail("sub", f"{device} cannot have a sub-channel {sub}: the guest asks for {count}: {rule}")
    if sub > highest + 1:
        raise table.fail("sub", f"{device} has no channel {highest + 1}; sub-channels are offered in order")


def _sub_channels_asked_for(device_class: str, cpus: int) -> tuple[int, str]:
    """Return how many sub-channels the driver of v6.10 asks for on so many CPUs, and by which rule (vmbus.md 5.4)."""
    if device_class == "netvsc":
        asked = min(NETVSC_CHANNELS, cpus) - 1
        return asked, f"netvsc has min({NETVSC_CHANNELS}, CPUs) channels, and there are {cpus} CPUs"
    if device_class in SUB_CHANNEL_CLASSES:
        return cpus - 1, f"storvsc wants CPUs - 1, and there are {cpus} CPUs"
    return 0, f"a device of class {device_class} has one channel"


def _read_channel(table: Table, specs: Mapping[str, DeviceSpec]) -> list[ChannelSpec]:
    """Read one [[channel]]: ``count`` of them, with relids and sub-channel indices that go up by one."""
    count = table.number("count", 1, RELID_MAX, 1)
    device = table.one_of("device", specs)
    most = _class_of(specs[device]).max_payload
    first = ChannelSpec(
        device=device,
        relid=table.number("relid", RELID_MIN, RELID_MAX + 1 - count),
        sub=table.number("sub", 0, RELID_MAX, 0),
        interrupts=table.number("interrupts", 0, COUNT_MAX, 0),
        packets=table.number("packets", 1, 4096, 1),
        payload=table.number("payload", 0, most, min(64, most)),
    )
    table.done()
    return [replace(first, relid=first.relid + i, sub=first.sub + i) for i in range(count)]


def _class_of(device: DeviceSpec) -> DeviceClass:
    return CATALOGUE.get(device.device_class, UNKNOWN)
