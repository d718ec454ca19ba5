"""The demux benchmark: every contender counts right, every row of the targets is there, twins cost what they should."""

from __future__ import annotations

import errno
import json

import pytest

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, MachineBug
from vmbusirq.lab import bench_demux as room
from vmbusirq.lab.bench import timing
from vmbusirq.lab.bench_demux import PEERS, Workload, bench_demux, simd_levels
from vmbusirq.lab.instructions import PENDING, count_instructions

QUICK = {"rounds": 2, "instances": 1, "attempts": 1, "sample_ns": 2_000}
CONTENDERS = {name: (kind, 0) for name, kind in PEERS.items()} | {
    name: (lib.VI_DEMUX_OURS, level) for name, level in simd_levels().items()
}


@pytest.fixture(scope="module")
def result():
    """One quick run with progress."""
    steps = []
    return bench_demux(**QUICK, consecutive=True, progress=lambda *step: steps.append(step)), steps


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_counts_every_flag_once(name):
    """Each flag of each pattern is one call and one count, whoever demultiplexes it."""
    for pending, patterns in ((0, 1), (1, 64), (8, 3), (64, 8), (512, 2), (2047, 1)):
        work = Workload(str(pending), pending)
        with room._Contender(*CONTENDERS[name], work, seed=3, patterns=patterns, sample_ns=1_000) as bench:
            bench.warm_up()
            assert bench.sample() >= 0
            bench.verify(name)


def test_wrong_counts_raise(monkeypatch):
    """A contender that verifies wrong stops the whole run."""
    monkeypatch.setattr(room._Contender, "_wrong", lambda self: 3)
    with pytest.raises(MachineBug, match="legacy counted 3 channels wrong"):
        bench_demux(**QUICK)


@pytest.mark.parametrize(
    "wrong",
    [
        {"contender": lib.VI_DEMUX_CONTENDERS},
        {"pending": 2048},
        {"patterns": 0},
        {"patterns": lib.VI_DEMUX_PATTERNS_MAX + 1},
        {"simd": lib.VI_SIMD_AVX512 + 1},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    """Both sides of each border: the last good value is used by the tests above."""
    config = {"contender": lib.VI_DEMUX_OURS, "pending": 1, "patterns": 1} | wrong
    out = ffi.new("struct vi_demux_bench **")
    assert -errno.EINVAL == lib.vi_demux_bench_create(ffi.new("struct vi_demux_config *", config), out)


def test_bad_patterns_name_themselves():
    """The message says what was asked."""
    with pytest.raises(IrqError, match=r"65 patterns \(EINVAL\)"):
        bench_demux(**QUICK, patterns=65)


@pytest.mark.parametrize("nothing", ["rounds", "instances", "attempts"])
def test_nothing_to_measure_is_refused(nothing):
    """No rounds, machines or attempts: a mistake of the caller."""
    with pytest.raises(ValueError, match="no benchmark with"):
        bench_demux(**QUICK | {nothing: 0})


def test_rows_are_those_of_the_targets(result):
    """performance.md 7: ids and workloads of D1 to D8, D10, D11 with their bars and goals."""
    rows = [(row.id, row.workload, row.bar, row.goal) for row in result[0].rows]
    assert [
        ("D1", "1", 0.35, 0.2),
        ("D2", "8 random", 0.4, 0.25),
        ("D3", "64 random", 0.3, 0.2),
        ("D4", "512 random", 0.18, 0.13),
        ("D5", "2047", 0.14, 0.1),
        ("D6", "1", 0.2, 0.1),
        ("D6", "8 random", 0.12, 0.07),
        ("D6", "64 random", 0.1, 0.06),
        ("D6", "512 random", 0.06, 0.045),
        ("D6", "2047", 0.05, 0.033),
        ("D7", "64 random", 1.7, 1.3),
        ("D7", "512 random", 1.4, 1.1),
        ("D7", "2047", 1.4, 1.2),
        ("D8", "empty scan", 0.3, 0.15),
        ("D10", "1", 0.6, None),
        ("D10", "64 random", 0.45, None),
        ("D10", "2047", 0.16, None),
        ("D11", "1", None, None),
        ("D11", "8 random", None, None),
        ("D11", "64 random", None, None),
        ("D11", "512 random", None, None),
        ("D11", "2047", None, None),
    ] == rows


def test_ours_is_the_widest_level(result):
    """D1 to D9 are ours at its best; D10 is the scalar build."""
    ours = {row.ours for row in result[0].rows if row.id not in ("D10", "D11")}
    assert {list(simd_levels())[-1]} == ours == {result[0].simd}
    assert {"scalar"} == {row.ours for row in result[0].rows if row.id == "D10"}


def test_the_split_adds_up(result):
    """RFC - legacy is the sum of its parts, and is D11's two figures."""
    d11 = {row.workload: row for row in result[0].rows if row.id == "D11"}
    for workload, row in d11.items():
        whole, *parts = [f.value for f in result[0].findings if f.workload == workload]
        assert 3 == len(parts)
        assert pytest.approx(whole) == sum(parts)
        assert pytest.approx(row.ours_ns - row.peer_ns) == whole


def test_every_contender_is_told(result):
    """Warm workloads time every peer and every vector level; runs are told without a row."""
    names = {t.contender for t in result[0].timings if t.workload == "64 consecutive"}
    assert {*PEERS, *simd_levels()} == names


def test_progress_names_each_workload(result):
    """(done, all, label) before each workload, and once at the end."""
    names = ["1", "8 random", "64 random", "512 random", "2047", "empty scan", "8 consecutive", "64 consecutive", ""]
    assert [(i, 8, name) for i, name in enumerate(names)] == result[1]


def test_cold_rows_are_asked_for(monkeypatch):
    """D9 only on request: it takes a second per contender."""
    fake = timing([1.0])
    names = {*PEERS, *simd_levels()}
    monkeypatch.setattr(room, "_table", lambda *_: dict.fromkeys(names, fake))
    assert "D9" not in {row.id for row in bench_demux().rows}
    cold = [(row.workload, row.bar, row.goal) for row in bench_demux(cold=True).rows if row.id == "D9"]
    assert [("512 random, cold", 0.15, 0.08), ("2047, cold", 0.06, 0.03)] == cold


def test_json_holds_everything(result):
    """design.md 8: a list of rows under "rows"; it is JSON."""
    data = json.loads(json.dumps(result[0].to_json()))
    assert len(result[0].rows) == len(data["rows"])
    assert {"id", "workload", "ours_ns", "peer_ns", "ratio", "bar", "goal"} <= set(data["rows"][0])
    assert {"min", "median", "p90", "samples"} <= set(data["timings"][0])
    assert {"name", "workload", "value", "unit"} == set(data["findings"][0])


@pytest.mark.soak
def test_twins_cost_what_the_kernel_costs():
    """performance.md 1.2: instructions per scan within 20 % of the reference, at every number of flags."""
    counts = count_instructions()
    assert 6 * len(PENDING) == len(counts)
    far = [(c.contender, c.pending, c.deviation) for c in counts if c.deviation is not None and abs(c.deviation) > 0.2]
    assert [] == far
