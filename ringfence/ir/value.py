"""Tracing: values, lanes, and the list of operations that a body emits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ringfence.ir.ops import mask


class Op:
    """One operation: `%id:w = op args {at}`; `sub` holds the operation lists of `when` and `choose`."""

    __slots__ = ("id", "op", "w", "args", "at", "sub")

    def __init__(self, id: int, op: str, w: int, args: list[Value], at: dict[str, Any], sub: list[list[Op]] | None) -> None:
        self.id = id
        self.op = op
        self.w = w
        self.args = args
        self.at = at
        self.sub = sub or []


class Value:
    """A bit-vector `w` bits wide: the result of an operation, or a constant.  Widths must match; nothing is implicit."""

    __slots__ = ("id", "w", "trace", "const")

    def __init__(self, id: int, w: int, trace: Trace, const: int | None = None) -> None:
        self.id = id
        self.w = w
        self.trace = trace
        self.const = const

    def _binary(self, other: Value | int, op: str, w: int | None = None) -> Value:
        return self.trace.emit(op, w or self.w, [self, self.trace.value(other, self.w)])

    def __add__(self, other: Value | int) -> Value:
        return self._binary(other, "add")

    def __sub__(self, other: Value | int) -> Value:
        return self._binary(other, "sub")

    def __rsub__(self, other: int) -> Value:
        return self.trace.value(other, self.w) - self

    def __mul__(self, other: Value | int) -> Value:
        return self._binary(other, "mul")

    def __and__(self, other: Value | int) -> Value:
        return self._binary(other, "and")

    def __or__(self, other: Value | int) -> Value:
        return self._binary(other, "or")

    def __xor__(self, other: Value | int) -> Value:
        return self._binary(other, "xor")

    def __invert__(self) -> Value:
        return self ^ mask(self.w)

    def __lshift__(self, other: Value | int) -> Value:
        return self._binary(other, "shl")

    def __rshift__(self, other: Value | int) -> Value:
        return self._binary(other, "lshr")

    def __eq__(self, other: object) -> Value:  # type: ignore[override]
        return self._binary(other, "eq", 1)  # type: ignore[arg-type]

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return self._binary(other, "ne", 1)  # type: ignore[arg-type]

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError("a Value has no truth while it is traced: use select, choose or when")

    def sar(self, other: Value | int) -> Value:
        return self._binary(other, "ashr")

    def udiv(self, other: Value | int) -> Value:
        return self._binary(other, "udiv")

    def urem(self, other: Value | int) -> Value:
        return self._binary(other, "urem")

    def ult(self, other: Value | int) -> Value:
        return self._binary(other, "ult", 1)

    def ule(self, other: Value | int) -> Value:
        return self._binary(other, "ule", 1)

    def slt(self, other: Value | int) -> Value:
        return self._binary(other, "slt", 1)

    def sle(self, other: Value | int) -> Value:
        return self._binary(other, "sle", 1)

    def umin(self, other: Value | int) -> Value:
        return self._binary(other, "umin")

    def ctpop(self) -> Value:
        return self.trace.emit("ctpop", self.w, [self])

    def cttz(self) -> Value:
        return self.trace.emit("cttz", self.w, [self])

    def ctlz(self) -> Value:
        return self.trace.emit("ctlz", self.w, [self])

    def bswap(self) -> Value:
        return self.trace.emit("bswap", self.w, [self])

    def crc32c(self, crc: Value) -> Value:
        """The 32-bit remainder after these bits, `crc` (32 bits) being the one before them."""
        return self.trace.emit("crc32c", 32, [self, crc])

    def zext(self, w: int) -> Value:
        return self if w == self.w else self.trace.emit("zext", w, [self])

    def sext(self, w: int) -> Value:
        return self if w == self.w else self.trace.emit("sext", w, [self])

    def trunc(self, w: int) -> Value:
        return self if w == self.w else self.trace.emit("trunc", w, [self])

    def bits(self, low: int, w: int) -> Value:
        return (self >> low if low else self).trunc(w)

    def bit(self, n: int | Value) -> Value:
        return self.bits(n, 1) if isinstance(n, int) else (self >> n).trunc(1)

    def concat(self, low: Value) -> Value:
        """self above `low`."""
        w = self.w + low.w
        return (self.zext(w) << low.w) | low.zext(w)

    def insert(self, low: int, part: Value) -> Value:
        """self with the bits from `low` on replaced by `part`."""
        hole = mask(self.w) & ~(mask(part.w) << low)
        placed = part.zext(self.w)
        return (self & hole) | (placed << low if low else placed)

    def select(self, a: Value | int, b: Value | int) -> Value:
        """a where self (one bit) is 1, else b; both are computed."""
        w = a.w if isinstance(a, Value) else b.w if isinstance(b, Value) else 64
        return self.trace.emit("select", w, [self, self.trace.value(a, w), self.trace.value(b, w)])

    def lanes(self, lane: int) -> Lanes:
        return Lanes(self, lane)


class Lanes:
    """A Value seen as lanes of `lane` bits, lane 0 lowest; `.v` is the Value again."""

    __slots__ = ("v", "lane")

    def __init__(self, v: Value, lane: int) -> None:
        self.v = v
        self.lane = lane

    def op(self, name: str, *others: Lanes) -> Lanes:
        """Any pure or comparing operation of the table, lane by lane."""
        v = self.v
        return Lanes(v.trace.emit(name, v.w, [v, *(o.v for o in others)], lane=self.lane), self.lane)

    def __add__(self, other: Lanes) -> Lanes:
        return self.op("add", other)

    def __sub__(self, other: Lanes) -> Lanes:
        return self.op("sub", other)

    def __mul__(self, other: Lanes) -> Lanes:
        return self.op("mul", other)

    def eq(self, other: Lanes) -> Lanes:
        return self.op("eq", other)

    def shift(self, name: str, count: Value) -> Lanes:
        """shl, lshr or ashr of every lane by one count (as wide as a lane)."""
        return self.op(name, Lanes(count.trace.emit("splat", self.v.w, [count]), self.lane))

    def select(self, a: Lanes, b: Lanes) -> Lanes:
        """Lane of a where the sign bit of self's lane is set, else of b."""
        return Lanes(self.v.trace.emit("lselect", self.v.w, [self.v, a.v, b.v], lane=self.lane), self.lane)

    def permute(self, index: Lanes) -> Lanes:
        """Lane k of the result is self's lane index[k] modulo the number of lanes (8-bit lanes of 128 bits only)."""
        return Lanes(self.v.trace.emit("permute", self.v.w, [self.v, index.v], lane=self.lane), self.lane)

    def shuffle(self, other: Lanes, index: list[int]) -> Lanes:
        """Lanes chosen at trace time: k < n takes self's lane k, n + k takes other's; the result has len(index) lanes."""
        w = len(index) * self.lane
        return Lanes(self.v.trace.emit("shuffle", w, [self.v, other.v], lane=self.lane, index=tuple(index)), self.lane)

    def widen(self, sign: bool, lane: int) -> Lanes:
        """Every lane sign- or zero-extended to `lane` bits; the result is wider in proportion."""
        w = self.v.w // self.lane * lane
        return Lanes(self.v.trace.emit("lsext" if sign else "lzext", w, [self.v], lane=self.lane, to=lane), lane)

    def narrow(self, lane: int, saturate: str | None = None) -> Lanes:
        """Every lane cut to `lane` bits; `saturate` "s" or "u" clamps the signed lane to that range first."""
        w = self.v.w // self.lane * lane
        return Lanes(self.v.trace.emit("ltrunc", w, [self.v], lane=self.lane, to=lane, saturate=saturate), lane)

    def movemask(self) -> Value:
        """The lanes' sign bits as one number, lane 0 lowest."""
        return self.v.trace.emit("movemask", self.v.w // self.lane, [self.v], lane=self.lane)

    def get(self, k: int) -> Value:
        return self.v.bits(k * self.lane, self.lane)

    def set(self, k: int, part: Value) -> Lanes:
        return Lanes(self.v.insert(k * self.lane, part), self.lane)


class Trace:
    """The operations of one body, in program order."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self._count = 0
        self._stack = [self.ops]

    @property
    def nested(self) -> bool:
        return len(self._stack) > 1

    def emit(self, op: str, w: int, args: list[Value], sub: list[list[Op]] | None = None, **at: Any) -> Value:
        new = Op(self._count, op, w, args, at, sub)
        self._count += 1
        self._stack[-1].append(new)
        return Value(new.id, w, self)

    def value(self, v: Value | int, w: int) -> Value:
        """A constant of w bits, or the Value itself; TypeError when its width is not w."""
        if isinstance(v, Value):
            if v.w != w:
                raise TypeError(f"width {v.w} where {w} is needed")
            return v
        return Value(-1, w, self, int(v) & mask(w))

    def region(self, body: Callable[[], Any]) -> tuple[list[Op], Any]:
        ops: list[Op] = []
        self._stack.append(ops)
        try:
            return ops, body()
        finally:
            self._stack.pop()

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """The operations inside happen only where `condition` is 1."""
        ops: list[Op] = []
        self._stack.append(ops)
        try:
            yield
        finally:
            self._stack.pop()
        self.emit("when", 0, [condition], sub=[ops])

    def choose(self, condition: Value, then: Callable[[], Any], other: Callable[[], Any]) -> Any:
        """Runs one side only.  Both yield a Value, or tuples of Values of equal widths."""
        ops_a, a = self.region(then)
        ops_b, b = self.region(other)
        many = isinstance(a, tuple)
        pairs = list(zip(a, b, strict=True)) if many else [(a, b)]
        widths = [x.w if isinstance(x, Value) else y.w for x, y in pairs]
        left = [self.value(x, w) for (x, _), w in zip(pairs, widths, strict=True)]
        right = [self.value(y, w) for (_, y), w in zip(pairs, widths, strict=True)]
        head = self.emit("choose", 0, [condition, *left, *right], sub=[ops_a, ops_b])
        results = tuple(self.emit("chosen", w, [], of=head.id, index=k) for k, w in enumerate(widths))
        return results if many else results[0]


def walk(ops: list[Op]) -> Iterator[Op]:
    """Every operation, nested ones after the `when` or `choose` that holds them."""
    for op in ops:
        yield op
        for sub in op.sub:
            yield from walk(sub)


def dump(ops: list[Op], indent: int = 0) -> str:
    """The trace as text, for people."""

    def name(v: Value) -> str:
        return f"{v.const:#x}" if v.const is not None else f"%{v.id}"

    lines = []
    for op in ops:
        at = " " + " ".join(f"{k}={v}" for k, v in op.at.items()) if op.at else ""
        lines.append("  " * indent + f"%{op.id}:{op.w} = {op.op} " + ", ".join(name(a) for a in op.args) + at)
        lines += [dump(sub, indent + 1) for sub in op.sub]
    return "\n".join(lines)
