"""What the native translator knows: recipes and templates packed into flat tables by Python.

Python translates a block that the native translator could not, and hands its instructions to `learn`.  What was learnt is
kept in the user's cache as one piece of bytes, so that the next start copies it and hashes the keys natively.  Formats:
native_layout.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from pathlib import Path
from typing import Any

import iced_x86 as iced

from ringfence.core.paths import cache_folder
from ringfence.isa.x86.context import Form, MemForm
from ringfence.isa.x86.decode import decoder
from ringfence.isa.x86.fp_available import fp_class
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.layout import FRONT_BYTES
from ringfence.translate.lower import RECORD, RECORD_BYTES
from ringfence.translate.native_layout import (
    BRANCH,
    CAN_FAULT,
    EMPTY,
    END_TAKEN,
    ENDS_BLOCK,
    ESCAPE,
    FORM_IMMEDIATES,
    FP,
    FUNCTIONS,
    H_CONST,
    H_CONT,
    H_DISP,
    H_EXIT,
    H_FAULT,
    H_IMM,
    H_LOOKUP,
    H_NEXT,
    H_SLOW_M,
    H_SLOW_R,
    H_SLOW_W,
    H_TAKEN,
    HAS_END,
    LEFT_TO_PYTHON,
    LITERALS,
    MAP_0F,
    MAP_ONE,
    MAX_NUMBERED,
    MAX_RECIPES,
    MODRM,
    MOVS,
    NATIVE,
    NO_TAKEN,
    NT,
    PARTIAL,
    PLAIN,
    PREFIX,
    R_FUNCTION,
    R_TEMPLATE,
    R_TEMPLATES,
    READS,
    RECIPE_BYTES,
    RECORD_DISP,
    RECORDS,
    REGISTERS,
    REPEATS,
    RIP,
    SHADOW,
    STEPS_CARRY,
    SYMBOLS,
    T_FIRST_HOLE,
    T_NEXT,
    T_VARIANT,
    TABLES_BYTES,
    TAIL,
    TAIL_BYTES,
    WRITES,
)
from ringfence.translate.objects import R_8, R_16, R_32, R_32S, R_64, RELATIVE
from ringfence.translate.recipes import Recipe, Template, field_offset
from ringfence.translate.runtime import KIND_UNCHANGED
from ringfence.translate.stencils import read_cache, sources_digest, write_cache

_SOURCES = ("ir/*.py", "isa/x86/*.py", "translate/*.py")
_WIDTHS = {R_8: 1, R_16: 2, R_32: 4, R_32S: 4, R_64: 8, **dict.fromkeys(RELATIVE, 4)}
_POINTS = {"NEXT": H_NEXT, "CONT": H_CONT, "TAKEN": H_TAKEN, "LOOKUP": H_LOOKUP, "FAULT": H_FAULT, "EXIT": H_EXIT, "DISP": H_DISP}
_SLOW = {"R": H_SLOW_R, "M": H_SLOW_M, "W": H_SLOW_W}
_IMMEDIATE_BYTES = {
    iced.OpKind.IMMEDIATE8: 1,
    iced.OpKind.IMMEDIATE8_2ND: 1,
    iced.OpKind.IMMEDIATE16: 2,
    iced.OpKind.IMMEDIATE32: 4,
    iced.OpKind.IMMEDIATE64: 8,
    iced.OpKind.IMMEDIATE8TO16: 1,
    iced.OpKind.IMMEDIATE8TO32: 1,
    iced.OpKind.IMMEDIATE8TO64: 1,
    iced.OpKind.IMMEDIATE32TO64: 4,
}
_MASK64 = (1 << 64) - 1
_LONGEST_KEY = 14
_MARGIN_BYTES = 1 << 20  # left free behind the records: more than any one recipe with its templates takes
_LONGEST_FORM_KEY = 8  # the upper half then holds the immediates
_RECIPE = struct.Struct("<QQIBBHII6sHI")
_TEMPLATE = struct.Struct("<IBBHHH")
_HOLE = struct.Struct("<HBBiI")


class Unsuitable(Exception):
    """The native translator has no way to say this; Python translates blocks with it."""


def opcode_classes() -> bytes:
    """The classes of the one-byte opcodes, then of those behind 0F (SDM 2D appendix A); 64-bit mode."""
    one = bytearray([PLAIN] * 256)
    for opcode in range(256):
        low = opcode & 7
        if (
            (opcode < 0x40 and low < 4)
            or opcode in (0x63, 0x69, 0x6B)
            or 0x80 <= opcode <= 0x8F
            or opcode in (0xC0, 0xC1, 0xC6, 0xC7, 0xF6, 0xF7, 0xFE, 0xFF)
            or 0xD0 <= opcode <= 0xD3
            or 0xD8 <= opcode <= 0xDF
        ):
            one[opcode] = MODRM
        elif opcode in (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3) or 0x40 <= opcode <= 0x4F:
            one[opcode] = PREFIX
    one[0x0F] = ESCAPE
    for opcode in (0x62, 0xC4, 0xC5):  # EVEX, VEX
        one[opcode] = LEFT_TO_PYTHON
    two = bytearray([MODRM] * 256)
    plain = (0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, *range(0x30, 0x38), 0x77, *range(0x80, 0x90), 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA)
    for opcode in (*plain, *range(0xC8, 0xD0)):
        two[opcode] = PLAIN
    two[0x38] = two[0x3A] = ESCAPE
    two[0x0F] = LEFT_TO_PYTHON  # 3DNow!
    two[0x20:0x24] = bytes([REGISTERS] * 4)  # MOV to and from CRn and DRn: SDM 2B, mod is ignored
    return bytes(one + two)


def variant_number(kind: int, carry_live: bool, flags_live: bool, table: int) -> int:
    """A template's name in its recipe as one byte."""
    return kind * 12 + carry_live * 6 + flags_live * 3 + table


class NativeTables:
    """The tables of one vCPU.  `pieces`: settle, leap, defer of the translator."""

    def __init__(self, memory: CodeMemory, symbols: dict[str, int], pieces: dict[str, Recipe], path: Path | None = None) -> None:
        self.memory = memory
        self.base = memory.tables  # offset in the state block
        self.changed = False
        self._pieces = pieces
        self._functions: dict[Form, int] = {}
        self._literals: dict[bytes, int] = {}
        self._end = RECORDS
        self._last = 0
        self._count = 0

        def function(name: str, arguments: int = 2) -> Any:
            return ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * arguments)(memory.rx + symbols[name])

        self._known, self._prefix, self._hash = function("known_recipe"), function("known_prefix"), function("enter_recipe")
        self._find = function("known_key", 3)
        memory.put(NT["tables"], self.base - FRONT_BYTES)
        for name in SYMBOLS:
            memory.put(NT[name], symbols[name])
        memory.state[self.base + MAP_ONE : self.base + MAP_ONE + 512] = opcode_classes()
        assert MAP_0F == MAP_ONE + 256
        self._path = path or cache_folder() / f"blocks-{sources_digest(*_SOURCES)}.bin"
        if (kept := read_cache(self._path)) is not None:
            self._load(kept)
            function("hash_recipes", 1)(memory.cpu)
        else:
            for name, recipe in pieces.items():
                memory.put(NT[name], self._append(0, 0, recipe, 0, 0, b"", 0))
                self._last_recipe(memory.get(NT[name]))

    # ---- the file
    def _load(self, kept: Any) -> None:
        records, functions, literals, pieces, self._last, self._count = kept
        self._end = RECORDS + len(records)
        self.memory.state[self.base + RECORDS : self.base + self._end] = records
        for name, size, operands, mem, imms, lock, mode in functions:
            self._functions[Form(name, size, operands, MemForm(*mem), imms, lock, mode)] = len(self._functions) + 1
        for data in literals:
            self._literal(data)
        for name, offset in zip(self._pieces, pieces, strict=True):
            self.memory.put(NT[name], offset)
        self.memory.put(NT["last_recipe"], self._last)

    def save(self) -> None:
        """Keeps what was learnt for the next run."""
        if not self.changed:
            return
        kept = read_cache(self._path)
        if kept is not None and kept[5] > self._count:
            return  # another process has learnt more meanwhile; what only this one met is learnt again when it is met
        functions = [(f.name, f.size, f.operands, tuple(f.mem), f.imms, f.lock, f.mode) for f in self._functions]
        pieces = [self.memory.get(NT[name]) for name in self._pieces]
        records = bytes(self.memory.state[self.base + RECORDS : self.base + self._end])
        if write_cache(self._path, (records, functions, list(self._literals), pieces, self._last, self._count)):
            self.changed = False

    # ---- learning
    def learn(self, raw: bytes, va: int, count: int, recipe_of: Any, functions: dict[Form, int]) -> None:
        """Enters what is not yet known of the first `count` instructions of `raw`, which lies at `va`.

        `recipe_of(raw, insn, offsets)` gives the recipe of an instruction; `functions` the places of native functions.
        """
        position = 0
        while count and position < len(raw):
            code = raw[position : position + 15]
            source = decoder(code, va + position)
            insn = source.decode()
            if insn.code == iced.Code.INVALID:
                break
            code = code[: insn.len]
            offsets = source.get_constant_offsets(insn)
            self._learn_one(code, insn, offsets, recipe_of(code, insn, offsets), functions)
            position += insn.len
            count -= 1
        for name, recipe in self._pieces.items():
            with contextlib.suppress(Unsuitable):
                self._add_templates(self.memory.get(NT[name]), recipe)

    def _learn_one(self, code: bytes, insn: iced.Instruction, offsets: Any, recipe: Recipe, functions: dict[Form, int]) -> None:
        room = self.base + TAIL
        self.memory.state[room : room + TAIL_BYTES] = code + bytes(TAIL_BYTES - len(code))
        place = self.memory.cpu - FRONT_BYTES + room
        try:
            at = self._known(self.memory.cpu, place) or self._enter(code, place, insn, offsets, recipe)
            self._add_templates(at, recipe)
        except Unsuitable:
            return
        if recipe.native and recipe.form in functions:
            number = struct.unpack_from("<H", self.memory.state, self.base + at + R_FUNCTION)[0]
            struct.pack_into("<I", self.memory.state, self.base + FUNCTIONS + 4 * number, functions[recipe.form])

    def _enter(self, code: bytes, place: int, insn: iced.Instruction, offsets: Any, recipe: Recipe) -> int:
        """Enters the recipe of an instruction; returns its place."""
        disp_bytes, imm_bytes = offsets.displacement_size, offsets.immediate_size + offsets.immediate_size2
        cut = len(code) - disp_bytes - imm_bytes
        key = code[:cut]
        expected = offsets.displacement_offset if disp_bytes else offsets.immediate_offset if imm_bytes else len(code)
        if cut != expected or cut > _LONGEST_KEY or self._prefix(self.memory.cpu, place) != cut:
            raise Unsuitable("its length")
        if self._count >= MAX_RECIPES - 2 or self._end > TABLES_BYTES - _MARGIN_BYTES:
            raise Unsuitable("no room")
        immediates = code[cut + disp_bytes :]
        flags = (FP if fp_class(insn) else 0) | self._operand_flags(insn, recipe, code[cut : cut + disp_bytes], immediates)
        slots = self._slots(insn, offsets, recipe, immediates)
        low, high = struct.unpack("<QQ", key.ljust(15, b"\0") + bytes((cut,)))
        if not recipe.form_immediates:
            return self._publish(self._append(low, high, recipe, disp_bytes, imm_bytes, slots, flags))
        if cut > _LONGEST_FORM_KEY or imm_bytes > 6:
            raise Unsuitable("its key")
        if not self._find(self.memory.cpu, low, high):
            self._publish(self._append(low, high, recipe, disp_bytes, imm_bytes, slots, flags | FORM_IMMEDIATES))
        high = int.from_bytes(immediates, "little") | (cut | 0x80) << 56
        return self._publish(self._append(low, high, recipe, disp_bytes, imm_bytes, slots, flags))

    def _operand_flags(self, insn: iced.Instruction, recipe: Recipe, displacement: bytes, immediates: bytes) -> int:
        """Checks that what the native translator computes is what iced says."""
        flags = 0
        value = int.from_bytes(displacement, "little", signed=True)
        if recipe.rip_relative:
            value += insn.next_ip
        if recipe.form.mem.disp:
            if recipe.form.mem.address32 or insn.memory_displacement != value & _MASK64:
                raise Unsuitable("its displacement")
            flags |= RECORD_DISP
        if recipe.end == "taken" and not recipe.repeats:
            if insn.op_kind(0) != iced.OpKind.NEAR_BRANCH64 or not immediates:
                raise Unsuitable("its target")
            if insn.near_branch_target != insn.next_ip + int.from_bytes(immediates, "little", signed=True) & _MASK64:
                raise Unsuitable("its target")
            flags |= BRANCH
        return flags

    def _slots(self, insn: iced.Instruction, offsets: Any, recipe: Recipe, immediates: bytes) -> bytes:
        """Where in the immediate bytes each operand's value is; a native function gets those that its form does not have."""
        out = bytearray(6)
        form = recipe.form
        for slot, (kind, w, _) in enumerate(form.operands):
            if kind != "i" or (slot < len(form.imms) and form.imms[slot] is not None):
                continue
            operand = recipe.immediates.get(slot, -1)
            size = _IMMEDIATE_BYTES.get(insn.op_kind(operand)) if operand >= 0 else None
            if size is None or slot > 2:
                raise Unsuitable("its immediate")
            first = offsets.immediate_size if insn.op_kind(operand) == iced.OpKind.IMMEDIATE8_2ND else 0
            value = int.from_bytes(immediates[first : first + size], "little", signed=True)
            if first + size > len(immediates) or (value ^ insn.immediate(operand)) & (1 << w) - 1 or size * 8 > w:
                raise Unsuitable("its immediate")
            out[2 * slot : 2 * slot + 2] = bytes((first, size))
        return bytes(out)

    # ---- packing
    def _append(self, low: int, high: int, recipe: Recipe, disp_bytes: int, imm_bytes: int, slots: bytes, flags: int) -> int:
        for bit, fact in (
            (READS, recipe.reads_flags),
            (PARTIAL, recipe.partial),
            (WRITES, recipe.writes_flags),
            (CAN_FAULT, recipe.can_fault),
            (NATIVE, recipe.native),
            (STEPS_CARRY, recipe.steps_carry),
            (ENDS_BLOCK, recipe.ends_block),
            (HAS_END, recipe.end),
            (END_TAKEN, recipe.end == "taken"),
            (EMPTY, recipe.empty),
            (REPEATS, recipe.repeats),
            (SHADOW, recipe.sets_shadow),
            (RIP, recipe.rip_relative),
            (MOVS, recipe.form.name == "rep movs"),
        ):
            if fact:
                flags |= bit
        record = bytearray(RECORD_BYTES)
        number = 0
        if recipe.native:
            number = self._functions.setdefault(recipe.form, len(self._functions) + 1)
            if number >= MAX_NUMBERED:
                raise Unsuitable("no room")
            for slot, (field, low_bit) in recipe.binds.items():
                struct.pack_into("<i", record, RECORD[slot], field_offset(field, low_bit))
        at = self._end = self._end + RECIPE_BYTES - 1 & -RECIPE_BYTES  # one cache line
        data = bytearray(RECIPE_BYTES)
        _RECIPE.pack_into(data, 0, low, high, flags, disp_bytes, imm_bytes, number, 0, recipe.bulk, slots or bytes(6), 0, self._last)
        if recipe.native or recipe.bulk:
            data += record
        self._put(at, data)
        return at

    def _put(self, at: int, data: bytes | bytearray) -> None:
        self.memory.state[self.base + at : self.base + at + len(data)] = data
        self._end = at + len(data) + 7 & ~7
        self.changed = True

    def _last_recipe(self, at: int) -> None:
        self._last = at
        self._count += 1
        self.memory.put(NT["last_recipe"], at)

    def _publish(self, at: int) -> int:
        self._last_recipe(at)
        self._hash(self.memory.cpu, at)
        return at

    def _add_templates(self, at: int, recipe: Recipe) -> None:
        """Appends the templates that the recipe got since."""
        state, last = self.memory.state, self.base + at + R_TEMPLATE
        if struct.unpack_from("<H", state, self.base + at + R_TEMPLATES)[0] == len(recipe.templates):
            return
        known = set()
        while t := struct.unpack_from("<I", state, last)[0]:
            last = self.base + t + T_NEXT
            known.add(state[self.base + t + T_VARIANT])
        for name, template in recipe.templates.items():
            if variant_number(*name) not in known:
                data = self._pack(template, variant_number(*name))
                if self._end + len(data) > TABLES_BYTES - 4096:
                    raise Unsuitable("no room")
                t = self._end
                self._put(t, data)
                struct.pack_into("<I", state, last, t)
                last = self.base + t + T_NEXT
        struct.pack_into("<H", state, self.base + at + R_TEMPLATES, len(recipe.templates))

    def _pack(self, template: Template, variant: int) -> bytes:
        t = template
        holes = [(at, H_DISP, 4, addend, 0) for at, addend in t.displacements]
        holes += [(at, H_IMM, _WIDTHS[type], addend, slot) for at, type, slot, addend in t.immediates]
        holes += [(at, _SLOW[access], 4, addend, size) for at, access, size, addend in t.slow]
        holes += [(at, _POINTS[symbol], _WIDTHS[type], addend, 0) for at, type, symbol, addend in t.others]
        holes += [(at, H_CONST, 4, inside + addend, self._literal(data)) for at, data, inside, addend in t.constants]
        kind = KIND_UNCHANGED if t.kind_out is None else t.kind_out
        taken = NO_TAKEN if t.taken_at < 0 else t.taken_at
        try:
            head = _TEMPLATE.pack(0, variant, kind, len(t.code), taken, len(holes))
            packed = b"".join(_HOLE.pack(*h) for h in holes)
        except struct.error as error:
            raise Unsuitable(f"its template: {error}") from error
        assert len(head) == T_FIRST_HOLE
        return head + packed + t.code

    def _literal(self, data: bytes) -> int:
        number = self._literals.get(data)
        if number is None:
            number = len(self._literals)
            if number >= MAX_NUMBERED:
                raise Unsuitable("no room")
            self._literals[data] = number
            struct.pack_into("<I", self.memory.state, self.base + LITERALS + 4 * number, self.memory.constant(data))
        return number
