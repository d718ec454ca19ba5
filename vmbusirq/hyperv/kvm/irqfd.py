"""Eventfds that raise GSIs, and those that hear of acknowledges (KVM_IRQFD; ``virt/kvm/eventfd.c``, v6.16).

The kernel is called when an eventfd is written to. Here somebody has to look: :meth:`Irqfds.pump`, on the thread that
the machine belongs to, at once or for as long as it is told to wait. Writers may be any thread or process.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from dataclasses import dataclass

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.kvm.eventfd import EventFd

__all__ = ["Irqfd", "Irqfds"]


@dataclass(slots=True)
class Irqfd:
    """One assignment.

    Attributes:
        trigger: written to by whoever wants the GSI raised.
        gsi: which.
        resample: signalled when the GSI is acknowledged; None without KVM_IRQFD_FLAG_RESAMPLE.
        raised: how often the GSI was raised for it; writes before we looked are one.
        last_result: what raising gave the last time, as :meth:`GsiRouting.set_irq`; None before.
    """

    trigger: EventFd
    gsi: int
    resample: EventFd | None
    raised: int = 0
    last_result: int | None = None

    def close(self) -> None:
        """Drop both references."""
        self.trigger.close()
        if self.resample is not None:
            self.resample.close()


class Irqfds:
    """All irqfds of one VM, oldest first.

    Args:
        set_irq: called as (gsi, level).
    """

    def __init__(self, set_irq: Callable[[int, int], int]) -> None:
        self._set_irq = set_irq
        self._items: list[Irqfd] = []
        self._poll = select.poll()

    @property
    def items(self) -> tuple[Irqfd, ...]:
        """What is assigned."""
        return tuple(self._items)

    def assign(self, fd: int, gsi: int, resamplefd: int | None = None) -> Irqfd:
        """Let writes to ``fd`` raise a GSI; what was written before counts.

        Raises:
            IrqError: EBADF, EINVAL, one of them is not open or no eventfd; EBUSY, an irqfd has that eventfd already.
        """
        what = f"kvm: cannot assign fd {fd} to gsi {gsi}"
        trigger = EventFd(fd, what)
        resample: EventFd | None = None
        try:
            resample = None if resamplefd is None else EventFd(resamplefd, f"{what}: resample")
            if any(item.trigger.identity == trigger.identity for item in self._items):
                raise IrqError(errno.EBUSY, f"{what}: an irqfd has that eventfd (EBUSY); deassign it, or make another")
        except BaseException:
            trigger.close()
            if resample is not None:
                resample.close()
            raise
        item = Irqfd(trigger, gsi, resample)
        self._items.append(item)
        self._poll.register(trigger.fd, select.POLLIN)
        return item

    def deassign(self, fd: int, gsi: int) -> None:
        """Take away what was assigned with that eventfd and GSI; nothing, if there is none, as the kernel does.

        Raises:
            IrqError: EBADF, EINVAL, it is not open or no eventfd.
        """
        named = EventFd(fd, f"kvm: cannot deassign fd {fd} from gsi {gsi}")
        try:
            for item in [item for item in self._items if (item.trigger.identity, item.gsi) == (named.identity, gsi)]:
                self._poll.unregister(item.trigger.fd)
                self._items.remove(item)
                item.close()
        finally:
            named.close()

    def pump(self, timeout_ms: int = 0) -> int:
        """Raise the GSIs of all eventfds that were written to, oldest assignment first.

        Args:
            timeout_ms: how long to wait for the first of them.
        Returns:
            How many GSIs were raised; 0 after the time is over, or at once without any irqfd.
        """
        if not self._items:
            return 0
        ready = {fd for fd, _events in self._poll.poll(timeout_ms)}
        raised = 0
        for item in [item for item in self._items if item.trigger.fd in ready]:
            if not item.trigger.take():
                continue  # somebody else has read it
            item.raised += 1
            item.last_result = self._set_irq(item.gsi, 1)
            if item.resample is None:
                self._set_irq(item.gsi, 0)
            raised += 1
        return raised

    def acked(self, gsi: int) -> None:
        """Lower a GSI that the guest acknowledged and signal every resample eventfd on it, whatever was delivered."""
        resamplers = [item.resample for item in self._items if item.gsi == gsi and item.resample is not None]
        if resamplers:
            self._set_irq(gsi, 0)
        for resample in resamplers:
            resample.signal()

    def close(self) -> None:
        """Take all away. A second call does nothing."""
        for item in self._items:
            item.close()
        self._items.clear()
        self._poll = select.poll()
