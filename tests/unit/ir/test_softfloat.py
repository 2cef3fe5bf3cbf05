"""Softfloat against the arithmetic of Python and numpy, and flags, masks and special operands by the manual."""

from __future__ import annotations

import math
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.ir import softfloat
from ringfence.ir.softfloat import FloatTrap

IE, DE, ZE, OE, UE, PE = (1 << n for n in range(6))
MASKED, FTZ, DAZ = 0x1F80, 0x8000, 0x40
ONE, TINY, QUIET, SIGNALING, INFINITY = 0x3FF << 52, 1, 0x7FF8 << 48 | 5, 0x7FF << 52 | 7, 0x7FF << 52
INDEFINITE = 0xFFF8 << 48
EXTENDED_ONE = 0x3FFF << 64 | 1 << 63


def operate(op: str, fmt: str, w: int, *operands: tuple[int, int], mxcsr: int = MASKED, fcw: int = 0x37F) -> tuple[int, dict[str, int]]:
    """(value, fields after the commits) for operands (value, width)."""
    state = {"mxcsr": mxcsr, "fcw": fcw, "fsw": 0, "rip": 0x1000, "cr4": 0x400, "fip": 0}
    interpreter = SimpleNamespace(state=state, commits=[])
    described: Any = SimpleNamespace(at={"fp": op, "fmt": fmt}, w=w, args=[SimpleNamespace(w=width) for _, width in operands])
    value = softfloat.operate(interpreter, described, [v for v, _ in operands])
    return value, committed(state, interpreter.commits)


def committed(state: dict[str, int], commits: list[Any]) -> dict[str, int]:
    for field, low, w, value in commits:
        state[field] = state[field] & ~((1 << w) - 1 << low) | value << low
    return state


def double(op: str, a: int, b: int, mxcsr: int = MASKED) -> tuple[int, int]:
    """(value, flags)."""
    value, state = operate(op, "sd", 64, (a, 64), (b, 64), mxcsr=mxcsr)
    return value, state["mxcsr"] & 0x3F


def bits(x: float) -> int:
    return int.from_bytes(struct.pack("<d", x), "little")


bits64 = st.integers(0, (1 << 64) - 1)
bits32 = st.integers(0, (1 << 32) - 1)


def same(got: int, wanted: Any, w: int) -> bool:
    pattern = int(wanted.view(f"u{w // 8}"))
    return got == pattern or bool(np.isnan(wanted))


@given(bits64, bits64, st.sampled_from(["add", "sub", "mul", "div"]))
@settings(max_examples=300, deadline=None)
def test_doubles_round_as_the_host_does(a: int, b: int, name: str) -> None:
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]
    with np.errstate(all="ignore"):
        wanted = operation(np.uint64(a).view("f8"), np.uint64(b).view("f8"))
    assert same(double(name, a, b)[0], wanted, 64)


@given(bits32, bits32, st.sampled_from(["add", "sub", "mul", "div"]))
@settings(max_examples=300, deadline=None)
def test_singles_round_as_the_host_does(a: int, b: int, name: str) -> None:
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]
    with np.errstate(all="ignore"):
        wanted = operation(np.uint32(a).view("f4"), np.uint32(b).view("f4"))
    assert same(operate(name, "ss", 32, (a, 32), (b, 32))[0], wanted, 32)


@given(st.floats(min_value=0))
@settings(max_examples=200, deadline=None)
def test_square_roots(x: float) -> None:
    assert operate("sqrt", "sd", 64, (bits(x), 64))[0] == bits(math.sqrt(x))


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
@settings(max_examples=200, deadline=None)
def test_comparison_flags(a: float, b: float) -> None:
    value, _ = operate("comi", "sd", 3, (bits(a), 64), (bits(b), 64))
    assert value == (1 if a < b else 4 if a == b else 0)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
@settings(max_examples=200, deadline=None)
def test_integers_to_doubles_and_extended(n: int) -> None:
    raw = n & (1 << 64) - 1
    assert operate("cvt", "si2sd", 64, (raw, 64))[0] == bits(float(n))
    extended, _ = operate("load", "x87.i64", 80, (raw, 64))
    assert operate("store", "x87.i64", 80, (extended, 80))[0] & (1 << 64) - 1 == raw


@pytest.mark.parametrize(("mode", "wanted"), [(0, 2), (1, 2), (2, 3), (3, 2)])
def test_rounding_modes_of_conversions(mode: int, wanted: int) -> None:
    assert operate("cvt", "sd2si", 32, (bits(2.5), 64), mxcsr=MASKED | mode << 13)[0] == wanted


def test_first_nan_wins_and_is_quieted() -> None:
    assert double("add", SIGNALING, QUIET) == (SIGNALING | 1 << 51, IE)
    assert double("add", QUIET, SIGNALING) == (QUIET, IE)
    assert double("add", ONE, QUIET) == (QUIET, 0)


def test_invalid_operations() -> None:
    assert double("sub", INFINITY, INFINITY) == (INDEFINITE, IE)
    assert double("mul", INFINITY, 0) == (INDEFINITE, IE)
    assert double("div", 0, 0) == (INDEFINITE, IE)
    assert double("div", ONE, 0) == (INFINITY, ZE)
    assert operate("cvtt", "sd2si", 32, (bits(3e9), 64))[0] == 0x80000000


def test_minimum_returns_the_second_operand_when_unordered_or_zero() -> None:
    assert double("min", QUIET, ONE) == (ONE, IE)
    assert double("min", ONE, SIGNALING) == (SIGNALING, IE)
    assert double("max", 1 << 63, 0) == (0, 0)


def test_denormals_are_zero_and_flush_to_zero() -> None:
    assert double("add", TINY, ONE) == (ONE, DE | PE)
    assert double("add", TINY, ONE, MASKED | DAZ) == (ONE, 0)
    smallest = 1 << 52
    assert double("mul", smallest, bits(0.5)) == (1 << 51, 0)  # exact: tiny, but no underflow while that is masked
    assert double("mul", smallest, bits(0.5), MASKED | FTZ) == (0, UE | PE)


def test_unmasked_exception_faults_with_its_flag_set() -> None:
    state = {"mxcsr": MASKED & ~(ZE << 7), "cr4": 0x400}
    interpreter = SimpleNamespace(state=state, commits=[])
    op: Any = SimpleNamespace(at={"fp": "div", "fmt": "sd"}, w=64, args=[SimpleNamespace(w=64)] * 2)
    with pytest.raises(FloatTrap) as trap:
        softfloat.operate(interpreter, op, [ONE, 0])
    assert trap.value.vector == 19 and committed(dict(state), trap.value.commits)["mxcsr"] & 0x3F == ZE
    state["cr4"] = 0
    with pytest.raises(FloatTrap) as trap:
        softfloat.operate(interpreter, op, [ONE, 0])
    assert trap.value.vector == 6


def test_unmasked_x87_exception_ends_the_instruction_and_stays_pending() -> None:
    with pytest.raises(FloatTrap) as trap:
        operate("div", "x87", 96, (EXTENDED_ONE, 80), (0, 80), fcw=0x37F & ~ZE)
    assert trap.value.vector is None
    state = committed({"fsw": 0, "fip": 0}, trap.value.commits)
    assert state["fsw"] == 0x8080 | ZE and state["fip"] == 0x1000


def test_x87_prefers_the_larger_significand() -> None:
    small, large = 0x7FFF << 64 | 3 << 62 | 1, 0xFFFF << 64 | 3 << 62 | 2
    for pair in ((small, large), (large, small)):
        assert operate("add", "x87", 96, *((x, 80) for x in pair))[0] == large


def test_precision_control_and_condition_code() -> None:
    third = {pc: operate("div", "x87", 96, (EXTENDED_ONE, 80), (0x4000 << 64 | 3 << 62, 80), fcw=0x7F | pc << 8)[0] for pc in (0, 2, 3)}
    assert third[0] & (1 << 80) - 1 == 0x3FFD << 64 | 0xAAAAAB << 40
    assert third[2] & (1 << 53) - 1 & (1 << 11) - 1 == 0
    assert third[3] >> 80 == 0x200  # rounded up: C1


def test_transcendental_functions_are_near_the_true_value() -> None:
    for x in (1e-300, 0.1, 0.7, 1.0, 3.0, 100.0):
        extended, _ = operate("load", "x87.f64", 96, (bits(x), 64))
        for name, function in (("sin", math.sin), ("cos", math.cos), ("tan", math.tan)):
            result = operate(name, "x87", 96, (extended, 80))[0] & (1 << 80) - 1
            stored, _ = operate("store", "x87.f64", 80, (result, 80))
            value = struct.unpack("<d", (stored & (1 << 64) - 1).to_bytes(8, "little"))[0]
            assert math.isclose(value, function(x), rel_tol=1e-12)


@given(st.integers(0, (1 << 80) - 1), st.integers(0, (1 << 80) - 1))
@settings(max_examples=150, deadline=2000)
def test_every_bit_pattern_has_a_result(x: int, y: int) -> None:
    for name in ("add", "mul", "div", "scale", "prem", "prem1", "patan", "yl2x", "yl2xp1"):
        operate(name, "x87", 96, (x, 80), (y, 80))
    for name in ("sqrt", "rndint", "sin", "tan", "sincos_c", "2xm1", "xtract_s", "xtract_e"):
        operate(name, "x87", 96, (x, 80))
