"""What all control messages have in common, and the one that means nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vmbusirq.wire.protocol.layout import MessageType, Wire
from vmbusirq.wire.protocol.versions import Version

__all__ = ["Invalid", "Message"]


@dataclass(frozen=True, slots=True)
class Message:
    """Any control message; ``wire`` says all about its kind."""

    wire: ClassVar[Wire]

    @property
    def msgtype(self) -> MessageType:
        """The number in its header."""
        return self.wire.msgtype


@dataclass(frozen=True, slots=True)
class Invalid(Message):
    """Type 0, which nobody sends and everybody ignores."""

    wire: ClassVar = Wire(MessageType.INVALID, None, Version.V0_13, size=8)
