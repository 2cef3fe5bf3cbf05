"""Floating point on Python ints: the reference meaning of the `fp` operation.

`i.fp(op, fmt, w, *values)` names the operation and the format:

* "ss", "sd", "ps", "pd": the SSE arithmetic of SDM 1 chapter 11 under MXCSR; values are 32, 64 or 128 bits wide.
  add sub mul div min max sqrt, addsub hadd hsub, cmp (third value: the predicate), comi ucomi (result: CF, PF, ZF from
  bit 0), round (second value: the immediate), dp (third: the immediate), rcp rsqrt.
* "ss2sd", "sd2si" …: `cvt` and `cvtt`, conversions.
* "x87…": see `softfloat_x87`.
* "mxcsr": `get` the sticky flags that are not in the state, `set` MXCSR.  Compiled code keeps the flags in the host's
  registers; the interpreter writes them to the state, bit by bit, so that several operations of one body add up.

An unmasked exception raises `FloatTrap`.
"""

from __future__ import annotations

from typing import Any

from ringfence.ir import softfloat_x87
from ringfence.ir.ops import join_lanes, mask, signed, split_lanes
from ringfence.ir.softfloat_core import (
    BEFORE_RESULT,
    DENORMAL,
    F32,
    F64,
    FINITE,
    INEXACT,
    INFINITE,
    INVALID,
    NAN,
    NEAREST,
    TRUNCATE,
    ZERO,
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
from ringfence.ir.softfloat_x87 import FloatTrap as FloatTrap

SIMD_VECTOR, UNDEFINED_VECTOR = 19, 6
_CR4_OSXMMEXCPT = 1 << 10
_LANES = {"ss": (F32, 1), "sd": (F64, 1), "ps": (F32, 4), "pd": (F64, 2)}
_ARITHMETIC = {"add": add, "sub": subtract, "mul": multiply, "div": divide}
# Predicates of CMPPS (SDM 2A CMPPD table 3-1): which orders hold (bit 0 less, 1 equal, 2 greater, 3 unordered), and
# whether a quiet NaN is an invalid operation.
_PREDICATES = ((2, False), (1, True), (3, True), (8, False), (13, False), (14, True), (12, True), (7, False))


def operate(interpreter: Any, op: Any, operands: list[int]) -> int:
    """The value of an `fp` operation; flags go to the interpreter's commit list."""
    name, fmt = op.at["fp"], op.at["fmt"]
    if fmt.startswith("x87"):
        return softfloat_x87.operate(interpreter, op, operands)
    if fmt == "mxcsr":
        return 0
    csr: int = interpreter.state["mxcsr"]
    masks = csr >> 7 & 0x3F
    env = Environment(csr >> 13 & 3, masks, bool(csr >> 6 & 1), bool(csr >> 15 & 1))
    result = _compute(env, name, fmt, op, operands)
    if raised := env.flags & ~masks:
        if raised & BEFORE_RESULT:
            env.flags &= BEFORE_RESULT | env.kept
    interpreter.commits += [("mxcsr", n, 1, 1) for n in range(6) if env.flags >> n & 1]
    if raised:
        raise FloatTrap(SIMD_VECTOR if interpreter.state["cr4"] & _CR4_OSXMMEXCPT else UNDEFINED_VECTOR, interpreter.commits)
    return result


def _compute(env: Environment, name: str, fmt: str, op: Any, a: list[int]) -> int:
    if name in ("cvt", "cvtt"):
        return _convert(env, fmt, a[0], op.args[0].w, op.w, TRUNCATE if name == "cvtt" else env.rounding)
    f, count = _LANES[fmt]
    w = f.width * count
    if name in ("comi", "ucomi"):
        return _compare_flags(env, f, a[0], a[1], name == "comi")
    x = split_lanes(a[0], w, f.width)
    match name:
        case "sqrt":
            out = [sqrt(env, f, p) for p in x]
        case "round":
            out = [round_integral(env, f, p, a[1]) for p in x]
        case "rcp" | "rsqrt":
            out = [approximate(f, p, name == "rsqrt") for p in x]
        case _:
            y = split_lanes(a[1], w, f.width)
            out = _pairs(env, f, name, x, y, a)
    return join_lanes(out, f.width)


def _pairs(env: Environment, f: Format, name: str, x: list[int], y: list[int], a: list[int]) -> list[int]:
    match name:
        case "min" | "max":
            return [extremum(env, f, p, q, name == "max") for p, q in zip(x, y, strict=True)]
        case "cmp":
            return [mask(f.width) * compare(env, f, p, q, a[2]) for p, q in zip(x, y, strict=True)]
        case "addsub":
            return [arithmetic(env, f, "add" if k & 1 else "sub", p, q) for k, (p, q) in enumerate(zip(x, y, strict=True))]
        case "hadd" | "hsub":
            both = x + y
            return [arithmetic(env, f, name[1:], both[k], both[k + 1]) for k in range(0, len(both), 2)]
        case "dp":
            return _dot_product(env, f, x, y, a[2])
    return [arithmetic(env, f, name, p, q) for p, q in zip(x, y, strict=True)]


def _nan(env: Environment, f: Format, *numbers: Number) -> int | None:
    """The NaN that an SSE operation yields (SDM 1 table 4-7: the first operand that is one), None without NaNs."""
    if all(n.kind != NAN for n in numbers):
        return None
    if any(n.signaling for n in numbers):
        env.flags |= INVALID
    return quiet(f, next(n for n in numbers if n.kind == NAN))


def arithmetic(env: Environment, f: Format, name: str, x: int, y: int) -> int:
    a, b = unpack(f, x, env.daz), unpack(f, y, env.daz)
    nan = _nan(env, f, a, b)
    return _ARITHMETIC[name](env, f, a, b) if nan is None else nan


def sqrt(env: Environment, f: Format, x: int) -> int:
    a = unpack(f, x, env.daz)
    nan = _nan(env, f, a)
    return square_root(env, f, a) if nan is None else nan


def _order(env: Environment, a: Number, b: Number, signal_quiet: bool) -> int:
    """0 less, 1 equal, 2 greater, 3 unordered."""
    if NAN in (a.kind, b.kind):
        if signal_quiet or a.signaling or b.signaling:
            env.flags |= INVALID
        return 3
    if a.denormal or b.denormal:
        env.flags |= DENORMAL
    return order(a, b) + 1


def extremum(env: Environment, f: Format, x: int, y: int, largest: bool) -> int:
    a, b = unpack(f, x, env.daz), unpack(f, y, env.daz)
    n, bits = (a, x) if _order(env, a, b, True) == (2 if largest else 0) else (b, y)
    return f.zero(n.sign) if n.kind == ZERO else bits


def compare(env: Environment, f: Format, x: int, y: int, predicate: int) -> int:
    holds, signal_quiet = _PREDICATES[predicate & 7]
    return holds >> _order(env, unpack(f, x, env.daz), unpack(f, y, env.daz), signal_quiet) & 1


def _compare_flags(env: Environment, f: Format, x: int, y: int, signal_quiet: bool) -> int:
    return (0b001, 0b100, 0b000, 0b111)[_order(env, unpack(f, x, env.daz), unpack(f, y, env.daz), signal_quiet)]


def round_integral(env: Environment, f: Format, x: int, immediate: int) -> int:
    """ROUNDSS and kin (SDM 2B): bits 1:0 the mode unless bit 2 chooses MXCSR's, bit 3 suppresses the precision flag."""
    a = unpack(f, x, env.daz)
    nan = _nan(env, f, a)
    if nan is not None:
        return nan
    if a.kind == INFINITE:
        return x
    q, inexact, _ = to_integral(env.rounding if immediate & 4 else immediate & 3, a)
    if inexact and not immediate & 8:
        env.flags |= INEXACT
    return encode(f, a.sign, q, 0)


def _dot_product(env: Environment, f: Format, x: list[int], y: list[int], immediate: int) -> list[int]:
    products = [arithmetic(env, f, "mul", p, q) if immediate >> 4 + k & 1 else 0 for k, (p, q) in enumerate(zip(x, y, strict=True))]
    while len(products) > 1 and not env.flags & ~env.masks:  # an unmasked exception ends it between the steps
        env.kept = env.flags
        products = [arithmetic(env, f, "add", products[k], products[k + 1]) for k in range(0, len(products), 2)]
    return [products[0] if immediate >> k & 1 else 0 for k in range(len(x))]


def approximate(f: Format, x: int, root: bool) -> int:
    """1/x or 1/sqrt(x) to 12 bits: one of the values that the manual allows (relative error below 1.5 * 2**-12)."""
    a = unpack(f, x, True)
    if a.kind == NAN:
        return quiet(f, a)
    if a.kind == ZERO:
        return f.signed_infinity(a.sign)
    if root and a.sign:
        return f.indefinite
    if a.kind == INFINITE:
        return f.zero(a.sign)
    env = Environment(NEAREST, 0x3F, ftz=True, precision=12)
    exact = Environment(NEAREST, 0x3F)
    one = Number(FINITE, 0, 1, 0)
    if root:
        a = unpack(F64, square_root(exact, F64, a))
    q, rest = divmod(one.m << 80, a.m)
    return round_pack(env, f, a.sign, q, -80 - a.e, rest != 0)


_SCALARS = {"ss": F32, "sd": F64, "ps": F32, "pd": F64}


def _convert(env: Environment, fmt: str, x: int, w_in: int, w_out: int, rounding: int) -> int:
    """`fmt` is source "2" destination: si a scalar integer of the value's width, dq 32-bit integers, others formats."""
    source, target = fmt.split("2")
    if source == "si":
        return from_int(env, _SCALARS[target], signed(x, w_in))
    if target == "si":
        return to_int(env, unpack(_SCALARS[source], x, env.daz), w_out, rounding)
    from_width = 32 if source == "dq" else _SCALARS[source].width
    to_width = 32 if target == "dq" else _SCALARS[target].width
    count = 1 if source in ("ss", "sd") else 128 // max(from_width, to_width)
    out = []
    for part in split_lanes(x & mask(from_width * count), from_width * count, from_width):
        if source == "dq":
            out.append(from_int(env, _SCALARS[target], signed(part, 32)))
        elif target == "dq":
            out.append(to_int(env, unpack(_SCALARS[source], part, env.daz), 32, rounding))
        else:
            out.append(_resize(env, _SCALARS[source], _SCALARS[target], part))
    return join_lanes(out, to_width)


def _resize(env: Environment, source: Format, target: Format, x: int) -> int:
    a = unpack(source, x, env.daz)
    nan = _nan(env, target, a)
    if nan is not None:
        return nan
    if a.kind == INFINITE:
        return target.signed_infinity(a.sign)
    if a.denormal:
        env.flags |= DENORMAL
    return round_pack(env, target, a.sign, a.m, a.e)
