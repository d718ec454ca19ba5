"""Orders as stories and as files, and the verdicts of searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.explore.toys import Toy
from tests.reference.orders import Doer, Program
from vmbusirq.lab.explore.campaign import explore_many, processors, variants_of
from vmbusirq.lab.explore.race import OFF, ON, Race, Search, Variant, explore
from vmbusirq.lab.explore.races import RACES, find_race
from vmbusirq.lab.explore.search import Bad
from vmbusirq.lab.explore.story import Story, StoryLine, load_order, save_order, tell
from vmbusirq.lab.explore.text import HEADER, summary, verdict_rows, verdict_text
from vmbusirq.lab.explore.world import World

ORDER = ("adds", "copies", "adds", "copies")
_LOST = ("a line is lost", "the copy ")


def _toy(bad: str = "") -> Toy:
    """One adds, another copies: 0 if it is early."""
    doers = (Doer("adds", (("add", "a"),)), Doer("copies", (("copy", "b", "a"),)))
    return Toy(Program(doers, (("a", 0), ("b", 0))), bad={(1, 0): bad} if bad else None)


def _race() -> Race:
    """A toy race: ``off`` loses the copy, ``on`` does not, ``wrong`` is bad in another way than is expected."""
    variants = {
        OFF: Variant(OFF, "nothing waits", lambda: _toy("the copy 1 is lost"), _LOST),
        ON: Variant(ON, "nothing is lost", _toy),
        "wrong": Variant("wrong", "it is not what was expected", lambda: _toy("bad"), _LOST),
        "surprise": Variant("surprise", "nothing was expected", lambda: _toy("bad")),
        "middle": Variant("middle", "it is expected, but begins otherwise", lambda: _toy("not the copy"), _LOST),
        "missing": Variant("missing", "the bug is not there", _toy, _LOST),
    }
    return Race("toy", "one adds, one copies", "nowhere", tuple(variants.values()), "all else")


# ---- stories


def test_a_story_numbers_its_steps_and_says_what_they_change() -> None:
    story = tell(World(_toy("the copy is lost")), ("copies", "copies", "adds", "adds"))
    assert "the copy is lost" == story.end
    assert (
        StoryLine(1, "copies", "copies begins", ()),
        StoryLine(2, "copies", "copy b a", ()),
        StoryLine(3, "adds", "adds begins", ()),
        StoryLine(4, "adds", "add a", ("a 0 → 1",)),
    ) == story.lines
    assert "  4. adds: add a   [a 0 → 1]\n  => the copy is lost" == "\n".join(str(story).splitlines()[3:])


def test_a_story_without_a_bug_says_so() -> None:
    assert "  => nothing is wrong" == str(tell(World(_toy()), ORDER)).splitlines()[-1]


def test_what_comes_and_goes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are only there before or after."""
    toy = _toy()
    monkeypatch.setattr(
        toy, "watch", lambda: {"new": 1, "a": toy.counters["a"]} if toy.counters["a"] else {"old": 2, "a": 0}
    )
    changed = tell(World(toy), ("adds", "adds")).lines[1].changed
    assert ("old 2 → none", "a 0 → 1", "new none → 1") == changed


def test_a_story_ends_where_something_is_wrong() -> None:
    toy = Toy(_toy().program, bad_now={(1, 0): "too early"})
    story = tell(World(toy), ("adds", "adds", "copies"))
    assert (2, "too early") == (len(story.lines), story.end)


def test_a_story_of_an_order_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^step 2: 'nobody' cannot go here; who can: adds, copies$"):
        tell(World(_toy()), ("adds", "nobody"))


def test_a_story_is_a_value() -> None:
    assert Story((StoryLine(1, "a", "b", ()),), "") == Story((StoryLine(1, "a", "b", ()),), "")


# ---- files

_texts = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(_texts, _texts, _texts, st.lists(_texts, max_size=5))
def test_an_order_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, race: str, variant: str, what: str, order: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "order.json"
    save_order(path, race, variant, Bad(what, tuple(order), 3))
    assert (race, variant, what, tuple(order)) == load_order(path)


GOOD = {"format": "vmbusirq-order", "version": 1, "race": "r", "variant": "off", "end": "bad", "order": ["a"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no saved order: Expecting value"),
        (b"\xff\xfe", "is no saved order: 'utf-8' codec"),
        (b"{", "is no saved order: "),
        (b"[" * 100_000, "is no saved order: too deeply nested"),
        (b"9" * 10_000, "is no saved order: "),
        (b"[]", "is no saved order: “vmbusirq explore” writes them with --save"),
        (b"null", "is no saved order: “vmbusirq explore”"),
        (b'{"format": "another"}', "is no saved order: “vmbusirq explore”"),
        ({**GOOD, "version": 2}, "is a saved order of version 2; this program reads 1"),
        ({**GOOD, "version": "1"}, "is a saved order of version '1'; this program reads 1"),
        ({**GOOD, "version": None}, "is a saved order of version None"),
        *(({**GOOD, name: 5}, "race, variant, end or order is missing or of") for name in ("race", "variant", "end")),
        *(({k: v for k, v in GOOD.items() if k != name}, "is missing") for name in ("race", "variant", "end", "order")),
        ({**GOOD, "order": "abc"}, "race, variant, end or order is missing or of another type"),
        ({**GOOD, "order": ["a", 5]}, "is no saved order: its order is a list of names"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "order.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError) as caught:
        load_order(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: is ")
    assert says in text
    assert "\n" not in text


@given(st.binary(max_size=60))
def test_no_bytes_make_it_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no saved order"):
        load_order(path)


# ---- verdicts


@pytest.mark.parametrize(
    ("variant", "search", "as_expected", "says"),
    [
        (OFF, Search(), True, "the bug"),
        (ON, Search(), True, "holds in all orders"),
        ("wrong", Search(), False, "UNEXPECTED"),
        ("middle", Search(), False, "UNEXPECTED"),
        ("surprise", Search(), False, "UNEXPECTED"),
        ("missing", Search(), False, "NOT FOUND"),
        (OFF, Search(preemptions=0), True, "the bug (not all orders)"),
        (ON, Search(orders=1), True, "holds in those played"),
        (ON, Search("random", orders=3), True, "holds in those played"),
        (OFF, Search("pct", orders=30), True, "the bug (not all orders)"),
    ],
)
def test_what_a_search_says(
    monkeypatch: pytest.MonkeyPatch, variant: str, search: Search, as_expected: bool, says: str
) -> None:
    race = _race()
    monkeypatch.setitem(RACES, "toy", race)
    verdict = explore(race, variant, search)
    assert as_expected == verdict.as_expected
    row = dict(zip(HEADER, verdict_rows([verdict])[0], strict=True))
    assert ("toy", variant, says) == (row["race"], row["variant"], row["verdict"])
    assert f"toy, {variant}: {race.variant(variant).what}\n  {says}: " in verdict_text(verdict)
    if verdict.shortest is not None:
        assert ("copies", "copies", "adds", "adds") == verdict.shortest.order
        assert "  the shortest bad order: 4 steps, 0 preemptions" in verdict_text(verdict)
        assert str(verdict.story) in verdict_text(verdict)
    data = json.loads(json.dumps(verdict.to_json()))
    assert (search.mode, verdict.explored.orders, as_expected) == (data["mode"], data["orders"], data["as_expected"])


def test_what_was_explored_and_what_was_not_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    race = _race()
    monkeypatch.setitem(RACES, "toy", race)
    verdicts = [explore(race, name, Search(preemptions=0)) for name in (OFF, ON)]
    assert [
        "4 orders of 16 steps in all, 0 given up because they could not differ",
        "4 choices were beyond the bound on preemptions",
        "not explored in toy: all else",
    ] == summary(verdicts)


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no search mode 'some': all, random, pct$"):
        explore(_race(), ON, Search("some"))


def test_variants_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RACES, "toy", _race())
    assert [("toy", OFF)] == variants_of(["toy"], OFF)
    assert 6 == len(variants_of(["toy"]))
    assert set(RACES) == {race for race, _ in variants_of([])}
    with pytest.raises(ValueError, match=r"^race toy: has no variant 'x': off, on, wrong, surprise, middle, missing$"):
        variants_of(["toy"], "x")
    with pytest.raises(ValueError, match=r"^no race 'x'; the races are .*, toy$"):
        find_race("x")


def test_many_searches_tell_their_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RACES, "toy", _race())
    heard: list[tuple[float, float, str]] = []
    chosen = [("toy", OFF), ("toy", ON)]
    verdicts = explore_many(chosen, Search(reduction=False), told=lambda *said: heard.append(said))
    assert chosen == [(verdict.race, verdict.variant) for verdict in verdicts]
    assert all(done <= of == 2 for done, of, _ in heard)
    assert processors() >= 1
