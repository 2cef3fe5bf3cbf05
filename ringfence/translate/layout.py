"""Where everything that translated code touches lies: offsets from the vCPU pointer (host r12).

    -32 flags_kind   -24 jump-cache key   -16 vpage   -8 kick, -4 budget
      0 guest GPRs, 8 bytes each; then every other field of X86State and EngineState, 8 bytes each (vectors, x87: 16)
    then the run time's own words, the TLBs, the jump cache, and the tables of blocks and pages

Everything is in one memfd-backed block, so generated code holds no absolute host pointers.
"""

from __future__ import annotations

from ringfence.isa.x86.state import EngineState, X86State

FRONT_BYTES = 4096  # room below the vCPU pointer
TLB_ENTRIES = 512
TLB_ENTRY_BYTES = 32  # read tag, write tag, execute tag, addend
TLB_TABLE_BYTES = TLB_ENTRIES * TLB_ENTRY_BYTES
TLB_TABLES = 3  # supervisor, user, supervisor with AC set
TLB_MASK = (TLB_ENTRIES - 1) * TLB_ENTRY_BYTES
JUMP_CACHE_ENTRIES = 4096  # key, host address
HASH_ENTRIES = 1 << 16
BLOCK_BYTES = 64
MAX_BLOCKS = 1 << 19
PAGE_ENTRY_BYTES = 16  # u64 granules that hold code, u32 first block, u32 unused
MAX_RAM_REGIONS = 4
BOUNCE_SLOTS = 8
BOUNCE_BYTES = 32

# Words of the run time, 8 bytes each.
RUNTIME_WORDS = [
    "host_rsp",
    "code_rx",
    "code_rw_delta",
    "hash",
    "blocks",
    "pages",
    "exit_reason",
    "exit_kind",
    "ex0",
    "ex1",
    "ex2",
    "ex3",
    "status",
    "mode",
    "mode_pending",
    "generation",
    "exec_bloom",
    "deadline_tsc",
    "budget_slice",
    "icount",
    "slice_used",
    "regions",
    "tlb_refills",
    "tlb_flushes",
    "page_faults",
    "lookups",
    "invalidated",
    "blocks_live",
    "links",
    "delivered",
    "misses",
    "cur_phys",
    "cur_phys2",
    "cross_phys",
    "insn_length",
    "resume_status",
    "bounce_next",
    "stub_stale",
    "host_mxcsr",
    "fault_addr",
    "scratch0",
    "scratch1",
    "scratch2",
    "scratch3",
    "dirty_tables",
    "walk_writable",
    "first_fault",
]

SPECIAL = {"kick": -8, "vpage": -16, "flags_kind": -32}
BUDGET = -4
JUMP_KEY = -24


def _layout() -> tuple[dict[str, int], dict[str, int], int]:
    fields: dict[str, int] = {}
    position = 0
    for declared in (X86State, EngineState):
        for name, field in declared.FIELDS.items():
            if name in SPECIAL:
                fields[name] = SPECIAL[name]
                continue
            size = 16 if field.bits > 64 else 8
            position = position + size - 1 & -size
            fields[name] = position
            position += size * (field.count or 1)
    words: dict[str, int] = {}
    position = position + 63 & -64
    for name in RUNTIME_WORDS:
        words[name] = position
        position += 8
    return fields, words, position


FIELDS, WORDS, _end = _layout()
REGIONS = _end + 15 & -16  # per region: base, end, host address, index of its first page
BOUNCE = REGIONS + 32 * MAX_RAM_REGIONS + 63 & -64
TLB = BOUNCE + BOUNCE_SLOTS * BOUNCE_BYTES + 4095 & -4096
JUMP_CACHE = TLB + TLB_TABLES * TLB_TABLE_BYTES
HASH = JUMP_CACHE + JUMP_CACHE_ENTRIES * 16
BLOCKS = HASH + HASH_ENTRIES * 4
PAGES = BLOCKS + MAX_BLOCKS * BLOCK_BYTES


def state_bytes(ram_pages: int) -> int:
    """Size of the whole block for a machine with this many pages of RAM."""
    return FRONT_BYTES + PAGES + (ram_pages + 1) * PAGE_ENTRY_BYTES + 4095 & -4096


def stride(field: str) -> int:
    """Bytes between the elements of an indexed field."""
    declared = X86State.FIELDS[field]
    return 16 if declared.bits > 64 else 8
