"""One instruction inside of a region: its body in LLVM text, on the region's cells.

Reads find the cells as they were when the instruction began; what it sets is kept apart and put into the cells at its end, so that
whoever leaves on the way leaves them untouched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

from ringfence.ir.ops import mask, signed
from ringfence.ir.value import Op, Value
from ringfence.isa.x86.context import Context
from ringfence.isa.x86.state import GPR
from ringfence.translate.layout import FIELDS, TLB, TLB_MASK, TLB_TABLE_BYTES
from ringfence.translate.lower import Lowering
from ringfence.translate.native_codes import REGION_WRITE
from ringfence.translate.region_graph import PAGE_BYTES, VECTORS, WRITABLE, Instruction

CACHED_BYTES = PAGE_BYTES - 15  # of a remembered page: an access of 16 bytes that begins there ends there
GUEST = ", !alias.scope !12, !noalias !13"  # an access of guest memory
OWN = ", !alias.scope !13, !noalias !12"  # one of the vCPU's block: the two never meet
_NAME = re.compile(r"%([A-Za-z_][\w.]*)")
_LABEL = re.compile(r"^([A-Za-z_][\w.]*):$")
_CELLS = frozenset(GPR) | VECTORS | {"fr", "fa"}
_FLOATS = {32: "float", 64: "double"}  # parts of vectors move in the unit that they are computed in
_SCALAR = {"ss": 32, "sd": 64}
_IN_PLACE = ("add", "sub", "mul", "div", "min", "max")


class Unsupported(Exception):
    """The region has something that no function can be made of."""


class Cells(Protocol):
    """What a piece asks its region."""

    table: int

    def use(self, field: str) -> None:
        """The cell is read."""

    def modify(self, field: str) -> None:
        """The cell is written."""

    def page_cache(self, fields: frozenset[str] | None) -> int | None:
        """The number of the cells that remember a page for addresses made from these registers."""

    def keeps_writable(self, cache: int) -> bool:
        """Whether only pages that may be written are kept there."""


class Piece(Lowering):
    """One instruction inside of a region."""

    def __init__(self, region: Cells, number: int, instruction: Instruction, context: Context) -> None:
        super().__init__(f"i{number}", context, "stencil", {})
        self.region = region
        self.number = number
        self.instruction = instruction
        self.page = instruction.place // PAGE_BYTES * PAGE_BYTES
        self.sets: list[tuple[str, int, int, str, str | None]] = []
        self.whole: dict[int, tuple[str, str]] = {}  # results of scalar operations: the register, its whole new value
        self.exits = False
        self.address_value: Value | None = None  # of the access that is lowered

    # ---- places
    def place(self, op: Op) -> tuple[str, str, int]:
        at = op.at
        if "slot" in at:
            field, low = self.instruction.decoded.binds[at["slot"]]
            if not isinstance(field, str):
                raise Unsupported(str(field))
            return "cell", field, low
        field, low = at["field"], at.get("low", 0)
        return ("cell" if field in _CELLS else "mem"), field, low

    def _get(self, op: Op) -> None:
        where, field, low = self.place(op)
        w, r = op.w, f"%v{op.id}"
        if field == "vpage":
            self.line(f"{r} = add i64 %R.base, {self.page}")
        elif where == "cell":
            self.region.use(field)
            if field in VECTORS:
                self._get_vector(r, field, w, low)
            else:
                x = self.op(f"load i64, ptr %R.{field}")
                x = self.op(f"lshr i64 {x}, {low}") if low else x
                self.line(f"{r} = add i64 0, {x}" if w == 64 else f"{r} = trunc i64 {x} to i{w}")
        elif w == 1:
            self.line(f"{r} = trunc i8 {self.op(f'load i8, ptr {self.gep(FIELDS[field] + low // 8)}{OWN}')} to i1")
        else:
            self.line(f"{r} = load i{w}, ptr {self.gep(FIELDS[field] + low // 8)}, align 1{OWN}")

    def _get_vector(self, r: str, field: str, w: int, low: int) -> None:
        x = self.op(f"load <2 x i64>, ptr %R.{field}")
        if w in _FLOATS and low % w == 0:
            lanes = f"<{128 // w} x {_FLOATS[w]}>"
            y = self.op(f"extractelement {lanes} {self.op(f'bitcast <2 x i64> {x} to {lanes}')}, i32 {low // w}")
            self.line(f"{r} = bitcast {_FLOATS[w]} {y} to i{w}")
            return
        whole = f"bitcast <2 x i64> {x} to i128"
        if w == 128:
            self.line(f"{r} = {whole}")
            return
        x = self.op(whole)
        x = self.op(f"lshr i128 {x}, {low}") if low else x
        self.line(f"{r} = trunc i128 {x} to i{w}")

    def one(self, op: Op) -> None:
        if op.op == "fp" and op.at["fp"] in _IN_PLACE and op.at["fmt"] in _SCALAR and self._in_place(op):
            return
        super().one(op)

    def _in_place(self, op: Op) -> bool:
        """ADDSD and its relatives on the register itself, which keeps its upper part: no part is taken out and put back."""
        source = self.defined.get(op.args[0].id)
        w = _SCALAR[op.at["fmt"]]
        if self.depth or source is None or source.op != "get" or op.args[0].w != w or op.args[1].const is not None:
            return False
        _, field, low = self.place(source)
        if field not in VECTORS or low:
            return False
        kind = _FLOATS[w]
        lanes = f"<{128 // w} x {kind}>"
        old = self.op(f"bitcast <2 x i64> {self.op(f'load <2 x i64>, ptr %R.{field}')} to {lanes}")
        other = self.op(f"bitcast i{w} {self.value(op.args[1])} to {kind}")
        mnemonic = op.at["fp"] + op.at["fmt"]
        new = self.op(f'call {lanes} asm sideeffect "{mnemonic} $2, $0", "=x,0,x"({lanes} {old}, {kind} {other})')
        part = self.op(f"extractelement {lanes} {new}, i32 0")
        self.line(f"%v{op.id} = bitcast {kind} {part} to i{w}")
        self.whole[op.id] = (field, self.op(f"bitcast {lanes} {new} to <2 x i64>"))
        return True

    def _set(self, op: Op, value: str) -> None:
        where, field, low = self.place(op)
        w = op.args[0].w
        if field not in WRITABLE:
            raise Unsupported(field)
        if not self.depth and low == 0 and self.whole.get(op.args[0].id, ("", ""))[0] == field:
            value = self.op(f"bitcast <2 x i64> {self.whole[op.args[0].id][1]} to i128")
            w = 128
        kind = f"i{w}"
        self.count += 1
        slot, guard = f"%d{self.count}", None
        self.allocas.append(f"  {slot} = alloca {kind}")
        if self.depth:
            guard = f"%g{self.count}"
            self.allocas.append(f"  {guard} = alloca i1")
            self.lines.insert(0, f"  store i1 false, ptr {guard}")
            self.line(f"store i1 true, ptr {guard}")
        self.line(f"store {kind} {value}, ptr {slot}")
        self.sets.append((field, low, w, slot, guard))

    def _commit(self) -> None:
        for field, low, w, slot, guard in self.sets:
            after = ""
            if guard:
                write, after = self.new_label("write"), self.new_label("after")
                self.terminate(f"br i1 {self.op(f'load i1, ptr {guard}')}, label %{write}, label %{after}")
                self.start(write)
            value = self.op(f"load i{w}, ptr {slot}")
            if field == "df":
                byte = value if w == 8 else self.op(f"zext i{w} {value} to i8")
                self.line(f"store i8 {byte}, ptr {self.gep(FIELDS['df'])}{OWN}")
            elif field in VECTORS:
                self._put_vector(field, w, low, value)
            else:
                self._put_cell(field, w, low, value)
            if guard:
                self.terminate(f"br label %{after}")
                self.start(after)

    def _put_cell(self, field: str, w: int, low: int, value: str) -> None:
        self.region.modify(field)
        if w < 64:
            old = self.op(f"load i64, ptr %R.{field}")
            kept = self.op(f"and i64 {old}, {signed(mask(64) & ~(mask(w) << low), 64)}")
            wide = self.op(f"zext i{w} {value} to i64")
            value = self.op(f"or i64 {kept}, {self.op(f'shl i64 {wide}, {low}') if low else wide}")
        self.line(f"store i64 {value}, ptr %R.{field}")

    def _put_vector(self, field: str, w: int, low: int, value: str) -> None:
        self.region.modify(field)
        if w == 128:
            new = self.op(f"bitcast i128 {value} to <2 x i64>")
        elif w in (8, 16, 32, 64) and low % w == 0:
            kind = _FLOATS.get(w, f"i{w}")
            lanes = f"<{128 // w} x {kind}>"
            old = self.op(f"bitcast <2 x i64> {self.op(f'load <2 x i64>, ptr %R.{field}')} to {lanes}")
            lane = self.op(f"bitcast i{w} {value} to {kind}")
            x = self.op(f"insertelement {lanes} {old}, {kind} {lane}, i32 {low // w}")
            new = self.op(f"bitcast {lanes} {x} to <2 x i64>")
        else:
            raise Unsupported(f"{w} bits of a vector")
        self.line(f"store <2 x i64> {new}, ptr %R.{field}")

    def _defer_store(self, offset: str, w: int, value: str) -> None:
        raise Unsupported("indexed state")

    def _immediate(self, op: Op) -> None:
        slot, w = op.at["slot"], op.w
        decoded = self.instruction.decoded
        if slot == "next":
            value = self.instruction.following - self.page
        else:
            value = decoded.imms[slot]
        self.line(f"%v{op.id} = add i{w} 0, {signed(value & mask(w), w)}")

    # ---- guest memory
    def leave(self) -> str:
        """The label where the region is left with this instruction not begun."""
        self.exits = True
        return f"R.one{self.number}"

    def host_pointer(self, address: str, size: int, kind: str) -> str:
        """The host address for an access; R, or W and M for writing.  What a page that is met again and again translates to is kept
        in cells of its own, others are looked up in the TLB."""
        near, far, join = self.new_label("near"), self.new_label("far"), self.new_label("got")
        writes = kind != "R"
        cache = self.region.page_cache(self.address_of(self.address_value))
        ways = []
        if cache is not None:
            page = self.op(f"load i64, ptr %R.pc{cache}")
            room = self.op(f"load i64, ptr %R.pl{cache}")
            inside = self.op(f"icmp ult i64 {self.op(f'sub i64 {address}, {page}')}, {room}")
            same, other = self.new_label("same"), self.new_label("other")
            self.terminate(f"br i1 {inside}, label %{same}, label %{other}, !prof !2")
            self.start(same)
            ways.append((self.op(f"add i64 {address}, {self.op(f'load i64, ptr %R.pa{cache}')}"), same))
            self.terminate(f"br label %{join}")
            self.start(other)
        table = TLB + self.region.table * TLB_TABLE_BYTES
        index = self.op(f"and i64 {self.op(f'lshr i64 {address}, 7')}, {TLB_MASK}")
        entry = self.gep(index)
        tag_at = self.op(f"getelementptr i8, ptr {entry}, i64 {table + (8 if writes else 0)}")
        tag = self.op(f"load i64, ptr {tag_at}, align 8{OWN}")
        last = self.op(f"add i64 {address}, {size - 1}") if size > 1 else address
        page = self.op(f"and i64 {last}, -4096")
        self.terminate(f"br i1 {self.op(f'icmp eq i64 {tag}, {page}')}, label %{near}, label %{far}, !prof !2")
        self.start(far)
        flags = size | (REGION_WRITE if writes else 0)
        filled = self.op(
            'call i64 asm sideeffect "call s_region_fill", "={rax},{rax},{r10},{r12},~{r11},~{flags},~{memory}"'
            f"(i64 {address}, i64 {flags}, ptr %cpu)"
        )
        got = self.new_label("filled")
        self.terminate(f"br i1 {self.op(f'icmp eq i64 {filled}, 0')}, label %{self.leave()}, label %{got}, !prof !1")
        self.start(got)
        if cache is not None:
            self._remember(cache, writes, page, self.op(f"sub i64 {filled}, {address}"))
        ways.append((filled, got))
        self.terminate(f"br label %{join}")
        self.start(near)
        addend = self.op(f"load i64, ptr {self.op(f'getelementptr i8, ptr {entry}, i64 {table + 24}')}, align 8{OWN}")
        if cache is not None:
            self._remember(cache, writes, page, addend)
        ways.append((self.op(f"add i64 {address}, {addend}"), near))
        self.terminate(f"br label %{join}")
        self.start(join)
        p = self.op("phi i64 " + ", ".join(f"[{value}, %{way}]" for value, way in ways))
        return self.op(f"inttoptr i64 {p} to ptr")

    def _remember(self, cache: int, writes: bool, page: str, addend: str) -> None:
        if writes or not self.region.keeps_writable(cache):
            self.line(f"store i64 {page}, ptr %R.pc{cache}")
            self.line(f"store i64 {addend}, ptr %R.pa{cache}")
            self.line(f"store i64 {CACHED_BYTES}, ptr %R.pl{cache}")

    def address_of(self, value: Value | None) -> frozenset[str] | None:
        """The registers that an address is made from, or the page of one that is constant; None where it depends on memory."""
        found: set[str] = set()
        work = [] if value is None else [value]
        while work:
            op = self.defined.get(work.pop().id)
            if op is None:
                continue
            if op.op == "get":
                found.add(self.place(op)[1])
            elif op.op in ("load", "atomic", "chosen"):
                return None
            work += op.args
        if found <= {"vpage"}:
            return frozenset((f"page {self.page + self.instruction.decoded.imms.get('disp', 0) >> 12 & 0xFFFFF}",))
        return frozenset(found) - {"vpage"}

    def load(self, op: Op, address: str) -> None:
        kind = "M" if op.at.get("write") else "R"
        self.address_value = op.args[0]
        p = self.host_pointer(address, op.w // 8, kind)
        if kind == "M":
            self.windows[op.id] = p
        if op.w == 128:
            x = self.op(f"load volatile <2 x i64>, ptr {p}, align 1{GUEST}")
            self.line(f"%v{op.id} = bitcast <2 x i64> {x} to i128")
        elif op.w in (8, 16, 32, 64):
            self.line(f"%v{op.id} = load volatile i{op.w}, ptr {p}, align 1{GUEST}")
        else:
            raise Unsupported(f"a load of {op.w} bits")

    def store(self, op: Op, address: str, value: str) -> None:
        w = op.args[1].w
        if w not in (8, 16, 32, 64, 128):
            raise Unsupported(f"a store of {w} bits")
        self.address_value = op.args[0]
        p = self.windows[op.at["window"]] if "window" in op.at else self.host_pointer(address, w // 8, "W")
        kind = f"i{w}"
        if w == 128:
            kind = "<2 x i64>"
            value = self.op(f"bitcast i128 {value} to <2 x i64>")
        self.line(f"store volatile {kind} {value}, ptr {p}, align 1{GUEST}")

    def atomic(self, op: Op, a: list[str]) -> None:
        self.address_value = op.args[0]
        super().atomic(op, a)

    def _fault(self, op: Op, error: str) -> None:
        self.terminate(f"br label %{self.leave()}")

    # ---- the whole
    def lower(self) -> None:
        self.sequence(self.context.trace.ops)
        self._commit()

    def text(self) -> Iterable[str]:
        """Its lines with names of its own."""
        prefix = f"{self.name}."

        def rename(match: re.Match[str]) -> str:
            name = match[1]
            return match[0] if name == "cpu" or name.startswith("R.") else f"%{prefix}{name}"

        for line in self.lines:
            found = _LABEL.match(line)
            yield f"{prefix}{line}" if found and not line.startswith("R.") else _NAME.sub(rename, line)

    def stack_slots(self) -> Iterable[str]:
        prefix = f"{self.name}."
        for line in self.allocas:
            yield _NAME.sub(lambda m: f"%{prefix}{m[1]}", line)
