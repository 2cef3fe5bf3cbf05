"""A small guest of 32-bit protected mode for privilege, tasks and virtual-8086 mode; the companion of system_guest.py.

    0x1000 page tables   0x8000 GDT   0x8800 LDT   0x9000 IDT   0xA000.. TSSs, 0x400 bytes each   0xD000 ring-0 stack
    0x10000 exception stubs   0x12000 code of ring 0   0x13000 code of ring 3 and of virtual-8086 mode   0x18000 code of other tasks
    0x20000 data
    mapped one to one; page 0 (interrupt vectors of 8086 programs), 0x13000-0x17FFF and everything from 0x20000 on are user pages

A stub pushes a zero where the processor pushed no error code, then the vector, and halts.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ringfence.engine.api import Exit, Halt
from ringfence.isa.x86.state import GPR

from .system_guest import EngineGuest, assembled, descriptor

TABLES, GDT, LDT, IDT, TSS, STACK_TOP = 0x1000, 0x8000, 0x8800, 0x9000, 0xA000, 0xD000
STUBS, KERNEL_CODE, USER_CODE, TASK_CODE, DATA = 0x10000, 0x12000, 0x13000, 0x18000, 0x20000
USER_STACK, V86_STACK = DATA + 0x3000, DATA + 0x4000
RAM_BYTES = 0x400000
KCODE, KDATA, UCODE, UDATA, CODE1, DATA1, CODE2, DATA2 = 0x8, 0x10, 0x1B, 0x23, 0x29, 0x31, 0x3A, 0x42
MAIN, OTHER, SMALL, GATE, SPARE, LOCAL = 0x50, 0x58, 0x60, 0x68, 0x70, 0x90
MAIN_TSS, OTHER_TSS, SMALL_TSS = TSS, TSS + 0x400, TSS + 0x800
CODE32, DATA32, CODE16, DATA16, TSS32, TSS16 = 0xC9B, 0xC93, 0x09B, 0x093, 0x089, 0x081
PRESENT, WRITABLE, USER = 1, 2, 4
VECTORS = 256
VM, NT, IF, TF, IOPL3, VIF, VIP = 1 << 17, 1 << 14, 1 << 9, 1 << 8, 3 << 12, 1 << 19, 1 << 20
WITH_ERROR = (8, 10, 11, 12, 13, 14, 17, 21)
SELECTORS = ("es", "cs", "ss", "ds", "fs", "gs")
DE, DB, BP, OF, UD, DF, TS, NP, SS, GP, PF = 0, 1, 3, 4, 6, 8, 10, 11, 12, 13, 14
USER_GATE = 0xEE
CS86, DS86, SP86 = USER_CODE >> 4, DATA >> 4, V86_STACK - DATA  # where run_v86 starts
MAX_INTERRUPTIONS = 100


class Frame(NamedTuple):
    """An exception as its handler of ring 0 sees it; `esp` and `ss` only where the privilege changed, the others from V86 only."""

    vector: int
    error: int
    eip: int
    cs: int
    eflags: int
    esp: int = 0
    ss: int = 0
    es: int = 0
    ds: int = 0
    fs: int = 0
    gs: int = 0


class Result(NamedTuple):
    """Registers at the end, the exception if one was raised, and the engine's exit if it was not a HLT."""

    registers: dict[str, int]
    frame: Frame | None
    exit: Exit


def gate(selector: int, offset: int = 0, kind: int = 0x8E, count: int = 0) -> int:
    """A gate of protected mode (SDM 3A figures 5-8, 6-2, 7-6); `kind` is its bits 40-47."""
    return offset & 0xFFFF | selector << 16 | count << 32 | kind << 40 | (offset >> 16) << 48


class LegacyGuest(EngineGuest):
    def __init__(self) -> None:
        super().__init__("legacy")

    def reset(self) -> None:
        self.memory.write(0, bytes(0x100000))
        self.memory.write_uint(TABLES, 4, TABLES + 0x1000 | PRESENT | WRITABLE | USER)
        for page in range(1024):
            at = page << 12
            user = USER if at >= DATA or USER_CODE <= at < TASK_CODE or not page else 0
            self.set_page(at, at | PRESENT | WRITABLE | user)
        for ring, (code, data) in enumerate(((KCODE, KDATA), (CODE1, DATA1), (CODE2, DATA2), (UCODE, UDATA))):
            self.set_descriptor(code, descriptor(CODE32 | ring << 5))
            self.set_descriptor(data, descriptor(DATA32 | ring << 5))
        self.set_descriptor(MAIN, descriptor(TSS32 | 2, MAIN_TSS, 0x67))
        self.set_descriptor(OTHER, descriptor(TSS32, OTHER_TSS, 0x67))
        self.set_descriptor(SMALL, descriptor(TSS16, SMALL_TSS, 0x2B))
        self.set_descriptor(LOCAL, descriptor(0x82, LDT, 0x3F))
        stubs = "".join(
            f".balign 8, 0xcc\n{'' if n in WITH_ERROR else 'push 0'}\npush {n - 256 if n > 127 else n}\nhlt\n" for n in range(VECTORS)
        )
        self.memory.write(STUBS, assembled(stubs, 32))
        for vector in range(VECTORS):
            self.set_gate(vector, gate(KCODE, STUBS + 8 * vector))
        for ring, (pointer, selector) in enumerate(((STACK_TOP, KDATA), (STACK_TOP - 0x400, DATA1), (STACK_TOP - 0x800, DATA2))):
            self.memory.write(MAIN_TSS + 4 + 8 * ring, struct.pack("<II", pointer, selector))
        self.memory.write_uint(MAIN_TSS + 0x1C, 4, TABLES)
        self.memory.write(MAIN_TSS + 0x66, struct.pack("<H", 0x68))
        self.set_task(OTHER_TSS)
        self.set_small_task(SMALL_TSS)

    # ---- tables
    def set_gate(self, vector: int, value: int) -> None:
        self.memory.write_uint(IDT + 8 * vector, 8, value)

    def set_descriptor(self, selector: int, value: int) -> None:
        self.memory.write_uint((LDT if selector & 4 else GDT) + (selector & ~7), 8, value)

    def descriptor(self, selector: int) -> int:
        return self.memory.read_uint((LDT if selector & 4 else GDT) + (selector & ~7), 8)

    def set_page(self, linear: int, entry: int) -> None:
        """The page-table entry of one of the first 1024 pages."""
        self.memory.write_uint(TABLES + 0x1000 + 4 * (linear >> 12), 4, entry)

    def set_task(self, at: int, **values: int) -> None:
        """A 32-bit TSS for code of ring 0 at TASK_CODE, with `values` changed."""
        fields = {"link": 0, "esp0": STACK_TOP - 0x800, "ss0": KDATA, "esp1": 0, "ss1": 0, "esp2": 0, "ss2": 0}
        fields |= {"cr3": TABLES, "eip": TASK_CODE, "eflags": 2, "eax": 1, "ecx": 2, "edx": 3, "ebx": 4, "esp": STACK_TOP - 0xC00}
        fields |= {"ebp": 6, "esi": 7, "edi": 8, "es": KDATA, "cs": KCODE, "ss": KDATA, "ds": KDATA, "fs": 0, "gs": 0, "ldt": 0}
        fields |= {"trap": 0x680000}
        fields |= values
        self.memory.write(at, struct.pack("<26I", *fields.values()))

    def task(self, at: int) -> dict[str, int]:
        """What a 32-bit TSS holds."""
        names = "link esp0 ss0 esp1 ss1 esp2 ss2 cr3 eip eflags eax ecx edx ebx esp ebp esi edi es cs ss ds fs gs ldt trap".split()
        return dict(zip(names, struct.unpack("<26I", self.memory.read(at, 104)), strict=True))

    def set_small_task(self, at: int, **values: int) -> None:
        """A 16-bit TSS."""
        fields = {"link": 0, "sp0": 0xC000, "ss0": KDATA, "sp1": 0, "ss1": 0, "sp2": 0, "ss2": 0, "ip": 0x8000, "flags": 2}
        fields |= {"ax": 0x11, "cx": 0x12, "dx": 0x13, "bx": 0x14, "sp": 0xC400, "bp": 0x16, "si": 0x17, "di": 0x18}
        fields |= {"es": KDATA, "cs": KCODE, "ss": KDATA, "ds": KDATA, "ldt": 0}
        fields |= values
        self.memory.write(at, struct.pack("<22H", *fields.values()))

    def small_task(self, at: int) -> dict[str, int]:
        names = "link sp0 ss0 sp1 ss1 sp2 ss2 ip flags ax cx dx bx sp bp si di es cs ss ds ldt".split()
        return dict(zip(names, struct.unpack("<22H", self.memory.read(at, 44)), strict=True))

    # ---- running
    def registers(self, ring: int) -> dict[str, int]:
        """The state that programs of protected mode start in."""
        values: dict[str, int] = dict.fromkeys(GPR, 0)
        values |= {
            "cr0": 0x80010033, "cr2": 0, "cr3": TABLES, "cr4": 0, "efer": 0, "cpl": ring, "rflags": 2,
            "gdtr_base": GDT, "gdtr_limit": 0x1FF, "idtr_base": IDT, "idtr_limit": 0x7FF,
            "ldtr": LOCAL, "ldtr_base": LDT, "ldtr_limit": 0x3F, "ldtr_attr": 0x82,
            "tr": MAIN, "tr_base": MAIN_TSS, "tr_limit": 0x67, "tr_attr": 0x8B, "dr6": 0xFFFF0FF0, "dr7": 0x400,
            "dr0": 0, "dr1": 0, "dr2": 0, "dr3": 0,
        }  # fmt: skip
        code, data = ((KCODE, KDATA), (CODE1, DATA1), (CODE2, DATA2), (UCODE, UDATA))[ring]
        for name in SELECTORS:
            values |= {f"{name}_base": 0, f"{name}_limit": 0xFFFF_FFFF, f"{name}_attr": (CODE32 if name == "cs" else DATA32) | ring << 5}
            values[name] = code if name == "cs" else data
        values |= {"rip": USER_CODE if ring else KERNEL_CODE, "rsp": USER_STACK if ring else STACK_TOP - 0x400}
        return values

    def v86_registers(self) -> dict[str, int]:
        """The same of virtual-8086 mode: code at USER_CODE, data and stack in the first 64 KiB of DATA."""
        values = self.registers(3) | {"rflags": VM | 2, "rip": 0, "rsp": V86_STACK - DATA}
        for name in SELECTORS:
            selector = USER_CODE >> 4 if name == "cs" else DATA >> 4
            values |= {name: selector, f"{name}_base": selector << 4, f"{name}_limit": 0xFFFF, f"{name}_attr": 0xF3}
        return values

    def run(self, text: str, ring: int = 0, bits: int = 32, **registers: int) -> Result:
        """Assembles, runs from the start state with `registers` changed, until HLT or an exception."""
        self.memory.write(USER_CODE if ring else KERNEL_CODE, assembled(text + "\nhlt\n", bits))
        return self._run(self.registers(ring) | registers)

    def run_v86(self, text: str, **registers: int) -> Result:
        self.memory.write(USER_CODE, assembled(text + "\nhlt\n", 16))
        return self._run(self.v86_registers() | registers)

    def place(self, at: int, text: str, bits: int = 32) -> None:
        """Further code."""
        self.memory.write(at, assembled(text, bits))

    def _run(self, values: dict[str, int]) -> Result:
        exit_ = self._until_it_ends(values)
        state = self.engine.read_state()
        frame = None
        linear = state["cs_base"] + state["rip"] - 1
        if isinstance(exit_, Halt) and STUBS <= linear < STUBS + 8 * VECTORS:
            at = state["ss_base"] + state["rsp"]
            words = struct.unpack("<11I", self.memory.read(at, 44))
            count = 11 if words[4] & VM else 7 if words[3] & 3 != state["cs"] & 3 else 5
            frame = Frame(words[0] & 0xFF, *words[1:count])
            state["rsp"] += 8
        return Result(state, frame, exit_)


# ---- pieces of programs and of expectations
def fault(result: Result) -> tuple[int, int]:
    """(vector, error code) of the exception that ended the program."""
    return frame_of(result)[:2]


def frame_of(result: Result) -> Frame:
    assert result.frame is not None, f"no exception: {result.exit}, eip {result.registers['rip']:#x}"
    return result.frame


def jump(selector: int, offset: int = 0) -> str:
    """A far JMP, 7 bytes."""
    return f".byte 0xea\n.long {offset}\n.short {selector}"


def call(selector: int, offset: int = 0) -> str:
    return f".byte 0x9a\n.long {offset}\n.short {selector}"


def fault_of_task(guest: LegacyGuest, result: Result) -> tuple[int, int]:
    """The same of a handler that is a task: its stub found nothing but the error code on its stack."""
    assert STUBS <= result.registers["rip"] < STUBS + 0x800, result
    at = result.registers["rsp"] - 8
    vector, error = guest.memory.read_uint(at, 4), guest.memory.read_uint(at + 4, 4)
    assert at + 8 == STACK_TOP - 0x40
    return vector, error


def handler_task(guest: LegacyGuest, vector: int, text: str = "hlt", **values: int) -> None:
    guest.place(TASK_CODE, text)
    guest.set_gate(vector, gate(OTHER, kind=0xE5))
    guest.set_task(OTHER_TSS, **values)


def words(guest: LegacyGuest, at: int, count: int, size: int = 4) -> list[int]:
    return [guest.memory.read_uint(at + size * k, size) for k in range(count)]


def pushes(*values: int) -> str:
    return "".join(f"push {v}\n" for v in values)


def selector_of(ring: int) -> tuple[int, int]:
    return ((KCODE, KDATA), (CODE1, DATA1), (CODE2, DATA2), (UCODE, UDATA))[ring]
