"""References to eventfds: what the kernel has of one that user space handed in (``fs/eventfd.c``, v6.16).

The kernel keeps the counter, not the number of the descriptor: the caller may close its own at once. A descriptor
of ours for the same counter does that here; it is closed when the reference is dropped, the caller's never.
"""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path
from typing import Final

from vmbusirq.errors import IrqError

__all__ = ["EventFd"]

_NO_NOWAIT: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What preadv2() says where an eventfd has no read that does not wait, as before Linux 5.8."""


class EventFd:
    """One reference to an eventfd.

    Args:
        fd: the caller's descriptor.
        what: what it is for, as messages put it.
    Raises:
        IrqError: EBADF, ``fd`` is not open; EINVAL, it is no eventfd; EMFILE, no descriptor is left.

    Attributes:
        fd: our own descriptor; -1 when closed.
        identity: the same for every descriptor of one eventfd.
    """

    __slots__ = ("fd", "identity")

    def __init__(self, fd: int, what: str) -> None:
        self.fd = -1
        if not 0 <= fd < 1 << 31:  # the kernel's is an s32
            raise IrqError(errno.EBADF, f"{what}: fd {fd} is not open (EBADF)")
        try:
            self.fd = os.dup(fd)
        except OSError as error:
            why = "is not open" if error.errno == errno.EBADF else "cannot be kept: close some"
            raise IrqError(error.errno or errno.EBADF, f"{what}: fd {fd} {why}") from error
        try:
            identity = _identity(self.fd)
            if identity is None:
                raise IrqError(errno.EINVAL, f"{what}: fd {fd} is no eventfd (EINVAL); make one with os.eventfd")
        except BaseException:
            self.close()
            raise
        self.identity: Final = identity

    def signal(self) -> None:
        """Add 1. A counter that is full stays full, and nobody waits, as with the kernel's eventfd_signal().

        But for one moment: user space can look first and then write, and has no write that never waits on a
        descriptor whose flags are the caller's as well. Who fills the counter in between holds us up until it is read.
        """
        if _ready(self.fd, select.POLLOUT):
            os.eventfd_write(self.fd, 1)

    def take(self) -> int:
        """Return the counter and set it to 0, 0 if nothing was written; a semaphore gives 1 at a time."""
        counter = bytearray(8)
        try:
            # not a plain read: it would wait for ever if somebody else has taken it since we were told of it
            os.preadv(self.fd, [counter], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _NO_NOWAIT:
                raise
            # as signal() does: look, then read
            return os.eventfd_read(self.fd) if _ready(self.fd, select.POLLIN) else 0
        return int.from_bytes(counter, "little")

    def close(self) -> None:
        """Drop the reference. A second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        """Drop it with the last reference to it: a VM need not be closed."""
        self.close()


def _ready(fd: int, events: int) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(0))


def _identity(fd: int) -> int | None:
    """Return the eventfd's number in the kernel, None if it is none.

    Kernels before v5.2 have no such number: each descriptor stands for itself then.
    """
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    if "eventfd-count" not in fields:
        return None
    return int(fields["eventfd-id"]) if "eventfd-id" in fields else -1 - fd
