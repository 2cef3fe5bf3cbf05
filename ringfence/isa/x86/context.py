"""What an instruction body sees: operands, registers, flags and effects.

@insn("adc")
def adc(i):
    a = i[0].get(rmw=True); b = i[1].get(); r = a + b + i.f.cf().zext(i.size)
    i[0].set(r); i.f.adc(a, b, r)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, NamedTuple

from ringfence.ir.value import Trace, Value
from ringfence.isa.x86.flags import Flags
from ringfence.isa.x86.modes import FLAT, LONG, is_real, stack_bits
from ringfence.isa.x86.vectors import (
    DEFER,
    GP,
    SS,
)


class MemForm(NamedTuple):
    """The shape of a memory operand."""

    base: bool = False
    index: bool = False  # type: ignore[assignment]  # shadows tuple.index, which nobody needs here
    scale: int = 0  # log2
    disp: bool = False
    rip: bool = False  # RIP-relative: disp counts from the page of the instruction
    segment: str | None = None  # what is added to the offset; None: nothing
    address32: bool = False
    base_is_rsp: bool = False
    address16: bool = False
    limit: bool = False  # the segment's limit and type are checked, and the sum has 32 bits: outside of 64-bit mode


class Form(NamedTuple):
    """Everything about an encoded instruction that its body and its machine code depend on, but not the values of
    displacements and immediates, nor which registers fill the slots."""

    name: str
    size: int  # operand size in bits
    operands: tuple[tuple[str, int, int], ...]  # (kind, width, lowest bit): r GPR, x XMM, y MMX, m memory, i immediate
    mem: MemForm = MemForm()
    imms: tuple[int | None, ...] = ()  # per operand: an immediate whose value is part of the form
    lock: bool = False
    mode: int = 64  # see modes.py; 64 as well where the body does not depend on it


class Operand:
    """One operand of an instruction."""

    kind = ""
    w = 0

    def get(self, rmw: bool = False) -> Value:
        """Its value.  `rmw`: the body will set it as well, so a memory operand is probed for writing."""
        raise TypeError(f"a {self.kind} operand has no value")

    def set(self, value: Value, when: Value | None = None) -> None:
        """Writes it (where `when` is 1)."""
        raise TypeError(f"a {self.kind} operand cannot be set")

    def address(self, write: bool = False) -> Value:
        """The linear address of a memory operand."""
        raise TypeError(f"a {self.kind} operand has no address")

    def address_beyond(self, offset: Value | int, write: bool = False, size_bytes: int = 0) -> Value:
        """The linear address of the part `offset` bytes further on, `size_bytes` long or as long as the whole; the sum wraps
        as the address size has it."""
        raise TypeError(f"a {self.kind} operand has no address")


class Register(Operand):
    """A general-purpose register; 32-bit writes clear the upper half."""

    kind = "r"

    def __init__(self, i: Context, slot: int, w: int) -> None:
        self.i = i
        self.slot = slot
        self.w = w

    def get(self, rmw: bool = False) -> Value:
        return self.i.trace.emit("get", self.w, [], slot=self.slot)

    def set(self, value: Value, when: Value | None = None) -> None:
        if value.w != self.w:
            raise TypeError(f"width {value.w} where {self.w} is needed")
        wide = value.zext(64) if self.w == 32 else value
        if when is not None:  # not taken: nothing is written, not even the upper half
            wide = when.select(wide, self.i.trace.emit("get", wide.w, [], slot=self.slot))
        self.i.trace.emit("set", 0, [wide], slot=self.slot)


class Vector(Operand):
    """An XMM register, 128 bits; narrower operands (`w`) are its low part, whose writes keep the rest."""

    kind = "x"

    def __init__(self, i: Context, slot: int, w: int) -> None:
        self.i = i
        self.slot = slot
        self.w = w

    def get(self, rmw: bool = False) -> Value:
        return self.i.trace.emit("get", self.w, [], slot=self.slot)

    def low(self, w: int) -> Value:
        return self.i.trace.emit("get", w, [], slot=self.slot)

    def set(self, value: Value, when: Value | None = None) -> None:
        if when is not None:
            value = when.select(value, self.i.trace.emit("get", value.w, [], slot=self.slot))
        self.i.trace.emit("set", 0, [value], slot=self.slot)


class Mmx(Operand):
    """An MMX register: the significand of an x87 physical register, whose sign and exponent a write sets to ones (SDM 1 9.2.1)."""

    kind = "y"
    w = 64

    def __init__(self, i: Context, slot: int) -> None:
        self.i = i
        self.slot = slot

    def get(self, rmw: bool = False) -> Value:
        return self.i.trace.emit("get", 64, [], slot=self.slot)

    def low(self, w: int) -> Value:
        return self.i.trace.emit("get", w, [], slot=self.slot)

    def set(self, value: Value, when: Value | None = None) -> None:
        if value.w != 64 or when is not None:
            raise TypeError("an MMX register is written whole and always")
        self.i.trace.emit("set", 0, [self.i.const(0xFFFF, 16).concat(value)], slot=self.slot)


class Memory(Operand):
    """A memory operand `w` bits wide."""

    kind = "m"

    def __init__(self, i: Context, w: int, form: MemForm, aligned: bool = False) -> None:
        self.i = i
        self.w = w
        self.form = form
        self.aligned = aligned
        self._address: Value | None = None
        self._may_write = False
        self._window: Value | None = None

    def effective(self, beyond: Value | None = None) -> Value:
        """The offset within the segment, as LEA computes it, or `beyond` bytes further."""
        f, t = self.form, self.i.trace
        parts: list[Value] = []
        if f.base:
            parts.append(t.emit("get", 64, [], slot="base"))
        if f.index:
            parts.append(t.emit("get", 64, [], slot="index") << f.scale)
        if f.rip:
            parts.append(self.i.get("vpage"))
        if f.disp or not parts:
            parts.append(t.emit("imm", 64, [], slot="disp"))
        if beyond is not None:
            parts.append(beyond)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        if f.address16:
            return total & 0xFFFF
        return total.trunc(32).zext(64) if f.address32 else total

    def address(self, write: bool = False) -> Value:
        """`write`: it will be written as well, or only."""
        if self._address is None or (write and not self._may_write):
            self._address = self._linear(self.effective(), write)
            self._may_write = write
        return self._address

    def address_beyond(self, offset: Value | int, write: bool = False, size_bytes: int = 0) -> Value:
        return self._linear(self.effective(self.i.trace.value(offset, 64)), write, size_bytes)

    def _linear(self, effective: Value, write: bool, size_bytes: int = 0) -> Value:
        f = self.form
        if f.segment and f.limit:
            return self.i.linear(f.segment, effective, size_bytes or max(self.w // 8, 1), write)
        return effective + self.i.get(f"{f.segment}_base") if f.segment else effective

    def get(self, rmw: bool = False) -> Value:
        value = self.i.load(self.address(rmw), self.w, write=rmw, aligned=self.aligned)
        if rmw:
            self._window = value
        return value

    def low(self, w: int) -> Value:
        """The first w bits only."""
        return self.i.load(self.address(), w)

    def set(self, value: Value, when: Value | None = None) -> None:
        if when is not None:
            if self._window is None:
                raise TypeError("a conditional store needs get(rmw=True) first")
            value = when.select(value, self._window)
        if self._window is not None:
            self.i.trace.emit("store", 0, [self.address(True), value], window=self._window.id)
        else:
            self.i.store(self.address(True), value, aligned=self.aligned)


class Immediate(Operand):
    """An immediate, already extended to `w` bits by the decoder."""

    kind = "i"

    def __init__(self, i: Context, slot: int, w: int, known: int | None) -> None:
        self.i = i
        self.slot = slot
        self.w = w
        self.known = known

    def get(self, rmw: bool = False) -> Value:
        if self.known is not None:
            return self.i.const(self.known, self.w)
        return self.i.trace.emit("imm", self.w, [], slot=self.slot)


class Context:
    """`i`: one instruction form being traced."""

    def __init__(
        self, form: Form, *, lazy: bool = False, kind_in: int = 0, carry_live: bool = True, flags_live: bool = True, precise: bool = False
    ) -> None:
        """`precise`: segment checks raise what the manual says; otherwise they defer, and somebody precise looks again."""
        self.trace = Trace()
        self.form = form
        self.mode_matters = False
        self._precise = precise
        self.size = form.size
        self.lock = form.lock
        self.f = Flags(self, lazy, kind_in, carry_live, flags_live)
        self.ops: list[Operand] = [self._operand(k, *o) for k, o in enumerate(form.operands)]
        self._entry: dict[tuple[str, int, int], Value] = {}

    def _operand(self, k: int, kind: str, w: int, low: int) -> Operand:
        match kind:
            case "r":
                return Register(self, k, w)
            case "x":
                return Vector(self, k, w)
            case "y":
                return Mmx(self, k)
            case "m":
                return Memory(self, w, self.form.mem, aligned=low == 1)
            case "i":
                return Immediate(self, k, w, self.form.imms[k] if k < len(self.form.imms) else None)
        raise KeyError(kind)

    def __getitem__(self, k: int) -> Operand:
        return self.ops[k]

    def __len__(self) -> int:
        return len(self.ops)

    def const(self, value: int, w: int) -> Value:
        return self.trace.value(value, w)

    def imm(self, k: int) -> int:
        """The value of an immediate that is part of the form."""
        value = self.form.imms[k]
        if value is None:
            raise TypeError("this immediate is not part of the form")
        return value

    # ---- mode
    @property
    def mode(self) -> int:
        """What modes.py lists.  A body that asks gets a form for each mode."""
        self.mode_matters = True
        return self.form.mode

    @property
    def long(self) -> bool:
        """64-bit mode."""
        return self.mode == LONG

    @property
    def real(self) -> bool:
        """Real-address or virtual-8086 mode."""
        return is_real(self.mode)

    # ---- segments outside of 64-bit mode
    def linear(self, segment: str, offset: Value, size_bytes: int, write: bool) -> Value:
        """The linear address of `offset` (64 bits wide), checked against limit and type (SDM 3A 5.3, 5.5)."""
        end = offset + (size_bytes - 1)
        if self._precise:
            self._check_segment(segment, offset, end, write)
        else:
            self.defer_if(self.get(f"{segment}_wlimit" if write else f"{segment}_rlimit").slt(end))
        return (offset + self.get(f"{segment}_base")) & 0xFFFFFFFF

    def implicit(self, offset: Value, size_bytes: int, write: bool) -> Value:
        """The linear address of an operand that the assembler does not write down: the address size and segment of `form.mem`."""
        mem = self.form.mem
        offset = offset & (0xFFFF if mem.address16 else 0xFFFFFFFF if mem.address32 else (1 << 64) - 1)
        if mem.segment and mem.limit:
            return self.linear(mem.segment, offset, size_bytes, write)
        return offset + self.get(f"{mem.segment}_base") if mem.segment else offset

    def _check_segment(self, segment: str, offset: Value, end: Value, write: bool) -> None:
        attr, limit = self.get(f"{segment}_attr", 16), self.get(f"{segment}_limit", 32).zext(64)
        vector = SS if segment == "ss" else GP
        protected = self.get("cr0").bit(0) & ~self.get("rflags_sys").bit(17)
        code, allowed = attr.bit(3), attr.bit(1)
        bad = code | ~allowed if write else code & ~allowed
        self.fault_if(protected & (~attr.bit(7) | ~attr.bit(4) | bad), vector)
        down = protected & ~code & attr.bit(2)
        top = attr.bit(10).select(self.const(0xFFFFFFFF, 64), 0xFFFF)
        self.fault_if(down.select(offset.ule(limit) | top.ult(end), limit.ult(end)), vector)

    def sp(self) -> Value:
        """The stack pointer, as wide as the stack has it, extended to 64 bits."""
        w = stack_bits(self.mode)
        return self.get("rsp") if w == 64 else self.get("rsp", w).zext(64)

    def bp(self) -> Value:
        """The same of the frame pointer."""
        w = stack_bits(self.mode)
        return self.get("rbp") if w == 64 else self.get("rbp", w).zext(64)

    def wrap_sp(self, value: Value) -> Value:
        """`value` modulo the stack's size."""
        w = stack_bits(self.mode)
        return value if w == 64 else value & (1 << w) - 1

    def put_sp(self, value: Value) -> None:
        w = stack_bits(self.mode)
        self.put("rsp", value.trunc(16) if w == 16 else self.wrap_sp(value))

    def stack(self, sp: Value, size_bytes: int, write: bool = False) -> Value:
        """The linear address of `size_bytes` at stack offset `sp`."""
        sp = self.wrap_sp(sp)
        return sp if self.mode in (LONG, FLAT) else self.linear("ss", sp, size_bytes, write)

    def next_ip(self) -> Value:
        """The offset within CS of the following instruction, 64 bits wide."""
        return self.ip_of(self.next_rip())

    def ip_of(self, linear: Value) -> Value:
        """The offset within CS of a linear address."""
        if self.mode == LONG:
            return linear
        return (linear if self.mode == FLAT else linear - self.get("cs_base")) & 0xFFFFFFFF

    def code_address(self, ip: Value) -> Value:
        """The linear address of an offset within CS (64 bits wide)."""
        if self.mode == LONG:
            return ip
        return (ip if self.mode == FLAT else ip + self.get("cs_base")) & 0xFFFFFFFF

    def near_target(self, ip: Value) -> Value:
        """The linear address of a near branch's target, which must be within the limit of CS (SDM 2 JMP)."""
        if self.mode not in (LONG, FLAT):
            self.fault_if(self.get("cs_limit", 32).zext(64).ult(ip), GP)
        return self.code_address(ip)

    # ---- state
    def get(self, field: str, w: int = 64, low: int = 0) -> Value:
        """w bits of a state field as it was at instruction entry."""
        if self.trace.nested:
            return self.trace.emit("get", w, [], field=field, low=low)
        key = (field, w, low)
        if key not in self._entry:
            self._entry[key] = self.trace.emit("get", w, [], field=field, low=low)
        return self._entry[key]

    def put(self, field: str, value: Value, low: int = 0) -> None:
        """Writes a field's bits from `low` on; the rest of the field stays."""
        self.trace.emit("set", 0, [value], field=field, low=low)

    def put_register(self, field: str, value: Value) -> None:
        """Writes a general-purpose register by the architecture's rule: 32-bit results clear the upper half."""
        self.put(field, value.zext(64) if value.w == 32 else value)

    def get_indexed(self, field: str, w: int, index: Value) -> Value:
        return self.trace.emit("get_indexed", w, [index], field=field)

    def put_indexed(self, field: str, index: Value, value: Value) -> None:
        self.trace.emit("set_indexed", 0, [index, value], field=field)

    # ---- memory
    def load(self, address: Value, w: int, write: bool = False, aligned: bool = False, **at: Any) -> Value:
        if aligned:
            self.fault_if((address & w // 8 - 1) != 0, GP)
        return self.trace.emit("load", w, [address], write=write, **at)

    def store(self, address: Value, value: Value, aligned: bool = False, **at: Any) -> None:
        if aligned:
            self.fault_if((address & value.w // 8 - 1) != 0, GP)
        self.trace.emit("store", 0, [address, value], **at)

    def probe(self, address: Value, size: int, **at: Any) -> None:
        """Faults unless `size` bytes (at most a page) can be written."""
        self.trace.emit("probe", 0, [address], size=size, **at)

    def atomic(self, kind: str, address: Value, w: int, *values: Value) -> Value:
        """add, and, or, xor, xchg, or cas (expected, new): returns the old value; one locked access."""
        return self.trace.emit("atomic", w, [address, *values], kind=kind)

    def pload(self, address: Value) -> Value:
        return self.trace.emit("pload", 64, [address])

    def pstore(self, address: Value, value: Value) -> None:
        self.trace.emit("pstore", 0, [address, value])

    # ---- control
    def fault(self, vector: int, error: Value | int = 0) -> None:
        self.trace.emit("fault", 0, [self.trace.value(error, 32)], vector=vector)

    def fault_if(self, condition: Value, vector: int, error: Value | int = 0) -> None:
        with self.trace.when(condition):
            self.fault(vector, error)

    def defer_if(self, condition: Value | int) -> None:
        """Where 1, the engine's Python side carries the whole instruction out instead."""
        self.fault_if(self.trace.value(condition, 1), DEFER)

    def when(self, condition: Value) -> AbstractContextManager[None]:
        return self.trace.when(condition)

    def choose(self, condition: Value, then: Callable[[], Any], other: Callable[[], Any]) -> Any:
        return self.trace.choose(condition, then, other)

    def jump(self, target: Value) -> None:
        """Ends the body: go on at this linear address (see `code_address`)."""
        self.trace.emit("jump", 0, [target])

    def taken(self, condition: Value) -> None:
        """Ends the body: to the direct branch's target (REP: this instruction again) where 1, else to the next one."""
        self.trace.emit("taken", 0, [condition])

    def exit(self, kind: str, *values: Value) -> None:
        """Ends the body: the engine's Python side completes the instruction."""
        self.trace.emit("exit", 0, list(values), kind=kind)

    def next_rip(self) -> Value:
        """The linear address of the following instruction."""
        return self.get("vpage") + self.trace.emit("imm", 64, [], slot="next")

    def fp(self, op: str, fmt: str, w: int, *values: Value) -> Value:
        """Floating point under the guest's rounding mode, with its sticky exception flags (see ir.softfloat)."""
        return self.trace.emit("fp", w, list(values), fp=op, fmt=fmt)

    def tsc(self) -> Value:
        """The host's time-stamp counter."""
        return self.trace.emit("tsc", 64, [])

    def request(self, bits: int) -> None:
        """Asks the engine for REQUEST_* work before the next instruction."""
        self.put("request", self.get("request", 32) | bits)


Body = Callable[[Context], None]


class Instruction(NamedTuple):
    """A registered body.  `undefined` names flags that the manual leaves undefined: letters of o s z a p c; after `>1:`
    those undefined for counts above one.  `restart` says why a fault after a store is harmless."""

    name: str
    body: Body
    undefined: str
    restart: str | None


_MODULES = (
    *("integer", "control", "strings", "system", "transfers", "delivery", "legacy", "early"),
    *("sse_move", "sse_int", "sse_float", "sse_string", "mmx", "x87", "x87_functions", "fpu_state"),
)


class _Bodies(dict[str, Instruction]):
    """Bodies by mnemonic.  Their modules are loaded one by one until what is looked for is there; `bodies` loads them all."""

    def __init__(self) -> None:
        super().__init__()
        self._left = list(reversed(_MODULES))
        self._loading = threading.RLock()

    def has(self, name: str) -> bool:
        """Whether it has been loaded."""
        return super().__contains__(name)

    def load(self, name: str = "") -> None:
        """Loads what is needed to find this name; without one, everything."""
        with self._loading:
            while self._left and not self.has(name):
                import_module(f"ringfence.isa.x86.{self._left.pop()}")

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name):
            self.load(str(name))
        return super().__contains__(name)

    def __missing__(self, name: str) -> Instruction:
        if name in self:
            return self[name]
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name, default) if name in self else default

    def __iter__(self) -> Iterator[str]:
        self.load()
        return super().__iter__()

    def items(self) -> Any:
        self.load()
        return super().items()


INSTRUCTIONS = _Bodies()


def insn(*names: str, undefined: str = "", restart: str | None = None) -> Callable[[Body], Body]:
    """Registers a body under its mnemonics."""

    def register(body: Body) -> Body:
        for name in names:
            if INSTRUCTIONS.has(name):
                raise ValueError(f"{name} has two bodies")
            INSTRUCTIONS[name] = Instruction(name, body, undefined, restart)
        return body

    return register


def trace_form(form: Form, **flags: Any) -> Context:
    """Traces the form's body."""
    context = Context(form, **flags)
    INSTRUCTIONS[form.name].body(context)
    return context
