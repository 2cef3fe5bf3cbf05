"""Waiting for a descriptor, whatever its number: `select` takes none above 1,023."""

from __future__ import annotations

import select


def readable(fd: int, timeout_s: float) -> bool:
    """Whether there is something to read, or an end, within that time."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(timeout_s * 1000))
