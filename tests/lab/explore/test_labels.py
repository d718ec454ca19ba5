"""What the steps say of what they touch is true: steps that are independent by it do the same in either order.

For every race in the box: drawn walks, and at their states pairs of actors whose labels have nothing in common. Both
orders of such a pair are played, and everything is compared: all Python objects, guest memory, the C machine's image,
who stands where and who can go next.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.lab.explore.digest import guest_memory, image, objects
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.races import RACES
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.search import all_orders
from vmbusirq.lab.explore.world import Choice, World
from vmbusirq.steps import STOP_MACHINE, Context

VARIANTS = [(race.name, variant.name) for race in RACES.values() for variant in race.variants]


Meeting = tuple[str, str, str, str]


class Labels:
    """One variant of a race, whose labels are put to the test."""

    def __init__(self, race: str, variant: str) -> None:
        scene = RACES[race].variant(variant).make()
        assert isinstance(scene, StageScene)
        self.scene = scene
        self.world = World(scene)
        self.pairs = 0
        self.met: set[Meeting] = set()

    def play(self, order: list[str]) -> list[str]:
        """Play an order; return what was wrong after its steps."""
        self.world.reset()
        return [self.world.take(name) for name in order]

    def state(self) -> dict[str, Any]:
        """Return everything, by layers."""
        actors = {}
        for actor in self.scene.actors:
            step = actor.step
            stands = (step.point, step.context, step.locks, step.takes) if step is not None and actor.running else None
            actors[actor.name] = (stands, actor.running, step is None, repr(actor.error), repr(actor.result))
        stage = self.scene.stage
        able = sorted(map(repr, self.world.choices()))
        return {
            "actors": actors,
            "able": able,
            "objects": objects(stage),
            "memory": guest_memory(stage),
        }

    def check(self, order: list[str], first: Choice, second: Choice) -> None:
        """Play two that are said to be independent in both orders after a common beginning."""
        said = f"after {order}: {first} and {second}"
        self.play(order)
        for one, other in ((first, second), (second, first)):
            self.play([*order, one.name])
            assert other in self.world.choices(), (
                f"{said}: {one.name} changes whether {other.name} can go, or its label"
            )
        wrong = self.play([*order, first.name, second.name])
        there = self.state()
        assert wrong[-2:] == self.play([*order, second.name, first.name])[:-3:-1], said
        swapped = self.state()
        for layer in ("actors", "able", "objects", "memory"):
            assert _differences(there[layer], swapped[layer]) == {}, f"{said}: {layer}"
        self.check_image([*order, first.name, second.name], [*order, second.name, first.name], said)
        self.pairs += 1

    def check_image(self, order: list[str], swapped: list[str], said: str) -> None:
        """Compare the machine's images; while a CPU is in an interrupt there is none, and where it goes on to tells."""
        images: list[bytes] = []
        ways: list[list[str]] = []
        for going in (order, swapped, order):
            self.play(going)
            way: list[str] = []
            while not (saved := image(self.scene.stage)):
                names = [choice.name for choice in self.world.choices()]
                if not names:
                    break
                inside = [name for name in names if self.in_interrupt(name)]
                way += (wrong := self.world.take((inside or names)[-1]), repr(self.scene.actors))
                if wrong:
                    break
            images.append(saved)
            ways.append(way)
            assert ways[0] == way, said
            if images == [saved, saved]:
                return
        assert [] == _words(*images), f"{said}: image"

    def in_interrupt(self, name: str) -> bool:
        """Whether an actor is in an interrupt."""
        actor = self.world.actor(name)
        return actor.running and actor.step is not None and actor.step.context is not Context.TASK

    def walks(self, random: Random, walks: int, *, most: int) -> None:
        """Go so many ways."""
        for _ in range(walks):
            self.walk(random, most)

    def walk(self, random: Random, most: int) -> None:
        """Play a drawn order, and check some of the pairs that it passes: those first whose steps never met before."""
        pairs: list[tuple[Meeting, int, Choice, Choice]] = []
        order: list[str] = []
        wrong = ""
        self.world.reset()
        while not wrong and (choices := self.world.choices()):
            for at, one in enumerate(choices):
                for other in choices[:at]:
                    if not one.conflicts(other):
                        pairs.append((self.meeting(one, other), len(order), one, other))
            order.append(random.choice(choices).name)
            wrong = self.take(order[-1])
        random.shuffle(pairs)
        pairs.sort(key=lambda pair: pair[0] in self.met)
        for meeting, at, one, other in pairs[:most]:
            self.met.add(meeting)
            self.check(order[:at], one, other)

    def meeting(self, one: Choice, other: Choice) -> Meeting:
        """Return where two actors stand."""
        return one.name, str(self.world.actor(one.name).step), other.name, str(self.world.actor(other.name).step)

    def take(self, name: str) -> str:
        """Take a step, which must be what it was said to be: locks are announced, contexts are not entered silently."""
        actor = self.world.actor(name)
        before = actor.step
        assert before is not None
        held = actor.locks
        wrong = self.world.take(name)
        after = actor.step
        if after is not None and actor.running:
            announced = {*held, *(() if before.takes is None else (before.takes,))}
            assert set(actor.locks) <= announced, f"{name}: “{after.point}” holds what “{before.point}” does not take"
            entered = before.context is Context.TASK and after.context is not Context.TASK
            assert not entered or STOP_MACHINE in announced, f"{name}: “{after.point}” enters {after.context}"
        assert not actor.whole or not actor.running, f"{name} stands at “{actor.step}” in what goes as a whole"
        return wrong


def _differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    if isinstance(one, list):
        return {} if one == other else {"": (one, other)}
    return {name: (one.get(name), other.get(name)) for name in one | other if one.get(name) != other.get(name)}


def _words(one: bytes, other: bytes, again: bytes) -> list[int]:
    """Return the words in which two images differ, but not those in which the same order gives another each time."""
    if len(one) != len(other):
        return [-1]
    return [
        at
        for at in range(0, len(one), 8)
        if one[at : at + 8] != other[at : at + 8] and one[at : at + 8] == again[at : at + 8]
    ]


@pytest.mark.parametrize(("race", "variant"), VARIANTS)
def test_independent_steps_do_the_same_in_either_order(race: str, variant: str, seed: int) -> None:
    labels = Labels(race, variant)
    random = Random(f"{seed} {race} {variant}")
    labels.walks(random, 4, most=2)


@pytest.mark.soak
@pytest.mark.parametrize(("race", "variant"), VARIANTS)
def test_independent_steps_do_the_same_in_either_order_in_the_long_run(race: str, variant: str, seed: int) -> None:
    labels = Labels(race, variant)
    random = Random(f"{seed} {race} {variant}")
    labels.walks(random, 1000, most=5)
    assert labels.pairs


@pytest.mark.parametrize(("race", "variant"), [("static-mask", "off"), ("early-offline", "off")])
def test_a_label_that_says_too_little_is_found(
    race: str, variant: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a test of these tests: nobody touches anything but locks."""
    monkeypatch.setattr(Actor, "touches", frozenset())
    labels = Labels(race, variant)
    random = Random(f"{seed} {race} {variant}")
    with pytest.raises(AssertionError, match=r"^after \["):
        labels.walks(random, 20, most=2)


@pytest.mark.parametrize("variant", ["off", "on"])
def test_reduction_comes_to_every_end_of_a_race_that_plain_orders_come_to(variant: str) -> None:
    """What is watched, each CPU's counts and the guest's memory, over all orders of a race that has only hundreds."""
    scene = RACES["lost-wakeup"].variant(variant).make()
    assert isinstance(scene, StageScene)
    ends = []
    for reduction in (False, True):
        world = _Ends(scene)
        found = all_orders(world, reduction=reduction)
        ends.append((world.ends, {bad.kind for bad in found.bad}, found.complete))
    assert ends[0] == ends[1]
    assert len(ends[0][0]) > 1


class _Ends(World):
    """A world that keeps what its scene is like at each end."""

    def __init__(self, scene: StageScene) -> None:
        super().__init__(scene)
        self._stage = scene.stage
        self.ends: set[tuple[object, ...]] = set()

    def end(self) -> str:
        wrong = super().end()
        watched = tuple(self.scene.watch().items())
        counts = tuple(tuple(desc.kstat_irqs()) for desc in self._stage.irq.descs.values())
        self.ends.add((wrong, watched, counts, tuple(guest_memory(self._stage).items())))
        return wrong
