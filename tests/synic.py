"""The registers that a guest of VMBus sets, for rigs without a register file."""

from __future__ import annotations

from typing import Any

from vmbusirq._ffi import lib


def switch_synic(machine: Any, cpu: int, on: bool, arch: str = "x86") -> int:
    """Do what hv_synic_enable_regs and hv_synic_disable_regs do (drivers/hv/hv.c, v6.10); return 0."""
    sint = lib.VI_VECTOR_CALLBACK | lib.VI_SINT_AUTO_EOI if arch == "x86" else lib.VI_INTID_CALLBACK
    assert 0 == lib.vi_synic_set_sint(machine, cpu, lib.VI_SINT_VMBUS, sint if on else sint | lib.VI_SINT_MASKED)
    for set_register in (lib.vi_synic_set_simp, lib.vi_synic_set_siefp, lib.vi_synic_set_control):
        assert 0 == set_register(machine, cpu, on)
    return 0
