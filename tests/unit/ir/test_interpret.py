"""The reference interpreter: a body is a transaction; every pure operation is total and agrees with arithmetic on ints."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.ir.fault import GuestFault
from ringfence.ir.interpret import Interpreter
from ringfence.ir.ops import COMPARE, PURE, join_lanes, mask, signed, split_lanes
from ringfence.ir.value import Trace, Value

WIDTHS = st.sampled_from([1, 3, 8, 16, 32, 33, 64, 80, 128])


class Bytes:
    """Guest memory of 64 bytes at address 0x100; beyond it everything faults."""

    def __init__(self) -> None:
        self.data = bytearray(range(64))

    def _at(self, address: int, size: int, write: bool) -> int:
        if not 0x100 <= address <= 0x140 - size:
            raise GuestFault(14, 2 * write, address)
        return address - 0x100

    def load(self, address: int, size: int, write: bool, system: bool = False) -> int:
        at = self._at(address, size, write)
        return int.from_bytes(self.data[at : at + size], "little")

    def store(self, address: int, size: int, value: int, system: bool = False) -> None:
        at = self._at(address, size, True)
        self.data[at : at + size] = value.to_bytes(size, "little")

    def load_physical(self, address: int, size: int) -> int:
        return address

    def store_physical(self, address: int, size: int, value: int) -> None: ...


def run(trace: Trace, state: dict[str, Any], memory: Bytes | None = None, binds: Any = None, imms: Any = None) -> Any:
    return Interpreter(state, memory or Bytes(), binds or {}, imms or {}).run(trace.ops)


def get(trace: Trace, name: str, w: int = 64, low: int = 0) -> Value:
    return trace.emit("get", w, [], field=name, low=low)


def put(trace: Trace, name: str, value: Value, low: int = 0) -> None:
    trace.emit("set", 0, [value], field=name, low=low)


# ---- transactions
def test_reads_see_the_state_at_entry() -> None:
    trace = Trace()
    put(trace, "a", get(trace, "b"))
    put(trace, "b", get(trace, "a"))
    state = {"a": 1, "b": 2}
    assert run(trace, state) == ("next",)
    assert state == {"a": 2, "b": 1}


def test_a_fault_drops_all_writes() -> None:
    trace = Trace()
    put(trace, "a", trace.value(7, 64))
    with trace.when(get(trace, "b") == 2):
        trace.emit("fault", 0, [trace.value(0x55, 32)], vector=13)
    state = {"a": 1, "b": 2}
    with pytest.raises(GuestFault) as raised:
        run(trace, state)
    assert (raised.value.vector, raised.value.error, state["a"]) == (13, 0x55, 1)
    state["b"] = 3
    run(trace, state)
    assert state["a"] == 7


def test_the_last_of_two_writes_wins_and_parts_stay_parts() -> None:
    trace = Trace()
    put(trace, "a", trace.value(0xAB, 8), low=8)
    put(trace, "a", trace.value(1, 8))
    put(trace, "a", trace.value(2, 8))
    state = {"a": 0x1122334455667788}
    run(trace, state)
    assert state["a"] == 0x112233445566AB02


def test_only_the_chosen_side_runs() -> None:
    trace = Trace()

    def load() -> Value:
        return trace.emit("load", 64, [get(trace, "p")])

    put(trace, "a", trace.choose(get(trace, "c", 1) == 1, load, lambda: trace.value(5, 64)))
    state = {"a": 0, "p": 0, "c": 0}
    run(trace, state)
    assert state["a"] == 5
    state["c"] = 1
    with pytest.raises(GuestFault):
        run(trace, state)


def test_slots_and_immediates_are_bound_from_outside() -> None:
    trace = Trace()
    value = trace.emit("get", 8, [], slot=0) + trace.emit("imm", 8, [], slot=1)
    trace.emit("set", 0, [value], slot=0)
    state = {"rax": 0x1234}
    run(trace, state, binds={0: ("rax", 8)}, imms={1: 0xFF})
    assert state["rax"] == 0x1134


def test_indexed_fields() -> None:
    trace = Trace()
    one = trace.emit("get_indexed", 80, [get(trace, "top", 8)], field="st")
    trace.emit("set_indexed", 0, [trace.value(0, 8), one], field="st")
    state = {"st": [1, 2, 3], "top": 2}
    run(trace, state)
    assert state["st"] == [3, 2, 3]


def test_memory() -> None:
    trace = Trace()
    value = trace.emit("load", 32, [trace.value(0x104, 64)], write=True)
    trace.emit("store", 0, [trace.value(0x104, 64), value + 1], window=value.id)
    memory = Bytes()
    run(trace, {}, memory)
    assert memory.data[4:8] == (0x07060504 + 1).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("kind", "operands", "after"),
    [
        ("add", [3], 0x03),
        ("and", [0xF0], 0),
        ("or", [0xF0], 0xF0),
        ("xor", [0xFF], 0xFF),
        ("xchg", [9], 9),
        ("cas", [0, 7], 7),
        ("cas", [1, 7], 0),
    ],
)
def test_atomics_return_the_old_value(kind: str, operands: list[int], after: int) -> None:
    trace = Trace()
    old = trace.emit("atomic", 8, [trace.value(0x100, 64), *(trace.value(v, 8) for v in operands)], kind=kind)
    put(trace, "old", old)
    memory, state = Bytes(), {"old": 99}
    run(trace, state, memory)
    assert (state["old"], memory.data[0]) == (0, after)


def test_probe_touches_both_ends() -> None:
    trace = Trace()
    trace.emit("probe", 0, [trace.value(0x13F, 64)], size=2)
    with pytest.raises(GuestFault):
        run(trace, {})


def test_ends() -> None:
    for op, args, at, outcome in (
        ("jump", [(0x123, 64)], {}, ("jump", 0x123)),
        ("taken", [(1, 1)], {}, ("taken",)),
        ("taken", [(0, 1)], {}, ("next",)),
        ("exit", [(0x60, 16)], {"kind": "in"}, ("exit", "in", 0x60)),
    ):
        trace = Trace()
        trace.emit(op, 0, [trace.value(v, w) for v, w in args], **at)  # type: ignore[arg-type]
        assert run(trace, {}) == outcome


# ---- operations
def evaluate(op: str, w: int, *values: int, result_w: int | None = None, **at: Any) -> int:
    """One operation on fields, so that nothing is a constant."""
    trace = Trace()
    args = [get(trace, f"x{k}", w) for k in range(len(values))]
    put(trace, "r", trace.emit(op, result_w or w, args, **at))
    state = {f"x{k}": v for k, v in enumerate(values)} | {"r": 0}
    run(trace, state)
    return state["r"]


@given(st.data(), WIDTHS)
def test_every_pure_operation_is_total(data: st.DataObject, w: int) -> None:
    x, y = (data.draw(st.integers(0, mask(w))) for _ in range(2))
    for name, function in PURE.items():
        if name in ("bswap", "crc32c"):
            continue
        n = function.__code__.co_argcount - 1
        result = evaluate(name, w, *(x, y)[:n])
        assert 0 <= result <= mask(w), name


@given(st.data(), WIDTHS)
def test_arithmetic(data: st.DataObject, w: int) -> None:
    x, y = (data.draw(st.integers(0, mask(w))) for _ in range(2))
    m = mask(w)
    assert evaluate("add", w, x, y) == (x + y) & m
    assert evaluate("sub", w, x, y) == (x - y) & m
    assert evaluate("mul", w, x, y) == x * y & m
    assert evaluate("ashr", w, x, y) == (signed(x, w) >> min(y, w)) & m
    assert evaluate("shl", w, x, y) == (x << y & m if y < w else 0)
    assert evaluate("umin", w, x, y) == min(x, y)
    assert evaluate("smax", w, x, y) == max(signed(x, w), signed(y, w)) & m
    for name in COMPARE:
        assert evaluate(name, w, x, y, result_w=1) == COMPARE[name](w, x, y)


def test_what_has_no_natural_answer() -> None:
    assert evaluate("udiv", 32, 5, 0) == 0 and evaluate("urem", 32, 5, 0) == 0
    assert evaluate("cttz", 16, 0) == 16 and evaluate("ctlz", 16, 0) == 16
    assert evaluate("lshr", 8, 0xFF, 8) == 0 and evaluate("ashr", 8, 0x80, 200) == 0xFF
    assert evaluate("abs", 8, 0x80) == 0x80
    assert evaluate("saddsat", 8, 0x7F, 1) == 0x7F and evaluate("ssubsat", 8, 0x80, 1) == 0x80


@given(st.integers(0, mask(128)), st.integers(0, mask(128)), st.sampled_from([8, 16, 32, 64]))
def test_lanes_are_the_same_operations_side_by_side(x: int, y: int, lane: int) -> None:
    for name in ("add", "sub", "mul", "umax", "smin", "uaddsat", "ssubsat", "avg", "mulhs"):
        wanted = [PURE[name](lane, a, b) & mask(lane) for a, b in zip(split_lanes(x, 128, lane), split_lanes(y, 128, lane), strict=True)]
        assert evaluate(name, 128, x, y, lane=lane) == join_lanes(wanted, lane)
    wanted = [mask(lane) if a == b else 0 for a, b in zip(split_lanes(x, 128, lane), split_lanes(y, 128, lane), strict=True)]
    assert evaluate("eq", 128, x, y, lane=lane) == join_lanes(wanted, lane)
    signs = sum((v >> lane - 1) << k for k, v in enumerate(split_lanes(x, 128, lane)))
    assert evaluate("movemask", 128, x, lane=lane, result_w=128 // lane) == signs


def test_narrowing() -> None:
    lanes = join_lanes([0x8000, 0x7FFF, 0x0080, 0xFF80], 16)
    assert evaluate("ltrunc", 64, lanes, result_w=32, lane=16, to=8, saturate=None) == 0x8080FF00
    assert evaluate("ltrunc", 64, lanes, result_w=32, lane=16, to=8, saturate="s") == 0x807F7F80
    assert evaluate("ltrunc", 64, lanes, result_w=32, lane=16, to=8, saturate="u") == 0x0080FF00
