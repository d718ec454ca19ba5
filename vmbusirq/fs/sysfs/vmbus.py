"""/sys/bus/vmbus and the devices behind it (drivers/hv/vmbus_drv.c, v6.10; formats: vmbus.md 6).

Access rules: reads take no lock of the control plane and may come from any thread; a write to ``cpu`` belongs to the
machine's owner thread. A file found before its channel or device was removed never speaks of a later one.
"""

from __future__ import annotations

import errno
import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.fs.filesystem import FileSystem
from vmbusirq.fs.node import SYSFS, Directory, File, Node, StaticDirectory, Symlink
from vmbusirq.fs.procfs.irq import irq_number
from vmbusirq.fs.sysfs.kernel_irq import PAGE_TEXT
from vmbusirq.vmbus.channel import Channel, ChannelStats, RingState
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE

__all__ = ["add_vmbus_files"]

BUS_DIR: Final = "/sys/bus/vmbus"
ROOT_PARENT: Final = "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00"  # as on a Generation 2 machine
ROOT_NAME: Final = "VMBUS:00"
ROOT_DIR: Final = f"{ROOT_PARENT}/{ROOT_NAME}"
VENDOR: Final = 0x1414
PAGE: Final = PAGE_TEXT + 1
_SYNTH_UEVENT: Final = re.compile(
    rb"(?:add|remove|change|move|online|offline|bind|unbind)"
    rb"(?: [0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?: [0-9A-Za-z]+=[0-9A-Za-z]+)*)?[\n\0]?"
)


def _taken(store: Callable[[bytes], int], data: bytes) -> int:
    """Hand one write over as sysfs does: a page of it at most, and nothing is not a value (fs/sysfs/file.c)."""
    return store(data[:PAGE]) if data else 0


def _s32(value: int) -> int:
    """Return a 32-bit word as ``%d`` prints it."""
    return value - (1 << 32) if value >> 31 else value


def _braces(guid: UUID) -> str:
    return f"{{{guid}}}"


# ---- a channel


@dataclass(frozen=True, slots=True)
class _ChannelFile:
    """One file of channels/<relid>: what it shows, and for the one that can be written what takes it."""

    show: Callable[[Channel], int]
    store: Callable[[VmbusConnection, Channel, bytes], int] | None = None


def _stat(name: str) -> _ChannelFile:
    assert name in ChannelStats.__slots__
    return _ChannelFile(lambda channel: int(getattr(channel.stats, name)))


_CHANNEL_FILES: Final[dict[str, _ChannelFile]] = {
    "out_mask": _ChannelFile(lambda channel: channel.ring_out.interrupt_mask),
    "in_mask": _ChannelFile(lambda channel: channel.ring_in.interrupt_mask),
    "read_avail": _ChannelFile(lambda channel: channel.ring_in.bytes_to_read),
    "write_avail": _ChannelFile(lambda channel: channel.ring_out.bytes_to_write),
    "cpu": _ChannelFile(lambda channel: channel.target_cpu, VmbusConnection.target_cpu_store),
    "subchannel_id": _ChannelFile(lambda channel: channel.sub_channel_index),
    "interrupts": _stat("interrupts"),
    "events": _stat("sig_events"),
    "intr_in_full": _stat("intr_in_full"),
    "intr_out_empty": _stat("intr_out_empty"),
    "out_full_first": _stat("out_full_first"),
    "out_full_total": _stat("out_full_total"),
}


class _ChannelDir(Directory):
    """channels/<relid>."""

    __slots__ = ("_channel", "_vmbus")

    def __init__(self, vmbus: VmbusConnection, device: HvDevice, channel: Channel) -> None:
        super().__init__(str(channel.relid), SYSFS, alive=lambda: not (channel.gone or device.removed))
        self._vmbus = vmbus
        self._channel = channel

    def names(self) -> Iterable[str]:
        """Return the files; those of a monitor are there only when one is allocated, which is never."""
        return _CHANNEL_FILES if self.alive() else ()

    def lookup(self, name: str) -> Node | None:
        """Return a file."""
        file, channel = _CHANNEL_FILES.get(name), self._channel
        if file is None or not self.alive():
            return None
        show = partial(_show_number, file, channel)
        if file.store is None:
            return File(name, 0o444, SYSFS, show, alive=self.alive)
        return File(name, 0o644, SYSFS, show, partial(_taken, partial(file.store, self._vmbus, channel)), self.alive)


def _show_number(file: _ChannelFile, channel: Channel) -> bytes:
    return b"%d\n" % file.show(channel)


class _ChannelsDir(Directory):
    """devices/<guid>/channels."""

    __slots__ = ("_device", "_vmbus")

    def __init__(self, vmbus: VmbusConnection, device: HvDevice) -> None:
        super().__init__("channels", SYSFS, alive=lambda: not device.removed)
        self._vmbus = vmbus
        self._device = device

    def _channels(self) -> tuple[Channel, ...]:
        return () if self._device.removed else tuple(self._device.channels)

    def names(self) -> Iterable[str]:
        """Return the relids."""
        return [str(channel.relid) for channel in self._channels()]

    def lookup(self, name: str) -> Node | None:
        """Return the directory of a channel."""
        relid = irq_number(name)
        channel = next((channel for channel in self._channels() if channel.relid == relid), None)
        return None if channel is None else _ChannelDir(self._vmbus, self._device, channel)


# ---- a device


def _channel_vp_mapping(vmbus: VmbusConnection, device: HvDevice) -> str:
    return "\n".join(f"{channel.relid}:{channel.target_cpu}" for channel in tuple(device.channels))


def _driver_override(vmbus: VmbusConnection, device: HvDevice) -> str:
    return "(null)" if device.driver_override is None else device.driver_override.decode("latin-1")


def _uevent(vmbus: VmbusConnection, device: HvDevice) -> str:
    return f"DRIVER={device.device_class.driver}\nMODALIAS={device.modalias}"


def _uevent_store(device: HvDevice, text: bytes) -> int:
    """Check a synthetic event (lib/kobject_uevent.c); there is nobody to send it to."""
    if not _SYNTH_UEVENT.fullmatch(text):
        raise IrqError(
            errno.EINVAL,
            f"device {device.guid}: {text[:40].decode('latin-1')!a} is no event; write add or change",
        )
    return len(text)


_DeviceShow = Callable[[VmbusConnection, HvDevice], str]


def _ring_files(prefix: str, ring: Callable[[Channel], RingState]) -> dict[str, _DeviceShow]:
    """Return the files that show one ring of the primary channel."""

    def show(field: str, vmbus: VmbusConnection, device: HvDevice) -> str:
        return str(_s32(getattr(ring(device.primary), field)))

    fields = {
        "intr_mask": "interrupt_mask",
        "read_index": "read_index",
        "write_index": "write_index",
        "read_bytes_avail": "bytes_to_read",
        "write_bytes_avail": "bytes_to_write",
    }
    return {f"{prefix}_{name}": partial(show, field) for name, field in fields.items()}


_DEVICE_FILES: Final[dict[str, _DeviceShow]] = {
    "id": lambda vmbus, device: str(device.primary.relid),
    "state": lambda vmbus, device: str(int(device.primary.state)),
    "class_id": lambda vmbus, device: _braces(device.class_id),
    "device_id": lambda vmbus, device: _braces(device.instance),
    "modalias": lambda vmbus, device: device.modalias,
    "uevent": _uevent,
    "vendor": lambda vmbus, device: f"{VENDOR:#x}",
    "device": lambda vmbus, device: f"{device.index:#x}",
    "numa_node": lambda vmbus, device: str(vmbus.cpu_to_node(device.primary.target_cpu)),
    "channel_vp_mapping": _channel_vp_mapping,
    **_ring_files("out", lambda channel: channel.ring_out),
    **_ring_files("in", lambda channel: channel.ring_in),
    "driver_override": _driver_override,
}
_DEVICE_STORES: Final[dict[str, Callable[[HvDevice, bytes], int]]] = {
    "uevent": _uevent_store,
    "driver_override": HvDevice.driver_override_store,
}


def _show_text(show: _DeviceShow, vmbus: VmbusConnection, device: HvDevice) -> bytes:
    return f"{show(vmbus, device)}\n".encode("latin-1")[:PAGE_TEXT]


def _link(directory: str, name: str, target: str) -> Symlink:
    """Return a link in ``directory`` that leads to ``target``, relative as sysfs makes them."""
    return Symlink(name, SYSFS, posixpath.relpath(target, directory))


class _DeviceDir(Directory):
    """A device's own directory."""

    __slots__ = ("_device", "_vmbus")

    def __init__(self, vmbus: VmbusConnection, device: HvDevice) -> None:
        super().__init__(device.guid, SYSFS, alive=lambda: not device.removed)
        self._vmbus = vmbus
        self._device = device

    def names(self) -> Iterable[str]:
        """Return the files, the channels and the links to bus and driver."""
        return (*_DEVICE_FILES, "channels", "driver", "subsystem") if self.alive() else ()

    def lookup(self, name: str) -> Node | None:
        """Return one of them."""
        vmbus, device = self._vmbus, self._device
        here = f"{ROOT_DIR}/{device.guid}"
        if not self.alive():
            return None
        if name == "channels":
            return _ChannelsDir(vmbus, device)
        if name == "driver":
            return _link(here, name, f"{BUS_DIR}/drivers/{device.device_class.driver}")
        if name == "subsystem":
            return _link(here, name, BUS_DIR)
        show, store = _DEVICE_FILES.get(name), _DEVICE_STORES.get(name)
        if show is None:
            return None
        taken = None if store is None else partial(_taken, partial(store, device))
        perm = 0o444 if store is None else 0o644
        return File(name, perm, SYSFS, partial(_show_text, show, vmbus, device), taken, self.alive)


# ---- the bus


def _all(device: HvDevice) -> bool:
    return True


class _Devices(Directory):
    """A directory with something in it per device, by instance GUID."""

    __slots__ = ("_shown", "_vmbus")

    def __init__(self, name: str, vmbus: VmbusConnection, shown: Callable[[HvDevice], bool] = _all) -> None:
        super().__init__(name, SYSFS)
        self._vmbus = vmbus
        self._shown = shown

    def names(self) -> Iterable[str]:
        """Return the GUIDs."""
        return [device.guid for device in tuple(self._vmbus.devices.values()) if self._shown(device)]

    def _find(self, name: str) -> HvDevice | None:
        try:
            device = self._vmbus.devices.get(UUID(name))
        except ValueError:
            return None
        return device if device is not None and device.guid == name and self._shown(device) else None


class _RootDir(_Devices):
    """The directory of the bus controller, which has the devices' own directories."""

    __slots__ = ()

    def lookup(self, name: str) -> Node | None:
        """Return the directory of a device."""
        device = self._find(name)
        return None if device is None else _DeviceDir(self._vmbus, device)


class _LinksDir(_Devices):
    """A directory ``path`` of links to devices: those of the bus, or those of a driver."""

    __slots__ = ("_path",)

    def __init__(self, path: str, vmbus: VmbusConnection, shown: Callable[[HvDevice], bool] = _all) -> None:
        super().__init__(posixpath.basename(path), vmbus, shown)
        self._path = path

    def lookup(self, name: str) -> Node | None:
        """Return the link to a device."""
        device = self._find(name)
        return None if device is None else _link(self._path, name, f"{ROOT_DIR}/{name}")


def _driver_dir(name: str, vmbus: VmbusConnection) -> Directory:
    return _LinksDir(f"{BUS_DIR}/drivers/{name}", vmbus, lambda device: device.device_class.driver == name)


def add_vmbus_files(files: FileSystem, vmbus: VmbusConnection) -> None:
    """Add the bus, its drivers and its devices to the files of a kernel.

    There is a driver for every class of the catalogue, and no host here lets the machine hibernate.
    """
    drivers = sorted({device_class.driver for device_class in CATALOGUE.values()})
    files.add(ROOT_PARENT, _RootDir(ROOT_NAME, vmbus))
    files.add(BUS_DIR, File("hibernation", 0o444, SYSFS, lambda: b"0\n"))
    files.add(BUS_DIR, _LinksDir(f"{BUS_DIR}/devices", vmbus))
    files.add(BUS_DIR, StaticDirectory("drivers", SYSFS, [_driver_dir(name, vmbus) for name in drivers]))
