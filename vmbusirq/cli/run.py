"""``vmbusirq run``: the main job."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vmbusirq.cli.common import machine_after_run, print_json, put
from vmbusirq.core import TICKS_PER_S
from vmbusirq.fs.parse import parse_interrupts
from vmbusirq.machine import Machine
from vmbusirq.wire.protocol import MessageType

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
            "strict_rfc": machine.strict_rfc,
            **_protocol(machine),
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
    _complain(machine)
    return 0


def _protocol(machine: Machine) -> dict[str, Any]:
    """Return what the two ends agreed on and said to each other, and what happened meanwhile."""
    script = machine.script
    return {
        "vmbus_version": str(machine.vmbus.version) if machine.vmbus.version is not None else None,
        "messages": {_name(number): count for number, count in sorted(machine.vmbus.messages_received.items())},
        "events": [
            {
                "at_s": happened.event.at / TICKS_PER_S,
                "action": happened.event.action,
                "what": happened.event.what,
                "over_s": happened.now / TICKS_PER_S,
                "ok": happened.ok,
                "result": happened.result,
            }
            for happened in script.happened
        ],
        "undelivered": {str(relid): count for relid, count in script.undelivered.items()},
    }


def _name(number: int) -> str:
    try:
        return MessageType(number).name
    except ValueError:
        return str(number)


def _complain(machine: Machine) -> None:
    """Say on standard error what did not come out as the scenario has it."""
    for happened in machine.script.happened:
        if not happened.ok:
            event = happened.event
            print(f"{event.at / TICKS_PER_S:g} s: {event.action} {event.what}: {happened.result}", file=sys.stderr)
    names = {spec.relid: f"{spec.device}/{spec.sub}" for spec in machine.scenario.channels}
    for relid, count in machine.script.undelivered.items():
        what = f"{names[relid]} (relid {relid} of the scenario)"
        print(f"{what}: {count} interrupts did not come: the channel is not open; see dmesg", file=sys.stderr)
