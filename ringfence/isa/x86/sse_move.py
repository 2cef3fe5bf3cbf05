"""SSE and MMX without arithmetic, part one: moves, non-temporal stores, masks, insertions and extractions, fences.

Specification: SDM 2A-2B (December 2023), the pages of the instructions; SDM 1 chapters 9 to 12.  One body serves the XMM
and the MMX form of a mnemonic.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.ir.value import Lanes, Value
from ringfence.isa.x86.context import Body, Context, Mmx, Vector, insn
from ringfence.isa.x86.x87_stack import wait


def sse_check(i: Context) -> None:
    """Hook: what stands between the decoder and an instruction that names XMM registers or MXCSR.

    By SDM 2A table 2-22: #UD when CR0.EM or not CR4.OSFXSR, #NM when CR0.TS.  These change only with the translation mode,
    so compiled code must not test them; the translator refuses or admits the form by its mode, and nothing is emitted here.
    """


def mmx_check(i: Context) -> None:
    """The same for an instruction that names MMX registers or is EMMS.

    By SDM 3A 13.1 and table 2-18 of 2A: #UD when CR0.EM and #NM when CR0.TS, by the translation mode; #MF when an unmasked x87
    exception is pending.
    """
    wait(i)


def enter_mmx(i: Context) -> None:
    """Every MMX instruction but EMMS makes all x87 registers valid and TOP 0 (SDM 1 9.2.2)."""
    i.put("ftop", i.const(0, 8))  # a whole byte: compiled code stores it as it is
    i.put("ftag", i.const(0xFF, 8))


def vector_check(i: Context) -> None:
    """The check that the form's operands ask for; with an MMX register among them also `enter_mmx`."""
    if any(operand.kind == "y" for operand in i.ops):
        mmx_check(i)
        enter_mmx(i)
    else:
        sse_check(i)


def vector(*names: str) -> Callable[[Body], Body]:
    """Registers a body that begins with `vector_check`."""

    def register(body: Body) -> Body:
        def checked(i: Context) -> None:
            vector_check(i)
            body(i)

        insn(*names)(checked)
        return body

    return register


def low_part(i: Context, k: int, w: int) -> Value:
    """The low w bits of a register operand, or a memory operand as it is."""
    operand = i[k]
    if isinstance(operand, Vector | Mmx):
        return operand.low(w)
    return operand.get()


def zero_lanes(i: Context, w: int, lane: int) -> Lanes:
    return i.const(0, w).lanes(lane)


# ---- whole registers


@vector("movaps", "movapd", "movups", "movupd", "movdqa", "movdqu", "lddqu", "movntdqa")
@vector("movntps", "movntpd", "movntdq", "movntq")
def move(i: Context) -> None:
    i[0].set(i[1].get())


@insn("movnti")
def movnti(i: Context) -> None:
    i[0].set(i[1].get())


# ---- scalars


def _move_extend(w: int) -> Body:
    """MOVD and MOVQ: w bits between register files or memory, the rest of the destination zero."""

    def body(i: Context) -> None:
        i[0].set(low_part(i, 1, w).trunc(w).zext(i[0].w))

    return body


vector("movd")(_move_extend(32))
vector("movq", "movq2dq", "movdq2q")(_move_extend(64))


def _move_scalar(w: int) -> Body:
    """MOVSS and MOVSD: a load clears the upper part of the register, a move between registers keeps it."""

    def body(i: Context) -> None:
        if i[1].kind == "m":
            i[0].set(i[1].get().zext(128))
        else:
            i[0].set(low_part(i, 1, w))

    return body


vector("movss")(_move_scalar(32))
vector("movsd_sse")(_move_scalar(64))


# ---- halves


@vector("movlps", "movlpd")
def movlps(i: Context) -> None:
    i[0].set(low_part(i, 1, 64))


@vector("movhps", "movhpd")
def movhps(i: Context) -> None:
    if i[0].kind == "m":
        i[0].set(i[1].get().bits(64, 64))
    else:
        i[0].set(i[1].get().concat(low_part(i, 0, 64)))


@vector("movlhps")
def movlhps(i: Context) -> None:
    i[0].set(low_part(i, 1, 64).concat(low_part(i, 0, 64)))


@vector("movhlps")
def movhlps(i: Context) -> None:
    i[0].set(i[1].get().bits(64, 64))


@vector("movddup")
def movddup(i: Context) -> None:
    v = low_part(i, 1, 64)
    i[0].set(v.concat(v))


def _duplicate(index: list[int]) -> Body:
    def body(i: Context) -> None:
        v = i[1].get().lanes(32)
        i[0].set(v.shuffle(v, index).v)

    return body


vector("movsldup")(_duplicate([0, 0, 2, 2]))
vector("movshdup")(_duplicate([1, 1, 3, 3]))


# ---- masks


def _sign_mask(lane: int) -> Body:
    def body(i: Context) -> None:
        i[0].set(i[1].get().lanes(lane).movemask().zext(i[0].w))

    return body


vector("movmskps")(_sign_mask(32))
vector("movmskpd")(_sign_mask(64))
vector("pmovmskb")(_sign_mask(8))


@vector("maskmovdqu", "maskmovq")
def maskmov(i: Context) -> None:
    """Byte stores, so that bytes not selected are left to other processors.  Whether those can fault is up to the
    implementation (SDM 2B, MASKMOVDQU); here the whole operand is probed, as AMD's processors do."""
    data, selected = i[0].get(), i[1].get().lanes(8).movemask()
    n = data.w // 8
    address = i.implicit(i.get("rdi"), n, True)
    i.probe(address, n)
    for k in range(n):
        with i.when(selected.bit(k)):
            i.store(address + k, data.bits(8 * k, 8), safe=True)


# ---- single elements


def _insert(lane: int) -> Body:
    def body(i: Context) -> None:
        a = i[0].get()
        n = a.w // lane
        index = list(range(n))
        index[i.imm(2) % n] = n
        part = i[1].get().trunc(lane).zext(a.w)
        i[0].set(a.lanes(lane).shuffle(part.lanes(lane), index).v)

    return body


def _extract(lane: int) -> Body:
    def body(i: Context) -> None:
        v = i[1].get()
        i[0].set(v.lanes(lane).get(i.imm(2) % (v.w // lane)).zext(i[0].w))

    return body


for _suffix, _lane in (("b", 8), ("w", 16), ("d", 32), ("q", 64)):
    vector("pinsr" + _suffix)(_insert(_lane))
    vector("pextr" + _suffix)(_extract(_lane))
vector("extractps")(_extract(32))


@vector("insertps")
def insertps(i: Context) -> None:
    """imm8: 7:6 source element of a register, 5:4 destination element, 3:0 elements to clear."""
    control = i.imm(2)
    source = i[1].get()
    part = source.zext(128) if i[1].kind == "m" else source
    index = list(range(4))
    index[control >> 4 & 3] = 4 + (0 if i[1].kind == "m" else control >> 6)
    kept = i[0].get().lanes(32).shuffle(part.lanes(32), index)
    cleared = [4 if control >> k & 1 else k for k in range(4)]
    i[0].set(kept.shuffle(zero_lanes(i, 128, 32), cleared).v)


# ---- caches and order


@insn("prefetchnta", "prefetcht0", "prefetcht1", "prefetcht2", "prefetch", "prefetchw")
@insn("prefetchreserved3", "prefetchreserved4", "prefetchreserved5", "prefetchreserved6", "prefetchreserved7")
def prefetch(i: Context) -> None:
    """A hint that never faults."""


@insn("lfence", "sfence")
def fence(i: Context) -> None:
    """Loads, and stores, are made in program order, and seen so by other vCPUs: the host's order of memory is the guest's."""


@insn("mfence")
def mfence(i: Context) -> None:
    """Loads behind it see what other vCPUs stored before they saw the stores in front of it (SDM 3A 9.2.5)."""
    i.trace.emit("fence", 0, [])


@insn("clflush")
def clflush(i: Context) -> None:
    """Has the rights of a load of one byte (SDM 2A, CLFLUSH); caches are the host's business."""
    i[0].get()
