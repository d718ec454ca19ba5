"""Who is in the races of a CPU that goes offline: the same few, in several of them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.steps import Steps

__all__ = ["GOES", "RELID", "goes_offline", "move_against_offline", "moves_channel"]

RELID: Final = 5
GOES: Final = 1
"""The CPU that goes offline."""


def moves_channel(stage: Stage, cpu: int) -> Actor:
    """Return who moves the channel to a CPU: by its IRQ's affinity, where it has none by its cpu file."""
    channel = stage.channel(RELID)

    def steps() -> Steps[object]:
        if channel.irq:
            return stage.irq.irq_set_affinity_steps(channel.irq, 1 << cpu)
        return stage.vmbus.target_cpu_store_steps(channel, str(cpu).encode())

    refusals = (errno.EINVAL,) if cpu == GOES else ()  # it is offline, or its SynIC is off
    return stage.task("affinity" if channel.irq else "cpu file", steps, cpu=0, may_fail=refusals)


def goes_offline(stage: Stage) -> Actor:
    """Return who takes CPU 1 offline, which its channels may refuse."""
    return stage.task("offline", lambda: stage.switch.down(GOES), cpu=GOES, may_fail=(errno.EBUSY,))


def move_against_offline(stage: Stage, cpu: int, *others: Actor) -> Sequence[Actor]:
    """Return who is in a race of a channel that is moved to ``cpu`` while CPU 1 goes offline.

    Args:
        stage: theirs.
        cpu: where the channel goes.
        others: who is in it besides these two, the host and time.
    """
    return (moves_channel(stage, cpu), goes_offline(stage), stage.host_control(), *others, stage.time())
