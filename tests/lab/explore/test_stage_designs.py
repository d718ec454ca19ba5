"""A stage is a guest of any design: what is played on it is what that design does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from vmbusirq._ffi import lib
from vmbusirq.designs import DESIGNS
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.search import all_orders, random_orders
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Invariant, World


def scene(design: str, engine: str, *, whole: bool, affinity: int = 0) -> StageScene:
    """A device writes a packet; ``affinity``: somebody moves its channel meanwhile."""

    def build() -> Stage:
        return Stage(design=DESIGNS[design], engine=engine, channels={5: 1})

    def cast(stage: Stage) -> Sequence[Actor]:
        irq = stage.channel(5).irq
        move = stage.task("affinity", lambda: stage.irq.irq_set_affinity_steps(irq, affinity), cpu=0)
        return (
            *([move] if affinity else []),
            stage.device(5),
            stage.host_control(),
            *stage.cpus(whole=whole),
            stage.time(),
        )

    def at_end(stage: Stage) -> Iterable[Invariant]:
        return (stage.stranded, stage.lost_flags, stage.on_offline_cpu, stage.outside_mask, stage.host_disagrees)

    return StageScene(build, cast, at_end)


@pytest.mark.parametrize("design", sorted(DESIGNS))
@pytest.mark.parametrize("engine", ["linux", "fast"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_packet_is_read_in_every_design(design: str, engine: str, whole: bool) -> None:
    played = scene(design, engine, whole=whole)
    explored = all_orders(World(played))
    assert explored.complete
    assert [] == [bad.what for bad in explored.bad]
    assert 1 == played.stage.channel(5).stats.packets


@pytest.mark.parametrize("engine", ["linux", "fast"])
def test_a_redirected_channel_moves_while_its_flag_is_on_the_way(engine: str) -> None:
    """Wherever the host signals, the handler runs where it is wanted by then; some orders need an irq_work."""
    works = set()
    played = scene("redirect", engine, whole=False, affinity=0b01)
    wrong = played.wrong_at_end

    def wrong_at_end() -> str:
        works.add(sum(played.stage.core.arch_row(cpu, lib.VI_ROW_IWI) for cpu in range(2)))
        return wrong()

    played.wrong_at_end = wrong_at_end  # type: ignore[method-assign]
    explored = random_orders(World(played), 200, seed=1)
    assert [] == [bad.what for bad in explored.bad]
    assert {0, 1} <= works  # fast engine: and one more, where the old CPU still runs it from the slot
