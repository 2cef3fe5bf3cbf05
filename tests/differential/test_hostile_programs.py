"""Random programs in ring 0 and ring 3, over random registers, tables and memory: the engine always comes back with an exit.

Nothing a guest executes may raise an exception in the monitor or hang it.
"""

from __future__ import annotations

import random
import struct

import pytest

from ringfence.core.clock import Clock
from ringfence.engine.api import Fault, Halt, Interrupted, Shutdown

from .encode import CODE_NAMES, encodable, encode, has_memory_shape, has_register_shape
from .system_guest import DATA, GDT, IDT, KERNEL_CODE, RAM_BYTES, TABLES, TSS, USER_CODE, SystemGuest, descriptor

PROGRAMS = 150
INSTRUCTIONS = 60
DEADLINE_NS = 20_000_000
TURNS = 3
_PLACES = (0, TABLES, TABLES + 0x3000, GDT, IDT, TSS, KERNEL_CODE, USER_CODE, DATA, DATA + 0xFF8, RAM_BYTES - 8, 1 << 47, (1 << 64) - 8)
_SYSTEM = (
    "MOV_CR", "MOV_DR", "MOV_SREG", "MOV_R64_CR", "MOV_R64_DR", "L", "S", "INV", "IRET", "RETF", "JMP", "CALL", "WRMSR", "RDMSR", "CL",
    "INT", "POPF",
)  # fmt: skip
SYSTEM_CODES = [code for code in encodable() if CODE_NAMES[code].startswith(_SYSTEM)]


def program(rng: random.Random, ring: int) -> bytes:
    """Mostly valid instructions, system instructions over-represented, some bytes flipped."""
    everything = encodable()
    out = bytearray()
    for _ in range(INSTRUCTIONS):
        code = rng.choice(SYSTEM_CODES if rng.random() < 0.4 else everything)
        memory = has_memory_shape(code) and (rng.random() < 0.5 or not has_register_shape(code))
        prefixes = rng.choice((b"", b"", b"", b"\xf0", b"\xf3", b"\xf2", b"\x67", b"\x65"))
        raw = bytearray(encode(code, rng, memory, prefixes).replace(b"RIP!", struct.pack("<i", rng.randrange(-0x4000, 0x20000))))
        if rng.random() < 0.1:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        out += raw
    return bytes(out)


def value(rng: random.Random) -> int:
    choice = rng.random()
    if choice < 0.6:
        return rng.choice(_PLACES) + rng.randrange(-16, 0x800) & (1 << 64) - 1
    return rng.getrandbits(rng.choice((3, 8, 16, 32, 64)))


@pytest.mark.parametrize("seed", range(4))
def test_the_engine_always_comes_back(guest: SystemGuest, seed: int) -> None:
    rng = random.Random(seed)
    seen = set()
    guest.engine.clock = clock = Clock()
    for n in range(PROGRAMS):
        if n % 10 == 0:
            guest.reset()
        ring = rng.choice((0, 0, 3))
        guest.memory.write(USER_CODE if ring else KERNEL_CODE, program(rng, ring))
        for _ in range(rng.randrange(4)):  # wild descriptors and page-table entries
            wild = descriptor(rng.getrandbits(12), rng.getrandbits(32), rng.getrandbits(20))
            guest.memory.write_uint(GDT + 8 * rng.randrange(32), 8, wild)
            guest.memory.write_uint(TABLES + 8 * rng.randrange(2048), 8, rng.getrandbits(64) if rng.random() < 0.1 else rng.getrandbits(22))
        values = guest.registers(ring)
        names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
        guest.engine.write_state(values | {name: value(rng) for name in names if name != "rsp" or rng.random() < 0.3})
        for _ in range(TURNS):
            result = guest.engine.run(clock.now_ns() + DEADLINE_NS)
            assert isinstance(result, Halt | Shutdown | Interrupted | Fault), result
            seen.add(type(result).__name__)
            if isinstance(result, Shutdown | Fault):
                break
    assert {"Halt", "Shutdown"} <= seen
