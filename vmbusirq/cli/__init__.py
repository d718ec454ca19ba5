"""The command line.

Each sub-command is imported when it is called, so that start-up stays as fast as the interpreter's.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

__all__ = ["main"]

Command = Callable[[argparse.Namespace], int]


_DESIGNS = "legacy, rfc (default), mgmt-irq[-nostat|-hidden], redirect, mainline-6.16, rfc-pick or rfc-handover"


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the machine")
    group.add_argument(
        "-s", "--scenario", default="rfc-gen2-8vcpu", metavar="NAME", help="a built-in name or a TOML file"
    )
    group.add_argument("--design", default="rfc", metavar="NAME", help=_DESIGNS)
    group.add_argument("--generation", default="v6.10", metavar="NAME", help="kernel whose text and errno to use")
    group.add_argument("--engine", default="fast", metavar="NAME", help="fast (default) or linux")
    group.add_argument("--timers", metavar="NAME", help="how clock ticks come: direct, message or lapic")
    group.add_argument("--strict-rfc", action="store_true", help="keep the defects of the RFC as posted")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="fixes every choice that is left open")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def _from_zero(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 up")
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
    _add_offline(command("offline", "take CPUs offline after the scenario has run, or plan how"))
    _add_explore(command("explore", "explore all orders of a race, and tell the shortest bad one", machine=False))
    parse = command("parse", "read a real /proc/interrupts of any generation", machine=False)
    parse.add_argument("file", metavar="FILE", help="- for standard input")
    form = parse.add_mutually_exclusive_group()
    form.add_argument("--render", action="store_true", help="print it again from what was understood")
    add_json(form)
    bench = command(
        "bench", "measure the demux hot path, the ring, rendering, the SynIC, or the explorer", machine=False
    )
    bench.add_argument("what", choices=("demux", "ring", "render", "synic", "explore"))
    bench.add_argument("--rounds", type=_positive, default=None, metavar="N", help="samples per contender")
    add_json(bench)
    bench.add_argument("--strict", action="store_true", help="exit with status 1 if a bar does not hold")
    bench.add_argument(
        "--full", action="store_true", help="the slow workloads too: cold caches, tables of 23 MB, large races"
    )
    return parser


def _add_explore(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("races", nargs="*", metavar="RACE", help="names of races; see --list")
    sub.add_argument("--all", action="store_true", help="every race in the box, as a table")
    sub.add_argument("--list", action="store_true", help="list the races and their variants")
    sub.add_argument("--replay", metavar="FILE", help="play a saved order again, step by step")
    sub.add_argument("--variant", "--fix", metavar="NAME", help="off, on, or another name; default: all variants")
    mode = sub.add_mutually_exclusive_group()
    mode.add_argument(
        "--preemptions", type=_from_zero, metavar="N", help="only orders with at most so many preemptions"
    )
    mode.add_argument("--plain", action="store_true", help="play orders that cannot differ, too")
    mode.add_argument("--random", type=_positive, metavar="N", help="N drawn orders")
    mode.add_argument("--pct", type=_positive, metavar="N", help="N orders by drawn priorities")
    sub.add_argument("--depth", type=_positive, metavar="D", help="of --pct: ordered steps a bug may need (3)")
    sub.add_argument("--seed", type=int, metavar="N", help="of --random and --pct")
    sub.add_argument("--orders", type=_positive, metavar="N", help="stop each search after so many orders")
    sub.add_argument("--save", metavar="FILE", help="write the shortest bad order into a file")
    sub.add_argument("--jobs", type=_positive, metavar="N", help="searches at the same time; default: one a processor")
    sub.add_argument("--json", action="store_true", help="machine-readable output")


def _add_offline(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("cpus", metavar="CPUS", help="a CPU, or a list as the kernel reads it: 4-7")
    sub.add_argument("--plan", action="store_true", help="do nothing; say who refuses, and how to free the CPUs")
    sub.add_argument("--interface", choices=("irq", "sysfs", "both"), help="move channels by /proc/irq or by sysfs")
    sub.add_argument("--restore", action="store_true", help="with --shell: the lines that bring everything back")
    sub.add_argument("--no-move", action="store_true", help="move no channel: show who refuses")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--shell", action="store_true", help="with --plan: only the lines, for a shell")
    form.add_argument("--json", action="store_true", help="machine-readable output")


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
    """Refuse to start without standard output: Python leaves None where a descriptor was closed.

    What a terminal's encoding cannot show is escaped.
    """
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _sentence(error: Exception) -> str:
    """What a person needs of an error: the system's own ones without their number."""
    filename = getattr(error, "filename", None)
    return f"{filename}: {error.strerror}" if isinstance(error, OSError) and filename else str(error)
