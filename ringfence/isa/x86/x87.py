"""x87 arithmetic, loads, stores and comparisons (SDM 1 chapter 8, SDM 2A).

Control instructions and saved images are in `fpu_state`, transcendental functions and remainders in `x87_functions`.
The form's name is the mnemonic; ST(i) operands are part of the form (`i.imm(k)`).
"""

from __future__ import annotations

from collections.abc import Callable

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
    push,
    read,
    tag,
    used,
    wait,
    write,
)

_CONDITIONS = {"b": 2, "e": 4, "be": 6, "u": 10, "nb": 3, "ne": 5, "nbe": 7, "nu": 11}
_INDEFINITES = {"x87.f32": 0xFFC00000, "x87.f64": 0xFFF8 << 48, "x87.bcd": 0xFFFFC << 60}
_CONSTANTS = {"fld1": 0x3FFF << 64 | 1 << 63, "fldz": 0}
_ROUNDED_CONSTANTS = {"fldpi": "pi", "fldl2t": "l2t", "fldl2e": "l2e", "fldlg2": "lg2", "fldln2": "ln2"}


def _from_memory(i: Context, integer: bool) -> tuple[Value, str]:
    """The memory operand and the format in which arithmetic takes it."""
    value = i[0].get()
    if integer:
        return i.fp("load", f"x87.i{value.w}", 80, value), "x87"
    return value, f"x87.f{value.w}"


def in_memory(i: Context) -> bool:
    return len(i) > 0 and i[0].kind == "m"


# ---- arithmetic
def _arithmetic(mnemonic: str, op: str, integer: bool = False, pops: int = 0) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        if in_memory(i):
            other, fmt = _from_memory(i, integer)
            target = physical(i, 0)
            ok = used(i, target)
        else:
            target, source = physical(i, i.imm(0)), physical(i, i.imm(1))
            other, fmt = read(i, source), "x87"
            ok = used(i, target) & used(i, source)
        value, codes = checked(
            i, ok, lambda: i.fp(op, fmt, 96, read(i, target), other), 80, repair=lambda: i.put("ftag", i.get("ftag", 8) | tag(i, target))
        )
        write(i, target, value)
        conditions(i, codes, C1)
        if pops:
            pop(i, pops, i.get("ftag", 8) | tag(i, target))


for _name in ("add", "sub", "subr", "mul", "div", "divr"):
    _arithmetic("f" + _name, _name)
    _arithmetic(f"f{_name}p", _name, pops=1)
    _arithmetic("fi" + _name, _name, integer=True)


# ---- comparisons
def _compare(mnemonic: str, op: str, integer: bool = False, pops: int = 0, to_flags: bool = False) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        first = physical(i, 0)
        ok = used(i, first)
        if in_memory(i):
            other, fmt = _from_memory(i, integer)
        elif mnemonic == "ftst":
            other, fmt = i.const(0, 80), "x87"
        else:
            second = physical(i, i.imm(len(i) - 1) if len(i) else 1)
            other, fmt = read(i, second), "x87"
            ok = ok & used(i, second)
        which = C1 if to_flags else COMPARISON
        _, codes = checked(
            i, ok, lambda: i.fp(op, fmt, 16, read(i, first), other), 0, codes=C0 | C2 | C3, which=which, keep_codes=to_flags, quiet=to_flags
        )
        if to_flags:
            zero = i.const(0, 1)
            i.f.put(codes.bit(0), codes.bit(2), zero, codes.bit(6), zero, zero)
        else:
            conditions(i, codes, which)
        if pops:
            pop(i, pops, unless=codes.bit(7) if to_flags else None)


for _name, _op in (("fcom", "com"), ("fucom", "ucom")):
    _compare(_name, _op)
    _compare(_name + "p", _op, pops=1)
    _compare(_name + "pp", _op, pops=2)
    _compare(_name + "i", _op + "i", to_flags=True)
    _compare(_name + "ip", _op + "i", to_flags=True, pops=1)
_compare("ficom", "com", integer=True)
_compare("ficomp", "com", integer=True, pops=1)
_compare("ftst", "com")


@insn("fxam")
def fxam(i: Context) -> None:
    wait(i)
    p = physical(i, 0)
    x = read(i, p)
    exponent, m, sign = x.bits(64, 15), x.trunc(64), x.bit(79)
    integer_bit, top, bottom = m.bit(63), exponent == 0x7FFF, exponent == 0
    nothing, fraction = m == 0, m.trunc(63) != 0
    special = fraction.select(i.const(C0, 8), i.const(C0 | C2, 8))
    small = nothing.select(i.const(C3, 8), i.const(C3 | C2, 8))
    regular = top.select(special, i.const(C2, 8))
    kind = bottom.select(small, integer_bit.select(regular, i.const(0, 8)))
    kind = used(i, p).select(kind, i.const(C3 | C0, 8))
    conditions(i, kind | (sign.zext(8) << 1), COMPARISON)


# ---- loads
def _load(mnemonic: str, compute: Callable[[Context], Callable[[], Value]]) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        value, codes = checked(i, ~used(i, physical(i, -1)), compute(i), 80, codes=C1)
        conditions(i, codes, C1)
        push(i, value)


def _fild(i: Context) -> Callable[[], Value]:
    value = i[0].get()
    return lambda: i.fp("load", f"x87.i{value.w}", 80, value)


def _fbld(i: Context) -> Callable[[], Value]:
    value = i[0].get()
    return lambda: i.fp("load", "x87.bcd", 80, value)


_load("fild", _fild)
_load("fbld", _fbld)
for _name, _bits in _CONSTANTS.items():
    _load(_name, lambda i, bits=_bits: lambda: i.const(bits, 80))  # type: ignore[misc]
for _name, _op in _ROUNDED_CONSTANTS.items():
    _load(_name, lambda i, op=_op: lambda: i.fp("constant_" + op, "x87", 80))  # type: ignore[misc]


def _with_codes(value: Value, codes: Value) -> Value:
    """As a status word above the value."""
    return (codes.zext(16) << 8).concat(value)


@insn("fld")
def fld(i: Context) -> None:
    wait(i)
    free = ~used(i, physical(i, -1))
    if in_memory(i):
        raw = i[0].get()
        load = (lambda: raw) if raw.w == 80 else (lambda: i.fp("load", f"x87.f{raw.w}", 96, raw))
        value, codes = checked(i, free, load, 80, codes=C1)
    else:
        source = physical(i, i.imm(0))
        there = used(i, source)
        value, codes = checked(i, there, lambda: _with_codes(*checked(i, free, lambda: read(i, source), 80, codes=C1)), 80)
    conditions(i, codes, C1)
    push(i, value)


# ---- stores
def _writable(i: Context, address: Value) -> None:
    """Page faults of an 80-bit store."""
    i.load(address, 80, write=True)


def _store(mnemonic: str, op: str, kind: str, pops: int) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        first = physical(i, 0)
        ok = used(i, first)
        if not in_memory(i):
            target = physical(i, i.imm(0))
            value, codes = checked(i, ok, lambda: read(i, first), 80)
            write(i, target, value)
            conditions(i, codes, C1)
            tags = i.get("ftag", 8) | tag(i, target)
            if pops:
                pop(i, pops, tags)
            else:
                i.put("ftag", tags)
            return
        w = i[0].w
        if w == 80 and kind == "f":
            address = i[0].address(True)
            value, codes = checked(i, ok, lambda: read(i, first), 80, before=lambda: _writable(i, address))
        else:
            # The window first: a page fault must not leave flags of the conversion behind.
            i[0].get(rmw=True)
            fmt = "x87.bcd" if kind == "bcd" else f"x87.{kind}{w}"
            instead = 1 << w - 1 if kind == "i" else _INDEFINITES[fmt]
            value, codes = checked(i, ok, lambda: i.fp(op, fmt, w + 16, read(i, first)), w, instead)
        i[0].set(value)
        conditions(i, codes, C1)
        if pops:
            pop(i, pops)


_store("fst", "store", "f", 0)
_store("fstp", "store", "f", 1)
_store("fist", "store", "i", 0)
_store("fistp", "store", "i", 1)
_store("fisttp", "storet", "i", 1)
_store("fbstp", "store", "bcd", 1)


# ---- within the stack
@insn("fstpnce")
def fstpnce(i: Context) -> None:
    """D9 D8+i, an undocumented FSTP that copies nothing from an empty register and does not fault."""
    wait(i)
    first, target = physical(i, 0), physical(i, i.imm(0))
    there = used(i, first)
    write(i, target, there.select(read(i, first), read(i, target)))
    conditions(i, i.const(0, 8), C1)
    pop(i, 1, i.get("ftag", 8) | there.select(tag(i, target), i.const(0, 8)))


@insn("fxch")
def fxch(i: Context) -> None:
    wait(i)
    p, q = physical(i, 0), physical(i, i.imm(len(i) - 1) if len(i) else 1)
    a, b = read(i, p), read(i, q)
    have_a, have_b = used(i, p), used(i, q)
    ok = have_a & have_b
    empty = i.const(INDEFINITE, 80)
    _, codes = checked(i, ok, lambda: i.const(0, 16), 0, repair=lambda: i.put("ftag", i.get("ftag", 8) | tag(i, p) | tag(i, q)))
    write(i, p, have_b.select(b, empty))
    write(i, q, have_a.select(a, empty))
    conditions(i, codes, C1)


def _conditional_move(suffix: str, code: int) -> None:
    @insn("fcmov" + suffix)
    def body(i: Context) -> None:
        wait(i)
        p, q = physical(i, 0), physical(i, i.imm(1))
        met = i.f.condition(code)
        value, _ = checked(
            i,
            used(i, p) & used(i, q),
            lambda: met.select(read(i, q), read(i, p)),
            80,
            repair=lambda: i.put("ftag", i.get("ftag", 8) | tag(i, p)),
            keep_codes=True,
        )
        write(i, p, value)


for _name, _code in _CONDITIONS.items():
    _conditional_move(_name, _code)


def _sign(mnemonic: str, keep_sign: bool) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        p = physical(i, 0)
        bit = 1 << 79
        value, codes = checked(
            i,
            used(i, p),
            lambda: read(i, p) ^ bit if keep_sign else read(i, p) & (bit - 1),
            80,
            repair=lambda: i.put("ftag", i.get("ftag", 8) | tag(i, p)),
        )
        write(i, p, value)
        conditions(i, codes, C1)


_sign("fchs", True)
_sign("fabs", False)


def _rotate(mnemonic: str, step: int) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        i.put("ftop", physical(i, step))
        conditions(i, i.const(0, 8), C1)


_rotate("fincstp", 1)
_rotate("fdecstp", -1)


def _free(mnemonic: str, pops: int) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        wait(i)
        tags = i.get("ftag", 8) & ~tag(i, physical(i, i.imm(0)))
        conditions(i, i.const(0, 8), C1)
        if pops:
            pop(i, pops, tags)
        else:
            i.put("ftag", tags)


_free("ffree", 0)
_free("ffreep", 1)
