"""Both ends of a device over channels that are two queues: no rings, no hypervisor, every packet as a ring pads it.

The guest's end and the host's end have the shape of Channel and HostChannel; either can be used alone.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from uuid import uuid4

from tests.host_end import HostEnd, as_read
from vmbusirq.errors import Hung, IrqError
from vmbusirq.log import Log
from vmbusirq.steps import Step, run
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE
from vmbusirq.vmbus.requestor import RQST_ERROR
from vmbusirq.wire.packet import COMPLETION_REQUESTED, DATA_INBAND, Packet
from vmbusirq.wire.protocol import Version


class GuestEnd:
    """The guest's half of a channel."""

    def __init__(self, world, relid, device_class, index=0, primary=None):
        self.world = world
        self.relid = relid
        self.device_class = device_class
        self.sub_channel_index = index
        self.primary = primary
        self.device = None
        self.irq_name = device_class.name
        self.target_cpu = index
        self.rescinded = self.gone = False
        self.stats = SimpleNamespace(replies=0)  # every packet goes to the driver
        self.requestor = None
        self.change_target_cpu = None
        self.opened = False
        self.userdata = None
        self.to_host = deque()

    def send(self, payload, *, type=DATA_INBAND, flags=0, trans_id=0):  # noqa: A002
        if self.rescinded or not self.opened:
            raise IrqError(19, "no such channel (ENODEV)")
        if flags == COMPLETION_REQUESTED and self.requestor is not None:
            trans_id = self.requestor.next_id(trans_id)
            if trans_id == RQST_ERROR:
                raise IrqError(11, "no id (EAGAIN)")
        self.to_host.append(as_read(Packet(payload, type, flags, trans_id)))


class Device:
    """HvDevice and HostDevice in one; the ends see their halves of it."""

    def __init__(self, world, vsp, class_name, instance=None):
        self.world = world
        self.vsp = vsp
        self.device_class = CATALOGUE[class_name]
        self.instance = instance or uuid4()
        self.guid = str(self.instance)
        self.max_sub_channels = getattr(vsp, "max_sub_channels", 0)
        self.pairs = []
        self.add_pair()

    def add_pair(self):
        index = len(self.pairs)
        guest = GuestEnd(self.world, self.world.next_relid(), self.device_class, index, self.primary if index else None)
        guest.device = self
        self.pairs.append((guest, HostEnd(self, guest.relid, index)))
        return guest

    @property
    def primary(self):
        return self.pairs[0][0]

    @property
    def host(self):
        return self.pairs[0][1]

    @property
    def sub_channels(self):
        return [guest for guest, _ in self.pairs[1:]]

    def offer_sub_channels(self, count):
        offered = []
        while len(self.pairs) <= min(count, self.max_sub_channels):
            guest = self.add_pair()
            offered.append(guest.relid)
            self.world.offers.append(guest)
        return offered

    def host_end(self, guest):
        return next(host for mine, host in self.pairs if mine is guest)


class FakePages:
    def __init__(self, world, count):
        self.world, self.data = world, bytearray(count * 4096)
        self.pfns = range(1, count + 1)
        world.allocated += count

    def read(self, offset, size):
        assert 0 <= offset
        assert offset + size <= len(self.data)
        return bytes(self.data[offset : offset + size])

    def write(self, offset, data):
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data

    def free(self):
        if self.pfns:
            self.world.allocated -= len(self.pfns)
            self.pfns = ()

    @property
    def byte_count(self):
        return len(self.data)

    def hold(self):
        return self

    def release(self):
        pass


class World:
    """A bus with a driver, the devices on it, and a host. ``cpus``: how many are online."""

    def __init__(self, driver, cpus=8, version=Version.V5_3):
        self.log = Log()
        self.options = SimpleNamespace(scsi_hosts={})
        self.version = version
        self.nr_online_cpus = cpus
        self.devices = []
        self.offers = deque()
        self.works = deque()
        self.gpadls = {}
        self.story = []
        self.allocated = 0
        self.answering = True
        self.fail_open = set()
        self._relid = 0
        self._handle = 0xE1E0F
        self.driver = driver(self)

    def next_relid(self):
        self._relid += 1
        return self._relid

    def add(self, vsp, class_name, instance=None):
        device = Device(self, vsp, class_name, instance)
        self.devices.append(device)
        return device

    # what drivers ask of the bus

    def open_steps(self, channel, callback=None, *, userdata=b""):
        yield Step(f"open {channel.relid}")
        if channel.relid in self.fail_open:
            raise IrqError(11, "refused (EAGAIN)")
        assert not channel.opened
        channel.opened = True
        channel.userdata = userdata
        self.story.append(f"open {channel.sub_channel_index}")
        channel.device.vsp.opened(channel.device.host_end(channel))

    def close_steps(self, channel):
        yield Step(f"close {channel.relid}")
        assert channel.opened
        assert channel.primary is None
        device = channel.device
        self.pump()
        for guest, host in reversed(device.pairs):
            if guest.opened:
                guest.opened = False
                guest.to_host.clear()
                host.to_guest.clear()
                host.requests.clear()
                device.vsp.closed(host)
        self.story.append("close")

    def establish_gpadl_steps(self, channel, pages):
        yield Step("gpadl")
        self._handle += 1
        self.gpadls[self._handle] = pages
        channel.device.host_end(channel).gpadls[self._handle] = pages
        self.story.append("gpadl")
        return self._handle

    def teardown_gpadl_steps(self, channel, handle, pages):
        if not handle:
            pages.free()
            return
        yield Step("teardown")
        del self.gpadls[handle]
        channel.device.host_end(channel).gpadls.pop(handle, None)
        pages.free()
        self.story.append("teardown")

    def alloc_pages(self, count):
        return FakePages(self, count)

    def wait(self, point, ready, timeout_ticks=None):
        yield Step(point)
        while not ready():
            if not self.pump():
                if timeout_ticks is None:
                    raise Hung(f"{point}: nothing can end the wait")
                return False
        return True

    def queue_work(self, label, steps):
        self.works.append(steps)

    # running

    def run(self, steps):
        return run(steps)

    def pump(self):
        """Move every packet there is once, one way and the other; True if any was there."""
        moved = False
        for device in self.devices:
            for guest, host in tuple(device.pairs):
                while self.answering and guest.to_host:
                    host.take(guest.to_host.popleft())
                    moved = True
                while host.to_guest and guest.opened:
                    self.driver.packet(guest, host.to_guest.popleft())
                    moved = True
        return moved

    def settle(self):
        """Let packets, works and offers of sub-channels go on until nothing is left."""
        while self.pump() or self.works or self.offers:
            if self.offers:
                self.run(self.driver.sub_channel(self.offers.popleft()))
            elif self.works:
                self.run(self.works.popleft())

    def probe(self, device):
        self.run(self.driver.probe(device))
        self.settle()
