"""The judge's loop as ring-0 code of a 32-bit machine: enters cases of ring 3, of virtual-8086 mode and of real mode.

    IRETD with the case's registers -> the instruction -> int3 or its exception -> gate -> results into the record -> next

In real mode there are no rings: the loop clears CR0.PE around each case, and the instruction's slot ends with a far jump back.
An exception there pushes its frame on the case's own stack (see `EngineLegacy.forgive`), the read-only page included.

All that the loop touches lies at guest physical address + `KERNEL`; where paging is off, its segments' base makes up for it.
"""

from __future__ import annotations

from .native_loop import assemble
from .records import CASE, MAX_DIFFS, PAGE, PATCH, WINDOW_BYTES, at
from .segments import USER_CS32, USER_DS

KERNEL = 0x0100_0000
# Guest physical addresses.
GDT, IDT, TSS, LDT, STACK_TOP, SCRATCH, LOOP, REAL, USER = (
    0x1000, 0x2000, 0x3000, 0x4000, 0x7000, 0x7000, 0x8000, 0xA000, 0xB000,
)  # fmt: skip
USER_ADDR = 0x0080_0000  # linear address of USER with user rights
WINDOW, READ_ONLY, BASE, READ_ONLY_COPY, CODE = 0x20000, 0x23000, 0x280000, 0x283000, 0x40000
TABLES, RECORDS = 0x0030_0000, 0x0040_0000
KERNEL_CS, KERNEL_DS, CS16, DS16 = 0x10, 0x18, 0x60, 0x68
PROTECTED, VIRTUAL, REAL_MODE = range(3)
STUBS, RUN = 0x800, 0  # offsets in the loop
LEAVE16 = 0x10  # offset in the real-mode part
STUBS16 = 0x400
WITH_ERROR = (8, 10, 11, 12, 13, 14, 17, 21)
VARIABLES = ("record", "end", "kind", "active")
_REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
# The real-mode part's data, offsets from its segment: what it loads, and what it leaves.
_SAVED, _SAVED_SEGMENTS, _SAVED_IP, _SAVED_FLAGS, _SAVED_VECTOR = 0x100, 0x120, 0x130, 0x138, 0x13C
_TOP16 = 0x1F0


def variable(name: str) -> int:
    """Physical address of a variable."""
    return SCRATCH + 8 * VARIABLES.index(name)


def _v(name: str) -> str:
    return f"dword ptr [{KERNEL + variable(name):#x}]"


def _record(name: str, n: int = 0) -> str:
    return f"[ebx + {at(name) + n}]"


def protected_part() -> bytes:
    """What runs in 32-bit protected mode, for `LOOP`."""
    load = "\n".join(f"mov {r}, dword ptr cs:{_record('gpr', 8 * n)}" for n, r in enumerate(_REGISTERS) if r not in ("ebx", "esp"))
    load += f"\nmov ds, word ptr cs:{_record('segment', 6)}\nmov ebx, dword ptr cs:{_record('gpr', 24)}"
    # Below: gs fs es ds edi esi ebp esp ebx edx ecx eax vector error eip cs eflags esp ss (es ds fs gs)
    saved = {"edi": 16, "esi": 20, "ebp": 24, "ebx": 32, "edx": 36, "ecx": 40, "eax": 44, "esp": 68}
    copied = "\n".join(f"mov eax, [esp + {saved[r]}]\nmov {_record('out_gpr', 8 * n)}, eax" for n, r in enumerate(_REGISTERS))
    copied += "\n" + "\n".join(
        f"mov eax, [esp + {where}]\nmov {_record(name)}, eax"
        for name, where in (("error", 52), ("rip", 56), ("out_rflags", 64), ("trap", 48))
    )

    def segments(places: dict[str, int]) -> str:
        return "\n".join(f"mov eax, [esp + {places[r]}]\nmov word ptr {_record('out_segment', 2 * n)}, ax" for n, r in enumerate(_SEGMENTS))

    below = {"gs": 0, "fs": 4, "es": 8, "ds": 12, "cs": 60, "ss": 72}
    above = {"cs": 60, "ss": 72, "es": 76, "ds": 80, "fs": 84, "gs": 88}
    to_real = "\n".join(
        f"mov eax, {_record('gpr', 8 * n)}\nmov [{KERNEL + REAL + _SAVED + 4 * n:#x}], eax" for n in range(8)
    ) + "\n" + "\n".join(
        f"mov ax, {_record('segment', 2 * n)}\nmov [{KERNEL + REAL + _SAVED_SEGMENTS + 2 * n:#x}], ax" for n in range(6)
    )  # fmt: skip
    from_real = "\n".join(
        f"mov eax, [{KERNEL + REAL + _SAVED + 4 * n:#x}]\nmov {_record('out_gpr', 8 * n)}, eax" for n in range(8)
    ) + "\n" + "\n".join(
        f"mov ax, [{KERNEL + REAL + _SAVED_SEGMENTS + 2 * n:#x}]\nmov {_record('out_segment', 2 * n)}, ax" for n in range(6)
    )  # fmt: skip
    qwords = "\n".join(
        f"""mov eax, [ecx + {KERNEL + WINDOW + k:#x}]
        mov ebp, [ecx + {KERNEL + WINDOW + k + 4:#x}]
        cmp eax, [ecx + {KERNEL + BASE + k:#x}]
        jne 3f
        cmp ebp, [ecx + {KERNEL + BASE + k + 4:#x}]
        je 2f
        3: cmp edx, {MAX_DIFFS}
        jae 1f
        mov edi, edx
        shl edi, 4
        lea esi, [ecx + {k}]
        mov [ebx + edi + {at("diff")}], esi
        mov dword ptr [ebx + edi + {at("diff") + 4}], 0
        mov [ebx + edi + {at("diff") + 8}], eax
        mov [ebx + edi + {at("diff") + 12}], ebp
        1: inc edx
        2:"""
        for k in (0, 8)
    )
    stubs = "\n".join(f".org {STUBS + 16 * n:#x}, 0xcc\n{'' if n in WITH_ERROR else 'push 0'}\npush {n}\njmp common" for n in range(32))
    return assemble(f"""
    .intel_syntax noprefix
    .text
    .code32
    mov ebx, {_v("record")}
next:
    mov esp, {KERNEL + STACK_TOP:#x}
    cmp ebx, {_v("end")}
    je done
    mov {_v("record")}, ebx
    mov ecx, {_record("patches")}
    lea esi, {_record("patch")}
patch:
    test ecx, ecx
    jz patched
    mov edi, [esi]
    movups xmm0, [esi + 8]
    movups [edi + {KERNEL + WINDOW:#x}], xmm0
    add esi, {PATCH.itemsize}
    dec ecx
    jmp patch
patched:
    mov {_v("active")}, 1
    fxrstor {_record("fx")}
    cmp {_v("kind")}, {VIRTUAL}
    ja real
    je virtual
    mov eax, {_record("ip")}
    mov [{KERNEL + USER:#x}], eax
    movzx eax, word ptr {_record("segment", 2)}
    mov [{KERNEL + USER + 4:#x}], eax
    mov eax, {_record("gpr", 32)}
    mov [{KERNEL + USER + 8:#x}], eax
    movzx eax, word ptr {_record("segment", 4)}
    mov [{KERNEL + USER + 12:#x}], eax
    push {USER_DS}
    push 0
    push dword ptr {_record("rflags")}
    push {USER_CS32}
    push {USER_ADDR + 0x20:#x}
    mov es, word ptr {_record("segment", 0)}
    mov fs, word ptr {_record("segment", 8)}
    mov gs, word ptr {_record("segment", 10)}
    {load}
    iretd
virtual:
    {"; ".join(f"movzx eax, word ptr {_record('segment', 2 * _SEGMENTS.index(r))}; push eax" for r in ("gs", "fs", "ds", "es", "ss"))}
    push dword ptr {_record("gpr", 32)}
    mov eax, {_record("rflags")}
    or eax, 0x20000
    push eax
    movzx eax, word ptr {_record("segment", 2)}
    push eax
    push dword ptr {_record("ip")}
    {load.replace(f"mov ds, word ptr cs:{_record('segment', 6)}", "")}
    iretd
real:
    {to_real}
    mov eax, {_record("ip")}
    mov [{KERNEL + REAL + _SAVED_IP:#x}], ax
    mov ax, {_record("segment", 2)}
    mov [{KERNEL + REAL + _SAVED_IP + 2:#x}], ax
    mov eax, {_record("rflags")}
    mov [{KERNEL + REAL + _SAVED_FLAGS:#x}], eax
    .byte 0xea
    .long 0
    .word {CS16}

common:
    pushad
    .byte 0x1e, 0x06, 0x0f, 0xa0, 0x0f, 0xa8  # push ds, es, fs, gs: four bytes each
    mov eax, {KERNEL_DS}
    mov ds, eax
    mov es, eax
    cld
    cmp {_v("active")}, 0
    je fatal
    mov ebx, {_v("record")}
    {copied}
    mov dword ptr {_record("trap", 4)}, 0
    cmp {_v("kind")}, {VIRTUAL}
    je from_virtual
    {segments(below)}
    jmp stored
from_virtual:
    {segments(above)}
stored:
    mov {_v("active")}, 0
    fxsave {_record("out_fx")}
    fninit
    push 0x1f80
    ldmxcsr [esp]
    pop eax
    mov eax, cr2
    mov {_record("cr2")}, eax
    xor ecx, ecx
    xor edx, edx
scan:
    movdqa xmm0, [ecx + {KERNEL + WINDOW:#x}]
    movdqa xmm1, [ecx + {KERNEL + BASE:#x}]
    pcmpeqb xmm0, xmm1
    pmovmskb eax, xmm0
    cmp eax, 0xffff
    jne differs
scanned:
    add ecx, 16
    cmp ecx, {WINDOW_BYTES}
    jne scan
    mov {_record("diffs")}, edx
    add ebx, {CASE.itemsize}
    jmp next
differs:
    {qwords}
    movdqa [ecx + {KERNEL + WINDOW:#x}], xmm1
    jmp scanned
done:
    hlt
fatal:
    mov eax, 0x0badc0de
    hlt
    {stubs}
    .org {STUBS + 0x200:#x}, 0xcc
back:
    mov eax, {KERNEL_DS}
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, {KERNEL + STACK_TOP:#x}
    mov ebx, {_v("record")}
    {from_real}
    movzx eax, word ptr [{KERNEL + REAL + _SAVED_IP:#x}]
    mov {_record("rip")}, eax
    mov eax, [{KERNEL + REAL + _SAVED_FLAGS:#x}]
    mov {_record("out_rflags")}, eax
    mov dword ptr {_record("error")}, 0
    movsx eax, word ptr [{KERNEL + REAL + _SAVED_VECTOR:#x}]
    cdq
    mov {_record("trap")}, eax
    mov {_record("trap", 4)}, edx
    test eax, eax
    js stored
    cld
    mov esi, {KERNEL + READ_ONLY_COPY:#x}
    mov edi, {KERNEL + READ_ONLY:#x}
    mov ecx, {PAGE // 4}
    rep movsd
    jmp stored
""")


def user_part() -> bytes:
    """The last step into ring 3, for `USER`: IRETD leaves the upper half of ESP alone where the new stack has 16 bits."""
    return assemble(f"""
    .intel_syntax noprefix
    .code32
    .org 0x20
    mov ss, word ptr cs:[{USER_ADDR + 12:#x}]
    mov esp, dword ptr cs:[{USER_ADDR + 8:#x}]
    .byte 0x2e, 0xff, 0x2d  # jmp far m16:32
    .long {USER_ADDR:#x}
""")


def real_part() -> bytes:
    """What runs in 16-bit protected and in real mode, for `REAL`, which is also its segment's base."""
    registers = "\n".join(f"mov {r}, dword ptr cs:[{_SAVED + 4 * n:#x}]" for n, r in enumerate(_REGISTERS) if r != "esp")
    keep = "\n".join(f"mov dword ptr cs:[{_SAVED + 4 * n:#x}], {r}" for n, r in enumerate(_REGISTERS))
    keep += "\n" + "\n".join(f"mov word ptr cs:[{_SAVED_SEGMENTS + 2 * n:#x}], {r}" for n, r in enumerate(_SEGMENTS) if r != "cs")
    load = "\n".join(
        f"mov {r}, word ptr cs:[{_SAVED_SEGMENTS + 2 * n:#x}]" for n, r in enumerate(_SEGMENTS) if r in ("es", "fs", "gs", "ds")
    )
    stubs = "\n".join(f".org {STUBS16 + 16 * n:#x}, 0xcc\nmov word ptr cs:[{_SAVED_VECTOR:#x}], {n}\njmp caught" for n in range(32))
    return assemble(
        f"""
    .intel_syntax noprefix
    .text
    .code16
    jmp enter
    .org {LEAVE16:#x}, 0xcc
    jmp left
    .org 0x200, 0xcc
enter:
    mov ax, {DS16}
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word entered
    .word {REAL >> 4}
    .org 0x230, 0xcc
entered:
    mov ax, cs
    mov ss, ax
    mov esp, {_TOP16:#x}
    push dword ptr cs:[{_SAVED_FLAGS:#x}]
    popfd
    {load}
    mov ss, word ptr cs:[{_SAVED_SEGMENTS + 4:#x}]
    mov esp, dword ptr cs:[{_SAVED + 16:#x}]
    {registers}
    .byte 0x2e, 0xff, 0x2e  # jmp far m16:16
    .word {_SAVED_IP:#x}
left:
    {keep}
    mov word ptr cs:[{_SAVED_VECTOR:#x}], -1
    mov ax, cs
    mov ss, ax
    mov esp, {_TOP16:#x}
    pushfd
    pop dword ptr cs:[{_SAVED_FLAGS:#x}]
    jmp protect
caught:
    {keep}
    mov bp, sp
    mov ax, word ptr ss:[bp]
    mov word ptr cs:[{_SAVED_IP:#x}], ax
    lea sp, [bp + 2]
    mov bp, sp
    mov ax, word ptr ss:[bp]
    mov word ptr cs:[{_SAVED_SEGMENTS + 2:#x}], ax
    lea sp, [bp + 2]
    mov bp, sp
    mov ax, word ptr ss:[bp]
    mov word ptr cs:[{_SAVED_FLAGS:#x}], ax
    mov word ptr cs:[{_SAVED_FLAGS + 2:#x}], 0
    add word ptr cs:[{_SAVED + 16:#x}], 6
protect:
    cli
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long {KERNEL + LOOP + STUBS + 0x200:#x}
    .word {KERNEL_CS}
    {stubs}
""".replace(".word entered", ".word 0x230")
    )
