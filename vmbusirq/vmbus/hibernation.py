"""Hibernation: every device lets go of its channels, the bus of its connection; later all come back (vmbus.md 7.4).

See vmbus_bus_suspend() and vmbus_bus_resume() in drivers/hv/vmbus_drv.c, and drivers/base/power/main.c, v6.10.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from vmbusirq.core import TICKS_PER_S
from vmbusirq.errors import IrqError
from vmbusirq.steps import Steps
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.vmbus.channel_mgmt import ChannelManager
from vmbusirq.vmbus.context import Context
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.devices import Devices
from vmbusirq.vmbus.work import WorkQueues
from vmbusirq.wire.protocol import Version

__all__ = ["Hibernation"]

RESUME_TIMEOUT_TICKS: Final = 10 * TICKS_PER_S


class Hibernation:
    """Suspend and resume of one guest.

    Args:
        context: the kernel and the hypervisor.
        manager: channels from offer to removal.
        devices: whose drivers close and open them.
        work: the queues that must be empty.
        unload: leaves the host.
        negotiate: tries one version.
        request_offers: posts REQUESTOFFERS, or leaves the host again.
    """

    def __init__(
        self,
        context: Context,
        manager: ChannelManager,
        devices: Devices,
        work: WorkQueues,
        *,
        unload: Callable[[], Steps[None]],
        negotiate: Callable[[Version], Steps[bool]],
        request_offers: Callable[[], Steps[None]],
    ) -> None:
        self._ctx = context
        self._manager = manager
        self._devices = devices
        self._work = work
        self._unload = unload
        self._negotiate = negotiate
        self._request_offers = request_offers
        self._wait = context.control.wait
        manager.take_up_late = self.take_up_late

    def suspend(self) -> Steps[None]:
        """Suspend every device, then the bus (vmbus_suspend of the devices, vmbus_bus_suspend).

        An error, and a host that does not answer, leave the guest as it was: devices that were suspended are resumed.
        The UNLOAD is beyond that: whatever becomes of it, the guest is suspended, and resume brings it back.

        Raises:
            IrqError: EINVAL it is not connected; EOPNOTSUPP a driver cannot suspend, or a channel is open that no
                driver looks after; EBUSY a device of an earlier resume is still missing; ETIMEDOUT (Hung) the host does
                not answer, UNLOAD among others.
        """
        if not self._ctx.control.connected:
            raise IrqError(errno.EINVAL, "vmbus: cannot suspend: it is not connected (EINVAL)")
        self._refuse_open_by_hand()
        # dpm_prepare: wait_for_device_probe(), device_block_probing()
        yield from self._wait("suspend: wait for the probes", lambda: self._work.bus_idle and self._work.system.idle)
        self._devices.probing_blocked = True
        suspended: list[HvDevice] = []
        try:
            for device in reversed(tuple(self._devices.values())):  # dpm_suspend: last to first
                suspended.append(device)
                yield from self._devices.under_lock(device, self._suspend_device(device))
            yield from self._suspend_bus()
        except IrqError:
            # a device whose offer came meanwhile, after a resume had missed it, is closed still
            late = [device for device in tuple(self._devices.values()) if device not in suspended]
            for device in (*late, *reversed(suspended)):
                yield from self._devices.under_lock(device, self._resume_device(device))
            yield from self._devices.allow_probing()
            raise
        self._ctx.control.suspended = True
        yield from self._unload()

    def _suspend_device(self, device: HvDevice) -> Steps[None]:
        if device.driver is not None and device.primary.state is ChannelState.OPENED:
            yield from device.driver.suspend(device)

    def _refuse_open_by_hand(self) -> None:
        for device in self._devices.values():
            channel = device.primary
            in_use = channel.state in (ChannelState.OPENING, ChannelState.OPENED)
            if device.driver is None and in_use and not channel.is_hv_sock:
                raise IrqError(
                    errno.EOPNOTSUPP,
                    f"vmbus: cannot suspend: channel {channel.relid} is {channel.state.name} and no driver closes it "
                    "(EOPNOTSUPP); close it first",
                )

    def _suspend_bus(self) -> Steps[None]:
        """Yield the steps of vmbus_bus_suspend() up to the UNLOAD."""
        manager = self._manager
        yield from self._wait("suspend: wait for what the host says", lambda: manager.offers_in_progress == 0)
        manager.ignore_offers = True
        try:
            yield from self._drain_bus()
        except BaseException:
            manager.ignore_offers = False
            raise
        yield from manager.forget_relids()

    def _drain_bus(self) -> Steps[None]:
        manager = self._manager
        yield from self._wait("suspend: drain the work queues", lambda: self._work.bus_idle)
        for device in tuple(self._devices.values()):
            if device.primary.is_hv_sock and not device.primary.rescinded:
                yield from manager.rescind(device.primary)
        yield from self._wait("suspend: wait for sub-channels to go", lambda: manager.close_on_suspend == 0)
        yield from self._wait("suspend: drain what rescinds have left", lambda: self._work.bus_idle)
        if manager.fixup_on_resume:
            self._ctx.irq.log.err("hv_vmbus: Can not suspend due to a previous failed resuming")
            raise IrqError(errno.EBUSY, f"vmbus: {manager.fixup_on_resume} devices are missing since the last resume")

    def resume(self) -> Steps[None]:
        """Connect at the same version, take up the offers again, resume every device (vmbus_bus_resume).

        If the host cannot be reached the guest stays suspended.

        Raises:
            IrqError: EINVAL there was no suspend; EPROTO the host does not speak the version any more; else as posting.
        """
        control, manager = self._ctx.control, self._manager
        version = control.version
        if version is None or not control.suspended:
            raise IrqError(errno.EINVAL, "vmbus: cannot resume: it was not suspended (EINVAL)")
        manager.ignore_offers, manager.resuming = False, True
        try:
            yield from self._reconnect(version)
            control.suspended = False
            point = "resume: wait for the offers"
            if not (yield from self._wait(point, lambda: manager.fixup_on_resume == 0, RESUME_TIMEOUT_TICKS)):
                self._ctx.irq.log.err("hv_vmbus: Some vmbus device is missing after suspending?")
        finally:
            manager.ignore_offers, manager.resuming = control.suspended, False
        for device in tuple(self._devices.values()):
            yield from self._devices.under_lock(device, self._resume_device(device))
        yield from self._devices.allow_probing()

    def _reconnect(self, version: Version) -> Steps[None]:
        if not (yield from self._negotiate(version)):
            raise IrqError(errno.EPROTO, f"vmbus: the host does not speak version {version} any more (EPROTO)")
        yield from self._request_offers()

    def take_up_late(self, device: HvDevice) -> Steps[None]:
        """Open a device again whose offer came after the end of the resume that missed it."""
        if not self._devices.probing_blocked:  # else the next suspend has begun, and the resume after it does this
            yield from self._devices.under_lock(device, self._resume_device(device))
            yield from self._devices.allow_probing()

    def _resume_device(self, device: HvDevice) -> Steps[None]:
        """Let a driver open its device again; what it fails with is logged, as the PM core does."""
        channel = device.primary
        if device.driver is None or channel.state is ChannelState.OPENED or not channel.mapped:
            return
        try:
            yield from device.driver.resume(device)
        except IrqError as error:
            number = -(error.errno or errno.EIO)
            self._ctx.irq.log.err(f"vmbus {device.guid}: PM: failed to restore noirq: error {number}: {error}")
