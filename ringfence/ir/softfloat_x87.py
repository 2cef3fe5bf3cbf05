"""The x87's operations on Python ints (SDM 1 chapter 8): formats "x87", "x87.f32", "x87.f64", "x87.i16" … "x87.bcd".

Register values are 80 bits wide.  Other results carry the status word's condition codes (C0-C3 in their places, bits 8, 9, 10
and 14; B too) in 16 bits above the value: 96 bits for a register, 48 for a stored f32 and so on; integers load without.

* add sub subr mul div divr, com ucom comi ucomi: (st, other); the format is that of `other`.  The r forms take other first.
  The i forms yield their codes even when an exception is unmasked: B tells.
* load, store, storet (truncating); sqrt rndint xtract_s xtract_e sin cos tan sincos_s sincos_c 2xm1: (st).
* scale prem prem1 patan yl2x yl2xp1: (st0, st1).
* flags: the sticky flags that are not in the state; clear; control: takes a new control word; pending: an unmasked
  exception waits (#MF); stack: a stack fault with these condition codes (value, mask), which raises when it is unmasked;
  stack_quiet does not, but yields 1.
"""

from __future__ import annotations

from typing import Any

from ringfence.ir.ops import signed
from ringfence.ir.softfloat_core import (
    BEFORE_RESULT,
    DENORMAL,
    F32,
    F64,
    F80,
    FINITE,
    INEXACT,
    INFINITE,
    INVALID,
    NAN,
    NEAREST,
    OVERFLOW,
    UNDERFLOW,
    UNSUPPORTED,
    UP,
    ZERO,
    ZERO_DIVIDE,
    Environment,
    Format,
    Number,
    add,
    divide,
    encode,
    from_int,
    multiply,
    order,
    quiet,
    round_pack,
    square_root,
    subtract,
    to_int,
    to_integral,
    unpack,
)
from ringfence.ir.softfloat_math import transcendental

C0, C1, C2, C3 = 1 << 8, 1 << 9, 1 << 10, 1 << 14
_ERROR_SUMMARY_BIT, _BUSY, _STACK_FAULT = 7, 1 << 15, 1 << 6
_PRECISION = (24, 64, 53, 64)
_ARITHMETIC = {"add": add, "sub": subtract, "subr": subtract, "mul": multiply, "div": divide, "divr": divide}
_MEMORY = {"x87.f32": F32, "x87.f64": F64}
_NO_STATUS = -1
_BCD_INDEFINITE = 0xFFFFC << 60
_TRANSCENDENTAL = frozenset(("sin", "cos", "tan", "sincos_s", "sincos_c", "2xm1", "patan", "yl2x", "yl2xp1"))
# Constants (SDM 2A FLD1…): exponent field, significand cut off, whether rounding to nearest goes up.
_CONSTANTS = {
    "constant_pi": (0x4000, 0xC90FDAA22168C234, True),
    "constant_l2t": (0x4000, 0xD49A784BCD1B8AFE, False),
    "constant_l2e": (0x3FFF, 0xB8AA3B295C17F0BB, True),
    "constant_lg2": (0x3FFD, 0x9A209A84FBCFF798, True),
    "constant_ln2": (0x3FFE, 0xB17217F7D1CF79AB, True),
}


# The condition codes that an instruction sets even when it ends with an unmasked exception; others: C1.
_CODES_LEFT = {"com": C0 | C1 | C2 | C3, "ucom": C0 | C1 | C2 | C3} | dict.fromkeys(
    ("sin", "cos", "tan", "sincos_s", "sincos_c", "prem", "prem1"), C1 | C2
)


class FloatTrap(Exception):
    """An unmasked exception: the instruction ends without any effect but `commits`.  `vector` is the fault to deliver at once;
    None: it ends as usual, and the next waiting instruction faults."""

    def __init__(self, vector: int | None, commits: list[Any] | None = None) -> None:
        super().__init__(vector)
        self.vector = vector
        self.commits = commits or []


def operate(interpreter: Any, op: Any, a: list[int]) -> int:
    name, fmt = op.at["fp"], op.at["fmt"]
    state = interpreter.state
    masks = state["fcw"] & 0x3F
    match name:
        case "flags" | "clear" | "control":
            return 0
        case "pending":
            return int(state["fsw"] >> _ERROR_SUMMARY_BIT & 1)
        case "stack" | "stack_quiet":
            if masks & INVALID:
                return 0
            commits = _raised(state, INVALID | _STACK_FAULT, True)
            if name == "stack":
                raise FloatTrap(None, commits + _codes(a[0] << 8, a[1] << 8))
            interpreter.commits += commits
            return 1
    scaled = fmt == "x87" or name not in ("store", "storet")
    env = Environment(state["fcw"] >> 10 & 3, masks, scaled=scaled)
    value, codes = _compute(env, name, fmt, a, state["fcw"], op.w)
    raised = env.flags & ~masks
    # AMD's processors load a denormal number although they report it; the judge is one of them.
    before = BEFORE_RESULT & ~DENORMAL if name == "load" else BEFORE_RESULT
    suppressed = bool(raised & before) and not name.endswith("comi")
    if suppressed:
        env.flags &= BEFORE_RESULT
    elif raised & (OVERFLOW | UNDERFLOW) and not scaled:
        suppressed = True
        env.flags &= ~INEXACT
    commits = _raised(state, env.flags, bool(raised))
    if suppressed:
        raise FloatTrap(None, commits + _codes((codes or 0) if name in ("com", "ucom") else 0, _CODES_LEFT.get(name, C1)))
    interpreter.commits += commits
    if codes is _NO_STATUS:
        return value
    width: int = op.w
    status = (codes if codes is not None else C1 * env.up) | _BUSY * bool(raised)
    return status << width - 16 | value


def _raised(state: Any, flags: int, summary: bool) -> list[Any]:
    """Commits that set these bits of the status word."""
    commits: list[Any] = [("fsw", n, 1, 1) for n in range(7) if flags >> n & 1]
    if summary:
        commits += [("fsw", _ERROR_SUMMARY_BIT, 1, 1), ("fsw", 15, 1, 1), ("fip", 0, 64, state["rip"])]
    return commits


def _codes(codes: int, which: int) -> list[Any]:
    return [("fsw", n, 1, codes >> n & 1) for n in (8, 9, 10, 14) if which >> n & 1]


def _compute(env: Environment, name: str, fmt: str, a: list[int], fcw: int, w: int) -> tuple[int, int | None]:
    """(value, condition codes; None for C1 = rounded up; _NO_STATUS for loads)."""
    if name == "load":
        return _load(env, fmt, a[0], w), 0 if fmt in _MEMORY else _NO_STATUS
    if name in _CONSTANTS:
        field, significand, upwards = _CONSTANTS[name]
        return field << 64 | significand + (env.rounding == UP or (env.rounding == NEAREST and upwards)), _NO_STATUS
    if name in ("store", "storet"):
        return _store(env, fmt, unpack(F80, a[0]), 3 if name == "storet" else env.rounding), None
    x = unpack(F80, a[0])
    if name in _ARITHMETIC:
        y = unpack(_MEMORY.get(fmt, F80), a[1])
        if name.endswith("r"):
            x, y = y, x
        nan = _nan(env, x, y)
        if nan is not None:
            return nan, None
        env.precision = _PRECISION[fcw >> 8 & 3]
        return _ARITHMETIC[name](env, F80, x, y), None
    if name in ("com", "ucom", "comi", "ucomi"):
        return 0, _compare(env, x, unpack(_MEMORY.get(fmt, F80), a[1]), name.startswith("com"))
    numbers = [unpack(F80, v) for v in a]
    nan = _nan(env, *numbers)
    if nan is not None:
        return nan, 0
    if name in _TRANSCENDENTAL:
        return transcendental(env, name, a, numbers)
    match name:
        case "sqrt":
            env.precision = _PRECISION[fcw >> 8 & 3]
            return square_root(env, F80, x), None
        case "rndint":
            return _round(env, x, a[0]), None
        case "scale":
            return _scale(env, x, numbers[1], a[0]), None
        case "prem" | "prem1":
            return _remainder(env, x, numbers[1], a[0], name == "prem1")
        case "xtract_s" | "xtract_e":
            return _extract(env, x, a[0], name == "xtract_e"), 0
    raise KeyError(name)


def _nan(env: Environment, *numbers: Number) -> int | None:
    """The NaN that these operands make (SDM 1 table 4-7), None when there is none among them."""
    if any(n.kind == UNSUPPORTED for n in numbers):
        env.flags |= INVALID
        return F80.indefinite
    nans = [n for n in numbers if n.kind == NAN]
    if not nans:
        return None
    if any(n.signaling for n in nans):
        env.flags |= INVALID
    if len(nans) == 2 and nans[0].signaling != nans[1].signaling:
        return quiet(F80, nans[1] if nans[0].signaling else nans[0])
    return quiet(F80, max(nans, key=lambda n: (n.m, -n.sign)))


def _load(env: Environment, fmt: str, bits: int, w: int) -> int:
    if fmt == "x87.bcd":
        magnitude = sum((bits >> 4 * k & 15) * 10**k for k in range(18))
        return from_int(env, F80, magnitude) | (bits >> 79) << 79
    if fmt not in _MEMORY:
        return from_int(env, F80, signed(bits, int(fmt[5:])))
    n = unpack(_MEMORY[fmt], bits)
    nan = _nan(env, n)
    if nan is not None:
        return nan
    if n.kind == INFINITE:
        return F80.signed_infinity(n.sign)
    if n.denormal:
        env.flags |= DENORMAL
    return encode(F80, n.sign, n.m, n.e)


def _store(env: Environment, fmt: str, x: Number, rounding: int) -> int:
    if fmt in _MEMORY:
        return _narrow(env, _MEMORY[fmt], x)
    if fmt == "x87.bcd":
        q, inexact, up = to_integral(rounding, x)
        if x.kind not in (FINITE, ZERO) or q >= 10**18:
            env.flags |= INVALID
            return _BCD_INDEFINITE
        env.flags |= INEXACT * inexact
        env.up = up
        return x.sign << 79 | int(str(q), 16)
    return to_int(env, x, int(fmt[5:]), rounding)


def _narrow(env: Environment, f: Format, x: Number) -> int:
    if x.kind == UNSUPPORTED:
        env.flags |= INVALID
        return f.indefinite
    if x.kind == NAN:
        if x.signaling:
            env.flags |= INVALID
        return quiet(f, x)
    if x.kind == INFINITE:
        return f.signed_infinity(x.sign)
    return round_pack(env, f, x.sign, x.m, x.e)


def _compare(env: Environment, x: Number, y: Number, signal_quiet: bool) -> int:
    kinds = (x.kind, y.kind)
    if NAN in kinds or UNSUPPORTED in kinds:
        if signal_quiet or UNSUPPORTED in kinds or x.signaling or y.signaling:
            env.flags |= INVALID
        return C3 | C2 | C0
    if x.denormal or y.denormal:
        env.flags |= DENORMAL
    return (C0, C3, 0)[order(x, y) + 1]


def _round(env: Environment, x: Number, bits: int) -> int:
    if x.kind != FINITE:
        return bits
    if x.denormal:
        env.flags |= DENORMAL
    q, inexact, env.up = to_integral(env.rounding, x)
    env.flags |= INEXACT * inexact
    return encode(F80, x.sign, q, 0)


def _scale(env: Environment, x: Number, y: Number, bits: int) -> int:
    if y.kind == INFINITE and x.kind == (INFINITE if y.sign else ZERO):
        env.flags |= INVALID
        return F80.indefinite
    if x.denormal or y.denormal:
        env.flags |= DENORMAL
    if x.kind != FINITE:
        return bits
    if y.kind == INFINITE:
        return F80.zero(x.sign) if y.sign else F80.signed_infinity(x.sign)
    # More than this overflows or underflows from anywhere in the format.
    amount = min(y.m >> -y.e if y.e < 0 else y.m << min(y.e, 20), 1 << 17)
    return round_pack(env, F80, x.sign, x.m, x.e + (-amount if y.sign else amount))


def _remainder(env: Environment, x: Number, y: Number, bits: int, nearest: bool) -> tuple[int, int | None]:
    if x.kind == INFINITE or y.kind == ZERO:
        env.flags |= INVALID
        return F80.indefinite, 0
    if x.denormal or y.denormal:
        env.flags |= DENORMAL
    if x.kind == ZERO:
        return bits, 0
    if y.kind == INFINITE:
        return round_pack(env, F80, x.sign, x.m, x.e), 0
    distance = (x.m.bit_length() + x.e) - (y.m.bit_length() + y.e)
    low = min(x.e, y.e)
    m, n = x.m << x.e - low, y.m << y.e - low
    sign = x.sign
    if distance >= 64:
        n <<= distance - (distance & 31 | 32)
        return round_pack(env, F80, sign, m % n, low), C2
    q, rest = divmod(m, n)
    if nearest and (2 * rest > n or (2 * rest == n and q & 1)):
        q, rest, sign = q + 1, n - rest, sign ^ 1
    codes = C0 * (q >> 2 & 1) | C3 * (q >> 1 & 1) | C1 * (q & 1)
    return (round_pack(env, F80, sign, rest, low) if rest else F80.zero(x.sign)), codes


def _extract(env: Environment, x: Number, bits: int, exponent: bool) -> int:
    if x.denormal:
        env.flags |= DENORMAL
    if x.kind == ZERO:
        env.flags |= ZERO_DIVIDE
        return F80.signed_infinity(1) if exponent else bits
    if x.kind == INFINITE:
        return F80.infinity if exponent else bits
    if exponent:
        return from_int(env, F80, x.m.bit_length() - 1 + x.e)
    return encode(F80, x.sign, x.m, 1 - x.m.bit_length())
