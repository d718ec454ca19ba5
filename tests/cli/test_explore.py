"""``vmbusirq explore``: what it prints, what it saves and plays again, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.explore.test_story import _race
from vmbusirq.cli import main
from vmbusirq.lab.explore.races import RACES

REAL = "lost-wakeup"  # the smallest
SAVES_ONE = "--save writes one bad order, and 4 variants have one: name a race and --variant"
BESIDE = "--replay plays the race and the variant that its file names: name none beside it"


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the box but a race of four steps."""
    for name in list(RACES):
        monkeypatch.delitem(RACES, name)
    monkeypatch.setitem(RACES, "toy", _race())


def _refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert 2 == main(["explore", *args])
    told = capsys.readouterr()
    assert 1 == told.err.count("\n")
    assert told.err.startswith("vmbusirq explore: ")
    return told.err.removeprefix("vmbusirq explore: ").rstrip("\n")


def test_list_names_every_race_and_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["explore", "--list"])
    lines = capsys.readouterr().out.splitlines()
    for race in RACES.values():
        at = lines.index(f"{race.name}: {race.title} ({race.source})")
        assert [f"    {variant.name}: {variant.what}" for variant in race.variants] == lines[
            at + 1 : at + 1 + len(race.variants)
        ]
    assert 0 == main(["explore", "--list", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert list(RACES) == [race["race"] for race in listed]
    assert {"race", "title", "source", "variants", "left_out"} == set(listed[0])


@pytest.mark.usefixtures("toys")
def test_a_race_is_told_with_its_shortest_bad_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["explore", "toy", "--variant", "off"])
    out = capsys.readouterr().out
    assert out.startswith("toy, off: nothing waits\n  the bug: 2 orders (1 prefixes pruned), 1 bad, ")
    assert "  found: the copy 1 is lost\n  the shortest bad order: 4 steps, 0 preemptions\n  1. copies: copies " in out
    assert out.endswith("not explored in toy: all else\n")
    assert "race " not in out


@pytest.mark.usefixtures("toys")
def test_the_exit_status_says_whether_all_is_as_it_is_known_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"off": 0, "on": 0, "wrong": 1, "surprise": 1, "middle": 1, "missing": 1}
    assert expected == {name: main(["explore", "toy", "--fix", name]) for name in expected}
    assert 1 == main(["explore", "--all", "--jobs", "1"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("toy ")]
    assert list(expected) == [row[1] for row in rows]


@pytest.mark.usefixtures("toys")
def test_how_to_search_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    def orders(*how: str) -> tuple[str, int, bool]:
        assert main(["explore", "toy", "--variant", "on", "--json", *how]) == 0
        verdict = json.loads(capsys.readouterr().out)[0]
        return verdict["mode"], verdict["orders"], verdict["complete"]

    assert ("all", 2, True) == orders()
    assert ("all", 6, True) == orders("--plain")
    assert ("all", 2, False) == orders("--preemptions", "0")
    assert ("all", 6, True) == orders("--preemptions", "3")
    assert ("all", 3, False) == orders("--plain", "--orders", "3")
    assert ("random", 5, False) == orders("--random", "5")
    assert ("random", 3, False) == orders("--random", "5", "--orders", "3")
    assert ("pct", 5, False) == orders("--pct", "5", "--depth", "2", "--seed", "7")
    assert ("pct", 3, False) == orders("--pct", "5", "--orders", "3")


def test_a_seed_gives_the_same_orders(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for seed in ("1", "1", "2"):
        main(["explore", "static-mask", "--variant", "off", "--random", "15", "--seed", seed, "--json"])
        told.append([{**one, "seconds": 0} for one in json.loads(capsys.readouterr().out)])
    assert told[0] == told[1] != told[2]


def test_several_processes_say_what_one_says(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for jobs in ("1", "2"):
        assert 0 == main(["explore", REAL, "lost-room", "--orders", "30", "--json", "--jobs", jobs])
        told.append([{**one, "seconds": 0} for one in json.loads(capsys.readouterr().out)])
    assert told[0] == told[1]
    names = [(race, variant.name) for race in (REAL, "lost-room") for variant in RACES[race].variants]
    assert names == [(one["race"], one["variant"]) for one in told[0]]


def test_every_race_is_searched_by_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Two orders of each: bugs need not be found, and a fix is not proven."""
    main(["explore", "--all", "--orders", "2", "--json", "--jobs", "1"])
    told = [(one["race"], one["variant"]) for one in json.loads(capsys.readouterr().out)]
    assert [(race.name, variant.name) for race in RACES.values() for variant in race.variants] == told


def test_a_bad_order_is_saved_and_played_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "order.json"
    assert 0 == main(["explore", REAL, "--variant", "off", "--save", str(path)])
    story = capsys.readouterr().out
    assert 0 == main(["explore", "--replay", str(path)])
    again = capsys.readouterr().out.splitlines()
    assert f"{REAL}, off: {RACES[REAL].variant('off').what}" == again[0]
    assert "\n".join(again[1:]) in story
    assert 0 == main(["explore", "--replay", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["as_saved"] is True

    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "end": "otherwise"}))
    assert 1 == main(["explore", "--replay", str(path)])
    assert "it ended otherwise when it was saved: otherwise" == capsys.readouterr().out.splitlines()[-1]
    path.write_text(json.dumps({**saved, "order": [*saved["order"][:-1], "nobody"]}))
    assert f"{path}: the race does not go that way any more: step {len(saved['order'])}: 'nobody' cannot" in _refused(
        capsys, "--replay", str(path)
    )
    path.write_text(json.dumps({**saved, "variant": "x"}))
    assert _refused(capsys, "--replay", str(path)).startswith(f"race {REAL}: has no variant 'x': ")
    path.write_text(json.dumps({**saved, "race": "x"}))
    assert _refused(capsys, "--replay", str(path)).startswith("no race 'x'; the races are ")


@pytest.mark.usefixtures("toys")
def test_what_cannot_be_saved_is_refused_before_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "order.json"
    assert f"{path}: not written: no order that was played is bad" == _refused(
        capsys, "toy", "--fix", "on", "--save", str(path)
    )
    assert not path.exists()
    nowhere = tmp_path / "no" / "where"
    for args, says in (
        (["toy", "--jobs", "1", "--save", str(path)], SAVES_ONE),
        (["--all", "--save", str(path)], SAVES_ONE),
        (["toy", "--fix", "off", "--save", str(nowhere)], f"{nowhere}: No such file or directory"),
        (["toy", "--fix", "off", "--save", str(tmp_path)], f"{tmp_path}: Is a directory"),
    ):
        assert 2 == main(["explore", *args])
        told = capsys.readouterr()
        assert ("", f"vmbusirq explore: {says}\n") == (told.out, told.err)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "name a race, or --all; the races are toy"),
        (["toy", "--all"], "--all names every race: name none beside it"),
        (["x"], "no race 'x'; the races are toy"),
        (["toy", "--variant", "x"], "race toy: has no variant 'x': off, on, wrong, surprise, middle, missing"),
        (["--replay", "/nowhere"], "/nowhere: No such file or directory"),
        (["--replay", "/"], "/: Is a directory"),
        (["--replay", "x", "toy"], BESIDE),
        (["--replay", "x", "--all"], BESIDE),
        (["--replay", "x", "--fix", "on"], BESIDE),
        (["--list", "toy"], "--list lists all races: name none beside it"),
        (["toi"], "no race 'toi'; did you mean 'toy'?"),
        (["toy", "--depth", "2"], "--depth is of --pct: add that"),
        (["toy", "--random", "5", "--depth", "2"], "--depth is of --pct: add that"),
        (["toy", "--seed", "0"], "--seed is of --random and --pct: all orders need none"),
        (["toy", "--pct", "1", "--depth", "2001"], "--depth 2001: no order has so many steps; at most 2000"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says == _refused(capsys, *args)


@pytest.mark.parametrize(
    "args",
    [
        ["--orders", "0"],
        ["--jobs", "0"],
        ["--random", "0"],
        ["--pct", "x"],
        ["--depth", "0"],
        ["--preemptions", "-1"],
        ["--seed", "x"],
        ["--plain", "--random", "5"],
        ["--preemptions", "1", "--pct", "5"],
    ],
)
def test_options_that_make_no_sense_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explore", REAL, *args])
    assert 2 == ended.value.code
    assert "error: argument" in capsys.readouterr().err


def test_piped_output_is_plain(tmp_path: Path) -> None:
    """No escape sequences, and nothing on standard error, though a terminal would see a bar."""
    command = [sys.executable, "-m", "vmbusirq", "explore", REAL, "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    assert b"" == done.stderr
    assert b"\x1b" not in done.stdout
    header = b"race         variant     verdict"
    assert 1 == done.stdout.count(header)
