"""HvSignalEvent without user space: connection ids with an eventfd (KVM_HYPERV_EVENTFD; ``hyperv.c``, v6.16)."""

from __future__ import annotations

import errno

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.kvm.eventfd import EventFd
from vmbusirq.hyperv.kvm.uapi import CONN_ID_MASK, EVENTFD_DEASSIGN

__all__ = ["EventConnections"]

_FLAG_NUMBER = 0xFFFF << 32


class EventConnections:
    """The eventfds of one VM by connection id."""

    def __init__(self) -> None:
        self._eventfds: dict[int, EventFd] = {}

    @property
    def ids(self) -> tuple[int, ...]:
        """Connection ids that have an eventfd, ascending."""
        return tuple(sorted(self._eventfds))

    def request(self, conn_id: int, fd: int, flags: int = 0) -> None:
        """Assign or deassign, as the ioctl does.

        Args:
            conn_id: 24 bits.
            fd: the eventfd; not looked at when deassigning.
            flags: :data:`EVENTFD_DEASSIGN` or 0.
        Raises:
            IrqError: EINVAL, other flags, a wider id, or ``fd`` is no eventfd; EBADF, it is not open; EEXIST, the id
                has an eventfd; ENOENT, deassigned and has none.
        """
        what = f"kvm: KVM_HYPERV_EVENTFD for connection {conn_id:#x}"
        if flags & ~EVENTFD_DEASSIGN or not 0 <= conn_id <= CONN_ID_MASK:
            raise IrqError(
                errno.EINVAL, f"{what}, flags {flags:#x}: ids are 0 to {CONN_ID_MASK:#x}, flags 0 or 1 (EINVAL)"
            )
        if flags & EVENTFD_DEASSIGN:
            eventfd = self._eventfds.pop(conn_id, None)
            if eventfd is None:
                raise IrqError(errno.ENOENT, f"{what}: it has no eventfd to take away (ENOENT)")
            eventfd.close()
            return
        eventfd = EventFd(fd, what)  # before the id is looked up: a bad fd wins
        if conn_id in self._eventfds:
            eventfd.close()
            raise IrqError(errno.EEXIST, f"{what}: it has one already (EEXIST); deassign it first")
        self._eventfds[conn_id] = eventfd

    def signal(self, parameter: int) -> HvStatus:
        """Carry out HvSignalEvent with its 8 bytes of input.

        Returns:
            SUCCESS: the eventfd has 1 more. INVALID_HYPERCALL_INPUT: a bit above 23 that is not of the flag number.
            INVALID_PORT_ID: a flag number, or nobody has the id; user space may know what to do.
        """
        if parameter & _FLAG_NUMBER:
            return HvStatus.INVALID_PORT_ID
        if parameter & ~CONN_ID_MASK:
            return HvStatus.INVALID_HYPERCALL_INPUT
        eventfd = self._eventfds.get(parameter)
        if eventfd is None:
            return HvStatus.INVALID_PORT_ID
        eventfd.signal()
        return HvStatus.SUCCESS

    def close(self) -> None:
        """Drop all references. A second call does nothing."""
        for eventfd in self._eventfds.values():
            eventfd.close()
        self._eventfds.clear()
