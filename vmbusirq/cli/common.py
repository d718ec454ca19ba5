"""What the commands share: the machine that the options describe, and how things leave the process."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from vmbusirq.machine import Machine

__all__ = ["machine_after_run", "print_json", "put"]

_MANY_CHANNELS: Final = 500  # to boot them takes half a second
_MANY_INTERRUPTS: Final = 2_000_000


def machine_after_run(args: argparse.Namespace) -> Machine:
    """Make the machine that the options describe and run its scenario to the end.

    With a progress bar if that takes long.
    """
    machine = Machine.load(
        args.scenario,
        design=args.design,
        generation=args.generation,
        engine=args.engine,
        seed=args.seed,
        strict_rfc=args.strict_rfc,
        timers=args.timers,
    )
    channels = machine.scenario.channels
    long = len(channels) > _MANY_CHANNELS or sum(channel.interrupts for channel in channels) > _MANY_INTERRUPTS
    if long and sys.stderr.isatty():
        from vmbusirq.report import progress_bar

        with progress_bar() as progress:
            machine.run(progress)
    else:
        machine.run()
    return machine


def put(data: bytes) -> None:
    """Write bytes to standard output as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def print_json(value: Any) -> None:
    """Write one JSON document."""
    print(json.dumps(value, indent=2))
