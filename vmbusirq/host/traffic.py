"""Patterned packets for channels, one by one or in bulk (``csrc/host/vsp.c``)."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, check
from vmbusirq.host.stats import Traffic

if TYPE_CHECKING:
    from vmbusirq.core import Core
    from vmbusirq.host.channel import HostChannel

__all__ = ["drive", "send", "set_template", "signal"]

_PACKETS_MAX: Final = 1 << 32
_WHY_NOT_DRIVEN: Final = {
    errno.EAGAIN: "nobody reads a ring that is full",
    errno.ENXIO: "the SynIC of a target CPU is off, or a channel has no interrupts",
    errno.EMSGSIZE: "a packet is more than its ring can ever hold",
    errno.ELOOP: "a handler raises itself for ever, or a ring's writer is broken",
    errno.ENOMEM: "out of memory",
    errno.EIO: "the guest's end of a ring is broken",
}


def send(channel: HostChannel, packets: int, payload: int) -> int:
    """Write packets and signal by the ring's rule; as :meth:`HostBus.send`."""
    if not 0 <= packets < _PACKETS_MAX or payload < 0:
        raise IrqError(errno.EINVAL, f"host: cannot send {packets} packets of {payload} bytes (EINVAL)")
    what = (
        f"host: cannot send {payload}-byte packets on channel {channel.relid}: "
        f"one holds {lib.VI_RING_PAYLOAD_MAX} at most"
    )
    if channel.failure:
        return 0
    with _asking([channel]):
        result = lib.vi_vsp_send(channel.handle, packets, min(payload, 0xFFFF_FFFF))
    if result == -errno.EIO:  # the guest's doing, so not the caller's error
        channel.fail("in ring: the guest's index is impossible")
        return 0
    return check(result, what)


def signal(channel: HostChannel) -> bool:
    """Signal without writing; as :meth:`HostBus.signal`."""
    what = f"host: cannot signal channel {channel.relid} on vp {channel.target_vp}: that SynIC is off"
    return bool(check(lib.vi_vsp_signal(channel.handle), what))


def drive(core: Core, lines: Sequence[tuple[Traffic, HostChannel]], seed: int) -> int:
    """Deliver bulk traffic; as :meth:`HostBus.drive`."""
    entries = ffi.new("struct vi_traffic[]", len(lines))
    for entry, (item, channel) in zip(entries, lines, strict=True):
        entry.vsp = channel.handle
        _check(item)
        entry.interrupts, entry.packets, entry.payload = item.interrupts, item.packets, item.payload
    with _asking([channel for _, channel in lines]):
        result = int(lib.vi_drive(core.handle, entries, len(lines), seed & 0xFFFF_FFFF_FFFF_FFFF))
    why = _WHY_NOT_DRIVEN.get(-result, "")
    return check(result, f"host: cannot drive channels {', '.join(str(item.relid) for item, _ in lines)}: {why}")


@contextmanager
def _asking(channels: Sequence[HostChannel]) -> Iterator[None]:
    """Let the packets of devices that have a template be requests, for a while.

    The answers are read and counted in C, except on a channel where a request of the VSP's own is still unanswered.
    """
    asking = [channel for channel in channels if channel.device.vsp.bulk_template]
    for channel in asking:
        set_template(channel, channel.device.vsp.bulk_template)
        lib.vi_vsp_set_drains(channel.handle, not channel.unanswered)
    try:
        yield
    finally:
        for channel in asking:
            set_template(channel, b"")


def set_template(channel: HostChannel, template: bytes) -> None:
    """Begin the payload of bulk packets with ``template``, and read the answers in C; nothing: neither.

    Smaller payloads become as long as the template. EINVAL: more than 256 bytes.
    """
    what = f"host: a template of {len(template)} bytes: {lib.VI_VSP_TEMPLATE_MAX} at most"
    check(lib.vi_vsp_set_template(channel.handle, template, len(template)), what)
    lib.vi_vsp_set_drains(channel.handle, bool(template))


def _check(item: Traffic) -> None:
    limits = ((item.interrupts, 0, 1 << 63), (item.packets, 1, _PACKETS_MAX), (item.payload, 0, _PACKETS_MAX))
    if not all(low <= number < high for number, low, high in limits):
        raise IrqError(
            errno.EINVAL,
            f"host: cannot drive channel {item.relid} {item.interrupts} times with {item.packets} packets of "
            f"{item.payload} bytes: none may be negative, a burst has 1 to {_PACKETS_MAX - 1} packets (EINVAL)",
        )
