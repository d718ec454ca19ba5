"""Which channels a CPU that goes offline has, and which of them keep it online, by the design's offline policy."""

from __future__ import annotations

from typing import Final

from vmbusirq.designs import OfflinePolicy
from vmbusirq.machine import Machine
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.wire.protocol import Unlock

__all__ = ["MOVES", "channels_on", "holding_channels"]

MOVES: Final = {
    OfflinePolicy.MAINLINE: "to an online CPU, from a random one on, once the host confirms it",
    OfflinePolicy.REDIRECT: "the host is asked for another CPU, and genirq moves the handler",
    OfflinePolicy.HANDOVER: "to the least used CPU of its affinity",
}
"""How a channel leaves by itself; not under REFUSE."""


def channels_on(machine: Machine, cpus: int) -> list[Channel]:
    """Return the channels that interrupt CPUs of a mask, by CPU and relid; none while the guest is not connected.

    Where interrupts are redirected, the host may interrupt another CPU than the one that runs the channel: both count.
    """
    if machine.vmbus.version is None:
        return []
    channels = (channel for channel in machine.vmbus.devices.all_channels() if _cpus_of(machine, channel) & cpus)
    return sorted(channels, key=lambda channel: (channel.target_cpu, channel.relid))


def _cpus_of(machine: Machine, channel: Channel) -> int:
    cpus = 1 << channel.target_cpu
    if machine.design.redirects and channel.state is ChannelState.OPENED:
        cpus |= 1 << channel.moves.host_cpu
    return cpus


def holding_channels(machine: Machine, cpus: int) -> list[Channel]:
    """Return those of :func:`channels_on` that keep their CPU online, which is EBUSY, until they are moved."""
    return [channel for channel in channels_on(machine, cpus) if _stays(machine, channel, cpus)]


def _stays(machine: Machine, channel: Channel, cpus: int) -> bool:
    """Whether a channel does not leave by itself (see :mod:`vmbusirq.vmbus.migrate`)."""
    version, policy = machine.vmbus.version, machine.design.offline_policy
    assert version is not None
    is_open = channel.state is ChannelState.OPENED
    if policy is OfflinePolicy.REFUSE:
        return True
    if policy is OfflinePolicy.MAINLINE:
        usable = machine.online_mask & ~machine.vmbus.isolated & ~cpus
        return not (is_open and usable and not channel.rescinded and version.has(Unlock.MODIFYCHANNEL_RESPONSE))
    comes_to = channel.moves.host_cpu if machine.design.redirects else channel.target_cpu
    return bool(is_open and cpus >> comes_to & 1 and not channel.rescinded and not version.has(Unlock.MODIFYCHANNEL))
