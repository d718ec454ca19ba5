"""``vmbusirq run``: the main job."""

from __future__ import annotations

import argparse
import sys

from vmbusirq.cli.common import machine_after_run, print_json, put
from vmbusirq.fs.parse import parse_interrupts

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Boot, drive, print /proc/interrupts."""
    machine = machine_after_run(args)
    text = machine.fs.read("/proc/interrupts")
    presets = machine.preset_rows
    if args.json:
        table = parse_interrupts(text).to_json()
        for row in table["rows"]:
            row["preset"] = row["label"] in presets
        head = {
            "scenario": machine.scenario.name,
            "design": machine.design.name,
            "generation": machine.generation.name,
            "engine": machine.core.engine,
            "seed": machine.seed,
        }
        print_json(head | table)
    elif args.format == "table":
        from vmbusirq.report import console, interrupts_table

        title = f"{machine.scenario.name}, design {machine.design.name}, kernel {machine.generation.name}"
        console().print(interrupts_table(parse_interrupts(text), title, presets))
    else:
        put(text)
        if presets and sys.stderr.isatty():
            print(f"\nnot modelled, presets of the scenario: {', '.join(presets)}", file=sys.stderr)
    return 0
