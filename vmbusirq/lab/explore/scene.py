"""A race on a stage: who is in it, and what must not come of it; and the same race with fewer in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.snapshot import Snapshot
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Invariant, Scene

__all__ = ["StageScene", "Without"]


def _nothing(_stage: Stage) -> Iterable[Invariant]:
    return ()


class StageScene:
    """A scene that is played on a stage.

    Args:
        build: makes the stage.
        cast: who is in the race.
        at_end: what must hold when nobody can go on.
        now: what must hold after every step.

    Attributes:
        stage: the stage, another one whenever an order has freed what cannot be put back.
        built: how many stages were made.
    """

    def __init__(
        self,
        build: Callable[[], Stage],
        cast: Callable[[Stage], Sequence[Actor]],
        at_end: Callable[[Stage], Iterable[Invariant]],
        now: Callable[[Stage], Iterable[Invariant]] = _nothing,
    ) -> None:
        self._build: Final = build
        self._cast: Final = cast
        self._invariants: Final = (now, at_end)
        self.built = 0
        self._make()

    def _make(self) -> None:
        self.built += 1
        self.stage = self._build()
        self.actors: Sequence[Actor] = self._cast(self.stage)
        now, at_end = self._invariants
        self._now = tuple(now(self.stage))
        self._at_end = tuple(at_end(self.stage))
        self._snapshot = Snapshot(self.stage, self.stage.core.handle, self.stage.partition.memory)

    def reset(self) -> None:
        """Put the stage back, or make another one if that cannot be."""
        for actor in self.actors:
            actor.drop()
        if not self._snapshot.restore():
            self._make()

    def after_step(self) -> None:
        """Let the hypervisor do what it does on its own."""
        self.stage.after_step()

    def wrong_now(self) -> str:
        """Return what the first invariant says that does not hold at this moment."""
        return next((wrong for invariant in self._now if (wrong := invariant())), "")

    def wrong_at_end(self) -> str:
        """Return what the first invariant says that does not hold at the end."""
        return next((wrong for invariant in self._at_end if (wrong := invariant())), "")

    def watch(self) -> Mapping[str, object]:
        """Return what a story tells about."""
        return self.stage.watch()


class Without:
    """A scene without some of its actors: smaller, so that even its plain orders can be played.

    Args:
        scene: which.
        names: of the actors that stay away.
    Raises:
        ValueError: the scene has no such actor.
    """

    def __init__(self, scene: Scene, *names: str) -> None:
        missing = set(names) - {actor.name for actor in scene.actors}
        if missing:
            raise ValueError(f"a scene without {', '.join(sorted(missing))}: it has no such actor")
        self._scene: Final = scene
        self._names: Final = frozenset(names)
        self.reset = scene.reset
        self.after_step = scene.after_step
        self.wrong_now = scene.wrong_now
        self.wrong_at_end = scene.wrong_at_end
        self.watch = scene.watch

    @property
    def actors(self) -> Sequence[Actor]:
        """Who is left; others than before when the scene was made anew."""
        return [actor for actor in self._scene.actors if actor.name not in self._names]
