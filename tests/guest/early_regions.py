"""The command with regions made as soon as a loop has been seen: `python -m tests.guest.early_regions run …`."""

from __future__ import annotations

from ringfence.cli.main import main
from ringfence.engine import emulate, regions

SLICE = 1000  # guest instructions between samples
HOT_SAMPLES = 2

if __name__ == "__main__":
    emulate.SLICE, regions.HOT_SAMPLES = SLICE, HOT_SAMPLES
    main()
