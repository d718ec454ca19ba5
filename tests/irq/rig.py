"""A genirq core over a C machine, with a controller that does as it is told, for the tests of this room."""

from __future__ import annotations

from tests.synic import switch_synic
from vmbusirq._ffi import ffi, lib
from vmbusirq.irq import Flow, Fwnode, IrqChip, IrqCore, IrqDomainOps, nop
from vmbusirq.irq.settings import IRQ_HANDLED, IRQ_MOVE_PCNTXT, IRQ_SET_MASK_OK

ENGINES = {"fast": lib.VI_ENGINE_FAST, "linux": lib.VI_ENGINE_LINUX}


def make_machine(nr_cpus=8, nr_irqs_max=2200, engine="fast", **config):
    """Return a C machine that lives as long as somebody holds it."""
    values = {
        "nr_cpus": nr_cpus,
        "nr_irqs_max": nr_irqs_max,
        "engine": ENGINES[engine],
        "simd": lib.VI_SIMD_BEST,
        "channel_irqs": 1,
    }
    config = ffi.new("struct vi_config *", values | config)
    out = ffi.new("struct vi_machine **")
    assert 0 == lib.vi_machine_create(config, out)
    return ffi.gc(out[0], lib.vi_machine_destroy)


class Rig:
    """A core, a chip, a domain whose map() sets that chip up, and a handler that remembers its calls."""

    def __init__(self, nr_cpus=8, nr_irqs=472, nr_irqs_max=2200, engine="fast", config=None, **options):
        self.machine = make_machine(nr_cpus, nr_irqs_max, engine, **(config or {}))
        self.core = IrqCore(
            self.machine,
            nr_cpus=nr_cpus,
            nr_irqs=nr_irqs,
            **{"dynirq_base": 24, "online": (1 << nr_cpus) - 1} | options,
        )
        self.calls = []
        self.affinity_calls = []
        self.affinity_result = IRQ_SET_MASK_OK
        self.result = IRQ_HANDLED
        self.chip = self.make_chip()
        self.domain = self.core.irq_domain_create_linear(
            Fwnode.named("hv-vmbus"), 2048, IrqDomainOps(map=self.map), demux=True
        )

    def make_chip(self, name="VMBus", **callbacks):
        """Return the chip of RFC patch 07, with other callbacks where given."""
        ops = {"irq_set_affinity": self.set_affinity, "irq_mask": nop, "irq_unmask": nop}
        return IrqChip(name, **ops | callbacks)

    def set_affinity(self, desc, mask, force):
        """Deliver to the first CPU of the mask, or do as the test says."""
        self.affinity_calls.append((desc.irq, mask, force))
        if isinstance(self.affinity_result, Exception):
            raise self.affinity_result
        desc.update_effective_affinity(mask & -mask)
        return self.affinity_result

    def map(self, domain, irq, hwirq):
        """ops.map of RFC patch 07 and 08."""
        self.core.set_chip_and_handler(irq, self.chip, Flow.SIMPLE)
        self.core.modify_status(irq, set_=IRQ_MOVE_PCNTXT)

    def handler(self, irq, dev_id):
        """Remember the call."""
        self.calls.append((irq, dev_id))
        return self.result

    def irq(self, hwirq=7):
        """Map a hwirq and return its descriptor."""
        return self.core.irq_to_desc(self.core.irq_create_mapping(self.domain, hwirq))

    def requested(self, hwirq=7, flags=0, name="heartbeat", dev_id="heartbeat", **chip):
        """Map and request a hwirq and return its descriptor."""
        if chip:
            self.chip = self.make_chip(**chip)
        desc = self.irq(hwirq)
        self.core.request_irq(desc.irq, self.handler, flags, name, dev_id)
        return desc

    def fire(self, desc, cpu=0, times=1):
        """Let the IRQ arrive on a CPU."""
        for _ in range(times):
            self.core.generic_handle_irq(desc.irq, cpu)

    def settle(self):
        """Run what is pending on every CPU: vectors, the resend tasklet."""
        lib.vi_machine_settle(self.machine)

    def signal(self, hwirq, cpu):
        """Let a host signal a channel and the CPU take it, through the flags and the scanner."""
        switch_synic(self.machine, cpu, True)
        assert lib.vi_synic_signal(self.machine, cpu, lib.VI_SINT_VMBUS, hwirq) >= 0
        self.settle()
