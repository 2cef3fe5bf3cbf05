"""Exceptions and interrupts on their way to the guest (SDM 3A 6.15: #DF and shutdown)."""

from __future__ import annotations

from ringfence.isa.x86.vectors import SOFT_INTERRUPT
from ringfence.translate.layout import FIELDS, WORDS
from ringfence.translate.lower import DEFERRED, FAULTED, JUMP, NEXT
from ringfence.translate.native import ld8, ld32, ld64, native, rdtsc, sar, st8, st64
from ringfence.translate.native_codes import (
    CONTRIBUTORY,
    DF,
    LEFT_DEADLINE,
    LEFT_DELIVER,
    LEFT_INJECT,
    LEFT_KICK,
    LEFT_REDIRECT,
    LEFT_SHUTDOWN,
    LEFT_SOFT,
    PF,
)
from ringfence.translate.native_mode import serve_requests

SOFT_INT1, SOFT_INT_N = 0x100, 0x200
PUSHES_ERROR = 0x227D00


def n_deliver(cpu: int, data: int) -> int:
    """Delivery itself: the body `(deliver)` of isa/x86/delivery.py as a native function, linked in by image.py."""
    raise TypeError("compiled only")


def n_deliver_protected(cpu: int, data: int) -> int:
    """The same of `(deliver protected)`."""
    raise TypeError("compiled only")


def n_deliver_real(cpu: int, data: int) -> int:
    """The same of `(deliver real)`."""
    raise TypeError("compiled only")


def n_redirect(cpu: int, data: int) -> int:
    """The same of `(redirect)`."""
    raise TypeError("compiled only")


@native
def settle_flags(cpu: int) -> int:
    """Brings the flag words in memory into settled form (see isa/x86/flags.py)."""
    kind = ld8(cpu + FIELDS["flags_kind"])
    if kind == 0:
        return 0
    x = ld64(cpu + FIELDS["fr"])
    y = ld64(cpu + FIELDS["fa"])
    w = 8 << ((kind - 1) & 3)
    up = 64 - w
    x = (x << up) >> up
    y = (y << up) >> up
    if kind <= 4:
        r = x - y
        carries = (~x & y) | ((~x | y) & r)
    else:
        r = x
        a = x - y
        carries = (a & y) | ((a | y) & ~r)
    high = (carries << up) & (3 << 62)
    st64(cpu + FIELDS["fr"], sar(r << up, up))
    st64(cpu + FIELDS["fa"], high | (carries & 8))
    st8(cpu + FIELDS["flags_kind"], 0)
    return 0


@native
def is_contributory(vector: int) -> int:
    return vector < 32 and (CONTRIBUTORY >> vector) & 1


@native
def leave_between_exceptions(cpu: int) -> int:
    """A handler that faults at once, for ever, executes no instruction that would use up the budget."""
    if ld64(cpu + WORDS["exit_reason"]) == 0 and (ld64(cpu + WORDS["delivered"]) & 63) == 0:
        if ld32(cpu + FIELDS["kick"]):
            st64(cpu + WORDS["exit_reason"], LEFT_KICK)
        elif rdtsc() >= ld64(cpu + WORDS["deadline_tsc"]):
            st64(cpu + WORDS["exit_reason"], LEFT_DEADLINE)
    return 0


@native
def deliver_by_mode(cpu: int) -> int:
    """Enters the handler of exc_vector; the status of a native function."""
    if (ld64(cpu + FIELDS["efer"]) >> 10) & 1:
        return n_deliver(cpu, 0)
    if (ld64(cpu + FIELDS["cr0"]) & 1) == 0:
        return n_deliver_real(cpu, 0)
    return n_deliver_protected(cpu, 0)


@native
def deliver_exception(cpu: int) -> int:
    """Delivers exc_vector with exc_error at RIP; exceptions on the way become #DF or a triple fault."""
    settle_flags(cpu)
    first = ld64(cpu + FIELDS["exc_vector"])
    st64(cpu + WORDS["first_fault"], first)
    while True:
        vector = ld64(cpu + FIELDS["exc_vector"])
        if vector == PF:
            st64(cpu + FIELDS["cr2"], ld64(cpu + WORDS["fault_addr"]))
        st64(cpu + WORDS["delivered"], ld64(cpu + WORDS["delivered"]) + 1)
        st64(cpu + FIELDS["exc_pending"], (PUSHES_ERROR >> vector) & 1 if vector < 32 else 0)
        status = deliver_by_mode(cpu)
        if status == DEFERRED:
            st64(cpu + WORDS["exit_reason"], LEFT_DELIVER)
            return 0
        if status == JUMP:
            if ld32(cpu + FIELDS["request"]):
                serve_requests(cpu)
            leave_between_exceptions(cpu)
            return 1
        if status != FAULTED or vector == DF:
            st64(cpu + WORDS["exit_reason"], LEFT_SHUTDOWN)
            return 0
        second = ld64(cpu + FIELDS["exc_vector"])
        if second == PF:  # CR2 tells of the newer page fault, also when #DF follows: kernels find stack overflows by it
            st64(cpu + FIELDS["cr2"], ld64(cpu + WORDS["fault_addr"]))
        if (is_contributory(vector) and is_contributory(second)) or (vector == PF and (is_contributory(second) or second == PF)):
            st64(cpu + FIELDS["exc_vector"], DF)
            st64(cpu + FIELDS["exc_error"], 0)


@native
def inject(cpu: int, vector: int) -> int:
    """An external interrupt or NMI."""
    settle_flags(cpu)
    st64(cpu + FIELDS["exc_vector"], vector)
    st64(cpu + FIELDS["exc_error"], 0)
    st64(cpu + FIELDS["exc_pending"], 0)
    status = deliver_by_mode(cpu)
    if status == JUMP:
        if ld32(cpu + FIELDS["request"]):
            serve_requests(cpu)
        return 1
    if status == FAULTED:
        return deliver_exception(cpu)
    st64(cpu + WORDS["exit_reason"], LEFT_INJECT if status == DEFERRED else LEFT_SHUTDOWN)
    return 0


@native
def soft_interrupt(cpu: int, number: int, following: int) -> int:
    """INT n and its relatives outside of 64-bit mode; `number` with SOFT_INT1 or SOFT_INT_N beside it, `following` the linear
    address behind the instruction."""
    settle_flags(cpu)
    own = ld64(cpu + FIELDS["rip"])
    flags = ld64(cpu + FIELDS["rflags_sys"])
    st64(cpu + FIELDS["exc_vector"], number & 0xFF)
    st64(cpu + FIELDS["exc_error"], 0)
    st64(cpu + FIELDS["exc_pending"], 0 if number & SOFT_INT1 else 2)
    st64(cpu + WORDS["soft_next"], following)
    st64(cpu + FIELDS["rip"], following)
    status = NEXT
    if ((flags >> 17) & 1) and (number & SOFT_INT_N):
        if ld64(cpu + FIELDS["cr4"]) & 1:  # VME: the TSS's redirection bits decide
            status = n_redirect(cpu, 0)
            if status == FAULTED and ld64(cpu + FIELDS["exc_vector"]) == SOFT_INTERRUPT:
                st64(cpu + FIELDS["exc_vector"], number & 0xFF)
                status = NEXT
            if status == DEFERRED:
                st64(cpu + FIELDS["rip"], own)
                st64(cpu + WORDS["exit_reason"], LEFT_REDIRECT)
                return 0
        if status == NEXT and (flags & 0x3000) != 0x3000:
            st64(cpu + FIELDS["exc_vector"], 13)
            st64(cpu + FIELDS["exc_error"], 0)
            status = FAULTED
    if status == NEXT:
        status = deliver_by_mode(cpu)
    if status == JUMP:
        if ld32(cpu + FIELDS["request"]):
            serve_requests(cpu)
        return 1
    st64(cpu + FIELDS["rip"], own)
    if status == FAULTED:
        return deliver_exception(cpu)
    st64(cpu + WORDS["exit_reason"], LEFT_SOFT if status == DEFERRED else LEFT_SHUTDOWN)
    return 0
