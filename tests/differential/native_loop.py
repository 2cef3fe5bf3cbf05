"""The native loop of the host-CPU judge, assembled by LLVM: position-fixed x86-64 code without any relocation.

    entry 0   run(first record, end of records)        called by the child
    entry 16  handler(signal, siginfo, ucontext)       its signal handler: notes the exception and goes on behind the instruction
    entry 32  leave                                    where every instruction's slot continues

While a guest instruction runs, all registers are the guest's: variables live at absolute addresses (`SCRATCH_ADDR`).
"""

from __future__ import annotations

import io

import llvmlite.binding as llvm
from elftools.elf.elffile import ELFFile

from .segments import USER_CS64, USER_DS  # isort: skip
from .records import BASE_ADDR, CASE, LOOP_ADDR, MAX_DIFFS, MAX_PATCHES, PATCH, SCRATCH_ADDR, WINDOW_ADDR, WINDOW_BYTES, at

REGISTERS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"]
RUN, HANDLER, LEAVE = 0, 16, 32
VARIABLES = (
    "host_rsp",
    "record",
    "end",
    "target",
    "active",
    "trap",
    "error",
    "cr2",
    "rip",
    "guest_rbx",
    "guest_rsp",
    "control",
    "fs_base",
    "cs",
)
# Offsets of ucontext_t's registers (Linux x86-64 ABI: mcontext at 40, gregs in the order r8…r15 rdi rsi rbp rbx rdx rax rcx rsp
# rip eflags cs err trapno oldmask cr2).
_UC_RIP, _UC_EFLAGS, _UC_CSGSFS, _UC_ERR, _UC_TRAPNO, _UC_CR2 = 168, 176, 184, 192, 200, 216


def variable(name: str) -> int:
    """Address of a variable of the loop."""
    return SCRATCH_ADDR + 8 * VARIABLES.index(name)


def way_back(bits: int, address: int) -> bytes:
    """What stands behind an instruction, at linear `address`: a jump to where the loop goes on."""
    leave = LOOP_ADDR + LEAVE
    if bits == 64:
        return b"\xe9" + (leave - (address + 5) & 0xFFFFFFFF).to_bytes(4, "little")
    return (b"\x66" if bits == 16 else b"") + b"\xea" + leave.to_bytes(4, "little") + USER_CS64.to_bytes(2, "little")


def record_variable() -> int:
    """Index of the qword of the scratch page that says which record is being run."""
    return VARIABLES.index("record")


def source(end: str = "ret", linux: bool = True) -> str:
    """The loop as assembly; `end` is the instruction that leaves it (a return to C, or INT n of a guest).

    A record with a code segment is one of 16- or 32-bit mode: its segments are loaded and its slot is entered by a far jump.
    `linux`: keeps the FS base, which belongs to the child's C library, by system calls.
    """
    v = {name: f"qword ptr ds:[{variable(name):#x}]" for name in VARIABLES}
    control = variable("control")
    saved = ("rbx", "rbp", "r12", "r13", "r14", "r15")
    load = "\n".join(f"mov {r}, [rbx + {at('gpr') + 8 * n}]" for n, r in enumerate(REGISTERS) if r != "rbx")
    store = "\n".join(f"mov [rbx + {at('out_gpr') + 8 * n}], {r}" for n, r in enumerate(REGISTERS) if r not in ("rbx", "rsp"))
    copied = "\n".join(
        f"mov rax, {v[a]}\nmov [rbx + {b}], rax"
        for a, b in (
            ("guest_rbx", at("out_gpr") + 8 * 3),
            ("guest_rsp", at("out_gpr") + 8 * 4),
            *((name, at(name)) for name in ("trap", "error", "cr2", "rip")),
        )
    )
    segments = [(r, at("segment") + 2 * n, at("out_segment") + 2 * n) for n, r in enumerate(("es", "cs", "ss", "ds", "fs", "gs"))]
    load_segments = "\n".join(f"mov {r}, word ptr [rbx + {a}]" for r, a, _ in segments if r != "cs")
    store_segments = "\n".join(f"mov eax, {r}\nmov word ptr [rbx + {a}], ax" for r, _, a in segments if r != "cs")
    keep_fs = f"push rdi; mov edi, 0x1003; mov esi, {variable('fs_base')}; mov eax, 158; syscall; pop rdi" if linux else ""
    restore_fs = f"mov edi, 0x1002; mov rsi, {v['fs_base']}; mov eax, 158; syscall" if linux else ""
    qwords = "\n".join(
        f"""mov rax, [rcx + {WINDOW_ADDR + k:#x}]
        cmp rax, [rcx + {BASE_ADDR + k:#x}]
        je 2f
        cmp edx, {MAX_DIFFS}
        jae 1f
        mov rdi, rdx
        shl rdi, 4
        lea rsi, [rcx + {k}]
        mov [rbx + rdi + {at("diff")}], rsi
        mov [rbx + rdi + {at("diff") + 8}], rax
        1: inc edx
        2:"""
        for k in (0, 8)
    )
    return f"""
    .intel_syntax noprefix
    .text
    jmp run
    .balign 16, 0xcc
    jmp handler
    .balign 16, 0xcc
    jmp leave_insn
    .balign 16, 0xcc
run:
    {"; ".join(f"push {r}" for r in saved)}
    mov {v["host_rsp"]}, rsp
    mov {v["end"]}, rsi
    {keep_fs}
    stmxcsr dword ptr ds:[{control:#x}]
    fnstcw word ptr ds:[{control + 4:#x}]
    xor eax, eax
    cpuid
    mov rbx, rdi
next:
    cmp rbx, {v["end"]}
    je done
    mov {v["record"]}, rbx
    mov rcx, [rbx + {at("patches")}]
    cmp rcx, {MAX_PATCHES}
    ja done
    lea rsi, [rbx + {at("patch")}]
patch:
    test rcx, rcx
    jz patched
    mov rdi, [rsi]
    movups xmm0, [rsi + 8]
    movups [rdi + {WINDOW_ADDR:#x}], xmm0
    add rsi, {PATCH.itemsize}
    dec rcx
    jmp patch
patched:
    mov rax, [rbx + {at("entry")}]
    mov {v["target"]}, rax
    mov {v["trap"]}, -1
    mov {v["rip"]}, rax
    movzx ecx, word ptr [rbx + {at("segment") + 2}]
    mov {v["cs"]}, rcx
    test ecx, ecx
    jz loaded
    mov eax, [rbx + {at("ip")}]
    mov {v["rip"]}, rax
    shl rcx, 32
    or rax, rcx
    mov {v["target"]}, rax
    {load_segments}
loaded:
    mov {v["active"]}, 1
    fxrstor64 [rbx + {at("fx")}]
    test word ptr [rbx + {at("segment") + 2}], -1
    jnz legacy
    push qword ptr [rbx + {at("rflags")}]
    popfq
    {load}
    mov rbx, [rbx + {at("gpr") + 8 * 3}]
    jmp {v["target"]}
legacy:
    push qword ptr [rbx + {at("rflags")}]
    popfq
    {load}
    mov rbx, [rbx + {at("gpr") + 8 * 3}]
    .byte 0xff, 0x2c, 0x25  # jmp far m16:32, its address absolute
    .long {variable("target")}
leave_insn:
    mov {v["guest_rsp"]}, rsp
    mov rsp, {v["host_rsp"]}
    pushfq
    push 2
    popfq
    mov {v["active"]}, 0
    mov {v["guest_rbx"]}, rbx
    mov rbx, {v["record"]}
    {store}
    fxsave64 [rbx + {at("out_fx")}]
    fninit
    ldmxcsr dword ptr ds:[{control:#x}]
    {copied}
    pop rax
    mov [rbx + {at("out_rflags")}], rax
    mov rax, {v["cs"]}
    test eax, eax
    jz compare
    mov word ptr [rbx + {at("out_segment") + 2}], ax
    {store_segments}
    mov eax, {USER_DS}
    mov ss, eax
compare:
    xor ecx, ecx
    xor edx, edx
scan:
    movdqa xmm0, [rcx + {WINDOW_ADDR:#x}]
    movdqa xmm1, [rcx + {BASE_ADDR:#x}]
    pcmpeqb xmm0, xmm1
    pmovmskb eax, xmm0
    cmp eax, 0xffff
    jne differs
scanned:
    add ecx, 16
    cmp ecx, {WINDOW_BYTES}
    jne scan
    mov [rbx + {at("diffs")}], rdx
    add rbx, {CASE.itemsize}
    jmp next
differs:
    {qwords}
    movdqa [rcx + {WINDOW_ADDR:#x}], xmm1
    jmp scanned
done:
    {restore_fs}
    fninit
    fldcw word ptr ds:[{control + 4:#x}]
    ldmxcsr dword ptr ds:[{control:#x}]
    {"; ".join(f"pop {r}" for r in reversed(saved))}
    {end}
handler:
    cmp {v["active"]}, 0
    mov rax, [rdx + {_UC_TRAPNO}]
    mov {v["trap"]}, rax
    mov rax, [rdx + {_UC_ERR}]
    mov {v["error"]}, rax
    mov rax, [rdx + {_UC_CR2}]
    mov {v["cr2"]}, rax
    mov rax, [rdx + {_UC_RIP}]
    mov {v["rip"]}, rax
    je fatal
    movzx eax, word ptr [rdx + {_UC_CSGSFS}]
    cmp {v["cs"]}, 0
    je same
    mov {v["cs"]}, rax
    mov word ptr [rdx + {_UC_CSGSFS}], {USER_CS64}
same:
    lea rax, [rip + leave_insn]
    mov [rdx + {_UC_RIP}], rax
    and dword ptr [rdx + {_UC_EFLAGS}], 0xfffffeff
    ret
fatal:
    mov edi, 99
    mov eax, 231
    syscall
"""


def assemble(text: str) -> bytes:
    """Machine code of a piece of assembly that needs no relocation."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    escaped = text.replace("\\", "\\5C").replace('"', "\\22").replace("\n", "\\0A")
    triple = "x86_64-unknown-linux-gnu"
    module = llvm.parse_assembly(f'target triple = "{triple}"\nmodule asm "{escaped}"\n')
    machine = llvm.Target.from_triple(triple).create_target_machine()
    elf = ELFFile(io.BytesIO(machine.emit_object(module)))
    if elf.get_section_by_name(".rela.text") is not None:
        raise ValueError("the assembly needs relocations")
    return bytes(elf.get_section_by_name(".text").data())
