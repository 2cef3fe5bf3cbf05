"""What the translator knows about an encoding, and its stencils made ready for patching.

A `Recipe` belongs to the bytes of an instruction without displacement and immediates (with those immediates that are part
of the form).  Recipes and their templates are plain data: they are kept in the user's cache beside the stencils, so that a
second run neither decodes forms nor traces bodies.
"""

from __future__ import annotations

import marshal
import struct
from typing import Any, NamedTuple

import iced_x86 as iced

from ringfence.ir.ops import FALLIBLE
from ringfence.ir.value import walk
from ringfence.isa.x86.context import INSTRUCTIONS, Context, Form, MemForm, trace_form
from ringfence.isa.x86.decode import Decoded, describe
from ringfence.isa.x86.flags import SETTLED
from ringfence.isa.x86.models import DEFAULT, CpuModel
from ringfence.isa.x86.modes import LONG, code_bits, is_real
from ringfence.isa.x86.state import SEGMENTS
from ringfence.translate import layout
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.layout import FIELDS, TLB_TABLE_BYTES
from ringfence.translate.lower import PINNED
from ringfence.translate.objects import R_32, R_32S, patch
from ringfence.translate.stencils import Key, StencilStore

NATIVE_OPERATIONS = 260  # bodies longer than this become native functions
# Bodies that always become native functions: they change how code or memory is reached, or are long and rare.
_NATIVE_MODULES = (
    "ringfence.isa.x86.system",
    "ringfence.isa.x86.delivery",
    "ringfence.isa.x86.transfers",
    "ringfence.isa.x86.fpu_state",
)
_STENCIL_ANYWAY = frozenset(("into", "ud", "ud0", "ud1", "ud2", "gp", "rdtsc", "cpuid", "hlt", "swapgs", "rdmsr", "wrmsr"))
_ENDS_BLOCK = frozenset(("(defer)", "hlt", "ud", "gp", "int", "int3", "int1"))
_SOFT_INTERRUPTS = frozenset(("int", "int3", "int1", "into"))
BULK_CHECKED = 1 << 10
_EMPTY = frozenset(("nop", "pause", "endbr64", "lfence", "sfence"))


class Template(NamedTuple):
    """A stencil with everything patched that depends on the form and the TLB table only.  Offsets are in `code`."""

    code: bytes
    displacements: tuple[tuple[int, int], ...]  # offset, addend
    immediates: tuple[tuple[int, int, int, int], ...]  # offset, relocation type, slot, addend
    slow: tuple[tuple[int, str, int, int], ...]  # offset, access R M W, bytes, addend
    others: tuple[tuple[int, int, str, int], ...]  # offset, relocation type, symbol, addend
    constants: tuple[tuple[int, bytes, int, int], ...]  # offset, constant, offset in it, addend
    kind_out: int | None  # kind of the flags it sets, None if none
    taken_at: int  # offset of the TAKEN displacement, -1 if none
    simple: bool  # nothing left to patch


def _bulk(form: Form) -> int:
    """How the bulk path of REP MOVS and REP STOS is told what to do (runtime.py): bytes an element, 0 if there is none;
    bits 9:8 the address size (64, 32, 16), bit 10 segments are checked, bits 14:12 the source's segment."""
    mem = form.mem
    if form.name not in ("rep movs", "rep stos") or (mem.segment and not mem.limit):
        return 0
    code = form.size // 8 | (2 if mem.address16 else 1 if mem.address32 else 0) << 8
    if mem.limit:
        code |= BULK_CHECKED | SEGMENTS.index(mem.segment or "ds") << 12
    return code


class Recipe:
    """One encoding."""

    __slots__ = (
        "form", "form_immediates", "binds", "immediates", "reads_flags", "partial", "writes_flags", "can_fault", "end", "native", "bulk",
        "templates", "steps_carry", "pins", "sets_shadow", "ends_block", "empty", "repeats", "rip_relative", "sample",
    )  # fmt: skip

    def __init__(
        self, form: Form, form_immediates: bool, binds: dict[Any, Any], immediates: dict[int, int], facts: tuple[Any, ...]
    ) -> None:
        self.form = form
        self.sample = b""  # an instruction of this encoding, with zeroes where the value does not matter
        self.form_immediates = form_immediates
        self.binds = binds
        self.immediates = immediates
        self.reads_flags, self.partial, self.writes_flags, self.can_fault, self.end, self.native = facts
        self.bulk = _bulk(form)
        self.templates: dict[tuple[int, bool, bool, int], Template] = {}
        self.steps_carry = form.name in ("inc", "dec")
        self.pins = tuple(sorted(((slot, field) for slot, (field, low) in binds.items() if field in PINNED), key=repr))
        self.sets_shadow = form.name == "sti"
        self.ends_block = bool(self.end) or form.name in _ENDS_BLOCK
        self.empty = form.name in _EMPTY
        self.repeats = form.name.startswith("rep")
        self.rip_relative = form.mem.rip

    def record(self) -> bytes:
        """All of it, for the cache."""
        f = self.form
        form = (f.name, f.size, f.operands, tuple(f.mem), f.imms, f.lock, f.mode)
        facts = (self.reads_flags, self.partial, self.writes_flags, self.can_fault, self.end, self.native)
        templates = {k: tuple(t) for k, t in self.templates.items()}
        return marshal.dumps((form, self.form_immediates, self.binds, self.immediates, facts, templates, self.sample))


def recipe_of_record(record: bytes) -> Recipe:
    form, form_immediates, binds, immediates, facts, templates, sample = marshal.loads(record)
    name, size, operands, mem, imms, lock, mode = form
    recipe = Recipe(Form(name, size, operands, MemForm(*mem), imms, lock, mode), form_immediates, binds, immediates, facts)
    recipe.templates = {k: Template(*t) for k, t in templates.items()}
    recipe.sample = sample
    return recipe


def names_of(raw: bytes, offsets: Any) -> tuple[bytes, bytes]:
    """What recipes are kept under: the bytes before displacement and immediate, and those with the immediate behind them, for
    encodings whose immediates belong to the form.  `offsets` are iced's."""
    cut = len(raw)
    if offsets.has_displacement:
        cut = offsets.displacement_offset
    elif offsets.has_immediate:
        cut = offsets.immediate_offset
    prefix = raw[:cut]
    return prefix, prefix + b"\0" + raw[offsets.immediate_offset :] if offsets.has_immediate else prefix


def new_recipe(raw: bytes, insn: iced.Instruction, offsets: Any, mode: int, model: CpuModel = DEFAULT) -> Recipe:
    """The recipe of an instruction that was decoded in `mode` from these bytes."""
    if code_bits(mode) == 32 and insn.op_count and insn.op_kind(0) == iced.OpKind.NEAR_BRANCH16:
        return piece("(defer)")  # EIP is cut to 16 bits, wherever the block is
    recipe = make_recipe(describe(insn, mode, model), offsets.has_immediate)
    sample = bytearray(raw)
    if offsets.has_displacement:
        first = offsets.displacement_offset
        sample[first : first + offsets.displacement_size] = bytes(offsets.displacement_size)
    if offsets.has_immediate and not recipe.form_immediates:
        sample[offsets.immediate_offset :] = bytes(len(raw) - offsets.immediate_offset)
    recipe.sample = bytes(sample)
    return recipe


def make_recipe(decoded: Decoded, has_immediate: bool) -> Recipe:
    """Traces the form once to learn what the translator must know."""
    form = decoded.form
    context = trace_form(form)
    if not context.mode_matters:
        form = form._replace(mode=LONG)
    operations = list(walk(context.trace.ops))
    end = next((op.op for op in context.trace.ops if op.op in ("jump", "taken", "exit")), "")
    facts = (
        context.f.reads,
        context.f.partial,
        context.f.kind_out is not None,
        any(op.op in FALLIBLE for op in operations),
        end,
        _wants_native(form, context, len(operations)),
    )
    in_form = has_immediate and any(k is not None for k, o in zip(form.imms, form.operands, strict=False) if o[0] == "i")
    return Recipe(form, in_form, decoded.binds, decoded.immediates, facts)


def _wants_native(form: Form, context: Context, count: int) -> bool:
    if form.name in _STENCIL_ANYWAY or (form.name in _SOFT_INTERRUPTS and form.mode != LONG):
        return False
    operations = list(walk(context.trace.ops))
    if any(op.op in ("pload", "pstore") or op.at.get("system") for op in operations):
        return True
    if any(op.op == "set" and op.at.get("field") == "request" for op in operations):
        return True  # the run time serves requests behind native functions only
    heavy = INSTRUCTIONS[form.name].body.__module__ in _NATIVE_MODULES and not is_real(form.mode)
    return heavy or count > NATIVE_OPERATIONS


def piece(name: str, operands: tuple[tuple[str, int, int], ...] = (), mode: int = LONG) -> Recipe:
    """A body that is no instruction: what the translator puts in between."""
    return make_recipe(Decoded(Form(name, 64, operands, mode=mode), 0, {}, {"next": 0}, None, ""), False)


def field_offset(field: Any, low: int) -> int:
    """Where a bound register lies; element n of an indexed field is bound as (field, n)."""
    if isinstance(field, tuple):
        return FIELDS[field[0]] + layout.stride(field[0]) * int(field[1])
    return FIELDS[field] + low // 8


def find_template(recipe: Recipe, store: StencilStore, kind: int, carry_live: bool, flags_live: bool, table: int) -> Template:
    """The stencil for this use of a recipe.  What does not matter to the form is normalised first."""
    if not recipe.reads_flags and not recipe.partial:
        kind = SETTLED
    if not recipe.steps_carry:
        carry_live = True
    if not recipe.writes_flags and not recipe.partial:
        flags_live = True
    name = (kind, carry_live, flags_live, table)
    found = recipe.templates.get(name)
    if found is None:
        found = recipe.templates[name] = _make_template(recipe, store, *name)
        store.recipes_changed |= bool(recipe.sample)  # what the translator puts between instructions is made by every run
    return found


def _make_template(recipe: Recipe, store: StencilStore, kind: int, carry_live: bool, flags_live: bool, table: int) -> Template:
    stencil = store.get(Key(recipe.form, recipe.pins, kind, carry_live, flags_live))
    context = trace_form(recipe.form, lazy=True, kind_in=kind, carry_live=carry_live, flags_live=flags_live)
    code = bytearray(stencil.code)
    tlb = layout.TLB + table * TLB_TABLE_BYTES
    holes = list(stencil.holes)
    if holes and holes[-1].symbol == "CONT" and recipe.end != "taken" and holes[-1].offset == len(code) - 4 and code[-5] == 0xE9:
        holes.pop()
        del code[-5:]  # the next instruction follows anyway
    displacements, immediates, slow, others, constants = [], [], [], [], []
    taken_at = -1
    for offset, type, symbol, addend in holes:
        if isinstance(symbol, tuple):
            constants.append((offset, bytes(symbol[0]), symbol[1], addend))
        elif symbol.startswith("R_"):
            slot: Any = symbol[2:]
            patch(code, offset, type, field_offset(*recipe.binds[int(slot) if slot.isdigit() else slot]) + addend)
        elif symbol in ("TLB_R", "TLB_W", "TLB_A"):
            patch(code, offset, type, tlb + {"TLB_R": 0, "TLB_W": 8, "TLB_A": 24}[symbol] + addend)
        elif symbol.startswith("COLD_"):
            slow.append((offset, symbol[5], int(symbol[6:]), addend))
        elif symbol == "DISP" and type in (R_32, R_32S):
            displacements.append((offset, addend))
        elif symbol.startswith(("IMM", "WIDE")):
            immediates.append((offset, type, int(symbol[-1]), addend))
        else:
            if symbol == "TAKEN":
                taken_at = offset
            others.append((offset, type, symbol, addend))
    simple = not (displacements or immediates or slow or others or constants)
    return Template(
        bytes(code),
        tuple(displacements),
        tuple(immediates),
        tuple(slow),
        tuple(others),
        tuple(constants),
        context.f.kind_out,
        taken_at,
        simple,
    )


def place_constants(template: Template, memory: CodeMemory, code: bytearray, start: int, base: int) -> None:
    """Patches references to literals, which lie once in the fixed part of the region."""
    for offset, data, inside, addend in template.constants:
        value = memory.constant(data) + inside + addend - (base + offset)
        struct.pack_into("<i", code, start + offset, value)
