"""Run a scenario of one's own, ``small-vm.toml`` beside this file, in every design, and compare who counts what.

Interrupts and control messages are the same in all designs. The messages are what the host has posted: 1 answer to
the version, 3 offers and their end, 5 accepted GPADLs (3 pairs of rings, 2 buffers of the NIC), 3 open results.
``channels`` is the sum of the VMBus rows but for ``messages``, the row of an IRQ that only control messages have;
``top level`` is the HYP row; ``total`` is the first number of /proc/stat's ``intr`` line, in which a top level that
counts the channels' interrupts once more shows as an excess.

    $ .venv/bin/python examples/own_scenario.py
    design           posted  channels  messages  top level  total
    legacy               13         0         0       3013   3114
    rfc                  13      3000         0         13   3114
    mgmt-irq             13      3000        13       3013   6127
    mgmt-irq-nostat      13      3000        13       3013   3114
    mgmt-irq-hidden      13      3000        13          -   3114
    redirect             13      3000        13          -   3114
    mainline-6.16        13         0         0       3013   3114
    rfc-pick             13      3000         0         13   3114
    rfc-handover         13      3000         0         13   3114
"""

from __future__ import annotations

from pathlib import Path

from vmbusirq import DESIGNS, Machine, load_scenario, parse_interrupts

SCENARIO = Path(__file__).with_name("small-vm.toml")


def main() -> None:
    """Print one line per design."""
    scenario = load_scenario(str(SCENARIO))
    print(f"{'design':<16} posted  channels  messages  top level  total")
    for design in DESIGNS:
        machine = Machine.load(scenario, design=design)
        machine.run()
        channels = messages = 0
        top_level = "-"
        for row in parse_interrupts(machine.fs.read("/proc/interrupts")).rows:
            if row.label == "HYP":
                top_level = str(sum(row.counts))
            elif row.irq is not None and row.irq.hwirq == 0:
                messages += sum(row.counts)
            elif row.irq is not None:
                channels += sum(row.counts)
        intr = next(line for line in machine.fs.read("/proc/stat").splitlines() if line.startswith(b"intr "))
        total, posted = int(intr.split()[1]), machine.host.messages_posted
        print(f"{design:<16} {posted:>6} {channels:>9} {messages:>9} {top_level:>10} {total:>6}")


if __name__ == "__main__":
    main()
