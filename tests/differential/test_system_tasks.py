"""Hardware task switches in the emulating engine, with expectations from SDM 3A chapter 7 and SDM 2 JMP, CALL, IRET, INT n."""

from __future__ import annotations

import pytest

from ringfence.engine.api import Shutdown

from .legacy_guest import (
    BP,
    CODE32,
    DATA,
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
    LOCAL,
    MAIN,
    MAIN_TSS,
    NP,
    NT,
    OF,
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
    TABLES,
    TASK_CODE,
    TF,
    TS,
    TSS16,
    TSS32,
    UCODE,
    UD,
    UDATA,
    USER,
    USER_CODE,
    USER_STACK,
    VM,
    WRITABLE,
    LegacyGuest,
    call,
    fault,
    fault_of_task,
    frame_of,
    gate,
    handler_task,
    jump,
)
from .system_guest import descriptor

BUSY = 1 << 41
GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")


@pytest.fixture
def guest(shared_legacy_guest: LegacyGuest) -> LegacyGuest:
    shared_legacy_guest.reset()
    return shared_legacy_guest


# ---- task switches by JMP and CALL
def test_jump_to_a_task(guest: LegacyGuest) -> None:
    """SDM 3A 7.3: state saved and loaded, busy bits, TS, TR; a JMP neither links nor nests."""
    guest.place(TASK_CODE, "hlt")
    guest.set_task(OTHER_TSS, ldt=LOCAL, fs=LOCAL + 0x18 & 0xFFF8, link=0x7777, eflags=0x246, eax=0x89ABCDEF)
    guest.set_descriptor(LOCAL + 0x18, descriptor(DATA32))
    text = "mov eax, 0x11223344\nmov ecx, 5\nmov esi, -1\nstc\n"
    result = guest.run(text + jump(OTHER, 0x1234), ldtr=LOCAL, dr7=0x7FF)
    state = result.registers
    assert result.frame is None and state["rip"] == TASK_CODE + 1
    old = guest.task(MAIN_TSS)
    assert (old["eax"], old["ecx"], old["esi"], old["esp"]) == (0x11223344, 5, 0xFFFFFFFF, STACK_TOP - 0x400)
    assert old["eip"] == KERNEL_CODE + 5 + 5 + 5 + 1 + 7 and old["eflags"] == 3
    assert (old["cs"], old["ss"], old["ds"], old["es"]) == (KCODE, KDATA, KDATA, KDATA)
    assert not guest.descriptor(MAIN) & BUSY and guest.descriptor(OTHER) & BUSY
    assert guest.task(OTHER_TSS)["link"] == 0x7777
    assert [state[n] for n in GENERAL] == [0x89ABCDEF, 2, 3, 4, STACK_TOP - 0xC00, 6, 7, 8]
    assert state["tr"] == OTHER and state["tr_base"] == OTHER_TSS and state["tr_attr"] & 0xF == 11
    assert state["rflags"] == 0x246 and state["cr0"] & 8
    assert state["dr7"] == 0x6AA  # L0-L3 and LE are cleared
    assert state["ldtr"] == LOCAL and state["fs"] == LOCAL + 0x18 & 0xFFF8 and state["fs_limit"] == 0xFFFFFFFF and state["gs"] == 0


def test_call_of_a_task_and_return(guest: LegacyGuest) -> None:
    """CALL nests: link, NT, both busy; IRET goes back, frees the task and saves it with NT clear."""
    guest.place(TASK_CODE, "pushfd\npop ebx\nmov edi, 0x77\niretd\nmov edi, 0x78\nhlt")
    result = guest.run(call(OTHER) + "\nmov ecx, edi\nstr dx\npushfd\npop esi")
    state = result.registers
    assert result.frame is None and state["rip"] == KERNEL_CODE + 7 + 2 + 4 + 1 + 1 + 1  # STR has an operand-size prefix
    assert (state["rcx"], state["rdx"], state["tr"]) == (0, MAIN, MAIN)
    assert guest.descriptor(MAIN) & BUSY and not guest.descriptor(OTHER) & BUSY
    other = guest.task(OTHER_TSS)
    assert other["link"] == MAIN and other["ebx"] & NT and other["edi"] == 0x77 and not other["eflags"] & NT
    assert other["eip"] == TASK_CODE + 8 and not state["rsi"] & NT
    # Called again it goes on behind its IRET.
    result = guest.run(call(OTHER))
    assert result.registers["rdi"] == 0x78 and result.registers["rip"] == TASK_CODE + 14


def test_task_gate_is_allowed_where_its_tss_is_not(guest: LegacyGuest) -> None:
    """SDM 3A 7.2.5: the TSS's DPL does not count behind a gate."""
    guest.place(TASK_CODE, "hlt")
    guest.set_descriptor(GATE, gate(OTHER, kind=0x85 | 0x60))
    assert fault(guest.run(jump(OTHER), ring=3)) == (GP, OTHER)
    result = guest.run(jump(GATE | 3), ring=3)
    assert result.frame is None and result.registers["tr"] == OTHER and result.registers["cpl"] == 0
    assert guest.task(MAIN_TSS)["cs"] == UCODE and guest.task(MAIN_TSS)["esp"] == USER_STACK


def test_task_of_16_bits(guest: LegacyGuest) -> None:
    """Only the lower halves are saved into a 16-bit TSS and loaded from it; FS and GS become null; CR3 stays."""
    guest.place(TASK_CODE, "mov eax, 0x12345678\nmov ebx, 0xffff0004\njmp 1f\n1: iretd\nhlt")
    guest.set_descriptor(SPARE, descriptor(CODE32, TASK_CODE - 0x8000))
    guest.set_small_task(SMALL_TSS, cs=SPARE, flags=0x3247)
    result = guest.run("mov eax, 0xaaaaaaaa\n" + call(SMALL) + "\nmov ecx, 1")
    state = result.registers
    assert result.frame is None and state["rax"] == 0xAAAAAAAA and state["rcx"] == 1
    small = guest.small_task(SMALL_TSS)
    assert (small["ax"], small["bx"], small["cx"], small["sp"]) == (0x5678, 4, 0x12, 0xC400)
    assert small["link"] == MAIN and small["flags"] == 0x3247 and small["ip"] == 0x8000 + 13
    # And the other way: the 16-bit task switches with its own state in 16 bits.
    guest.reset()
    guest.place(TASK_CODE, "hlt")
    guest.set_descriptor(SPARE, descriptor(CODE32, TASK_CODE - 0x8000))
    guest.set_small_task(SMALL_TSS, cs=SPARE)
    state = guest.run(jump(SMALL), fs=KDATA).registers
    assert [state[n] for n in GENERAL] == [
        0x11,
        0x12,
        0x13,
        0x14,
        0xC400,
        0x16,
        0x17,
        0x18,
    ]
    assert state["fs"] == 0 and state["cr3"] == TABLES and state["tr_attr"] & 0xF == 3


def test_task_with_its_own_page_tables(guest: LegacyGuest) -> None:
    """CR3 comes from a 32-bit TSS, and the new task's code is fetched through it."""
    tables = 0x100000
    guest.memory.write(tables, guest.memory.read(TABLES, 0x2000))
    guest.memory.write_uint(tables, 4, tables + 0x1000 | PRESENT | WRITABLE | USER)
    guest.memory.write_uint(tables + 0x1000 + 4 * (TASK_CODE >> 12), 4, 0x110000 | PRESENT | WRITABLE)
    guest.place(TASK_CODE, "mov edi, 1\nhlt")
    guest.place(0x110000, "mov edi, 2\nhlt")
    guest.set_task(OTHER_TSS, cr3=tables)
    result = guest.run("mov eax, [0x18000]\n" + jump(OTHER))
    assert result.registers["rdi"] == 2 and result.registers["cr3"] == tables
    guest.set_descriptor(OTHER, descriptor(TSS32, OTHER_TSS, 0x67))
    result = guest.run(jump(OTHER), cr0=0x10033)  # without paging CR3 stays
    assert result.registers["rdi"] == 1 and result.registers["cr3"] == TABLES


def test_task_in_an_outer_ring(guest: LegacyGuest) -> None:
    guest.place(USER_CODE, "mov eax, 0x99\nhlt")
    guest.set_task(OTHER_TSS, cs=UCODE, ss=UDATA, ds=UDATA, es=UDATA, eip=USER_CODE, esp=USER_STACK, eflags=IF | 2)
    frame = frame_of(guest.run(jump(OTHER)))
    assert frame[:3] == (GP, 0, USER_CODE + 5) and frame.cs == UCODE and frame.esp == USER_STACK


def test_task_in_virtual_8086_mode(guest: LegacyGuest) -> None:
    """SDM 3A 20.2.2: VM in the EFLAGS of a 32-bit TSS."""
    guest.place(USER_CODE, "mov ax, 0x1234\nmov [0x10], ax\nhlt", 16)
    segments = dict.fromkeys(("ss", "ds", "es", "fs", "gs"), DATA >> 4)
    guest.set_task(OTHER_TSS, cs=USER_CODE >> 4, eip=0, esp=0x1000, eflags=VM | 2, **segments)
    result = guest.run(jump(OTHER))
    frame = frame_of(result)
    assert frame[:4] == (GP, 0, 6, USER_CODE >> 4) and frame.eflags & VM
    assert (frame.esp, frame.ss, frame.es, frame.ds, frame.fs, frame.gs) == (0x1000, *[DATA >> 4] * 5)
    assert guest.memory.read_uint(DATA + 0x10, 2) == 0x1234


# ---- task switches that are refused: the old task's faults
@pytest.mark.parametrize("how", [jump, call])
@pytest.mark.parametrize(
    ("attributes", "limit", "expected"),
    [
        (TSS32 | 2, 0x67, (GP, OTHER)), (TSS16 | 2, 0x2B, (GP, OTHER)), (TSS32 & ~0x80, 0x67, (NP, OTHER)),
        (TSS32, 0x66, (TS, OTHER)), (TSS16, 0x2A, (TS, OTHER)), (0x80, 0x67, (GP, OTHER)), (0x82, 0x67, (GP, OTHER)),
        (0x8E, 0x67, (GP, OTHER)), (0x87, 0x67, (GP, OTHER)),
    ],
)  # fmt: skip
def test_tss_descriptor_is_refused(guest: LegacyGuest, how, attributes: int, limit: int, expected: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    """SDM 3A table 7-1; SDM 2 JMP, CALL."""
    guest.set_descriptor(OTHER, descriptor(attributes, OTHER_TSS, limit))
    result = guest.run(how(OTHER))
    frame = frame_of(result)
    assert frame[:3] == (*expected, KERNEL_CODE)
    assert result.registers["tr"] == MAIN and guest.descriptor(MAIN) & BUSY and not result.registers["cr0"] & 8


def test_tss_selector_is_refused(guest: LegacyGuest) -> None:
    assert fault(guest.run(jump(0x200))) == (GP, 0x200)
    assert fault(guest.run(jump(0))) == (GP, 0)
    assert fault(guest.run(jump(OTHER | 3))) == (GP, OTHER)  # RPL above DPL
    for rpl in range(4):
        guest.set_descriptor(GATE, gate(OTHER | rpl, kind=0x85))
        guest.place(TASK_CODE, "hlt")
        guest.set_descriptor(OTHER, descriptor(TSS32, OTHER_TSS, 0x67))
        assert guest.run(jump(GATE)).registers["tr"] & ~3 == OTHER  # that of the selector in the gate does not count


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (gate(OTHER, kind=0x05), (NP, GATE)), (gate(OTHER | 4, kind=0x85), (GP, OTHER | 4)), (gate(0, kind=0x85), (GP, 0)),
        (gate(0x200, kind=0x85), (GP, 0x200)), (gate(KCODE, kind=0x85), (GP, KCODE)), (gate(MAIN, kind=0x85), (GP, MAIN)),
    ],
)  # fmt: skip
def test_task_gate_is_refused(guest: LegacyGuest, value: int, expected: tuple[int, int]) -> None:
    guest.set_descriptor(GATE, value)
    assert fault(guest.run(call(GATE))) == expected


def test_pages_of_both_tasks_are_checked_before_anything_changes(guest: LegacyGuest) -> None:
    """SDM 3A 7.3, step 5."""
    guest.set_descriptor(OTHER, descriptor(TSS32, 0x30FC0, 0x67))
    guest.set_page(0x31000, 0)
    result = guest.run(jump(OTHER))
    assert fault(result) == (PF, 0) and result.registers["cr2"] == 0x30FC0 + 0x67 and result.registers["tr"] == MAIN
    assert guest.descriptor(MAIN) & BUSY and guest.task(MAIN_TSS)["eip"] == 0
    guest.reset()
    guest.set_descriptor(OTHER, descriptor(TSS32, 0x30000, 0x67))
    guest.set_page(0x30000, 0x30000 | PRESENT)
    guest.set_task(0x30000)
    guest.place(TASK_CODE, "hlt")
    assert fault(guest.run(call(OTHER))) == (PF, 3)  # the link cannot be written
    assert guest.run(jump(OTHER)).registers["tr"] == OTHER  # none is for a JMP
    guest.reset()
    guest.set_page(MAIN_TSS, MAIN_TSS | PRESENT)
    assert fault(guest.run(jump(OTHER))) == (PF, 3)


def test_old_tss_without_room(guest: LegacyGuest) -> None:
    assert fault(guest.run(jump(OTHER), tr_limit=0x5E)) == (TS, MAIN)


# ---- the new task's faults
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"ldt": 0x94}, (TS, 0x94)), ({"ldt": 0x200}, (TS, 0x200)), ({"ldt": KDATA}, (TS, KDATA)), ({"ldt": SPARE}, (TS, SPARE)),
        ({"cs": 0}, (TS, 0)), ({"cs": 0x200}, (TS, 0x200)), ({"cs": KDATA}, (TS, KDATA)), ({"cs": KCODE | 3}, (TS, KCODE)),
        ({"cs": UCODE & ~3}, (TS, UCODE & ~3)), ({"cs": SPARE + 8}, (NP, SPARE + 8)),
        ({"ds": 0x200}, (TS, 0x200)), ({"es": MAIN}, (TS, MAIN)), ({"gs": SPARE + 16}, (TS, SPARE + 16)),
        ({"fs": SPARE + 24}, (NP, SPARE + 24)), ({"es": 0xC}, (TS, 0xC)),
        ({"eip": 0x10000, "cs": SPARE + 32}, (GP, 0)),
    ],
)  # fmt: skip
def test_state_of_the_new_task_is_refused(guest: LegacyGuest, values: dict[str, int], expected: tuple[int, int]) -> None:
    """SDM 3A table 7-1: in the new task, before its first instruction.  The handler's stack is the new task's, so it is ring 1."""
    guest.set_descriptor(SPARE, descriptor(0x02, 0, 0xFF))  # LDT, not present
    guest.set_descriptor(SPARE + 8, descriptor(CODE32 & ~0x80))
    guest.set_descriptor(SPARE + 16, descriptor(CODE32 & ~2))  # execute-only
    guest.set_descriptor(SPARE + 24, descriptor(DATA32 & ~0x80))
    guest.set_descriptor(SPARE + 32, descriptor(CODE32 & ~0x800, 0, 0xFFFF))
    guest.set_task(OTHER_TSS, **values)
    for vector in (TS, NP, GP):
        guest.set_gate(vector, gate(SPARE + 48, kind=0x85))
    guest.set_descriptor(SPARE + 48, descriptor(TSS32, SMALL_TSS, 0x67))
    guest.set_task(SMALL_TSS, eip=STUBS + 8 * expected[0], esp=STACK_TOP - 0x40)
    result = guest.run(jump(OTHER))
    assert fault_of_task(guest, result) == expected
    failed = guest.task(OTHER_TSS)
    assert guest.task(SMALL_TSS)["link"] == OTHER and guest.task(MAIN_TSS)["eip"] == KERNEL_CODE + 7
    assert failed["eip"] == values.get("eip", TASK_CODE) and failed["cs"] == values.get("cs", KCODE) and failed["eax"] == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"ss": 0}, (TS, 0)), ({"ss": 0x200}, (TS, 0x200)), ({"ss": UCODE}, (TS, UCODE & ~3)), ({"ss": UDATA & ~3}, (TS, UDATA & ~3)),
        ({"ss": KDATA | 3}, (TS, KDATA)), ({"ss": SPARE | 3}, (SS, SPARE)), ({"ds": KDATA}, (TS, KDATA)),
        ({"ds": SPARE + 8 | 3}, (TS, SPARE + 8)),
        ({"ds": SPARE + 16}, (None, 0)),
    ],
)  # fmt: skip
def test_ring_3_state_of_the_new_task(guest: LegacyGuest, values: dict[str, int], expected: tuple[int, int]) -> None:
    """Here the handler enters ring 0 with the stack of the new TSS."""
    guest.set_descriptor(SPARE, descriptor(DATA32 & ~0x80 | 0x60))
    guest.set_descriptor(SPARE + 8, descriptor(CODE32 | 0x40))  # readable code of ring 2
    guest.set_descriptor(SPARE + 16, descriptor(CODE32 | 4))  # readable conforming code of ring 0: for all
    user = {"cs": UCODE, "ss": UDATA, "ds": UDATA, "es": UDATA, "eip": USER_CODE, "esp": USER_STACK} | values
    guest.set_task(OTHER_TSS, **user)
    guest.place(USER_CODE, "hlt")
    result = guest.run(jump(OTHER))
    frame = frame_of(result)
    assert frame[:2] == (expected if expected[0] is not None else (GP, 0))
    assert (frame.eip, frame.cs, frame.esp, frame.ss) == (USER_CODE, UCODE, USER_STACK, user["ss"])
    assert result.registers["rsp"] == STACK_TOP - 0x800 - 20 and result.registers["tr"] == OTHER


def test_trap_bit(guest: LegacyGuest) -> None:
    """SDM 3B 18.3.1.5: #DB before the first instruction of a task whose T bit is set."""
    guest.set_task(OTHER_TSS, trap=0x680001)
    result = guest.run(jump(OTHER))
    assert frame_of(result)[:3] == (DB, 0, TASK_CODE) and result.registers["dr6"] & 0xE00F == 0x8000
    assert result.registers["rax"] == 1


def test_single_steps_across_a_switch(guest: LegacyGuest) -> None:
    guest.place(TASK_CODE, "inc eax\ninc eax\nhlt")
    guest.set_task(OTHER_TSS, eflags=TF | 2)
    result = guest.run(jump(OTHER))
    assert frame_of(result)[:3] == (DB, 0, TASK_CODE + 1) and result.registers["rax"] == 2
    guest.reset()
    guest.place(TASK_CODE, "inc eax\nhlt")
    assert guest.run(jump(OTHER), rflags=TF | 2).frame is None


def test_resume_flag_of_the_new_task_counts_for_its_first_instruction(guest: LegacyGuest) -> None:
    guest.place(TASK_CODE, "inc eax\nhlt")
    guest.set_task(OTHER_TSS, eflags=0x10002)
    assert guest.run(jump(OTHER), dr0=TASK_CODE, dr7=0x402).frame is None
    guest.set_descriptor(OTHER, descriptor(TSS32, OTHER_TSS, 0x67))
    guest.set_task(OTHER_TSS)
    assert frame_of(guest.run(jump(OTHER), dr0=TASK_CODE, dr7=0x402))[:3] == (DB, 0, TASK_CODE)


# ---- IRET with NT
@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (OTHER, (TS, OTHER)), (OTHER | 4, (TS, OTHER | 4)), (0, (TS, 0)), (0x200, (TS, 0x200)), (KCODE, (TS, KCODE)),
        (SPARE, (NP, SPARE)), (GATE, (TS, GATE)),
    ],
)  # fmt: skip
def test_return_to_a_task_is_refused(guest: LegacyGuest, link: int, expected: tuple[int, int]) -> None:
    """SDM 2 IRET, TASK-RETURN: the task must be busy."""
    guest.set_descriptor(SPARE, descriptor(TSS32 & ~0x80 | 2, OTHER_TSS, 0x67))
    guest.set_descriptor(GATE, descriptor(TSS32 | 2, OTHER_TSS, 0x60))
    guest.memory.write_uint(MAIN_TSS, 4, link)
    result = guest.run("iretd", rflags=NT | 2)
    assert frame_of(result)[:3] == (*expected, KERNEL_CODE) and guest.descriptor(MAIN) & BUSY
    assert frame_of(result).eflags & NT and not result.registers["rflags"] & NT  # the handler runs without it


def test_nt_means_nothing_in_virtual_8086_mode(guest: LegacyGuest) -> None:
    result = guest.run_v86("push 0x4002\npush 0x1300\npush 12\niret\nhlt\nnop\nnop", rflags=VM | NT | IOPL3 | 2)
    assert frame_of(result)[:2] == (GP, 0) and frame_of(result).eip == 12


# ---- interrupts and exceptions through task gates
def test_exception_through_a_task_gate_is_repaired(guest: LegacyGuest) -> None:
    """SDM 3A 6.12.2: the handler changes EAX in the TSS of the task that faulted; IRET restarts the instruction."""
    handler_task(guest, GP, f"pop ebx\nmov dword ptr [{MAIN_TSS + 40}], {UDATA}\niretd")
    guest.set_gate(0x42, gate(KCODE, STUBS + 8 * 0x42, 0xEE))
    frame = frame_of(guest.run(f"mov eax, {OTHER}\nmov ds, eax\nmov ecx, 1\nint 0x42", ring=3))
    assert frame.vector == 0x42 and frame.cs == UCODE and frame.eip == USER_CODE + 14


def test_exception_through_a_task_gate_has_its_error_code(guest: LegacyGuest) -> None:
    handler_task(guest, GP)
    result = guest.run("stc\nmov eax, 0x58\nmov ds, eax", ring=3)
    assert result.frame is None and result.registers["rip"] == TASK_CODE + 1
    assert result.registers["rsp"] == STACK_TOP - 0xC00 - 4 and guest.memory.read_uint(STACK_TOP - 0xC04, 4) == OTHER
    old = guest.task(MAIN_TSS)
    assert (old["eip"], old["cs"], old["esp"], old["eax"]) == (USER_CODE + 6, UCODE, USER_STACK, 0x58) and old["eflags"] & 1
    assert guest.task(OTHER_TSS)["link"] == MAIN and result.registers["rflags"] & NT


def test_page_fault_through_a_task_gate(guest: LegacyGuest) -> None:
    handler_task(guest, PF)
    result = guest.run("mov eax, [0x5000]", ring=3)
    assert result.registers["cr2"] == 0x5000 and guest.memory.read_uint(result.registers["rsp"], 4) == 5
    assert guest.task(MAIN_TSS)["eip"] == USER_CODE


@pytest.mark.parametrize(("text", "vector", "length"), [("int 0x42", 0x42, 2), ("int3", BP, 1), (".byte 0xf1", DB, 1), ("into", OF, 1)])
def test_software_interrupt_through_a_task_gate(guest: LegacyGuest, text: str, vector: int, length: int) -> None:
    handler_task(guest, vector, "mov edi, 5\niretd")
    result = guest.run(f"mov al, 0x7f\nadd al, 1\n{text}\nmov ecx, 7", ring=0)
    assert result.frame is None and result.registers["rcx"] == 7
    assert guest.task(OTHER_TSS)["edi"] == 5 and guest.task(MAIN_TSS)["eip"] == KERNEL_CODE + 4 + length


def test_int_needs_the_task_gates_privilege(guest: LegacyGuest) -> None:
    handler_task(guest, 0x42)
    guest.set_gate(0x42, gate(OTHER, kind=0x85))
    assert frame_of(guest.run("int 0x42", ring=3))[:3] == (GP, 0x42 * 8 + 2, USER_CODE)
    assert guest.run("int 0x42").registers["tr"] == OTHER


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    ("value", "tss", "expected"),
    [
        (gate(OTHER | 4, kind=0xE5), None, (GP, OTHER | 4)), (gate(0x200, kind=0xE5), None, (GP, 0x200)),
        (gate(0, kind=0xE5), None, (GP, 0)),
        (gate(MAIN, kind=0xE5), None, (GP, MAIN)), (gate(OTHER, kind=0xE5), descriptor(9, OTHER_TSS, 0x67), (NP, OTHER)),
        (gate(OTHER, kind=0xE5), descriptor(TSS32, OTHER_TSS, 0x66), (TS, OTHER)),
    ],
)  # fmt: skip
def test_task_gate_of_an_interrupt_is_refused(
    guest: LegacyGuest, soft: bool, value: int, tss: int | None, expected: tuple[int, int]
) -> None:
    """SDM 2 INT n; EXT is set unless INT n caused it (SDM 3A 6.13)."""
    vector = 0x42 if soft else UD
    guest.set_gate(vector, value)
    if tss is not None:
        guest.set_descriptor(OTHER, tss)
    frame = frame_of(guest.run("int 0x42" if soft else "ud2"))
    assert frame[:3] == (expected[0], expected[1] | (not soft), KERNEL_CODE)


def test_gate_in_the_idt_that_is_not_present(guest: LegacyGuest) -> None:
    guest.set_gate(0x42, gate(OTHER, kind=0x65))
    assert fault(guest.run("int 0x42")) == (NP, 0x42 * 8 + 2)


def test_no_room_for_the_error_code(guest: LegacyGuest) -> None:
    """SDM 2 INT n: #SS(EXT) in the new task; its handler is a task of its own."""
    guest.set_descriptor(SPARE, descriptor(DATA32 & ~0x800, 0, 0xFFF))
    handler_task(guest, GP, ss=SPARE, esp=0x2000)
    guest.set_gate(DF, gate(SMALL, kind=0x85))
    guest.set_descriptor(SMALL, descriptor(TSS32, SMALL_TSS, 0x67))
    guest.set_task(SMALL_TSS, eip=STUBS + 8 * DF, esp=STACK_TOP - 0x40)
    # #GP, then #SS while it is delivered: contributory both, so #DF.
    assert fault_of_task(guest, guest.run("mov eax, 0x58\nmov ds, eax")) == (DF, 0)
    assert guest.task(OTHER_TSS)["eip"] == TASK_CODE and guest.task(SMALL_TSS)["link"] == OTHER


def test_double_fault_task(guest: LegacyGuest) -> None:
    """The classic use of a task gate: a ring-0 stack that is not there."""
    handler_task(guest, DF)
    result = guest.run("mov esp, 0x500000\npush eax")
    assert result.registers["tr"] == OTHER and guest.memory.read_uint(result.registers["rsp"], 4) == 0
    old = guest.task(MAIN_TSS)
    assert old["eip"] == KERNEL_CODE + 5 and old["esp"] == 0x500000 and result.registers["cr2"] == 0x500000 - 4


def test_triple_fault_with_tasks(guest: LegacyGuest) -> None:
    guest.set_gate(DF, gate(OTHER, kind=0x85))
    guest.set_descriptor(OTHER, descriptor(TSS32, OTHER_TSS, 0x20))
    assert isinstance(guest.run("mov esp, 0x500000\npush eax").exit, Shutdown)
    guest.reset()
    handler_task(guest, DF, cs=0)
    assert isinstance(guest.run("mov esp, 0x500000\npush eax").exit, Shutdown)
