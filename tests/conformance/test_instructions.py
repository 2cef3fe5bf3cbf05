"""Every instruction form that iced's tables can produce: its body traces, is a transaction, is well typed, and compiles.

Here are the forms that no judge executes as well: those of ring 0, and those that depend on the host.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import pytest

import ringfence.isa.x86.bodies  # noqa: F401  (fills INSTRUCTIONS)
from ringfence.ir.ops import COMPARE, ENDS, PURE
from ringfence.ir.value import Op, walk
from ringfence.ir.verify import verify
from ringfence.isa.x86.context import INSTRUCTIONS, Context, trace_form
from ringfence.isa.x86.decode import Decoded, decode
from ringfence.isa.x86.flags import ADD, SETTLED, SUB
from ringfence.isa.x86.models import DEFAULT, MODELS
from ringfence.isa.x86.modes import FLAT, REAL
from ringfence.isa.x86.state import EngineState, X86State
from ringfence.translate.lower import Lowering, module

from ..differential.encode import CODE_NAMES, encodable, encode, has_memory_shape, has_register_shape

FIELDS = {**X86State.FIELDS, **EngineState.FIELDS}
MEMORY_WIDTHS = (8, 16, 32, 64, 80, 128)
KINDS = (SETTLED, SUB[8], SUB[64], ADD[32])
PARTS = 4
# Bodies that are part of the engine, and aliases that the decoder names otherwise.
NOT_DECODED = frozenset(name for name in INSTRUCTIONS if name.startswith("("))


@cache
def decoded_forms() -> dict[Any, tuple[bytes, Decoded]]:
    """One encoding of every form."""
    rng = random.Random(11)
    found: dict[Any, tuple[bytes, Decoded]] = {}
    for code in encodable():
        for memory in (False, True):
            if not (has_memory_shape(code) if memory else has_register_shape(code)):
                continue
            for prefixes in (b"", b"\xf0", b"\xf3", b"\xf2", b"\x67", b"\x65"):
                for _ in range(60 if CODE_NAMES[code] in ("MOV_R64_CR", "MOV_CR_R64", "MOV_R64_DR", "MOV_DR_R64") else 4):
                    raw = encode(code, rng, memory, prefixes).replace(b"RIP!", b"\0\0\0\0")
                    decoded = decode(raw.ljust(15, b"\x90"), 0x1000)
                    assert decoded is not None
                    found.setdefault(decoded.form, (raw, decoded))
    return found


def part(k: int) -> list[tuple[bytes, Decoded]]:
    return list(decoded_forms().values())[k::PARTS]


def mistyped(ops: list[Op]) -> list[str]:
    """Operations whose widths do not fit, or that use what is not computed on every path to them."""
    problems: list[str] = []

    def check(sequence: list[Op], known: dict[int, int]) -> None:
        for op in sequence:
            for a in op.args:
                if a.const is None and known.get(a.id) != a.w and op.op != "choose":
                    problems.append(f"%{op.id} {op.op} uses %{a.id}:{a.w}")
            for sub in op.sub:
                check(sub, dict(known))
            if not _fits(op):
                problems.append(f"%{op.id}:{op.w} {op.op} of {[a.w for a in op.args]} {op.at}")
            known[op.id] = op.w

    check(ops, {})
    return problems


def _fits(op: Op) -> bool:
    widths = [a.w for a in op.args]
    match op.op:
        case "zext" | "sext":
            return op.w > widths[0]
        case "trunc":
            return op.w < widths[0]
        case "select":
            return widths == [1, op.w, op.w]
        case "when" | "taken":
            return widths == [1]
        case "jump":
            return widths == [64]
        case "load":
            return widths == [64] and op.w in MEMORY_WIDTHS
        case "store":
            return widths[0] == 64 and widths[1] in MEMORY_WIDTHS
        case "set" if "field" in op.at:
            return op.at["field"] in FIELDS and op.at["low"] + widths[0] <= -(-FIELDS[op.at["field"]].bits // 8) * 8
        case "get" if "field" in op.at:
            return op.at["field"] in FIELDS
    if op.op in COMPARE and "lane" not in op.at:
        return op.w == 1 and len(set(widths)) == 1
    if op.op in PURE and op.op != "crc32c":
        return set(widths) == {op.w}
    return True


@pytest.mark.parametrize("k", range(PARTS))
def test_bodies_are_well_typed_transactions(k: int) -> None:
    problems = []
    for raw, decoded in part(k):
        instruction = INSTRUCTIONS[decoded.form.name]
        ops = trace_form(decoded.form).trace.ops
        found = mistyped(ops) + ([] if instruction.restart else verify(ops))
        problems += [f"{raw.hex()} {decoded.form.name}: {p}" for p in found]
        for op in walk(ops):
            if "slot" in op.at and op.at["slot"] not in (decoded.imms if op.op == "imm" else decoded.binds):
                problems.append(f"{raw.hex()} {decoded.form.name}: nothing fills slot {op.at['slot']}")
    assert not problems, "\n".join(problems[:40])


@pytest.mark.parametrize("k", range(PARTS))
def test_every_form_compiles(k: int) -> None:
    """As a stencil, with flags of several kinds at entry, or as a native function where it has no stencil."""
    batch: list[Lowering] = []
    for n, (raw, decoded) in enumerate(part(k)):
        kind = KINDS[n % len(KINDS)]
        native = any(op.op in ("pload", "pstore") or op.at.get("system") for op in walk(trace_form(decoded.form).trace.ops))
        context = trace_form(decoded.form) if native else trace_form(decoded.form, lazy=True, kind_in=kind)
        lowering = Lowering(f"f{n}", context, "native" if native else "stencil", {})
        try:
            lowering.text = lowering.function()  # type: ignore[attr-defined]
        except Exception as error:
            raise AssertionError(f"{raw.hex()} {decoded.form}: {type(error).__name__} {error}") from error
        batch.append(lowering)
    for stencil in (True, False):
        chosen = [low for low in batch if low.stencil == stencil]
        declarations = {d for low in chosen for d in low.declarations}
        holes = {h for low in chosen for h in low.holes}
        text = module([low.text for low in chosen], declarations, holes, stencil)  # type: ignore[attr-defined]
        llvm.parse_assembly(text).verify()


# Bodies without an encoding in 64-bit mode of this CPU model, or that the drawn operands miss.
UNREACHED: dict[str, str] = {
    "gp": "instructions longer than 15 bytes",
    "tzcnt": "BMI1 is not announced: F3 0F BC is BSF",
    "sysretd": "iced's name for both is sysret",
    "sysexitd": "iced's name for both is sysexit",
    **{f"prefetchreserved{n}": "not among the encodings that are drawn" for n in range(3, 8)},
}


def legacy_names() -> set[str]:
    """Bodies that encodings outside of 64-bit mode reach, on this CPU model and on the first ones."""
    found = set()
    for model, modes in ((DEFAULT, (REAL, FLAT)), (MODELS["8086"], (REAL,)), (MODELS["286"], (REAL,))):
        for mode in modes:
            for prefix in (b"", b"\x66", b"\x67", b"\xf3"):
                for escape in (b"", b"\x0f"):
                    for opcode in range(256):
                        for modrm in (*range(0, 64, 8), *range(0xC0, 0x100, 8), 0xC4):
                            raw = prefix + escape + bytes((opcode, modrm))
                            decoded = decode(raw.ljust(15, b"\x11"), 0x1000, mode, model)
                            assert decoded is not None
                            found.add(decoded.form.name)
    return found


def test_every_body_can_be_reached_by_an_encoding() -> None:
    reached = {form.name for form in decoded_forms()} | NOT_DECODED | legacy_names()
    assert set(INSTRUCTIONS) <= reached | UNREACHED.keys(), sorted(set(INSTRUCTIONS) - reached - UNREACHED.keys())


def test_forms_are_values() -> None:
    """Forms are keys of caches: equal for equal encodings, whatever registers, displacements and immediates they hold."""
    a, b = decode(bytes.fromhex("4801d8").ljust(15), 0), decode(bytes.fromhex("4d01c8").ljust(15), 0)
    assert a is not None and b is not None and a.form == b.form and hash(a.form) == hash(b.form) and a.binds != b.binds


def test_a_body_ends_at_most_once() -> None:
    for _, decoded in decoded_forms().values():
        ends = [op for op in walk(trace_form(decoded.form).trace.ops) if op.op in ENDS]
        assert len(ends) <= 1, decoded.form


def test_lazy_flags_mean_the_same() -> None:
    """What a stencil leaves in the flag words, by its kind, is what the settled words say."""
    context = Context(decode(bytes.fromhex("4801d8").ljust(15), 0).form, lazy=True)  # type: ignore[union-attr]
    INSTRUCTIONS["add"].body(context)
    assert context.f.kind_out == ADD[64]
