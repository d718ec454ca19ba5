"""The C renderer through its Python door: against the reference twin, live counters, levels, refusals, goldens."""

from __future__ import annotations

import errno
import threading
from array import array

import pytest
from hypothesis import given, settings

from tests.fs.tables import rfc_machine, tables
from tests.reference import interrupts as reference
from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.fs.rows import TRAILING, IrqText, RowText
from vmbusirq.fs.seq import SIMD_BEST, Counts, CpuRow, IpiRow, IrqRow, SeqRow, SeqTable, SingleRow, interrupts_table
from vmbusirq.generations import DEFAULT_GENERATION, GENERATIONS
from vmbusirq.lab.bench_render import simd_levels


def counts_of(values):
    return Counts.of(memoryview(array("I", values)))


def printable(row):
    """Return a row of the reference twin as one of the package."""
    match row:
        case reference.Irq():
            text = IrqText(row.chip, row.hwirq, row.level, row.flow, row.actions, row.chip_prints)
            return IrqRow(row.irq, text, counts_of(row.counts))
        case reference.Cpu():
            return CpuRow(row.label, row.text, counts_of(row.counts))
        case reference.Ipi():
            return IpiRow(row.number, row.text, counts_of(row.counts))
        case reference.Single():
            return SingleRow(row.label, row.value)


def laid_out(table):
    rows = [printable(row) for row in table.rows]
    generation = GENERATIONS[table.version]
    return interrupts_table(generation, table.prec, table.cpus, rows, chip_width=table.chip_width, live=False)


@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize("version", GENERATIONS)
def test_each_generation_prints_its_golden(version, arch, golden):
    """The twin writes the golden, the renderer must print it."""
    table = rfc_machine(version, arch)
    golden(f"interrupts-{version}-{arch}.txt", table.text())
    golden(f"interrupts-{version}-{arch}.txt", laid_out(table).render())


def test_a_large_guest_with_offline_cpus_prints_its_golden(golden):
    """Four digits from 1000 IRQ slots on; a column is headed by its CPU's own id."""
    table = rfc_machine("v6.10", "x86", cpus=(0, 2, 3, 64, 127), nr_irqs=1432)
    golden("interrupts-v6.10-x86-prec4-sparse.txt", table.text())
    golden("interrupts-v6.10-x86-prec4-sparse.txt", laid_out(table).render())


@given(tables())
@settings(max_examples=100)
def test_every_level_prints_what_the_twin_prints(table):
    """Scalar, AVX2 and AVX-512 alike (genirq.md 1 and 9)."""
    ours = laid_out(table)
    expected = table.text()
    assert len(expected) == ours.size
    for level in (*simd_levels().values(), SIMD_BEST):
        assert expected == ours.render(level)


def live_table(cpus, irqs, online):
    """Return counters as a machine keeps them, and the table over them."""
    counters = ffi.new("uint32_t[]", cpus * irqs)
    rows = [IrqRow(24 + i, IrqText("VMBus", i, actions=("netvsc",)), Counts(counters + i, irqs)) for i in range(irqs)]
    rows.append(SingleRow("ERR", Counts(counters + irqs - 1, 0)))
    return counters, interrupts_table(DEFAULT_GENERATION, 3, online, rows, owner=counters)


def test_live_counters_are_read_by_each_rendering():
    """The table is laid out once; only cells change, and only of CPUs that have a column."""
    counters, table = live_table(8, 40, [0, 2, 7])
    before = table.render()
    counters[7 * 40 + 3] = 4294967295
    counters[5 * 40 + 3] = 1  # CPU 5 is offline
    after = table.render()
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    row = after.splitlines(keepends=True)[4]
    assert b" 27:          0          0 4294967295     VMBus   3  netvsc\n" == row
    assert len(changed) == 10


@pytest.mark.parametrize("irqs", [1, 2, 3, 8, 9, 15, 16, 17, 33])
@pytest.mark.parametrize("online", [[0], [3], list(range(8)), list(range(15)), list(range(16)), list(range(1, 18))])
def test_blocks_of_rows_and_columns_fit_together(irqs, online):
    """Neighbouring rows are fetched sixteen by sixteen; every remainder must come out right."""
    cpus = 20
    counters, table = live_table(cpus, irqs, online)
    for cpu in range(cpus):
        for irq in range(irqs):
            counters[cpu * irqs + irq] = (cpu * 1000003 + irq * 10007) ** 2 % 2**32 if (cpu + irq) % 3 else 0
    rows = [
        reference.Irq(24 + i, [counters[c * irqs + i] for c in online], "VMBus", i, actions=("netvsc",))
        for i in range(irqs)
    ]
    rows.append(reference.Single("ERR", counters[irqs - 1]))
    expected = reference.render("v6.10", 3, online, rows)
    for level in simd_levels().values():
        assert expected == table.render(level)


def test_trailing_and_leading_cells():
    """A blank behind each number, or before it; softirqs and IPI rows need one each."""
    counts = counts_of([1, 2])
    leading = SeqTable([SeqRow(RowText(b"a:", b"\n"), 2, counts)])
    trailing = SeqTable([SeqRow(RowText(b"a:", b"\n", TRAILING), 2, counts)])
    assert b"a:          1          2\n" == leading.render()
    assert b"a:         1          2 \n" == trailing.render()


def test_an_empty_table_prints_nothing():
    """No rows, no bytes."""
    assert b"" == SeqTable([]).render()
    assert 0 == SeqTable([]).size


def test_rendering_into_a_buffer_of_the_callers():
    """Exactly size bytes; one less is ENOSPC and leaves the buffer alone."""
    _, table = live_table(2, 3, [0, 1])
    exact = bytearray(table.size)
    assert table.size == table.render_into(exact)
    assert table.render() == exact
    roomy = bytearray(b"#" * (table.size + 5))
    assert table.size == table.render_into(roomy)
    assert exact + b"#####" == roomy
    short = bytearray(b"#" * (table.size - 1))
    with pytest.raises(IrqError, match=r"see SeqTable\.size") as caught:
        table.render_into(short)
    assert errno.ENOSPC == caught.value.errno
    assert b"#" * (table.size - 1) == short


@pytest.mark.parametrize("level", [3, 254, 256])
def test_a_level_that_does_not_exist_is_refused(level):
    """EINVAL."""
    with pytest.raises(IrqError) as caught:
        SeqTable([]).render(level)
    assert errno.EINVAL == caught.value.errno


def test_cells_need_a_suffix_and_an_index():
    """EINVAL when the table is made, not when it is rendered."""
    for row, index in (
        (SeqRow(RowText(b"a:", b""), 1, counts_of([1])), None),
        (SeqRow(RowText(b"a:", b"\n"), 2, counts_of([1, 2])), [0]),
        (SeqRow(RowText(b"a:", b"\n"), lib.VI_SEQ_CELLS_MAX + 1, counts_of([1])), None),
    ):
        with pytest.raises(IrqError) as caught:
            SeqTable([row], index)
        assert errno.EINVAL == caught.value.errno


def test_the_peers_print_the_same_bytes():
    """What is measured against must do the same work."""
    counters, table = live_table(20, 40, list(range(3, 19)))
    for i in range(20 * 40):
        counters[i] = i**4 % 2**32
    for how in (lib.VI_SEQ_PRINTF, lib.VI_SEQ_PUT_DECIMAL):
        buffer = ffi.new("char[]", table.size)
        assert table.size == lib.vi_linux_seq_render(table.c_table, how, buffer, table.size)
        assert table.render() == bytes(ffi.buffer(buffer))


def test_one_table_may_be_rendered_by_several_threads():
    """Files are read by whoever opens them; cffi lets go of the GIL."""
    _, table = live_table(64, 64, list(range(64)))
    expected = table.render()
    wrong = []

    def read():
        wrong.extend(1 for _ in range(50) if table.render() != expected)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
