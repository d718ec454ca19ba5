"""What a scenario's events make of its devices, and how traffic is laid out between them: data, nothing happens here.

The course of events is followed without a machine, so that what cannot be is refused before anything runs, and so that
a channel's interrupts can be shared out over the time in which the channel exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from vmbusirq.scenario.spec import HOTPLUG, ChannelSpec, DeviceSpec, EventSpec, Scenario
from vmbusirq.scenario.table import TICKS_PER_S, Table

__all__ = ["BOOT_TICKS", "Course", "OutOfTurn", "Segment", "check_traffic", "plan"]

BOOT_TICKS: Final = 2 * TICKS_PER_S
"""When VMBus comes up; what a scenario has happen before that happens right after it."""


class OutOfTurn(ValueError):
    """An event that cannot happen when it should; ``key`` is what is wrong with it."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(what)
        self.key: Final = key


class Course:
    """Which devices, channels and connections there are, event after event.

    Attributes:
        present: names of the devices that the host has.
        suspended: the guest is hibernated.
        connections: by name, True where somebody listened.
    """

    def __init__(self, devices: Sequence[DeviceSpec], channels: Sequence[ChannelSpec]) -> None:
        self._channels = {(spec.device, spec.sub) for spec in channels}
        self._gone: set[tuple[str, int]] = set()
        self.present = {device.name for device in devices if device.present}
        self.suspended = False
        self.connections: dict[str, bool] = {}

    def has(self, device: str, sub: int) -> bool:
        """Return whether a channel can carry traffic now."""
        return not self.suspended and device in self.present and (device, sub) in self._channels - self._gone

    def apply(self, event: EventSpec) -> None:
        """Let an event happen. OutOfTurn: it cannot."""
        if self.suspended and event.action in ("suspend", "connect", "disconnect", "affinity", *HOTPLUG):
            raise OutOfTurn("action", f"{event.action} cannot be: the guest is suspended then; resume it first")
        if event.action not in HOTPLUG:  # that takes no channel away, and what refuses it is seen when it happens
            getattr(self, f"_{event.action.replace('-', '_')}")(event)

    def _hot_add(self, event: EventSpec) -> None:
        if (event.device, 0) not in self._channels:
            raise OutOfTurn("device", f"{event.device} has no [[channel]]")
        if event.device in self.present:
            raise OutOfTurn(
                "device", f"{event.device} is there already; mark it with present = false, or rescind it first"
            )
        self.present.add(event.device)
        self._gone = {place for place in self._gone if place[0] != event.device}

    def _rescind(self, event: EventSpec) -> None:
        if event.sub:
            if not self.has(event.device, event.sub):
                raise OutOfTurn("relid", f"there is no sub-channel {event.sub} of {event.device} then")
            self._gone.add((event.device, event.sub))
        elif event.device in self.present:
            self.present.remove(event.device)
        else:
            raise OutOfTurn("device", f"{event.device} is not there then; hot-add it first")

    def _suspend(self, _event: EventSpec) -> None:
        self.suspended = True
        self.connections.clear()
        self._gone.clear()  # resumed drivers ask for all their sub-channels

    def _resume(self, _event: EventSpec) -> None:
        if not self.suspended:
            raise OutOfTurn("action", "resume cannot be: the guest is not suspended then")
        self.suspended = False

    def _connect(self, event: EventSpec) -> None:
        if event.connection in self.connections:
            raise OutOfTurn("connection", f"{event.connection} is connected already; give this one another name")
        self.connections[event.connection] = event.accepted

    def _disconnect(self, event: EventSpec) -> None:
        if not self.connections.pop(event.connection, False):
            raise OutOfTurn("connection", f"{event.connection} is not connected then, or was refused")

    def _affinity(self, event: EventSpec) -> None:
        if not self.has(event.device, event.sub):
            raise OutOfTurn("relid", f"there is no channel {event.sub} of {event.device} then")


@dataclass(frozen=True, slots=True)
class Segment:
    """The time from one event to the next.

    Attributes:
        start, end: in ticks; BOOT_TICKS is the earliest.
        due: by channel of the scenario, how many of its interrupts there are by the end, None where it does not exist.
        event: what happens at the end, None at the end of the scenario.
    """

    start: int
    end: int
    due: tuple[int | None, ...]
    event: EventSpec | None


def plan(scenario: Scenario) -> tuple[Segment, ...]:
    """Share each channel's interrupts out over the time in which it exists, in proportion to time.

    The last segment in which a channel exists ends with exactly the interrupts that the scenario says. Where there is
    no time at all, that segment has them all.
    """
    segments, alive = [], []
    course = Course(scenario.devices, scenario.channels)
    start = BOOT_TICKS
    end = max(BOOT_TICKS, scenario.duration_s * TICKS_PER_S)
    for event in (*scenario.events, None):
        until = end if event is None else max(BOOT_TICKS, event.at)
        segments.append(Segment(start, until, (), event))
        alive.append([course.has(spec.device, spec.sub) for spec in scenario.channels])
        start = until
        if event is not None:
            course.apply(event)
    lengths = [segment.end - segment.start for segment in segments]
    columns = [
        _share(spec.interrupts, lengths, [row[index] for row in alive]) for index, spec in enumerate(scenario.channels)
    ]
    return tuple(
        replace(segment, due=tuple(column[index] for column in columns)) for index, segment in enumerate(segments)
    )


def _share(interrupts: int, lengths: Iterable[int], alive: Sequence[bool]) -> list[int | None]:
    """Return the running totals of one channel, None where it is not."""
    passed = list(accumulate(length if is_alive else 0 for length, is_alive in zip(lengths, alive, strict=True)))
    if passed[-1]:
        totals = [interrupts * ticks // passed[-1] for ticks in passed]
    else:
        last = max((index for index, is_alive in enumerate(alive) if is_alive), default=0)
        totals = [interrupts if index >= last else 0 for index in range(len(alive))]
    return [total if is_alive else None for total, is_alive in zip(totals, alive, strict=True)]


def check_traffic(top: Table, scenario: Scenario) -> None:
    """Refuse interrupts of a channel that never exists."""
    segments = plan(scenario)
    for index, spec in enumerate(scenario.channels):
        if spec.interrupts and all(segment.due[index] is None for segment in segments):
            raise top.fail(
                "channel", f"relid {spec.relid} has interrupts, and {spec.device} is never there: hot-add it"
            )
