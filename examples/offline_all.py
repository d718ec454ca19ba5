"""Free every CPU but 0 and take it offline, as Azure's test-suite does, through the files of the guest alone.

A CPU that a channel interrupts refuses with EBUSY; a channel is moved by its ``cpu`` file. When the CPUs are back,
nothing has moved by itself, so each channel is sent where it was. In a shell on a real guest the middle part reads
``for f in /sys/bus/vmbus/devices/*/channels/*/cpu; do echo 0 > $f; done``.

    $ .venv/bin/python examples/offline_all.py
    as booted:  online 0-7, channels on 0-7
    refused:    cpu 1: cannot go offline: it serves channels 15,22 (EBUSY); move them first
    moved to 0: online 0-7, channels on 0
    offline:    online 0, channels on 0
    traffic:    63 packets sent, 63 read
    back:       online 0-7, channels on 0
    restored:   online 0-7, channels on 0-7
"""

from __future__ import annotations

from vmbusirq import IrqError, Machine
from vmbusirq.cpumask import cpumask_of, format_pbl

CPUS = "/sys/devices/system/cpu"
DEVICES = "/sys/bus/vmbus/devices"


def main() -> None:
    """Move, go, come back, restore."""
    machine = Machine.load("rfc-gen2-8vcpu")
    machine.boot()
    machine.settle()
    fs = machine.fs

    def cpu_files() -> list[str]:
        channels = [f"{DEVICES}/{device}/channels" for device in fs.listdir(DEVICES)]
        return [f"{path}/{relid}/cpu" for path in channels for relid in fs.listdir(path)]

    def show(what: str) -> None:
        cpus = cpumask_of(*(int(fs.read(path)) for path in cpu_files()))
        print(f"{what:<11} online {fs.read(f'{CPUS}/online').decode().strip()}, channels on {format_pbl(cpus)}")

    home = {path: fs.read(path) for path in cpu_files()}
    others = [name for name in fs.listdir(CPUS) if fs.exists(f"{CPUS}/{name}/online")]
    show("as booted:")
    try:
        fs.write(f"{CPUS}/cpu1/online", b"0")
    except IrqError as error:
        print(f"refused:    {error}")

    for path in home:
        fs.write(path, b"0")
    show("moved to 0:")
    for name in others:
        fs.write(f"{CPUS}/{name}/online", b"0")
    show("offline:")

    before = sum(channel.stats.packets for channel in machine.vmbus.channels.values())
    sent = sum(machine.host.send(relid, packets=3) for relid in machine.vmbus.channels)
    machine.settle()
    read = sum(channel.stats.packets for channel in machine.vmbus.channels.values()) - before
    print(f"traffic:    {sent} packets sent, {read} read")

    for name in others:
        fs.write(f"{CPUS}/{name}/online", b"1")
    show("back:")
    for path, cpu in home.items():
        fs.write(path, cpu)
    show("restored:")


if __name__ == "__main__":
    main()
