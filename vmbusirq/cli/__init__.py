"""The command line.

Each sub-command is imported when it is called, so that start-up stays as fast as the interpreter's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

__all__ = ["main"]

Command = Callable[[argparse.Namespace], int]


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the machine")
    group.add_argument(
        "-s", "--scenario", default="rfc-gen2-8vcpu", metavar="NAME", help="a built-in name or a TOML file"
    )
    group.add_argument("--design", default="rfc", metavar="NAME", help="legacy, rfc (default), mgmt-irq, redirect, ...")
    group.add_argument("--generation", default="v6.10", metavar="NAME", help="kernel whose text and errno to use")
    group.add_argument("--engine", default="fast", metavar="NAME", help="fast (default) or linux")
    group.add_argument("--timers", metavar="NAME", help="how clock ticks come: direct, message or lapic")
    group.add_argument("--strict-rfc", action="store_true", help="keep the defects of the RFC as posted")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="fixes every choice that is left open")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmbusirq",
        description="A wind tunnel for interrupt designs: an emulated Hyper-V guest and its interrupts.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, text: str, *, machine: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if machine:
            _add_machine_options(sub)
        return sub

    def add_json(sub: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup) -> None:
        sub.add_argument("--json", action="store_true", help="machine-readable output")

    run = command("run", "boot the machine, drive the scenario's traffic, print /proc/interrupts")
    form = run.add_mutually_exclusive_group()
    form.add_argument("--format", choices=("text", "table"), default="text", help="the file itself, or a heat table")
    add_json(form)
    cat = command("cat", "print emulated files after the scenario has run")
    cat.add_argument("paths", nargs="+", metavar="PATH")
    add_json(cat)
    listing = command("ls", "list emulated files after the scenario has run")
    listing.add_argument("paths", nargs="*", default=["/"], metavar="PATH")
    add_json(listing)
    listing.add_argument("-l", dest="long", action="store_true", help="with mode and size")
    add_json(command("dmesg", "print the guest's log after the scenario has run"))
    explain = command("explain", "explain one interrupt after boot, step by step, from a trace of it")
    explain.add_argument("--relid", type=int, required=True, metavar="N", help="the channel")
    explain.add_argument("--cpu", type=int, metavar="N", help="the CPU the host signals; default: the guest's choice")
    states = ("idle", "busy", "masked", "closed")
    explain.add_argument("--state", choices=states, default="idle", help="of the channel when the host writes")
    add_json(explain)
    parse = command("parse", "read a real /proc/interrupts of any generation", machine=False)
    parse.add_argument("file", metavar="FILE", help="- for standard input")
    form = parse.add_mutually_exclusive_group()
    form.add_argument("--render", action="store_true", help="print it again from what was understood")
    add_json(form)
    bench = command("bench", "measure the demux hot path, the ring, rendering, or the SynIC", machine=False)
    bench.add_argument("what", choices=("demux", "ring", "render", "synic"))
    bench.add_argument("--rounds", type=_positive, default=None, metavar="N", help="samples per contender")
    add_json(bench)
    bench.add_argument("--strict", action="store_true", help="exit with status 1 if a bar does not hold")
    bench.add_argument("--full", action="store_true", help="the slow workloads too: cold caches, tables of 23 MB")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for a verdict, 2 for input that cannot be used."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print(f"vmbusirq {version('vmbusirq')}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    try:
        _check_streams()
        command: Command = import_module(f"vmbusirq.cli.{args.command}").command
        status = command(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"vmbusirq {args.command}: {_sentence(error)}", file=sys.stderr)
        return 2


def _check_streams() -> None:
    """Refuse to start without standard output: Python leaves None where a descriptor was closed."""
    if sys.stdout is None:
        raise ValueError("standard output is closed")


def _sentence(error: Exception) -> str:
    """What a person needs of an error: the system's own ones without their number."""
    filename = getattr(error, "filename", None)
    return f"{filename}: {error.strerror}" if isinstance(error, OSError) and filename else str(error)
