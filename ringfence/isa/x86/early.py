"""Instructions whose meaning changed after the 8086 and 80186 (SDM 3B 23.27, 23.31; iAPX 86/88 user's manual).

The decoder puts these bodies in the place of the ordinary ones for the CPU models concerned (`CpuModel.own_body`).
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.control import push_value
from ringfence.isa.x86.segments import put_paragraph
from ringfence.isa.x86.vectors import DE, SOFT_INTERRUPT

_BEYOND = 40  # shifting an operand of at most 17 bits further than this changes nothing more


def _full_count(i: Context) -> Value:
    """CL, all eight bits of it, or 1.  The count of a form with an immediate is 1: the 8086 has no others."""
    return i[1].get().trunc(8) if len(i) > 1 else i.const(1, 8)


def _clamped(n: Value) -> Value:
    return n.ult(_BEYOND).select(n.zext(64), _BEYOND)


@insn("shl 8086", undefined="a>1:o")
def shl(i: Context) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _full_count(i)
    wide = a.zext(64) << _clamped(n)
    r, cf = wide.trunc(w), wide.bit(w)
    i[0].set(r)
    i.f.result_if(n != 0, r, cf, r.bit(w - 1) ^ cf)


@insn("shr 8086", undefined="a>1:o")
def shr(i: Context) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _full_count(i)
    wide = (a.zext(64) << 1) >> _clamped(n)
    r, cf = wide.bits(1, w), wide.bit(0)
    i[0].set(r)
    i.f.result_if(n != 0, r, cf, r.bit(w - 1) ^ r.bit(w - 2))


@insn("sar 8086", undefined="a>1:o")
def sar(i: Context) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _full_count(i)
    wide = (a.sext(64) << 1).sar(_clamped(n))
    r, cf = wide.bits(1, w), wide.bit(0)
    i[0].set(r)
    i.f.result_if(n != 0, r, cf, i.const(0, 1))


def _rotate(i: Context, left: bool) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _full_count(i)
    m = (n & (w - 1)).zext(2 * w)
    twice = a.concat(a)
    r = (twice << m).bits(w, w) if left else (twice >> m).trunc(w)
    i[0].set(r)
    cf = r.bit(0) if left else r.bit(w - 1)
    i.f.put_cf_of_if(n != 0, cf, r.bit(w - 1) ^ (cf if left else r.bit(w - 2)))


@insn("rol 8086", undefined=">1:o")
def rol(i: Context) -> None:
    _rotate(i, left=True)


@insn("ror 8086", undefined=">1:o")
def ror(i: Context) -> None:
    _rotate(i, left=False)


def _rotate_through_carry(i: Context, left: bool) -> None:
    w, a, n = i.size, i[0].get(rmw=True), _full_count(i)
    wide = w + 1
    m = n.urem(wide).zext(2 * wide)
    x = i.f.cf().concat(a)
    both = x.concat(x)
    turned = (both << m).bits(wide, wide) if left else (both >> m).trunc(wide)
    r, cf = turned.trunc(w), turned.bit(w)
    i[0].set(r)
    i.f.put_cf_of_if(n != 0, cf, r.bit(w - 1) ^ (cf if left else r.bit(w - 2)))


@insn("rcl 8086", undefined=">1:o")
def rcl(i: Context) -> None:
    _rotate_through_carry(i, left=True)


@insn("rcr 8086", undefined=">1:o")
def rcr(i: Context) -> None:
    _rotate_through_carry(i, left=False)


@insn("push sp 8086")
def push_sp(i: Context) -> None:
    """The 8086 and 80186 push SP as it is after the decrement."""
    push_value(i, (i.sp() - 2).trunc(16))


@insn("pop cs")
def pop_cs(i: Context) -> None:
    """The 8086 takes the next instruction from the new segment, at the offset that follows."""
    sp = i.sp()
    selector = i.load(i.stack(sp, 2), 16)
    i.put_sp(sp + 2)
    put_paragraph(i, "cs", selector)
    i.jump((selector.zext(64) << 4) + i.next_ip())


def _division(name: str) -> None:
    """A divide error of the 8086 and 80186 is a trap: it points behind the instruction."""

    @insn(f"{name} 8086", undefined="oszapc")
    def body(i: Context) -> None:
        w, d = i.size, i[0].get()
        n = i.get("rax", 16) if w == 8 else i.get("rdx", w).concat(i.get("rax", w))
        no = i.const(0, 1)
        n_negative, d_negative = (n.bit(2 * w - 1), d.bit(w - 1)) if name == "idiv" else (no, no)
        n_abs, d_abs = n_negative.select(0 - n, n), d_negative.select(0 - d, d)
        i.fault_if(~n_abs.bits(w, w).ult(d_abs), SOFT_INTERRUPT, DE)
        q, r = n_abs.udiv(d_abs.zext(2 * w)).trunc(w), n_abs.urem(d_abs.zext(2 * w)).trunc(w)
        if name == "idiv":  # the 8086 refuses the most negative quotient, too
            i.fault_if(i.const((1 << w - 1) - 1, w).ult(q), SOFT_INTERRUPT, DE)
        quotient = (n_negative ^ d_negative).select(0 - q, q)
        remainder = n_negative.select(0 - r, r)
        if w == 8:
            i.put("rax", remainder.concat(quotient))
        else:
            i.put_register("rax", quotient)
            i.put_register("rdx", remainder)


_division("div")
_division("idiv")


@insn("smsw 286")
def smsw(i: Context) -> None:
    """The upper bits of the machine status word read as ones."""
    i[0].set((i.get("cr0") | 0xFFF0).trunc(i[0].w))
