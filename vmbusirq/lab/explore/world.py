"""The world of one race: its actors, how it is put back to the beginning, and what must never be true in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vmbusirq.lab.explore.actors import Actor, may_go

__all__ = ["Choice", "Invariant", "Scene", "World"]

Invariant = Callable[[], str]
"""Returns what is wrong, in words; empty while nothing is."""


class Scene(Protocol):
    """What a race is played on: a guest, a host, and what goes on between them."""

    @property
    def actors(self) -> Sequence[Actor]:
        """Who takes steps; their names differ."""

    def reset(self) -> None:
        """Be as at the beginning."""

    def after_step(self) -> None:
        """Let happen what nobody can come before: what the hypervisor does on its own."""

    def wrong_now(self) -> str:
        """Return what must not be true at any time, but is."""

    def wrong_at_end(self) -> str:
        """Return what must not be true when nobody can go on, but is."""

    def watch(self) -> Mapping[str, object]:
        """Return what a story tells about, by name."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An actor that could go.

    Attributes:
        name: of the actor.
        touches: what its step reads or writes, None for anything.
        cpu: whose CPU it needs, None for no CPU in particular.
        keeps_off: its step may keep others off that CPU.
    """

    name: str
    touches: frozenset[str] | None
    cpu: int | None = None
    keeps_off: bool = False

    def conflicts(self, other: Choice) -> bool:
        """Whether the order of the two may matter, or one may keep the other from going."""
        if self.touches is None or other.touches is None:
            return True
        if self.cpu == other.cpu and self.cpu is not None and (self.keeps_off or other.keeps_off):
            return True
        return not self.touches.isdisjoint(other.touches)


class World:
    """A scene whose actors go one step at a time.

    Args:
        scene: which.

    Attributes:
        taken: the names of the actors that went, since the last reset.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene: Final = scene
        self.taken: list[str] = []

    def reset(self) -> None:
        """Begin again."""
        for actor in self.scene.actors:
            actor.drop()
        self.scene.reset()
        self.taken.clear()

    def choices(self) -> list[Choice]:
        """Return who can go now, in the order of the scene."""
        actors = self.scene.actors
        running = [actor for actor in actors if actor.running]
        able = [actor for actor in actors if not actor.last and may_go(actor, running)]
        able = able or [actor for actor in actors if actor.last and may_go(actor, running)]
        return [Choice(actor.name, actor.touches, actor.cpu, actor.keeps_off) for actor in able]

    def actor(self, name: str) -> Actor:
        """Return an actor by its name."""
        return next(actor for actor in self.scene.actors if actor.name == name)

    def take(self, name: str) -> str:
        """Let an actor take one step; return what is wrong after it."""
        actor = self.actor(name)
        actor.go()
        self.taken.append(name)
        self.scene.after_step()
        return self._failed(actor) or self.scene.wrong_now()

    def end(self) -> str:
        """Nobody can go on: return what is wrong with that."""
        stuck = [actor for actor in self.scene.actors if actor.running]
        stuck += [actor for actor in self.scene.actors if not actor.running and actor.step and not actor.repeats]
        if stuck:
            return self._why_stuck(stuck)
        return self.scene.wrong_at_end()

    @staticmethod
    def _failed(actor: Actor) -> str:
        error = actor.error
        if error is None or getattr(error, "errno", None) in actor.may_fail:
            return ""
        return f"{actor.name} failed: {error or type(error).__name__}"

    def _why_stuck(self, stuck: Iterable[Actor]) -> str:
        """Tell a deadlock from a wait for what never comes."""
        lines = []
        for actor in stuck:
            step = actor.step
            assert step is not None, "who is stuck stands somewhere"
            held = [
                f"{other.name} holds {lock.name}"
                for other in self.scene.actors
                if step.takes is not None
                for lock in other.locks
                if step.takes.excludes(lock)
            ]
            keeps = [f"its cpu {actor.cpu} is not free"] if not held and step.ready is None else []
            lines.append(f"{actor.name} stands at “{step.point}”" + "".join(f": {why}" for why in held + keeps))
        kind = "deadlock" if all(self._blocked(actor) for actor in stuck) else "hangs for ever"
        return f"{kind}: {'; '.join(lines)}"

    @staticmethod
    def _blocked(actor: Actor) -> bool:
        return actor.step is not None and actor.step.ready is None
