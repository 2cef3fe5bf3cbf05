"""What the native translator knows: recipes and templates packed into flat tables by Python.

What was learnt (native_learning.py) is kept in the user's cache as the bytes that the tables are, so that the next start maps them: it
touches what it uses, and machines that run at the same time share them.  Formats: native_layout.py.
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ringfence.core.cache_files import open_private, replace_file
from ringfence.core.errors import UserError
from ringfence.core.trace import tracer
from ringfence.core.units import PAGE_BYTES
from ringfence.isa.x86.models import DEFAULT, CpuModel
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.layout import FRONT_BYTES
from ringfence.translate.native_layout import (
    ESCAPE,
    FUNCTIONS,
    LEFT_TO_PYTHON,
    LITERALS,
    MAP_0F,
    MAP_LEGACY,
    MAP_ONE,
    MAX_NUMBERED,
    MODRM,
    NT,
    PIECES,
    PLAIN,
    PREFIX,
    RECIPE_HASH,
    RECORDS,
    REGISTERS,
    SYMBOLS,
    TABLES_BYTES,
)
from ringfence.translate.sources import BLOCKS, cache_path

trace = tracer("stencils")


class Unsuitable(Exception):
    """The native translator has no way to say this; Python translates blocks with it."""


def opcode_classes() -> bytes:
    """The classes of the one-byte opcodes in 64-bit mode, then of those behind 0F (SDM 2D appendix A)."""
    one = bytearray([PLAIN] * 256)
    for opcode in range(256):
        low = opcode & 7
        if (
            (opcode < 0x40 and low < 4)
            or opcode in (0x63, 0x69, 0x6B)
            or 0x80 <= opcode <= 0x8F
            or opcode in (0xC0, 0xC1, 0xC6, 0xC7, 0xF6, 0xF7, 0xFE, 0xFF)
            or 0xD0 <= opcode <= 0xD3
            or 0xD8 <= opcode <= 0xDF
        ):
            one[opcode] = MODRM
        elif opcode in (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3) or 0x40 <= opcode <= 0x4F:
            one[opcode] = PREFIX
    one[0x0F] = ESCAPE
    for opcode in (0x62, 0xC4, 0xC5):  # EVEX, VEX
        one[opcode] = LEFT_TO_PYTHON
    two = bytearray([MODRM] * 256)
    plain = (0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, *range(0x30, 0x38), 0x77, *range(0x80, 0x90), 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA)
    for opcode in (*plain, *range(0xC8, 0xD0)):
        two[opcode] = PLAIN
    two[0x38] = two[0x3A] = ESCAPE
    two[0x0F] = LEFT_TO_PYTHON  # 3DNow!
    two[0x20:0x24] = bytes([REGISTERS] * 4)  # MOV to and from CRn and DRn: SDM 2B, mod is ignored
    return bytes(one + two)


def legacy_classes() -> bytes:
    """The one-byte opcodes outside of 64-bit mode."""
    one = bytearray(opcode_classes()[:256])
    one[0x40:0x50] = bytes([PLAIN] * 16)
    for opcode in (0x62, 0x63, 0xC4, 0xC5):  # BOUND, ARPL, LES, LDS; with a register operand they are VEX and EVEX, which nobody enters
        one[opcode] = MODRM
    one[0x0F] = ESCAPE
    return bytes(one)


_MAGIC = b"RFblks\0\1"
_HEAD = struct.Struct("<8sIII")  # magic, bytes of the rest, bytes of the tables, crc32 of both, which follow; the tables on a page


class _Kept(NamedTuple):
    """A file of tables that is as it was written."""

    descriptor: int
    rest: Any  # functions, literals, places of the pieces, newest recipe, number of recipes
    tables_at: int
    tables_bytes: int


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Kept | None]:
    """The file at this path; None when there is none, or none to trust."""
    descriptor = open_private(path)
    if descriptor is None:
        yield None
        return
    try:
        try:
            kept = _checked(descriptor)
        except (ValueError, EOFError, TypeError) as error:
            kept = None
            if trace:
                trace("%s is damaged (%s): ignored", path, error)
        yield kept
    finally:
        os.close(descriptor)


def _checked(descriptor: int) -> _Kept:
    """Looks at the whole file; raises ValueError."""
    with mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as whole, memoryview(whole) as data:
        if len(data) < _HEAD.size:
            raise ValueError("header")
        magic, rest_bytes, tables_bytes, checksum = _HEAD.unpack_from(data)
        tables_at = _HEAD.size + rest_bytes
        if magic != _MAGIC or tables_at % PAGE_BYTES or len(data) != tables_at + tables_bytes:
            raise ValueError("header")
        with data[_HEAD.size :] as body:
            if zlib.crc32(body) != checksum or not RECORDS - RECIPE_HASH <= tables_bytes <= TABLES_BYTES - RECIPE_HASH:
                raise ValueError("checksum")
        return _Kept(descriptor, marshal.loads(data[_HEAD.size : tables_at]), tables_at, tables_bytes)


class NativeTables:
    """The tables of one vCPU, as an earlier run has left them; `Learner` enters more."""

    def __init__(self, memory: CodeMemory, symbols: dict[str, int], path: Path | None = None, model: CpuModel = DEFAULT) -> None:
        self.memory = memory
        self.base = memory.tables  # offset in the state block
        self.changed = False
        self.functions: dict[Any, int] = {}  # numbers of forms, or of the tuples that they are
        self.literals: dict[bytes, int] = {}
        self.end = RECORDS
        self.last = 0
        self.count = 0

        memory.put(NT["tables"], self.base - FRONT_BYTES)
        for name in SYMBOLS:
            memory.put(NT[name], symbols[name])
        memory.state[self.base + MAP_ONE : self.base + MAP_ONE + 512] = opcode_classes()
        assert MAP_0F == MAP_ONE + 256
        memory.state[self.base + MAP_LEGACY : self.base + MAP_LEGACY + 256] = legacy_classes()
        self.model = model
        self._path = path or cache_path("blocks" if model is DEFAULT else f"blocks-{model.name}", BLOCKS)
        with _opened(self._path) as kept:
            if kept is not None:
                self._load(kept)

    # ---- the file
    def _load(self, kept: _Kept) -> None:
        functions, literals, pieces, self.last, self.count = kept.rest
        if not self.memory.lay(self.base + RECIPE_HASH, kept.descriptor, kept.tables_at, kept.tables_bytes):
            raise UserError("The host has no room to map the translator's tables.", "Look at `sysctl vm.max_map_count`.")
        self.end = RECIPE_HASH + kept.tables_bytes
        self.functions = {form: number for number, form in enumerate(functions, 1)}
        places = [self.memory.natives.get(form, 0) for form in self.functions]
        struct.pack_into(f"<{len(places)}I", self.memory.state, self.base + FUNCTIONS + 4, *places)
        for data in literals:
            self.literal(data)
        for name, offset in zip(PIECES, pieces, strict=True):
            self.memory.put(NT[name], offset)
        self.memory.put(NT["last_recipe"], self.last)

    def save(self) -> None:
        """Keeps what was learnt for the next run."""
        if not self.changed:
            return
        with _opened(self._path) as kept:
            if kept is not None and kept.rest[-1] > self.count:
                return  # another process has learnt more meanwhile; what only this one met is learnt again when it is met
        functions = [(*form[:3], tuple(form[3]), *form[4:]) for form in self.functions]
        pieces = [self.memory.get(NT[name]) for name in PIECES]
        rest = marshal.dumps((functions, list(self.literals), pieces, self.last, self.count))
        rest += bytes(-(_HEAD.size + len(rest)) % PAGE_BYTES)
        tables = bytes(self.memory.state[self.base + RECIPE_HASH : self.base + self.end])
        head = _HEAD.pack(_MAGIC, len(rest), len(tables), zlib.crc32(tables, zlib.crc32(rest)))
        if replace_file(self._path, (head, rest, tables)):
            self.changed = False

    def enter_function(self, number: int, place: Callable[[Any], int]) -> bool:
        """Enters where the native function of this number is, which `place` tells from its form; False where none has it.

        A form that comes from the file is the tuples that it is."""
        form = next((f for f, n in self.functions.items() if n == number), None)
        if form is None:
            return False
        struct.pack_into("<I", self.memory.state, self.base + FUNCTIONS + 4 * number, place(form))
        return True

    def literal(self, data: bytes) -> int:
        """The number of read-only bytes that templates refer to."""
        number = self.literals.get(data)
        if number is None:
            number = len(self.literals)
            if number >= MAX_NUMBERED:
                raise Unsuitable("no room")
            self.literals[data] = number
            struct.pack_into("<I", self.memory.state, self.base + LITERALS + 4 * number, self.memory.constant(data))
        return number
