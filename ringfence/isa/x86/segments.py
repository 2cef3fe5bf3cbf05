"""Segment registers: descriptors, loads, and what the hidden parts amount to (SDM 3A 3.4, 3.5, 5.2-5.8, 20.1.1).

Outside of 64-bit mode every access is checked against its segment.  Beside base, limit and attributes the state keeps three
words a segment that make this cheap: the highest offset that reads and writes may touch without a closer look (-1 where the type
forbids it, or the segment grows down), and whether the segment is flat; where ES, CS, SS and DS all are, code is translated without
any checks.  `hidden` computes them; whoever writes a segment goes through it.
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context
from ringfence.isa.x86.state import REQUEST_MODE
from ringfence.isa.x86.vectors import GP, NP, SS

ACCESSED = 1 << 40


def _put_words(i: Context, name: str, base: Value, limit: Value, attr: Value, protected: Value) -> Value:
    """Writes the three words; returns whether the segment is not flat."""
    code, allowed, usable = attr.bit(3), attr.bit(1), attr.bit(7) & attr.bit(4)
    down = ~code & attr.bit(2)
    readable = usable & code.select(allowed, ~down)
    writable = usable & ~code & allowed & ~down
    none, wide = i.const(-1, 64), limit.zext(64)
    i.put(f"{name}_rlimit", (readable | ~protected).select(wide, none))
    i.put(f"{name}_wlimit", (writable | ~protected).select(wide, none))
    whole = (base == 0) & (limit == 0xFFFFFFFF)
    unflat = ~(protected & whole & (usable & code if name == "cs" else writable))
    i.put(f"{name}_unflat", unflat.zext(8))
    return unflat


def derive(i: Context, name: str, protected: Value) -> None:
    """The three words from the hidden parts as they are: protection is switched on or off."""
    base, limit, attr = i.get(f"{name}_base"), i.get(f"{name}_limit", 32), i.get(f"{name}_attr", 16)
    _put_words(i, name, base, limit, attr, protected)


def hidden(i: Context, name: str, base: Value, limit: Value, attr: Value) -> None:
    """Writes base, limit (32 bits) and attributes (16 bits) with what follows from them."""
    i.put(f"{name}_base", base)
    i.put(f"{name}_limit", limit)
    i.put(f"{name}_attr", attr)
    if name not in ("es", "cs", "ss", "ds", "fs", "gs"):
        return
    unflat = _put_words(i, name, base, limit, attr, i.const(1, 1))
    if name in ("es", "ds"):
        with i.when(unflat ^ (i.get(f"{name}_unflat", 8) != 0)):
            i.request(REQUEST_MODE)
    elif name == "ss":
        with i.when((unflat ^ (i.get("ss_unflat", 8) != 0)) | (attr.bit(10) ^ i.get("ss_attr", 16).bit(10))):
            i.request(REQUEST_MODE)


def descriptor(i: Context, selector: Value, vector: int, ext: Value | int = 0) -> tuple[Value, Value, Value]:
    """The first 8 bytes of the selector's descriptor, its linear address and the error code; faults with `vector` when
    the selector is null or beyond its table.  `ext`: the EXT bit of these faults."""
    sel = selector.trunc(16)
    error = (sel & 0xFFFC).zext(32)
    local = sel.bit(2)
    offset = (sel & 0xFFF8).zext(64)
    base = local.select(i.get("ldtr_base"), i.get("gdtr_base"))
    limit = local.select(i.get("ldtr_limit", 32), i.get("gdtr_limit", 16).zext(32)).zext(64)
    usable = ~local | ((i.get("ldtr", 16) & 0xFFFC) != 0)
    i.fault_if(((sel & 0xFFFC) == 0), vector, ext)
    i.fault_if(limit.ult(offset + 7) | ~usable, vector, error | ext)
    address = base + offset
    return i.load(address, 64, system=True), address, error


def descriptor_base(d: Value) -> Value:
    return (d >> 16 & 0xFFFFFF) | (d >> 32 & 0xFF000000)


def descriptor_limit(d: Value) -> Value:
    raw = ((d & 0xFFFF) | (d >> 32 & 0xF0000)).trunc(32)
    return d.bit(55).select((raw << 12) | 0xFFF, raw)


def descriptor_attr(d: Value) -> Value:
    return (d.bits(40, 16) & 0xFF) | (d.bits(44, 16) & 0xF00)


def put_segment(i: Context, name: str, selector: Value, d: Value) -> None:
    """Loads a segment register from a descriptor that was checked."""
    i.put(name, selector.trunc(16))
    hidden(i, name, descriptor_base(d), descriptor_limit(d), descriptor_attr(d))


def put_paragraph(i: Context, name: str, selector: Value) -> None:
    """Loads a segment register in real-address or virtual-8086 mode: limit and attributes stay (SDM 3A 20.1.1)."""
    i.put(name, selector.trunc(16))
    i.put(f"{name}_base", selector.zext(64) << 4 if selector.w < 64 else (selector & 0xFFFF) << 4)


def flat(i: Context, name: str, selector: Value, attr: int) -> None:
    """A flat segment as SYSCALL and its relatives load it: from constants, not from a table."""
    i.put(name, selector.trunc(16))
    hidden(i, name, i.const(0, 64), i.const(0xFFFFFFFF, 32), i.const(attr, 16))


def mark_accessed(i: Context, address: Value, d: Value) -> Value:
    """Sets a descriptor's accessed bit in its table (SDM 3A 3.4.5.1); returns the descriptor with it."""
    with i.when(~d.bit(40)):
        i.store(address + 5, d.bits(40, 8) | 1, system=True)
    return d | ACCESSED


def load_data_segment(i: Context, name: str, selector: Value) -> None:
    """MOV to ES, DS, FS, GS (SDM 2 MOV): null is allowed, DPL is checked, FS and GS bases become 32-bit ones."""
    sel = selector.trunc(16)
    if i.real:
        put_paragraph(i, name, sel)
        return

    def read() -> Value:
        d, at, error = descriptor(i, sel, GP)
        readable = ~d.bit(43) | d.bit(41)
        i.fault_if(~d.bit(44) | ~readable, GP, error)
        dpl, rpl, cpl = d.bits(45, 8) & 3, sel.trunc(8) & 3, i.get("cpl", 8)
        conforming = d.bit(43) & d.bit(42)
        i.fault_if(~conforming & (dpl.ult(rpl) | dpl.ult(cpl)), GP, error)
        i.fault_if(~d.bit(47), NP, error)
        return mark_accessed(i, at, d)

    d = i.choose((sel & 0xFFFC) == 0, lambda: i.const(0, 64), read)
    put_segment(i, name, sel, d)


def load_stack_segment(i: Context, selector: Value) -> None:
    sel, cpl = selector.trunc(16), i.get("cpl", 8)
    i.put("shadow_rip", i.next_rip())  # SDM 3A 6.8.3
    if i.real:
        put_paragraph(i, "ss", sel)
        return
    rpl = sel.trunc(8) & 3

    def null() -> Value:
        if i.long:
            i.fault_if((cpl == 3) | (rpl != cpl), GP)
        else:
            i.fault(GP)
        return i.const(0, 64)

    def read() -> Value:
        d, at, error = descriptor(i, sel, GP)
        i.fault_if((rpl != cpl) | ~d.bit(44) | d.bit(43) | ~d.bit(41) | ((d.bits(45, 8) & 3) != cpl), GP, error)
        i.fault_if(~d.bit(47), SS, error)
        return mark_accessed(i, at, d)

    put_segment(i, "ss", sel, i.choose((sel & 0xFFFC) == 0, null, read))
