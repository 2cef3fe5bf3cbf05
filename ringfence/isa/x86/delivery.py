"""Interrupt and exception delivery and software interrupts (SDM 3A 6.12, 6.14, 20.1.4, 20.3).

    deliver_long        through the 64-bit gates of long mode, from 64-bit and compatibility mode
    deliver_protected   through the 16- and 32-bit gates of protected mode; task gates are left to the engine's Python side
    deliver_real        through the vectors of real-address mode
    redirect            INT n in virtual-8086 mode, back to the program's own vectors

Each is traced into INT n and its relatives, and compiled as a native routine that the engine calls for exceptions and
external interrupts.
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.control import IOPL_ALL, canonical, iopl, virtual_8086
from ringfence.isa.x86.gates import Frame, new_stack, push_frame
from ringfence.isa.x86.segments import descriptor, descriptor_base, descriptor_limit, hidden, put_paragraph, put_segment
from ringfence.isa.x86.state import REQUEST_MODE
from ringfence.isa.x86.system import GUARDED
from ringfence.isa.x86.vectors import BP, DB, GP, NP, OF, SOFT_INTERRUPT, SS, TS

PUSHES_ERROR = 0x227D00  # vectors that push an error code: #DF #TS #NP #SS #GP #PF #AC #CP


def deliver_long(i: Context, vector: Value, error: Value, *, soft: Value, has_error: Value, return_rip: Value, external: Value) -> None:
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


def _clean(i: Context, kind: Value, error: Value, vector: Value) -> None:
    """What every entry of a handler does: TF NT RF VM off, IF by the gate, no shadow; #DB lifts the guard."""
    closed = i.const(0x34100, 64) | kind.bit(0).select(i.const(0, 64), i.const(0x200, 64))
    i.put("rflags_sys", i.get("rflags_sys") & ~closed)
    i.put("shadow_rip", i.const(1, 64))
    with i.when(vector == DB):
        i.put("dr7", i.get("dr7") & ~0x2000)
        i.put("dr6", i.get("dr6") | (error & GUARDED).zext(64) << 13)


def deliver_protected(i: Context, vector: Value, error: Value, *, soft: Value, has_error: Value, return_ip: Value, external: Value) -> None:
    """Enters the handler of `vector` through its interrupt or trap gate (SDM 3A 6.12.1; from virtual-8086 mode 20.3.1)."""
    wide, ext = vector.zext(64), external.zext(32)
    gate_error = (vector.zext(32) << 3) | 2 | ext
    v86 = virtual_8086(i)
    i.fault_if(i.get("idtr_limit", 16).zext(64).ult((wide << 3) + 7), GP, gate_error)
    gate = i.load(i.get("idtr_base") + (wide << 3), 64, system=True)
    kind, cpl = gate.bits(40, 8) & 0x1F, i.get("cpl", 8)
    i.fault_if((kind != 5) & ((kind & 0x16) != 6), GP, gate_error)
    i.fault_if(soft & (gate.bits(45, 8) & 3).ult(cpl), GP, gate_error)
    i.fault_if(~gate.bit(47), NP, gate_error)
    i.defer_if(kind == 5)
    big = kind.bit(3)
    selector = gate.bits(16, 16)
    i.fault_if((selector & 0xFFFC) == 0, GP, ext)
    d, _, code_error = descriptor(i, selector, GP, ext)
    code_error = code_error | ext
    dpl = d.bits(45, 8) & 3
    i.fault_if(((d.bits(43, 8) & 3) != 3) | cpl.ult(dpl), GP, code_error)
    i.fault_if(~d.bit(47), NP, code_error)
    new_cpl = d.bit(42).select(cpl, dpl)
    i.fault_if(v86 & (new_cpl != 0), GP, code_error)
    inner = new_cpl.ult(cpl)
    target = big.select((gate & 0xFFFF) | (gate >> 32 & 0xFFFF0000), gate & 0xFFFF)
    i.fault_if(descriptor_limit(d).zext(64).ult(target), GP, ext)
    stack = new_stack(i, inner, new_cpl, ext)
    image = i.f.image()
    frame: Frame = [
        (v86, (i.get("gs", 16), i.get("fs", 16), i.get("ds", 16), i.get("es", 16))),
        (inner, (i.get("ss", 16), i.get("rsp", 32))),
        (i.const(1, 1), (image.trunc(32), i.get("cs", 16), return_ip.trunc(32))),
        (has_error, (error,)),
    ]
    count = i.const(3, 64) + has_error.zext(64) + inner.select(i.const(2, 64), 0) + v86.select(i.const(4, 64), 0)
    push_frame(i, stack, big, frame, count, new_cpl, ext)
    put_segment(i, "cs", (selector & 0xFFFC) | new_cpl.zext(16), d)
    i.put("cpl", new_cpl)
    with i.when(v86):
        for name in ("es", "ds", "fs", "gs"):
            i.put(name, i.const(0, 16))
            hidden(i, name, i.const(0, 64), i.const(0, 32), i.const(0, 16))
    _clean(i, kind, error, vector)
    i.request(REQUEST_MODE)
    i.jump((target + descriptor_base(d)) & 0xFFFFFFFF)


def deliver_real(i: Context, vector: Value, *, return_ip: Value) -> None:
    """Enters the handler whose far pointer is in the vector table (SDM 3A 20.1.4)."""
    wide = vector.zext(64)
    i.fault_if(i.get("idtr_limit", 16).zext(64).ult((wide << 2) + 3), GP)
    entry = i.load((i.get("idtr_base") + (wide << 2)) & 0xFFFFFFFF, 32, system=True)
    sp = i.get("rsp", 16).zext(64)
    values = (i.f.image().trunc(16), i.get("cs", 16), return_ip.trunc(16))
    places = [(i.get("ss_base") + ((sp - 2 * k) & 0xFFFF)) & 0xFFFFFFFF for k in (1, 2, 3)]
    for place in places:
        i.probe(place, 2)
    for place, value in zip(places, values, strict=True):
        i.store(place, value, safe=True)
    i.put("rsp", (sp - 6).trunc(16))
    selector = entry.bits(16, 16)
    put_paragraph(i, "cs", selector)
    i.put("rflags_sys", i.get("rflags_sys") & ~0x40300)  # IF, TF, AC
    i.put("shadow_rip", i.const(1, 64))
    with i.when(i.get("rflags_sys").bit(8)):
        i.request(REQUEST_MODE)
    i.jump((selector.zext(64) << 4) + (entry & 0xFFFF).zext(64))


def redirect(i: Context, vector: Value, *, return_ip: Value) -> None:
    """INT n in virtual-8086 mode under CR4.VME (SDM 3A 20.3.3, methods 5 and 6): through the program's own vector table, if the
    TSS's redirection bit of the vector is 0; otherwise raises SOFT_INTERRUPT, and the rules without VME apply."""
    base, tss_limit = i.get("tr_base"), i.get("tr_limit", 32).zext(64)
    i.fault_if(tss_limit.ult(0x67), GP)
    offset = i.load(base + 0x66, 16, system=True).zext(64) - 32 + (vector.zext(64) >> 3)
    i.fault_if(tss_limit.ult(offset), GP)
    bits = i.load(base + offset, 8, system=True)
    i.fault_if((bits >> (vector & 7)).bit(0), SOFT_INTERRUPT)
    entry = i.load(vector.zext(64) << 2, 32)
    flags, image = i.get("rflags_sys"), i.f.image()
    virtual = iopl(i) != 3
    image = virtual.select((image & ~0x200) | IOPL_ALL | (flags >> 10 & 0x200), image)
    sp = i.get("rsp", 16).zext(64)
    places = [i.get("ss_base") + ((sp - 2 * k) & 0xFFFF) for k in (1, 2, 3)]
    for place in places:
        i.probe(place, 2)
    for place, value in zip(places, (image.trunc(16), i.get("cs", 16), return_ip.trunc(16)), strict=True):
        i.store(place, value, safe=True)
    i.put("rsp", (sp - 6).trunc(16))
    selector = entry.bits(16, 16)
    put_paragraph(i, "cs", selector)
    i.put("rflags_sys", flags & virtual.select(i.const(~(1 << 19 | 0x10100), 64), ~0x10300))  # VIF or IF, TF, RF
    i.put("shadow_rip", i.const(1, 64))
    with i.when(flags.bit(8)):
        i.request(REQUEST_MODE)
    i.jump((selector.zext(64) << 4) + (entry & 0xFFFF).zext(64))


# The engine's delivery: exc_vector, exc_error and exc_pending say what; RIP is where execution will return.
@insn("(deliver)")
def deliver_pending(i: Context) -> None:
    pending = i.get("exc_pending", 8)
    deliver_long(
        i,
        i.get("exc_vector", 8),
        i.get("exc_error", 32),
        soft=pending.bit(1),
        has_error=pending.bit(0),
        return_rip=i.get("cs_attr", 16).bit(9).select(i.get("rip"), (i.get("rip") - i.get("cs_base")) & 0xFFFFFFFF),
        external=~pending.bit(1),
    )


@insn("(deliver protected)")
def deliver_pending_protected(i: Context) -> None:
    pending = i.get("exc_pending", 8)
    deliver_protected(
        i,
        i.get("exc_vector", 8),
        i.get("exc_error", 32),
        soft=pending.bit(1),
        has_error=pending.bit(0),
        return_ip=(i.get("rip") - i.get("cs_base")) & 0xFFFFFFFF,
        external=~pending.bit(1),
    )


@insn("(deliver real)")
def deliver_pending_real(i: Context) -> None:
    deliver_real(i, i.get("exc_vector", 8), return_ip=(i.get("rip") - i.get("cs_base")) & 0xFFFF)


@insn("(redirect)")
def redirect_pending(i: Context) -> None:
    redirect(i, i.get("exc_vector", 8), return_ip=(i.get("rip") - i.get("cs_base")) & 0xFFFF)


def _software_interrupt(name: str, vector: int | None) -> None:
    @insn(name)
    def body(i: Context) -> None:
        number = i.const(vector, 8) if vector is not None else i[0].get()
        no = i.const(0, 1)
        if i.long:
            # INT1 (ICEBP) counts as a hardware event: no DPL check.
            soft = i.const(name != "int1", 1)
            deliver_long(i, number, i.const(0, 32), soft=soft, has_error=no, return_rip=i.next_rip(), external=no)
            return
        # Elsewhere the gate's kind, the mode and virtual-8086 rules decide: the run time does it, as for exceptions.
        i.fault(SOFT_INTERRUPT, number.zext(32) | {"int1": 0x100, "int": 0x200}.get(name, 0))


@insn("into")
def into(i: Context) -> None:
    i.fault_if(i.f.of(), SOFT_INTERRUPT, OF)


_software_interrupt("int", None)
_software_interrupt("int3", BP)
_software_interrupt("int1", DB)
