"""Every legacy encoding of 16- and 32-bit modes as machine code, as `encode` has it for 64-bit mode.

What is different here: operand and address size come from the mode and its prefixes, 16-bit addressing (SDM 2A table 2-1),
far pointers in the code, all six segment overrides.
"""

from __future__ import annotations

import random
from functools import cache

from iced_x86 import EncodingKind, MandatoryPrefix, OpCodeInfo

from .encode import CODE_NAMES, MANDATORY, MAPS, immediate, info, is_modrm, operand_names
from .records import SLOT_BYTES, WINDOW_ADDR, WINDOW_BYTES
from .segments import SELECTOR, TABLE, USER_CS32, USER_CS64, USER_DS

OVERRIDES = {b"\x26": "ES", b"\x2e": "CS", b"\x36": "SS", b"\x3e": "DS", b"\x64": "FS", b"\x65": "GS"}
_FIXED = frozenset("ST0 AL AX EAX CL DX IMM8_CONST_1 ES_RDI SEG_RSI SEG_RDI SEG_RBX_AL FS GS ES CS SS DS".split())
_IN_REG = {"R32_REG": 8, "R16_REG": 8, "R8_REG": 8, "XMM_REG": 8, "MM_REG": 8, "SEG_REG": 6}
_IN_OPCODE = {"R32_OPCODE": 8, "R16_OPCODE": 8, "R8_OPCODE": 8, "STI_OPCODE": 8}
_IMMEDIATE = {"IMM8": 1, "IMM8SEX16": 1, "IMM8SEX32": 1, "IMM16": 2, "IMM32": 4}
_BRANCH = {"BR16_1": 1, "BR32_1": 1, "BR16_2": 2, "BR32_4": 4}
_FAR = {"FARBR2_2": 2, "FARBR4_2": 4}
SAME_REGISTER = 0.15
# Selectors that segment loads and far transfers meet, the usual ones first.
SELECTORS = (
    *(SELECTOR[name] for name in TABLE if not name.startswith("code16")),
    *(SELECTOR[f"code16 {k}"] for k in range(3)),
    USER_DS, USER_CS32, USER_CS64, 0, 1, 2, 3, 0x1FFF, 0xFFFC, len(TABLE) << 3 | 7,
)  # fmt: skip
CODE_SELECTORS = tuple(SELECTOR[name] for name in ("code32", "code32 flat", "code16 0", "code16 1", "code16 7", "absent code"))


@cache
def encodable(bits: int) -> tuple[int, ...]:
    """All codes of a mode in the legacy encoding whose operands this module knows."""
    found = []
    for code in CODE_NAMES:
        oi = OpCodeInfo(code)
        if oi.encoding != EncodingKind.LEGACY or not oi.is_instruction or oi.fwait or oi.table not in MAPS:
            continue
        if (oi.mode16 if bits == 16 else oi.mode32) and all(_known(name) for name in operand_names(code)):
            found.append(code)
    return tuple(found)


def _known(name: str) -> bool:
    return any(name in table for table in (_FIXED, _IN_REG, _IN_OPCODE, _IMMEDIATE, _BRANCH, _FAR)) or is_modrm(name) or name == "MEM_OFFS"


def in_opcode(code: int) -> int:
    """How many registers the opcode byte itself can name; 0 when none."""
    return max((_IN_OPCODE.get(name, 0) for name in operand_names(code)), default=0)


def address_bits(code: int, bits: int, prefixes: bytes) -> int:
    """The address size of an encoding."""
    return info(code).address_size or (48 - bits if b"\x67" in prefixes else bits)


def selector(rng: random.Random) -> int:
    """A selector to load: good, bad, null, with any RPL."""
    found = rng.choice(SELECTORS)
    return found & ~3 | rng.randrange(4) if rng.random() < 0.2 else found


def encode(code: int, rng: random.Random, memory: bool, prefixes: bytes, bits: int, ip: int, register: int | None = None) -> bytes:
    """One instance at offset `ip` of its code segment.  `memory`: the ModRM operand is in memory, where the code leaves the
    choice; `prefixes` go in front (F0, F2, F3, 67, overrides); `register`: the one in the opcode."""
    oi = info(code)
    names = operand_names(code)
    head = prefixes + MANDATORY.get(oi.mandatory_prefix, b"")
    if oi.operand_size and oi.operand_size != bits and oi.mandatory_prefix != MandatoryPrefix.P66:
        head = b"\x66" + head
    if oi.address_size and oi.address_size != bits and b"\x67" not in head:
        head = b"\x67" + head
    address = address_bits(code, bits, head)
    opcode = oi.op_code.to_bytes(oi.op_code_len, "big")
    immediates = memory_tail = b""
    reg = max(oi.group_index, 0)
    mod_rm = 0xC0 | oi.rm_group_index if oi.rm_group_index >= 0 else 0xC0
    needs_modrm = oi.group_index >= 0 or oi.rm_group_index >= 0
    for name in names:
        if name in _IN_REG:
            reg, needs_modrm = rng.randrange(_IN_REG[name]), True
        elif name in _IN_OPCODE:
            n = rng.randrange(8) if register is None else register
            opcode = opcode[:-1] + bytes([opcode[-1] + n])
        elif is_modrm(name):
            needs_modrm = True
            if memory and not name.endswith("_RM"):
                mod_rm, memory_tail = _memory16(rng) if address == 16 else _memory32(rng)
            else:
                mod_rm = 0xC0 | (reg if rng.random() < SAME_REGISTER else rng.randrange(8))
        elif name == "MEM_OFFS":
            offset = _offset(rng, address)
            immediates += offset.to_bytes(address // 8, "little")
        elif name in _IMMEDIATE:
            small = name == "IMM16" and CODE_NAMES[code].startswith("ENTER") and rng.random() < 0.8
            immediates += rng.randrange(64).to_bytes(2, "little") if small else immediate(rng, _IMMEDIATE[name])
        elif name in _BRANCH:
            immediates += _displacement(rng, _BRANCH[name]).to_bytes(_BRANCH[name], "little", signed=True)
        elif name in _FAR:
            target = rng.choice((ip & 0xFFFF, ip)) & ~(SLOT_BYTES - 1) | rng.randrange(64)
            far = rng.choice(CODE_SELECTORS) if rng.random() < 0.7 else selector(rng)
            immediates += (target & (1 << 8 * _FAR[name]) - 1).to_bytes(_FAR[name], "little") + far.to_bytes(2, "little")
    tail = bytes([mod_rm | reg << 3]) + memory_tail if needs_modrm else b""
    return head + MAPS[oi.table] + opcode + tail + immediates


def _displacement(rng: random.Random, size: int) -> int:
    near = rng.choice((rng.randrange(-100, -20), rng.randrange(26, 90)))
    far = {1: near, 2: rng.choice((0x3040, -0x2FD0)), 4: rng.choice((0x3040, -0x400000, 0x1000_0000, 0x800_0000))}[size]
    return rng.choice((near, far))


def _offset(rng: random.Random, address: int) -> int:
    """A bare displacement that meets the window through some segment."""
    near = rng.randrange(WINDOW_BYTES + 64) + rng.choice((0, 0x8000, 0x1000, 0x2000, 0x4000, 0x7000, 0xEFF0))
    if address == 16:
        return rng.choice((near & 0xFFFF, 0xFFFF, 0xFFFE, 0xFFFD))
    return rng.choice((near, WINDOW_ADDR + near % WINDOW_BYTES, WINDOW_ADDR + near % WINDOW_BYTES, 0x3FFFFFF0 + near % WINDOW_BYTES))


def _memory16(rng: random.Random) -> tuple[int, bytes]:
    """(ModRM with mod and rm, displacement): SDM 2A table 2-1."""
    mod, rm = rng.randrange(3), rng.randrange(8)
    if mod == 0:
        return (0x06, _offset(rng, 16).to_bytes(2, "little")) if rm == 6 else (rm, b"")
    if mod == 1:
        return 0x40 | rm, rng.randrange(256).to_bytes(1, "little")
    return 0x80 | rm, rng.choice((rng.randrange(1 << 16), rng.randrange(-300, 300) & 0xFFFF)).to_bytes(2, "little")


def _memory32(rng: random.Random) -> tuple[int, bytes]:
    """(ModRM with mod and rm, SIB and displacement): SDM 2A tables 2-2 and 2-3."""
    mod = rng.randrange(3)
    displacement = b""
    if mod == 1:
        displacement = rng.randrange(256).to_bytes(1, "little")
    elif mod == 2:
        displacement = (rng.choice((rng.getrandbits(32), rng.randrange(-300, 300))) & 0xFFFFFFFF).to_bytes(4, "little")
    base, index = rng.randrange(8), rng.randrange(8)
    if rng.random() < 0.5 and base != 4:
        if base == 5 and mod == 0:
            displacement = _offset(rng, 32).to_bytes(4, "little")
        return mod << 6 | base, displacement
    if base == 5 and mod == 0:
        displacement = (_offset(rng, 32) if index == 4 else rng.getrandbits(32)).to_bytes(4, "little")
    return mod << 6 | 4, bytes([rng.randrange(4) << 6 | index << 3 | base]) + displacement
