"""A small guest for system instructions: assembly in ring 0 or 3 runs in the emulating engine until HLT or an exception.

    0x1000 page tables   0x8000 GDT   0x9000 IDT   0xA000 TSS   0xB000-0xF000 ring-0 stack, IST stack at 0xE000
    0x10000 exception stubs   0x12000 code of ring 0   0x13000 code of ring 3   0x20000 data: user pages
    all of it mapped one to one; code and data of ring 3 are user pages, everything else is the supervisor's

A stub pushes a zero where the processor pushed no error code, then the vector, and halts: so a result shows every register
as the handler gets it, and the frame.
"""

from __future__ import annotations

import functools
import struct
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from ringfence.core.clock import ManualClock
from ringfence.engine import switches
from ringfence.engine.api import Exit, Halt, Interrupted
from ringfence.engine.emulate import EmulateEngine
from ringfence.isa.x86.state import GPR
from ringfence.memory.guest_memory import GuestMemory

from . import native_loop

TABLES, GDT, IDT, TSS, STACK_TOP, IST_TOP = 0x1000, 0x8000, 0x9000, 0xA000, 0xD000, 0xE000
STUBS, KERNEL_CODE, USER_CODE, DATA = 0x10000, 0x12000, 0x13000, 0x20000
RAM_BYTES = 0x400000
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
KERNEL_CS, KERNEL_SS, USER_SS, USER_CS, TSS_SELECTOR = 0x10, 0x18, 0x2B, 0x33, 0x40
CODE64, DATA_SEGMENT = 0xA9B, 0xC93
WITH_ERROR = (8, 10, 11, 12, 13, 14, 17, 21)
USER_STACK = DATA + 0x3000
VECTORS = 256
MAX_INTERRUPTIONS = 100


class Frame(NamedTuple):
    """An exception as its handler sees it."""

    vector: int
    error: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


class Result(NamedTuple):
    """Registers at the end, the exception if one was raised, and the engine's exit if it was not a HLT."""

    registers: dict[str, int]
    frame: Frame | None
    exit: Exit


class _Ports:
    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def read(self, address: int, size: int) -> int:
        return 0x12345678 & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        self.writes.append((address, size, value))


class _Devices:
    """No MMIO, no interrupts, no device MSRs; a task priority register for CR8."""

    def __init__(self) -> None:
        self.tpr = 0

    def read(self, address: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None: ...

    def pending(self) -> bool:
        return False

    def acknowledge(self) -> int:
        raise RuntimeError("no interrupt is pending")

    def set_tpr(self, value: int) -> None:
        self.tpr = value

    def get_tpr(self) -> int:
        return self.tpr

    def read_msr(self, index: int) -> int | None:
        return None

    def write_msr(self, index: int, value: int) -> bool:
        return False


@functools.cache
def assembled(text: str, bits: int = 64) -> bytes:
    return native_loop.assemble(f".intel_syntax noprefix\n.code{bits}\n.text\n{text}\n")


def descriptor(attributes: int, base: int = 0, limit: int = 0xFFFFF) -> int:
    """A segment descriptor; `attributes` are its bits 40-47 and 52-55 (SDM 3A 3.4.5)."""
    low = limit & 0xFFFF | (base & 0xFFFFFF) << 16 | (attributes & 0xFF) << 40
    return low | (limit >> 16) << 48 | (attributes >> 8) << 52 | (base >> 24 & 0xFF) << 56


def gate(target: int, selector: int = KERNEL_CS, kind: int = 0x8E, ist: int = 0) -> bytes:
    """A 64-bit IDT entry (SDM 3A figure 6-8)."""
    return struct.pack("<QQ", target & 0xFFFF | selector << 16 | ist << 32 | kind << 40 | (target >> 16 & 0xFFFF) << 48, target >> 32)


class EngineGuest(ABC):
    """One engine, used for many programs."""

    def __init__(self, name: str) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, RAM_BYTES, name)
        self.ports, self.devices = _Ports(), _Devices()
        self.engine = EmulateEngine(
            self.memory, self.ports, self.devices, self.devices, self.devices, ManualClock(), without=switches.from_environment()
        )
        self.reset()

    def close(self) -> None:
        self.engine.close()
        self.memory.close()

    @abstractmethod
    def reset(self) -> None:
        """Lays all tables out anew."""

    def _until_it_ends(self, values: dict[str, int]) -> Exit:
        self.engine.write_state(values)
        exit_ = self.engine.run(None)
        for _ in range(MAX_INTERRUPTIONS):
            if not isinstance(exit_, Interrupted):
                break
            exit_ = self.engine.run(None)
        return exit_


class SystemGuest(EngineGuest):
    def __init__(self) -> None:
        super().__init__("system")

    def reset(self) -> None:
        self.memory.write(0, bytes(0x100000))
        self.ports.writes.clear()
        self.devices.tpr = 0
        upper = PRESENT | WRITABLE | USER
        for level in range(3):
            self.memory.write_uint(TABLES + level * 0x1000, 8, TABLES + (level + 1) * 0x1000 | upper)
        for page in range(512):
            user = USER if page << 12 >= DATA or page << 12 == USER_CODE else 0
            self.memory.write_uint(TABLES + 0x3000 + 8 * page, 8, page << 12 | PRESENT | WRITABLE | user)
        tss = descriptor(0x8B, TSS, 0x67)
        user_data, user_code = descriptor(DATA_SEGMENT | 0x60), descriptor(CODE64 | 0x60)
        entries = {2: descriptor(CODE64), 3: descriptor(DATA_SEGMENT), 5: user_data, 6: user_code, 8: tss}
        self.memory.write(GDT, b"".join(struct.pack("<Q", entries.get(n, 0)) for n in range(32)))
        stubs = "".join(
            f".balign 8, 0xcc\n{'' if n in WITH_ERROR else 'push 0'}\npush {n - 256 if n > 127 else n}\nhlt\n" for n in range(VECTORS)
        )
        self.memory.write(STUBS, assembled(stubs))
        for vector in range(VECTORS):
            self.set_gate(vector)
        self.memory.write(TSS + 4, struct.pack("<Q", STACK_TOP))
        self.memory.write(TSS + 0x24, struct.pack("<Q", IST_TOP))
        self.memory.write(TSS + 0x66, struct.pack("<H", 0x68))

    # ---- tables
    def set_gate(self, vector: int, kind: int = 0x8E, ist: int = 0, selector: int = KERNEL_CS) -> None:
        self.memory.write(IDT + 16 * vector, gate(STUBS + 8 * vector, selector, kind, ist))

    def set_descriptor(self, selector: int, value: int) -> None:
        self.memory.write_uint(GDT + (selector & ~7), 8, value)

    def set_page(self, linear: int, entry: int) -> None:
        """The page-table entry of one of the first 512 pages."""
        self.memory.write_uint(self.page_entry(linear), 8, entry)

    def page_entry(self, linear: int) -> int:
        return TABLES + 0x3000 + 8 * (linear >> 12)

    def set_register(self, name: str, value: int) -> None:
        self.engine.write_state({name: value})

    # ---- running
    def registers(self, cpl: int) -> dict[str, int]:
        """The state that programs start in."""
        values: dict[str, int] = dict.fromkeys((name for name in GPR if name != "rsp"), 0)
        values |= {
            "cr0": 0x80050033, "cr2": 0, "cr3": TABLES, "cr4": 0x620, "efer": 0xD01, "cpl": cpl, "rflags": 2,
            "gdtr_base": GDT, "gdtr_limit": 0xFF, "idtr_base": IDT, "idtr_limit": 0xFFF, "ldtr": 0, "ldtr_limit": 0,
            "tr": TSS_SELECTOR, "tr_base": TSS, "tr_limit": 0x67, "tr_attr": 0x8B, "mxcsr": 0x1F80, "fcw": 0x37F, "fsw": 0,
            "dr0": 0, "dr1": 0, "dr2": 0, "dr3": 0, "dr6": 0xFFFF0FF0, "dr7": 0x400,
            "star": 0x0023_0010 << 32, "lstar": KERNEL_CODE + 0x800, "fmask": 0x4700,
            "gs_base": 0, "kernel_gs_base": 0, "fs_base": 0, "sysenter_cs": KERNEL_CS, "sysenter_esp": STACK_TOP,
            "sysenter_eip": KERNEL_CODE + 0x800,
        }  # fmt: skip
        privilege = cpl << 5
        for name in ("ds", "es", "fs", "gs", "ss"):
            values |= {name: 0, f"{name}_base": 0, f"{name}_limit": 0xFFFF_FFFF, f"{name}_attr": DATA_SEGMENT | privilege}
        values |= {"cs": USER_CS if cpl else KERNEL_CS, "ss": USER_SS if cpl else KERNEL_SS, "cs_attr": CODE64 | privilege}
        values |= {"rip": USER_CODE if cpl else KERNEL_CODE, "rsp": USER_STACK if cpl else STACK_TOP - 0x400}
        return values

    def run(self, text: str, cpl: int = 0, **registers: int) -> Result:
        """Assembles, runs from the start state with `registers` changed, until HLT or an exception."""
        self.memory.write(USER_CODE if cpl else KERNEL_CODE, assembled(text + "\nhlt\n"))
        self.memory.write(KERNEL_CODE + 0x800, b"\xf4")  # where SYSCALL and SYSENTER arrive
        values = self.registers(cpl) | registers
        exit_ = self._until_it_ends(values)
        state: dict[str, Any] = self.engine.read_state()
        frame = None
        if isinstance(exit_, Halt) and STUBS <= state["rip"] - 1 < STUBS + 8 * VECTORS:
            words = struct.unpack("<7Q", self.memory.read(state["rsp"], 56))
            frame = Frame(words[0] & 0xFF, *words[1:])
            state["rsp"] += 16
        return Result(state, frame, exit_)
