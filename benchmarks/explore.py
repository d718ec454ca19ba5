"""Print the explorer benchmark as JSON; `vmbusirq bench explore` prints it as a table."""

from __future__ import annotations

import json
import sys

from vmbusirq.lab.bench_explore import bench_explore

if __name__ == "__main__":
    json.dump(bench_explore().to_json(), sys.stdout, indent=2)
    sys.stdout.write("\n")
