"""channels/<relid>/cpu of /sys/bus/vmbus: what moves with it; tests/fs/test_affinity_rows.py has what it takes."""

from __future__ import annotations

from errno import EINVAL, EIO

import pytest

from tests.fs.bus import channel_dir, default, show, small, store
from tests.fs.kernel import refused


def test_an_empty_write_never_gets_to_the_driver_and_a_long_one_in_part():
    """fs/sysfs/file.c and fs/kernfs/file.c: a store sees 1 to 4096 bytes; the driver's own answer to "" is EIO."""
    machine = small()
    assert 0 == store(machine, 9, "")
    assert 4096 == store(machine, 9, "3".ljust(5000))
    assert "3" == show(machine, 9, "cpu")
    with refused(EIO, "channel 9"):
        machine.vmbus.target_cpu_store(machine.vmbus.channels[9], b"")
    with refused(EINVAL):
        machine.vmbus.target_cpu_store(machine.vmbus.channels[9], b"9" * 100_000)


@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_moving_is_where_the_next_interrupt_is_counted(design):
    """The data plane follows: host target, guest's slot, tasklet on the new CPU."""
    machine = small(design)
    before = int(show(machine, 9, "interrupts"))
    store(machine, 9, "2\n")
    machine.settle()
    counts = None if design == "legacy" else machine.irq.counts[machine.vmbus.channels[9].irq].copy()
    machine.host.send(relid=9, packets=3)
    assert (9,) == machine.synic.flags_set(cpu=2)
    machine.settle()
    assert str(before + 1) == show(machine, 9, "interrupts")
    if counts is not None:
        now = machine.irq.counts[machine.vmbus.channels[9].irq]
        assert [0, 0, 1, 0, 0, 0] == (now - counts).tolist()


def test_the_write_is_a_write_to_smp_affinity_with_one_cpu():
    """RFC patch 10: irq_set_affinity(cpumask_of(cpu)); /proc/irq shows the same mask as asked for and effective."""
    machine = default()
    store(machine, 14, "6\n")
    here = f"/proc/irq/{machine.vmbus.channels[14].irq}"
    assert [b"40\n", b"6\n", b"40\n", b"6\n"] == [
        machine.fs.read(f"{here}/{name}")
        for name in ("smp_affinity", "smp_affinity_list", "effective_affinity", "effective_affinity_list")
    ]
    machine.fs.write(f"{here}/smp_affinity_list", "2\n")
    assert "2" == show(machine, 14, "cpu")
    assert b"14:2\n23:2\n" == machine.fs.read(f"{channel_dir(machine, 14)}/../../channel_vp_mapping")


def test_moves_keep_the_books_of_init_vp_index():
    """4.3: a performance channel's move changes which CPUs the next offers find taken, in both designs alike."""
    taken = []
    for design in ("rfc", "legacy"):
        machine = default(design)
        for relid, cpu in [(15, 7), (19, 7), (20, 1)]:
            store(machine, relid, str(cpu))
        taken.append([machine.attach("netvsc", relid).target_cpu for relid in range(100, 108)])
    assert taken[0] == taken[1]
