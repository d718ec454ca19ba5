"""The rendering benchmark: its workloads, its bars, and that contenders that print other bytes are caught."""

from __future__ import annotations

import pytest

from vmbusirq._ffi import lib
from vmbusirq.errors import MachineBug
from vmbusirq.lab import bench_render
from vmbusirq.lab.bench_render import DENSE, SMALL, SPARSE, Workload, simd_levels

TINY = Workload(5, 3, True)


def test_workloads_are_those_of_the_targets():
    """performance.md 7: P1 to P5."""
    assert ["45x8 sparse", "300x96 sparse", "300x96 dense"] == [work.name for work in (SMALL, SPARSE, DENSE)]


def test_levels_are_named_narrowest_first():
    """Scalar is always there."""
    levels = simd_levels()
    assert "scalar" == next(iter(levels))
    assert list(levels.values()) == sorted(levels.values())


def test_cells_are_dense_or_one_per_row():
    """Dense cells have one to ten digits, a sparse row one cell that is not zero."""
    dense = bench_render._Table(Workload(40, 16, True), seed=1).values
    assert {1, 10} <= {len(str(cell)) for row in dense for cell in row}
    sparse = bench_render._Table(Workload(40, 16, False), seed=1).values
    assert {1} == {sum(cell != 0 for cell in row) for row in sparse}
    assert sparse == bench_render._Table(Workload(40, 16, False), seed=1).values


def test_a_row_per_bar_and_level(monkeypatch):
    """Every row names its peer; P1 is told for narrower vectors too, without a bar."""
    small = {"SPARSE": Workload(6, 4, False), "DENSE": Workload(6, 4, True), "SMALL": Workload(3, 2, False)}
    bars = {}
    for (id_, work), value in bench_render._BARS.items():
        for name, other in small.items():
            if work == getattr(bench_render, name):
                bars[id_, other] = value
    monkeypatch.setattr(bench_render, "_BARS", bars)
    monkeypatch.setattr(bench_render, "SAMPLE_NS", 1)
    for name, other in small.items():
        monkeypatch.setattr(bench_render, name, other)
    steps = []
    rows = bench_render.bench_render(rounds=3, progress=lambda done, total, what: steps.append((done, total, what)))
    barred = [(row.id, row.workload, row.peer) for row in rows if row.bar is not None]
    expected = [
        ("P1", "6x4 sparse", "seq_put_decimal"),
        ("P1", "6x4 dense", "seq_put_decimal"),
        ("P2", "6x4 sparse", "seq_printf"),
        ("P2", "6x4 dense", "seq_printf"),
        ("P4", "6x4 sparse", "% per row"),
        ("P4", "3x2 sparse", "% per row"),
    ]
    if "avx2" in simd_levels():
        expected.append(("P5", "6x4 dense", "% per row"))
    assert expected == barred
    assert 2 * (len(simd_levels()) - 1) == len(rows) - len(barred)
    assert all(row.ours_ns > 0 and row.ratio == row.ours_ns / row.peer_ns for row in rows)
    assert [(0, 3, "6x4 sparse"), (1, 3, "6x4 dense"), (2, 3, "3x2 sparse")] == steps


def test_other_bytes_are_a_bug():
    """Speed of a wrong text is no figure."""
    table = bench_render._Table(TINY, seed=0)
    table.expected = table.expected[:-1] + b"!"
    with pytest.raises(MachineBug):
        bench_render._c_sample(table, lib.VI_SEQ_OURS, lib.VI_SIMD_BEST)
    with pytest.raises(MachineBug):
        bench_render._python_sample(table, table.table.render, bytes)
