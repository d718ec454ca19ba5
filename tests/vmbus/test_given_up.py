"""What the guest gives up on: a probe that a silent host never ends, a sub-channel that has no place in sysfs."""

from __future__ import annotations

import pytest

from tests.vmbus.scripted import Guest, offer_of
from vmbusirq.errors import Hung
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.vmbus.drivers import DRIVERS
from vmbusirq.wire.protocol import RelidReleased


def test_a_probe_that_was_given_up_leaves_its_channel_closed_and_can_be_tried_again() -> None:
    """A driver bound by force to a host that does not speak its protocol: Linux would wait for ever (vmbus.md 2.12)."""
    guest = Guest(drivers=False)
    channel = guest.offered(relid=5)
    (device,) = guest.vmbus.devices.values()
    guest.vmbus.devices.drivers["hv_netvsc"] = DRIVERS["hv_netvsc"](guest.vmbus)
    device.driver_override = b"hv_netvsc"
    for _ in range(2):
        with pytest.raises(Hung, match="netvsc: INIT"):
            guest.vmbus.bind("hv_netvsc", device)
        assert (ChannelState.OPEN, None, None, False) == (
            channel.state,
            device.driver,
            channel.rings,
            channel.irq_requested,
        )
        assert (0, 3) == (guest.vmbus.stranded_pages, guest.pages_allocated)
    guest.host.rescind(5)
    guest.settle()

    assert (0, {}) == (guest.vmbus.stranded_pages, dict(guest.vmbus.channels))
    assert 3 == guest.pages_allocated


def test_a_sub_channel_without_a_directory_is_refused_and_its_relid_released() -> None:
    """channels/<relid> bears the relid that a channel had first: after a resume another one may come to bear it.

    vmbus_add_channel_kobj() fails with EEXIST then (vmbus.md 7.4, drivers/hv/vmbus_drv.c v6.10).
    """
    guest = Guest(drivers=False, offers=[offer_of("scsi", 5, "disk")])
    guest.vmbus.suspend()
    guest.host.offers = [offer_of("scsi", 9, "disk")]
    guest.vmbus.resume()
    guest.settle()
    guest.host.post(offer_of("scsi", 5, "disk", sub=1))
    guest.settle()

    assert {9} == set(guest.vmbus.channels)
    assert [RelidReleased(5)] == guest.host.of_type(RelidReleased)
    assert any("channels/5" in entry.text for entry in guest.log)
