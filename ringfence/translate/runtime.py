"""The native run time of translated code: TLB, page walk, dispatch, linking, invalidation, delivery.

Written in the subset of `native.py`.  `cpu` is the vCPU pointer (see `layout.py`), `data` points at the operands that a
cold thunk carries behind its call (see `block.py`):

    slow access  i32 resume, u16 rip, u8 size, u8 length, u16 remaining, u8 kind, u8 store length
    fault, exit  u16 rip, u16 next, u16 remaining, u8 kind
    link         u16 rip, u16 -, i32 site          budget  u16 rip, u16 instructions
    native call  the 64-byte record of lower.py

Addresses of code are *RAM offsets*: page number in the flat numbering of all RAM regions, times 4096, plus offset.
Page walk: SDM 3A 4.5-4.7.  Exceptions during delivery: SDM 3A 6.15, #DF.
"""

from __future__ import annotations

from ringfence.isa.x86.vectors import FAR_GATE, SOFT_INTERRUPT
from ringfence.translate.layout import (
    BLOCK_BYTES,
    BLOCKS,
    BUDGET,
    EXIT_KINDS,
    FIELDS,
    GATHERED,
    HASH,
    HASH_ENTRIES,
    HINT_GATHER,
    HINT_READ,
    JUMP_CACHE,
    JUMP_CACHE_ENTRIES,
    JUMP_KEY,
    MAX_BLOCKS,
    MAX_GATHERED,
    PAGE_ENTRY_BYTES,
    PAGES,
    PORT_HINTS,
    SHARE,
    TLB,
    TLB_ENTRIES,
    TLB_MASK,
    TLB_TABLE_BYTES,
    TLB_TABLES,
    WORDS,
)
from ringfence.translate.lower import DEFERRED, EXITED, FAULTED, JUMP, NEXT, RECORD_NEXT
from ringfence.translate.native import and32, fill64, invoke, ld8, ld16, ld32, ld64, native, rdtsc, sar, sext32, st8, st32, st64
from ringfence.translate.native_access import rt_load, rt_window, store_at
from ringfence.translate.native_blocks import (
    B_CODE,
    B_FLAGS,
    B_GUEST_BYTES,
    B_MODE,
    B_PAGE2_NEXT,
    B_PAGE_NEXT,
    B_RA,
    BLOCK_CROSSING,
    BLOCK_DEAD,
    find_block,
    holds_code,
    kill_block,
)
from ringfence.translate.native_codes import (
    EXECUTE,
    KIND_UNCHANGED,
    LEFT_DEADLINE,
    LEFT_DEFER,
    LEFT_EXIT,
    LEFT_KICK,
    LEFT_STEP,
    LEFT_TRANSLATE,
    MODE_STEP,
    MODE_TABLE,
)
from ringfence.translate.native_delivery import deliver_exception, soft_interrupt
from ringfence.translate.native_layout import ONE_NEXT
from ringfence.translate.native_mmu import INVALID, execute_pointer, mark_executed, ram_offset, tlb_fill, write_pointer
from ringfence.translate.native_mode import serve_requests
from ringfence.translate.native_outside import outside_load, outside_store
from ringfence.translate.native_points import breakpoint_at, watched
from ringfence.translate.native_points_layout import (
    HERE,
    LEFT_POINT,
    MODE_ONE,
    POINT_NEAR,
    POINT_PAGES,
    WATCH_COUNT,
    WATCH_HIT,
    WATCH_WRITE,
)
from ringfence.translate.native_regions import take_sample
from ringfence.translate.native_smp import KICK_SHAKE, acknowledge, lock_code, unlock_code

KIND_IN = EXIT_KINDS.index("in")


def n_call_gate(cpu: int, data: int) -> int:
    """The body `(call gate)` of isa/x86/gates.py."""
    raise TypeError("compiled only")


def translate_block(cpu: int, p: int, ra: int, mode: int) -> int:
    """The native translator, of native_translate.py."""
    raise TypeError("compiled only")


@native
def raise_beyond_limit(cpu: int) -> int:
    """#GP: an instruction that is not all within the code segment."""
    st64(cpu + FIELDS["exc_vector"], 13)
    st64(cpu + FIELDS["exc_error"], 0)
    deliver_exception(cpu)
    return 0


@native
def dispatch(cpu: int) -> int:
    """Host address of the block for RIP, perhaps of a dead one, or 0 to leave (`exit_reason` says why)."""
    if ld32(cpu + FIELDS["request"]):
        serve_requests(cpu)
    seldom = ld64(cpu + WORDS["exit_reason"]) | ld64(cpu + POINT_PAGES) | ld64(cpu + WATCH_HIT)
    if seldom == 0 and ((ld64(cpu + WORDS["mode"]) >> 5) & 3) == 0:  # elsewhere the limit of CS is to be looked at
        va = ld64(cpu + FIELDS["rip"])
        j = cpu + JUMP_CACHE + (((va ^ (va >> 12)) & (JUMP_CACHE_ENTRIES - 1)) << 4)
        if ld64(j) == va ^ ld64(cpu + JUMP_KEY):
            st64(cpu + FIELDS["vpage"], va & ~0xFFF)
            st64(cpu + POINT_NEAR, 0)
            return ld64(j + 8)
    return look_up(cpu)


@native
def remembered_block(cpu: int, host: int, ra: int, mode: int) -> int:
    """The living block at a host address out of the jump cache, if it is the one for (RAM offset, mode), else 0: after a flush most
    are, and the hash need not be walked."""
    if host <= 1:  # an empty place
        return 0
    index = ld32(host - 8)
    if index >= MAX_BLOCKS:
        return 0
    b = cpu + BLOCKS + index * BLOCK_BYTES
    same = ld64(b + B_RA) == ra and ld32(b + B_MODE) == mode and ld64(cpu + WORDS["code_rx"]) + ld32(b + B_CODE) == host
    if same == 0 or (ld32(b + B_FLAGS) & BLOCK_DEAD):
        return 0
    return b


@native
def block_or_leave(cpu: int, host: int, ra: int, mode: int) -> int:
    """The living block of the code at RAM offset `ra`, translated if there is none; 0: the vCPU leaves for Python's translator."""
    b = find_block(cpu, ra, mode)
    if b == 0:
        b = translate_block(cpu, host, ra, mode)
    if b == 0:
        st64(cpu + WORDS["cur_phys"], ra)
        st64(cpu + WORDS["exit_reason"], LEFT_TRANSLATE)
    return b


@native
def look_up(cpu: int) -> int:
    """The same without the jump cache: of the living block, which is translated if there is none."""
    while True:
        if ld32(cpu + FIELDS["request"]):
            serve_requests(cpu)
        if ld64(cpu + WORDS["exit_reason"]):
            return 0
        mode = ld64(cpu + WORDS["mode"])
        near = ld64(cpu + ONE_NEXT)
        if ld64(cpu + POINT_PAGES) | ld64(cpu + WATCH_HIT):
            point = breakpoint_at(cpu, ld64(cpu + FIELDS["rip"]))
            if point == HERE or ld64(cpu + WATCH_HIT):
                st64(cpu + WORDS["exit_reason"], LEFT_POINT)
                return 0
            if point:
                near = MODE_ONE
        st64(cpu + POINT_NEAR, near)
        if mode & MODE_STEP:
            st64(cpu + WORDS["exit_reason"], LEFT_STEP)
            return 0
        va = ld64(cpu + FIELDS["rip"])
        room = 1 << 32  # bytes from RIP to the end of the code segment
        if (mode >> 5) & 3:  # segmented
            room = ld32(cpu + FIELDS["cs_limit"]) + 1 - ((va - ld64(cpu + FIELDS["cs_base"])) & 0xFFFFFFFF)
            if sar(room, 63) != 0 or room == 0:
                raise_beyond_limit(cpu)
                continue
        page = va & ~0xFFF
        e = cpu + TLB + (mode & MODE_TABLE) * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
        if ld64(e + 16) != page:
            e = tlb_fill(cpu, va, EXECUTE, mode & MODE_TABLE)
            if e == 0:
                if ld64(cpu + WORDS["status"]) == DEFERRED:
                    st64(cpu + WORDS["exit_reason"], LEFT_DEFER)
                    return 0
                deliver_exception(cpu)
                continue
        ra = ram_offset(cpu, va + ld64(e + 24))
        j = cpu + JUMP_CACHE + (((va ^ (va >> 12)) & (JUMP_CACHE_ENTRIES - 1)) << 4)
        b = remembered_block(cpu, ld64(j + 8), ra, mode | near)
        if b == 0:
            b = block_or_leave(cpu, va + ld64(e + 24), ra, mode | near)
            if b == 0:
                return 0
        if ld32(b + B_GUEST_BYTES) > room:  # it runs on over the end of the code segment: one instruction at a time
            if near == 0:
                near = MODE_ONE
                st64(cpu + POINT_NEAR, near)
                b = block_or_leave(cpu, va + ld64(e + 24), ra, mode | near)
                if b == 0:
                    return 0
            if ld32(b + B_GUEST_BYTES) > room and ld64(cpu + FIELDS["cr0_settable"]):  # before the 286 there was no #GP
                raise_beyond_limit(cpu)
                continue
        host = ld64(cpu + WORDS["code_rx"]) + ld32(b + B_CODE)
        if near:
            st64(cpu + ONE_NEXT, 0)
            st64(cpu + FIELDS["vpage"], page)
            return host
        st64(j, va ^ ld64(cpu + JUMP_KEY))
        st64(j + 8, host)
        mark_executed(cpu, va, mode)
        st64(cpu + FIELDS["vpage"], page)
        st64(cpu + WORDS["lookups"], ld64(cpu + WORDS["lookups"]) + 1)
        return host


@native
def set_kind(cpu: int, kind: int) -> int:
    if kind != KIND_UNCHANGED:
        st8(cpu + FIELDS["flags_kind"], kind)
    return 0


@native
def refund(cpu: int, n: int) -> int:
    st32(cpu + BUDGET, ld32(cpu + BUDGET) + n)
    return 0


@native
def begin_again(cpu: int, rip: int, remaining: int, kind: int) -> int:
    """The instruction has not begun: fault or leave, as `status` says."""
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + rip)
    refund(cpu, remaining)
    set_kind(cpu, kind)
    if ld64(cpu + WORDS["status"]) == DEFERRED:
        st64(cpu + WORDS["exit_reason"], LEFT_DEFER)
        return 0
    deliver_exception(cpu)
    return dispatch(cpu)


@native
def far_gate(cpu: int, rip: int, following: int, remaining: int, kind: int) -> int:
    """JMP or CALL at offset `rip` of the page to a selector that is no code segment's: through a call gate, or left to Python."""
    own = ld64(cpu + FIELDS["vpage"]) + rip
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + following)
    set_kind(cpu, kind)
    status = n_call_gate(cpu, 0)
    if status == JUMP:
        refund(cpu, remaining - 1)
        return dispatch(cpu)
    st64(cpu + WORDS["status"], status)
    st64(cpu + FIELDS["rip"], own)
    return begin_again(cpu, rip, remaining, kind)


@native
def t_slow_read(cpu: int, va: int, data: int) -> int:
    """A pointer for the load (then resume), or 0: the stub dispatches or leaves by `resume_status`."""
    p = rt_load(cpu, va, ld8(data + 6))
    if p == 0 and ld64(cpu + WORDS["status"]) == DEFERRED:
        p = outside_load(cpu, va, ld8(data + 6))
    if p == 0:
        st64(cpu + WORDS["resume_status"], begin_again(cpu, ld16(data + 4), ld16(data + 8), ld8(data + 10)))
    return p


@native
def touches_own_code(cpu: int, host: int, size: int, rip: int) -> int:
    """Whether a store of `size` bytes within one page changes the block that makes it at page offset `rip`: then the interpreter
    makes the store, and the next instruction is fetched anew (SDM 3A 12.6)."""
    own = execute_pointer(cpu, ld64(cpu + FIELDS["vpage"]) + rip, ld64(cpu + WORDS["mode"]) & MODE_TABLE)
    if own == 0:
        return 1
    at = ram_offset(cpu, own)
    low = ram_offset(cpu, host)
    index = ld32(cpu + PAGES + (low >> 12) * PAGE_ENTRY_BYTES + 8)
    while index != 0:
        b = cpu + BLOCKS + index * BLOCK_BYTES
        start = ld64(b + B_RA)
        if (ld32(b + B_FLAGS) & BLOCK_CROSSING) or (start >> 12) != (low >> 12):
            if (start >> 12) == (at >> 12):
                return 1  # on two pages: not looked at closely
            index = ld32(b + B_PAGE2_NEXT) if (start >> 12) != (low >> 12) else ld32(b + B_PAGE_NEXT)
            continue
        end = start + ld32(b + B_GUEST_BYTES)
        if start <= at and at < end and low < end and low + size > start:
            return 1
        index = ld32(b + B_PAGE_NEXT)
    return 0


@native
def t_slow_window(cpu: int, va: int, data: int) -> int:
    size = ld8(data + 6)
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    p = write_pointer(cpu, va, table)
    if p != 0 and (va & 0xFFF) + size <= 4096 and holds_code(cpu, p, size) and touches_own_code(cpu, p, size, ld16(data + 4)):
        st64(cpu + WORDS["status"], DEFERRED)
        p = 0
    if p != 0:
        p = rt_window(cpu, va, size)
    if p == 0:
        st64(cpu + WORDS["resume_status"], begin_again(cpu, ld16(data + 4), ld16(data + 8), ld8(data + 10)))
    return p


@native
def t_slow_write(cpu: int, va: int, data: int, low: int, high: int) -> int:
    """A pointer (the stencil stores through it), 1 when the store is done, or 0."""
    size = ld8(data + 6)
    rip = ld16(data + 4)
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    p = 0
    over_code = 0
    if ld64(cpu + WATCH_COUNT) and watched(cpu, va, size, WATCH_WRITE):
        st64(cpu + WORDS["status"], DEFERRED)
    else:
        p = write_pointer(cpu, va, table)
        if p == 0 and ld64(cpu + WORDS["status"]) == DEFERRED and outside_store(cpu, va, size, low):
            return 1
    if p != 0:
        if (va & 0xFFF) + size <= 4096:
            if holds_code(cpu, p, size) == 0:
                return p
            over_code = touches_own_code(cpu, p, size, rip)
        else:
            second = (va + size - 1) & ~0xFFF
            if holds_code(cpu, p, second - va):
                over_code = touches_own_code(cpu, p, second - va, rip)
            p = write_pointer(cpu, second, table)
            if p != 0 and holds_code(cpu, p, va + size - second):
                over_code |= touches_own_code(cpu, p, va + size - second, rip)
    if p != 0 and over_code:
        st64(cpu + WORDS["status"], DEFERRED)
        p = 0
    if p == 0 or store_at(cpu, va, size, low, high):
        st64(cpu + WORDS["resume_status"], begin_again(cpu, ld16(data + 4), ld16(data + 8), ld8(data + 10)))
        return 0
    return 1


@native
def t_link(cpu: int, data: int) -> int:
    target = ld64(cpu + FIELDS["vpage"]) + ld16(data)
    mode = ld64(cpu + WORDS["mode"])
    st64(cpu + FIELDS["rip"], target)
    host = look_up(cpu)
    if host != 0 and ld64(cpu + FIELDS["rip"]) == target and ld64(cpu + WORDS["mode"]) == mode and ld64(cpu + POINT_NEAR) == 0:
        site = data + sext32(ld32(data + 4))
        st32(site + ld64(cpu + WORDS["code_rw_delta"]), host - (site + 4))
        st64(cpu + WORDS["links"], ld64(cpu + WORDS["links"]) + 1)
    return host


@native
def t_stale(cpu: int, after: int) -> int:
    """A dead block was entered: find what replaces it, and turn the old head into a jump there."""
    b = cpu + BLOCKS + ld32(after - 5 - 8) * BLOCK_BYTES
    target = ld64(cpu + FIELDS["vpage"]) + (ld64(b + B_RA) & 0xFFF)
    mode = ld32(b + B_MODE)
    st64(cpu + FIELDS["rip"], target)
    host = look_up(cpu)
    if host != 0 and ld64(cpu + FIELDS["rip"]) == target and ld64(cpu + WORDS["mode"]) == mode and ld64(cpu + POINT_NEAR) == 0:
        head = after - 5
        w = head + ld64(cpu + WORDS["code_rw_delta"])
        st64(w, (ld64(w) & ~0xFFFFFFFFFF) | 0xE9 | (((host - (head + 5)) & 0xFFFFFFFF) << 8))
    return host


@native
def t_budget(cpu: int, data: int) -> int:
    """The budget is used up, or somebody kicked."""
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld16(data))
    refund(cpu, ld16(data + 2))
    return budget_is_up(cpu, 1)


@native
def t_region_budget(cpu: int) -> int:
    """The same where RIP and the budget are as they should be."""
    return budget_is_up(cpu, 0)


@native
def budget_is_up(cpu: int, sample: int) -> int:
    if ld64(cpu + WORDS["smp"]):
        and32(cpu + FIELDS["kick"], ~KICK_SHAKE)
        acknowledge(cpu)
    if ld32(cpu + FIELDS["kick"]):
        st64(cpu + WORDS["exit_reason"], LEFT_KICK)
        return 0
    slice = ld64(cpu + WORDS["budget_slice"])
    used = slice - sext32(ld32(cpu + BUDGET))
    st64(cpu + WORDS["icount"], ld64(cpu + WORDS["icount"]) + used)
    st32(cpu + BUDGET, slice)
    if rdtsc() >= ld64(cpu + WORDS["deadline_tsc"]):
        st64(cpu + WORDS["exit_reason"], LEFT_DEADLINE)
        return 0
    if sample:
        take_sample(cpu)
    return dispatch(cpu)


@native
def t_region_one(cpu: int) -> int:
    """A region leaves the next instruction to a stencil, alone: it may be the one that the region begins with, and the jump cache would
    lead back to it."""
    st64(cpu + ONE_NEXT, MODE_ONE)
    return look_up(cpu)


@native
def t_fault(cpu: int, data: int) -> int:
    st64(cpu + WORDS["status"], FAULTED)
    vector = ld64(cpu + FIELDS["exc_vector"])
    if vector == SOFT_INTERRUPT:
        page = ld64(cpu + FIELDS["vpage"])
        st64(cpu + FIELDS["rip"], page + ld16(data))
        refund(cpu, ld16(data + 4) - 1)
        set_kind(cpu, ld8(data + 6))
        soft_interrupt(cpu, ld32(cpu + FIELDS["exc_error"]), page + ld16(data + 2))
        return dispatch(cpu)
    if vector == FAR_GATE:
        return far_gate(cpu, ld16(data), ld16(data + 2), ld16(data + 4), ld8(data + 6))
    if vector == 0x100:
        st64(cpu + WORDS["status"], DEFERRED)
    return begin_again(cpu, ld16(data), ld16(data + 4), ld8(data + 6))


@native
def done_at_port(cpu: int) -> int:
    """Whether the port access in the exit words was done without its device, as a hint allows (bus.PortHint)."""
    h = cpu + PORT_HINTS
    wanted = ld64(cpu + WORDS["ex0"]) + 1
    if ld64(cpu + WORDS["ex1"]) != 1:
        return 0
    while ld64(h) != wanted:
        if ld64(h) == 0:
            return 0
        h += 16
    hint = ld64(h + 8)
    if ld64(cpu + WORDS["exit_kind"]) == KIND_IN:
        if (hint & HINT_READ) == 0:
            return 0
        st8(cpu + FIELDS["rax"], hint >> 8)
    else:
        if (hint & HINT_GATHER) == 0:
            return 0
        lock_code(cpu)  # all vCPUs' go into one table, so they stay in the guest's order
        count = ld64(cpu + SHARE["gathered"])
        if count != MAX_GATHERED:
            st32(cpu + GATHERED + (count << 2), ((wanted - 1) << 8) | (ld64(cpu + WORDS["ex2"]) & 0xFF))
            st64(cpu + SHARE["gathered"], count + 1)
        unlock_code(cpu)
        if count == MAX_GATHERED:
            return 0
        if count == 0:
            soon = rdtsc() + ld64(cpu + WORDS["gather_ticks"])
            if soon < ld64(cpu + WORDS["deadline_tsc"]):
                st64(cpu + WORDS["deadline_tsc"], soon)
    st64(cpu + WORDS["port_hits"], ld64(cpu + WORDS["port_hits"]) + 1)
    return 1


@native
def t_exit(cpu: int, data: int) -> int:
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld16(data + 2))
    refund(cpu, ld16(data + 4) - 1)
    set_kind(cpu, ld8(data + 6))
    if done_at_port(cpu):
        return dispatch(cpu)
    st64(cpu + WORDS["exit_reason"], LEFT_EXIT)
    return 0


@native
def t_cross(cpu: int, data: int) -> int:
    """A block that runs into the next page: 1 while that page is still the one it was made from."""
    va = ld64(cpu + FIELDS["vpage"]) + 4096
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    if ld64(e + 16) != va:
        e = tlb_fill(cpu, va, EXECUTE, table)
        if e == 0:
            return begin_again(cpu, ld16(data), ld16(data + 2), KIND_UNCHANGED)
    if ram_offset(cpu, va + ld64(e + 24)) == ld64(data + 8):
        return 1
    refund(cpu, ld16(data + 2))
    lock_code(cpu)
    kill_block(cpu, ld32(data + 4))
    unlock_code(cpu)
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld16(data))
    return dispatch(cpu)


@native
def t_native_call(cpu: int, data: int) -> int:
    """Runs a native instruction body: 1 to go on behind it."""
    dropped = ld64(cpu + WORDS["invalidated"])
    status = invoke(ld64(cpu + WORDS["code_rx"]) + ld32(data), cpu, data)
    if status == NEXT:
        if ld32(cpu + FIELDS["request"]) == 0 and ld64(cpu + WORDS["invalidated"]) == dropped:
            return 1
        st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld32(data + RECORD_NEXT))
        refund(cpu, ld16(data + 8) - 1)
        set_kind(cpu, ld8(data + 10))
        return dispatch(cpu)
    if status == JUMP:
        set_kind(cpu, ld8(data + 10))
        return dispatch(cpu)
    if status == EXITED:
        st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld32(data + RECORD_NEXT))
        refund(cpu, ld16(data + 8) - 1)
        set_kind(cpu, ld8(data + 10))
        if done_at_port(cpu):
            return dispatch(cpu)
        st64(cpu + WORDS["exit_reason"], LEFT_EXIT)
        return 0
    if status == FAULTED and ld64(cpu + FIELDS["exc_vector"]) == FAR_GATE:
        return far_gate(cpu, ld16(data + 4), ld32(data + RECORD_NEXT), ld16(data + 8), ld8(data + 7))
    st64(cpu + WORDS["status"], status)
    return begin_again(cpu, ld16(data + 4), ld16(data + 8), ld8(data + 7))


@native
def empty_jump_cache(cpu: int) -> int:
    return fill64(cpu + JUMP_CACHE, 1, JUMP_CACHE_ENTRIES * 2)


@native
def initialize(cpu: int) -> int:
    """Empty TLBs and jump cache; the first vCPU's, empty block tables too."""
    fill64(cpu + TLB, INVALID, TLB_TABLES * TLB_ENTRIES * 4)
    empty_jump_cache(cpu)
    if ld64(cpu + WORDS["smp"]) < 2:
        fill64(cpu + HASH, 0, HASH_ENTRIES // 2)
    st64(cpu + WORDS["dirty_tables"], 0)
    return 0
