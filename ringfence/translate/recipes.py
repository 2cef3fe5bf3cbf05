"""What the translator knows about an encoding, and its stencils made ready for patching.

A `Recipe` belongs to the bytes of an instruction without displacement and immediates (with those immediates that are part
of the form).  Recipes and their templates are plain data: they are kept in the user's cache beside the stencils, so that a
second run neither decodes forms nor traces bodies.
"""

from __future__ import annotations

import marshal
import struct
from typing import Any, NamedTuple

from ringfence.ir.ops import FALLIBLE
from ringfence.ir.value import walk
from ringfence.isa.x86.context import INSTRUCTIONS, Context, Form, MemForm, trace_form
from ringfence.isa.x86.decode import Decoded
from ringfence.isa.x86.flags import SETTLED
from ringfence.translate import layout
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.layout import FIELDS, TLB_TABLE_BYTES
from ringfence.translate.lower import PINNED
from ringfence.translate.objects import R_32, R_32S, patch
from ringfence.translate.stencils import Key, StencilStore

NATIVE_OPERATIONS = 260  # bodies longer than this become native functions
# Bodies that always become native functions: they change how code or memory is reached, or are long and rare.
_NATIVE_MODULES = ("ringfence.isa.x86.system", "ringfence.isa.x86.delivery", "ringfence.isa.x86.fpu_state")
_STENCIL_ANYWAY = frozenset(("ud", "ud0", "ud1", "ud2", "gp", "rdtsc", "cpuid", "hlt", "swapgs", "rdmsr", "wrmsr"))
_ENDS_BLOCK = frozenset(("(defer)", "hlt", "ud", "gp", "cpuid"))
_EMPTY = frozenset(("nop", "pause", "endbr64", "lfence", "mfence", "sfence"))


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


class Recipe:
    """One encoding."""

    __slots__ = (
        "form", "form_immediates", "binds", "immediates", "reads_flags", "partial", "writes_flags", "can_fault", "end", "native", "bulk",
        "templates", "steps_carry", "pins", "sets_shadow", "ends_block", "empty", "repeats", "rip_relative",
    )  # fmt: skip

    def __init__(
        self, form: Form, form_immediates: bool, binds: dict[Any, Any], immediates: dict[int, int], facts: tuple[Any, ...]
    ) -> None:
        self.form = form
        self.form_immediates = form_immediates
        self.binds = binds
        self.immediates = immediates
        self.reads_flags, self.partial, self.writes_flags, self.can_fault, self.end, self.native = facts
        self.bulk = form.size // 8 if form.name in ("rep movs", "rep stos") and not form.mem.segment and not form.mem.address32 else 0
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
        return marshal.dumps((form, self.form_immediates, self.binds, self.immediates, facts, templates))


def recipe_of_record(record: bytes) -> Recipe:
    form, form_immediates, binds, immediates, facts, templates = marshal.loads(record)
    name, size, operands, mem, imms, lock, mode = form
    recipe = Recipe(Form(name, size, operands, MemForm(*mem), imms, lock, mode), form_immediates, binds, immediates, facts)
    recipe.templates = {k: Template(*t) for k, t in templates.items()}
    return recipe


def make_recipe(decoded: Decoded, has_immediate: bool) -> Recipe:
    """Traces the form once to learn what the translator must know."""
    form = decoded.form
    context = trace_form(form)
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
    if form.name in _STENCIL_ANYWAY:
        return False
    operations = list(walk(context.trace.ops))
    if any(op.op in ("pload", "pstore") or op.at.get("system") for op in operations):
        return True
    if any(op.op == "set" and op.at.get("field") == "request" for op in operations):
        return True  # the run time serves requests behind native functions only
    return INSTRUCTIONS[form.name].body.__module__ in _NATIVE_MODULES or count > NATIVE_OPERATIONS


def piece(name: str, operands: tuple[tuple[str, int, int], ...] = ()) -> Recipe:
    """A body that is no instruction: what the translator puts in between."""
    return make_recipe(Decoded(Form(name, 64, operands), 0, {}, {"next": 0}, None, ""), False)


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
        store.recipes_changed = True
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
