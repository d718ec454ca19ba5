"""Tables and progress bars for people. The only module, with plots, that imports rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vmbusirq.fs.parse import InterruptsRow, InterruptsTable
from vmbusirq.lab.bench import BenchRow, Finding
from vmbusirq.lab.explain import Explanation, Step
from vmbusirq.lab.explore.race import Verdict
from vmbusirq.lab.explore.text import HEADER, verdict_rows
from vmbusirq.lab.plan import Plan
from vmbusirq.lab.rehearse import Result, plan_sections, plan_tables, plan_title, result_tables
from vmbusirq.lab.rehearse import Table as PlainTable

__all__ = [
    "bench_table",
    "console",
    "explanation_tree",
    "interrupts_table",
    "progress_bar",
    "show_plan",
    "show_result",
]

# from cool to hot, by the logarithm of a count
_HEAT = ("grey37", "steel_blue", "cyan", "green3", "yellow3", "orange1", "red")
_PLAIN_WIDTH = 240
_WHOLE_FROM = 1000
"""Findings from here on are shown without decimals."""


def console() -> Console:
    """Return a console on standard output; piped, it is plain text that no terminal width cuts."""
    return Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH, no_color=True, highlight=False)


@contextmanager
def progress_bar() -> Iterator[Callable[[float, float, str], None]]:
    """Show a bar on standard error; yield the callback (done, total, what) that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def update(done: float, total: float, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        yield update


def _heat(count: int) -> Text:
    if not count:
        return Text("0", style="dim")
    return Text(f"{count:,}", style=_HEAT[min(len(str(count)), len(_HEAT)) - 1])


def _describe(row: InterruptsRow) -> str:
    if row.irq is None:
        return row.text
    parts = (row.irq.chip, row.irq.hwirq, row.irq.level, row.irq.flow, ", ".join(row.irq.actions))
    return " ".join(str(part) for part in parts if part not in (None, ""))


def interrupts_table(table: InterruptsTable, title: str, presets: Sequence[str]) -> Table:
    """Return /proc/interrupts as a heat table: the hotter a cell, the more digits its count has.

    Rows without any count are left out, as the caption says; rows in ``presets`` are marked with an asterisk.
    """
    out = Table(title=title, header_style="bold", pad_edge=False)
    out.add_column("IRQ", justify="right")
    for cpu in table.cpus:
        out.add_column(f"CPU{cpu}", justify="right")
    out.add_column("what")
    silent = 0
    for row in table.rows:
        counts = list(row.counts)
        if not any(counts) and (row.irq is None or not row.irq.actions):
            silent += 1
            continue
        mark = "*" if row.label in presets else ""
        cells = [_heat(count) for count in counts[: len(table.cpus)]]
        cells += [Text("")] * (len(table.cpus) - len(cells))
        out.add_row(row.label + mark, *cells, _describe(row))
    notes = [f"{silent} rows without a count are not shown"] if silent else []
    if any(row.label in presets for row in table.rows):
        notes.append("* given by the scenario, not modelled")
    out.caption = "; ".join(notes)
    return out


def bench_table(title: str, rows: Sequence[BenchRow], findings: Sequence[Finding], note: str) -> Table:
    """Return benchmark rows with their ratios against bar and goal."""
    out = Table(title=title, caption=note, header_style="bold", pad_edge=False)
    for name in ("id", "workload", "ours", "peer"):
        out.add_column(name)
    for name in ("ours ns", "p90", "peer ns", "p90", "ratio", "bar", "goal"):
        out.add_column(name, justify="right")
    for row in rows:
        style = "" if row.holds is None else "green" if row.holds else "red"
        out.add_row(
            row.id,
            row.workload,
            row.ours,
            row.peer,
            _ns(row.ours_ns),
            _ns(row.ours_p90_ns),
            _ns(row.peer_ns),
            _ns(row.peer_p90_ns),
            Text(f"{row.ratio:.3f}", style=style),
            "" if row.bar is None else f"{row.bar:.3g}",
            "" if row.goal is None else f"{row.goal:.3g}",
        )
    for finding in findings:
        whole = finding.value >= _WHOLE_FROM or float(finding.value).is_integer()
        value = f"{finding.value:,.0f}" if whole else f"{finding.value:.2f}"
        out.add_row("", finding.workload, finding.name, "", f"{value} {finding.unit}")
    return out


def explanation_tree(explanation: Explanation) -> Tree:
    """Return an explanation as a tree: a branch for each place and context, in the order of the steps."""
    tree = Tree(Text(explanation.title, style="bold"))
    where, branch = "", tree
    for step in explanation.steps:
        if step.where != where:
            where = step.where
            branch = tree.add(Text(where, style="bold cyan"))
        branch.add(_step(step))
    tree.add(Text(explanation.end, style="bold green"))
    return tree


def _step(step: Step) -> Text:
    text = Text.assemble((f"{step.number} ", "bold"), step.what)
    text.append("\n" + ", ".join(map(str, step.places)), style="dim")
    if step.kernel:
        text.append("\n" + step.kernel, style="dim italic")
    if step.moved:
        text.append("\n" + "; ".join(map(str, step.moved)), style="yellow")
    return text


def _draw(table: PlainTable) -> RenderableType:
    if not table.rows:
        return Text(table.to_text(), style="dim")
    out = Table(title=table.title, title_justify="left", header_style="bold", pad_edge=False)
    for at, name in enumerate(table.header):
        out.add_column(name, justify="right" if at in table.right else "left")
    for row in table.rows:
        out.add_row(*map(Text, row))
    return out


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Return what explored races came to, a row for each variant."""
    out = Table(title="races", title_justify="left", header_style="bold", pad_edge=False)
    for at, name in enumerate(HEADER):
        out.add_column(name, justify="left" if at < 3 else "right")
    for verdict, (race, variant, says, *counts) in zip(verdicts, verdict_rows(verdicts), strict=True):
        style = "red" if not verdict.as_expected else "yellow" if verdict.explored.bad else "green"
        out.add_row(race, variant, Text(says, style=style), *counts)
    return out


def show_plan(out: Console, plan: Plan) -> None:
    """Print a plan: tables, then its lines as they are typed, which no terminal is too narrow for."""
    out.print(Text(plan_title(plan), style="bold"), *map(_draw, plan_tables(plan)), sep="\n")
    for heading, lines in plan_sections(plan):
        style = {"impossible": "red", "to know": "yellow"}.get(heading, "green")
        out.print(Text(f"{heading}:", style="bold"))
        for line in lines:
            out.print(Text(line, style=style), soft_wrap=True)


def show_result(out: Console, result: Result) -> None:
    """Print what became of a plan."""
    lines = [Text(f"online: {result.online}", style="bold green" if result.done else "bold red")]
    lines.append(Text(f"columns: {result.header}"))
    out.print(Text(result.title, style="bold"), *map(_draw, result_tables(result)), *lines, sep="\n")


def _ns(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
