"""Sizes as users write them."""

from __future__ import annotations

import re

from ringfence.core.errors import UserError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PAGE_BYTES = 4096
_UNITS = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}


def parse_size(text: str, default_unit: str = "b") -> int:
    """Bytes of `512M`, `1.5GiB`, `4096`; raises UserError on anything else.  Units are powers of 1024."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", text.lower())
    if not match:
        raise UserError(f"{text!r} is not a size.", "Write a number and a unit, for example 512M or 2G.")
    return int(float(match[1]) * _UNITS[match[2] or default_unit])


def format_size(size_bytes: int) -> str:
    """`536870912` as `512 MiB`."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
