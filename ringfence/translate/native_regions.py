"""What regions need of the run time: samples that tell where the guest spends its time, and the ways out of a region.

Whenever the budget is used up, every 200,000 instructions, the block that was about to run is a sample.  Twenty of them are handed to
the engine, which has a region made where they pile up (engine/regions.py).  Nothing is counted anywhere else.
"""

from __future__ import annotations

from ringfence.translate.layout import FIELDS, TLB, TLB_MASK, TLB_TABLE_BYTES, WORDS
from ringfence.translate.native import ld64, native, st64
from ringfence.translate.native_codes import EXECUTE, LEFT_SAMPLES, MODE_TABLE, READ, REGION_WRITE, WRITE
from ringfence.translate.native_layout import MAX_SAMPLES, SAMPLE_BYTES, SAMPLE_COUNT, SAMPLES
from ringfence.translate.native_mmu import ram_offset, tlb_fill


@native
def take_sample(cpu: int) -> int:
    n = ld64(cpu + SAMPLE_COUNT)
    if n == MAX_SAMPLES:
        return 0
    va = ld64(cpu + FIELDS["rip"])
    mode = ld64(cpu + WORDS["mode"])
    e = cpu + TLB + (mode & MODE_TABLE) * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    if ld64(e + 16) != (va & ~0xFFF):
        return 0
    s = cpu + SAMPLES + n * SAMPLE_BYTES
    st64(s, va)
    st64(s + 8, ram_offset(cpu, va + ld64(e + 24)))
    st64(s + 16, mode)
    st64(cpu + SAMPLE_COUNT, n + 1)
    if n + 1 == MAX_SAMPLES:
        st64(cpu + WORDS["exit_reason"], LEFT_SAMPLES)
    return 0


@native
def region_fill(cpu: int, va: int, flags: int) -> int:
    """Host address for an access whose probe missed; 0 where only a stencil can make it: a fault, MMIO, code or a watchpoint on the
    page, an access over its end."""
    page = va & ~0xFFF
    if (va & 0xFFF) + (flags & 0xFF) > 4096:
        return 0
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    tag = 0
    access = READ
    if flags & REGION_WRITE:
        tag = 8
        access = WRITE
    if ld64(e + tag) != page:
        e = tlb_fill(cpu, va, access, table)
        if e == 0:
            return 0
        if ld64(e + tag) != page:
            return 0
    return va + ld64(e + 24)


@native
def refill_code(cpu: int, va: int, table: int) -> int:
    """For the engine: makes the page of `va` executable in the TLB if the guest's tables say so; 1 if it is."""
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    if ld64(e + 16) == (va & ~0xFFF):
        return 1
    return tlb_fill(cpu, va, EXECUTE, table) != 0
