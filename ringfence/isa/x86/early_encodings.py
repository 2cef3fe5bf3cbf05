"""Encodings that meant something else, or nothing, before the 80386: rewritten into what later CPUs know, byte for byte.

The 8086 looks at fewer bits of an opcode than its successors and has no invalid opcodes: 60-6F are 70-7F, C0, C1, C8 and C9 are
C2, C3, CA and CB, F1 is LOCK, 0F is POP CS, and unused fields of a ModRM byte do not matter.  The 80186 and 80286 raise #UD there,
and for the prefixes of the 80386.
"""

from __future__ import annotations

from ringfence.isa.x86.models import CpuModel

POP_CS = 0x0F
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0xF0, 0xF2, 0xF3))
_LOCK, _LOCK_8086 = 0xF0, 0xF1
_PREFIXES_386 = frozenset(range(0x64, 0x68))
_FIELD, _FIELD_HIGH, _MOV_CS = 0x38, 0x20, 1 << 3
_ONE_MEANING = (0x8F, 0xC6, 0xC7)  # POP and MOV, whatever the field says
_GROUP_4, _GROUP_5 = 0xFE, 0xFF


def rewrite(raw: bytes, model: CpuModel) -> tuple[bytes, int] | None:
    """The instruction at the start of `raw` in later terms, of the same length, and where its opcode is; None for #UD.  For
    generations before the 386 only."""
    out, at = bytearray(raw), 0
    while at < len(out):
        if out[at] == _LOCK_8086 and not model.has_invalid_opcodes:
            out[at] = _LOCK
        elif out[at] not in _PREFIXES:
            break
        at += 1
    if at == len(out):
        return bytes(out), at
    modrm = out[at + 1] if at + 1 < len(out) else 0
    if model.has_invalid_opcodes:
        high_segment = out[at] in (0x8C, 0x8E) and (modrm & _FIELD_HIGH or (out[at] == 0x8E and modrm & _FIELD == _MOV_CS))
        return None if out[at] in _PREFIXES_386 or high_segment else (bytes(out), at)
    _as_the_8086_sees_it(out, at, modrm)
    return bytes(out), at


def _as_the_8086_sees_it(out: bytearray, at: int, modrm: int) -> None:
    opcode = out[at]
    if 0x60 <= opcode <= 0x6F:
        out[at] |= 0x10
    elif opcode in (0xC0, 0xC1, 0xC8, 0xC9):
        out[at] |= 2
    elif at + 1 == len(out):
        return
    elif opcode in (0x8C, 0x8E):
        out[at + 1] &= ~_FIELD_HIGH
    elif opcode in _ONE_MEANING:
        out[at + 1] &= ~_FIELD
    elif opcode in (_GROUP_4, _GROUP_5):
        if modrm & _FIELD >= 2 << 3:  # bytes are called and pushed as words
            out[at] = _GROUP_5
        if modrm & _FIELD == 7 << 3:
            out[at + 1] ^= 1 << 3
