"""``vmbusirq explore``: all orders of a race."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

from vmbusirq.cli.common import print_json
from vmbusirq.lab.explore.campaign import explore_many, processors, variants_of
from vmbusirq.lab.explore.race import DEPTH, Search, Verdict
from vmbusirq.lab.explore.races import RACES, find_race
from vmbusirq.lab.explore.search import STEPS_MAX
from vmbusirq.lab.explore.story import load_order, save_order, tell
from vmbusirq.lab.explore.text import HEADER, summary, verdict_rows, verdict_text
from vmbusirq.lab.explore.world import World

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Explore, list or replay; the exit status says whether all is as it is known to be."""
    _check(args)
    if args.list:
        return _list(args)
    if args.replay is not None:
        return _replay(args)
    chosen = variants_of(list(dict.fromkeys(args.races)), args.variant)
    if args.save is not None:
        _check_save(args.save, chosen)
    verdicts = _explore(chosen, _search(args), args.jobs or processors())
    _show(verdicts, args)
    if args.save is not None:
        _save(args.save, verdicts)
    return 0 if all(verdict.as_expected for verdict in verdicts) else 1


def _check(args: argparse.Namespace) -> None:
    """Refuse what would be ignored. ValueError."""
    named = args.races or args.all or args.variant is not None
    if args.list and named:
        raise ValueError("--list lists all races: name none beside it")
    if args.replay is not None and named:
        raise ValueError("--replay plays the race and the variant that its file names: name none beside it")
    if args.list or args.replay is not None:
        return
    if not args.races and not args.all:
        raise ValueError(f"name a race, or --all; the races are {', '.join(RACES)}")
    if args.races and args.all:
        raise ValueError("--all names every race: name none beside it")
    if args.depth is not None and args.pct is None:
        raise ValueError("--depth is of --pct: add that")
    if args.seed is not None and args.pct is None and args.random is None:
        raise ValueError("--seed is of --random and --pct: all orders need none")
    if args.depth is not None and args.depth > STEPS_MAX:
        raise ValueError(f"--depth {args.depth}: no order has so many steps; at most {STEPS_MAX}")


def _check_save(path: str, chosen: list[tuple[str, str]]) -> None:
    """Refuse before the search what could not be saved after it. ValueError, OSError."""
    bugs = [(race, variant) for race, variant in chosen if find_race(race).variant(variant).expects]
    if len(bugs) > 1:
        raise ValueError(f"--save writes one bad order, and {len(bugs)} variants have one: name a race and --variant")
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _search(args: argparse.Namespace) -> Search:
    if args.random is not None:
        return Search("random", orders=min(args.random, args.orders or args.random), seed=args.seed or 0)
    if args.pct is not None:
        orders = min(args.pct, args.orders or args.pct)
        return Search("pct", orders=orders, depth=args.depth or DEPTH, seed=args.seed or 0)
    return Search(reduction=not args.plain, preemptions=args.preemptions, orders=args.orders)


def _explore(chosen: list[tuple[str, str]], search: Search, jobs: int) -> list[Verdict]:
    if not sys.stderr.isatty():
        return explore_many(chosen, search, jobs=jobs)
    from vmbusirq.report import progress_bar

    with progress_bar() as moved:
        return explore_many(chosen, search, jobs=jobs, told=moved)


def _show(verdicts: list[Verdict], args: argparse.Namespace) -> None:
    if args.json:
        print_json([verdict.to_json() for verdict in verdicts])
        return
    if not args.all:
        for verdict in verdicts:
            print(verdict_text(verdict), end="\n\n")
    if args.all or len(verdicts) > 1:
        _print_table(verdicts)
    for line in summary(verdicts):
        print(line)


def _print_table(verdicts: list[Verdict]) -> None:
    if sys.stdout.isatty():
        from vmbusirq.report import console, verdict_table

        console().print(verdict_table(verdicts))
        return
    rows = [HEADER, *verdict_rows(verdicts)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADER))]
    for row in rows:
        cells = [
            cell.ljust(width) if at < 3 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _save(path: str, verdicts: list[Verdict]) -> None:
    bad = [verdict for verdict in verdicts if verdict.shortest is not None]
    if not bad:
        raise ValueError(f"{path}: not written: no order that was played is bad")
    if len(bad) > 1:
        raise ValueError(f"--save writes one bad order, and there are {len(bad)}: name one race and --variant")
    assert bad[0].shortest is not None, "as was asked for"
    save_order(path, bad[0].race, bad[0].variant, bad[0].shortest)


def _list(args: argparse.Namespace) -> int:
    if args.json:
        print_json(
            [
                {
                    "race": race.name,
                    "title": race.title,
                    "source": race.source,
                    "variants": {variant.name: variant.what for variant in race.variants},
                    "left_out": race.left_out,
                }
                for race in RACES.values()
            ]
        )
        return 0
    for race in RACES.values():
        print(f"{race.name}: {race.title} ({race.source})")
        for variant in race.variants:
            print(f"    {variant.name}: {variant.what}")
    return 0


def _replay(args: argparse.Namespace) -> int:
    """Play a saved order; status 1 if it does not end as it did."""
    name, variant, end, order = load_order(args.replay)
    race = find_race(name)
    scene = race.variant(variant).make()
    try:
        story = tell(World(scene), order)
    except ValueError as error:
        raise ValueError(f"{args.replay}: the race does not go that way any more: {error}") from None
    if args.json:
        print_json({"race": name, "variant": variant, "end": story.end, "as_saved": story.end == end})
    else:
        print(f"{name}, {variant}: {race.variant(variant).what}")
        print(story)
        if story.end != end:
            print(f"it ended otherwise when it was saved: {end}")
    return 0 if story.end == end else 1
