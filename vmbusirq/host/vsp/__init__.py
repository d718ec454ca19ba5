"""The virtual service providers (VSPs): for each class of device what stands behind it on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from vmbusirq.host.vsp.base import Vsp
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.host.vsp.hv_sock import HvSockVsp
from vmbusirq.host.vsp.ic import HeartbeatVsp, KvpVsp, ShutdownVsp, TimesyncVsp, VssVsp
from vmbusirq.host.vsp.netvsc import NetvscVsp
from vmbusirq.host.vsp.storvsc import StorvscVsp
from vmbusirq.host.vsp.vpci import PciVsp
from vmbusirq.wire.devices import CLASS_IDS

__all__ = ["VSPS", "HvSockVsp", "Vsp"]


def _generic(class_name: str) -> Callable[..., Vsp]:
    return partial(GenericVsp, class_name, CLASS_IDS[class_name])


VSPS: Final[Mapping[str, Callable[..., Vsp]]] = {
    "ide": partial(StorvscVsp, "ide"),
    "scsi": partial(StorvscVsp, "scsi"),
    "fc": partial(StorvscVsp, "fc"),
    "netvsc": NetvscVsp,
    "vpci": PciVsp,
    "framebuffer": _generic("framebuffer"),
    "keyboard": _generic("keyboard"),
    "mouse": _generic("mouse"),
    "kvp": KvpVsp,
    "timesync": TimesyncVsp,
    "heartbeat": HeartbeatVsp,
    "shutdown": ShutdownVsp,
    "fcopy": _generic("fcopy"),
    "vss": VssVsp,
    "balloon": _generic("balloon"),
}
"""What makes the VSP of a class, by the class's short name; ``scsi``, ``fc`` and ``netvsc`` take ``max_sub_channels``.

hv_sock connections are made by :class:`HvSockVsp`, each with the GUID of its service.
"""
