"""All instruction bodies: importing this module fills `context.INSTRUCTIONS`."""

from __future__ import annotations

import ringfence.isa.x86.mmx
import ringfence.isa.x86.sse_int
import ringfence.isa.x86.sse_move
import ringfence.isa.x86.sse_string  # noqa: F401
