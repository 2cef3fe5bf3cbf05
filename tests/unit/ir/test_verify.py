"""The pass that keeps bodies transactions."""

from __future__ import annotations

from ringfence.ir.value import Trace, Value
from ringfence.ir.verify import verify


def address(trace: Trace) -> Value:
    return trace.emit("get", 64, [], field="rax", low=0)


def test_nothing_may_fail_after_a_store() -> None:
    trace = Trace()
    a = address(trace)
    trace.emit("store", 0, [a, a])
    trace.emit("load", 64, [a])
    assert verify(trace.ops) == ["%2 load can fail after a store"]


def test_a_window_and_what_a_probe_covers_may() -> None:
    trace = Trace()
    a = address(trace)
    trace.emit("probe", 0, [a], size=16)
    old = trace.emit("load", 64, [a], write=True)
    trace.emit("store", 0, [a, old], window=old.id)
    trace.emit("store", 0, [a + 8, a], safe=True)
    assert not verify(trace.ops)


def test_a_store_in_a_branch_counts_afterwards() -> None:
    trace = Trace()
    a = address(trace)
    with trace.when(a == 0):
        trace.emit("store", 0, [a, a])
    trace.emit("fault", 0, [trace.value(0, 32)], vector=13)
    assert len(verify(trace.ops)) == 1


def test_sides_of_a_choice_do_not_follow_each_other() -> None:
    trace = Trace()
    a = address(trace)

    def store() -> Value:
        trace.emit("store", 0, [a, a])
        return a

    trace.choose(a == 0, store, lambda: trace.emit("load", 64, [a]))
    assert not verify(trace.ops)
    trace.emit("load", 64, [a])
    assert verify(trace.ops)


def test_ends_stand_last_and_outside() -> None:
    trace = Trace()
    a = address(trace)
    trace.emit("jump", 0, [a])
    trace.emit("set", 0, [a], field="rbx", low=0)
    assert not verify(trace.ops)
    trace.emit("load", 64, [a])
    assert verify(trace.ops) == ["%1 jump is not last"]
    inside = Trace()
    b = address(inside)
    with inside.when(b == 0):
        inside.emit("jump", 0, [b])
    assert verify(inside.ops) == ["%2 jump ends the body inside a branch"]
