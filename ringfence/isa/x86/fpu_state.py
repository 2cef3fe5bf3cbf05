"""x87 control instructions and the saved images: FSTENV, FSAVE (SDM 1 8.1.10) and FXSAVE (SDM 1 10.5.1).

Deviation, documented here: FOP and FDP keep what was loaded, and FIP is recorded only when an unmasked exception occurs, which
is what software can rely on (SDM 1 8.1.8 allows a processor to update them on exceptions only).  The selectors in the images
are zero, as on processors that deprecate them.
"""

from __future__ import annotations

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.sse_float import MXCSR_MASK, mxcsr, set_mxcsr
from ringfence.isa.x86.state import REQUEST_MODE
from ringfence.isa.x86.vectors import GP
from ringfence.isa.x86.x87_stack import fpu_check, offset, physical, status, wait

_FCW_BITS, _FCW_ONES = 0x1F3F, 0x40  # SDM 1 8.1.5; bit 6 reads as 1
_MASKS = 0x3F
_INITIAL_FCW = 0x37F
_XMM_COUNT = 16


# ---- control word and status word
def set_control(i: Context, value: Value, flags: Value | None = None) -> None:
    """Writes FCW; ES follows from it and the sticky flags (`flags`: new ones).  Unmasking an exception, or masking the last,
    changes how instructions are executed."""
    fcw = (value & _FCW_BITS) | _FCW_ONES
    low = (i.get("fsw", 8) | i.fp("flags", "x87", 16).trunc(8)) if flags is None else flags
    waiting = (low & ~fcw.trunc(8) & _MASKS) != 0
    i.put("fcw", fcw)
    i.put("fsw", (low & 0x7F) | (waiting.zext(8) << 7))
    high = i.get("fsw", 8, 8)
    if flags is None:
        i.put("fsw", (high & 0x7F) | (waiting.zext(8) << 7), low=8)
    i.fp("control", "x87", 0, fcw)
    before = (i.get("fcw", 16) & _MASKS) == _MASKS
    after = (fcw & _MASKS) == _MASKS
    with i.when(before ^ after):
        i.request(REQUEST_MODE)


def set_environment(i: Context, fcw: Value, fsw: Value) -> None:
    """FCW and FSW with TOP; the tags are the caller's."""
    masks = ((fcw & _FCW_BITS) | _FCW_ONES).trunc(8)
    waiting = (fsw.trunc(8) & ~masks & _MASKS) != 0
    i.put("fsw", (fsw.bits(8, 8) & 0x47) | (waiting.zext(8) << 7), low=8)
    i.put("ftop", fsw.bits(11, 8) & 7)
    i.fp("clear", "x87", 0)
    set_control(i, fcw, fsw.trunc(8))


def initialise(i: Context) -> None:
    """FNINIT (SDM 2A)."""
    i.put("fsw", i.const(0, 16))
    i.put("ftop", i.const(0, 8))
    i.put("ftag", i.const(0, 8))
    i.put("fop", i.const(0, 16))
    i.put("fip", i.const(0, 64))
    i.put("fdp", i.const(0, 64))
    i.fp("clear", "x87", 0)
    set_control(i, i.const(_INITIAL_FCW, 16), i.const(0, 8))


@insn("fninit")
def fninit(i: Context) -> None:
    fpu_check(i)
    initialise(i)


@insn("fnclex")
def fnclex(i: Context) -> None:
    fpu_check(i)
    i.put("fsw", i.const(0, 8))
    i.put("fsw", i.get("fsw", 8, 8) & 0x7F, low=8)
    i.fp("clear", "x87", 0)


@insn("fnstcw")
def fnstcw(i: Context) -> None:
    fpu_check(i)
    i[0].set(i.get("fcw", 16))


@insn("fldcw")
def fldcw(i: Context) -> None:
    wait(i)
    set_control(i, i[0].get())


@insn("fnstsw")
def fnstsw(i: Context) -> None:
    fpu_check(i)
    i[0].set(status(i))


@insn("fwait", "fnop")
def fwait(i: Context) -> None:
    wait(i)


@insn("fneni", "fndisi", "fnsetpm")
def obsolete(i: Context) -> None:
    """Instructions of the 8087 and 80287 that do nothing since (SDM 3B 23.18.7)."""
    fpu_check(i)


# ---- environment and state images in the formats of protected mode, 16 and 32 bits
def _full_tag(i: Context, k: int) -> Value:
    """The two-bit tag of physical register k: valid, zero, special, empty (SDM 1 8.1.7)."""
    x = i.get_indexed("st", 80, i.const(k, 8))
    exponent, m = x.bits(64, 15), x.trunc(64)
    zero = (exponent == 0) & (m == 0)
    valid = (exponent != 0) & (exponent != 0x7FFF) & m.bit(63)
    kind = zero.select(i.const(1, 16), valid.select(i.const(0, 16), i.const(2, 16)))
    return i.get("ftag", 8).bit(k).select(kind, i.const(3, 16))


def _tag_word(i: Context) -> Value:
    total = _full_tag(i, 0)
    for k in range(1, 8):
        total = total | (_full_tag(i, k) << 2 * k)
    return total


def _environment(i: Context, word: int) -> list[Value]:
    """The fields of the image, each `word` bits wide."""
    fip, fdp, fop = i.get("fip"), i.get("fdp"), i.get("fop", 16)
    fields = [i.get("fcw", 16), status(i), _tag_word(i)]
    if word == 16:
        return [*fields, fip.trunc(16), i.const(0, 16), fdp.trunc(16), i.const(0, 16)]
    wide = [f.zext(32) | 0xFFFF0000 for f in fields]
    return [*wide, fip.trunc(32), (fop & 0x7FF).zext(32) << 16, fdp.trunc(32), i.const(0xFFFF0000, 32)]


def _store_environment(i: Context, word: int, size: int) -> Value:
    address = i[0].address(True)
    i.probe(address, size)
    for k, value in enumerate(_environment(i, word)):
        i.store(address + k * word // 8, value, safe=True)
    return address


def _load_environment(i: Context, word: int) -> None:
    address = i[0].address()
    field = [i.load(address + k * word // 8, word) for k in range(7)]
    fcw, fsw, tags = (v.trunc(16) for v in field[:3])
    free = (tags & (tags >> 1)) & 0x5555
    in_use = i.const(0, 8)
    for k in range(8):
        in_use = in_use | ((~free.bit(2 * k)).zext(8) << k)
    i.put("ftag", in_use)
    i.put("fip", field[3].zext(64))
    i.put("fdp", field[5].zext(64))
    i.put("fop", field[4].bits(16, 16) & 0x7FF if word == 32 else i.const(0, 16))
    set_environment(i, fcw, fsw)


def _word_bits(i: Context) -> int:
    return 16 if i[0].w in (14 * 8, 94 * 8) else 32


@insn("fnstenv")
def fnstenv(i: Context) -> None:
    fpu_check(i)
    word = _word_bits(i)
    _store_environment(i, word, 7 * word // 8)
    set_control(i, i.get("fcw", 16) | _MASKS)


@insn("fldenv")
def fldenv(i: Context) -> None:
    wait(i)
    _load_environment(i, _word_bits(i))


@insn("fnsave")
def fnsave(i: Context) -> None:
    fpu_check(i)
    word = _word_bits(i)
    head = 7 * word // 8
    address = _store_environment(i, word, head + 80)
    for k in range(8):
        i.store(address + head + 10 * k, i.get_indexed("st", 80, physical(i, k)), safe=True)
    initialise(i)


@insn("frstor")
def frstor(i: Context) -> None:
    wait(i)
    word = _word_bits(i)
    head = 7 * word // 8
    address = i[0].address()
    top = i.load(address + word // 8, word).bits(11, 8) & 7
    values = [i.load(address + head + 10 * k, 80) for k in range(8)]
    _load_environment(i, word)
    for k, value in enumerate(values):
        i.put_indexed("st", offset(top, k), value)


# ---- FXSAVE
def _image_address(i: Context, write: bool) -> Value:
    address = i[0].address(write)
    i.fault_if((address & 15) != 0, GP)
    return address


@insn("fxsave", "fxsave64")
def fxsave(i: Context) -> None:
    fpu_check(i)
    address = _image_address(i, True)
    i.probe(address, 512)
    fip, fdp = i.get("fip"), i.get("fdp")
    if i.form.name == "fxsave":
        fip, fdp = fip.trunc(32).zext(64), fdp.trunc(32).zext(64)
    head = i.get("fcw", 16).zext(64) | (status(i).zext(64) << 16) | (i.get("ftag", 8).zext(64) << 32) | (i.get("fop", 16).zext(64) << 48)
    controls = mxcsr(i).zext(64) | MXCSR_MASK << 32
    pieces = {0: fip.concat(head), 16: controls.concat(fdp)}
    pieces |= {32 + 16 * k: i.get_indexed("st", 80, physical(i, k)).zext(128) for k in range(8)}
    pieces |= {160 + 16 * k: i.get(f"xmm{k}", 128) for k in range(_XMM_COUNT if i.long else 8)}
    for at, value in pieces.items():
        i.store(address + at, value, safe=True)


@insn("fxrstor", "fxrstor64")
def fxrstor(i: Context) -> None:
    fpu_check(i)
    address = _image_address(i, False)
    i.load(address + 504, 64)  # the unused end of the image must be readable as well
    head, pointers = i.load(address, 128), i.load(address + 16, 128)
    values = [i.load(address + 32 + 16 * k, 128) for k in range(8)]
    vectors = [i.load(address + 160 + 16 * k, 128) for k in range(_XMM_COUNT if i.long else 8)]
    new_mxcsr = pointers.bits(64, 32)
    i.fault_if((new_mxcsr & ~MXCSR_MASK) != 0, GP)
    fip, fdp = head.bits(64, 64), pointers.trunc(64)
    if i.form.name == "fxrstor":
        fip, fdp = fip.trunc(32).zext(64), fdp.trunc(32).zext(64)
    fsw = head.bits(16, 16)
    i.put("ftag", head.bits(32, 8))
    i.put("fop", head.bits(48, 16) & 0x7FF)
    i.put("fip", fip)
    i.put("fdp", fdp)
    set_environment(i, head.trunc(16), fsw)
    top = fsw.bits(11, 8) & 7
    for k, value in enumerate(values):
        i.put_indexed("st", offset(top, k), value.trunc(80))
    for k, value in enumerate(vectors):
        i.put(f"xmm{k}", value)
    set_mxcsr(i, new_mxcsr)
