"""Interrupt redirection, bullet by bullet (genirq.md 10): csrc/irq/redirect.c."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.rig import ENGINES, Channel, Rig, chip_ops
from vmbusirq import DESIGNS, Machine
from vmbusirq._ffi import ffi, lib
from vmbusirq.designs import OfflinePolicy


@pytest.fixture(params=ENGINES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Three CPUs; channel 5, IRQ 29, may run on CPU 1 alone."""
    with Rig(request.param, cpus=3, redirect=True) as made:
        aim(made, made.channel(5), 0b010)
        yield made


def aim(rig: Rig, channel: Channel, mask: int) -> None:
    words = ffi.new("uint64_t[]", [mask] + [0] * (lib.VI_CPU_WORDS - 1))
    assert 0 == lib.vi_irq_set_effective(rig.m, channel.irq, words, (mask & -mask).bit_length() - 1)


def row(rig: Rig, which: int) -> list[int]:
    return [int(rig.counters.arch[cpu * lib.VI_ARCH_STRIDE + which]) for cpu in range(rig.cpus)]


def counts(rig: Rig, irq: int = 29) -> list[int]:
    return [rig.cnt(irq, cpu) for cpu in range(rig.cpus)]


# ---- a new entry point that a demux handler calls; false if the lookup fails


def test_the_entry_fails_where_nothing_is_mapped(rig: Rig) -> None:
    """(domain, hwirq) instead of the ordinary domain call."""
    assert -errno.EINVAL == lib.vi_generic_handle_demux_domain_irq(rig.m, 0, 6)
    assert -errno.EINVAL == lib.vi_generic_handle_demux_domain_irq(rig.m, 3, 5)
    assert -errno.EINVAL == lib.vi_generic_handle_demux_domain_irq(rig.m, 0, lib.VI_DOMAIN_SIZE)
    assert 0 == lib.vi_generic_handle_demux_domain_irq(rig.m, 1, 5)
    assert [0, 1, 0] == counts(rig)


# ---- under desc->lock it looks at the effective mask


@pytest.mark.parametrize("mask", [0b010, 0b011, 0b110])
def test_on_a_cpu_of_the_effective_mask_the_flow_handler_runs_at_once(rig: Rig, mask: int) -> None:
    """Whether or not it is the target: CPU 1 is the second of 0b011."""
    aim(rig, rig.channels[5], mask)
    rig.signal(5, cpu=1)
    assert 1 == rig.run(1)
    assert [0, 1, 0] == counts(rig)
    assert [0, 0, 0] == row(rig, lib.VI_ROW_IWI)


def test_elsewhere_a_work_is_queued_on_the_target_and_the_parent_goes_on(rig: Rig) -> None:
    """The other flags of the same scan are served where they are; the child runs on CPU 1, in a hard interrupt."""
    aim(rig, rig.channel(9), 0b001)
    rig.signal(5)
    rig.signal(9)
    assert 1 == rig.run(0)
    assert ([0, 0, 0], [1, 0, 0]) == (counts(rig), counts(rig, 33))
    assert (1, 1) == (lib.vi_irq_work_pending(rig.m, 29), lib.vi_vcpu_pending(rig.m, 1))
    assert [] == rig.flags()  # claimed on the old CPU
    assert 1 == rig.run(1)
    assert ([0, 1, 0], 0) == (counts(rig), lib.vi_irq_work_pending(rig.m, 29))
    assert [0, 1, 0] == row(rig, lib.VI_ROW_IWI)
    assert 1 == rig.channels[5].calls[0]
    assert {} == rig.lost()


def test_without_action_nothing_is_queued_and_the_event_is_dropped(rig: Rig) -> None:
    """It is not even remembered, as an arrival on a CPU of the mask is."""
    channel = rig.channels[5]
    action = channel.action
    assert action is not None
    rig.free(action)
    rig.signal(5)
    assert 1 == rig.settle()
    assert {"no_action": 1} == rig.lost()
    rig.add(action)
    rig.settle()
    assert [0, 0, 0] == counts(rig)
    rig.free(action)
    rig.signal(5, cpu=1)
    rig.settle()
    rig.add(action)
    rig.settle()
    assert 1 == sum(counts(rig))  # by the resend tasklet
    assert {"no_action": 1} == rig.lost()


# ---- the irq_work runs the ordinary flow handler, on the target


def test_a_disabled_irq_remembers_on_the_target(rig: Rig) -> None:
    """Rules are those of the flow handler: PENDING, and a replay at the enable."""
    assert 1 == lib.vi_irq_disable(rig.m, 29)
    rig.signal(5)
    rig.settle()
    assert ([0, 0, 0], [0, 1, 0]) == (counts(rig), row(rig, lib.VI_ROW_IWI))
    assert 0 == lib.vi_irq_enable(rig.m, 29)
    rig.settle()
    assert 1 == sum(counts(rig))


def test_in_progress_rules_are_those_of_the_engine(rig: Rig) -> None:
    """A work on CPU 1 while the handler runs on CPU 0: v6.10's simple flow drops it, the fast engine replays it."""
    ran: list[int] = []
    rig.alloc(40, hwirq=16)

    def handler(cpu: int) -> int:
        ran.append(cpu)
        if len(ran) == 1:
            words = ffi.new("uint64_t[]", [0b010] + [0] * (lib.VI_CPU_WORDS - 1))
            assert 0 == lib.vi_irq_set_effective(rig.m, 40, words, 1)
            assert 0 == lib.vi_generic_handle_demux_domain_irq(rig.m, 2, 16)
            assert 1 == rig.run(1)
        return int(lib.VI_IRQ_HANDLED)

    rig.request(40, handler)
    assert 0 == lib.vi_irq_set_effective(rig.m, 40, ffi.new("uint64_t[]", [1] + [0] * (lib.VI_CPU_WORDS - 1)), 0)
    rig.signal(16)
    rig.settle()
    assert ([0] if rig.engine == "linux" else [0, 0]) == ran
    assert ({"in_progress": 1} if rig.engine == "linux" else {}) == rig.lost()
    assert [0, 1, 0] == row(rig, lib.VI_ROW_IWI)


def test_unhandled_interrupts_are_accounted_on_the_target(rig: Rig) -> None:
    """Spurious accounting is the flow handler's."""
    rig.alloc(40, hwirq=16)
    rig.request(40, int(lib.VI_IRQ_NONE))
    assert 0 == lib.vi_irq_set_effective(rig.m, 40, ffi.new("uint64_t[]", [4] + [0] * (lib.VI_CPU_WORDS - 1)), 2)
    rig.signal(16)
    rig.settle()
    assert 1 == rig.c(40).irqs_unhandled
    assert [0, 0, 1] == counts(rig, 40)


def test_a_target_with_interrupts_off_takes_its_works_later(rig: Rig) -> None:
    """The work is a hard one: it waits for the vector."""
    assert 0 == lib.vi_lapic_hold(rig.m, 1, 1)
    rig.signal(5)
    rig.settle()
    assert ([0, 0, 0], 1) == (counts(rig), lib.vi_irq_work_pending(rig.m, 29))
    assert 0 == lib.vi_lapic_hold(rig.m, 1, 0)
    rig.settle()
    assert [0, 1, 0] == counts(rig)


# ---- works do not nest


def test_works_of_one_irq_merge_while_they_wait(rig: Rig) -> None:
    """Queued again while still pending is one run, from whatever CPU."""
    for cpu in (0, 2, 0):
        rig.signal(5, cpu=cpu)
        assert 1 == rig.run(cpu)
    rig.settle()
    assert ([0, 1, 0], [0, 1, 0]) == (counts(rig), row(rig, lib.VI_ROW_IWI))


def test_a_work_that_waits_stays_where_it_was_queued(rig: Rig) -> None:
    """The new target is that of the next event."""
    rig.signal(5)
    rig.run(0)
    aim(rig, rig.channels[5], 0b100)
    rig.signal(5)
    rig.run(0)
    rig.settle()
    assert [0, 1, 0] == counts(rig)
    rig.signal(5)
    rig.settle()
    assert [0, 1, 1] == counts(rig)


def test_an_event_after_the_work_has_begun_is_another_run(rig: Rig) -> None:
    """PENDING is cleared before the flow handler runs."""
    ran: list[int] = []
    rig.alloc(40, hwirq=16)

    def handler(cpu: int) -> int:
        ran.append(cpu)
        if len(ran) == 1:
            assert 0 == lib.vi_generic_handle_demux_domain_irq(rig.m, 2, 16)
            assert 1 == lib.vi_irq_work_pending(rig.m, 40)
        return int(lib.VI_IRQ_HANDLED)

    rig.request(40, handler)
    assert 0 == lib.vi_irq_set_effective(rig.m, 40, ffi.new("uint64_t[]", [2] + [0] * (lib.VI_CPU_WORDS - 1)), 1)
    rig.signal(16)
    rig.settle()
    assert [1, 1] == ran
    assert [0, 2, 0] == row(rig, lib.VI_ROW_IWI)


def test_works_that_wait_together_share_an_interrupt(rig: Rig) -> None:
    """The vector is one bit of the IRR: two works, one IWI."""
    aim(rig, rig.channel(9), 0b010)
    rig.signal(5)
    rig.signal(9)
    rig.settle()
    assert (1, 1) == (rig.cnt(29, 1), rig.cnt(33, 1))
    assert [0, 1, 0] == row(rig, lib.VI_ROW_IWI)


def test_softirqs_of_a_work_run_on_the_target(rig: Rig) -> None:
    """The tasklet of mode DIRECT."""
    aim(rig, rig.channel(9, mode=lib.VI_CALL_DIRECT), 0b100)
    rig.signal(9)
    rig.settle()
    assert [0, 0, 1] == [rig.softirq(lib.VI_SOFTIRQ_TASKLET, cpu) for cpu in range(3)]
    assert 1 == rig.channels[9].calls[0]


# ---- a CPU goes, a descriptor goes


def test_a_cpu_on_its_way_out_runs_what_is_queued_on_it(rig: Rig) -> None:
    """Without the interrupt; works that they queue in turn as well."""
    aim(rig, rig.channel(9, mode=lib.VI_CALL_DIRECT), 0b010)
    rig.signal(5)
    rig.signal(9)
    rig.run(0)
    assert 2 == lib.vi_irq_work_flush(rig.m, 1)
    assert (1, 1) == (rig.cnt(29, 1), rig.cnt(33, 1))
    assert ([0, 0, 0], 1) == (row(rig, lib.VI_ROW_IWI), rig.softirq(lib.VI_SOFTIRQ_TASKLET, 1))
    assert (0, 0) == (lib.vi_irq_work_flush(rig.m, 1), lib.vi_vcpu_pending(rig.m, 1))
    assert -errno.EINVAL == lib.vi_irq_work_flush(rig.m, 3)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_descriptor_that_is_freed_leaves_the_list(rig: Rig, first: int) -> None:
    """Wherever it is in it; the others run."""
    actions = {}
    for irq in (40, 41, 42):
        rig.alloc(irq, hwirq=irq)
        actions[irq] = rig.request(irq, int(lib.VI_IRQ_HANDLED))
        words = ffi.new("uint64_t[]", [2] + [0] * (lib.VI_CPU_WORDS - 1))
        assert 0 == lib.vi_irq_set_effective(rig.m, irq, words, 1)
        rig.signal(irq)
    rig.run(0)
    gone = 40 + first
    rig.free(actions[gone])
    assert 0 == lib.vi_irq_free_desc(rig.m, gone)
    del rig.descs[gone]
    rig.alloc(gone, ops=chip_ops("mask"))
    rig.settle()
    assert [irq != gone for irq in (40, 41, 42)] == [rig.cnt(irq, 1) == 1 for irq in (40, 41, 42)]
    assert 0 == lib.vi_vcpu_pending(rig.m, 1)


def test_only_channels_with_irqs_can_be_redirected() -> None:
    """There is no descriptor to look at otherwise."""
    config = ffi.new("struct vi_config *", {"nr_cpus": 1, "nr_irqs_max": 1, "redirect": 1})
    assert -errno.EINVAL == lib.vi_machine_create(config, ffi.new("struct vi_machine **"))


# ---- who counts


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_the_parent_counts_where_it_was_taken_and_the_ipi_on_the_target(arch: str, engine: str) -> None:
    """x86: HYP and IWI; arm64: the PPI and IPI5. The totals have each of them once."""
    design = replace(DESIGNS["mgmt-irq"], name="seen", offline_policy=OfflinePolicy.REDIRECT)
    machine = Machine(4, arch=arch, design=design, engine=engine)
    disk = machine.attach("scsi", 1, scsi_host=0)
    machine.irq.irq_set_affinity(disk.irq, 0b100)
    machine.settle()
    before, total = rows(machine), total_of(machine)
    assert machine.synic.signal(1, 1)
    machine.settle()
    moved = {name: [b - a for a, b in zip(before[name], now, strict=True)] for name, now in rows(machine).items()}
    top, work = ("HYP", "IWI") if arch == "x86" else ("Hyper-V VMbus", "IPI5")
    assert [0, 1, 0, 0] == moved.pop(top)
    assert [0, 0, 1, 0] == moved.pop(work) == moved.pop("pri@storvsc0")
    assert {0} == {count for counts in moved.values() for count in counts}
    assert 3 == total_of(machine) - total


def rows(machine: Machine) -> dict[str, list[int]]:
    table = {}
    for line in machine.fs.read("/proc/interrupts").decode().splitlines()[1:]:
        label, _, rest = line.partition(":")
        fields = rest.split()
        if len(fields) >= 4 and all(field.isdigit() for field in fields[:4]):
            name = rest.split("  ")[-1].strip() if label.strip().isdigit() else label.strip()
            table[name] = [int(field) for field in fields[:4]]
    return table


def total_of(machine: Machine) -> int:
    line = next(line for line in machine.fs.read("/proc/stat").splitlines() if line.startswith(b"intr "))
    return int(line.split()[1])
