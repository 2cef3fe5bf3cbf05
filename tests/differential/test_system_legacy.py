"""Call gates, rings and segments of protected mode in the emulating engine, with expectations from SDM 3A chapters 5 and 6 and SDM 2."""

from __future__ import annotations

import pytest

from ringfence.engine.api import Shutdown

from . import system_guest as long
from .legacy_guest import (
    CODE1,
    CODE2,
    CODE16,
    CODE32,
    DATA,
    DATA1,
    DATA2,
    DATA16,
    DATA32,
    DB,
    DF,
    GATE,
    GP,
    IF,
    IOPL3,
    KCODE,
    KDATA,
    KERNEL_CODE,
    MAIN,
    MAIN_TSS,
    NP,
    NT,
    OTHER,
    OTHER_TSS,
    PF,
    PRESENT,
    SMALL,
    SMALL_TSS,
    SPARE,
    SS,
    STACK_TOP,
    STUBS,
    TASK_CODE,
    TF,
    TS,
    UCODE,
    UD,
    UDATA,
    USER,
    USER_CODE,
    USER_GATE,
    USER_STACK,
    WRITABLE,
    LegacyGuest,
    call,
    fault,
    fault_of_task,
    frame_of,
    gate,
    handler_task,
    jump,
    pushes,
    selector_of,
    words,
)
from .system_guest import SystemGuest, descriptor


@pytest.fixture
def guest(shared_legacy_guest: LegacyGuest) -> LegacyGuest:
    shared_legacy_guest.reset()
    return shared_legacy_guest


# ---- call gates (SDM 3A 5.8.3-5.8.5; SDM 2 CALL, JMP)
def test_call_gate_to_an_inner_ring(guest: LegacyGuest) -> None:
    """Parameters are copied; on the new stack they lie below SS:ESP and above CS:EIP."""
    guest.set_descriptor(GATE, gate(KCODE | 3, TASK_CODE, kind=0xEC, count=3))
    guest.place(TASK_CODE, "hlt")
    state = guest.run("push 0x11\npush 0x22\npush 0x33\n" + call(GATE | 3, 0x12345), ring=3).registers
    assert (state["rip"], state["cs"], state["cpl"], state["ss"]) == (TASK_CODE + 1, KCODE, 0, KDATA)
    assert state["rsp"] == STACK_TOP - 28
    assert words(guest, STACK_TOP - 28, 7) == [USER_CODE + 13, UCODE, 0x33, 0x22, 0x11, USER_STACK - 12, UDATA]


def test_call_gate_and_return(guest: LegacyGuest) -> None:
    """RETF n drops the parameters from both stacks (SDM 2 RET)."""
    guest.set_descriptor(GATE, gate(KCODE, TASK_CODE, kind=0xEC, count=2))
    guest.place(TASK_CODE, "mov ebx, [esp + 8]\nmov ecx, [esp + 12]\nretf 8")
    result = guest.run("push 1\npush 2\n" + call(GATE) + "\nmov edx, 9", ring=3)
    frame, state = frame_of(result), result.registers
    assert frame.cs == UCODE and frame.eip == USER_CODE + 16 and frame.esp == USER_STACK
    assert (state["rbx"], state["rcx"], state["rdx"]) == (2, 1, 9)


def test_call_gate_of_16_bits(guest: LegacyGuest) -> None:
    guest.set_descriptor(GATE, gate(SPARE, 0x100, kind=0xE4, count=2))
    guest.set_descriptor(SPARE, descriptor(CODE16, TASK_CODE, 0xFFFF))
    guest.place(TASK_CODE + 0x100, "hlt")
    state = guest.run("push ax\npush 0x12345678\npush 0x9abc\n" + call(GATE), ring=3).registers
    assert state["rip"] == 0x101 and state["cs"] == SPARE and state["rsp"] == STACK_TOP - 12
    at = USER_CODE + 2 + 5 + 5 + 7
    assert words(guest, STACK_TOP - 12, 6, 2) == [at & 0xFFFF, UCODE, 0x9ABC, 0, USER_STACK - 10 & 0xFFFF, UDATA]


def test_call_gate_through_a_16_bit_tss(guest: LegacyGuest) -> None:
    guest.set_descriptor(GATE, gate(KCODE, TASK_CODE, kind=0xEC))
    guest.place(TASK_CODE, "hlt")
    state = guest.run(call(GATE), ring=3, tr=SMALL, tr_base=SMALL_TSS, tr_limit=0x2B, tr_attr=0x83).registers
    assert state["rsp"] == 0xC000 - 16 and state["cpl"] == 0
    assert words(guest, 0xC000 - 16, 4) == [USER_CODE + 7, UCODE, USER_STACK, UDATA]


def test_call_gate_to_ring_1_and_2(guest: LegacyGuest) -> None:
    for code, data, top in ((CODE1, DATA1, STACK_TOP - 0x400), (CODE2, DATA2, STACK_TOP - 0x800)):
        guest.set_descriptor(GATE, gate(code, TASK_CODE, kind=0xEC))
        guest.place(TASK_CODE, "mov eax, ss\nint 0x42")
        guest.set_gate(0x42, gate(KCODE, STUBS + 8 * 0x42, 0xEE))
        frame = frame_of(guest.run(call(GATE), ring=3))
        assert (frame.vector, frame.cs, frame.ss, frame.esp) == (0x42, code, data, top - 16)


def test_call_gate_at_the_same_level(guest: LegacyGuest) -> None:
    """No stack switch, no parameters: to the own ring, and to conforming code of an inner one."""
    guest.place(USER_CODE + 0x800, "int 0x42")
    guest.set_gate(0x42, gate(KCODE, STUBS + 8 * 0x42, 0xEE))
    guest.set_descriptor(SPARE, descriptor(CODE32 | 4))
    for target in (UCODE & ~3, SPARE):
        guest.set_descriptor(GATE, gate(target, USER_CODE + 0x800, kind=0xEC, count=5))
        for text, pushed in ((call(GATE), 8), (jump(GATE), 0)):
            frame = frame_of(guest.run(text, ring=3))
            assert (frame.vector, frame.cs, frame.eip, frame.esp) == (0x42, target | 3, USER_CODE + 0x802, USER_STACK - pushed)
            if pushed:
                assert words(guest, USER_STACK - 8, 2) == [USER_CODE + 7, UCODE]


@pytest.mark.parametrize("how", [jump, call])
@pytest.mark.parametrize(
    ("selector", "value", "expected"),
    [
        (GATE | 3, gate(KCODE, TASK_CODE, kind=0x8C), (GP, GATE)), (GATE | 3, gate(KCODE, TASK_CODE, kind=0xCC), (GP, GATE)),
        (GATE, gate(KCODE, TASK_CODE, kind=0x6C), (NP, GATE)), (GATE, gate(0, TASK_CODE, kind=0xEC), (GP, 0)),
        (GATE, gate(0x200, TASK_CODE, kind=0xEC), (GP, 0x200)), (GATE, gate(KDATA, TASK_CODE, kind=0xEC), (GP, KDATA)),
        (GATE, gate(SPARE, TASK_CODE, kind=0xEC), (NP, SPARE)), (GATE, gate(SPARE + 8, TASK_CODE, kind=0xEC), (GP, 0)),
        (GATE, gate(MAIN, TASK_CODE, kind=0xEC), (GP, MAIN)),
    ],
)  # fmt: skip
def test_call_gate_is_refused(guest: LegacyGuest, how, selector: int, value: int, expected: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    guest.set_descriptor(SPARE, descriptor((CODE32 & ~0x80) | 0x60))
    guest.set_descriptor(SPARE + 8, descriptor((CODE32 & ~0x800) | 0x60, 0, TASK_CODE - 1))
    guest.set_descriptor(GATE, value)
    result = guest.run(how(selector), ring=3)
    assert frame_of(result)[:3] == (*expected, USER_CODE) and frame_of(result).esp == USER_STACK


def test_jump_through_a_gate_does_not_raise_the_privilege(guest: LegacyGuest) -> None:
    guest.set_descriptor(GATE, gate(KCODE, TASK_CODE, kind=0xEC))
    assert fault(guest.run(jump(GATE), ring=3)) == (GP, KCODE)


def test_gate_to_an_outer_ring(guest: LegacyGuest) -> None:
    guest.set_descriptor(GATE, gate(UCODE, USER_CODE, kind=0xEC))
    assert fault(guest.run(call(GATE))) == (GP, UCODE & ~3)


@pytest.mark.parametrize(
    ("esp0", "ss0", "limit", "expected"),
    [
        (STACK_TOP, 0, 0x67, (TS, 0)), (STACK_TOP, 0x200, 0x67, (TS, 0x200)), (STACK_TOP, UDATA, 0x67, (TS, UDATA & ~3)),
        (STACK_TOP, KCODE, 0x67, (TS, KCODE)), (STACK_TOP, KDATA, 8, (TS, MAIN)), (STACK_TOP, SPARE, 0x67, (SS, SPARE)),
        (0x1010, SPARE + 8, 0x67, (SS, SPARE + 8)), (24, SPARE + 16, 0x67, (SS, SPARE + 16)), (0x500000, KDATA, 0x67, (PF, 2)),
    ],
)  # fmt: skip
def test_inner_stack_is_refused(guest: LegacyGuest, esp0: int, ss0: int, limit: int, expected: tuple[int, int]) -> None:
    """The handlers are tasks, because the stack of ring 0 is what is broken."""
    guest.set_descriptor(SPARE, descriptor(DATA32 & ~0x80))
    guest.set_descriptor(SPARE + 8, descriptor(DATA32 & ~0x800, 0, 0xFFF))
    guest.set_descriptor(SPARE + 16, descriptor(DATA32 & ~0x800, DATA, 0xFFF))  # 28 bytes do not fit below 24
    guest.memory.write_uint(MAIN_TSS + 4, 4, esp0)
    guest.memory.write_uint(MAIN_TSS + 8, 4, ss0)
    guest.set_descriptor(GATE, gate(KCODE, TASK_CODE, kind=0xEC, count=3))
    guest.set_gate(expected[0], gate(OTHER, kind=0x85))
    guest.set_task(OTHER_TSS, eip=STUBS + 8 * expected[0], esp=STACK_TOP - 0x40)
    result = guest.run(call(GATE), ring=3, tr_limit=max(limit, 0x5D))
    if limit < 0x5D:  # too short a TSS cannot be left for a task either
        assert isinstance(guest.run(call(GATE), ring=3, tr_limit=limit).exit, Shutdown)
        return
    assert fault_of_task(guest, result) == expected
    old = guest.task(MAIN_TSS)
    assert (old["eip"], old["esp"], old["cs"]) == (USER_CODE, USER_STACK, UCODE)


def test_parameters_are_read_with_the_callers_rights(guest: LegacyGuest) -> None:
    guest.set_descriptor(GATE, gate(KCODE, TASK_CODE, kind=0xEC, count=31))
    guest.set_page(DATA + 0x3000, 0)
    result = guest.run(call(GATE), ring=3, rsp=USER_STACK - 0x10)
    assert fault(result) == (PF, 4) and result.registers["cr2"] & ~0xFFF == USER_STACK
    assert fault(guest.run(call(GATE), ring=3, ss_limit=USER_STACK - 1)) == (SS, 0)


def test_single_step_through_a_call_gate(guest: LegacyGuest) -> None:
    guest.set_descriptor(GATE, gate(KCODE, TASK_CODE, kind=0xEC))
    guest.place(TASK_CODE, "nop")
    frame = frame_of(guest.run(call(GATE), ring=3, rflags=TF | 2))
    assert frame[:4] == (DB, 0, TASK_CODE, KCODE) and frame.eflags & TF


# ---- privilege of code (SDM 3A 5.8, SDM 2 JMP, CALL, RET, IRET)
@pytest.mark.parametrize("how", [jump, call])
@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("dpl", range(4))
@pytest.mark.parametrize("conforming", [False, True])
def test_far_transfer_by_privilege(guest: LegacyGuest, how, ring: int, dpl: int, conforming: bool) -> None:  # type: ignore[no-untyped-def]
    """Non-conforming: DPL = CPL and RPL <= CPL; conforming: DPL <= CPL, and CPL stays."""
    guest.set_descriptor(SPARE, descriptor(CODE32 | dpl << 5 | (4 if conforming else 0)))
    guest.place(USER_CODE + 0x800, "int 0x42")
    guest.set_gate(0x42, gate(KCODE, STUBS + 8 * 0x42, USER_GATE))
    for rpl in range(4):
        registers = {"rsp": USER_STACK if ring == 3 else STACK_TOP - 0x500}
        guest.set_page(USER_CODE, USER_CODE | PRESENT | WRITABLE | USER)
        frame = frame_of(guest.run(how(SPARE | rpl, USER_CODE + 0x800), ring=ring, **registers))
        allowed = dpl <= ring if conforming else dpl == ring and rpl <= ring
        assert frame[:2] == ((0x42, 0) if allowed else (GP, SPARE)), rpl
        assert frame.cs == (SPARE | ring if allowed else selector_of(ring)[0])


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("name", ["ds", "es", "fs", "gs"])
def test_data_segment_by_privilege(guest: LegacyGuest, ring: int, name: str) -> None:
    """DPL >= CPL and RPL, but for conforming code, which all may read."""
    registers = {"rsp": USER_STACK if ring == 3 else STACK_TOP - 0x500}
    guest.set_gate(0x42, gate(KCODE, STUBS + 8 * 0x42, USER_GATE))
    for dpl in range(4):
        for rpl in range(4):
            for kind in (DATA32, CODE32, CODE32 | 4):
                guest.set_descriptor(SPARE, descriptor(kind & ~1 | dpl << 5))
                result = guest.run(f"mov eax, {SPARE | rpl}\nmov {name}, eax\nint 0x42", ring=ring, **registers)
                if kind == CODE32 | 4 or dpl >= max(ring, rpl):
                    assert frame_of(result)[:2] == (0x42, 0) and result.registers[name] == SPARE | rpl
                    assert guest.descriptor(SPARE) >> 40 & 1
                else:
                    assert fault(result) == (GP, SPARE) and not guest.descriptor(SPARE) >> 40 & 1


@pytest.mark.parametrize("ring", range(4))
def test_stack_segment_by_privilege(guest: LegacyGuest, ring: int) -> None:
    registers = {"rsp": USER_STACK if ring == 3 else STACK_TOP - 0x500}
    guest.set_gate(0x42, gate(KCODE, STUBS + 8 * 0x42, USER_GATE))
    for dpl in range(4):
        for rpl in range(4):
            guest.set_descriptor(SPARE, descriptor(DATA32 | dpl << 5))
            result = guest.run(f"mov eax, {SPARE | rpl}\nmov ss, eax\nint 0x42", ring=ring, **registers)
            assert frame_of(result)[:2] == ((0x42, 0) if dpl == rpl == ring else (GP, SPARE))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [(DATA32 & ~0x80, (SS, SPARE)), (DATA32 & ~2, (GP, SPARE)), (CODE32, (GP, SPARE)), (0x82, (GP, SPARE)), (0x8C, (GP, SPARE))],
)
def test_stack_segment_by_type(guest: LegacyGuest, attributes: int, expected: tuple[int, int]) -> None:
    guest.set_descriptor(SPARE, descriptor(attributes))
    for text in (f"mov eax, {SPARE}\nmov ss, eax", f"push {SPARE}\npop ss"):
        assert fault(guest.run(text)) == expected
    assert fault(guest.run("xor eax, eax\nmov ss, eax")) == (GP, 0)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [(DATA32 & ~0x80, (NP, SPARE)), (CODE32 & ~2, (GP, SPARE)), (0x82, (GP, SPARE)), (0x8C, (GP, SPARE)), (CODE32 & ~0x80, (NP, SPARE))],
)
def test_data_segment_by_type(guest: LegacyGuest, attributes: int, expected: tuple[int, int]) -> None:
    guest.set_descriptor(SPARE, descriptor(attributes))
    for text in (f"mov eax, {SPARE}\nmov es, eax", f"push {SPARE}\npop fs", f"mov dword ptr [0x20004], {SPARE}\nlgs eax, [0x20000]"):
        assert fault(guest.run(text)) == expected


def test_null_segments(guest: LegacyGuest) -> None:
    """They load, and every access through them is #GP(0)."""
    for text in ("mov ds, eax\nmov ebx, [0x20000]", "mov es, eax\nmov es:[0x20000], al", "mov eax, 3\nmov fs, eax\nmov bl, fs:[0x20000]"):
        assert fault(guest.run("xor eax, eax\n" + text)) == (GP, 0)


@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize("text", ["retf", "retf 8", "iretd"])
def test_return_by_ring(guest: LegacyGuest, ring: int, target: int, text: str) -> None:
    """To the same or an outer ring with its stack; data segments of the rings left behind become null."""
    code, data = selector_of(target)
    stack = USER_STACK if target == 3 else STACK_TOP - 0x200
    guest.place(USER_CODE + 0x800, "int 0x42")
    guest.set_gate(0x42, gate(KCODE, STUBS + 8 * 0x42, USER_GATE))
    guest.set_descriptor(SPARE, descriptor(CODE32 | 4))
    flags, dropped = ([] if text != "iretd" else [2]), [1, 2] if text == "retf 8" else []
    outer = [data, stack] if target > ring else []
    frame_words = [*outer, *dropped, *flags, code, USER_CODE + 0x800]
    registers = {"rsp": USER_STACK if ring == 3 else STACK_TOP - 0x500, "es": UDATA, "es_attr": DATA32 | 0x60}
    registers |= {"gs": SPARE, "gs_attr": CODE32 | 4}
    result = guest.run(pushes(*frame_words) + text, ring=ring, **registers)
    frame, state = frame_of(result), result.registers
    if target < ring:
        assert frame[:2] == (GP, code & ~3) and frame.cs == selector_of(ring)[0]
        return
    assert frame[:2] == (0x42, 0) and frame.cs == code
    if target > ring:
        assert (frame.ss, frame.esp) == (data, stack + (8 if dropped else 0))
        assert state["ds"] == 0 and state["fs"] == 0 and state["es"] == UDATA and state["gs"] == SPARE
    else:
        assert state["ds"] == selector_of(ring)[1]


@pytest.mark.parametrize("text", ["retf", "iretd"])
@pytest.mark.parametrize(
    ("cs", "ss", "expected"),
    [
        (0, UDATA, (GP, 0)), (UCODE & ~3, UDATA, (GP, UCODE & ~3)), (KCODE | 3, UDATA, (GP, KCODE)), (UDATA, UDATA, (GP, UDATA & ~3)),
        (UCODE, 0, (GP, 0)), (UCODE, KDATA, (GP, KDATA)), (UCODE, UDATA & ~3, (GP, UDATA & ~3)), (UCODE, UCODE, (GP, UCODE & ~3)),
        (UCODE, SPARE | 3, (SS, SPARE)), (SPARE + 8 | 3, UDATA, (NP, SPARE + 8)), (SPARE + 16 | 3, UDATA, (GP, 0)),
        (0x203, UDATA, (GP, 0x200)),
    ],
)  # fmt: skip
def test_return_is_refused(guest: LegacyGuest, text: str, cs: int, ss: int, expected: tuple[int, int]) -> None:
    guest.set_descriptor(SPARE, descriptor((DATA32 & ~0x80) | 0x60))
    guest.set_descriptor(SPARE + 8, descriptor((CODE32 & ~0x80) | 0x60))
    guest.set_descriptor(SPARE + 16, descriptor((CODE32 & ~0x800) | 0x60, 0, USER_CODE - 1))
    flags = [2] if text == "iretd" else []
    frame = frame_of(guest.run(pushes(ss, USER_STACK, *flags, cs, USER_CODE) + text))
    assert frame[:2] == expected and frame.cs == KCODE


def test_return_to_a_16_bit_stack_keeps_the_upper_half_of_esp(guest: LegacyGuest) -> None:
    """SDM 2 IRET: with a 16-bit stack segment only SP is loaded."""
    guest.set_descriptor(SPARE, descriptor(DATA16 | 0x60, DATA, 0xFFFF))
    guest.place(USER_CODE + 0x800, "mov eax, esp\nhlt")
    result = guest.run(pushes(SPARE | 3, 0x12345678, 2, UCODE, USER_CODE + 0x800) + "iretd")
    assert result.registers["rax"] == (STACK_TOP & 0xFFFF0000 | 0x5678)


# ---- expand-down segments and limits (SDM 3A 5.3)
@pytest.mark.parametrize(
    ("attributes", "limit", "offset", "size", "good"),
    [
        (0x97, 0xFFF, 0xFFF, 1, False), (0x97, 0xFFF, 0x1000, 1, True), (0x97, 0xFFF, 0xFFFF, 1, True), (0x97, 0xFFF, 0xFFFF, 2, False),
        (0x97, 0xFFF, 0x10000, 1, False), (0x497, 0xFFF, 0x10000, 4, True), (0x497, 0xFFF, 0xFFE, 4, False), (0xC97, 0x1, 0x1FFF, 1, False),
        (0xC97, 0x1, 0x2000, 4, True), (0x493, 0xFFF, 0xFFC, 4, True), (0x493, 0xFFF, 0xFFD, 4, False),
        (0x493, 0xFFF, 0xFFFFFFFF, 1, False),
        (0xC93, 0x0, 0xFFF, 1, True), (0xC93, 0x0, 0x1000, 1, False), (0x495, 0xFFF, 0x2000, 1, None),
    ],
)  # fmt: skip
def test_segment_limits(guest: LegacyGuest, attributes: int, limit: int, offset: int, size: int, good: bool | None) -> None:
    guest.set_descriptor(SPARE, descriptor(attributes, DATA, limit))
    guest.memory.write(DATA, bytes(range(1, 256)) * 600)
    register = {1: "al", 2: "ax", 4: "eax"}[size]
    for name, vector in (("ds", GP), ("es", GP), ("gs", GP)):
        load = guest.run(f"mov eax, {SPARE}\nmov {name}, eax\nmov ebx, {offset}\nmov {register}, {name}:[ebx]\nmov ecx, 1")
        store = guest.run(f"mov eax, {SPARE}\nmov {name}, eax\nmov ebx, {offset}\nmov {name}:[ebx], {register}\nmov ecx, 1")
        if good is None:  # not writable
            assert load.frame is None and fault(store) == (vector, 0)
        elif good:
            assert load.frame is None and store.frame is None
        else:
            assert fault(load) == fault(store) == (vector, 0)


def test_expand_down_stack(guest: LegacyGuest) -> None:
    guest.set_descriptor(SPARE, descriptor(0x497, 0, STACK_TOP - 0x500 - 1))  # offsets from STACK_TOP - 0x500 on
    guest.set_gate(SS, gate(OTHER, kind=0x85))
    guest.set_task(OTHER_TSS, eip=STUBS + 8 * SS, esp=STACK_TOP - 0x40)
    text = f"mov eax, {SPARE}\nmov ss, eax\nmov esp, {STACK_TOP - 0x4F8}\npush 1\npush 2\npush 3"
    assert fault_of_task(guest, guest.run(text)) == (SS, 0)
    assert guest.task(MAIN_TSS)["esp"] == STACK_TOP - 0x500 and guest.memory.read_uint(STACK_TOP - 0x500, 4) == 2


def test_frame_that_does_not_fit_at_the_bottom_of_a_segment(guest: LegacyGuest) -> None:
    """The frame would go on at the segment's other end, which its limit forbids: #SS, then #DF, here a task."""
    guest.set_descriptor(SPARE, descriptor(0x493, DATA, 0xFFF))
    handler_task(guest, DF)
    result = guest.run(f"mov eax, {SPARE}\nmov ss, eax\nmov esp, 8\nud2\nhlt")
    assert fault(result)[0] if result.frame else result.registers["tr"] == OTHER
    assert guest.task(MAIN_TSS)["esp"] == 8 and guest.memory.read(DATA, 16) == bytes(16)


def test_code_segment_limit(guest: LegacyGuest) -> None:
    guest.set_descriptor(SPARE, descriptor(CODE32 & ~0x800, 0, KERNEL_CODE + 0x10))
    frame = frame_of(guest.run(jump(SPARE, KERNEL_CODE + 8) + "\nnop\n" + "nop\n" * 20))
    assert frame[:4] == (GP, 0, KERNEL_CODE + 0x11, SPARE)
    assert frame_of(guest.run(jump(SPARE, KERNEL_CODE + 0x11)))[:4] == (GP, 0, KERNEL_CODE, KCODE)


def test_gate_beyond_the_limit_of_its_code_segment(guest: LegacyGuest) -> None:
    """SDM 2 INT n: #GP(EXT), before the handler is entered."""
    guest.set_descriptor(SPARE, descriptor(CODE32 & ~0x800, 0, 0xFFF))
    guest.set_gate(UD, gate(SPARE, STUBS + 8 * UD))
    guest.set_gate(0x42, gate(SPARE, STUBS + 8 * UD))
    assert frame_of(guest.run("ud2"))[:3] == (GP, 1, KERNEL_CODE)
    assert frame_of(guest.run("int 0x42"))[:3] == (GP, 0, KERNEL_CODE)


# ---- the LDT
def test_segments_of_the_ldt(guest: LegacyGuest) -> None:
    guest.set_descriptor(0xC, descriptor(DATA32, 0x1000))
    guest.memory.write_uint(DATA, 4, 0x55)
    result = guest.run(f"mov eax, 0xc\nmov fs, eax\nmov ebx, fs:[{DATA - 0x1000}]")
    assert result.registers["rbx"] == 0x55 and result.registers["fs_base"] == 0x1000
    assert fault(guest.run("mov eax, 0x44\nmov fs, eax")) == (GP, 0x44)
    assert fault(guest.run("xor eax, eax\nlldt ax\nmov eax, 0xc\nmov fs, eax")) == (GP, 0xC)
    assert fault(guest.run("mov eax, 0xc\nlldt ax")) == (GP, 0xC)
    assert fault(guest.run(f"mov eax, {KDATA}\nlldt ax")) == (GP, KDATA)


def test_gates_through_the_ldt(guest: LegacyGuest) -> None:
    guest.set_descriptor(0x14, gate(0x1C, TASK_CODE, kind=0xEC))
    guest.set_descriptor(0x1C, descriptor(CODE32))
    guest.place(TASK_CODE, "hlt")
    result = guest.run(call(0x17), ring=3)
    assert result.frame is None and result.registers["cs"] == 0x1C and result.registers["cpl"] == 0
    guest.set_gate(0x42, gate(0x1C, STUBS + 8 * 0x42, USER_GATE))
    assert frame_of(guest.run("int 0x42", ring=3)).vector == 0x42


# ---- interrupts by gate
@pytest.mark.parametrize("ring", range(4))
@pytest.mark.parametrize("dpl", range(4))
def test_interrupt_by_ring(guest: LegacyGuest, ring: int, dpl: int) -> None:
    """To the same or an inner ring; ESP of that ring from the TSS."""
    code, data = selector_of(dpl)
    guest.set_gate(0x42, gate(code, TASK_CODE, USER_GATE))
    guest.set_gate(0x43, gate(KCODE, STUBS + 8 * 0x43, USER_GATE))
    guest.place(TASK_CODE, "mov eax, esp\nmov ebx, ss\nint 0x43")
    guest.set_page(TASK_CODE, TASK_CODE | PRESENT | WRITABLE | USER)
    stack = USER_STACK if ring == 3 else STACK_TOP - 0x500
    result = guest.run("int 0x42", ring=ring, rsp=stack, rflags=IF | IOPL3 | 2)
    if dpl > ring:
        assert fault(result) == (GP, code & ~3)
        return
    tops = (STACK_TOP, STACK_TOP - 0x400, STACK_TOP - 0x800)
    expected = stack - 12 if dpl == ring else tops[dpl] - 20
    assert frame_of(result).vector == 0x43 and result.registers["rax"] == expected and result.registers["rbx"] == data
    assert words(guest, expected, 3) == [USER_CODE + 2 if ring else KERNEL_CODE + 2, selector_of(ring)[0], IF | IOPL3 | 2]
    assert not frame_of(result).eflags & IF


@pytest.mark.parametrize(("kind", "size", "keeps_if"), [(0x86, 2, False), (0x87, 2, True), (0x8E, 4, False), (0x8F, 4, True)])
def test_kinds_of_gates(guest: LegacyGuest, kind: int, size: int, keeps_if: bool) -> None:
    guest.set_descriptor(SPARE, descriptor(CODE16, TASK_CODE, 0xFFFF))
    guest.set_gate(0x42, gate(SPARE, 0x30, kind))
    guest.place(TASK_CODE + 0x30, "hlt")
    state = guest.run("int 0x42", rflags=IF | NT | 2).registers
    assert state["rsp"] == STACK_TOP - 0x400 - 3 * size and state["rip"] == 0x31
    assert words(guest, state["rsp"], 3, size) == [KERNEL_CODE + 2 & (1 << 8 * size) - 1, KCODE, IF | NT | 2]
    assert bool(state["rflags"] & IF) == keeps_if and not state["rflags"] & NT


def test_interrupt_with_a_16_bit_tss_and_stack(guest: LegacyGuest) -> None:
    guest.set_descriptor(SPARE, descriptor(DATA16, 0x8000, 0xFFFF))
    guest.set_small_task(SMALL_TSS, sp0=0x4000, ss0=SPARE)
    guest.set_gate(0x42, gate(KCODE, TASK_CODE, USER_GATE))
    guest.place(TASK_CODE, "hlt")
    state = guest.run("int 0x42", ring=3, tr=SMALL, tr_base=SMALL_TSS, tr_limit=0x2B, tr_attr=0x83, rsp=USER_STACK).registers
    assert state["ss"] == SPARE and state["rsp"] & 0xFFFF == 0x4000 - 20
    assert words(guest, 0xC000 - 20, 5) == [USER_CODE + 2, UCODE, 2, USER_STACK, UDATA]


@pytest.mark.parametrize(
    ("ss0", "expected"),
    [(0, (TS, 1)), (0x200, (TS, 0x201)), (UDATA, (TS, UDATA & ~3 | 1)), (KCODE, (TS, KCODE | 1)), (SPARE, (SS, SPARE | 1))],
)
def test_stack_of_an_interrupt_is_refused(guest: LegacyGuest, ss0: int, expected: tuple[int, int]) -> None:
    """EXT is set where an exception asked for it."""
    guest.set_descriptor(SPARE, descriptor(DATA32 & ~0x80))
    guest.memory.write_uint(MAIN_TSS + 8, 4, ss0)
    guest.set_gate(expected[0], gate(OTHER, kind=0x85))
    guest.set_task(OTHER_TSS, eip=STUBS + 8 * expected[0], esp=STACK_TOP - 0x40)
    assert fault_of_task(guest, guest.run("ud2", ring=3)) == expected
    assert guest.task(MAIN_TSS)["eip"] == USER_CODE


def test_nested_faults(guest: LegacyGuest) -> None:
    """SDM 3A table 6-5 in protected mode."""
    guest.set_gate(GP, gate(KCODE, STUBS + 8 * GP, 0x0E))
    assert fault(guest.run(f"mov eax, {OTHER}\nmov ds, eax")) == (DF, 0)  # #GP, #NP
    guest.reset()
    guest.set_gate(UD, gate(KCODE, STUBS + 8 * UD, 0x0E))
    assert fault(guest.run("ud2")) == (NP, UD * 8 + 3)
    guest.reset()
    guest.set_gate(PF, gate(0x200, STUBS))
    assert fault(guest.run("mov eax, [0x500000]")) == (DF, 0)  # #PF, #GP
    guest.set_gate(DF, 0)
    assert isinstance(guest.run("mov eax, [0x500000]").exit, Shutdown)
    assert isinstance(guest.run("ud2", idtr_limit=7).exit, Shutdown)


@pytest.mark.parametrize("interpreted", [False, True])
@pytest.mark.parametrize(("limit", "eip"), [(7, 8), (8, 8), (0xB, 8), (0xC, 0xD), (0x10, 0xD), (0x11, 0x12), (0x15, 0x12), (0x16, 0x17)])
def test_instruction_over_the_end_of_the_code_segment(guest: LegacyGuest, interpreted: bool, limit: int, eip: int) -> None:
    """Instructions lie at 7 (NOP), 8, 0xD and 0x12 (5 bytes each).  With alignment checks the interpreter executes them."""
    guest.set_descriptor(SPARE, descriptor(CODE32 & ~0x800 | 0x60, 0, USER_CODE + limit))
    text = jump(SPARE, USER_CODE + 7) + "\nnop\nmov eax, 1\nmov ebx, 1\nmov ecx, 1"
    for _ in range(3):
        frame = frame_of(guest.run(text, ring=3, cr0=0x80050033, rflags=0x40002 if interpreted else 2))
        assert frame[:4] == (GP, 0, USER_CODE + eip, SPARE | 3)


# ---- 64-bit call gates (SDM 3A 5.8.3.1, 5.8.5.1)
def long_gate(guest: SystemGuest, target: int, selector: int, dpl: int = 3, upper: int = 0) -> str:
    """Puts a gate at 0x50; returns a CALL through it."""
    guest.reset()
    low = target & 0xFFFF | selector << 16 | (0x8C | dpl << 5) << 40 | (target >> 16 & 0xFFFF) << 48
    guest.set_descriptor(0x50, low)
    guest.set_descriptor(0x58, target >> 32 | upper << 32)
    guest.memory.write(long.DATA, bytes(4) + (0x53).to_bytes(2, "little"))
    return f".byte 0xff, 0x1c, 0x25\n.long {long.DATA}"


def test_64_bit_call_gate_to_an_inner_ring(shared_guest: SystemGuest) -> None:
    """The stack comes from the TSS, SS becomes null, and SS, RSP, CS and RIP are pushed with 8 bytes each."""
    text = long_gate(shared_guest, long.KERNEL_CODE + 0x400, long.KERNEL_CS)
    shared_guest.memory.write(long.KERNEL_CODE + 0x400, b"\xf4")
    state = shared_guest.run(text, cpl=3).registers
    assert (state["rip"], state["cs"], state["ss"], state["cpl"]) == (long.KERNEL_CODE + 0x401, long.KERNEL_CS, 0, 0)
    assert state["rsp"] == long.STACK_TOP - 32
    pushed = [shared_guest.memory.read_uint(state["rsp"] + 8 * k, 8) for k in range(4)]
    assert pushed == [long.USER_CODE + 7, long.USER_CS, long.USER_STACK, long.USER_SS]


@pytest.mark.parametrize(
    ("target", "selector", "dpl", "upper", "expected"),
    [
        (long.KERNEL_CODE, long.KERNEL_CS, 0, 0, (GP, 0x50)), (long.KERNEL_CODE, long.KERNEL_CS, 3, 0x800, (GP, 0x50)),
        (1 << 47, long.KERNEL_CS, 3, 0, (GP, 0)), (long.KERNEL_CODE, long.KERNEL_SS, 3, 0, (GP, long.KERNEL_SS)),
        (long.KERNEL_CODE, 0, 3, 0, (GP, 0)), (long.KERNEL_CODE, 0x60, 3, 0, (GP, 0x60)),
    ],
)  # fmt: skip
def test_64_bit_call_gate_is_refused(
    shared_guest: SystemGuest, target: int, selector: int, dpl: int, upper: int, expected: tuple[int, int]
) -> None:
    text = long_gate(shared_guest, target, selector, dpl, upper)
    shared_guest.set_descriptor(0x60, descriptor(CODE32))
    frame = shared_guest.run(text, cpl=3).frame
    assert frame is not None and frame[:3] == (*expected, long.USER_CODE)


@pytest.mark.parametrize("kind", [0x81, 0x83, 0x84, 0x85, 0x86, 0x89, 0x8B])
def test_long_mode_has_no_tasks_and_no_16_bit_gates(shared_guest: SystemGuest, kind: int) -> None:
    text = long_gate(shared_guest, long.KERNEL_CODE, long.KERNEL_CS)
    shared_guest.set_descriptor(0x50, descriptor(kind | 0x60, long.TSS, 0x67))
    frame = shared_guest.run(text, cpl=3).frame
    assert frame is not None and frame[:3] == (GP, 0x50, long.USER_CODE)
