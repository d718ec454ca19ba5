"""The devices of the bus and the drivers that are bound to them (bus_type hv_bus; drivers/hv/vmbus_drv.c, v6.10)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final
from uuid import UUID

from vmbusirq.errors import Hung, IrqError
from vmbusirq.log import Log
from vmbusirq.steps import Step, Steps
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.drivers.base import Driver

__all__ = ["Devices"]


class Devices(Mapping[UUID, HvDevice]):
    """Devices by instance GUID, in the order in which they came; only registered ones are seen.

    Args:
        log: the guest's.
        abandon: closes a channel whose probe was given up, without the host.

    Attributes:
        drivers: by name.
        probing_blocked: a suspend is on its way: devices that come are shown, and probed after it.
        dynamic_ids: classes that were added to a driver through new_id, in order.
    """

    def __init__(self, log: Log, abandon: Callable[[Channel], object]) -> None:
        self._log = log
        self._abandon = abandon
        self._devices: dict[UUID, HvDevice] = {}
        self._deferred: list[HvDevice] = []
        self.probing_blocked = False
        self.drivers: Final[dict[str, Driver]] = {}
        self.dynamic_ids: Final[dict[str, list[UUID]]] = {}

    def __getitem__(self, instance: UUID) -> HvDevice:
        device = self._devices[instance]
        if not device.registered:
            raise KeyError(instance)
        return device

    def __iter__(self) -> Iterator[UUID]:
        return iter([device.instance for device in self.snapshot()])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def snapshot(self) -> tuple[HvDevice, ...]:
        """Return the registered devices as of now; any thread may ask."""
        return tuple(device for device in tuple(self._devices.values()) if device.registered)

    # ---- channels

    def find(self, instance: UUID) -> HvDevice | None:
        """Return the device of an instance, seen or not."""
        return self._devices.get(instance)

    def all_channels(self) -> Iterator[Channel]:
        """Yield the channels of all devices."""
        for device in self._devices.values():
            yield from device.channels

    def enlist(self, channel: Channel) -> HvDevice:
        """Give a channel its place: a primary makes its device, a sub-channel joins it."""
        primary = channel.primary
        if primary is not None and primary.device is not None:
            device = primary.device
            device.channels.append(channel)
        else:
            device = HvDevice(channel)
            self._devices[device.instance] = device
        channel.device = device
        return device

    def forget(self, channel: Channel) -> None:
        """Take a channel out of its device. The device goes with its primary, whatever sub-channels are left."""
        device = channel.device
        if device is None or channel not in device.channels:
            return
        if channel is device.primary:
            device.removed = True
            device.registered = False
            if self._devices.get(device.instance) is device:
                del self._devices[device.instance]
        else:
            device.channels.remove(channel)

    # ---- registration

    def add(self, device: HvDevice) -> Steps[None]:
        """Show a device and let the driver that matches probe it (vmbus_device_register)."""
        device.registered = True
        if self.probing_blocked:
            self._deferred.append(device)
        else:
            yield from self._attach(device)

    def allow_probing(self) -> Steps[None]:
        """Probe what came while probing was blocked (device_unblock_probing, drivers/base/dd.c).

        What a resume has missed stays on the list until its offer comes.
        """
        self.probing_blocked = False
        deferred, self._deferred = self._deferred, []
        for device in deferred:
            if device.registered and not device.primary.mapped:
                self._deferred.append(device)
            elif device.registered and device.driver is None:
                yield from self._attach(device)

    def _attach(self, device: HvDevice) -> Steps[None]:
        driver = next((driver for driver in self.drivers.values() if self.matches(driver, device)), None)
        if driver is not None:
            with suppress(IrqError):  # the device stays, without a driver
                yield from self.under_lock(device, self._probe(driver, device))

    def unregister(self, device: HvDevice) -> Steps[None]:
        """Let its driver go and hide it (vmbus_device_unregister)."""
        yield from self.under_lock(device, self._unregister(device))

    def _unregister(self, device: HvDevice) -> Steps[None]:
        if device.driver is not None:
            yield from self._unbind(device)
        device.registered = False

    def under_lock(self, device: HvDevice, steps: Steps[None]) -> Steps[None]:
        """Yield the steps of an operation when no other of the same device is under way (device_lock)."""
        while device.locked:
            yield Step(f"device {device.guid}: wait for its lock", ready=lambda: not device.locked)
        device.locked = True
        try:
            yield from steps
        finally:
            device.locked = False

    def add_sub_channel(self, channel: Channel) -> Steps[None]:
        """Hand a sub-channel to the driver of its device, if there is one (sc_creation_callback)."""
        device = channel.device
        if device is None:
            return
        if any(other is not channel and other.dir_name == channel.dir_name for other in device.channels):
            raise IrqError(
                errno.EEXIST,
                f"channel {channel.relid}: device {device.guid} has a directory channels/{channel.dir_name} (EEXIST)",
            )
        if device.driver is not None:
            yield from device.driver.sub_channel(channel)

    # ---- drivers

    def matches(self, driver: Driver, device: HvDevice) -> bool:
        """Return whether a driver may serve a device (vmbus_match, hv_vmbus_get_id).

        Sockets are the hv_sock driver's, whatever else is said. An override names the one that may; classes of new_id
        count as the driver's own.
        """
        if device.primary.is_hv_sock:
            return driver.name == device.device_class.driver
        if device.driver_override is not None:
            return device.driver_override == driver.name.encode()
        return device.class_id in self.dynamic_ids.get(driver.name, ()) or device.device_class.driver == driver.name

    def driver(self, name: str) -> Driver:
        """Return the driver of a name. ENODEV: there is none."""
        driver = self.drivers.get(name)
        if driver is None:
            raise IrqError(errno.ENODEV, f"vmbus: no driver {name!r} (ENODEV); there are: {', '.join(self.drivers)}")
        return driver

    def bind(self, driver: Driver, device: HvDevice) -> Steps[None]:
        """Bind by hand (drivers/<name>/bind).

        Raises:
            IrqError: ENODEV they do not match, EBUSY it is bound, else what the probe fails with.
        """
        yield from self.under_lock(device, self._bind(driver, device))

    def _bind(self, driver: Driver, device: HvDevice) -> Steps[None]:
        if not self.matches(driver, device):
            raise IrqError(errno.ENODEV, f"device {device.guid}: {driver.name} does not serve its class (ENODEV)")
        if device.driver is not None:
            raise IrqError(
                errno.EBUSY, f"device {device.guid}: is bound to {device.driver.name}; unbind it first (EBUSY)"
            )
        yield from self._probe(driver, device)

    def _probe(self, driver: Driver, device: HvDevice) -> Steps[None]:
        yield Step(f"device {device.guid}: probe by {driver.name}")
        device.driver = driver
        try:
            yield from driver.probe(device)
        except BaseException as error:
            device.driver = None
            device.driver_data = None
            if isinstance(error, Hung):
                for channel in device.channels:
                    self._abandon(channel)
            if isinstance(error, IrqError):
                number = -(error.errno or errno.EIO)
                self._log.err(f"vmbus {device.guid}: probe failed for device {device.guid} ({number}): {error}")
            raise

    def unbind(self, device: HvDevice) -> Steps[None]:
        """Let the driver of a device go (drivers/<name>/unbind). ENODEV: none is bound.

        What its remove() fails with is logged; the driver is gone all the same (vmbus_remove).
        """
        yield from self.under_lock(device, self._unbind(device))

    def _unbind(self, device: HvDevice) -> Steps[None]:
        driver = device.driver
        if driver is None:
            raise IrqError(errno.ENODEV, f"device {device.guid}: no driver is bound to it (ENODEV)")
        try:
            yield from driver.remove(device)
        except IrqError as error:
            self._log.err(f"vmbus {device.guid}: {driver.name} could not let go: {error}")
        finally:
            device.driver = None
            device.driver_data = None

    def new_id(self, driver: Driver, class_id: UUID) -> Steps[None]:
        """Let a driver serve one more class, and probe what waits for it (new_id_store).

        Raises:
            IrqError(EEXIST): it serves it already.
        """
        ids = self.dynamic_ids.setdefault(driver.name, [])
        if class_id in ids:
            raise IrqError(errno.EEXIST, f"driver {driver.name}: serves {class_id} already (EEXIST)")
        ids.append(class_id)
        for device in tuple(self.values()):
            if device.driver is None and self.matches(driver, device):
                try:
                    yield from self.under_lock(device, self._probe(driver, device))
                except IrqError:
                    continue

    def remove_id(self, driver: Driver, class_id: UUID) -> None:
        """Take a class of new_id back; devices stay bound (remove_id_store). ENODEV: it was not added."""
        ids = self.dynamic_ids.get(driver.name, [])
        if class_id not in ids:
            raise IrqError(errno.ENODEV, f"driver {driver.name}: {class_id} was not added to it (ENODEV)")
        ids.remove(class_id)
