"""The vCPU's architectural state, declared once: memory layout, reset, save/load and the inspector come from here.

Arithmetic flags live in two words, `fr` and `fa`, whose meaning `flags_kind` tells (see `flags.py`).
"""

from __future__ import annotations

from ringfence.core.state import Field, State

GPR = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
FLAG_BITS = {"cf": 0, "pf": 2, "af": 4, "zf": 6, "sf": 7, "of": 11}
ARITHMETIC = 0x8D5  # CF PF AF ZF SF OF in RFLAGS
DF = 1 << 10
TF, IF, NT, RF, VM, AC, VIF, VIP, ID = (1 << n for n in (8, 9, 14, 16, 17, 18, 19, 20, 21))
IOPL = 3 << 12
SYSTEM_FLAGS = 0x3F7300  # TF IF IOPL NT RF VM AC VIF VIP ID


_RESET_ATTR = {"ldtr": 0x82, "tr": 0x8B, "cs": 0x9B}  # SDM 3A table 9-1


class X86State(State):
    """Every register of one vCPU.  Widths in bits."""

    for _name in GPR:
        locals()[_name] = Field(64, doc="general-purpose register")
    rip = Field(64, reset=0xFFFFFFF0, doc="linear address of the next instruction: in 64-bit mode RIP, else CS base + EIP")
    fr = Field(64, reset=1, doc="flags, first word (settled: result, sign-extended)")
    fa = Field(64, doc="flags, second word (settled: 63 CF, 62 CF xor OF, 15:8 xor into parity, 16 xor into sign, 3 AF)")
    flags_kind = Field(8, doc="what fr and fa mean: 0 settled, 1-4 sub8-64, 5-8 add8-64")
    df = Field(1, doc="direction flag")
    rflags_sys = Field(64, doc="RFLAGS without the arithmetic flags and DF")
    cpl = Field(2, doc="current privilege level")
    for _name in SEGMENTS:
        locals()[_name] = Field(16, reset=0xF000 if _name == "cs" else 0, doc="segment selector")
        locals()[_name + "_base"] = Field(64, reset=0xFFFF0000 if _name == "cs" else 0, doc="segment base")
        locals()[_name + "_limit"] = Field(32, reset=0xFFFF, doc="segment limit in bytes")
        locals()[_name + "_attr"] = Field(16, reset=_RESET_ATTR.get(_name, 0x93), doc="descriptor bits 40-47 and 52-55")
    gdtr_base = Field(64)
    gdtr_limit = Field(16, reset=0xFFFF)
    idtr_base = Field(64)
    idtr_limit = Field(16, reset=0xFFFF)
    cr0 = Field(64, reset=0x60000010)
    cr2 = Field(64)
    cr3 = Field(64)
    cr4 = Field(64)
    dr0 = Field(64)
    dr1 = Field(64)
    dr2 = Field(64)
    dr3 = Field(64)
    dr6 = Field(64, reset=0xFFFF0FF0)
    dr7 = Field(64, reset=0x400)
    efer = Field(64, doc="IA32_EFER: 0 SCE, 8 LME, 10 LMA, 11 NXE")
    star = Field(64)
    lstar = Field(64)
    cstar = Field(64)
    fmask = Field(64)
    kernel_gs_base = Field(64)
    sysenter_cs = Field(64)
    sysenter_esp = Field(64)
    sysenter_eip = Field(64)
    pat = Field(64, reset=0x0007040600070406)
    tsc_offset = Field(64, doc="guest TSC minus host TSC")
    tsc_aux = Field(32)
    fcw = Field(16, reset=0x37F, doc="x87 control word")
    fsw = Field(16, doc="x87 status word without TOP (bits 13:11 are 0)")
    ftop = Field(3, doc="x87 stack top")
    ftag = Field(8, doc="x87: bit n set when physical register n is in use")
    fop = Field(16)
    fip = Field(64)
    fdp = Field(64)
    mxcsr = Field(32, reset=0x1F80)
    st = Field(80, count=8, doc="x87 physical registers")
    for _n in range(16):
        locals()[f"xmm{_n}"] = Field(128)
    # An exception on its way to the guest, and what the engine must look at.
    exc_vector = Field(8)
    exc_error = Field(32)
    exc_pending = Field(2, doc="delivery: bit 0 an error code is pushed, bit 1 a software interrupt (INT n, INT3, INTO)")
    shadow_rip = Field(64, reset=1, doc="RIP at which interrupts are held off (STI, MOV SS); 1 when none")
    halted = Field(1)
    nmi_blocked = Field(1)
    del _name, _n


class EngineState(State):
    """What bodies and translated code share with the engine; never saved."""

    request = Field(32, doc="what the engine must do before the next instruction, REQUEST_* bits")
    request_address = Field(64, doc="linear address of REQUEST_INVLPG")
    irq_pending = Field(8, doc="an interrupt waits for IF")
    kick = Field(32, doc="written by other threads: leave translated code soon")
    vpage = Field(64, doc="linear address of the page that RIP is in")
    # What segment registers amount to outside of 64-bit mode, kept beside them (see segments.py).
    # What the CPU model allows (see models.py): constants of a run.
    flags_settable = Field(64, reset=0x3F7FD5, doc="bits of EFLAGS that can be changed")
    flags_settable_real = Field(64, reset=0x3F7FD5, doc="the same in real-address mode")
    flags_fixed = Field(64, doc="bits of EFLAGS above 11 that are always 1")
    cr0_settable = Field(64, reset=0xE005002F)
    cr0_fixed = Field(64, reset=0x10, doc="bits of CR0 that are always 1")
    cr4_settable = Field(64, reset=0x330FFF)
    for _name in SEGMENTS[:6]:
        locals()[_name + "_rlimit"] = Field(64, doc="highest offset that may be read without a closer look; -1: none")
        locals()[_name + "_wlimit"] = Field(64, doc="highest offset that may be written without a closer look; -1: none")
        locals()[_name + "_unflat"] = Field(8, doc="0 where the segment is all of 4 GiB from 0 on")
    del _name
    # CPUID's answers, where the engine has entered them (see engine/cpuid.py): rows 0-15 are leaves 0 to Fh, 16-31 leaves
    # 80000000h to 8000000Fh, 32-63 leaves 40000000h to 4000001Fh; 64-66 are for
    # all others, below 40000000h, below 80000000h, above; 67 is for leaf 7 with a subleaf.
    cpuid_rows = Field(8, doc="number of rows that are valid: 0 or 68")
    cpuid_ab = Field(64, count=68, doc="EAX, and EBX in the upper half")
    cpuid_cd = Field(64, count=68, doc="ECX, and EDX in the upper half")


REQUEST_FLUSH = 1  # drop all cached translations of linear addresses
REQUEST_INVLPG = 2  # drop those of request_address
REQUEST_MODE = 4  # CPL, paging or the like changed: recompute the translation mode
REQUEST_STOP = 8  # leave to the engine's Python side
REQUEST_FLUSH_LOCAL = 16  # drop all cached translations but those of global pages


def rflags_image(state: dict[str, int]) -> int:
    """RFLAGS as software sees it, from settled flag words."""
    fr, fa = state["fr"], state["fa"]
    cf = fa >> 63 & 1
    flags = cf | 2 | (cf ^ fa >> 62 & 1) << 11 | (fa >> 3 & 1) << 4 | (fr == 0) << 6
    flags |= (fr >> 63 ^ fa >> 16) << 7 & 0x80 | (((fr ^ fa >> 8) & 0xFF).bit_count() & 1 ^ 1) << 2
    return flags | state["df"] << 10 | state["rflags_sys"]


def rflags_words(image: int) -> dict[str, int]:
    """The settled fields for an RFLAGS image."""
    cf, pf, af, zf, sf, of = (image >> FLAG_BITS[n] & 1 for n in ("cf", "pf", "af", "zf", "sf", "of"))
    fa = cf << 63 | (cf ^ of) << 62 | af << 3 | (pf ^ zf) << 8 | sf << 16
    return {"fr": zf ^ 1, "fa": fa, "flags_kind": 0, "df": image >> 10 & 1, "rflags_sys": image & SYSTEM_FLAGS}
