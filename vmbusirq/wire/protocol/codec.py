"""Control messages to bytes and back.

Received bytes come from the other end and are believed in nothing: what cannot be taken raises :class:`ProtocolError`,
whose text is Linux's own where Linux has one. Who catches it logs it, drops the message, and still frees the slot.
"""

from __future__ import annotations

import dataclasses
import errno
import struct
from collections.abc import Mapping
from enum import Enum
from typing import Final

from vmbusirq.errors import IrqError
from vmbusirq.limits import MSG_PAYLOAD
from vmbusirq.wire.protocol import channel, connection, gpadl
from vmbusirq.wire.protocol.ids import signed32
from vmbusirq.wire.protocol.layout import HEADER_SIZE, Direction, Handling, MessageType, Tail, Wire
from vmbusirq.wire.protocol.message import Invalid, Message
from vmbusirq.wire.protocol.versions import FeatureFlags, Version

__all__ = ["MESSAGES", "ProtocolError", "Refusal", "decode", "encode"]

_HEADER: Final = struct.Struct("<I4x")

_CLASSES: Final[tuple[type[Message], ...]] = (
    Invalid,
    channel.OfferChannel,
    channel.RescindChannelOffer,
    connection.RequestOffers,
    connection.AllOffersDelivered,
    channel.OpenChannel,
    channel.OpenChannelResult,
    channel.CloseChannel,
    gpadl.GpadlHeader,
    gpadl.GpadlBody,
    gpadl.GpadlCreated,
    gpadl.GpadlTeardown,
    gpadl.GpadlTorndown,
    channel.RelidReleased,
    connection.InitiateContact,
    connection.VersionResponse,
    connection.Unload,
    connection.UnloadResponse,
    channel.OpenReservedChannel,
    channel.CloseReservedChannel,
    channel.CloseReservedResponse,
    connection.TlConnectRequest,
    channel.ModifyChannel,
    connection.TlConnectResult,
    channel.ModifyChannelResponse,
    connection.ModifyConnection,
    connection.ModifyConnectionResponse,
    connection.Pause,
    connection.PauseResponse,
    connection.Resume,
)
MESSAGES: Final[Mapping[MessageType, type[Message]]] = {kind.wire.msgtype: kind for kind in _CLASSES}
"""The class of each message type, in the order of their numbers."""

_NUMBERS: Final = frozenset(int(msgtype) for msgtype in MessageType)
_LINUX_COUNT: Final = 25  # CHANNELMSG_COUNT, v6.10
_WITH_WORDS: Final = (gpadl.GpadlHeader, gpadl.GpadlBody)


class Refusal(Enum):
    """Why a message cannot be taken."""

    UNKNOWN = "unknown msgtype={msgtype}"
    TOO_LARGE = "payload size is too large ({size})"
    UNHANDLED = "no handler for msgtype={msgtype}"
    TOO_SHORT = "message too short: msgtype={msgtype} len={size}"
    UNSUPPORTED = "unsupported msgtype={msgtype} at version {version}"


class ProtocolError(ValueError):
    """A message that must be dropped.

    Attributes:
        refusal: why.
        msgtype, size: what the header said, and the payload's bytes.
    """

    def __init__(self, refusal: Refusal, msgtype: int, size: int, version: Version | None = None) -> None:
        super().__init__(refusal.value.format(msgtype=signed32(msgtype), size=size, version=_text(version)))
        self.refusal: Final = refusal
        self.msgtype: Final = msgtype
        self.size: Final = size

    @property
    def is_silent(self) -> bool:
        """Linux drops it without a word: its type has no handler. The other kinds are warned about, once each."""
        return self.refusal is Refusal.UNHANDLED


def encode(message: Message, version: Version | None, features: FeatureFlags = FeatureFlags.NONE) -> bytes:
    """Return the bytes of a message, at most 240.

    Args:
        message: any message, of either direction.
        version: of the connection, for VERSION_RESPONSE the one asked for; None before one is agreed upon.
        features: negotiated with version 6.0.
    Raises:
        IrqError(EINVAL): the connection does not have this message or this form of it, or a value does not fit.
        IrqError(EMSGSIZE): more words than one message holds.
    """
    wire = message.wire
    if not wire.is_known_at(version, features):
        needs = f"{wire.since} with {wire.features.name}" if wire.features else f"{wire.since}"
        raise IrqError(
            errno.EINVAL, f"{wire.msgtype.name}: not at version {_text(version)} (EINVAL); it needs {needs} or later"
        )
    payload = _HEADER.pack(wire.msgtype) + wire.base.pack(message, wire.msgtype.name)
    for tail in wire.tails:
        if not _is_due(tail, message, version, features):
            break
        payload += tail.section.pack(message, wire.msgtype.name)
    given = [tail.names for tail in wire.tails if tail.section.end > len(payload) and tail.given_in(message)]
    if given:
        raise IrqError(
            errno.EINVAL,
            f"{wire.msgtype.name}: cannot carry {given[0]} at version {_text(version)} with these features (EINVAL)",
        )
    return payload + _pack_words(message) if isinstance(message, _WITH_WORDS) else payload


def _is_due(tail: Tail, message: Message, version: Version | None, features: FeatureFlags) -> bool:
    """Return whether a tail is to be sent. EINVAL: it is due and incomplete."""
    if not tail.when(message, version, features) or (tail.optional and not tail.given_in(message)):
        return False
    if not tail.is_whole_in(message):
        raise IrqError(errno.EINVAL, f"{message.msgtype.name}: wants all of {tail.names} here (EINVAL)")
    return True


def _pack_words(message: gpadl.GpadlHeader | gpadl.GpadlBody) -> bytes:
    words, most = message.words, message.wire.words_max
    if len(words) > most:
        raise IrqError(
            errno.EMSGSIZE, f"{message.msgtype.name}: {len(words)} words (EMSGSIZE); there is room for {most}"
        )
    if not all(0 <= word < 1 << 64 for word in words):
        raise IrqError(errno.EINVAL, f"{message.msgtype.name}: a word does not fit into 64 bits (EINVAL)")
    return struct.pack(f"<{len(words)}Q", *words)


def decode(
    payload: bytes,
    version: Version | None,
    direction: Direction,
    features: FeatureFlags = FeatureFlags.NONE,
    *,
    size: int | None = None,
) -> Message:
    """Return the message in a slot's payload (to the guest) or a posted message (to the host).

    A guest judges as Linux does, which knows no versions here and reads the type before it looks at the size; a host
    judges as OpenVMM does, which takes only what the connection has. Bytes beyond the layout are ignored.

    Args:
        payload: may be longer than the message, as a slot is; bytes that are missing read as zero.
        version: as in :func:`encode`.
        direction: who receives it.
        features: as in :func:`encode`.
        size: the payload size that the slot names, if not all of ``payload``.
    Raises:
        ProtocolError: the message must be dropped.
    """
    declared = len(payload) if size is None else size
    msgtype = int.from_bytes(payload[:4], "little")
    judge = _judge_as_guest if direction is Direction.TO_GUEST else _judge_as_host
    refusal = judge(msgtype, declared, version, features)
    if refusal is not None:
        raise ProtocolError(refusal, msgtype, declared, version)
    wire = MESSAGES[MessageType(msgtype)].wire
    payload = payload[:declared].ljust(declared, b"\0")
    values = dict(wire.base.unpack(payload.ljust(wire.size, b"\0")))
    if wire.words_max:
        count = (len(payload) - wire.size) // 8
        values["words"] = struct.unpack_from(f"<{count}Q", payload, wire.size)
    message = MESSAGES[MessageType(msgtype)](**values)
    for tail in wire.tails:
        if not tail.when(message, version, features):
            break
        if len(payload) < tail.section.end:
            if not tail.optional:
                raise ProtocolError(Refusal.TOO_SHORT, msgtype, declared, version)
            break
        message = dataclasses.replace(message, **tail.section.unpack(payload))
    return message


def _judge_as_guest(msgtype: int, size: int, version: Version | None, features: FeatureFlags) -> Refusal | None:
    """Return what vmbus_on_msg_dpc has against a message (drivers/hv/vmbus_drv.c, v6.10), in its order."""
    wire = _wire(msgtype)
    if wire is None or (msgtype >= _LINUX_COUNT and not wire.is_known_at(version, features)):
        return Refusal.UNKNOWN
    if size > MSG_PAYLOAD:
        return Refusal.TOO_LARGE
    if wire.direction is not Direction.TO_GUEST:
        return Refusal.UNHANDLED
    if wire.linux is Handling.NONE and size < wire.size:
        return Refusal.UNHANDLED if msgtype < _LINUX_COUNT else Refusal.TOO_SHORT
    return Refusal.TOO_SHORT if size < wire.linux_min else None


def _judge_as_host(msgtype: int, size: int, version: Version | None, features: FeatureFlags) -> Refusal | None:
    if size < HEADER_SIZE:
        return Refusal.TOO_SHORT
    wire = _wire(msgtype)
    if wire is None:
        return Refusal.UNKNOWN
    if size > MSG_PAYLOAD:
        return Refusal.TOO_LARGE
    if wire.direction is not Direction.TO_HOST or not wire.is_known_at(version, features):
        return Refusal.UNSUPPORTED
    return Refusal.TOO_SHORT if size < wire.size else None


def _wire(msgtype: int) -> Wire | None:
    return MESSAGES[MessageType(msgtype)].wire if msgtype in _NUMBERS else None


def _text(version: Version | None) -> str:
    return "none" if version is None else str(version)
