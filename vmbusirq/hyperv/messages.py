"""Messages to a guest: a queue per VP and SINT, buffers, and what moves a message into its slot (synic.md 5).

One slot holds one message. What finds it busy waits here, with the slot's pending bit set; it is looked at again when
another message is queued, when the guest writes EOM, and when it ends the SINT's vector by an EOI. Each of these moves
one message per SINT at most.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.profiles import Profile
from vmbusirq.hyperv.synic import Synic
from vmbusirq.limits import SINTS

__all__ = ["Buffers", "Deposit", "GuestMessagePort", "MessageQueues", "Outbox"]

Payload: TypeAlias = bytes | Callable[[], bytes]
"""A message's bytes, or what makes them when it reaches the slot: a timer's tell when that was."""


class Deposit(Enum):
    """What became of a message that was not to be queued (:meth:`MessageQueues.deposit`)."""

    DELIVERED = "in the slot, its vector requested"
    SILENT = "in the slot, no interrupt: SINT masked or polling, APIC disabled"
    BUSY = "the slot is full"
    OFF = "SynIC or message page is disabled"
    LOST = "the SINT is masked, and the profile drops it"


class Buffers:
    """Guest message buffers: a port has some, a timer one of its own (TLFS).

    Args:
        total: how many messages may wait in queues; None without bound.
        freed: called whenever a message has left its buffer.

    Attributes:
        total: as given.
        used: how many wait.
    """

    __slots__ = ("_freed", "total", "used")

    def __init__(self, total: int | None, freed: Callable[[], object] | None = None) -> None:
        self.total: Final = total
        self.used = 0
        self._freed = freed

    def take(self) -> bool:
        """Take one; False: all are in use."""
        if self.total is not None and self.used >= self.total:
            return False
        self.used += 1
        return True

    def release(self) -> None:
        """Give one back."""
        self.used -= 1
        if self._freed is not None:
            self._freed()


@dataclass(frozen=True, slots=True, eq=False)
class _Message:
    message_type: int
    payload: Payload
    origin: int
    buffers: Buffers | None
    delivered: Callable[[Deposit], object] | None


class MessageQueues:
    """The queues of all VPs of a partition.

    Args:
        synic: whose slots they lead to.
        profile: what differs between implementations.

    Attributes:
        lost: messages that the profile dropped.
    """

    def __init__(self, synic: Synic, profile: Profile) -> None:
        self._synic = synic
        self._profile = profile
        self._queues: dict[tuple[int, int], deque[_Message]] = {}
        self.lost = 0

    # ---- the hypervisor's side

    def post(
        self,
        vp: int,
        sint: int,
        message_type: int,
        payload: Payload,
        *,
        origin: int = 0,
        buffers: Buffers | None = None,
        delivered: Callable[[Deposit], object] | None = None,
    ) -> HvStatus:
        """Queue a message behind those that wait for the same VP and SINT, and look at that queue.

        Args:
            vp: whose slot.
            sint: which slot.
            message_type: not 0; bit 31 is the hypervisor's own.
            payload: up to 240 bytes, or what returns them when the message reaches the slot.
            origin: the header's origin: a port id, or a partition id.
            buffers: whose buffer it takes while it waits.
            delivered: called when it has left the queue.
        Returns:
            SUCCESS: queued, or in the slot already. INVALID_SYNIC_STATE: SynIC or message page is disabled.
            INSUFFICIENT_BUFFERS: no buffer is free.
        Raises:
            IrqError: EINVAL for a VP, SINT or type that does not exist, EMSGSIZE for more than 240 bytes.
        """
        self._synic.check_message(vp, payload if isinstance(payload, bytes) else b"", message_type, sint)
        if not self._synic.takes_messages(vp, sint):
            return HvStatus.INVALID_SYNIC_STATE
        if buffers is not None and not buffers.take():
            return HvStatus.INSUFFICIENT_BUFFERS
        queue = self._queues.setdefault((vp, sint), deque())
        queue.append(_Message(message_type, payload, origin, buffers, delivered))
        self.examine(vp, sint)
        return HvStatus.SUCCESS

    def deposit(
        self, vp: int, sint: int, message_type: int, payload: Payload, *, origin: int = 0, quiet: bool = False
    ) -> Deposit:
        """Put a message into the slot or leave it with the caller, past the queue (KVM's timers).

        The slot is marked if others wait in the queue for it: they would be stranded there.

        Args:
            vp: as in :meth:`post`.
            sint: as in :meth:`post`.
            message_type: as in :meth:`post`.
            payload: as in :meth:`post`; one that is to be made is made in any case.
            origin: as in :meth:`post`.
            quiet: a full slot does not get its pending bit either.
        """
        what = self._synic.check_message(vp, payload if isinstance(payload, bytes) else b"", message_type, sint)
        message = _Message(message_type, payload, origin, None, None)
        return self._deposit(what, vp, sint, message, quiet, more=bool(self._queues.get((vp, sint))))

    def withdraw(self, vp: int, sint: int, buffers: Buffers) -> int:
        """Take messages back that wait in these buffers; return how many. What is in a slot stays there."""
        queue = self._queues.get((vp, sint), deque())
        mine = [message for message in queue if message.buffers is buffers]
        for message in mine:
            queue.remove(message)
        for _ in mine:
            buffers.release()
        return len(mine)

    def waiting(self, vp: int | None = None, sint: int | None = None) -> int:
        """Return how many messages wait: for a VP, for a SINT, for any."""
        return sum(
            len(queue)
            for (to, by), queue in self._queues.items()
            if (vp is None or to == vp) and (sint is None or by == sint)
        )

    # ---- what moves them

    def examine(self, vp: int, sint: int) -> bool:
        """Look at one queue; True if its first message left it. If others wait, the slot is marked."""
        queue = self._queues.get((vp, sint))
        if not queue:
            return False
        message = queue[0]
        what = f"messages: queue of sint {sint} of vp {vp}"
        result = self._deposit(what, vp, sint, message, quiet=False, more=len(queue) > 1)
        if result in (Deposit.BUSY, Deposit.OFF):
            return False
        queue.popleft()
        self.lost += result is Deposit.LOST
        if message.buffers is not None:
            message.buffers.release()
        if message.delivered is not None:
            message.delivered(result)
        return True

    def eom(self, vp: int) -> None:
        """The guest has written EOM: look at the queues of all its SINTs, masked or not."""
        if self._profile.eom_scans_queues:
            for sint in range(SINTS):
                self.examine(vp, sint)

    def eoi(self, vp: int, vector: int) -> None:
        """The guest has ended a vector: look at the queues of its unmasked SINTs."""
        for sint in self._synic.sints_of(vp, vector, last=self._profile.shared_vector_eoi == "last"):
            self.examine(vp, sint)

    def poll(self) -> bool:
        """Where EOM means nothing, look at all queues (OpenVMM, before each entry); True if any message moved."""
        if self._profile.eom_scans_queues or not self._queues:
            return False
        return sum(self.examine(*place) for place in tuple(self._queues)) > 0

    def reset(self, vp: int) -> None:
        """Empty the queues of a VP: it was reset."""
        for place in [place for place in self._queues if place[0] == vp]:
            for message in self._queues.pop(place):
                if message.buffers is not None:
                    message.buffers.release()

    def _deposit(self, what: str, vp: int, sint: int, message: _Message, quiet: bool, *, more: bool) -> Deposit:
        payload = message.payload if isinstance(message.payload, bytes) else message.payload()
        how = (lib.VI_DEPOSIT_QUIET if quiet else 0) | (lib.VI_DEPOSIT_MORE if more else 0)
        result = self._synic.deposit(vp, sint, message.message_type, message.origin, payload, how)
        if result < 0 and -result not in _DEPOSIT_ERRORS:
            raise IrqError(-result, f"{what}: cannot take {len(payload)} bytes")
        return _DEPOSIT_ERRORS[-result] if result < 0 else Deposit.DELIVERED if result else Deposit.SILENT


_DEPOSIT_ERRORS: Final = {errno.EAGAIN: Deposit.BUSY, errno.ENXIO: Deposit.OFF, errno.EPERM: Deposit.LOST}


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

    def clear(self) -> None:
        """Forget what waits: its target was reset."""
        self._waiting.clear()

    def _freed(self) -> None:
        if not self._filling:
            self.retry()

    def __len__(self) -> int:
        return len(self._waiting)
