"""Devices that come and go at random, under traffic: nothing is left behind, nothing is lost.

A campaign is a seed and a number of cycles; each cycle does one thing to the machine, with packets before and after.
The host's devices take their time to open, to close, to accept memory, each cycle another; often the next cycle begins
before they are done.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from tests.footprint import Ledger, footprint, ledger
from vmbusirq import Machine
from vmbusirq.cpumask import cpus_of
from vmbusirq.host.device import HostDevice
from vmbusirq.host.stats import Traffic
from vmbusirq.host.vsp import make_vsp
from vmbusirq.host.vsp.hv_sock import HvSockVsp, Service
from vmbusirq.steps import run as run_steps
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.vmbus.drivers.hv_sock import HvSockDriver
from vmbusirq.wire.protocol import vsock_service_id

CPUS = 8
PORT = 50000
CLASSES = (
    "heartbeat",
    "timesync",
    "shutdown",
    "keyboard",
    "mouse",
    "balloon",
    "ide",
    "scsi",
    "scsi",
    "netvsc",
    "netvsc",
)
DEVICES_MAX = 10
DELAYS = ("open_delay_ticks", "close_delay_ticks", "gpadl_delay_ticks")
DELAY_TICKS = (0, 0, 0, 1, 777, 30_000)
WAITS_MAX = 10_000
CHECK_EVERY = 50


class Campaign:
    """One machine and what is done to it."""

    def __init__(self, seed: int, books: Ledger) -> None:
        self.random = random.Random(seed)
        self.books = books
        self.machine = Machine(CPUS, seed=seed)
        self.did: Counter[str] = Counter()
        self.made = 0
        self.socket_vsps: dict[UUID, HvSockVsp] = {}
        self.may_have_lost: set[UUID] = set()
        self.machine.host.hv_sock.listen(vsock_service_id(PORT), self.accept)
        self.machine.connect()

    # ---- time

    def draw_delays(self) -> None:
        drawn: dict[str, Any] = {name: self.random.choice(DELAY_TICKS) for name in DELAYS}
        self.machine.host.options = replace(self.machine.host.options, **drawn)

    def settle(self, *, waits: int = WAITS_MAX) -> None:
        """Go on until nothing is under way, or the machine has waited so often."""
        self.machine.settle()
        while waits and self.machine.clock.advance_to_next():
            waits -= 1
            self.machine.settle()

    def settle_or_not(self) -> None:
        """Sometimes the next thing interrupts what is under way."""
        self.settle(waits=self.random.choice((0, 1, 2, 5, WAITS_MAX, WAITS_MAX)))

    # ---- what can be done

    def hot_add(self, *, settle: bool = True) -> None:
        devices = self.plain_devices()
        if len(devices) >= DEVICES_MAX:
            self.rescind()
            return
        name = self.random.choice(CLASSES)
        self.made += 1
        vsp = make_vsp(name, max_sub_channels=self.random.randrange(CPUS) if name in ("scsi", "netvsc") else 0)
        instance = UUID(int=self.random.getrandbits(128))
        self.machine.host.add_device(vsp, instance, name=f"{name}-{self.made}")
        if settle:
            self.settle_or_not()

    def rescind(self, *, settle: bool = True) -> None:
        """A device, or one sub-channel."""
        channels = [channel for device in self.machine.host.devices for channel in device.channels]
        if channels:
            self.machine.host.rescind(self.random.choice(channels).relid)
            if settle:
                self.settle_or_not()

    def rescind_with_packets_under_way(self) -> None:
        """What the guest has not read by then is gone with the ring."""
        devices = [device for device in self.plain_devices() if device.primary.is_open]
        if devices:
            device = self.random.choice(devices)
            for channel in device.channels:
                if channel.is_open:
                    self.machine.host.send(channel.relid, self.random.randrange(1, 9))
            self.may_have_lost.add(device.instance)
            self.machine.host.remove_device(device)
            self.settle_or_not()

    def rescind_two_at_once(self) -> None:
        for _ in range(2):
            devices = self.machine.host.devices
            if devices:
                self.machine.host.remove_device(self.random.choice(devices))
        self.settle_or_not()

    def hibernate(self) -> None:
        """Suspend, sometimes other devices meanwhile, resume."""
        self.machine.vmbus.suspend()
        assert {} == dict(self.machine.vmbus.channels)
        if self.random.random() < 0.3:
            self.hot_add_while_away()
        self.machine.vmbus.resume()
        self.settle_or_not()

    def hibernate_at_once(self) -> None:
        """Before the guest has taken up what the host said last."""
        self.hot_add(settle=False)
        self.rescind(settle=False)
        self.hibernate()

    def hot_add_while_away(self) -> None:
        self.made += 1
        vsp = make_vsp("keyboard")
        self.machine.host.add_device(vsp, UUID(int=self.random.getrandbits(128)), name=f"keyboard-{self.made}")

    def unbind_and_bind(self) -> None:
        """Close a device's channels and open them again, through its driver."""
        vmbus = self.machine.vmbus
        bound = [
            device
            for device in vmbus.devices.values()
            if device.driver and not device.primary.is_hv_sock and not device.primary.rescinded
        ]
        if bound:
            device = self.random.choice(bound)
            assert device.driver is not None
            driver = device.driver.name
            vmbus.unbind(device)
            self.settle_or_not()
            vmbus.bind(driver, device)
            self.settle_or_not()

    def affinity(self) -> None:
        channels = self.machine.vmbus.channels.values()
        open_ones = [channel for channel in channels if channel.state is ChannelState.OPENED and not channel.rescinded]
        if open_ones:
            channel = self.random.choice(open_ones)
            mask = self.random.randrange(1, 1 << CPUS)
            cpus = ",".join(map(str, cpus_of(mask)))
            self.machine.fs.write(f"/proc/irq/{channel.irq}/smp_affinity_list", cpus.encode())
            self.machine.settle()
            assert mask >> channel.target_cpu & 1

    def connect(self) -> None:
        """A connection of either side, a word each way."""
        machine = self.machine
        self.settle()
        endpoint = UUID(int=self.random.getrandbits(128))
        if self.random.random() < 0.5:
            vsp = self.socket_vsps[endpoint] = HvSockVsp(vsock_service_id(7), Service.SINK, host_initiated=True)
            machine.host.hv_sock.connect(vsock_service_id(7), vsp, endpoint)
            self.settle()
        else:
            run_steps(machine.vmbus.tl_connect_steps(endpoint, vsock_service_id(PORT)), machine.partition.idle)
            self.settle()
        device = machine.vmbus.devices[endpoint]
        self.driver.send(device, b"hello")
        self.socket_vsps[endpoint].send(b"world")
        self.settle()
        assert b"world" == self.driver.receive(device, 99)

    def disconnect(self) -> None:
        devices = list(self.driver.devices)
        if devices:
            device = self.random.choice(devices)
            if self.random.random() < 0.5:
                self.socket_vsps[device.instance].finish()
                self.settle()
            run_steps(self.driver.shutdown(device), self.machine.partition.idle)
            self.settle()
            assert device.instance not in self.machine.vmbus.devices

    def refused(self) -> None:
        machine = self.machine
        endpoint = UUID(int=self.random.getrandbits(128))
        run_steps(machine.vmbus.tl_connect_steps(endpoint, vsock_service_id(1)), machine.partition.idle)
        self.settle()
        assert endpoint not in machine.vmbus.devices

    # ---- around it

    def accept(self, endpoint: UUID) -> HvSockVsp:
        vsp = self.socket_vsps[endpoint] = HvSockVsp(vsock_service_id(PORT), Service.SINK)
        return vsp

    @property
    def driver(self) -> HvSockDriver:
        driver = self.machine.vmbus.devices.drivers["hv_sock"]
        assert isinstance(driver, HvSockDriver)
        return driver

    def plain_devices(self) -> list[HostDevice]:
        return [device for device in self.machine.host.devices if not device.vsp.closes_for_good]

    def is_in_service(self, relid: int) -> bool:
        """No handshake is under way, whose answers traffic could be taken for."""
        channel = self.machine.vmbus.channels[relid]
        return channel.probe_done and channel.device is not None and not channel.device.locked

    def traffic(self) -> None:
        """Bulk traffic on some open channels; connections have their own."""
        lines = [
            Traffic(relid, self.random.randrange(1, 4), self.random.randrange(1, 5), 8 * self.random.randrange(1, 6))
            for relid, channel in self.machine.host.channels.items()
            if not channel.device.vsp.closes_for_good and self.is_in_service(relid) and self.random.random() < 0.5
        ]
        if lines:
            self.machine.host.drive(lines, self.random.getrandbits(32))
            self.machine.settle()

    def cycle(self) -> None:
        things: list[Callable[[], None]] = [
            *[self.hot_add] * 5,
            *[self.rescind] * 3,
            self.rescind_two_at_once,
            self.rescind_with_packets_under_way,
            self.hibernate,
            self.hibernate_at_once,
            self.unbind_and_bind,
            *[self.affinity] * 2,
            *[self.connect] * 2,
            self.disconnect,
            self.refused,
        ]
        self.draw_delays()
        self.traffic()
        thing = self.random.choice(things)
        self.did[thing.__name__] += 1
        thing()
        self.traffic()
        if self.random.random() < 0.5:
            self.machine.clock.advance(self.random.randrange(1, 10_000_000))
        self.settle_or_not()
        for endpoint in set(self.socket_vsps) - {device.instance for device in self.machine.host.devices}:
            del self.socket_vsps[endpoint]

    def check(self) -> None:
        """Each packet sent was read; what the ends have fits."""
        machine = self.machine
        self.settle()
        sent, read = self.books.sent(), self.books.read(machine)
        lossy = {place for place in sent if place[0] in self.may_have_lost}
        assert {place: sent[place] for place in sent.keys() - lossy} == {
            place: read[place] for place in read.keys() - lossy
        }
        assert all(read.get(place, (0, 0, 0))[0] <= sent[place][0] for place in lossy)
        assert set(machine.host.default.relids) == set(machine.vmbus.channels)
        assert len(machine.vmbus.channels) == sum(len(device.channels) for device in machine.vmbus.devices.values())
        assert [] == machine.vmbus.work.stuck
        self.books.forget_removed(machine)

    def clear(self) -> None:
        for device in machine_devices(self.machine):
            self.machine.host.remove_device(device)
        self.settle()


def machine_devices(machine: Machine) -> tuple[HostDevice, ...]:
    return machine.host.devices


def campaign(seed: int, cycles: int) -> Counter[str]:
    """Run one; return how often each thing was done. A failure names its cycle."""
    with ledger() as books:
        it = Campaign(seed, books)
        before = footprint(it.machine)
        for number in range(cycles):
            try:
                it.cycle()
                if number % CHECK_EVERY == CHECK_EVERY - 1:
                    it.check()
            except BaseException as error:
                error.add_note(f"seed {seed}, cycle {number}; done: {dict(it.did)}")
                raise
        it.check()
        it.clear()
        it.check()
        assert before == footprint(it.machine), f"seed {seed}"
        return it.did


def test_devices_come_and_go_and_leave_nothing_behind(seed: int) -> None:
    """The short form: as many cycles as a few seconds hold."""
    done = campaign(seed, 100)
    assert 100 == sum(done.values())


@pytest.mark.soak
def test_ten_thousand_cycles_leave_nothing_behind(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The long one; the seed is printed, and ``--seed N`` runs another."""
    done = campaign(seed, 10_000)
    with capsys.disabled():
        print(f"seed {seed}: {dict(done)}")  # noqa: T201
    assert 10_000 == sum(done.values())
