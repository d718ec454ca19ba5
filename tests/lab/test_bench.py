"""The common ground of the benchmarks: round-robin sampling, medians, rows against bars."""

from __future__ import annotations

import os

import pytest

from vmbusirq.lab.bench import BenchRow, calmest, compare, interleave, pinned, sample_rounds, timing


def test_timing_is_min_median_p90():
    """The 90th percentile is interpolated between samples, as numpy does by default."""
    t = timing([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (1.0, 3.0, 5) == (t.min, t.median, t.samples)
    assert pytest.approx(4.6) == t.p90
    assert pytest.approx(4.6 / 3) == t.spread


def test_timing_of_one_sample():
    """One sample is its own minimum, median and percentile."""
    t = timing([7.0])
    assert (7.0, 7.0, 7.0, 1, 1.0) == (t.min, t.median, t.p90, t.samples, t.spread)


def test_contenders_take_turns_and_warm_up():
    """Contenders run a b a b, never a a b b; warm-up rounds are thrown away."""
    order = []
    contenders = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    samples = sample_rounds(contenders, 2, warmup=1)
    assert ["a", "b"] * 3 == order
    assert {"a": [3.0, 5.0], "b": [4.0, 6.0]} == samples


def test_a_scattered_table_is_measured_again():
    """Performance.md, benchmark rules: repeat while p90 / median exceeds 1.3, then keep the calmest."""
    tables = iter([[1.0] * 5 + [9.0] * 5, [1.0] * 9 + [2.0] * 2, [3.0] * 9])
    assert 3.0 == calmest(lambda: {"a": next(tables)})["a"].median
    tables = iter([[1.0, 9.0], [1.0, 2.0], [1.0, 9.0]])
    assert 1.5 == calmest(lambda: {"a": next(tables)}, attempts=3)["a"].median


def test_a_calm_table_is_measured_once():
    """At 1.3 and below nothing is repeated."""
    taken = []
    interleave({"a": lambda: taken.append(1) or 2.0}, 3, warmup=2)
    assert 5 == len(taken)


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"rounds": 1, "attempts": 0}])
def test_nothing_to_measure_is_refused(arguments):
    """No rounds or attempts: a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one round"):
        interleave({"a": lambda: 1.0}, **arguments)


@pytest.mark.parametrize(("bar", "holds"), [(0.5, True), (0.49, False), (None, None)])
def test_a_row_holds_up_to_its_bar(bar, holds):
    """The bar itself still holds; a row without a bar neither holds nor fails."""
    row = compare("D1", "1", ("ours", timing([1.0])), ("peer", timing([2.0])), bar, 0.2)
    assert (0.5, holds) == (row.ratio, row.holds)


def test_row_as_json_has_the_agreed_keys():
    """design.md 8: id, workload, ours_ns, peer_ns, ratio, bar, goal."""
    row = BenchRow("D1", "1", 1.0, 2.0, 0.5, 0.35, 0.2, "ours", "peer", 1.1, 2.1)
    assert {"id": "D1", "workload": "1", "ours_ns": 1.0, "peer_ns": 2.0, "ratio": 0.5, "bar": 0.35, "goal": 0.2} == {
        key: row.to_json()[key] for key in ("id", "workload", "ours_ns", "peer_ns", "ratio", "bar", "goal")
    }


def test_pinning_ends_with_the_block():
    """One CPU inside, all of them again afterwards."""
    before = os.sched_getaffinity(0)
    with pinned() as cpu:
        assert {cpu} == os.sched_getaffinity(0)
    assert before == os.sched_getaffinity(0)
