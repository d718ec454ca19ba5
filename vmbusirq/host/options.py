"""How a host behaves where hosts differ."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.wire.protocol import FeatureFlags, Version

if TYPE_CHECKING:
    from vmbusirq.host.device import HostDevice

__all__ = ["FEATURES", "HostOptions", "by_interface"]

MIB: Final = 1 << 20

FEATURES: Final = (
    FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    | FeatureFlags.MODIFY_CONNECTION
    | FeatureFlags.CLIENT_ID
    | FeatureFlags.PAUSE_RESUME
)
"""Features of 6.0 that the host has. The others need a paravisor, confidential memory or pages of the host."""

_MOST: Final = 1 << 60
_RANGES: Final = (
    ("modify_delay_ticks", 0, _MOST),
    ("open_delay_ticks", 0, _MOST),
    ("close_delay_ticks", 0, _MOST),
    ("gpadl_delay_ticks", 0, _MOST),
    ("accept_timeout_ticks", 0, _MOST),
    ("gpadl_quota_bytes", 0, _MOST),
    ("gpadls_max", 0, _MOST),
    ("throttle_after", 0, _MOST),
    ("throttle_window_ticks", 1, _MOST),
    ("throttle_ticks", 1, _MOST),
    ("monitor_latency", 0, 0xFFFF),
)
"""Fields with the least and the most that they can be."""


def _drop(_text: str) -> None:
    """Log to nowhere."""


def by_interface(device: HostDevice) -> tuple[UUID, UUID]:
    """Order offers by interface id, then instance, as OpenVMM does when it is told no order (vmbus.md 7.3)."""
    return device.vsp.if_type, device.instance


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How a host behaves where hosts differ. Times are ticks of 100 ns; delays of 0 happen at once.

    Attributes:
        modify_delay_ticks: from MODIFYCHANNEL to its effect and answer. The order is always kept.
        lose_modify: called with relid and the number of the MODIFYCHANNEL among that channel's (from 1); True: the
            message is dropped, neither carried out nor answered.
        open_delay_ticks, close_delay_ticks, gpadl_delay_ticks: how long devices take to open, to close, to accept a
            GPADL.
        accept_timeout_ticks: how long the guest may take to open an hv_sock connection of the host's; 2 s, as OpenVMM.
        gpadl_quota_bytes: of guest memory in GPADLs, over all channels; None: 1280 MiB for a host that speaks 5.2 or
            later, 384 MiB for an older one.
        gpadls_max: GPADLs of one connection (the number is ours; it bounds the host's own memory).
        throttle_after: unnecessary signals within ``throttle_window_ticks`` after which the guest is suspended for
            ``throttle_ticks``; None: count only. Real hosts tell no figures: these three are ours.
        offer_order: a sort key for devices at REQUESTOFFERS; None: as they were added. See :func:`by_interface`.
        features: of protocol 6.0 that the host agrees to.
        monitor_latency: written into the monitor pages for monitored channels, 100 ns units; the default is what
            OpenVMM's network device asks for.
        log: called with a line for whatever a guest does wrong.
    """

    modify_delay_ticks: int = 0
    lose_modify: Callable[[int, int], bool] | None = None
    open_delay_ticks: int = 0
    close_delay_ticks: int = 0
    gpadl_delay_ticks: int = 0
    accept_timeout_ticks: int = 20_000_000
    gpadl_quota_bytes: int | None = None
    gpadls_max: int = 8192
    throttle_after: int | None = None
    throttle_window_ticks: int = 10_000_000
    throttle_ticks: int = 1_000_000
    offer_order: Callable[[HostDevice], Any] | None = None
    features: FeatureFlags = FEATURES
    monitor_latency: int = 1000
    log: Callable[[str], object] = _drop

    def __post_init__(self) -> None:
        """Refuse what no host can be. EINVAL."""
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise IrqError(errno.EINVAL, f"host: {name}={value!r} (EINVAL); it is {least} to {most}")

    def quota(self, version: Version) -> int:
        """Return the bytes of guest memory that a host of this version takes in GPADLs."""
        if self.gpadl_quota_bytes is not None:
            return self.gpadl_quota_bytes
        return (1280 if version >= Version.V5_2 else 384) * MIB
