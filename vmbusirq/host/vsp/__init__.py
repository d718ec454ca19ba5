"""The virtual service providers (VSPs): for each class of device what stands behind it on the host."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from vmbusirq.errors import IrqError
from vmbusirq.host.vsp.base import Vsp
from vmbusirq.host.vsp.generic import GenericVsp
from vmbusirq.host.vsp.hv_sock import HvSockVsp, Service
from vmbusirq.host.vsp.ic import HeartbeatVsp, KvpVsp, ShutdownVsp, TimesyncVsp, VssVsp
from vmbusirq.host.vsp.netvsc import NetvscVsp
from vmbusirq.host.vsp.storvsc import StorvscVsp
from vmbusirq.host.vsp.vpci import PciVsp
from vmbusirq.wire.devices import CLASS_IDS, UNSUPPORTED_CLASS_IDS
from vmbusirq.wire.protocol import vsock_service_id

__all__ = ["VSPS", "HvSockVsp", "Vsp", "make_vsp"]


def _generic(class_name: str) -> Callable[..., Vsp]:
    return partial(GenericVsp, class_name, CLASS_IDS[class_name])


VSPS: Final[Mapping[str, Callable[..., Vsp]]] = {
    "ide": partial(StorvscVsp, "ide"),
    "scsi": partial(StorvscVsp, "scsi"),
    "fc": partial(StorvscVsp, "fc"),
    "netvsc": NetvscVsp,
    "netdirect": _generic("netdirect"),
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


def make_vsp(class_name: str, *, max_sub_channels: int = 0) -> Vsp:
    """Return the VSP of a device.

    Args:
        class_name: of :data:`VSPS`, of the classes that Linux never binds, or ``hv_sock`` for a connection of the host
            to vsock port 0 of the guest.
        max_sub_channels: offered at most; classes without sub-channels ignore it.
    Raises:
        IrqError(EINVAL): no such class.
    """
    if class_name == HvSockVsp.class_name:
        return HvSockVsp(vsock_service_id(0), Service.SINK, host_initiated=True)
    if class_name in UNSUPPORTED_CLASS_IDS:
        return GenericVsp(class_name, UNSUPPORTED_CLASS_IDS[class_name])
    if class_name not in VSPS:
        known = ", ".join([*VSPS, HvSockVsp.class_name, *UNSUPPORTED_CLASS_IDS])
        raise IrqError(errno.EINVAL, f"host: no device class {class_name!r} (EINVAL); known: {known}")
    vsp = VSPS[class_name]()
    if class_name in ("scsi", "fc", "netvsc"):
        vsp.max_sub_channels = max_sub_channels
    return vsp
