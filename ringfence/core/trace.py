"""One tracing switch: `RINGFENCE_TRACE=virtio,irq` prints those categories to standard error; free when off.

trace = tracer("irq")
if trace: trace("line %d raised", n)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

_enabled = frozenset(filter(None, os.environ.get("RINGFENCE_TRACE", "").split(",")))


def tracer(category: str) -> Callable[..., None] | None:
    """A function that prints, printf style, or None when the category is off."""
    if category not in _enabled and "all" not in _enabled:
        return None

    def write(text: str, *values: object) -> None:
        print(f"[{category}] {text % values if values else text}", file=sys.stderr)

    return write
