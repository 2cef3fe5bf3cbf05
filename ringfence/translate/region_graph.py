"""From the bytes around a hot instruction to the graph of the loops that it is in.

A *region* is a strongly connected piece of guest code, as far as its pages lie beside each other in the linear address space and every
instruction is one that region_lower.py can put into one function.  Places are counted in bytes from the start of the *seed's* page and
may be negative; nothing here depends on where that page lies.

Calls to functions on the same pages are edges to them, returns are edges to all return sites, so loops with such calls inside are whole.
Other calls leave the region and come back to an entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import iced_x86 as iced

from ringfence.ir.ops import ENDS
from ringfence.ir.value import walk
from ringfence.isa.x86.context import Context, Form, trace_form
from ringfence.isa.x86.decode import Decoded, branch_target, decoder, describe
from ringfence.isa.x86.models import CpuModel
from ringfence.isa.x86.state import GPR

PAGE_BYTES = 4096
MAX_EXPLORED = 2500  # instructions
MAX_INSTRUCTIONS = 1600  # a hash's unrolled rounds are 1,000
MAX_ENTRIES = 10
MAX_DISTANCE = 3  # pages, that jumps are followed over
MAX_OPERATIONS = 700  # of one body
FAKE_BASE = 0x4000_0000_0000  # where the seed's page is said to lie while decoding
VECTORS = frozenset(f"xmm{n}" for n in range(16))
WRITABLE = frozenset(GPR) | VECTORS | {"fr", "fa", "df"}
_EMPTY = frozenset(("nop", "pause", "endbr64", "lfence", "sfence"))
_OPERATIONS = frozenset(
    "get set imm load store probe atomic fence fault when choose chosen select zext sext trunc splat fp tsc jump taken crc32c".split()
) | frozenset(("add sub mul and or xor shl lshr ashr udiv urem ctpop cttz ctlz bswap umin umax smin smax uaddsat usubsat saddsat ssubsat "
               "abs avg mulhu mulhs eq ne ult ule slt sle lselect permute shuffle lsext lzext ltrunc movemask").split())  # fmt: skip


class Instruction(NamedTuple):
    place: int
    decoded: Decoded
    reads_flags: bool
    partial: bool
    writes_flags: bool
    steps_carry: bool
    can_fault: bool
    end: str  # "", "taken", "jump"
    call: bool
    ret: bool

    @property
    def following(self) -> int:
        return self.place + self.decoded.length


@dataclass
class Block:
    """Straight-line code.  `successors` are places, of blocks in the region or not."""

    place: int
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)
    leaves: bool = False  # by a call that comes back to the only successor, an entry

    @property
    def last(self) -> Instruction:
        return self.instructions[-1]


@dataclass
class Region:
    blocks: dict[int, Block]
    headers: list[int]  # targets of backward edges: where the budget is looked at
    entries: list[int]  # where translated code comes in; the first is the seed's header
    return_sites: list[int]

    @property
    def instructions(self) -> int:
        return sum(len(b.instructions) for b in self.blocks.values())

    def ranges(self) -> list[tuple[int, int]]:
        """The bytes that it was made from: places of first and behind last, none over a page's end."""
        spans = sorted((i.place, i.following) for b in self.blocks.values() for i in b.instructions)
        out: list[tuple[int, int]] = []
        for low, high in spans:
            while low < high:
                end = min(high, (low // PAGE_BYTES + 1) * PAGE_BYTES)
                if out and low <= out[-1][1] + 16 and low // PAGE_BYTES == out[-1][0] // PAGE_BYTES:
                    out[-1] = (out[-1][0], max(out[-1][1], end))
                else:
                    out.append((low, end))
                low = end
        return out


class Explorer:
    """Decodes what can be reached from a place.  `pages`: bytes by number of the page, the seed's being 0."""

    def __init__(self, pages: dict[int, bytes], mode: int, model: CpuModel) -> None:
        self.pages = pages
        self.mode = mode
        self.model = model
        self.known: dict[int, Instruction | None] = {}
        self.missing: set[int] = set()  # pages that were looked for
        self._facts: dict[Form, Context | None] = {}

    def bytes_at(self, place: int) -> bytes:
        page, offset = divmod(place, PAGE_BYTES)
        if page not in self.pages:
            if abs(page) <= MAX_DISTANCE:
                self.missing.add(page)
            return b""
        raw = self.pages[page][offset : offset + 15]
        if len(raw) < 15 and raw:
            raw += self.pages.get(page + 1, b"")[: 15 - len(raw)]
        return raw

    def at(self, place: int) -> Instruction | None:
        """The instruction there; None where a region has to end."""
        if place not in self.known:
            self.known[place] = self._decode(place) if len(self.known) < MAX_EXPLORED else None
        return self.known[place]

    def has(self, place: int) -> bool:
        """Whether a called function is followed: where its page is at hand."""
        return place // PAGE_BYTES in self.pages and self.at(place) is not None

    def _decode(self, place: int) -> Instruction | None:
        raw = self.bytes_at(place)
        if not raw:
            return None
        source = decoder(raw, FAKE_BASE + place, self.mode, self.model)
        insn = source.decode()
        if insn.code == iced.Code.INVALID or insn.len > len(raw):
            return None
        decoded = describe(insn, self.mode, self.model)
        name = decoded.form.name
        context = self._context(decoded.form)
        if context is None:
            return None
        end = next((op.op for op in context.trace.ops if op.op in ENDS), "")
        if name.startswith("rep") or end == "exit":
            return None
        if end == "taken":
            decoded = decoded._replace(target=branch_target(insn, self.mode) - FAKE_BASE)
        fallible = any(op.op in ("load", "store", "probe", "fault", "atomic") for op in walk(context.trace.ops))
        return Instruction(
            place,
            decoded,
            context.f.reads,
            context.f.partial,
            context.f.kind_out is not None,
            name in ("inc", "dec"),
            fallible,
            end,
            name == "call",
            name == "ret",
        )

    def _context(self, form: Form) -> Context | None:
        """The form's trace, None if it has no place in a region."""
        if form not in self._facts:
            try:
                self._facts[form] = _suitable(trace_form(form))
            except (KeyError, TypeError):
                self._facts[form] = None
        return self._facts[form]


def is_empty(instruction: Instruction) -> bool:
    return instruction.decoded.form.name in _EMPTY


def _suitable(context: Context) -> Context | None:
    operations = list(walk(context.trace.ops))
    if len(operations) > MAX_OPERATIONS or context.form.name in ("sti", "cli", "hlt", "ud", "gp", "into", "int3", "int1", "int"):
        return None
    for op in operations:
        if op.op not in _OPERATIONS:
            return None
        if op.op in ("get", "set") and "field" in op.at and op.op == "set" and op.at["field"] not in WRITABLE:
            return None
        if op.op == "fp" and op.at["fmt"] not in _SSE_FORMATS and not _converts(op.at["fmt"]):
            return None
        if op.at.get("system"):
            return None
    if any(kind == "y" for kind, _, _ in context.form.operands):
        return None
    return context


_SSE_FORMATS = frozenset(("ss", "sd", "ps", "pd"))


def _converts(fmt: str) -> bool:
    source, found, target = fmt.partition("2")
    return bool(found) and source in (*_SSE_FORMATS, "si") and target in (*_SSE_FORMATS, "si")


def find_region(explorer: Explorer, seed: int) -> Region | None:
    """The loops around the instruction at offset `seed` of page 0.  None where there are none, or none that fit."""
    for calls in (True, False):
        region = _region(explorer, seed, calls)
        if region is not None:
            # From the loop's own beginning, so that whatever seed in it gives the same region.
            return _region(explorer, region.entries[0], calls) or region
    return None


def _region(explorer: Explorer, seed: int, calls: bool) -> Region | None:
    blocks = _blocks(explorer, seed, calls)
    if seed not in blocks:
        return None
    dropped: set[tuple[int, int]] = set()
    while True:
        inside = _component(blocks, seed, dropped)
        if not inside:
            return None
        if sum(len(blocks[p].instructions) for p in inside) <= MAX_INSTRUCTIONS:
            break
        # Too large: without its longest way back an outer loop is none any more.
        back = [(p - s, (p, s)) for p in inside for s in blocks[p].successors if s in inside and s <= p and (p, s) not in dropped]
        if not back:
            return None
        dropped.add(max(back)[1])
    kept = {p: blocks[p] for p in sorted(inside)}
    sites = sorted({b.last.following for b in kept.values() if b.last.call and b.last.following in kept})
    headers = sorted({s for b in kept.values() for s in b.successors if s in kept and s <= b.place})
    if not headers:
        return None
    below = [h for h in headers if h <= seed]
    first = max(below) if below else headers[0]
    returns = [b.last.following for b in kept.values() if b.leaves and b.last.following in kept]
    entries = list(dict.fromkeys([first, *headers, *returns]))[:MAX_ENTRIES]
    return Region(kept, headers, entries, sites)


def _blocks(explorer: Explorer, seed: int, calls: bool) -> dict[int, Block]:
    """All blocks that can be reached.  Without `calls` the called functions are left out: a call ends what is known."""
    leaders, work, seen = {seed}, [seed], set()
    returns: set[int] = set()
    while work:
        place = work.pop()
        while place not in seen:
            seen.add(place)
            i = explorer.at(place)
            if i is None:
                break
            following, target = i.following, i.decoded.target
            if i.end == "taken" and target is not None:
                conditional = i.decoded.form.name not in ("jmp", "call")
                if i.call:
                    returns.add(following)
                nexts = [target] if not i.call or (calls and explorer.has(target)) else []
                if conditional or i.call:
                    nexts.append(following)
                leaders.update(nexts)
                work += nexts
                break
            if i.end == "jump":
                if i.call:  # to wherever; it may come back
                    leaders.add(following)
                    work.append(following)
                break
            place = following
    blocks: dict[int, Block] = {}
    for place in sorted(leaders):
        block = Block(place)
        at = place
        while (i := explorer.at(at)) is not None:
            block.instructions.append(i)
            at = i.following
            if i.end or at in leaders:
                break
        if not block.instructions:
            continue
        last = block.last
        if last.call and (last.end == "jump" or not calls or last.decoded.target not in leaders):
            block.leaves = True
            block.successors = [last.following]
        elif last.end == "taken" and last.decoded.target is not None:
            block.successors = [last.decoded.target]
            if last.decoded.form.name not in ("jmp", "call"):
                block.successors.append(last.following)
        elif last.ret and calls:
            block.successors = sorted(returns)
        elif not last.end:
            block.successors = [last.following]
        blocks[place] = block
    return blocks


def _component(blocks: dict[int, Block], seed: int, dropped: set[tuple[int, int]]) -> set[int]:
    """The strongly connected component of the seed's block; empty if that is no loop."""
    forward = _reach(seed, lambda p: [s for s in blocks[p].successors if s in blocks and (p, s) not in dropped])
    before: dict[int, list[int]] = {}
    for p, block in blocks.items():
        for s in block.successors:
            if (p, s) not in dropped:
                before.setdefault(s, []).append(p)
    both = forward & _reach(seed, lambda p: before.get(p, []))
    loops = len(both) > 1 or any(s == seed and (seed, s) not in dropped for s in blocks[seed].successors)
    return both if loops else set()


def _reach(start: int, nexts) -> set[int]:  # type: ignore[no-untyped-def]
    seen, work = {start}, [start]
    while work:
        for s in nexts(work.pop()):
            if s not in seen:
                seen.add(s)
                work.append(s)
    return seen
