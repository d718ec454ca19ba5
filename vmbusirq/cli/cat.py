"""``vmbusirq cat``: emulated files, byte for byte."""

from __future__ import annotations

import argparse

from vmbusirq.cli.common import machine_after_run, print_json, put

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Print files."""
    machine = machine_after_run(args)
    contents = [(path, machine.fs.read(path)) for path in args.paths]
    if args.json:
        print_json([{"path": path, "text": data.decode("utf-8", "backslashreplace")} for path, data in contents])
    else:
        for _, data in contents:
            put(data)
    return 0
