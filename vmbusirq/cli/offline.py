"""``vmbusirq offline``: CPUs taken offline, or how they would be."""

from __future__ import annotations

import argparse
import sys

from vmbusirq.cli.common import machine_after_run, print_json
from vmbusirq.lab.plan import Plan, parse_cpus, plan_offline
from vmbusirq.lab.rehearse import carry_out, plan_text, result_text, script
from vmbusirq.machine import Machine

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Run the scenario, then plan, or carry the plan out on the machine as it is then."""
    if args.plan and args.no_move:
        raise ValueError("--no-move tries without a plan: leave --plan out")
    if (args.shell or args.restore) and not args.plan:
        raise ValueError("--shell and --restore print a plan: add --plan")
    if args.restore and not args.shell:
        raise ValueError("--restore chooses what --shell prints: add --shell")
    machine = machine_after_run(args)
    plan = plan_offline(machine, parse_cpus(machine, args.cpus), args.interface)
    if args.plan:
        return _show(plan, args)
    return _carry_out(machine, plan, args)


def _show(plan: Plan, args: argparse.Namespace) -> int:
    if args.json:
        print_json(plan.to_json())
    elif args.shell:
        print(script(plan, restore=args.restore), end="")
        _complain(plan)
    elif sys.stdout.isatty():
        from vmbusirq.report import console, show_plan

        show_plan(console(), plan)
    else:
        print(plan_text(plan))
    return 1 if plan.blockers else 0


def _complain(plan: Plan) -> None:
    for blocker in plan.blockers:
        print(f"{blocker.what}; {blocker.remedy}", file=sys.stderr)


def _carry_out(machine: Machine, plan: Plan, args: argparse.Namespace) -> int:
    """Write the lines into the files; the exit status says whether the CPUs are offline."""
    result = carry_out(machine, plan, move=not args.no_move)
    if args.json:
        print_json(result.to_json())
    elif sys.stdout.isatty():
        from vmbusirq.report import console, show_result

        show_result(console(), result)
    else:
        print(result_text(result))
    if not args.no_move:
        _complain(plan)
    return 0 if result.done else 1
