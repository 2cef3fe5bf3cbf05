"""String instructions: one element a turn; `taken` means this instruction again.

The translator puts a bulk path by page chunks in front of REP MOVS and REP STOS (see translate/runtime.py); what is left
over, and every fault, comes here.
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn


def _step(i: Context) -> Value:
    return (i.get("df", 8) != 0).select(i.const(-(i.size // 8), 64), i.const(i.size // 8, 64))


def _width(i: Context) -> int:
    return 16 if i.form.mem.address16 else 32 if i.form.mem.address32 else 64


def _index(i: Context, register: str) -> Value:
    w = _width(i)
    return i.get(register, w).zext(64) if w < 64 else i.get(register)


def _put_index(i: Context, register: str, value: Value) -> None:
    w = _width(i)
    i.put(register, value if w == 64 else value.trunc(16) if w == 16 else value.trunc(32).zext(64))


def _source(i: Context) -> Value:
    return i.implicit(i.get("rsi"), i.size // 8, False)


def _destination(i: Context, write: bool) -> Value:
    offset = _index(i, "rdi")
    return i.linear("es", offset, i.size // 8, write) if i.form.mem.limit else offset


def _advance(i: Context, register: str) -> None:
    _put_index(i, register, _index(i, register) + _step(i))


def movs(i: Context) -> None:
    i.store(_destination(i, True), i.load(_source(i), i.size))
    _advance(i, "rsi")
    _advance(i, "rdi")


def stos(i: Context) -> None:
    i.store(_destination(i, True), i.get("rax", i.size))
    _advance(i, "rdi")


def lods(i: Context) -> None:
    v = i.load(_source(i), i.size)
    i.put_register("rax", v)
    _advance(i, "rsi")


def cmps(i: Context) -> Value:
    a = i.load(_source(i), i.size)
    b = i.load(_destination(i, False), i.size)
    _advance(i, "rsi")
    _advance(i, "rdi")
    i.f.sub(a, b, a - b)
    return a == b


def scas(i: Context) -> Value:
    a = i.get("rax", i.size)
    b = i.load(_destination(i, False), i.size)
    _advance(i, "rdi")
    i.f.sub(a, b, a - b)
    return a == b


def _count_down(i: Context) -> tuple[Value, Value]:
    n = _index(i, "rcx")
    return n != 0, n - 1


def _plain(name: str, one: object) -> None:
    @insn(name)
    def body(i: Context) -> None:
        one(i)  # type: ignore[operator]


def _rep(name: str, one: object) -> None:
    @insn("rep " + name)
    def body(i: Context) -> None:
        go, left = _count_down(i)
        with i.when(go):
            one(i)  # type: ignore[operator]
            _put_index(i, "rcx", left)
        i.taken(go)


def _rep_compare(prefix: str, name: str, one: object) -> None:
    @insn(f"{prefix} {name}")
    def body(i: Context) -> None:
        go, left = _count_down(i)

        def turn() -> Value:
            equal: Value = one(i)  # type: ignore[operator]
            _put_index(i, "rcx", left)
            again = equal if prefix == "repe" else ~equal
            return again & (left != 0)

        i.f.keep_where_not_set()
        i.taken(i.choose(go, turn, lambda: i.const(0, 1)))


for _name, _one in (("movs", movs), ("stos", stos), ("lods", lods)):
    _plain(_name, _one)
    _rep(_name, _one)
for _name, _compare in (("cmps", cmps), ("scas", scas)):
    _plain(_name, _compare)
    _rep_compare("repe", _name, _compare)
    _rep_compare("repne", _name, _compare)


def _port_string(name: str) -> None:
    @insn(name)
    def body(i: Context) -> None:
        """Port strings are carried out by the engine: every element is an exit."""
        i.defer_if(1)


for _name in ("ins", "outs", "rep ins", "rep outs"):
    _port_string(_name)
