"""A device of the guest: what its channels have in common (struct hv_device; drivers/hv/vmbus_drv.c, v6.10).

A device comes with the first channel of its instance, its primary, and goes with it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.drivers.catalogue import PAGE, DeviceClass
from vmbusirq.wire.devices import DEVICE_UNKNOWN, device_index

if TYPE_CHECKING:
    from vmbusirq.vmbus.drivers.base import Driver

__all__ = ["HvDevice"]


class HvDevice:
    """A device, from the offer of its primary channel to that channel's removal.

    Attributes:
        instance, class_id: the GUIDs of the offer.
        guid: the instance as directories in sysfs are named.
        channels: the primary, then the sub-channels in the order of their offers.
        driver: who is bound to it, None: nobody.
        driver_data: what the driver keeps here.
        driver_override: the one driver that may bind it; None: whichever matches.
        registered: user space sees it.
        removed: the primary is gone.
        locked: an operation of its driver is under way, and others wait for its end (device_lock).
    """

    def __init__(self, primary: Channel) -> None:
        self.instance: Final[UUID] = primary.offer.if_instance
        self.class_id: Final[UUID] = primary.offer.if_type
        self.guid: Final = str(self.instance)
        self.device_class: Final[DeviceClass] = primary.device_class
        self.channels = [primary]
        self.driver: Driver | None = None
        self.driver_data: Any = None
        self.driver_override: bytes | None = None
        self.registered = self.removed = self.locked = False

    def __repr__(self) -> str:
        return f"<HvDevice {self.guid} relid {self.primary.relid}>"

    @property
    def primary(self) -> Channel:
        """The channel that the device came with."""
        return self.channels[0]

    @property
    def sub_channels(self) -> list[Channel]:
        """The others."""
        return self.channels[1:]

    @property
    def index(self) -> int:
        """The place of its class in vmbus_devs."""
        return DEVICE_UNKNOWN if self.primary.is_hv_sock else device_index(self.class_id)

    @property
    def modalias(self) -> str:
        """What user space finds its driver by: the class GUID as it lies in memory."""
        return f"vmbus:{self.class_id.bytes_le.hex()}"

    def driver_override_store(self, text: bytes) -> int:
        """Set or, with an empty line, clear the override; return the bytes taken.

        Raises:
            IrqError(EINVAL): no page could show it.

        See: drivers/base/driver.c, driver_set_override, v6.10.
        """
        if len(text) >= PAGE - 1:
            raise IrqError(
                errno.EINVAL, f"device {self.guid}: a driver name of {len(text)} bytes; at most {PAGE - 2} can be shown"
            )
        self.driver_override = text.partition(b"\0")[0].partition(b"\n")[0] or None
        return len(text)
