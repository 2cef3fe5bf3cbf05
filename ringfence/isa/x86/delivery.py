"""Interrupt and exception delivery, software interrupts, IRET and far transfers in long mode (SDM 3A 6.14, 5.8).

`deliver` is the one body of delivery: traced into INT n and its relatives, and compiled as the native routine `deliver`
that the engine calls for exceptions and external interrupts.
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import BP, DB, GP, NP, SS, TS, Context, insn
from ringfence.isa.x86.control import canonical, interrupts_may_open
from ringfence.isa.x86.state import REQUEST_MODE
from ringfence.isa.x86.system import GUARDED, descriptor, put_segment, supervisor_only

PUSHES_ERROR = 0x227D00  # vectors that push an error code: #DF #TS #NP #SS #GP #PF #AC #CP


def deliver(i: Context, vector: Value, error: Value, *, soft: Value, has_error: Value, return_rip: Value, external: Value) -> None:
    """Enters the handler of `vector` through its 64-bit gate.

    `soft`: by INT n, INT3, so the gate's DPL is checked; `external`: goes into the EXT bit of error codes.  Faults of
    the delivery itself are raised as faults of the body.
    """
    wide = vector.zext(64)
    ext = external.zext(32)
    gate_error = (vector.zext(32) << 3) | 2 | ext
    i.fault_if(i.get("idtr_limit", 16).zext(64).ult((wide << 4) + 15), GP, gate_error)
    address = i.get("idtr_base") + (wide << 4)
    low, high = i.load(address, 64, system=True), i.load(address + 8, 64, system=True)
    kind, cpl = low.bits(40, 8) & 0x1F, i.get("cpl", 8)
    i.fault_if((kind & 0x1E) != 0xE, GP, gate_error)
    i.fault_if(soft & (low.bits(45, 8) & 3).ult(cpl), GP, gate_error)
    i.fault_if(~low.bit(47), NP, gate_error)
    selector = low.bits(16, 16)
    i.fault_if((selector & 0xFFFC) == 0, GP, ext)
    d, _, code_error = descriptor(i, selector, GP)
    code_error = code_error | ext
    dpl = d.bits(45, 8) & 3
    i.fault_if(((d.bits(43, 8) & 3) != 3) | cpl.ult(dpl), GP, code_error)
    i.fault_if(~d.bit(47), NP, code_error)
    i.fault_if(~d.bit(53) | d.bit(54), GP, code_error)  # must be 64-bit code
    conforming = d.bit(42)
    new_cpl = conforming.select(cpl, dpl)
    inner = new_cpl.ult(cpl)
    ist = low.bits(32, 8) & 7

    def from_tss() -> Value:
        slot = (ist != 0).select((ist.zext(64) << 3) + 0x1C, (new_cpl.zext(64) << 3) + 4)
        i.fault_if(i.get("tr_limit", 32).zext(64).ult(slot + 7), TS, i.get("tr", 16).zext(32) & 0xFFFC | ext)
        return i.load(i.get("tr_base") + slot, 64, system=True)

    stack = i.choose(inner | (ist != 0), from_tss, lambda: i.get("rsp"))
    i.fault_if(~canonical(stack), SS, ext)
    sp = stack & ~15
    size = has_error.select(i.const(48, 64), i.const(40, 64))
    i.probe(sp - 48, 48, system=True)
    frame = (i.get("ss", 16).zext(64), i.get("rsp"), i.f.image(), i.get("cs", 16).zext(64), return_rip)
    for k, value in enumerate(frame):
        i.store(sp - 8 * (k + 1), value, safe=True, system=True)
    with i.when(has_error):
        i.store(sp - 48, error.zext(64), safe=True, system=True)
    target = (low & 0xFFFF) | (low >> 32 & 0xFFFF0000) | (high << 32)
    i.put("rsp", sp - size)
    put_segment(i, "cs", (selector & 0xFFFC) | new_cpl.zext(16), d)
    i.put("cpl", new_cpl)
    with i.when(inner):  # SDM 3A 6.14.2: SS becomes null with the new CPL as RPL
        i.put("ss", new_cpl.zext(16))
        i.put("ss_attr", i.const(0, 16))
    closed = i.const(0x34100, 64) | (kind == 0xE).select(i.const(0x200, 64), i.const(0, 64))
    i.put("rflags_sys", i.get("rflags_sys") & ~closed)  # TF NT RF VM, and IF for interrupt gates
    i.put("shadow_rip", i.const(1, 64))
    with i.when(vector == DB):  # SDM 3B 18.2.3-4: the handler may use the debug registers; BD tells that they were guarded
        i.put("dr7", i.get("dr7") & ~0x2000)
        i.put("dr6", i.get("dr6") | (error & GUARDED).zext(64) << 13)
    i.request(REQUEST_MODE)
    i.jump(target)


@insn("(deliver)")
def deliver_pending(i: Context) -> None:
    """The engine's delivery: exc_vector, exc_error and exc_pending say what; RIP is where execution will return."""
    pending = i.get("exc_pending", 8)
    deliver(
        i,
        i.get("exc_vector", 8),
        i.get("exc_error", 32),
        soft=pending.bit(1),
        has_error=pending.bit(0),
        return_rip=i.get("rip"),
        external=~pending.bit(1),
    )


def _software_interrupt(name: str, vector: int | None) -> None:
    @insn(name)
    def body(i: Context) -> None:
        number = i.const(vector, 8) if vector is not None else i[0].get()
        no = i.const(0, 1)
        # INT1 (ICEBP) counts as a hardware event: no DPL check.
        deliver(i, number, i.const(0, 32), soft=i.const(name != "int1", 1), has_error=no, return_rip=i.next_rip(), external=no)


_software_interrupt("int", None)
_software_interrupt("int3", BP)
_software_interrupt("int1", DB)


def _iret(name: str, w: int) -> None:
    @insn(name)
    def body(i: Context) -> None:
        sp, n = i.get("rsp"), w // 8
        ip, cs, image, new_sp, ss = (i.load(sp + n * k, w).zext(64) for k in range(5))
        i.fault_if(i.get("rflags_sys").bit(14), GP)  # NT
        cpl, rpl = i.get("cpl", 8), cs.trunc(8) & 3
        d, _, error = descriptor(i, cs, GP)
        i.fault_if(((d.bits(43, 8) & 3) != 3) | rpl.ult(cpl), GP, error)
        dpl = d.bits(45, 8) & 3
        i.fault_if(d.bit(42).select(rpl.ult(dpl), dpl != rpl), GP, error)
        i.fault_if(~d.bit(47), NP, error)
        long = d.bit(53)
        null = (ss & 0xFFFC) == 0

        def null_stack() -> Value:
            i.fault_if((rpl == 3) | ~long | ((ss.trunc(8) & 3) != rpl), GP)
            return i.const(0, 64)

        def stack() -> Value:
            s, _, ss_error = descriptor(i, ss, GP)
            bad = ((ss.trunc(8) & 3) != rpl) | ~s.bit(44) | s.bit(43) | ~s.bit(41) | ((s.bits(45, 8) & 3) != rpl)
            i.fault_if(bad, GP, ss_error)
            i.fault_if(~s.bit(47), SS, ss_error)
            return s

        s = i.choose(null, null_stack, stack)
        i.fault_if(long & ~canonical(ip), GP)
        put_segment(i, "cs", cs, d)
        put_segment(i, "ss", ss, s)
        i.put("rsp", new_sp)
        i.put("cpl", rpl)
        for segment in ("es", "ds", "fs", "gs"):  # SDM 2 IRET: segments that the outer level may not use become null
            attr = i.get(f"{segment}_attr", 16)
            data = ~attr.bit(3) | ~attr.bit(2)
            drop = cpl.ult(rpl) & data & (attr.bits(5, 8) & 3).ult(rpl) & ((i.get(segment, 16) & 0xFFFC) != 0)
            i.put(segment, drop.select(i.const(0, 16), i.get(segment, 16)))
        i.f.put_image(image)
        i.put("df", image.bits(10, 8) & 1)
        cpl0 = cpl == 0
        iopl = i.get("rflags_sys").bits(12, 8) & 3
        writable = i.const(0x254100 if w > 16 else 0x4100, 64) | cpl.ule(iopl).select(i.const(0x200, 64), i.const(0, 64))
        writable = writable | cpl0.select(i.const(0x183000 if w > 16 else 0x3000, 64), i.const(0, 64))
        new = (i.get("rflags_sys") & ~writable) | (image & writable)
        i.put("rflags_sys", new)
        i.put("nmi_blocked", i.const(0, 8))
        i.put("shadow_rip", i.const(1, 64))
        interrupts_may_open(i, new.bit(9))
        i.request(REQUEST_MODE)
        i.jump(ip)


_iret("iretq", 64)
_iret("iretd", 32)
_iret("iret", 16)


# ---- far transfers: to code segments of the same privilege; gates are carried out in the interpreter's words too
def _far_target(i: Context, selector: Value, target: Value) -> None:
    """Checks a code segment for a far JMP or CALL at the same privilege and loads it."""
    d, _, error = descriptor(i, selector, GP)
    cpl = i.get("cpl", 8)
    dpl, rpl = d.bits(45, 8) & 3, selector.trunc(8) & 3
    code = (d.bits(43, 8) & 3) == 3
    i.defer_if(~d.bit(44))  # a call gate
    i.fault_if(~code, GP, error)
    i.fault_if(d.bit(42).select(cpl.ult(dpl), cpl.ult(rpl) | (dpl != cpl)), GP, error)
    i.fault_if(~d.bit(47), NP, error)
    i.fault_if(~canonical(target), GP)
    put_segment(i, "cs", (selector & 0xFFFC) | cpl.zext(16), d)
    i.request(REQUEST_MODE)


def _far_operand(i: Context) -> tuple[Value, Value]:
    a, w = i[0].address(), i[0].w - 16
    return i.load(a, w).zext(64), i.load(a + w // 8, 16)


@insn("jmp far")
def jmp_far(i: Context) -> None:
    target, selector = _far_operand(i)
    _far_target(i, selector, target)
    i.jump(target)


@insn("call far")
def call_far(i: Context) -> None:
    target, selector = _far_operand(i)
    _far_target(i, selector, target)
    w = i[0].w - 16
    n = w // 8
    sp = i.get("rsp")
    i.probe(sp - 2 * n, 2 * n)
    i.store(sp - n, i.get("cs", 16).zext(w), safe=True)
    i.store(sp - 2 * n, i.next_rip().trunc(w), safe=True)
    i.put("rsp", sp - 2 * n)
    i.jump(target)


@insn("retf")
def retf(i: Context) -> None:
    w = i.size
    n = w // 8
    sp = i.get("rsp")
    ip, cs = i.load(sp, w).zext(64), i.load(sp + n, w).trunc(16)
    cpl, rpl = i.get("cpl", 8), cs.trunc(8) & 3
    extra = i[0].get().zext(64) if len(i) else i.const(0, 64)
    d, _, error = descriptor(i, cs, GP)
    i.fault_if(((d.bits(43, 8) & 3) != 3) | rpl.ult(cpl), GP, error)
    dpl = d.bits(45, 8) & 3
    i.fault_if(d.bit(42).select(rpl.ult(dpl), dpl != rpl), GP, error)
    i.fault_if(~d.bit(47), NP, error)
    i.fault_if(~canonical(ip), GP)
    outer = cpl.ult(rpl)

    def outer_stack() -> tuple[Value, Value, Value]:
        new_sp, ss = i.load(sp + 2 * n + extra, w).zext(64), i.load(sp + 3 * n + extra, w).trunc(16)

        def check() -> Value:
            s, _, ss_error = descriptor(i, ss, GP)
            i.fault_if(((ss.trunc(8) & 3) != rpl) | ~s.bit(44) | s.bit(43) | ~s.bit(41) | ((s.bits(45, 8) & 3) != rpl), GP, ss_error)
            i.fault_if(~s.bit(47), SS, ss_error)
            return s

        def null() -> Value:
            i.fault_if(rpl == 3, GP)
            return i.const(0, 64)

        return new_sp + extra, ss, i.choose((ss & 0xFFFC) == 0, null, check)

    new_sp, ss, s = i.choose(outer, outer_stack, lambda: (sp + 2 * n + extra, i.get("ss", 16), i.const(0, 64)))
    put_segment(i, "cs", cs, d)
    with i.when(outer):
        put_segment(i, "ss", ss, s)
    i.put("cpl", rpl)
    i.put("rsp", new_sp)
    i.request(REQUEST_MODE)
    i.jump(ip)


@insn("rsm")
def rsm(i: Context) -> None:
    supervisor_only(i)
    i.fault(6)  # not in system-management mode


