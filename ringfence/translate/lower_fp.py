"""The `fp` operation to LLVM: each becomes the very instruction of the x86-64 host that it means.

The guest's rounding modes are loaded in the host's MXCSR and x87 control word with all exceptions masked, sticky flags stay in
the host's registers, and the x87 stack is empty between stencils.  Everything is inline assembly with side effects: LLVM would
commute additions (the wrong NaN survives), fold constants and drop results whose flags are wanted.

Values are integers in LLVM; XMM operands pass as float, double or <4 x float>, x87 operands as x86_fp80, whose bit casts are
plain 80-bit loads and stores.  SSE4.1 of the host is needed for its own instructions only (ROUND, DP).
"""

from __future__ import annotations

from typing import Any, Protocol

_TYPES = {32: "float", 64: "double", 128: "<4 x float>"}
_X87_CODES = 0x4700
_SUFFIXES = {"x87.f32": "s", "x87.f64": "l", "x87.i16": "s", "x87.i32": "l", "x87.i64": "ll"}
_IN_ORDER = ("addsub", "hadd", "hsub", "add", "sub", "mul", "div", "min", "max")
_STEPS = {
    "sqrt": "fsqrt", "rndint": "frndint", "sin": "fsin", "cos": "fcos", "2xm1": "f2xm1",
    "scale": "fscale", "prem": "fprem", "prem1": "fprem1", "patan": "fpatan", "yl2x": "fyl2x", "yl2xp1": "fyl2xp1",
}  # fmt: skip
_POPPING = ("patan", "yl2x", "yl2xp1")
_CONSTANTS = {
    "constant_pi": "fldpi",
    "constant_l2t": "fldl2t",
    "constant_l2e": "fldl2e",
    "constant_lg2": "fldlg2",
    "constant_ln2": "fldln2",
}
_STATUS = "\\0A\\09fnstsw %ax"


class Emitter(Protocol):
    """Where the text goes.  `allocas` holds the stack slots of the entry block, `count` numbers names."""

    allocas: list[str]
    count: int

    def line(self, text: str) -> None: ...

    def op(self, text: str) -> str:
        """Appends an instruction; returns the name of its result."""


def lower_fp(emit: Emitter, op: Any, args: list[str]) -> str:
    """The text of the operation's value; "" when it has none."""
    name, fmt = op.at["fp"], op.at["fmt"]
    if fmt == "mxcsr":
        return _mxcsr(emit, name, args)
    if fmt.startswith("x87"):
        return _x87(emit, op, name, fmt, args)
    if name in ("cvt", "cvtt"):
        return _convert(emit, op, name, fmt, args[0])
    w = op.args[0].w
    vector = [_cast(emit, f"i{w}", a, _TYPES[w]) for a in args[: 1 if name in ("sqrt", "rcp", "rsqrt", "round") else 2]]
    if name in ("comi", "ucomi"):
        return _compare(emit, name + fmt, _TYPES[w], vector)
    return _cast(emit, _TYPES[w], _sse(emit, op, name, fmt, _TYPES[w], vector), f"i{w}")


def _cast(emit: Emitter, source: str, value: str, target: str) -> str:
    return emit.op(f"bitcast {source} {value} to {target}")


def _slot(emit: Emitter, kind: str) -> str:
    """A stack slot of the function, allocated in its entry block."""
    emit.count += 1
    name = f"%f{emit.count}"
    emit.allocas.append(f"  {name} = alloca {kind}, align 16")
    return name


def _sse(emit: Emitter, op: Any, name: str, fmt: str, kind: str, values: list[str]) -> str:
    if name in _IN_ORDER:
        text = f"{name}{fmt} $2, $0"
    elif name in ("sqrt", "rcp", "rsqrt"):
        text = f"{name}{fmt} $1, $0"
    elif name == "round":
        text = f"round{fmt} $${op.args[1].const}, $1, $0"
    elif name == "cmp":
        text = f"cmp{fmt} $${op.args[2].const & 7}, $2, $0"
    elif name == "dp":
        text = f"dp{fmt} $${op.args[2].const}, $2, $0"
    else:
        raise KeyError(name)
    constraints = "=x,0,x" if len(values) == 2 else "=x,x"
    passed = ", ".join(f"{kind} {v}" for v in values)
    return emit.op(f'call {kind} asm sideeffect "{text}", "{constraints}"({passed})')


def _compare(emit: Emitter, mnemonic: str, kind: str, values: list[str]) -> str:
    """CF, PF and ZF from bit 0."""
    triple = "{ i8, i8, i8 }"
    # Not flag outputs: LLVM may put arithmetic between the comparison and the reading of a second flag.
    text = "\\0A\\09".join((f"{mnemonic} $4, $3", "setb $0", "setp $1", "sete $2"))
    constraints = "=q,=q,=q,x,x,~{flags}"
    found = emit.op(f'call {triple} asm sideeffect "{text}", "{constraints}"({kind} {values[0]}, {kind} {values[1]})')
    bits = [emit.op(f"trunc i8 {emit.op(f'extractvalue {triple} {found}, {k}')} to i1") for k in range(3)]
    wide = [emit.op(f"zext i1 {b} to i3") for b in bits]
    placed = [wide[0], emit.op(f"shl i3 {wide[1]}, 1"), emit.op(f"shl i3 {wide[2]}, 2")]
    return emit.op(f"or i3 {placed[0]}, {emit.op(f'or i3 {placed[1]}, {placed[2]}')}")


def _convert(emit: Emitter, op: Any, name: str, fmt: str, value: str) -> str:
    w, result_w = op.args[0].w, op.w
    source, target = fmt.split("2")
    if source == "si":
        suffix = "q" if w == 64 else "l"
        kind = _TYPES[result_w]
        # Clearing first: the instruction keeps the register's upper part and so would wait for its last user.
        text = f"xorps $0, $0\\0A\\09{name}{fmt}{suffix} $1, $0"
        x = emit.op(f'call {kind} asm sideeffect "{text}", "=x,r"(i{w} {value})')
        return _cast(emit, kind, x, f"i{result_w}")
    x = _cast(emit, f"i{w}", value, _TYPES[w])
    if target == "si":
        return emit.op(f'call i{result_w} asm sideeffect "{name}{fmt} $1, $0", "=r,x"({_TYPES[w]} {x})')
    kind = _TYPES[result_w]
    return _cast(emit, kind, emit.op(f'call {kind} asm sideeffect "{name}{fmt} $1, $0", "=x,x"({_TYPES[w]} {x})'), f"i{result_w}")


def _mxcsr(emit: Emitter, name: str, args: list[str]) -> str:
    slot = _slot(emit, "i32")
    if name == "set":
        emit.line(f"store i32 {emit.op(f'or i32 {args[0]}, 8064')}, ptr {slot}")
        emit.line(f'call void asm sideeffect "ldmxcsr $0", "*m"(ptr elementtype(i32) {slot})')
        return ""
    emit.line(f'call void asm sideeffect "stmxcsr $0", "=*m"(ptr elementtype(i32) {slot})')
    return emit.op(f"and i32 {emit.op(f'load i32, ptr {slot}')}, 63")


# ---- x87
def _x87(emit: Emitter, op: Any, name: str, fmt: str, args: list[str]) -> str:
    match name:
        case "pending" | "stack_quiet":  # cannot be while every exception is masked
            return "false"
        case "stack":
            return ""
        case "flags":
            word = emit.op('call i16 asm sideeffect "fnstsw %ax", "={ax}"()')
            return emit.op(f"and i16 {word}, 63")
        case "clear":
            emit.line('call void asm sideeffect "fnclex", ""()')
            return ""
        case "control":
            slot = _slot(emit, "i16")
            emit.line(f"store i16 {emit.op(f'or i16 {args[0]}, 63')}, ptr {slot}")
            emit.line(f'call void asm sideeffect "fldcw $0", "*m"(ptr elementtype(i16) {slot})')
            return ""
        case "load":
            return _load(emit, op, fmt, args[0])
    if name in _CONSTANTS:
        return _cast(emit, "x86_fp80", emit.op(f'call x86_fp80 asm sideeffect "{_CONSTANTS[name]}", "={{st}}"()'), "i80")
    if name in ("store", "storet"):
        return _store(emit, op, name, fmt, args[0])
    if name in ("com", "ucom", "comi", "ucomi"):
        return _codes(emit, _x87_compare(emit, op, name.removesuffix("i"), fmt, args))
    return _register_result(emit, op, name, fmt, args)


def _to_slot(emit: Emitter, w: int, value: str) -> str:
    slot = _slot(emit, f"i{w}")
    emit.line(f"store i{w} {value}, ptr {slot}")
    return slot


def _codes(emit: Emitter, word: str) -> str:
    return emit.op(f"and i16 {word}, {_X87_CODES}")


def _with_codes(emit: Emitter, value: str, w: int, word: str) -> str:
    """The status word above the value."""
    total = w + 16
    high = emit.op(f"shl i{total} {emit.op(f'zext i16 {_codes(emit, word)} to i{total}')}, {w}")
    return emit.op(f"or i{total} {high}, {emit.op(f'zext i{w} {value} to i{total}')}")


def _load(emit: Emitter, op: Any, fmt: str, value: str) -> str:
    w = op.args[0].w
    if fmt.startswith("x87.i"):
        text = f"fild{_SUFFIXES[fmt]} $1"
    else:
        text = "fbld $1" if fmt == "x87.bcd" else f"fld{_SUFFIXES[fmt]} $1"
    slot = _to_slot(emit, w, value)
    x = emit.op(f'call x86_fp80 asm sideeffect "{text}", "={{st}},*m"(ptr elementtype(i{w}) {slot})')
    bits = _cast(emit, "x86_fp80", x, "i80")
    return bits if op.w == 80 else emit.op(f"zext i80 {bits} to i96")


def _store(emit: Emitter, op: Any, name: str, fmt: str, value: str) -> str:
    w = op.w - 16
    slot = _slot(emit, f"i{w}")
    if fmt == "x87.bcd":
        mnemonic = "fbstp"
    elif fmt.startswith("x87.i"):
        mnemonic = ("fisttp" if name == "storet" else "fistp") + _SUFFIXES[fmt]
    else:
        mnemonic = "fstp" + _SUFFIXES[fmt]
    x = _cast(emit, "i80", value, "x86_fp80")
    word = emit.op(
        f'call i16 asm sideeffect "{mnemonic} $0{_STATUS}", "=*m,={{ax}},{{st}},~{{st}}"(ptr elementtype(i{w}) {slot}, x86_fp80 {x})'
    )
    return _with_codes(emit, emit.op(f"load i{w}, ptr {slot}"), w, word)


def _x87_compare(emit: Emitter, op: Any, name: str, fmt: str, args: list[str]) -> str:
    x = _cast(emit, "i80", args[0], "x86_fp80")
    if fmt == "x87":
        y = _cast(emit, "i80", args[1], "x86_fp80")
        return emit.op(f'call i16 asm sideeffect "f{name} %st(1){_STATUS}", "={{ax}},{{st}},{{st(1)}}"(x86_fp80 {x}, x86_fp80 {y})')
    w = op.args[1].w
    slot = _to_slot(emit, w, args[1])
    return emit.op(
        f'call i16 asm sideeffect "f{name}{_SUFFIXES[fmt]} $2{_STATUS}", "={{ax}},{{st}},*m"(x86_fp80 {x}, ptr elementtype(i{w}) {slot})'
    )


def _register_result(emit: Emitter, op: Any, name: str, fmt: str, args: list[str]) -> str:
    """An operation whose result is a register, with its status."""
    pair = "{ x86_fp80, i16 }"
    x = _cast(emit, "i80", args[0], "x86_fp80")
    at = 0
    if name in ("tan", "sincos_s", "sincos_c"):
        return _pushing(emit, name, args[0])
    if name in ("xtract_s", "xtract_e"):
        pair = "{ x86_fp80, x86_fp80, i16 }"
        at = int(name == "xtract_e")
        found = emit.op(f'call {pair} asm sideeffect "fxtract{_STATUS}", "={{st}},={{st(1)}},={{ax}},0"(x86_fp80 {x})')
    elif fmt != "x87":
        w = op.args[1].w
        slot = _to_slot(emit, w, args[1])
        text = f"f{name}{_SUFFIXES[fmt]} $3{_STATUS}"
        found = emit.op(f'call {pair} asm sideeffect "{text}", "={{st}},={{ax}},0,*m"(x86_fp80 {x}, ptr elementtype(i{w}) {slot})')
    elif len(args) == 1:
        found = emit.op(f'call {pair} asm sideeffect "{_STEPS[name]}{_STATUS}", "={{st}},={{ax}},0"(x86_fp80 {x})')
    else:
        y = _cast(emit, "i80", args[1], "x86_fp80")
        text = f"{_STEPS.get(name, f'f{name} %st(1), %st')}{_STATUS}"
        clobber = ",~{st(1)}" if name in _POPPING else ""
        found = emit.op(f'call {pair} asm sideeffect "{text}", "={{st}},={{ax}},0,{{st(1)}}{clobber}"(x86_fp80 {x}, x86_fp80 {y})')
    value = _cast(emit, "x86_fp80", emit.op(f"extractvalue {pair} {found}, {at}"), "i80")
    return _with_codes(emit, value, 80, emit.op(f"extractvalue {pair} {found}, {2 if len(pair) > 20 else 1}"))


def _pushing(emit: Emitter, name: str, value: str) -> str:
    """FPTAN and FSINCOS push a second result unless the argument is out of range (C2): LLVM cannot know the depth of the
    stack, so the asm leaves it as it found it."""
    source, target = _to_slot(emit, 80, value), _slot(emit, "i80")
    skip = "testb $$4, %ah\\0A\\09jnz 1f"
    drop = "fstp %st" if name != "sincos_c" else "fstp %st(1)"
    text = f"fldt $2\\0A\\09{'fptan' if name == 'tan' else 'fsincos'}{_STATUS}\\0A\\09{skip}\\0A\\09{drop}\\0A1:\\0A\\09fstpt $0"
    clobbers = ",".join(f"~{{st{f'({k})' if k else ''}}}" for k in range(2))
    constraints = f"=*m,={{ax}},*m,{clobbers},~{{flags}}"
    word = emit.op(f'call i16 asm sideeffect "{text}", "{constraints}"(ptr elementtype(i80) {target}, ptr elementtype(i80) {source})')
    return _with_codes(emit, emit.op(f"load i80, ptr {target}"), 80, word)
