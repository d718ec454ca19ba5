"""Compare a /proc/interrupts of one's own with what a machine of the same size and kernel generation prints here.

Give it a file from a real guest. It is read strictly: a wrong byte is an error with line and column. What both have
is left out; what is said is which kernels can have printed the file, which rows only one side has, and for channels
of the relid domain on which CPUs they were counted. The kernel gives a new channel's IRQ to one CPU; a row with
counts on several has been moved, by a person or by irqbalance.

    $ vmbusirq run --generation v6.13 > mine.txt
    $ .venv/bin/python examples/compare_file.py mine.txt
    mine.txt: 8 CPUs, 45 rows, printed by v6.13, v6.18
    only in the file:  8 9 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44
    only here:         none
    channels of the relid domain: 21, on several CPUs: none
    busiest CPU: 0, with 46882 of 63479 channel interrupts
"""

from __future__ import annotations

import sys
from pathlib import Path

from vmbusirq import Machine, ParseError, parse_interrupts


def main() -> int:
    """Read the file named on the command line; return 2 if it cannot be read."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "/proc/interrupts")
    try:
        theirs = parse_interrupts(path.read_bytes())
    except ParseError as error:
        print(f"{path}:{error}", file=sys.stderr)
        return 2
    generation = theirs.generations[0] if theirs.generations else "v6.10"
    machine = Machine(cpus=max(theirs.cpus) + 1, generation=generation)
    ours = parse_interrupts(machine.fs.read("/proc/interrupts"))

    known = ", ".join(theirs.generations) or "no kernel known here"
    print(f"{path.name}: {len(theirs.cpus)} CPUs, {len(theirs.rows)} rows, printed by {known}")
    their_rows, our_rows = ([row.label for row in table.rows] for table in (theirs, ours))
    print("only in the file: ", *([label for label in their_rows if label not in our_rows] or ["none"]))
    print("only here:        ", *([label for label in our_rows if label not in their_rows] or ["none"]))

    channels = [row for row in theirs.rows if row.irq is not None and row.irq.chip == "VMBus"]
    moved = [row.label for row in channels if sum(count > 0 for count in row.counts) > 1]
    print(f"channels of the relid domain: {len(channels)}, on several CPUs: {' '.join(moved) or 'none'}")
    if channels:
        per_cpu = [sum(counts) for counts in zip(*(row.counts for row in channels), strict=True)]
        busiest = max(range(len(per_cpu)), key=per_cpu.__getitem__)
        print(f"busiest CPU: {theirs.cpus[busiest]}, with {per_cpu[busiest]} of {sum(per_cpu)} channel interrupts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
