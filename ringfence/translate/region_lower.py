"""A region as one LLVM function.

It has the signature of a stencil, so translated code enters it by a jump and it leaves by a tail call.  Guest registers are cells
(allocas, which LLVM turns into SSA values); other state is read where it lies.  At every instruction boundary the cells hold
exactly the architectural state, so the function can be left there:

    s_region_one      the next instruction is for a stencil: a fault, MMIO, a store over code, an access across a page's end
    s_region_budget   the budget is used up, or somebody kicked
    jump cache        the guest goes on elsewhere

Accesses of guest memory are volatile: they stay in program order, as x86 has it (SDM 3A 9.2), and are made once.
"""

from __future__ import annotations

from typing import NamedTuple

from ringfence.isa.x86.flags import SETTLED
from ringfence.translate.layout import (
    BUDGET,
    FIELDS,
    JUMP_CACHE,
    JUMP_CACHE_ENTRIES,
    JUMP_KEY,
    TLB,
    TLB_MASK,
    TLB_TABLE_BYTES,
    WORDS,
)
from ringfence.translate.lower import ARGUMENTS, PARAMETERS, PINNED, SIGNATURE
from ringfence.translate.native_points_layout import POINT_PAGES
from ringfence.translate.region_caches import PageCaches
from ringfence.translate.region_flags import UNKNOWN, entry_kinds, liveness, must_settle, traced
from ringfence.translate.region_graph import PAGE_BYTES, VECTORS, Block, Instruction, Region, is_empty
from ringfence.translate.region_piece import OWN, Piece

PAGES_SYMBOL = "region_pages"


class Compiled(NamedTuple):
    """LLVM text; the entries' symbols are entry0, entry1 …"""

    text: str
    entries: list[int]
    ranges: list[tuple[int, int]]
    pages: list[int]


class RegionLowering:
    """Puts a region together.  `table`: the TLB table of its mode."""

    def __init__(self, region: Region, table: int) -> None:
        self.region = region
        self.table = table
        self.used: set[str] = set()
        self.modified: set[str] = set()
        self.declarations: set[str] = set()
        self.lines: list[str] = []
        self.slots: list[str] = []
        self._number = 0
        self._kinds = entry_kinds(region)
        self._caches = PageCaches(region)
        self._place = 0  # of the block that is lowered

    # ---- cells
    def page_cache(self, fields: frozenset[str] | None) -> int | None:
        return self._caches.number(fields, self._place)

    def keeps_writable(self, cache: int) -> bool:
        return self._caches.keeps_writable(cache)

    def use(self, field: str) -> None:
        self.used.add(field)

    def modify(self, field: str) -> None:
        self.used.add(field)
        self.modified.add(field)

    # ---- flags

    # ---- text
    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def _name(self) -> str:
        self._number += 1
        return f"R.x{self._number}"

    def _op(self, text: str) -> str:
        name = f"%{self._name()}"
        self.line(f"{name} = {text}")
        return name

    def _store_kind(self, kind: int | None) -> None:
        if kind is not UNKNOWN:
            self.line(f"store i8 {kind}, ptr %R.kind")

    def _block(self, block: Block, number: int) -> int:
        self._place = block.place
        kind = self._kinds[block.place]
        count = len(block.instructions)
        self.lines.append(f"R.b{label(block.place)}:")
        if block.place in self.region.headers:
            self._look_at_budget(block, kind, count)
        left = self._op("load i32, ptr %R.budget")
        self.line(f"store i32 {self._op(f'sub i32 {left}, {count}')}, ptr %R.budget")
        remaining = count
        piece = None
        for i, (carry, live) in zip(block.instructions, liveness(block), strict=True):
            if must_settle(i, kind, live):
                self._settle()
                kind = SETTLED
            context, after = traced(i, kind, carry, live)
            number += 1
            piece = Piece(self, number, i, context)
            if not is_empty(i):
                piece.lower()
            self.slots += piece.stack_slots()
            self.declarations |= piece.declarations
            prefix = f"i{number}."
            self.line(f"br label %{prefix}entry")
            self.lines.append(f"{prefix}entry:")
            self.lines += piece.text()
            if piece.exits:
                self._exit_at(piece, i, kind, remaining)
            kind = after
            remaining -= 1
        assert piece is not None
        self._end(block, piece, kind)
        return number

    def _exit_at(self, piece: Piece, i: Instruction, kind: int | None, remaining: int) -> None:
        """Leaves with the instruction not begun; it and those behind it are paid back."""
        after = self._name()
        if not piece.terminated:
            self.line(f"br label %{after}")
        self.lines.append(f"R.one{piece.number}:")
        self._store_kind(kind)
        left = self._op("load i32, ptr %R.budget")
        self.line(f"store i32 {self._op(f'add i32 {left}, {remaining}')}, ptr %R.budget")
        self.line(f"store i64 {self._op(f'add i64 %R.base, {i.place}')}, ptr %R.rip")
        self.line("br label %R.leave_one")
        self.lines.append(f"{after}:")

    def _look_at_budget(self, block: Block, kind: int | None, count: int) -> None:
        out, on = self._name(), self._name()
        left = self._op("load i32, ptr %R.budget")
        low = self._op(f"icmp slt i32 {left}, {count}")
        kick = self._op(f"load volatile i32, ptr %R.kick_at, align 4{OWN}")
        kicked = self._op(f"icmp ne i32 {kick}, 0")
        self.line(f"br i1 {self._op(f'or i1 {low}, {kicked}')}, label %{out}, label %{on}, !prof !1")
        self.lines.append(f"{out}:")
        self._store_kind(kind)
        self.line(f"store i64 {self._op(f'add i64 %R.base, {block.place}')}, ptr %R.rip")
        self.line("br label %R.leave_budget")
        self.lines.append(f"{on}:")

    def _settle(self) -> None:
        """Flags of a kind that is not known before become settled ones, by the run time."""
        self.line(f"store i8 {self._op('load i8, ptr %R.kind')}, ptr %R.kind_at{OWN}")
        for name in ("fr", "fa"):
            self.modify(name)
            self.line(f"store i64 {self._op(f'load i64, ptr %R.{name}')}, ptr %R.{name}_at{OWN}")
        self.line('call void asm sideeffect "call s_region_settle", "{r12},~{r10},~{r11},~{rax},~{flags},~{memory}"(ptr %cpu)')
        for name in ("fr", "fa"):
            self.line(f"store i64 {self._op(f'load i64, ptr %R.{name}_at')}, ptr %R.{name}")
        self._store_kind(SETTLED)

    def _end(self, block: Block, piece: Piece, kind: int | None) -> None:
        last = block.last
        end = piece.end
        if piece.terminated:
            self.line("unreachable")
        elif end is None or is_empty(last):
            self._go(last.following, kind)
        elif end.op == "taken":
            assert last.decoded.target is not None
            if end.args[0].const == 1:
                if block.leaves:
                    self._leave_to(str(last.decoded.target), kind)
                else:
                    self._go(last.decoded.target, kind)
                return
            yes, no = self._name(), self._name()
            condition = f"%{piece.name}.v{end.args[0].id}" if end.args[0].const is None else str(bool(end.args[0].const)).lower()
            self.line(f"br i1 {condition}, label %{yes}, label %{no}")
            self.lines.append(f"{yes}:")
            self._go(last.decoded.target, kind)
            self.lines.append(f"{no}:")
            self._go(last.following, kind)
        else:
            self._jump(piece.value(end.args[0]).replace("%v", f"%{piece.name}.v"), last, kind)

    def _go(self, target: int, kind: int | None) -> None:
        if target in self.region.blocks:
            if self._kinds[target] is UNKNOWN:
                self._store_kind(kind)
            self.line(f"br label %R.b{label(target)}")
            return
        self._leave_to(str(target), kind)

    def _leave_to(self, target: str, kind: int | None) -> None:
        self._store_kind(kind)
        self.line(f"store i64 {self._op(f'add i64 %R.base, {target}')}, ptr %R.rip")
        self.line("br label %R.leave_to")

    def _jump(self, target: str, last: Instruction, kind: int | None) -> None:
        """An indirect jump: a return may be to a place in here."""
        sites = self.region.return_sites if last.ret else []
        if sites:
            distance = self._op(f"sub i64 {target}, %R.base")
            for site in sites:
                here, on = self._name(), self._name()
                self.line(f"br i1 {self._op(f'icmp eq i64 {distance}, {site}')}, label %{here}, label %{on}")
                self.lines.append(f"{here}:")
                self._go(site, kind)
                self.lines.append(f"{on}:")
        self._store_kind(kind)
        self.line(f"store i64 {target}, ptr %R.rip")
        self.line("br label %R.leave_to")

    # ---- the function around the blocks
    def compile_text(self) -> Compiled:
        number = 0
        for block in self.region.blocks.values():
            number = self._block(block, number)
        ranges = self.region.ranges()
        pages = sorted({low // PAGE_BYTES for low, _ in ranges})
        body = self.lines
        self.lines = []
        self._head(pages)
        head = self.lines
        self.lines = []
        self._tail()
        functions = [
            f"define internal preserve_nonecc void @region({PARAMETERS}) #0 {{",
            "entry:",
            *self.slots,
            *head,
            *body,
            *self.lines,
            "}",
        ]
        arguments = ", ".join(f"i64 %{a}" for a in ARGUMENTS[1:])
        for k in range(len(self.region.entries)):
            functions += [
                f"define preserve_nonecc void @entry{k}({PARAMETERS}) #0 {{",
                f"  %at = getelementptr i8, ptr %cpu, i64 {WORDS['scratch3']}",
                f"  store i64 {k}, ptr %at",
                f"  musttail call preserve_nonecc void @region(ptr %cpu, {arguments})",
                "  ret void",
                "}",
            ]
        declared = [
            f"declare dso_local preserve_nonecc void @{name}({SIGNATURE})" for name in ("s_region_one", "s_region_budget", "s_lookup")
        ]
        declared.append(f"@{PAGES_SYMBOL} = external dso_local constant [{max(len(pages), 1)} x i64]")
        return Compiled("\n".join([*declared, *sorted(self.declarations), *functions, _COMMON]), self.region.entries, ranges, pages)

    def _head(self, pages: list[int]) -> None:
        for name in ("fr", "fa", *PINNED):
            self.use(name)
        for name in sorted(self.used):
            shape = "<2 x i64>" if name in VECTORS else "i64"
            self.line(f"%R.{name} = alloca {shape}, align 16")
            if name in ("fr", "fa"):
                self.line(f"store i64 %{name}, ptr %R.{name}")
            elif name in PINNED:
                self.line(f"store i64 %a{PINNED.index(name)}, ptr %R.{name}")
            else:
                at = self._op(f"getelementptr i8, ptr %cpu, i64 {FIELDS[name]}")
                value = self._op(f"load {shape}, ptr {at}, align 8{OWN}")
                self.line(f"store {shape} {value}, ptr %R.{name}")
        which_at = self._op(f"getelementptr i8, ptr %cpu, i64 {WORDS['scratch3']}")
        self.line(f"%which = load i64, ptr {which_at}{OWN}")
        self.line("%R.budget = alloca i32")
        self.line("%R.rip = alloca i64")
        for cell in self._caches.cells():
            self.line(f"%R.{cell} = alloca i64")
            self.line(f"store i64 0, ptr %R.{cell}")
        self.line("%R.kind = alloca i8")
        places = {"kind": FIELDS["flags_kind"], "kick": FIELDS["kick"], "budget": BUDGET, "fr": FIELDS["fr"], "fa": FIELDS["fa"]}
        for name, offset in places.items():
            self.line(f"%R.{name}_at = getelementptr i8, ptr %cpu, i64 {offset}")
        self.line(f"store i32 {self._op(f'load i32, ptr %R.budget_at{OWN}')}, ptr %R.budget")
        self.line(f"store i8 {self._op(f'load i8, ptr %R.kind_at{OWN}')}, ptr %R.kind")
        at = self._op(f"getelementptr i8, ptr %cpu, i64 {FIELDS['vpage']}")
        page = self._op(f"load i64, ptr {at}{OWN}")
        entries = self.region.entries
        base, place = page, str(entries[0])
        if entries[0] // PAGE_BYTES:
            base = self._op(f"sub i64 {page}, {entries[0] // PAGE_BYTES * PAGE_BYTES}")
        for k, entry in enumerate(entries[1:], 1):
            this = self._op(f"icmp eq i64 %which, {k}")
            moved = self._op(f"sub i64 {page}, {entry // PAGE_BYTES * PAGE_BYTES}")
            base = self._op(f"select i1 {this}, i64 {moved}, i64 {base}")
            place = self._op(f"select i1 {this}, i64 {entry}, i64 {place}")
        self.line(f"%R.base = add i64 {base}, 0")
        points = self._op(f"load i64, ptr {self._op(f'getelementptr i8, ptr %cpu, i64 {POINT_PAGES}')}, align 8{OWN}")
        self._refuse_unless(self._op(f"icmp eq i64 {points}, 0"))  # breakpoints are the dispatcher's business
        if len(pages) > 1:
            self._check_pages(pages)
        targets = " ".join(f"i64 {k}, label %R.in{k}" for k in range(1, len(entries)))
        self.line(f"switch i64 %which, label %R.in0 [ {targets} ]")
        for k, entry in enumerate(entries):
            self.lines.append(f"R.in{k}:")
            kind = self._kinds[entry]
            if kind is not UNKNOWN:
                self._refuse_unless(self._op(f"icmp eq i8 {self._op('load i8, ptr %R.kind')}, {kind}"))
            self.line(f"br label %R.b{label(entry)}")
        self.lines.append("R.refuse:")
        self.line(f"store i64 {self._op(f'add i64 %R.base, {place}')}, ptr %R.rip")
        self.line("br label %R.leave_one")

    def _refuse_unless(self, good: str) -> None:
        """Otherwise the entry's first instruction is a stencil's, and those behind it until another entry."""
        on = self._name()
        self.line(f"br i1 {good}, label %{on}, label %R.refuse, !prof !2")
        self.lines.append(f"{on}:")

    def _check_pages(self, pages: list[int]) -> None:
        """Goes on only while every page is the one that the region was made from."""
        table = TLB + self.table * TLB_TABLE_BYTES
        for k, page in enumerate(pages):
            va = self._op(f"add i64 %R.base, {page * PAGE_BYTES}")
            index = self._op(f"and i64 {self._op(f'lshr i64 {va}, 7')}, {TLB_MASK}")
            entry = self._op(f"getelementptr i8, ptr %cpu, i64 {index}")
            tag = self._op(f"load i64, ptr {self._op(f'getelementptr i8, ptr {entry}, i64 {table + 16}')}, align 8{OWN}")
            addend = self._op(f"load i64, ptr {self._op(f'getelementptr i8, ptr {entry}, i64 {table + 24}')}, align 8{OWN}")
            wanted = self._op(f"load i64, ptr {self._op(f'getelementptr i8, ptr @{PAGES_SYMBOL}, i64 {8 * k}')}, align 8")
            same = self._op(f"icmp eq i64 {self._op(f'add i64 {va}, {addend}')}, {wanted}")
            self._refuse_unless(self._op(f"and i1 {self._op(f'icmp eq i64 {tag}, {va}')}, {same}"))

    def _tail(self) -> None:
        for reason, symbol in (("one", "@s_region_one"), ("budget", "@s_region_budget")):
            self.lines.append(f"R.leave_{reason}:")
            rip = self._write_back()
            at = self._op(f"getelementptr i8, ptr %cpu, i64 {FIELDS['rip']}")
            self.line(f"store i64 {rip}, ptr {at}{OWN}")
            self._call(symbol)
        self.lines.append("R.leave_to:")
        self._by_cache(self._write_back())

    def _write_back(self) -> str:
        for name in sorted(self.modified - set(PINNED) - {"fr", "fa"}):
            kind = "<2 x i64>" if name in VECTORS else "i64"
            at = self._op(f"getelementptr i8, ptr %cpu, i64 {FIELDS[name]}")
            self.line(f"store {kind} {self._op(f'load {kind}, ptr %R.{name}')}, ptr {at}, align 8{OWN}")
        self.line(f"store i32 {self._op('load i32, ptr %R.budget')}, ptr %R.budget_at{OWN}")
        self.line(f"store i8 {self._op('load i8, ptr %R.kind')}, ptr %R.kind_at{OWN}")
        return self._op("load i64, ptr %R.rip")

    def _call(self, symbol: str) -> None:
        values = [f"i64 {self._op(f'load i64, ptr %R.{name}')}" for name in ("fr", "fa", *PINNED)]
        self.line(f"musttail call preserve_nonecc void {symbol}(ptr %cpu, {', '.join(values)})")
        self.line("ret void")

    def _by_cache(self, target: str) -> None:
        """As lower.py's indirect jump."""
        x = self._op(f"xor i64 {self._op(f'lshr i64 {target}, 12')}, {target}")
        index = self._op(f"shl i64 {self._op(f'and i64 {x}, {JUMP_CACHE_ENTRIES - 1}')}, 4")
        entry = self._op(f"getelementptr i8, ptr %cpu, i64 {self._op(f'add i64 {index}, {JUMP_CACHE}')}")
        key_at = self._op(f"getelementptr i8, ptr %cpu, i64 {JUMP_KEY}")
        key = self._op(f"xor i64 {self._op(f'load i64, ptr {key_at}{OWN}')}, {target}")
        hit = self._op(f"icmp eq i64 {self._op(f'load i64, ptr {entry}{OWN}')}, {key}")
        self.line(f"br i1 {hit}, label %R.found, label %R.missed, !prof !2")
        self.lines.append("R.missed:")
        rip_at = self._op(f"getelementptr i8, ptr %cpu, i64 {FIELDS['rip']}")
        self.line(f"store i64 {target}, ptr {rip_at}{OWN}")
        self._call("@s_lookup")
        self.lines.append("R.found:")
        page_at = self._op(f"getelementptr i8, ptr %cpu, i64 {FIELDS['vpage']}")
        self.line(f"store i64 {self._op(f'and i64 {target}, -4096')}, ptr {page_at}{OWN}")
        p = self._op(f"getelementptr i8, ptr {entry}, i64 8")
        self._call(self._op(f"load ptr, ptr {p}{OWN}"))


def label(place: int) -> str:
    return f"m{-place}" if place < 0 else str(place)


_COMMON = """
attributes #0 = { nounwind noredzone "no-jump-tables"="true" "frame-pointer"="none" }
!1 = !{!"branch_weights", i32 1, i32 2000}
!2 = !{!"branch_weights", i32 2000, i32 1}
!10 = !{!"region"}
!11 = !{!"guest", !10}
!14 = !{!"own", !10}
!12 = !{!11}
!13 = !{!14}
"""
