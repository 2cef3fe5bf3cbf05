"""Delivery of exceptions and interrupts in long mode, as SDM 3A chapters 5 and 6 tell it; run in the emulating engine."""

from __future__ import annotations

import struct

import pytest

from ringfence.engine.api import Shutdown

from .system_guest import (
    CODE64,
    DATA,
    IDT,
    IST_TOP,
    KERNEL_CODE,
    KERNEL_CS,
    KERNEL_SS,
    PRESENT,
    STACK_TOP,
    STUBS,
    TSS,
    USER,
    USER_CODE,
    USER_CS,
    USER_SS,
    USER_STACK,
    WRITABLE,
    Result,
    SystemGuest,
    descriptor,
    gate,
)

DE, DB, BP, UD, NM, DF, TS, NP, SS, GP, PF, MF, AC, XM = 0, 1, 3, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 19


def fault(result: Result) -> tuple[int, int]:
    """(vector, error code) of the exception that ended the program."""
    assert result.frame is not None, f"no exception: {result.exit}, rip {result.registers['rip']:#x}"
    return result.frame.vector, result.frame.error


# ---- the frame
def test_fault_frame_in_ring_0(guest: SystemGuest) -> None:
    """SDM 3A 6.14.2: SS, RSP, RFLAGS, CS, RIP, always, on a stack aligned to 16 bytes."""
    result = guest.run("nop\nmov rax, 1\nud2", rsp=STACK_TOP - 0x403)
    frame = result.frame
    assert frame is not None and frame.vector == UD
    assert frame.rip == KERNEL_CODE + 8 and frame.cs == KERNEL_CS and frame.ss == KERNEL_SS
    assert frame.rsp == STACK_TOP - 0x403
    assert result.registers["rsp"] == (STACK_TOP - 0x403 & ~15) - 40
    assert result.registers["rax"] == 1


def test_error_codes_are_pushed_below_the_frame(guest: SystemGuest) -> None:
    result = guest.run("mov ax, 0x58\nmov ss, ax", rsp=STACK_TOP - 0x400)
    assert fault(result) == (GP, 0x58)
    assert result.registers["rsp"] == STACK_TOP - 0x400 - 48 + 8


def test_traps_return_behind_the_instruction(guest: SystemGuest) -> None:
    for text, vector, length in (("int3", BP, 1), ("int 0x42", 0x42, 2), (".byte 0xf1", DB, 1)):
        frame = guest.run(text).frame
        assert frame is not None and (frame.vector, frame.rip) == (vector, KERNEL_CODE + length)


def test_faults_restart_at_the_instruction_with_registers_as_before(guest: SystemGuest) -> None:
    result = guest.run("mov rsp, 0x500008\nmov rax, 0x77\npush rax")
    assert result.frame is None and isinstance(result.exit, Shutdown)  # no stack for #PF, nor for #DF
    result = guest.run("mov rdi, 0x500000\nmov rax, 0x77\nxadd [rdi], rax")
    assert fault(result) == (PF, 2) and result.registers["rax"] == 0x77
    assert result.frame is not None and result.frame.rip == KERNEL_CODE + 14


# ---- privilege and stacks
def test_ring_3_enters_ring_0_on_the_stack_of_the_tss(guest: SystemGuest) -> None:
    guest.set_gate(0x80, kind=0xEE)
    result = guest.run("stc\nint 0x80", cpl=3)
    frame, state = result.frame, result.registers
    assert frame is not None and frame.vector == 0x80
    assert (frame.cs, frame.ss, frame.rsp, frame.rip) == (USER_CS, USER_SS, USER_STACK, USER_CODE + 3)
    assert frame.rflags & 1
    assert state["rsp"] == STACK_TOP - 40 and state["cs"] == KERNEL_CS and state["ss"] == 0 and state["cpl"] == 0


def test_int_needs_the_gates_privilege(guest: SystemGuest) -> None:
    assert fault(guest.run("int 0x81", cpl=3)) == (GP, 0x81 * 8 + 2)
    assert fault(guest.run("int3", cpl=3)) == (GP, BP * 8 + 2)
    assert fault(guest.run(".byte 0xf1", cpl=3))[0] == DB  # INT1 is not checked
    assert fault(guest.run("ud2", cpl=3))[0] == UD  # nor are exceptions


def test_gate_that_is_not_present(guest: SystemGuest) -> None:
    guest.set_gate(0x42, kind=0x0E)
    assert fault(guest.run("int 0x42")) == (NP, 0x42 * 8 + 2)


@pytest.mark.parametrize("kind", [0x80, 0x85, 0x86, 0x87, 0x8C])
def test_gate_of_a_wrong_type(guest: SystemGuest, kind: int) -> None:
    guest.set_gate(0x42, kind=kind)
    assert fault(guest.run("int 0x42")) == (GP, 0x42 * 8 + 2)


def test_vector_beyond_the_idt(guest: SystemGuest) -> None:
    assert fault(guest.run("int 0x42", idtr_limit=0x41F)) == (GP, 0x42 * 8 + 2)


def test_code_segment_of_a_gate(guest: SystemGuest) -> None:
    guest.set_gate(0x42, selector=0)
    assert fault(guest.run("int 0x42")) == (GP, 0)
    guest.set_gate(0x42, selector=0x18)  # data
    assert fault(guest.run("int 0x42")) == (GP, 0x18)
    guest.set_gate(0x42, selector=0x33)  # outer ring
    assert fault(guest.run("int 0x42")) == (GP, 0x30)
    guest.set_gate(0x42, selector=0x50)
    guest.set_descriptor(0x50, descriptor(CODE64 & ~0x80))
    assert fault(guest.run("int 0x42")) == (NP, 0x50)
    guest.set_descriptor(0x50, descriptor(0xC9B))  # 32-bit code
    assert fault(guest.run("int 0x42")) == (GP, 0x50)
    guest.set_gate(0x42, selector=0x200)  # beyond the GDT
    assert fault(guest.run("int 0x42")) == (GP, 0x200)


def test_interrupt_gate_closes_and_trap_gate_does_not(guest: SystemGuest) -> None:
    guest.set_gate(0x42, kind=0x8E)
    guest.set_gate(0x43, kind=0x8F)
    assert not guest.run("sti\nint 0x42").registers["rflags"] & 0x200
    result = guest.run("sti\nint 0x43")
    assert result.registers["rflags"] & 0x200
    assert result.frame is not None and result.frame.rflags & 0x200


def test_ist_switches_stacks_in_ring_0_too(guest: SystemGuest) -> None:
    guest.set_gate(UD, ist=1)
    result = guest.run("ud2")
    assert result.registers["rsp"] == IST_TOP - 40
    assert result.frame is not None and result.frame.rsp == STACK_TOP - 0x400 and result.frame.ss == KERNEL_SS


def test_non_canonical_stack(guest: SystemGuest) -> None:
    guest.set_gate(0x42, ist=2)
    guest.set_gate(SS, ist=1)
    guest.memory.write(TSS + 0x2C, struct.pack("<Q", 1 << 47))
    assert fault(guest.run("int 0x42")) == (SS, 0)


def test_tss_without_room_for_the_stack(guest: SystemGuest) -> None:
    guest.set_gate(0x42, ist=1)
    assert fault(guest.run("int 0x42", tr_limit=0x2A)) == (TS, 0x40)


# ---- double and triple faults (SDM 3A table 6-5)
def test_contributory_faults_make_a_double_fault(guest: SystemGuest) -> None:
    guest.set_gate(GP, kind=0x0E)  # delivering #GP raises #NP
    result = guest.run("mov rax, 0x8000000000000000\nmov rax, [rax]")
    assert fault(result) == (DF, 0)


def test_fault_while_delivering_a_benign_one_is_serial(guest: SystemGuest) -> None:
    guest.set_gate(UD, kind=0x0E)
    assert fault(guest.run("ud2")) == (NP, UD * 8 + 2 + 1)  # EXT: not by INT n


def test_page_fault_while_delivering_a_page_fault(guest: SystemGuest) -> None:
    guest.set_gate(DF, ist=1)
    result = guest.run("mov rsp, 0x500000\nmov rax, [0x600000]")
    assert fault(result) == (DF, 0)
    assert result.registers["cr2"] == 0x500000 - 48


def test_page_fault_while_delivering_a_contributory_fault(guest: SystemGuest) -> None:
    """SDM 3A table 6-5: contributory, then page fault: handled one after the other."""
    guest.set_gate(GP, ist=2)
    guest.memory.write(TSS + 0x2C, struct.pack("<Q", 0x500000))
    result = guest.run("mov rax, 0x8000000000000000\nmov rax, [rax]")
    assert fault(result) == (PF, 2)


def test_triple_fault_ends_the_guest(guest: SystemGuest) -> None:
    result = guest.run("ud2", idtr_limit=0)
    assert isinstance(result.exit, Shutdown)


def test_idt_in_a_page_that_is_not_there(guest: SystemGuest) -> None:
    guest.memory.write(IDT + 0x1000 - 16, gate(STUBS))
    assert isinstance(guest.run("ud2", idtr_base=0x500000).exit, Shutdown)


# ---- return
def _iret_frame(rip: int, cs: int, rflags: int, rsp: int, ss: int) -> str:
    return "\n".join(f"mov rax, {v}\npush rax" for v in (ss, rsp, rflags, cs, rip)) + "\n"


def test_iretq_to_ring_3(guest: SystemGuest) -> None:
    guest.memory.write(USER_CODE, b"\xf4")  # HLT in ring 3: #GP
    result = guest.run(_iret_frame(USER_CODE, USER_CS, 0x40AD7 & ~0x100, USER_STACK, USER_SS) + "iretq")
    frame = result.frame
    assert fault(result) == (GP, 0) and frame is not None
    assert (frame.rip, frame.cs, frame.rsp, frame.ss) == (USER_CODE, USER_CS, USER_STACK, USER_SS)
    assert frame.rflags & 0x3F7FD7 == 0x40AD7


def test_iretq_within_ring_0_loads_the_stack_too(guest: SystemGuest) -> None:
    result = guest.run(_iret_frame(KERNEL_CODE + 0x800, KERNEL_CS, 0x202, STACK_TOP - 0x100, KERNEL_SS) + "iretq")
    assert result.frame is None and result.registers["rsp"] == STACK_TOP - 0x100 and result.registers["rip"] == KERNEL_CODE + 0x801
    null = guest.run(_iret_frame(KERNEL_CODE + 0x800, KERNEL_CS, 2, STACK_TOP - 0x100, 0) + "iretq")
    assert null.frame is None and null.registers["ss"] == 0


@pytest.mark.parametrize(
    ("rip", "cs", "rflags", "ss", "error"),
    [
        (USER_CODE, 0, 2, USER_SS, 0),
        (USER_CODE, 0x18, 2, USER_SS, 0x18),
        (USER_CODE, 0x30, 2, USER_SS, 0x30),  # RPL 0, DPL 3
        (USER_CODE, USER_CS, 2, 0, 0),  # null SS for ring 3
        (USER_CODE, USER_CS, 2, 0x18, 0x18),  # SS of ring 0
        (USER_CODE, USER_CS, 2, 0x33, 0x30),  # SS a code segment
        (USER_CODE, 0x203, 2, USER_SS, 0x200),
        (1 << 47, USER_CS, 2, USER_SS, 0),
    ],
)
def test_iretq_refuses(guest: SystemGuest, rip: int, cs: int, rflags: int, ss: int, error: int) -> None:
    assert fault(guest.run(_iret_frame(rip, cs, rflags, USER_STACK, ss) + "iretq")) == (GP, error)


def test_iretq_with_nested_task(guest: SystemGuest) -> None:
    text = _iret_frame(KERNEL_CODE + 0x800, KERNEL_CS, 2, STACK_TOP, KERNEL_SS) + "pushfq\nor qword ptr [rsp], 0x4000\npopfq\niretq"
    assert fault(guest.run(text)) == (GP, 0)


def test_ring_3_may_not_change_iopl_and_if_by_iretq(guest: SystemGuest) -> None:
    guest.memory.write(USER_CODE + 0x800, b"\xf4")
    result = guest.run(_iret_frame(USER_CODE + 0x800, USER_CS, 0x3202, USER_STACK, USER_SS) + "iretq", cpl=3)
    assert fault(result) == (GP, 0)
    assert result.frame is not None and result.frame.rip == USER_CODE + 0x800 and not result.frame.rflags & 0x3200


# ---- debug, alignment, floating point
def test_single_step(guest: SystemGuest) -> None:
    result = guest.run("pushfq\nor qword ptr [rsp], 0x100\npopfq\nmov eax, 1\nmov eax, 2")
    frame = result.frame
    assert frame is not None and frame.vector == DB
    assert result.registers["rax"] == 1 and result.registers["dr6"] & 0x4000
    assert not result.registers["rflags"] & 0x100 and frame.rflags & 0x100


def test_alignment_check(guest: SystemGuest) -> None:
    """SDM 3A 6.15, #AC: CR0.AM, EFLAGS.AC and CPL 3."""
    text = f"pushfq\nor dword ptr [rsp], 0x40000\npopfq\nmov eax, [{DATA + 1}]"
    assert fault(guest.run(text, cpl=3, cr0=0x80050033)) == (AC, 0)
    assert fault(guest.run(text, cpl=3, cr0=0x80010033)) == (GP, 0)  # HLT was reached
    assert guest.run(text.replace("0x40000", "0x40000"), cr0=0x80050033).frame is None


@pytest.mark.parametrize(
    ("text", "cr0", "cr4", "vector"),
    [
        ("addps xmm0, xmm1", 0x8005003B, 0x620, NM), ("addps xmm0, xmm1", 0x80050037, 0x620, UD),
        ("addps xmm0, xmm1", 0x80050033, 0x420, UD),
        ("fld1", 0x8005003B, 0x620, NM), ("fld1", 0x80050037, 0x620, NM), ("paddb mm0, mm1", 0x8005003B, 0x620, NM),
        ("paddb mm0, mm1", 0x80050037, 0x620, UD), ("fwait", 0x8005003B, 0x620, NM), ("fxsave [0x20000]", 0x8005003B, 0x620, NM),
        ("ldmxcsr [0x20000]", 0x80050033, 0x420, UD),
    ],
)  # fmt: skip
def test_device_not_available(guest: SystemGuest, text: str, cr0: int, cr4: int, vector: int) -> None:
    """SDM 3A 2.5, table 9-3: CR0.TS, CR0.EM and CR4.OSFXSR."""
    assert fault(guest.run(text, cr0=cr0, cr4=cr4))[0] == vector


def test_unmasked_floating_point_exceptions(guest: SystemGuest) -> None:
    assert fault(guest.run("xorps xmm0, xmm0\ndivss xmm0, xmm0", mxcsr=0x1F00))[0] == XM
    assert fault(guest.run("xorps xmm0, xmm0\ndivss xmm0, xmm0", mxcsr=0x1F00, cr4=0x220))[0] == UD  # CR4.OSXMMEXCPT
    assert fault(guest.run("fldz\nfldz\nfdivp\nfwait", fcw=0x37E))[0] == MF


def test_divide_error(guest: SystemGuest) -> None:
    assert fault(guest.run("xor ecx, ecx\ndiv ecx")) == (DE, 0)


@pytest.mark.parametrize("text", ["ud2", ".byte 0xce", ".byte 0x62, 0", ".byte 0x0f, 0xff, 0xc0", ".byte 0xf0, 0x90", ".byte 0x06"])
def test_undefined(guest: SystemGuest, text: str) -> None:
    assert fault(guest.run(text)) == (UD, 0)


def test_instruction_across_a_page_that_is_not_there(guest: SystemGuest) -> None:
    """The fetch faults in the second page: CR2 is its start, RIP the instruction's."""
    at = USER_CODE + 0xFFE
    guest.set_page(USER_CODE + 0x1000, 0)
    guest.memory.write(at, b"\x48\xb8")
    result = guest.run(f"mov rax, {at}\njmp rax", cpl=3)
    assert fault(result)[0] == PF and result.registers["cr2"] == USER_CODE + 0x1000
    assert result.frame is not None and result.frame.rip == at
    guest.set_page(USER_CODE + 0x1000, 0x14000 | PRESENT | WRITABLE | USER)
    guest.memory.write(0x14000, struct.pack("<Q", 0x1122334455667788) + b"\xf4")
    result = guest.run(f"mov rax, {at}\njmp rax", cpl=3)
    assert result.registers["rax"] == 0x1122334455667788
