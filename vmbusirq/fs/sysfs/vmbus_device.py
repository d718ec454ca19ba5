"""A device's own directory (vmbus_dev_groups in drivers/hv/vmbus_drv.c, v6.10; formats: vmbus.md 6.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final
from uuid import UUID

from vmbusirq.fs.node import SYSFS, Directory, File, Node
from vmbusirq.fs.sysfs.attributes import BUS_DIR, ROOT_DIR, link, page, taken, uevent
from vmbusirq.fs.sysfs.vmbus_channel import ChannelsDir, signed
from vmbusirq.vmbus.channel import Channel, RingState
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.monitor import MonitorPage

__all__ = ["DeviceDir"]

VENDOR: Final = 0x1414

_Show = Callable[[VmbusConnection, HvDevice], str]


def _braces(guid: UUID) -> str:
    return f"{{{guid}}}"


def _channel_vp_mapping(vmbus: VmbusConnection, device: HvDevice) -> str:
    return "\n".join(f"{channel.relid}:{channel.target_cpu}" for channel in tuple(device.channels))


def _driver_override(vmbus: VmbusConnection, device: HvDevice) -> str:
    return "(null)" if device.driver_override is None else device.driver_override.decode("latin-1")


def _uevent(vmbus: VmbusConnection, device: HvDevice) -> str:
    bound = "" if device.driver is None else f"DRIVER={device.driver.name}\n"
    return f"{bound}MODALIAS={device.modalias}"


def _ring_files(prefix: str, ring: Callable[[Channel], RingState]) -> dict[str, _Show]:
    """Return the files that show one ring of the primary channel."""

    def show(field: str, vmbus: VmbusConnection, device: HvDevice) -> str:
        return str(signed(getattr(ring(device.primary), field)))

    fields = {
        "intr_mask": "interrupt_mask",
        "read_index": "read_index",
        "write_index": "write_index",
        "read_bytes_avail": "bytes_to_read",
        "write_bytes_avail": "bytes_to_write",
    }
    return {f"{prefix}_{name}": partial(show, field) for name, field in fields.items()}


def _monitor_files(prefix: str, which: MonitorPage) -> dict[str, _Show]:
    """Return the files that show one page's entry of the primary channel's monitor."""

    def show(field: str, vmbus: VmbusConnection, device: HvDevice) -> str:
        return str(signed(getattr(vmbus.monitors.look(device.primary, which), field)))

    fields = {"pending": "pending", "latency": "latency", "conn_id": "connection_id"}
    return {f"{prefix}_monitor_{name}": partial(show, field) for name, field in fields.items()}


_MONITOR_FILES: Final[dict[str, _Show]] = {
    "monitor_id": lambda vmbus, device: str(device.primary.offer.monitorid),
    **_monitor_files("server", MonitorPage.SERVER),
    **_monitor_files("client", MonitorPage.CLIENT),
}
_FILES: Final[dict[str, _Show]] = {
    "id": lambda vmbus, device: str(signed(device.primary.relid)),
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
    **_MONITOR_FILES,
}
_STORES: Final[dict[str, Callable[[HvDevice, bytes], int]]] = {
    "uevent": lambda device, text: uevent(f"device {device.guid}", text),
    "driver_override": HvDevice.driver_override_store,
}


class DeviceDir(Directory):
    """A device's own directory. Monitor files are there when the offer has a monitor, ``driver`` while one is bound."""

    __slots__ = ("_device", "_vmbus")

    def __init__(self, vmbus: VmbusConnection, device: HvDevice) -> None:
        super().__init__(device.guid, SYSFS, alive=lambda: device.registered)
        self._vmbus = vmbus
        self._device = device

    def _is_there(self, name: str) -> bool:
        return name not in _MONITOR_FILES or self._device.primary.offer.is_monitored

    def names(self) -> Iterable[str]:
        """Return the files, the channels and the links to bus and driver."""
        if not self.alive():
            return ()
        driver = () if self._device.driver is None else ("driver",)
        return (*filter(self._is_there, _FILES), "channels", *driver, "subsystem")

    def lookup(self, name: str) -> Node | None:
        """Return one of them."""
        device = self._device
        here = f"{ROOT_DIR}/{device.guid}"
        if not self.alive():
            return None
        if name == "channels":
            return ChannelsDir(self._vmbus, device)
        if name == "driver":
            driver = device.driver
            return None if driver is None else link(here, name, f"{BUS_DIR}/drivers/{driver.name}")
        if name == "subsystem":
            return link(here, name, BUS_DIR)
        return self._file(name)

    def _file(self, name: str) -> File | None:
        device = self._device
        show, store = _FILES.get(name), _STORES.get(name)
        if show is None or not self._is_there(name):
            return None
        take = None if store is None else partial(taken, partial(store, device))
        perm = 0o444 if store is None else 0o644
        return File(name, perm, SYSFS, lambda: page(show(self._vmbus, device)), take, self.alive)
