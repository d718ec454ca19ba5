"""Transaction ids of a channel: small numbers that stand for the driver's requests (vmbus.md 1.14).

The host is told an index, never an address, and what it sends back is looked up before it is used. See
vmbus_next_request_id() and vmbus_request_addr_match() in drivers/hv/channel.c, v6.10.
"""

from __future__ import annotations

import errno
from typing import Final

from vmbusirq.errors import IrqError

__all__ = [
    "NO_RQSTOR",
    "RQST_ADDR_ANY",
    "RQST_ERROR",
    "RQST_ID_NO_RESPONSE",
    "RQST_INIT",
    "RQST_RESET",
    "Requestor",
]

_U64_MAX: Final = (1 << 64) - 1

NO_RQSTOR: Final = _U64_MAX
"""The channel has no requestor (VMBUS_NO_RQSTOR)."""
RQST_ERROR: Final = _U64_MAX - 1
"""No id is free, or the id means nothing (VMBUS_RQST_ERROR)."""
RQST_ID_NO_RESPONSE: Final = _U64_MAX - 2
"""netvsc: a packet that nobody answers (VMBUS_RQST_ID_NO_RESPONSE)."""
RQST_INIT: Final = _U64_MAX - 2
"""storvsc: the request of its initialization (VMBUS_RQST_INIT)."""
RQST_RESET: Final = _U64_MAX - 3
"""storvsc: a bus reset (VMBUS_RQST_RESET)."""
RQST_ADDR_ANY: Final = _U64_MAX
"""Matches whatever was stored (VMBUS_RQST_ADDR_ANY)."""


class Requestor:
    """A table of ``size`` ids, 1 to size; 0 stands for what the host sends unasked.

    The id that was given back last is given out first.

    Raises:
        IrqError(EINVAL): ``size`` is below 1.
    """

    __slots__ = ("_array", "_live", "_next", "size")

    def __init__(self, size: int) -> None:
        if size < 1:
            raise IrqError(errno.EINVAL, f"a requestor of {size} ids has none to give (EINVAL); 1 or more")
        self.size: Final = size
        self._array: list[int] = [*range(1, size), _U64_MAX]  # free slots are a list: each holds the next
        self._live = bytearray(size)
        self._next = 0

    def __len__(self) -> int:
        """Ids that are out."""
        return sum(self._live)

    def next_id(self, address: int) -> int:
        """Keep ``address``, 64 bits, and return the id that stands for it; RQST_ERROR when all are out."""
        slot = self._next
        if slot >= self.size:
            return RQST_ERROR
        self._next = self._array[slot]
        self._array[slot] = address
        self._live[slot] = 1
        return slot + 1

    def release(self, trans_id: int, address: int = RQST_ADDR_ANY) -> int:
        """Take an id back and return what it stood for.

        Args:
            trans_id: as the host sent it, any number.
            address: what it must stand for.
        Returns:
            RQST_ERROR, and nothing changes, if the id is 0, beyond the table, not out, or stands for something else.
        """
        slot = trans_id - 1
        if not 0 <= slot < self.size or not self._live[slot]:
            return RQST_ERROR
        stored = self._array[slot]
        if address not in (RQST_ADDR_ANY, stored):
            return RQST_ERROR
        self._array[slot] = self._next
        self._next = slot
        self._live[slot] = 0
        return stored
