"""MMIO from the middle of a stencil: the device bus is called, and the instruction goes on behind the access.

The slow path of a load or store finds that no memory answers; it calls the engine's `_outside` (Python) through `s_outside`,
which keeps the vector and floating-point registers.  What is rarer stays with the interpreter: read-modify-writes, accesses across
a page end or of more than eight bytes, native bodies, and everything while data is watched.
"""

from __future__ import annotations

from ringfence.translate.layout import WORDS
from ringfence.translate.lower import DEFERRED
from ringfence.translate.native import ld64, native, st64
from ringfence.translate.native_access import bounce
from ringfence.translate.native_blocks import charge
from ringfence.translate.native_codes import MODE_TABLE, OUTSIDE_STORE, READ, WRITE
from ringfence.translate.native_mmu import WALK_FAULT, walk
from ringfence.translate.native_points_layout import WATCH_COUNT

_INSTRUCTIONS = 4000  # that take about as long as a device's handler: the deadline is looked at in time


def s_outside(cpu: int, address: int, flags: int, value: int) -> int:
    """The stub of stubs.py: the value read; the engine's function never fails."""
    raise TypeError("compiled only")


@native
def outside(cpu: int, va: int, size: int, access: int) -> int:
    """The guest physical address where a device is to be asked at once, or all ones."""
    if ld64(cpu + WORDS["outside"]) == 0 or ld64(cpu + WATCH_COUNT) or size > 8 or (size & (size - 1)) or (va & 0xFFF) + size > 4096:
        return 0xFFFFFFFFFFFFFFFF
    pa = walk(cpu, va, access, ld64(cpu + WORDS["mode"]) & MODE_TABLE)
    if pa & WALK_FAULT:
        return 0xFFFFFFFFFFFFFFFF
    charge(cpu, _INSTRUCTIONS)
    return pa


@native
def refused(cpu: int) -> int:
    """Whether the engine had reasons not to ask just now; the access is still to be made."""
    if ld64(cpu + WORDS["outside_refused"]) == 0:
        return 0
    st64(cpu + WORDS["outside_refused"], 0)
    st64(cpu + WORDS["status"], DEFERRED)
    return 1


@native
def outside_load(cpu: int, va: int, size: int) -> int:
    """Where what a device gave can be read, or 0: left to the interpreter."""
    pa = outside(cpu, va, size, READ)
    if pa == 0xFFFFFFFFFFFFFFFF:
        return 0
    value = s_outside(cpu, pa, size, 0)
    if refused(cpu):
        return 0
    b = bounce(cpu)
    st64(b, value)
    return b


@native
def outside_store(cpu: int, va: int, size: int, value: int) -> int:
    """1 when a device has taken the store, 0: left to the interpreter."""
    pa = outside(cpu, va, size, WRITE)
    if pa == 0xFFFFFFFFFFFFFFFF:
        return 0
    s_outside(cpu, pa, size | OUTSIDE_STORE, value)
    return refused(cpu) == 0
