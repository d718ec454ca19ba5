"""disable_irq against the demultiplexer: a handler that runs already, an arrival that comes meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from vmbusirq._ffi import lib
from vmbusirq.irq.settings import IRQ_LEVEL
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import OFF, ON, Race, Variant
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Invariant, Scene
from vmbusirq.steps import Step, Steps
from vmbusirq.vmbus.channel import Channel
from vmbusirq.wire.ring import RingReader

__all__ = ["DISABLE_PENDING", "DISABLE_RUNNING"]

RELID: Final = 5
_MISUSE: Final = f"the callback of channel {RELID} uses a buffer that was freed"


class _DriverStage(Stage):
    """A stage whose channel has a driver with a buffer, which its callback uses.

    Attributes:
        buffer: None once it was freed.
        misuse: what the callback did that it must not, in words.
    """

    def __init__(self, device_class: str) -> None:
        super().__init__(cpus=2, channels={RELID: 1}, device_class=device_class)
        self.buffer: bytearray | None = bytearray(8)
        self.misuse = ""
        self.channel(RELID).set_callback(self._callback)

    def _callback(self, channel: Channel) -> None:
        if self.buffer is None:
            self.misuse = _MISUSE
        assert channel.rings is not None, "the stage has opened it"
        RingReader.wrap(lib.vi_channel_in(channel.c), channel.rings.ring_in).drain()

    def not_misused(self) -> str:
        """The callback has used what was freed."""
        return self.misuse

    def tear_down(self, *, waits: bool) -> Steps[None]:
        """Yield the steps of a driver that keeps its interrupt away, and frees what the handler uses."""
        irq = self.channel(RELID).irq
        if waits:
            yield from self.irq.disable_irq_steps(irq)
        else:
            yield from _disable_nosync(self, irq)
        yield Step("the driver frees its buffer", touches=frozenset({"buffer"}))
        self.buffer = None


def _disable_nosync(stage: Stage, irq: int) -> Steps[None]:
    lock = stage.irq.irq_to_desc(irq).lock
    point = f"irq {irq}: disable_irq_nosync takes desc->lock"
    yield Step(point, takes=lock, touches=frozenset({f"irq {irq}"}))
    stage.irq.disable_irq_nosync(irq)


def _disable_running(device_class: str, *, waits: bool) -> Scene:
    """A packet comes to CPU 1 while CPU 0 disables the IRQ."""

    def cast(stage: Stage) -> Sequence[Actor]:
        return (
            stage.task("driver", lambda: _own(stage).tear_down(waits=waits), cpu=0),
            stage.device(RELID),
            *stage.cpus(),
        )

    def at_end(stage: Stage) -> Iterable[Invariant]:
        return (stage.lost_flags,)

    def now(stage: Stage) -> Iterable[Invariant]:
        return (_own(stage).not_misused,)

    return StageScene(lambda: _DriverStage(device_class), cast, at_end, now)


def _own(stage: Stage) -> _DriverStage:
    assert isinstance(stage, _DriverStage), "the scene makes no other"
    return stage


DISABLE_RUNNING: Final = Race(
    name="disable-running",
    title="a driver disables its IRQ and frees what the handler uses, while the demultiplexer runs the handler",
    source="genirq.md 4.6; disable_irq, disable_irq_nosync of kernel/irq/manage.c",
    variants=(
        Variant(
            OFF,
            "disable_irq_nosync: handlers may still run",
            lambda: _disable_running("netvsc", waits=False),
            (_MISUSE,),
        ),
        Variant(ON, "disable_irq waits for them", lambda: _disable_running("netvsc", waits=True)),
        Variant(
            "batched",
            "disable_irq, for a channel whose handler schedules a tasklet",
            lambda: _disable_running("keyboard", waits=True),
            (_MISUSE,),
        ),
    ),
    left_out="what cures “batched”: vmbus_reset_channel_cb, which waits for the tasklet; two disables at once",
)


def _disable_pending(*, level: bool) -> Scene:
    """A packet comes to CPU 1 while the IRQ is disabled for a moment."""

    def build() -> Stage:
        stage = Stage(cpus=2, channels={RELID: 1})
        if level:
            stage.irq.modify_status(stage.channel(RELID).irq, set_=IRQ_LEVEL)
        return stage

    def away_for_a_moment(stage: Stage) -> Steps[None]:
        irq = stage.channel(RELID).irq
        yield from stage.irq.disable_irq_steps(irq)
        yield from stage.irq.enable_irq_steps(irq)

    def cast(stage: Stage) -> Sequence[Actor]:
        return (
            stage.task("driver", lambda: away_for_a_moment(stage), cpu=0),
            stage.device(RELID),
            *stage.cpus(),
        )

    return StageScene(build, cast, _nothing_lost)


def _nothing_lost(stage: Stage) -> Iterable[Invariant]:
    return (stage.stranded, stage.lost_flags)


DISABLE_PENDING: Final = Race(
    name="disable-pending",
    title="a flag is claimed while its IRQ is disabled: the demultiplexer has cleared it, enable_irq must replay it",
    source="genirq.md 4.6, 4.7; check_irq_resend of kernel/irq/resend.c",
    variants=(
        Variant(
            OFF,
            "the IRQ is marked level-triggered: its line, which check_irq_resend trusts to ask again, does not exist",
            lambda: _disable_pending(level=True),
            (f"channel {RELID} hangs: ",),
        ),
        Variant(
            ON,
            "PENDING is kept, and replayed by the resend tasklet at enable_irq",
            lambda: _disable_pending(level=False),
        ),
    ),
    left_out="kernels without CONFIG_HARDIRQS_SW_RESEND, which lose the arrival as a level IRQ does; two arrivals "
    "while disabled, which are one PENDING; an IRQ that moves meanwhile",
)
