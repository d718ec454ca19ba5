"""The estimated number of plain orders against numbers that are known, and against a search that plays them all."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb, factorial, prod

import pytest

from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.estimate import plain_orders
from vmbusirq.lab.explore.races import find_race
from vmbusirq.lab.explore.scene import Without
from vmbusirq.lab.explore.search import all_orders
from vmbusirq.lab.explore.world import World
from vmbusirq.steps import Step, Steps


class Walkers:
    """Actors that take so many steps each, and never meet."""

    def __init__(self, *steps: int, wrong_at: int = -1) -> None:
        self.actors = [Actor(f"walker {at}", lambda at=at: self._walk(at)) for at in range(len(steps))]
        self._steps = steps
        self._wrong_at = wrong_at
        self.taken = 0

    def _walk(self, at: int) -> Steps[None]:
        for _ in range(self._steps[at] - 1):
            self.taken += 1
            yield Step("walks", touches=frozenset())
        self.taken += 1

    def reset(self) -> None:
        self.taken = 0

    def after_step(self) -> None:
        return

    def wrong_now(self) -> str:
        return "too far" if self.taken == self._wrong_at else ""

    def wrong_at_end(self) -> str:
        return ""

    def watch(self) -> Mapping[str, object]:
        return {"taken": self.taken}


@pytest.mark.parametrize("steps", [(1,), (4,), (1, 1), (2, 3), (3, 3, 2), (5, 4)])
def test_all_interleavings_of_walkers_are_counted(steps):
    """A multinomial coefficient; the estimate's error is within four standard errors."""
    exact = factorial(sum(steps)) // prod(map(factorial, steps))
    assert exact == all_orders(World(Walkers(*steps)), reduction=False).orders
    estimate = plain_orders(World(Walkers(*steps)), 400)
    assert abs(estimate.mean - exact) <= 4 * estimate.spread
    assert 400 == estimate.probes


def test_without_a_choice_the_estimate_is_exact():
    """One order: every probe says so."""
    estimate = plain_orders(World(Walkers(7)), 2)
    assert (1.0, 0.0) == (estimate.mean, estimate.spread)


def test_an_order_that_goes_wrong_ends_there():
    """As in the search, which does not go on either: three steps of two walkers, so all prefixes of that length."""
    assert 8 == all_orders(World(Walkers(4, 4, wrong_at=3)), reduction=False).orders
    estimate = plain_orders(World(Walkers(4, 4, wrong_at=3)), 10)
    assert (8.0, 0.0) == (estimate.mean, estimate.spread)


def test_more_probes_make_the_spread_smaller():
    """As the inverse of the square root of their number."""
    few, many = (plain_orders(World(Walkers(6, 6)), probes).spread for probes in (100, 1600))
    assert 2 < few / many < 8


def test_the_mean_over_many_seeds_is_without_bias():
    """Thirty estimates of few probes: their mean is within four standard errors of the number itself."""
    means = [plain_orders(World(Walkers(4, 3)), 10, seed).mean for seed in range(30)]
    mean = sum(means) / 30
    spread = (sum((one - mean) ** 2 for one in means) / 29 / 30) ** 0.5
    assert abs(mean - comb(7, 3)) <= 4 * spread
    assert len(set(means)) > 10, "seeds matter"


def test_the_same_seed_gives_the_same_estimate():
    """Nothing else is drawn."""
    assert plain_orders(World(Walkers(5, 5)), 50, 3) == plain_orders(World(Walkers(5, 5)), 50, 3)


@pytest.mark.parametrize("variant", ["off", "on"])
def test_plain_orders_of_a_real_race(variant):
    """A race that lost its device and its host has some hundred plain orders: few enough to play."""
    world = World(Without(find_race("check-then-offline").variant(variant).make(), "device 5", "host"))
    exact = all_orders(world, reduction=False)
    assert exact.complete
    assert exact.orders > 100
    estimate = plain_orders(world, 300)
    assert abs(estimate.mean - exact.orders) <= 4 * estimate.spread


def test_one_probe_has_no_spread():
    """ValueError: two at least."""
    with pytest.raises(ValueError, match="needs two probes"):
        plain_orders(World(Walkers(1)), 1)


def test_a_scene_without_some_of_its_actors():
    """The others are as they were; nobody is left out who is not there."""
    scene = find_race("early-offline").variant("on").make()
    smaller = Without(scene, "device 5", "time")
    everybody = [actor.name for actor in scene.actors]
    assert [name for name in everybody if name not in ("device 5", "time")] == [one.name for one in smaller.actors]
    assert scene.watch() == smaller.watch()
    with pytest.raises(ValueError, match="without device 6: it has no such actor"):
        Without(scene, "device 6")
