"""Operations that the end of their channel, or a host that keeps silent, overtakes (vmbus.md 2.12, 4.3, 7.3)."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from tests.vmbus.scripted import Guest, refused
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.steps import run
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.wire.protocol import (
    CloseChannel,
    GpadlTeardown,
    MessageType,
    RelidReleased,
    RescindChannelOffer,
    Version,
    encode,
)


def stall_host(guest: Guest, ticks: int) -> None:
    """Fill the host's port, and let it read nothing for so long: whoever posts waits for a buffer."""
    host, end = guest.host, guest.core.now + ticks
    port, connection_id = host.port, guest.vmbus.control.msg_conn_id
    while not guest.partition.hv_post_message(connection_id, 1, encode(RelidReleased(99), guest.vmbus.version)):
        pass
    busy = SimpleNamespace(receive=lambda: port.receive() if guest.core.now >= end else None)
    host.port = busy  # type: ignore[assignment]
    guest.partition.clock.call_at(end, lambda: None)


@pytest.mark.parametrize("engine", ["fast", "linux"])
@pytest.mark.parametrize("design", ["rfc", "legacy"])
@pytest.mark.parametrize("version", [Version.V5_2, Version.V5_3])
def test_a_rescind_while_modifychannel_waits_for_a_buffer(engine: str, design: str, version: Version) -> None:
    """Below 5.3 nobody waits for an answer: when the message is out the channel may be gone, and nothing was moved.

    With channel IRQs the move holds desc->lock until the message is out, and the rescind comes after it.
    """
    guest = Guest(design, engine=engine, version=version, drivers=False)
    channel = guest.offered("scsi", 5)
    guest.vmbus.open(channel)
    stall_host(guest, 50_000)
    guest.host.rescind(5)
    if design == "rfc":
        assert 1 == guest.vmbus.target_cpu_store(channel, b"2")
    else:
        with refused(errno.EIO, "rescinded it"):
            guest.vmbus.target_cpu_store(channel, b"2")
    guest.pass_time(1)
    assert (True, 2 if design == "rfc" else 0, {}) == (channel.gone, channel.target_cpu, dict(guest.vmbus.channels))
    assert 1 == guest.host.of_type(RelidReleased).count(RelidReleased(5))


def test_a_removal_between_two_steps_of_a_rescind_ends_it() -> None:
    """A sub-channel that cannot be added is removed for that; its rescind, already begun, finds nothing left."""
    guest = Guest(drivers=False)
    guest.offered("scsi", 5)
    sub = guest.offered("scsi", 6, sub=1)
    rescind = guest.vmbus.manager.rescind(sub)
    next(rescind)
    run(guest.vmbus.manager.process_removal(sub), guest.partition.idle)
    assert [] == list(rescind)
    guest.settle()
    assert [5] == sorted(guest.vmbus.channels)
    assert [RelidReleased(6)] == guest.host.of_type(RelidReleased)


def test_the_c_half_of_a_channel_that_is_gone_is_out_of_reach() -> None:
    """Every way down to it is ENODEV."""
    guest = Guest(drivers=False)
    channel = guest.offered("heartbeat")
    guest.host.post(RescindChannelOffer(5))
    guest.settle()
    assert channel.gone
    for attempt in (
        lambda: channel.set_cpu(1),
        channel.rescind,
        lambda: channel.map(30),
        channel.unmap,
        lambda: channel.bind_action(None),
        channel.destroy,
        lambda: channel.set_signal(1),
        lambda: channel.rename(7),
    ):
        with refused(errno.ENODEV):
            attempt()


SUBS = range(6, 26)


@pytest.mark.parametrize("how", ["silent", "unpostable"])
@pytest.mark.parametrize("relids", [(6,), (15,), (25,), (5,), (6, 5), (*SUBS, 5)])
def test_a_close_that_fails_on_one_channel_closes_the_others(how: str, relids: tuple[int, ...]) -> None:
    """v6.10 does not look at the result of a sub-channel's close and goes on; the first error is told at the end."""
    guest = Guest()
    guest.host.rescinds_subs = False
    guest.offered("scsi", 5)
    for index, relid in enumerate(SUBS, 1):
        guest.offered("scsi", relid, sub=index)
    channels = dict(guest.vmbus.channels)
    if how == "silent":
        guest.host.instead[GpadlTeardown] = lambda m: None if m.child_relid in relids else guest.host.answer(m)
    else:
        post = guest.partition.hv_post_message

        def refuse(connection_id: int, message_type: int, payload: bytes) -> int:
            is_close = payload[0] == MessageType.CLOSECHANNEL and payload[8] in relids
            return HvStatus.INVALID_PARAMETER if is_close else post(connection_id, message_type, payload)

        guest.partition.hv_post_message = refuse  # type: ignore[assignment, method-assign]
    with refused(errno.ETIMEDOUT if how == "silent" else errno.EINVAL):
        guest.vmbus.close(channels[5])
    assert [ChannelState.OPEN] * 21 == [channel.state for channel in channels.values()]
    assert all(channel.rings is None and not channel.irq_requested for channel in channels.values())
    assert {5, *SUBS} - (set(relids) if how != "silent" else set()) == {
        message.child_relid for message in guest.host.of_type(CloseChannel)
    }
    assert len(relids) == len(guest.vmbus._opener.stranded)
    assert guest.pages_in_use() == guest.pages_allocated
