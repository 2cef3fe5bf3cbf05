"""Exception vectors (SDM 3A 6.15), and what stands for a vector where a body is left for another reason."""

from __future__ import annotations

DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS, NP, SS, GP, PF, MF, AC, MC, XM = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19)
DEFER = 0x100  # not a vector: see Context.defer_if in context.py
FAR_GATE = 0x102  # not a vector: JMP or CALL to what is no code segment; the error code is the selector (see gates.py)
SOFT_INTERRUPT = 0x101  # not a vector: INT n outside of 64-bit mode; the error code is n, with bit 8 for INT1
