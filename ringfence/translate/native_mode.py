"""The translation mode, which follows from control registers, flags and segments, and the requests that bodies leave behind."""

from __future__ import annotations

from ringfence.isa.x86.state import REQUEST_FLUSH, REQUEST_FLUSH_LOCAL, REQUEST_INVLPG, REQUEST_MODE
from ringfence.translate.layout import FIELDS, WORDS
from ringfence.translate.native import fence, ld8, ld16, ld32, ld64, native, st32, st64
from ringfence.translate.native_codes import MODE_FP_SLOW, MODE_SSE_SLOW, MODE_STEP
from ringfence.translate.native_mmu import invalidate_page, set_key, tlb_flush, tlb_flush_local
from ringfence.translate.native_points import look_at_debug_registers
from ringfence.translate.native_points_layout import CHANGED, STEP

REGIME_FLAT, REGIME_REAL, REGIME_ODD = 1, 6, 7


@native
def compute_mode(cpu: int) -> int:
    cr0 = ld64(cpu + FIELDS["cr0"])
    cr4 = ld64(cpu + FIELDS["cr4"])
    flags = ld64(cpu + FIELDS["rflags_sys"])
    mode = 0
    if ld8(cpu + FIELDS["cpl"]) == 3:
        mode = 1
    elif ((cr4 >> 21) & 1) and ((flags >> 18) & 1):
        mode = 2
    masked = (ld64(cpu + FIELDS["mxcsr"]) & 0x1F80) == 0x1F80 and (ld64(cpu + FIELDS["fcw"]) & 0x3F) == 0x3F
    if (cr0 & 0xC) != 0 or masked == 0:
        mode |= MODE_FP_SLOW
    elif ((cr4 >> 9) & 1) == 0:
        mode |= MODE_SSE_SLOW
    # Single steps, some uses of debug registers and alignment checks run one instruction at a time in the interpreter.
    debug = look_at_debug_registers(cpu)
    if debug & CHANGED:
        tlb_flush(cpu)
    if (flags & 0x100) or (debug & STEP) or ((mode & 3) == 1 and (cr0 >> 18) & 1 and (flags >> 18) & 1):
        mode |= MODE_STEP
    regime = regime_of(cpu)
    if regime == REGIME_ODD:
        mode |= MODE_STEP
    st64(cpu + WORDS["mode"], mode | (regime << 4))
    set_key(cpu)
    return 0


@native
def regime_of(cpu: int) -> int:
    """How code is decoded and which segments matter, by CR0, EFER, RFLAGS.VM, CS and SS."""
    cs = ld16(cpu + FIELDS["cs_attr"])
    if ((ld64(cpu + FIELDS["efer"]) >> 10) & 1) and (cs & 0x200):
        return 0
    wide = (cs >> 10) & 1
    stack = (ld16(cpu + FIELDS["ss_attr"]) >> 10) & 1
    if (ld64(cpu + FIELDS["cr0"]) & 1) == 0 or ((ld64(cpu + FIELDS["rflags_sys"]) >> 17) & 1):
        if wide | stack:
            return REGIME_ODD
        return REGIME_REAL
    if wide == 0:
        return 4 + stack
    if stack == 0:
        return 3
    unflat = ld8(cpu + FIELDS["es_unflat"]) | ld8(cpu + FIELDS["cs_unflat"])
    if unflat | ld8(cpu + FIELDS["ss_unflat"]) | ld8(cpu + FIELDS["ds_unflat"]):
        return 2
    return REGIME_FLAT


@native
def serve_requests(cpu: int) -> int:
    request = ld32(cpu + FIELDS["request"])
    st32(cpu + FIELDS["request"], 0)
    if ld64(cpu + WORDS["smp"]):  # what makes requests serialises (SDM 3A 9.3)
        fence()
    if request & REQUEST_FLUSH:
        tlb_flush(cpu)
    elif request & REQUEST_FLUSH_LOCAL:
        tlb_flush_local(cpu)
    elif request & REQUEST_INVLPG:
        invalidate_page(cpu, ld64(cpu + FIELDS["request_address"]))
    if request & REQUEST_MODE:
        compute_mode(cpu)
    return 0
