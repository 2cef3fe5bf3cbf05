"""Virtual-8086 mode and its extensions in the emulating engine, with expectations from SDM 3A chapter 20."""

from __future__ import annotations

import pytest

from .legacy_guest import (
    BP,
    CODE1,
    CODE16,
    CODE32,
    CS86,
    DATA,
    DB,
    DE,
    DS86,
    GP,
    IF,
    IOPL3,
    KCODE,
    KDATA,
    KERNEL_CODE,
    MAIN_TSS,
    NT,
    OF,
    PF,
    PRESENT,
    SP86,
    SPARE,
    SS,
    STACK_TOP,
    STUBS,
    TASK_CODE,
    TF,
    UCODE,
    UD,
    USER_CODE,
    USER_GATE,
    VIF,
    VIP,
    VM,
    WRITABLE,
    LegacyGuest,
    fault,
    frame_of,
    gate,
    pushes,
    words,
)
from .system_guest import descriptor


@pytest.fixture
def guest(shared_legacy_guest: LegacyGuest) -> LegacyGuest:
    shared_legacy_guest.reset()
    return shared_legacy_guest


# ---- virtual-8086 mode (SDM 3A 20.2)


def test_iret_to_virtual_8086_mode(guest: LegacyGuest) -> None:
    guest.place(USER_CODE + 0x10, "mov cs:[0x100], ax\nmov bx, es:[0]\nmov ax, sp\nhlt", 16)
    guest.memory.write_uint(0x30000, 2, 0x4321)
    image = VM | IOPL3 | IF | 2
    result = guest.run("mov ax, 0x77\n" + pushes(5, 6, 7, 0x3000, DS86, 0x12345678, image, CS86, 0x10) + "iretd")
    frame, state = frame_of(result), result.registers
    assert frame[:4] == (GP, 0, 0x10 + 4 + 5 + 2, CS86) and frame.eflags == image
    assert (frame.es, frame.ds, frame.fs, frame.gs, frame.ss, frame.esp) == (0x3000, 7, 6, 5, DS86, 0x12345678)
    assert state["rbx"] & 0xFFFF == 0x4321 and state["rax"] & 0xFFFF == 0x5678 and guest.memory.read_uint(USER_CODE + 0x100, 2) == 0x77
    assert (state["cs"], state["ss"], state["cpl"]) == (KCODE, KDATA, 0)
    assert [state[n] for n in ("ds", "es", "fs", "gs")] == [0] * 4 and state["ds_attr"] == 0
    assert state["rsp"] == STACK_TOP - 40 + 4  # 9 words and the error code, less what the stub is credited with


def test_iret_to_virtual_8086_mode_wants_a_16_bit_ip_and_ring_0(guest: LegacyGuest) -> None:
    frame = frame_of(guest.run(pushes(0, 0, 0, 0, DS86, 0x100, VM | 2, CS86, 0x10000) + "iretd"))
    assert frame[:2] == (GP, 0) and frame.cs == KCODE
    guest.place(USER_CODE + 0x800, "hlt")
    frame = frame_of(guest.run(pushes(VM | 0x202, UCODE, USER_CODE + 0x800) + "iretd", ring=3))  # VM is ignored
    assert frame.cs == UCODE and not frame.eflags & VM
    at = STACK_TOP - 0x440
    for k, value in enumerate((0, CS86, VM | 2, 0x100, DS86, 0, 0, 0, 0)):
        guest.memory.write_uint(at + 4 * k, 4, value)
    assert frame_of(guest.run("iretd", rsp=at, ss_limit=at + 34))[:3] == (SS, 0, KERNEL_CODE)


@pytest.mark.parametrize(
    "text", ["hlt", "cli", "sti", "pushf", "popf", "iret", "int 0x21", "mov eax, cr0", "lgdt [0]", "clts", "in al, 0x10", "pushfd"]
)
def test_what_virtual_8086_mode_leaves_to_the_monitor(guest: LegacyGuest, text: str) -> None:
    """SDM 3A 20.2.8: IOPL-sensitive and privileged instructions with IOPL below 3, ports by the bitmap."""
    frame = frame_of(guest.run_v86("nop\n" + text))
    assert frame[:4] == (GP, 0, 1, CS86) and frame.esp == SP86


def test_instructions_of_protected_mode_are_undefined(guest: LegacyGuest) -> None:
    for text in ("sldt ax", "str ax", "lldt ax", "ltr ax", "lar ax, ax", "lsl ax, ax", "verr ax", "verw ax", ".byte 0x63, 0xc0"):
        assert fault(guest.run_v86(text)) == (UD, 0)


def test_virtual_8086_mode_with_iopl_3(guest: LegacyGuest) -> None:
    """SDM 3A 20.2.7: then the flags are the program's, but for IOPL, VM, VIF and VIP; INT n goes through the IDT."""
    flags = VM | IOPL3 | IF | 2
    guest.set_gate(0x21, gate(KCODE, STUBS + 8 * 0x21, USER_GATE))
    result = guest.run_v86("cli\npushf\npop ax\nsti\npushf\npop bx\npush 0x4002\npopf\npushf\npop cx\nint 0x21", rflags=flags)
    frame, state = frame_of(result), result.registers
    assert frame.vector == 0x21 and frame.eflags == VM | IOPL3 | NT | 2
    assert (state["rax"], state["rbx"], state["rcx"]) == (0x3002, 0x3202, 0x7002)
    assert frame_of(guest.run_v86("int 0x22", rflags=flags))[:3] == (GP, 0x22 * 8 + 2, 0)  # its gate has DPL 0


def test_int3_and_into_do_not_look_at_iopl(guest: LegacyGuest) -> None:
    for vector, text in ((BP, "int3"), (OF, "into"), (DB, ".byte 0xf1")):
        guest.set_gate(vector, gate(KCODE, STUBS + 8 * vector, USER_GATE))
        frame = frame_of(guest.run_v86("mov al, 0x7f\nadd al, 1\n" + text))
        assert frame[:3] == (vector, 0, 5)


def test_faults_of_virtual_8086_mode(guest: LegacyGuest) -> None:
    assert fault(guest.run_v86("mov bx, 0xffff\nmov ax, [bx]")) == (GP, 0)
    assert fault(guest.run_v86("mov bp, 0xffff\nmov ax, [bp]")) == (SS, 0)
    result = guest.run_v86("mov ax, 0x800\nmov ds, ax\nmov al, [0]")
    assert frame_of(result)[:3] == (PF, 5, 5) and result.registers["cr2"] == 0x8000
    assert frame_of(guest.run_v86("xor cx, cx\ndiv cx"))[:3] == (DE, 0, 2)
    result = guest.run_v86("nop\nnop", rflags=VM | TF | 2)
    assert frame_of(result)[:3] == (DB, 0, 1) and frame_of(result).eflags & TF and not result.registers["rflags"] & (TF | VM)


def test_gate_for_virtual_8086_mode_leads_to_ring_0(guest: LegacyGuest) -> None:
    """SDM 3A 20.3.1, SDM 2 INT n: #GP with the code segment's selector where it does not, or where it is conforming."""
    guest.set_descriptor(SPARE, descriptor(CODE32 | 4))
    for selector in (CODE1, SPARE):
        guest.set_gate(UD, gate(selector, STUBS + 8 * UD))
        assert fault(guest.run_v86("ud2")) == (GP, selector & 0xFFF8 | 1)


def test_16_bit_gate_from_virtual_8086_mode(guest: LegacyGuest) -> None:
    guest.set_gate(UD, gate(SPARE, 0x40, kind=0x86))
    guest.set_descriptor(SPARE, descriptor(CODE16, TASK_CODE, 0xFFFF))
    guest.place(TASK_CODE + 0x40, "hlt")
    result = guest.run_v86("ud2", rflags=VM | 0x3202)
    assert result.registers["rip"] == 0x41 and result.registers["rsp"] == STACK_TOP - 18
    assert words(guest, STACK_TOP - 18, 9, 2) == [0, CS86, 0x3202, SP86, DS86, DS86, DS86, DS86, DS86]


def test_ports_of_virtual_8086_mode(guest: LegacyGuest) -> None:
    """SDM 3A 20.2.8.1: only the bitmap counts, whatever IOPL."""
    bitmap = bytearray(b"\xff" * 33)
    bitmap[2] &= ~1
    guest.memory.write(MAIN_TSS + 0x68, bytes(bitmap))
    guest.set_page(MAIN_TSS, MAIN_TSS | PRESENT | WRITABLE)
    limit = 0x68 + len(bitmap) - 1
    guest.set_gate(0x21, gate(KCODE, STUBS + 8 * 0x21, USER_GATE))
    result = guest.run_v86("in al, 0x10\nmov bl, al\nint3", tr_limit=limit)
    assert frame_of(result)[0] == GP and result.registers["rbx"] == 0x78  # INT3 needs its gate's DPL
    for rflags in (VM | 2, VM | IOPL3 | 2):
        assert frame_of(guest.run_v86("in al, 0x11", tr_limit=limit, rflags=rflags))[:3] == (GP, 0, 0)
        assert frame_of(guest.run_v86("in ax, 0x10", tr_limit=limit, rflags=rflags))[:3] == (GP, 0, 0)


def test_monitor_reflects_an_interrupt(guest: LegacyGuest) -> None:
    """A whole turn: INT 21h raises #GP, the monitor pushes the program's frame and enters its handler by IRET, which returns."""
    monitor = f"""
        add esp, 4
        pushad
        mov eax, {KDATA}
        mov ds, eax
        movzx ebx, word ptr [esp + 44]
        movzx eax, word ptr [esp + 48]
        shl eax, 4
        movzx ecx, word ptr [esp + 32]
        movzx edx, word ptr [esp + 36]
        shl edx, 4
        add edx, ecx
        cmp byte ptr [edx], 0xcd
        jne 2f
        sub bx, 6
        mov [esp + 44], ebx
        add eax, ebx
        mov cx, [esp + 32]
        add cx, 2
        mov [eax], cx
        mov cx, [esp + 36]
        mov [eax + 2], cx
        mov cx, [esp + 40]
        mov [eax + 4], cx
        movzx edx, byte ptr [edx + 1]
        movzx ecx, word ptr [edx * 4]
        mov [esp + 32], ecx
        movzx ecx, word ptr [edx * 4 + 2]
        mov [esp + 36], ecx
        popad
        iretd
    2:  cmp byte ptr [edx], 0xcf
        jne 3f
        add eax, ebx
        movzx ecx, word ptr [eax]
        mov [esp + 32], ecx
        movzx ecx, word ptr [eax + 2]
        mov [esp + 36], ecx
        add bx, 6
        mov [esp + 44], ebx
        popad
        iretd
    3:  popad
        hlt
    """
    guest.place(TASK_CODE, monitor)
    guest.set_gate(GP, gate(KCODE, TASK_CODE))
    guest.memory.write(0x21 * 4, (0x200).to_bytes(2, "little") + CS86.to_bytes(2, "little"))
    guest.place(USER_CODE + 0x200, "inc ax\niret", 16)
    result = guest.run_v86("mov cx, 100\n1: int 0x21\nint 0x21\nloop 1b")
    state = result.registers
    assert TASK_CODE < state["rip"] < TASK_CODE + 0x200 and state["rax"] == 200 and state["rcx"] == 0
    assert words(guest, state["rsp"], 5) == [9, CS86, VM | 2, SP86, DS86]


# ---- virtual-mode extensions (SDM 3A 20.3-20.4)
def redirection(guest: LegacyGuest, *to_monitor: int) -> dict[str, int]:
    """CR4.VME, and a TSS whose redirection bits are 1 for these vectors."""
    bitmap = bytearray(32)
    for vector in to_monitor:
        bitmap[vector >> 3] |= 1 << (vector & 7)
    guest.memory.write(MAIN_TSS + 0x68, bytes(bitmap))
    guest.memory.write_uint(MAIN_TSS + 0x66, 2, 0x88)
    return {"cr4": 1, "tr_limit": 0x88}


def program_vector(guest: LegacyGuest, vector: int) -> None:
    guest.memory.write(vector * 4, (0x200).to_bytes(2, "little") + CS86.to_bytes(2, "little"))
    guest.place(USER_CODE + 0x200, "pushf\npop bx\nmov bp, sp\nmov si, [bp]\nmov di, [bp + 4]\ninc ax\niret", 16)


@pytest.mark.parametrize("rflags", [0, VIF, IOPL3 | IF, IOPL3, VIF | IF, NT | VIF | IF])
def test_int_is_redirected_to_the_program(guest: LegacyGuest, rflags: int) -> None:
    """Methods 5 (IOPL 3) and 6: the image has IOPL 3 and VIF as IF; VIF or IF is cleared.  IRET restores it."""
    registers = redirection(guest)
    program_vector(guest, 0x21)
    result = guest.run_v86("int 0x21\nnop\nud2", rflags=VM | rflags | 2, **registers)
    frame, state = frame_of(result), result.registers
    assert frame.vector == UD and frame.eip == 3 and state["rax"] == 1 and state["rsi"] == 2
    own = rflags & IOPL3 == IOPL3
    enabled = rflags & IF if own else (rflags & VIF) >> 10
    assert state["rdi"] == 2 | IOPL3 | enabled | rflags & NT  # the image on the stack
    assert state["rbx"] == 2 | IOPL3 | rflags & NT  # PUSHF in the handler
    assert frame.eflags == VM | rflags | 2 and frame.esp == SP86


def test_int_that_is_not_redirected(guest: LegacyGuest) -> None:
    """Methods 3 and 4."""
    registers = redirection(guest, 0x21)
    program_vector(guest, 0x21)
    guest.set_gate(0x21, gate(KCODE, STUBS + 8 * 0x21, USER_GATE))
    assert frame_of(guest.run_v86("int 0x21", **registers))[:3] == (GP, 0, 0)
    assert frame_of(guest.run_v86("int 0x21", rflags=VM | IOPL3 | 2, **registers))[:3] == (0x21, 0, 2)
    guest.set_gate(BP, gate(KCODE, STUBS + 8 * BP, USER_GATE))
    assert frame_of(guest.run_v86("int3", **redirection(guest)))[:3] == (BP, 0, 1)  # INT3 never is
    program_vector(guest, BP)
    result = guest.run_v86(".byte 0xcd, 3\nud2", **redirection(guest))
    assert frame_of(result).vector == UD and result.registers["rax"] == 1


def test_redirection_bits_beyond_the_tss(guest: LegacyGuest) -> None:
    registers = redirection(guest)
    program_vector(guest, 0x21)
    for limit in (0x67 + 4, 0x60):
        assert frame_of(guest.run_v86("int 0x21", **registers | {"tr_limit": limit}))[:3] == (GP, 0, 0)


def test_faults_of_a_redirected_int(guest: LegacyGuest) -> None:
    registers = redirection(guest)
    program_vector(guest, 0x21)
    guest.set_page(DATA + 0x3000, 0)
    result = guest.run_v86("int 0x21", **registers)
    assert frame_of(result)[:3] == (PF, 6, 0) and result.registers["cr2"] & ~0xFFF == DATA + 0x3000 and frame_of(result).esp == SP86
    guest.reset()
    registers = redirection(guest)
    guest.set_page(0, 0)
    assert frame_of(guest.run_v86("int 0x21", **registers))[:3] == (PF, 4, 0)


def test_single_steps_over_a_redirected_int(guest: LegacyGuest) -> None:
    """TF is cleared by the INT: the trap comes behind the IRET that restores it, which the VME form of IRET refuses with TF set."""
    registers = redirection(guest)
    program_vector(guest, 0x21)
    result = guest.run_v86("int 0x21\nnop\nnop", rflags=VM | TF | 2, **registers)
    assert frame_of(result)[0] == GP and result.registers["rdi"] & TF and result.registers["rax"] == 1
    result = guest.run_v86("int 0x21\nnop\nnop", rflags=VM | TF | IOPL3 | 2, **registers)
    assert frame_of(result)[:3] == (DB, 0, 3) and result.registers["rax"] == 1


@pytest.mark.parametrize(
    ("text", "rflags", "after"),
    [
        ("sti", 0, VIF), ("cli", VIF, 0), ("sti", IOPL3, IOPL3 | IF), ("cli", IOPL3 | IF | VIF, IOPL3 | VIF), ("sti", VIP, None),
        ("cli", VIF | VIP, VIP), ("sti", VIP | IOPL3, VIP | IOPL3 | IF), ("push 0x202\npopf", 0, VIF), ("push 2\npopf", VIF | IF, IF),
        ("push 0x202\npopf", VIP, None), ("push 2\npopf", VIP, VIP), ("push 0x102\npopf", 0, None), ("push 0x7002\npopf", IF, IF | NT),
        ("push 0x202\npush 0x1300\npush 0x100\niret", 0, VIF), ("push 0x202\npush 0x1300\npush 0x100\niret", VIP, None),
        ("push 0x102\npush 0x1300\npush 0x100\niret", 0, None), ("push 2\npush 0x1300\npush 0x100\niret", VIF | IF, IF),
        ("push 2\npush 0x1300\npush 0x100\niret", VIF | IF | IOPL3, VIF | IOPL3),
        ("push dword ptr 2\npopfd", 0, None), ("pushfd", 0, None),
        ("push dword ptr 2\npush dword ptr 0x1300\npush dword ptr 0x100\niretd", 0, None),
    ],
)  # fmt: skip
def test_flags_under_vme(guest: LegacyGuest, text: str, rflags: int, after: int | None) -> None:
    """SDM 3A 20.3.2, 20.4; SDM 2 CLI, STI, POPF, IRET: VIF in the place of IF where IOPL is below 3.  None: #GP."""
    guest.memory.write(USER_CODE + 0x100, b"\x0f\x0b")
    frame = frame_of(guest.run_v86(text + "\nud2", rflags=VM | rflags | 2, cr4=1))
    assert frame.vector == (GP if after is None else UD)
    assert frame.eflags == VM | 2 | (rflags if after is None else after)


def test_pushf_under_vme(guest: LegacyGuest) -> None:
    for rflags, image in ((0, 0x3002), (VIF, 0x3202), (IF, 0x3002), (IOPL3 | VIF, 0x3002), (IOPL3 | IF, 0x3202), (VIF | VIP | NT, 0x7202)):
        assert guest.run_v86("pushf\npop ax\nud2", rflags=VM | rflags | 2, cr4=1).registers["rax"] == image


@pytest.mark.parametrize(
    ("text", "rflags", "cr4", "after"),
    [
        ("sti", 0, 2, VIF), ("cli", VIF | IF, 2, IF), ("sti", VIP, 2, None), ("cli", VIP | VIF, 2, VIP), ("sti", 0, 0, None),
        ("cli", 0, 1, None),
        ("sti", IOPL3, 2, IOPL3 | IF), ("cli", IOPL3 | IF | VIF, 2, IOPL3 | VIF), ("push 0x202\npopfd", 0, 2, 0),
    ],
)  # fmt: skip
def test_protected_mode_virtual_interrupts(guest: LegacyGuest, text: str, rflags: int, cr4: int, after: int | None) -> None:
    """SDM 3A 20.4: CR4.PVI gives CLI and STI of ring 3 their own flag; POPF and PUSHF know nothing of it."""
    frame = frame_of(guest.run(text + "\nud2", ring=3, rflags=rflags | 2, cr4=cr4))
    assert frame.vector == (GP if after is None else UD)
    assert frame.eflags == 2 | (rflags if after is None else after)


def test_rings_1_and_2_have_no_virtual_interrupts(guest: LegacyGuest) -> None:
    for ring in (1, 2):
        guest.set_page(USER_CODE, USER_CODE | PRESENT | WRITABLE)
        assert fault(guest.run("sti", ring=ring, cr4=2, rsp=STACK_TOP - 0x100)) == (GP, 0)
        guest.reset()
