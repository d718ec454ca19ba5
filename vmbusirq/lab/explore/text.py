"""Verdicts in words and as a table."""

from __future__ import annotations

from collections.abc import Sequence

from vmbusirq.lab.explore.race import Verdict
from vmbusirq.lab.explore.races import find_race

__all__ = ["summary", "verdict_rows", "verdict_text"]

HEADER = ("race", "variant", "verdict", "orders", "pruned", "bad", "seconds")


def _verdict(verdict: Verdict) -> str:
    explored = verdict.explored
    if explored.bad:
        found = "the bug" if verdict.as_expected else "UNEXPECTED"
        return found if explored.complete else f"{found} (not all orders)"
    if verdict.expects:
        return "NOT FOUND" if explored.complete else "not found in those played"
    return "holds in all orders" if explored.complete else "holds in those played"


def verdict_rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """Return a row for each verdict, under :data:`HEADER`."""
    return [
        (
            verdict.race,
            verdict.variant,
            _verdict(verdict),
            str(verdict.explored.orders),
            str(verdict.explored.pruned),
            str(verdict.explored.bad_orders),
            f"{verdict.seconds:.1f}",
        )
        for verdict in verdicts
    ]


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Return what was explored in all, and what was not."""
    orders = sum(verdict.explored.orders for verdict in verdicts)
    pruned = sum(verdict.explored.pruned for verdict in verdicts)
    steps = sum(verdict.explored.steps for verdict in verdicts)
    lines = [f"{orders} orders of {steps} steps in all, {pruned} given up because they could not differ"]
    beyond = sum(verdict.explored.beyond for verdict in verdicts)
    if beyond:
        lines.append(f"{beyond} choices were beyond the bound on preemptions")
    for name in dict.fromkeys(verdict.race for verdict in verdicts):
        lines.append(f"not explored in {name}: {find_race(name).left_out}")
    return lines


def verdict_text(verdict: Verdict) -> str:
    """Return one verdict with its story."""
    race = find_race(verdict.race)
    explored = verdict.explored
    head = f"{race.name}, {verdict.variant}: {race.variant(verdict.variant).what}"
    counts = f"{explored.orders} orders ({explored.pruned} prefixes pruned), {explored.bad_orders} bad"
    lines = [head, f"  {_verdict(verdict)}: {counts}, {verdict.seconds:.1f} s"]
    lines += [f"  found: {bad.what}" for bad in explored.bad]
    short = verdict.shortest
    if short is not None and verdict.story is not None:
        known = "the shortest bad order" if verdict.is_shortest else "the shortest bad order found"
        preemptions = f"{short.preemptions} preemption{'s' if short.preemptions != 1 else ''}"
        lines.append(f"  {known}: {len(short.order)} steps, {preemptions}")
        lines.append(str(verdict.story))
    return "\n".join(lines)
