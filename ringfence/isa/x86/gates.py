"""Gates of protected mode: the stack of an inner level, the frame that is pushed on it, and call gates (SDM 3A 5.8.3-5.8.6, 6.12.1;
SDM 2 CALL, JMP).

The call gate's body is compiled as a native routine: bodies of JMP and CALL raise FAR_GATE where the selector is no code
segment's, and the run time goes on here.  What is no call gate of 16 or 32 bits is left to the engine's Python side.
"""

from __future__ import annotations

from typing import NamedTuple

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.segments import descriptor, descriptor_base, descriptor_limit, put_segment
from ringfence.isa.x86.state import REQUEST_MODE
from ringfence.isa.x86.vectors import GP, NP, SS, TS

MAX_PARAMETERS = 31
GATE_CALLS = 1 << 16  # beside the selector, in FAR_GATE's error code: CALL, not JMP
Frame = list[tuple[Value, tuple[Value, ...]]]
"""Values to push, first to last, each group under a condition."""


class Stack(NamedTuple):
    """Where a frame goes: on an inner level's stack or on today's."""

    inner: Value
    ss: Value
    descriptor: Value  # where `inner`
    sp: Value


def new_stack(i: Context, inner: Value, level: Value, ext: Value | int) -> Stack:
    """The stack of `level` from the TSS (SDM 3A 5.8.5) where `inner`, else that of today."""

    def from_tss() -> tuple[Value, Value, Value]:
        wide = i.get("tr_attr", 16).bit(3)
        slot = wide.select((level.zext(64) << 3) + 4, (level.zext(64) << 2) + 2)
        tss_error = i.get("tr", 16).zext(32) & 0xFFFC | ext
        i.fault_if(i.get("tr_limit", 32).zext(64).ult(slot + wide.select(i.const(5, 64), 3)), TS, tss_error)
        at = i.get("tr_base") + slot
        sp = wide.select(i.load(at, 32, system=True), i.load(at, 16, system=True).zext(32))
        ss = wide.select(i.load(at + 4, 16, system=True), i.load(at + 2, 16, system=True))
        i.fault_if((ss & 0xFFFC) == 0, TS, ext)
        s, _, error = descriptor(i, ss, TS, ext)
        error = error | ext
        rpl = ss.trunc(8) & 3
        i.fault_if((rpl != level) | ((s.bits(45, 8) & 3) != level) | ~s.bit(44) | s.bit(43) | ~s.bit(41), TS, error)
        i.fault_if(~s.bit(47), SS, error)
        return ss, s, sp.zext(64)

    def same() -> tuple[Value, Value, Value]:
        return i.get("ss", 16), i.const(0, 64), i.get("rsp", 32).zext(64)

    ss, s, sp = i.choose(inner, from_tss, same)
    return Stack(inner, ss, s, sp)


def push_frame(i: Context, stack: Stack, big: Value, frame: Frame, count: Value, level: Value, ext: Value | int) -> None:
    """Pushes `count` values of 4 bytes (`big`) or 2 with the rights of `level`, and loads SS and RSP.  The last that can fail."""
    inner, ss, s, sp = stack
    n = big.select(i.const(4, 64), 2)
    base = inner.select(descriptor_base(s), i.get("ss_base"))
    wide = inner.select(s.bit(54), i.get("ss_attr", 16).bit(10))
    mask = wide.select(i.const(0xFFFFFFFF, 64), 0xFFFF)
    limit = inner.select(descriptor_limit(s), i.get("ss_limit", 32)).zext(64)
    down = inner.select(s.bit(42), i.get("ss_attr", 16).bit(2))
    error = inner.select(ss.zext(32) & 0xFFFC, i.const(0, 32)) | ext
    last, top = (sp - count * n) & mask, (sp - 1) & mask
    around = top.ult(last)  # the frame goes on at the other end of the segment
    i.fault_if(down.select(around | last.ule(limit), limit.ult(around.select(mask, top))), SS, error)
    ends = [(base + offset) & 0xFFFFFFFF for offset in ((sp - n) & mask, last, top)]
    with i.when(level == 3):
        for place in ends:
            i.probe(place, 1)
    for place in ends:
        i.probe(place, 1, system=True)
    at = sp
    for condition, values in frame:
        for value in values:
            at = condition.select((at - n) & mask, at)
            place = (base + at) & 0xFFFFFFFF
            with i.when(condition & big):
                i.store(place, value.zext(32) if value.w < 32 else value, safe=True, system=True)
            with i.when(condition & ~big):
                i.store(place, value.trunc(16) if value.w > 16 else value, safe=True, system=True)
    with i.when(inner):
        put_segment(i, "ss", ss, s)
    i.put("rsp", wide.select(at, (i.get("rsp") & ~0xFFFF) | at))


def _parameters(i: Context, count: Value, big: Value) -> list[Value]:
    """What lies on today's stack, last pushed first; 0 beyond `count`."""
    wide, down = i.get("ss_attr", 16).bit(10), i.get("ss_attr", 16).bit(2)
    mask, limit = wide.select(i.const(0xFFFFFFFF, 64), 0xFFFF), i.get("ss_limit", 32).zext(64)
    sp, n = i.get("rsp") & mask, big.select(i.const(4, 64), 2)

    def value(offset: Value, there: Value) -> Value:
        place = (i.get("ss_base") + offset) & 0xFFFFFFFF
        narrow: Value = i.choose(there & ~big, lambda: i.load(place, 16), lambda: i.const(0, 16))
        wide_one: Value = i.choose(there & big, lambda: i.load(place, 32), lambda: narrow.zext(32))
        return wide_one

    found = []
    for k in range(MAX_PARAMETERS):
        offset = (sp + n * k) & mask
        end = offset + n - 1
        there = i.const(k, 64).ult(count)
        i.fault_if(there & down.select(offset.ule(limit) | mask.ult(end), limit.ult(end)), SS)
        found.append(value(offset, there))
    return found


@insn("(call gate)")
def call_gate(i: Context) -> None:
    """`exc_error` has selector and GATE_CALLS; RIP is that of the next instruction."""
    asked = i.get("exc_error", 32)
    selector, call = asked.trunc(16), asked.bit(16)
    i.defer_if(i.get("efer").bit(10))
    gate, _, gate_error = descriptor(i, selector, GP)
    kind = gate.bits(40, 8) & 0x1F
    i.defer_if((kind & 0x17) != 4)
    cpl, gate_dpl = i.get("cpl", 8), gate.bits(45, 8) & 3
    i.fault_if(gate_dpl.ult(cpl) | gate_dpl.ult(selector.trunc(8) & 3), GP, gate_error)
    i.fault_if(~gate.bit(47), NP, gate_error)
    entry = gate.bits(16, 16)
    d, _, error = descriptor(i, entry, GP)
    dpl, conforming = d.bits(45, 8) & 3, d.bit(42)
    i.fault_if(((d.bits(43, 8) & 3) != 3) | cpl.ult(dpl), GP, error)
    i.fault_if(~call & ~conforming & (dpl != cpl), GP, error)
    i.fault_if(~d.bit(47), NP, error)
    big = kind.bit(3)
    target = big.select((gate & 0xFFFF) | (gate >> 32 & 0xFFFF0000), gate & 0xFFFF)
    inner = call & ~conforming & dpl.ult(cpl)
    level = inner.select(dpl, cpl)
    stack = new_stack(i, inner, level, 0)
    i.fault_if(descriptor_limit(d).zext(64).ult(target), GP)
    count = inner.select(gate.bits(32, 64) & 31, i.const(0, 64))
    parameters = _parameters(i, count, big)
    own = ((i.get("rip") - i.get("cs_base")) & 0xFFFFFFFF).trunc(32)
    frame: Frame = [(inner, (i.get("ss", 16), i.get("rsp", 32)))]
    frame += [(i.const(k, 64).ult(count), (parameters[k],)) for k in reversed(range(MAX_PARAMETERS))]
    frame.append((call, (i.get("cs", 16), own)))
    with i.when(call):
        push_frame(i, stack, big, frame, count + inner.select(i.const(4, 64), 2), level, 0)
    put_segment(i, "cs", (entry & 0xFFFC) | level.zext(16), d)
    i.put("cpl", level)
    i.request(REQUEST_MODE)
    i.jump((target + descriptor_base(d)) & 0xFFFFFFFF)
