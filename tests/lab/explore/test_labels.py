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
from vmbusirq.lab.explore.races import RACES
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.world import Choice, World
from vmbusirq.steps import STOP_MACHINE, Context

VARIANTS = [(race.name, variant.name) for race in RACES.values() for variant in race.variants]


class Labels:
    """One variant of a race, whose labels are put to the test."""

    def __init__(self, race: str, variant: str) -> None:
        scene = RACES[race].variant(variant).make()
        assert isinstance(scene, StageScene)
        self.scene = scene
        self.world = World(scene)
        self.pairs = 0

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
        built = self.scene.built
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
        if self.scene.built != built:
            return  # what C freed is elsewhere now; the next pair will do
        for layer in ("actors", "able", "objects", "memory"):
            assert _differences(there[layer], swapped[layer]) == {}, f"{said}: {layer}"
        self.check_image([*order, first.name, second.name], [*order, second.name, first.name], said)
        self.pairs += 1

    def check_image(self, order: list[str], swapped: list[str], said: str) -> None:
        """Compare the machine's images, further on if a CPU is in an interrupt, where there is none."""
        images = []
        for going in (order, swapped, order):
            self.play(going)
            while not (saved := image(self.scene.stage)):
                choices = self.world.choices()
                if not choices or self.world.take(choices[-1].name):
                    return
            images.append(saved)
            if images == [saved, saved]:
                return
        assert [] == _words(*images), f"{said}: image"

    def walk(self, random: Random, most: int) -> None:
        """Go some way, drawn, and check some pairs of where it leads to."""
        order: list[str] = []
        wrong, choices = "", []
        self.world.reset()
        for _ in range(random.randrange(1, 60)):
            ahead = self.world.choices()
            if wrong or not ahead:
                break
            choices = ahead
            order.append(random.choice(choices).name)
            wrong = self.take(order[-1])
        pairs = [
            (one, other)
            for at, one in enumerate(choices)
            for other in choices[:at]
            if one.touches is not None and not one.conflicts(other)
        ]
        for pair in random.sample(pairs, min(most, len(pairs))):
            self.check(order[:-1], *pair)

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
    for _ in range(25):
        labels.walk(random, most=1)


@pytest.mark.soak
@pytest.mark.parametrize(("race", "variant"), VARIANTS)
def test_independent_steps_do_the_same_in_either_order_in_the_long_run(race: str, variant: str, seed: int) -> None:
    labels = Labels(race, variant)
    random = Random(f"{seed} {race} {variant}")
    for _ in range(2000):
        labels.walk(random, most=3)
    assert labels.pairs
