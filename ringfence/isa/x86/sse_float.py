"""SSE to SSE4.1 floating point: arithmetic, comparisons, conversions, rounding, MXCSR (SDM 1 chapters 10-12, SDM 2).

Moves, shuffles and logic of vectors are not here.
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, Memory, Operand, Vector, insn
from ringfence.isa.x86.sse_move import sse_check, vector_check
from ringfence.isa.x86.state import REQUEST_MODE
from ringfence.isa.x86.vectors import GP

_WIDTH = {"ss": 32, "sd": 64, "ps": 128, "pd": 128}
MXCSR_MASK = 0xFFFF  # what FXSAVE announces: every bit up to 15 can be set
ALL_MASKED = 0x1F80


def low(operand: Operand, w: int) -> Value:
    """The operand's low w bits; all 128 of a memory operand must be aligned."""
    if isinstance(operand, (Vector, Memory)) and w != operand.w:
        return operand.low(w)
    return operand.get()


def _binary(name: str, fmt: str) -> None:
    @insn(name + fmt)
    def body(i: Context) -> None:
        sse_check(i)
        w = _WIDTH[fmt]
        i[0].set(i.fp(name, fmt, w, low(i[0], w), low(i[1], w)))


def _unary(name: str, fmt: str) -> None:
    @insn(name + fmt)
    def body(i: Context) -> None:
        sse_check(i)
        w = _WIDTH[fmt]
        i[0].set(i.fp(name, fmt, w, low(i[1], w)))


def _with_immediate(name: str, mnemonic: str, fmt: str, binary: bool) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        sse_check(i)
        w = _WIDTH[fmt]
        values = ([low(i[0], w)] if binary else []) + [low(i[1], w), i.const(i.imm(2), 8)]
        i[0].set(i.fp(name, fmt, w, *values))


def _compare_flags(name: str, fmt: str) -> None:
    @insn(name + fmt)
    def body(i: Context) -> None:
        sse_check(i)
        w = _WIDTH[fmt]
        r = i.fp(name, fmt, 3, low(i[0], w), low(i[1], w))
        zero = i.const(0, 1)
        i.f.put(r.bit(0), r.bit(1), zero, r.bit(2), zero, zero)


def _convert(mnemonic: str, op: str, fmt: str, source: int, result: int) -> None:
    """Widths of what is read and written; 0 means the general-purpose operand's."""

    @insn(mnemonic)
    def body(i: Context) -> None:
        sse_check(i)
        value = low(i[1], source) if source else i[1].get()
        i[0].set(i.fp(op, fmt, result or i[0].w, value))


for _fmt in ("ss", "sd", "ps", "pd"):
    for _name in ("add", "sub", "mul", "div", "min", "max"):
        _binary(_name, _fmt)
    _unary("sqrt", _fmt)
    _with_immediate("cmp", "cmpsd_sse" if _fmt == "sd" else "cmp" + _fmt, _fmt, True)
    _with_immediate("round", "round" + _fmt, _fmt, False)
for _fmt in ("ss", "ps"):
    _unary("rcp", _fmt)
    _unary("rsqrt", _fmt)
for _fmt in ("ps", "pd"):
    for _name in ("addsub", "hadd", "hsub"):
        _binary(_name, _fmt)
    _with_immediate("dp", "dp" + _fmt, _fmt, True)
for _fmt in ("ss", "sd"):
    _compare_flags("comi", _fmt)
    _compare_flags("ucomi", _fmt)

_convert("cvtss2sd", "cvt", "ss2sd", 32, 64)
_convert("cvtsd2ss", "cvt", "sd2ss", 64, 32)
_convert("cvtsi2ss", "cvt", "si2ss", 0, 32)
_convert("cvtsi2sd", "cvt", "si2sd", 0, 64)
for _prefix in ("cvt", "cvtt"):
    _convert(_prefix + "ss2si", _prefix, "ss2si", 32, 0)
    _convert(_prefix + "sd2si", _prefix, "sd2si", 64, 0)
    _convert(_prefix + "ps2dq", _prefix, "ps2dq", 128, 128)
    _convert(_prefix + "pd2dq", _prefix, "pd2dq", 128, 128)
_convert("cvtdq2ps", "cvt", "dq2ps", 128, 128)
_convert("cvtdq2pd", "cvt", "dq2pd", 64, 128)
_convert("cvtps2pd", "cvt", "ps2pd", 64, 128)
_convert("cvtpd2ps", "cvt", "pd2ps", 128, 128)


# ---- conversions from and to MMX registers: the XMM form on 64 bits, its upper half zero and so without exceptions
def _from_mmx(mnemonic: str, fmt: str, source: int, result: int) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        vector_check(i)
        i[0].set(i.fp("cvt", fmt, 128, i[1].get().zext(source)).trunc(result))


def _to_mmx(mnemonic: str, op: str, fmt: str, source: int) -> None:
    @insn(mnemonic)
    def body(i: Context) -> None:
        vector_check(i)
        i[0].set(i.fp(op, fmt, 128, low(i[1], source).zext(128)).trunc(64))


_from_mmx("cvtpi2ps", "dq2ps", 128, 64)
_from_mmx("cvtpi2pd", "dq2pd", 64, 128)
for _prefix in ("cvt", "cvtt"):
    _to_mmx(_prefix + "ps2pi", _prefix, "ps2dq", 64)
    _to_mmx(_prefix + "pd2pi", _prefix, "pd2dq", 128)


def mxcsr(i: Context) -> Value:
    """MXCSR as software sees it: compiled code leaves the sticky flags in the host's register."""
    return i.get("mxcsr", 32) | i.fp("get", "mxcsr", 32)


def set_mxcsr(i: Context, value: Value) -> None:
    """Writes a checked MXCSR.  Unmasking an exception, or masking the last, changes how instructions are executed."""
    i.put("mxcsr", value)
    i.fp("set", "mxcsr", 0, value)
    before = (i.get("mxcsr", 32) & ALL_MASKED) == ALL_MASKED
    after = (value & ALL_MASKED) == ALL_MASKED
    with i.when(before ^ after):
        i.request(REQUEST_MODE)


@insn("stmxcsr")
def stmxcsr(i: Context) -> None:
    sse_check(i)
    i[0].set(mxcsr(i))


@insn("ldmxcsr")
def ldmxcsr(i: Context) -> None:
    sse_check(i)
    value = i[0].get()
    i.fault_if((value & ~MXCSR_MASK) != 0, GP)
    set_mxcsr(i, value)
