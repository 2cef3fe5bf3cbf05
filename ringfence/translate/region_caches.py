"""Which accesses of a region remember their page.

A probe of the TLB costs seven instructions and two loads, and that is what separates a translated loop from a native one.  Where an address
moves little from turn to turn (a pointer that is stepped, the stack, a constant) the region keeps the page that it met last in cells of
its own: page, addend, and how many bytes of it count.  They are empty when the region is entered.
"""

from __future__ import annotations

from ringfence.isa.x86.context import trace_form
from ringfence.isa.x86.state import GPR
from ringfence.translate.region_graph import Block, Region
from ringfence.translate.region_piece import Piece

MAX_CACHES = 8
CELLS = ("pc", "pa", "pl")  # page, addend, bytes


class PageCaches:
    """The caches of one region, by what addresses are made from."""

    def __init__(self, region: Region) -> None:
        self._smooth = {place: smooth_registers(loop) for place, loop in innermost_loops(region).items()}
        self._numbers: dict[frozenset[str], int] = {}
        self._written = written_addresses(region)

    def number(self, address: frozenset[str] | None, block: int) -> int | None:
        """The cache for an access in this block, None where it has none."""
        if address is None or not all(name.startswith("page") or name in self._smooth[block] for name in address):
            return None
        if address not in self._numbers and len(self._numbers) == MAX_CACHES:
            return None
        return self._numbers.setdefault(address, len(self._numbers))

    def keeps_writable(self, number: int) -> bool:
        """Something is written through this cache: then only pages that may be written are kept in it."""
        return next(address for address, n in self._numbers.items() if n == number) in self._written

    def cells(self) -> list[str]:
        return [f"{cell}{n}" for n in self._numbers.values() for cell in CELLS]


def innermost_loops(region: Region) -> dict[int, list[Block]]:
    """The blocks of the smallest loop around each block."""
    before: dict[int, list[int]] = {}
    for place, block in region.blocks.items():
        for s in block.successors:
            before.setdefault(s, []).append(place)
    loops = []
    for place, block in region.blocks.items():
        for head in block.successors:
            if head in region.blocks and head <= place:
                inside, work = {head, place}, [place] if place != head else []
                while work:
                    for p in before.get(work.pop(), []):
                        if p not in inside:
                            inside.add(p)
                            work.append(p)
                loops.append(inside)
    loops.sort(key=len)
    everything = list(region.blocks.values())
    found = {}
    for place in region.blocks:
        loop = next((loop for loop in loops if place in loop), None)
        found[place] = everything if loop is None else [region.blocks[p] for p in sorted(loop)]
    return found


def smooth_registers(blocks: list[Block]) -> frozenset[str]:
    """Registers that only constants are added to, or that are copies of such: addresses made from them stay on a page for a while.
    A guess, for speed alone."""
    rough: set[str] = set()
    copies: dict[str, set[str]] = {}
    for block in blocks:
        for i in block.instructions:
            form, binds = i.decoded.form, i.decoded.binds
            target = binds.get(0, ("", 0))[0]
            if not form.operands or form.operands[0][0] != "r" or form.name in ("cmp", "test", "push", "bt"):
                continue
            kinds = [kind for kind, _, _ in form.operands[1:]]
            if form.name in ("inc", "dec") or (form.name in ("add", "sub", "mov") and kinds == ["i"]):
                continue
            if form.name == "mov" and kinds == ["r"]:
                copies.setdefault(target, set()).add(binds[1][0])
            elif form.name == "lea" and form.mem.base and not form.mem.index:
                copies.setdefault(target, set()).add(binds["base"][0])
            elif not (form.name == "xor" and kinds == ["r"] and binds[1][0] == target):
                rough.add(target)
    while more := {target for target, sources in copies.items() if target not in rough and sources & rough}:
        rough |= more
    return frozenset(GPR) - rough


def written_addresses(region: Region) -> set[frozenset[str] | None]:
    """What addresses of stores are made from."""
    found: set[frozenset[str] | None] = set()
    for block in region.blocks.values():
        for i in block.instructions:
            context = trace_form(i.decoded.form)
            piece = Piece(None, 0, i, context)  # type: ignore[arg-type]  # only asked for addresses
            for op in piece.defined.values():
                if op.op in ("store", "atomic") or (op.op == "load" and op.at.get("write")):
                    found.add(piece.address_of(op.args[0]))
    return found
