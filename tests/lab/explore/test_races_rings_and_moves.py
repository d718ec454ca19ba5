"""The races of rings, of moves and of disable_irq: what all their orders come to, with the fix off and on."""

from __future__ import annotations

import pytest

from vmbusirq.lab.explore.race import Verdict, explore
from vmbusirq.lab.explore.races import find_race
from vmbusirq.lab.explore.search import play
from vmbusirq.lab.explore.world import World

BUGS = {
    ("lost-wakeup", "off"): ["publishes the write index", "unmasks the ring", "=> channel 5 hangs: "],
    ("lost-wakeup", "early-look"): [
        "looks on cpu 0 for what raced in",
        "publishes the write index",
        "unmasks the ring",
    ],
    ("lost-room", "off"): [
        "looks whether the writer of channel 5 waits for room",
        "sets pending_send_sz",
        "=> hangs for ever",
    ],
    ("static-mask", "off"): [
        "irq 24: vmbus_irq_set_affinity computes tempmask",
        "irq 25: vmbus_irq_set_affinity computes tempmask",
        "irq 24: vmbus_irq_set_affinity chooses a cpu of tempmask",
        "=> channel 5 targets cpu 2, outside of 1",
    ],
    ("modify-lost", "off"): [
        "MODIFYCHANNEL to cpu 1 is posted",
        "MODIFYCHANNEL to cpu 0 is posted",
        "waits for MODIFYCHANNEL_RESPONSE",
        "switches the SynIC off",
        "=> channel 5 hangs: ",
    ],
    ("modify-lost", "host-loses"): ["host's target of 5 0 → 1", "switches the SynIC off", "=> channel 5 hangs: "],
    ("disable-running", "off"): [
        "handle_simple_irq takes desc->lock on cpu 1",
        "disable_irq_nosync takes desc->lock",
        "the driver frees its buffer",
        "handle_irq_event runs the actions on cpu 1",
        "uses a buffer that was freed",
    ],
    ("disable-running", "batched"): [
        "clears IN_PROGRESS",
        "synchronize_irq waits for running handlers",
        "the driver frees its buffer",
        "vmbus_on_event calls the driver on cpu 1",
    ],
    ("disable-pending", "off"): [
        "disable_irq takes desc->lock",
        "handle_simple_irq takes desc->lock on cpu 1",
        "enable_irq takes desc->lock",
        "=> channel 5 hangs: ",
    ],
}
"""The steps that decide, in their order, of the shortest bad order of each variant with a bug."""

CURES = [
    ("lost-wakeup", "on"),
    ("lost-room", "on"),
    ("static-mask", "on"),
    ("modify-lost", "on"),
    ("modify-lost", "host-loses-on"),
    ("modify-lost", "host-slow-on"),
    ("disable-running", "on"),
    ("disable-pending", "on"),
]


def names(case: object) -> str:
    return "-".join(case) if isinstance(case, tuple) else ""


def judged(race: str, variant: str) -> Verdict:
    """All orders of a variant: nothing was left out, and what comes of them is what is said of it."""
    verdict = explore(find_race(race), variant)
    assert verdict.explored.complete
    assert verdict.as_expected, [bad.what for bad in verdict.explored.bad]
    return verdict


@pytest.mark.parametrize("case", BUGS, ids=names)
def test_a_bug_is_found_and_its_shortest_order_is_a_story_that_can_be_played_again(case: tuple[str, str]) -> None:
    """vmbus.md 1.9 to 1.13, 4.3, 4.4, 10 traps 10 to 12; genirq.md 4.6, 4.7."""
    race, variant = case
    verdict = judged(race, variant)
    assert verdict.is_shortest
    assert verdict.shortest is not None
    world = World(find_race(race).variant(variant).make())
    assert verdict.shortest == play(world, verdict.shortest.order)
    told = str(verdict.story)
    place = 0
    for decisive in BUGS[case]:
        assert decisive in told[place:], f"{decisive!r} does not come next in:\n{told}"
        place = told.index(decisive, place)


@pytest.mark.parametrize("case", CURES, ids=names)
def test_with_its_cure_no_order_is_bad(case: tuple[str, str]) -> None:
    """The same races: nothing lost, nothing outside of its mask, nothing used after it was freed, nobody stuck."""
    verdict = judged(*case)
    assert (None, None) == (verdict.shortest, verdict.story)
    assert verdict.explored.orders > 1


def test_every_variant_is_a_bug_or_a_cure() -> None:
    """What a race says of its variants is what the tests above hold it to."""
    said = {
        (race, variant.name): bool(variant.expects)
        for race in dict.fromkeys(race for race, _ in CURES)
        for variant in find_race(race).variants
    }
    assert said == {**dict.fromkeys(BUGS, True), **dict.fromkeys(CURES, False)}


@pytest.mark.parametrize("race", dict.fromkeys(race for race, _ in CURES))
def test_a_race_says_what_its_orders_do_not_contain(race: str) -> None:
    """Nobody shall take the verdict for more than it is."""
    assert find_race(race).left_out
