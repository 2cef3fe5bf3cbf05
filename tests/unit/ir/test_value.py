"""Tracing: what a body emits."""

from __future__ import annotations

import pytest

from ringfence.ir.value import Trace, Value, dump, walk


def field(trace: Trace, name: str = "a", w: int = 64) -> Value:
    return trace.emit("get", w, [], field=name, low=0)


def test_operations_are_in_program_order() -> None:
    trace = Trace()
    a = field(trace)
    ((a + 1) ^ a).bits(8, 16)
    assert [op.op for op in trace.ops] == ["get", "add", "xor", "lshr", "trunc"]
    assert [op.id for op in trace.ops] == [0, 1, 2, 3, 4]


def test_constants_take_the_other_sides_width_and_wrap() -> None:
    trace = Trace()
    op = (field(trace, w=8) + 0x1FF, trace.ops[-1])[1]
    assert op.args[1].const == 0xFF and op.args[1].w == 8
    assert trace.value(-1, 16).const == 0xFFFF


def test_widths_must_match() -> None:
    trace = Trace()
    with pytest.raises(TypeError, match="width 8 where 64 is needed"):
        field(trace) + field(trace, "b", 8)


def test_a_value_has_no_truth() -> None:
    trace = Trace()
    with pytest.raises(TypeError, match="select, choose or when"):
        bool(field(trace) == 0)


def test_comparisons_are_one_bit_wide() -> None:
    trace = Trace()
    a, b = field(trace), field(trace, "b")
    assert {v.w for v in (a == b, a != b, a.ult(b), a.ule(b), a.slt(b), a.sle(b))} == {1}


def test_extension_to_the_same_width_is_nothing() -> None:
    trace = Trace()
    a = field(trace, w=32)
    assert a.zext(32) is a and a.sext(32) is a and a.trunc(32) is a


def test_concat_and_insert() -> None:
    trace = Trace()
    a, b = field(trace, w=8), field(trace, "b", 16)
    assert a.concat(b).w == 24
    assert field(trace).insert(8, a).w == 64


def test_when_holds_its_operations() -> None:
    trace = Trace()
    a = field(trace)
    with trace.when(a == 0):
        assert trace.nested
        trace.emit("set", 0, [a], field="a", low=0)
    assert not trace.nested
    assert [op.op for op in trace.ops] == ["get", "eq", "when"]
    assert [op.op for op in trace.ops[2].sub[0]] == ["set"]
    assert [op.op for op in walk(trace.ops)] == ["get", "eq", "when", "set"]


def test_choose_yields_values_and_tuples() -> None:
    trace = Trace()
    a = field(trace)
    one = trace.choose(a == 0, lambda: a + 1, lambda: 5)
    assert one.w == 64
    pair = trace.choose(a == 0, lambda: (a, a == 1), lambda: (0, 0))
    assert [v.w for v in pair] == [64, 1]
    heads = [op for op in trace.ops if op.op == "choose"]
    assert all(op.at["of"] in {h.id for h in heads} for op in trace.ops if op.op == "chosen")


def test_choose_of_unequal_widths_is_refused() -> None:
    trace = Trace()
    a = field(trace)
    with pytest.raises(TypeError):
        trace.choose(a == 0, lambda: a, lambda: a.trunc(8))


def test_an_exception_leaves_the_trace_where_it_was() -> None:
    trace = Trace()
    a = field(trace)
    with pytest.raises(RuntimeError), trace.when(a == 0):
        raise RuntimeError("a body failed")
    assert not trace.nested


def test_lanes_keep_their_size() -> None:
    trace = Trace()
    x = field(trace, "xmm0", 128).lanes(16)
    assert (x + x).lane == 16 and x.movemask().w == 8
    assert x.widen(True, 32).v.w == 256 and x.narrow(8).v.w == 64
    assert x.shuffle(x, [0, 9]).v.w == 32 and x.get(3).w == 16 and x.set(3, x.get(0)).v.w == 128


def test_dump_shows_nesting() -> None:
    trace = Trace()
    a = field(trace)
    with trace.when(a == 5):
        trace.emit("fault", 0, [trace.value(0, 32)], vector=13)
    text = dump(trace.ops)
    assert text.splitlines()[1].endswith("eq %0, 0x5") and text.splitlines()[-1].startswith("  %") and "vector=13" in text
