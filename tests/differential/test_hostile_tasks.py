"""Random far transfers, interrupts and returns over random descriptors, gates and task state: the engine always comes back with
an exit, whatever becomes of the guest."""

from __future__ import annotations

import random
import struct

import pytest

from ringfence.core.clock import Clock
from ringfence.engine.api import Halt, Interrupted, Shutdown

from .legacy_guest import (
    DATA,
    GATE,
    GDT,
    IDT,
    IOPL3,
    KCODE,
    KDATA,
    KERNEL_CODE,
    LDT,
    MAIN,
    MAIN_TSS,
    NT,
    OTHER,
    OTHER_TSS,
    SMALL,
    SMALL_TSS,
    STUBS,
    TABLES,
    TASK_CODE,
    TF,
    UCODE,
    UDATA,
    USER_CODE,
    VIF,
    VM,
    LegacyGuest,
    gate,
)
from .system_guest import descriptor

ROUNDS = 400
TURNS = 4
DEADLINE_NS = 10_000_000
_VECTORS = (0, 1, 3, 4, 6, 8, 10, 11, 12, 13, 14, 0x21, 0x42)
_BASES = (0, MAIN_TSS, OTHER_TSS, SMALL_TSS, DATA, TASK_CODE, 0x30FE0, 0xA0000, 0x3FFFFC, 0xFFFFFFF0)
_LIMITS = (0, 0x2A, 0x2B, 0x66, 0x67, 0xFFF, 0xFFFF, 0xFFFFF)


def selector(rng: random.Random) -> int:
    if rng.random() < 0.5:
        return rng.choice((OTHER, SMALL, GATE, MAIN, KCODE, UCODE, KDATA, UDATA))
    return rng.randrange(0, 0xA0, 8) | rng.choice((0, 0, 0, 3, 4, 7)) if rng.random() < 0.95 else rng.getrandbits(16)


def table_entry(rng: random.Random) -> int:
    if rng.random() < 0.3:
        return gate(rng.choice((OTHER, SMALL)), kind=0xE5)
    if rng.random() < 0.5:
        kind = rng.choice((0x84, 0x85, 0x86, 0x87, 0x8C, 0x8E, 0x8F)) | rng.choice((0, 0x60))
        return gate(selector(rng), rng.choice((TASK_CODE, USER_CODE, KERNEL_CODE, STUBS, rng.getrandbits(32))), kind, rng.randrange(32))
    kind = rng.choice((1, 2, 3, 9, 11, 0x11, 0x13, 0x17, 0x19, 0x1B, 0x1D, 0x1F, rng.randrange(32)))
    attributes = kind | rng.choice((0x80, 0x80, 0x80, 0)) | rng.randrange(4) << 5 | rng.choice((0, 0x400, 0xC00, 0x800))
    return descriptor(attributes, rng.choice(_BASES), rng.choice(_LIMITS))


def instruction(rng: random.Random, bits: int) -> bytes:
    offset = struct.pack("<I" if bits == 32 else "<H", rng.choice((TASK_CODE, USER_CODE, KERNEL_CODE, 0x10, 0x100)) & (1 << bits) - 1)
    return rng.choice(
        (
            b"\xea" + offset + struct.pack("<H", selector(rng)),
            b"\x9a" + offset + struct.pack("<H", selector(rng)),
            b"\xcf", b"\x66\xcf", b"\xcb", b"\xca\x04\x00", b"\xcc", b"\xce", b"\xf1", b"\xfa", b"\xfb", b"\x9c", b"\x9d", b"\x0f\x0b",
            b"\xcd" + bytes([rng.choice(_VECTORS)]),
            b"\x68" + struct.pack("<I" if bits == 32 else "<H", selector(rng)),
            b"\x68" + struct.pack("<I" if bits == 32 else "<H", rng.choice((VM, NT, TF, VIF, 0x200, IOPL3, 0)) & (1 << bits) - 1 | 2),
            b"\x68" + offset,
            b"\x66\xb8" + struct.pack("<H", selector(rng)) + bytes([0x8E, 0xC0 | rng.choice((0, 2, 3, 4, 5)) << 3]),
            b"\x66\xb8" + struct.pack("<H", selector(rng)) + rng.choice((b"\x0f\x00\xd8", b"\x0f\x00\xd0")),
            b"\x90", b"\xf4" if rng.random() < 0.1 else b"\x90", b"\xbc" + offset,
        )
    )  # fmt: skip


def program(rng: random.Random, bits: int) -> bytes:
    return b"".join(instruction(rng, bits) for _ in range(60))


def tss(rng: random.Random) -> bytes:
    values = [rng.choice((selector(rng), rng.choice(_BASES), rng.choice((TASK_CODE, USER_CODE)), TABLES)) for _ in range(26)]
    values[8], values[19], values[20] = (
        rng.choice((TASK_CODE, USER_CODE)),
        rng.choice((KCODE, UCODE, selector(rng))),
        rng.choice((KDATA, UDATA)),
    )
    values[9] = rng.choice((2, 2, VM | 2, NT | 2, TF | 2, IOPL3 | VM | 2, rng.getrandbits(32)))
    values[7], values[25] = rng.choice((TABLES, TABLES, TABLES, rng.getrandbits(32))), rng.choice((0x680000, 0x680001, rng.getrandbits(32)))
    return struct.pack("<26I", *values)


@pytest.mark.parametrize("seed", range(3))
def test_tasks_and_gates_at_random(shared_legacy_guest: LegacyGuest, seed: int) -> None:
    guest, rng = shared_legacy_guest, random.Random(seed)
    seen: dict[str, int] = {}
    clock = Clock()
    before, guest.engine.clock = guest.engine.clock, clock
    tasks = 0
    for n in range(ROUNDS):
        if n % 4 == 0:
            guest.reset()
        for _ in range(rng.randrange(1, 6)):
            guest.memory.write_uint(GDT + 8 * rng.randrange(6, 20), 8, table_entry(rng))
            guest.memory.write_uint(LDT + 8 * rng.randrange(8), 8, table_entry(rng))
            guest.set_gate(rng.choice(_VECTORS), table_entry(rng))
        for at in (MAIN_TSS, OTHER_TSS, SMALL_TSS):
            if rng.random() < 0.3:
                guest.memory.write(at, tss(rng))
        if rng.random() < 0.3:
            guest.set_page(rng.choice((MAIN_TSS, GDT, IDT, DATA, 0xC000)), rng.choice((0, 0, 1, 0xA0007)))
        v86, ring = rng.random() < 0.3, rng.choice((0, 0, 1, 3))
        for at, bits in ((TASK_CODE, 32), (USER_CODE, 16 if v86 else 32), (KERNEL_CODE, 32)):
            guest.memory.write(at, program(rng, bits))
        values = guest.v86_registers() if v86 else guest.registers(ring)
        values["rflags"] |= rng.choice((0, 0, NT, TF, IOPL3, IOPL3 | NT, VIF))
        values |= {"cr4": rng.choice((0, 1, 2, 3)), "cr0": values["cr0"] ^ rng.choice((0, 0, 1 << 16, 1 << 18, 1 << 31))}
        if rng.random() < 0.2:
            values |= {
                "tr_base": rng.choice(_BASES),
                "tr_limit": rng.choice(_LIMITS),
                "tr_attr": rng.choice((0x83, 0x8B)),
                "tr": selector(rng),
            }
        if rng.random() < 0.2:
            values |= {"rsp": rng.choice((0, 2, 6, 0x10000, 0x500000, 0xFFFFFFFE)), "ss_limit": rng.choice(_LIMITS)}
        if rng.random() < 0.1:
            values |= {"dr7": 0x401, "dr0": TASK_CODE, "idtr_limit": rng.randrange(0x800), "gdtr_limit": rng.randrange(0x200)}
        guest.engine.write_state(values)
        for _ in range(TURNS):
            result = guest.engine.run(clock.now_ns() + DEADLINE_NS)
            assert isinstance(result, Halt | Shutdown | Interrupted), result
            seen[type(result).__name__] = seen.get(type(result).__name__, 0) + 1
            if isinstance(result, Shutdown):
                break
        tasks += guest.engine.read_state()["cr0"] >> 3 & 1 and not values["cr0"] >> 3 & 1
    guest.engine.clock = before
    assert {"Halt", "Shutdown"} <= set(seen) and tasks > ROUNDS // 20, (seen, tasks)
