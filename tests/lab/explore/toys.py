"""Races of a few lines: programs of the reference model, played by the explorer's own actors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.reference.orders import Doer, Op, Program, of_op
from vmbusirq.lab.explore.actors import Actor, at_once
from vmbusirq.lab.explore.search import Explored, all_orders
from vmbusirq.lab.explore.world import World
from vmbusirq.steps import STOP_MACHINE, Context, Lock, LockKind, Step, Steps

LOCKS: Final = {
    "raw": Lock("raw"),
    "spin": Lock("spin", LockKind.SPINNING),
    "mutex": Lock("mutex", LockKind.SLEEPING),
    "mutex_shared": Lock("mutex", LockKind.SLEEPING, shared=True),
    "stop": STOP_MACHINE,
}


class Toy:
    """A scene of counters; ``bad`` at the end, or ``bad_now``, are texts by the values that the counters must not have."""

    def __init__(
        self,
        program: Program,
        *,
        bad: Mapping[tuple[int, ...], str] | None = None,
        bad_now: Mapping[tuple[int, ...], str] | None = None,
    ) -> None:
        self.program: Final = program
        self.counters = dict(program.counters)
        self._bad = (bad_now or {}, bad or {})
        self.actors = tuple(map(self._actor, program.doers))

    def _actor(self, doer: Doer) -> Actor:
        touches = frozenset({doer.trigger} - {""})
        if doer.whole:
            touches = touches.union(*map(of_op, doer.ops))
        return Actor(
            doer.name,
            at_once(lambda: self._all(doer)) if doer.whole else lambda: self._steps(doer),
            cpu=doer.cpu,
            wants=(lambda: bool(self.counters[doer.trigger])) if doer.trigger else None,
            context=Context(doer.context),
            touches=touches,
            whole=doer.whole,
            last=doer.last,
        )

    def _all(self, doer: Doer) -> None:
        for op in doer.ops:
            self._do(op)

    def _steps(self, doer: Doer) -> Steps[None]:
        held: list[Lock] = []
        for op in doer.ops:
            how: dict[str, Any] = {}
            if op[0] == "lock":
                how["takes"] = LOCKS[op[1]]
            elif op[0] == "wait":
                how["ready"] = lambda name=op[1]: bool(self.counters[name])
            yield Step(" ".join(op), Context(doer.context), tuple(held), touches=of_op(op), **how)
            self._do(op)
            if op[0] == "lock":
                held.append(LOCKS[op[1]])
            elif op[0] == "unlock":
                held.remove(LOCKS[op[1]])

    def _do(self, op: Op) -> None:
        counters = self.counters
        if op[0] == "set":
            counters[op[1]] = int(op[2])
        elif op[0] == "add":
            counters[op[1]] += 1
        elif op[0] == "copy":
            counters[op[1]] = counters[op[2]]

    # ---- a scene

    def reset(self) -> None:
        self.counters.update(self.program.counters)

    def after_step(self) -> None:
        pass

    def wrong_now(self) -> str:
        return self._bad[0].get(tuple(self.counters.values()), "")

    def wrong_at_end(self) -> str:
        return self._bad[1].get(tuple(self.counters.values()), "")

    def watch(self) -> Mapping[str, object]:
        return dict(self.counters)


class Recorder(World):
    """A world that keeps each order that came to its end, with the counters there and what was wrong."""

    scene: Toy

    def __init__(self, scene: Toy) -> None:
        super().__init__(scene)
        self.ends: list[tuple[tuple[str, ...], tuple[int, ...], str]] = []

    def end(self) -> str:
        wrong = super().end()
        self.ends.append((tuple(self.taken), tuple(self.scene.counters.values()), wrong))
        return wrong


def explored(toy: Toy, **how: Any) -> tuple[Explored, list[tuple[tuple[str, ...], tuple[int, ...], str]]]:
    """Return what a search says, and all ends it came to."""
    world = Recorder(toy)
    return all_orders(world, **how), world.ends
