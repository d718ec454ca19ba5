"""One door from errno to Python: what the kernel would return, raised as ``OSError`` with that errno."""

from __future__ import annotations

import errno as _errno

__all__ = ["Hung", "IrqError", "MachineBug", "check", "errno_name"]


class IrqError(OSError):
    """An errno that the kernel would return, with a sentence a person can act on.

    The message says what was asked, what is true and what to do, and names the errno:
    ``irq 28: cannot move to cpu 7: cpu 7 is offline (EINVAL); online: 0-6``.
    """

    def __init__(self, errno: int, message: str) -> None:
        name = errno_name(errno)
        super().__init__(errno, message if name in message else f"{message} ({name})")

    def __str__(self) -> str:
        return str(self.strerror)


class Hung(IrqError):
    """ETIMEDOUT: an operation waits for what nobody is going to do. Raised inside it, so that it undoes its work."""

    def __init__(self, message: str) -> None:
        super().__init__(_errno.ETIMEDOUT, message)


class MachineBug(AssertionError):
    """The emulator broke one of its own rules; never the result of user input."""


def errno_name(errno: int) -> str:
    """Return the symbolic name of an errno, ``EINVAL`` for 22."""
    return _errno.errorcode.get(errno, f"errno {errno}")


def check(result: int, message: str) -> int:
    """Return a C result of 0 or more; raise :class:`IrqError` with ``message`` for a negative one."""
    if result < 0:
        raise IrqError(-result, message)
    return result
