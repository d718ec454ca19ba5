"""/sys/bus/vmbus and the devices behind it (drivers/hv/vmbus_drv.c, v6.10; formats: vmbus.md 6).

Access rules: reads take no lock of the control plane and may come from any thread; writes belong to the machine's owner
thread, and those that bind or move run until the host has answered. A file found before its channel or device was
removed never speaks of a later one.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmbusirq.fs.filesystem import FileSystem
from vmbusirq.fs.node import SYSFS, Directory, File, Node
from vmbusirq.fs.sysfs.attributes import BUS_DIR, ROOT_DIR, ROOT_NAME, ROOT_PARENT, link
from vmbusirq.fs.sysfs.vmbus_device import DeviceDir
from vmbusirq.fs.sysfs.vmbus_driver import DriversDir, ModulesDir, find_device
from vmbusirq.vmbus.connection import VmbusConnection

__all__ = ["add_vmbus_files"]


class _Devices(Directory):
    """A directory with something in it per device, by instance GUID."""

    __slots__ = ("_vmbus",)

    def __init__(self, name: str, vmbus: VmbusConnection) -> None:
        super().__init__(name, SYSFS)
        self._vmbus = vmbus

    def names(self) -> Iterable[str]:
        """Return the GUIDs."""
        return [device.guid for device in self._vmbus.devices.snapshot()]


class _RootDir(_Devices):
    """The directory of the bus controller, which has the devices' own directories."""

    __slots__ = ()

    def lookup(self, name: str) -> Node | None:
        """Return the directory of a device."""
        device = find_device(self._vmbus, name)
        return None if device is None else DeviceDir(self._vmbus, device)


class _LinksDir(_Devices):
    """The bus's devices: links to their own directories."""

    __slots__ = ()

    def lookup(self, name: str) -> Node | None:
        """Return the link to a device."""
        device = find_device(self._vmbus, name)
        return None if device is None else link(f"{BUS_DIR}/{self.name}", name, f"{ROOT_DIR}/{name}")


def add_vmbus_files(files: FileSystem, vmbus: VmbusConnection) -> None:
    """Add the bus, its drivers, their modules and its devices to the files of a kernel."""
    hibernation = b"%d\n" % vmbus.options.hibernation
    files.add(ROOT_PARENT, _RootDir(ROOT_NAME, vmbus))
    files.add(BUS_DIR, File("hibernation", 0o444, SYSFS, lambda: hibernation))
    files.add(BUS_DIR, _LinksDir("devices", vmbus))
    files.add(BUS_DIR, DriversDir(vmbus))
    files.add("/sys", ModulesDir(vmbus))
