"""Which CPU each of several channels moves to, when the CPUs that they interrupt shall go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vmbusirq.cpumask import cpus_of

__all__ = ["Seat", "place"]


@dataclass(frozen=True, slots=True)
class Seat:
    """What matters of a channel when CPUs are given out: its device, its CPU, and whether it is a performance one."""

    device: str
    cpu: int
    perf: bool


def place(movers: Sequence[Seat], others: Sequence[Seat], allowed: int, nodes: Sequence[int]) -> list[int]:
    """Choose a CPU for each channel that has to move; the same input gives the same choice.

    Performance channels choose first, as init_vp_index would have it: where their device has the fewest channels, none
    if there is such a CPU; on the NUMA node that they leave; where performance channels are fewest. Then the others.
    What is left open is decided by the number of channels, then by that of the CPU.

    Args:
        movers: channels that leave their CPUs, in order.
        others: all other channels.
        allowed: mask of the CPUs to choose from, not empty.
        nodes: mask of the CPUs of each NUMA node.
    Returns:
        the CPU of each of ``movers``.
    """
    load = Counter(seat.cpu for seat in others)
    perf = Counter(seat.cpu for seat in others if seat.perf)
    used = Counter((seat.device, seat.cpu) for seat in others)
    cpus = tuple(cpus_of(allowed))
    chosen = [0] * len(movers)
    for index in sorted(range(len(movers)), key=lambda index: not movers[index].perf):
        seat = movers[index]
        near = next((node for node in nodes if node >> seat.cpu & 1), 0) if seat.perf else 0
        if seat.perf:
            cpu = min(cpus, key=lambda c: (used[seat.device, c], not near >> c & 1, perf[c], load[c], c))
        else:
            cpu = min(cpus, key=lambda c: (load[c], c))
        load[cpu] += 1
        perf[cpu] += seat.perf
        used[seat.device, cpu] += 1
        chosen[index] = cpu
    return chosen
