"""A plan carried out on its machine, line by line through the files, and as text for people and for a shell."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from vmbusirq.core import TICKS_PER_S
from vmbusirq.cpumask import cpumask_of, format_pbl
from vmbusirq.errors import errno_name
from vmbusirq.lab.holding import channels_on
from vmbusirq.lab.plan import Holder, Plan, Write
from vmbusirq.machine import Machine
from vmbusirq.vmbus.channel import Channel
from vmbusirq.wire.protocol import INVALID_RELID

__all__ = [
    "Outcome",
    "Result",
    "Table",
    "carry_out",
    "plan_sections",
    "plan_tables",
    "plan_text",
    "plan_title",
    "result_tables",
    "result_text",
    "script",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a line has done.

    Attributes:
        line: as a shell takes it.
        error: name of the errno, empty if it succeeded.
        message: what the error says.
    """

    line: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a plan.

    Attributes:
        title: what was asked, and of which machine.
        outcomes: line by line.
        online: list of the CPUs that are online now.
        header: first line of /proc/interrupts now, without blanks between its columns.
        channels: those that refused or left by themselves: relid (None: it has none), name, IRQ (0: none), CPU then and
            now.
        done: all CPUs of the plan are offline.
    """

    title: str
    outcomes: tuple[Outcome, ...]
    online: str
    header: str
    channels: tuple[tuple[int | None, str, int, int, int], ...]
    done: bool

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        names = ("relid", "name", "irq", "was", "cpu")
        return asdict(self) | {"channels": [dict(zip(names, channel, strict=True)) for channel in self.channels]}


def carry_out(machine: Machine, plan: Plan, *, move: bool = True) -> Result:
    """Do on the plan's machine what a shell would do, each line to its end, whatever became of those before.

    Args:
        machine: the one that was planned for, as it was then.
        plan: what to do; nothing happens if it is impossible.
        move: False: only try to take the CPUs offline, whatever refuses.
    """
    going = cpumask_of(*plan.going)
    channels = [(channel, channel.target_cpu) for channel in channels_on(machine, going)]
    outcomes = tuple(_do(machine, line) for line in (plan.free if move else plan.offline_lines))
    return Result(
        title=plan_title(plan),
        outcomes=outcomes,
        online=format_pbl(machine.online_mask),
        header=" ".join(machine.fs.read("/proc/interrupts").decode().partition("\n")[0].split()),
        channels=tuple(
            (_relid(channel), channel.irq_name, channel.irq, cpu, channel.target_cpu) for channel, cpu in channels
        ),
        done=not machine.online_mask & going,
    )


def _relid(channel: Channel) -> int | None:
    return None if channel.relid == INVALID_RELID else channel.relid


def _do(machine: Machine, line: Write | str) -> Outcome:
    try:
        if isinstance(line, Write):
            machine.fs.write(line.path, f"{line.value}\n")
        else:
            machine.clock.advance(TICKS_PER_S)
        machine.settle()
    except OSError as error:
        return Outcome(str(line), errno_name(error.errno or errno.EIO), str(error))
    return Outcome(str(line), "", "")


# ---- as text


def script(plan: Plan, *, restore: bool = False) -> str:
    """Return the lines that free the CPUs, or those that bring them back, for a POSIX shell; empty without any."""
    lines = plan.restore if restore else plan.free
    what = f"bring cpus {plan.cpus} back" if restore else f"take cpus {plan.cpus} offline"
    head = f"# {what}: {plan.scenario}, design {plan.design}, protocol {plan.version or 'none'}"
    return "".join(f"{line}\n" for line in [head, *shell_lines(lines)]) if lines else ""


def shell_lines(lines: Sequence[Write | str]) -> list[str]:
    """Return the lines, each followed by a comment with the other interface's, where there is one."""
    out = []
    for line in lines:
        out.append(str(line))
        if isinstance(line, Write) and line.otherwise is not None:
            out.append(f"# or: {line.otherwise}")
    return out


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of texts; ``right`` has the columns of numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int]

    def to_text(self) -> str:
        """Return it in columns, the title alone if it has no rows."""
        if not self.rows:
            return f"{self.title}: none"
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [f"{self.title}:"]
        for row in (self.header, *self.rows):
            cells = [
                cell.rjust(width) if at in self.right else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(("  " + "  ".join(cells)).rstrip())
        return "\n".join(lines)


def _or_none(number: int | None) -> str:
    return str(number or "-")


def plan_title(plan: Plan) -> str:
    """Return one line: what shall go offline, and where."""
    return f"offline {plan.cpus}: {plan.scenario}, design {plan.design}, protocol {plan.version or 'none'}"


_CHANNEL: Final = ("relid", "name", "class", "irq", "cpu", "state", "interrupts")


def _channel_row(holder: Holder) -> tuple[str, ...]:
    return (
        _or_none(holder.relid),
        holder.name,
        holder.device_class or "-",
        _or_none(holder.irq),
        str(holder.cpu),
        holder.state,
        str(holder.interrupts),
    )


def plan_tables(plan: Plan) -> tuple[Table, ...]:
    """Return the channels that refuse, those that leave by themselves, if any, and the interrupts that do."""
    refuse = tuple(
        (*_channel_row(holder), holder.why or ("-" if holder.to is None else f"cpu {holder.to}"))
        for holder in plan.holders
    )
    numbers = frozenset({0, 3, 4, 6})
    tables = [Table("channels that refuse (EBUSY)", (*_CHANNEL, "moves to"), refuse, numbers)]
    if plan.moving:
        tables.append(
            Table("channels that move by themselves", _CHANNEL, tuple(map(_channel_row, plan.moving)), numbers)
        )
    migrations = tuple(
        (
            str(migration.irq),
            migration.name,
            migration.chip,
            str(migration.cpu),
            migration.to or "shut down until the CPU returns",
            "no longer affine" if migration.no_longer_affine else "",
        )
        for migration in plan.migrations
    )
    header = ("irq", "name", "chip", "cpu", "to", "")
    return (*tables, Table("interrupts that move by themselves", header, migrations, frozenset({0, 3})))


def plan_sections(plan: Plan) -> list[tuple[str, list[str]]]:
    """Return what follows the tables: headings, and the lines below each."""
    sections = [("to know", list(plan.notes))] if plan.notes else []
    if plan.blockers:
        sections.append(("impossible", [f"{blocker.what}; {blocker.remedy}" for blocker in plan.blockers]))
        return sections
    moves = f"{plan.moves} move{'' if plan.moves == 1 else 's'}, no fewer"
    sections.append((f"to free ({moves})", shell_lines(plan.free) or ["nothing to do"]))
    if plan.restore:
        sections.append(("to restore", shell_lines(plan.restore)))
    return sections


def plan_text(plan: Plan) -> str:
    """Return the whole plan as plain text."""
    parts = [plan_title(plan), *(table.to_text() for table in plan_tables(plan))]
    parts += ["\n".join([f"{heading}:", *(f"  {line}" for line in lines)]) for heading, lines in plan_sections(plan)]
    return "\n\n".join(parts)


def result_tables(result: Result) -> tuple[Table, Table]:
    """Return what each line has done, and where the channels that refused are now."""
    lines = tuple((outcome.error or "ok", outcome.line, outcome.message) for outcome in result.outcomes)
    channels = tuple(
        (_or_none(relid), name, _or_none(irq), str(was), str(cpu)) for relid, name, irq, was, cpu in result.channels
    )
    return (
        Table("what happened", ("", "line", ""), lines, frozenset()),
        Table("channels", ("relid", "name", "irq", "was on cpu", "is on cpu"), channels, frozenset({0, 2, 3, 4})),
    )


def result_text(result: Result) -> str:
    """Return it as plain text."""
    tables = (table.to_text() for table in result_tables(result))
    return "\n\n".join([result.title, *tables, f"online: {result.online}\ncolumns: {result.header}"])
