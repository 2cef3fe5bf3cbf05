"""Memory of a vCPU's engine: the state block and the code region, each a memfd.

Further vCPUs of a machine have state blocks of their own that show the first one's memory from SHARED on (layout.py), and its region.

Code is written through one mapping and run through another (W^X): no page is ever writable and executable.  The region:

    0           hot code of blocks          dropped when full
    half        cold thunks of blocks       dropped with them
    7/8         run time, native bodies, constants of stencils: stay
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import weakref
from typing import TYPE_CHECKING

from ringfence.core.errors import GuestError, UserError
from ringfence.translate import layout
from ringfence.translate.native_layout import NT, TABLES_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from ringfence.isa.x86.context import Form

CODE_BYTES = 128 << 20
COLD_START = CODE_BYTES // 2
FIXED_START = CODE_BYTES // 8 * 7

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FIXED = 0x10  # <asm-generic/mman-common.h>
_MAP_FAILED = ctypes.c_void_p(-1).value


def _memory(name: str, size: int) -> tuple[int, mmap.mmap]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd, mmap.mmap(fd, size)


def address_of(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


class CodeMemory:
    """`hot`, `cold` and `fixed` are offsets of the next free byte; `rx` is where the region may be executed.

    `hot`, `cold` and `next_block` are words of the state block: the native translator moves them as well.

    With `first`, that of a further vCPU, which shares everything but its own state with it.  `append_fixed` is the first one's alone."""

    def __init__(self, ram_pages: int, first: CodeMemory | None = None) -> None:
        self.to_share = False  # set before anything is laid there
        self.tables = layout.state_bytes(ram_pages)  # offset of the native translator's tables in the state block
        self._state_fd, self.state = _memory("ringfence-vcpu", self.tables + TABLES_BYTES)
        self.cpu = address_of(self.state) + layout.FRONT_BYTES
        self._ends: list[weakref.finalize[..., CodeMemory]] = []
        self._at_end(os.close, self._state_fd)
        if first is not None:
            self._share(first)
            return
        self._code_fd, self.code = _memory("ringfence-code", CODE_BYTES)
        self._at_end(os.close, self._code_fd)
        self.rw = address_of(self.code)
        rx = _libc.mmap(None, CODE_BYTES, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_SHARED, self._code_fd, 0)
        if rx == _MAP_FAILED:
            raise UserError(
                f"The host does not allow executable memory ({os.strerror(ctypes.get_errno())}).",
                "A security policy forbids executable mappings of memfd; allow them for this program.",
            )
        self.rx: int = rx
        self._at_end(_libc.munmap, rx, CODE_BYTES)
        self.fixed = FIXED_START
        self.natives: dict[Form, int] = {}  # where native functions of forms are
        self._constants: dict[bytes, int] = {}
        # Typed views of the tables, for single aligned stores.
        base = layout.FRONT_BYTES
        whole = memoryview(self.state)
        self.blocks32 = whole[base + layout.BLOCKS : base + layout.PAGES].cast("I")
        self.hash32 = whole[base + layout.HASH : base + layout.BLOCKS].cast("I")
        self.pages64 = whole[base + layout.PAGES : self.tables].cast("Q")
        self.pages32 = whole[base + layout.PAGES : self.tables].cast("I")
        self.hot = 0
        self.cold = COLD_START
        self.next_block = 1

    def _share(self, first: CodeMemory) -> None:
        shared = layout.FRONT_BYTES + layout.SHARED
        size, access = len(self.state) - shared, mmap.PROT_READ | mmap.PROT_WRITE
        at = _libc.mmap(address_of(self.state) + shared, size, access, mmap.MAP_SHARED | _MAP_FIXED, first._state_fd, shared)
        if at == _MAP_FAILED:
            raise UserError(f"The host cannot map memory for a vCPU ({os.strerror(ctypes.get_errno())}).", "Use fewer --cpus.")
        self._first = first  # whose memory this one uses
        self.code, self.rw, self.rx = first.code, first.rw, first.rx
        self.natives = first.natives
        self.blocks32, self.hash32, self.pages64, self.pages32 = first.blocks32, first.hash32, first.pages64, first.pages32

    @property
    def hot(self) -> int:
        return self.get(NT["code_hot"])

    @hot.setter
    def hot(self, offset: int) -> None:
        self.put(NT["code_hot"], offset)

    @property
    def cold(self) -> int:
        return self.get(NT["code_cold"])

    @cold.setter
    def cold(self, offset: int) -> None:
        self.put(NT["code_cold"], offset)

    @property
    def next_block(self) -> int:
        """Number of the next block; 0 is none."""
        return self.get(NT["next_block"])

    @next_block.setter
    def next_block(self, number: int) -> None:
        self.put(NT["next_block"], number)

    def get(self, offset: int, code: str = "Q") -> int:
        """A word of the state block at an offset from the vCPU pointer."""
        return int(struct.unpack_from("<" + code, self.state, layout.FRONT_BYTES + offset)[0])

    def put(self, offset: int, value: int, code: str = "Q") -> None:
        struct.pack_into("<" + code, self.state, layout.FRONT_BYTES + offset, value)

    def word(self, name: str) -> int:
        return self.get(layout.WORDS[name])

    def put_word(self, name: str, value: int) -> None:
        self.put(layout.WORDS[name], value & 0xFFFFFFFFFFFFFFFF)

    def lay(self, offset: int, descriptor: int, file_offset: int, size_bytes: int) -> bool:
        """Has this part of the state block show a part of a file; what is written there stays here.  Whole pages, but for the end.
        Where it is to be shared with further vCPUs it is a copy."""
        if self.to_share:
            self.state[offset : offset + size_bytes] = os.pread(descriptor, size_bytes, file_offset)
            return True
        flags, protection = mmap.MAP_PRIVATE | _MAP_FIXED, mmap.PROT_READ | mmap.PROT_WRITE
        at = address_of(self.state) + offset
        return bool(_libc.mmap(at, size_bytes, protection, flags, descriptor, file_offset) == at)

    def append_fixed(self, data: bytes, alignment: int = 16) -> int:
        """Places bytes that stay; returns their offset."""
        self.fixed = self.fixed + alignment - 1 & -alignment
        offset = self.fixed
        if offset + len(data) > CODE_BYTES:
            raise GuestError("the guest uses more kinds of instructions than the engine has room for")
        self.code[offset : offset + len(data)] = data
        self.fixed += len(data)
        return offset

    def constant(self, data: bytes) -> int:
        """The offset of read-only bytes that stencils refer to, placed once."""
        if data not in self._constants:
            self._constants[data] = self.append_fixed(data, 64)
        return self._constants[data]

    def drop_blocks(self) -> None:
        """Forgets every block, and gives their memory back.  Only while no translated code runs; further vCPUs have jump caches too."""
        front, entries = layout.FRONT_BYTES, layout.JUMP_CACHE_ENTRIES * 16
        for mapping, start, end in (
            (self.code, 0, self.hot),
            (self.code, COLD_START, self.cold),
            (self.state, front + layout.HASH, front + layout.HASH + 4 * layout.HASH_ENTRIES),
            (self.state, front + layout.BLOCKS, front + layout.BLOCKS + layout.BLOCK_BYTES * self.next_block),
            (self.state, front + layout.PAGES, self.tables),
        ):
            if end > start:  # both regions and all tables begin with a page, and nothing follows on the last one
                mapping.madvise(mmap.MADV_REMOVE, start, end - start + mmap.PAGESIZE - 1 & -mmap.PAGESIZE)
        at = front + layout.JUMP_CACHE
        self.state[at : at + entries] = struct.pack("<QQ", 1, 0) * layout.JUMP_CACHE_ENTRIES
        self.next_block = 1
        self.hot = 0
        self.cold = COLD_START

    def close(self) -> None:
        for end in self._ends:
            end()

    def _at_end(self, action: Callable[..., object], *arguments: int) -> None:
        """Even of one that is forgotten; but not at the process's end, when a vCPU's thread may still be there."""
        end = weakref.finalize(self, action, *arguments)
        end.atexit = False
        self._ends.append(end)
