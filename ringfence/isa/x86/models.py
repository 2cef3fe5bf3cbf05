"""CPU models: what each generation has, and how it differs where programs look.

    8086 80186 286 386 486 pentium pentium-mmx pentium-pro pentium2 pentium3 x86-64 x86-64-v2

A model is plain data.  The decoder asks it which instructions exist (`refuses`) and whether an instruction has a body of its own
there (`own_body`); the engine asks for widths, reset values and the bits that control registers and flags have; `engine.cpuid`
makes CPUID's answers from it.  docs/reference/cpu-models.md tells what each of them covers.

Sources: the processors' own manuals (iAPX 86/88, iAPX 286, 80386, i486, Pentium family developer's manuals), SDM 3B 23
"Architecture compatibility", AP-485 for signatures.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ringfence.core.late import LateModule
from ringfence.core.record import Record

if TYPE_CHECKING:
    import iced_x86 as iced
else:  # a start decodes nothing
    iced = LateModule("iced_x86")

# EFLAGS (SDM 1 3.4.3).
_FLAGS_8086 = 0x0FD5
_IOPL_NT = 0x7000
_RF_VM, _AC, _ID, _VIF_VIP = 3 << 16, 1 << 18, 1 << 21, 3 << 19
# CR0: PE MP EM TS | ET | NE WP AM NW CD | PG.
_MSW, _ET, _PG = 0xF, 1 << 4, 1 << 31
_CR0_486 = _MSW | _PG | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 29 | 1 << 30
# CR4: VME PVI TSD DE PSE MCE, then PAE PGE PCE, OSFXSR, OSXMMEXCPT.
_CR4_PENTIUM = 0x5F
_CR4_P6 = _CR4_PENTIUM | 0x1A0
_CR4_MODERN = 0x330FFF  # … UMIP, FSGSBASE, PCIDE, SMEP, SMAP
_EFER_X64 = 0xD01  # SCE LME LMA NXE


def _named(names: str) -> frozenset[str]:
    return frozenset(names.split())


_I8086 = _named("INTEL8086 FPU")
_I186 = _I8086 | _named("INTEL186")
_I286 = _I186 | _named("INTEL286 FPU287")
_I386 = _I286 | _named("INTEL386 FPU387")
_I486 = _I386 | _named("INTEL486")
_PENTIUM = _I486 | _named("CPUID CX8 TSC MSR SMM")
_PENTIUM_MMX = _PENTIUM | _named("MMX RDPMC")
_PENTIUM_PRO = _PENTIUM | _named("CMOV RDPMC MULTIBYTENOP CET_IBT")  # ENDBR32 and ENDBR64 are among the reserved NOPs
_PENTIUM2 = _PENTIUM_PRO | _named("MMX SEP FXSR")
_PENTIUM3 = _PENTIUM2 | _named("SSE")
_X64 = _PENTIUM3 | _named("X64 SSE2 PAUSE CLFSH SYSCALL RDTSCP PREFETCHW")
_X64_V2 = _X64 | _named("SSE3 SSSE3 SSE4_1 SSE4_2 POPCNT CMPXCHG16B FSGSBASE INVPCID SMAP")


class CpuidTable(Record):
    """What CPUID tells.  Feature words as in the manuals; leaves that are empty here answer zeroes."""

    vendor: bytes
    max_leaf: int
    leaf1_edx: int
    leaf1_ecx: int = 0
    leaf2: tuple[int, int, int, int] = (0, 0, 0, 0)
    leaf7_ebx: int = 0
    leaf7_ecx: int = 0
    max_extended: int = 0
    extended_ecx: int = 0
    extended_edx: int = 0
    paravirtual: bool = False
    """Whether the hypervisor leaves are there: KVM's clock and EOI."""


class CpuModel(Record):
    """One generation.  Masks are of the registers that they name."""

    UNSHOWN: ClassVar = frozenset(("extensions",))

    name: str
    generation: int
    """86, 186, 286, 386, 486, 586, 686, or 786 for those with long mode."""
    what: str
    extensions: frozenset[str]
    """iced's names of the features whose instructions exist."""
    signature: int
    """Family, model and stepping: in EDX after reset, in EAX of CPUID leaf 1."""
    address_bits: int
    """Lines of the address bus; higher bits of physical addresses are lost."""
    cr0_settable: int = 0
    cr0_fixed: int = 0
    """Bits of CR0 that read as 1 whatever is written."""
    cr4_settable: int = 0
    """0: there is no CR4."""
    efer_settable: int = 0
    flags_settable: int = _FLAGS_8086
    flags_fixed: int = 2
    cpuid: CpuidTable | None = None
    any_lock: bool = False
    """Whether LOCK may stand before any instruction."""

    @cached_property
    def _features(self) -> frozenset[int]:
        """iced's numbers."""
        return frozenset(getattr(iced.CpuidFeature, name) for name in self.extensions)

    @cached_property
    def decoder_options(self) -> int:
        """iced's options for this CPU's encodings."""
        options = iced.DecoderOptions.NONE
        if "PAUSE" not in self.extensions:
            options |= iced.DecoderOptions.NO_PAUSE  # REP NOP is NOP
        return options | iced.DecoderOptions.NO_INVALID_CHECK if self.any_lock else options

    @property
    def has_long_mode(self) -> bool:
        return self.generation == 786

    @property
    def has_protected_mode(self) -> bool:
        return self.generation >= 286

    @property
    def has_invalid_opcodes(self) -> bool:
        """Whether undefined encodings raise #UD; the 8086 executes them as others."""
        return self.generation > 86

    def power_on(self) -> dict[str, int]:
        """Registers after reset that differ between generations (SDM 3A table 9-1 and its forebears); `rip` as an offset."""
        cs, base, ip = 0xF000, 0xFFFF0000, 0xFFF0
        if self.generation == 286:
            base = 0xF0000  # 0xFF0000 on the chip: the same ROM on the boards of the time
        elif self.generation < 286:
            cs, base, ip = 0xFFFF, 0xFFFF0, 0
        cr0 = self.cr0_fixed | (0x60000000 if self.generation >= 486 else 0)
        return {"rdx": self.signature, "cs": cs, "cs_base": base, "rip": ip, "rflags": self.flags_fixed, "cr0": cr0}

    def refuses(self, insn: iced.Instruction) -> bool:
        """Whether a decoded instruction does not exist on this CPU."""
        return any(feature not in self._features for feature in insn.cpuid_features())

    def own_body(self, name: str, insn: iced.Instruction) -> str:
        """The body that stands for `name` here; "ud" where there is none."""
        if name.endswith("cr4") and not self.cr4_settable:
            return "ud"
        if name == "push" and insn.op0_kind == iced.OpKind.REGISTER and insn.op0_register == iced.Register.SP:
            return _OWN_BODIES.get(self.generation, {}).get("push sp", name)
        return _OWN_BODIES.get(self.generation, {}).get(name, name)


_SHIFTS = "shl shr sar rol ror rcl rcr".split()
# The 8086 and 80186 push SP after the decrement, and their divide errors are traps; the 8086 shifts by all eight bits of CL (the
# 80186 by five, as all after it).
_BOTH = {name: f"{name} 8086" for name in ("push sp", "div", "idiv")}
_OWN_BODIES: dict[int, dict[str, str]] = {
    86: _BOTH | {name: f"{name} 8086" for name in _SHIFTS},
    186: _BOTH,
    286: {"smsw": "smsw 286"},
}

# The two CPUID words that x86-64 has in common with its forebears.
_EDX_PENTIUM = sum(1 << n for n in (0, 1, 2, 3, 4, 5, 7, 8, 9))  # FPU VME DE PSE TSC MSR MCE CX8 APIC
_EDX_PENTIUM_PRO = _EDX_PENTIUM | sum(1 << n for n in (6, 12, 13, 14, 15))  # PAE MTRR PGE MCA CMOV
_EDX_PENTIUM2 = _EDX_PENTIUM_PRO | sum(1 << n for n in (11, 17, 23, 24))  # SEP PSE36 MMX FXSR
_EDX_PENTIUM3 = _EDX_PENTIUM2 | sum(1 << n for n in (16, 25))  # PAT SSE
_EDX_X64 = _EDX_PENTIUM3 | sum(1 << n for n in (19, 26))  # CLFSH SSE2
_INTEL, _AMD = b"GenuineIntel", b"AuthenticAMD"
# Leaf 0x80000001 EDX: the common bits of leaf 1, SYSCALL NX 1-GiB pages RDTSCP long mode.
_EXTENDED_EDX = (_EDX_X64 & 0x0183F3FF) | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29
# Leaf 1 ECX of v2: SSE3 SSSE3 CX16 PCID SSE4.1 SSE4.2 x2APIC POPCNT; of both: TSC-deadline, hypervisor.
_ECX_V2 = sum(1 << n for n in (0, 9, 13, 17, 19, 20, 21, 23))
_ECX_X64 = 1 << 24 | 1 << 31
_LEAF7_EBX = sum(1 << n for n in (0, 7, 9, 10, 20))  # FSGSBASE SMEP ERMS INVPCID SMAP
_UMIP = 1 << 2
_K8 = 0x00060FB1  # family 15, model 107, stepping 1: kernels know no flaws of it that must be worked around

_PARTS = (
    CpuModel("8086", 86, "Intel 8086 with 8087", _I8086 | _named("INTEL8086_ONLY"), 0, 20, flags_fixed=0xF002, any_lock=True),
    CpuModel("80186", 186, "Intel 80186 with 8087", _I186, 0, 20, flags_fixed=0xF002, any_lock=True),
    CpuModel(
        "286",
        286,
        "Intel 80286 with 80287",
        _I286,
        0,
        24,
        cr0_settable=_MSW,
        any_lock=True,
        flags_settable=_FLAGS_8086 | _IOPL_NT,
    ),
    CpuModel(
        "386",
        386,
        "Intel 80386DX with 80387",
        _I386,
        0x0308,
        32,
        cr0_settable=_MSW | _PG,
        cr0_fixed=_ET,
        flags_settable=_FLAGS_8086 | _IOPL_NT | _RF_VM,
    ),
    CpuModel(
        "486",
        486,
        "Intel i486DX, before CPUID",
        _I486,
        0x0404,
        32,
        cr0_settable=_CR0_486,
        cr0_fixed=_ET,
        flags_settable=_FLAGS_8086 | _IOPL_NT | _RF_VM | _AC,
    ),
    CpuModel(
        "pentium",
        586,
        "Intel Pentium (P54C)",
        _PENTIUM,
        0x052C,
        32,
        cr0_settable=_CR0_486,
        cr0_fixed=_ET,
        cr4_settable=_CR4_PENTIUM,
        flags_settable=0x3F7FD5,
        cpuid=CpuidTable(_INTEL, 1, _EDX_PENTIUM),
    ),
    CpuModel(
        "pentium-mmx",
        586,
        "Intel Pentium with MMX (P55C)",
        _PENTIUM_MMX,
        0x0543,
        32,
        cr0_settable=_CR0_486,
        cr0_fixed=_ET,
        cr4_settable=_CR4_PENTIUM | 1 << 8,
        flags_settable=0x3F7FD5,
        cpuid=CpuidTable(_INTEL, 1, _EDX_PENTIUM | 1 << 23),
    ),
    CpuModel(
        "pentium-pro",
        686,
        "Intel Pentium Pro",
        _PENTIUM_PRO,
        0x0619,
        36,
        cr0_settable=_CR0_486,
        cr0_fixed=_ET,
        cr4_settable=_CR4_P6,
        flags_settable=0x3F7FD5,
        cpuid=CpuidTable(_INTEL, 2, _EDX_PENTIUM_PRO, leaf2=(0x03020101, 0, 0, 0x06040A42)),
    ),
    CpuModel(
        "pentium2",
        686,
        "Intel Pentium II",
        _PENTIUM2,
        0x0652,
        36,
        cr0_settable=_CR0_486,
        cr0_fixed=_ET,
        cr4_settable=_CR4_P6 | 1 << 9,
        flags_settable=0x3F7FD5,
        cpuid=CpuidTable(_INTEL, 2, _EDX_PENTIUM2, leaf2=(0x03020101, 0, 0, 0x0C040843)),
    ),
    CpuModel(
        "pentium3",
        686,
        "Intel Pentium III",
        _PENTIUM3,
        0x0681,
        36,
        cr0_settable=_CR0_486,
        cr0_fixed=_ET,
        cr4_settable=_CR4_P6 | 3 << 9,
        flags_settable=0x3F7FD5,
        cpuid=CpuidTable(_INTEL, 2, _EDX_PENTIUM3, leaf2=(0x03020101, 0, 0, 0x0C040882)),
    ),
    CpuModel(
        "x86-64",
        786,
        "the first x86-64 (level 1 of the psABI)",
        _X64,
        _K8,
        40,
        cr0_settable=_CR0_486,
        cr0_fixed=_ET,
        cr4_settable=_CR4_P6 | 3 << 9,
        efer_settable=_EFER_X64,
        flags_settable=0x3F7FD5,
        cpuid=CpuidTable(
            _AMD, 1, _EDX_X64, _ECX_X64, max_extended=0x80000008, extended_ecx=1, extended_edx=_EXTENDED_EDX, paravirtual=True
        ),
    ),
    CpuModel(
        "x86-64-v2",
        786,
        "level 2 of the x86-64 psABI",
        _X64_V2,
        _K8,
        40,
        cr0_settable=_CR0_486,
        cr0_fixed=_ET,
        cr4_settable=_CR4_MODERN,
        efer_settable=_EFER_X64,
        flags_settable=0x3F7FD5,
        cpuid=CpuidTable(
            _AMD,
            7,
            _EDX_X64,
            _ECX_X64 | _ECX_V2,
            leaf7_ebx=_LEAF7_EBX,
            leaf7_ecx=_UMIP,
            max_extended=0x80000008,
            extended_ecx=1,
            extended_edx=_EXTENDED_EDX,
            paravirtual=True,
        ),
    ),
)
MODELS: dict[str, CpuModel] = {model.name: model for model in _PARTS}
DEFAULT = MODELS["x86-64-v2"]
