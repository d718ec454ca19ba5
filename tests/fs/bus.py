"""Machines whose /sys/bus/vmbus the tests of this folder read and write, and short ways to its files."""

from __future__ import annotations

from tests.vmbus.scripted import Guest
from vmbusirq import Machine
from vmbusirq.errors import IrqError
from vmbusirq.fs import FileSystem
from vmbusirq.fs.sysfs.vmbus import add_vmbus_files
from vmbusirq.scenario.schema import parse_scenario
from vmbusirq.vmbus.drivers import DRIVERS

BUS = "/sys/bus/vmbus"
ROOT = "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00"

# Six CPUs on two nodes; CPU 4 is isolated, CPU 5 never comes.
SMALL = """
[cpus]
possible = 6
present = 5
isolated = "4"
nodes = ["0-2", "3-5"]

[[device]]
name = "disk"
class = "scsi"
scsi_host = 0

[[channel]]
device = "disk"
relid = 9
count = 2
"""


class Scripted(Guest):
    """A guest with all its drivers whose host is a script, and its files: no /proc, no platform."""

    def __init__(self, design="rfc", **options):
        super().__init__(design, connect=False, drivers=False, **options)
        self.vmbus.devices.drivers.update({name: driver(self.vmbus) for name, driver in DRIVERS.items()})
        self.fs = FileSystem()
        add_vmbus_files(self.fs, self.vmbus)
        self.vmbus.connect()
        self.settle()

    def device_dir(self, relid=5):
        """Return the directory of the device that a channel belongs to."""
        return f"{BUS}/devices/{self.vmbus.channels[relid].device.guid}"

    def line(self, name, relid=5):
        """Return the text of a device's file without its newline."""
        text = self.fs.read(f"{self.device_dir(relid)}/{name}")
        assert text.endswith(b"\n")
        return text[:-1].decode("latin-1")


def small(design="rfc", **options):
    """Boot the machine of SMALL."""
    machine = Machine.load(parse_scenario(SMALL, "small"), design=design, **options)
    machine.boot()
    return machine


def default(design="rfc"):
    """Boot the default scenario."""
    machine = Machine.load("rfc-gen2-8vcpu", design=design)
    machine.boot()
    return machine


def channel_dir(machine, relid):
    """Return the directory of a channel."""
    channel = machine.vmbus.channels[relid]
    return f"{BUS}/devices/{channel.device.guid}/channels/{channel.dir_name}"


def show(machine, relid, name):
    """Return the text of a channel's file without its newline."""
    text = machine.fs.read(f"{channel_dir(machine, relid)}/{name}")
    assert text.endswith(b"\n")
    return text[:-1].decode()


def store(machine, relid, text):
    """Write to a channel's cpu file."""
    return machine.fs.write(f"{channel_dir(machine, relid)}/cpu", text)


def errno_of(call):
    """Return what a call returns, or the errno it raises."""
    try:
        return call()
    except IrqError as error:
        return -error.errno
