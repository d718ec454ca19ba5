"""``vmbusirq ls``: what files there are."""

from __future__ import annotations

import argparse
import stat

from vmbusirq.cli.common import machine_after_run, print_json

__all__ = ["command"]


def command(args: argparse.Namespace) -> int:
    """List directories, or say that a path is a file."""
    fs = machine_after_run(args).fs
    listings = []
    for path in args.paths:
        is_dir = stat.S_ISDIR(fs.stat(path).st_mode)
        base = path.rstrip("/")
        names = fs.listdir(path) if is_dir else [path]
        entries = []
        for name in names:
            status = fs.lstat(f"{base}/{name}" if is_dir else path)
            entries.append({"name": name, "mode": stat.filemode(status.st_mode), "size": status.st_size})
        listings.append({"path": path, "entries": entries})
    if args.json:
        print_json(listings)
        return 0
    for listing in listings:
        if len(listings) > 1:
            print(f"{listing['path']}:")
        for entry in listing["entries"]:
            print(f"{entry['mode']} {entry['size']:>5} {entry['name']}" if args.long else entry["name"])
    return 0
