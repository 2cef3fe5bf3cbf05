"""The encodings that real systems use: their recipes are made ahead, so that no guest waits while they are learnt.

`shipped_encodings.txt.xz` holds one a line: regime, an instruction in hexadecimal, and the variants of its templates (kind of
the flags, carry live, flags live, TLB table).  `scripts/collect-forms` gathers them from the caches of real runs.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from importlib import resources

from ringfence.core.trace import tracer
from ringfence.isa.x86.decode import decoder
from ringfence.isa.x86.modes import REGIMES
from ringfence.translate.recipes import Recipe, find_template, names_of, new_recipe, recipe_of_record
from ringfence.translate.stencils import StencilStore

trace = tracer("stencils")

_IP = 0x1000
_FLAGS = {False: "0", True: "1"}


def shipped_encodings() -> list[str]:
    path = resources.files("ringfence.translate") / "shipped_encodings.txt.xz"
    return lzma.decompress(path.read_bytes()).decode().splitlines() if path.is_file() else []


def line_of(regime: int, recipe: Recipe) -> str:
    variants = (f"{kind}{_FLAGS[carry]}{_FLAGS[live]}{table}" for kind, carry, live, table in sorted(recipe.templates))
    return f"{regime} {recipe.sample.hex()} {','.join(variants)}"


def learnt_lines(store: StencilStore) -> Iterator[str]:
    """The lines of what is in a user's cache, of the default CPU model."""
    for name, record in store.recipes.items():
        if name[0] < len(REGIMES):
            recipe = recipe_of_record(record)
            if recipe.sample:
                yield line_of(name[0], recipe)


def build(lines: list[str], store: StencilStore) -> list[tuple[bytes, bytes]]:
    """(name, record) of the recipes, with their templates; what a line means no more is left out."""
    out = []
    for line in lines:
        try:
            out.append(_build(line, store))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            if trace:
                trace("a shipped encoding is out of date: %s: %r", line, error)
    return out


def _build(line: str, store: StencilStore) -> tuple[bytes, bytes]:
    regime, text, variants = line.split(" ")
    raw, mode = bytes.fromhex(text), REGIMES[int(regime)]
    source = decoder(raw, _IP, mode)
    insn = source.decode()
    offsets = source.get_constant_offsets(insn)
    recipe = new_recipe(raw, insn, offsets, mode)
    for variant in filter(None, variants.split(",")):
        find_template(recipe, store, int(variant[0]), variant[1] == "1", variant[2] == "1", int(variant[3]))
    if recipe.native:
        store.native(recipe.form)
    prefix, key = names_of(raw, offsets)
    return bytes((int(regime),)) + (key if recipe.form_immediates else prefix), recipe.record()
