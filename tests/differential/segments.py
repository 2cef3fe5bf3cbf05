"""The descriptor table of the 16- and 32-bit cases: what the host's child asks of modify_ldt(2), and its descriptors.

Linux lets a process have segments of its own, so the host CPU judges segmentation as well: bases, limits, expand-down data,
16-bit stacks, addresses that wrap at 64 KiB and at 4 GiB, and all checks of segment loads (SDM 3A 3.4.5, 5.2 to 5.8).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from .records import CODE_ADDR, CS32_ADDR, SLOT_BYTES, SLOTS, WINDOW_ADDR

ES, CS, SS, DS, FS, GS = range(6)  # the order of the encoding and of a record's `segment`
NAMES = ("es", "cs", "ss", "ds", "fs", "gs")
DATA, DOWN, CODE = 0, 1, 2  # struct user_desc's `contents`
BLOCK_BYTES = 1 << 16  # what one 16-bit code segment covers
USER_CS32, USER_DS, USER_CS64 = 0x23, 0x2B, 0x33  # Linux's own flat segments


class Segment(NamedTuple):
    """One LDT entry with DPL 3.  `limit` in units of `pages`."""

    base: int
    limit: int
    contents: int = DATA
    only: bool = False  # data: read only, code: execute only
    big: bool = False
    pages: bool = False
    present: bool = True

    def user_desc(self, index: int) -> bytes:
        """The argument of modify_ldt(1)."""
        bits = self.big | self.contents << 1 | self.only << 3 | self.pages << 4 | (not self.present) << 5
        return struct.pack("<4I", index, self.base, self.limit, bits)

    def descriptor(self) -> int:
        """What Linux makes of it: accessed, DPL 3 (SDM 3A figure 3-8)."""
        kind = 1 | (not self.only) << 1 | self.contents << 2
        access = kind | 0x10 | 3 << 5 | self.present << 7 | self.big << 14 | self.pages << 15
        return (
            self.limit & 0xFFFF
            | (self.base & 0xFFFFFF) << 16
            | (access & 0xFF) << 40
            | (self.limit >> 16) << 48
            | (access >> 12) << 52
            | (self.base >> 24) << 56
        )

    @property
    def last(self) -> int:
        """The limit in bytes."""
        return self.limit << 12 | 0xFFF if self.pages else self.limit


_BLOCKS = SLOTS * SLOT_BYTES // BLOCK_BYTES
_W = WINDOW_ADDR
TABLE: dict[str, Segment] = {
    **{f"code16 {k}": Segment(CODE_ADDR + k * BLOCK_BYTES, 0xFFFF, CODE) for k in range(_BLOCKS)},
    "code32": Segment(CS32_ADDR, SLOTS * SLOT_BYTES // 4096 - 1, CODE, big=True, pages=True),
    "code32 flat": Segment(0, 0xFFFFF, CODE, big=True, pages=True),
    "flat": Segment(0, 0xFFFFF, big=True, pages=True),
    "near16": Segment(_W - 0x8000, 0xFFFF),
    "near32": Segment(_W - 0x1000, 0x27FF, big=True),
    "small16": Segment(_W, 0xFFF),
    "down16": Segment(_W - 0x4000, 0x4FFF, DOWN),
    "down32": Segment(_W, 0x7FF, DOWN, big=True),
    "readonly": Segment(_W - 0x2000, 0x3FFF, only=True),
    "wrap16": Segment(_W + 0x1000 - 0x10000, 0xFFFF),  # its offset 0FFFFh is in the middle of the window
    "wrap32": Segment(0xF0000010, 0xFFFFF, big=True, pages=True),  # linear addresses wrap at 4 GiB
    "big64k": Segment(_W - 0x100, 0xFFFF, big=True),
    "code as data": Segment(_W - 0x7000, 0xFFFF, CODE),
    "execute only": Segment(_W - 0x7000, 0xFFFF, CODE, only=True),
    "absent": Segment(_W, 0xFFFF, present=False),
    "absent code": Segment(CODE_ADDR, 0xFFFF, CODE, present=False),
    "paragraph": Segment(_W + 0x800, 0xF),
    # With "near16", "wrap16" and the first code segments: what real mode and virtual-8086 mode have.
    "real 2000": Segment(_W, 0xFFFF),
    "real 20ab": Segment(_W + 0xAB0, 0xFFFF),
    "real 1fff": Segment(_W - 0x10, 0xFFFF),
}
INDEX = {name: k for k, name in enumerate(TABLE)}
SELECTOR = {name: k << 3 | 7 for k, name in enumerate(TABLE)}
LDT = b"".join(struct.pack("<Q", segment.descriptor()) for segment in TABLE.values())
# Real-address and virtual-8086 modes are judged by segments with the same distances: the window is at 20000h there, the code
# at 40000h.
REAL_DATA = ("near16", "wrap16", "real 2000", "real 20ab", "real 1fff")
REAL_WINDOW, REAL_CODE, REAL_BLOCKS = 0x20000, 0x40000, 4
PARAGRAPH = {SELECTOR[n]: TABLE[n].base - _W + REAL_WINDOW >> 4 for n in REAL_DATA}
PARAGRAPH |= {SELECTOR[f"code16 {k}"]: REAL_CODE + k * BLOCK_BYTES >> 4 for k in range(REAL_BLOCKS)}
# Back again; a paragraph that no case starts with stays itself, or is 0 where it would look like one of those selectors.
SELECTOR_OF = np.arange(1 << 16, dtype=np.uint16)
for _selector in PARAGRAPH:
    SELECTOR_OF[_selector] = 0
for _selector, _paragraph in PARAGRAPH.items():
    SELECTOR_OF[_paragraph] = _selector
_KEYS = {SELECTOR[name]: segment for name, segment in TABLE.items()}
_KEYS |= {USER_CS32: TABLE["code32 flat"], USER_DS: TABLE["flat"]}
BASE = np.zeros(1 << 16, np.uint64)
LAST = np.zeros(1 << 16, np.uint64)
BIG = np.zeros(1 << 16, bool)
FLAT = np.zeros(1 << 16, bool)
ATTRIBUTES = np.zeros(1 << 16, np.uint16)  # descriptor bits 40-47 and 52-55
for _selector, _segment in _KEYS.items():
    for _rpl in range(4):
        at = _selector & ~3 | _rpl
        BASE[at], LAST[at], BIG[at] = _segment.base, _segment.last, _segment.big
        FLAT[at] = _segment in (TABLE["flat"], TABLE["code32 flat"])
        ATTRIBUTES[at] = _segment.descriptor() >> 40 & 0xFF | (_segment.descriptor() >> 52 & 0xF) << 8
# Linux's own table, as far as user code sees it.
_GDT = {USER_CS32: TABLE["code32 flat"].descriptor(), USER_DS: TABLE["flat"].descriptor(), USER_CS64: 0x00AF_FB00_0000_FFFF}
GDT = b"".join(struct.pack("<Q", _GDT.get(n * 8 | 3, 0)) for n in range(16))


def code_selector(bits: int, slot: int) -> int:
    """The code segment that a slot's instruction runs in."""
    if bits == 16:
        return SELECTOR[f"code16 {slot * SLOT_BYTES // BLOCK_BYTES}"]
    return SELECTOR["code32 flat" if slot & 1 else "code32"]
