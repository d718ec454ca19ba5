"""Run a scenario of one's own, ``small-vm.toml`` beside this file, in every design, and compare who counts what.

Interrupts are the same in all designs. ``channels`` is the sum of the VMBus rows but for ``messages``, the row of
an IRQ that only control messages have; ``top level`` is the HYP row; ``total`` is the first number of /proc/stat's
``intr`` line, in which a top level that counts the channels' interrupts once more shows as an excess.

    $ .venv/bin/python examples/own_scenario.py
    small-vm: 3000 channel interrupts
    design           channels  messages  top level  total
    legacy                  0         0       3013   3114
    rfc                  3000         0         13   3114
    mgmt-irq             3000        13       3013   6127
    mgmt-irq-nostat      3000        13       3013   3114
    mgmt-irq-hidden      3000        13          -   3114
"""

from __future__ import annotations

from pathlib import Path

from vmbusirq import DESIGNS, Machine, load_scenario, parse_interrupts

SCENARIO = Path(__file__).with_name("small-vm.toml")


def main() -> None:
    """Print one line per design."""
    scenario = load_scenario(str(SCENARIO))
    interrupts = sum(channel.interrupts for channel in scenario.channels)
    print(f"{scenario.name}: {interrupts} channel interrupts")
    print(f"{'design':<16} channels  messages  top level  total")
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
        total = int(intr.split()[1])
        print(f"{design:<16} {channels:>8} {messages:>9} {top_level:>10} {total:>6}")


if __name__ == "__main__":
    main()
