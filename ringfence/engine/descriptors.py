"""Descriptors, segment registers and pushed frames for the transfers that the engine's Python side carries out.

What `isa/x86/segments.py` is to instruction bodies (SDM 3A 3.4.5, 3.5, 5.3-5.7).  Reading and checking raise GuestFault with
nothing changed.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ringfence.engine.vcpu_state import VcpuState
from ringfence.ir.fault import GuestFault
from ringfence.isa.x86.hidden import hidden_words
from ringfence.isa.x86.vectors import SS

MASK32 = 0xFFFFFFFF
MASK64 = (1 << 64) - 1
LMA = 1 << 10
NULL = 0xFFFC  # bits of a selector that are 0 in the null selector
V86_ATTR = 0xF3  # present, DPL 3, writable data: CS as well (SDM 3A 20.1.1, 20.2.1)
_ACCESSED = 1


class Memory(Protocol):
    """What transfers need of guest memory (`assist.LinearMemory`)."""

    def load(self, address: int, size: int, write: bool, system: bool = False) -> int: ...

    def store(self, address: int, size: int, value: int, system: bool = False) -> None: ...

    def refresh(self) -> None:
        """Acts on the state's `request` now, so that later accesses go through new page tables or with new rights."""


class Descriptor(NamedTuple):
    """The first 8 bytes of a descriptor, and where they were read."""

    value: int
    address: int
    selector: int

    @property
    def kind(self) -> int:
        """S and type: bits 44-40."""
        return self.value >> 40 & 0x1F

    @property
    def dpl(self) -> int:
        return self.value >> 45 & 3

    @property
    def present(self) -> int:
        return self.value >> 47 & 1

    @property
    def base(self) -> int:
        return self.value >> 16 & 0xFFFFFF | self.value >> 32 & 0xFF000000

    @property
    def limit(self) -> int:
        raw = self.value & 0xFFFF | self.value >> 32 & 0xF0000
        return raw << 12 | 0xFFF if self.value >> 55 & 1 else raw

    @property
    def attr(self) -> int:
        return self.value >> 40 & 0xFF | self.value >> 44 & 0xF00

    @property
    def error(self) -> int:
        """The error code that names it."""
        return self.selector & NULL

    @property
    def is_code(self) -> bool:
        return self.kind & 0x18 == 0x18

    @property
    def conforming(self) -> bool:
        return self.kind & 0x1C == 0x1C

    @property
    def is_writable_data(self) -> bool:
        return self.kind & 0x1A == 0x12

    @property
    def is_readable(self) -> bool:
        return self.kind & 0x18 == 0x10 or self.kind & 0x1A == 0x1A


class Segments:
    """The segment registers of one vCPU and the tables they are loaded from."""

    def __init__(self, state: VcpuState, memory: Memory) -> None:
        self.state = state
        self.memory = memory

    def linear(self, address: int) -> int:
        """A sum as linear address: 32 bits wide outside of long mode."""
        return address & (MASK64 if self.state["efer"] & LMA else MASK32)

    def read(self, selector: int, vector: int, ext: int = 0) -> Descriptor:
        """The selector's descriptor; faults with `vector` where it is null or beyond its table."""
        state, index = self.state, selector & 0xFFF8
        if not selector & NULL:
            raise GuestFault(vector, ext)
        base, limit = state["gdtr_base"], state["gdtr_limit"]
        if selector & 4:
            base, limit = state["ldtr_base"], state["ldtr_limit"] if state["ldtr"] & NULL else -1
        if index + 7 > limit:
            raise GuestFault(vector, selector & NULL | ext)
        address = self.linear(base + index)
        return Descriptor(self.memory.load(address, 8, False, True), address, selector)

    def mark_accessed(self, d: Descriptor) -> Descriptor:
        """Sets the descriptor's accessed bit in its table (SDM 3A 3.4.5.1)."""
        if not d.value >> 40 & _ACCESSED:
            self.memory.store(d.address + 5, 1, d.value >> 40 & 0xFF | _ACCESSED, True)
        return d._replace(value=d.value | _ACCESSED << 40)

    def put(self, name: str, selector: int, base: int, limit: int, attr: int) -> None:
        """Loads a segment register, hidden part and what follows from that included.  The caller asks for the new mode."""
        state = self.state
        for suffix, value in (("", selector), ("_base", base), ("_limit", limit), ("_attr", attr)):
            state[name + suffix] = value
        for suffix, value in zip(("_rlimit", "_wlimit", "_unflat"), hidden_words(name, base, limit, attr, False), strict=True):
            state[name + suffix] = value

    def load(self, name: str, selector: int, d: Descriptor) -> None:
        """Loads a segment register from a descriptor that was checked."""
        self.put(name, selector, d.base, d.limit, d.attr)

    def unusable(self, name: str, selector: int) -> None:
        """The selector alone: null, or its descriptor was not loaded."""
        self.put(name, selector, 0, 0, 0)

    def paragraph(self, name: str, selector: int) -> None:
        """As virtual-8086 mode has it."""
        self.put(name, selector, selector << 4, 0xFFFF, V86_ATTR)


def check_offset(offset: int, size: int, limit: int, attr: int, vector: int, error: int) -> None:
    """Raises GuestFault unless `size` bytes at `offset` lie within a data segment (SDM 3A 5.3)."""
    end = offset + size - 1
    if attr & 0xC == 4:  # expand-down
        if offset <= limit or end > (MASK32 if attr >> 10 & 1 else 0xFFFF):
            raise GuestFault(vector, error)
    elif end > limit:
        raise GuestFault(vector, error)


class Frame:
    """Values on their way to one stack: checked while they are added, written all at once.

    `wide`: a 64-bit stack, which has no limit.  `error`: error code of #SS where there is no room.
    """

    def __init__(self, base: int, limit: int, attr: int, sp: int, error: int, wide: bool = False) -> None:
        self._base, self._limit, self._attr, self._error, self._wide = base, limit, attr, error, wide
        self._mask = MASK64 if wide else MASK32 if attr >> 10 & 1 else 0xFFFF
        self._high = sp & ~self._mask
        self._sp = sp & self._mask
        self._stores: list[tuple[int, int, int]] = []

    @property
    def sp(self) -> int:
        """The stack pointer below what was added; of a 16-bit stack the upper bits stay."""
        return self._high | self._sp

    def push(self, value: int, size: int) -> None:
        self._sp = self._sp - size & self._mask
        if self._wide:
            self._stores.append((self._sp, size, value))
            return
        check_offset(self._sp, size, self._limit, self._attr, SS, self._error)
        self._stores.append((self._base + self._sp & MASK32, size, value & (1 << 8 * size) - 1))

    def probe(self, memory: Memory, system: bool) -> None:
        """Faults unless everything can be written."""
        for address, size, _ in self._stores:
            memory.load(address, size, True, system)

    def write(self, memory: Memory, system: bool) -> None:
        """`system`: with the rights of an inner level."""
        self.probe(memory, system)
        for address, size, value in self._stores:
            memory.store(address, size, value, system)
