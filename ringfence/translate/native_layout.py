"""Where the native translator's words and tables lie.

Words: in the page that all vCPUs share, 8 bytes each.  Tables: behind everything else of the state block, at the offset
from the vCPU pointer that the word `tables` holds; references inside of them are offsets from their start, so that the
recipes can be kept in a file (native_tables.py).

    classes of opcodes   one byte an opcode: 1-byte map, 0F map; the 1-byte map outside of 64-bit mode
    decoded              the instructions of the block being translated
    functions, literals  offsets in the code region, by the numbers that recipes and templates use
    hash                 offsets of recipes, by key, open addressing
    records              recipes and templates, appended

    recipe     u64 x2 key, u32 flags, u8 displacement bytes, u8 immediate bytes, u16 function number, u32 first template,
               u32 bytes an element (rep movs, rep stos), 3 x (u8 where in the immediate, u8 bytes), u16 templates, u32 previous
               recipe; at 64, for native functions, the record of lower.py with its registers filled in
    template   u32 next, u8 variant, u8 kind of the flags it sets, u16 code bytes, u16 where TAKEN is, u16 holes; holes; code
    hole       u16 where, u8 operation, u8 bytes, i32 addend, u32 argument
    key        the instruction's bytes up to its displacement or immediate; their number in the highest byte.  An encoding
               whose immediates belong to the form has a second recipe, whose key has the immediate in its upper half and
               0x80 beside the number.  Bits 6:4 of that byte are the regime (isa/x86/modes.py).
"""

from __future__ import annotations

from ringfence.isa.x86.modes import REGIMES
from ringfence.translate.layout import FRONT_BYTES, PORT_HINTS, TRANSLATOR_WORDS

# State and figures; pieces of code and the newest recipe; the block being built; why blocks were left to Python.
_WORDS = (
    *("tables", "code_hot", "code_cold", "next_block", "enabled", "blocks", "instructions", "ticks"),
    *("settle", "leap", "leap1", "leap2", "leap3", "leap4", "leap5", "leap6", "leap7", "defer", "last_recipe"),
    *("hot", "cold", "kind", "table", "leap_here"),
    *("second", "wanted"),  # RAM offset of the page that an instruction runs over into, or -1; number of a function not yet placed
    *("unknown", "crossing", "no_template", "full"),
)
# Places of the run time's symbols in the code region.
SYMBOLS = (
    *("s_budget", "s_settle", "s_slow_r", "s_slow_m", "s_slow_w", "s_slow_wx"),
    *("s_link", "s_fault", "s_exit", "s_call", "s_lookup", "s_cross", "b_rep_movs", "b_rep_stos"),
)
REGIME_SHIFT, REGIME_MASK = 4, 7  # in the translation mode
NT = {name: TRANSLATOR_WORDS + 8 * n for n, name in enumerate((*_WORDS, *SYMBOLS))}
assert max(NT.values()) < PORT_HINTS

PIECES = ("settle", "leap", *(f"leap{n}" for n in range(1, len(REGIMES))), "defer")  # what the translator puts between instructions

# Samples of what is executed (native_regions.py).
MAX_SAMPLES = 18
SAMPLE_BYTES = 24  # linear address, RAM offset, translation mode
SAMPLE_COUNT = 512 - FRONT_BYTES  # MAX_SAMPLES: none are taken
ONE_NEXT = SAMPLE_COUNT + 8  # MODE_ONE when what is dispatched next is a single instruction
SAMPLES = SAMPLE_COUNT + 16
assert SAMPLES + MAX_SAMPLES * SAMPLE_BYTES <= 1024 - FRONT_BYTES

# Classes of opcodes.
PLAIN, MODRM, PREFIX, ESCAPE, LEFT_TO_PYTHON, REGISTERS = range(6)  # REGISTERS: a ModRM byte that never names memory

# Flags of a recipe.
(
    READS, PARTIAL, WRITES, CAN_FAULT, NATIVE, STEPS_CARRY, ENDS_BLOCK, HAS_END, END_TAKEN, EMPTY, REPEATS, SHADOW, RIP, FP,
    FORM_IMMEDIATES, MOVS, BRANCH, RECORD_DISP, SSE,
) = (1 << n for n in range(19))  # fmt: skip

R_FLAGS, R_DISP_BYTES, R_IMM_BYTES, R_FUNCTION, R_TEMPLATE, R_BULK = 16, 20, 21, 22, 24, 28
R_SLOTS, R_TEMPLATES, R_PREVIOUS, R_RECORD = 32, 38, 40, 64
RECIPE_BYTES = 64
T_NEXT, T_VARIANT, T_KIND_OUT, T_CODE_BYTES, T_TAKEN, T_HOLES, T_FIRST_HOLE = 0, 4, 5, 6, 8, 10, 12
HOLE_BYTES = 12
NO_TAKEN = 0xFFFF

# What goes into a hole.
(
    H_DISP, H_IMM, H_NEXT, H_CONST, H_CONT, H_TAKEN, H_LOOKUP, H_FAULT, H_EXIT, H_SLOW_R, H_SLOW_M, H_SLOW_W,
) = range(12)  # fmt: skip

# A decoded instruction.
I_RECIPE, I_LENGTH, I_DISP, I_IMM, I_LIVE = 0, 8, 16, 24, 32
I_BYTES = 64

MAX_NUMBERED = 4096
HASH_BITS = 17
MAX_RECIPES = 1 << HASH_BITS - 1
MAP_ONE = 0
MAP_0F = 256
MAP_LEGACY = 512
TAIL = 768  # a copy of a page's last bytes, with zeroes behind
TAIL_BYTES = 32
DECODED = 1024
FUNCTIONS = DECODED + 64 * I_BYTES
LITERALS = FUNCTIONS + 4 * MAX_NUMBERED
RECIPE_HASH = LITERALS + 4 * MAX_NUMBERED + 4095 & -4096  # from here on in the file, which is mapped
RECORDS = RECIPE_HASH + (4 << HASH_BITS)
TABLES_BYTES = RECORDS + (32 << 20)
