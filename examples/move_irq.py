"""Move a channel's interrupt by writing to /proc/irq, and see where a host that lags behind is counted.

The scenario's disk channel, relid 14, has IRQ 28 and interrupts CPU 0. Writing the mask ``4`` sends it to CPU 2. A
host that sets the flag on the old CPU once more loses nothing: the interrupt is taken and counted where it came.

    $ .venv/bin/python examples/move_irq.py
    before:          22095 0 0 0 0 0 0 0
    moved to cpu 2:  22095 0 1 0 0 0 0 0
    host was late:   22096 0 1 0 0 0 0 0
    refused: cpu list: cpu 8 is past the last; cpus are 0-7 (ERANGE)
"""

from __future__ import annotations

from vmbusirq import IrqError, Machine

IRQ = 28
RELID = 14


def main() -> None:
    """Move, deliver, and ask for what cannot be."""
    machine = Machine.load("rfc-gen2-8vcpu")
    machine.run()

    def show(what: str) -> None:
        print(f"{what:<16}", *machine.irq.counts[IRQ])

    show("before:")

    machine.fs.write("/proc/irq/28/smp_affinity", b"4\n")
    machine.host.send(relid=RELID, packets=3)  # published at once, so one signal and one interrupt
    machine.settle()
    show("moved to cpu 2:")

    machine.synic.signal(cpu=0, flag=RELID)
    machine.settle()
    show("host was late:")

    try:
        machine.fs.write("/proc/irq/28/smp_affinity_list", b"8\n")
    except IrqError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
