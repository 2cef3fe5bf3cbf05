"""x87: roots, rounding, remainders, scaling and the transcendental functions (SDM 1 8.3.5-8.3.8)."""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.x87_stack import (
    C0,
    C1,
    C2,
    C3,
    COMPARISON,
    INDEFINITE,
    checked,
    conditions,
    physical,
    pop,
    read,
    tag,
    used,
    wait,
    write,
)

_ONE = 0x3FFF << 64 | 1 << 63


def _mark(i: Context, *registers: Value) -> None:
    tags = i.get("ftag", 8)
    for p in registers:
        tags = tags | tag(i, p)
    i.put("ftag", tags)


def _unary(mnemonic: str, op: str, which: int) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        p = physical(i, 0)
        value, codes = checked(i, used(i, p), lambda: i.fp(op, "x87", 96, read(i, p)), 80, which=which, repair=lambda: _mark(i, p))
        write(i, p, value)
        conditions(i, codes, which)


def _binary(mnemonic: str, op: str, which: int, pops: int = 0) -> None:
    """ST0 and ST1 to ST0; with a pop, to ST1."""

    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        p, q = physical(i, 0), physical(i, 1)
        target = q if pops else p
        value, codes = checked(
            i,
            used(i, p) & used(i, q),
            lambda: i.fp(op, "x87", 96, read(i, p), read(i, q)),
            80,
            which=which & ~(C0 | C3),
            repair=lambda: _mark(i, target),
        )
        write(i, target, value)
        if which == COMPARISON:
            # A remainder that is a NaN leaves the quotient's bits as they were.
            kept = (value.bits(64, 15) == 0x7FFF).select(i.const(C0 | C3, 8), i.const(0, 8))
            codes = (codes & ~kept) | (i.get("fsw", 8, 8) & kept)
        conditions(i, codes, which)
        if pops:
            pop(i, pops, i.get("ftag", 8) | tag(i, target))


_unary("fsqrt", "sqrt", C1)
_unary("frndint", "rndint", C1)
_unary("f2xm1", "2xm1", C1)
_unary("fsin", "sin", C1 | C2)
_unary("fcos", "cos", C1 | C2)
_binary("fscale", "scale", C1)
_binary("fprem", "prem", COMPARISON)
_binary("fprem1", "prem1", COMPARISON)
_binary("fpatan", "patan", C1, 1)
_binary("fyl2x", "yl2x", C1, 1)
_binary("fyl2xp1", "yl2xp1", C1, 1)


def _two_results(mnemonic: str, first: str, second: str | None, which: int) -> None:
    """Replaces ST0 by `first` and pushes `second` (None: 1.0, or the NaN); with C2 nothing but the status changes."""

    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        p, q = physical(i, 0), physical(i, -1)
        there, free = used(i, p), ~used(i, q)

        def compute() -> tuple[Value, Value, Value]:
            x = read(i, p)
            r = i.fp(first, "x87", 96, x)
            value = r.trunc(80)
            if second:
                return value, i.fp(second, "x87", 96, x).trunc(80), r.bits(88, 8)
            return value, (r.bits(64, 15) == 0x7FFF).select(value, i.const(_ONE, 80)), r.bits(88, 8)

        def fault() -> tuple[Value, Value, Value]:
            codes = (there & ~free).select(i.const(C1, 8), i.const(0, 8))
            i.fp("stack", "x87", 0, codes.zext(16), i.const(which, 16))
            i.put("fsw", i.get("fsw", 8) | 0x41)
            empty = i.const(INDEFINITE, 80)
            return empty, empty, codes

        a, b, codes = i.choose(there & free, compute, fault)
        stays = codes.bit(2)
        write(i, p, a)
        write(i, q, stays.select(read(i, q), b))
        i.put("ftop", stays.select(p, q))
        tags = i.get("ftag", 8)
        i.put("ftag", stays.select(tags, tags | tag(i, p) | tag(i, q)))
        conditions(i, codes, which)


_two_results("fsincos", "sincos_s", "sincos_c", C1 | C2)
_two_results("fptan", "tan", None, C1 | C2)
_two_results("fxtract", "xtract_e", "xtract_s", C1)
