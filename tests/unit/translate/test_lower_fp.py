"""Lowered floating-point operations against their meaning: every operation and format on hard operands."""

from __future__ import annotations

import multiprocessing
import platform
import random
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from ringfence.ir import softfloat
from ringfence.ir.softfloat_core import F32, F64, F80, Format

from .fp_native import Operation, Result, run

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="lowered operations are instructions of an x86-64 host")

CASES = 60
ONE_ULP = frozenset(("sin", "cos", "tan", "sincos_s", "sincos_c", "2xm1", "patan", "yl2x", "yl2xp1"))
APPROXIMATE = frozenset(("rcp", "rsqrt"))
SCALAR = {"ss": 32, "sd": 64, "ps": 128, "pd": 128}
C1 = 1 << 9


def operations() -> list[Operation]:
    found = []
    for fmt, w in SCALAR.items():
        found += [Operation(name, fmt, w, (w, w)) for name in ("add", "sub", "mul", "div", "min", "max")]
        found.append(Operation("sqrt", fmt, w, (w,)))
        found += [Operation("cmp", fmt, w, (w, w), k) for k in range(8)]
        found += [Operation("round", fmt, w, (w,), k) for k in (0, 1, 2, 3, 4, 8, 12)]
        if fmt in ("ss", "ps"):
            found += [Operation(name, fmt, w, (w,)) for name in ("rcp", "rsqrt")]
        if w == 128:
            found += [Operation(name, fmt, w, (w, w)) for name in ("addsub", "hadd", "hsub")]
            found += [Operation("dp", fmt, w, (w, w), k) for k in (0xFF, 0x31, 0x73, 0xF8)]
        else:
            found += [Operation(name, fmt, 3, (w, w)) for name in ("comi", "ucomi")]
            found += [Operation("cvt", "si2" + fmt, w, (n,)) for n in (32, 64)]
            found += [Operation(name, fmt + "2si", n, (w,)) for n in (32, 64) for name in ("cvt", "cvtt")]
    found += [Operation("cvt", "ss2sd", 64, (32,)), Operation("cvt", "sd2ss", 32, (64,)), Operation("cvt", "dq2pd", 128, (64,))]
    found += [Operation("cvt", "ps2pd", 128, (64,)), Operation("cvt", "pd2ps", 128, (128,)), Operation("cvt", "dq2ps", 128, (128,))]
    found += [Operation(name, f, 128, (128,)) for name in ("cvt", "cvtt") for f in ("ps2dq", "pd2dq")]
    for fmt, w in (("x87", 80), ("x87.f32", 32), ("x87.f64", 64)):
        found += [Operation(name, fmt, 96, (80, w)) for name in ("add", "sub", "subr", "mul", "div", "divr")]
        found += [Operation(name, fmt, 16, (80, w)) for name in ("com", "ucom") if name == "com" or w == 80]
    found += [Operation(name, "x87", 16, (80, 80)) for name in ("comi", "ucomi")]
    found += [Operation("load", f"x87.f{w}", 96, (w,)) for w in (32, 64)]
    found += [Operation("load", f"x87.i{w}", 80, (w,)) for w in (16, 32, 64)]
    found += [Operation("store", f"x87.f{w}", w + 16, (80,)) for w in (32, 64)]
    found += [Operation(name, f"x87.i{w}", w + 16, (80,)) for w in (16, 32, 64) for name in ("store", "storet")]
    found += [Operation("load", "x87.bcd", 80, (80,)), Operation("store", "x87.bcd", 96, (80,))]
    unary = ("sqrt", "rndint", "sin", "cos", "tan", "sincos_s", "sincos_c", "2xm1", "xtract_s", "xtract_e")
    found += [Operation(name, "x87", 96, (80,)) for name in unary]
    found += [Operation(name, "x87", 96, (80, 80)) for name in ("scale", "prem", "prem1", "patan", "yl2x", "yl2xp1")]
    found += [Operation("constant_" + name, "x87", 80, ()) for name in ("pi", "l2t", "l2e", "lg2", "ln2")]
    return found


def number(rng: random.Random, f: Format) -> int:
    """A number of any class, mostly of moderate size."""
    precision, sign = f.precision, rng.getrandbits(1) << f.width - 1
    fraction = rng.getrandbits(precision - 1)
    if rng.random() < 0.5:
        fraction = fraction >> (keep := rng.randrange(precision - 1)) << keep
    choice = rng.random()
    field = f.emax + rng.randrange(-40, 40) if choice < 0.55 else rng.randrange(f.top) if choice < 0.7 else 0 if choice < 0.8 else f.top
    if choice > 0.9:
        return sign | rng.choice((0, f.infinity, f.infinity | 1, f.infinity | f.quiet_bit, f.indefinite))
    if not f.explicit:
        return sign | field << precision - 1 | fraction
    leading = (field != 0) ^ (rng.random() < 0.03)
    return sign | field << 64 | leading << 63 | fraction


def operand(rng: random.Random, operation: Operation, w: int) -> int:
    fmt = operation.fmt
    if fmt.startswith("x87"):
        if operation.fp == "load" and fmt.startswith("x87.i"):
            return rng.getrandbits(w) >> rng.randrange(w)
        if operation.fp == "load" and fmt == "x87.bcd":
            return rng.getrandbits(1) << 79 | int(str(rng.randrange(10**18) // 10 ** rng.randrange(18)), 16)
        return number(rng, {32: F32, 64: F64, 80: F80}[w])
    source = fmt.split("2")[0]
    if source in ("si", "dq"):
        return rng.getrandbits(w) >> rng.randrange(w)
    f = F32 if source in ("ss", "ps") else F64
    return sum(number(rng, f) << k for k in range(0, w, f.width))


def expected(operation: Operation, mxcsr: int, fcw: int, operands: tuple[int, ...]) -> tuple[int, int, int]:
    """(value, MXCSR flags, FSW flags) by softfloat."""
    state = {"mxcsr": mxcsr, "fcw": fcw, "fsw": 0, "rip": 0, "cr4": 0x400}
    interpreter = SimpleNamespace(state=state, commits=[])
    args = [SimpleNamespace(w=w) for w in operation.widths]
    values = list(operands)
    if operation.immediate is not None:
        args.append(SimpleNamespace(w=8))
        values.append(operation.immediate)
    op: Any = SimpleNamespace(at={"fp": operation.fp, "fmt": operation.fmt}, w=operation.w, args=args)
    value = softfloat.operate(interpreter, op, values)
    flags = {"mxcsr": 0, "fsw": 0}
    for field, low, _, bit in interpreter.commits:
        flags[field] |= bit << low
    return value, flags["mxcsr"], flags["fsw"] & 0x3F


def same(operation: Operation, operands: tuple[int, ...], got: Result, wanted: tuple[int, int, int]) -> bool:
    value, mxcsr_flags, fsw_flags = wanted
    if (got.mxcsr_flags, got.fsw_flags) != (mxcsr_flags, fsw_flags):
        return False
    if operation.fp in APPROXIMATE:
        return all(
            abs(float_of(got.value >> k) - float_of(value >> k)) <= 4 * 2.0**-12 * abs(float_of(value >> k))
            or (got.value ^ value) >> k & 0xFFFFFFFF == 0
            for k in range(0, operation.w, 32)
        )
    if operation.fp in ONE_ULP:
        low = (1 << 80) - 1
        return abs((got.value & low) - (value & low)) <= 1 and not (got.value ^ value) >> 80 & ~C1
    return got.value == value


def float_of(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]
    return value


def open_result(operation: Operation, operands: tuple[int, ...], value: int) -> bool:
    """What the manual leaves to the processor."""
    if operation.fp in ("2xm1", "yl2xp1"):
        return operands[0] >> 64 & 0x7FFF >= 0x3FFD  # outside of the function's domain, or near its end
    # The quotient's bits of a remainder that is not a number.
    return operation.fp in ("prem", "prem1") and value >> 64 & 0x7FFF == 0x7FFF


@pytest.fixture(scope="module")
def outcomes() -> list[tuple[Operation, int, int, tuple[int, ...], Result]]:
    rng = random.Random(5)
    work = []
    for operation in operations():
        cases = []
        for _ in range(CASES):
            mxcsr = 0x1F80 | rng.choice((0, 0, 0x8000, 0x40, 0x8040)) | rng.randrange(4) << 13
            fcw = 0x7F | rng.choice((0, 2, 3)) << 8 | rng.randrange(4) << 10
            cases.append((mxcsr, fcw, tuple(operand(rng, operation, w) for w in operation.widths)))
        work.append((operation, cases))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        results = pool.apply_async(run, (work,)).get(timeout=100)
    return [(op, *case, got) for (op, cases), found in zip(work, results, strict=True) for case, got in zip(cases, found, strict=True)]


def test_results_and_flags(outcomes: list[tuple[Operation, int, int, tuple[int, ...], Result]]) -> None:
    wrong = []
    for operation, mxcsr, fcw, operands, got in outcomes:
        wanted = expected(operation, mxcsr, fcw, operands)
        if not open_result(operation, operands, wanted[0]) and not same(operation, operands, got, wanted):
            wrong.append(f"{operation} mxcsr={mxcsr:#x} fcw={fcw:#x} {[hex(x) for x in operands]}: {got}, not {[hex(x) for x in wanted]}")
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong[:20])


def test_stack_stays_empty(outcomes: list[tuple[Operation, int, int, tuple[int, ...], Result]]) -> None:
    assert not [o for o in outcomes if not o[4].stack_depth_kept]
