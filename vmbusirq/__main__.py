"""``python -m vmbusirq``."""

import sys

from vmbusirq.cli import main

sys.exit(main())
