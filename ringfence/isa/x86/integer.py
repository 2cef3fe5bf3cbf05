"""General-purpose integer instructions: moves, arithmetic, logic, shifts, bits (SDM 2, by mnemonic)."""

from __future__ import annotations

from collections.abc import Callable

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, Memory, insn
from ringfence.isa.x86.flags import CONDITIONS
from ringfence.isa.x86.vectors import DE, GP


def old_value(i: Context, kind: str, operand: Value) -> Value:
    """The first operand before the update; with LOCK the update itself happens here, atomically."""
    if i.lock:
        return i.atomic(kind, i[0].address(True), i.size, operand)
    return i[0].get(rmw=True)


def update(i: Context, value: Value) -> None:
    if not i.lock:
        i[0].set(value)


@insn("add")
def add(i: Context) -> None:
    b = i[1].get()
    a = old_value(i, "add", b)
    r = a + b
    update(i, r)
    i.f.add(a, b, r)


@insn("sub")
def sub(i: Context) -> None:
    b = i[1].get()
    a = old_value(i, "add", 0 - b) if i.lock else i[0].get(rmw=True)
    r = a - b
    update(i, r)
    i.f.sub(a, b, r)


@insn("cmp")
def cmp(i: Context) -> None:
    a = i[0].get()
    b = i[1].get()
    i.f.sub(a, b, a - b)


@insn("adc")
def adc(i: Context) -> None:
    b = i[1].get()
    carry = i.f.cf().zext(i.size)
    a = old_value(i, "add", b + carry)
    r = a + b + carry
    update(i, r)
    i.f.adc(a, b, r)


@insn("sbb")
def sbb(i: Context) -> None:
    b = i[1].get()
    borrow = i.f.cf().zext(i.size)
    a = old_value(i, "add", 0 - (b + borrow)) if i.lock else i[0].get(rmw=True)
    r = a - b - borrow
    update(i, r)
    i.f.sbb(a, b, r)


@insn("inc")
def inc(i: Context) -> None:
    a = old_value(i, "add", i.const(1, i.size))
    r = a + 1
    update(i, r)
    i.f.incdec(a, r, dec=False)


@insn("dec")
def dec(i: Context) -> None:
    a = old_value(i, "add", i.const(-1, i.size))
    r = a - 1
    update(i, r)
    i.f.incdec(a, r, dec=True)


@insn("neg")
def neg(i: Context) -> None:
    a = i[0].get(rmw=True)
    r = 0 - a
    i[0].set(r)
    i.f.sub(i.const(0, i.size), a, r)


@insn("not")
def not_(i: Context) -> None:
    a = old_value(i, "xor", i.const(-1, i.size))
    update(i, ~a)


def _logic(name: str, function: Callable[[Value, Value], Value]) -> None:
    @insn(name, undefined="a")
    def body(i: Context) -> None:
        b = i[1].get()
        r = function(old_value(i, name, b), b)
        update(i, r)
        i.f.logic(r)


_logic("and", lambda a, b: a & b)
_logic("or", lambda a, b: a | b)
_logic("xor", lambda a, b: a ^ b)


@insn("test", undefined="a")
def test(i: Context) -> None:
    i.f.logic(i[0].get() & i[1].get())


# ---- moves
@insn("mov")
def mov(i: Context) -> None:
    i[0].set(i[1].get())


@insn("movzx")
def movzx(i: Context) -> None:
    i[0].set(i[1].get().zext(i.size))


@insn("movsx", "movsxd")
def movsx(i: Context) -> None:
    i[0].set(i[1].get().sext(i.size))


@insn("lea")
def lea(i: Context) -> None:
    i[0].set(i[1].effective().trunc(i.size))  # type: ignore[attr-defined]


@insn("xchg")
def xchg(i: Context) -> None:
    for m, r in ((0, 1), (1, 0)):
        if i[m].kind == "m":  # always locked, SDM 2 XCHG
            i[r].set(i.atomic("xchg", i[m].address(True), i.size, i[r].get()))
            return
    a, b = i[0].get(), i[1].get()
    i[0].set(b)
    i[1].set(a)


@insn("bswap", undefined="")
def bswap(i: Context) -> None:
    a = i[0].get()
    i[0].set(a.bswap() if i.size > 16 else i.const(0, 16))  # 16 bits: undefined, zero on every CPU seen


@insn("cbw")
def cbw(i: Context) -> None:
    i.put("rax", i.get("rax", 8).sext(16))


@insn("cwde")
def cwde(i: Context) -> None:
    i.put_register("rax", i.get("rax", 16).sext(32))


@insn("cdqe")
def cdqe(i: Context) -> None:
    i.put("rax", i.get("rax", 32).sext(64))


@insn("cwd")
def cwd(i: Context) -> None:
    i.put("rdx", i.get("rax", 16).sar(15))


@insn("cdq")
def cdq(i: Context) -> None:
    i.put_register("rdx", i.get("rax", 32).sar(31))


@insn("cqo")
def cqo(i: Context) -> None:
    i.put("rdx", i.get("rax").sar(63))


@insn("xlatb")
def xlatb(i: Context) -> None:
    i.put("rax", i.load(i.implicit(i.get("rbx") + i.get("rax", 8).zext(64), 1, False), 8))


@insn("lahf")
def lahf(i: Context) -> None:
    i.put("rax", i.f.image().trunc(8), low=8)


@insn("sahf")
def sahf(i: Context) -> None:
    v = i.get("rax", 8, 8)
    of = i.f.of()
    i.f.put(v.bit(0), v.bit(2), v.bit(4), v.bit(6), v.bit(7), of)


@insn("clc")
def clc(i: Context) -> None:
    i.f.put_cf(i.const(0, 1))


@insn("stc")
def stc(i: Context) -> None:
    i.f.put_cf(i.const(1, 1))


@insn("cmc")
def cmc(i: Context) -> None:
    i.f.put_cf(~i.f.cf())


@insn("cld")
def cld(i: Context) -> None:
    i.put("df", i.const(0, 8))


@insn("std")
def std(i: Context) -> None:
    i.put("df", i.const(1, 8))


def _conditional(code: int, condition: str) -> None:
    @insn("set" + condition)
    def setcc(i: Context) -> None:
        i[0].set(i.f.condition(code).zext(8))

    @insn("cmov" + condition)
    def cmovcc(i: Context) -> None:
        i[0].set(i.f.condition(code).select(i[1].get(), i[0].get()))


for _code, _condition in enumerate(CONDITIONS):
    _conditional(_code, _condition)


# ---- shifts and rotates: in double width every count is in range and CF is a bit of the wide result
def _count(i: Context, k: int = 1) -> Value:
    bits = 63 if i.size == 64 else 31
    if len(i) <= k:
        return i.const(1, 8)
    known = i.form.imms[k] if k < len(i.form.imms) else None
    return i.const(known & bits, 8) if known is not None else i[k].get().trunc(8) & bits


def _nonzero(n: Value, i: Context) -> Value:
    return i.const(n.const != 0, 1) if n.const is not None else n != 0


@insn("shl", undefined="a>1:o")
def shl(i: Context) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _count(i)
    wide = a.zext(2 * w) << n.zext(2 * w)
    r, cf = wide.trunc(w), wide.bit(w)
    i[0].set(r)
    i.f.result_if(_nonzero(n, i), r, cf, r.bit(w - 1) ^ cf)


@insn("shr", undefined="a>1:o")
def shr(i: Context) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _count(i)
    wide = (a.zext(2 * w) << w) >> n.zext(2 * w)
    r, cf = wide.bits(w, w), wide.bit(w - 1)
    i[0].set(r)
    i.f.result_if(_nonzero(n, i), r, cf, a.bit(w - 1))


@insn("sar", undefined="a>1:o")
def sar(i: Context) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _count(i)
    wide = (a.sext(2 * w) << w).sar(n.zext(2 * w))
    r, cf = wide.bits(w, w), wide.bit(w - 1)
    i[0].set(r)
    i.f.result_if(_nonzero(n, i), r, cf, i.const(0, 1))


def _double_shift(i: Context, left: bool) -> None:
    w, a, b, n = i.size, i[0].get(rmw=True), i[1].get(), _count(i, 2)
    # Three operands' width, the destination repeated: a 16-bit count above 16 (undefined) rotates, as CPUs do.
    wide = a.concat(b).concat(a) if w == 16 else a.concat(b) if left else b.concat(a)
    m = n.zext(wide.w)
    if left:
        r = (wide << m).bits(wide.w - w, w)
        cf = (wide >> (wide.w - m)).bit(0)
    else:
        r = (wide >> m).trunc(w)
        cf = (wide >> (m - 1)).bit(0)
    i[0].set(r)
    i.f.result_if(_nonzero(n, i), r, cf, r.bit(w - 1) ^ a.bit(w - 1))


@insn("shld", undefined="a>1:o")
def shld(i: Context) -> None:
    _double_shift(i, left=True)


@insn("shrd", undefined="a>1:o")
def shrd(i: Context) -> None:
    _double_shift(i, left=False)


@insn("rol", undefined=">1:o")
def rol(i: Context) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _count(i)
    m = (n & (w - 1)).zext(2 * w)
    wide = a.concat(a) << m
    r = wide.bits(w, w)
    i[0].set(r)
    i.f.put_cf_of_if(_nonzero(n, i), r.bit(0), r.bit(w - 1) ^ r.bit(0))


@insn("ror", undefined=">1:o")
def ror(i: Context) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _count(i)
    m = (n & (w - 1)).zext(2 * w)
    r = (a.concat(a) >> m).trunc(w)
    i[0].set(r)
    i.f.put_cf_of_if(_nonzero(n, i), r.bit(w - 1), r.bit(w - 1) ^ r.bit(w - 2))


def _rotate_through_carry(i: Context, left: bool) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _count(i)
    if w < 32:
        n = n.urem(w + 1) if n.const is None else i.const(n.const % (w + 1), 8)
    wide = w + 1
    x = i.f.cf().concat(a)
    m = n.zext(2 * wide)
    both = x.concat(x)
    turned = (both << m).bits(wide, wide) if left else (both >> m).trunc(wide)
    r, cf = turned.trunc(w), turned.bit(w)
    of = r.bit(w - 1) ^ (cf if left else r.bit(w - 2))
    i[0].set(r)
    i.f.put_cf_of_if(_nonzero(n, i), cf, of)


@insn("rcl", undefined=">1:o")
def rcl(i: Context) -> None:
    _rotate_through_carry(i, left=True)


@insn("rcr", undefined=">1:o")
def rcr(i: Context) -> None:
    _rotate_through_carry(i, left=False)


# ---- multiplication and division
def _multiply_wide(i: Context, sign: bool) -> None:
    w = i.size

    def extend(v: Value) -> Value:
        return v.sext(2 * w) if sign else v.zext(2 * w)

    x = extend(i.get("rax", w)) * extend(i[0].get())
    low = x.trunc(w)
    overflow = x != extend(low)
    if w == 8:
        i.put("rax", x)
    else:
        i.put_register("rax", low)
        i.put_register("rdx", x.bits(w, w))
    i.f.result(low, overflow, overflow)


@insn("mul", undefined="szap")
def mul(i: Context) -> None:
    _multiply_wide(i, sign=False)


@insn("imul", undefined="szap")
def imul(i: Context) -> None:
    if len(i) == 1:
        _multiply_wide(i, sign=True)
        return
    w, k = i.size, len(i) - 2
    x = i[k].get().sext(2 * w) * i[k + 1].get().sext(2 * w)
    r = x.trunc(w)
    overflow = x != r.sext(2 * w)
    i[0].set(r)
    i.f.result(r, overflow, overflow)


def _dividend(i: Context) -> Value:
    w = i.size
    return i.get("rax", 16) if w == 8 else i.get("rdx", w).concat(i.get("rax", w))


def _put_quotient(i: Context, q: Value, r: Value) -> None:
    if i.size == 8:
        i.put("rax", r.concat(q))
    else:
        i.put_register("rax", q)
        i.put_register("rdx", r)


@insn("div", undefined="oszapc")
def div(i: Context) -> None:
    w, d = i.size, i[0].get()
    n = _dividend(i)
    i.fault_if(~n.bits(w, w).ult(d), DE)  # a zero divisor and a quotient of more than w bits in one test
    _put_quotient(i, n.udiv(d.zext(2 * w)).trunc(w), n.urem(d.zext(2 * w)).trunc(w))


@insn("idiv", undefined="oszapc")
def idiv(i: Context) -> None:
    w, d = i.size, i[0].get()
    n = _dividend(i)
    n_negative, d_negative = n.bit(2 * w - 1), d.bit(w - 1)
    n_abs = n_negative.select(0 - n, n)
    d_abs = d_negative.select(0 - d, d)
    i.fault_if(~n_abs.bits(w, w).ult(d_abs), DE)
    q = n_abs.udiv(d_abs.zext(2 * w)).trunc(w)
    r = n_abs.urem(d_abs.zext(2 * w)).trunc(w)
    negative = n_negative ^ d_negative
    limit = negative.select(i.const(1 << w - 1, w), i.const((1 << w - 1) - 1, w))
    i.fault_if(limit.ult(q), DE)
    _put_quotient(i, negative.select(0 - q, q), n_negative.select(0 - r, r))


# ---- bits
@insn("bsf", undefined="osapc")
def bsf(i: Context) -> None:
    s = i[1].get()
    zero = s == 0
    o = i.const(0, 1)
    i[0].set(s.cttz(), when=~zero)  # zero source: destination unchanged (AMD: defined; Intel: as seen)
    i.f.put(o, o, o, zero, o, o)


@insn("bsr", undefined="osapc")
def bsr(i: Context) -> None:
    s = i[1].get()
    zero = s == 0
    o = i.const(0, 1)
    i[0].set(s.ctlz() ^ (i.size - 1), when=~zero)
    i.f.put(o, o, o, zero, o, o)


@insn("tzcnt", undefined="osap")
def tzcnt(i: Context) -> None:
    s = i[1].get()
    r = s.cttz()
    i[0].set(r)
    i.f.result(r, s == 0, i.const(0, 1))


@insn("popcnt")
def popcnt(i: Context) -> None:
    s = i[1].get()
    i[0].set(s.ctpop())
    o = i.const(0, 1)
    i.f.put(o, o, o, s == 0, o, o)


def _bit(i: Context, kind: str | None, change: Callable[[Value, Value], Value] | None) -> None:
    w = i.size
    shift = {16: 1, 32: 2, 64: 3}[w]
    known = i.form.imms[1] if len(i.form.imms) > 1 else None
    n = i.const(known & (w - 1), w) if known is not None else i[1].get()
    m = i.const(1, w) << (n & (w - 1))
    if i[0].kind == "m":
        if isinstance(i[0], Memory) and i[1].kind == "r":  # a bit string: the offset reaches beyond the operand, SDM 1 3.1.1.9
            address = i[0].address_beyond(n.sext(64).sar(shift + 3) << shift, change is not None)
        else:
            address = i[0].address(change is not None)
        if i.lock and kind is not None and change is not None:
            v = i.atomic(kind, address, w, ~m if kind == "and" else m)
        else:
            v = i.load(address, w, write=change is not None)
            if change is not None:
                i.store(address, change(v, m), window=v.id)
    else:
        v = i[0].get()
        if change is not None:
            i[0].set(change(v, m))
    i.f.put_cf((v & m) != 0)


@insn("bt", undefined="osap")
def bt(i: Context) -> None:
    _bit(i, None, None)


@insn("bts", undefined="osap")
def bts(i: Context) -> None:
    _bit(i, "or", lambda v, m: v | m)


@insn("btr", undefined="osap")
def btr(i: Context) -> None:
    _bit(i, "and", lambda v, m: v & ~m)


@insn("btc", undefined="osap")
def btc(i: Context) -> None:
    _bit(i, "xor", lambda v, m: v ^ m)


# ---- compare and exchange
@insn("cmpxchg")
def cmpxchg(i: Context) -> None:
    w, new = i.size, i[1].get()
    accumulator = i.get("rax", w)
    old = i.atomic("cas", i[0].address(True), w, accumulator, new) if i.lock else i[0].get(rmw=True)
    equal = old == accumulator
    i.put("rax", equal.select(i.get("rax", 64), old.zext(64)) if w == 32 else equal.select(accumulator, old))
    if i[0].kind == "r":
        i[0].set(new, when=equal)  # a failing CMPXCHG r32 leaves bits 63:32 alone
    elif not i.lock:
        i[0].set(equal.select(new, old))  # memory is written in any case, SDM 2 CMPXCHG
    i.f.sub(accumulator, old, accumulator - old)


@insn("xadd")
def xadd(i: Context) -> None:
    b = i[1].get()
    a = old_value(i, "add", b)
    r = a + b
    i[1].set(a)
    update(i, r)  # in this order, so that XADD rax, rax leaves the sum
    i.f.add(a, b, r)


def _compare_exchange_pair(i: Context, w: int) -> None:
    address = i[0].address(True)
    if w == 64:
        i.fault_if((address & 15) != 0, GP)
    expected = i.get("rdx", w).concat(i.get("rax", w))
    new = i.get("rcx", w).concat(i.get("rbx", w))
    if i.lock:
        old = i.atomic("cas", address, 2 * w, expected, new)
        equal = old == expected
    else:
        old = i[0].get(rmw=True)
        equal = old == expected
        i[0].set(equal.select(new, old))
    low, high = old.trunc(w), old.bits(w, w)
    if w == 32:  # equal: the registers, upper halves included, stay
        i.put("rax", equal.select(i.get("rax"), low.zext(64)))
        i.put("rdx", equal.select(i.get("rdx"), high.zext(64)))
    else:
        i.put("rax", low)
        i.put("rdx", high)
    i.f.put_zf(equal)


@insn("cmpxchg8b")
def cmpxchg8b(i: Context) -> None:
    _compare_exchange_pair(i, 32)


@insn("cmpxchg16b")
def cmpxchg16b(i: Context) -> None:
    _compare_exchange_pair(i, 64)


@insn("nop", "pause", "endbr64", "endbr32", "reservednop")
def nop(i: Context) -> None:
    """Hints and landing pads; shadow stacks are not announced."""
