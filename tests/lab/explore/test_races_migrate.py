"""The offline policies' races: what all their orders come to, and where interrupts are lost (vmbus.md 4.5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from vmbusirq.irq.cpuhotplug import CPUS_READ_LOCK, CPUS_WRITE_LOCK
from vmbusirq.lab.explore.race import Verdict, explore
from vmbusirq.lab.explore.races import find_race
from vmbusirq.lab.explore.races.migrate import MIGRATE_OFF
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.search import all_orders, play, random_orders
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import World

HOLDS = {
    "migrate-off": ("refuse", "mainline", "pick", "redirect", "handover"),
    "migrate-off-slow": ("refuse", "mainline", "pick", "handover"),
    "migrate-off-lost": ("refuse", "handover"),
    "migrate-off-unanswered": ("refuse", "mainline", "pick"),
    "migrate-and-move": ("refuse", "mainline", "handover"),
}
LOSES = {
    ("migrate-off-slow", "redirect"): ["switches the SynIC off", "writes a packet", "host's target of 5 1 → 0"],
    ("migrate-off-lost", "mainline"): ["hv_pick_new_cpu takes channel_mutex", "=> hangs for ever: offline"],
    ("migrate-off-lost", "pick"): ["hv_pick_new_cpu takes channel_mutex", "=> hangs for ever: offline"],
    ("migrate-off-lost", "redirect"): ["switches the SynIC off", "writes a packet", "=> channel 5 hangs"],
    ("migrate-off-unanswered", "redirect"): ["switches the SynIC off", "writes a packet", "host's target of 5 1 → 0"],
    # the last poke of all comes before the host has moved
    ("migrate-off-unanswered", "handover"): [
        "is poked",
        "time passes",
        "time passes",
        "writes a packet",
        "host's target of 5 1 → 0",
    ],
    # the answer to the affinity's question is taken for the answer to the other one
    ("migrate-and-move", "pick"): [
        "VMBus irq_set_affinity(cpu 1)",
        "hv_pick_new_cpu takes channel_mutex",
        "host's target of 5 0 → 1",
        "channel 5 target 1 → 0",
        "switches the SynIC off",
        "writes a packet",
        "host's target of 5 1 → 0",
    ],
    ("migrate-and-move", "redirect"): [
        "host's target of 5 0 → 1",
        "switches the SynIC off",
        "channel 5 target 1 → 0",
        "writes a packet",
        "host's target of 5 1 → 0",
    ],
}
"""The steps that decide, in their order, of the shortest bad order of each variant that loses something."""


@cache
def judged(race: str, variant: str) -> Verdict:
    """All orders: nothing was left out, and what comes of them is what is said of it."""
    verdict = explore(find_race(race), variant)
    assert verdict.explored.complete
    assert verdict.as_expected, [bad.what for bad in verdict.explored.bad]
    return verdict


@pytest.mark.parametrize(("race", "variant"), [(race, variant) for race, all_ in HOLDS.items() for variant in all_])
def test_it_holds_in_all_orders(race: str, variant: str) -> None:
    assert 0 == judged(race, variant).explored.bad_orders


@pytest.mark.parametrize(("race", "variant"), LOSES)
def test_it_loses_as_the_story_says(race: str, variant: str) -> None:
    """The story names the steps that decide, in their order."""
    verdict = judged(race, variant)
    rest = str(verdict.story)
    for decides in LOSES[race, variant]:
        assert decides in rest, decides
        rest = rest[rest.index(decides) + len(decides) :]


@pytest.mark.parametrize(("race", "variant"), LOSES)
def test_the_shortest_bad_order_plays_again(race: str, variant: str) -> None:
    shortest = judged(race, variant).shortest
    assert shortest is not None
    world = World(find_race(race).variant(variant).make())
    assert [shortest.what] * 2 == [play(world, shortest.order).what for _ in range(2)]


def test_every_variant_is_judged_here() -> None:
    judged_here = {(race, variant) for race, all_ in HOLDS.items() for variant in all_} | set(LOSES)
    assert judged_here == {(race, variant.name) for race in HOLDS for variant in find_race(race).variants}


@pytest.mark.parametrize("race", HOLDS)
def test_each_variant_plays_its_own_design(race: str) -> None:
    """6.16 itself has no channel IRQs; its policy on those of the RFC is a variant of its own."""
    designs = {}
    for variant in find_race(race).variants:
        scene = variant.make()
        assert isinstance(scene, StageScene)
        designs[variant.name] = scene.stage.vmbus.design.name
    assert {
        "refuse": "rfc",
        "mainline": "mainline-6.16",
        "pick": "rfc-pick",
        "redirect": "redirect",
        "handover": "rfc-handover",
    } == designs


def test_a_cpu_file_keeps_the_cpu_online_until_the_host_has_answered() -> None:
    """target_cpu_store of 6.16 waits under cpus_read_lock: no offline comes between the question and its answer."""
    scene = find_race("migrate-and-move").variant("mainline").make()
    world = World(scene)
    world.reset()
    mover = world.actor("cpu file")
    while mover.step is not None and "wait for MODIFYCHANNEL_RESPONSE" not in mover.step.point:
        assert "" == world.take("cpu file")
    assert CPUS_READ_LOCK in mover.locks
    while any(choice.name == "offline" for choice in world.choices()):
        assert "" == world.take("offline")
    offline = world.actor("offline").step
    assert offline is not None
    assert CPUS_WRITE_LOCK == offline.takes


def ends(variant: str, search: Callable[[World], object]) -> set[str]:
    """Every way in which an order of migrate-off can end."""
    scene = MIGRATE_OFF.variant(variant).make()
    stage: Stage = scene.stage  # type: ignore[attr-defined]
    seen, wrong = set(), scene.wrong_at_end

    def wrong_at_end() -> str:
        channel = stage.channel(5)
        seen.add(
            f"{scene.watch()} {stage.log.texts()} {channel.moves} {channel.stats} {stage.irq.counts.tolist()} "
            f"{stage.vmbus.retarget.modchan_sent} {stage.vmbus.retarget.modchan_completed} {stage.partition.clock.now}"
        )
        return wrong()

    scene.wrong_at_end = wrong_at_end  # type: ignore[method-assign]
    search(World(scene))
    return seen


@pytest.mark.parametrize("variant", ["mainline", "pick", "redirect", "handover"])
def test_orders_that_are_left_out_end_as_others_do(variant: str) -> None:
    """What the policies' steps say they touch is true: drawn orders, without reduction, end in no other way."""
    drawn = ends(variant, lambda world: random_orders(world, 150, seed=7))
    assert drawn <= ends(variant, all_orders)
