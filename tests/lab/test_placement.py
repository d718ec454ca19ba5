"""Where channels go when their CPUs shall: few moves, and as even as can be, against a search of everything."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.cpumask import cpus_of
from vmbusirq.lab.placement import Seat, place


def fewest(cpus: tuple[int, ...], leaving: int, nr_cpus: int) -> int:
    """Return the least number of moves after which no channel is on a CPU that leaves, found by trying all."""
    states, moves = {cpus}, 0
    while not any(all(not leaving >> cpu & 1 for cpu in now) for now in states):
        moves += 1
        states = {
            (*now[:at], cpu, *now[at + 1 :]) for now in states for at in range(len(now)) for cpu in range(nr_cpus)
        }
    return moves


@given(st.lists(st.integers(0, 3), max_size=4), st.integers(0, 14))
def test_no_fewer_moves_free_the_cpus(cpus: list[int], leaving: int) -> None:
    """Against a search of all sequences of moves: those that leave the CPUs are as many as must, each moves once."""
    movers = [Seat("d", cpu, False) for cpu in cpus if leaving >> cpu & 1]
    others = [Seat("d", cpu, False) for cpu in cpus if not leaving >> cpu & 1]
    chosen = place(movers, others, 0xF & ~leaving, [0xF])
    assert fewest(tuple(cpus), leaving, 4) == len(movers) == len(chosen)
    assert not any(leaving >> cpu & 1 for cpu in chosen)


def sum_of_squares(counts: Counter[Any]) -> int:
    return sum(count * count for count in counts.values())


def all_choices(movers: Sequence[Seat], allowed: int) -> Iterator[tuple[int, ...]]:
    return itertools.product(tuple(cpus_of(allowed)), repeat=len(movers))


seats = st.lists(st.builds(Seat, st.sampled_from("ab"), st.integers(0, 4), st.booleans()), max_size=4)


@given(seats, seats, st.integers(1, 31))
def test_channels_of_slow_devices_are_spread_as_evenly_as_can_be(
    movers: list[Seat], others: list[Seat], allowed: int
) -> None:
    """Least loaded first: no other choice is more even."""
    movers = [replace(seat, perf=False) for seat in movers]
    base = Counter(seat.cpu for seat in others)
    best = min(sum_of_squares(base + Counter(cpus)) for cpus in all_choices(movers, allowed))
    assert best == sum_of_squares(base + Counter(place(movers, others, allowed, [31])))


@given(seats, seats, st.integers(1, 31))
def test_channels_of_one_device_keep_apart_if_they_can(movers: list[Seat], others: list[Seat], allowed: int) -> None:
    """As init_vp_index has it for sub-channels: no other choice has fewer channels of a device on one CPU."""
    movers = [replace(seat, perf=True) for seat in movers]

    def together(cpus: Sequence[int]) -> int:
        new = Counter((seat.device, cpu) for seat, cpu in zip(movers, cpus, strict=True))
        return sum_of_squares(Counter((seat.device, seat.cpu) for seat in others) + new)

    chosen = place(movers, others, allowed, [3, 28])
    assert min(map(together, all_choices(movers, allowed))) == together(chosen)
    assert chosen == place(movers, others, allowed, [3, 28])


@pytest.mark.parametrize(
    ("movers", "others", "allowed", "chosen"),
    [
        ([Seat("a", 3, True)], [], 0b0111, [2]),  # its node
        ([Seat("a", 3, False)], [], 0b0111, [0]),  # of no account to slow devices
        ([Seat("a", 3, True)], [Seat("b", 2, True)], 0b0111, [2]),  # its node, even where others are
        ([Seat("a", 3, True)], [Seat("a", 2, True)], 0b0111, [0]),  # the other node rather than beside its own device
        ([Seat("a", 1, True)], [Seat("b", 0, False), Seat("c", 0, False)], 0b0101, [0]),  # its node, however busy
        ([Seat("a", 3, True)], [Seat("b", 0, True)], 0b0011, [1]),  # no CPU of its node: the one without perf channels
        ([Seat("a", 3, False), Seat("b", 3, True)], [], 0b0100, [2, 2]),
        ([Seat("s", 3, False), Seat("p", 3, True)], [], 0b1100 & 0b0111 | 1, [0, 2]),  # perf ones choose first
    ],
)
def test_where_a_channel_goes(movers: list[Seat], others: list[Seat], allowed: int, chosen: list[int]) -> None:
    """Two nodes of two CPUs: each rule, and which comes first."""
    assert chosen == place(movers, others, allowed, [0b0011, 0b1100])
