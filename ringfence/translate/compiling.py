"""Instruction forms to machine code, with LLVM."""

from __future__ import annotations

from collections.abc import Iterable

import ringfence.isa.x86.bodies  # noqa: F401  (fills INSTRUCTIONS)
from ringfence.isa.x86.context import Context, Form, trace_form
from ringfence.translate.lower import Lowering, module
from ringfence.translate.objects import Code, Linkable, compile_object, read_linkable, read_object
from ringfence.translate.stencils import Key


def trace_key(key: Key) -> Context:
    return trace_form(key.form, lazy=True, kind_in=key.kind_in, carry_live=key.carry_live, flags_live=key.flags_live)


def compile_keys(keys: Iterable[Key]) -> list[Code]:
    """Compiles stencils, one LLVM module for all."""
    texts, declarations, holes, names = [], set(), set(), []
    for k, key in enumerate(keys):
        lowering = Lowering(f"s{k}", trace_key(key), "stencil", dict(key.pins))
        texts.append(lowering.function())
        declarations |= lowering.declarations
        holes |= lowering.holes
        names.append(lowering.name)
    compiled = read_object(compile_object(module(texts, declarations, holes, stencil=True)))
    return [compiled[name] for name in names]


def compile_native(form: Form) -> Linkable:
    """A form's native function, whose symbol is `f`."""
    lowering = Lowering("f", trace_form(form), "native", {})
    text = lowering.function()
    return read_linkable(compile_object(module([text], lowering.declarations, lowering.holes, stencil=False)))
