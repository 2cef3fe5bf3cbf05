"""The catalogue of 16- and 32-bit modes: instances of every user-mode form of iced's tables, whether a body exists or not.

Exclusions carry a reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache

import iced_x86 as iced

from ringfence.isa.x86 import bodies  # noqa: F401  (fills INSTRUCTIONS)
from ringfence.isa.x86.context import INSTRUCTIONS
from ringfence.isa.x86.decode import decode, decoder
from ringfence.isa.x86.models import DEFAULT
from ringfence.isa.x86.modes import REAL

from .encode import CODE_NAMES, has_memory_shape, has_register_shape, info, operand_names
from .encode_legacy import OVERRIDES, address_bits, encodable, encode, in_opcode
from .forms import EXCLUDED_CODES, EXCLUDED_NAMES, Instance, Shape, body_name, entry_of, lock_and_repeat
from .segments import BASE, NAMES, code_selector

_NOT_HERE = ("lar", "lsl", "verr", "verw", "into", "iret", "iretd", "iretw", "retf", "lfs", "lgs", "lss")
_SEGMENT_MOVES = ("mov ", "push ", "pop ", "far ", "jmp far", "call far")
_EXCLUDED: dict[str, str] = {n: why for n, why in EXCLUDED_NAMES.items() if n not in _NOT_HERE and not n.startswith(_SEGMENT_MOVES)}
# What 64-bit mode does not have; everything else is known by its body.
LEGACY_ONLY = frozenset(
    "aaa aas daa das aam aad salc bound arpl into les lds lss lfs lgs pusha pushad popa popad jcxz jecxz".split()
    + "retf iret iretd pushfd popfd".split()
    + [f"{what} {name}" for what in ("push", "pop", "mov", "mov from") for name in NAMES]
    + ["jmp far", "call far", "jmp ptr", "call ptr"]
)
DESCRIPTORS = frozenset(
    "lar lsl verr verw arpl lldt ltr retf iret iretd les lds lss lfs lgs".split()
    + [f"{what} {name}" for what in ("pop", "mov") for name in NAMES]
    + ["jmp far", "call far", "jmp ptr", "call ptr"]
)
_PROTECTED_ONLY = frozenset("lar lsl verr verw arpl lldt ltr".split())
SELECTORS_SEEN = frozenset(f"{what} {name}" for what in ("push", "mov from") for name in NAMES)
IOPL_SENSITIVE = frozenset("cli sti pushf pushfd popf popfd in out ins outs".split())
UNICORN = (DESCRIPTORS - _PROTECTED_ONLY) | SELECTORS_SEEN | frozenset("cli sti pushf pushfd popf popfd".split())
PRIVILEGED = frozenset("clts hlt invd invlpg invpcid lgdt lidt lmsw rdmsr wrmsr wbinvd rdpmc".split())
_EXCLUDED_CODES: dict[str, str] = {
    n: why for n, why in EXCLUDED_CODES.items() if n.startswith(("XSAVE", "XRSTOR", "TZCNT", "LZCNT")) or "0F0D" in n
}
_BRANCHES = (iced.OpKind.NEAR_BRANCH16, iced.OpKind.NEAR_BRANCH32)
_MNEMONICS = {v: k.lower() for k, v in vars(iced.Mnemonic).items() if isinstance(v, int)}


def excluded(insn: iced.Instruction) -> str | None:
    """Why the host cannot judge this instruction, None when it can."""
    name = _MNEMONICS[insn.mnemonic]
    if DEFAULT.refuses(insn):
        return "not announced by the CPU model"
    body = body_name(insn)
    if body not in LEGACY_ONLY and body not in INSTRUCTIONS:
        return "an instruction of other processors"
    return _EXCLUDED.get(name.rstrip("34567") if name.startswith("prefetch") else name) or _EXCLUDED_CODES.get(CODE_NAMES[insn.code])


@cache
def shapes(bits: int) -> tuple[Shape, ...]:
    """Everything that the mode has."""
    return tuple(_shapes(bits))


def _real(wanted: Callable[[str], bool]) -> tuple[Shape, ...]:
    """16-bit shapes, as of real-address or virtual-8086 mode, whose bodies are wanted."""
    probe = random.Random(0)
    found = []
    for shape in shapes(16):
        instance = next(i for i in (build(shape, 0, probe) for _ in range(100)) if i is not None)
        if wanted(instance.known_as.removeprefix("rep ")):
            found.append(shape._replace(real=True))
    return tuple(found)


@cache
def real_shapes() -> tuple[Shape, ...]:
    """What the host can judge for real-address and virtual-8086 modes, in 16-bit segments of 64 KiB: all that asks for no
    descriptors, no rights and no flags of the system."""
    return _real(lambda name: name not in DESCRIPTORS | SELECTORS_SEEN | IOPL_SENSITIVE | PRIVILEGED)


@cache
def privileged_shapes() -> tuple[Shape, ...]:
    """What ring 3 and virtual-8086 mode may not do."""
    return _real(PRIVILEGED.__contains__)


@cache
def real_system_shapes() -> tuple[Shape, ...]:
    """What unicorn judges for real-address mode: segment loads, far transfers, flags on the stack."""
    return _real(UNICORN.__contains__)


def for_unicorn(instance: Instance) -> bool:
    """Whether unicorn judges this, and not the host."""
    return instance.real and instance.known_as in UNICORN


def _shapes(bits: int) -> Iterator[Shape]:
    probe = random.Random(0)
    for code in encodable(bits):
        for memory in (False, True):
            if not (has_memory_shape(code) if memory else has_register_shape(code)):
                continue
            for prefixes in _prefixes(code, memory):
                for register in range(in_opcode(code)) or (None,):
                    shape = Shape(code, memory, prefixes, register, bits)
                    if any(build(shape, 0, probe) is not None for _ in range(8)):
                        yield shape


def _prefixes(code: int, memory: bool) -> list[bytes]:
    oi, names = info(code), operand_names(code)
    source = any(name in ("SEG_RSI", "SEG_RDI", "SEG_RBX_AL") for name in names)
    string = source or "ES_RDI" in names
    found = lock_and_repeat(code, memory, string)
    if (memory or string) and not oi.address_size:
        found += [p + b"\x67" for p in found]
    if memory or source:
        found.append(b"\x00")  # some override: drawn anew for every instance
    return found


def build(shape: Shape, slot: int, rng: random.Random) -> Instance | None:
    """A random instance; None when the draw is not of this shape or is excluded."""
    ip = entry_of(slot) - int(BASE[code_selector(shape.bits, slot)])
    prefixes = shape.prefixes
    if prefixes == b"\x00":
        prefixes = rng.choice(tuple(p for p in OVERRIDES if not (shape.real and p == b"\x2e"))) + (
            b"\x67" if rng.random() < 0.2 and not info(shape.code).address_size else b""
        )
    if shape.bits == 32 and b"\x2e" in prefixes and address_bits(shape.code, 32, prefixes) == 16:
        return None  # it could only read other slots, whose filling differs between the machines
    raw = encode(shape.code, rng, shape.memory, prefixes, shape.bits, ip, shape.register)
    return parse(raw, slot, shape.bits, shape.code, shape.real) if len(raw) <= 15 else None


def parse(raw: bytes, slot: int, bits: int, code: int | None = None, real: bool = False) -> Instance | None:
    """The instance that these bytes are in this slot."""
    entry, cs = entry_of(slot), code_selector(bits, slot)
    ip = entry - int(BASE[cs])
    mode = REAL if real else bits + (bits == 32)
    insn = decoder(raw, ip, mode).decode()
    if insn.is_invalid or insn.len != len(raw) or (code is not None and insn.code != code) or excluded(insn):
        return None
    decoded = decode(raw, entry, mode)
    if insn.near_branch_target == ip and insn.op_kind(0) in _BRANCHES:
        return None  # a jump to itself never ends
    if decoded is None:
        return None
    return Instance(raw, entry, insn, decoded, bits, cs, ip, real)
