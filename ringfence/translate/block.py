"""Guest code to blocks: decode, choose stencils, patch, chain.

A block is a run of instructions within one page (or one instruction across a page end), keyed by RAM offset and mode.

    hot:   u32 index, 4 bytes of padding, then the head, aligned to 8:
           sub dword [budget], n;  js BUDGET;  cmp dword [kick], 0;  jne BUDGET;  stencils …
    cold:  thunks, each `call STUB` with its operands behind it (runtime.py lists them)

Flags: the kind of the flag words is static inside a block, unknown (None) at its start, and written to memory before the
block is left.  Instructions that can fault count as readers of the flags, so what an exception shows is exact.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import iced_x86 as iced

from ringfence.isa.x86.context import Form
from ringfence.isa.x86.decode import MAX_INSTRUCTION_BYTES, branch_target, decode, decoder, early_instruction
from ringfence.isa.x86.flags import SETTLED
from ringfence.isa.x86.fp_available import fp_class
from ringfence.isa.x86.models import DEFAULT, CpuModel
from ringfence.isa.x86.modes import REGIMES
from ringfence.translate.code_memory import COLD_START, FIXED_START, CodeMemory
from ringfence.translate.layout import BLOCK_BYTES, HASH_ENTRIES, MAX_BLOCKS
from ringfence.translate.lower import RECORD, RECORD_BYTES, RECORD_IMM, RECORD_NEXT
from ringfence.translate.native_blocks import BLOCK_CROSSING
from ringfence.translate.native_codes import KIND_UNCHANGED, MODE_FP_SLOW, MODE_SSE_SLOW, MODE_TABLE
from ringfence.translate.native_layout import NT, REGIME_MASK, REGIME_SHIFT
from ringfence.translate.native_learning import Learner
from ringfence.translate.native_points_layout import MODE_ONE
from ringfence.translate.native_tables import NativeTables
from ringfence.translate.objects import patch, place
from ringfence.translate.recipes import (
    Recipe,
    Template,
    field_offset,
    find_template,
    make_recipe,
    names_of,
    new_recipe,
    piece,
    place_constants,
    recipe_of_record,
)
from ringfence.translate.stencils import StencilStore, form_of

MAX_INSTRUCTIONS = 48
MAX_RECIPES = 60_000  # a guest that executes random bytes has no end of them
HEAD = b"\x41\x83\x6c\x24\xfc"  # sub dword [r12-4], imm8
TEST_KICK = b"\x41\x83\x7c\x24\xf8\x00\x0f\x85"  # cmp dword [r12-8], 0; jne
STORE_KIND = tuple(b"\x41\xc6\x44\x24\xe0" + bytes((k,)) for k in range(9))  # mov byte [r12-32], imm8
ADD_TLB_BYTES = 8  # length of add TLB_A(%r12,%r10),%rax
STORE_LENGTH = {1: 2, 2: 3, 4: 2, 8: 3, 16: 3, 10: 11}
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_SLOW = struct.Struct("<iHBBHBB")
_POINT = struct.Struct("<HHHBB")
_LINK = struct.Struct("<HHi")


class Translator:
    """Translates for one vCPU.  `symbols`: places in the code region of the run time's symbols.  `tables`: the run time
    translates what it knows from them by itself, and comes here with the rest only."""

    def __init__(
        self,
        memory: CodeMemory,
        store: StencilStore,
        symbols: dict[str, int],
        tables: NativeTables | None = None,
        model: CpuModel = DEFAULT,
    ) -> None:
        self.memory = memory
        self.store = store
        self.symbols = symbols
        self.model = model
        self._tag = b"" if model is DEFAULT else model.name.encode() + b"\0"  # of its recipes in the store
        self.recipes: list[dict[bytes, Recipe]] = [{} for _ in REGIMES]  # by regime
        self.blocks_translated = 0
        self.instructions_translated = 0
        self.flushes = 0
        self.fresh_pages: list[int] = []  # pages that got their first code: the engine protects them against stores
        self._natives = memory.natives
        self.settle = piece("(settle)")
        self.leaps = [piece("(leap)", (("i", 64, 0),), mode) for mode in REGIMES]
        self._defer = piece("(defer)")
        self.tables = tables

    @functools.cached_property
    def _learner(self) -> Learner:
        assert self.tables is not None
        return Learner(self.tables, self.symbols, self.pieces())

    def pieces(self) -> dict[str, Recipe]:
        """What the native translator puts between instructions, by the names of native_layout.py."""
        leaps = {f"leap{k or ''}": leap for k, leap in enumerate(self.leaps)}
        return {"settle": self.settle, **leaps, "defer": self._defer}

    # ---- recipes
    def _recipe(self, regime: int, raw: bytes, insn: iced.Instruction, offsets: Any) -> Recipe:
        """The recipe of an instruction with these bytes, from the cache or made now."""
        recipes = self.recipes[regime]
        prefix, key = names_of(raw, offsets)
        found = recipes.get(prefix)
        if found is not None and not found.form_immediates:
            return found
        found = recipes.get(key)
        if found is not None:
            return found
        for name in (prefix, key):
            record = self.store.recipes.get(self._tag + bytes((regime,)) + name)
            found = recipe_of_record(record) if record is not None else None
            if found is not None and (name is key or not found.form_immediates):
                recipes[name] = found
                if found.form_immediates:
                    recipes[prefix] = found
                return found
        if len(recipes) > MAX_RECIPES:
            recipes.clear()
        new = new_recipe(raw, insn, offsets, REGIMES[regime], self.model)
        recipes[prefix] = new
        if new.form_immediates:
            recipes[key] = new
        return new

    def save_recipes(self) -> None:
        """Hands what was learnt to the store, which keeps it for the next run."""
        for regime, recipes in enumerate(self.recipes):
            first = self._tag + bytes((regime,))
            kept = {first + name: r.record() for name, r in recipes.items() if not r.form_immediates or b"\0" in name}
            self.store.recipes.added.update(kept)

    def _native(self, form: Form) -> int:
        """Offset in the code region of a form's native function."""
        offset = self._natives.get(form)
        if offset is None:
            base = self.memory.fixed + 63 & -64
            image, symbols = place(self.store.native(form), base, self.symbols)
            offset = self._natives[form] = self.memory.append_fixed(image, 64) + symbols["f"]
        return offset

    def place_wanted(self, vcpu: CodeMemory) -> bool:
        """Whether the native translator gave a block of this vCPU's up for a native function only, which is there now: it may try again."""
        wanted = vcpu.get(NT["wanted"])
        if self.tables is None or wanted == 0:
            return False
        vcpu.put(NT["wanted"], 0)
        return self.tables.enter_function(wanted, lambda plain: self._native(form_of(plain)))

    # ---- blocks
    def translate(self, va: int, ra: int, mode: int, page: memoryview, second_page: tuple[int, memoryview] | None) -> bool:
        """Translates the block at linear address `va`, RAM offset `ra`.

        `page` is the whole guest page.  False when the first instruction runs into the next page and `second_page` (its
        RAM offset and bytes) was not given.
        """
        if self.is_full():
            self.flush()
        offset = va & 0xFFF
        regime = mode >> REGIME_SHIFT & REGIME_MASK
        raw = bytes(page[offset : offset + 16 * MAX_INSTRUCTIONS])
        insns = self._decode(raw, va, mode)
        crossing = learn = False
        if not insns:
            whole = bytes(page[offset:])
            if len(whole) < MAX_INSTRUCTION_BYTES:
                if second_page is None:
                    return False
                whole += bytes(second_page[1][: MAX_INSTRUCTION_BYTES - len(whole)])
            decoded = decode(whole, va, REGIMES[regime], self.model)
            assert decoded is not None  # 15 bytes are always enough
            crossing = offset + decoded.length > 4096
            raw = whole[: decoded.length]
            insn, offsets = self._instruction_at(raw, va, REGIMES[regime])
            if decoded.form.name in ("ud", "gp"):
                recipe = make_recipe(decoded, False)
            else:
                recipe = self._recipe(regime, raw, insn, offsets)
                learn = self.tables is not None
            if mode & (MODE_FP_SLOW | MODE_SSE_SLOW) and (kind := fp_class(insn)) and (mode & MODE_FP_SLOW or kind == "sse"):
                recipe = self._defer
            insns = [(recipe, insn, decoded.length)]
        else:
            learn = self.tables is not None
        _Builder(self, va, ra, mode, insns, second_page if crossing else None).build()
        if learn:
            self._learner.learn(raw, va, regime, len(insns), functools.partial(self._recipe, regime), self._natives)
        self.blocks_translated += 1
        self.instructions_translated += len(insns)
        return True

    def _decode(self, raw: bytes, va: int, mode: int) -> list[tuple[Recipe, Any, int]]:
        regime = mode >> REGIME_SHIFT & REGIME_MASK
        if self.model.generation < 386:
            return self._decode_early(raw, va, mode)
        source = decoder(raw, va, REGIMES[regime], self.model)
        offsets_of = source.get_constant_offsets
        recipes = self.recipes[regime]
        slow_fp = mode & (MODE_FP_SLOW | MODE_SSE_SLOW)
        out: list[tuple[Recipe, Any, int]] = []
        position = 0
        left = 1 if mode & MODE_ONE else MAX_INSTRUCTIONS
        invalid = iced.Code.INVALID
        for insn in source:
            length = insn.len
            if insn.code == invalid:
                break
            end = position + length
            offsets = offsets_of(insn)
            if offsets.has_displacement:
                cut = position + offsets.displacement_offset
            elif offsets.has_immediate:
                cut = position + offsets.immediate_offset
            else:
                cut = end
            recipe = recipes.get(raw[position:cut])
            if recipe is None or recipe.form_immediates:
                recipe = self._recipe(regime, raw[position:end], insn, offsets)
            if slow_fp and (kind := fp_class(insn)) and (mode & MODE_FP_SLOW or kind == "sse"):
                recipe = self._defer
            out.append((recipe, insn, length))
            position = end
            left -= 1
            if recipe.ends_block or left == 0:
                break
            if recipe.sets_shadow:
                left = 1
        return out

    def _instruction_at(self, code: bytes, va: int, mode: int) -> tuple[Any, Any]:
        """iced's instruction and its offsets, of bytes that `decode` has found to be one."""
        if self.model.generation < 386 and (found := early_instruction(code, va, mode, self.model)) is not None:
            return found
        source = decoder(code, va, mode, self.model)
        insn = source.decode()
        return insn, source.get_constant_offsets(insn)

    def _decode_early(self, raw: bytes, va: int, mode: int) -> list[tuple[Recipe, Any, int]]:
        """One by one, because encodings are rewritten."""
        regime = mode >> REGIME_SHIFT & REGIME_MASK
        out: list[tuple[Recipe, Any, int]] = []
        position, left = 0, 1 if mode & MODE_ONE else MAX_INSTRUCTIONS
        while left and (found := early_instruction(raw[position:], va + position, REGIMES[regime], self.model)) is not None:
            insn, offsets = found
            recipe = self._recipe(regime, raw[position : position + insn.len], insn, offsets)
            if mode & MODE_FP_SLOW and fp_class(insn):
                recipe = self._defer
            out.append((recipe, insn, insn.len))
            position += insn.len
            left -= 1
            if recipe.ends_block:
                break
            if recipe.sets_shadow:
                left = min(left, 1)
        return out

    def is_full(self) -> bool:
        memory = self.memory
        return memory.next_block >= MAX_BLOCKS - 1 or memory.hot > COLD_START - 65536 or memory.cold > FIXED_START - 262144

    def flush(self) -> None:
        """Drops every block.  Only while no translated code runs; other vCPUs' jump caches are their engines' business."""
        self.flushes += 1
        self.memory.drop_blocks()


def _displacement(recipe: Recipe, insn: Any) -> int:
    """What goes into the hole of a displacement, signed; RIP-relative ones count from the page."""
    value = int(insn.memory_displacement)
    if recipe.rip_relative:
        return value - int(insn.ip & ~0xFFF)
    mem = recipe.form.mem
    top = 1 << (15 if mem.address16 else 31 if mem.address32 else 63)
    return int((value & 2 * top - 1 ^ top) - top)


class _Builder:
    """One block being put together."""

    def __init__(
        self, t: Translator, va: int, ra: int, mode: int, insns: list[tuple[Recipe, Any, int]], second: tuple[int, memoryview] | None
    ) -> None:
        self.t = t
        self.memory = t.memory
        self.symbols = t.symbols
        self.va = va
        self.ra = ra
        self.mode = mode
        self.table = mode & MODE_TABLE
        self.regime = mode >> REGIME_SHIFT & REGIME_MASK
        self.form_mode = REGIMES[self.regime]
        self.insns = insns
        self.second = second
        self.index = t.memory.next_block
        self.origin = (t.memory.hot + 15 & -16) + 8  # of the head, in the code region
        self.hot = bytearray()
        self.cold = bytearray()
        self.cold_origin = t.memory.cold + 7 & -8
        self.kind: int | None = None  # of the flags, static; None: as at the block's entry, in memory

    # ---- positions are offsets in the code region
    def here(self) -> int:
        return self.origin + len(self.hot)

    def thunk(self, stub: str, operands: bytes) -> int:
        """A cold `call STUB; operands`; returns its position."""
        at = self.cold_origin + len(self.cold)
        self.cold += b"\xe8" + struct.pack("<i", self.symbols[stub] - (at + 5)) + operands
        return at

    def liveness(self) -> list[tuple[bool, bool]]:
        """Per instruction: is the carry, are any flags that it sets read before they are overwritten?"""
        live = carry = True
        out = []
        for recipe, _, _ in reversed(self.insns):
            out.append((carry, live))
            if recipe.reads_flags and not recipe.steps_carry or recipe.can_fault or recipe.native:
                live = carry = True
            elif recipe.steps_carry:
                live = carry  # the other flags are overwritten, the carry passes through
            elif recipe.partial:
                live = carry = True
            elif recipe.writes_flags:
                live = carry = False
        out.reverse()
        return out

    def build(self) -> None:
        count = len(self.insns)
        first = self.va & 0xFFF
        budget = self.thunk("s_budget", struct.pack("<HH", first, count))
        hot, origin = self.hot, self.origin
        hot += HEAD + bytes((count,)) + b"\x0f\x88" + _I32.pack(budget - (origin + 12))
        hot += TEST_KICK + _I32.pack(budget - (origin + 24))
        if self.second is not None:
            self._check_second_page(first, count)
        live = self.liveness()
        offset = first
        recipe = self.insns[0][0]
        for (recipe, insn, length), (carry_live, flags_live) in zip(self.insns, live, strict=True):
            if not recipe.empty:
                self._instruction(recipe, insn, offset, length, count, carry_live, flags_live)
            offset += length
            count -= 1
        if not recipe.ends_block:
            self._store_kind()
            self._jump_to(b"\xe9", offset)
        self._register(offset - first)

    def _check_second_page(self, first: int, count: int) -> None:
        assert self.second is not None
        at = self.cold_origin + len(self.cold)
        data = struct.pack("<HHIQi", first, count, self.index, self.second[0] & ~0xFFF, 0)
        self.thunk("s_cross", data)
        self.hot += b"\xe9" + struct.pack("<i", at - (self.here() + 5))
        resume = self.here() - (at + 5)
        struct.pack_into("<i", self.cold, at - self.cold_origin + 5 + 16, resume)

    def _kind_byte(self) -> int:
        return KIND_UNCHANGED if self.kind is None else self.kind

    def _store_kind(self) -> None:
        if self.kind is not None:
            self.hot += STORE_KIND[self.kind]

    def _settle(self) -> None:
        if self.kind is None:
            self.hot += b"\xe8" + _I32.pack(self.symbols["s_settle"] - (self.here() + 5))
        elif self.kind != SETTLED:
            self._place(find_template(self.t.settle, self.t.store, self.kind, True, True, self.table), None, 0, 0, 0, self.t.settle)
        self.kind = SETTLED

    def _instruction(self, recipe: Recipe, insn: Any, offset: int, length: int, remaining: int, carry_live: bool, flags_live: bool) -> None:
        if recipe.native:
            self._native_call(recipe, insn, offset, length, remaining)
            return
        if recipe.bulk:
            self._bulk(recipe, offset, length, remaining)
        if recipe.reads_flags or recipe.partial:
            if self.kind is None and (flags_live or recipe.reads_flags):
                self._settle()
        if recipe.end:
            if recipe.writes_flags and self.kind is not None:
                self._settle()
            self._store_kind()
        template = find_template(recipe, self.t.store, self.kind or SETTLED, carry_live, flags_live, self.table)
        if template.simple:
            self.hot += template.code
        else:
            self._place(template, insn, offset, length, remaining, recipe)
        if template.kind_out is not None:
            self.kind = template.kind_out

    def _place(self, template: Template, insn: Any, offset: int, length: int, remaining: int, recipe: Recipe) -> None:
        hot = self.hot
        if template.taken_at >= 0:  # its displacement is patched while code runs: keep it aligned
            hot += b"\x90" * (-(self.here() + template.taken_at) & 3)
        start = len(hot)
        base = self.origin + start
        hot += template.code
        for at, addend in template.displacements:
            value = _displacement(recipe, insn) + addend
            _U32.pack_into(hot, start + at, value & 0xFFFFFFFF)
        for at, type, slot, addend in template.immediates:
            patch(hot, start + at, type, self._immediate(recipe, insn, slot) + addend)
        for at, access, size, addend in template.slow:
            thunk = self._slow(access, size, base + at, offset, length, remaining)
            _I32.pack_into(hot, start + at, thunk + addend - (base + at))
        for at, type, symbol, addend in template.others:
            place = base + at
            if symbol == "NEXT":
                patch(hot, start + at, type, offset + length + addend)
                continue
            if symbol == "CONT":
                target = self._link(place, offset + length) if recipe.end == "taken" else base + len(template.code)
            elif symbol == "TAKEN":
                target = self._link(place, offset if recipe.repeats else branch_target(insn, self.form_mode) - (self.va & ~0xFFF))
            elif symbol == "LOOKUP":
                target = self.symbols["s_lookup"]
            elif symbol in ("FAULT", "EXIT"):
                data = _POINT.pack(offset, offset + length, remaining, self._kind_byte(), 0)
                target = self.thunk("s_fault" if symbol == "FAULT" else "s_exit", data)
            elif symbol == "DISP":
                patch(hot, start + at, type, _displacement(recipe, insn) + addend)
                continue
            else:
                raise KeyError(symbol)
            patch(hot, start + at, type, target + addend - place)
        if template.constants:
            place_constants(template, self.memory, hot, start, base)

    def _immediate(self, recipe: Recipe, insn: Any, slot: int) -> int:
        w = recipe.form.operands[slot][1]
        if recipe.form.name.endswith(" ptr"):
            far = insn.far_branch16 if w == 16 else insn.far_branch32
            return int(insn.far_branch_selector) if slot else int(far)
        value = int(insn.immediate(recipe.immediates[slot])) & (1 << w) - 1
        return value - (1 << w) if value >> (w - 1) else value

    def _slow(self, access: str, size: int, place: int, offset: int, length: int, remaining: int) -> int:
        stub = "s_slow_r" if access == "R" else "s_slow_m" if access == "M" else "s_slow_w" if size <= 8 else "s_slow_wx"
        at = self.cold_origin + len(self.cold)
        kind = KIND_UNCHANGED if self.kind is None else self.kind
        store = STORE_LENGTH[size] if access == "W" else 0
        self.cold += b"\xe8" + _I32.pack(self.symbols[stub] - (at + 5))
        self.cold += _SLOW.pack(place + 4 + ADD_TLB_BYTES - (at + 5), offset, size, length, remaining, kind, store)
        return at

    def _link(self, site: int, target: int) -> int:
        """A thunk that goes on at an offset from this page; within the page it patches `site` to jump directly.  What leaves the
        page lies right behind its jump where that is the newest hot code."""
        at = self.cold_origin + len(self.cold)
        if 0 <= target < 4096 and self.second is None:
            self.cold += b"\xe8" + _I32.pack(self.symbols["s_link"] - (at + 5)) + _LINK.pack(target, 0, site - (at + 5))
            return at
        template = find_template(self.t.leaps[self.regime], self.t.store, SETTLED, True, True, self.table)
        behind = site + 4 == self.here()
        if behind:
            at = self.here()
        code = bytearray(template.code)
        for where, type, _, addend in template.immediates:
            patch(code, where, type, target + addend)
        for where, type, _, addend in template.others:
            patch(code, where, type, self.symbols["s_lookup"] + addend - (at + where))
        if behind:
            self.hot += code
        else:
            self.cold += code
        return at

    def _jump_to(self, opcode: bytes, target: int) -> None:
        self.hot += b"\x90" * (-(self.here() + len(opcode)) & 3)
        self.hot += opcode
        site = self.here()
        self.hot += bytes(4)
        _I32.pack_into(self.hot, site - self.origin, self._link(site, target) - (site + 4))

    def _record(self, function: int, recipe: Recipe, insn: Any, offset: int, length: int, remaining: int, kind_out: int) -> bytearray:
        record = bytearray(RECORD_BYTES)
        struct.pack_into("<IHBBHB", record, 0, function, offset, length, self._kind_byte(), remaining, kind_out)
        for slot, (field, low) in recipe.binds.items():
            struct.pack_into("<i", record, RECORD[slot], field_offset(field, low))
        mem = recipe.form.mem
        if mem.disp and insn is not None:
            struct.pack_into("<I", record, RECORD["disp"], _displacement(recipe, insn) & 0xFFFFFFFF)
        for slot, (kind, _, _) in enumerate(recipe.form.operands):
            if kind == "i" and (slot >= len(recipe.form.imms) or recipe.form.imms[slot] is None):
                struct.pack_into("<q", record, RECORD_IMM[slot], self._immediate(recipe, insn, slot))
        struct.pack_into("<I", record, RECORD_NEXT, offset + length)
        return record

    def _call_record(self, record: bytearray) -> None:
        self.cold += bytes(-(self.cold_origin + len(self.cold)) & 7)
        at = self.cold_origin + len(self.cold)
        self.cold += record
        self.hot += b"\x48\x8d\x05" + struct.pack("<i", at - (self.here() + 7))  # lea rax, [rip + record]
        self.hot += b"\xe8" + struct.pack("<i", self.symbols["s_call"] - (self.here() + 5))

    def _native_call(self, recipe: Recipe, insn: Any, offset: int, length: int, remaining: int) -> None:
        if recipe.reads_flags or recipe.partial:
            self._settle()
        kind_in = self._kind_byte()
        kind_out = SETTLED if recipe.writes_flags else kind_in
        self._call_record(self._record(self.t._native(recipe.form), recipe, insn, offset, length, remaining, kind_out))
        if recipe.writes_flags:
            self.kind = SETTLED

    def _bulk(self, recipe: Recipe, offset: int, length: int, remaining: int) -> None:
        record = bytearray(RECORD_BYTES)
        function = self.symbols["b_rep_movs" if recipe.form.name == "rep movs" else "b_rep_stos"]
        struct.pack_into("<IHBBHB", record, 0, function, offset, length, self._kind_byte(), remaining, self._kind_byte())
        struct.pack_into("<q", record, RECORD_IMM[0], recipe.bulk)
        struct.pack_into("<I", record, RECORD_NEXT, offset + length)
        self._call_record(record)

    def _register(self, guest_bytes: int) -> None:
        """Writes the code and enters the block into the tables."""
        memory = self.memory
        struct.pack_into("<I", memory.code, self.origin - 8, self.index)
        memory.code[self.origin : self.origin + len(self.hot)] = self.hot
        memory.code[self.cold_origin : self.cold_origin + len(self.cold)] = self.cold
        memory.hot = self.origin + len(self.hot)
        memory.cold = self.cold_origin + len(self.cold)
        memory.next_block = self.index + 1
        b = self.index * (BLOCK_BYTES // 4)
        blocks, page = memory.blocks32, self.ra >> 12
        slot = (self.ra ^ self.ra >> 14 ^ self.mode * 0x1F35) & HASH_ENTRIES - 1
        blocks[b] = self.ra & 0xFFFFFFFF
        blocks[b + 1] = self.ra >> 32
        blocks[b + 2] = self.origin
        blocks[b + 3] = len(self.hot)
        blocks[b + 4] = guest_bytes
        blocks[b + 5] = len(self.insns)
        blocks[b + 7] = memory.hash32[slot]
        blocks[b + 8] = self.mode
        blocks[b + 9] = BLOCK_CROSSING if self.second is not None else 0
        memory.hash32[slot] = self.index
        first = self.ra & 0xFFF
        last = min(first + guest_bytes, 4096) - 1
        blocks[b + 6] = self._enter_page(page, first, last)
        if self.second is not None:
            blocks[b + 12] = self._enter_page(self.second[0] >> 12, 0, first + guest_bytes - 4097)

    def _enter_page(self, page: int, first: int, last: int) -> int:
        """Adds the block to a page's list; returns the block that was first there."""
        memory = self.memory
        old = memory.pages64[page * 2]
        memory.pages64[page * 2] = old | (1 << (last >> 6) - (first >> 6) + 1) - 1 << (first >> 6)
        head = memory.pages32[page * 4 + 2]
        memory.pages32[page * 4 + 2] = self.index
        if not old:
            self.t.fresh_pages.append(page)
        return head
