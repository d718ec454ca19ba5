"""Print the SynIC benchmark as JSON; `vmbusirq bench synic` prints it as a table."""

from __future__ import annotations

import json
import sys

from vmbusirq.lab.bench_synic import bench_synic

if __name__ == "__main__":
    json.dump(bench_synic().to_json(), sys.stdout, indent=2)
    sys.stdout.write("\n")
