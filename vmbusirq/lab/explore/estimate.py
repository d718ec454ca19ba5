"""How many orders a race has when nothing is left out, without playing them all.

A probe plays one order, each choice drawn evenly, and multiplies the numbers of choices on its way. The mean of that
product over all probes is the number of orders (Knuth, Estimating the efficiency of backtrack programs, Mathematics of
Computation 29, 1975): an order is met with the inverse of its product as probability. It is without bias, but a few
rare large products may carry it, so that it comes with its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from random import Random

from vmbusirq.lab.explore.search import play
from vmbusirq.lab.explore.world import Choice, World

__all__ = ["Estimate", "plain_orders"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated number of orders.

    Attributes:
        mean: of the probes.
        spread: the standard error of that mean.
        probes: how many there were.
    """

    mean: float
    spread: float
    probes: int


def plain_orders(world: World, probes: int, seed: int = 0) -> Estimate:
    """Estimate how many orders ``all_orders(world, reduction=False)`` plays.

    Args:
        world: the race.
        probes: how many orders are drawn; two at least, or there is no spread.
        seed: of what is drawn.
    Raises:
        ValueError: too few probes.
    """
    if probes < 2:
        raise ValueError(f"an estimate needs two probes at least, not {probes}")
    products = [float(_probe(world, Random(f"{seed} {number}"))) for number in range(probes)]
    mean = sum(products) / probes
    variance = sum((product - mean) ** 2 for product in products) / (probes - 1)
    return Estimate(mean, sqrt(variance / probes), probes)


def _probe(world: World, random: Random) -> int:
    """Play a drawn order; return the product of the numbers of choices."""
    product = 1

    def pick(choices: list[Choice], _step: int) -> Choice:
        nonlocal product
        product *= len(choices)
        return random.choice(choices)

    play(world, (), pick)
    return product
