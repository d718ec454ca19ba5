"""hv_sock: channels that come and go with connections (vmbus.md 7.6)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.wire.protocol import (
    STATUS_CONNECTION_REFUSED,
    OfferFlags,
    TlConnectRequest,
    TlConnectResult,
    Unlock,
    hv_sock_user_def,
)

if TYPE_CHECKING:
    from vmbusirq.host.connection import HostConnection
    from vmbusirq.host.device import HostDevice
    from vmbusirq.host.server import HostBus
    from vmbusirq.host.vsp.base import Vsp

__all__ = ["OFFER_FLAGS", "HvSock"]

OFFER_FLAGS: Final = OfferFlags.TLNPI_PROVIDER | OfferFlags.NAMED_PIPE_MODE | OfferFlags.ENUMERATE_DEVICE_INTERFACE
"""0x2011, as OpenVMM offers it."""


class HvSock:
    """The host's services, and its connections to services of the guest.

    Attributes:
        refused: requests of the guest that nobody took.
    """

    def __init__(self, bus: HostBus) -> None:
        self._bus = bus
        self._services: dict[UUID, Callable[[UUID], Vsp | None]] = {}
        self.refused = 0

    def listen(self, service: UUID, accept: Callable[[UUID], Vsp | None]) -> None:
        """Accept connections of the guest to ``service``.

        Args:
            service: for an AF_VSOCK port, ``vsock_service_id(port)``.
            accept: called with the guest's endpoint id; returns the connection's VSP, or None to refuse.
        Raises:
            IrqError(EADDRINUSE): somebody listens already.
        """
        if service in self._services:
            raise IrqError(errno.EADDRINUSE, f"hv_sock: somebody listens at {service} (EADDRINUSE); close that first")
        self._services[service] = accept

    def unlisten(self, service: UUID) -> None:
        """Accept no more connections; those there are stay."""
        self._services.pop(service, None)

    def connect(self, service: UUID, vsp: Vsp, endpoint: UUID) -> HostDevice:
        """Offer a connection to a service that the guest listens at; rescinded if it is not opened in time.

        Args:
            service: the guest's.
            vsp: the connection's host end.
            endpoint: any GUID that no other device has; a real host draws it.
        Raises:
            IrqError(ENOTCONN): the guest takes no offers now, or no relid is left.
            IrqError(EEXIST): a device has that instance GUID.
        """
        device = self._offer(self._bus.default, service, vsp, endpoint, host_initiated=True)
        if device is None:
            raise IrqError(
                errno.ENOTCONN, f"hv_sock: the guest takes no offer for {service} (ENOTCONN); wait for REQUESTOFFERS"
            )
        self._bus.later(self._bus.options.accept_timeout_ticks, lambda: self._give_up(device))
        return device

    def _give_up(self, device: HostDevice) -> None:
        """The guest had its time to open a connection of the host's."""
        if not device.primary.opens and device in self._bus.devices:
            self._bus.complain(f"{device.name}: the guest has not accepted the connection")
            self._bus.remove_device(device)

    def connect_request(self, connection: HostConnection, message: TlConnectRequest) -> None:
        """TL_CONNECT_REQUEST: success is an offer, failure TL_CONNECT_RESULT, before 4.1 nothing."""
        endpoint, service = message.guest_endpoint_id, message.host_service_id
        accept = self._services.get(service)
        taken = self._bus.find_instance(connection, endpoint) is not None
        vsp = accept(endpoint) if accept is not None and connection.offers_sent and not taken else None
        if vsp is not None and self._offer(connection, service, vsp, endpoint, host_initiated=False) is not None:
            return
        self.refused += 1
        self._bus.complain(f"hv_sock: connection of {endpoint} to {service} refused")
        if connection.version is not None and connection.version.has(Unlock.TL_CONNECT_RESULT):
            connection.send(TlConnectResult(endpoint, service, STATUS_CONNECTION_REFUSED))

    def _offer(
        self, connection: HostConnection, service: UUID, vsp: Vsp, endpoint: UUID, *, host_initiated: bool
    ) -> HostDevice | None:
        """Add the device; None, and it is gone again, if the guest does not get the offer."""
        vsp.if_type = service
        vsp.chn_flags = int(OFFER_FLAGS)
        vsp.user_def = hv_sock_user_def(host_initiated=host_initiated)
        vsp.closes_for_good = True
        device = self._bus.add_device(vsp, endpoint, name=f"hv_sock {endpoint}", connection=connection)
        if device.channels:
            return device
        self._bus.remove_device(device)
        return None
