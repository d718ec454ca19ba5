"""Numbers that both ends know by heart: ids, statuses, offer flags, hv_sock services (vmbus.md 2.3, 2.8, 2.11, 7.6)."""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from typing import Final
from uuid import UUID

from vmbusirq.errors import IrqError
from vmbusirq.limits import RELID_MAX, SINT_VMBUS

__all__ = [
    "FIRST_GPADL_HANDLE",
    "INVALID_RELID",
    "MAX_CHANNELS",
    "MONITOR_ID_NONE",
    "REDIRECT_CONNECTION_ID",
    "REDIRECT_SINT",
    "STATUS_CONNECTION_REFUSED",
    "STATUS_SUCCESS",
    "STATUS_UNSUCCESSFUL",
    "VMBUS_EVENT_CONNECTION_ID",
    "VMBUS_EVENT_PORT_ID",
    "VMBUS_MESSAGE_CONNECTION_ID",
    "VMBUS_MESSAGE_CONNECTION_ID_4",
    "VMBUS_MESSAGE_PORT_ID",
    "VMBUS_MONITOR_CONNECTION_ID",
    "VMBUS_MONITOR_PORT_ID",
    "VP_INDEX_NONE",
    "ConnectionState",
    "OfferFlags",
    "OpenFlags",
    "PipeMode",
    "event_port_id",
    "hv_sock_user_def",
    "message_connection_id",
    "nt_success",
    "pipe_user_def",
    "signal_connection_id",
    "signed32",
    "vsock_port",
    "vsock_service_id",
]

VMBUS_MESSAGE_CONNECTION_ID: Final = 1
VMBUS_MESSAGE_PORT_ID: Final = 1
VMBUS_EVENT_CONNECTION_ID: Final = 2
VMBUS_EVENT_PORT_ID: Final = 2
VMBUS_MONITOR_CONNECTION_ID: Final = 3
VMBUS_MONITOR_PORT_ID: Final = 3
VMBUS_MESSAGE_CONNECTION_ID_4: Final = 4
"""Where INITIATE_CONTACT goes that asks for 5.0 or later; an older host does not know it (hypercall status 18)."""
REDIRECT_CONNECTION_ID: Final = 0x800074
REDIRECT_SINT: Final = 7

MAX_CHANNELS: Final = RELID_MAX
"""Channels of one connection: relids 1 to 2047."""
INVALID_RELID: Final = 0xFFFF_FFFF
FIRST_GPADL_HANDLE: Final = 0xE1E10
"""The guest's first GPADL handle; each establish takes the next."""
MONITOR_ID_NONE: Final = 0xFF
VP_INDEX_NONE: Final = 0xFFFF_FFFF
"""target_vp of OPENCHANNEL for a channel without interrupts; MODIFYCHANNEL must not name it."""

STATUS_SUCCESS: Final = 0
STATUS_UNSUCCESSFUL: Final = 0x8000_FFFF
STATUS_CONNECTION_REFUSED: Final = 0xC000_0236
"""The answer to an hv_sock connection that nobody accepts."""


class ConnectionState(IntEnum):
    """connection_state of VERSION_RESPONSE. Linux looks at version_supported alone."""

    SUCCESSFUL = 0
    FAILED_LOW_RESOURCES = 1
    FAILED_UNKNOWN_FAILURE = 2


class OfferFlags(IntFlag):
    """chn_flags of OFFERCHANNEL; two bits changed their meaning with version 6.0."""

    ENUMERATE_DEVICE_INTERFACE = 0x1
    CONFIDENTIAL_RING_BUFFER = 0x2
    """Before 6.0: the server supports transfer pages."""
    CONFIDENTIAL_EXTERNAL_MEMORY = 0x4
    """Before 6.0: the server supports GPADLs."""
    REQUIRE_PINNED_MEMORY = 0x8
    NAMED_PIPE_MODE = 0x10
    LOOPBACK = 0x100
    PARENT_OFFER = 0x200
    REQUEST_MONITORED_NOTIFICATION = 0x400
    TLNPI_PROVIDER = 0x2000
    """An hv_sock connection, not a device."""


class OpenFlags(IntFlag):
    """flags of an OPENCHANNEL of 6.0."""

    NONE = 0
    REDIRECT_INTERRUPT = 0x1


class PipeMode(IntEnum):
    """The first word of an offer's user_def when NAMED_PIPE_MODE is set."""

    BYTE = 0
    MESSAGE = 4


def signal_connection_id(relid: int, sint: int = SINT_VMBUS, vtl: int = 0) -> int:
    """Return the id that an offer gives the guest for HvSignalEvent, numbered as OpenVMM does: 0x2001 for relid 1."""
    return relid | sint << 12 | vtl << 16


def message_connection_id(vp: int, sint: int = SINT_VMBUS, vtl: int = 0) -> int:
    """Return the msg_conn_id that a 5.0 client posts to after contact, numbered as OpenVMM does."""
    return VMBUS_MESSAGE_CONNECTION_ID_4 | sint << 4 | vp << 8 | vtl << 22


def event_port_id(relid: int, sint: int = SINT_VMBUS, vtl: int = 0) -> int:
    """Return the port through which a channel's host signals its guest, numbered as OpenVMM does."""
    return VMBUS_EVENT_PORT_ID | sint << 4 | relid << 8 | vtl << 22


def nt_success(status: int) -> bool:
    """Return whether a host takes an unsigned 32-bit status for success; a Linux guest takes only 0 for it."""
    return status < 1 << 31


def signed32(value: int) -> int:
    """Return an unsigned 32-bit number as ``%d`` prints it: 0x8000FFFF is -2147418113."""
    return value - (1 << 32) if value >> 31 else value


def pipe_user_def(mode: PipeMode, data: bytes = b"") -> bytes:
    """Return the 120 bytes of user_def of a named pipe's offer. EINVAL: more than 116 bytes of data."""
    if len(data) > 116:
        raise IrqError(errno.EINVAL, f"a pipe's user_def holds 116 bytes behind the mode, not {len(data)} (EINVAL)")
    return int(mode).to_bytes(4, "little") + data.ljust(116, b"\0")


def hv_sock_user_def(*, host_initiated: bool) -> bytes:
    """Return the user_def of an hv_sock connection's offer: byte mode, then who began it."""
    return pipe_user_def(PipeMode.BYTE, bytes([host_initiated]))


_VSOCK_TEMPLATE: Final = UUID("00000000-facb-11e6-bd58-64006a7986d3")
_LOW_96_BITS: Final = (1 << 96) - 1


def vsock_service_id(port: int) -> UUID:
    """Return the service GUID of an AF_VSOCK port. EINVAL: more than 32 bits."""
    if not 0 <= port < 1 << 32:
        raise IrqError(errno.EINVAL, f"vsock port {port}: ports have 32 bits (EINVAL)")
    return UUID(int=_VSOCK_TEMPLATE.int | port << 96)


def vsock_port(service_id: UUID) -> int | None:
    """Return the AF_VSOCK port that a service GUID stands for, None for a GUID of another kind."""
    return service_id.int >> 96 if service_id.int & _LOW_96_BITS == _VSOCK_TEMPLATE.int else None
