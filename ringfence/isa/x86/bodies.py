"""All instruction bodies: importing this module fills `context.INSTRUCTIONS`, which otherwise loads what is looked for."""

from __future__ import annotations

import ringfence.isa.x86.control
import ringfence.isa.x86.delivery
import ringfence.isa.x86.early
import ringfence.isa.x86.fpu_state
import ringfence.isa.x86.integer
import ringfence.isa.x86.legacy
import ringfence.isa.x86.mmx
import ringfence.isa.x86.sse_float
import ringfence.isa.x86.sse_int
import ringfence.isa.x86.sse_move
import ringfence.isa.x86.sse_string
import ringfence.isa.x86.strings
import ringfence.isa.x86.system
import ringfence.isa.x86.transfers
import ringfence.isa.x86.x87
import ringfence.isa.x86.x87_functions  # noqa: F401
