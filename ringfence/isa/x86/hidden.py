"""What the hidden parts of a segment register amount to (segments.py), on ints for the engine's Python side."""

from __future__ import annotations


def hidden_words(name: str, base: int, limit: int, attr: int, real: bool) -> tuple[int, int, int]:
    """Highest offset to be read, to be written, and whether the segment is not flat.

    `real`: type and direction do not count (SDM 3A 20.1.1).
    """
    none = (1 << 64) - 1
    if real:
        return limit, limit, 1
    code, allowed, usable = attr >> 3 & 1, attr >> 1 & 1, attr & 0x90 == 0x90
    down = not code and attr >> 2 & 1
    readable = usable and (allowed if code else not down)
    writable = usable and allowed and not code and not down
    whole = base == 0 and limit == 0xFFFFFFFF and usable and not down
    flat = whole and (code if name == "cs" else writable)
    return limit if readable else none, limit if writable else none, int(not flat)
