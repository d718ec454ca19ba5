"""Registers that belong to no other room: identity, hypercall page, reset, crash, what is only read (synic.md 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbusirq.hyperv.registers import Msr

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition

__all__ = ["serve_partition_registers"]


def serve_partition_registers(partition: Partition) -> None:
    """Put the rules of those registers in force."""
    serve = partition.registers.serve
    serve([Msr.VP_INDEX], lambda vcpu, _msr: vcpu.index, None)
    serve([Msr.TIME_REF_COUNT, Msr.VP_RUNTIME], lambda _vcpu, _msr: partition.clock.now, None)
