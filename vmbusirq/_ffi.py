"""The one door to the compiled core: ``ffi``, ``lib`` and nothing else."""

from __future__ import annotations

from vmbusirq._core import ffi, lib

__all__ = ["ffi", "lib"]
