"""``vmbusirq parse``: read somebody's /proc/interrupts strictly."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vmbusirq.cli.common import print_json, put
from vmbusirq.fs.parse import ParseError, parse_interrupts

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Parse a file; print it as a table, as JSON, or again."""
    if args.file == "-" and sys.stdin is None:
        raise ValueError("standard input is closed")
    data = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    try:
        table = parse_interrupts(data)
    except ParseError as error:
        print(f"{args.file}:{error}", file=sys.stderr)
        return 2
    if args.json:
        print_json(table.to_json())
    elif args.render:
        put(table.render())
    else:
        from vmbusirq.report import console, interrupts_table

        console().print(interrupts_table(table, args.file, []))
    for notice in table.notices:
        print(f"{args.file}:{notice}", file=sys.stderr)
    return 0
