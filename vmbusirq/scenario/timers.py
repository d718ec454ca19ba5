"""The [timers] table of a scenario, and when the ticks that it gives come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from vmbusirq.scenario.spec import TIMER_MODES, CpuSpec, EventSpec, Scenario, TimerSpec
from vmbusirq.scenario.table import ScenarioError, Table

__all__ = ["TickPlan", "read_timers", "with_timers"]

TSC_HZ_MIN: Final = 10_000_001
TSC_HZ_MAX: Final = 100_000_000_000
_COUNTED_BY: Final = {"direct": "HVS", "lapic": "LOC"}


def read_timers(top: Table, arch: str, cpus: CpuSpec, presets: Iterable[str]) -> TimerSpec | None:
    """Read [timers]; None if there is none. ScenarioError: it cannot be used."""
    if not top.given("timers"):
        return None
    table = top.table("timers")
    if arch != "x86":
        raise top.fail("timers", "an arm64 guest ticks by its architected timer; it has no [timers]")
    mode = table.one_of("mode", TIMER_MODES, TIMER_MODES[0])
    timers = TimerSpec(
        mode=mode,
        ticks=table.counts("ticks", table.take("ticks", list, []), cpus.possible),
        invariant_tsc=table.take("invariant_tsc", bool, False),
        tsc_hz=table.number("tsc_hz", TSC_HZ_MIN, TSC_HZ_MAX, TimerSpec().tsc_hz),
    )
    if any(timers.ticks[cpus.present :]):
        raise table.fail("ticks", f"CPUs from {cpus.present} on are not present: they have none")
    if mode in _COUNTED_BY and _COUNTED_BY[mode] in presets:
        raise table.fail("mode", f"its ticks are counted in row {_COUNTED_BY[mode]}: that cannot be a preset as well")
    table.done()
    return timers


def with_timers(scenario: Scenario, mode: str) -> Scenario:
    """Return a scenario whose ticks come in another way. ScenarioError: it has none that could."""
    if mode not in TIMER_MODES:
        raise ScenarioError(f"timers: no {mode!r}; choose from {', '.join(TIMER_MODES)}")
    where = f"{scenario.source}: timers:"
    if scenario.arch != "x86":
        raise ScenarioError(f"{where} an arm64 guest ticks by its architected timer")
    timers = replace(scenario.timers or TimerSpec(), mode=mode)
    preset = next((label for label in _COUNTED_BY.values() if label in scenario.presets), None)
    if preset is not None and (scenario.timers is None or _COUNTED_BY.get(mode) == preset):
        raise ScenarioError(f"{where} row {preset} is a preset: give those ticks to [timers] instead")
    return replace(scenario, timers=timers)


class TickPlan:
    """How many ticks there are by when: evenly over the time in which the guest runs.

    Args:
        ticks: by CPU, in all.
        events: of the scenario, in order of time; a suspended guest does not tick.
        end: when the last tick comes.
    """

    def __init__(self, ticks: tuple[int, ...], events: Iterable[EventSpec], end: int) -> None:
        self.ticks: Final = ticks
        self._windows: list[tuple[int, int]] = []
        since: int | None = 0
        for event in events:
            if event.action == "suspend" and since is not None:
                self._windows.append((since, event.at))
                since = None
            elif event.action == "resume":
                since = event.at
        if since is not None:
            self._windows.append((since, max(end, since)))
        self._span = sum(until - start for start, until in self._windows)

    def due(self, cpu: int, tick: int) -> int:
        """Return how many ticks a CPU has had by ``tick``."""
        if tick >= max((until for _start, until in self._windows), default=0) or not self._span:
            return self.ticks[cpu]
        run = sum(max(0, min(until, tick) - start) for start, until in self._windows)
        return self.ticks[cpu] * run // self._span
