"""Learning encodings for the native translator: packs recipes and templates of Python's into its tables (native_tables.py).

Python translates a block that the native translator could not, and hands its instructions to `learn`.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from typing import Any

import iced_x86 as iced

from ringfence.isa.x86.context import Form
from ringfence.isa.x86.decode import branch_target, decoder
from ringfence.isa.x86.fp_available import fp_class
from ringfence.isa.x86.modes import REGIMES
from ringfence.translate.layout import FRONT_BYTES
from ringfence.translate.lower import RECORD, RECORD_BYTES
from ringfence.translate.native_codes import KIND_UNCHANGED
from ringfence.translate.native_layout import (
    BRANCH,
    CAN_FAULT,
    EMPTY,
    END_TAKEN,
    ENDS_BLOCK,
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
    MAX_NUMBERED,
    MAX_RECIPES,
    MOVS,
    NATIVE,
    NO_TAKEN,
    NT,
    PARTIAL,
    R_FUNCTION,
    R_TEMPLATE,
    R_TEMPLATES,
    READS,
    RECIPE_BYTES,
    RECORD_DISP,
    REPEATS,
    RIP,
    SHADOW,
    SSE,
    STEPS_CARRY,
    T_FIRST_HOLE,
    T_NEXT,
    T_VARIANT,
    TABLES_BYTES,
    TAIL,
    TAIL_BYTES,
    WRITES,
)
from ringfence.translate.native_tables import NativeTables, Unsuitable
from ringfence.translate.objects import R_8, R_16, R_32, R_32S, R_64, RELATIVE
from ringfence.translate.recipes import Recipe, Template, field_offset

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


def variant_number(kind: int, carry_live: bool, flags_live: bool, table: int) -> int:
    """A template's name in its recipe as one byte."""
    return kind * 12 + carry_live * 6 + flags_live * 3 + table


class Learner:
    """Enters what one vCPU's tables do not have.  `pieces`: what the translator puts between instructions."""

    def __init__(self, tables: NativeTables, symbols: dict[str, int], pieces: dict[str, Recipe]) -> None:
        self.tables = tables
        self.memory = tables.memory
        self.base = tables.base
        self._pieces = pieces
        self._model = tables.model

        def function(name: str, arguments: int = 2) -> Any:
            return ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * arguments)(tables.memory.rx + symbols[name])

        self._known, self._prefix = function("known_recipe", 3), function("known_prefix", 3)
        self._hash = function("enter_recipe")
        self._find = function("known_key", 3)
        if not tables.count:
            for name, recipe in pieces.items():
                self.memory.put(NT[name], self._append(0, 0, recipe, 0, 0, b"", 0))
                self._last_recipe(self.memory.get(NT[name]))

    def learn(self, raw: bytes, va: int, regime: int, count: int, recipe_of: Any, functions: dict[Form, int]) -> None:
        """Enters what is not yet known of the first `count` instructions of `raw`, which lies at `va`.

        `recipe_of(raw, insn, offsets)` gives the recipe of an instruction; `functions` the places of native functions.
        """
        position = 0
        while count and position < len(raw):
            code = raw[position : position + 15]
            source = decoder(code, va + position, REGIMES[regime], self._model)
            insn = source.decode()
            if insn.code == iced.Code.INVALID:
                break
            code = code[: insn.len]
            offsets = source.get_constant_offsets(insn)
            self._learn_one(code, regime, insn, offsets, recipe_of(code, insn, offsets), functions)
            position += insn.len
            count -= 1
        for name, recipe in self._pieces.items():
            with contextlib.suppress(Unsuitable):
                self._add_templates(self.memory.get(NT[name]), recipe)

    def _learn_one(
        self, code: bytes, regime: int, insn: iced.Instruction, offsets: Any, recipe: Recipe, functions: dict[Form, int]
    ) -> None:
        room = self.base + TAIL
        self.memory.state[room : room + TAIL_BYTES] = code + bytes(TAIL_BYTES - len(code))
        place = self.memory.cpu - FRONT_BYTES + room
        try:
            at = self._known(self.memory.cpu, place, regime) or self._enter(code, place, regime, insn, offsets, recipe)
            self._add_templates(at, recipe)
        except Unsuitable:
            return
        if recipe.native and recipe.form in functions:
            number = struct.unpack_from("<H", self.memory.state, self.base + at + R_FUNCTION)[0]
            struct.pack_into("<I", self.memory.state, self.base + FUNCTIONS + 4 * number, functions[recipe.form])

    def _enter(self, code: bytes, place: int, regime: int, insn: iced.Instruction, offsets: Any, recipe: Recipe) -> int:
        """Enters the recipe of an instruction; returns its place."""
        disp_bytes, imm_bytes = offsets.displacement_size, offsets.immediate_size + offsets.immediate_size2
        cut = len(code) - disp_bytes - imm_bytes
        key = code[:cut]
        expected = offsets.displacement_offset if disp_bytes else offsets.immediate_offset if imm_bytes else len(code)
        if cut != expected or cut > _LONGEST_KEY or self._prefix(self.memory.cpu, place, regime) != cut:
            raise Unsuitable("its length")
        if self.tables.count >= MAX_RECIPES - 2 or self.tables.end > TABLES_BYTES - _MARGIN_BYTES:
            raise Unsuitable("no room")
        immediates = code[cut + disp_bytes :]
        kind = fp_class(insn)
        flags = (FP if kind else 0) | (SSE if kind == "sse" else 0)
        flags |= self._operand_flags(insn, regime, recipe, code[cut : cut + disp_bytes], immediates)
        slots = self._slots(insn, offsets, recipe, immediates)
        low, high = struct.unpack("<QQ", key.ljust(15, b"\0") + bytes((cut | regime << 4,)))
        if not recipe.form_immediates:
            return self._publish(self._append(low, high, recipe, disp_bytes, imm_bytes, slots, flags))
        if cut > _LONGEST_FORM_KEY or imm_bytes > 6:
            raise Unsuitable("its key")
        if not self._find(self.memory.cpu, low, high):
            self._publish(self._append(low, high, recipe, disp_bytes, imm_bytes, slots, flags | FORM_IMMEDIATES))
        high = int.from_bytes(immediates, "little") | (cut | 0x80 | regime << 4) << 56
        return self._publish(self._append(low, high, recipe, disp_bytes, imm_bytes, slots, flags))

    def _operand_flags(self, insn: iced.Instruction, regime: int, recipe: Recipe, displacement: bytes, immediates: bytes) -> int:
        """Checks that what the native translator computes is what iced says."""
        flags = 0
        value = int.from_bytes(displacement, "little", signed=True)
        if recipe.rip_relative:
            value += insn.next_ip
        if recipe.form.mem.disp:
            bits = 16 if recipe.form.mem.address16 else 32 if recipe.form.mem.address32 else 64
            if (insn.memory_displacement ^ value) & (1 << bits) - 1 or (recipe.rip_relative and bits != 64):
                raise Unsuitable("its displacement")
            flags |= RECORD_DISP
        if recipe.end == "taken" and not recipe.repeats:
            wrap = _MASK64 if regime == 0 else 0xFFFFFFFF
            step = int.from_bytes(immediates, "little", signed=True)
            if not immediates or branch_target(insn, REGIMES[regime]) != insn.ip + insn.len + step & wrap:
                raise Unsuitable("its target")
            flags |= BRANCH
        return flags

    def _slots(self, insn: iced.Instruction, offsets: Any, recipe: Recipe, immediates: bytes) -> bytes:
        """Where in the immediate bytes each operand's value is; a native function gets those that its form does not have."""
        out = bytearray(6)
        form = recipe.form
        if form.name.endswith(" ptr"):  # offset, then selector
            return bytes((0, len(immediates) - 2, len(immediates) - 2, 2, 0, 0))
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
            number = self.tables.functions.setdefault(recipe.form, len(self.tables.functions) + 1)
            if number >= MAX_NUMBERED:
                raise Unsuitable("no room")
            for slot, (field, low_bit) in recipe.binds.items():
                struct.pack_into("<i", record, RECORD[slot], field_offset(field, low_bit))
        at = self.tables.end = self.tables.end + RECIPE_BYTES - 1 & -RECIPE_BYTES  # one cache line
        data = bytearray(RECIPE_BYTES)
        _RECIPE.pack_into(data, 0, low, high, flags, disp_bytes, imm_bytes, number, 0, recipe.bulk, slots or bytes(6), 0, self.tables.last)
        if recipe.native or recipe.bulk:
            data += record
        self._put(at, data)
        return at

    def _put(self, at: int, data: bytes | bytearray) -> None:
        self.memory.state[self.base + at : self.base + at + len(data)] = data
        self.tables.end = at + len(data) + 7 & ~7
        self.tables.changed = True

    def _last_recipe(self, at: int) -> None:
        self.tables.last = at
        self.tables.count += 1
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
                if self.tables.end + len(data) > TABLES_BYTES - 4096:
                    raise Unsuitable("no room")
                t = self.tables.end
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
        holes += [(at, H_CONST, 4, inside + addend, self.tables.literal(data)) for at, data, inside, addend in t.constants]
        kind = KIND_UNCHANGED if t.kind_out is None else t.kind_out
        taken = NO_TAKEN if t.taken_at < 0 else t.taken_at
        try:
            head = _TEMPLATE.pack(0, variant, kind, len(t.code), taken, len(holes))
            packed = b"".join(_HOLE.pack(*h) for h in holes)
        except struct.error as error:
            raise Unsuitable(f"its template: {error}") from error
        assert len(head) == T_FIRST_HOLE
        return head + packed + t.code
