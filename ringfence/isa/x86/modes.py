"""The modes that code is decoded and executed in: part of a form where its body depends on them, part of a block's key always.

    mode   code  stack  segments                                   regime
    64     64    64     long mode, 64-bit                          0
    32     32    32     flat: ES CS SS DS have base 0 and no limit 1
    33     32    32     as they are                                2
    34     32    16     as they are                                3
    16     16    16     as they are                                4
    17     16    32     as they are                                5
    18     16    16     real-address or virtual-8086               6
    19-21  32 32 16     the same with other sizes (32, 16, 32)     7: one instruction at a time

Compatibility mode is 32 or one of its relatives.  SDM 3A 3.2 (segmentation models), 20 (8086 emulation).
"""

from __future__ import annotations

LONG, FLAT, REAL = 64, 32, 18
REGIMES = (64, 32, 33, 34, 16, 17, 18)
"""Regime (bits 6:4 of the translation mode) -> mode."""
ODD_REGIME = 7
_SIZES = {
    64: (64, 64),
    32: (32, 32),
    33: (32, 32),
    34: (32, 16),
    16: (16, 16),
    17: (16, 32),
    18: (16, 16),
    19: (32, 32),
    20: (32, 16),
    21: (16, 32),
}
_ODD = {(32, 32): 19, (32, 16): 20, (16, 32): 21}


def code_bits(mode: int) -> int:
    """Default operand and address size."""
    return _SIZES[mode][0]


def stack_bits(mode: int) -> int:
    """Width of the stack pointer."""
    return _SIZES[mode][1]


def is_real(mode: int) -> bool:
    """Whether selectors are paragraphs: real-address or virtual-8086 mode."""
    return 18 <= mode <= 21


def odd_mode(code: int, stack: int) -> int:
    """Real-address mode with descriptors of other sizes left behind in CS or SS."""
    return _ODD[code, stack]
