"""System instructions in the emulating engine, with expectations from their pages in SDM 2."""

from __future__ import annotations

import struct

import pytest

from .system_guest import (
    CODE64,
    DATA,
    DATA_SEGMENT,
    GDT,
    KERNEL_CODE,
    KERNEL_CS,
    KERNEL_SS,
    STACK_TOP,
    TSS,
    USER_CODE,
    USER_CS,
    USER_SS,
    USER_STACK,
    SystemGuest,
    descriptor,
)
from .test_system_delivery import DB, GP, NP, PF, SS, UD, fault

UMIP = 1 << 11
IOPL3 = 0x3002


# ---- privilege
@pytest.mark.parametrize(
    "text",
    [
        "hlt", "cli", "sti", "clts", "invd", "wbinvd", "mov rax, cr0", "mov cr0, rax", "mov rax, cr2", "mov rax, cr3", "mov cr3, rax",
        "mov cr4, rax",
        "mov rax, cr8", "mov cr8, rax", "mov rax, dr0", "mov dr7, rax", "rdmsr", "wrmsr", "swapgs", "sysretq", "sysexitq", "invlpg [rax]",
        "lgdt [0x20000]", "lidt [0x20000]", "ltr ax", "lldt ax", "lmsw ax", "in al, 0x60", "out dx, eax", "insb", "outsb", "rdpmc",
    ],
)  # fmt: skip
def test_ring_3_may_not(guest: SystemGuest, text: str) -> None:
    assert fault(guest.run(text, cpl=3)) == (GP, 0)


@pytest.mark.parametrize("text", ["stac", "clac", "sysretq", "syscall"])
def test_undefined_in_this_state(guest: SystemGuest, text: str) -> None:
    assert fault(guest.run(text, cpl=3, efer=0xD00)) == (UD, 0)


@pytest.mark.parametrize("text", ["sgdt [0x20000]", "sidt [0x20000]", "sldt ax", "str ax", "smsw ax"])
def test_umip(guest: SystemGuest, text: str) -> None:
    assert fault(guest.run(text, cpl=3, cr4=0x620 | UMIP)) == (GP, 0)
    result = guest.run(text, cpl=3)
    assert result.frame is not None and result.frame.rip > USER_CODE  # HLT behind it
    assert guest.run(text, cr4=0x620 | UMIP).frame is None


# ---- flags
def test_cli_and_sti_by_iopl(guest: SystemGuest) -> None:
    result = guest.run("sti", cpl=3, rflags=IOPL3)
    assert result.frame is not None and result.frame.rflags & 0x200 and result.frame.rip == USER_CODE + 1
    result = guest.run("cli", cpl=3, rflags=IOPL3 | 0x200)
    assert result.frame is not None and not result.frame.rflags & 0x200


@pytest.mark.parametrize(
    ("cpl", "before", "image", "after"),
    [
        (0, 0x2, 0x3202, 0x3202), (3, 0x2, 0x3202, 0x2), (3, IOPL3, 0x202, 0x3202), (3, 0x202, 0x2, 0x202), (0, 0x2, 0x244CD7, 0x244CD7),
        (0, 0x2, 0x30002, 0x2), (0, 0x2, 0x180002, 0x2), (3, 0x2, 0xFFFFFFFF_FFFFFEFF & ~0x40000, 0x204CD7),
    ],
)  # fmt: skip
def test_popf(guest: SystemGuest, cpl: int, before: int, image: int, after: int) -> None:
    """SDM 2 POPF, table 4-21: RF is cleared, VM, VIF and VIP do not come from the image; IF by IOPL, IOPL by CPL."""
    result = guest.run(f"mov rax, {image}\npush rax\npopfq\npushfq\npop rbx", cpl=cpl, rflags=before)
    assert result.registers["rbx"] == after


# ---- ports
def test_ports_by_iopl_and_bitmap(guest: SystemGuest) -> None:
    assert guest.run("mov al, 5\nout 0x10, al", cpl=3, rflags=IOPL3).frame is not None
    assert guest.ports.writes == [(0x10, 1, 5)]
    bitmap = bytearray(b"\xff" * 33)
    bitmap[2] &= ~1  # port 0x10
    guest.memory.write(TSS + 0x68, bytes(bitmap))
    limit = 0x68 + len(bitmap) - 1
    assert fault(guest.run("in al, 0x10\nmov ebx, 1\nhlt", cpl=3, tr_limit=limit)) == (GP, 0)  # HLT
    result = guest.run("in al, 0x10\nmov ebx, 1\nhlt", cpl=3, tr_limit=limit)
    assert result.registers["rbx"] == 1 and result.registers["rax"] == 0x78
    for text in ("in al, 0x11", "in ax, 0x10", "in eax, 0x10", "out 0x11, al"):
        result = guest.run(text, cpl=3, tr_limit=limit)
        assert fault(result) == (GP, 0) and result.frame is not None and result.frame.rip == USER_CODE
    assert fault(guest.run("in al, 0x10\nmov ebx, 1", cpl=3, tr_limit=0x68)) == (GP, 0)


def test_in_and_out(guest: SystemGuest) -> None:
    result = guest.run("mov rax, -1\nmov dx, 0x1234\nin eax, dx\nmov rbx, rax\nmov rax, -1\nin ax, dx\nout dx, ax\nout 0x80, al")
    assert result.registers["rbx"] == 0x12345678 and result.registers["rax"] == 0xFFFFFFFFFFFF5678
    assert guest.ports.writes == [(0x1234, 2, 0x5678), (0x80, 1, 0x78)]


def test_port_strings(guest: SystemGuest) -> None:
    guest.memory.write(DATA, b"abcd")
    result = guest.run(f"mov esi, {DATA}\nmov ecx, 4\nmov dx, 0x3f8\nrep outsb\nmov edi, {DATA + 16}\nmov ecx, 2\nrep insd")
    assert guest.ports.writes == [(0x3F8, 1, b) for b in b"abcd"]
    assert guest.memory.read(DATA + 16, 8) == bytes.fromhex("7856341278563412")
    assert result.registers["rcx"] == 0 and result.registers["rdi"] == DATA + 24


# ---- control and debug registers
@pytest.mark.parametrize(
    ("text", "vector"),
    [
        ("mov rax, 0x100000000\nmov cr0, rax", GP), ("mov eax, 0x80000010\nmov cr0, rax", GP), ("mov eax, 0xA0050033\nmov cr0, rax", GP),
        ("mov eax, 0x600\nmov cr4, rax", GP), ("mov rax, 0x80000000620\nmov cr4, rax", GP), ("mov eax, 0x8620\nmov cr4, rax", GP),
        ("mov rax, 0x8000000000001000\nmov cr3, rax", GP), ("mov rax, 0x10000000000000\nmov cr3, rax", GP),
        ("mov eax, 16\nmov cr8, rax", GP),
        (".byte 0x0f, 0x20, 0xc8", UD), (".byte 0x0f, 0x22, 0xf8", UD), ("mov rax, 0x100000000\nmov dr7, rax", GP),
        ("mov rax, 0x100000000\nmov dr6, rax", GP),
    ],
)  # fmt: skip
def test_control_registers_refuse(guest: SystemGuest, text: str, vector: int) -> None:
    assert fault(guest.run(text)) == (vector, 0)


def test_control_registers(guest: SystemGuest) -> None:
    result = guest.run("mov rax, 0x1234567890\nmov cr2, rax\nmov rbx, cr2\nmov eax, 9\nmov cr8, rax\nmov rcx, cr8\nsmsw rdx\nmov rsi, cr4")
    state = result.registers
    assert (state["rbx"], state["rcx"], state["rdx"], state["rsi"]) == (0x1234567890, 9, 0x80050033, 0x620)
    assert guest.run("mov eax, 0x8005003B\nmov cr0, rax\nclts\nmov rbx, cr0").registers["rbx"] == 0x80050033
    assert guest.run("mov ax, 0xe\nlmsw ax\nmov rbx, cr0").registers["rbx"] == 0x8005003F & ~0x30 | 0x30


def test_debug_registers(guest: SystemGuest) -> None:
    result = guest.run("mov rax, -1\nmov dr0, rax\nmov rbx, dr0\nxor eax, eax\nmov dr6, rax\nmov rcx, dr6\nmov dr7, rax\nmov rdx, dr7")
    state = result.registers
    assert (state["rbx"], state["rcx"], state["rdx"]) == ((1 << 64) - 1, 0xFFFF0FF0, 0x400)
    assert guest.run("mov rbx, dr4").registers["rbx"] == 0xFFFF0FF0
    assert fault(guest.run("mov rbx, dr4", cr4=0x628)) == (UD, 0)
    assert fault(guest.run("mov rbx, dr0", dr7=0x2400))[0] == DB


# ---- MSRs
@pytest.mark.parametrize("index", [0xC0000081, 0xC0000082, 0xC0000100, 0xC0000101, 0xC0000102, 0x174, 0x175, 0x176])
def test_msr_round_trip(guest: SystemGuest, index: int) -> None:
    result = guest.run(f"mov ecx, {index}\nmov eax, 0x89abcdef\nmov edx, 0x4567\nwrmsr\nxor eax, eax\nxor edx, edx\nrdmsr")
    assert (result.registers["rax"], result.registers["rdx"]) == (0x89ABCDEF, 0x4567)


@pytest.mark.parametrize(
    ("index", "value"), [(0xC0000082, 1 << 47), (0xC0000100, 1 << 63), (0xC0000101, 1 << 47), (0xC0000102, 1 << 47), (0xC0000080, 0xC01),
                         (0xC0000080, 0x80000D01), (0x12345, 0), (0x277, 2), (0xC0000084, 1 << 32)],
)  # fmt: skip
def test_msr_refuses(guest: SystemGuest, index: int, value: int) -> None:
    text = f"mov ecx, {index}\nmov eax, {value & 0xFFFFFFFF}\nmov edx, {value >> 32}\nwrmsr"
    assert fault(guest.run(text)) == (GP, 0)


def test_unknown_msr_cannot_be_read(guest: SystemGuest) -> None:
    assert fault(guest.run("mov ecx, 0x12345\nrdmsr")) == (GP, 0)


def test_swapgs_and_segment_bases(guest: SystemGuest) -> None:
    guest.memory.write(DATA, struct.pack("<3Q", 1, 2, 3))
    result = guest.run(
        "mov rax, gs:[0]\nswapgs\nmov rbx, gs:[0]\nmov rcx, fs:[0]", gs_base=DATA, kernel_gs_base=DATA + 8, fs_base=DATA + 16
    )
    state = result.registers
    assert (state["rax"], state["rbx"], state["rcx"]) == (1, 2, 3)
    assert (state["gs_base"], state["kernel_gs_base"]) == (DATA + 8, DATA)


# ---- system calls
def test_syscall(guest: SystemGuest) -> None:
    result = guest.run("stc\nsyscall", cpl=3, fmask=0x200, rflags=0x202)
    state = result.registers
    assert result.frame is None and state["rip"] == KERNEL_CODE + 0x801 and state["cpl"] == 0
    assert state["rcx"] == USER_CODE + 3 and state["r11"] == 0x203 and state["rsp"] == USER_STACK
    assert (state["cs"], state["ss"]) == (0x10, 0x18) and state["rflags"] & 0x201 == 1


def test_sysretq(guest: SystemGuest) -> None:
    guest.memory.write(USER_CODE, b"\xf4")
    result = guest.run(f"mov rcx, {USER_CODE}\nmov r11, 0x3F7ED7\nmov rsp, {USER_STACK}\nsysretq")
    frame = result.frame
    assert fault(result) == (GP, 0) and frame is not None
    assert (frame.rip, frame.cs, frame.ss, frame.rsp) == (USER_CODE, USER_CS, USER_SS, USER_STACK)
    assert frame.rflags & ~0x10000 == 0x3F7ED7 & 0x3C7FD7  # SDM 2 SYSRET: RF and VM cleared


def test_sysretq_to_a_non_canonical_address_faults_in_ring_0(guest: SystemGuest) -> None:
    result = guest.run("mov rcx, 0x800000000000\nmov r11, 2\nsysretq")
    assert fault(result) == (GP, 0) and result.frame is not None and result.frame.cs == KERNEL_CS


def test_sysenter_and_sysexit(guest: SystemGuest) -> None:
    result = guest.run("sysenter", cpl=3, rflags=0x202)
    state = result.registers
    assert result.frame is None and state["rip"] == KERNEL_CODE + 0x801 and state["rsp"] == STACK_TOP
    assert (state["cs"], state["ss"]) == (0x10, 0x18) and not state["rflags"] & 0x200
    assert fault(guest.run("sysenter", cpl=3, sysenter_cs=0)) == (GP, 0)
    guest.set_descriptor(0x30, descriptor(CODE64 | 0x60))
    guest.memory.write(USER_CODE, b"\xf4")
    result = guest.run(f"mov rdx, {USER_CODE}\nmov rcx, {USER_STACK}\nsysexitq", sysenter_cs=KERNEL_CS)
    assert fault(result) == (GP, 0) and result.frame is not None
    assert (result.frame.cs, result.frame.ss, result.frame.rsp) == (KERNEL_CS + 32 | 3, KERNEL_CS + 40 | 3, USER_STACK)


# ---- descriptor tables and segments
def test_table_registers(guest: SystemGuest) -> None:
    guest.memory.write(DATA, struct.pack("<HQ", 0x77, GDT))
    result = guest.run(f"lgdt [{DATA}]\nsgdt [{DATA + 16}]\nlidt [{DATA}]\nsidt [{DATA + 32}]\nstr eax\nsldt ebx")
    assert guest.memory.read(DATA + 16, 10) == guest.memory.read(DATA + 32, 10) == struct.pack("<HQ", 0x77, GDT)
    assert (result.registers["rax"], result.registers["rbx"]) == (0x40, 0)
    guest.memory.write(DATA, struct.pack("<HQ", 0x77, 1 << 47))
    assert fault(guest.run(f"lgdt [{DATA}]")) == (GP, 0)


def test_ltr(guest: SystemGuest) -> None:
    guest.set_descriptor(0x50, descriptor(0x89, TSS, 0x67))
    result = guest.run("mov ax, 0x50\nltr ax\nstr ebx")
    assert result.registers["rbx"] == 0x50 and guest.memory.read_uint(GDT + 0x50, 8) >> 40 & 0xFF == 0x8B
    assert fault(guest.run("mov ax, 0x50\nltr ax")) == (GP, 0x50)  # busy now
    assert fault(guest.run("xor eax, eax\nltr ax")) == (GP, 0)
    assert fault(guest.run("mov ax, 0x18\nltr ax")) == (GP, 0x18)
    assert fault(guest.run("mov ax, 0x200\nltr ax")) == (GP, 0x200)
    guest.set_descriptor(0x50, descriptor(0x09, TSS, 0x67))
    assert fault(guest.run("mov ax, 0x50\nltr ax")) == (NP, 0x50)


def test_lldt(guest: SystemGuest) -> None:
    assert guest.run("xor eax, eax\nlldt ax\nsldt ebx").registers["rbx"] == 0
    guest.set_descriptor(0x50, descriptor(0x82, DATA, 0xFF))
    guest.memory.write_uint(DATA + 8, 8, descriptor(DATA_SEGMENT))
    result = guest.run("mov ax, 0x50\nlldt ax\nmov ax, 0xc\nmov ds, ax\nmov ebx, ds")
    assert result.frame is None and result.registers["rbx"] == 0xC
    assert fault(guest.run("mov ax, 0x18\nlldt ax")) == (GP, 0x18)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mov ax, 0x18\nmov ds, ax", None), ("xor eax, eax\nmov ds, ax", None), ("mov ax, 0x200\nmov ds, ax", (GP, 0x200)),
        ("mov ax, 0x40\nmov ds, ax", (GP, 0x40)),
        ("mov ax, 0x60\nmov es, ax", (NP, 0x60)), ("mov ax, 0x60\nmov ss, ax", (SS, 0x60)), ("mov ax, 0x2b\nmov ss, ax", (GP, 0x28)),
        ("mov ax, 0x10\nmov ss, ax", (GP, 0x10)), ("xor eax, eax\nmov ss, ax", None), ("mov ax, 0x1b\nmov ss, ax", (GP, 0x18)),
        (".byte 0x8e, 0xc8", (UD, 0)),
        ("mov ax, 0x2b\nmov fs, ax", None), ("push 0x18\npop gs", None), ("push 0x60\npop fs", (NP, 0x60)),
        ("mov ax, 0x10\nmov gs, ax", None),
    ],
)  # fmt: skip
def test_segment_loads(guest: SystemGuest, text: str, expected: tuple[int, int] | None) -> None:
    guest.set_descriptor(0x60, descriptor(DATA_SEGMENT & ~0x80))
    result = guest.run(text)
    if expected is None:
        assert result.frame is None
    else:
        assert fault(result) == expected


def test_segment_loads_in_ring_3(guest: SystemGuest) -> None:
    assert fault(guest.run("mov ax, 0x18\nmov ds, ax", cpl=3)) == (GP, 0x18)
    assert fault(guest.run("xor eax, eax\nmov ss, ax", cpl=3)) == (GP, 0)
    result = guest.run("mov ax, 0x2b\nmov ds, ax\nmov es, ax\nmov ebx, 1", cpl=3)
    assert result.registers["rbx"] == 1


def test_lar_lsl_verr_verw(guest: SystemGuest) -> None:
    """SDM 2 LAR, LSL, VERR, VERW, on code, data, TSS, null and absent descriptors."""
    guest.set_descriptor(0x60, descriptor(0x4F2, 0, 0x1234))  # data, ring 3, limit in bytes
    guest.set_descriptor(0x68, descriptor(0xC99, 0, 0x12345))  # code, execute only
    text = "mov ax, {0}\nxor ebx, ebx\nxor ecx, ecx\nlar ebx, eax\nsetz dl\nlsl ecx, eax\nsetz dh\nverr ax\nsetz r8b\nverw ax\nsetz r9b"

    def ask(selector: int, cpl: int = 0) -> tuple[int, int, int, int, int, int]:
        state = guest.run(text.format(selector), cpl=cpl).registers
        return state["rbx"], state["rcx"], state["rdx"] & 1, state["rdx"] >> 8 & 1, state["r8"], state["r9"]

    assert ask(0x60) == (0x40F200, 0x1234, 1, 1, 1, 1)
    assert ask(0x68) == (0xC09900 | 0x010000, 0x12345FFF, 1, 1, 0, 0)
    assert ask(0x18) == (0xCF9300, 0xFFFFFFFF, 1, 1, 1, 1)
    assert ask(0x10) == (0xAF9B00, 0xFFFFFFFF, 1, 1, 1, 0)
    assert ask(0x40) == (0x8B00, 0x67, 1, 1, 0, 0)
    assert ask(0) == ask(0x200) == ask(0x90) == (0, 0, 0, 0, 0, 0)
    assert ask(0x18, cpl=3) == (0, 0, 0, 0, 0, 0)  # DPL 0
    assert ask(0x2B, cpl=3)[2:] == (1, 1, 1, 1)


# ---- far transfers
def test_far_return_and_jump(guest: SystemGuest) -> None:
    at = KERNEL_CODE + 0x800
    result = guest.run(f"push {KERNEL_CS}\npush {at}\nretfq")
    assert result.frame is None and result.registers["rip"] == at + 1
    guest.memory.write(DATA, struct.pack("<QH", at, KERNEL_CS))
    result = guest.run(f"rex64 jmp fword ptr [{DATA}]")
    assert result.frame is None and result.registers["rip"] == at + 1
    result = guest.run(f"rex64 call fword ptr [{DATA}]")
    state = result.registers
    assert result.frame is None and state["rip"] == at + 1 and guest.memory.read_uint(state["rsp"] + 8, 8) == KERNEL_CS
    guest.memory.write(USER_CODE, b"\xf4")
    result = guest.run(f"push {USER_SS}\npush {USER_STACK}\npush {USER_CS}\npush {USER_CODE}\nretfq")
    assert fault(result) == (GP, 0) and result.frame is not None
    assert (result.frame.cs, result.frame.ss, result.frame.rsp) == (USER_CS, USER_SS, USER_STACK)


@pytest.mark.parametrize(("selector", "error"), [(0, 0), (KERNEL_SS, KERNEL_SS), (0x200, 0x200), (USER_CS & ~3, 0x30)])
def test_far_transfers_refuse(guest: SystemGuest, selector: int, error: int) -> None:
    guest.memory.write(DATA, struct.pack("<QH", KERNEL_CODE + 0x800, selector))
    assert fault(guest.run(f"rex64 jmp fword ptr [{DATA}]")) == (GP, error)
    assert fault(guest.run(f"push {selector}\npush {KERNEL_CODE + 0x800}\nretfq")) == (GP, error)


def test_string_instructions_stop_at_a_fault(guest: SystemGuest) -> None:
    """SDM 2 REP: the registers tell how far it came; the instruction goes on when it is started again."""
    guest.set_page(DATA + 0x1000, 0)
    result = guest.run("cld\nrep stosb", rax=0x55, rdi=DATA + 0x1000 - 100, rcx=1000)
    assert fault(result) == (PF, 2)
    state = result.registers
    assert (state["rdi"], state["rcx"], state["cr2"]) == (DATA + 0x1000, 900, DATA + 0x1000)
    assert guest.memory.read(DATA + 0x1000 - 100, 100) == b"\x55" * 100
