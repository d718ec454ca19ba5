"""``vmbusirq explain``: one interrupt, step by step."""

from __future__ import annotations

import argparse
import sys

from vmbusirq.cli.common import print_json
from vmbusirq.lab.explain import explain, prepare
from vmbusirq.machine import Machine

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Boot the machine, let the host send one packet, print what happens."""
    machine = Machine.load(
        args.scenario,
        design=args.design,
        generation=args.generation,
        engine=args.engine,
        seed=args.seed,
        strict_rfc=args.strict_rfc,
    )
    machine.boot()
    prepare(machine, args.relid, args.state)
    explanation = explain(machine, args.relid, cpu=args.cpu)
    if args.json:
        print_json(explanation.to_json())
    elif sys.stdout.isatty():
        from vmbusirq.report import console, explanation_tree

        console().print(explanation_tree(explanation))
    else:
        print(explanation.to_text())
    return 0
