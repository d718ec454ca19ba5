"""``vmbusirq explore``: all orders of a race."""

from __future__ import annotations

import argparse
import sys

from vmbusirq.cli.common import print_json
from vmbusirq.lab.explore.campaign import explore_many, processors, variants_of
from vmbusirq.lab.explore.race import Search, Verdict
from vmbusirq.lab.explore.races import RACES, find_race
from vmbusirq.lab.explore.story import load_order, save_order, tell
from vmbusirq.lab.explore.text import HEADER, summary, verdict_rows, verdict_text
from vmbusirq.lab.explore.world import World

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """Explore, list or replay; the exit status says whether all is as it is known to be."""
    if args.list:
        return _list(args)
    if args.replay is not None:
        return _replay(args)
    if not args.races and not args.all:
        raise ValueError(f"name a race, or --all; the races are {', '.join(RACES)}")
    if args.races and args.all:
        raise ValueError("--all names every race: name none beside it")
    chosen = variants_of(args.races, args.variant)
    verdicts = _explore(chosen, _search(args), args.jobs or processors())
    if args.save is not None:
        _save(args.save, verdicts)
    _show(verdicts, args)
    return 0 if all(verdict.as_expected for verdict in verdicts) else 1


def _search(args: argparse.Namespace) -> Search:
    if args.random is not None:
        return Search("random", orders=args.random, seed=args.seed)
    if args.pct is not None:
        return Search("pct", orders=args.pct, depth=args.depth, seed=args.seed)
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
    if len(bad) != 1:
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
