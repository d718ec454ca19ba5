"""drivers/<name> (drivers/base/bus.c and vmbus_drv_groups in drivers/hv/vmbus_drv.c, v6.10; vmbus.md 6.1)."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.fs.node import SYSFS, Directory, File, Node, StaticDirectory
from vmbusirq.fs.sysfs.attributes import BUS_DIR, ROOT_DIR, c_string, link, streq, taken, uevent
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.device import HvDevice

__all__ = ["DriversDir", "ModulesDir", "find_device", "module_of"]

MODULE_DIR: Final = "/sys/module"
_MODULES: Final = {"hv_pci": "pci_hyperv"}  # the others are called as their driver
_GUID: Final = re.compile(rb"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def module_of(driver: str) -> str:
    """Return the name of the kernel module that a driver is in."""
    return _MODULES.get(driver, driver)


def find_device(vmbus: VmbusConnection, name: str) -> HvDevice | None:
    """Return the device whose directory is called so: its GUID in lower case, without braces."""
    try:
        device = vmbus.devices.get(UUID(name))
    except ValueError:
        return None
    return device if device is not None and device.guid == name else None


def _guid_parse(driver: str, text: bytes) -> UUID:
    """Read a GUID as guid_parse() does: 36 characters, no braces; what follows them is not looked at (lib/uuid.c)."""
    found = _GUID.match(c_string(text))
    if found is None:
        raise IrqError(
            errno.EINVAL,
            f"driver {driver}: {text[:40].decode('latin-1')!a} is no class GUID (EINVAL); write one without braces",
        )
    return UUID(found[0].decode())


def _find_written(vmbus: VmbusConnection, driver: str, text: bytes) -> HvDevice:
    name = streq(text)
    device = find_device(vmbus, name)
    if device is None:
        raise IrqError(
            errno.ENODEV,
            f"driver {driver}: there is no device {name[:40]!a} (ENODEV); write the name of a directory below "
            f"{BUS_DIR}/devices",
        )
    return device


def _bind(vmbus: VmbusConnection, driver: str, text: bytes) -> int:
    vmbus.bind(driver, _find_written(vmbus, driver, text))
    return len(text)


def _unbind(vmbus: VmbusConnection, driver: str, text: bytes) -> int:
    device = _find_written(vmbus, driver, text)
    bound = device.driver
    if bound is None or bound.name != driver:
        whose = "no driver" if bound is None else bound.name
        raise IrqError(errno.ENODEV, f"driver {driver}: device {device.guid} is bound to {whose} (ENODEV)")
    vmbus.unbind(device)
    return len(text)


def _new_id(vmbus: VmbusConnection, driver: str, text: bytes) -> int:
    vmbus.new_id(driver, _guid_parse(driver, text))
    return len(text)


def _remove_id(vmbus: VmbusConnection, driver: str, text: bytes) -> int:
    vmbus.remove_id(driver, _guid_parse(driver, text))
    return len(text)


def _driver_uevent(vmbus: VmbusConnection, driver: str, text: bytes) -> int:
    return uevent(f"driver {driver}", text)


_FILES: Final[dict[str, Callable[[VmbusConnection, str, bytes], int]]] = {
    "bind": _bind,
    "unbind": _unbind,
    "new_id": _new_id,
    "remove_id": _remove_id,
    "uevent": _driver_uevent,
}


class _DriverDir(Directory):
    """drivers/<name>: files that can only be written, the module, and a link to every device that is bound."""

    __slots__ = ("_vmbus",)

    def __init__(self, vmbus: VmbusConnection, name: str) -> None:
        super().__init__(name, SYSFS)
        self._vmbus = vmbus

    def _is_bound(self, device: HvDevice) -> bool:
        driver = device.driver
        return driver is not None and driver.name == self.name

    def names(self) -> Iterable[str]:
        """Return the files and the GUIDs."""
        bound = [device.guid for device in self._vmbus.devices.snapshot() if self._is_bound(device)]
        return (*_FILES, "module", *bound)

    def lookup(self, name: str) -> Node | None:
        """Return one of them."""
        here = f"{BUS_DIR}/drivers/{self.name}"
        store = _FILES.get(name)
        if store is not None:
            return File(name, 0o200, SYSFS, None, partial(taken, partial(store, self._vmbus, self.name)))
        if name == "module":
            return link(here, name, f"{MODULE_DIR}/{module_of(self.name)}")
        device = find_device(self._vmbus, name)
        return None if device is None or not self._is_bound(device) else link(here, name, f"{ROOT_DIR}/{name}")


class DriversDir(Directory):
    """drivers: one directory per registered driver."""

    __slots__ = ("_vmbus",)

    def __init__(self, vmbus: VmbusConnection) -> None:
        super().__init__("drivers", SYSFS)
        self._vmbus = vmbus

    def names(self) -> Iterable[str]:
        """Return the drivers' names."""
        return tuple(self._vmbus.devices.drivers)

    def lookup(self, name: str) -> Node | None:
        """Return the directory of a driver."""
        return _DriverDir(self._vmbus, name) if name in self._vmbus.devices.drivers else None


class ModulesDir(Directory):
    """/sys/module as far as drivers of this bus are in it: drivers/vmbus:<name> of each."""

    __slots__ = ("_vmbus",)

    def __init__(self, vmbus: VmbusConnection) -> None:
        super().__init__("module", SYSFS)
        self._vmbus = vmbus

    def _drivers(self) -> dict[str, str]:
        return {module_of(driver): driver for driver in tuple(self._vmbus.devices.drivers)}

    def names(self) -> Iterable[str]:
        """Return the modules."""
        return self._drivers()

    def lookup(self, name: str) -> Node | None:
        """Return the directory of a module."""
        driver = self._drivers().get(name)
        if driver is None:
            return None
        here = f"{MODULE_DIR}/{name}/drivers"
        links = [link(here, f"vmbus:{driver}", f"{BUS_DIR}/drivers/{driver}")]
        return StaticDirectory(name, SYSFS, [StaticDirectory("drivers", SYSFS, links)])
