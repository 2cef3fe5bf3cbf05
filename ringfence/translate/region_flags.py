"""The kinds of flags (isa/x86/flags.py) along the ways through a region."""

from __future__ import annotations

from ringfence.isa.x86.context import Context, trace_form
from ringfence.isa.x86.flags import SETTLED
from ringfence.translate.region_graph import Block, Instruction, Region

UNKNOWN: int | None = None  # differs from turn to turn: the region's cell `kind` tells


def liveness(block: Block) -> list[tuple[bool, bool]]:
    """Per instruction: is the carry, are any flags that it sets read before they are overwritten?  As block.py has it."""
    live = carry = True
    out = []
    for i in reversed(block.instructions):
        out.append((carry, live))
        if (i.reads_flags and not i.steps_carry) or i.can_fault:
            live = carry = True
        elif i.steps_carry:
            live = carry
        elif i.partial:
            live = carry = True
        elif i.writes_flags:
            live = carry = False
    out.reverse()
    return out


def traced(i: Instruction, kind: int | None, carry: bool, live: bool) -> tuple[Context, int | None]:
    """The trace where flags of this kind come in, and the kind behind it."""
    context = trace_form(i.decoded.form, lazy=True, kind_in=SETTLED if kind is UNKNOWN else kind, carry_live=carry, flags_live=live)
    after = context.f.kind_out
    if after is not None:
        return context, after
    return context, SETTLED if must_settle(i, kind, live) else kind


def must_settle(i: Instruction, kind: int | None, live: bool) -> bool:
    """Whether the instruction needs flags whose kind is not known before."""
    return kind is UNKNOWN and (i.reads_flags or (i.partial and live))


def kind_behind(block: Block, kind: int | None) -> int | None:
    for i, (carry, live) in zip(block.instructions, liveness(block), strict=True):
        kind = traced(i, kind, carry, live)[1]
    return kind


def entry_kinds(region: Region) -> dict[int, int | None]:
    """The kind at the start of each block, where all ways within the region agree on one.  Entries look whether it is the one in
    memory; a loop's second turn has it there."""
    blocks = region.blocks
    kinds: dict[int, int | None] = {}
    work = []
    for place, block in blocks.items():  # blocks that set flags, whatever they were before
        out = kind_behind(block, UNKNOWN)
        if out is not UNKNOWN or block.leaves:
            work.append((place, out))
    while work:
        place, out = work.pop()
        if blocks[place].leaves:
            out = UNKNOWN  # another function's
        for s in blocks[place].successors:
            if s not in blocks:
                continue
            if s not in kinds:
                kinds[s] = out
            elif kinds[s] != out and kinds[s] is not UNKNOWN:
                kinds[s] = UNKNOWN
            else:
                continue
            work.append((s, kind_behind(blocks[s], kinds[s])))
    return {place: kinds.get(place, UNKNOWN) for place in blocks}
