"""From bytes to forms: iced-x86 decodes, this module names the body and the slots.

A `Decoded` says which body (`form.name`), which registers fill the form's slots (`binds`) and what the immediates are
(`imms`).  Everything that the manual wants refused with #UD is refused here: unknown opcodes, LOCK where it is not
allowed (iced checks that), instructions above the CPU model's feature level.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import iced_x86 as iced
from iced_x86 import Code, Mnemonic, OpKind, Register

from ringfence.isa.x86.context import INSTRUCTIONS, Form, MemForm
from ringfence.isa.x86.early_encodings import rewrite
from ringfence.isa.x86.models import DEFAULT, CpuModel
from ringfence.isa.x86.modes import FLAT, LONG, code_bits, is_real
from ringfence.isa.x86.state import GPR

MAX_INSTRUCTION_BYTES = 15


class Decoded(NamedTuple):
    """One decoded instruction.  `target` is the linear address of a direct branch, None otherwise."""

    form: Form
    length: int
    binds: dict[Any, tuple[Any, int]]
    imms: dict[Any, int]
    target: int | None
    text: str
    immediates: dict[int, int] = {}  # slot of an immediate -> number of the operand in the assembler's order


def _table(cls: Any) -> dict[int, str]:
    return {v: k.lower() for k, v in vars(cls).items() if isinstance(v, int)}


MNEMONICS = _table(Mnemonic)
_REGISTERS = _table(Register)
_WIDTHS: dict[int, tuple[str, Any, int, int]] = {}  # iced register -> (kind, field, width, lowest bit)


def _fill_registers() -> None:
    legacy = "ax cx dx bx sp bp si di".split()
    low8 = "al cl dl bl spl bpl sil dil".split()
    names: dict[str, tuple[str, Any, int, int]] = {}
    for n, r in enumerate(legacy):
        names["r" + r] = ("r", GPR[n], 64, 0)
        names["e" + r] = ("r", GPR[n], 32, 0)
        names[r] = ("r", GPR[n], 16, 0)
        names[low8[n]] = ("r", GPR[n], 8, 0)
    for n, r in enumerate(("ah", "ch", "dh", "bh")):
        names[r] = ("r", GPR[n], 8, 8)
    for n in range(8, 16):
        for suffix, w in (("", 64), ("d", 32), ("w", 16), ("l", 8)):
            names[f"r{n}{suffix}"] = ("r", GPR[n], w, 0)
    for n in range(16):
        names[f"xmm{n}"] = ("x", f"xmm{n}", 128, 0)
    for n in range(8):
        names[f"mm{n}"] = ("y", ("st", n), 64, 0)  # MMn is physical x87 register n whatever TOP is (SDM 1 9.2.1)
    for number, name in _REGISTERS.items():
        if name in names:
            _WIDTHS[number] = names[name]


_fill_registers()

# Immediates whose value belongs to the form: they choose what the body does.
_FORM_IMMEDIATES = frozenset(
    "pshufd pshufhw pshuflw pshufw shufps shufpd palignr roundss roundsd roundps roundpd insertps extractps blendps "
    "blendpd pblendw dpps dppd "
    "mpsadbw pcmpistri pcmpistrm pcmpestri pcmpestrm pinsrb pinsrw pinsrd pinsrq pextrb pextrw pextrd pextrq cmpps cmppd cmpss cmpsd_sse "
    "psrldq pslldq psrlw psrld psrlq psraw psrad psllw pslld psllq enter shl shr sar rol ror rcl rcr shld shrd bt bts btr btc "
    "pcmpestri64 pcmpestrm64".split()
)
_STRING = frozenset(
    "movsb movsw movsd movsq stosb stosw stosd stosq lodsb lodsw lodsd lodsq cmpsb cmpsw cmpsd cmpsq scasb scasw scasd scasq "
    "insb insw insd outsb outsw outsd".split()
)
_STRING_WIDTH = {"b": 8, "w": 16, "d": 32, "q": 64}
_COMPARES = ("cmps", "scas")
_SPECIAL_REGISTERS = {"cr": ("cr0", "cr2", "cr3", "cr4", "cr8"), "dr": tuple(f"dr{n}" for n in range(8))}
_SEGMENT_NAMES = frozenset(("es", "cs", "ss", "ds", "fs", "gs"))
_IMMEDIATE_WIDTH = {
    OpKind.IMMEDIATE8: 8,
    OpKind.IMMEDIATE8_2ND: 8,
    OpKind.IMMEDIATE16: 16,
    OpKind.IMMEDIATE32: 32,
    OpKind.IMMEDIATE64: 64,
    OpKind.IMMEDIATE8TO16: 16,
    OpKind.IMMEDIATE8TO32: 32,
    OpKind.IMMEDIATE8TO64: 64,
    OpKind.IMMEDIATE32TO64: 64,
}
_BRANCHES = frozenset((OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64))
_STRING_KINDS = frozenset(v for k, v in vars(OpKind).items() if isinstance(v, int) and (k.startswith(("MEMORY_SEG", "MEMORY_ES"))))
# Legacy SSE instructions whose 128-bit memory operand need not be aligned.
_UNALIGNED = frozenset("movups movupd movdqu lddqu pcmpistri pcmpistrm pcmpestri pcmpestrm pcmpestri64 pcmpestrm64".split())
_RENAME = {"sal": "shl", "popfq": "popf", "pushfq": "pushf", "popfd": "popf", "pushfd": "pushf", "wait": "fwait"}
_RENAME |= {"pushad": "pusha", "popad": "popa"}
_PROTECTED_ONLY = frozenset("ltr lldt str sldt lar lsl verr verw arpl".split())  # #UD in real-address and virtual-8086 mode
_REGISTER_FORMS = {Code.MOV_R64_IMM64: "mov"}

UNDEFINED = Form("ud", 64, ())

# Without BMI1, LZCNT and WBNOINVD their prefixes are ignored: F3 0F BC is BSF, F3 0F BD is BSR, F3 0F 09 is WBINVD.
_OPTIONS = iced.DecoderOptions.NO_MPFX_0FBC | iced.DecoderOptions.NO_MPFX_0FBD | iced.DecoderOptions.NO_WBNOINVD


def decoder(raw: bytes, ip: int, mode: int = LONG, model: CpuModel = DEFAULT) -> iced.Decoder:
    """iced's decoder, set to the CPU model's encodings; those before the 386 need `early_instruction`."""
    return iced.Decoder(code_bits(mode), raw, _OPTIONS | model.decoder_options, ip=ip)


def early_instruction(raw: bytes, ip: int, mode: int, model: CpuModel) -> tuple[iced.Instruction, iced.ConstantOffsets] | None:
    """The first instruction of `raw` on a CPU before the 386; None where it has none or its bytes are not all there."""
    rewritten = rewrite(raw[:MAX_INSTRUCTION_BYTES], model)
    if rewritten is None:
        return None
    code, at = rewritten
    if code[at : at + 1] == b"\x0f" and not model.has_invalid_opcodes:
        source = decoder(b"\x90", ip, mode)
        offsets = source.get_constant_offsets(source.decode())  # none
        insn = iced.Instruction.create_reg(Code.POPW_CS, Register.CS)
        insn.len, insn.ip = at + 1, ip
        return insn, offsets
    source = decoder(code, ip, mode, model)
    insn = source.decode()
    return None if insn.code == Code.INVALID else (insn, source.get_constant_offsets(insn))


def decode(raw: bytes | memoryview, ip: int, mode: int = LONG, model: CpuModel = DEFAULT) -> Decoded | None:
    """The first instruction of `raw`, which lies at linear address `ip` and is executed in `mode` (modes.py).

    None when more bytes are needed (raw ends inside of the instruction).  An instruction that must raise #UD decodes to the
    body `ud`; one longer than 15 bytes to `gp`.
    """
    if model.generation < 386 and (found := early_instruction(bytes(raw), ip, mode, model)) is not None:
        return describe(found[0], mode, model)
    source = decoder(bytes(raw[:MAX_INSTRUCTION_BYTES]), ip, mode, model)
    insn = source.decode()
    if insn.code == Code.INVALID:
        if source.position >= MAX_INSTRUCTION_BYTES:  # no encoding ends within the limit: SDM 3A 6.15, #GP
            return Decoded(Form("gp", 64, ()), 1, {}, {"next": (ip & 0xFFF) + 1}, None, "(too long)")
        if source.last_error == iced.DecoderError.NO_MORE_BYTES:
            return None
        return _undefined(ip, 1)
    return describe(insn, mode, model) if model.generation >= 386 else _undefined(ip, 1)


def _undefined(ip: int, length: int, text: str = "(bad)") -> Decoded:
    return Decoded(UNDEFINED, length, {}, {"next": (ip & 0xFFF) + length}, None, text)


def branch_target(insn: iced.Instruction, mode: int) -> int:
    """The linear address of a direct branch's target.  Where IP wraps is not looked at: the decoder does not know CS."""
    if mode == LONG:
        return int(insn.near_branch_target)
    following = insn.ip + insn.len
    step = insn.near_branch_target - following
    if insn.op_kind(0) == OpKind.NEAR_BRANCH16:
        if mode == FLAT:  # 66h in front: EIP is cut to 16 bits
            return int(following + step & 0xFFFF)
        step = (step + 0x8000 & 0xFFFF) - 0x8000
    return int(following + step & 0xFFFFFFFF)


def describe(insn: iced.Instruction, mode: int = LONG, model: CpuModel = DEFAULT) -> Decoded:
    """Names the body and slots of a decoded instruction."""
    text = MNEMONICS[insn.mnemonic]
    name = _body_name(insn, text)
    if model is not DEFAULT:
        name = model.own_body(name, insn)
    if model.refuses(insn) or name not in INSTRUCTIONS or (name in _PROTECTED_ONLY and is_real(mode)):
        if not model.has_invalid_opcodes:  # nothing happens that a program could rely on
            return Decoded(Form("nop", 64, ()), insn.len, {}, {"next": (insn.ip & 0xFFF) + insn.len}, None, text)
        return _undefined(insn.ip, insn.len, text)
    binds: dict[Any, tuple[Any, int]] = {}
    imms: dict[Any, int] = {"next": (insn.ip & 0xFFF) + insn.len}
    operands: list[tuple[str, int, int]] = []
    known: list[int | None] = []
    mem = MemForm()
    target: int | None = None
    immediates: dict[int, int] = {}
    memory_bits = iced.MemorySizeExt.size(insn.memory_size) * 8
    base_name = name.removeprefix("lock ")
    for k in range(insn.op_count):
        kind = insn.op_kind(k)
        if kind == OpKind.REGISTER:
            entry = _WIDTHS.get(insn.op_register(k))
            if entry is None:  # st(i), segment, control and debug registers are part of the body's name or an immediate
                register = _REGISTERS[insn.op_register(k)]
                if register.startswith("st"):
                    operands.append(("i", 8, 0))
                    known.extend([None] * (len(operands) - 1 - len(known)))
                    known.append(int(register[2:]))
                continue
            letter, field, w, low = entry
            w = 16 if name == "arpl" else w
            slot = len(operands)
            operands.append((letter, w, low if letter == "r" else 0))
            binds[slot] = (field, low)
        elif kind == OpKind.MEMORY:
            aligned = memory_bits == 128 and base_name not in _UNALIGNED and _is_sse(insn)
            operands.append(("m", memory_bits, int(aligned)))
            mem = _memory_form(insn, binds, imms, mode)
        elif kind in _BRANCHES:
            target = branch_target(insn, mode)
            mem = mem._replace(address32=insn.code in _ECX_LOOPS, address16=insn.code in _CX_LOOPS)
        elif kind in _FAR_POINTERS:
            offset, w = (insn.far_branch16, 16) if kind == OpKind.FAR_BRANCH16 else (insn.far_branch32, 32)
            operands += [("i", w, 0), ("i", 16, 0)]
            imms[0], imms[1] = offset, insn.far_branch_selector
        elif kind in _STRING_KINDS:
            segment = _REGISTERS[insn.segment_prefix]
            if kind in _ES_KINDS:
                if mode not in (LONG, FLAT):
                    mem = mem._replace(limit=True)
            elif mode == LONG:
                if segment in ("fs", "gs"):
                    mem = mem._replace(segment=segment)
            elif mode != FLAT or segment in ("cs", "fs", "gs"):
                mem = mem._replace(segment=_REGISTERS[insn.memory_segment], limit=True)
            mem = mem._replace(address32=kind in _STRING32, address16=kind in _STRING16)
        elif kind in _IMMEDIATE_WIDTH:
            w = _IMMEDIATE_WIDTH[kind]
            slot = len(operands)
            operands.append(("i", w, int(kind == OpKind.IMMEDIATE64)))  # 1: needs all 64 bits in the code
            value = insn.immediate(k) & (1 << w) - 1
            imms[slot] = value
            immediates[slot] = k
            if base_name in _FORM_IMMEDIATES:
                known.extend([None] * (slot - len(known)))
                known.append(value)
        else:
            return _undefined(insn.ip, insn.len, text)
    lock = insn.has_lock_prefix and model.generation >= 386  # any instruction had it before, and one CPU has nobody to lock out
    form = Form(name, _operand_size(insn, name, operands, mode), tuple(operands), mem, tuple(known), lock, mode)
    return Decoded(form, insn.len, binds, imms, target, text, immediates)


def _is_sse(insn: iced.Instruction) -> bool:
    return any(_CPUID_NAMES[f].startswith(("SSE", "SSSE")) for f in insn.cpuid_features())


_CPUID_NAMES = {v: k for k, v in vars(iced.CpuidFeature).items() if isinstance(v, int)}


def _body_name(insn: iced.Instruction, text: str) -> str:
    registers = [_REGISTERS[insn.op_register(k)] for k in range(insn.op_count) if insn.op_kind(k) == OpKind.REGISTER]
    if text == "mov":
        for k in range(insn.op_count):
            if insn.op_kind(k) == OpKind.REGISTER:
                register = _REGISTERS[insn.op_register(k)]
                if register[:2] in _SPECIAL_REGISTERS and register[2:].isdigit():
                    if register not in _SPECIAL_REGISTERS[register[:2]]:
                        return "ud"
                    return f"mov {register}" if k == 0 else f"mov from {register}"
                if register in _SEGMENT_NAMES:
                    return f"mov {register}" if k == 0 else f"mov from {register}"
        return "mov"
    if insn.is_jmp_far_indirect or insn.is_call_far_indirect:
        return f"{text} far"
    if insn.is_jmp_far or insn.is_call_far:
        return f"{text} ptr"
    if text in ("push", "pop") and registers and registers[0] in _SEGMENT_NAMES:
        return f"{text} {registers[0]}"
    if text in _STRING and not any(r.startswith("xmm") for r in registers):
        stem = text[:4] if text[:4] in _COMPARES + ("movs", "stos", "lods", "outs") else text[:3]
        if any(insn.op_kind(k) in (OpKind.MEMORY,) for k in range(insn.op_count)):
            return text  # movsd xmm, m64 shares a mnemonic with the string instruction
        if stem in _COMPARES:
            prefix = "repe " if insn.has_rep_prefix else "repne " if insn.has_repne_prefix else ""
        else:
            prefix = "rep " if insn.has_rep_prefix or insn.has_repne_prefix else ""
        return prefix + stem
    if text in ("movsd", "cmpsd") and (registers or insn.op_count):
        return text + "_sse"
    return _RENAME.get(text, text)


def _memory_form(insn: iced.Instruction, binds: dict[Any, tuple[Any, int]], imms: dict[Any, int], mode: int) -> MemForm:
    base, index = insn.memory_base, insn.memory_index
    segment = _REGISTERS[insn.segment_prefix]
    rip = base in (Register.RIP, Register.EIP)
    address32 = (
        base == Register.EIP
        or (base in _WIDTHS and _WIDTHS[base][2] == 32)
        or (index in _WIDTHS and _WIDTHS[index][2] == 32)
        or (not base and not index and insn.memory_displ_size == 4)  # 67h before a bare displacement
    )
    address16 = (
        (base in _WIDTHS and _WIDTHS[base][2] == 16)
        or (index in _WIDTHS and _WIDTHS[index][2] == 16)
        or (not base and not index and insn.memory_displ_size == 2)
    )
    if mode == LONG:
        limit, segment_used = False, segment if segment in ("fs", "gs") else None
    else:
        effective = _REGISTERS[insn.memory_segment]
        limit = mode != FLAT or effective in ("cs", "fs", "gs")
        segment_used = effective if limit else None
    if base in _WIDTHS:
        binds["base"] = (_WIDTHS[base][1], 0)
    if index in _WIDTHS:
        binds["index"] = (_WIDTHS[index][1], 0)
    displacement = insn.memory_displacement
    if rip:
        displacement -= insn.ip & ~0xFFF
    has_displacement = rip or insn.memory_displ_size > 0 or (base not in _WIDTHS and index not in _WIDTHS)
    if has_displacement:
        imms["disp"] = displacement & (1 << 64) - 1
    return MemForm(
        base=base in _WIDTHS,
        index=index in _WIDTHS,
        scale=insn.memory_index_scale.bit_length() - 1 if index in _WIDTHS else 0,
        disp=has_displacement,
        rip=rip,
        segment=segment_used,
        address32=address32,
        base_is_rsp=binds.get("base", ("", 0))[0] == "rsp",
        address16=address16,
        limit=limit,
    )


def _operand_size(insn: iced.Instruction, name: str, operands: list[tuple[str, int, int]], mode: int) -> int:
    stem = name.split()[-1]
    if stem in ("movs", "stos", "lods", "cmps", "scas", "ins", "outs"):
        return _STRING_WIDTH[MNEMONICS[insn.mnemonic][-1]]
    if stem in ("in", "out"):
        return next(w for kind, w, _ in (operands if stem == "in" else operands[1:]) if kind == "r")
    if name in _STACK_NAMES or name.split()[0] in ("push", "pop"):
        return _stack_size(insn, operands, mode)
    if stem in ("lgdt", "lidt", "sgdt", "sidt") and mode != LONG:
        return 16 if _CODE_NAMES[insn.code].endswith("M1632_16") else 32
    return operands[0][1] if operands and operands[0][0] in "rmxy" else 64


def _stack_size(insn: iced.Instruction, operands: list[tuple[str, int, int]], mode: int) -> int:
    """Operand size of what pushes, pops, calls and returns."""
    name = _CODE_NAMES[insn.code]
    if found := _SIZED_STACK.match(name):
        return {"W": 16, "D": 32, "Q": 64}[found[2]]
    if operands and operands[0][0] in "rm" and insn.mnemonic in (Mnemonic.PUSH, Mnemonic.POP, Mnemonic.CALL, Mnemonic.JMP):
        return operands[0][1]
    if found := _REL.search(name):
        return int(found[1]) if mode != LONG else 64
    return {"PUSH_IMM16": 16}.get(name, code_bits(mode))


_CODE_NAMES = {v: k for k, v in vars(Code).items() if isinstance(v, int)}
_SIZED_STACK = re.compile(r"(PUSH|POP|PUSHF|POPF|PUSHA|POPA|ENTER|LEAVE|RETN|RETF|IRET)(W|D|Q)(_|$)")
_REL = re.compile(r"_REL(?:8_|32_)?(16|32|64)(_|$)")
_STACK_NAMES = frozenset("pushf popf pusha popa enter leave call jmp ret retf".split())
_FAR_POINTERS = frozenset((OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32))
_ES_KINDS = frozenset((OpKind.MEMORY_ESDI, OpKind.MEMORY_ESEDI, OpKind.MEMORY_ESRDI))
_STRING32 = frozenset((OpKind.MEMORY_SEG_ESI, OpKind.MEMORY_ESEDI, OpKind.MEMORY_SEG_EDI))
_STRING16 = frozenset((OpKind.MEMORY_SEG_SI, OpKind.MEMORY_ESDI, OpKind.MEMORY_SEG_DI))
_ECX_LOOPS = frozenset(v for k, v in vars(Code).items() if isinstance(v, int) and k.startswith("LOOP") and k.endswith("_ECX"))
_CX_LOOPS = frozenset(v for k, v in vars(Code).items() if isinstance(v, int) and k.startswith("LOOP") and k.endswith("_CX"))
