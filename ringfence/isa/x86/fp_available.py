"""Whether floating-point and vector instructions may execute: CR0.MP, EM and TS, CR4.OSFXSR (SDM 3A 2.5 and 13.1, tables 2-2, 9-3).

These bits change only with the translation mode, so bodies do not test them: compiled code refuses all such instructions in
the modes where a bit is set, and what executes them instead asks here first.
"""

from __future__ import annotations

import iced_x86 as iced
from iced_x86 import Mnemonic, OpKind, Register

from ringfence.isa.x86.vectors import NM, UD

_MP, _EM, _TS = 1 << 1, 1 << 2, 1 << 3
_OSFXSR = 1 << 9
_FEATURES = {v: k for k, v in vars(iced.CpuidFeature).items() if isinstance(v, int) and k.startswith(("SSE", "SSSE", "FPU", "MMX", "FXSR"))}
# SDM 2A 2.4: instructions of SSE's feature bits that use no vector register.
_EXEMPT = frozenset(
    v
    for k, v in vars(Mnemonic).items()
    if isinstance(v, int) and k.startswith(("PREFETCH", "LFENCE", "SFENCE", "MFENCE", "MOVNTI", "PAUSE", "CLFLUSH", "CRC32", "POPCNT"))
)


def fp_class(insn: iced.Instruction) -> str:
    """ "x87", "wait", "mmx", "sse" or "fxsr"; empty for all other instructions."""
    if insn.mnemonic == Mnemonic.WAIT:
        return "wait"
    if insn.mnemonic in _EXEMPT:
        return ""
    names = [_FEATURES[f] for f in insn.cpuid_features() if f in _FEATURES]
    if not names:
        return ""
    if "FXSR" in names:
        return "fxsr"
    registers = (insn.op_register(k) for k in range(insn.op_count) if insn.op_kind(k) == OpKind.REGISTER)
    if "MMX" in names or any(Register.MM0 <= r <= Register.MM7 for r in registers):
        return "mmx"
    return "x87" if names[0].startswith("FPU") else "sse"


def fp_fault(insn: iced.Instruction, cr0: int, cr4: int) -> int | None:
    """The exception that the instruction raises in place of being executed: #NM, #UD or none."""
    match fp_class(insn):
        case "wait":
            return NM if cr0 & _MP and cr0 & _TS else None
        case "x87" | "fxsr":
            return NM if cr0 & (_EM | _TS) else None
        case "mmx":
            return UD if cr0 & _EM else NM if cr0 & _TS else None
        case "sse":
            return UD if cr0 & _EM or not cr4 & _OSFXSR else NM if cr0 & _TS else None
    return None
