"""The catalogue: instances of every user-mode instruction form that has a body, drawn from iced's tables.

Exclusions carry a reason.  An instance sits in a code slot of its own, because addresses are part of what it means.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import iced_x86 as iced

from ringfence.isa.x86 import bodies  # noqa: F401  (fills INSTRUCTIONS)
from ringfence.isa.x86.context import INSTRUCTIONS
from ringfence.isa.x86.decode import MNEMONICS, Decoded, _body_name, decode

from .encode import CODE_NAMES, encodable, encode, has_memory_shape, has_register_shape, in_opcode, info, operand_names, place
from .records import CODE_ADDR, SLOT_BYTES, SLOT_ENTRY

_DIFFERS = "its result is the host's own and not the CPU model's"
_KERNEL = "it would enter the host's kernel"
_SEGMENTS = "it depends on the host's descriptor tables; see test_system.py"
EXCLUDED_NAMES: dict[str, str] = {
    "tzcnt": "not announced by x86-64-v2: decodes as BSF", "lzcnt": "not announced by x86-64-v2: decodes as BSR",
    "prefetchreserved": "0F 0D /3 to /7: reserved NOP for Intel, #UD or a hint for AMD",
    "cpuid": _DIFFERS, "rdtsc": _DIFFERS, "rdtscp": _DIFFERS, "rdpmc": _DIFFERS, "xgetbv": _DIFFERS, "rdpid": _DIFFERS,
    "rdrand": _DIFFERS, "rdseed": _DIFFERS, "xsave": _DIFFERS, "xrstor": _DIFFERS, "xsaveopt": _DIFFERS, "xsavec": _DIFFERS,
    "xsave64": _DIFFERS, "xrstor64": _DIFFERS, "xsaveopt64": _DIFFERS, "xsavec64": _DIFFERS, "monitor": _DIFFERS, "mwait": _DIFFERS,
    "rdfsbase": _DIFFERS, "rdgsbase": _DIFFERS, "wrfsbase": "FS belongs to the child's C library", "wrgsbase": "GS base is fixed",
    "syscall": _KERNEL, "sysenter": _KERNEL, "sysretq": "ring 0", "sysret": "ring 0", "sysretd": "ring 0", "sysexitd": "ring 0",
    "sysexit": "ring 0", "sysexitq": "ring 0",
    "int": "the host's IDT decides; see test_system.py", "int1": "the host's IDT decides; see test_system.py",
    "int3": "a trap, not a fault: RIP is behind it; see test_system.py", "into": "not in 64-bit mode",
    "sgdt": "the host may emulate it (UMIP)", "sidt": "the host may emulate it (UMIP)", "sldt": "the host may emulate it (UMIP)",
    "smsw": "the host may emulate it (UMIP)", "str": "the host may emulate it (UMIP)",
    "lar": _SEGMENTS, "lsl": _SEGMENTS, "verr": _SEGMENTS, "verw": _SEGMENTS,
    "mov from fs": _SEGMENTS, "mov from gs": _SEGMENTS, "mov fs": _SEGMENTS, "mov gs": _SEGMENTS, "mov ds": _SEGMENTS,
    "mov es": _SEGMENTS, "mov ss": _SEGMENTS, "mov from ds": _SEGMENTS, "mov from es": _SEGMENTS, "mov from ss": _SEGMENTS,
    "mov from cs": _SEGMENTS, "push fs": _SEGMENTS, "push gs": _SEGMENTS, "pop fs": _SEGMENTS, "pop gs": _SEGMENTS,
    "lfs": _SEGMENTS, "lgs": _SEGMENTS, "lss": _SEGMENTS, "retf": _SEGMENTS, "iretq": _SEGMENTS, "iretd": _SEGMENTS, "iret": _SEGMENTS,
    "iretw": _SEGMENTS, "far call": _SEGMENTS, "far jmp": _SEGMENTS,
    "call far": _SEGMENTS, "jmp far": _SEGMENTS,
    "stac": "#UD at CPL 3; see test_system.py", "clac": "#UD at CPL 3; see test_system.py", "rsm": "#UD at CPL 3",
    "ud": "decides nothing; test_decoder_fuzz.py compares #UD", "ud0": "as ud", "ud1": "as ud", "ud2": "as ud", "gp": "not an instruction",
}  # fmt: skip
EXCLUDED_CODES: dict[str, str] = {
    "MOVSXD_R16_RM16": "Intel reads 16 bits of memory, AMD 32",
    **dict.fromkeys(
        (n for n in CODE_NAMES.values() if n.endswith("_0F0D")), "0F 0D with a register operand: reserved NOP for Intel, #UD for AMD"
    ),
    **dict.fromkeys(
        ("RETNW", "RETNW_IMM16", "CALL_RM16", "JMP_RM16"), "66h on near branches: AMD cuts RIP to 16 bits, Intel ignores the prefix"
    ),
    **dict.fromkeys((n for n in CODE_NAMES.values() if "_FAR" in n or n.startswith(("JMP_M16", "CALL_M16", "RETF", "IRET"))), _SEGMENTS),
    **dict.fromkeys((n for n in CODE_NAMES.values() if n.startswith(("XSAVE", "XRSTOR"))), _DIFFERS),
    **dict.fromkeys(
        (n for n in CODE_NAMES.values() if n.startswith(("TZCNT", "LZCNT"))), "not announced by x86-64-v2: decodes as BSF and BSR"
    ),
    **dict.fromkeys((n for n in CODE_NAMES.values() if n.startswith(("SYSRET", "SYSEXIT"))), "ring 0"),
}


class Instance(NamedTuple):
    """One encoded instruction at its address."""

    raw: bytes
    entry: int
    insn: iced.Instruction
    decoded: Decoded
    bits: int = 64
    cs: int = 0  # 16- and 32-bit modes: the selector of the code segment and the offset in it
    ip: int = 0
    real: bool = False  # judged as code of real-address or virtual-8086 mode

    @property
    def name(self) -> str:
        return self.decoded.form.name

    @property
    def known_as(self) -> str:
        """The body that the mnemonic asks for, whether there is one or not."""
        return body_name(self.insn)

    def __str__(self) -> str:
        return f"{self.raw.hex()} {self.insn} ({CODE_NAMES[self.insn.code]})"


def body_name(insn: iced.Instruction) -> str:
    return _body_name(insn, MNEMONICS[insn.mnemonic])


class Shape(NamedTuple):
    """A code with its operand in a register or in memory, under prefixes."""

    code: int
    memory: bool
    prefixes: bytes
    register: int | None = None  # the register in the opcode byte: every one has a shape of its own
    bits: int = 64
    real: bool = False


def shapes() -> Iterator[Shape]:
    """Everything that a body exists for."""
    probe = random.Random(0)
    for code in encodable():
        if CODE_NAMES[code] in EXCLUDED_CODES:
            continue
        for memory in (False, True):
            if not (has_memory_shape(code) if memory else has_register_shape(code)):
                continue
            for prefixes in _prefixes(code, memory):
                for register in range(in_opcode(code)) or (None,):
                    shape = Shape(code, memory, prefixes, register)
                    # A draw may hit another code's encoding (NOP within XCHG, say).
                    if any(build(shape, 0, probe) is not None for _ in range(8)):
                        yield shape


def lock_and_repeat(code: int, memory: bool, string: bool) -> list[bytes]:
    """No prefix, and those of LOCK and REP that the instruction may have."""
    oi = info(code)
    found = [b""]
    if oi.can_use_lock_prefix and memory:
        found.append(b"\xf0")
    if oi.can_use_rep_prefix and string:
        found.append(b"\xf3")
    if oi.can_use_repne_prefix and string:
        found.append(b"\xf2")
    return found


def _prefixes(code: int, memory: bool) -> list[bytes]:
    string = any(name in ("ES_RDI", "SEG_RSI") for name in operand_names(code))
    found = lock_and_repeat(code, memory, string)
    if memory or string:
        found += [p + b"\x67" for p in found]
        if not (string and operand_names(code)[0] == "ES_RDI" and "SEG_RSI" not in operand_names(code)):
            found.append(b"\x65")
    return found


def entry_of(slot: int) -> int:
    return CODE_ADDR + slot * SLOT_BYTES + SLOT_ENTRY


def build(shape: Shape, slot: int, rng: random.Random) -> Instance | None:
    """A random instance; None when the draw is not of this shape or is excluded."""
    entry = entry_of(slot)
    plain = rng.random() < 0.3 and (shape.register or 0) < 8
    encoded = encode(shape.code, rng, shape.memory, shape.prefixes, plain, shape.register)
    raw = place(encoded, entry, rng, aligned=rng.random() < 0.9)
    if len(raw) > 15:
        return None
    return parse(raw, slot, shape.code)


def parse(raw: bytes, slot: int, code: int | None = None) -> Instance | None:
    """The instance that these bytes are in this slot."""
    entry = entry_of(slot)
    insn = iced.Decoder(64, raw, ip=entry).decode()
    if insn.is_invalid or insn.len != len(raw) or (code is not None and insn.code != code):
        return None
    decoded = decode(raw, entry)
    if decoded is None or excluded(decoded.form.name) or decoded.form.name not in INSTRUCTIONS or CODE_NAMES[insn.code] in EXCLUDED_CODES:
        return None
    if decoded.target == entry:
        return None  # a jump to itself never ends
    return Instance(raw, entry, insn, decoded)


def excluded(name: str) -> str | None:
    """Why the host cannot judge this body, None when it can."""
    if name.startswith("("):
        return "no instruction: part of the engine"
    if name.endswith((" 8086", " 286")) or name == "pop cs":
        return "the body of a CPU model that the host is not"
    return EXCLUDED_NAMES.get(name.removeprefix("lock ").rstrip("34567") if name.startswith("prefetch") else name.removeprefix("lock "))
