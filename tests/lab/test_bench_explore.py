"""The explorer benchmark: its rows and figures, and that a search which changes is caught."""

from __future__ import annotations

import json

import pytest

from vmbusirq.cli import main
from vmbusirq.errors import MachineBug
from vmbusirq.lab import bench_explore as room
from vmbusirq.lab.explore.search import Explored


@pytest.fixture
def small(monkeypatch):
    """The benchmark with few orders, few probes, and a smaller race that is played both ways."""
    monkeypatch.setattr(room, "ORDERS", 3)
    monkeypatch.setattr(room, "PROBES", 5)
    monkeypatch.setattr(room, "_SEARCHED", (("early-offline", "off"), ("check-then-offline", "on")))
    monkeypatch.setattr(room, "_SMALL", ("check-then-offline", "on", ("device 5", "host")))


def test_rows_rates_shares_and_reductions(small, capsys):
    """Two ratios with bars; orders/s and steps/s of every search; shares that make a whole; what is left out."""
    assert main(["bench", "explore", "--rounds", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert ["E1", "E2"] == [row["id"] for row in document["rows"]]
    assert all(row["holds"] for row in document["rows"])
    findings = document["findings"]
    units = [finding["unit"] for finding in findings]
    assert (2, 2, 2) == (units.count("orders/s"), units.count("steps/s"), units.count("us"))
    assert sum(finding["value"] for finding in findings if finding["unit"] == "%") == pytest.approx(100)
    reductions = {finding["workload"]: finding["value"] for finding in findings if finding["unit"] == "times"}
    assert {"check-then-offline, on, without device 5, host", "check-then-offline, on"} == set(reductions)
    assert (
        reductions["check-then-offline, on"] > 1000 > reductions["check-then-offline, on, without device 5, host"] > 5
    )


def test_reduction_is_plain_orders_for_each_one_begun():
    """Pruned prefixes cost as much as orders, so they count."""
    (factor,) = (
        item.value for item in room._reduction("a race", Explored(orders=3, pruned=1), 20) if item.unit == "times"
    )
    assert 5 == factor


def test_a_search_that_changes_is_a_bug():
    """A benchmark that searches something else each time must not print a number."""
    room._must_be(Explored(orders=3, steps=9), Explored(orders=3, steps=9))
    with pytest.raises(MachineBug, match="a search was"):
        room._must_be(Explored(orders=3, steps=9), Explored(orders=3, steps=8))


def test_plain_and_reduced_must_agree(small, monkeypatch):
    """A reduction that loses the bug is worse than none."""
    monkeypatch.setattr(
        room, "all_orders", lambda _world, *, reduction: Explored(orders=1, bad=[] if reduction else ["a"])
    )
    with pytest.raises(MachineBug, match="plain orders find"):
        room._both_ways(1)
