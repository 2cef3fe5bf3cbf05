"""The x87's transcendental functions on Python ints (SDM 1 8.3.7), rounded correctly.

The host's own instruction, which compiled code uses, may differ in the last place: the manual promises an error below
one unit.  Work is in fixed point, `P` bits after the point, with room for the smallest arguments.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

from ringfence.ir.softfloat_core import (
    DENORMAL,
    F80,
    FINITE,
    INEXACT,
    INFINITE,
    INVALID,
    ZERO,
    ZERO_DIVIDE,
    Environment,
    Number,
    round_pack,
)

_GUARD = 160
_TINY = -70  # below 2**-70 only the first term of a series counts
_C2 = 1 << 10
_ONE = 0x3FFF << 64 | 1 << 63
_HALF = 0x3FFE << 64 | 1 << 63
_REDUCTION_BITS = 66  # the processor's value of pi for arguments above pi/4 (SDM 1 8.3.8)


@lru_cache(maxsize=64)
def _atan_inverse(n: int, p: int) -> int:
    """atan(1/n)."""
    term = (1 << p) // n
    total, k, square = term, 1, n * n
    while term:
        term //= -square
        k += 2
        total += term // k if term >= 0 else -(-term // k)
    return total


@lru_cache(maxsize=16)
def pi(p: int) -> int:
    q = p + 16
    return (16 * _atan_inverse(5, q) - 4 * _atan_inverse(239, q)) >> 16


def _atanh(t: int, p: int) -> int:
    square, term, total, k = t * t >> p, t, t, 1
    while term:
        term = term * square >> p
        k += 2
        total += term // k
    return total


@lru_cache(maxsize=16)
def _ln2(p: int) -> int:
    return 2 * _atanh((1 << p) // 3, p)


def _fixed(n: Number, p: int) -> int:
    shift = n.e + p
    return n.m << shift if shift >= 0 else n.m >> -shift


def _top(n: Number) -> int:
    return n.m.bit_length() + n.e


def _sine(x: int, p: int, start: int) -> int:
    """sin x (start 1) or cos x (start 0) for 0 <= x < 1."""
    square = x * x >> p
    term, total, k = (x if start else 1 << p), 0, start
    while term:
        total += term if (k - start) % 4 == 0 else -term
        term = (term * square >> p) // ((k + 1) * (k + 2))
        k += 2
    return total


def _atan(x: int, p: int) -> int:
    """atan x for 0 <= x <= 1."""
    halvings = 0
    while x >> p - 4:
        x = (x << p) // ((1 << p) + isqrt((1 << 2 * p) + x * x))
        halvings += 1
    square, term, total, k = x * x >> p, x, x, 1
    while term:
        term = term * square >> p
        k += 2
        total += term // k if k & 2 == 0 else -(term // k)
    return total << halvings


def _reduce(n: Number, p: int) -> tuple[int, int]:
    """(quadrant, rest) of an argument below 2**63, the rest in [-pi/4, pi/4]."""
    x = _fixed(n, p)
    half_pi = pi(_REDUCTION_BITS - 2) << p - _REDUCTION_BITS + 1
    quadrant = (2 * x + half_pi) // (2 * half_pi)
    return quadrant, x - quadrant * half_pi


def _tiny(env: Environment, n: Number, factor: int) -> int:
    """A function that is factor / 2**_GUARD * n up to a relative error below any precision."""
    return _rounded_at(env, n.sign, n.m * factor, n.e - _GUARD)


def _trigonometric(env: Environment, name: str, n: Number) -> int:
    if _top(n) < _TINY and not name.endswith(("cos", "_c")):
        return _tiny(env, n, (1 << _GUARD) + (1 if name == "tan" else -1))
    p = _GUARD + 128 + max(0, min(-_top(n), -_TINY))
    quadrant, rest = _reduce(n, p)
    negative = rest < 0
    s, c = _sine(abs(rest), p, 1), _sine(abs(rest), p, 0)
    c -= c == 1 << p  # below 1 by less than p bits can say
    s = -s if negative else s
    sine, cosine = ((s, c), (c, -s), (-s, -c), (-c, s))[quadrant & 3]
    if name in ("sin", "sincos_s"):
        value = -sine if n.sign else sine
    elif name in ("cos", "sincos_c"):
        value = cosine
    else:
        value = (sine << p) // cosine if cosine else 0
        value = -value if n.sign else value
    return _rounded(env, value, p)


def _rounded(env: Environment, value: int, p: int) -> int:
    return _rounded_at(env, int(value < 0), abs(value), -p)


def _rounded_at(env: Environment, sign: int, m: int, e: int) -> int:
    env.flags |= INEXACT
    return round_pack(env, F80, sign, m, e, True)


def transcendental(env: Environment, name: str, bits: list[int], numbers: list[Number]) -> tuple[int, int | None]:
    """(value, condition codes or None for C1 = rounded up).  No operand is a NaN."""
    x = numbers[0]
    if name in ("sin", "cos", "tan", "sincos_s", "sincos_c"):
        if x.kind == INFINITE:
            env.flags |= INVALID
            return F80.indefinite, 0
        if x.kind == FINITE and _top(x) > 63:
            return bits[0], _C2
        _denormals(env, x)
        if x.kind == ZERO:
            return (_ONE if name in ("cos", "sincos_c") else bits[0]), 0
        if name == "sincos_c":  # the instruction raises what its sine raises
            _trigonometric(env, "sin", x)
        return _trigonometric(env, name, x), None
    if name == "2xm1":
        return _power(env, x, bits[0]), None
    if name == "patan":
        return _arc_tangent(env, numbers[1], x), None
    return _logarithm(env, x, numbers[1], bits[0], name == "yl2xp1"), None


def _denormals(env: Environment, *numbers: Number) -> None:
    if any(n.denormal for n in numbers):
        env.flags |= DENORMAL


def _power(env: Environment, x: Number, bits: int) -> int:
    """2**x - 1; outside of [-1, 1] the manual leaves the result open: the argument comes back."""
    if x.kind == INFINITE:
        return 1 << 79 | _ONE if x.sign else bits
    _denormals(env, x)
    if x.kind == ZERO:
        return bits
    if _top(x) >= 1:
        env.flags |= INEXACT
        if x.m & x.m - 1 == 0 and _top(x) == 1:
            return 1 << 79 | _HALF if x.sign else _ONE
        return bits
    if _top(x) < _TINY:
        return _tiny(env, x, _ln2(_GUARD))
    p = _GUARD + max(0, -_top(x))
    y = _fixed(x, p) * _ln2(p) >> p
    y = -y if x.sign else y
    term, total, k = y, 0, 1
    while term not in (0, -1):
        total += term
        k += 1
        term = (term * y >> p) // k
    return _rounded(env, total, p)


def _arc_tangent(env: Environment, y: Number, x: Number) -> int:
    """The angle of the point (x, y) (SDM 2A FPATAN table)."""
    _denormals(env, x, y)
    if y.kind == ZERO or (x.kind == INFINITE and y.kind != INFINITE):
        return _angle(env, y.sign, 4) if x.sign else F80.zero(y.sign)
    if y.kind == INFINITE:
        return _angle(env, y.sign, (3 if x.sign else 1) if x.kind == INFINITE else 2)
    if x.kind == ZERO:
        return _angle(env, y.sign, 2)
    ratio = _top(y) - _top(x)
    if ratio < _TINY and not x.sign:
        q = (y.m << 2 * _GUARD) // x.m - 1
        return _rounded_at(env, y.sign, q, y.e - x.e - 2 * _GUARD)
    if abs(ratio) > 2 * -_TINY:
        return _angle(env, y.sign, 2 if ratio > 0 else 4)
    p = _GUARD + 80 + abs(ratio)
    low = min(x.e, y.e)
    m, n = y.m << y.e - low, x.m << x.e - low
    if m <= n:
        value = _atan((m << p) // n, p)
    else:
        value = pi(p) // 2 - _atan((n << p) // m, p)
    if x.sign:
        value = pi(p) - value
    return _rounded(env, -value if y.sign else value, p)


def _angle(env: Environment, sign: int, quarters: int) -> int:
    value = pi(_GUARD) * quarters // 4
    return _rounded(env, -value if sign else value, _GUARD)


def _logarithm(env: Environment, x: Number, y: Number, bits: int, plus_one: bool) -> int:
    """y * log2(x), or y * log2(x + 1); the manual leaves the latter open for |x| >= 1 - sqrt(1/2): from 1 on, x comes back."""
    if plus_one:
        at_zero, at_one, below_one, negative = False, x.kind == ZERO, bool(x.sign), bool(x.sign) and x.kind == INFINITE
    else:
        at_zero = x.kind == ZERO
        at_one = x.kind == FINITE and _top(x) == 1 and x.m & x.m - 1 == 0
        below_one = at_zero or (x.kind == FINITE and _top(x) < 1)
        negative = bool(x.sign) and not at_zero
    if negative or (y.kind == ZERO and (x.kind == INFINITE or at_zero)) or (y.kind == INFINITE and at_one):
        env.flags |= INVALID
        return F80.indefinite
    if at_zero:
        if y.kind != INFINITE:
            env.flags |= ZERO_DIVIDE
        return F80.signed_infinity(y.sign ^ 1)
    _denormals(env, x, y)
    sign = y.sign ^ below_one
    if INFINITE in (x.kind, y.kind):
        return F80.signed_infinity(sign)
    if at_one or y.kind == ZERO:
        return F80.zero(y.sign ^ x.sign if plus_one else sign)
    if plus_one and _top(x) > 0:
        env.flags |= INEXACT
        return bits
    if plus_one and _top(x) < _TINY:
        q = (x.m << 2 * _GUARD) // _ln2(_GUARD)
        return _rounded_at(env, sign, q * y.m, x.e + y.e - _GUARD)
    p = _GUARD + 128
    if plus_one and _top(x) < 0:
        d = -_fixed(x, p) if x.sign else _fixed(x, p)
        value = _log2_ratio(d, (2 << p) + d, p)
    else:
        if plus_one:
            x = Number(FINITE, 0, (1 << -x.e) + (-x.m if x.sign else x.m), x.e)
        value = _log2(x, p)
    return _rounded_at(env, sign, abs(value) * y.m, y.e - p)


def _log2_ratio(d: int, total: int, p: int) -> int:
    """log2 of m, given m - 1 and m + 1."""
    value = (2 * _atanh((abs(d) << p) // total, p) << p) // _ln2(p)
    return -value if d < 0 else value


def _log2(x: Number, p: int) -> int:
    shift = _top(x)
    if x.m * x.m < 1 << 2 * x.m.bit_length() - 1:  # below sqrt(1/2) of its power of two
        shift -= 1
    m = _fixed(x._replace(e=x.e - shift), p)
    return (shift << p) + _log2_ratio(m - (1 << p), m + (1 << p), p)
