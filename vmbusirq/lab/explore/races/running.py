"""An interrupt that arrives while the handler of its IRQ still runs on another CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import OFF, ON, Race, Variant
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Scene
from vmbusirq.wire.protocol import Version

__all__ = ["RUNNING_ELSEWHERE"]

RELID: Final = 5


def _running_elsewhere(device_class: str, *, replay: bool = False, read_already: bool = False) -> Scene:
    """CPU 0 is signalled; the host moves the channel to CPU 1, as it was told, and a device writes one more packet."""

    def build() -> Stage:
        # at 5.2 the host does not answer MODIFYCHANNEL: nothing comes to CPU 0 but what the race is about
        stage = Stage(cpus=2, version=Version.V5_2, channels={RELID: 0}, device_class=device_class)
        irq = stage.channel(RELID).irq
        stage.irq.irq_to_desc(irq).c.replay = replay
        stage.signal(RELID, read_already=read_already)
        stage.irq.irq_set_affinity(irq, 2)  # MODIFYCHANNEL is posted, the host has yet to take it
        return stage

    def cast(stage: Stage) -> Sequence[Actor]:
        return (stage.host_control(), stage.device(RELID), *stage.cpus())

    return StageScene(build, cast, Stage.invariants)


RUNNING_ELSEWHERE: Final = Race(
    name="running-elsewhere",
    title="an interrupt arrives while the handler of its IRQ still runs on another CPU",
    source="vmbus.md 10, trap 4; genirq.md 4.3; kernel/irq/chip.c, handle_simple_irq, v6.10",
    variants=(
        Variant(
            OFF,
            "v6.10's simple flow drops it; the callback drains in the hard interrupt",
            lambda: _running_elsewhere("fcopy"),
            (f"channel {RELID} hangs: ",),
        ),
        Variant(
            ON,
            "later kernels remember it as PENDING and run the handler again",
            lambda: _running_elsewhere("fcopy", replay=True),
        ),
        Variant(
            "deferred",
            "v6.10 drops it; the callback drains in a tasklet, which runs after the handler",
            lambda: _running_elsewhere("keyboard", read_already=True),
        ),
    ),
    left_out="a third CPU; more than one packet after the move; a tasklet that spins for the other CPU's waits instead",
)
