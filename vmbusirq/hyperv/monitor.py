"""Monitored notification: the guest sets a bit in a page instead of making a hypercall (synic.md 8; vmbus.md 2.5).

The hypervisor looks at the guest-to-host page and signals a bit's connection within the bit's latency. The other
direction is optional; its page is known and not used.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.clock import Clock, Timer
from vmbusirq.hyperv.memory import HV_PAGE, GuestMemory

__all__ = ["GROUPS", "GROUP_BITS", "LATENCY", "PARAMETER", "PENDING", "TRIGGER_STATE", "MonitorPages"]

GROUPS: Final = 4
GROUP_BITS: Final = 32
TRIGGER_STATE: Final = 0  # offsets in the page: u32, bit g enables group g
PENDING: Final = 8  # of group g: a u32 at 8 * g, the armed bits follow it
LATENCY: Final = 0x240  # a u16 per monitor id
PARAMETER: Final = 0x440  # a u32 connection id, a u16 flag and two spare bytes per monitor id
_HEAD_WORDS: Final = PENDING // 4 + 2 * GROUPS


class MonitorPages:
    """The two monitor pages of a partition, if the guest has any.

    Args:
        clock: times the latencies.
        signal: what a bit that is due does, with its connection id and flag.
    """

    def __init__(self, clock: Clock, signal: Callable[[int, int], object]) -> None:
        self._clock = clock
        self._signal = signal
        self._memory: GuestMemory | None = None
        self._timers: dict[int, Timer] = {}
        self.h2g_gpa = 0
        self.g2h_gpa = 0

    def set_pages(self, memory: GuestMemory, h2g_gpa: int, g2h_gpa: int) -> None:
        """Look at these pages from now on; as :meth:`Partition.set_monitor_pages`."""
        for gpa in (h2g_gpa, g2h_gpa):
            if gpa % HV_PAGE:
                raise IrqError(errno.EINVAL, f"partition: no monitor page can be at {gpa:#x}: not a page (EINVAL)")
            memory.address(gpa // HV_PAGE)
        self.forget()
        self.h2g_gpa, self.g2h_gpa = h2g_gpa, g2h_gpa
        self._memory = memory if g2h_gpa else None

    def forget(self) -> None:
        """Look at no page; what was pending is not signalled."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.h2g_gpa = self.g2h_gpa = 0
        self._memory = None

    def poll(self) -> bool:
        """Look at the page once; return True if a bit was signalled at once. Others are when their latency is over."""
        if self._memory is None:
            return False
        page = self._page(self._memory)
        head = ffi.unpack(page, _HEAD_WORDS)
        moved = False
        for group in range(GROUPS):
            pending = head[PENDING // 4 + 2 * group]
            if pending and head[TRIGGER_STATE // 4] >> group & 1:
                moved |= self._start(page, group, pending)
        return moved

    def _page(self, memory: GuestMemory) -> Any:
        return ffi.cast("uint32_t *", memory.address(self.g2h_gpa // HV_PAGE))  # says so if memory was closed

    def _start(self, page: Any, group: int, pending: int) -> bool:
        moved = False
        while pending:
            bit = pending & -pending
            pending ^= bit
            monitor_id = group * GROUP_BITS + bit.bit_length() - 1
            if monitor_id in self._timers:
                continue
            latency = int(ffi.cast("uint16_t *", page)[LATENCY // 2 + monitor_id])
            if latency:
                self._timers[monitor_id] = self._clock.call_at(
                    self._clock.now + latency, partial(self._due, monitor_id)
                )
            else:
                moved |= self._due(monitor_id)
        return moved

    def _due(self, monitor_id: int) -> bool:
        self._timers.pop(monitor_id, None)
        assert self._memory is not None  # forget() cancels
        page = self._page(self._memory)
        group, number = divmod(monitor_id, GROUP_BITS)
        if not page[TRIGGER_STATE // 4] >> group & 1:
            return False  # it was disabled meanwhile: the bit stays
        if not lib.vi_monitor_take(page + PENDING // 4 + 2 * group, 1 << number):
            return False  # the guest has taken it back
        parameter = page + PARAMETER // 4 + 2 * monitor_id
        self._signal(int(parameter[0]), int(parameter[1]) & 0xFFFF)
        return True
