"""System instructions: control registers, descriptor tables, MSRs, system calls, far transfers (SDM 2; SDM 3A 2, 3, 5).

Whatever changes how code or memory is reached sets a REQUEST_* bit; the engine acts on it before the next instruction.
Rare instructions with large tables behind them (CPUID, most MSRs, HLT) are carried out by the engine's Python side
(`defer_if`); their privilege checks stand here.
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.control import canonical, interrupts_may_open, push_value, put_rflags
from ringfence.isa.x86.segments import (
    derive,
    descriptor,
    descriptor_attr,
    descriptor_base,
    descriptor_limit,
    flat,
    hidden,
    load_data_segment,
    load_stack_segment,
)
from ringfence.isa.x86.state import REQUEST_FLUSH, REQUEST_FLUSH_LOCAL, REQUEST_INVLPG, REQUEST_MODE, SEGMENTS
from ringfence.isa.x86.vectors import DB, GP, NP, UD

UMIP = 1 << 11
GUARDED = 1  # in the place of an error code, which #DB does not have: a debug register was touched while DR7.GD was set


def supervisor_only(i: Context) -> None:
    i.fault_if(i.get("cpl", 8) != 0, GP)


def umip_check(i: Context) -> None:
    i.fault_if((i.get("cr4") & UMIP != 0) & (i.get("cpl", 8) != 0), GP)


@insn("ud", "ud0", "ud1", "ud2")
def ud(i: Context) -> None:
    i.fault(UD)


@insn("gp")
def gp(i: Context) -> None:
    """An instruction longer than 15 bytes (SDM 3A 6.15, #GP)."""
    i.fault(GP)


# ---- control and debug registers
def set_cr0(i: Context, v: Value) -> None:
    """Writes CR0; protection or paging may be switched by that (SDM 3A 4.1.2, 9.8.5, 9.9)."""
    i.fault_if(v.bit(31) & ~v.bit(0), GP)  # PG without PE
    i.fault_if(v.bit(29) & ~v.bit(30), GP)  # NW without CD
    old, efer, cr4 = i.get("cr0"), i.get("efer"), i.get("cr4")
    paging = (v ^ old).bit(31)
    long = i.const(1, 1) if i.long else efer.bit(10) & i.get("cs_attr", 16).bit(9)
    entering, leaving = paging & v.bit(31) & efer.bit(8), paging & ~v.bit(31)
    i.fault_if(entering & (~cr4.bit(5) | i.get("cs_attr", 16).bit(9)), GP)
    i.fault_if(leaving & (long | cr4.bit(17)), GP)
    i.put("efer", entering.select(efer | 1 << 10, leaving.select(efer & ~(1 << 10), efer)))
    i.put("cr0", (v & i.get("cr0_settable")) | i.get("cr0_fixed"))
    if not i.long:
        with i.when((v ^ old).bit(0)):
            for name in SEGMENTS[:6]:
                derive(i, name, protected=v.bit(0))
    i.request(REQUEST_MODE)
    with i.when(((v ^ old) & 0x80010000) != 0):  # PG, WP; without paging every mode sees the same addresses
        i.request(REQUEST_FLUSH | REQUEST_MODE)


@insn("mov cr0")
def mov_cr0(i: Context) -> None:
    supervisor_only(i)
    v = i[0].get().zext(64)
    i.fault_if((v >> 32) != 0, GP)
    set_cr0(i, v)


@insn("mov cr2")
def mov_cr2(i: Context) -> None:
    supervisor_only(i)
    i.put("cr2", i[0].get().zext(64))


@insn("mov cr3")
def mov_cr3(i: Context) -> None:
    supervisor_only(i)
    v = i[0].get().zext(64)
    pcide = i.get("cr4").bit(17)
    i.fault_if((v >> 52 & 0x7FF) != 0, GP)
    i.fault_if(v.bit(63) & ~pcide, GP)
    i.put("cr3", v & ~(1 << 63))  # bit 63 allows keeping translations; we may drop them all the same
    i.request(REQUEST_FLUSH_LOCAL)


@insn("mov cr4")
def mov_cr4(i: Context) -> None:
    supervisor_only(i)
    v = i[0].get().zext(64)
    i.fault_if((v & ~i.get("cr4_settable")) != 0, GP)
    i.fault_if(~v.bit(5) & i.get("efer").bit(10), GP)  # PAE cannot be cleared in long mode
    i.fault_if(v.bit(17) & ~i.get("efer").bit(10), GP)  # nor PCIDE set outside of it
    i.fault_if(v.bit(17) & ~i.get("cr4").bit(17) & ((i.get("cr3") & 0xFFF) != 0), GP)
    i.put("cr4", v)
    i.request(REQUEST_FLUSH | REQUEST_MODE)


@insn("mov cr8")
def mov_cr8(i: Context) -> None:
    supervisor_only(i)
    i.defer_if(1)


@insn("mov from cr8")
def mov_from_cr8(i: Context) -> None:
    supervisor_only(i)
    i.defer_if(1)


def _read_special(name: str) -> None:
    @insn(f"mov from {name}")
    def body(i: Context) -> None:
        supervisor_only(i)
        i[0].set(i.get(name, i[0].w))


for _name in ("cr0", "cr2", "cr3", "cr4"):
    _read_special(_name)


def _debug_register(n: int) -> None:
    name = f"dr{n + 2 if n in (4, 5) else n}"

    def check(i: Context) -> None:
        supervisor_only(i)
        if n in (4, 5):
            i.fault_if(i.get("cr4").bit(3), UD)  # CR4.DE
        i.fault_if(i.get("dr7").bit(13), DB, GUARDED)  # general detect

    @insn(f"mov from dr{n}")
    def read(i: Context) -> None:
        check(i)
        i[0].set(i.get(name, i[0].w))

    @insn(f"mov dr{n}")
    def write(i: Context) -> None:
        check(i)
        v = i[0].get().zext(64)
        if name in ("dr6", "dr7"):
            i.fault_if((v >> 32) != 0, GP)
            v = (v & 0xE00F) | 0xFFFF0FF0 if name == "dr6" else (v & 0xFFFF2BFF) | 0x400
        i.put(name, v)
        i.request(REQUEST_MODE)


for _n in range(8):
    _debug_register(_n)


@insn("clts")
def clts(i: Context) -> None:
    supervisor_only(i)
    i.put("cr0", i.get("cr0") & ~8)
    i.request(REQUEST_MODE)


@insn("smsw")
def smsw(i: Context) -> None:
    umip_check(i)
    i[0].set(i.get("cr0", i[0].w))


@insn("lmsw")
def lmsw(i: Context) -> None:
    supervisor_only(i)
    v = i[0].get().zext(64)
    old = i.get("cr0")
    set_cr0(i, (old & ~0xE) | (v & 0xE) | ((v | old) & 1))  # PE is set, never cleared


@insn("invlpg")
def invlpg(i: Context) -> None:
    supervisor_only(i)
    i.put("request_address", i[0].address())
    i.request(REQUEST_INVLPG)


@insn("invpcid")
def invpcid(i: Context) -> None:
    supervisor_only(i)
    kind = i[0].get()
    low, high = i.load(i[1].address(), 64), i.load(i[1].address() + 8, 64)
    i.fault_if(i.const(3, kind.w).ult(kind), GP)
    i.fault_if((low >> 12) != 0, GP)
    i.fault_if((kind == 0) & ~canonical(high), GP)
    i.request(REQUEST_FLUSH)


@insn("wbinvd", "invd")
def wbinvd(i: Context) -> None:
    """The caches of translated machines are always coherent: nothing to do."""
    supervisor_only(i)


@insn("hlt")
def hlt(i: Context) -> None:
    supervisor_only(i)
    i.defer_if(1)


@insn("cpuid")
def cpuid(i: Context) -> None:
    """From the rows that the engine keeps in the state; where it keeps none, it answers itself."""
    leaf = i.get("rax", 32)
    i.defer_if(i.get("cpuid_rows", 8) == 0)
    row = leaf.ult(0x40000000).select(i.const(64, 32), leaf.bit(31).select(i.const(66, 32), i.const(65, 32)))
    row = leaf.ult(16).select(leaf, row)
    row = ((leaf == 7) & (i.get("rcx", 32) != 0)).select(i.const(67, 32), row)
    row = ((leaf & 0xFFFFFFF0) == 0x80000000).select((leaf & 15) + 16, row)
    row = ((leaf & 0xFFFFFFE0) == 0x40000000).select((leaf & 31) + 32, row).zext(64)
    ab, cd = i.get_indexed("cpuid_ab", 64, row), i.get_indexed("cpuid_cd", 64, row)
    i.put_register("rax", ab.trunc(32))
    i.put_register("rbx", ab.bits(32, 32))
    i.put_register("rcx", cd.trunc(32))
    i.put_register("rdx", cd.bits(32, 32))


# ---- MSRs and the time-stamp counter
_NATIVE_MSRS = {0xC0000100: "fs_base", 0xC0000101: "gs_base", 0xC0000102: "kernel_gs_base"}


@insn("rdmsr")
def rdmsr(i: Context) -> None:
    supervisor_only(i)
    n = i.get("rcx", 32)
    v, known = i.const(0, 64), i.const(0, 1)
    for index, field in _NATIVE_MSRS.items():
        hit = n == index
        v, known = hit.select(i.get(field), v), known | hit
    i.defer_if(~known)
    i.put_register("rax", v.trunc(32))
    i.put_register("rdx", v.bits(32, 32))


@insn("wrmsr")
def wrmsr(i: Context) -> None:
    supervisor_only(i)
    n, v = i.get("rcx", 32), i.get("rdx", 32).concat(i.get("rax", 32))
    known = i.const(0, 1)
    for index in _NATIVE_MSRS:
        known = known | (n == index)
    i.defer_if(~known)
    i.fault_if(~canonical(v), GP)
    for index, field in _NATIVE_MSRS.items():
        i.put(field, (n == index).select(v, i.get(field)))


def _time_stamp(i: Context) -> None:
    i.fault_if(i.get("cr4").bit(2) & (i.get("cpl", 8) != 0), GP)
    t = i.tsc() + i.get("tsc_offset")
    i.put_register("rax", t.trunc(32))
    i.put_register("rdx", t.bits(32, 32))


@insn("rdtsc")
def rdtsc(i: Context) -> None:
    _time_stamp(i)


@insn("rdtscp")
def rdtscp(i: Context) -> None:
    _time_stamp(i)
    i.put_register("rcx", i.get("tsc_aux", 32))


@insn("rdpmc")
def rdpmc(i: Context) -> None:
    i.fault(GP)  # no performance counters are announced


def _segment_base(segment: str) -> None:
    field = f"{segment}_base"

    def check(i: Context) -> None:
        i.fault_if(~i.get("cr4").bit(16), UD)

    @insn(f"rd{segment}base")
    def read(i: Context) -> None:
        check(i)
        i[0].set(i.get(field).trunc(i.size))

    @insn(f"wr{segment}base")
    def write(i: Context) -> None:
        check(i)
        v = i[0].get().zext(64)
        i.fault_if(~canonical(v), GP)
        i.put(field, v)


_segment_base("fs")
_segment_base("gs")


@insn("swapgs")
def swapgs(i: Context) -> None:
    supervisor_only(i)
    i.put("gs_base", i.get("kernel_gs_base"))
    i.put("kernel_gs_base", i.get("gs_base"))


# ---- ports
def io_check(i: Context, port: Value, size: int) -> None:
    """CPL against IOPL, else the TSS's permission bitmap (SDM 1 19.5.2)."""

    base, limit = i.get("tr_base"), i.get("tr_limit", 32)

    def by_bitmap() -> Value:
        offset = i.load(base + 0x66, 16, system=True).zext(32) + (port >> 3).zext(32)
        bits = i.choose(limit.ule(offset), lambda: i.const(0xFFFF, 16), lambda: i.load(base + offset.zext(64), 16, system=True))
        blocked: Value = ((bits >> (port & 7)) & (1 << size // 8) - 1) != 0
        return blocked

    def denied() -> Value:
        none = i.const(1, 1)  # a TSS without room for the bitmap's offset
        answer: Value = i.choose(limit.ult(0x67), lambda: none, by_bitmap)
        return answer

    # SDM 3A 20.3.1.2: in virtual-8086 mode only the bitmap counts.
    privileged = i.get("cpl", 8).ule(i.get("rflags_sys").bits(12, 8) & 3) & ~i.get("rflags_sys").bit(17)
    i.fault_if(i.choose(privileged, lambda: i.const(0, 1), denied), GP)


@insn("in")
def in_(i: Context) -> None:
    port = i[1].get().zext(16)
    io_check(i, port, i.size)
    i.exit("in", port, i.const(i.size // 8, 8))


@insn("out")
def out(i: Context) -> None:
    port = i[0].get().zext(16)
    io_check(i, port, i.size)
    i.exit("out", port, i.const(i.size // 8, 8), i[1].get())


# ---- descriptor tables and segment registers
def _load_table(name: str, table: str) -> None:
    @insn(name)
    def body(i: Context) -> None:
        supervisor_only(i)
        limit = i.load(i[0].address(), 16)
        if i.long:
            base = i.load(i[0].address() + 2, 64)
            i.fault_if(~canonical(base), GP)
        else:  # SDM 2 LGDT: with a 16-bit operand 24 bits of base
            base = (i.load(i[0].address_beyond(i.const(2, 64)), 32) & (0xFFFFFF if i.size == 16 else 0xFFFFFFFF)).zext(64)
        i.put(f"{table}_limit", limit)
        i.put(f"{table}_base", base)


def _store_table(name: str, table: str) -> None:
    @insn(name)
    def body(i: Context) -> None:
        umip_check(i)
        a = i[0].address(True)
        n = 10 if i.long else 6
        i.probe(a, n)
        i.store(a, i.get(f"{table}_limit", 16), safe=True)
        i.store(a + 2 if n == 10 else i[0].address_beyond(i.const(2, 64), True), i.get(f"{table}_base", 8 * n - 16), safe=True)


_load_table("lgdt", "gdtr")
_load_table("lidt", "idtr")
_store_table("sgdt", "gdtr")
_store_table("sidt", "idtr")


def _segment_moves(name: str) -> None:
    @insn(f"mov from {name}")
    def read(i: Context) -> None:
        target = i[0]
        v = i.get(name, 16)
        target.set(v.zext(target.w) if target.kind == "r" else v)

    if name == "cs":
        return

    @insn(f"mov {name}")
    def write(i: Context) -> None:
        v = i[0].get().trunc(16)
        load_stack_segment(i, v) if name == "ss" else load_data_segment(i, name, v)


def _segment_stack(name: str) -> None:
    @insn(f"push {name}")
    def push(i: Context) -> None:
        # SDM 2 PUSH leaves open whether a 32-bit push clears the upper half; the first of these processors and AMD's do.
        push_value(i, i.get(name, 16).zext(i.size))

    if name == "cs":
        return

    @insn(f"pop {name}")
    def pop(i: Context) -> None:
        sp = i.sp()
        v = i.load(i.stack(sp, i.size // 8), i.size).trunc(16)
        load_stack_segment(i, v) if name == "ss" else load_data_segment(i, name, v)
        i.put_sp(sp + i.size // 8)


for _name in SEGMENTS[:6]:
    _segment_moves(_name)
    _segment_stack(_name)


def _far_pointer(name: str) -> None:
    @insn(f"l{name}")
    def body(i: Context) -> None:
        w = i.size
        n = w // 8
        offset, selector = i.load(i[1].address_beyond(0, size_bytes=n), w), i.load(i[1].address_beyond(n, size_bytes=2), 16)
        load_stack_segment(i, selector) if name == "ss" else load_data_segment(i, name, selector)
        i[0].set(offset)


for _name in ("ss", "fs", "gs", "es", "ds"):
    _far_pointer(_name)


def _high_base(i: Context, address: Value) -> Value:
    """The upper half of the base: in long mode system descriptors have 16 bytes."""
    if i.long:
        return i.load(address + 8, 64, system=True) << 32
    base: Value = i.choose(i.get("efer").bit(10), lambda: i.load(address + 8, 64, system=True) << 32, lambda: i.const(0, 64))
    return base


def _system_segment(i: Context, selector: Value, register: str, kinds: tuple[int, ...]) -> tuple[Value, Value]:
    """Loads LDTR or TR from a descriptor of the GDT; returns the descriptor and its address."""
    sel = selector.trunc(16)
    i.fault_if(sel.bit(2), GP, (sel & 0xFFFC).zext(32))
    d, address, error = descriptor(i, sel, GP)
    kind = d.bits(40, 8) & 0x1F
    ok = i.const(0, 1)
    for k in kinds:
        ok = ok | (kind == k)
    i.fault_if(~ok, GP, error)
    i.fault_if(~d.bit(47), NP, error)
    base = descriptor_base(d) | _high_base(i, address)
    i.fault_if(~canonical(base), GP, error)
    i.put(register, sel)
    i.put(f"{register}_base", base)
    i.put(f"{register}_limit", descriptor_limit(d))
    return d, address


@insn("ltr")
def ltr(i: Context) -> None:
    supervisor_only(i)
    d, address = _system_segment(i, i[0].get(), "tr", (9,) if i.long else (1, 9))
    i.put("tr_attr", descriptor_attr(d) | 2)
    i.store(address, d | 1 << 41, system=True)  # busy


@insn("lldt")
def lldt(i: Context) -> None:
    supervisor_only(i)
    sel = i[0].get().trunc(16)
    null = (sel & 0xFFFC) == 0

    def load() -> tuple[Value, Value, Value]:
        i.fault_if(sel.bit(2), GP, (sel & 0xFFFC).zext(32))
        d, address, error = descriptor(i, sel, GP)
        i.fault_if((d.bits(40, 8) & 0x1F) != 2, GP, error)
        i.fault_if(~d.bit(47), NP, error)
        return descriptor_base(d) | _high_base(i, address), descriptor_limit(d), descriptor_attr(d)

    base, limit, attr = i.choose(null, lambda: (i.const(0, 64), i.const(0, 32), i.const(0, 16)), load)
    i.put("ldtr", sel)
    i.put("ldtr_base", base)
    i.put("ldtr_limit", limit)
    i.put("ldtr_attr", attr)


def _store_selector(name: str, field: str) -> None:
    @insn(name)
    def body(i: Context) -> None:
        umip_check(i)
        v = i.get(field, 16)
        i[0].set(v.zext(i[0].w) if i[0].kind == "r" else v)


_store_selector("str", "tr")
_store_selector("sldt", "ldtr")


def _examine(name: str) -> None:
    """LAR, LSL, VERR, VERW: ZF tells whether the descriptor may be used; no faults but those of its table's pages."""

    @insn(name, undefined="")
    def body(i: Context) -> None:
        k = 1 if name in ("lar", "lsl") else 0
        sel = i[k].get().trunc(16)
        local, offset = sel.bit(2), (sel & 0xFFF8).zext(64)
        limit = local.select(i.get("ldtr_limit", 32), i.get("gdtr_limit", 16).zext(32)).zext(64)
        inside = ((sel & 0xFFFC) != 0) & ~limit.ult(offset + 7) & (~local | ((i.get("ldtr", 16) & 0xFFFC) != 0))
        base = local.select(i.get("ldtr_base"), i.get("gdtr_base"))
        d = i.choose(inside, lambda: i.load(base + offset, 64, system=True), lambda: i.const(0, 64))
        kind = d.bits(40, 8) & 0x1F
        is_code, conforming = d.bit(44) & d.bit(43), d.bit(44) & d.bit(43) & d.bit(42)
        system_ok = i.const(0, 1)
        legacy = () if i.long else (1, 3, 4, 5) if name == "lar" else (1, 3)
        for t in {"lar": (2, 9, 11, 12, *legacy), "lsl": (2, 9, 11, *legacy)}.get(name, ()):
            system_ok = system_ok | (kind == t)
        dpl = d.bits(45, 8) & 3
        visible = conforming | ~(dpl.ult(i.get("cpl", 8)) | dpl.ult(sel.trunc(8) & 3))
        ok = inside & visible
        if name == "verr":
            ok = ok & d.bit(44) & (~is_code | d.bit(41))
        elif name == "verw":
            ok = ok & d.bit(44) & ~is_code & d.bit(41)
        else:
            ok = ok & (d.bit(44) | system_ok)
            result = (d >> 32 & 0x00FFFF00).trunc(32) if name == "lar" else descriptor_limit(d)
            i[0].set(result.trunc(i.size) if i.size < 64 else result.zext(64), when=ok)
        i.f.put_zf(ok)


for _name in ("lar", "lsl", "verr", "verw"):
    _examine(_name)


# ---- supervisor access to user pages
def _alignment_flag(name: str, value: int) -> None:
    @insn(name)
    def body(i: Context) -> None:
        i.fault_if((i.get("cpl", 8) != 0), UD)
        i.put("rflags_sys", (i.get("rflags_sys") & ~(1 << 18)) | value << 18)
        i.request(REQUEST_MODE)


_alignment_flag("stac", 1)
_alignment_flag("clac", 0)


# ---- system calls
CODE64, CODE32, DATA = 0xA9B, 0xC9B, 0xC93  # descriptor attributes, DPL 0


@insn("syscall")
def syscall(i: Context) -> None:
    """From 64-bit and compatibility mode; in legacy mode only AMD has it, and it is not announced there."""
    i.fault_if(~i.get("efer").bit(0) | ~i.get("efer").bit(10), UD)
    image = i.f.image()
    i.put("rcx", i.next_ip())
    i.put("r11", image & ~0x10000)
    selector = i.get("star").bits(32, 16) & 0xFFFC
    flat(i, "cs", selector, CODE64)
    flat(i, "ss", selector + 8, DATA)
    i.put("cpl", i.const(0, 8))
    masked = image & ~i.get("fmask")
    put_rflags(i, masked, i.const(0x3F7300, 64))
    i.put("rflags_sys", masked & 0x3E7300)
    i.request(REQUEST_MODE)
    i.jump(i.get("lstar") if i.long else i.get("cstar"))


def _sysret(i: Context, wide: bool) -> None:
    i.fault_if(~i.get("efer").bit(0), UD)
    supervisor_only(i)
    target = i.get("rcx") if wide else i.get("rcx", 32).zext(64)
    i.fault_if(~canonical(target), GP)
    star = i.get("star").bits(48, 16)
    flat(i, "cs", (star + 16 if wide else star) | 3, CODE64 | 0x60 if wide else 0xCFB)
    flat(i, "ss", (star + 8) | 3, DATA | 0x60)
    i.put("cpl", i.const(3, 8))
    value = i.get("r11")
    i.f.put_image(value)
    i.put("df", value.bits(10, 8) & 1)
    new = value & 0x3C7300
    i.put("rflags_sys", new)
    interrupts_may_open(i, new.bit(9))
    i.request(REQUEST_MODE)
    i.jump(target)


@insn("sysretq")
def sysretq(i: Context) -> None:
    _sysret(i, wide=True)


@insn("sysret", "sysretd")
def sysret(i: Context) -> None:
    _sysret(i, wide=False)


@insn("sysenter")
def sysenter(i: Context) -> None:
    selector = i.get("sysenter_cs", 16)
    i.fault_if(((selector & 0xFFFC) == 0) | ~i.get("cr0").bit(0), GP)
    if i.long:
        flat(i, "cs", selector & 0xFFFC, CODE64)
        target, sp = i.get("sysenter_eip"), i.get("sysenter_esp")
    else:
        long = i.get("efer").bit(10)
        i.put("cs", selector & 0xFFFC)
        hidden(i, "cs", i.const(0, 64), i.const(0xFFFFFFFF, 32), long.select(i.const(CODE64, 16), CODE32))
        target = long.select(i.get("sysenter_eip"), i.get("sysenter_eip", 32).zext(64))
        sp = long.select(i.get("sysenter_esp"), i.get("sysenter_esp", 32).zext(64))
    flat(i, "ss", (selector & 0xFFFC) + 8, DATA)
    i.put("cpl", i.const(0, 8))
    i.put("rflags_sys", i.get("rflags_sys") & ~0x20200)
    i.put("rsp", sp)
    i.request(REQUEST_MODE)
    i.jump(target)


def _sysexit(i: Context, wide: bool) -> None:
    selector = i.get("sysenter_cs", 16)
    i.fault_if(((selector & 0xFFFC) == 0) | (i.get("cpl", 8) != 0) | ~i.get("cr0").bit(0), GP)
    target, sp = (i.get("rdx"), i.get("rcx")) if wide else (i.get("rdx", 32).zext(64), i.get("rcx", 32).zext(64))
    i.fault_if(~canonical(target) | ~canonical(sp), GP)
    flat(i, "cs", (selector + (32 if wide else 16)) | 3, CODE64 | 0x60 if wide else CODE32 | 0x60)
    flat(i, "ss", (selector + (40 if wide else 24)) | 3, DATA | 0x60)
    i.put("cpl", i.const(3, 8))
    i.put("rsp", sp)
    i.request(REQUEST_MODE)
    i.jump(target)


@insn("sysexitq")
def sysexitq(i: Context) -> None:
    _sysexit(i, wide=True)


@insn("sysexit", "sysexitd")
def sysexit(i: Context) -> None:
    _sysexit(i, wide=False)
