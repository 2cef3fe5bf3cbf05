"""Every legacy encoding of iced's tables as machine code, with varied registers, memory shapes and immediates.

The opcode tables say where an operand stands (ModRM.reg, ModRM.rm, opcode, immediate); this module draws the rest.  The
SDM's volume 2A chapter 2 describes the format.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import iced_x86 as iced
from iced_x86 import Code, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind

from .records import GS_BASE, READ_ONLY_ADDR, SLOT_ENTRY, WINDOW_ADDR, WINDOW_BYTES


def _names(cls: type) -> dict[int, str]:
    return {v: k for k, v in vars(cls).items() if isinstance(v, int)}


CODE_NAMES = _names(Code)
_OPERAND_NAMES = _names(OpCodeOperandKind)
MAPS = {OpCodeTableKind.NORMAL: b"", OpCodeTableKind.T0F: b"\x0f", OpCodeTableKind.T0F38: b"\x0f\x38", OpCodeTableKind.T0F3A: b"\x0f\x3a"}
MANDATORY = {MandatoryPrefix.P66: b"\x66", MandatoryPrefix.PF3: b"\xf3", MandatoryPrefix.PF2: b"\xf2"}
_FIXED = frozenset(
    [
        "ST0",
        "AL",
        "AX",
        "EAX",
        "RAX",
        "CL",
        "DX",
        "IMM8_CONST_1",
        "ES_RDI",
        "SEG_RSI",
        "SEG_RDI",
        "SEG_RBX_AL",
        "FS",
        "GS",
        "ES",
        "CS",
        "SS",
        "DS",
    ]
)
_IN_REG = {"R64_REG": 16, "R32_REG": 16, "R16_REG": 16, "R8_REG": 16, "XMM_REG": 16, "MM_REG": 8, "SEG_REG": 6, "CR_REG": 9, "DR_REG": 8}
_IN_OPCODE = {"R64_OPCODE": 16, "R32_OPCODE": 16, "R16_OPCODE": 16, "R8_OPCODE": 16, "STI_OPCODE": 8}
_IMMEDIATE = {
    "IMM8": 1, "IMM8SEX16": 1, "IMM8SEX32": 1, "IMM8SEX64": 1, "IMM16": 2, "IMM32": 4, "IMM32SEX64": 4, "IMM64": 8,
}  # fmt: skip
_BRANCH = {"BR64_1": 1, "BR64_4": 4}
SAME_REGISTER = 0.15  # how often both register operands are the same
EDGE_BYTES = (0, 1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 0x7F, 0x80, 0xFF)


@cache
def info(code: int) -> Any:
    return OpCodeInfo(code)


@cache
def operand_names(code: int) -> tuple[str, ...]:
    return tuple(_OPERAND_NAMES[k] for k in info(code).op_kinds())


@cache
def encodable() -> tuple[int, ...]:
    """All codes of 64-bit mode in the legacy encoding whose operands this module knows."""
    found = []
    for code in CODE_NAMES:
        oi = OpCodeInfo(code)
        if oi.encoding != EncodingKind.LEGACY or not oi.mode64 or not oi.is_instruction or oi.fwait or oi.table not in MAPS:
            continue
        if all(_known(name) for name in operand_names(code)):
            found.append(code)
    return tuple(found)


def _known(name: str) -> bool:
    return (
        name in _FIXED
        or name in _IN_REG
        or name in _IN_OPCODE
        or name in _IMMEDIATE
        or name in _BRANCH
        or is_modrm(name)
        or name == "MEM_OFFS"
    )


def is_modrm(name: str) -> bool:
    return name.endswith(("_OR_MEM", "_RM")) or name == "MEM"


def has_memory_shape(code: int) -> bool:
    return any(name.endswith("_OR_MEM") or name in ("MEM", "MEM_OFFS") for name in operand_names(code))


def has_register_shape(code: int) -> bool:
    return not any(name in ("MEM", "MEM_OFFS") for name in operand_names(code))


def in_opcode(code: int) -> int:
    """How many registers the opcode byte itself can name; 0 when none."""
    return max((_IN_OPCODE.get(name, 0) for name in operand_names(code)), default=0)


def encode(code: int, rng: random.Random, memory: bool, prefixes: bytes = b"", plain: bool = False, register: int | None = None) -> bytes:
    """One instance.  `memory`: the ModRM operand is in memory (where the code leaves the choice); `prefixes` go in front
    (F0, F2, F3, 65, 67); `plain`: no REX prefix and so only the first eight registers; `register`: the one in the opcode."""
    oi = info(code)
    names = operand_names(code)
    top = 8 if plain else 16
    rex = 8 if oi.operand_size == 64 and not (oi.default_op_size64 or oi.force_op_size64) else 0
    head = prefixes + MANDATORY.get(oi.mandatory_prefix, b"")
    if oi.operand_size == 16 and oi.mandatory_prefix != MandatoryPrefix.P66:
        head = b"\x66" + head
    if oi.address_size == 32 and b"\x67" not in head:
        head = b"\x67" + head
    opcode = oi.op_code.to_bytes(oi.op_code_len, "big")
    tail = immediates = b""
    reg = oi.group_index if oi.group_index >= 0 else 0
    rm: int | None = oi.rm_group_index if oi.rm_group_index >= 0 else None
    needs_modrm = oi.group_index >= 0 or oi.rm_group_index >= 0
    memory_part: tuple[int, int, bytes] | None = None
    reg_number = next((rng.randrange(min(_IN_REG[name], top)) for name in names if name in _IN_REG), -1)
    for name in names:
        if name in _IN_REG:
            reg, rex = reg_number & 7, rex | (reg_number >> 3) << 2
            needs_modrm = True
        elif name in _IN_OPCODE:
            n = rng.randrange(min(_IN_OPCODE[name], top)) if register is None else register
            opcode = opcode[:-1] + bytes([opcode[-1] + (n & 7)])
            rex |= n >> 3
        elif is_modrm(name):
            needs_modrm = True
            if memory and not name.endswith("_RM"):
                memory_part = _memory(rng, top, b"\x67" in head, b"\x65" in head, rex == 0 and plain)
                rex |= memory_part[1]
            else:
                n = rng.randrange(min(8 if name.startswith("MM") else 16, top))
                if rng.random() < SAME_REGISTER and 0 <= reg_number < (8 if name.startswith("MM") else top):
                    n = reg_number
                rm, rex = n & 7, rex | n >> 3
        elif name == "MEM_OFFS":
            width = 4 if b"\x67" in head else 8
            immediates += (
                WINDOW_ADDR + rng.randrange(WINDOW_BYTES - 8) - (GS_BASE if b"\x65" in head else 0) & (1 << 8 * width) - 1
            ).to_bytes(width, "little")
        elif name in _IMMEDIATE:
            immediates += immediate(rng, _IMMEDIATE[name])
        elif name in _BRANCH:
            size = _BRANCH[name]
            distance = (
                rng.choice((rng.randrange(-100, -20), rng.randrange(20, 90)))
                if size == 1
                else rng.choice((0x3040, -0x400000, rng.randrange(24, 90)))
            )
            immediates += distance.to_bytes(size, "little", signed=True)
    if not plain and rng.random() < 0.3:
        rex |= 0x40
    if needs_modrm:
        if memory_part is not None:
            tail = bytes([memory_part[0] | reg << 3]) + memory_part[2]
        else:
            tail = bytes([0xC0 | reg << 3 | (rm or 0)])
    rex_byte = bytes([0x40 | rex]) if rex else b""
    return head + rex_byte + MAPS[oi.table] + opcode + tail + immediates


def immediate(rng: random.Random, size: int) -> bytes:
    if size == 1:
        return bytes([rng.choice(EDGE_BYTES) if rng.random() < 0.4 else rng.randrange(256)])
    value = rng.choice((0, 1, (1 << 8 * size) - 1, 1 << 8 * size - 1, (1 << 8 * size - 1) - 1, 0xFF, 0x80, rng.getrandbits(8 * size)))
    return (value if rng.random() < 0.6 else rng.getrandbits(8 * size)).to_bytes(size, "little")


def _memory(rng: random.Random, top: int, address32: bool, gs: bool, no_rex: bool) -> tuple[int, int, bytes]:
    """(ModRM with mod and rm, REX bits, SIB and displacement) of a random shape.  Absolute and RIP-relative ones hit the window."""
    shape = rng.choice(("base", "base", "base8", "base8", "base32", "sib", "sib8", "sib32", "index", "absolute", "rip"))
    top = 8 if no_rex else top
    base, index = rng.randrange(top), rng.randrange(top)
    while index == 4:
        index = rng.randrange(top)
    rex = (base >> 3) | (index >> 3) << 1
    small = rng.randrange(-128, 128).to_bytes(1, "little", signed=True)
    large = rng.choice((rng.randrange(-(1 << 31), 1 << 31), rng.randrange(-300, 300))).to_bytes(4, "little", signed=True)
    target = WINDOW_ADDR + rng.randrange(WINDOW_BYTES - 16) if rng.random() < 0.9 else rng.choice((WINDOW_ADDR - 3, READ_ONLY_ADDR + 64))
    if rng.random() < 0.6:
        target &= ~15
    if gs:
        target -= GS_BASE
    scale = rng.randrange(4) << 6
    match shape:
        case "index":
            return 4, (index >> 3) << 1, bytes([scale | (index & 7) << 3 | 5]) + large
        case "absolute":
            return 4, 0, bytes([0x25]) + (target & 0xFFFFFFFF).to_bytes(4, "little")
        case "rip":
            return 5, 0, b"RIP!"  # placed by `place`
        case "base" | "base8" | "base32":
            mod = {"base": 0, "base8": 0x40, "base32": 0x80}[shape]
            displacement = {"base": b"", "base8": small, "base32": large}[shape]
            if base & 7 == 5 and mod == 0:
                mod, displacement = 0x40, small
            if base & 7 == 4:
                return mod | 4, base >> 3, bytes([0x24]) + displacement
            return mod | base & 7, base >> 3, displacement
        case _:
            mod = {"sib": 0, "sib8": 0x40, "sib32": 0x80}[shape]
            displacement = {"sib": b"", "sib8": small, "sib32": large}[shape]
            if base & 7 == 5 and mod == 0:
                mod, displacement = 0x40, small
            return mod | 4, rex, bytes([scale | (index & 7) << 3 | base & 7]) + displacement


def place(raw: bytes, entry: int, rng: random.Random, aligned: bool = True) -> bytes:
    """The instruction with a RIP-relative displacement that points into the window from its address `entry`."""
    at = raw.find(b"RIP!")
    if at < 0:
        return raw
    target = WINDOW_ADDR + (
        rng.randrange(WINDOW_BYTES // 16 - 1) * 16 if aligned or rng.random() < 0.5 else rng.randrange(WINDOW_BYTES - 16)
    )
    if b"\x65" in raw[:3]:
        target -= GS_BASE
    displacement = target - (entry + len(raw))
    return raw[:at] + displacement.to_bytes(4, "little", signed=True) + raw[at + 4 :]


def disassemble(raw: bytes, entry: int) -> iced.Instruction:
    return iced.Decoder(64, raw, ip=entry).decode()


assert SLOT_ENTRY > 110
