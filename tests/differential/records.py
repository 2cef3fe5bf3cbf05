"""Layout of what the test process and its native child share: one memfd holding scratch, code, window image and case records.

A *case* is one instruction and one state.  The child executes it between loading the `in` half of its record and storing
the `out` half.  Addresses are fixed and mostly below 2 GiB, so that the child's own code reaches everything without a
register and guest instructions reach the window through a plain 32-bit displacement.

    SCRATCH_ADDR  one page: the loop's variables          CODE_ADDR    slots of SLOT_BYTES, int3 around every instruction
    BASE_ADDR     the window's content between cases      RECORDS_ADDR the cases
    WINDOW_ADDR   two writable pages, hole, read-only page, holes around  (private to the child)
"""

from __future__ import annotations

import numpy as np

PAGE = 4096
SCRATCH_ADDR = 0x2100_0000
LOOP_ADDR = 0x2200_0000
BASE_ADDR = 0x2400_0000
CODE_ADDR = 0x2800_0000
WINDOW_ADDR = 0x3000_0000
RECORDS_ADDR = 0x3A5A_0000_0000  # through a register only; far from what 32-bit addresses reach

WINDOW_BYTES = 2 * PAGE
READ_ONLY_ADDR = WINDOW_ADDR + 3 * PAGE
FOREIGN = (0x10000, WINDOW_ADDR - PAGE)  # where the child has memory of its own: cases that get there decide nothing
CS32_ADDR = CODE_ADDR - 0x10  # base of a 32-bit code segment: not a page's beginning
GS_BASE = WINDOW_ADDR + 0x140  # so that gs: operands work; FS belongs to the child's C library
SLOT_BYTES = 256
SLOT_ENTRY = 128  # an instruction's place in its slot: short branches stay inside the slot's int3 filling
SLOTS = 8192
RECORDS = 16384
MAX_PATCHES = 6
MAX_DIFFS = 80

# Offsets within the memfd.
SCRATCH_AT = 0
BASE_AT = PAGE
LOOP_AT = 4 * PAGE
CODE_AT = 16 * PAGE
RECORDS_AT = CODE_AT + SLOTS * SLOT_BYTES

PATCH = np.dtype([("offset", "<u8"), ("bytes", "<u8", 2)])
DIFF = np.dtype([("offset", "<u8"), ("value", "<u8")])
# FXSAVE image in 64-bit mode (SDM 1 table 10-2).
FX = np.dtype(
    [
        ("fcw", "<u2"), ("fsw", "<u2"), ("ftw", "u1"), ("_r", "u1"), ("fop", "<u2"), ("fip", "<u8"), ("fdp", "<u8"),
        ("mxcsr", "<u4"), ("mxcsr_mask", "<u4"), ("st", [("mantissa", "<u8"), ("sign_exponent", "<u2"), ("_p", "u1", 6)], 8),
        ("xmm", "<u8", (16, 2)), ("_end", "u1", 96),
    ]
)  # fmt: skip
CASE = np.dtype(
    [
        ("entry", "<u8"),  # address of the instruction
        ("rflags", "<u8"),
        ("gpr", "<u8", 16),  # in the order of the encoding: rax rcx rdx rbx rsp rbp rsi rdi r8 …
        ("patches", "<u8"),  # how many of `patch` are applied to the window before the instruction
        ("patch", PATCH, MAX_PATCHES),
        ("segment", "<u2", 6),  # es cs ss ds fs gs; cs 0: a case of 64-bit mode
        ("ip", "<u4"),  # 16- and 32-bit cases: the instruction's offset in its code segment
        ("_pad0", "u1", 8),
        ("fx", FX),
        ("out_gpr", "<u8", 16),
        ("out_rflags", "<u8"),
        ("trap", "<i8"),  # vector of the exception, -1 when the instruction ended by itself
        ("error", "<u8"),
        ("cr2", "<u8"),
        ("rip", "<u8"),  # at the exception
        ("diffs", "<u8"),  # qwords of the window that differ from the base image; the first MAX_DIFFS are in `diff`
        ("out_segment", "<u2", 6),
        ("_pad1", "u1", 4),
        ("out_fx", FX),
        ("diff", DIFF, MAX_DIFFS),
    ]
)
assert FX.itemsize == 512 and CASE.itemsize % 64 == 0 and CASE.fields["fx"][1] % 64 == 0 and CASE.fields["out_fx"][1] % 64 == 0
MEMFD_BYTES = RECORDS_AT + RECORDS * CASE.itemsize


def read_only_image(base: bytes) -> bytes:
    """The read-only page.  Its bytes are small, as are the window's last ones: a branch target that is read there, where no patch
    fits, ends in the filling between instructions."""
    return bytes(byte & 0x3F for byte in base[:PAGE])


def window_image() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The window's content between cases."""
    image = np.random.default_rng(2).integers(0, 256, WINDOW_BYTES, dtype="u1")
    image[-16:] &= 0x3F
    return image


def at(name: str) -> int:
    """The offset of a field of a case record."""
    return int(CASE.fields[name][1])
