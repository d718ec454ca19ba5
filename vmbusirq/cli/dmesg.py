"""``vmbusirq dmesg``: the guest's log."""

from __future__ import annotations

import argparse

from vmbusirq.cli.common import machine_after_run, print_json

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Print the log."""
    log = machine_after_run(args).log
    if args.json:
        print_json([{"time_100ns": entry.time, "level": entry.level.name, "text": entry.text} for entry in log])
    else:
        print(log, end="")
    return 0
