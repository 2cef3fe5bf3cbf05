"""Jumps, calls, returns and the stack (SDM 2, by mnemonic)."""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import GP, Context, Memory, insn
from ringfence.isa.x86.flags import CONDITIONS


def push_value(i: Context, value: Value) -> None:
    sp = i.get("rsp") - value.w // 8
    i.store(sp, value)
    i.put("rsp", sp)


def canonical(address: Value) -> Value:
    """1 where bits 63:47 are all equal."""
    high = address.sar(47)
    return (high == 0) | (high == -1)


@insn("push")
def push(i: Context) -> None:
    v = i[0].get()
    push_value(i, v.sext(i.size) if i[0].kind == "i" else v)


@insn("pop")
def pop(i: Context) -> None:
    sp = i.get("rsp")
    v = i.load(sp, i[0].w)
    target = i[0]
    if isinstance(target, Memory):
        # SDM 2 POP: an address based on RSP is computed after the increment.
        address = target.address() + (i[0].w // 8 if target.form.base_is_rsp else 0)
        i.store(address, v)
        i.put("rsp", sp + i[0].w // 8)
    else:
        i.put("rsp", sp + i[0].w // 8)
        target.set(v)  # POP RSP: this commit comes last and wins


@insn("leave")
def leave(i: Context) -> None:
    bp = i.get("rbp")
    v = i.load(bp, i.size)
    i.put("rsp", bp + i.size // 8)
    i.put("rbp", v)


@insn("enter", restart="stores below RSP; repeated with the same values")
def enter(i: Context) -> None:
    level, n = i.imm(1) & 31, i.size // 8
    sp = i.get("rsp") - n
    bp = i.get("rbp")
    i.store(sp, bp.trunc(i.size))
    frame = sp
    for _ in range(1, level):
        bp = bp - n
        sp = sp - n
        i.store(sp, i.load(bp, i.size))
    if level:
        sp = sp - n
        i.store(sp, frame.trunc(i.size))
    sp = sp - i[0].get().zext(64)
    i.probe(sp, 1)
    i.put("rsp", sp)
    i.put("rbp", frame.trunc(i.size))


def _conditional_jump(code: int, condition: str) -> None:
    @insn("j" + condition)
    def jcc(i: Context) -> None:
        i.taken(i.f.condition(code))


for _code, _condition in enumerate(CONDITIONS):
    _conditional_jump(_code, _condition)


@insn("jrcxz")
def jrcxz(i: Context) -> None:
    i.taken(i.get("rcx") == 0)


@insn("jecxz")
def jecxz(i: Context) -> None:
    i.taken(i.get("rcx", 32) == 0)


def _loop(name: str) -> None:
    @insn(name)
    def loop(i: Context) -> None:
        n = i.get("rcx", 32 if i.form.mem.address32 else 64) - 1
        i.put_register("rcx", n)
        go = n != 0
        if name == "loope":
            go = go & i.f.zf()
        elif name == "loopne":
            go = go & ~i.f.zf()
        i.taken(go)


for _name in ("loop", "loope", "loopne"):
    _loop(_name)


@insn("jmp")
def jmp(i: Context) -> None:
    if len(i):
        i.jump(i[0].get())
    else:
        i.taken(i.const(1, 1))


@insn("call")
def call(i: Context) -> None:
    target = i[0].get() if len(i) else None
    push_value(i, i.next_rip())
    if target is None:
        i.taken(i.const(1, 1))
    else:
        i.jump(target)


@insn("ret")
def ret(i: Context) -> None:
    sp = i.get("rsp")
    v = i.load(sp, 64)
    i.put("rsp", sp + 8 + (i[0].get().zext(64) if len(i) else 0))
    i.jump(v)


# ---- flags on the stack
def interrupts_may_open(i: Context, enabled: Value) -> None:
    """After IF became `enabled`: a waiting interrupt is taken at the next block.  Only ever writes 1 into the kick word,
    which other threads write as well."""
    with i.when(enabled & i.get("irq_pending", 1)):
        i.put("kick", i.const(1, 32))


@insn("pushf")
def pushf(i: Context) -> None:
    push_value(i, (i.f.image() & ~0x30000).trunc(i.size))  # VM and RF read as 0


def put_rflags(i: Context, value: Value, writable: Value) -> None:
    """Sets RFLAGS to `value`; of the system flags only those in `writable` change."""
    old = i.get("rflags_sys")
    i.f.put_image(value)
    i.put("df", value.bits(10, 8) & 1)
    new = (old & ~writable) | (value & writable)
    i.put("rflags_sys", new)
    interrupts_may_open(i, new.bit(9))
    # TF needs single steps, AC changes the rights of supervisor accesses: both are part of the translation mode.
    i.put("request", i.get("request", 32) | (((old ^ new) & 0x40100) != 0).select(i.const(4, 32), i.const(0, 32)))


@insn("popf")
def popf(i: Context) -> None:
    sp, w = i.get("rsp"), i.size
    v = i.load(sp, w).zext(64)
    i.put("rsp", sp + w // 8)
    cpl, iopl = i.get("cpl", 8), i.get("rflags_sys").bits(12, 8) & 3
    always = 0x244100 if w == 64 else 0x4100  # ID AC NT TF, or NT TF
    writable = (
        i.const(always, 64)
        | cpl.ule(iopl).select(i.const(0x200, 64), i.const(0, 64))
        | (cpl == 0).select(i.const(0x3000, 64), i.const(0, 64))
    )
    put_rflags(i, v, writable)


@insn("cli")
def cli(i: Context) -> None:
    i.fault_if((i.get("rflags_sys").bits(12, 8) & 3).ult(i.get("cpl", 8)), GP)
    i.put("rflags_sys", i.get("rflags_sys") & ~0x200)


@insn("sti")
def sti(i: Context) -> None:
    i.fault_if((i.get("rflags_sys").bits(12, 8) & 3).ult(i.get("cpl", 8)), GP)
    old = i.get("rflags_sys")
    i.put("rflags_sys", old | 0x200)
    # SDM 3A 6.8.3: interrupts stay off until after the next instruction, if they were off before.
    i.put("shadow_rip", old.bit(9).select(i.const(1, 64), i.next_rip()))
    interrupts_may_open(i, i.const(1, 1))


# ---- pieces that the translator puts between instructions
@insn("(settle)")
def settle(i: Context) -> None:
    """The flag words at entry in settled form."""
    fr, fa = i.f.settled()
    i.put("fr", fr)
    i.put("fa", fa)


@insn("(leap)")
def leap(i: Context) -> None:
    """A direct jump to another page: IMM0 counts from the page of the instruction."""
    i.jump(i.get("vpage") + i[0].get())


@insn("(defer)")
def defer(i: Context) -> None:
    """An instruction that this translation mode leaves to the interpreter."""
    i.defer_if(1)
