"""Which guest code is compiled as regions: samples in, compiled regions placed among the blocks.

The run time samples what is executed (translate/native_regions.py).  Where samples pile up on a page, the loops around its hottest
block are compiled in another process, or found in the store, and take the place of the blocks that they begin with.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from ringfence.core.late import LateModule
from ringfence.core.trace import tracer
from ringfence.core.units import PAGE_BYTES
from ringfence.isa.x86.modes import LONG
from ringfence.translate.code_memory import COLD_START, CodeMemory
from ringfence.translate.layout import BLOCK_BYTES, FRONT_BYTES, HASH_ENTRIES, MAX_BLOCKS, STORES, TLB, TLB_MASK, TLB_TABLE_BYTES
from ringfence.translate.native_blocks import BLOCK_REGION
from ringfence.translate.native_codes import MODE_TABLE
from ringfence.translate.native_layout import MAX_SAMPLES, SAMPLE_BYTES, SAMPLE_COUNT, SAMPLES
from ringfence.translate.objects import place

if TYPE_CHECKING:
    from ringfence.translate import region_compiler, region_store
else:  # few runs are long enough to need them
    region_compiler = LateModule("ringfence.translate.region_compiler")
    region_store = LateModule("ringfence.translate.region_store")

trace = tracer("regions")

HOT_SAMPLES = 60  # on a page, each worth 200,000 instructions, before LLVM is asked
# Of all hot pages together before its process is started where the vCPU would have to wait for it: it takes 0.2 s of the only CPU.
START_SAMPLES = 1000
PAGES_BEHIND = 1  # sent at once; others when they are asked for
MAX_PAGES = 6  # of one region
MAX_ASKED = 1 << 16
MAX_PAGES_COUNTED = 4096
MAX_PENDING = 8  # requests that wait for the compiler
MAX_INSTALLS = 8  # of one place: a guest that changes its code all the time has no use for regions
PAGES_SYMBOL = "region_pages"
STUBS = ("s_region_one", "s_region_budget", "s_region_fill", "s_region_settle", "s_lookup")
_SAMPLE = struct.Struct("<QQQ")
_HEAD = struct.Struct("<Bi3s")
ROOM_BYTES = 1 << 20  # left for blocks


class RunTime(Protocol):
    """The native functions that are called here, with the vCPU pointer first."""

    def kill_block(self, cpu: int, index: int) -> int: ...
    def protect_page(self, cpu: int, ra: int) -> int: ...
    def ram_offset(self, cpu: int, host: int) -> int: ...


class Memory(Protocol):
    """The bytes of a page of RAM, by its number in the flat numbering."""

    def __call__(self, number: int) -> memoryview: ...


class Still(Protocol):
    """While it lasts, stretches of RAM (RAM offset and size, none over a page's end) stay as they are, and so do all tables."""

    def __call__(self, places: Sequence[tuple[int, int]]) -> AbstractContextManager[None]: ...


class Regions:
    """Of all vCPUs of a machine; one of their threads at a time.

    `code` is that of the vCPU whose samples are looked at; `still` keeps other vCPUs away, where there are any.
    """

    def __init__(self, code: CodeMemory, native: RunTime, model: str, symbols: dict[str, int], page: Memory, keep: bool) -> None:
        self.code = code
        self.still: Still = lambda places: nullcontext()
        self._native = native
        self._model = model
        self._symbols = symbols
        self._page = page
        self._keep = keep
        self._hits: dict[tuple[int, int], Counter[int]] = {}  # (page, mode) -> offset -> samples
        self._asked: set[tuple[int, int]] = set()  # blocks that have been asked for, or are part of a region
        self._installs: Counter[tuple[int, int]] = Counter()
        self._requested: dict[int, tuple[int, int, region_compiler.Request]] = {}
        self._pending: set[tuple[int, int]] = set()  # pages and modes that the compiler is busy with
        self._answers: deque[tuple[int, region_compiler.Answer]] = deque()
        self._number = 0
        self._start_samples = 0 if len(os.sched_getaffinity(0)) > 1 else START_SAMPLES
        self._compiler: region_compiler.Compiler | None = None
        self._store: region_store.RegionStore | None = None
        self._newest = 0  # number of the last region's last record
        self.max_installs = MAX_INSTALLS
        self.figures = {"compiled": 0, "placed": 0, "from_store": 0, "refused": 0}

    # ---- samples
    def take(self) -> None:
        """Looks at a full table of samples."""
        code = self.code
        if self._store is None:
            self._store = region_store.RegionStore(self._model, self._keep)
        raw = code.state[FRONT_BYTES + SAMPLES : FRONT_BYTES + SAMPLES + MAX_SAMPLES * SAMPLE_BYTES]
        code.put(SAMPLE_COUNT, 0)
        if code.next_block < self._newest:  # the whole cache of code was dropped, and regions with it
            self._asked.clear()
            self._newest = 0
        self.receive()
        for va, ra, mode in set(_SAMPLE.iter_unpack(raw)):
            if mode & ~MODE_TABLE or (ra, mode) in self._asked:
                continue  # other modes, and floating point that must be exact
            self._from_store(va, ra, mode)
        for va, ra, mode in _SAMPLE.iter_unpack(raw):
            if mode & ~MODE_TABLE or (ra, mode) in self._asked:
                continue
            if len(self._hits) > MAX_PAGES_COUNTED:
                self._hits.clear()  # what is hot is soon counted again
            hits = self._hits.setdefault((ra >> 12, mode), Counter())
            hits[ra & 0xFFF] += 1
            if hits.total() < HOT_SAMPLES:
                continue
            self._start_samples -= 1
            if self._start_samples < 0 and not self._is_pending(ra >> 12, mode) and len(self._pending) < MAX_PENDING:
                offset = hits.most_common(1)[0][0]
                if offset == ra & 0xFFF:
                    del self._hits[ra >> 12, mode]
                    self._request(va, ra, mode)

    def _is_pending(self, page: int, mode: int) -> bool:
        """Whether the compiler is busy with this page or one beside it: a loop may be on both."""
        return any((page + k, mode) in self._pending for k in (-1, 0, 1))

    def _request(self, va: int, ra: int, mode: int) -> None:
        if len(self._asked) > MAX_ASKED:
            self._asked.clear()
        self._asked.add((ra, mode))
        pages = {k: bytes(self._page(number)) for k, number in self._neighbours(va, ra, mode).items()}
        request = region_compiler.Request(pages, ra & 0xFFF, LONG, mode & MODE_TABLE, self._model, False)
        assert self._store is not None
        if self._store.is_refused(request):
            self.figures["refused"] += 1
            return
        if self._compiler is None:
            self._compiler = region_compiler.Compiler(lambda number, answer: self._answers.append((number, answer)))
        self._submit(va, ra, request)

    def _submit(self, va: int, ra: int, request: region_compiler.Request) -> None:
        assert self._compiler is not None
        self._number += 1
        self._requested[self._number] = (va, ra, request)
        self._pending.add((ra >> 12, request.table))
        self._compiler.submit(self._number, request)
        if trace:
            trace("region %d is asked for, around %#x", self._number, ra)

    def _fetch(self, va: int, ra: int, request: region_compiler.Request, wanted: tuple[int, ...]) -> None:
        """Asks again with those of the wanted pages that the TLB knows."""
        pages = dict(request.pages)
        for k in wanted:
            if len(pages) < MAX_PAGES:
                number = self._executable((va & ~0xFFF) + k * PAGE_BYTES, request.table)
                if number is not None:
                    pages[k] = bytes(self._page(number))
        final = len(pages) == len(request.pages) or len(pages) == MAX_PAGES
        self._submit(va, ra, request._replace(pages=pages, final=final))

    def _neighbours(self, va: int, ra: int, mode: int) -> dict[int, int]:
        """Numbers of the RAM pages around, as far as the TLB knows them as code."""
        found = {0: ra >> 12}
        for k in range(1, PAGES_BEHIND + 1):
            number = self._executable((va & ~0xFFF) + k * PAGE_BYTES, mode)
            if number is not None:
                found[k] = number
        return found

    def _executable(self, va: int, mode: int) -> int | None:
        if not 0 <= va < 1 << 64:
            return None
        entry = TLB + (mode & MODE_TABLE) * TLB_TABLE_BYTES + (va >> 7 & TLB_MASK)
        if self.code.get(entry + 16) != va:
            return None
        ra = self._native.ram_offset(self.code.cpu, va + self.code.get(entry + 24) & (1 << 64) - 1)
        return None if ra == (1 << 64) - 1 else ra >> 12

    def compile_now(self, va: int, ra: int, mode: int) -> bool:
        """Compiles the loops around an instruction in this process and places them: whether there are any.  For tests."""
        pages = {k: bytes(self._page(number)) for k, number in self._neighbours(va, ra, mode).items()}
        request = region_compiler.Request(pages, ra & 0xFFF, LONG, mode & MODE_TABLE, self._model, True)
        answer = region_compiler.compile_region(request)
        if not isinstance(answer, region_compiler.CompiledRegion):
            return False
        return self._place_if_same(answer, va & ~0xFFF, ra >> 12, mode)

    # ---- compiled code
    def receive(self) -> None:
        """Places what the compiler has sent."""
        while self._answers:
            number, answer = self._answers.popleft()
            va, ra, request = self._requested.pop(number)
            self._pending.discard((ra >> 12, request.table))
            if answer is None:
                self.figures["refused"] += 1
                if not request.final and self._store is not None:
                    self._store.refuse(request)
                if trace:
                    trace("region %d is refused", number)
                continue
            if not isinstance(answer, region_compiler.CompiledRegion):
                self._fetch(va, ra, request, answer)
                continue
            self.figures["compiled"] += 1
            assert self._store is not None
            self._store.add(answer)
            mode = answer.table
            self._place_if_same(answer, va & ~0xFFF, ra >> 12, mode)

    def _from_store(self, va: int, ra: int, mode: int) -> None:
        assert self._store is not None
        offset = ra & 0xFFF
        data = bytes(self._page(ra >> 12)[offset : offset + region_store.NAME_BYTES])
        for region, page in self._store.find(mode & MODE_TABLE, offset, data):
            if self._place_if_same(region, (va & ~0xFFF) - page * PAGE_BYTES, None, mode):
                self.figures["from_store"] += 1
                return

    def _place_if_same(self, region: region_compiler.CompiledRegion, base: int, seed: int | None, mode: int) -> bool:
        """Places a region whose seed's page is at linear address `base`, if the guest has the same bytes there now."""
        numbers: dict[int, int] = {}
        for at, _ in region.content:
            k = at >> 12
            number = seed if k == 0 and seed is not None else self._executable(base + k * PAGE_BYTES, mode)
            if number is None:
                return False
            numbers[k] = number
        if not self._is_same(region, numbers):  # nobody is held up for these
            return False
        with self.still([(numbers[at >> 12] << 12 | at & 0xFFF, len(data)) for at, data in region.content]):
            return self._is_same(region, numbers) and self._place(region, numbers, mode)

    def _is_same(self, region: region_compiler.CompiledRegion, numbers: dict[int, int]) -> bool:
        return all(self._page(numbers[at >> 12])[at & 0xFFF : (at & 0xFFF) + len(data)] == data for at, data in region.content)

    def _place(self, region: region_compiler.CompiledRegion, numbers: dict[int, int], mode: int) -> bool:
        code = self.code
        table_bytes = 8 * len(region.pages) + 63 & -64
        start = code.hot + 63 & -64
        end = start + table_bytes + len(region.code[0]) + 16 * (len(region.entries) + 2)
        records = len(region.entries) + len(region.content)
        if end > COLD_START - ROOM_BYTES or code.next_block + records >= MAX_BLOCKS - 64:
            return False
        first = numbers[region.entries[0] >> 12] << 12 | region.entries[0] & 0xFFF
        if self._installs[first, mode] >= self.max_installs:
            return False
        self._installs[first, mode] += 1
        table = b"".join(struct.pack("<Q", self._host_page(numbers[k])) for k in region.pages)
        externals = {name: self._symbols[name] for name in STUBS} | {PAGES_SYMBOL: start}
        image, symbols = place(region.code, start + table_bytes, externals)
        code.code[start : start + len(table)] = table
        code.code[start + table_bytes : start + table_bytes + len(image)] = image
        code.hot = start + table_bytes + len(image)
        entries = []
        for k, at in enumerate(region.entries):
            ra = numbers[at >> 12] << 12 | at & 0xFFF
            entries.append(self._enter_head(ra, mode, start + table_bytes + symbols[f"entry{k}"]))
        for index, following in zip(entries, [*entries[1:], 0], strict=True):
            self._describe(index, entries[0], following)
        for at, data in region.content:
            index = self._record(numbers[at >> 12] << 12 | at & 0xFFF, len(data), mode, 0)
            self._describe(index, entries[0], 0)
        self.figures["placed"] += 1
        self._newest = code.next_block
        for at in region.blocks:
            self._asked.add((numbers[at >> 12] << 12 | at & 0xFFF, mode))
        if trace:
            trace("region of %d instructions at %#x placed, %d entries", region.instructions, first, len(entries))
        return True

    def _host_page(self, number: int) -> int:
        """Where a page of RAM lies in this process."""
        code = self.code
        at = STORES
        while end := code.get(at + 8):
            start, first = code.get(at), code.get(at + 16)
            if first <= number < first + (end - start >> 12):
                return start + (number - first << 12)
            at += 32
        raise IndexError(number)

    def _enter_head(self, ra: int, mode: int, target: int) -> int:
        """Makes the block that begins at `ra` go on at `target`; returns the number of its record.  It can be found before the old
        one's head is dead, or another vCPU that meets that head would translate the block once more."""
        code = self.code
        old = self._find(ra, mode)
        origin = (code.hot + 15 & -16) + 8
        head = _HEAD.pack(0xE9, target - (origin + 5), b"\x90\x90\x90")
        struct.pack_into("<I", code.code, origin - 8, code.next_block)
        code.code[origin : origin + 8] = head
        code.hot = origin + 8
        index = self._record(ra, 1, mode, origin)
        slot = self._slot(ra, mode)
        code.blocks32[index * (BLOCK_BYTES // 4) + 7] = code.hash32[slot]
        code.hash32[slot] = index
        if old:
            self._native.kill_block(code.cpu, old)
            at = code.blocks32[old * (BLOCK_BYTES // 4) + 2]
            # At once, as it may be executed; and only the first instruction: another vCPU may stand before the second one of the old head.
            jump = _HEAD.pack(0xE9, origin - (at + 5), bytes(code.code[at + 5 : at + 8]))
            ctypes.c_uint64.from_buffer(code.code, at).value = int.from_bytes(jump, "little")
        return index

    def _slot(self, ra: int, mode: int) -> int:
        return (ra ^ ra >> 14 ^ mode * 0x1F35) & HASH_ENTRIES - 1

    def _find(self, ra: int, mode: int) -> int:
        """As find_block of native_blocks.py."""
        blocks = self.code.blocks32
        index = self.code.hash32[self._slot(ra, mode)]
        while index:
            b = index * (BLOCK_BYTES // 4)
            if blocks[b] | blocks[b + 1] << 32 == ra and blocks[b + 8] == mode:
                return index
            index = blocks[b + 7]
        return 0

    def _record(self, ra: int, size: int, mode: int, origin: int) -> int:
        """A record of `size` bytes of guest code, in its page's list."""
        code = self.code
        index = code.next_block
        code.next_block = index + 1
        b = index * (BLOCK_BYTES // 4)
        page, first = ra >> 12, ra & 0xFFF
        last = first + size - 1
        old = code.pages64[page * 2]
        head = code.pages32[page * 4 + 2]
        fields = (ra & 0xFFFFFFFF, ra >> 32, origin, 8, size, 0, head, 0, mode, BLOCK_REGION)
        for n, value in enumerate(fields):
            code.blocks32[b + n] = value
        code.pages64[page * 2] = old | (1 << (last >> 6) - (first >> 6) + 1) - 1 << (first >> 6)
        code.pages32[page * 4 + 2] = index
        if not old:
            self._native.protect_page(code.cpu, page << 12)
        return index

    def _describe(self, index: int, first_entry: int, next_entry: int) -> None:
        b = index * (BLOCK_BYTES // 4)
        self.code.blocks32[b + 10] = first_entry
        self.code.blocks32[b + 11] = 0
        self.code.blocks32[b + 13] = next_entry

    def keep(self) -> None:
        """In the user's cache, for the next run."""
        if self._store is not None:
            self._store.save()

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()
        self.keep()
