"""A CPU goes offline with a channel on it, which leaves by itself: the offline policies.

The device writes while that happens, and the host carries MODIFYCHANNEL out at any moment, or not at all. In the first
race everybody goes in small steps, and the host is faster than any wait of the guest's. In the others the guest goes as
far as it can, and then the host, the device or time goes on, each as a whole: that is a host slower than any wait.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from vmbusirq.designs import DESIGNS
from vmbusirq.host.options import HostOptions
from vmbusirq.lab.explore.actors import Actor
from vmbusirq.lab.explore.race import Race, Variant
from vmbusirq.lab.explore.races.casts import GOES, RELID, goes_offline, moves_channel
from vmbusirq.lab.explore.scene import StageScene
from vmbusirq.lab.explore.stage import Stage
from vmbusirq.lab.explore.world import Invariant, Scene
from vmbusirq.wire.protocol import Version

__all__ = ["MIGRATE_AND_MOVE", "MIGRATE_OFF", "MIGRATE_OFF_LOST", "MIGRATE_OFF_SLOW", "MIGRATE_OFF_UNANSWERED"]

_SOURCE: Final = "vmbus.md 4.5; genirq.md 10; the RFC's open question"
_POLICIES: Final = (
    ("refuse", "rfc", "RFC patches 11 and 12: the channel keeps the CPU online"),
    ("mainline", "mainline-6.16", "6.16: hv_pick_new_cpu takes another CPU, and the host has to confirm it; no IRQs"),
    ("pick", "rfc-pick", "6.16's policy on the RFC's IRQs, which ask the host and do not wait"),
    ("redirect", "redirect", "interrupt redirection: the host is asked, the IRQ core moves the handler"),
    ("handover", "rfc-handover", "our own: the least used CPU of its affinity, and pokes in case a signal was lost"),
)
_HANGS: Final = f"channel {RELID} hangs: "
_DISAGREES: Final = f"the host interrupts cpu {GOES} for channel {RELID}, the guest expects 0"
_WAITS: Final = "hangs for ever: offline stands at “wait for MODIFYCHANNEL_RESPONSE”"
_LOSES: Final = HostOptions(lose_modify=lambda relid, number: number == 2)  # the first has set the stage


def _must_hold(stage: Stage) -> Iterable[Invariant]:
    return (stage.stranded, stage.lost_flags, stage.on_offline_cpu, stage.outside_mask, stage.host_disagrees)


def _goes(stage: Stage) -> str:
    """CPU 1 is still online, although nothing has to keep it."""
    return "cpu 1 stays online" if stage.irq.online >> 1 & 1 else ""


def _stays(stage: Stage) -> str:
    """CPU 1 is offline, although its channel has to keep it online."""
    return "" if stage.irq.online >> 1 & 1 else "cpu 1 goes offline"


def _migrate_off(
    design: str,
    stays: bool,
    *,
    slow: bool = True,
    moves: bool = False,
    options: HostOptions | None = None,
    version: Version = Version.V5_3,
) -> Callable[[], Scene]:
    """Make a scene of CPU 1 that is to go offline.

    Args:
        design: whose policy applies.
        stays: the channel keeps it online.
        slow: see the module.
        moves: the channel only comes to it, by an affinity or its cpu file, so that it may go or stay.
        options: of the host.
        version: that both speak.
    """

    def build() -> Stage:
        channels = {RELID: 0 if moves else GOES}
        return Stage(cpus=2, design=DESIGNS[design], version=version, channels=channels, options=options)

    def cast(stage: Stage) -> Sequence[Actor]:
        return (
            *([moves_channel(stage, GOES)] if moves else []),
            goes_offline(stage),
            stage.host_control(slow=slow),
            stage.slow_device(RELID, 1 if moves else 2) if slow else stage.device(RELID),
            *stage.cpus(whole=True),
            stage.time(),
        )

    def at_end(stage: Stage) -> Iterable[Invariant]:
        outcome = partial(_stays if stays else _goes, stage)
        return _must_hold(stage) if moves else (*_must_hold(stage), outcome)

    return lambda: StageScene(build, cast, at_end)


def _variants(
    make: Callable[[str, bool], Callable[[], Scene]],
    expects: Mapping[str, tuple[str, ...]],
    *,
    stays: Collection[str] = ("refuse",),
) -> tuple[Variant, ...]:
    """Return one for each policy.

    Args:
        make: makes its scene, of a design, and whether the CPU stays.
        expects: how all that goes wrong under some of them begins.
        stays: those under which the CPU stays online.
    """
    return tuple(
        Variant(name, what, make(design, name in stays), expects.get(name, ())) for name, design, what in _POLICIES
    )


MIGRATE_OFF: Final = Race(
    name="migrate-off",
    title="a CPU goes offline, its channel leaves by itself, and the host follows in time",
    source=_SOURCE,
    variants=_variants(lambda design, stays: _migrate_off(design, stays, slow=False), {}),
    left_out="hosts slower than the guest's waits, see migrate-off-slow; a second packet",
)

MIGRATE_OFF_SLOW: Final = Race(
    name="migrate-off-slow",
    title="a CPU goes offline, its channel leaves by itself, and the host follows later than anybody waits",
    source=_SOURCE,
    variants=_variants(_migrate_off, {"redirect": (_HANGS,)}),
    left_out="a host or a device that goes on before the guest waits, see migrate-off",
)

MIGRATE_OFF_LOST: Final = Race(
    name="migrate-off-lost",
    title="a CPU goes offline, its channel leaves by itself, and the first MODIFYCHANNEL is lost",
    source=_SOURCE,
    variants=_variants(
        lambda design, stays: _migrate_off(design, stays, options=_LOSES),
        {"mainline": (_WAITS,), "pick": (_WAITS,), "redirect": (_HANGS, _DISAGREES)},
    ),
    left_out="a host or a device that goes on before the guest waits; messages lost in a row",
)

MIGRATE_OFF_UNANSWERED: Final = Race(
    name="migrate-off-unanswered",
    title="the same with a slow host of protocol 5.2, which answers no MODIFYCHANNEL",
    source=_SOURCE,
    variants=_variants(
        lambda design, stays: _migrate_off(design, stays, version=Version.V5_2),
        {"redirect": (_HANGS,), "handover": (_HANGS,)},
        stays=("refuse", "mainline", "pick"),
    ),
    left_out="a host or a device that goes on before the guest waits",
)

MIGRATE_AND_MOVE: Final = Race(
    name="migrate-and-move",
    title="an affinity or a cpu file brings a channel to a CPU that goes offline, and the host is slow",
    source=_SOURCE,
    variants=_variants(
        lambda design, stays: _migrate_off(design, stays, moves=True), {"pick": (_HANGS,), "redirect": (_HANGS,)}
    ),
    left_out="a host or a device that goes on before the guest waits",
)
