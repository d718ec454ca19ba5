"""The drivers of synthetic devices, by the names they have in /sys/bus/vmbus/drivers."""

from __future__ import annotations

from typing import Final

from vmbusirq.vmbus.drivers.base import Driver
from vmbusirq.vmbus.drivers.generic import BalloonDriver, FramebufferDriver, KeyboardDriver, MouseDriver, UioDriver
from vmbusirq.vmbus.drivers.hv_sock import HvSockDriver
from vmbusirq.vmbus.drivers.netvsc import NetvscDriver
from vmbusirq.vmbus.drivers.storvsc import StorvscDriver
from vmbusirq.vmbus.drivers.util import UtilDriver
from vmbusirq.vmbus.drivers.vpci import PciDriver

__all__ = ["DRIVERS"]

DRIVERS: Final[dict[str, type[Driver]]] = {
    driver.name: driver
    for driver in (
        StorvscDriver,
        NetvscDriver,
        PciDriver,
        UtilDriver,
        BalloonDriver,
        KeyboardDriver,
        MouseDriver,
        FramebufferDriver,
        HvSockDriver,
        UioDriver,
    )
}
"""The class of each driver; the catalogue (``catalogue.py``) says which class of device has which driver."""
