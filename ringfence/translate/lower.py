"""One trace to LLVM text, in two shapes.

*stencil*: `preserve_nonecc void f(vcpu, fr, fa, seven guest registers)`, ending in tail calls to symbols that the
translator patches: CONT (next instruction), TAKEN, FAULT, EXIT; a memory access is an inline TLB probe that leaves to a
cold thunk.  Registers, displacements and immediates that are not part of the form are holes.

*native function*: `i32 f(vcpu, operands)` on registers in memory, for long bodies; accesses call the run time.

Reads see the state at instruction entry: pinned registers are SSA arguments, and stores to the vCPU block wait until the
end.  Every probe takes all pinned registers as fixed inputs, so the cold path finds the instruction not begun.
"""

from __future__ import annotations

import re
from typing import Any

from ringfence.ir.ops import COMPARE, mask, signed
from ringfence.ir.value import Op, Value, walk
from ringfence.isa.x86.context import Context
from ringfence.isa.x86.vectors import DEFER
from ringfence.translate import lower_fp
from ringfence.translate.layout import EXIT_KINDS, FIELDS, JUMP_CACHE, JUMP_CACHE_ENTRIES, JUMP_KEY, TLB_MASK, WORDS, stride

PINNED = ("rax", "rcx", "rdx", "rbx", "rsp", "rsi", "rdi")
ARGUMENTS = ("cpu", "fr", "fa", *(f"a{k}" for k in range(len(PINNED))))
HOST_REGISTERS = ("r12", "r13", "r14", "r15", "rdi", "rsi", "rdx", "rcx", "r8", "r9")  # of preserve_nonecc, in order
SIGNATURE = "ptr" + ", i64" * (len(ARGUMENTS) - 1)
PARAMETERS = "ptr noalias %cpu, " + ", ".join(f"i64 %{a}" for a in ARGUMENTS[1:])
CLOBBERS = "~{r10},~{r11},~{flags},~{memory}"  # of a probe
ENDINGS = ("CONT", "TAKEN", "FAULT", "EXIT", "LOOKUP")

# Status that a native function returns.
NEXT, JUMP, FAULTED, EXITED, DEFERRED = range(5)

# The operands of a native function: a record in the code region, little-endian (see block.py).
RECORD = {0: 12, 1: 16, 2: 20, "base": 24, "index": 28, "disp": 32}
RECORD_IMM = {0: 36, 1: 44, 2: 52}
RECORD_NEXT = 60
RECORD_BYTES = 64

SYSTEM_ACCESS = 0x100  # flag beside the size: supervisor rights
_SCALAR = {"add", "sub", "mul", "and", "or", "xor"}
_INTRINSIC = {
    "ctpop": "call {t} @llvm.ctpop.{m}({t} {0})",
    "cttz": "call {t} @llvm.cttz.{m}({t} {0}, i1 false)",
    "ctlz": "call {t} @llvm.ctlz.{m}({t} {0}, i1 false)",
    "bswap": "call {t} @llvm.bswap.{m}({t} {0})",
    "umin": "call {t} @llvm.umin.{m}({t} {0}, {t} {1})",
    "umax": "call {t} @llvm.umax.{m}({t} {0}, {t} {1})",
    "smin": "call {t} @llvm.smin.{m}({t} {0}, {t} {1})",
    "smax": "call {t} @llvm.smax.{m}({t} {0}, {t} {1})",
    "uaddsat": "call {t} @llvm.uadd.sat.{m}({t} {0}, {t} {1})",
    "usubsat": "call {t} @llvm.usub.sat.{m}({t} {0}, {t} {1})",
    "saddsat": "call {t} @llvm.sadd.sat.{m}({t} {0}, {t} {1})",
    "ssubsat": "call {t} @llvm.ssub.sat.{m}({t} {0}, {t} {1})",
    "abs": "call {t} @llvm.abs.{m}({t} {0}, i1 false)",
}


class Lowering:
    """Lowers one traced form.  `pins`: register slots held in pinned host registers ({slot: guest register});
    slots not named there are addressed by patched offsets (stencil) or by the operand record (native function)."""

    def __init__(self, name: str, context: Context, shape: str, pins: dict[Any, str]) -> None:
        self.name = name
        self.context = context
        self.stencil = shape == "stencil"
        self.pins = pins
        self.lines: list[str] = []
        self.allocas: list[str] = []
        self.declarations: set[str] = set()
        self.holes: set[str] = set()
        self.cells: dict[str, str] = {}
        self.pending: list[tuple[str, int, str, str | None]] = []
        self.windows: dict[int, str] = {}
        self.defined: dict[int, Op] = {op.id: op for op in walk(context.trace.ops)}
        self.count = 0
        self.depth = 0
        self.label = "entry"
        self.terminated = False
        self.end: Op | None = None

    # ---- text
    def line(self, text: str) -> None:
        if not self.terminated:
            self.lines.append("  " + text)

    def op(self, text: str) -> str:
        self.count += 1
        name = f"%t{self.count}"
        self.line(f"{name} = {text}")
        return name

    def new_label(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def start(self, label: str) -> None:
        self.lines.append(label + ":")
        self.label = label
        self.terminated = False

    def terminate(self, text: str) -> None:
        self.line(text)
        self.terminated = True

    def intrinsic(self, call: str) -> str:
        """Remembers the declaration that a call of an LLVM intrinsic needs; returns the call."""
        match = re.search(r"call (<[^>]*>|\S+) (@llvm\.[\w.]+)\((.*)\)", call)
        if match:
            types = [re.match(r"(<[^>]*>|\S+)", p.strip())[1] for p in re.split(r", (?![^<]*>)", match[3])]  # type: ignore[index]
            self.declarations.add(f"declare {match[1]} {match[2]}({', '.join(types)})")
        return call

    def value(self, v: Value) -> str:
        if v.const is not None:
            return ("true" if v.const else "false") if v.w == 1 else str(signed(v.const, v.w))
        return f"%v{v.id}"

    def gep(self, offset: str | int) -> str:
        return self.op(f"getelementptr i8, ptr %cpu, i64 {offset}")

    def hole(self, symbol: str) -> str:
        self.holes.add(symbol)
        return f"ptrtoint (ptr @{symbol} to i64)"

    def put_word(self, offset: int, kind: str, value: str) -> None:
        self.line(f"store {kind} {value}, ptr {self.gep(offset)}")

    # ---- places
    def place(self, op: Op) -> tuple[str, str, int]:
        """("arg", name, lowest bit) or ("mem", offset text, 0)."""
        at = op.at
        if "slot" in at:
            slot = at["slot"]
            low = self._slot_low(slot)
            if slot in self.pins:
                return "arg", f"a{PINNED.index(self.pins[slot])}", low
            if self.stencil:
                return "mem", self.hole(f"R_{slot}"), 0  # the hole includes the byte of AH…BH
            return "mem", self._record(RECORD[slot], "i32"), 0
        field, low = at["field"], at.get("low", 0)
        if self.stencil and field in ("fr", "fa"):
            return "arg", field, low
        if self.stencil and field in PINNED:
            return "arg", f"a{PINNED.index(field)}", low
        return "mem", str(FIELDS[field] + low // 8), 0

    def _slot_low(self, slot: Any) -> int:
        operands = self.context.form.operands
        return operands[slot][2] if isinstance(slot, int) and operands[slot][0] == "r" else 0

    def _record(self, offset: int, kind: str) -> str:
        p = self.op(f"getelementptr i8, ptr %data, i64 {offset}")
        v = self.op(f"load {kind}, ptr {p}, align 1")
        return v if kind == "i64" else self.op(f"sext {kind} {v} to i64")

    def cell(self, argument: str) -> str:
        if argument not in self.cells:
            self.cells[argument] = f"%c_{argument}"
            self.allocas.append(f"  %c_{argument} = alloca i64\n  store i64 %{argument}, ptr %c_{argument}")
        return self.cells[argument]

    def tail(self, symbol: str, committed: bool) -> None:
        """Leaves the stencil: with the new registers, or as if the instruction had not begun."""
        values = []
        for a in ARGUMENTS[1:]:
            values.append("i64 " + (self.op(f"load i64, ptr {self.cells[a]}") if committed and a in self.cells else f"%{a}"))
        self.line(f"musttail call preserve_nonecc void {symbol}(ptr %cpu, {', '.join(values)})")
        self.terminate("ret void")

    # ---- guest memory
    def host_pointer(self, address: str, size: int, kind: str) -> str:
        """Stencil: host address for an access of `size` bytes; kind R, or M for a window that will be stored to."""
        probe = self._probe(size, kind)
        inputs = ", ".join(f"i64 %{a}" for a in ARGUMENTS[1:])
        regs = ",".join(f"{{{r}}}" for r in HOST_REGISTERS)
        p = self.op(f'call i64 asm sideeffect "{probe}", "={{rax}},{{rax}},{regs},{CLOBBERS}"(i64 {address}, ptr %cpu, {inputs})')
        return self.op(f"inttoptr i64 {p} to ptr")

    def _probe(self, size: int, kind: str) -> str:
        tag = "TLB_R" if kind == "R" else "TLB_W"
        self.holes.update((tag, "TLB_A"))
        last = f"lea {size - 1}(%rax),%r11" if size > 1 else "mov %rax,%r11"
        return (
            f"mov %eax,%r10d; shr $$7,%r10d; and $${TLB_MASK},%r10d; {last}; and $$-4096,%r11; "
            f"cmp {tag}(%r12,%r10),%r11; jne COLD_{kind}{size}; add TLB_A(%r12,%r10),%rax"
        )

    def store_stencil(self, address: str, value: str, w: int) -> None:
        size = w // 8
        inputs = ", ".join(f"i64 %{a}" for a in ARGUMENTS[1:])
        regs = ",".join(f"{{{r}}}" for r in HOST_REGISTERS)
        if w <= 64:
            register = {8: "bl", 16: "bx", 32: "ebx", 64: "rbx"}[w]
            wide = value if w == 64 else self.op(f"zext i{w} {value} to i64")
            move, where, operand = f"mov %{register},(%rax)", "{rbx}", f"i64 {wide}"
        else:
            wide = value if w == 128 else self.op(f"zext i{w} {value} to i128")
            vector = self.op(f"bitcast i128 {wide} to <2 x i64>")
            move = "movups %xmm0,(%rax)" if w == 128 else "movq %xmm0,(%rax); pextrw $$4,%xmm0,8(%rax)"
            where, operand = "{xmm0}", f"<2 x i64> {vector}"
        self.op(
            f'call i64 asm sideeffect "{self._probe(size, "W")}; {move}", "={{rax}},{{rax}},{where},{regs},{CLOBBERS}"'
            f"(i64 {address}, {operand}, ptr %cpu, {inputs})"
        )

    def runtime_pointer(self, address: str, size: int, kind: str, system: bool) -> str:
        """Native function: the same through a call; leaves with the status when that fails."""
        function = "rt_load" if kind == "R" else "rt_window"
        p = self.op(f"call i64 @{function}(ptr %cpu, i64 {address}, i64 {size | (SYSTEM_ACCESS if system else 0)})")
        bad = self.op(f"icmp eq i64 {p}, 0")
        self.leave_if(bad)
        return self.op(f"inttoptr i64 {p} to ptr")

    def leave_if(self, bad: str) -> None:
        leave, go = self.new_label("leave"), self.new_label("go")
        self.terminate(f"br i1 {bad}, label %{leave}, label %{go}, !prof !1")
        self.start(leave)
        status = self.op(f"load i64, ptr {self.gep(WORDS['status'])}")
        self.terminate(f"ret i64 {status}")
        self.start(go)

    def load(self, op: Op, address: str) -> None:
        size = op.w // 8
        kind = "M" if op.at.get("write") else "R"
        if self.stencil:
            p = self.host_pointer(address, size, kind)
        else:
            p = self.runtime_pointer(address, size, kind, op.at.get("system", False))
        if kind == "M":
            self.windows[op.id] = p
        self.line(f"%v{op.id} = load i{op.w}, ptr {p}, align 1")

    def store(self, op: Op, address: str, value: str) -> None:
        w = op.args[1].w
        if "window" in op.at:
            self.line(f"store i{w} {value}, ptr {self.windows[op.at['window']]}, align 1")
        elif self.stencil:
            self.store_stencil(address, value, w)
        else:
            flags = w // 8 | (SYSTEM_ACCESS if op.at.get("system") else 0)
            low = value if w == 64 else self.op(f"{'zext' if w < 64 else 'trunc'} i{w} {value} to i64")
            high = self.op(f"trunc i{w} {self.op(f'lshr i{w} {value}, 64')} to i{min(w - 64, 64)}") if w > 64 else "0"
            if 64 < w < 128:
                high = self.op(f"zext i{w - 64} {high} to i64")
            failed = self.op(f"call i64 @rt_store(ptr %cpu, i64 {address}, i64 {flags}, i64 {low}, i64 {high})")
            self.leave_if(self.op(f"icmp ne i64 {failed}, 0"))

    def atomic(self, op: Op, a: list[str]) -> None:
        w, kind = op.w, op.at["kind"]
        if self.stencil:
            p = self.host_pointer(a[0], w // 8, "M")
        else:
            p = self.runtime_pointer(a[0], w // 8, "M", False)
        if kind == "cas":
            pair = self.op(f"cmpxchg ptr {p}, i{w} {a[1]}, i{w} {a[2]} seq_cst seq_cst, align {w // 8}")
            self.line(f"%v{op.id} = extractvalue {{ i{w}, i1 }} {pair}, 0")
        else:
            self.line(f"%v{op.id} = atomicrmw {kind} ptr {p}, i{w} {a[1]} seq_cst, align {w // 8}")

    # ---- operations
    def sequence(self, ops: list[Op]) -> None:
        for op in ops:
            self.one(op)

    def one(self, op: Op) -> None:
        name, w, at, r = op.op, op.w, op.at, f"%v{op.id}"
        if name in ("when", "choose"):
            (self._when if name == "when" else self._choose)(op)
            return
        if name == "chosen":
            return
        a = [self.value(x) for x in op.args]
        if "lane" in at:
            self._lanes(op, a)
            return
        t = f"i{op.args[0].w}" if op.args else ""
        if name in ("shl", "lshr", "ashr"):
            self._shift(op, a)
        elif name in ("udiv", "urem"):
            self._divide(op, a)
        elif name in _SCALAR:
            self.line(f"{r} = {name} {t} {a[0]}, {a[1]}")
        elif name in COMPARE:
            self.line(f"{r} = icmp {name} {t} {a[0]}, {a[1]}")
        elif name == "crc32c":
            self._crc32c(op, a)
        elif name in _INTRINSIC:
            self.line(f"{r} = " + self.intrinsic(_INTRINSIC[name].format(*a, t=t, m=t)))
        elif name in ("zext", "sext", "trunc"):
            self.line(f"{r} = {name} {t} {a[0]} to i{w}")
        elif name == "select":
            self.line(f"{r} = select i1 {a[0]}, i{w} {a[1]}, i{w} {a[2]}")
        elif name == "splat":
            n, lane = w // op.args[0].w, op.args[0].w
            vector = f"<{n} x i{lane}>"
            x = self.op(f"insertelement {vector} poison, i{lane} {a[0]}, i32 0")
            y = self.op(f"shufflevector {vector} {x}, {vector} poison, <{n} x i32> zeroinitializer")
            self.line(f"{r} = bitcast {vector} {y} to i{w}")
        elif name == "imm":
            self._immediate(op)
        elif name == "get":
            self._get(op)
        elif name == "set":
            self._set(op, a[0])
        elif name == "get_indexed":
            p = self.gep(self._indexed(at["field"], op.args[0], a[0]))
            self.line(f"{r} = load i{w}, ptr {p}, align 1")
        elif name == "set_indexed":
            self._defer_store(self._indexed(at["field"], op.args[0], a[0]), op.args[1].w, a[1])
        elif name == "load":
            self.load(op, a[0])
        elif name == "store":
            self.store(op, a[0], a[1])
        elif name == "probe":
            self._probe_range(op, a[0])
        elif name == "atomic":
            self.atomic(op, a)
        elif name == "fence":
            self.line("fence seq_cst")
        elif name == "pload":
            self.line(f"{r} = call i64 @rt_pload(ptr %cpu, i64 {a[0]})")
        elif name == "pstore":
            self.line(f"call void @rt_pstore(ptr %cpu, i64 {a[0]}, i64 {a[1]})")
        elif name == "fault":
            self._fault(op, a[0])
        elif name == "fp":
            result = lower_fp.lower_fp(self, op, a)
            if w:
                self.line(f"{r} = add i{w} 0, {result}")
        elif name == "tsc":
            pair = self.op('call { i64, i64 } asm sideeffect "rdtsc", "={rax},={rdx}"()')
            low, high = self.op(f"extractvalue {{ i64, i64 }} {pair}, 0"), self.op(f"extractvalue {{ i64, i64 }} {pair}, 1")
            self.line(f"{r} = or i64 {self.op(f'shl i64 {high}, 32')}, {low}")
        elif name in ("jump", "taken", "exit"):
            self.end = op
        else:
            raise KeyError(name)

    def _shift(self, op: Op, a: list[str]) -> None:
        name, w, count, r = op.op, op.args[0].w, op.args[1], f"%v{op.id}"
        if count.const is not None:
            if count.const < w:
                self.line(f"{r} = {name} i{w} {a[0]}, {a[1]}")
            elif name == "ashr":
                self.line(f"{r} = ashr i{w} {a[0]}, {w - 1}")
            else:
                self.line(f"{r} = add i{w} 0, 0")
        elif self._below(count, w):
            self.line(f"{r} = {name} i{w} {a[0]}, {a[1]}")
        else:  # operations are total: a count of the width or more gives 0, or the sign
            big = self.op(f"icmp uge i{w} {a[1]}, {w}")
            safe = self.op(f"select i1 {big}, i{w} {w - 1 if name == 'ashr' else 0}, i{w} {a[1]}")
            x = self.op(f"{name} i{w} {a[0]}, {safe}")
            self.line(f"{r} = add i{w} 0, {x}" if name == "ashr" else f"{r} = select i1 {big}, i{w} 0, i{w} {x}")

    def _below(self, v: Value, limit: int) -> bool:
        """Whether the trace proves v < limit."""
        op = self.defined.get(v.id)
        while op is not None and op.op == "zext":
            v = op.args[0]
            op = self.defined.get(v.id)
        if op is None:
            return v.const is not None and v.const < limit
        if op.op == "and" and op.args[1].const is not None:
            return op.args[1].const < limit
        return op.op == "urem" and op.args[1].const is not None and op.args[1].const <= limit

    def _divide(self, op: Op, a: list[str]) -> None:
        w, r = op.args[0].w, f"%v{op.id}"
        if w < 128:
            self.line(f"{r} = {op.op} i{w} {a[0]}, {a[1]}")
            return
        high = self.op(f"trunc i128 {self.op(f'lshr i128 {a[0]}, 64')} to i64")
        low, d = self.op(f"trunc i128 {a[0]} to i64"), self.op(f"trunc i128 {a[1]} to i64")
        pair = self.op(
            f'call {{ i64, i64 }} asm "div $4", "={{rax}},={{rdx}},{{rax}},{{rdx}},r,~{{flags}}"(i64 {low}, i64 {high}, i64 {d})'
        )
        x = self.op(f"extractvalue {{ i64, i64 }} {pair}, {int(op.op == 'urem')}")
        self.line(f"{r} = zext i64 {x} to i128")

    def _crc32c(self, op: Op, a: list[str]) -> None:
        w, r = op.args[0].w, f"%v{op.id}"
        if w < 64:
            self.line(f"{r} = " + self.intrinsic(f"call i32 @llvm.x86.sse42.crc32.32.{w}(i32 {a[1]}, i{w} {a[0]})"))
            return
        wide = self.op(f"zext i32 {a[1]} to i64")
        x = self.op(self.intrinsic(f"call i64 @llvm.x86.sse42.crc32.64.64(i64 {wide}, i64 {a[0]})"))
        self.line(f"{r} = trunc i64 {x} to i32")

    def _immediate(self, op: Op) -> None:
        slot, w, r = op.at["slot"], op.w, f"%v{op.id}"
        if not self.stencil:
            offset = RECORD_NEXT if slot == "next" else RECORD["disp"] if slot == "disp" else RECORD_IMM[slot]
            x = self._record(offset, "i32" if slot in ("next", "disp") else "i64")
        elif slot == "disp":
            x = self.hole("DISP")
        elif slot == "next":
            x = self.hole("NEXT")
        elif self.context.form.operands[slot][2]:  # more than a sign-extended 32-bit value: MOV r64, imm64
            self.holes.add(f"WIDE{slot}")
            x = self.op(f'call i64 asm "movabsq $$WIDE{slot}, $0", "=r"()')
        else:
            x = self.hole(f"IMM{slot}")
        self.line(f"{r} = add i64 0, {x}" if w == 64 else f"{r} = trunc i64 {self.op(f'add i64 0, {x}')} to i{w}")

    def _get(self, op: Op) -> None:
        where, what, low = self.place(op)
        w, r = op.w, f"%v{op.id}"
        if where == "arg":
            x = self.op(f"lshr i64 %{what}, {low}") if low else f"%{what}"
            self.line(f"{r} = add i64 0, {x}" if w == 64 else f"{r} = trunc i64 {x} to i{w}")
        elif w == 1:
            self.line(f"{r} = trunc i8 {self.op(f'load i8, ptr {self.gep(what)}')} to i1")
        else:
            self.line(f"{r} = load i{w}, ptr {self.gep(what)}, align 1")

    def _set(self, op: Op, value: str) -> None:
        where, what, low = self.place(op)
        w = op.args[0].w
        if where == "mem":
            self._defer_store(what, w, value)
            return
        cell = self.cell(what)
        if w == 64:
            self.line(f"store i64 {self._stepped(op, what) or value}, ptr {cell}")
            return
        old = self.op(f"load i64, ptr {cell}")
        kept = self.op(f"and i64 {old}, {signed(mask(64) & ~(mask(w) << low), 64)}")
        wide = self.op(f"zext i{w} {value} to i64")
        placed = self.op(f"shl i64 {wide}, {low}") if low else wide
        self.line(f"store i64 {self.op(f'or i64 {kept}, {placed}')}, ptr {cell}")

    def _stepped(self, op: Op, argument: str) -> str | None:
        """A pinned register moved by a constant (RSP, string pointers): added anew behind the accesses, so that LLVM does
        not keep the sum in one more register across their probes."""
        source = self.defined.get(op.args[0].id)
        if self.depth or source is None or source.op not in ("add", "sub") or source.args[1].const is None:
            return None
        base = self.defined.get(source.args[0].id)
        if base is None or base.op != "get" or base.w != 64 or self.place(base) != ("arg", argument, 0):
            return None
        same = self.op(f'call i64 asm sideeffect "", "=r,0"(i64 %{argument})')
        return self.op(
            f"{source.op} i64 {same}, {source.args[1].const if source.args[1].const < 1 << 63 else source.args[1].const - (1 << 64)}"
        )

    def _indexed(self, field: str, index: Value, text: str) -> str:
        wide = text if index.w == 64 else self.op(f"zext i{index.w} {text} to i64")
        scaled = self.op(f"mul i64 {wide}, {stride(field)}")
        return self.op(f"add i64 {scaled}, {FIELDS[field]}")

    def _defer_store(self, offset: str, w: int, value: str) -> None:
        """Commits at the end, in program order; under a condition only if that was met."""
        self.count += 1
        slot = f"%d{self.count}"
        kind = f"i{w}" if w != 1 else "i8"
        if w == 1:
            value = self.op(f"zext i1 {value} to i8")
        self.allocas.append(f"  {slot} = alloca {kind}")
        guard = None
        if self.depth:
            guard = f"%g{self.count}"
            self.allocas.append(f"  {guard} = alloca i1\n  store i1 false, ptr {guard}")
            self.line(f"store i1 true, ptr {guard}")
            if offset.startswith("%"):  # computed inside of the branch: carry it out
                self.allocas.append(f"  %o{self.count} = alloca i64")
                self.line(f"store i64 {offset}, ptr %o{self.count}")
                offset = f"&%o{self.count}"
        self.line(f"store {kind} {value}, ptr {slot}")
        self.pending.append((offset, max(w, 8), slot, guard))

    def _commit(self) -> None:
        for offset, w, slot, guard in self.pending:
            after = ""
            if guard:
                write, after = self.new_label("write"), self.new_label("after")
                self.terminate(f"br i1 {self.op(f'load i1, ptr {guard}')}, label %{write}, label %{after}")
                self.start(write)
            place = self.op(f"load i64, ptr {offset[1:]}") if offset.startswith("&") else offset
            value = self.op(f"load i{w}, ptr {slot}")
            self.line(f"store i{w} {value}, ptr {self.gep(place)}, align 1")
            if guard:
                self.terminate(f"br label %{after}")
                self.start(after)

    def _probe_range(self, op: Op, address: str) -> None:
        size = op.at["size"]
        last = self.op(f"add i64 {address}, {size - 1}")
        for a in (address, last):
            if self.stencil:
                self.host_pointer(a, 1, "M")
            else:
                self.runtime_pointer(a, 1, "M", op.at.get("system", False))

    def _fault(self, op: Op, error: str) -> None:
        vector = op.at["vector"]
        if self.stencil:
            self.put_word(FIELDS["exc_vector"], "i64", str(vector))
            self.put_word(FIELDS["exc_error"], "i32", error)
            self.tail("@FAULT", committed=False)
        elif vector == DEFER:
            self.terminate(f"ret i64 {DEFERRED}")
        else:
            self.put_word(FIELDS["exc_vector"], "i64", str(vector))
            self.put_word(FIELDS["exc_error"], "i32", error)
            self.terminate(f"ret i64 {FAULTED}")

    def _when(self, op: Op) -> None:
        inside, after = self.new_label("when"), self.new_label("end")
        cold = any(o.op == "fault" for o in op.sub[0])
        self.terminate(f"br i1 {self.value(op.args[0])}, label %{inside}, label %{after}" + (", !prof !1" if cold else ""))
        self.start(inside)
        self.depth += 1
        self.sequence(op.sub[0])
        self.depth -= 1
        self.terminate(f"br label %{after}")
        self.start(after)

    def _choose(self, op: Op) -> None:
        n = (len(op.args) - 1) // 2
        a, b, join = self.new_label("then"), self.new_label("else"), self.new_label("join")
        self.terminate(f"br i1 {self.value(op.args[0])}, label %{a}, label %{b}")
        ends = []
        self.depth += 1
        for label, sub in ((a, op.sub[0]), (b, op.sub[1])):
            self.start(label)
            self.sequence(sub)
            ends.append((self.label, self.terminated))
            self.terminate(f"br label %{join}")
        self.depth -= 1
        self.start(join)
        for k in range(n):
            w = op.args[1 + k].w
            sides = []
            for side, (label, dead) in enumerate(ends):
                if not dead:
                    sides.append(f"[{self.value(op.args[1 + side * n + k])}, %{label}]")
            self.line(f"%v{op.id + 1 + k} = phi i{w} {', '.join(sides)}")

    def _lanes(self, op: Op, a: list[str]) -> None:
        lane, w, r, name = op.at["lane"], op.w, f"%v{op.id}", op.op
        n = op.args[0].w // lane
        t, m = f"<{n} x i{lane}>", f"v{n}i{lane}"
        x = [self.op(f"bitcast i{v.w} {text} to {t}") for v, text in zip(op.args, a, strict=True)]
        if name == "movemask":
            c = self.op(f"icmp slt {t} {x[0]}, zeroinitializer")
            self.line(f"{r} = bitcast <{n} x i1> {c} to i{n}")
            return
        out = t
        if name == "lselect":
            c = self.op(f"icmp slt {t} {x[0]}, zeroinitializer")
            y = self.op(f"select <{n} x i1> {c}, {t} {x[1]}, {t} {x[2]}")
        elif name == "permute":
            index = self.op(f"and {t} {x[1]}, splat (i{lane} {n - 1})")
            if (n, lane) == (16, 8):
                y = self.op(self.intrinsic(f"call <16 x i8> @llvm.x86.ssse3.pshuf.b.128(<16 x i8> {x[0]}, <16 x i8> {index})"))
            else:
                wide = self.op(f"bitcast i{n * lane} {self.op(f'bitcast {t} {x[0]} to i{n * lane}')} to {t}")
                y = "poison"
                for k in range(n):
                    j = self.op(f"extractelement {t} {index}, i32 {k}")
                    y = self.op(f"insertelement {t} {y}, i{lane} {self.op(f'extractelement {t} {wide}, i{lane} {j}')}, i32 {k}")
        elif name == "shuffle":
            picks = op.at["index"]
            out = f"<{len(picks)} x i{lane}>"
            y = self.op(f"shufflevector {t} {x[0]}, {t} {x[1]}, <{len(picks)} x i32> <{', '.join(f'i32 {k}' for k in picks)}>")
        elif name in ("lsext", "lzext"):
            out = f"<{n} x i{op.at['to']}>"
            y = self.op(f"{name[1:]} {t} {x[0]} to {out}")
        elif name == "ltrunc":
            y = x[0]
            out = f"<{n} x i{op.at['to']}>"
            if op.at["saturate"]:
                to = op.at["to"]
                low, high = (-(1 << to - 1), (1 << to - 1) - 1) if op.at["saturate"] == "s" else (0, mask(to))
                for bound, call in ((low, "smax"), (high, "smin")):
                    y = self.op(self.intrinsic(f"call {t} @llvm.{call}.{m}({t} {y}, {t} splat (i{lane} {bound}))"))
            y = self.op(f"trunc {t} {y} to {out}")
        elif name in COMPARE:
            c = self.op(f"icmp {name} {t} {x[0]}, {x[1]}")
            y = self.op(f"sext <{n} x i1> {c} to {t}")
        elif name in ("shl", "lshr", "ashr"):
            big = self.op(f"icmp uge {t} {x[1]}, splat (i{lane} {lane})")
            limit = f"splat (i{lane} {lane - 1})" if name == "ashr" else "zeroinitializer"
            safe = self.op(f"select <{n} x i1> {big}, {t} {limit}, {t} {x[1]}")
            y = self.op(f"{name} {t} {x[0]}, {safe}")
            if name != "ashr":
                y = self.op(f"select <{n} x i1> {big}, {t} zeroinitializer, {t} {y}")
        elif name in ("avg", "mulhu", "mulhs"):
            wide = f"<{n} x i{2 * lane}>"
            extend = "sext" if name == "mulhs" else "zext"
            p, q = self.op(f"{extend} {t} {x[0]} to {wide}"), self.op(f"{extend} {t} {x[1]} to {wide}")
            if name == "avg":
                total = self.op(f"add {wide} {self.op(f'add {wide} {p}, {q}')}, splat (i{2 * lane} 1)")
                high = self.op(f"lshr {wide} {total}, splat (i{2 * lane} 1)")
            else:
                high = self.op(f"lshr {wide} {self.op(f'mul {wide} {p}, {q}')}, splat (i{2 * lane} {lane})")
            y = self.op(f"trunc {wide} {high} to {t}")
        elif name in _SCALAR:
            y = self.op(f"{name} {t} {x[0]}, {x[1]}")
        else:
            y = self.op(self.intrinsic(_INTRINSIC[name].format(*x, t=t, m=m)))
        self.line(f"{r} = bitcast {out} {y} to i{w}")

    # ---- the whole function
    def function(self) -> str:
        """The LLVM text of the function; `declarations` and `holes` say what its module needs besides."""
        self.sequence(self.context.trace.ops)
        self._commit()
        (self._end_stencil if self.stencil else self._end_native)()
        head = (
            f"define preserve_nonecc void @{self.name}({PARAMETERS}) #0 {{"
            if self.stencil
            else f"define i64 @{self.name}(ptr noalias %cpu, ptr noalias %data) #0 {{"
        )
        return "\n".join([head, "entry:", *self.allocas, *self.lines, "}", ""])

    def _end_stencil(self) -> None:
        end = self.end
        if end is None:
            self.tail("@CONT", True)
        elif end.op == "jump":
            self._jump_cache(self.value(end.args[0]))
        elif end.op == "taken":
            if end.args[0].const == 1:
                self.tail("@TAKEN", True)
                return
            taken, cont = self.new_label("taken"), self.new_label("cont")
            self.terminate(f"br i1 {self.value(end.args[0])}, label %{taken}, label %{cont}, !prof !0")
            self.start(taken)
            self.tail("@TAKEN", True)
            self.start(cont)
            self.tail("@CONT", True)
        else:
            self._exit_words(end)
            self.tail("@EXIT", True)

    def _jump_cache(self, target: str) -> None:
        """Indirect jump: the jump cache tells the block for (target, mode), or the dispatcher looks it up."""
        x = self.op(f"xor i64 {self.op(f'lshr i64 {target}, 12')}, {target}")
        index = self.op(f"shl i64 {self.op(f'and i64 {x}, {JUMP_CACHE_ENTRIES - 1}')}, 4")
        entry = self.gep(self.op(f"add i64 {index}, {JUMP_CACHE}"))
        key = self.op(f"xor i64 {self.op(f'load i64, ptr {self.gep(JUMP_KEY)}')}, {target}")
        hit = self.op(f"icmp eq i64 {self.op(f'load i64, ptr {entry}')}, {key}")
        found, missed = self.new_label("found"), self.new_label("missed")
        self.terminate(f"br i1 {hit}, label %{found}, label %{missed}, !prof !2")
        self.start(missed)
        self.put_word(FIELDS["rip"], "i64", target)
        self.tail("@LOOKUP", True)
        self.start(found)
        self.put_word(FIELDS["vpage"], "i64", self.op(f"and i64 {target}, -4096"))
        p = self.op(f"getelementptr i8, ptr {entry}, i64 8")
        self.tail(self.op(f"load ptr, ptr {p}"), True)

    def _exit_words(self, end: Op) -> None:
        self.put_word(WORDS["exit_kind"], "i64", str(EXIT_KINDS.index(end.at["kind"])))
        for k, v in enumerate(end.args):
            wide = self.value(v) if v.w == 64 else self.op(f"zext i{v.w} {self.value(v)} to i64")
            self.put_word(WORDS[f"ex{k}"], "i64", wide)

    def _end_native(self) -> None:
        end = self.end
        if end is None:
            self.terminate(f"ret i64 {NEXT}")
        elif end.op == "jump":
            self.put_word(FIELDS["rip"], "i64", self.value(end.args[0]))
            self.terminate(f"ret i64 {JUMP}")
        elif end.op == "exit":
            self._exit_words(end)
            self.terminate(f"ret i64 {EXITED}")
        else:
            raise TypeError(f"{self.context.form.name}: a conditional branch needs the stencil shape")


_COMMON = """
attributes #0 = { nounwind optsize noredzone "frame-pointer"="none" }
!0 = !{!"branch_weights", i32 1, i32 1}
!1 = !{!"branch_weights", i32 1, i32 2000}
!2 = !{!"branch_weights", i32 2000, i32 1}
!9 = !{i64 -2147483648, i64 2147483648}
"""


def module(functions: list[str], declarations: set[str], holes: set[str], stencil: bool) -> str:
    """A whole LLVM module around lowered functions."""
    lines = []
    for hole in sorted(holes):
        if not hole.startswith(("TLB", "WIDE")):
            lines.append(f"@{hole} = external dso_local global i8, !absolute_symbol !9")
    if stencil:
        lines += [f"declare dso_local preserve_nonecc void @{e}({SIGNATURE})" for e in ENDINGS]
    else:
        lines += [
            "declare dso_local i64 @rt_load(ptr, i64, i64)",
            "declare dso_local i64 @rt_window(ptr, i64, i64)",
            "declare dso_local i64 @rt_store(ptr, i64, i64, i64, i64)",
            "declare dso_local i64 @rt_pload(ptr, i64)",
            "declare dso_local void @rt_pstore(ptr, i64, i64)",
        ]
    return "\n".join([*lines, *sorted(declarations), *functions, _COMMON])
