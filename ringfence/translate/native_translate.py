"""The native translator: a whole block from flat tables, without Python.

Written in the subset of `native.py`.  It does what `_Builder` of block.py does, byte for byte, for the instructions that
Python has entered into the tables (native_tables.py, native_layout.py); for everything else it answers 0 and Python
translates.  The code region is written through its writable mapping.  A block that is given up half-way has left bytes
behind the region's cursors only.

Instruction lengths: SDM 2A chapter 2.  A wrong length here finds no recipe: the key of an entered recipe is everything that
a decoder reads before it knows the sizes of displacement and immediate, and those sizes are iced's.
"""

from __future__ import annotations

from ringfence.translate.code_memory import COLD_START, FIXED_START
from ringfence.translate.layout import BLOCK_BYTES, BLOCKS, FIELDS, MAX_BLOCKS, PAGE_ENTRY_BYTES, PAGES, WORDS
from ringfence.translate.lower import RECORD, RECORD_BYTES, RECORD_IMM, RECORD_NEXT
from ringfence.translate.native import (
    copy_forward,
    fill64,
    ld8,
    ld16,
    ld32,
    ld64,
    native,
    order,
    rdtsc,
    sar,
    sext32,
    st8,
    st16,
    st32,
    st64,
)
from ringfence.translate.native_blocks import (
    B_CODE,
    B_CODE_BYTES,
    B_COUNT,
    B_FLAGS,
    B_GUEST_BYTES,
    B_HASH_NEXT,
    B_MODE,
    B_PAGE2_NEXT,
    B_PAGE_NEXT,
    B_RA,
    BLOCK_CROSSING,
    find_block,
    hash_slot,
    protect_page,
    span_granules,
)
from ringfence.translate.native_codes import KIND_UNCHANGED, MODE_FP_SLOW, MODE_SSE_SLOW, MODE_TABLE
from ringfence.translate.native_layout import (
    CAN_FAULT,
    DECODED,
    EMPTY,
    END_TAKEN,
    ENDS_BLOCK,
    ESCAPE,
    FORM_IMMEDIATES,
    FP,
    FUNCTIONS,
    H_CONST,
    H_CONT,
    H_DISP,
    H_EXIT,
    H_FAULT,
    H_IMM,
    H_LOOKUP,
    H_NEXT,
    H_SLOW_M,
    H_SLOW_R,
    HAS_END,
    HASH_BITS,
    HOLE_BYTES,
    I_BYTES,
    I_DISP,
    I_IMM,
    I_LENGTH,
    I_LIVE,
    I_RECIPE,
    LEFT_TO_PYTHON,
    LITERALS,
    MAP_0F,
    MAP_LEGACY,
    MAP_ONE,
    MODRM,
    MOVS,
    NATIVE,
    NO_TAKEN,
    NT,
    PARTIAL,
    PREFIX,
    R_BULK,
    R_DISP_BYTES,
    R_FLAGS,
    R_FUNCTION,
    R_IMM_BYTES,
    R_RECORD,
    R_SLOTS,
    R_TEMPLATE,
    READS,
    RECIPE_HASH,
    RECORD_DISP,
    REGIME_MASK,
    REGIME_SHIFT,
    REGISTERS,
    REPEATS,
    RIP,
    SHADOW,
    SSE,
    STEPS_CARRY,
    T_CODE_BYTES,
    T_FIRST_HOLE,
    T_HOLES,
    T_KIND_OUT,
    T_NEXT,
    T_TAKEN,
    T_VARIANT,
    TAIL,
    TAIL_BYTES,
    WRITES,
)
from ringfence.translate.native_mmu import execute_pointer, ram_offset
from ringfence.translate.native_points_layout import MODE_ONE
from ringfence.translate.native_smp import hold_still, lock_code, unlock_code

assert FIELDS["flags_kind"] == -32  # STORE_KIND below
MAX_INSTRUCTIONS = 48  # as in block.py
LONGEST = 15
FIRST_NARROW = 4  # regimes from here on have 16-bit addresses
NO_PAGE = 0xFFFFFFFFFFFFFFFF
RUNS_OVER = 1  # instead of a recipe: the instruction goes on behind the page's end
HEAD = 0xFC24_6C83_41  # sub dword [r12-4], imm8
TEST_KICK = 0x850F_00F8_247C_8341  # cmp dword [r12-8], 0; jne
STORE_KIND = 0xE0_2444_C641  # mov byte [r12-32], imm8
ADD_TLB_BYTES = 8  # length of add TLB_A(%r12,%r10),%rax
KEY_A, KEY_B = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


# ---- recipes
@native
def recipe_slot(low: int, high: int) -> int:
    return ((low ^ (high * KEY_B)) * KEY_A) >> (64 - HASH_BITS)


@native
def find_recipe(tables: int, low: int, high: int) -> int:
    slot = recipe_slot(low, high)
    while True:
        r = ld32(tables + RECIPE_HASH + (slot << 2))
        if r == 0:
            return 0
        r += tables
        if ld64(r) == low and ld64(r + 8) == high:
            return r
        slot = (slot + 1) & ((1 << HASH_BITS) - 1)


@native
def hash_recipe(tables: int, r: int) -> int:
    """Enters a recipe into the hash."""
    slot = recipe_slot(ld64(r), ld64(r + 8))
    while ld32(tables + RECIPE_HASH + (slot << 2)):
        slot = (slot + 1) & ((1 << HASH_BITS) - 1)
    st32(tables + RECIPE_HASH + (slot << 2), r - tables)
    return 0


# ---- decoding
@native
def prefix_bytes(tables: int, p: int, regime: int) -> int:
    """Bytes before the displacement or immediate of the instruction at `p`; 0 for encodings that are left to Python."""
    n = 0
    map_one = tables + MAP_ONE
    if regime:
        map_one = tables + MAP_LEGACY
    narrow = 0
    if regime >= FIRST_NARROW:
        narrow = 1
    kind = ld8(map_one + ld8(p))
    while kind == PREFIX:
        if ld8(p + n) == 0x67 and regime:
            narrow = regime < FIRST_NARROW
        n += 1
        if n == LONGEST:
            return 0
        kind = ld8(map_one + ld8(p + n))
    n += 1
    if kind == ESCAPE:
        kind = ld8(tables + MAP_0F + ld8(p + n))
        n += 1
        if kind == ESCAPE:
            kind = MODRM
            n += 1
    if kind == LEFT_TO_PYTHON:
        return 0
    if kind == MODRM:
        modrm = ld8(p + n)
        n += 1
        if modrm < 0xC0 and (modrm & 7) == 4 and narrow == 0:
            n += 1
    elif kind == REGISTERS:
        n += 1
    if n >= LONGEST:
        return 0
    return n


@native
def sext(value: int, bytes: int) -> int:
    shift = 64 - (bytes << 3)
    return sar(value << shift, shift)


@native
def decode_instruction(tables: int, p: int, regime: int, room: int, out: int) -> int:
    """Fills a decoded record; the recipe, RUNS_OVER, or 0 if it is not known.  At least 24 bytes at `p` can be read."""
    n = prefix_bytes(tables, p, regime)
    if n == 0:
        return 0
    if n > room:
        return RUNS_OVER
    low = ld64(p)
    high = 0
    if n < 8:
        low &= (1 << (n << 3)) - 1
    else:
        high = ld64(p + 8) & ((1 << ((n - 8) << 3)) - 1)
    r = find_recipe(tables, low, high | ((n | (regime << 4)) << 56))
    if r == 0:
        return 0
    displacement = ld8(r + R_DISP_BYTES)
    immediate = ld8(r + R_IMM_BYTES)
    length = n + displacement + immediate
    if length > LONGEST:
        return 0
    if length > room:
        return RUNS_OVER
    st64(out + I_LENGTH, length)
    st64(out + I_DISP, sext(ld64(p + n), displacement) if displacement else 0)
    raw = ld64(p + n + displacement)
    st64(out + I_IMM, raw)
    if ld32(r + R_FLAGS) & FORM_IMMEDIATES:
        r = find_recipe(tables, low, (raw & ((1 << (immediate << 3)) - 1)) | ((n | 0x80 | (regime << 4)) << 56))
    return r


@native
def decode_block(cpu: int, tables: int, p: int, mode: int) -> int:
    """Decodes up to the block's end; the number of instructions, or 0 to leave the block to Python."""
    out = tables + DECODED
    regime = (mode >> REGIME_SHIFT) & REGIME_MASK
    room = 4096 - (p & 0xFFF)
    left = 1 if mode & MODE_ONE else MAX_INSTRUCTIONS
    while room != 0:
        q = p
        if room < 24:
            q = tables + TAIL
            fill64(q, 0, TAIL_BYTES // 8)
            copy_forward(q, p, room)
        r = decode_instruction(tables, q, regime, room, out)
        if r == RUNS_OVER:
            break
        if r == 0:
            st64(cpu + NT["unknown"], ld64(cpu + NT["unknown"]) + 1)
            return 0
        length = ld64(out + I_LENGTH)
        flags = ld32(r + R_FLAGS)
        if flags & RIP:
            st64(out + I_DISP, ld64(out + I_DISP) + (p & 0xFFF) + length)
        if ((mode & MODE_FP_SLOW) and (flags & FP)) or ((mode & MODE_SSE_SLOW) and (flags & SSE)):
            r = tables + ld64(cpu + NT["defer"])
            flags = ld32(r + R_FLAGS)
        st64(out + I_RECIPE, r)
        out += I_BYTES
        p += length
        room -= length
        left -= 1
        if (flags & ENDS_BLOCK) or left == 0:
            break
        if flags & SHADOW:
            left = 1
    count = (out - (tables + DECODED)) // I_BYTES
    if count == 0:
        return decode_crossing(cpu, tables, p, mode)
    return count


@native
def decode_crossing(cpu: int, tables: int, p: int, mode: int) -> int:
    """Decodes the one instruction at `p`, RIP, that runs over into the next page; 1, or 0 to leave it to Python, which also
    raises the page fault if there is one."""
    out = tables + DECODED
    regime = (mode >> REGIME_SHIFT) & REGIME_MASK
    room = 4096 - (p & 0xFFF)
    second = execute_pointer(cpu, (ld64(cpu + FIELDS["rip"]) & ~0xFFF) + 4096, mode & MODE_TABLE)
    r = 0
    if second != 0:
        q = tables + TAIL
        fill64(q, 0, TAIL_BYTES // 8)
        copy_forward(q, p, room)
        copy_forward(q + room, second, LONGEST - room)
        r = decode_instruction(tables, q, regime, LONGEST, out)
    if r <= RUNS_OVER or ld64(out + I_LENGTH) <= room:
        st64(cpu + NT["crossing"], ld64(cpu + NT["crossing"]) + 1)
        return 0
    flags = ld32(r + R_FLAGS)
    if flags & RIP:
        st64(out + I_DISP, ld64(out + I_DISP) + (p & 0xFFF) + ld64(out + I_LENGTH))
    if ((mode & MODE_FP_SLOW) and (flags & FP)) or ((mode & MODE_SSE_SLOW) and (flags & SSE)):
        r = tables + ld64(cpu + NT["defer"])
    st64(out + I_RECIPE, r)
    st64(cpu + NT["second"], ram_offset(cpu, second))
    return 1


@native
def check_second_page(cpu: int, first: int, count: int) -> int:
    """Between a block's head and its first instruction: is the next page still the one that it was made from?"""
    at = begin_thunk(cpu, ld64(cpu + NT["s_cross"]))
    hot = ld64(cpu + NT["hot"])
    w = writable(cpu, hot)
    st8(w, 0xE9)
    st32(w + 1, at - (hot + 5))
    st64(cpu + NT["hot"], hot + 5)
    w = writable(cpu, at) + 5
    st16(w, first)
    st16(w + 2, count)
    st32(w + 4, ld64(cpu + NT["next_block"]))
    st64(w + 8, ld64(cpu + NT["second"]) & ~0xFFF)
    st32(w + 16, hot + 5 - (at + 5))
    st64(cpu + NT["cold"], at + 5 + 20)
    return 0


@native
def mark_live(tables: int, count: int) -> int:
    """Per instruction: bit 0, is the carry, bit 1, are any flags that it sets read before they are overwritten?"""
    i = tables + DECODED + count * I_BYTES
    live = 3
    while i != tables + DECODED:
        i -= I_BYTES
        st64(i + I_LIVE, live)
        flags = ld32(ld64(i + I_RECIPE) + R_FLAGS)
        if (flags & (READS | STEPS_CARRY)) == READS or (flags & (CAN_FAULT | NATIVE)):
            live = 3
        elif flags & STEPS_CARRY:
            live = (live & 1) * 3  # the other flags are overwritten, the carry passes through
        elif flags & PARTIAL:
            live = 3
        elif flags & WRITES:
            live = 0
    return 0


# ---- putting code together; the words `hot`, `cold` and `kind` are the builder's state
@native
def find_variant(tables: int, r: int, kind: int, live: int, table: int) -> int:
    """The template for this use of a recipe, or 0; numbering as in native_tables.py."""
    flags = ld32(r + R_FLAGS)
    variant = table
    if (flags & (READS | PARTIAL)) and kind != KIND_UNCHANGED:
        variant += kind * 12
    if (live & 1) or (flags & STEPS_CARRY) == 0:
        variant += 6
    if (live & 2) or (flags & (WRITES | PARTIAL)) == 0:
        variant += 3
    t = ld32(r + R_TEMPLATE)
    while t != 0:
        t += tables
        if ld8(t + T_VARIANT) == variant:
            return t
        t = ld32(t + T_NEXT)
    return 0


@native
def writable(cpu: int, offset: int) -> int:
    """Where a byte of the code region is written."""
    return ld64(cpu + WORDS["code_rx"]) + ld64(cpu + WORDS["code_rw_delta"]) + offset


@native
def copy_code(to: int, source: int, size: int) -> int:
    """Up to 7 bytes more are written: they lie behind the cursor."""
    end = to + size
    while to < end:
        st64(to, ld64(source))
        to += 8
        source += 8
    return 0


@native
def begin_thunk(cpu: int, stub: int) -> int:
    """A cold `call STUB`; returns its position, `cold` is behind it."""
    at = ld64(cpu + NT["cold"])
    w = writable(cpu, at)
    st8(w, 0xE8)
    st32(w + 1, stub - (at + 5))
    st64(cpu + NT["cold"], at + 5)
    return at


@native
def point_thunk(cpu: int, stub: int, offset: int, length: int, remaining: int) -> int:
    """FAULT or EXIT."""
    at = begin_thunk(cpu, stub)
    w = writable(cpu, at) + 5
    st16(w, offset)
    st16(w + 2, offset + length)
    st16(w + 4, remaining)
    st16(w + 6, ld64(cpu + NT["kind"]))
    st64(cpu + NT["cold"], at + 13)
    return at


@native
def slow_thunk(cpu: int, operation: int, size: int, place: int, offset: int, length: int, remaining: int) -> int:
    store = 0
    stub = NT["s_slow_wx"]
    if operation == H_SLOW_R:
        stub = NT["s_slow_r"]
    elif operation == H_SLOW_M:
        stub = NT["s_slow_m"]
    else:
        if size <= 8:
            stub = NT["s_slow_w"]
        store = 3
        if size == 1 or size == 4:
            store = 2
        elif size == 10:
            store = 11
    at = begin_thunk(cpu, ld64(cpu + stub))
    w = writable(cpu, at) + 5
    st32(w, place + 4 + ADD_TLB_BYTES - (at + 5))
    st16(w + 4, offset)
    st8(w + 6, size)
    st8(w + 7, length)
    st16(w + 8, remaining)
    st8(w + 10, ld64(cpu + NT["kind"]))
    st8(w + 11, store)
    st64(cpu + NT["cold"], at + 17)
    return at


@native
def fill_hole(address: int, bytes: int, value: int) -> int:
    if bytes == 4:
        st32(address, value)
    elif bytes == 8:
        st64(address, value)
    elif bytes == 1:
        st8(address, value)
    else:
        st16(address, value)
    return 0


@native
def link_thunk(cpu: int, tables: int, site: int, target: int) -> int:
    """A thunk that goes on at an offset from this page; within the page it patches `site` to jump directly.  What leaves the page
    lies right behind its jump where that is the newest hot code.  0 if the piece of code that goes elsewhere is missing."""
    if target < 4096 and ld64(cpu + NT["second"]) == NO_PAGE:
        at = begin_thunk(cpu, ld64(cpu + NT["s_link"]))
        w = writable(cpu, at) + 5
        st32(w, target)
        st32(w + 4, site - (at + 5))
        st64(cpu + NT["cold"], at + 13)
        return at
    t = find_variant(tables, tables + ld64(cpu + NT["leap_here"]), 0, 3, ld64(cpu + NT["table"]))
    if t == 0:
        return 0
    cursor = NT["cold"]
    if ld64(cpu + NT["hot"]) == site + 4:
        cursor = NT["hot"]
    at = ld64(cpu + cursor)
    h = t + T_FIRST_HOLE
    end = h + ld16(t + T_HOLES) * HOLE_BYTES
    size = ld16(t + T_CODE_BYTES)
    copy_code(writable(cpu, at), end, size)
    while h != end:
        place = at + ld16(h)
        value = sext32(ld32(h + 4))
        if ld8(h + 2) == H_IMM:
            value += target
        else:
            value += ld64(cpu + NT["s_lookup"]) - place
        fill_hole(writable(cpu, place), ld8(h + 3), value)
        h += HOLE_BYTES
    st64(cpu + cursor, at + size)
    return at


@native
def immediate_of(i: int, slot: int) -> int:
    where = ld64(i + I_RECIPE) + R_SLOTS + (slot << 1)
    return sext(ld64(i + I_IMM) >> (ld8(where) << 3), ld8(where + 1))


@native
def place_template(cpu: int, tables: int, t: int, i: int, offset: int, length: int, remaining: int) -> int:
    """Appends a template to the hot code and fills its holes; 0 to leave the block to Python."""
    hot = ld64(cpu + NT["hot"])
    taken = ld16(t + T_TAKEN)
    if taken != NO_TAKEN:  # its displacement is patched while code runs: keep it aligned
        st32(writable(cpu, hot), 0x90909090)
        hot += (0 - (hot + taken)) & 3
    h = t + T_FIRST_HOLE
    end = h + ld16(t + T_HOLES) * HOLE_BYTES
    size = ld16(t + T_CODE_BYTES)
    copy_code(writable(cpu, hot), end, size)
    st64(cpu + NT["hot"], hot + size)
    while h != end:
        place = hot + ld16(h)
        operation = ld8(h + 2)
        argument = ld32(h + 8)
        value = sext32(ld32(h + 4))
        if operation == H_DISP:
            value += ld64(i + I_DISP)
        elif operation >= H_SLOW_R:
            value += slow_thunk(cpu, operation, argument, place, offset, length, remaining) - place
        elif operation == H_IMM:
            value += immediate_of(i, argument)
        elif operation == H_NEXT:
            value += offset + length
        elif operation == H_CONST:
            value += ld32(tables + LITERALS + (argument << 2)) - place
        elif operation == H_LOOKUP:
            value += ld64(cpu + NT["s_lookup"]) - place
        elif operation == H_FAULT:
            value += point_thunk(cpu, ld64(cpu + NT["s_fault"]), offset, length, remaining) - place
        elif operation == H_EXIT:
            value += point_thunk(cpu, ld64(cpu + NT["s_exit"]), offset, length, remaining) - place
        else:
            flags = ld32(ld64(i + I_RECIPE) + R_FLAGS)
            target = 0
            if operation == H_CONT and (flags & END_TAKEN) == 0:
                value += hot + size - place
            else:
                if operation == H_CONT:
                    target = offset + length
                elif flags & REPEATS:
                    target = offset
                else:
                    target = offset + length + sext(ld64(i + I_IMM), ld8(ld64(i + I_RECIPE) + R_IMM_BYTES))
                at = link_thunk(cpu, tables, place, target)
                if at == 0:
                    return 0
                value += at - place
        fill_hole(writable(cpu, place), ld8(h + 3), value)
        h += HOLE_BYTES
    return 1


@native
def store_kind(cpu: int) -> int:
    kind = ld64(cpu + NT["kind"])
    if kind != KIND_UNCHANGED:
        hot = ld64(cpu + NT["hot"])
        st64(writable(cpu, hot), STORE_KIND | (kind << 40))
        st64(cpu + NT["hot"], hot + 6)
    return 0


@native
def call_stub(cpu: int, stub: int) -> int:
    hot = ld64(cpu + NT["hot"])
    w = writable(cpu, hot)
    st8(w, 0xE8)
    st32(w + 1, stub - (hot + 5))
    st64(cpu + NT["hot"], hot + 5)
    return 0


@native
def place_settle(cpu: int, tables: int) -> int:
    kind = ld64(cpu + NT["kind"])
    if kind == KIND_UNCHANGED:
        call_stub(cpu, ld64(cpu + NT["s_settle"]))
    elif kind != 0:
        t = find_variant(tables, tables + ld64(cpu + NT["settle"]), kind, 3, ld64(cpu + NT["table"]))
        if t == 0:
            return 0
        # No holes but places in itself: the decoded record is not looked at.
        if place_template(cpu, tables, t, tables + DECODED, 0, 0, 0) == 0:
            return 0
    st64(cpu + NT["kind"], 0)
    return 1


@native
def call_record(cpu: int, prototype: int, function: int, offset: int, length: int, remaining: int, kind_out: int) -> int:
    """A native call with the operand record of lower.py; returns where the record is written."""
    at = ld64(cpu + NT["cold"])
    st64(writable(cpu, at), 0)
    at = (at + 7) & ~7
    record = writable(cpu, at)
    copy_code(record, prototype, RECORD_BYTES)
    st32(record, function)
    st16(record + 4, offset)
    st8(record + 6, length)
    st8(record + 7, ld64(cpu + NT["kind"]))
    st16(record + 8, remaining)
    st8(record + 10, kind_out)
    st32(record + RECORD_NEXT, offset + length)
    st64(cpu + NT["cold"], at + RECORD_BYTES)
    hot = ld64(cpu + NT["hot"])
    w = writable(cpu, hot)
    st32(w, 0x058D48)  # lea rax, [rip + record]
    st32(w + 3, at - (hot + 7))
    st64(cpu + NT["hot"], hot + 7)
    call_stub(cpu, ld64(cpu + NT["s_call"]))
    return record


@native
def place_native_call(cpu: int, tables: int, i: int, offset: int, length: int, remaining: int) -> int:
    r = ld64(i + I_RECIPE)
    flags = ld32(r + R_FLAGS)
    function = ld32(tables + FUNCTIONS + (ld16(r + R_FUNCTION) << 2))
    if function == 0:
        st64(cpu + NT["wanted"], ld16(r + R_FUNCTION))
        return 0
    if flags & (READS | PARTIAL):
        if place_settle(cpu, tables) == 0:
            return 0
    kind_out = 0 if flags & WRITES else ld64(cpu + NT["kind"])
    record = call_record(cpu, r + R_RECORD, function, offset, length, remaining, kind_out)
    if flags & RECORD_DISP:
        st32(record + RECORD["disp"], ld64(i + I_DISP))
    slot = 0
    while slot != 3:
        if ld8(r + R_SLOTS + (slot << 1) + 1):
            st64(record + RECORD_IMM[0] + (slot << 3), immediate_of(i, slot))
        slot += 1
    st64(cpu + NT["kind"], kind_out)
    return 1


@native
def place_bulk(cpu: int, tables: int, r: int, offset: int, length: int, remaining: int) -> int:
    function = ld64(cpu + NT["b_rep_movs"]) if ld32(r + R_FLAGS) & MOVS else ld64(cpu + NT["b_rep_stos"])
    record = call_record(cpu, r + R_RECORD, function, offset, length, remaining, ld64(cpu + NT["kind"]))
    st64(record + RECORD_IMM[0], ld32(r + R_BULK))
    return 0


@native
def place_instruction(cpu: int, tables: int, i: int, offset: int, remaining: int) -> int:
    """0 to leave the block to Python."""
    r = ld64(i + I_RECIPE)
    flags = ld32(r + R_FLAGS)
    length = ld64(i + I_LENGTH)
    live = ld64(i + I_LIVE)
    if flags & NATIVE:
        return place_native_call(cpu, tables, i, offset, length, remaining)
    if ld32(r + R_BULK):
        place_bulk(cpu, tables, r, offset, length, remaining)
    if (flags & READS) or ((flags & PARTIAL) and (live & 2)):
        if ld64(cpu + NT["kind"]) == KIND_UNCHANGED:
            place_settle(cpu, tables)
    if flags & HAS_END:
        if (flags & WRITES) and ld64(cpu + NT["kind"]) != KIND_UNCHANGED:
            if place_settle(cpu, tables) == 0:
                return 0
        store_kind(cpu)
    t = find_variant(tables, r, ld64(cpu + NT["kind"]), live, ld64(cpu + NT["table"]))
    if t == 0:
        return 0
    if place_template(cpu, tables, t, i, offset, length, remaining) == 0:
        return 0
    if ld8(t + T_KIND_OUT) != KIND_UNCHANGED:
        st64(cpu + NT["kind"], ld8(t + T_KIND_OUT))
    return 1


@native
def place_jump(cpu: int, tables: int, target: int) -> int:
    """The end of a block that just goes on."""
    hot = ld64(cpu + NT["hot"])
    st32(writable(cpu, hot), 0x90909090)
    site = (hot + 1 + 3) & ~3
    st8(writable(cpu, site) - 1, 0xE9)
    st64(cpu + NT["hot"], site + 4)
    at = link_thunk(cpu, tables, site, target)
    if at == 0:
        return 0
    st32(writable(cpu, site), at - (site + 4))
    return 1


@native
def register_block(cpu: int, origin: int, ra: int, mode: int, guest_bytes: int, count: int) -> int:
    """Enters the block into the tables; returns its record."""
    index = ld64(cpu + NT["next_block"])
    st64(cpu + NT["next_block"], index + 1)
    st32(writable(cpu, origin - 8), index)
    hot = ld64(cpu + NT["hot"])
    st64(cpu + NT["code_hot"], hot)
    st64(cpu + NT["code_cold"], ld64(cpu + NT["cold"]))
    b = cpu + BLOCKS + index * BLOCK_BYTES
    slot = hash_slot(cpu, ra, mode)
    st64(b + B_RA, ra)
    st32(b + B_CODE, origin)
    st32(b + B_CODE_BYTES, hot - origin)
    st32(b + B_GUEST_BYTES, guest_bytes)
    st32(b + B_COUNT, count)
    st32(b + B_HASH_NEXT, ld32(slot))
    st32(b + B_MODE, mode)
    st32(b + B_FLAGS, 0)
    order()
    st32(slot, index)
    second = ld64(cpu + NT["second"])
    last = (ra & 0xFFF) + guest_bytes - 1
    st32(b + B_PAGE_NEXT, enter_page(cpu, ra & ~0xFFF, ra & 0xFFF, last if second == NO_PAGE else 4095, index))
    if second != NO_PAGE:
        st32(b + B_FLAGS, BLOCK_CROSSING)
        st32(b + B_PAGE2_NEXT, enter_page(cpu, second & ~0xFFF, 0, last - 4096, index))
    return b


@native
def enter_page(cpu: int, page: int, first: int, last: int, index: int) -> int:
    """Adds a block to the list of a page, a RAM offset; returns the block that was first there."""
    place = cpu + PAGES + (page >> 12) * PAGE_ENTRY_BYTES
    old = ld64(place)
    following = ld32(place + 8)
    st64(place, old | span_granules(first, last))
    st32(place + 8, index)
    if old == 0:
        protect_page(cpu, page)
    return following


@native
def build_block(cpu: int, tables: int, p: int, ra: int, mode: int) -> int:
    """The record of the new block, or 0."""
    st64(cpu + NT["second"], NO_PAGE)
    st64(cpu + NT["wanted"], 0)
    count = decode_block(cpu, tables, p, mode)
    if count == 0:
        return 0
    mark_live(tables, count)
    first = ra & 0xFFF
    origin = ((ld64(cpu + NT["code_hot"]) + 15) & ~15) + 8
    st64(cpu + NT["cold"], (ld64(cpu + NT["code_cold"]) + 7) & ~7)
    st64(cpu + NT["kind"], KIND_UNCHANGED)
    st64(cpu + NT["table"], mode & MODE_TABLE)
    st64(cpu + NT["leap_here"], ld64(cpu + NT["leap"] + (((mode >> REGIME_SHIFT) & REGIME_MASK) << 3)))
    budget = begin_thunk(cpu, ld64(cpu + NT["s_budget"]))
    st32(writable(cpu, budget + 5), first | (count << 16))
    st64(cpu + NT["cold"], budget + 9)
    w = writable(cpu, origin)
    st64(w, HEAD | (count << 40) | (0x880F << 48))
    st32(w + 8, budget - (origin + 12))
    st64(w + 12, TEST_KICK)
    st32(w + 20, budget - (origin + 24))
    st64(cpu + NT["hot"], origin + 24)
    if ld64(cpu + NT["second"]) != NO_PAGE:
        check_second_page(cpu, first, count)
    offset = first
    remaining = count
    i = tables + DECODED
    while remaining != 0:
        if (ld32(ld64(i + I_RECIPE) + R_FLAGS) & EMPTY) == 0:
            if place_instruction(cpu, tables, i, offset, remaining) == 0:
                st64(cpu + NT["no_template"], ld64(cpu + NT["no_template"]) + 1)
                return 0
        offset += ld64(i + I_LENGTH)
        i += I_BYTES
        remaining -= 1
    if (ld32(ld64(i - I_BYTES + I_RECIPE) + R_FLAGS) & ENDS_BLOCK) == 0:
        store_kind(cpu)
        if place_jump(cpu, tables, offset) == 0:
            st64(cpu + NT["no_template"], ld64(cpu + NT["no_template"]) + 1)
            return 0
    st64(cpu + NT["blocks"], ld64(cpu + NT["blocks"]) + 1)
    st64(cpu + NT["instructions"], ld64(cpu + NT["instructions"]) + count)
    return register_block(cpu, origin, ra, mode, offset - first, count)


@native
def translate_block(cpu: int, p: int, ra: int, mode: int) -> int:
    """Translates the block at host address `p`, RAM offset `ra`; its record, or 0 to leave it to Python."""
    if ld64(cpu + NT["enabled"]) == 0:
        return 0
    if ld64(cpu + WORDS["smp"]) == 0:
        return translate_alone(cpu, p, ra, mode)
    lock_code(cpu)
    b = find_block(cpu, ra, mode)  # another vCPU may have been faster
    if b == 0 and hold_block_still(cpu, p, ra, mode):
        b = translate_alone(cpu, p, ra, mode)
    unlock_code(cpu)
    return b


@native
def hold_block_still(cpu: int, p: int, ra: int, mode: int) -> int:
    """No other vCPU changes the block's bytes any more without the lock.  0 for blocks that are left to Python."""
    tables = cpu + ld64(cpu + NT["tables"])
    while True:
        st64(cpu + NT["second"], NO_PAGE)
        st64(cpu + NT["wanted"], 0)
        count = decode_block(cpu, tables, p, mode)
        if count == 0:
            return 0
        last = (ra & 0xFFF) - 1
        i = tables + DECODED
        while count != 0:
            last += ld64(i + I_LENGTH)
            i += I_BYTES
            count -= 1
        second = ld64(cpu + NT["second"])
        moved = 0
        if second != NO_PAGE:
            moved = hold_still(cpu, second, span_granules(0, last - 4096))
            last = 4095
        if (hold_still(cpu, ra, span_granules(ra & 0xFFF, last)) | moved) == 0:
            return 1


@native
def translate_alone(cpu: int, p: int, ra: int, mode: int) -> int:
    """The same for a single vCPU, or with the lock held and the bytes still."""
    room = ld64(cpu + NT["code_hot"]) <= COLD_START - 65536 and ld64(cpu + NT["code_cold"]) <= FIXED_START - 262144
    if room == 0 or ld64(cpu + NT["next_block"]) >= MAX_BLOCKS - 1:
        st64(cpu + NT["full"], ld64(cpu + NT["full"]) + 1)
        return 0
    start = rdtsc()
    b = build_block(cpu, cpu + ld64(cpu + NT["tables"]), p, ra, mode)
    st64(cpu + NT["ticks"], ld64(cpu + NT["ticks"]) + rdtsc() - start)
    return b


@native
def known_recipe(cpu: int, p: int, regime: int) -> int:
    """For the Python side: the offset in the tables of the recipe of an instruction, 0 if there is none."""
    tables = cpu + ld64(cpu + NT["tables"])
    r = decode_instruction(tables, p, regime, LONGEST, tables + DECODED)
    if r <= RUNS_OVER:
        return 0
    return r - tables


@native
def known_prefix(cpu: int, p: int, regime: int) -> int:
    return prefix_bytes(cpu + ld64(cpu + NT["tables"]), p, regime)


@native
def known_key(cpu: int, low: int, high: int) -> int:
    return find_recipe(cpu + ld64(cpu + NT["tables"]), low, high)


@native
def enter_recipe(cpu: int, r: int) -> int:
    tables = cpu + ld64(cpu + NT["tables"])
    return hash_recipe(tables, tables + r)
