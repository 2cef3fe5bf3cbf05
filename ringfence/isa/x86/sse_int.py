"""SSE and MMX integers: logic, arithmetic, comparison, shifts, conversions between element sizes, shuffles, CRC32.

Specification: SDM 2A-2B (December 2023), the pages of the instructions.  One body serves the XMM and the MMX form of a
mnemonic: `w` is 128 or 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.ir.value import Lanes, Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.sse_move import low_part, vector, zero_lanes

Binary = Callable[[Context, Lanes, Lanes], Lanes]


def binary(lane: int, *names: str) -> Callable[[Binary], Binary]:
    """Registers `destination = f(destination, source)` on lanes."""

    def register(f: Binary) -> Binary:
        def body(i: Context) -> None:
            a, b = i[0].get(), i[1].get()
            i[0].set(f(i, a.lanes(lane), b.lanes(lane)).v)

        vector(*names)(body)
        return f

    return register


def _lanewise(op: str) -> Binary:
    return lambda i, a, b: a.op(op, b)


def _constant(i: Context, like: Lanes, value: int) -> Lanes:
    """`value` in every lane."""
    n = like.v.w // like.lane
    return i.const(sum(value << like.lane * k for k in range(n)), like.v.w).lanes(like.lane)


# ---- one operation of the table per lane

_LANEWISE = {
    "add": "paddb:8 paddw:16 paddd:32 paddq:64",
    "sub": "psubb:8 psubw:16 psubd:32 psubq:64",
    "mul": "pmullw:16 pmulld:32",
    "and": "pand:32 andps:32 andpd:32",
    "or": "por:32 orps:32 orpd:32",
    "xor": "pxor:32 xorps:32 xorpd:32",
    "saddsat": "paddsb:8 paddsw:16",
    "uaddsat": "paddusb:8 paddusw:16",
    "ssubsat": "psubsb:8 psubsw:16",
    "usubsat": "psubusb:8 psubusw:16",
    "mulhs": "pmulhw:16",
    "mulhu": "pmulhuw:16",
    "avg": "pavgb:8 pavgw:16",
    "umin": "pminub:8 pminuw:16 pminud:32",
    "umax": "pmaxub:8 pmaxuw:16 pmaxud:32",
    "smin": "pminsb:8 pminsw:16 pminsd:32",
    "smax": "pmaxsb:8 pmaxsw:16 pmaxsd:32",
    "eq": "pcmpeqb:8 pcmpeqw:16 pcmpeqd:32 pcmpeqq:64",
}
for _op, _names in _LANEWISE.items():
    for _name in _names.split():
        binary(int(_name.split(":")[1]), _name.split(":")[0])(_lanewise(_op))
for _suffix, _lane in (("b", 8), ("w", 16), ("d", 32), ("q", 64)):
    binary(_lane, "pcmpgt" + _suffix)(lambda i, a, b: b.op("slt", a))


@binary(32, "pandn", "andnps", "andnpd")
def pandn(i: Context, a: Lanes, b: Lanes) -> Lanes:
    return a.op("xor", _constant(i, a, 0xFFFFFFFF)).op("and", b)


for _suffix, _lane in (("b", 8), ("w", 16), ("d", 32)):

    @binary(_lane, "pabs" + _suffix)
    def pabs(i: Context, a: Lanes, b: Lanes) -> Lanes:
        return b.op("abs")

    @binary(_lane, "psign" + _suffix)
    def psign(i: Context, a: Lanes, b: Lanes) -> Lanes:
        zero = zero_lanes(i, a.v.w, a.lane)
        return b.select(zero - a, a).op("and", b.op("ne", zero))


@vector("ptest")
def ptest(i: Context) -> None:
    a, b = i[0].get(), i[1].get()
    no = i.const(0, 1)
    i.f.put(cf=(~a & b) == 0, pf=no, af=no, zf=(a & b) == 0, sf=no, of=no)


# ---- products


def _low_halves(i: Context, v: Lanes) -> Lanes:
    return v.op("and", _constant(i, v, (1 << v.lane // 2) - 1))


def _signed_low_halves(i: Context, v: Lanes) -> Lanes:
    half = i.const(v.lane // 2, v.lane)
    return v.shift("shl", half).shift("ashr", half)


def _high_halves(i: Context, v: Lanes, op: str = "lshr") -> Lanes:
    return v.shift(op, i.const(v.lane // 2, v.lane))


@binary(64, "pmuludq")
def pmuludq(i: Context, a: Lanes, b: Lanes) -> Lanes:
    return _low_halves(i, a) * _low_halves(i, b)


@binary(64, "pmuldq")
def pmuldq(i: Context, a: Lanes, b: Lanes) -> Lanes:
    return _signed_low_halves(i, a) * _signed_low_halves(i, b)


@binary(32, "pmaddwd")
def pmaddwd(i: Context, a: Lanes, b: Lanes) -> Lanes:
    low = _signed_low_halves(i, a) * _signed_low_halves(i, b)
    return low + _high_halves(i, a, "ashr") * _high_halves(i, b, "ashr")


@binary(16, "pmaddubsw")
def pmaddubsw(i: Context, a: Lanes, b: Lanes) -> Lanes:
    """Unsigned bytes of the destination by signed bytes of the source."""
    low = _low_halves(i, a) * _signed_low_halves(i, b)
    return low.op("saddsat", _high_halves(i, a) * _high_halves(i, b, "ashr"))


@binary(16, "pmulhrsw")
def pmulhrsw(i: Context, a: Lanes, b: Lanes) -> Lanes:
    """Bits 30:15 of the product, rounded by its bit 14."""
    high, low = a.op("mulhs", b), a * b
    cut = high.shift("shl", i.const(1, 16)).op("or", low.shift("lshr", i.const(15, 16)))
    return cut + low.shift("lshr", i.const(14, 16)).op("and", _constant(i, low, 1))


# ---- sums across lanes


def _distance(a: Lanes, b: Lanes) -> Lanes:
    """|a - b| of unsigned lanes."""
    return a.op("umax", b) - a.op("umin", b)


@binary(8, "psadbw")
def psadbw(i: Context, a: Lanes, b: Lanes) -> Lanes:
    total = _distance(a, b)
    for lane in (16, 32, 64):
        wide = total.v.lanes(lane)
        total = _low_halves(i, wide) + _high_halves(i, wide)
    return total


@vector("mpsadbw")
def mpsadbw(i: Context) -> None:
    """Eight sums of four distances: the source's block imm8[1:0] against the destination from byte 4 * imm8[2] on."""
    a, b = i[0].get().lanes(8), i[1].get().lanes(8)
    start, block = 4 * (i.imm(2) >> 2 & 1), 4 * (i.imm(2) & 3)
    zero = zero_lanes(i, 128, 8)
    total: Lanes | None = None
    for k in range(4):
        window = a.shuffle(zero, [m for n in range(8) for m in (start + n + k, 16)]).v.lanes(16)
        part = b.shuffle(zero, [block + k, 16] * 8).v.lanes(16)
        distance = (window - part).op("abs")
        total = distance if total is None else total + distance
    assert total is not None
    i[0].set(total.v)


@vector("phminposuw")
def phminposuw(i: Context) -> None:
    v = i[1].get().lanes(16)
    low = v
    for distance in (4, 2, 1):
        low = low.op("umin", low.shuffle(low, [(k + distance) % 8 for k in range(8)]))
    place = v.eq(low).movemask().cttz()
    i[0].set(place.zext(16).concat(low.get(0)).zext(128))


def _horizontal(op: str) -> Binary:
    def combine(i: Context, a: Lanes, b: Lanes) -> Lanes:
        n = a.v.w // a.lane
        return a.shuffle(b, list(range(0, 2 * n, 2))).op(op, a.shuffle(b, list(range(1, 2 * n, 2))))

    return combine


binary(16, "phaddw")(_horizontal("add"))
binary(32, "phaddd")(_horizontal("add"))
binary(16, "phaddsw")(_horizontal("saddsat"))
binary(16, "phsubw")(_horizontal("sub"))
binary(32, "phsubd")(_horizontal("sub"))
binary(16, "phsubsw")(_horizontal("ssubsat"))


# ---- shifts


def _shift(i: Context, op: str, lane: int) -> None:
    """Every lane by one count: an immediate, or the low 64 bits of the source."""
    a = i[0].get()
    if i[1].kind == "i":
        count = i.const(min(i.imm(1), lane), lane)
    else:
        count = i[1].get().trunc(64).umin(lane).trunc(lane)
    i[0].set(a.lanes(lane).shift(op, count).v)


for _suffix, _lane in (("w", 16), ("d", 32), ("q", 64)):
    for _stem, _op in (("psll", "shl"), ("psrl", "lshr"), ("psra", "ashr")):
        if _stem + _suffix != "psraq":  # AVX-512 only

            @vector(_stem + _suffix)
            def shift(i: Context, op: str = _op, lane: int = _lane) -> None:
                _shift(i, op, lane)


def _bytes_of_pair(i: Context, high: Lanes, low: Lanes, start: int) -> Value:
    """As many bytes as a register holds out of high:low, from byte `start` on, zeros above."""
    n = low.v.w // 8
    if start >= n:
        low, high, start = high, zero_lanes(i, low.v.w, 8), start - n
    return low.shuffle(high, [min(start + k, 2 * n - 1) for k in range(n)]).v


@vector("psrldq")
def psrldq(i: Context) -> None:
    a = i[0].get().lanes(8)
    i[0].set(_bytes_of_pair(i, zero_lanes(i, 128, 8), a, min(i.imm(1), 16)))


@vector("pslldq")
def pslldq(i: Context) -> None:
    a = i[0].get().lanes(8)
    i[0].set(_bytes_of_pair(i, a, zero_lanes(i, 128, 8), 16 - min(i.imm(1), 16)))


@vector("palignr")
def palignr(i: Context) -> None:
    a, b = i[0].get().lanes(8), i[1].get().lanes(8)
    i[0].set(_bytes_of_pair(i, a, b, min(i.imm(2), a.v.w // 4)))


# ---- element sizes


def _pack(lane: int, saturate: str) -> Callable[[Context], None]:
    def body(i: Context) -> None:
        low, high = (i[k].get().lanes(lane).narrow(lane // 2, saturate).v for k in (0, 1))
        i[0].set(high.concat(low))

    return body


vector("packsswb")(_pack(16, "s"))
vector("packssdw")(_pack(32, "s"))
vector("packuswb")(_pack(16, "u"))
vector("packusdw")(_pack(32, "u"))


def _unpack(lane: int, high: bool) -> Callable[[Context], None]:
    def body(i: Context) -> None:
        a = i[0].get()
        b = i[1].get().zext(a.w)  # PUNPCKLxx mm, m32 reads half a register
        n = a.w // lane
        first = n // 2 if high else 0
        index = [m for k in range(first, first + n // 2) for m in (k, n + k)]
        i[0].set(a.lanes(lane).shuffle(b.lanes(lane), index).v)

    return body


for _suffix, _lane in (("bw", 8), ("wd", 16), ("dq", 32), ("qdq", 64)):
    vector("punpckl" + _suffix)(_unpack(_lane, False))
    vector("punpckh" + _suffix)(_unpack(_lane, True))
for _suffix, _lane in (("ps", 32), ("pd", 64)):
    vector("unpckl" + _suffix)(_unpack(_lane, False))
    vector("unpckh" + _suffix)(_unpack(_lane, True))


def _extend(lane: int, to: int, sign: bool) -> Callable[[Context], None]:
    def body(i: Context) -> None:
        i[0].set(low_part(i, 1, 128 // to * lane).lanes(lane).widen(sign, to).v)

    return body


for _suffix, _lane, _to in (("bw", 8, 16), ("bd", 8, 32), ("bq", 8, 64), ("wd", 16, 32), ("wq", 16, 64), ("dq", 32, 64)):
    vector("pmovsx" + _suffix)(_extend(_lane, _to, True))
    vector("pmovzx" + _suffix)(_extend(_lane, _to, False))


# ---- shuffles and blends


def _select_lanes(lane: int, first: int) -> Callable[[Context], None]:
    """PSHUFx: four lanes from `first` on are chosen by the immediate among themselves."""

    def body(i: Context) -> None:
        v = i[1].get()
        index = list(range(v.w // lane))
        index[first : first + 4] = [first + (i.imm(2) >> 2 * k & 3) for k in range(4)]
        i[0].set(v.lanes(lane).shuffle(v.lanes(lane), index).v)

    return body


vector("pshufd")(_select_lanes(32, 0))
vector("pshuflw", "pshufw")(_select_lanes(16, 0))
vector("pshufhw")(_select_lanes(16, 4))


@binary(32, "shufps")
def shufps(i: Context, a: Lanes, b: Lanes) -> Lanes:
    return a.shuffle(b, [(i.imm(2) >> 2 * k & 3) + (4 if k > 1 else 0) for k in range(4)])


@binary(64, "shufpd")
def shufpd(i: Context, a: Lanes, b: Lanes) -> Lanes:
    return a.shuffle(b, [i.imm(2) & 1, 2 + (i.imm(2) >> 1 & 1)])


@binary(8, "pshufb")
def pshufb(i: Context, a: Lanes, b: Lanes) -> Lanes:
    """Bit 7 of an index byte clears the lane."""
    n = a.v.w // 8
    index = b.op("and", _constant(i, b, n - 1)).v.zext(128)
    chosen = a.v.zext(128).lanes(8).permute(index.lanes(8)).v.trunc(a.v.w).lanes(8)
    return b.select(zero_lanes(i, a.v.w, 8), chosen)


def _blend(i: Context, a: Lanes, b: Lanes) -> Lanes:
    n = a.v.w // a.lane
    return a.shuffle(b, [n + k if i.imm(2) >> k & 1 else k for k in range(n)])


binary(32, "blendps")(_blend)
binary(64, "blendpd")(_blend)
binary(16, "pblendw")(_blend)


def _blend_by_register(i: Context, a: Lanes, b: Lanes) -> Lanes:
    return i.get("xmm0", 128).lanes(a.lane).select(b, a)


binary(8, "pblendvb")(_blend_by_register)
binary(32, "blendvps")(_blend_by_register)
binary(64, "blendvpd")(_blend_by_register)


# ---- CRC


@insn("crc32")
def crc32(i: Context) -> None:
    i[0].set(i[1].get().crc32c(i[0].get().trunc(32)).zext(i[0].w))
