"""Limits and enumerations of the core under Python names; their values live in ``csrc/vmbusirq_api.h`` alone."""

from __future__ import annotations

from typing import Final

from vmbusirq._ffi import lib

CPUS_MAX: Final[int] = lib.VI_CPUS_MAX
RELID_MIN: Final[int] = lib.VI_RELID_MIN
RELID_MAX: Final[int] = lib.VI_RELID_MAX
RELIDS: Final[int] = lib.VI_RELIDS
SINTS: Final[int] = lib.VI_SINTS
SINT_FLAGS: Final[int] = lib.VI_SINT_FLAGS
SINT_VMBUS: Final[int] = lib.VI_SINT_VMBUS
MSG_PAYLOAD: Final[int] = lib.VI_MSG_PAYLOAD
IRQS_MAX: Final[int] = lib.VI_IRQS_MAX
