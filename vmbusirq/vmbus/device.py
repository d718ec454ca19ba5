"""A device of the guest: what its channels have in common (struct hv_device; drivers/hv/vmbus_drv.c, v6.10).

A device comes with the first channel of its instance, its primary, and goes with it. Its driver is bound all the while.
"""

from __future__ import annotations

import errno
from typing import Final
from uuid import NAMESPACE_OID, UUID, uuid5

from vmbusirq.errors import IrqError
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.drivers.catalogue import PAGE, DeviceClass
from vmbusirq.wire.devices import device_index

__all__ = ["HvDevice", "make_instance_id"]

VSOCK_CLASS_ID: Final = UUID("00000000-facb-11e6-bd58-64006a7986d3")  # its first group is the vsock port


def make_instance_id(device_class: str, name: str, seed: int) -> UUID:
    """Return the instance GUID of a device that nobody gave one; it depends on nothing but the arguments."""
    return uuid5(NAMESPACE_OID, f"vmbusirq/{seed}/{device_class}/{name}")


class HvDevice:
    """A device, from the offer of its primary channel to that channel's removal.

    Attributes:
        name: what the scenario calls it; no other device of its class is called so.
        instance, class_id: the GUIDs of the offer.
        guid: the instance as directories in sysfs are named.
        channels: the primary, then the sub-channels in the order of their offers.
        driver_override: the one driver that may bind it; None: whichever matches. Kept and shown; nothing is rebound.
        removed: the primary is gone.
    """

    def __init__(self, name: str, instance: UUID, device_class: DeviceClass, primary: Channel) -> None:
        self.name: Final = name
        self.instance: Final = instance
        self.guid: Final = str(instance)
        self.device_class: Final = device_class
        self.class_id: Final = device_class.class_id or VSOCK_CLASS_ID
        self.channels = [primary]
        self.driver_override: bytes | None = None
        self.removed = False

    def __repr__(self) -> str:
        return f"<HvDevice {self.name} {self.guid} relid {self.primary.relid}>"

    @property
    def primary(self) -> Channel:
        """The channel that the device came with."""
        return self.channels[0]

    @property
    def index(self) -> int:
        """The place of its class in vmbus_devs."""
        return device_index(self.class_id)

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
