"""Which client a message belongs to: ports, connection ids, SINT and VTL (vmbus.md 2.3, 7.7)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from vmbusirq.errors import IrqError
from vmbusirq.wire.protocol import (
    VMBUS_MESSAGE_CONNECTION_ID,
    VMBUS_MESSAGE_CONNECTION_ID_4,
    VMBUS_MESSAGE_PORT_ID,
    Direction,
    InitiateContact,
    MessageType,
    ProtocolError,
    Unlock,
    decode,
)

if TYPE_CHECKING:
    from vmbusirq.host.connection import HostConnection
    from vmbusirq.host.server import HostBus
    from vmbusirq.hyperv.ports import MessagePort

__all__ = ["WAITING_MAX", "Router"]

WAITING_MAX: Final = 4096
"""Messages to the guest that may wait before the host takes no more of its messages (ours): the guest, which then finds
the port's buffers full, has to read its own first."""


class Router:
    """The host's message ports.

    Connection 1 is for clients below 5.0; connection 4, which an older host does not have, for contact of 5.0 and
    later. Those post everything else to a connection of their own.
    """

    def __init__(self, bus: HostBus) -> None:
        self._bus = bus
        self._by_target: dict[tuple[int, int], HostConnection] = {}
        self._clients: dict[HostConnection, tuple[int, MessagePort]] = {}
        partition = bus.partition
        self._old: Final = partition.create_message_port(VMBUS_MESSAGE_PORT_ID)
        partition.connect(VMBUS_MESSAGE_CONNECTION_ID, VMBUS_MESSAGE_PORT_ID)
        self._contact: MessagePort | None = None
        if bus.version.has(Unlock.MULTI_CLIENT):
            self._contact = partition.create_message_port(VMBUS_MESSAGE_CONNECTION_ID_4)
            partition.connect(VMBUS_MESSAGE_CONNECTION_ID_4, VMBUS_MESSAGE_CONNECTION_ID_4)

    def add(self, connection: HostConnection) -> None:
        """Serve a client. EEXIST: there is one at its SINT and VTL."""
        key = (connection.sint, connection.vtl)
        if key in self._by_target:
            raise IrqError(errno.EEXIST, f"host: there is a client at sint {key[0]}, vtl {key[1]} (EEXIST)")
        self._by_target[key] = connection

    @property
    def connections(self) -> tuple[HostConnection, ...]:
        """All clients."""
        return tuple(self._by_target.values())

    def open_port(self, connection: HostConnection, connection_id: int) -> None:
        """Make a client's own port."""
        port = self._bus.partition.create_message_port(connection_id)
        self._bus.partition.connect(connection_id, connection_id)
        self._clients[connection] = (connection_id, port)

    def close_port(self, connection: HostConnection) -> None:
        """Delete it, with what waits in it."""
        connection_id, port = self._clients.pop(connection, (0, None))
        if port is not None:
            self._bus.partition.disconnect(connection_id)
            self._bus.partition.delete_port(port.id)

    def receive(self) -> bool:
        """Take what waits, as far as the guest reads the answers; True if there was anything."""
        return sum(self._take(port, handle, port.buffers) for port, handle in self._ports()) > 0

    def receive_one(self) -> bool:
        """Take one message, if there is any that can be taken; True if there was."""
        return any(self._take(port, handle, 1) for port, handle in self._ports())

    @property
    def waiting(self) -> int:
        """Messages that were not taken yet."""
        waiting = len(self._old) + (0 if self._contact is None else len(self._contact))
        return waiting + sum([len(port) for _, port in self._clients.values()])

    @property
    def next_type(self) -> int | None:
        """The type of the message that is taken next, None if there is none."""
        payload = next((port.first for port, _ in self._ports() if port.first is not None), None)
        return None if payload is None else int.from_bytes(payload[:4], "little")

    def _ports(self) -> Iterator[tuple[MessagePort, Callable[[bytes], None]]]:
        """Yield the ports as they are when they are asked for: what came by one may open or close another."""
        yield self._old, self._from_old
        if self._contact is not None:
            yield self._contact, self._from_contact
        for connection, (_, port) in tuple(self._clients.items()):
            yield port, partial(self._from_client, connection, port)

    def _take(self, port: MessagePort, handle: Callable[[bytes], None], most: int) -> bool:
        moved = False
        for _ in range(most):
            if self._bus.partition.messages_waiting >= WAITING_MAX:
                break
            payload = port.receive()
            if payload is None:
                break
            handle(payload)
            moved = True
        return moved

    def _from_old(self, payload: bytes) -> None:
        """Connection 1: a client below 5.0, always the default one."""
        contact = self._contact_in(payload)
        if contact is not None and contact.version >= Unlock.MULTI_CLIENT.since:
            self._bus.complain(f"INITIATE_CONTACT for version {contact.version:#x} came by connection 1; refused")
            self._bus.refuse(contact, self._vp_of(contact))
        elif self._bus.default in self._clients and contact is None:
            self._bus.complain("message came by connection 1 from a client that has its own; dropped")
        else:
            self._bus.default.handle(payload)

    def _from_contact(self, payload: bytes) -> None:
        """Connection 4: contact, and what needs none."""
        contact = self._contact_in(payload)
        if contact is not None:
            self._route_contact(contact)
        elif int.from_bytes(payload[:4], "little") == MessageType.CLOSE_RESERVED_CHANNEL:
            self._bus.default.handle(payload)
        else:
            self._bus.complain("message other than INITIATE_CONTACT came by connection 4; dropped")

    def _from_client(self, connection: HostConnection, port: MessagePort, payload: bytes) -> None:
        if self._clients.get(connection, (0, None))[1] is not port:
            return  # its sender has unloaded since
        contact = self._contact_in(payload)
        if contact is None:
            connection.handle(payload)
        else:
            self._route_contact(contact)

    def _route_contact(self, contact: InitiateContact) -> None:
        """Find the client by the SINT and VTL that it names. A SINT that is not served is told so."""
        key = (contact.msg_sint, contact.msg_vtl)
        connection = self._by_target.get(key)
        if connection is not None:
            connection.contact(contact)
            return
        self._bus.complain(f"INITIATE_CONTACT for sint {key[0]}, vtl {key[1]}: there is no server")
        if any(vtl == contact.msg_vtl for _, vtl in self._by_target):
            self._bus.refuse(contact, self._vp_of(contact))

    @staticmethod
    def _vp_of(contact: InitiateContact) -> int:
        return contact.target_vcpu if contact.version >= Unlock.TARGET_VCPU.since else 0

    @staticmethod
    def _contact_in(payload: bytes) -> InitiateContact | None:
        try:
            message = decode(payload, None, Direction.TO_HOST)
        except ProtocolError:
            return None
        return message if isinstance(message, InitiateContact) else None
