"""The device catalogue: for each class of synthetic device, its driver and how that driver uses its channels.

Source: vmbus_devs in drivers/hv/channel_mgmt.c and the drivers themselves, v6.10; IRQ names: RFC patches 03 to 05.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from uuid import UUID

from vmbusirq._ffi import lib
from vmbusirq.wire.devices import CLASS_IDS, class_name
from vmbusirq.wire.packet import vmbus_ring_size

__all__ = ["CATALOGUE", "PAGE", "UNKNOWN", "Attention", "CallbackMode", "DeviceClass", "find_class"]

PAGE: Final = 4096
PACKET_DESCRIPTOR: Final[int] = lib.VI_PKT_DESC
PACKET_TRAILER: Final[int] = lib.VI_PKT_TRAILER


class CallbackMode(IntEnum):
    """When a channel's callback runs (enum hv_callback_mode)."""

    BATCHED = lib.VI_CALL_BATCHED
    DIRECT = lib.VI_CALL_DIRECT
    ISR = lib.VI_CALL_ISR


class Attention(IntEnum):
    """Which packets the driver's own reader hands over instead of adding them up (enum vi_attention)."""

    NONE = lib.VI_ATTENTION_NONE
    SPECIAL = lib.VI_ATTENTION_SPECIAL
    ALL = lib.VI_ATTENTION_ALL


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """One row of the catalogue.

    Attributes:
        name: short name, and the default IRQ name (RFC patch 03).
        driver: the Linux driver; empty where v6.10 has none, and uio_hv_generic may be told to bind it.
        mode: callback mode of its channels.
        perf: channels are spread over CPUs by init_vp_index; the others interrupt CPU 0.
        ring_bytes: size of each of the two rings, control page included, with pages of 4 KiB.
        ring_raw: the driver asks for that many bytes; the others ask for payload (VMBUS_RING_SIZE).
        max_packet: bytes of the private copy of a packet.
        napi: the callback masks the ring and polls from NET_RX.
        util: the driver's own reader knows IC messages, and answers heartbeat and timesync requests (hv_util.c).
        primary_name, sub_name: IRQ names that the driver sets itself; ``{host}`` is the SCSI host number.
    """

    name: str
    driver: str
    mode: CallbackMode
    perf: bool
    ring_bytes: int
    max_packet: int = 4096
    napi: bool = False
    util: bool = False
    primary_name: str = ""
    sub_name: str = ""
    ring_raw: bool = False

    def ring_size(self, page_bytes: int = PAGE) -> int:
        """Return the bytes of each ring on a guest with pages of ``page_bytes``: one is for the control page."""
        if self.ring_raw:
            return max(-(-self.ring_bytes // page_bytes), 2) * page_bytes
        stolen = self.ring_bytes >= 8 * PAGE
        return vmbus_ring_size(self.ring_bytes if stolen else self.ring_bytes - PAGE, page_bytes)

    @property
    def class_id(self) -> UUID | None:
        """GUID of the class; None for hv_sock, where each service is a class of its own."""
        return CLASS_IDS.get(self.name)

    @property
    def max_payload(self) -> int:
        """Bytes that fit one packet: the private copy must hold it, and so must an empty ring, never quite full."""
        in_ring = self.ring_bytes - PAGE - PACKET_DESCRIPTOR - 3 * PACKET_TRAILER
        return min(self.max_packet - PACKET_DESCRIPTOR, in_ring) // 8 * 8

    def irq_name(self, sub_channel_index: int, host: int | None) -> str:
        """Return the action name of a channel's IRQ, cut at 31 bytes as the kernel's buffer does."""
        pattern = self.sub_name if sub_channel_index else self.primary_name
        if not pattern or ("{host}" in pattern and host is None):
            return self.name
        return pattern.format(host=host)[:31]


def _util(name: str, max_packet: int = 4096) -> DeviceClass:
    return DeviceClass(name, "hv_utils", CallbackMode.DIRECT, False, 4 * PAGE, max_packet, util=True)


def _storvsc(name: str, sub: bool = True) -> DeviceClass:
    return DeviceClass(
        name,
        "hv_storvsc",
        CallbackMode.BATCHED,
        True,
        32 * PAGE,
        80,
        primary_name="pri@storvsc{host}",
        sub_name="sub@storvsc{host}" if sub else "",
    )


_ALL = (
    _storvsc("ide", sub=False),
    _storvsc("scsi"),
    _storvsc("fc"),
    DeviceClass(
        "netvsc",
        "hv_netvsc",
        CallbackMode.ISR,
        True,
        128 * PAGE,
        napi=True,
    ),
    DeviceClass("netdirect", "", CallbackMode.ISR, True, 512 * PAGE, ring_raw=True),
    DeviceClass("vpci", "hv_pci", CallbackMode.BATCHED, False, 5 * PAGE),
    DeviceClass("framebuffer", "hyperv_fb", CallbackMode.BATCHED, False, 64 * PAGE, ring_raw=True),
    DeviceClass("keyboard", "hyperv_keyboard", CallbackMode.BATCHED, False, 9 * PAGE),
    DeviceClass("mouse", "hid_hyperv", CallbackMode.BATCHED, False, 9 * PAGE),
    _util("kvp", 16384),
    _util("timesync"),
    _util("heartbeat"),
    _util("shutdown"),
    DeviceClass("fcopy", "", CallbackMode.ISR, False, 4 * PAGE, ring_raw=True),
    _util("vss", 8192),
    DeviceClass("balloon", "hv_balloon", CallbackMode.BATCHED, False, 5 * PAGE, 8192),
    DeviceClass("hv_sock", "hv_sock", CallbackMode.DIRECT, False, 6 * PAGE, 16416, ring_raw=True),
)

CATALOGUE: Final[dict[str, DeviceClass]] = {device.name: device for device in _ALL}

UNKNOWN: Final = DeviceClass("", "", CallbackMode.ISR, False, 512 * PAGE, ring_raw=True)
"""What a class is to Linux that it has no driver for; uio_hv_generic can be told to bind it."""


def find_class(class_id: UUID, *, hv_sock: bool = False) -> DeviceClass:
    """Return the row of an offered class; :data:`UNKNOWN` for one that the catalogue does not have."""
    if hv_sock:
        return CATALOGUE["hv_sock"]
    return CATALOGUE.get(class_name(class_id) or "", UNKNOWN)
