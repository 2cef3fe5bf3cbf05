"""SSE4.2 string comparisons: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.

Specification: SDM 2B section 4.1 (December 2023).  imm8 belongs to the form:

    1:0  elements: unsigned bytes, unsigned words, signed bytes, signed words
    3:2  aggregation: equal any, ranges, equal each, equal ordered
    5:4  polarity: 1 inverts the result, 3 only where the second string has elements
    6    index: of the highest element instead of the lowest; mask: an element per result bit instead of a bit
"""

from __future__ import annotations

from typing import NamedTuple

from ringfence.ir.value import Lanes, Value
from ringfence.isa.x86.context import Body, Context
from ringfence.isa.x86.sse_move import vector

EQUAL_ANY, RANGES, EQUAL_EACH, EQUAL_ORDERED = range(4)


class _String(NamedTuple):
    """One operand: its elements, how many there are (as wide as a result mask), and a mask of the lanes in use."""

    elements: Lanes
    length: Value
    used: Lanes


def _splat(i: Context, v: Value, w: int) -> Lanes:
    return Lanes(i.trace.emit("splat", w, [v]), v.w)


def _repeat(v: Lanes, k: int) -> Lanes:
    """Lane k in every lane."""
    return v.shuffle(v, [k] * (v.v.w // v.lane))


def _invert(i: Context, v: Lanes) -> Lanes:
    return v.op("xor", i.const(-1, v.v.w).lanes(v.lane))


def _string(i: Context, elements: Lanes, explicit: Value | None) -> _String:
    """`explicit`: the register that holds the length; None: the string ends at its first zero element."""
    lane = elements.lane
    n = 128 // lane
    if explicit is None:
        length = elements.eq(i.const(0, 128).lanes(lane)).movemask().cttz()
    else:
        magnitude = i.trace.emit("abs", explicit.w, [explicit])
        length = magnitude.umin(n).trunc(n)
    place = i.const(sum(k << lane * k for k in range(n)), 128).lanes(lane)
    return _String(elements, length, place.op("ult", _splat(i, length.zext(16).trunc(lane), 128)))


def _equal_any(i: Context, a: _String, b: _String, signed: bool) -> Lanes:
    # Elements behind the end of a stand in for its first one, so that each of them needs no test of its own.
    needles = a.used.select(a.elements, _repeat(a.elements, 0))
    n = 128 // needles.lane
    found = b.elements.eq(_repeat(needles, 0))
    for k in range(1, n):
        found = found.op("or", b.elements.eq(_repeat(needles, k)))
    return found.op("and", _repeat(a.used, 0)).op("and", b.used)


def _ranges(i: Context, a: _String, b: _String, signed: bool) -> Lanes:
    lane = a.elements.lane
    n = 128 // lane
    top = (1 << lane) - 1
    nothing = (top >> 1, top ^ top >> 1) if signed else (top, 0)  # a range that holds no value
    empty = i.const(sum(nothing[k & 1] << lane * k for k in range(n)), 128).lanes(lane)
    complete = a.used.shuffle(a.used, [k | 1 for k in range(n)])
    bounds = complete.select(a.elements, empty)
    at_most = "sle" if signed else "ule"
    found: Lanes | None = None
    for k in range(0, n, 2):
        inside = _repeat(bounds, k).op(at_most, b.elements).op("and", b.elements.op(at_most, _repeat(bounds, k + 1)))
        found = inside if found is None else found.op("or", inside)
    assert found is not None
    return found.op("and", b.used)


def _equal_each(i: Context, a: _String, b: _String, signed: bool) -> Lanes:
    both = a.elements.eq(b.elements).op("and", a.used).op("and", b.used)
    return both.op("or", _invert(i, a.used.op("or", b.used)))


def _equal_ordered(i: Context, a: _String, b: _String, signed: bool) -> Lanes:
    lane = a.elements.lane
    n = 128 // lane
    zero = i.const(0, 128).lanes(lane)
    missing = _invert(i, b.used)
    mismatch = zero
    for k in range(n):
        differs = b.elements.op("ne", _repeat(a.elements, k)).op("or", missing).op("and", _repeat(a.used, k))
        # Result lane m asks element m + k of b; beyond the register nothing differs.
        mismatch = mismatch.op("or", differs.shuffle(zero, [m + k if m + k < n else n for m in range(n)]) if k else differs)
    return _invert(i, mismatch)


_AGGREGATIONS = (_equal_any, _ranges, _equal_each, _equal_ordered)


def _compare(i: Context, explicit_w: int | None) -> Lanes:
    """The final result, all ones or zero per lane; sets the flags."""
    control = i.imm(2)
    lane = 16 if control & 1 else 8
    lengths = (None, None) if explicit_w is None else (i.get("rax", explicit_w), i.get("rdx", explicit_w))
    a, b = (_string(i, i[k].get().lanes(lane), lengths[k]) for k in (0, 1))
    result = _AGGREGATIONS[control >> 2 & 3](i, a, b, bool(control & 2))
    match control >> 4 & 3:
        case 1:
            result = _invert(i, result)
        case 3:
            result = result.op("xor", b.used)
    bits = result.movemask()
    n = bits.w
    no = i.const(0, 1)
    i.f.put(cf=bits != 0, pf=no, af=no, zf=b.length.ult(n), sf=a.length.ult(n), of=bits.bit(0))
    return result


def _index(explicit_w: int | None) -> Body:
    def body(i: Context) -> None:
        bits = _compare(i, explicit_w).movemask()
        n = bits.w
        if i.imm(2) & 0x40:
            place = (bits == 0).select(i.const(n, n), n - 1 - bits.ctlz())
        else:
            place = bits.cttz()
        i.put_register("rcx", place.zext(32))

    return body


def _mask(explicit_w: int | None) -> Body:
    def body(i: Context) -> None:
        result = _compare(i, explicit_w)
        i.put("xmm0", result.v if i.imm(2) & 0x40 else result.movemask().zext(128))

    return body


vector("pcmpistri")(_index(None))
vector("pcmpestri")(_index(32))
vector("pcmpestri64")(_index(64))
vector("pcmpistrm")(_mask(None))
vector("pcmpestrm")(_mask(32))
vector("pcmpestrm64")(_mask(64))
