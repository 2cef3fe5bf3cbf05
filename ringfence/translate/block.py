"""Guest code to blocks: decode, choose stencils, patch, chain.

A block is a run of instructions within one page (or one instruction across a page end), keyed by RAM offset and mode.

    hot:   u32 index, 4 bytes of padding, then the head, aligned to 8:
           sub dword [budget], n;  js BUDGET;  cmp dword [kick], 0;  jne BUDGET;  stencils …
    cold:  thunks, each `call STUB` with its operands behind it (runtime.py lists them)

Flags: the kind of the flag words is static inside a block, unknown (None) at its start, and written to memory before the
block is left.  Instructions that can fault count as readers of the flags, so what an exception shows is exact.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import iced_x86 as iced

from ringfence.ir.ops import FALLIBLE
from ringfence.ir.value import walk
from ringfence.isa.x86.context import INSTRUCTIONS, Context, Form, trace_form
from ringfence.isa.x86.decode import MAX_INSTRUCTION_BYTES, UNDEFINED, Decoded, decode, decoder, describe
from ringfence.isa.x86.flags import SETTLED
from ringfence.translate import layout
from ringfence.translate.code_memory import COLD_START, FIXED_START, CodeMemory
from ringfence.translate.layout import BLOCK_BYTES, FIELDS, HASH_ENTRIES, MAX_BLOCKS, TLB_TABLE_BYTES
from ringfence.translate.lower import PINNED, RECORD, RECORD_BYTES, RECORD_IMM, RECORD_NEXT
from ringfence.translate.objects import RELATIVE, patch, place
from ringfence.translate.runtime import BLOCK_CROSSING, KIND_UNCHANGED, MODE_FP_SLOW, MODE_TABLE
from ringfence.translate.stencils import Key, StencilStore

MAX_INSTRUCTIONS = 48
HEAD = b"\x41\x83\x6c\x24\xfc"  # sub dword [r12-4], imm8
TEST_KICK = b"\x41\x83\x7c\x24\xf8\x00"  # cmp dword [r12-8], 0
STORE_KIND = b"\x41\xc6\x44\x24\xe0"  # mov byte [r12-32], imm8
ADD_TLB_BYTES = 8  # length of add TLB_A(%r12,%r10),%rax
STORE_LENGTH = {1: 2, 2: 3, 4: 2, 8: 3, 16: 3, 10: 11}
NATIVE_OPERATIONS = 260  # bodies longer than this become native functions
# Bodies that always become native functions: they change how code or memory is reached, or are long and rare.
_NATIVE_MODULES = ("ringfence.isa.x86.system", "ringfence.isa.x86.delivery", "ringfence.isa.x86.fpu_state")
_STENCIL_ANYWAY = frozenset(("ud", "ud0", "ud1", "ud2", "gp", "rdtsc", "cpuid", "hlt", "swapgs", "rdmsr", "wrmsr"))
_FP_FEATURES = frozenset(
    v for k, v in vars(iced.CpuidFeature).items() if isinstance(v, int) and (k.startswith(("SSE", "SSSE", "FPU", "MMX", "FXSR", "CMOV_FPU")) or k == "FPU")
)


class Template(NamedTuple):
    """A stencil with everything patched that depends on the form and the TLB table only."""

    code: bytes
    holes: tuple[tuple[int, int, str, int, int], ...]  # offset, type, category, argument, addend
    kind_out: int | None  # kind of the flags it sets, None if none
    taken_at: int | None  # offset of the TAKEN displacement


class Recipe:
    """What the translator knows about one encoding (instruction bytes without displacement and immediates)."""

    def __init__(self, decoded: Decoded, form_immediates: bool) -> None:
        self.decoded = decoded
        self.form = decoded.form
        self.form_immediates = form_immediates
        self.binds = decoded.binds
        context = trace_form(self.form)
        self.reads_flags = context.f.reads
        self.partial = context.f.partial
        self.writes_flags = context.f.kind_out is not None
        operations = list(walk(context.trace.ops))
        self.can_fault = any(op.op in FALLIBLE for op in operations)
        end = next((op for op in context.trace.ops if op.op in ("jump", "taken", "exit")), None)
        self.end = end.op if end is not None else ""
        self.native = _wants_native(self.form, context, len(operations))
        self.bulk = _bulk_size(self.form)
        self.templates: dict[tuple[int, bool, bool, int], Template] = {}
        self.native_offset: int | None = None
        self.preserves_carry_only = self.form.name in ("inc", "dec")
        self.pins = tuple(
            sorted(((slot, field) for slot, (field, low) in self.binds.items() if field in PINNED), key=repr)
        )
        self.sets_shadow = self.form.name == "sti"


def _wants_native(form: Form, context: Context, count: int) -> bool:
    body = INSTRUCTIONS[form.name].body
    if form.name in _STENCIL_ANYWAY:
        return False
    if any(op.op in ("pload", "pstore") or op.at.get("system") for op in walk(context.trace.ops)):
        return True
    return body.__module__ in _NATIVE_MODULES or count > NATIVE_OPERATIONS


def _bulk_size(form: Form) -> int:
    """Element size in bytes when the bulk path applies."""
    if form.name in ("rep movs", "rep stos") and not form.mem.segment and not form.mem.address32:
        return form.size // 8
    return 0


class Translator:
    """Translates for one vCPU.  `stubs`: addresses (offsets in the code region) of the run time's symbols."""

    def __init__(self, memory: CodeMemory, store: StencilStore, symbols: dict[str, int]) -> None:
        self.memory = memory
        self.store = store
        self.symbols = symbols
        self.recipes: dict[bytes, Recipe] = {}
        self.next_block = 1
        self.blocks_translated = 0
        self.instructions_translated = 0
        self.flushes = 0
        self._natives: dict[Form, int] = {}
        self.fresh_pages: list[int] = []  # pages that got their first code: the engine protects them against stores
        self._settle = Recipe(_piece("(settle)"), False)
        self._leap = Recipe(Decoded(Form("(leap)", 64, (("i", 64, 0),)), 0, {}, {0: 0, "next": 0}, None, ""), False)

    # ---- recipes
    def recipe(self, raw: bytes, insn: iced.Instruction, offsets: Any) -> Recipe:
        """The recipe of an instruction with these bytes."""
        cut = len(raw)
        if offsets.has_displacement:
            cut = offsets.displacement_offset
        elif offsets.has_immediate:
            cut = offsets.immediate_offset
        prefix = raw[:cut]
        found = self.recipes.get(prefix)
        if found is not None and not found.form_immediates:
            return found
        if offsets.has_immediate:
            long = prefix + b"\0" + raw[offsets.immediate_offset :]
            found_long = self.recipes.get(long)
            if found_long is not None:
                return found_long
        decoded = describe(insn)
        form_immediates = any(k is not None for k, o in zip(decoded.form.imms, decoded.form.operands, strict=False) if o[0] == "i") and offsets.has_immediate
        new = Recipe(decoded, form_immediates)
        self.recipes[prefix] = new
        if form_immediates:
            self.recipes[long] = new
        return new

    def template(self, recipe: Recipe, kind: int, carry_live: bool, flags_live: bool, table: int) -> Template:
        if not recipe.reads_flags and not recipe.partial:
            kind = SETTLED
        if not recipe.preserves_carry_only:
            carry_live = True
        if not recipe.writes_flags and not recipe.partial:
            flags_live = True
        name = (kind, carry_live, flags_live, table)
        found = recipe.templates.get(name)
        if found is None:
            found = recipe.templates[name] = self._make_template(recipe, *name)
        return found

    def _make_template(self, recipe: Recipe, kind: int, carry_live: bool, flags_live: bool, table: int) -> Template:
        key = Key(recipe.form, recipe.pins, kind, carry_live, flags_live)
        stencil = self.store.get(key)
        context = trace_form(recipe.form, lazy=True, kind_in=kind, carry_live=carry_live, flags_live=flags_live)
        code = bytearray(stencil.code)
        tlb = layout.TLB + table * TLB_TABLE_BYTES
        holes: list[tuple[int, int, str, int, int]] = []
        taken_at = None
        for offset, type, symbol, addend in stencil.holes:
            if isinstance(symbol, tuple):
                constant = self.memory.constant(symbol[0]) + symbol[1]
                holes.append((offset, type, "POOL", constant, addend))
            elif symbol.startswith("R_"):
                slot: Any = symbol[2:]
                patch(code, offset, type, _offset(*recipe.binds[int(slot) if slot.isdigit() else slot]) + addend)
            elif symbol in ("TLB_R", "TLB_W", "TLB_A"):
                patch(code, offset, type, tlb + {"TLB_R": 0, "TLB_W": 8, "TLB_A": 24}[symbol] + addend)
            elif symbol.startswith("COLD_"):
                holes.append((offset, type, "COLD_" + symbol[5], int(symbol[6:]), addend))
            elif symbol.startswith(("IMM", "WIDE")):
                holes.append((offset, type, "IMM", int(symbol.lstrip("IMMWDE")), addend))
            else:
                if symbol == "TAKEN":
                    taken_at = offset
                holes.append((offset, type, symbol, 0, addend))
        if holes and holes[-1][2] == "CONT" and recipe.end != "taken" and holes[-1][0] == len(code) - 4 and code[-5] == 0xE9:
            holes.pop()
            del code[-5:]
        return Template(bytes(code), tuple(holes), context.f.kind_out, taken_at)

    def _native(self, recipe: Recipe) -> int:
        """Offset in the code region of a form's native function."""
        offset = self._natives.get(recipe.form)
        if offset is None:
            base = self.memory.fixed + 63 & -64
            image, symbols = place(self.store.native(recipe.form), base, self.symbols)
            offset = self._natives[recipe.form] = self.memory.append_fixed(image, 64) + symbols["f"]
        return offset

    # ---- blocks
    def translate(self, va: int, ra: int, mode: int, page: memoryview, second_page: tuple[int, memoryview] | None) -> bool:
        """Translates the block at linear address `va`, RAM offset `ra`.

        `page` is the whole guest page.  False when the first instruction runs into the next page and `second_page` (its
        RAM offset and bytes) was not given.
        """
        if self.next_block >= MAX_BLOCKS - 1 or self.memory.hot > COLD_START - 65536 or self.memory.cold > FIXED_START - 262144:
            self.flush()
        offset = va & 0xFFF
        raw = bytes(page[offset : offset + 16 * MAX_INSTRUCTIONS])
        insns = self._decode(raw, va, mode)
        crossing = False
        if not insns:
            whole = bytes(page[offset:])
            if len(whole) < MAX_INSTRUCTION_BYTES:
                if second_page is None:
                    return False
                whole += bytes(second_page[1][: MAX_INSTRUCTION_BYTES - len(whole)])
            decoded = decode(whole, va)
            assert decoded is not None  # 15 bytes are always enough
            crossing = offset + decoded.length > 4096
            source = decoder(whole[: decoded.length], va)
            insn = source.decode()
            if decoded.form.name in ("ud", "gp"):
                recipe = Recipe(decoded, False)
            else:
                recipe = self.recipe(whole[: decoded.length], insn, source.get_constant_offsets(insn))
            insns = [(recipe, insn, decoded.length)]
        _Builder(self, va, ra, mode, insns, second_page if crossing else None).build()
        self.blocks_translated += 1
        self.instructions_translated += len(insns)
        return True

    def _decode(self, raw: bytes, va: int, mode: int) -> list[tuple[Recipe, Any, int]]:
        source = decoder(raw, va)
        offsets_of = source.get_constant_offsets
        out: list[tuple[Recipe, Any, int]] = []
        position = 0
        left = MAX_INSTRUCTIONS
        for insn in source:
            length = insn.len
            if insn.code == iced.Code.INVALID:
                break
            end = position + length
            recipe = self.recipe(raw[position:end], insn, offsets_of(insn))
            if mode & MODE_FP_SLOW and _uses_fp(insn):
                recipe = _DEFER
            out.append((recipe, insn, length))
            position = end
            left -= 1
            if recipe.end or recipe.form is UNDEFINED or recipe.form.name in _ENDS_BLOCK or left == 0:
                break
            if recipe.sets_shadow:
                left = 1
        return out

    def flush(self) -> None:
        """Drops every block.  Only while no translated code runs."""
        memory = self.memory
        self.flushes += 1
        memory.hash32[:] = _zeroes(len(memory.hash32))
        used = self.next_block * (BLOCK_BYTES // 4)
        memory.blocks32[:used] = _zeroes(used)
        for k in range(0, len(memory.pages64), 2):
            if memory.pages64[k] or memory.pages32[2 * k + 2]:
                memory.pages64[k] = 0
                memory.pages32[2 * k + 2] = 0
        self.next_block = 1
        memory.hot = 0
        memory.cold = COLD_START


def _offset(field: Any, low: int) -> int:
    """Where a bound register lies; element n of an indexed field is bound as (field, n)."""
    if isinstance(field, tuple):
        return FIELDS[field[0]] + layout.stride(field[0]) * field[1]
    return FIELDS[field] + low // 8


def _zeroes(n: int) -> memoryview:
    return memoryview(bytes(4 * n)).cast("I")


_NOT_FP = frozenset(v for k, v in vars(iced.Mnemonic).items() if isinstance(v, int) and k.startswith(("PREFETCH", "LFENCE", "SFENCE", "MFENCE", "MOVNTI", "PAUSE", "CLFLUSH")))


def _uses_fp(insn: iced.Instruction) -> bool:
    """Whether CR0.EM, CR0.TS and CR4.OSFXSR apply."""
    return insn.mnemonic not in _NOT_FP and any(f in _FP_FEATURES for f in insn.cpuid_features())


def _piece(name: str) -> Decoded:
    return Decoded(Form(name, 64, ()), 0, {}, {"next": 0}, None, "")


_ENDS_BLOCK = frozenset(("(defer)", "hlt", "ud", "gp", "cpuid"))
_DEFER = Recipe(_piece("(defer)"), False)


class _Builder:
    """One block being put together."""

    def __init__(self, t: Translator, va: int, ra: int, mode: int, insns: list[tuple[Recipe, Any, int]], second: tuple[int, memoryview] | None) -> None:
        self.t = t
        self.memory = t.memory
        self.symbols = t.symbols
        self.va = va
        self.ra = ra
        self.mode = mode
        self.table = mode & MODE_TABLE
        self.insns = insns
        self.second = second
        self.index = t.next_block
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
            if recipe.reads_flags and not recipe.preserves_carry_only or recipe.can_fault or recipe.native:
                live = carry = True
            elif recipe.preserves_carry_only:
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
        self.hot += HEAD + bytes((count,)) + b"\x0f\x88"
        self.hot += struct.pack("<i", budget - (self.here() + 4))
        self.hot += TEST_KICK + b"\x0f\x85"
        self.hot += struct.pack("<i", budget - (self.here() + 4))
        if self.second is not None:
            self._check_second_page(first, count)
        live = self.liveness()
        offset = first
        ended = False
        for k, (recipe, insn, length) in enumerate(self.insns):
            ended = self._instruction(recipe, insn, offset, length, count - k, *live[k])
            offset += length
        if not ended:
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
            self.hot += STORE_KIND + bytes((self.kind,))

    def _settle(self) -> None:
        if self.kind is None:
            self.hot += b"\xe8" + struct.pack("<i", self.symbols["s_settle"] - (self.here() + 5))
        elif self.kind != SETTLED:
            self._place(self.t.template(self.t._settle, self.kind, True, True, self.table), None, 0, 0, 0)
        self.kind = SETTLED

    def _instruction(self, recipe: Recipe, insn: Any, offset: int, length: int, remaining: int, carry_live: bool, flags_live: bool) -> bool:
        """Emits one instruction; True when it ends the block."""
        if recipe.form.name in ("nop", "pause", "endbr64", "lfence", "mfence", "sfence"):
            return False
        if recipe.native:
            return self._native_call(recipe, insn, offset, length, remaining)
        if recipe.bulk:
            self._bulk(recipe, offset, length, remaining)
        if (recipe.reads_flags or recipe.partial) and self.kind is None and (flags_live or recipe.reads_flags):
            self._settle()
        if recipe.end and recipe.writes_flags and self.kind is not None:
            self._settle()
        if recipe.end:
            self._store_kind()
        template = self.t.template(recipe, self.kind or SETTLED, carry_live, flags_live, self.table)
        self._place(template, insn, offset, length, remaining, recipe)
        if template.kind_out is not None:
            self.kind = template.kind_out
        return bool(recipe.end) or recipe.form.name in _ENDS_BLOCK

    def _place(self, template: Template, insn: Any, offset: int, length: int, remaining: int, recipe: Recipe | None = None) -> None:
        hot = self.hot
        if template.taken_at is not None:  # its displacement is patched while code runs: keep it aligned
            pad = -(self.here() + template.taken_at) & 3
            hot += b"\x90" * pad
        start = len(hot)
        base = self.origin + start
        hot += template.code
        after = base + len(template.code)
        for at, type, category, argument, addend in template.holes:
            place = base + at
            if category == "DISP":
                value = insn.memory_displacement
                if recipe is not None and recipe.form.mem.rip:
                    value -= insn.ip & ~0xFFF
                value += addend
            elif category == "IMM":
                value = self._immediate(recipe, insn, argument) + addend
            elif category == "NEXT":
                value = offset + length + addend
            elif category[:5] == "COLD_":
                value = self._slow(category[5], argument, place, offset, length, remaining) + addend - place
            elif category == "FAULT" or category == "EXIT":
                data = struct.pack("<HHHBB", offset, offset + length, remaining, self._kind_byte(), 0)
                value = self.thunk("s_fault" if category == "FAULT" else "s_exit", data) + addend - place
            elif category == "LOOKUP":
                value = self.symbols["s_lookup"] + addend - place
            elif category == "TAKEN":
                repeats = recipe is not None and recipe.form.name.startswith("rep")
                target = offset if repeats else insn.near_branch_target - (self.va & ~0xFFF)
                value = self._link(place, target) + addend - place
            elif category == "CONT":
                if recipe is not None and recipe.end == "taken":
                    value = self._link(place, offset + length) + addend - place
                else:
                    value = after + addend - place
            elif category == "POOL":
                value = argument + addend - place
            else:
                raise KeyError(category)
            patch(hot, start + at, type, value)

    def _immediate(self, recipe: Recipe | None, insn: Any, slot: int) -> int:
        assert recipe is not None
        w = recipe.form.operands[slot][1]
        value = int(insn.immediate(recipe.decoded.immediates[slot])) & (1 << w) - 1
        return value - (1 << w) if value >> (w - 1) else value

    def _slow(self, kind: str, size: int, place: int, offset: int, length: int, remaining: int) -> int:
        stub = {"R": "s_slow_r", "M": "s_slow_m", "W": "s_slow_w" if size <= 8 else "s_slow_wx"}[kind]
        at = self.cold_origin + len(self.cold)
        resume = place + 4 + ADD_TLB_BYTES - (at + 5)
        store = STORE_LENGTH[size] if kind == "W" else 0
        return self.thunk(stub, struct.pack("<iHBBHBB", resume, offset, size, length, remaining, self._kind_byte(), store))

    def _link(self, site: int, target: int) -> int:
        """A thunk that goes on at an offset from this page; within the page it patches `site` to jump directly."""
        if 0 <= target < 4096 and self.second is None:
            at = self.cold_origin + len(self.cold)
            return self.thunk("s_link", struct.pack("<HHi", target, 0, site - (at + 5)))
        template = self.t.template(self.t._leap, SETTLED, True, True, self.table)
        at = self.cold_origin + len(self.cold)
        code = bytearray(template.code)
        for where, type, category, _, addend in template.holes:
            place = at + where
            if category == "IMM":
                patch(code, where, type, target + addend)
            else:
                patch(code, where, type, self.symbols["s_lookup"] + addend - place)
        self.cold += code
        return at

    def _jump_to(self, opcode: bytes, target: int) -> None:
        self.hot += b"\x90" * (-(self.here() + len(opcode)) & 3)
        self.hot += opcode
        site = self.here()
        self.hot += struct.pack("<i", self._link(site, target) - (site + 4))

    def _record(self, function: int, recipe: Recipe, insn: Any, offset: int, length: int, remaining: int, kind_out: int) -> bytearray:
        record = bytearray(RECORD_BYTES)
        struct.pack_into("<IHBBHB", record, 0, function, offset, length, self._kind_byte(), remaining, kind_out)
        for slot, (field, low) in recipe.binds.items():
            struct.pack_into("<i", record, RECORD[slot], _offset(field, low))
        mem = recipe.form.mem
        if mem.disp and insn is not None:
            value = insn.memory_displacement - (insn.ip & ~0xFFF if mem.rip else 0)
            struct.pack_into("<I", record, RECORD["disp"], value & 0xFFFFFFFF)
        for slot, (kind, _, _) in enumerate(recipe.form.operands):
            if kind == "i" and (slot >= len(recipe.form.imms) or recipe.form.imms[slot] is None):
                struct.pack_into("<q", record, RECORD_IMM[slot], self._immediate(recipe, insn, slot))
        struct.pack_into("<I", record, RECORD_NEXT, offset + length)
        return record

    def _call_record(self, record: bytes) -> None:
        self.cold += bytes(-(self.cold_origin + len(self.cold)) & 7)
        at = self.cold_origin + len(self.cold)
        self.cold += record
        self.hot += b"\x48\x8d\x05" + struct.pack("<i", at - (self.here() + 7))  # lea rax, [rip + record]
        self.hot += b"\xe8" + struct.pack("<i", self.symbols["s_call"] - (self.here() + 5))

    def _native_call(self, recipe: Recipe, insn: Any, offset: int, length: int, remaining: int) -> bool:
        if recipe.reads_flags or recipe.partial:
            self._settle()
        kind_in = self._kind_byte()
        kind_out = SETTLED if recipe.writes_flags else kind_in
        self._call_record(self._record(self.t._native(recipe), recipe, insn, offset, length, remaining, kind_out))
        if recipe.writes_flags:
            self.kind = SETTLED
        return bool(recipe.end) or recipe.form.name in _ENDS_BLOCK

    def _bulk(self, recipe: Recipe, offset: int, length: int, remaining: int) -> None:
        record = bytearray(RECORD_BYTES)
        function = self.symbols["b_rep_movs" if recipe.form.name == "rep movs" else "b_rep_stos"]
        struct.pack_into("<IHBBHB", record, 0, function, offset, length, self._kind_byte(), remaining, self._kind_byte())
        struct.pack_into("<q", record, RECORD_IMM[0], recipe.bulk)
        struct.pack_into("<I", record, RECORD_NEXT, offset + length)
        self._call_record(record)

    def _register(self, guest_bytes: int) -> None:
        """Writes the code and enters the block into the tables."""
        memory, t = self.memory, self.t
        struct.pack_into("<I", memory.code, self.origin - 8, self.index)
        memory.code[self.origin : self.origin + len(self.hot)] = self.hot
        memory.code[self.cold_origin : self.cold_origin + len(self.cold)] = self.cold
        memory.hot = self.origin + len(self.hot)
        memory.cold = self.cold_origin + len(self.cold)
        t.next_block += 1
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
