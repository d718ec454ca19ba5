"""There is one way to switch a SynIC: its registers (TLFS; synic.md 2)."""

from __future__ import annotations

from vmbusirq import Machine
from vmbusirq.hyperv.registers import Msr
from vmbusirq.hyperv.synic import Synic


def test_who_switches_a_synic_writes_its_registers() -> None:
    """So that what the guest reads is what signals go by, on a booted machine as well."""
    assert not {"enable", "disable"} & set(dir(Synic))
    machine = Machine(cpus=2)
    for control in (1, 0, 1):
        machine.vcpus[1].wrmsr(Msr.SCONTROL, control)
        in_force = machine.synic.registers(1)
        read = [machine.vcpus[1].rdmsr(msr) for msr in (Msr.SCONTROL, Msr.SIMP, Msr.SIEFP, Msr.SINT0 + 2)]
        assert read == [in_force.scontrol, in_force.simp, in_force.siefp, in_force.sint[2]]
