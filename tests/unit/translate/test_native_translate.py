"""The native translator against the Python one: every byte and every table entry, over the code of this host's own programs."""

from __future__ import annotations

import ctypes
import platform
import random
import struct
import sys
from pathlib import Path

import iced_x86 as iced
import pytest
from elftools.elf.elffile import ELFFile

from ringfence.engine.emulate import shared_store
from ringfence.memory.guest_memory import GuestMemory
from ringfence.translate import image
from ringfence.translate.block import Translator
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.layout import BLOCK_BYTES, BLOCKS, FRONT_BYTES, HASH, HASH_ENTRIES, PAGES, REGIONS
from ringfence.translate.native_layout import NT
from ringfence.translate.native_tables import NativeTables
from ringfence.translate.runtime import MODE_FP_SLOW

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="translated code is that of an x86-64 host")

RAM_BYTES = 16 << 20
KERNEL_BASE = 0xFFFFFFFF81000000
_U64 = ctypes.c_uint64


class Bench:
    """One code region, guest RAM with code in it, and both translators on them."""

    def __init__(self, path: Path, code: bytes) -> None:
        self.ram = GuestMemory()
        self.region = self.ram.add_ram(0, RAM_BYTES)
        self.region.view[: len(code)] = code
        self.memory = memory = CodeMemory(RAM_BYTES // 4096)
        self.store = shared_store()
        symbols = image.place_runtime(memory, self.store)
        for n, value in enumerate((0, RAM_BYTES, self.region.host_addr, 0)):
            memory.put(REGIONS + 8 * n, value)
        memory.put_word("code_rx", memory.rx)
        memory.put_word("code_rw_delta", memory.rw - memory.rx)
        self.translator = t = Translator(memory, self.store, symbols)
        t.tables = NativeTables(memory, symbols, {"settle": t.settle, "leap": t.leap, "defer": t._defer}, path)
        memory.put(NT["enabled"], 1)
        ctypes.CFUNCTYPE(_U64, _U64)(memory.rx + symbols["initialize"])(memory.cpu)
        self._native = ctypes.CFUNCTYPE(_U64, _U64, _U64, _U64, _U64)(memory.rx + symbols["translate_block"])

    def native(self, ra: int, mode: int) -> int:
        return int(self._native(self.memory.cpu, self.region.host_addr + ra, ra, mode))

    def python(self, va: int, ra: int, mode: int) -> bool:
        page = self.region.view[ra & ~0xFFF : (ra & ~0xFFF) + 4096]
        return self.translator.translate(va, ra, mode, page, None)

    def run(self, va: int, ra: int, mode: int, native: bool) -> tuple[object, ...] | None:
        """Translates and says what has changed; None if nothing was translated.  The block is forgotten again."""
        memory, state = self.memory, self.memory.state
        hot, cold, index = memory.hot, memory.cold, memory.next_block
        slot = FRONT_BYTES + HASH + 4 * ((ra ^ ra >> 14 ^ mode * 0x1F35) & HASH_ENTRIES - 1)
        entry = FRONT_BYTES + PAGES + 16 * (ra >> 12)
        record = FRONT_BYTES + BLOCKS + BLOCK_BYTES * index
        kept = [(at, bytes(state[at : at + size])) for at, size in ((slot, 4), (entry, 16), (record, BLOCK_BYTES))]
        done = bool(self.native(ra, mode)) if native else self.python(va, ra, mode)
        result = None
        if done:
            assert memory.next_block == index + 1
            at = struct.unpack_from("<I", state, record + 8)[0]
            assert at % 8 == 0
            result = (
                memory.hot,
                memory.cold,
                struct.unpack_from("<I", memory.code, at - 8)[0],
                bytes(memory.code[at : memory.hot]),
                bytes(memory.code[cold + 7 & -8 : memory.cold]),
                *(bytes(state[place : place + len(old)]) for place, old in kept),
            )
            memory.code[at - 8 : memory.hot] = bytes(memory.hot - at + 8)
            memory.code[cold : memory.cold] = b"\xcc" * (memory.cold - cold)
        for place, old in kept:
            state[place : place + len(old)] = old
        memory.hot, memory.cold, memory.next_block = hot, cold, index
        return result

    def compare(self, va: int, ra: int, mode: int) -> bool | None:
        """Whether the native translator did the block; None if the Python one could not either."""
        expected = self.run(va, ra, mode, native=False)
        found = self.run(va, ra, mode, native=True)
        if expected is None:
            assert found is None
            return None
        if found is not None:
            assert found == expected, f"block at {va:#x}, mode {mode}"
        # The next block lies elsewhere, so that all alignments come up.
        self.memory.hot += random.Random(va).randrange(64)
        self.memory.cold += random.Random(va).randrange(64)
        return found is not None


def text_of(path: Path) -> tuple[int, bytes]:
    """Address and bytes of a program's code."""
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".text")
        return section["sh_addr"], section.data()[: RAM_BYTES - 8192]


def block_starts(code: bytes, va: int, count: int, seed: int) -> list[int]:
    """Offsets of instructions, and a few in the middle of them."""
    choice = random.Random(seed)
    starts: list[int] = []
    while len(starts) < count:
        first = choice.randrange(max(1, len(code) - 4096))
        source = iced.Decoder(64, code[first : first + 512], ip=va + first)
        inside = [insn.ip - va for insn in source if insn.code != iced.Code.INVALID]
        starts += choice.sample(inside, min(4, len(inside)))
        starts.append(choice.choice(inside) + 1 if inside else first)
    return starts[:count]


def own_program() -> Path:
    """A large program of this host: the C library, or the interpreter."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split()[-1]
        if "/libc.so" in path or "/libc-2" in path:
            return Path(path)
    return Path(sys.executable).resolve()


def walk(bench: Bench, starts: list[int], va: int, modes: tuple[int, ...]) -> tuple[int, int]:
    done = left = 0
    for k, offset in enumerate(starts):
        result = bench.compare(va + offset, (va & 0xFFF) + offset, modes[k % len(modes)])
        if result is not None:
            done += result
            left += not result
    return done, left


MODES = (0, 1, 2, MODE_FP_SLOW, 1 | MODE_FP_SLOW)


def test_same_bytes_as_the_python_translator(tmp_path: Path) -> None:
    """Once while it learns, once from what it kept."""
    va, code = text_of(own_program())
    starts = block_starts(code, va, 250, seed=1)
    path = tmp_path / "blocks.bin"
    bench = Bench(path, bytes(va & 0xFFF) + code)
    done, left = walk(bench, starts, va, MODES)
    assert left <= done // 5, "too many blocks were left to Python"  # VEX encodings, which the CPU model does not have
    assert bench.translator.tables is not None
    bench.translator.tables.save()
    again = Bench(path, bytes(va & 0xFFF) + code)
    before = again.memory.get(NT["blocks"])
    assert sum(bool(again.run(va + s, (va & 0xFFF) + s, MODES[k % len(MODES)], native=True)) for k, s in enumerate(starts)) >= done // 2
    assert again.memory.get(NT["blocks"]) > before
    assert walk(again, starts, va, MODES) == (done, left)
