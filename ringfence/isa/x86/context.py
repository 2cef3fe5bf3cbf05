"""What an instruction body sees: operands, registers, flags and effects.

    @insn("adc")
    def adc(i):
        a = i[0].get(rmw=True); b = i[1].get(); r = a + b + i.f.cf().zext(i.size)
        i[0].set(r); i.f.adc(a, b, r)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from ringfence.ir.value import Trace, Value
from ringfence.isa.x86.flags import Flags

DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS, NP, SS, GP, PF, MF, AC, MC, XM = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19)
DEFER = 0x100  # not a vector: see Context.defer_if


class MemForm(NamedTuple):
    """The shape of a memory operand."""

    base: bool = False
    index: bool = False  # type: ignore[assignment]  # shadows tuple.index, which nobody needs here
    scale: int = 0  # log2
    disp: bool = False
    rip: bool = False  # RIP-relative: disp counts from the page of the instruction
    segment: str | None = None  # "fs" or "gs"
    address32: bool = False
    base_is_rsp: bool = False


class Form(NamedTuple):
    """Everything about an encoded instruction that its body and its machine code depend on, but not the values of
    displacements and immediates, nor which registers fill the slots."""

    name: str
    size: int  # operand size in bits
    operands: tuple[tuple[str, int, int], ...]  # (kind, width, lowest bit): r GPR, x XMM, y MMX, m memory, i immediate
    mem: MemForm = MemForm()
    imms: tuple[int | None, ...] = ()  # per operand: an immediate whose value is part of the form
    lock: bool = False
    mode: int = 64


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

    def address(self) -> Value:
        """The linear address of a memory operand."""
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
        return total.trunc(32).zext(64) if f.address32 else total

    def address(self) -> Value:
        if self._address is None:
            self._address = self._linear(self.effective())
        return self._address

    def address_beyond(self, offset: Value) -> Value:
        """The linear address `offset` bytes further on; the sum wraps as the address size has it."""
        return self._linear(self.effective(offset))

    def _linear(self, effective: Value) -> Value:
        return effective + self.i.get(f"{self.form.segment}_base") if self.form.segment else effective

    def get(self, rmw: bool = False) -> Value:
        value = self.i.load(self.address(), self.w, write=rmw, aligned=self.aligned)
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
            self.i.trace.emit("store", 0, [self.address(), value], window=self._window.id)
        else:
            self.i.store(self.address(), value, aligned=self.aligned)


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

    def __init__(self, form: Form, *, lazy: bool = False, kind_in: int = 0, carry_live: bool = True, flags_live: bool = True) -> None:
        self.trace = Trace()
        self.form = form
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
        """Ends the body: go on at this RIP."""
        self.trace.emit("jump", 0, [target])

    def taken(self, condition: Value) -> None:
        """Ends the body: to the direct branch's target (REP: this instruction again) where 1, else to the next one."""
        self.trace.emit("taken", 0, [condition])

    def exit(self, kind: str, *values: Value) -> None:
        """Ends the body: the engine's Python side completes the instruction."""
        self.trace.emit("exit", 0, list(values), kind=kind)

    def next_rip(self) -> Value:
        """The address of the following instruction."""
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


INSTRUCTIONS: dict[str, Instruction] = {}


def insn(*names: str, undefined: str = "", restart: str | None = None) -> Callable[[Body], Body]:
    """Registers a body under its mnemonics."""

    def register(body: Body) -> Body:
        for name in names:
            if name in INSTRUCTIONS:
                raise ValueError(f"{name} has two bodies")
            INSTRUCTIONS[name] = Instruction(name, body, undefined, restart)
        return body

    return register


def trace_form(form: Form, **flags: Any) -> Context:
    """Traces the form's body."""
    context = Context(form, **flags)
    INSTRUCTIONS[form.name].body(context)
    return context
