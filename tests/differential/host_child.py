"""The child process of the host-CPU judge: maps the shared memory at its fixed addresses and runs batches on request.

Started as `python -I -S host_child.py FD SIZES…` with nothing but the standard library, so that a wild store of a test
case can harm this process only.  Protocol on its standard streams: a line with the number of cases in, the same line out.
"""

from __future__ import annotations

import ctypes
import os
import sys

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_POPULATE, MAP_FIXED_NOREPLACE = 1, 2, 0x20, 0x8000, 0x100000
SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 7, 8, 11
SA_SIGINFO, SA_ONSTACK = 4, 0x08000000
SYS_ARCH_PRCTL, ARCH_SET_GS = 158, 0x1001
SYS_MODIFY_LDT, MODIFY_LDT_WRITE = 154, 0x11
ALT_STACK_BYTES = 1 << 16

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.syscall.argtypes = [ctypes.c_long] * 4


class SigAction(ctypes.Structure):
    """glibc's struct sigaction."""

    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]


class SigAltStack(ctypes.Structure):
    """stack_t."""

    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def check(ok: bool, what: str) -> None:
    if not ok:
        raise OSError(ctypes.get_errno(), f"host judge: {what} failed")


def map_at(addr: int, size: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> None:
    got = libc.mmap(addr, size, prot, flags | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, offset)
    check(got == addr, f"mapping {size} bytes at {addr:#x}")


def main() -> None:
    fd = int(sys.argv[1])
    shared = [tuple(int(x, 0) for x in part.split(":")) for part in sys.argv[2].split(",")]  # address:size:protection:offset
    entries = bytes.fromhex(sys.argv[4])  # of struct user_desc, 16 bytes each
    window, window_bytes, read_only, gs_base, handler, run, records, case_bytes = (int(x, 0) for x in sys.argv[3].split(","))
    for addr, size, prot, offset in shared:
        map_at(addr, size, prot, MAP_SHARED, fd, offset)
    base = next(addr for addr, size, _, _ in shared if size == window_bytes)
    map_at(window, window_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    map_at(read_only, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    stack = libc.mmap(None, ALT_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    alternate = SigAltStack(stack, 0, ALT_STACK_BYTES)
    check(libc.sigaltstack(ctypes.byref(alternate), None) == 0, "sigaltstack")
    for number in (SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV):
        action = SigAction(handler, (ctypes.c_uint64 * 16)(), SA_SIGINFO | SA_ONSTACK, None)
        check(libc.sigaction(number, ctypes.byref(action), None) == 0, "sigaction")
    for at in range(0, len(entries), 16):
        entry = ctypes.create_string_buffer(entries[at : at + 16], 16)
        check(libc.syscall(SYS_MODIFY_LDT, MODIFY_LDT_WRITE, ctypes.addressof(entry), 16) == 0, "modify_ldt")
    ctypes.memmove(read_only, bytes(byte & 0x3F for byte in ctypes.string_at(base, 4096)), 4096)  # records.read_only_image
    check(libc.mprotect(read_only, 4096, PROT_READ) == 0, "mprotect")
    native = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)(run)
    os.write(1, b"ready\n")
    for line in sys.stdin:
        ctypes.memmove(window, base, window_bytes)
        check(libc.syscall(SYS_ARCH_PRCTL, ARCH_SET_GS, gs_base, 0) == 0, "arch_prctl")
        native(records, records + int(line) * case_bytes)
        os.write(1, line.encode())


main()
