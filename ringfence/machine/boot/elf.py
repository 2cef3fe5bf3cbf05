"""ELF kernels of 32 and 64 bits: segments, entry point, PVH note.

Format: System V ABI, "Object Files" and "Program Loading"; Intel386 and AMD64 supplements.  The PVH entry is note type 18 of name "Xen"
(XEN_ELFNOTE_PHYS32_ENTRY, Xen public/elfnote.h).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ringfence.core.errors import ImageError, UserError
from ringfence.core.record import Record
from ringfence.core.units import MIB, format_size
from ringfence.machine.boot import layout
from ringfence.memory.guest_memory import GuestMemory

MAGIC = b"\x7fELF"

_CLASS_32, _CLASS_64, _DATA_LSB = 1, 2, 1
_ET_EXEC, _ET_DYN = 2, 3
_EM_386, _EM_X86_64 = 3, 62
_PT_LOAD, _PT_NOTE = 1, 4
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_PROGRAM_HEADER32 = struct.Struct("<IIIIIIII")
_NOTE_HEADER = struct.Struct("<III")
_XEN_PHYS32_ENTRY = 18


class Segment(Record):
    """A PT_LOAD: `data` at guest physical `paddr`, then zeros up to `memory_bytes`."""

    paddr: int
    vaddr: int
    memory_bytes: int
    data: memoryview

    @property
    def end(self) -> int:
        return self.paddr + self.memory_bytes


class ElfKernel(Record):
    """`entry` is a guest physical address; so is `pvh_entry` (32-bit protected mode), None where the kernel has none.

    `bits` is the file's class, 32 or 64.
    """

    entry: int
    pvh_entry: int | None
    segments: tuple[Segment, ...]
    bits: int = 64

    @property
    def base(self) -> int:
        return min(segment.paddr for segment in self.segments)

    @property
    def end(self) -> int:
        return max(segment.end for segment in self.segments)


def parse(data: bytes, name: str) -> ElfKernel:
    """Raises ImageError when `data` is not a whole ELF executable for x86; `name` is for the message."""
    if len(data) < 64 or data[:4] != MAGIC:
        raise _damaged(name, "its ELF header is not complete")
    machine = int.from_bytes(data[18:20], "little")
    if data[5] != _DATA_LSB or machine not in (_EM_386, _EM_X86_64):
        raise ImageError(f"{name} is an ELF file for another processor (machine {machine}).", "Give a kernel built for x86-64.")
    wide = data[4] == _CLASS_64
    if data[4] not in (_CLASS_32, _CLASS_64) or (wide and machine == _EM_386):
        raise _damaged(name, "its class does not suit its processor")
    kind, entry, table_offset = struct.unpack_from("<H6xQQ" if wide else "<H6xII", data, 16)
    entry_bytes, entry_count = struct.unpack_from("<HH", data, 54 if wide else 42)
    if kind not in (_ET_EXEC, _ET_DYN):
        raise ImageError(f"{name} is an ELF object file, not a linked kernel.", "Give the linked kernel (vmlinux) or a bzImage.")
    program_header = _PROGRAM_HEADER if wide else _PROGRAM_HEADER32
    if entry_bytes != program_header.size or table_offset + entry_bytes * entry_count > len(data):
        raise _damaged(name, "its program headers lie outside of the file")
    segments: list[Segment] = []
    pvh_entry: int | None = None
    for index in range(entry_count):
        fields = program_header.unpack_from(data, table_offset + index * entry_bytes)
        if wide:
            kind, _, offset, vaddr, paddr, file_bytes, memory_bytes, alignment = fields
        else:
            kind, offset, vaddr, paddr, file_bytes, memory_bytes, _, alignment = fields
        if kind not in (_PT_LOAD, _PT_NOTE) or not (file_bytes or memory_bytes):
            continue
        if offset + file_bytes > len(data):
            raise _damaged(name, f"segment {index} ends {offset + file_bytes - len(data)} bytes after the file does")
        content = memoryview(data)[offset : offset + file_bytes]
        if kind == _PT_NOTE:
            pvh_entry = _pvh_entry(content, alignment) if pvh_entry is None else pvh_entry
        elif memory_bytes < file_bytes:
            raise _damaged(name, f"segment {index} is larger in the file than in memory")
        else:
            segments.append(Segment(paddr, vaddr, memory_bytes, content))
    if not segments:
        raise ImageError(f"{name} has no segment to load.", "Give the linked kernel (vmlinux) or a bzImage.")
    return ElfKernel(_physical(entry, segments, name), pvh_entry, tuple(segments), 64 if wide else 32)


def load(memory: GuestMemory, kernel: ElfKernel, name: str) -> None:
    """Copies the segments to their physical addresses.  Raises UserError where there is no free RAM."""
    for segment in kernel.segments:
        if segment.paddr < layout.HIGH_MEMORY_ADDR:
            raise ImageError(
                f"{name} wants to be loaded at {segment.paddr:#x}, where boot data and firmware tables live.",
                "Link the kernel to load at 1 MiB (0x100000) or above.",
            )
        # The page tables and a 32-bit entry reach 4 GiB only.
        if segment.end > layout.LOW_RAM_END or not memory.contains(segment.paddr, segment.memory_bytes):
            raise too_large(name, segment.paddr, segment.memory_bytes, memory)
    for segment in kernel.segments:
        memory.write(segment.paddr, segment.data)
        _clear(memory, segment.paddr + len(segment.data), segment.end)


def _clear(memory: GuestMemory, base: int, end: int) -> None:
    for guest_addr in range(base, end, MIB):
        memory.write(guest_addr, bytes(min(MIB, end - guest_addr)))


def too_large(name: str, base: int, size_bytes: int, memory: GuestMemory) -> UserError:
    """The error for a kernel that does not fit the machine's RAM."""
    return UserError(
        f"{name} needs {format_size(size_bytes)} at {base:#x}, but the machine has {format_size(memory.size_bytes)} of memory.",
        f"Give the machine more memory, for example --memory {max(256, 2 * (base + size_bytes >> 20))}M."
        if base + size_bytes < layout.LOW_RAM_END
        else "Link the kernel to load below 3 GiB.",
    )


def _physical(entry: int, segments: list[Segment], name: str) -> int:
    """Linux gives a physical e_entry, other kernels the virtual address that they are linked for."""
    if any(segment.paddr <= entry < segment.end for segment in segments):
        return entry
    for segment in segments:
        if segment.vaddr <= entry < segment.vaddr + segment.memory_bytes:
            return entry - segment.vaddr + segment.paddr
    raise _damaged(name, f"its entry point {entry:#x} lies outside of every segment")


def _pvh_entry(notes: memoryview, alignment: int) -> int | None:
    for owner, kind, content in _notes(notes, 8 if alignment == 8 else 4):
        if owner == b"Xen" and kind == _XEN_PHYS32_ENTRY and len(content) in (4, 8):
            return int.from_bytes(content, "little") & 0xFFFF_FFFF
    return None


def _notes(notes: memoryview, alignment: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(owner, type, content) of every whole note."""
    offset = 0
    while offset + _NOTE_HEADER.size <= len(notes):
        name_bytes, content_bytes, kind = _NOTE_HEADER.unpack_from(notes, offset)
        name_at = offset + _NOTE_HEADER.size
        content_at = -(-(name_at + name_bytes) // alignment) * alignment
        if content_at + content_bytes > len(notes):
            return
        owner = bytes(notes[name_at : name_at + name_bytes]).rstrip(b"\0")
        yield owner, kind, bytes(notes[content_at : content_at + content_bytes])
        offset = -(-(content_at + content_bytes) // alignment) * alignment


def _damaged(name: str, why: str) -> ImageError:
    return ImageError(f"{name} is not a usable ELF kernel: {why}.", "Copy or build the file again; it may be cut short.")
