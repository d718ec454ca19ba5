"""Protocol versions, what each of them unlocks, and the feature flags of the newest (vmbus.md 2.9)."""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag
from typing import Final

__all__ = ["LINUX_VERSIONS", "FeatureFlags", "Unlock", "Version"]


class Version(IntEnum):
    """A version as INITIATE_CONTACT carries it: major << 16 | minor. Only these exact values are known to a host."""

    V0_13 = 0x0000D
    """Windows Server 2008."""
    V1_1 = 0x10001
    """Windows 7, 2008 R2."""
    V2_4 = 0x20004
    """Windows 8, 2012; the oldest that Linux still speaks."""
    V3_0 = 0x30000
    """Windows 8.1, 2012 R2."""
    V4_0 = 0x40000
    """Windows 10."""
    V4_1 = 0x40001
    """Windows 10 RS3."""
    V5_0 = 0x50000
    """Later Windows 10."""
    V5_1 = 0x50001
    """Windows 10 RS4."""
    V5_2 = 0x50002
    """Windows 10 RS5, 2019; the oldest that Linux accepts in a confidential VM."""
    V5_3 = 0x50003
    """Iron, 2022; the newest of Linux v6.10."""
    V6_0 = 0x60000
    """Copper."""

    @property
    def major(self) -> int:
        """The number before the dot."""
        return self >> 16

    @property
    def minor(self) -> int:
        """The number behind the dot."""
        return self & 0xFFFF

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)

    def has(self, unlock: Unlock) -> bool:
        """Return whether this version has what ``unlock`` names."""
        return self >= unlock.since

    @classmethod
    def find(cls, number: int) -> Version | None:
        """Return the version with exactly this number, None for any other: a host answers those with "unsupported"."""
        return cls(number) if number in _NUMBERS else None

    @classmethod
    def parse(cls, text: str) -> Version:
        """Return the version written as ``5.3``; ValueError names those there are."""
        for version in cls:
            if str(version) == text:
                return version
        raise ValueError(f"no protocol version {text!r}; known: {', '.join(map(str, cls))}")


_NUMBERS: Final = frozenset(int(version) for version in Version)

LINUX_VERSIONS: Final = (
    Version.V5_3,
    Version.V5_2,
    Version.V5_1,
    Version.V5_0,
    Version.V4_1,
    Version.V4_0,
    Version.V3_0,
    Version.V2_4,
)
"""What a v6.10 guest tries, in this order."""


class Unlock(Enum):
    """Something that a version brought, with the version and a sentence about it."""

    DEDICATED_INTERRUPT = Version.V1_1, "a channel may have an interrupt of its own towards the host"
    UNLOAD_RESPONSE = Version.V1_1, "UNLOAD is answered"
    PER_CPU_FLAGS = Version.V2_4, "event flags lie in each CPU's own page, one per relid"
    TARGET_VP = Version.V2_4, "target_vp of OPENCHANNEL is honoured"
    SUB_CHANNELS = Version.V2_4, "a device may have more than one channel"
    PENDING_SEND_SIZE = Version.V2_4, "a writer that found its ring full is signalled when there is room"
    CONNECTION_STATE = Version.V2_4, "connection_state of VERSION_RESPONSE tells why a connection failed"
    RECONNECT = Version.V3_0, "a connection can be made again after UNLOAD, so that Linux sends it"
    TARGET_VCPU = Version.V3_0, "control messages come to target_vcpu of INITIATE_CONTACT instead of VP 0"
    TL_CONNECT = Version.V4_0, "hv_sock: the guest asks for a channel with TL_CONNECT_REQUEST"
    RESERVED_CHANNELS = Version.V4_0, "channels that stay usable while the guest is unloaded"
    MODIFYCHANNEL = Version.V4_1, "an open channel can be moved to another VP"
    TL_CONNECT_RESULT = Version.V4_1, "a refused hv_sock connection is answered"
    MSG_SINT = Version.V5_0, "the guest names the SINT of control messages"
    MULTI_CLIENT = Version.V5_0, "contact over connection id 4, then over the msg_conn_id of VERSION_RESPONSE"
    BIG_HV_SOCK_RINGS = Version.V5_0, "hv_sock rings of up to 64 pages"
    MSG_VTL = Version.V5_1, "the guest names the VTL of control messages"
    SILO_ID = Version.V5_2, "TL_CONNECT_REQUEST may name a silo"
    MODIFYCHANNEL_RESPONSE = Version.V5_3, "MODIFYCHANNEL is answered"
    FEATURE_FLAGS = Version.V6_0, "features beyond the version are negotiated one by one"

    @property
    def since(self) -> Version:
        """The first version that has it."""
        return self.value[0]

    @property
    def text(self) -> str:
        """What it means, as a sentence."""
        return self.value[1]


class FeatureFlags(IntFlag):
    """Features that both ends of a 6.0 connection agreed on; none before."""

    NONE = 0
    GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x1
    CHANNEL_INTERRUPT_REDIRECTION = 0x2
    MODIFY_CONNECTION = 0x4
    CLIENT_ID = 0x8
    CONFIDENTIAL_CHANNELS = 0x10
    PAUSE_RESUME = 0x20
    SERVER_SPECIFIED_MONITOR_PAGES = 0x40
    GPA_PINNING = 0x80
