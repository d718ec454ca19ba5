"""Ports of the guest's, where messages and signals arrive, and a patient host (TLFS; synic.md 7.1)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Final

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.messages import Buffers, MessageQueues
from vmbusirq.hyperv.synic import Synic
from vmbusirq.limits import SINT_FLAGS, SINTS

__all__ = ["GuestEventPort", "GuestMessagePort", "Outbox"]


class GuestMessagePort:
    """A message port of the guest's: what is posted to it goes to one VP and SINT (TLFS; synic.md 7.1).

    Args:
        queues: the partition's.
        port_id: 24 bits; the guest finds it in the header of each message.
        vp, sint: the target.
        buffers: how many messages may wait; None without bound.
        freed: called whenever one does not wait any longer.

    Attributes:
        id, vp, sint: as given; the VP may be changed, what waits already stays where it is.
        buffers: its buffers.
    """

    __slots__ = ("_queues", "buffers", "id", "sint", "vp")

    def __init__(
        self,
        queues: MessageQueues,
        port_id: int,
        vp: int,
        sint: int,
        buffers: int | None,
        freed: Callable[[], object] | None = None,
    ) -> None:
        self._queues = queues
        self.id: Final = port_id & 0xFF_FFFF
        self.vp = vp
        self.sint: Final = sint
        self.buffers: Final = Buffers(buffers, freed)

    def post(self, message_type: int, payload: bytes) -> HvStatus:
        """Post a message; statuses and errors as :meth:`MessageQueues.post`."""
        return self._queues.post(self.vp, self.sint, message_type, payload, origin=self.id, buffers=self.buffers)


class GuestEventPort:
    """An event port of the guest's: its signals set flags of one VP and SINT (TLFS; synic.md 7.1).

    Args:
        synic: the partition's.
        port_id: 24 bits.
        vp: the target; may be changed: a flag that is set already stays where it is, for the guest to find.
        sint: the target's SINT, 1 to 15.
        base: the flag that flag 0 of the port means.
        count: how many flags the port has.
    Raises:
        IrqError: EINVAL, a SINT that ports may not target, or flags beyond 2047.
    """

    __slots__ = ("_synic", "base", "count", "id", "sint", "vp")

    def __init__(self, synic: Synic, port_id: int, vp: int, sint: int, base: int = 0, count: int = SINT_FLAGS) -> None:
        if not (0 < sint < SINTS and 0 <= base < base + count <= SINT_FLAGS):
            raise IrqError(
                errno.EINVAL, f"port {port_id:#x}: no flags {base} to {base + count - 1} of sint {sint} (EINVAL)"
            )
        self._synic = synic
        self.id: Final = port_id & 0xFF_FFFF
        self.vp = vp
        self.sint: Final = sint
        self.base: Final = base
        self.count: Final = count

    def signal(self, flag: int = 0) -> HvStatus:
        """Set a flag of the port's.

        Returns:
            SUCCESS, whether it was set or not. INVALID_PARAMETER: the port has no such flag. INVALID_VP_INDEX: there
            is no such VP. INVALID_SYNIC_STATE: SynIC or page is disabled, or the SINT masked.
        """
        if not 0 <= flag < self.count:
            return HvStatus.INVALID_PARAMETER
        try:
            self._synic.signal(self.vp, self.base + flag, self.sint)
        except IrqError as error:
            return HvStatus.INVALID_SYNIC_STATE if error.errno == errno.ENXIO else HvStatus.INVALID_VP_INDEX
        return HvStatus.SUCCESS


class Outbox:
    """What a patient host has posted to one VP and SINT: a status that may pass is no answer, it posts again.

    It does when a buffer is free, and when a SynIC register was written (:meth:`retry`); never by trying.
    """

    __slots__ = ("_filling", "_port", "_waiting")

    def __init__(self, queues: MessageQueues, port_id: int, vp: int, sint: int, buffers: int | None) -> None:
        self._port = GuestMessagePort(queues, port_id, vp, sint, buffers, self._freed)
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._filling = False

    def post(self, message_type: int, payload: bytes) -> None:
        """Post a message, now or later; errors as :meth:`MessageQueues.post`."""
        if self._waiting or self._port.post(message_type, payload) != HvStatus.SUCCESS:
            self._waiting.append((message_type, payload))

    def retry(self) -> bool:
        """Post what waits until one is refused; True if any was not."""
        moved, self._filling = False, True
        try:
            while self._waiting and self._port.post(*self._waiting[0]) == HvStatus.SUCCESS:
                self._waiting.popleft()
                moved = True
        finally:
            self._filling = False
        return moved

    def _freed(self) -> None:
        if not self._filling:
            self.retry()

    def __len__(self) -> int:
        return len(self._waiting)
