"""irq/desc: numbers, what a new descriptor holds, counts, the spurious file (genirq.md 2.12, 4.1, 4.2)."""

from __future__ import annotations

import errno
import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.irq.rig import Rig, make_machine
from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.generations import nr_irqs_at_boot
from vmbusirq.irq import NO_IRQ_CHIP, Flow, IrqCore, SpuriousStats
from vmbusirq.irq.settings import (
    IRQ_HANDLED,
    IRQ_LEVEL,
    IRQ_NO_BALANCING,
    IRQ_NONE,
    IRQ_PER_CPU,
    IRQD_IRQ_DISABLED,
    IRQD_IRQ_MASKED,
    IRQD_LEVEL,
    IRQD_NO_BALANCING,
    IRQD_PER_CPU,
)


@pytest.mark.parametrize(
    ("gsi_end", "legacy", "cpus", "nr_irqs"),
    [
        (24, 0, 2, 424),
        (24, 16, 8, 488),
        (24, 0, 8, 472),
        (24, 16, 71, 992),
        (24, 16, 72, 1000),
        (24, 0, 73, 992),
        (24, 0, 74, 1000),
        (24, 0, 128, 1432),
        (24, 0, 2048, 16792),
        (24, 0, 1, 256),
        (16, 0, 4, 80),
    ],
)
def test_nr_irqs_at_boot(gsi_end, legacy, cpus, nr_irqs):
    """arch/x86/kernel/apic/vector.c v6.10; genirq.md 1.1 (424 was observed on a real guest)."""
    assert nr_irqs == nr_irqs_at_boot("x86", cpus, gsi_top=gsi_end, legacy_irqs=legacy)


def test_new_descriptor_has_the_kernels_defaults():
    """kernel/irq/irqdesc.c v6.10, desc_set_defaults."""
    desc = Rig(online=0x7F).core
    irq = desc.alloc_descs()
    desc = desc.irq_to_desc(irq)
    assert (1, IRQD_IRQ_DISABLED | IRQD_IRQ_MASKED, 0, 0) == (desc.depth, desc.state, desc.settings, desc.istate)
    assert (0xFF, 0, 0, None) == (desc.affinity, desc.effective_affinity, desc.pending_mask, desc.affinity_hint)
    assert (NO_IRQ_CHIP, Flow.BAD, None, None, -1) == (desc.chip, desc.flow, desc.name, desc.domain, desc.node)
    assert (0, [0] * 8, [], False) == (desc.hwirq, desc.kstat_irqs(), desc.actions, desc.proc_dir)


def test_x86_numbers_start_at_the_end_of_the_gsi_space():
    """Trap 32: 24 is the first dynamic IRQ whatever the search starts from; then the lowest free one."""
    core = Rig(dynirq_base=24).core
    assert [24, 25, 26] == [core.alloc_descs(from_=start) for start in (1, 7, 2000)]
    core.free_descs(25)
    assert [25, 27] == [core.alloc_descs(), core.alloc_descs()]


def test_other_numbers_start_where_they_are_asked_to():
    """kernel/irq/irqdesc.c v6.10: without a lower bound `from` is obeyed."""
    core = Rig(dynirq_base=0).core
    assert [5, 6, 1] == [core.alloc_descs(from_=start) for start in (5, 5, 1)]


def test_a_run_of_numbers_is_the_lowest_that_fits():
    """kernel/irq/irqdesc.c v6.10, bitmap_find_next_zero_area: cnt consecutive free numbers."""
    core = Rig().core
    core.alloc_descs(26)
    core.alloc_descs(30)
    assert 27 == core.alloc_descs(cnt=3)
    assert 31 == core.alloc_descs(cnt=5)
    assert 24 == core.alloc_descs(cnt=2)
    assert list(range(24, 36)) == [desc.irq for desc in core]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12))
def test_runs_never_overlap(requests):
    """Every allocation is the lowest free run at or above where it starts."""
    core = Rig(nr_cpus=1, nr_irqs_max=256, dynirq_base=0).core
    taken = set()
    for start, cnt in requests:
        first = next(i for i in range(start, 256) if not taken & set(range(i, i + cnt)))
        assert first == core.alloc_descs(from_=start, cnt=cnt)
        taken |= set(range(first, first + cnt))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"irq": 9}, errno.EEXIST),
        ({"irq": 8, "cnt": 2}, errno.EEXIST),
        ({"irq": 3, "from_": 4}, errno.EINVAL),
        ({"cnt": 0}, errno.EINVAL),
        ({"cnt": -1}, errno.EINVAL),
        ({"affinity": 0}, errno.EINVAL),
        ({"affinity": 0x100}, errno.EINVAL),
        ({"irq": 500}, errno.ENOMEM),
        ({"irq": 499, "cnt": 2}, errno.ENOMEM),
    ],
)
def test_refused_allocations(arguments, expected):
    """kernel/irq/irqdesc.c v6.10, __irq_alloc_descs; the last descriptor of this machine is 499."""
    core = Rig(nr_irqs_max=500).core
    assert 9 == core.alloc_descs(9)
    with pytest.raises(IrqError) as caught:
        core.alloc_descs(**arguments)
    assert expected == caught.value.errno
    assert [9] == list(core.descs)


def test_nr_irqs_grows_with_the_highest_number_and_never_shrinks():
    """Trap 3: nr_irqs passes 472 with IRQ 472, and stays."""
    core = Rig(nr_irqs=472).core
    core.alloc_descs(471)
    assert 472 == core.nr_irqs
    core.alloc_descs(999)
    assert (1000, (1000, 8)) == (core.nr_irqs, core.counts.shape)
    core.free_descs(999)
    assert 1000 == core.nr_irqs


def test_2047_channels_reach_irq_2070():
    """Trap 3: one number after the other from 24."""
    rig = Rig(nr_cpus=1)
    irqs = [rig.core.irq_create_mapping(rig.domain, hwirq) for hwirq in range(1, 2048)]
    assert list(range(24, 2071)) == irqs
    assert 2071 == rig.core.nr_irqs


def test_unknown_numbers_are_refused_by_name():
    """design.md 7: what was asked, what is true."""
    core = Rig().core
    core.alloc_descs(cnt=3)
    with pytest.raises(IrqError, match=r"irq 99: no such irq; allocated: 24-26 \(EINVAL\)"):
        core.irq_to_desc(99)
    with pytest.raises(IrqError) as caught:
        core.generic_handle_irq(99, 0)
    assert errno.EINVAL == caught.value.errno


def test_a_freed_descriptor_answers_eio():
    """Trap 34: what is still open reads EIO once the descriptor is gone; a new one of that number starts anew."""
    rig = Rig()
    desc = rig.requested()
    rig.fire(desc, cpu=2)
    rig.core.free_irq(desc.irq, "heartbeat")
    rig.core.irq_dispose_mapping(desc.irq)
    assert desc.freed
    with pytest.raises(IrqError) as caught:
        desc.kstat_irqs()
    assert errno.EIO == caught.value.errno
    again = rig.irq()
    assert (desc.irq, [0] * 8, False) == (again.irq, again.kstat_irqs(), again.proc_dir)


def test_free_refuses_what_is_in_use():
    """Trap 31: an action or a mapping left behind is refused, not freed under its user."""
    rig = Rig()
    desc = rig.requested()
    for match in ("heartbeat still uses it; free_irq first", "hv-vmbus maps it"):
        with pytest.raises(IrqError, match=match) as caught:
            rig.core.free_descs(desc.irq)
        assert errno.EBUSY == caught.value.errno
        if desc.actions:
            rig.core.free_irq(desc.irq, "heartbeat")


def test_settings_carry_their_state_bits_along():
    """kernel/irq/chip.c v6.10, irq_modify_status: per-CPU, no-balancing and level follow."""
    core = Rig().core
    desc = core.irq_to_desc(core.alloc_descs())
    core.modify_status(desc.irq, set_=IRQ_PER_CPU | IRQ_NO_BALANCING | IRQ_LEVEL)
    follow = IRQD_PER_CPU | IRQD_NO_BALANCING | IRQD_LEVEL
    assert follow == desc.state & follow
    assert desc.is_per_cpu
    assert desc.is_level
    core.modify_status(desc.irq, clear=IRQ_PER_CPU | IRQ_NO_BALANCING | IRQ_LEVEL)
    assert 0 == desc.state & follow


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_counts_are_a_live_view(engine):
    """design.md 5: m.irq.counts, uint32, row i is IRQ i, column c is CPU c, read-only, no copy."""
    rig = Rig(engine=engine)
    desc = rig.requested()
    counts = rig.core.counts
    assert (np.uint32, (472, 8)) == (counts.dtype, counts.shape)
    rig.fire(desc, cpu=5, times=3)
    assert (3, 3, 3, 3) == (counts[desc.irq, 5], counts.sum(), desc.kstat_irqs_cpu(5), desc.tot_count)
    with pytest.raises(ValueError, match="read-only"):
        counts[0, 0] = 1


def test_counts_outlive_their_machine():
    """The view holds the memory that it looks at."""
    machine = make_machine(nr_cpus=2)
    counts = IrqCore(machine, nr_cpus=2, nr_irqs=64).counts
    del machine
    gc.collect()
    assert 0 == counts.sum()


def test_counts_wrap_at_32_bits():
    """Trap 11: u32 counters, and the sum over CPUs modulo 2**32 too."""
    rig = Rig()
    desc = rig.requested()
    desc.c.kstat_irqs[0] = 0xFFFF_FFFF
    rig.fire(desc, cpu=0)
    rig.fire(desc, cpu=1)
    assert [0, 1] == desc.kstat_irqs()[:2]
    desc.c.kstat_irqs[0] = 0xFFFF_FFFF
    assert 0 == desc.tot_count


def test_stat_slot_of_a_per_cpu_flow():
    """Trap 10, genirq.md 3.2: such a flow leaves tot_count alone; the sum shows only if the IRQ is marked per-CPU."""
    rig = Rig()
    desc = rig.requested()
    rig.core.set_chip_and_handler(desc.irq, rig.chip, Flow.PERCPU)
    rig.fire(desc, cpu=1, times=2)
    assert (2, 0) == (desc.kstat_irqs_cpu(1), desc.tot_count)
    rig.core.modify_status(desc.irq, set_=IRQ_PER_CPU)
    assert 2 == desc.tot_count


@pytest.mark.parametrize(
    ("time_ms", "shown"), [(1, 4294667297), (5824, 4294673120), (299_999, 4294967295), (300_000, 0), (300_001, 1)]
)
def test_spurious_time_is_jiffies_not_uptime(time_ms, shown):
    """Trap 37: jiffies start at -300 s and wrap at 32 bits; 5.824 s was seen as 4294673120."""
    rig = Rig()
    desc = rig.requested()
    assert SpuriousStats(0, 0, 0) == desc.spurious
    rig.result = IRQ_NONE
    lib.vi_machine_set_time(rig.machine, time_ms)
    rig.fire(desc)
    assert SpuriousStats(1, 1, shown) == desc.spurious


def test_spurious_counts_run_only_once_something_was_unhandled():
    """Trap 37, kernel/irq/spurious.c v6.10: 0 for ever while handled; 100 ms later unhandled starts at 1 again."""
    rig = Rig()
    desc = rig.requested()
    rig.fire(desc, times=5)
    assert (0, 0) == (desc.irq_count, desc.irqs_unhandled)
    for result, time_ms in [(IRQ_NONE, 500), (IRQ_NONE, 600), (IRQ_HANDLED, 650), (IRQ_NONE, 701)]:
        rig.result = result
        lib.vi_machine_set_time(rig.machine, time_ms)
        rig.fire(desc)
    assert (4, 1) == (desc.irq_count, desc.irqs_unhandled)
    rig.core.free_irq(desc.irq, "heartbeat")
    assert (4, 1) == (desc.irq_count, desc.irqs_unhandled)
    rig.core.request_irq(desc.irq, rig.handler, 0, "heartbeat", "heartbeat")
    assert SpuriousStats(0, 0, (701 - 300_000) % 2**32) == desc.spurious
