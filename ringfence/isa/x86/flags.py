"""Arithmetic flags as two words with a *kind* that is static within a block.

* settled (0): `fr` = result, sign-extended; `fa` = 63 CF, 62 CF xor OF, 15:8 xor into the parity byte, 16 xor into the
  sign, 3 AF.  Can say everything, ZF and SF both 1 included (POPF).
* sub8..sub64 (1-4): `fr`, `fa` = the operands of a subtraction.  Logic results are a subtraction of zero.
* add8..add64 (5-8): `fr` = the sum, `fa` = its second operand.

A body sets flags by saying what it computed; the traced words depend on who asks: the interpreter and native functions
get settled words (`lazy` False), stencils the cheapest kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringfence.ir.value import Value

if TYPE_CHECKING:
    from ringfence.isa.x86.context import Context

SETTLED = 0
SUB = {8: 1, 16: 2, 32: 3, 64: 4}
ADD = {8: 5, 16: 6, 32: 7, 64: 8}
KIND_WIDTH = {1: 8, 2: 16, 3: 32, 4: 64, 5: 8, 6: 16, 7: 32, 8: 64}
CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")


class Flags:
    """`i.f` inside a body.  `kind_in` is the kind of the words at entry; `kind_out` that of the words set, None if none are."""

    def __init__(self, i: Context, lazy: bool, kind_in: int, carry_live: bool, live: bool) -> None:
        self.i = i
        self.live = live  # whether anybody will read the flags set here
        self.lazy = lazy
        self.kind_in = kind_in
        self.carry_live = carry_live
        self.kind_out: int | None = None
        self.reads = False  # whether any flag at entry matters
        self.partial = False  # whether flags not named are kept
        self.only_carry_read = True

    # ---- what a body computed
    def add(self, a: Value, b: Value, r: Value) -> None:
        """r = a + b."""
        if self.lazy:
            self._words(r.zext(64), b.zext(64), ADD[r.w])
        else:
            self._carries((a & b) | ((a | b) & ~r), r)

    def sub(self, a: Value, b: Value, r: Value) -> None:
        """r = a - b."""
        if self.lazy:
            self._words(a.zext(64), b.zext(64), SUB[r.w])
        else:
            self._carries((~a & b) | ((~a | b) & r), r)

    def adc(self, a: Value, b: Value, r: Value) -> None:
        """r = a + b + CF."""
        self._carries((a & b) | ((a | b) & ~r), r)

    def sbb(self, a: Value, b: Value, r: Value) -> None:
        """r = a - b - CF."""
        self._carries((~a & b) | ((~a | b) & r), r)

    def logic(self, r: Value) -> None:
        """CF = OF = 0, the others from r; AF (undefined) 0."""
        if self.lazy:
            self._words(r.zext(64), self.i.const(0, 64), SUB[r.w])
        else:
            self._words(r.sext(64), self.i.const(0, 64), SETTLED)

    def incdec(self, a: Value, r: Value, dec: bool) -> None:
        """r = a ± 1; CF stays."""
        if not self.live:
            return
        one = self.i.const(1, a.w)
        if self.lazy and not self.carry_live:
            (self.sub if dec else self.add)(a, one, r)
            return
        self.partial = True
        self._carries(((~a & one) | ((~a | one) & r)) if dec else ((a & one) | ((a | one) & ~r)), r, self.cf())

    def result(self, r: Value, cf: Value, of: Value, af: Value | None = None) -> None:
        """SF, ZF, PF from r; CF and OF as given; AF 0 unless given."""
        fa = self._carry_word(cf, of)
        self._words(r.sext(64), fa if af is None else fa | (af.zext(64) << 3), SETTLED)

    def result_if(self, condition: Value, r: Value, cf: Value, of: Value) -> None:
        """As result where `condition` is 1, else all flags stay (shifts by zero)."""
        if not self.live:
            return
        if condition.const is not None:
            if condition.const:
                self.result(r, cf, of)
            return
        self.partial = True
        fr, fa = self.settled()
        self._words(condition.select(r.sext(64), fr), condition.select(self._carry_word(cf, of), fa), SETTLED)

    def put(self, cf: Value, pf: Value, af: Value, zf: Value, sf: Value, of: Value) -> None:
        """Every flag by itself."""
        fa = self._carry_word(cf, of) | (af.zext(64) << 3) | ((pf ^ zf).zext(64) << 8) | (sf.zext(64) << 16)
        self._words((~zf).zext(64), fa, SETTLED)

    def put_cf(self, cf: Value) -> None:
        """CF alone; all others stay."""
        if not self.live:
            return
        self.partial = True
        fr, fa = self.settled()
        self._words(fr, (fa & ~(3 << 62)) | self._carry_word(cf, self.of()), SETTLED)

    def put_cf_of_if(self, condition: Value, cf: Value, of: Value) -> None:
        """CF and OF where `condition` is 1; all others stay (rotates)."""
        if not self.live:
            return
        self.partial = True
        fr, fa = self.settled()
        self._words(fr, condition.select((fa & ~(3 << 62)) | self._carry_word(cf, of), fa), SETTLED)

    def put_zf(self, zf: Value) -> None:
        """ZF alone; all others stay."""
        if not self.live:
            return
        self.put(self.cf(), self.pf(), self.af(), zf, self.sf(), self.of())

    def put_image(self, image: Value) -> None:
        """The arithmetic flags of an RFLAGS image."""
        self.put(*(image.bit(n) for n in (0, 2, 4, 6, 7, 11)))

    def keep_where_not_set(self) -> None:
        """The body sets the flags on some paths only: all of them need words of one kind, the settled one."""
        self.partial = True
        self.reads = True
        self.only_carry_read = False
        self.lazy = False
        fr, fa = self.settled()
        if self.kind_in:
            self._words(fr, fa, SETTLED)

    # ---- what a body asks
    def cf(self) -> Value:
        self.reads = True
        if kind := self.kind_in:
            x, y = self._operands(kind)
            return x.ult(y)
        return self._entry("fa").bit(63)

    def of(self) -> Value:
        self._note()
        if kind := self.kind_in:
            x, y = self._operands(kind)
            top = KIND_WIDTH[kind] - 1
            # x - y overflows when x and y differ in sign and so do x and the result; for a sum r = a + b, a and b
            # agree in sign and r does not: with x = r, y = b, a = x - y.
            other = x ^ (x - y)
            return ((x ^ y) & other).bit(top) if kind in SUB.values() else (other & (x ^ y)).bit(top)
        fa = self._entry("fa")
        return (fa ^ (fa << 1)).bit(63)

    def af(self) -> Value:
        self._note()
        if kind := self.kind_in:
            x, y = self._operands(kind)
            return (x ^ y ^ (x - y)).bit(4)
        return self._entry("fa").bit(3)

    def zf(self) -> Value:
        self._note()
        if kind := self.kind_in:
            x, y = self._operands(kind)
            return x == y if kind in SUB.values() else x == 0
        return self._entry("fr") == 0

    def sf(self) -> Value:
        self._note()
        if kind := self.kind_in:
            return self._result(kind).slt(0)
        return self._entry("fr").bit(63) ^ self._entry("fa").bit(16)

    def pf(self) -> Value:
        self._note()
        if kind := self.kind_in:
            return ~self._result(kind).trunc(8).ctpop().bit(0)
        return ~(self._entry("fr") ^ (self._entry("fa") >> 8)).trunc(8).ctpop().bit(0)

    def condition(self, code: int) -> Value:
        """The condition of Jcc, SETcc, CMOVcc with this 4-bit code (SDM 1 appendix B)."""
        n = code >> 1
        if (kind := self.kind_in) in SUB.values() and n in (3, 6, 7):
            self._note()
            x, y = self._operands(kind)
            value = x.ule(y) if n == 3 else x.slt(y) if n == 6 else x.sle(y)
        else:
            simple = (self.of, self.cf, self.zf, lambda: self.cf() | self.zf(), self.sf, self.pf)
            value = simple[n]() if n < 6 else self.sf() ^ self.of() if n == 6 else self.zf() | (self.sf() ^ self.of())
        return ~value if code & 1 else value

    def image(self) -> Value:
        """RFLAGS as software sees it."""
        i = self.i
        value = i.get("rflags_sys") | 2 | (i.get("df", 1).zext(64) << 10)
        for n, v in ((0, self.cf()), (2, self.pf()), (4, self.af()), (6, self.zf()), (7, self.sf()), (11, self.of())):
            value = value | (v.zext(64) << n)
        return value

    def settled(self) -> tuple[Value, Value]:
        """The words at entry in settled form."""
        self._note()
        if kind := self.kind_in:
            x, y = self._operands(kind)
            r = self._result(kind)
            if kind in SUB.values():
                carries = (~x & y) | ((~x | y) & r)
            else:
                a = x - y
                carries = (a & y) | ((a | y) & ~r)
            return r.sext(64), self._high(carries, r.w)
        return self._entry("fr"), self._entry("fa")

    # ---- inside
    def _note(self) -> None:
        self.reads = True
        self.only_carry_read = False

    def _entry(self, word: str) -> Value:
        return self.i.get(word)

    def _operands(self, kind: int) -> tuple[Value, Value]:
        w = KIND_WIDTH[kind]
        return self._entry("fr").trunc(w), self._entry("fa").trunc(w)

    def _result(self, kind: int) -> Value:
        x, y = self._operands(kind)
        return x - y if kind in SUB.values() else x

    def _words(self, fr: Value, fa: Value, kind: int) -> None:
        if self.live:
            self.kind_out = kind
            self.i.put("fr", fr)
            self.i.put("fa", fa)

    def _high(self, carries: Value, w: int) -> Value:
        high = carries.zext(64) << 64 - w if w < 64 else carries
        return (high & 3 << 62) | (carries.zext(64) & 8)

    def _carries(self, carries: Value, r: Value, cf: Value | None = None) -> None:
        fa = self._high(carries, r.w)
        if cf is not None:
            of = (fa ^ (fa << 1)).bit(63)
            fa = (fa & 8) | self._carry_word(cf, of)
        self._words(r.sext(64), fa, SETTLED)

    def _carry_word(self, cf: Value, of: Value) -> Value:
        return (cf.zext(64) << 63) | ((cf ^ of).zext(64) << 62)
