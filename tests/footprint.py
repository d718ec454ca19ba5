"""What a machine has taken, and what both ends of its channels have counted, over channels that come and go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from vmbusirq import Machine
from vmbusirq.host.device import HostDevice
from vmbusirq.host.server import HostBus
from vmbusirq.vmbus.channel import Channel

Place = tuple[UUID, int]  # instance GUID, sub-channel index
Counts = tuple[int, int, int]  # packets, bytes, checksum modulo 2**64


def footprint(machine: Machine) -> dict[str, object]:
    """Return everything that is to come back when channels go again."""
    host, memory = machine.host, machine.partition.memory
    return {
        "descriptors": sorted(machine.irq.descs),
        "/proc/irq": machine.fs.listdir("/proc/irq"),
        "devices": sorted(machine.fs.listdir("/sys/bus/vmbus/devices")),
        "mapped bytes": mapped_bytes(memory.fd),
        "guest pages": memory.allocated_pages,
        "stranded pages": machine.vmbus.stranded_pages,
        "shared": Counter(name.split()[0] for name in machine.vmbus.shared_pages()),
        "relids": sorted(host.default.relids),
        "guest relids": sorted(machine.vmbus.channels),
        "host GPADLs": len(host.default.gpadls),
        "GPADL quota": host.quota.used_bytes,
        "host devices": len(host.devices),
        "work": machine.vmbus.work.stuck,
        "messages": machine.partition.messages_waiting,
    }


def mapped_bytes(fd: int) -> int:
    """Return how much of a file this process has mapped. Bytes, since neighbours may be shown as one mapping."""
    inode = str(os.fstat(fd).st_ino)
    fields = [line.split() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    spans = [field[0].split("-") for field in fields if field[4] == inode]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


def amounts(taken: dict[str, object]) -> dict[str, object]:
    """Return how much there is of each: other channels may have the same numbers after a while."""
    return {what: len(value) if isinstance(value, list) else value for what, value in taken.items()}


class Ledger:
    """Adds up what the host sent and the guest read on each channel, by instance and sub-channel index."""

    def __init__(self) -> None:
        self._gone: dict[Place, Counts] = {}
        self._devices: list[HostDevice] = []
        self._settled: dict[Place, Counts] = {}

    def sent(self) -> dict[Place, Counts]:
        """Return what the host wrote."""
        totals = dict(self._settled)
        for device in self._devices:
            for channel in device.all_channels:
                stats = channel.stats
                _add(totals, (device.instance, channel.sub_channel_index), (stats.packets, stats.bytes, stats.checksum))
        return {place: counts for place, counts in totals.items() if any(counts)}

    def read(self, machine: Machine) -> dict[Place, Counts]:
        """Return what the guest read."""
        totals = dict(self._gone)
        for channel in machine.vmbus.devices.all_channels():
            if not channel.gone:
                _add(totals, *_of_guest(channel))
        return {place: counts for place, counts in totals.items() if any(counts)}

    def forget_removed(self, machine: Machine) -> None:
        """Keep the sums of removed devices only, so that a long campaign does not keep the devices."""
        present = set(machine.host.devices)
        for device in self._devices:
            if device not in present:
                for channel in device.all_channels:
                    stats = channel.stats
                    counts = (stats.packets, stats.bytes, stats.checksum)
                    _add(self._settled, (device.instance, channel.sub_channel_index), counts)
        self._devices = [device for device in self._devices if device in present]


def _of_guest(channel: Channel) -> tuple[Place, Counts]:
    stats = channel.stats
    return (channel.offer.if_instance, channel.sub_channel_index), (stats.packets, stats.bytes, stats.checksum)


def _add(totals: dict[Place, Counts], place: Place, counts: Counts) -> None:
    packets, size, checksum = totals.get(place, (0, 0, 0))
    totals[place] = packets + counts[0], size + counts[1], (checksum + counts[2]) % (1 << 64)


@contextmanager
def ledger() -> Iterator[Ledger]:
    """Keep the books of all channels that are made and destroyed inside."""
    books = Ledger()
    destroy, add_device = Channel.destroy, HostBus.add_device

    def destroying(channel: Channel) -> None:
        _add(books._gone, *_of_guest(channel))
        destroy(channel)

    def adding(bus: HostBus, *args, **options) -> HostDevice:  # type: ignore[no-untyped-def]
        device = add_device(bus, *args, **options)
        books._devices.append(device)
        return device

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "destroy", destroying)
        patch.setattr(HostBus, "add_device", adding)
        yield books
