"""Jumps, calls, returns and the stack (SDM 2, by mnemonic)."""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, Memory, insn
from ringfence.isa.x86.flags import CONDITIONS
from ringfence.isa.x86.modes import code_bits, stack_bits
from ringfence.isa.x86.vectors import GP


def push_value(i: Context, value: Value) -> None:
    n = value.w // 8
    sp = i.wrap_sp(i.sp() - n)
    i.store(i.stack(sp, n, True), value)
    i.put_sp(sp)


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
    n = i[0].w // 8
    sp = i.sp()
    v = i.load(i.stack(sp, n), i[0].w)
    target = i[0]
    if isinstance(target, Memory):
        # SDM 2 POP: an address based on RSP is computed after the increment.
        beyond = i.const(n, 64)
        address = target.address_beyond(beyond, True) if target.form.base_is_rsp else target.address(True)
        i.store(address, v)
        i.put_sp(sp + n)
    else:
        i.put_sp(sp + n)
        target.set(v)  # POP RSP: this commit comes last and wins


_PUSHA = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")


@insn("pusha")
def pusha(i: Context) -> None:
    w, n = i.size, i.size // 8
    sp = i.sp()
    places = [i.stack(sp - (k + 1) * n, n, True) for k in range(8)]
    for place in places:
        i.probe(place, n)
    for name, place in zip(_PUSHA, places, strict=True):
        i.store(place, i.get(name, w), safe=True)
    i.put_sp(sp - 8 * n)


@insn("popa")
def popa(i: Context) -> None:
    w, n = i.size, i.size // 8
    sp = i.sp()
    values = [i.load(i.stack(sp + k * n, n), w) for k in range(8)]
    for name, v in zip(reversed(_PUSHA), values, strict=True):
        if name != "rsp":
            i.put_register(name, v)
    i.put_sp(sp + 8 * n)


@insn("leave")
def leave(i: Context) -> None:
    bp, n = i.bp(), i.size // 8
    v = i.load(i.stack(bp, n), i.size)
    i.put_sp(bp + n)
    i.put_register("rbp", v)


@insn("enter", restart="stores below RSP; repeated with the same values")
def enter(i: Context) -> None:
    level, n, w = i.imm(1) & 31, i.size // 8, i.size
    sp = i.wrap_sp(i.sp() - n)
    bp = i.bp()
    i.store(i.stack(sp, n, True), i.get("rbp", w))
    frame = (i.get("rsp", 32).zext(64) & 0xFFFF0000) | sp if stack_bits(i.mode) == 16 else sp  # EBP gets all of ESP
    for _ in range(1, level):
        bp = i.wrap_sp(bp - n)
        sp = i.wrap_sp(sp - n)
        i.store(i.stack(sp, n, True), i.load(i.stack(bp, n), w))
    if level:
        sp = i.wrap_sp(sp - n)
        i.store(i.stack(sp, n, True), frame.trunc(w))
    sp = i.wrap_sp(sp - i[0].get().zext(64))
    i.probe(i.stack(sp, 1, True), 1)
    i.put_sp(sp)
    i.put_register("rbp", frame.trunc(w)) if w != 64 else i.put("rbp", frame)


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


@insn("jcxz")
def jcxz(i: Context) -> None:
    i.taken(i.get("rcx", 16) == 0)


def _loop(name: str) -> None:
    @insn(name)
    def loop(i: Context) -> None:
        n = i.get("rcx", 16 if i.form.mem.address16 else 32 if i.form.mem.address32 else 64) - 1
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
        i.jump(i.near_target(i[0].get().zext(64)))
    else:
        i.taken(i.const(1, 1))


@insn("call")
def call(i: Context) -> None:
    target = i.near_target(i[0].get().zext(64)) if len(i) else None
    push_value(i, i.next_ip().trunc(i.size))
    if target is None:
        i.taken(i.const(1, 1))
    else:
        i.jump(target)


@insn("ret")
def ret(i: Context) -> None:
    sp, n = i.sp(), i.size // 8
    v = i.load(i.stack(sp, n), i.size)
    i.put_sp(sp + n + (i[0].get().zext(64) if len(i) else 0))
    i.jump(i.near_target(v.zext(64)))


# ---- flags on the stack
def interrupts_may_open(i: Context, enabled: Value) -> None:
    """After IF became `enabled`: a waiting interrupt is taken at the next block.  Only ever writes 1 into the kick word,
    which other threads write as well."""
    with i.when(enabled & i.get("irq_pending", 1)):
        i.put("kick", i.const(1, 32))


VM = 1 << 17
IOPL_ALL = 0x3000


def virtual_8086(i: Context) -> Value:
    return i.get("rflags_sys").bit(17)


def iopl(i: Context) -> Value:
    return i.get("rflags_sys").bits(12, 8) & 3


def virtualized(i: Context, extension: int) -> Value:
    """1 where VME (bit 0 of CR4, in virtual-8086 mode) or PVI (bit 1, at CPL 3) has CLI and STI work on VIF."""
    return i.get("cr4").bit(extension)


@insn("pushf")
def pushf(i: Context) -> None:
    image = i.f.image() & ~0x30000  # VM and RF read as 0
    if i.real:
        kept = virtual_8086(i) & (iopl(i) != 3)
        if i.size == 16:  # SDM 3A 20.3.2: with VME the image has VIF in the place of IF, and IOPL 3
            i.fault_if(kept & ~virtualized(i, 0), GP)
            image = kept.select((image & ~0x200) | (image >> 10 & 0x200) | IOPL_ALL, image)
        else:
            i.fault_if(kept, GP)
    push_value(i, image.trunc(i.size))


def put_rflags(i: Context, value: Value, writable: Value) -> None:
    """Sets RFLAGS to `value`; of the system flags only those in `writable` change."""
    old = i.get("rflags_sys")
    writable = writable & i.get("flags_settable_real" if i.real else "flags_settable")
    i.f.put_image(value)
    i.put("df", value.bits(10, 8) & 1)
    new = (old & ~writable) | (value & writable)
    i.put("rflags_sys", new)
    interrupts_may_open(i, new.bit(9))
    # TF needs single steps, AC changes the rights of supervisor accesses: both are part of the translation mode.
    i.put("request", i.get("request", 32) | (((old ^ new) & 0x40100) != 0).select(i.const(4, 32), i.const(0, 32)))


@insn("popf")
def popf(i: Context) -> None:
    sp, w = i.sp(), i.size
    v = i.load(i.stack(sp, w // 8), w).zext(64)
    cpl = i.get("cpl", 8)
    always = 0x244100 if w > 16 else 0x4100  # ID AC NT TF, or NT TF
    if w == 32:
        v = v & ~0x1A0000  # VM, VIF and VIP stay
    writable = (
        i.const(always, 64)
        | cpl.ule(iopl(i)).select(i.const(0x200, 64), i.const(0, 64))
        | (cpl == 0).select(i.const(0x3000, 64), i.const(0, 64))
    )
    if i.real:
        kept = virtual_8086(i) & (iopl(i) != 3)
        if w == 16:
            i.fault_if(kept & ~virtualized(i, 0), GP)
            i.fault_if(kept & (v.bit(8) | (v.bit(9) & i.get("rflags_sys").bit(20))), GP)
            writable = kept.select(i.const(0x4100 | 1 << 19, 64), writable)
            v = kept.select((v & ~(1 << 19)) | ((v & 0x200) << 10), v)
        else:
            i.fault_if(kept, GP)
    i.put_sp(sp + w // 8)
    put_rflags(i, v, writable)


def _interrupt_flag(i: Context, value: int) -> Value:
    """CLI and STI where VME or PVI virtualizes them (SDM 2 CLI, STI); returns where IF itself is meant."""
    allowed = i.get("cpl", 8).ule(iopl(i))
    if i.real:
        extended = virtualized(i, 0) & virtual_8086(i)
    else:
        extended = virtualized(i, 1) & (i.get("cpl", 8) == 3)
    flags = i.get("rflags_sys")
    i.fault_if(~allowed & ~extended, GP)
    if value:
        i.fault_if(~allowed & flags.bit(20), GP)  # an interrupt waits: VIP
    i.put("rflags_sys", allowed.select((flags & ~0x200) | value << 9, (flags & ~(1 << 19)) | value << 19))
    return allowed


@insn("cli")
def cli(i: Context) -> None:
    _interrupt_flag(i, 0)


@insn("sti")
def sti(i: Context) -> None:
    allowed = _interrupt_flag(i, 1)
    old = i.get("rflags_sys")
    # SDM 3A 6.8.3: interrupts stay off until after the next instruction, if they were off before.
    i.put("shadow_rip", (old.bit(9) | ~allowed).select(i.const(1, 64), i.next_rip()))
    interrupts_may_open(i, allowed)


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
    target = i.get("vpage") + i[0].get()
    if code_bits(i.mode) == 16:  # IP wraps at 64 KiB
        target = i.get("cs_base") + ((target - i.get("cs_base")) & 0xFFFF)
    i.jump(target if i.long else target & 0xFFFFFFFF)


@insn("(defer)")
def defer(i: Context) -> None:
    """An instruction that this translation mode leaves to the interpreter."""
    i.defer_if(1)
