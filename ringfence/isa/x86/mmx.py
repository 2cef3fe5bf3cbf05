"""EMMS.  All other MMX instructions share the bodies of their XMM forms (`sse_move`, `sse_int`).

Specification: SDM 1 9.6.3 and SDM 2A, EMMS (December 2023).
"""

from __future__ import annotations

from ringfence.isa.x86.context import Context, insn
from ringfence.isa.x86.sse_move import mmx_check


@insn("emms")
def emms(i: Context) -> None:
    mmx_check(i)
    i.put("ftop", i.const(0, 8))  # a whole byte: compiled code stores it as it is
    i.put("ftag", i.const(0, 8))
