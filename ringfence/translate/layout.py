"""Where everything that translated code touches lies: offsets from the vCPU pointer (host r12).

    -32 flags_kind   -24 jump-cache key   -16 vpage   -8 kick, -4 budget
      0 guest GPRs, 8 bytes each; then every other field of X86State and EngineState, 8 bytes each (vectors, x87: 16)
    then the run time's own words, the TLBs, the jump cache
    then what all vCPUs of a machine share: words, what devices let the engine do at ports, the tables of blocks and pages, the native
    translator's tables

Everything is in memfd-backed memory at fixed offsets from that pointer, so generated code holds no absolute host pointers and serves
every vCPU.  Each has a block of its own; from SHARED on all blocks show the first one's memory (code_memory.py).
"""

from __future__ import annotations

from ringfence.isa.x86.state import EngineState, X86State

FRONT_BYTES = 4096  # room below the vCPU pointer
TLB_ENTRIES = 2048
TLB_ENTRY_BYTES = 32  # read tag, write tag, execute tag, addend
TLB_TABLE_BYTES = TLB_ENTRIES * TLB_ENTRY_BYTES
TLB_TABLES = 3  # supervisor, user, supervisor with AC set
TLB_MASK = (TLB_ENTRIES - 1) * TLB_ENTRY_BYTES
JUMP_CACHE_ENTRIES = 16384  # key, host address
HASH_ENTRIES = 1 << 16
BLOCK_BYTES = 64
MAX_BLOCKS = 1 << 19
PAGE_ENTRY_BYTES = 16  # u64 granules that hold code, u32 first block, u32 unused
MAX_PIECES = 63  # of guest physical memory that memory answers; the one after the last has an end of 0
MAX_STORES = 15  # regions that the pieces are parts of; likewise
READ_ONLY = 1 << 63  # beside a piece's first page
BOUNCE_SLOTS = 8
BOUNCE_BYTES = 32
MAX_PORT_HINTS = 7  # the place after the last is 0
MAX_GATHERED = 1024
EXECUTED_BYTES = 2048
MAX_LOCALS = 1000  # TLB entries of pages that are not global, filled since the last flush; beyond that a flush drops all

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
    "generation_user",
    "executed",
    "executed_user",
    "local_code",
    "locals",
    "without_globals",
    "gather_ticks",
    "port_hits",
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
    "a20_mask",
    "soft_next",
    "outside",
    "outside_refused",
    # Of one vCPU beside others (native_smp.py): its number and 1, or 0 where it is alone; whether it may hold addresses of guest
    # memory or of code right now; whether it waits for the lock; the last handshake that it took part in.
    "smp",
    "inside",
    "waiting",
    "acknowledged",
]

EXIT_KINDS = ("", "in", "out")  # the word exit_kind is an index

# Words that all vCPUs share, 8 bytes each.
SHARED_WORDS = [
    "lock",  # `smp` of the vCPU that changes tables or code, or that stores over code
    "lock_depth",
    "handshake",  # number of the last one
    "protected",  # host address of the page that it takes write tags away from, or 0
    "stop",  # not 0: no vCPU may enter translated code
    "vcpus",  # how many there are; their pointers are at VCPUS
    "handshakes",
    "gathered",  # writes of ports that their devices have not got yet
]
MAX_VCPUS = 32

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
PIECES = _end + 15 & -16  # per piece, largest first: base, end, host address, index of its first page and READ_ONLY
STORES = PIECES + 32 * (MAX_PIECES + 1)  # per region: host address, its end, index of its first page, 0
BOUNCE = STORES + 32 * (MAX_STORES + 1) + 63 & -64
LOCALS = BOUNCE + BOUNCE_SLOTS * BOUNCE_BYTES  # u32 each: offset of the entry from the vCPU pointer
EXECUTED = LOCALS + 4 * MAX_LOCALS  # bits of pages that the jump cache leads to, by their numbers' hash
EXECUTED_USER = EXECUTED + EXECUTED_BYTES
TLB = EXECUTED_USER + EXECUTED_BYTES + 4095 & -4096
HINT_READ, HINT_GATHER = 1, 2
JUMP_CACHE = TLB + TLB_TABLES * TLB_TABLE_BYTES
SHARED = JUMP_CACHE + JUMP_CACHE_ENTRIES * 16
SHARED_BYTES = 8192
SHARE = {name: SHARED + 8 * n for n, name in enumerate(SHARED_WORDS)}
VCPUS = SHARED + 128
TRANSLATOR_WORDS = VCPUS + 8 * MAX_VCPUS
PORT_HINTS = SHARED + 3072  # per port: 1 + its number; HINT_* and the value to be read from bit 8 on
GATHERED = SHARED + 4096  # u32 each: port << 8 | byte
assert PORT_HINTS + 16 * (MAX_PORT_HINTS + 1) <= GATHERED and GATHERED + 4 * MAX_GATHERED <= SHARED + SHARED_BYTES
HASH = SHARED + SHARED_BYTES
BLOCKS = HASH + HASH_ENTRIES * 4
PAGES = BLOCKS + MAX_BLOCKS * BLOCK_BYTES


def state_bytes(ram_pages: int) -> int:
    """Size of the whole block for a machine with this many pages of RAM."""
    return FRONT_BYTES + PAGES + (ram_pages + 1) * PAGE_ENTRY_BYTES + 4095 & -4096


def stride(field: str) -> int:
    """Bytes between the elements of an indexed field."""
    declared = X86State.FIELDS.get(field) or EngineState.FIELDS[field]
    return 16 if declared.bits > 64 else 8
