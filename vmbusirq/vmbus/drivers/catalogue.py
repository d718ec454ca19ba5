"""The device catalogue: for each class of synthetic device, its driver and how that driver uses its channels.

Source: vmbus_devs in drivers/hv/channel_mgmt.c and the drivers themselves, v6.10; IRQ names: RFC patches 03 to 05.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from vmbusirq._ffi import lib

__all__ = ["CATALOGUE", "PAGE", "CallbackMode", "DeviceClass"]

PAGE: Final = 4096


class CallbackMode(IntEnum):
    """When a channel's callback runs (enum hv_callback_mode)."""

    BATCHED = lib.VI_CALL_BATCHED
    DIRECT = lib.VI_CALL_DIRECT
    ISR = lib.VI_CALL_ISR


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """One row of the catalogue.

    Attributes:
        name: short name, and the default IRQ name (RFC patch 03).
        class_id: GUID of the class, lower case, without braces.
        driver: the Linux driver.
        mode: callback mode of its channels.
        perf: channels are spread over CPUs by init_vp_index; the others interrupt CPU 0.
        ring_bytes: size of each of the two rings, control page included.
        max_packet: bytes of the private copy of a packet.
        napi: the callback masks the ring and polls from NET_RX.
        primary_name, sub_name: IRQ names that the driver sets itself; ``{host}`` is the SCSI host number.
    """

    name: str
    class_id: str
    driver: str
    mode: CallbackMode
    perf: bool
    ring_bytes: int
    max_packet: int = 4096
    napi: bool = False
    primary_name: str = ""
    sub_name: str = ""

    def irq_name(self, sub_channel_index: int, host: int | None) -> str:
        """Return the action name of a channel's IRQ, cut at 31 bytes as the kernel's buffer does."""
        pattern = self.sub_name if sub_channel_index else self.primary_name
        if not pattern or ("{host}" in pattern and host is None):
            return self.name
        return pattern.format(host=host)[:31]


def _util(name: str, class_id: str, max_packet: int = 4096) -> DeviceClass:
    return DeviceClass(name, class_id, "hv_utils", CallbackMode.DIRECT, False, 4 * PAGE, max_packet)


def _storvsc(name: str, class_id: str, sub: bool = True) -> DeviceClass:
    return DeviceClass(
        name,
        class_id,
        "hv_storvsc",
        CallbackMode.BATCHED,
        True,
        32 * PAGE,
        80,
        primary_name="pri@storvsc{host}",
        sub_name="sub@storvsc{host}" if sub else "",
    )


_ALL = (
    _storvsc("ide", "32412632-86cb-44a2-9b5c-50d1417354f5", sub=False),
    _storvsc("scsi", "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"),
    _storvsc("fc", "2f9bcc4a-0069-4af3-b76b-6fd0be528cda"),
    DeviceClass(
        "netvsc",
        "f8615163-df3e-46c5-913f-f2d2f965ed0e",
        "hv_netvsc",
        CallbackMode.ISR,
        True,
        128 * PAGE,
        napi=True,
    ),
    DeviceClass("vpci", "44c4f61d-4444-4400-9d52-802e27ede19f", "hv_pci", CallbackMode.BATCHED, False, 5 * PAGE),
    DeviceClass(
        "framebuffer", "da0a7802-e377-4aac-8e77-0558eb1073f8", "hyperv_fb", CallbackMode.BATCHED, False, 64 * PAGE
    ),
    DeviceClass(
        "keyboard", "f912ad6d-2b17-48ea-bd65-f927a61c7684", "hyperv_keyboard", CallbackMode.BATCHED, False, 9 * PAGE
    ),
    DeviceClass("mouse", "cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a", "hid_hyperv", CallbackMode.BATCHED, False, 9 * PAGE),
    _util("kvp", "a9a0f4e7-5a45-4d96-b827-8a841e8c03e6", 16384),
    _util("timesync", "9527e630-d0ae-497b-adce-e80ab0175caf"),
    _util("heartbeat", "57164f39-9115-4e78-ab55-382f3bd5422d"),
    _util("shutdown", "0e0b6031-5213-4934-818b-38d90ced39db"),
    _util("vss", "35fa2e29-ea23-4236-96ae-3a6ebacba440", 8192),
    DeviceClass(
        "balloon", "525074dc-8985-46e2-8057-a307dc18a502", "hv_balloon", CallbackMode.BATCHED, False, 5 * PAGE, 8192
    ),
    DeviceClass(
        "hv_sock", "00000000-facb-11e6-bd58-64006a7986d3", "hv_sock", CallbackMode.DIRECT, False, 6 * PAGE, 16416
    ),
)

CATALOGUE: Final[dict[str, DeviceClass]] = {device.name: device for device in _ALL}
