"""The x87 register stack, tags, condition codes and stack faults (SDM 1 chapter 8.1 and 8.5.1).

The state holds physical registers; TOP and the tags are data.  Compiled code does its arithmetic in the host's x87, whose
sticky flags stay there until somebody reads the status word (`status`), so the state's flag bits may lag behind.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.ir.value import Value
from ringfence.isa.x86.context import Context
from ringfence.isa.x86.vectors import MF

INDEFINITE = 0xFFFF << 64 | 3 << 62
# Condition codes as they stand in the upper byte of the status word, with B (bit 7), which mirrors ES.
C0, C1, C2, C3, BUSY = 1, 2, 4, 0x40, 0x80
COMPARISON = C0 | C1 | C2 | C3
INVALID_STACK_FAULT = 0x41


def fpu_check(i: Context) -> None:
    """#NM by CR0.EM and CR0.TS: part of the translation mode, so nothing is computed here."""


def wait(i: Context) -> None:
    """What precedes every waiting instruction: #NM, and #MF when an unmasked exception is pending."""
    fpu_check(i)
    i.fault_if(i.fp("pending", "x87", 1), MF)


def physical(i: Context, k: int) -> Value:
    """The number of the physical register ST(k), 8 bits wide."""
    return offset(i.get("ftop", 8), k)


def offset(top: Value, k: int) -> Value:
    return (top + (k & 7)) & 7 if k & 7 else top


def used(i: Context, p: Value) -> Value:
    return i.get("ftag", 8).bit(p & 7)


def tag(i: Context, p: Value) -> Value:
    return i.const(1, 8) << (p & 7)


def read(i: Context, p: Value) -> Value:
    return i.get_indexed("st", 80, p)


def write(i: Context, p: Value, value: Value) -> None:
    i.put_indexed("st", p, value)


def conditions(i: Context, codes: Value, which: int) -> None:
    """Sets the condition codes in `which` (places in the upper byte of the status word) from `codes`."""
    kept = i.get("fsw", 8, 8) & (COMPARISON & ~which)
    i.put("fsw", kept | (codes & (which | BUSY)), low=8)


def checked(
    i: Context,
    ok: Value,
    compute: Callable[[], Value],
    w: int,
    instead: int = INDEFINITE,
    codes: int = 0,
    which: int = C1,
    repair: Callable[[], None] | None = None,
    keep_codes: bool = False,
    quiet: bool = False,
    before: Callable[[], None] | None = None,
) -> tuple[Value, Value]:
    """(value, condition codes): of `compute`, a status word above w bits, where `ok`; otherwise the response to a stack fault.

    `codes` of those in `which` are set then (C1: overflow).  `repair` does what else a masked stack fault does;
    `keep_codes`: the codes change by a stack fault only; `quiet`: B in the result tells of an unmasked stack fault, which
    otherwise ends the instruction; `before`: what can fault ahead of the stack fault.
    """

    def good() -> tuple[Value, Value]:
        r = compute()
        return (r.trunc(w) if w else i.const(0, 1)), (r.bits(w + 8, 8) if r.w > w else i.const(0, 8))

    def bad() -> tuple[Value, Value]:
        if before:
            before()
        i.put("fsw", i.get("fsw", 8) | INVALID_STACK_FAULT)
        found = i.const(codes, 8)
        if quiet:
            found = found | (i.fp("stack_quiet", "x87", 1).zext(8) << 7)
        else:
            i.fp("stack", "x87", 0, i.const(codes, 16), i.const(which, 16))
        if keep_codes:
            conditions(i, found & ~(COMPARISON & ~which), which)
        if repair:
            repair()
        return i.const(instead, w or 1), found

    value, found = i.choose(ok, good, bad)
    return value, found


def pop(i: Context, count: int = 1, tags: Value | None = None, unless: Value | None = None) -> None:
    """`tags`: what the tags are before; `unless`: where this is 1, nothing is popped."""
    before = tags = i.get("ftag", 8) if tags is None else tags
    for k in range(count):
        tags = tags & ~tag(i, physical(i, k))
    top = physical(i, count)
    if unless is not None:
        tags, top = unless.select(before, tags), unless.select(physical(i, 0), top)
    i.put("ftag", tags)
    i.put("ftop", top)


def push(i: Context, value: Value) -> None:
    p = physical(i, -1)
    write(i, p, value)
    i.put("ftag", i.get("ftag", 8) | tag(i, p))
    i.put("ftop", p)


def status(i: Context) -> Value:
    """The status word as software sees it."""
    low = i.get("fsw", 8) | i.fp("flags", "x87", 16).trunc(8)
    return i.get("fsw", 8, 8).concat(low) | (i.get("ftop", 8).zext(16) << 11)
