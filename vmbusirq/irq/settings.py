"""Bits of a descriptor and of a request, under the kernel's names; their values live in ``csrc/vmbusirq_api.h`` alone.

IRQ_* are settings (include/linux/irq.h), IRQD_* the state of irq_data, IRQS_* the core's own state
(kernel/irq/internals.h), IRQF_* the flags of a request (include/linux/interrupt.h), all v6.10.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from vmbusirq._ffi import lib

IRQ_LEVEL: Final[int] = lib.VI_IRQ_LEVEL
IRQ_PER_CPU: Final[int] = lib.VI_IRQ_PER_CPU
IRQ_NOPROBE: Final[int] = lib.VI_IRQ_NOPROBE
IRQ_NOREQUEST: Final[int] = lib.VI_IRQ_NOREQUEST
IRQ_NOAUTOEN: Final[int] = lib.VI_IRQ_NOAUTOEN
IRQ_NO_BALANCING: Final[int] = lib.VI_IRQ_NO_BALANCING
IRQ_MOVE_PCNTXT: Final[int] = lib.VI_IRQ_MOVE_PCNTXT
IRQ_NESTED_THREAD: Final[int] = lib.VI_IRQ_NESTED_THREAD
IRQ_NOTHREAD: Final[int] = lib.VI_IRQ_NOTHREAD
IRQ_PER_CPU_DEVID: Final[int] = lib.VI_IRQ_PER_CPU_DEVID
IRQ_IS_POLLED: Final[int] = lib.VI_IRQ_IS_POLLED
IRQ_DISABLE_UNLAZY: Final[int] = lib.VI_IRQ_DISABLE_UNLAZY
IRQ_HIDDEN: Final[int] = lib.VI_IRQ_HIDDEN
IRQ_NO_DEBUG: Final[int] = lib.VI_IRQ_NO_DEBUG

IRQD_TRIGGER_MASK: Final[int] = lib.VI_IRQD_TRIGGER_MASK
IRQD_SETAFFINITY_PENDING: Final[int] = lib.VI_IRQD_SETAFFINITY_PENDING
IRQD_ACTIVATED: Final[int] = lib.VI_IRQD_ACTIVATED
IRQD_NO_BALANCING: Final[int] = lib.VI_IRQD_NO_BALANCING
IRQD_PER_CPU: Final[int] = lib.VI_IRQD_PER_CPU
IRQD_AFFINITY_SET: Final[int] = lib.VI_IRQD_AFFINITY_SET
IRQD_LEVEL: Final[int] = lib.VI_IRQD_LEVEL
IRQD_MOVE_PCNTXT: Final[int] = lib.VI_IRQD_MOVE_PCNTXT
IRQD_IRQ_DISABLED: Final[int] = lib.VI_IRQD_DISABLED
IRQD_IRQ_MASKED: Final[int] = lib.VI_IRQD_MASKED
IRQD_IRQ_INPROGRESS: Final[int] = lib.VI_IRQD_INPROGRESS
IRQD_AFFINITY_MANAGED: Final[int] = lib.VI_IRQD_MANAGED
IRQD_IRQ_STARTED: Final[int] = lib.VI_IRQD_STARTED
IRQD_MANAGED_SHUTDOWN: Final[int] = lib.VI_IRQD_MANAGED_SHUTDOWN
IRQD_SINGLE_TARGET: Final[int] = lib.VI_IRQD_SINGLE_TARGET
IRQD_DEFAULT_TRIGGER_SET: Final[int] = lib.VI_IRQD_DEFAULT_TRIGGER_SET
IRQD_AFFINITY_ON_ACTIVATE: Final[int] = lib.VI_IRQD_AFFINITY_ON_ACTIVATE

IRQS_AUTODETECT: Final[int] = lib.VI_IRQS_AUTODETECT
IRQS_SPURIOUS_DISABLED: Final[int] = lib.VI_IRQS_SPURIOUS_DISABLED
IRQS_ONESHOT: Final[int] = lib.VI_IRQS_ONESHOT
IRQS_REPLAY: Final[int] = lib.VI_IRQS_REPLAY
IRQS_WAITING: Final[int] = lib.VI_IRQS_WAITING
IRQS_PENDING: Final[int] = lib.VI_IRQS_PENDING
IRQS_SUSPENDED: Final[int] = lib.VI_IRQS_SUSPENDED
IRQS_SYSFS: Final[int] = lib.VI_IRQS_SYSFS

IRQF_TRIGGER_RISING: Final[int] = lib.VI_IRQF_TRIGGER_RISING
IRQF_TRIGGER_FALLING: Final[int] = lib.VI_IRQF_TRIGGER_FALLING
IRQF_TRIGGER_HIGH: Final[int] = lib.VI_IRQF_TRIGGER_HIGH
IRQF_TRIGGER_LOW: Final[int] = lib.VI_IRQF_TRIGGER_LOW
IRQF_TRIGGER_MASK: Final[int] = lib.VI_IRQF_TRIGGER_MASK
IRQF_SHARED: Final[int] = lib.VI_IRQF_SHARED
IRQF_PROBE_SHARED: Final[int] = lib.VI_IRQF_PROBE_SHARED
IRQF_TIMER: Final[int] = lib.VI_IRQF_TIMER
IRQF_PERCPU: Final[int] = lib.VI_IRQF_PERCPU
IRQF_NOBALANCING: Final[int] = lib.VI_IRQF_NOBALANCING
IRQF_IRQPOLL: Final[int] = lib.VI_IRQF_IRQPOLL
IRQF_ONESHOT: Final[int] = lib.VI_IRQF_ONESHOT
IRQF_NO_SUSPEND: Final[int] = lib.VI_IRQF_NO_SUSPEND
IRQF_NO_THREAD: Final[int] = lib.VI_IRQF_NO_THREAD
IRQF_COND_SUSPEND: Final[int] = lib.VI_IRQF_COND_SUSPEND
IRQF_NO_AUTOEN: Final[int] = lib.VI_IRQF_NO_AUTOEN
IRQF_NO_DEBUG: Final[int] = lib.VI_IRQF_NO_DEBUG
IRQF_COND_ONESHOT: Final[int] = lib.VI_IRQF_COND_ONESHOT

IRQ_TYPE_NONE: Final = 0
IRQ_TYPE_LEVEL_MASK: Final[int] = IRQF_TRIGGER_HIGH | IRQF_TRIGGER_LOW
IRQ_NOTCONNECTED: Final = 1 << 31

IRQ_NONE: Final[int] = lib.VI_IRQ_NONE
IRQ_HANDLED: Final[int] = lib.VI_IRQ_HANDLED
IRQ_WAKE_THREAD: Final[int] = lib.VI_IRQ_WAKE_THREAD

IRQ_SET_MASK_OK: Final = 0
IRQ_SET_MASK_OK_NOCOPY: Final = 1
IRQ_SET_MASK_OK_DONE: Final = 2

NUMA_NO_NODE: Final = -1


class Flow(IntEnum):
    """Flow handlers (kernel/irq/chip.c v6.10; the last two are RFC patch 06 and its review)."""

    BAD = lib.VI_FLOW_BAD
    SIMPLE = lib.VI_FLOW_SIMPLE
    UNTRACKED = lib.VI_FLOW_UNTRACKED
    EDGE = lib.VI_FLOW_EDGE
    LEVEL = lib.VI_FLOW_LEVEL
    FASTEOI = lib.VI_FLOW_FASTEOI
    PERCPU = lib.VI_FLOW_PERCPU
    PERCPU_DEVID = lib.VI_FLOW_PERCPU_DEVID
    PERCPU_DEMUX = lib.VI_FLOW_PERCPU_DEMUX
    PERCPU_NOSTAT = lib.VI_FLOW_PERCPU_NOSTAT
