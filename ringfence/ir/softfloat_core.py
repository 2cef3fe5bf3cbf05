"""IEEE 754 numbers on Python ints: formats, unpacking, one rounding step, and the operations on two numbers.

Everything is computed exactly (or with a sticky bit) and rounded once.  Flags follow the masked responses of SDM 1
chapters 4.9, 8.5 and 11.5; tininess is detected after rounding, as x86 does.  IEEE 754-2019 names the operations.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

INVALID, DENORMAL, ZERO_DIVIDE, OVERFLOW, UNDERFLOW, INEXACT = (1 << n for n in range(6))
BEFORE_RESULT = INVALID | DENORMAL | ZERO_DIVIDE  # these leave the destination alone when they are unmasked
NEAREST, DOWN, UP, TRUNCATE = range(4)
ZERO, FINITE, INFINITE, NAN, UNSUPPORTED = range(5)
X87_BIAS_ADJUST = 24576  # SDM 1 8.5.4: unmasked overflow and underflow deliver a scaled result


class Format:
    """A binary interchange format; `explicit` means that the leading bit of the significand is stored (f80)."""

    __slots__ = ("width", "precision", "emax", "emin", "explicit", "quiet_bit", "infinity", "indefinite", "top")

    def __init__(self, width: int, precision: int, exponent_bits: int, explicit: bool) -> None:
        self.width = width
        self.precision = precision
        self.emax = (1 << exponent_bits - 1) - 1
        self.emin = 1 - self.emax
        self.explicit = explicit
        self.top = (1 << exponent_bits) - 1  # the exponent field of infinities and NaNs
        self.quiet_bit = 1 << precision - 2
        self.infinity = self.top << (precision if explicit else precision - 1) | (1 << precision - 1 if explicit else 0)
        self.indefinite = 1 << width - 1 | self.infinity | self.quiet_bit

    def signed_infinity(self, sign: int) -> int:
        return sign << self.width - 1 | self.infinity

    def zero(self, sign: int) -> int:
        return sign << self.width - 1


F32 = Format(32, 24, 8, False)
F64 = Format(64, 53, 11, False)
F80 = Format(80, 64, 15, True)


class Number(NamedTuple):
    """(-1)**sign * m * 2**e; of a NaN, `m` is its fraction placed as in f80 (bit 62 the quiet bit, bit 63 set)."""

    kind: int
    sign: int
    m: int
    e: int
    denormal: bool = False

    @property
    def signaling(self) -> bool:
        return self.kind == NAN and not self.m >> 62 & 1

    def negated(self) -> Number:
        return self._replace(sign=self.sign ^ 1)


class Environment:
    """Rounding mode, masks and options of one operation, and what it raised."""

    __slots__ = ("rounding", "masks", "daz", "ftz", "precision", "scaled", "flags", "kept", "up")

    def __init__(
        self, rounding: int, masks: int, daz: bool = False, ftz: bool = False, precision: int | None = None, scaled: bool = False
    ) -> None:
        self.rounding = rounding
        self.masks = masks
        self.daz = daz
        self.ftz = ftz
        self.precision = precision  # x87 precision control: bits of significand, in place of the format's
        self.scaled = scaled  # x87 register results: unmasked overflow and underflow deliver a scaled value
        self.flags = 0
        self.kept = 0  # flags of completed steps: an unmasked exception of a later one does not take them back
        self.up = False  # the last rounding went away from zero (C1 of the x87)


def unpack(f: Format, bits: int, daz: bool = False) -> Number:
    sign = bits >> f.width - 1 & 1
    if f.explicit:
        exponent, m = bits >> 64 & f.top, bits & (1 << 64) - 1
        leading = m >> 63
        if exponent == f.top:
            if not leading:
                return Number(UNSUPPORTED, sign, m, 0)
            return Number(NAN if m << 1 & (1 << 64) - 1 else INFINITE, sign, m, 0)
        if exponent == 0:
            return Number(FINITE if m else ZERO, sign, m, f.emin - 63, m != 0)
        return Number(FINITE if leading else UNSUPPORTED, sign, m, exponent - f.emax - 63)
    fraction_bits = f.precision - 1
    exponent, m = bits >> fraction_bits & f.top, bits & (1 << fraction_bits) - 1
    if exponent == f.top:
        return Number(NAN, sign, 1 << 63 | m << 63 - fraction_bits, 0) if m else Number(INFINITE, sign, 0, 0)
    if exponent == 0:
        if not m or daz:
            return Number(ZERO, sign, 0, 0)
        return Number(FINITE, sign, m, f.emin - fraction_bits, True)
    return Number(FINITE, sign, m | 1 << fraction_bits, exponent - f.emax - fraction_bits)


def encode(f: Format, sign: int, m: int, e: int) -> int:
    """m * 2**e, which the format must hold exactly."""
    if not m:
        return f.zero(sign)
    shift = f.precision - m.bit_length()
    if e - shift < f.emin - (f.precision - 1):
        shift = e - (f.emin - (f.precision - 1))
    m = m << shift if shift >= 0 else m >> -shift
    e -= shift
    normal = m >> f.precision - 1
    field = e + f.precision - 1 + f.emax if normal else 0
    if f.explicit:
        return sign << 79 | field << 64 | m
    return sign << f.width - 1 | field << f.precision - 1 | m & (1 << f.precision - 1) - 1


def quiet(f: Format, n: Number) -> int:
    """The NaN in format f, quieted; bits below the format's are lost."""
    m = n.m | 1 << 62
    if f.explicit:
        return n.sign << 79 | f.top << 64 | m
    return n.sign << f.width - 1 | f.infinity | (m & (1 << 63) - 1) >> 64 - f.precision


def cut(rounding: int, sign: int, m: int, n: int, sticky: bool) -> tuple[int, bool, bool]:
    """m without its low n bits, rounded: (result, inexact, away from zero)."""
    if n <= 0:
        q, rest, half = m << -n, 0, 1
    else:
        q, rest, half = m >> n, m & (1 << n) - 1, 1 << n - 1
    inexact = bool(rest) or sticky
    if rounding == NEAREST:
        up = rest > half or (rest == half and (sticky or bool(q & 1)))
    elif rounding == TRUNCATE:
        up = False
    else:
        up = inexact and sign == (rounding == DOWN)
    return q + up, inexact, up


def round_pack(env: Environment, f: Format, sign: int, m: int, e: int, sticky: bool = False) -> int:
    """m * 2**e (a little more when `sticky`) in format f under `env`, with its flags."""
    if not m:
        return f.zero(sign)
    precision = env.precision or f.precision
    n = m.bit_length() - precision
    if m.bit_length() - 1 + e < f.emin:
        q, inexact, _ = cut(env.rounding, sign, m, n, sticky)
        if q.bit_length() - 1 + e + n < f.emin:
            if not env.masks & UNDERFLOW:
                env.flags |= UNDERFLOW | INEXACT * inexact
                if not env.scaled:  # the caller discards the result
                    return f.zero(sign)
                e += X87_BIAS_ADJUST
                if m.bit_length() - 1 + e < f.emin:  # FSCALE can go further than the adjustment (SDM 2A FSCALE)
                    env.flags |= INEXACT
                    return f.zero(sign)
            elif env.ftz:
                env.flags |= UNDERFLOW | INEXACT
                return f.zero(sign)
            else:
                lowest = max(n, f.emin - (precision - 1) - e)
                q, inexact, env.up = cut(env.rounding, sign, m, lowest, sticky)
                if inexact:
                    env.flags |= UNDERFLOW | INEXACT
                return encode(f, sign, q, e + lowest)
    q, inexact, up = cut(env.rounding, sign, m, n, sticky)
    env.up = up
    if inexact:
        env.flags |= INEXACT
    if q.bit_length() - 1 + e + n > f.emax:
        env.flags |= OVERFLOW
        if not env.masks & OVERFLOW:
            if not env.scaled:
                return f.zero(sign)
            if q.bit_length() - 1 + e + n - X87_BIAS_ADJUST <= f.emax:
                return encode(f, sign, q, e + n - X87_BIAS_ADJUST)
            env.flags |= INEXACT
            env.up = True
            return f.signed_infinity(sign)
        env.flags |= INEXACT
        env.up = env.rounding == NEAREST or (env.rounding != TRUNCATE and sign == (env.rounding == DOWN))
        if env.up:
            return f.signed_infinity(sign)
        return encode(f, sign, (1 << precision) - 1, f.emax - precision + 1)
    return encode(f, sign, q, e + n)


def _invalid(env: Environment, f: Format) -> int:
    env.flags |= INVALID
    return f.indefinite


def _note_denormals(env: Environment, *numbers: Number) -> None:
    if any(n.denormal for n in numbers):
        env.flags |= DENORMAL


def add(env: Environment, f: Format, a: Number, b: Number) -> int:
    if a.kind == INFINITE and b.kind == INFINITE and a.sign != b.sign:
        return _invalid(env, f)
    _note_denormals(env, a, b)
    if INFINITE in (a.kind, b.kind):
        return f.signed_infinity(a.sign if a.kind == INFINITE else b.sign)
    if a.kind == ZERO and b.kind == ZERO:
        return f.zero(a.sign if a.sign == b.sign else int(env.rounding == DOWN))
    low = min(n.e for n in (a, b) if n.kind == FINITE)
    total = sum((-n.m if n.sign else n.m) << n.e - low for n in (a, b) if n.kind == FINITE)
    if not total:
        return f.zero(int(env.rounding == DOWN))
    return round_pack(env, f, int(total < 0), abs(total), low)


def subtract(env: Environment, f: Format, a: Number, b: Number) -> int:
    return add(env, f, a, b.negated())


def multiply(env: Environment, f: Format, a: Number, b: Number) -> int:
    kinds, sign = (a.kind, b.kind), a.sign ^ b.sign
    if INFINITE in kinds and ZERO in kinds:
        return _invalid(env, f)
    _note_denormals(env, a, b)
    if INFINITE in kinds:
        return f.signed_infinity(sign)
    return round_pack(env, f, sign, a.m * b.m, a.e + b.e)


def divide(env: Environment, f: Format, a: Number, b: Number) -> int:
    sign = a.sign ^ b.sign
    if a.kind == b.kind and a.kind in (INFINITE, ZERO):
        return _invalid(env, f)
    if a.kind == INFINITE:
        _note_denormals(env, b)
        return f.signed_infinity(sign)
    if b.kind == ZERO:
        env.flags |= ZERO_DIVIDE
        return f.signed_infinity(sign)
    _note_denormals(env, a, b)
    if b.kind == INFINITE or a.kind == ZERO:
        return f.zero(sign)
    shift = max(0, 68 + b.m.bit_length() - a.m.bit_length())
    q, rest = divmod(a.m << shift, b.m)
    return round_pack(env, f, sign, q, a.e - b.e - shift, rest != 0)


def square_root(env: Environment, f: Format, a: Number) -> int:
    if a.kind == ZERO:
        return f.zero(a.sign)
    if a.sign:
        return _invalid(env, f)
    _note_denormals(env, a)
    if a.kind == INFINITE:
        return f.infinity
    shift = 140 + (a.e & 1)
    m = a.m << shift
    q = isqrt(m)
    return round_pack(env, f, 0, q, a.e - shift >> 1, q * q != m)


def order(a: Number, b: Number) -> int:
    """-1, 0 or 1; neither is a NaN."""

    def key(n: Number) -> tuple[int, int, int]:
        if n.kind == ZERO:
            return 0, 0, 0
        side = -1 if n.sign else 1
        return side * (2 if n.kind == INFINITE else 1), n.m * side if n.kind == FINITE else 0, n.e

    x, y = key(a), key(b)
    if x[0] != y[0] or abs(x[0]) != 1:
        return (x[0] > y[0]) - (x[0] < y[0])
    low = min(x[2], y[2])
    p, q = x[1] << x[2] - low, y[1] << y[2] - low
    return (p > q) - (p < q)


def to_integral(rounding: int, a: Number) -> tuple[int, bool, bool]:
    """The magnitude of a finite number rounded to an integer: (result, inexact, away from zero)."""
    return cut(rounding, a.sign, a.m, -a.e, False) if a.kind == FINITE else (0, False, False)


def to_int(env: Environment, a: Number, w: int, rounding: int) -> int:
    """The signed w-bit integer, or the integer indefinite with INVALID (SDM 1 4.8.3.5)."""
    if a.kind in (FINITE, ZERO) and a.m.bit_length() + a.e <= w:
        q, inexact, up = to_integral(rounding, a)
        value = -q if a.sign else q
        if -(1 << w - 1) <= value < 1 << w - 1:
            env.flags |= INEXACT * inexact
            env.up = up
            return value & (1 << w) - 1
    env.flags |= INVALID
    return 1 << w - 1


def from_int(env: Environment, f: Format, value: int) -> int:
    return round_pack(env, f, int(value < 0), abs(value), 0)
