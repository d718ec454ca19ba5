"""The guest's clocksources, and which of them it uses (kernel/time/clocksource.c, drivers/clocksource/hyperv_timer.c).

Linux v6.10. A clocksource of a Hyper-V guest is the TSC, the reference TSC page, the reference counter's MSR, or the
ACPI PM timer; on arm64 it is the architected counter.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmbusirq.core import TICKS_PER_S
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.cpuid import Feature
from vmbusirq.hyperv.refclock import read_tsc_page
from vmbusirq.hyperv.registers import Msr

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition

__all__ = ["Clocksource", "Clocksources"]

NAME_MAX: Final = 32
"""CS_NAME_LEN."""
PM_TIMER_HZ: Final = 3_579_545
ARCH_COUNTER_HZ: Final = 25_000_000  # what CNTFRQ_EL0 says here
_BOOT_CPU: Final = 0


@dataclass(frozen=True, slots=True)
class Clocksource:
    """A counter that the guest may keep time by.

    Attributes:
        name: as in sysfs.
        rating: the highest is used, unless somebody has chosen another.
        hz: of the counter.
        read: returns it.
    """

    name: str
    rating: int
    hz: int
    read: Callable[[], int]


class Clocksources:
    """Those of one guest, best first.

    Attributes:
        current: the one in use.
    """

    def __init__(self, partition: Partition) -> None:
        self._hv = partition
        self._override = ""
        self._page: int | None = None
        self._registered: list[Clocksource] = []
        for source in self._arm64() if partition.core.arch == "arm64" else self._x86():
            self._register(source)
        self.current = self._registered[0]

    @property
    def available(self) -> tuple[Clocksource, ...]:
        """All that are registered, by rating."""
        return tuple(self._registered)

    def reference_time(self) -> int:
        """Return Hyper-V's reference time as the guest reads it for its timers: by the page, once it has enabled it.

        The page is a page of guest memory; it is taken the first time that somebody wants to know.
        """
        if not self._has(Feature.REFERENCE_TSC):
            return self._read_msr()
        if not self._hv.refclock.enabled:
            vcpu = self._hv.vcpus[_BOOT_CPU]
            if self._page is None:
                self._page = self._hv.memory.alloc(1)
            vcpu.wrmsr(Msr.REFERENCE_TSC, (vcpu.rdmsr(Msr.REFERENCE_TSC) & 0xFFE) | self._page << 12 | 1)
        return read_tsc_page(self._hv.refclock)

    def choose(self, name: str) -> None:
        """Prefer a clocksource; where there is none of that name, the best one is used (clocksource_select)."""
        self._override = name
        self._select(self._registered)

    def unbind(self, name: str) -> None:
        """Take a clocksource away. ENODEV: there is none; EBUSY: it is in use and nothing can replace it."""
        source = next((source for source in self._registered if source.name == name), None)
        if source is None:
            known = " ".join(source.name for source in self._registered)
            raise IrqError(errno.ENODEV, f"clocksource: there is no {name!r} (ENODEV); there is: {known}")
        others = [other for other in self._registered if other is not source]
        if source is self.current:
            if not others:
                raise IrqError(errno.EBUSY, f"clocksource: {name} is in use, and the only one (EBUSY)")
            self._select(others)
        self._registered = others

    def _select(self, among: list[Clocksource]) -> None:
        chosen = [source for source in among if source.name == self._override]
        self.current = (chosen or among)[0]

    def _register(self, source: Clocksource) -> None:
        """Keep the list by rating; among equals the earlier comes first."""
        self._registered.append(source)
        self._registered.sort(key=lambda each: -each.rating)

    def _x86(self) -> list[Clocksource]:
        invariant = self._has(Feature.TSC_INVARIANT)
        rating = 250 if invariant else 500
        sources = []
        if self._has(Feature.REFERENCE_TSC):
            sources.append(Clocksource("hyperv_clocksource_tsc_page", rating, TICKS_PER_S, self.reference_time))
        if self._has(Feature.TIME_REF_COUNT):
            sources.append(Clocksource("hyperv_clocksource_msr", rating, TICKS_PER_S, self._read_msr))
        if invariant:  # else the guest marks its TSC unstable, and never registers it
            refclock = self._hv.refclock
            sources.append(Clocksource("tsc", 300, refclock.guest_hz, refclock.tsc))
        sources.append(Clocksource("acpi_pm", 200, PM_TIMER_HZ, lambda: self._counter(PM_TIMER_HZ) & 0xFF_FFFF))
        return sources

    def _arm64(self) -> list[Clocksource]:
        return [Clocksource("arch_sys_counter", 400, ARCH_COUNTER_HZ, lambda: self._counter(ARCH_COUNTER_HZ))]

    def _counter(self, hz: int) -> int:
        return self._hv.clock.now * hz // TICKS_PER_S

    def _read_msr(self) -> int:
        return self._hv.vcpus[_BOOT_CPU].rdmsr(Msr.TIME_REF_COUNT)

    def _has(self, feature: Feature) -> bool:
        return self._hv.features.has(feature)
