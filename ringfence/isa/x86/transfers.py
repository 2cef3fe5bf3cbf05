"""IRET and far transfers (SDM 2 IRET, CALL, JMP, RET; SDM 3A 5.8, 6.12, 20.1).

What goes through call gates is in gates.py; task switches are left to the engine's Python side.
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.control import canonical, interrupts_may_open, iopl, put_rflags, virtual_8086, virtualized
from ringfence.isa.x86.gates import GATE_CALLS
from ringfence.isa.x86.modes import stack_bits
from ringfence.isa.x86.segments import descriptor, descriptor_base, descriptor_limit, hidden, put_paragraph, put_segment
from ringfence.isa.x86.state import REQUEST_MODE
from ringfence.isa.x86.system import supervisor_only
from ringfence.isa.x86.vectors import FAR_GATE, GP, NP, SS


def _code_returned_to(i: Context, cs: Value) -> tuple[Value, Value, Value]:
    """CPL, RPL and the descriptor of a code segment that RET or IRET may load: same or outer ring, conforming or of that ring, present."""
    cpl, rpl = i.get("cpl", 8), cs.trunc(8) & 3
    d, _, error = descriptor(i, cs, GP)
    i.fault_if(((d.bits(43, 8) & 3) != 3) | rpl.ult(cpl), GP, error)
    dpl = d.bits(45, 8) & 3
    i.fault_if(d.bit(42).select(rpl.ult(dpl), dpl != rpl), GP, error)
    i.fault_if(~d.bit(47), NP, error)
    return cpl, rpl, d


def _iret_long(i: Context, w: int) -> None:
    sp, n = i.get("rsp"), w // 8
    ip, cs, image, new_sp, ss = (i.load(sp + n * k, w).zext(64) for k in range(5))
    i.fault_if(i.get("rflags_sys").bit(14), GP)  # NT
    cpl, rpl, d = _code_returned_to(i, cs)
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
    i.jump(long.select(ip, (ip + descriptor_base(d)) & 0xFFFFFFFF))


def _iret_real(i: Context, w: int) -> None:
    """SDM 3A 20.1.4, 20.2.7; with VME in virtual-8086 mode 20.3.2."""
    sp, n = i.sp(), w // 8
    ip, cs, image = (i.load(i.stack(sp + n * k, n), w).zext(64) for k in range(3))
    i.put_sp(sp + 3 * n)
    v86 = virtual_8086(i)
    kept = v86 & (iopl(i) != 3)
    flags = i.get("rflags_sys")
    # In real-address mode everything but VM, VIF and VIP; in virtual-8086 mode not IOPL either.
    writable = v86.select(i.const(0x54300 if w == 16 else 0x254300, 64), 0x7300 if w == 16 else 0x257300)
    if w == 16:
        i.fault_if(kept & (~virtualized(i, 0) | image.bit(8) | (image.bit(9) & flags.bit(20))), GP)
        writable = kept.select(i.const(0x4100 | 1 << 19, 64), writable & 0xFFFF)
        image = kept.select((image & ~(1 << 19)) | ((image & 0x200) << 10), image)
    else:
        i.fault_if(kept, GP)
        i.fault_if((ip >> 16) != 0, GP)
    put_rflags(i, image, writable)
    put_paragraph(i, "cs", cs.trunc(16))
    i.put("nmi_blocked", i.const(0, 8))
    i.put("shadow_rip", i.const(1, 64))
    i.jump((((cs & 0xFFFF) << 4) + ip) & 0xFFFFFFFF)


def _iret_protected(i: Context, w: int) -> None:
    """To the same or an outer level, or to virtual-8086 mode (SDM 2 IRET); returns from tasks are left to the engine."""
    nested, long_mode = i.get("rflags_sys").bit(14), i.get("efer").bit(10)
    i.fault_if(nested & long_mode, GP)  # there are no tasks there
    i.defer_if(nested)
    sp, n, cpl = i.sp(), w // 8, i.get("cpl", 8)
    ip, cs, image = (i.load(i.stack(sp + n * k, n), w).zext(64) for k in range(3))
    if w == 32:
        to_v86 = image.bit(17) & (cpl == 0) & ~long_mode
        target = i.choose(to_v86, lambda: _return_to_v86(i, sp, ip, cs, image), lambda: _return_to_protected(i, sp, n, ip, cs, image))
    else:
        target = _return_to_protected(i, sp, n, ip, cs, image)
    i.put("nmi_blocked", i.const(0, 8))
    i.put("shadow_rip", i.const(1, 64))
    i.request(REQUEST_MODE)
    i.jump(target)


def _return_to_v86(i: Context, sp: Value, ip: Value, cs: Value, image: Value) -> Value:
    """SDM 3A 20.2.5: ESP, SS, ES, DS, FS and GS follow the flags; the segments are paragraphs of 64 KiB with DPL 3."""
    new_sp, *selectors = (i.load(i.stack(sp + 4 * k, 4), 32).zext(64) for k in range(3, 9))
    i.fault_if((ip >> 16) != 0, GP)
    for name, selector in zip(("cs", "ss", "es", "ds", "fs", "gs"), (cs, *selectors), strict=True):
        i.put(name, selector.trunc(16))
        hidden(i, name, (selector & 0xFFFF) << 4, i.const(0xFFFF, 32), i.const(0xF3, 16))
    i.put("rsp", new_sp)
    i.put("cpl", i.const(3, 8))
    put_rflags(i, image, i.const(0x3F7300, 64))
    return ((cs & 0xFFFF) << 4) + ip


def _return_to_protected(i: Context, sp: Value, n: int, ip: Value, cs: Value, image: Value) -> Value:
    cpl, long_mode = i.get("cpl", 8), i.get("efer").bit(10)
    rpl = cs.trunc(8) & 3
    d, _, error = descriptor(i, cs, GP)
    i.fault_if(((d.bits(43, 8) & 3) != 3) | rpl.ult(cpl), GP, error)
    dpl = d.bits(45, 8) & 3
    i.fault_if(d.bit(42).select(rpl.ult(dpl), dpl != rpl), GP, error)
    i.fault_if(~d.bit(47), NP, error)
    long = d.bit(53) & long_mode
    i.fault_if(~long & descriptor_limit(d).zext(64).ult(ip), GP)
    outer = cpl.ult(rpl)
    new_sp, ss, s, _ = _outer_stack(i, outer, sp + 3 * n, n, rpl)
    _load_outer(i, outer, cs, d, ss, s, new_sp, rpl)
    writable = i.const(0x254100 if n > 2 else 0x4100, 64) | cpl.ule(iopl(i)).select(i.const(0x200, 64), 0)
    writable = writable | (cpl == 0).select(i.const(0x183000 if n > 2 else 0x3000, 64), 0)
    put_rflags(i, image, writable)
    return long.select(ip, (ip + descriptor_base(d)) & 0xFFFFFFFF)


def _outer_stack(i: Context, outer: Value, sp: Value, n: int, rpl: Value) -> tuple[Value, Value, Value, Value]:
    """SP, SS, its descriptor and that's address for a return to `rpl`: from the stack at `sp` if that is an outer level."""

    def change() -> tuple[Value, Value, Value, Value]:
        new_sp, ss = i.load(i.stack(sp, n), 8 * n).zext(64), i.load(i.stack(sp + n, n), 8 * n).trunc(16)
        s, at, error = descriptor(i, ss, GP)
        bad = ((ss.trunc(8) & 3) != rpl) | ~s.bit(44) | s.bit(43) | ~s.bit(41) | ((s.bits(45, 8) & 3) != rpl)
        i.fault_if(bad, GP, error)
        i.fault_if(~s.bit(47), SS, error)
        return new_sp, ss, s, at

    found: tuple[Value, Value, Value, Value] = i.choose(outer, change, lambda: (sp, i.get("ss", 16), i.const(0, 64), i.const(0, 64)))
    return found


def _load_outer(i: Context, outer: Value, cs: Value, d: Value, ss: Value, s: Value, sp: Value, rpl: Value) -> None:
    """Loads CS, and SS with its pointer; segments that the outer level may not use become null."""
    put_segment(i, "cs", cs, d)
    i.put("cpl", rpl)
    old = i.get("rsp")
    narrow = (old & ~0xFFFF) | (sp & 0xFFFF)
    same = i.wrap_sp(sp) if stack_bits(i.mode) == 32 else narrow
    i.put("rsp", outer.select(s.bit(54).select(sp & 0xFFFFFFFF, narrow), same))
    with i.when(outer):
        put_segment(i, "ss", ss, s)
    for segment in ("es", "ds", "fs", "gs"):
        attr = i.get(f"{segment}_attr", 16)
        data = ~attr.bit(3) | ~attr.bit(2)
        with i.when(outer & data & (attr.bits(5, 8) & 3).ult(rpl)):
            i.put(segment, i.const(0, 16))
            hidden(i, segment, i.const(0, 64), i.const(0, 32), i.const(0, 16))


def _iret(name: str, w: int) -> None:
    @insn(name)
    def body(i: Context) -> None:
        if i.long:
            _iret_long(i, w)
        elif i.real:
            _iret_real(i, w)
        else:
            _iret_protected(i, w)


_iret("iretq", 64)
_iret("iretd", 32)
_iret("iret", 16)


# ---- far transfers: to code segments of the same privilege; gates are carried out in the interpreter's words too
def _far_target(i: Context, selector: Value, target: Value, call: bool) -> Value:
    """Checks a code segment for a far JMP or CALL at the same privilege and loads it; the linear address of `target` in it."""
    d, _, error = descriptor(i, selector, GP)
    cpl = i.get("cpl", 8)
    dpl, rpl = d.bits(45, 8) & 3, selector.trunc(8) & 3
    code = (d.bits(43, 8) & 3) == 3
    i.fault_if(~d.bit(44), FAR_GATE, selector.trunc(16).zext(32) | (GATE_CALLS if call else 0))
    i.fault_if(~code, GP, error)
    i.fault_if(d.bit(42).select(cpl.ult(dpl), cpl.ult(rpl) | (dpl != cpl)), GP, error)
    i.fault_if(~d.bit(47), NP, error)
    if i.long:
        i.fault_if(d.bit(53) & ~canonical(target), GP)
    i.fault_if(~d.bit(53) & descriptor_limit(d).zext(64).ult(target), GP)
    put_segment(i, "cs", (selector & 0xFFFC) | cpl.zext(16), d)
    i.request(REQUEST_MODE)
    flat_target = (target + descriptor_base(d)) & 0xFFFFFFFF
    return d.bit(53).select(target, flat_target) if i.long else (i.get("efer").bit(10) & d.bit(53)).select(target, flat_target)


def _paragraph_target(i: Context, selector: Value, target: Value) -> Value:
    """The linear address of a far transfer's target in real-address or virtual-8086 mode."""
    i.fault_if(i.get("cs_limit", 32).zext(64).ult(target), GP)
    return ((selector.zext(64) << 4) + target) & 0xFFFFFFFF


def far_operand(i: Context) -> tuple[Value, Value]:
    """Offset (64 bits) and selector."""
    if i[0].kind == "i":
        return i[0].get().zext(64), i[1].get()
    w = i[0].w - 16
    n = w // 8
    return i.load(i[0].address_beyond(0, size_bytes=n), w).zext(64), i.load(i[0].address_beyond(n, size_bytes=2), 16)


def _far_width(i: Context) -> int:
    return i[0].w if i[0].kind == "i" else i[0].w - 16


@insn("jmp far", "jmp ptr")
def jmp_far(i: Context) -> None:
    target, selector = far_operand(i)
    if i.real:
        address = _paragraph_target(i, selector, target)
        put_paragraph(i, "cs", selector)
        i.jump(address)
        return
    i.jump(_far_target(i, selector, target, call=False))


@insn("call far", "call ptr")
def call_far(i: Context) -> None:
    target, selector = far_operand(i)
    w = _far_width(i)
    n = w // 8
    sp = i.sp()
    high, low = i.stack(sp - n, n, True), i.stack(sp - 2 * n, n, True)
    i.probe(high, n)
    i.probe(low, n)
    address = _paragraph_target(i, selector, target) if i.real else _far_target(i, selector, target, call=True)
    i.store(high, i.get("cs", 16).zext(w), safe=True)
    i.store(low, i.next_ip().trunc(w), safe=True)
    i.put_sp(sp - 2 * n)
    if i.real:
        put_paragraph(i, "cs", selector)
    i.jump(address)


@insn("retf")
def retf(i: Context) -> None:
    if i.long:
        _retf_long(i)
        return
    n, sp = i.size // 8, i.sp()
    ip, cs = i.load(i.stack(sp, n), i.size).zext(64), i.load(i.stack(sp + n, n), i.size).trunc(16)
    extra = i[0].get().zext(64) if len(i) else i.const(0, 64)
    if i.real:
        address = _paragraph_target(i, cs, ip)
        put_paragraph(i, "cs", cs)
        i.put_sp(sp + 2 * n + extra)
        i.jump(address)
        return
    cpl, rpl, d = _code_returned_to(i, cs)
    long = d.bit(53) & i.get("efer").bit(10)
    i.fault_if(~long & descriptor_limit(d).zext(64).ult(ip), GP)
    outer = cpl.ult(rpl)
    new_sp, ss, s, _ = _outer_stack(i, outer, i.wrap_sp(sp + 2 * n + extra), n, rpl)
    _load_outer(i, outer, cs, d, ss, s, outer.select(new_sp + extra, new_sp), rpl)
    i.request(REQUEST_MODE)
    i.jump(long.select(ip, (ip + descriptor_base(d)) & 0xFFFFFFFF))


def _retf_long(i: Context) -> None:
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
    i.jump(d.bit(53).select(ip, (ip + descriptor_base(d)) & 0xFFFFFFFF))


@insn("rsm")
def rsm(i: Context) -> None:
    supervisor_only(i)
    i.fault(6)  # not in system-management mode
