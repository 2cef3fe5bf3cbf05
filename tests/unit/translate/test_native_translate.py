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
from ringfence.translate.layout import (
    BLOCK_BYTES,
    BLOCKS,
    FIELDS,
    FRONT_BYTES,
    HASH,
    HASH_ENTRIES,
    JUMP_CACHE,
    MAX_BLOCKS,
    PAGES,
    PIECES,
    STORES,
    TLB,
)
from ringfence.translate.native_codes import MODE_FP_SLOW
from ringfence.translate.native_layout import FUNCTIONS, MAX_NUMBERED, NT
from ringfence.translate.native_tables import NativeTables

from ...differential import system_guest
from ...differential.system_guest import DATA

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
        symbols = image.place_runtime(memory, shared_store)
        for n, value in enumerate((0, RAM_BYTES, self.region.host_addr, 0)):
            memory.put(PIECES + 8 * n, value)
        for n, value in enumerate((self.region.host_addr, self.region.host_addr + RAM_BYTES, 0)):
            memory.put(STORES + 8 * n, value)
        memory.put_word("a20_mask", (1 << 64) - 1)
        memory.put_word("code_rx", memory.rx)
        memory.put_word("code_rw_delta", memory.rw - memory.rx)
        self.translator = Translator(memory, self.store, symbols, NativeTables(memory, symbols, path))
        memory.put(NT["enabled"], 1)
        ctypes.CFUNCTYPE(_U64, _U64)(memory.rx + symbols["initialize"])(memory.cpu)
        self._native = ctypes.CFUNCTYPE(_U64, _U64, _U64, _U64, _U64)(memory.rx + symbols["translate_block"])

    def native(self, ra: int, mode: int) -> int:
        self.memory.put(FIELDS["rip"], ra)  # paging is off: the next page's address follows from it
        return int(self._native(self.memory.cpu, self.region.host_addr + ra, ra, mode))

    def python(self, va: int, ra: int, mode: int) -> bool:
        start, following = ra & ~0xFFF, (ra & ~0xFFF) + 4096
        page, second = self.region.view[start:following], self.region.view[following : following + 4096]
        if self.translator.translate(va, ra, mode, page, None):
            return True
        return len(second) != 0 and self.translator.translate(va, ra, mode, page, (following, second))

    def run(self, va: int, ra: int, mode: int, native: bool) -> tuple[object, ...] | None:
        """Translates and says what has changed; None if nothing was translated.  The block is forgotten again."""
        memory, state = self.memory, self.memory.state
        hot, cold, index = memory.hot, memory.cold, memory.next_block
        slot = FRONT_BYTES + HASH + 4 * ((ra ^ ra >> 14 ^ mode * 0x1F35) & HASH_ENTRIES - 1)
        entry = FRONT_BYTES + PAGES + 16 * (ra >> 12)
        record = FRONT_BYTES + BLOCKS + BLOCK_BYTES * index
        kept = [(at, bytes(state[at : at + size])) for at, size in ((slot, 4), (entry, 32), (record, BLOCK_BYTES))]
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


def test_a_native_function_that_only_an_earlier_run_had_placed(tmp_path: Path) -> None:
    """What the file of tables knows by its tuples is placed when a block wants it."""
    path, code = tmp_path / "blocks.bin", bytes.fromhex("0f 20 c0 f4")  # MOV RAX, CR0; HLT
    bench = Bench(path, code)
    assert bench.compare(0, 0, 0) is True
    tables = bench.translator.tables
    assert tables is not None
    tables.save()
    again = Bench(path, code)
    tables = again.translator.tables
    assert tables is not None and tables.functions
    again.memory.natives.clear()
    at = tables.base + FUNCTIONS
    again.memory.state[at : at + 4 * MAX_NUMBERED] = bytes(4 * MAX_NUMBERED)
    assert again.native(0, 0) == 0
    assert again.translator.place_wanted(again.memory)
    assert not again.translator.place_wanted(again.memory)
    assert again.native(0, 0) != 0 and again.memory.natives


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Without guest code: RAM is zeroes."""
    return Bench(tmp_path / "blocks.bin", b"")


def hostile_bytes(seed: int, size: int) -> bytes:
    """Prefixes in heaps, all opcode maps, any operands."""
    choice = random.Random(seed)
    prefixes = bytes.fromhex("66 67 f2 f3 f0 2e 64 65 48 41 44 4f 40")
    out = bytearray()
    while len(out) < size:
        out += bytes(choice.choices(prefixes, k=choice.choice((0, 0, 0, 1, 1, 2, 3, choice.randrange(16)))))
        out += choice.choice((b"", b"", b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a")) if choice.random() < 0.5 else b""
        out.append(choice.randrange(256))
        out += choice.randbytes(choice.choice((1, 2, 3, 6, 10)))
    return bytes(out[:size])


def test_hostile_bytes(bench: Bench) -> None:
    code = hostile_bytes(5, 40960)
    bench.region.view[: len(code)] = code
    choice = random.Random(6)
    starts = [choice.randrange(len(code)) for _ in range(150)]
    done, left = walk(bench, starts, 0x7FFF_FFFF_F000, MODES)
    assert done > 30
    assert left > 30  # most of it is not an instruction at all


def test_at_the_end_of_a_page(bench: Bench) -> None:
    """One instruction crosses into the next page, where there is one; nothing behind RAM is read."""
    code = bytes.fromhex("48 89 c3  48 8b 84 c8 10 20 30 40  66 c7 00 34 12  0f b6 c0  90 90")
    for page in (0x5000, RAM_BYTES - 4096):
        bench.region.view[page + 4096 - len(code) : page + 4096] = code
        for offset in range(len(code)):
            done = bench.compare(KERNEL_BASE + page + 4096 - len(code) + offset, page + 4096 - len(code) + offset, 0)
            assert done or offset not in (0, 3, 11, 16, 19, 20)
        bench.region.view[page + 4096 - 5 : page + 4096] = code[3:8]
        assert bench.compare(KERNEL_BASE + page + 4091, page + 4091, 0) is (None if page + 4096 == RAM_BYTES else True)


def test_targets_beyond_either_end_of_the_address_space(bench: Bench) -> None:
    for k, code in enumerate(("e9 00 00 00 80", "0f 84 f0 ff ff 7f", "48 8d 05 00 00 00 80", "48 8b 05 ff ff ff 7f", "eb 80", "e2 7f")):
        ra = 0x2000 + 64 * k
        bench.region.view[ra : ra + 16] = bytes.fromhex(code).ljust(16, b"\xf4")
        for va in (0, (1 << 64) - 4096):
            assert bench.compare(va + (ra & 0xFFF), ra, 0)


def test_switched_off(bench: Bench) -> None:
    bench.region.view[0x1000] = 0xF4
    assert bench.compare(0x1000, 0x1000, 0)
    bench.memory.put(NT["enabled"], 0)
    assert bench.native(0x1000, 0) == 0


def test_a_page_with_its_first_code_is_protected(bench: Bench) -> None:
    memory = bench.memory
    bench.region.view[0x1000:0x1002] = b"\x90\xf4"
    assert bench.compare(0x1000, 0x1000, 0)
    for n, value in enumerate((0x1000, 0x1000, 1, bench.region.host_addr)):
        memory.put(TLB + 0x20 + 8 * n, value)
    memory.put_word("dirty_tables", 1)  # as whoever fills the TLB does
    assert bench.native(0x1000, 0)
    assert [memory.get(TLB + 0x20 + 8 * n) for n in range(3)] == [0x1000, 1, 1]


def test_full_tables_are_left_to_python(bench: Bench) -> None:
    memory = bench.memory
    bench.region.view[0x1000] = 0xF4
    assert bench.compare(0x1000, 0x1000, 0)
    memory.put(JUMP_CACHE, 0x1234)
    memory.next_block = MAX_BLOCKS - 1
    assert bench.native(0x1000, 0) == 0
    assert bench.python(0x1000, 0x1000, 0)
    assert bench.translator.flushes == 1
    assert memory.next_block == 2
    assert memory.get(JUMP_CACHE) == 1, "the jump cache leads to code that is gone"


PROGRAM = f"""
    mov ecx, 40
    xor eax, eax
    mov ebx, 0x1234567
again:
    imul rbx, rbx, 0x5851F42D
    add rax, rbx
    adc rdx, 0
    ror rax, 7
    call leaf
    mov rsi, {DATA:#x}
    mov [rsi + 8 * rcx], rax
    add byte ptr [rip + patched + 1], 1
patched:
    mov bl, 5
    loop again
    mov edi, {DATA + 0x1000:#x}
    mov ecx, 41
    rep movsq
    cvtsi2sd xmm0, rax
    sqrtsd xmm0, xmm0
    movq r8, xmm0
    pushfq
    pop r9
    xor ecx, ecx
    div ecx
leaf:
    cmp rax, rbx
    jl 1f
    xchg al, ah
1:  setbe dl
    ret
"""


@pytest.mark.parametrize("cpl", [0, 3])
def test_the_engine_with_and_without(cpl: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops, calls, self-modifying code, strings, floating point, a fault: the same registers, frame and instruction count."""
    results = []
    for native in (False, True):
        monkeypatch.setenv("RINGFENCE_WITHOUT", "" if native else "native-translation")
        guest = system_guest.SystemGuest()
        counts = []
        for _ in range(3):  # the first time, what is not yet in the tables is learnt
            before = guest.engine.guest_instructions()
            result = guest.run(PROGRAM, cpl)
            assert result.frame is not None
            assert result.frame.vector == 0
            counts.append((guest.engine.guest_instructions() - before, result.registers, result.frame))
        figures = guest.engine.stats()
        left = figures["blocks_left_to_python"]["in all"]
        assert left < figures["blocks_translated"] if native else left == figures["blocks_translated"]
        results.append(counts)
    assert results[0] == results[1]
