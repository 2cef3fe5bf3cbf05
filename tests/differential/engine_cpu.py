"""The emulating engine as a party of the comparison: the same loop as the host's child runs, as a guest program.

The guest is a ring-3 program at the child's linear addresses, with page tables, IDT and TSS around it; a few instructions
of ring 0 take every exception and go on behind the instruction, as the child's signal handler does.  So one case passes
through stencils, flags across block ends, the soft TLB, the page walk and the delivery of exceptions.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ringfence.core.clock import Clock
from ringfence.engine import switches
from ringfence.engine.api import Halt
from ringfence.engine.emulate import EmulateEngine
from ringfence.memory.guest_memory import GuestMemory

from . import native_loop, records, segments
from .records import CASE, PAGE, SLOT_BYTES, SLOT_ENTRY

KERNEL_BASE = 0xFFFF_8000_0000_0000  # all of RAM, for ring 0 only
TABLES, GDT, IDT, TSS, LDT, STACK_TOP, STUBS = 0x1000, 0x90000, 0x91000, 0x92000, 0x93000, 0x95000, 0x96000  # guest physical
WINDOW, READ_ONLY, IMAGE = 0xA0000, 0xA4000, 0x200000
RAM_BYTES = (IMAGE + records.MEMFD_BYTES + (1 << 21)) & ~0xFFF
USER_CS, USER_SS, KERNEL_CS, KERNEL_SS, TSS_SELECTOR, LDT_SELECTOR = 0x33, 0x2B, 0x10, 0x18, 0x40, 0x50
PRESENT, WRITABLE, USER, NX = 1, 2, 4, 1 << 63
END_VECTOR = 0x80
_WITH_ERROR = (8, 10, 11, 12, 13, 14, 17, 21)
_CODE64, _CODE32, _DATA = 0xA9B, 0xC9B, 0xC93


class GuestTrouble(Exception):
    """The guest did not reach the end of its loop."""


class Nothing:
    """Ports, MMIO, interrupts and MSRs of a machine without devices."""

    def read(self, address: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None: ...

    def pending(self) -> bool:
        return False

    def acknowledge(self) -> int:
        raise RuntimeError("no interrupt is pending")

    def read_msr(self, index: int) -> int | None:
        return None

    def write_msr(self, index: int, value: int) -> bool:
        return False


def _stubs_source() -> str:
    """Entry points of all exceptions, 16 bytes each, and what they share."""
    v = {name: f"qword ptr ds:[{native_loop.variable(name):#x}]" for name in ("active", "trap", "error", "cr2", "rip", "cs")}
    leave = records.LOOP_ADDR + native_loop.LEAVE
    entries = "\n".join(
        f".balign 16, 0xcc\n{'' if n in _WITH_ERROR else 'push 0'}\npush {n}\njmp common" if n != END_VECTOR else ".balign 16, 0xcc\nhlt"
        for n in (*range(32), END_VECTOR)
    )
    return f"""
    .intel_syntax noprefix
    .text
    {entries}
    .balign 16, 0xcc
    common:
    push rax
    cmp {v["active"]}, 0
    je fatal
    mov rax, [rsp + 8]
    mov {v["trap"]}, rax
    mov rax, [rsp + 16]
    mov {v["error"]}, rax
    mov rax, cr2
    mov {v["cr2"]}, rax
    mov rax, [rsp + 24]
    mov {v["rip"]}, rax
    cmp {v["cs"]}, 0
    je same
    mov rax, [rsp + 32]
    mov {v["cs"]}, rax
    mov qword ptr [rsp + 32], {USER_CS}
same:
    mov rax, {leave}
    mov [rsp + 24], rax
    and qword ptr [rsp + 40], -0x101
    pop rax
    add rsp, 16
    iretq
    fatal:
    mov rax, 0x0badc0de
    hlt
"""


class EngineCpu:
    """One guest machine; the interface of `HostCpu`."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        region = self.memory.add_ram(0, RAM_BYTES, "judge")
        view = region.view
        self.cases: Any = np.frombuffer(view, CASE, records.RECORDS, IMAGE + records.RECORDS_AT)
        self._variables: Any = np.frombuffer(view, "<u8", 64, IMAGE + records.SCRATCH_AT)
        self._window: Any = np.frombuffer(view, "u1", records.WINDOW_BYTES, WINDOW)
        self._next_table = TABLES
        self._root = self._new_table()
        self._map_everything()
        self._write_tables()
        nothing = Nothing()
        self.engine = EmulateEngine(self.memory, nothing, nothing, nothing, nothing, Clock(), without=switches.from_environment())
        loop = native_loop.assemble(native_loop.source(end=f"int {END_VECTOR:#x}", linux=False))
        self.memory.write(IMAGE + records.LOOP_AT, loop)
        self.memory.write(IMAGE + records.CODE_AT, b"\xcc" * (records.SLOTS * SLOT_BYTES))
        self.memory.write(STUBS, native_loop.assemble(_stubs_source()))

    def __enter__(self) -> EngineCpu:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()
        del self.cases, self._variables, self._window
        self.memory.close()

    # ---- the guest's tables
    def _new_table(self) -> int:
        table = self._next_table
        self._next_table += PAGE
        assert self._next_table <= GDT
        return table

    def map(self, linear: int, physical: int, size: int, rights: int) -> None:
        """Maps 4 KiB pages; the upper levels grant everything (SDM 3A 4.5)."""
        for offset in range(0, size, PAGE):
            table = self._root
            for shift in (39, 30, 21):
                at = table + ((linear + offset >> shift) & 511) * 8
                entry = self.memory.read_uint(at, 8)
                if not entry:
                    entry = self._new_table() | PRESENT | WRITABLE | USER
                    self.memory.write_uint(at, 8, entry)
                table = entry & ~0xFFF
            self.memory.write_uint(table + ((linear + offset >> 12) & 511) * 8, 8, physical + offset | rights)

    def _map_everything(self) -> None:
        user = PRESENT | USER
        r = records
        self.map(KERNEL_BASE, 0, IMAGE, PRESENT | WRITABLE)
        self.map(r.SCRATCH_ADDR, IMAGE + r.SCRATCH_AT, PAGE, user | WRITABLE | NX)
        self.map(r.BASE_ADDR, IMAGE + r.BASE_AT, r.WINDOW_BYTES, user | NX)
        self.map(r.LOOP_ADDR, IMAGE + r.LOOP_AT, r.CODE_AT - r.LOOP_AT, user)
        self.map(r.CODE_ADDR, IMAGE + r.CODE_AT, r.SLOTS * SLOT_BYTES, user)
        self.map(r.RECORDS_ADDR, IMAGE + r.RECORDS_AT, r.RECORDS * CASE.itemsize, user | WRITABLE | NX)
        self.map(r.WINDOW_ADDR, WINDOW, r.WINDOW_BYTES, user | WRITABLE | NX)
        self.map(r.READ_ONLY_ADDR, READ_ONLY, PAGE, user | NX)

    def _write_tables(self) -> None:
        def flat(attributes: int) -> int:
            return 0xFFFF | (attributes & 0xFF) << 40 | 0xF << 48 | (attributes >> 8) << 52

        base = KERNEL_BASE + TSS
        tss = 0x67 | (base & 0xFFFFFF) << 16 | 0x8B << 40 | (base >> 24 & 0xFF) << 56
        # Linux's own layout, as far as user code sees it.
        entries = {
            2: flat(_CODE64),
            3: flat(_DATA),
            4: flat(_CODE32 | 0x60),
            5: flat(_DATA | 0x60),
            6: flat(_CODE64 | 0x60),
            8: tss,
            9: base >> 32,
        }
        self.memory.write(GDT, b"".join(struct.pack("<Q", entries.get(n, 0)) for n in range(10)))
        self.memory.write(LDT, segments.LDT)
        for k, vector in enumerate((*range(32), END_VECTOR)):
            target = KERNEL_BASE + STUBS + 16 * k
            kind = 0xEE if vector in (3, 4, END_VECTOR) else 0x8E
            low = target & 0xFFFF | KERNEL_CS << 16 | kind << 40 | (target >> 16 & 0xFFFF) << 48
            self.memory.write(IDT + 16 * vector, struct.pack("<QQ", low, target >> 32))
        self.memory.write(TSS + 4, struct.pack("<Q", KERNEL_BASE + STACK_TOP))
        self.memory.write(TSS + 0x66, struct.pack("<H", 0x68))  # no I/O permission bitmap

    def registers(self) -> dict[str, int]:
        """The state at the start of a batch."""
        values: dict[str, int] = {
            "cr0": 0x80050033, "cr3": self._root, "cr4": 0x620, "efer": 0xD01, "cpl": 3, "rflags": 0x202,
            "gdtr_base": KERNEL_BASE + GDT, "gdtr_limit": 79, "idtr_base": KERNEL_BASE + IDT, "idtr_limit": 0xFFF,
            "tr": TSS_SELECTOR, "tr_base": KERNEL_BASE + TSS, "tr_limit": 0x67, "tr_attr": 0x8B,
            "ldtr": LDT_SELECTOR, "ldtr_base": KERNEL_BASE + LDT, "ldtr_limit": len(segments.LDT) - 1, "ldtr_attr": 0x82,
            "rip": records.LOOP_ADDR + native_loop.RUN, "rsp": records.SCRATCH_ADDR + 0xF00,
            "mxcsr": 0x1F80, "fcw": 0x37F,
        }  # fmt: skip
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            values |= {name: 0, f"{name}_base": 0, f"{name}_limit": 0xFFFF_FFFF, f"{name}_attr": _DATA | 0x60}
        values |= {"cs": USER_CS, "cs_attr": _CODE64 | 0x60, "ss": USER_SS, "gs_base": records.GS_BASE}
        return values

    # ---- the interface of HostCpu
    def set_base(self, base: bytes) -> None:
        """The window's content between cases: the host's."""
        self.memory.write(IMAGE + records.BASE_AT, base)
        self.memory.write(READ_ONLY, records.read_only_image(base))
        self._window[:] = np.frombuffer(base, "u1")

    def load_code(self, instructions: dict[int, bytes], bits: int = 64) -> None:
        """Places instructions at their addresses, each within a slot of its own."""
        for entry, raw in instructions.items():
            slot = bytearray(b"\xcc" * SLOT_BYTES)
            code = raw + native_loop.way_back(bits, entry + len(raw))
            slot[SLOT_ENTRY : SLOT_ENTRY + len(code)] = code
            self.memory.write(IMAGE + records.CODE_AT + (entry - SLOT_ENTRY - records.CODE_ADDR), bytes(slot))

    def dangerous(self, wanted: Any) -> Any:
        """Cases that would harm this machine's own memory: none, it has rings."""
        return np.zeros(len(wanted), bool)

    def undecided(self, got: Any, wanted: Any) -> Any:
        """Cases that the host and this machine cannot agree on, for reasons of their surroundings."""
        return np.zeros(len(got), bool)

    def forgive(self, got: Any, wanted: Any, base: bytes) -> None:
        """Takes out of a result what this machine's surroundings did to it: nothing."""

    def run(self, cases: Any) -> None:
        """Executes up to RECORDS cases and fills in their results; raises GuestTrouble when the guest gets lost."""
        n = len(cases)
        self.cases[:n] = cases
        self._variables[:] = 0
        engine = self.engine
        values = self.registers()
        values |= {"rdi": records.RECORDS_ADDR, "rsi": records.RECORDS_ADDR + n * CASE.itemsize}
        engine.write_state(values)
        exit_ = engine.run(None)
        state = engine.read_state()
        if not isinstance(exit_, Halt) or state["rip"] != KERNEL_BASE + STUBS + 16 * 32 + 1:
            record = int(self._variables[native_loop.record_variable()])
            at = (record - records.RECORDS_ADDR) // CASE.itemsize if record else -1
            raise GuestTrouble(f"case {at}: {exit_}, rip {state['rip']:#x}, cr2 {state['cr2']:#x}")
        cases[:] = self.cases[:n]
