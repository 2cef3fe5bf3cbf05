"""Instructions that 64-bit mode retired: BCD arithmetic, SALC, BOUND, ARPL (SDM 2, by mnemonic)."""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.vectors import DE

BR = 5


def _adjust(name: str, sign: int) -> None:
    """AAA and AAS."""

    @insn(name)
    def body(i: Context) -> None:
        """OF, SF, ZF and PF, which the manual leaves undefined, are those of the 16-bit addition: as AMD's processors have them."""
        ax = i.get("rax", 16)
        over = i.f.af() | i.const(9, 8).ult(ax.trunc(8) & 15)
        step = over.select(i.const(0x106, 16), 0)
        total = ax + step if sign > 0 else ax - step
        i.put("rax", total & 0xFF0F)
        overflow = (~(ax ^ step) if sign > 0 else ax ^ step) & (ax ^ total)
        i.f.result(total, over, overflow.bit(15), over)


_adjust("aaa", 1)
_adjust("aas", -1)


def _decimal(name: str) -> None:
    """DAA and DAS."""

    @insn(name)
    def body(i: Context) -> None:
        """OF, which the manual leaves undefined, is that of the one addition."""
        al, cf = i.get("rax", 8), i.f.cf()
        low = i.f.af() | i.const(9, 8).ult(al & 15)
        high = cf | i.const(0x99, 8).ult(al)
        step = low.select(i.const(6, 8), 0) + high.select(i.const(0x60, 8), 0)
        result = al + step if name == "daa" else al - step
        carry = high
        if name == "das":  # a borrow of the first step counts as well
            carry = high | (low & al.ult(6))
        i.put("rax", result)
        overflow = (~(al ^ step) if name == "daa" else al ^ step) & (al ^ result)
        i.f.result(result, carry, overflow.bit(7), low)


_decimal("daa")
_decimal("das")


@insn("aam")
def aam(i: Context) -> None:
    """OF, AF and CF, which the manual leaves undefined, are 0."""
    base = i[0].get()
    i.fault_if(base == 0, DE)
    al = i.get("rax", 8)
    remainder = al.urem(base)
    i.put("rax", al.udiv(base).concat(remainder))
    i.f.result(remainder, i.const(0, 1), i.const(0, 1))


@insn("aad")
def aad(i: Context) -> None:
    """OF, AF and CF, which the manual leaves undefined, are those of the addition."""
    al, product = i.get("rax", 8), i.get("rax", 8, 8) * i[0].get()
    total: Value = al + product
    i.put("rax", total.zext(16))
    i.f.add(al, product, total)


@insn("salc")
def salc(i: Context) -> None:
    """AL = CF ? FF : 00; not in the manual, but in every processor."""
    i.put("rax", i.f.cf().select(i.const(0xFF, 8), 0))


@insn("bound")
def bound(i: Context) -> None:
    w, index = i.size, i[0].get()
    low = i.load(i[1].address_beyond(0, size_bytes=w // 8), w)
    high = i.load(i[1].address_beyond(w // 8, size_bytes=w // 8), w)
    i.fault_if(index.slt(low) | high.slt(index), BR)


@insn("arpl")
def arpl(i: Context) -> None:
    target, source = i[0].get(), i[1].get() & 3
    adjusts = (target & 3).ult(source)
    with i.when(adjusts):  # memory is written only then
        i[0].set((target & ~3) | source)
    i.f.put_zf(adjusts)
