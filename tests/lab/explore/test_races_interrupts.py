"""Races of interrupts against who moves, closes and removes their channel (vmbus.md 7.2 and 10, traps 4 and 8)."""

from __future__ import annotations

from functools import cache

import pytest

from vmbusirq.lab.explore.race import Race, Search, Verdict, explore
from vmbusirq.lab.explore.races import find_race
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.search import play
from vmbusirq.lab.explore.world import World

RACES = ("lock-order", "running-elsewhere", "close-isr", "rescind-isr")
VARIANTS = [(name, variant.name) for name in RACES for variant in find_race(name).variants]
BAD = [(name, variant.name) for name in RACES for variant in find_race(name).variants if variant.expects]


@cache
def verdict(name: str, variant: str) -> Verdict:
    """Search all orders, once for all tests."""
    return explore(find_race(name), variant)


def scene_of(race: Race, variant: str) -> StageScene:
    scene = race.variant(variant).make()
    assert isinstance(scene, StageScene)
    return scene


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_ends_as_it_says_in_all_orders(name: str, variant: str) -> None:
    """Each bug shows with its cure off, and in no order with it on; nothing is left out."""
    found = verdict(name, variant)
    assert (True, True) == (found.explored.complete, found.as_expected), [bad.what for bad in found.explored.bad]
    assert found.explored.orders > 10


@pytest.mark.parametrize(("name", "variant"), BAD)
def test_the_shortest_bad_order_plays_again(name: str, variant: str) -> None:
    """It is known to be the shortest, and ends the same way on a stage of its own, twice."""
    found = verdict(name, variant)
    assert found.shortest is not None
    assert found.is_shortest
    world = World(scene_of(find_race(name), variant))
    assert [found.shortest] * 2 == [play(world, found.shortest.order) for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "variant", "steps"),
    [
        (
            "lock-order",
            "off",
            [
                "cpu 1: hv_synic_cleanup takes set_affinity_lock",
                "irq 24: irq_set_affinity takes desc->lock",
                "cpu 1 takes the interrupt",
                "irq 24: handle_simple_irq takes desc->lock on cpu 1",
            ],
        ),
        (
            "running-elsewhere",
            "off",
            [
                "irq 24: handle_irq_event runs the actions on cpu 0",
                "host: signals channel 5",
                "irq 24: handle_simple_irq takes desc->lock on cpu 1",
                "[interrupts dropped, the handler ran elsewhere 0 → 1]",
                "irq 24: handle_irq_event takes desc->lock again on cpu 0, clears IN_PROGRESS",
                "channel 5 hangs",
            ],
        ),
        (
            "close-isr",
            "no-tasklet",
            [
                "channel 5: vmbus_on_event calls the driver on cpu 1",
                "channel 5: vmbus_reset_channel_cb takes sched_lock",
                "channel 5: vmbus_on_event unmasks the ring on cpu 1",
                "cpu 1 uses the in ring of channel 5, which was freed",
            ],
        ),
        (
            "rescind-isr",
            "no-grace-period",
            [
                "vmbus_chan_sched has claimed relid 5, looks it up",
                "channel 5: vmbus_channel_unmap_relid",
                "irq 24: handle_simple_irq takes desc->lock on cpu 1",
                "cpu 1 uses the descriptor of irq 24, which was freed",
            ],
        ),
    ],
)
def test_the_story_tells_what_decides(name: str, variant: str, steps: list[str]) -> None:
    """The decisive steps are there, in their order."""
    story = str(verdict(name, variant).story)
    places = [story.find(step) for step in steps]
    assert sorted(places) == places, story
    assert -1 not in places, story


def test_without_any_wait_everything_that_can_be_freed_too_early_is() -> None:
    """An action and its descriptor under the flow handler, the ring and the channel under the tasklet."""
    what = " ".join(bad.what for name in ("close-isr", "rescind-isr") for bad in verdict(name, "off").explored.bad)
    for freed in ("an action of irq 24", "the descriptor of irq 24", "the in ring of channel 5", "uses channel 5"):
        assert freed in what


@pytest.mark.parametrize(
    ("variant", "stands", "dropped"),
    [
        ("off", "clears IN_PROGRESS", 1),
        ("deferred", "runs the actions", 1),
        ("on", "clears IN_PROGRESS", 0),
    ],
)
def test_v6_10_drops_what_later_kernels_remember(variant: str, stands: str, dropped: int) -> None:
    """vmbus.md 10, trap 4: what is dropped is lost only where the handler that runs has drained already."""
    race = find_race("running-elsewhere")
    scene = scene_of(race, variant)
    world = World(scene)
    world.reset()
    wrong = [world.take("host") for _ in range(3)]
    while stands not in (point := str(world.actor("cpu 0").step)):
        wrong.append(world.take("cpu 0"))
        assert "irq_exit" not in point
    for name in ("device 5", "cpu 1"):
        while any(choice.name == name for choice in world.choices()):
            wrong.append(world.take(name))
    assert dropped == scene.stage.core.lost().in_progress
    while choices := world.choices():
        wrong.append(world.take(choices[0].name))
    assert ({""}, variant == "off") == (set(wrong), "hangs" in world.end())


@pytest.mark.parametrize("name", RACES)
def test_drawn_orders_find_nothing_where_all_orders_do_not(name: str) -> None:
    """What touches what is declared by hand: orders that no reduction has chosen agree."""
    for variant in find_race(name).variants:
        if not variant.expects:
            found = explore(find_race(name), variant.name, Search("random", orders=60), tells=False)
            assert [] == found.explored.bad
