"""What the host counts per channel, and one line of bulk traffic."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["Traffic", "VspStats"]


@dataclass(frozen=True, slots=True)
class VspStats:
    """What a VSP has done, in units: packets, bytes (payload with padding), sums modulo 2**64, calls.

    Attributes:
        packets, bytes, checksum: written to the in ring; a reader that lost nothing has the same three numbers.
        signals: HvSignalEvent calls.
        edges: of them, flags that went from 0 to 1, which is what the guest can count.
        dropped_signals: the target's SynIC was off, so the flag was lost.
        full: writes that a full ring refused.
        responses, response_bytes: what the guest answered to bulk requests.
    """

    packets: int = 0
    bytes: int = 0
    checksum: int = 0
    signals: int = 0
    edges: int = 0
    dropped_signals: int = 0
    full: int = 0
    responses: int = 0
    response_bytes: int = 0

    @classmethod
    def from_c(cls, stats: Any) -> VspStats:
        """Return the numbers of a ``struct vi_vsp_stats``."""
        return cls(*(int(getattr(stats, item.name)) for item in fields(cls)))

    def __add__(self, other: VspStats) -> VspStats:
        """Return the sums; the checksum stays below 2**64."""
        sums = [getattr(self, item.name) + getattr(other, item.name) for item in fields(self)]
        sums[2] %= 1 << 64
        return VspStats(*sums)


@dataclass(frozen=True, slots=True)
class Traffic:
    """One line of bulk traffic: ``interrupts`` times ``packets`` packets of ``payload`` bytes on channel ``relid``."""

    relid: int
    interrupts: int
    packets: int = 1
    payload: int = 64
