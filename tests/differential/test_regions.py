"""Regions against stencils: random loops, whose instructions come from the catalogue that the host CPU judges one by one.

A loop is executed twice, as a region and by stencils alone: registers, memory, flags, vector registers, the exception that ends it and the
count of instructions must be the same.  Most loops have forward branches and a call of a function beside them, so kinds of flags meet.
"""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ringfence.engine.api import Interrupted
from ringfence.isa.x86.models import DEFAULT
from ringfence.isa.x86.modes import LONG
from ringfence.isa.x86.state import GPR
from ringfence.translate.layout import BLOCK_BYTES, WORDS
from ringfence.translate.region_graph import Explorer

from . import forms
from .records import WINDOW_ADDR
from .system_guest import DATA, KERNEL_CODE, LARGE, PRESENT, TABLES, USER, USER_CODE, WRITABLE, SystemGuest, assembled

LOOPS = 240
TURNS = 5
COUNTER = DATA + 0x1000
WINDOW_AT = 0x200000  # where the window lies in the guest's memory
POINTERS = {3: 0x100, 5: 0x800, 6: 0xFF0, 7: 0x1200, 8: 0x40, 9: 0x1FF8, 10: 0x700, 11: 0x1000}
_POINTER_NAMES = frozenset(GPR[n] for n in POINTERS)
_SHAPES = [shape for shape in forms.shapes() if shape.prefixes != b"\x65"]


class Loop(NamedTuple):
    code: bytes
    text: str


def _suitable(raw: bytes) -> bool:
    """Whether a region may hold it; branches are put in by hand."""
    i = Explorer({0: raw + bytes(4096 - len(raw))}, LONG, DEFAULT).at(0)
    return i is not None and not i.end


def _reaches_the_window(instance: forms.Instance) -> bool:
    """No memory operand, or one at a pointer or a plain address."""
    mem, binds = instance.decoded.form.mem, instance.decoded.binds
    if all(kind != "m" for kind, _, _ in instance.decoded.form.operands):
        return True
    displacement = instance.decoded.imms.get("disp", 0)
    if mem.index or mem.rip or mem.address32:
        return False
    if ("m", 128, 1) in instance.decoded.form.operands and displacement & 15:
        return False  # SSE wants it aligned
    if not mem.base:
        return WINDOW_ADDR <= displacement < WINDOW_ADDR + 0x1FF0
    near = (displacement + 0x400 & (1 << 64) - 1) < 0xA00
    return binds["base"][0] in _POINTER_NAMES and near


def _instructions(rng: random.Random, count: int) -> Iterator[tuple[bytes, str]]:
    while count:
        shape = rng.choice(_SHAPES)
        for _ in range(60 if shape.memory else 1):
            instance = forms.build(shape, 0, rng)
            if instance is not None and (_reaches_the_window(instance) or rng.random() < 0.001):
                break
        else:
            continue
        if instance is None or (instance.name in ("div", "idiv") and rng.random() < 0.9):
            continue
        binds = instance.decoded.binds
        # The stack pointer stays, and so do addresses relative to the code; pointers are seldom changed.
        if "rsp" in repr(binds) or instance.decoded.form.mem.rip or instance.name in ("leave", "enter"):
            continue
        if binds.get(0, ("",))[0] in _POINTER_NAMES and rng.random() < 0.9:
            continue
        if _suitable(instance.raw):
            count -= 1
            yield instance.raw, str(instance.insn)


def _move(register: int, value: int) -> bytes:
    return bytes((0x48 | register >> 3, 0xB8 | register & 7)) + struct.pack("<Q", value)


def make_loop(rng: random.Random) -> Loop:
    """`head: pointers; instructions, some jumped over, one call; dec [counter]; jnz head; hlt` and a function."""
    body, text = b"".join(_move(r, WINDOW_ADDR + offset) for r, offset in POINTERS.items()), []
    pieces = list(_instructions(rng, rng.randint(2, 9)))
    function = b"".join(raw for raw, _ in _instructions(rng, 2)) + b"\xc3"
    call_at = rng.randrange(len(pieces)) if rng.random() < 0.5 else -1
    holes = []
    for n, (raw, name) in enumerate(pieces):
        if rng.random() < 0.3:
            condition = rng.randrange(16)
            body += bytes((0x0F, 0x80 | condition)) + struct.pack("<i", len(raw))
            text.append(f"jcc {condition:x} over the next")
        body += raw
        text.append(name)
        if n == call_at:
            holes.append(len(body) + 1)
            body += b"\xe8" + bytes(4)
            text.append("call")
    body += b"\xff\x0c\x25" + struct.pack("<I", COUNTER)  # dec dword [counter]
    body += b"\x0f\x85" + struct.pack("<i", -(len(body) + 6)) + b"\xf4"
    for at in holes:
        body = body[:at] + struct.pack("<i", len(body) - (at + 4)) + body[at + 4 :]
    return Loop(body + function, "\n".join(text))


class LoopGuest(SystemGuest):
    """Runs loops; everything that they can change is part of the result."""

    def outcome(self, loop: Loop, cpl: int, seed: int, as_region: bool) -> tuple[object, ...]:
        rng = random.Random(seed)
        self.memory.write_uint(TABLES + 0x2000 + 8 * (WINDOW_ADDR >> 21 & 511), 8, WINDOW_AT | PRESENT | WRITABLE | USER | LARGE)
        self.memory.write(WINDOW_AT, rng.randbytes(0x4000))
        self.memory.write_uint(COUNTER, 4, TURNS)
        start = USER_CODE if cpl else KERNEL_CODE
        self.memory.write(start, loop.code + b"\xf4" * 16)
        values = self.registers(cpl)
        values |= {name: rng.getrandbits(rng.choice((1, 8, 31, 64))) for name in values if name in _RANDOM}
        values |= {f"xmm{n}": rng.getrandbits(128) for n in range(16)}
        self.engine.write_state(values)
        if as_region:
            self.engine._native.serve_requests(self.engine._cpu)
            placed = self.engine._region_maker().compile_now(start, start, 1 if cpl else 0)
            if not placed:
                return ()
        before = self.engine.guest_instructions()
        exit_ = self.engine.run(None)
        count = self.engine.guest_instructions() - before
        return exit_, count, self.engine.read_state(), self.memory.read(WINDOW_AT, 0x4000), self.memory.read_uint(COUNTER, 4)


_RANDOM = frozenset("rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split())


@pytest.fixture(scope="module")
def guests() -> Iterator[tuple[LoopGuest, LoopGuest]]:
    pair = LoopGuest(), LoopGuest()
    pair[0].engine._region_maker().max_installs = LOOPS * 2
    yield pair
    for guest in pair:
        guest.close()


NO_REGION, FAULTED, ENDED = range(3)


def judge(guests: tuple[LoopGuest, LoopGuest], seed: int) -> int:
    """How the loop went; fails where a region makes a difference."""
    rng = random.Random(seed)
    loop, cpl = make_loop(rng), rng.choice((0, 3))
    region = guests[0].outcome(loop, cpl, seed, True)
    if not region:
        return NO_REGION
    plain = guests[1].outcome(loop, cpl, seed, False)
    for what, a, b in zip(("exit", "instructions", "registers", "memory", "counter"), region, plain, strict=True):
        if what == "registers":
            assert isinstance(a, dict) and isinstance(b, dict)
            a, b = ({k: hex(v) for k, v in x.items() if a[k] != b[k]} for x in (a, b))
        assert a == b, f"seed {seed}, ring {cpl}: {what}\n{loop.text}"
    return FAULTED if region[-1] else ENDED


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(4))
def test_random_loops(guests: tuple[LoopGuest, LoopGuest], part: int) -> None:
    made = [judge(guests, 1000 * part + n) for n in range(LOOPS // 4)]
    assert sum(m != NO_REGION for m in made) > 0.9 * len(made)
    assert made.count(ENDED) > 0.4 * len(made)  # the others ended in an exception


# ---- what random loops do not meet
def in_both(guests: tuple[LoopGuest, LoopGuest], text: str, at: int = 0, pages: dict[int, int] | None = None) -> LoopGuest:
    """Runs a program whose loop is at offset `at` as a region and without one; all results are the same.  `pages`: page-table entries of
    linear pages, set after the region is in its place.  Returns the guest with the region."""
    results = []
    for guest, as_region in zip(guests, (True, False), strict=True):
        guest.reset()
        guest.memory.write(KERNEL_CODE, assembled(text + "\nhlt\n"))
        guest.engine.write_state(guest.registers(0))
        if as_region:
            guest.engine._native.serve_requests(guest.engine._cpu)
            guest.engine._native.refill_code(guest.engine._cpu, KERNEL_CODE + 0x1000, 0)
            assert guest.engine._region_maker().compile_now(KERNEL_CODE + at, KERNEL_CODE + at, 0)
        for linear, entry in (pages or {}).items():
            guest.set_page(linear, entry)
        guest.engine.write_state({})  # all translations of addresses are dropped
        before = guest.engine.guest_instructions()
        exit_ = guest.engine.run(None)
        results.append((exit_, guest.engine.guest_instructions() - before, guest.engine.read_state(), guest.memory.read(DATA, 0x2000)))
    assert results[0] == results[1]
    return guests[0]


LOOP_OVER_DATA = f"mov esi, {DATA}\nmov ecx, 100\n1: add [rsi], ecx\nadd rax, [rsi]\nadd esi, 4\ndec ecx\njnz 1b"


def test_a_loop_that_changes_its_own_code(guests: tuple[LoopGuest, LoopGuest]) -> None:
    in_both(guests, "mov ecx, 50\nlea rdi, [rip + 2f]\n1: mov [rdi + 1], cl\n2: mov al, 0\nadd rbx, rax\ndec ecx\njnz 1b", at=12)


def test_code_that_somebody_else_changes_is_not_executed_any_more(guests: tuple[LoopGuest, LoopGuest]) -> None:
    guest = in_both(guests, LOOP_OVER_DATA, at=10)
    after = int(guest.engine.read_state()["rax"])
    guest.memory.write(KERNEL_CODE + 10, assembled("1: sub [rsi], ecx\nsub rax, [rsi]"))
    guest.engine.write_state(guest.registers(0))
    guest.engine.run(None)
    assert guest.engine.read_state()["rax"] != after


def test_a_vcpu_may_stand_within_the_head_that_becomes_a_jump(guests: tuple[LoopGuest, LoopGuest]) -> None:
    """Behind its first instruction, which counts: what follows is what it was."""
    guest = guests[0]
    guest.reset()
    guest.memory.write(KERNEL_CODE, assembled("mov ecx, 9\n1: add rax, rcx\ndec ecx\njnz 1b\nhlt"))
    guest.engine.write_state(guest.registers(0))
    guest.engine.run(None)
    maker = guest.engine._region_maker()
    block = maker._find(KERNEL_CODE + 5, maker.code.get(WORDS["mode"]))
    assert block, "the loop was executed by stencils"
    at = maker.code.blocks32[block * (BLOCK_BYTES // 4) + 2]
    before = bytes(maker.code.code[at : at + 12])
    guest.engine.write_state(guest.registers(0))
    guest.engine._native.serve_requests(guest.engine._cpu)
    assert maker.compile_now(KERNEL_CODE + 5, KERNEL_CODE + 5, 0)
    after = bytes(maker.code.code[at : at + 12])
    assert after[0] == 0xE9 != before[0] and after[5:] == before[5:]


def test_a_device_in_the_middle_of_a_loop(guests: tuple[LoopGuest, LoopGuest]) -> None:
    beyond = {DATA + 0x1000: 0xFE000000 | PRESENT | WRITABLE}
    in_both(guests, LOOP_OVER_DATA.replace(f"{DATA}", f"{DATA + 0xF00}"), at=10, pages=beyond)


def test_a_page_that_may_not_be_written_any_more(guests: tuple[LoopGuest, LoopGuest]) -> None:
    guest = in_both(guests, LOOP_OVER_DATA.replace(f"{DATA}", f"{DATA + 0xF00}"), at=10, pages={DATA + 0x1000: DATA + 0x1000 | PRESENT})
    assert guest.engine.read_state()["cr2"] == DATA + 0x1000


def test_a_locked_write_of_a_page_that_is_only_read_otherwise(guests: tuple[LoopGuest, LoopGuest]) -> None:
    """By another address, so what is remembered of the page for reading must not be used for writing."""
    loop = f"1: add eax, [{DATA + 0x1008}]\nlock inc dword ptr [rsi + {DATA + 0x1010}]\nmfence\nadd rsi, 0x1000\ndec ecx\njnz 1b"
    guest = in_both(guests, f"mov rsi, -0x1000\nmov ecx, 5\n{loop}", at=12, pages={DATA + 0x1000: DATA + 0x1000 | PRESENT})
    assert guest.engine.read_state()["cr2"] == DATA + 0x1010


def test_a_second_page_of_code_that_was_exchanged(guests: tuple[LoopGuest, LoopGuest]) -> None:
    other = DATA + 0x3000
    text = "jmp 1f\n.org 0xffa\n1: mov eax, 1\nadd rbx, rax\nadd rdx, rbx\ndec ecx\njnz 1b"
    for guest in guests:
        guest.reset()
    code = assembled("mov ecx, 9\n" + text + "\nhlt")
    changed = code[0x1000:].replace(assembled("add rdx, rbx"), assembled("sub rdx, rbx"))
    for guest, as_region in zip(guests, (True, False), strict=True):
        guest.memory.write(KERNEL_CODE, code)
        guest.memory.write(other, changed)
        guest.engine.write_state(guest.registers(0))
        if as_region:
            guest.engine._native.serve_requests(guest.engine._cpu)
            guest.engine._native.refill_code(guest.engine._cpu, KERNEL_CODE + 0x1000, 0)
            assert guest.engine._region_maker().compile_now(KERNEL_CODE + 0xFFA, KERNEL_CODE + 0xFFA, 0)
        guest.set_page(KERNEL_CODE + 0x1000, other | PRESENT | WRITABLE)
        guest.engine.write_state({})
        guest.engine.run(None)
    assert guests[0].engine.read_state() == guests[1].engine.read_state()
    assert guests[0].engine.read_state()["rdx"] > 1 << 63  # it was the other page's code


def test_a_breakpoint_of_the_guest_within_a_region(guests: tuple[LoopGuest, LoopGuest]) -> None:
    text = "lea rdx, [rip + 2f]\nmov dr0, rdx\nmov edx, 1\nmov dr7, rdx\nmov ecx, 5\n1: add rax, 3\n2: add rax, 5\ndec ecx\njnz 1b"
    guest = in_both(guests, text, at=len(assembled(text.split("1:")[0] + "\n2: nop")) - 1)
    assert guest.memory.read_uint(int(guest.engine.read_state()["rsp"]), 8) == 1  # #DB


def test_a_first_instruction_that_is_always_left_to_a_stencil(guests: tuple[LoopGuest, LoopGuest]) -> None:
    """Its block is in the jump cache by then: the way there must not lead back into the region."""
    over_the_end = f"mov ebp, 3\n2: mov esi, {DATA + 0xFFE}\nmov ecx, 9\njmp rbx\n1: add [rsi], ecx\nadd rax, [rsi]\ndec ecx\njnz 1b"
    text = f"lea rbx, [rip + 1f]\n{over_the_end}\ndec ebp\njnz 2b"
    in_both(guests, text, at=len(assembled(text.split("1: add")[0] + "\n1: nop")) - 1)


def test_an_endless_region_can_be_left(guests: tuple[LoopGuest, LoopGuest]) -> None:
    engine = guests[0].engine
    guests[0].reset()
    guests[0].memory.write(KERNEL_CODE, assembled("1: add rax, 1\nadd rbx, rax\njmp 1b"))
    engine.write_state(guests[0].registers(0))
    engine._native.serve_requests(engine._cpu)
    assert engine._region_maker().compile_now(KERNEL_CODE, KERNEL_CODE, 0)
    timer = threading.Timer(0.2, engine.kick)
    timer.start()
    before = engine.guest_instructions()
    assert isinstance(engine.run(None), Interrupted)
    state = engine.read_state()
    assert engine.guest_instructions() - before == 3 * int(state["rax"]) > 0 and state["rip"] == KERNEL_CODE
    assert isinstance(engine.run(engine.clock.now_ns()), Interrupted)  # its deadline is over
