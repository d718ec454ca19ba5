"""Messages of the integration components: heartbeat, shutdown, time synchronization and their version negotiation.

Each in-band packet carries an 8-byte pipe header (vmbus.md 1.16), the 20-byte ICMSG header, and a body. The receiver
answers with the same message, turned into a response, under the same transaction id. vmbus.md names the headers but
does not lay them out; the numbers are those of the public ``include/linux/hyperv.h``.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from typing import ClassVar, Final

from vmbusirq.errors import IrqError
from vmbusirq.wire.record import PayloadError, Record

__all__ = [
    "FRAME_VERSIONS",
    "HV_E_FAIL",
    "HV_S_OK",
    "MESSAGE_VERSIONS",
    "VERSIONS_MAX",
    "Heartbeat",
    "IcFlags",
    "IcHeader",
    "IcMessage",
    "IcType",
    "IcVersion",
    "Negotiate",
    "PipeHeader",
    "ShutdownRequest",
    "TimeFlags",
    "TimeSample",
    "choose_versions",
]

IcVersion = tuple[int, int]
"""major, minor."""

VERSIONS_MAX: Final = 100
"""Versions that a negotiation may name in all; a guest refuses more (IC_VERSION_NEGOTIATION_MAX_VER_COUNT)."""
HV_S_OK: Final = 0
HV_E_FAIL: Final = 0x8000_4005

FRAME_VERSIONS: Final[tuple[IcVersion, ...]] = ((3, 0), (1, 0))
"""Frame versions of Linux's hv_utils, best first."""
MESSAGE_VERSIONS: Final[dict[str, tuple[IcVersion, ...]]] = {
    "heartbeat": ((3, 0), (1, 0)),
    "shutdown": ((3, 2), (3, 1), (3, 0), (1, 0)),
    "timesync": ((4, 0), (3, 0), (1, 0)),
    "kvp": ((5, 0), (4, 0), (3, 0)),
    "vss": ((5, 0),),
}
"""Message versions of each service, best first."""

_VERSION: Final = struct.Struct("<HH")


class IcType(IntEnum):
    """icmsgtype."""

    NEGOTIATE = 0
    HEARTBEAT = 1
    KVP = 2
    SHUTDOWN = 3
    TIMESYNC = 4
    VSS = 5
    FCOPY = 7


class IcFlags(IntFlag):
    """icflags."""

    TRANSACTION = 1
    REQUEST = 2
    RESPONSE = 4


class TimeFlags(IntFlag):
    """flags of a time sample: set the clock, or compare it."""

    PROBE = 0
    SYNC = 1
    SAMPLE = 2


@dataclass(frozen=True, slots=True)
class PipeHeader(Record):
    """Begins each packet of a service.

    Attributes:
        msgsize: bytes that follow; 0 from senders that leave it out.
    """

    flags: int = 0
    msgsize: int = 0

    layout: ClassVar = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class IcHeader(Record):
    """The ICMSG header: which versions, what it is, how many bytes of body follow (icmsgsize)."""

    frame_major: int
    frame_minor: int
    icmsgtype: int
    msg_major: int
    msg_minor: int
    icmsgsize: int
    status: int = HV_S_OK
    ictransaction_id: int = 0
    icflags: int = IcFlags.TRANSACTION | IcFlags.REQUEST
    reserved: bytes = bytes(2)

    layout: ClassVar = struct.Struct("<HHHHHHIBB2s")


@dataclass(frozen=True, slots=True)
class IcMessage:
    """A whole packet: pipe header, ICMSG header and body. ``to_bytes`` sets both sizes to what the body has."""

    header: IcHeader
    body: bytes = b""
    pipe_flags: int = 1

    def to_bytes(self) -> bytes:
        """Return the payload of the packet. EINVAL: a value that does not fit."""
        header = replace(self.header, icmsgsize=len(self.body)).to_bytes()
        return PipeHeader(self.pipe_flags, len(header) + len(self.body)).to_bytes() + header + self.body

    @classmethod
    def from_bytes(cls, data: bytes) -> IcMessage:
        """Return the message in a packet's payload; the ring's padding is cut off.

        Raises:
            PayloadError: shorter than the two headers, or than the body that they announce.
        """
        pipe = PipeHeader.from_bytes(data)
        header = IcHeader.from_bytes(data[PipeHeader.size() :])
        begin = PipeHeader.size() + IcHeader.size()
        if begin + header.icmsgsize > len(data):
            raise PayloadError(f"IcMessage: a body of {header.icmsgsize} bytes, {len(data) - begin} came")
        return cls(header, data[begin : begin + header.icmsgsize], pipe.flags)

    @classmethod
    def request(
        cls, icmsgtype: IcType, body: bytes, *, frame: IcVersion = (0, 0), message: IcVersion = (0, 0), ic_id: int = 0
    ) -> IcMessage:
        """Return a request of the host."""
        return cls(IcHeader(*frame, int(icmsgtype), *message, len(body), ictransaction_id=ic_id & 0xFF), body)

    def response(self, body: bytes | None = None, status: int | None = None) -> IcMessage:
        """Return the answer to this request: headers kept, flags turned, ``body`` and ``status`` replaced if given."""
        header = replace(
            self.header,
            icflags=IcFlags.TRANSACTION | IcFlags.RESPONSE,
            status=self.header.status if status is None else status,
        )
        return replace(self, header=header, body=self.body if body is None else body)


@dataclass(frozen=True, slots=True)
class Negotiate:
    """Which versions the sender knows, worst or best first as it likes; an answer has one of each, or none at all."""

    frame: tuple[IcVersion, ...]
    message: tuple[IcVersion, ...]

    head: ClassVar = struct.Struct("<HHI")

    def to_bytes(self) -> bytes:
        """Return counts and versions. EINVAL: more than VERSIONS_MAX, or a number above 16 bits."""
        versions = (*self.frame, *self.message)
        if len(versions) > VERSIONS_MAX:
            raise IrqError(errno.EINVAL, f"negotiate: {len(versions)} versions (EINVAL); at most {VERSIONS_MAX}")
        try:
            words = b"".join(_VERSION.pack(*version) for version in versions)
        except struct.error as error:
            raise IrqError(errno.EINVAL, f"negotiate: {versions}: {error} (EINVAL)") from None
        return self.head.pack(len(self.frame), len(self.message), 0) + words

    @classmethod
    def from_bytes(cls, data: bytes) -> Negotiate:
        """Return the negotiation in a body.

        Raises:
            PayloadError: cut short, or more than VERSIONS_MAX versions.
        """
        if len(data) < cls.head.size:
            raise PayloadError(f"Negotiate: {len(data)} bytes, it has at least {cls.head.size}")
        frames, messages, _ = cls.head.unpack_from(data)
        count = frames + messages
        if count > VERSIONS_MAX or cls.head.size + count * _VERSION.size > len(data):
            raise PayloadError(f"Negotiate: {frames} + {messages} versions in {len(data)} bytes")
        found = [_VERSION.unpack_from(data, cls.head.size + 4 * index) for index in range(count)]
        versions = tuple((int(major), int(minor)) for major, minor in found)
        return cls(versions[:frames], versions[frames:])


@dataclass(frozen=True, slots=True)
class Heartbeat(Record):
    """The host counts; the guest answers with the next number."""

    seq_num: int
    reserved: bytes = bytes(32)

    layout: ClassVar = struct.Struct("<Q32s")


@dataclass(frozen=True, slots=True)
class ShutdownRequest(Record):
    """Shut down (flags 0, forced 1), restart (2, 3) or hibernate (4, 5), within ``timeout_seconds``."""

    reason_code: int
    timeout_seconds: int
    flags: int = 0
    display_message: bytes = bytes(2048)

    layout: ClassVar = struct.Struct("<III2048s")


@dataclass(frozen=True, slots=True)
class TimeSample(Record):
    """The host's time in 100 ns units since 1601, when it was taken by the guest's clock, and the round trip."""

    parenttime: int
    childtime: int = 0
    roundtriptime: int = 0
    flags: int = TimeFlags.SAMPLE

    layout: ClassVar = struct.Struct("<QQQB")


def choose_versions(
    offered: Negotiate, frame: Sequence[IcVersion], message: Sequence[IcVersion]
) -> tuple[IcVersion, IcVersion] | None:
    """Return the first own frame and message version that were offered too; None unless there are both.

    See: vmbus_prep_negotiate_resp, drivers/hv/channel_mgmt.c, v6.10.
    """
    frames = [version for version in frame if version in offered.frame]
    messages = [version for version in message if version in offered.message]
    return (frames[0], messages[0]) if frames and messages else None
