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
        stage: the stage.
    """

    def __init__(
        self,
        build: Callable[[], Stage],
        cast: Callable[[Stage], Sequence[Actor]],
        at_end: Callable[[Stage], Iterable[Invariant]],
        now: Callable[[Stage], Iterable[Invariant]] = _nothing,
    ) -> None:
        self.stage: Final = build()
        self.actors: Final[Sequence[Actor]] = cast(self.stage)
        self._now: Final = tuple(now(self.stage))
        self._at_end: Final = tuple(at_end(self.stage))
        self._snapshot: Final = Snapshot(self.stage, self.stage.core.handle, self.stage.partition.memory)

    def reset(self) -> None:
        """Put the stage back."""
        for actor in self.actors:
            actor.drop()
        self._snapshot.restore()

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
