"""devices/<guid>/channels/<relid> (vmbus_chan_type in drivers/hv/vmbus_drv.c, v6.10; formats: vmbus.md 6.3)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from vmbusirq.errors import IrqError
from vmbusirq.fs.node import SYSFS, Directory, File, Node
from vmbusirq.fs.sysfs.attributes import taken
from vmbusirq.vmbus.channel import Channel, ChannelState, ChannelStats
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.monitor import MonitorPage

__all__ = ["ChannelsDir", "signed"]

UIO: Final = "uio_hv_generic"


def signed(value: int) -> int:
    """Return a 32-bit word as ``%d`` prints it."""
    return value - (1 << 32) if value >> 31 else value


@dataclass(frozen=True, slots=True)
class _ChannelFile:
    """One file: what it shows, what takes a write, and whether it is there only for a channel with a monitor."""

    show: Callable[[VmbusConnection, Channel], int]
    store: Callable[[VmbusConnection, Channel, bytes], int] | None = None
    monitor: bool = False


def _stat(name: str) -> _ChannelFile:
    assert name in ChannelStats.__slots__
    return _ChannelFile(lambda vmbus, channel: int(getattr(channel.stats, name)))


def _pending(vmbus: VmbusConnection, channel: Channel) -> int:
    return signed(vmbus.monitors.look(channel, MonitorPage.CLIENT).pending)


def _latency(vmbus: VmbusConnection, channel: Channel) -> int:
    return vmbus.monitors.look(channel, MonitorPage.CLIENT).latency


_FILES: Final[dict[str, _ChannelFile]] = {
    "out_mask": _ChannelFile(lambda vmbus, channel: channel.ring_out.interrupt_mask),
    "in_mask": _ChannelFile(lambda vmbus, channel: channel.ring_in.interrupt_mask),
    "read_avail": _ChannelFile(lambda vmbus, channel: channel.ring_in.bytes_to_read),
    "write_avail": _ChannelFile(lambda vmbus, channel: channel.ring_out.bytes_to_write),
    "cpu": _ChannelFile(lambda vmbus, channel: channel.target_cpu, VmbusConnection.target_cpu_store),
    "pending": _ChannelFile(_pending, monitor=True),
    "latency": _ChannelFile(_latency, monitor=True),
    "monitor_id": _ChannelFile(lambda vmbus, channel: channel.offer.monitorid, monitor=True),
    "subchannel_id": _ChannelFile(lambda vmbus, channel: channel.sub_channel_index),
    "interrupts": _stat("interrupts"),
    "events": _stat("sig_events"),
    "intr_in_full": _stat("intr_in_full"),
    "intr_out_empty": _stat("intr_out_empty"),
    "out_full_first": _stat("out_full_first"),
    "out_full_total": _stat("out_full_total"),
}


class _ChannelDir(Directory):
    """channels/<relid>."""

    __slots__ = ("_channel", "_device", "_vmbus")

    def __init__(self, vmbus: VmbusConnection, device: HvDevice, channel: Channel) -> None:
        super().__init__(channel.dir_name, SYSFS, alive=lambda: device.registered and not channel.gone)
        self._vmbus = vmbus
        self._device = device
        self._channel = channel

    @property
    def _has_ring(self) -> bool:
        driver = self._device.driver
        return driver is not None and driver.name == UIO

    def _is_there(self, name: str) -> bool:
        return self._channel.offer.is_monitored or not _FILES[name].monitor

    def names(self) -> Iterable[str]:
        """Return the files."""
        if not self.alive():
            return ()
        return [*filter(self._is_there, _FILES), *(["ring"] if self._has_ring else [])]

    def lookup(self, name: str) -> Node | None:
        """Return a file."""
        channel = self._channel
        if name == "ring" and self.alive() and self._has_ring:
            return _ring_file(channel, lambda: self.alive() and self._has_ring)
        file = _FILES.get(name)
        if file is None or not self.alive() or not self._is_there(name):
            return None
        show = partial(_show, file, self._vmbus, channel)
        if file.store is None:
            return File(name, 0o444, SYSFS, show, alive=self.alive)
        return File(name, 0o644, SYSFS, show, partial(taken, partial(file.store, self._vmbus, channel)), self.alive)


def _show(file: _ChannelFile, vmbus: VmbusConnection, channel: Channel) -> bytes:
    return b"%d\n" % file.show(vmbus, channel)


def _ring_file(channel: Channel, alive: Callable[[], bool]) -> File:
    """Return the memory of both rings as a file; Linux lets it be mapped, and mapped only."""

    def show() -> bytes:
        rings = channel.rings
        if rings is None or channel.state is not ChannelState.OPENED:
            raise IrqError(
                errno.ENODEV,
                f"channel {channel.relid}: has no rings now: it is {channel.state.name}, not OPENED (ENODEV)",
            )
        return rings.dump()

    def store(data: bytes) -> int:
        raise IrqError(errno.EIO, f"channel {channel.relid}: its rings cannot be written through a file (EIO)")

    file = File("ring", 0o600, SYSFS, show, store, alive)
    rings = channel.rings
    file.size = 0 if rings is None else rings.size
    return file


class ChannelsDir(Directory):
    """devices/<guid>/channels. A directory keeps its name when a resume gives its channel another relid."""

    __slots__ = ("_device", "_vmbus")

    def __init__(self, vmbus: VmbusConnection, device: HvDevice) -> None:
        super().__init__("channels", SYSFS, alive=lambda: device.registered)
        self._vmbus = vmbus
        self._device = device

    def _channels(self) -> dict[str, Channel]:
        channels: dict[str, Channel] = {}
        for channel in tuple(self._device.channels) if self.alive() else ():
            channels.setdefault(channel.dir_name, channel)
        return channels

    def names(self) -> Iterable[str]:
        """Return the relids that the channels had first."""
        return self._channels()

    def lookup(self, name: str) -> Node | None:
        """Return the directory of a channel."""
        channel = self._channels().get(name)
        return None if channel is None else _ChannelDir(self._vmbus, self._device, channel)
