"""The two flag words: every kind says the same as arithmetic does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.ir.interpret import Interpreter
from ringfence.ir.ops import mask, signed
from ringfence.isa.x86.context import Context, Form
from ringfence.isa.x86.flags import ADD, CONDITIONS, KIND_WIDTH, SUB
from ringfence.isa.x86.state import ARITHMETIC, DF, FLAG_BITS, SYSTEM_FLAGS, rflags_image, rflags_words

FORM = Form("(test)", 64, ())


def flags_of(kind: int, x: int, y: int) -> dict[str, bool]:
    """What ADD (r = x, b = y) or SUB (a = x, b = y) of the kind's width leaves, by plain arithmetic."""
    w = KIND_WIDTH[kind]
    if kind in SUB.values():
        a, b, r = x, y, x - y & mask(w)
        carry, overflow = a < b, not -(1 << w - 1) <= signed(a, w) - signed(b, w) < 1 << w - 1
    else:
        r, b, a = x, y, x - y & mask(w)
        carry, overflow = a + b > mask(w), not -(1 << w - 1) <= signed(a, w) + signed(b, w) < 1 << w - 1
    return {
        "cf": carry, "zf": r == 0, "sf": bool(r >> w - 1), "pf": (r & 0xFF).bit_count() % 2 == 0, "af": bool((a ^ b ^ r) & 16),
        "of": overflow,
    }  # fmt: skip


def condition(code: int, f: dict[str, bool]) -> bool:
    """SDM 1 appendix B."""
    value = [f["of"], f["cf"], f["zf"], f["cf"] or f["zf"], f["sf"], f["pf"], f["sf"] != f["of"], f["zf"] or f["sf"] != f["of"]][code >> 1]
    return value != bool(code & 1)


def run(context: Context, **state: Any) -> dict[str, Any]:
    Interpreter(state, None, {}, {}).run(context.trace.ops)  # type: ignore[arg-type]
    return state


@given(st.sampled_from(sorted(KIND_WIDTH)), st.data())
def test_kinds_answer_like_arithmetic(kind: int, data: st.DataObject) -> None:
    w = KIND_WIDTH[kind]
    x, y = (data.draw(st.one_of(st.integers(0, mask(w)), st.sampled_from([0, 1, mask(w), 1 << w - 1, (1 << w - 1) - 1]))) for _ in range(2))
    context = Context(FORM, lazy=True, kind_in=kind)
    for name in FLAG_BITS:
        context.put(name, getattr(context.f, name)().zext(8))
    for code, text in enumerate(CONDITIONS):
        context.put("c_" + text, context.f.condition(code).zext(8))
    fields = {**dict.fromkeys(FLAG_BITS, 0), **{"c_" + c: 0 for c in CONDITIONS}}
    state = run(context, fr=x, fa=y, **fields)
    wanted = flags_of(kind, x, y)
    assert {name: bool(state[name]) for name in FLAG_BITS} == wanted
    assert [bool(state["c_" + c]) for c in CONDITIONS] == [condition(code, wanted) for code in range(16)]


@given(st.sampled_from(sorted(KIND_WIDTH)), st.data())
def test_settling_changes_nothing(kind: int, data: st.DataObject) -> None:
    w = KIND_WIDTH[kind]
    x, y = (data.draw(st.integers(0, mask(w))) for _ in range(2))
    context = Context(FORM, kind_in=kind)
    fr, fa = context.f.settled()
    context.put("fr", fr)
    context.put("fa", fa)
    state = run(context, fr=x, fa=y)
    image = rflags_image({**state, "df": 0, "rflags_sys": 0})
    assert {n: bool(image >> bit & 1) for n, bit in FLAG_BITS.items()} == flags_of(kind, x, y)


@given(st.integers(0, (1 << 22) - 1))
def test_image_and_words_are_inverse(image: int) -> None:
    """POPF can set ZF and SF both: the settled form says everything."""
    known = image & (ARITHMETIC | DF | SYSTEM_FLAGS) | 2
    assert rflags_image(rflags_words(known)) == known


@given(st.integers(0, mask(12)))
def test_put_image(image: int) -> None:
    context = Context(FORM)
    context.f.put_image(context.const(image, 64))
    state = run(context, fr=0, fa=0)
    assert rflags_image({**state, "df": 0, "rflags_sys": 0}) & ARITHMETIC == image & ARITHMETIC


def test_results() -> None:
    context = Context(FORM)
    context.f.logic(context.const(0x80, 8))
    assert rflags_image({**run(context, fr=0, fa=0), "df": 0, "rflags_sys": 0}) & ARITHMETIC == 0x80
    context = Context(FORM)
    context.f.result(context.const(0, 16), context.const(1, 1), context.const(1, 1))
    assert rflags_image({**run(context, fr=0, fa=0), "df": 0, "rflags_sys": 0}) & ARITHMETIC == 0x801 | 0x40 | 4


@pytest.mark.parametrize("carry", [0, 1])
def test_inc_keeps_the_carry(carry: int) -> None:
    context = Context(FORM)
    a = context.const(0x7F, 8)
    context.f.incdec(a, a + 1, dec=False)
    words = rflags_words(carry)
    state = run(context, **words)
    assert rflags_image(state) & ARITHMETIC == carry | 0x890  # OF SF AF


def test_kinds_fit_their_widths() -> None:
    assert {KIND_WIDTH[k] for k in SUB.values()} == {KIND_WIDTH[k] for k in ADD.values()} == {8, 16, 32, 64}


def test_dead_flags_emit_nothing() -> None:
    context = Context(FORM, lazy=True, flags_live=False)
    a = context.get("rax")
    context.f.add(a, a, a + a)
    assert context.f.kind_out is None and not [op for op in context.trace.ops if op.op == "set"]
