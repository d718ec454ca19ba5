"""Print the demux benchmark as JSON; `vmbusirq bench demux` prints it as a table."""

from __future__ import annotations

import json
import sys

from vmbusirq.lab.bench_demux import bench_demux

if __name__ == "__main__":
    result = bench_demux(cold="--cold" in sys.argv[1:], consecutive="--consecutive" in sys.argv[1:])
    json.dump(result.to_json(), sys.stdout, indent=2)
    sys.stdout.write("\n")
