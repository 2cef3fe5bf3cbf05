"""The numbers that translated code, run time and engine share."""

from __future__ import annotations

# Why translated code was left.
LEFT_TRANSLATE, LEFT_EXIT, LEFT_DEFER, LEFT_KICK, LEFT_DEADLINE, LEFT_SHUTDOWN, LEFT_STEP = range(1, 8)
# Delivery is left to Python: of an exception, of an external interrupt, of INT n and its relatives, of INT n under CR4.VME.
LEFT_DELIVER, LEFT_INJECT, LEFT_SOFT, LEFT_REDIRECT = range(8, 12)
LEFT_SAMPLES = 12
READ, WRITE, EXECUTE = 0, 1, 2
# Translation mode: part of every block's key.  Bits 6:4 are the regime (isa/x86/modes.py).
MODE_TABLE, MODE_FP_SLOW, MODE_STEP, MODE_SSE_SLOW = 3, 4, 8, 128
MODE_BITS = 8
KIND_UNCHANGED = 0xFF
OUTSIDE_STORE = 0x100  # beside the size of an access to a device
REGION_WRITE = 0x100  # beside the size of an access that a region asks for
PF, DF = 14, 8  # exceptions that the run time raises itself
CONTRIBUTORY = 1 << 0 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13
