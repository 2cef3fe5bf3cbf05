"""Pure operations and their meaning on Python ints.  All are total: every input has a defined result.

`PURE[name](w, *operands)` takes the operands' width in bits and unsigned ints below 2**w; callers mask the result to the
width of the operation's result.  The same table serves lanes: an operation with `lane=n` works on each n-bit lane.
"""

from __future__ import annotations

from collections.abc import Callable


def mask(w: int) -> int:
    return (1 << w) - 1


def signed(value: int, w: int) -> int:
    """The two's complement reading of a w-bit value."""
    return value - (1 << w) if value >> (w - 1) & 1 else value


def _saturate(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def _sat_signed(value: int, w: int) -> int:
    return _saturate(value, -(1 << w - 1), (1 << w - 1) - 1)


def _crc32c(data_w: int, data: int, crc: int) -> int:
    """CRC-32C (polynomial 0x1EDC6F41, bits reflected, no inversion) of `data_w` bits after the 32-bit remainder `crc`."""
    rest = crc ^ data
    for _ in range(data_w):
        rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
    return rest


PURE: dict[str, Callable[..., int]] = {
    "add": lambda w, a, b: a + b,
    "sub": lambda w, a, b: a - b,
    "mul": lambda w, a, b: a * b,
    "and": lambda w, a, b: a & b,
    "or": lambda w, a, b: a | b,
    "xor": lambda w, a, b: a ^ b,
    "shl": lambda w, a, b: a << b if b < w else 0,
    "lshr": lambda w, a, b: a >> b if b < w else 0,
    "ashr": lambda w, a, b: signed(a, w) >> min(b, w - 1),
    "udiv": lambda w, a, b: a // b if b else 0,
    "urem": lambda w, a, b: a % b if b else 0,
    "ctpop": lambda w, a: a.bit_count(),
    "cttz": lambda w, a: (a & -a).bit_length() - 1 if a else w,
    "ctlz": lambda w, a: w - a.bit_length(),
    "bswap": lambda w, a: int.from_bytes(a.to_bytes(w // 8, "little"), "big"),
    "umin": lambda w, a, b: min(a, b),
    "umax": lambda w, a, b: max(a, b),
    "smin": lambda w, a, b: min(signed(a, w), signed(b, w)),
    "smax": lambda w, a, b: max(signed(a, w), signed(b, w)),
    "uaddsat": lambda w, a, b: min(a + b, mask(w)),
    "usubsat": lambda w, a, b: max(a - b, 0),
    "saddsat": lambda w, a, b: _sat_signed(signed(a, w) + signed(b, w), w),
    "ssubsat": lambda w, a, b: _sat_signed(signed(a, w) - signed(b, w), w),
    "abs": lambda w, a: abs(signed(a, w)),
    "avg": lambda w, a, b: a + b + 1 >> 1,
    "mulhu": lambda w, a, b: a * b >> w,
    "mulhs": lambda w, a, b: signed(a, w) * signed(b, w) >> w,
    "crc32c": _crc32c,  # scalars only; the remainder and the result have 32 bits
}

# Comparisons: one bit as scalars, all ones or zero as lanes.
COMPARE: dict[str, Callable[[int, int, int], bool]] = {
    "eq": lambda w, a, b: a == b,
    "ne": lambda w, a, b: a != b,
    "ult": lambda w, a, b: a < b,
    "ule": lambda w, a, b: a <= b,
    "slt": lambda w, a, b: signed(a, w) < signed(b, w),
    "sle": lambda w, a, b: signed(a, w) <= signed(b, w),
}

# Operations that may leave the instruction not begun (a page fault, MMIO, a fault of its own).
FALLIBLE = frozenset({"load", "store", "probe", "fault", "atomic"})
# Operations that end a body.
ENDS = frozenset({"jump", "taken", "exit"})


def split_lanes(value: int, w: int, lane: int) -> list[int]:
    return [value >> k & mask(lane) for k in range(0, w, lane)]


def join_lanes(lanes: list[int], lane: int) -> int:
    return sum((v & mask(lane)) << lane * k for k, v in enumerate(lanes))
