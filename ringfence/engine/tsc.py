"""The host's time-stamp counter, which is the guest's before any offset, and its rate.

The rate is measured against the host's monotonic clock, from when this module was loaded to when the rate is first asked for, so that
nobody waits for it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress

from ringfence.core.errors import UserError

_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_AT_LEAST_NS = 12_000_000  # the clock is read to some 100 ns
_TRIES = 5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_MAP_FAILED = ctypes.c_void_p(-1).value


@functools.cache
def _counter() -> Callable[[], int]:
    fd = os.memfd_create("ringfence-rdtsc", os.MFD_CLOEXEC)
    try:
        os.write(fd, _RDTSC)
        address = _libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if address == _MAP_FAILED:
        raise UserError(
            f"The host does not allow executable memory ({os.strerror(ctypes.get_errno())}).",
            "A security policy forbids executable mappings of memfd; allow them for this program.",
        )
    counter: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    return counter


def read() -> int:
    """The counter now."""
    return _counter()()


def _both() -> tuple[int, int]:
    """The clock in ns and the counter at the same time, as closely as can be."""
    counter = _counter()
    tries = []
    for _ in range(_TRIES):
        before, count, after = time.monotonic_ns(), counter(), time.monotonic_ns()
        tries.append((after - before, before + after >> 1, count))
    _, clock_ns, count = min(tries)
    return clock_ns, count


_first: tuple[int, int] | None = None
with suppress(UserError):  # told to whoever starts a machine
    _first = _both()


@functools.cache
def hz() -> int:
    """Counts a second."""
    first = _first or _both()
    left_ns = _AT_LEAST_NS - (time.monotonic_ns() - first[0])
    if left_ns > 0:
        time.sleep(left_ns / 1e9)
    last = _both()
    return (last[1] - first[1]) * 1_000_000_000 // (last[0] - first[0])
