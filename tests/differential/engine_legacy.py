"""The emulating engine as a 32-bit machine: cases in 16- and 32-bit protected mode, virtual-8086 mode and real mode.

Where `engine_cpu` runs them as programs of a 64-bit system, these run under a 32-bit one: PAE paging, 32-bit gates and TSS, or
no paging at all.  The loop is `legacy_loop`'s.
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

from . import legacy_loop as loop
from . import native_loop, records, segments
from .engine_cpu import GuestTrouble, Nothing
from .legacy_loop import KERNEL, PROTECTED, REAL_MODE, VIRTUAL
from .records import CASE, PAGE, SLOT_BYTES, SLOT_ENTRY

RAM_BYTES = (loop.RECORDS + records.RECORDS * CASE.itemsize + (1 << 20)) & ~0xFFF
PRESENT, WRITABLE, USER, NX = 1, 2, 4, 1 << 63
_CODE32, _CODE16, _DATA, _DATA16 = 0xC9B, 0x09B, 0xC93, 0x093
TIMEOUT_NS = 120_000_000_000  # for a batch; most of it is translation
REAL_SLOTS = segments.REAL_BLOCKS * segments.BLOCK_BYTES // SLOT_BYTES


class EngineLegacy:
    """One guest machine of 32 bits; `kind` says in which mode its cases run."""

    def __init__(self, kind: int, judge_ignores_limits: bool = False) -> None:
        self.kind = kind
        self.judge_ignores_limits = judge_ignores_limits
        self.memory = GuestMemory()
        view = self.memory.add_ram(0, RAM_BYTES, "judge").view
        self.cases: Any = np.frombuffer(view, CASE, records.RECORDS, loop.RECORDS)
        self._variables: Any = np.frombuffer(view, "<u8", 16, loop.SCRATCH)
        self._next_table = loop.TABLES + PAGE  # the first page holds the page-directory-pointer table
        self._base = 0xFFFFFFFF & -KERNEL if kind == REAL_MODE else 0  # of the loop's segments: without paging, linear is physical
        self._map_everything()
        self._write_tables()
        nothing = Nothing()
        self.engine = EmulateEngine(self.memory, nothing, nothing, nothing, nothing, Clock(), without=switches.from_environment())
        self.memory.write(loop.LOOP, loop.protected_part())
        self.memory.write(loop.REAL, loop.real_part())
        self.memory.write(loop.USER, loop.user_part())
        self.memory.write(loop.CODE, b"\xcc" * (records.SLOTS * SLOT_BYTES))

    def __enter__(self) -> EngineLegacy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()
        del self.cases, self._variables
        self.memory.close()

    # ---- the guest's tables
    def map(self, linear: int, physical: int, size: int, rights: int) -> None:
        """Maps 4 KiB pages with PAE (SDM 3A 4.4)."""
        for offset in range(0, size, PAGE):
            at, flags = loop.TABLES + 8 * (linear + offset >> 30), PRESENT
            for shift in (21, 12):
                entry = self.memory.read_uint(at, 8)
                if not entry:
                    entry = self._next_table | flags
                    self._next_table += PAGE
                    assert self._next_table <= loop.RECORDS
                    self.memory.write_uint(at, 8, entry)
                at, flags = (entry & ~0xFFF) + 8 * (linear + offset >> shift & 511), PRESENT | WRITABLE | USER
            self.memory.write_uint(at, 8, physical + offset | rights)

    def _map_everything(self) -> None:
        r, user = records, PRESENT | USER
        self.map(KERNEL, 0, RAM_BYTES, PRESENT | WRITABLE)
        if self.kind == PROTECTED:
            window, read_only, code = r.WINDOW_ADDR, r.READ_ONLY_ADDR, r.CODE_ADDR
        else:
            window, read_only, code = loop.WINDOW, loop.READ_ONLY, loop.CODE
        self.map(loop.USER_ADDR, loop.USER, PAGE, user)
        self.map(window, loop.WINDOW, r.WINDOW_BYTES, user | WRITABLE | NX)
        self.map(read_only, loop.READ_ONLY, PAGE, user | NX)
        self.map(code, loop.CODE, r.SLOTS * SLOT_BYTES if self.kind == PROTECTED else REAL_SLOTS * SLOT_BYTES, user)

    def _write_tables(self) -> None:
        def entry(attributes: int, base: int = 0, limit: int = 0xFFFFF) -> int:
            base &= 0xFFFFFFFF
            return (
                limit & 0xFFFF
                | (base & 0xFFFFFF) << 16
                | (attributes & 0xFF) << 40
                | (limit >> 16) << 48
                | (attributes >> 8) << 52
                | (base >> 24) << 56
            )

        b = self._base
        table = {
            loop.KERNEL_CS: entry(_CODE32, b), loop.KERNEL_DS: entry(_DATA, b), segments.USER_CS32: entry(_CODE32 | 0x60),
            segments.USER_DS: entry(_DATA | 0x60), segments.USER_CS64: entry(0xA9B | 0x60), 0x40: entry(0x8B, b + KERNEL + loop.TSS, 0x67),
            loop.CS16: entry(_CODE16, loop.REAL, 0xFFFF), loop.DS16: entry(_DATA16, 0, 0xFFFF),
        }  # fmt: skip
        table = {selector & ~7: value for selector, value in table.items()}
        self.memory.write(loop.GDT, b"".join(struct.pack("<Q", table.get(n, 0)) for n in range(0, 0x70, 8)))
        self.memory.write(loop.LDT, segments.LDT)
        for n in range(32):
            target = KERNEL + loop.LOOP + loop.STUBS + 16 * n
            kind = 0xEE if n in (3, 4) else 0x8E
            gate = target & 0xFFFF | loop.KERNEL_CS << 16 | kind << 40 | (target >> 16) << 48
            self.memory.write(loop.IDT + 8 * n, struct.pack("<Q", gate))
            if self.kind == REAL_MODE:
                self.memory.write(4 * n, struct.pack("<HH", loop.STUBS16 + 16 * n, loop.REAL >> 4))
        self.memory.write(loop.TSS + 4, struct.pack("<II", KERNEL + loop.STACK_TOP, loop.KERNEL_DS))
        self.memory.write(loop.TSS + 0x66, struct.pack("<H", 0x68))  # no I/O permission bitmap

    def registers(self) -> dict[str, int]:
        """The state at the start of a batch: ring 0, at the loop's beginning."""
        b, paged = self._base, self.kind != REAL_MODE
        values: dict[str, int] = {
            "cr0": 0x80050033 if paged else 0x00050033, "cr3": loop.TABLES, "cr4": 0x620, "efer": 0x800 if paged else 0,
            "cpl": 0, "rflags": 2, "gdtr_base": b + KERNEL + loop.GDT, "gdtr_limit": 0x6F,
            "idtr_base": b + KERNEL + loop.IDT if paged else 0, "idtr_limit": 0xFF if paged else 0x3FF,
            "tr": 0x40, "tr_base": b + KERNEL + loop.TSS, "tr_limit": 0x67, "tr_attr": 0x8B,
            "ldtr": 0x48, "ldtr_base": b + KERNEL + loop.LDT, "ldtr_limit": len(segments.LDT) - 1, "ldtr_attr": 0x82,
            "rip": KERNEL + loop.LOOP, "rsp": KERNEL + loop.STACK_TOP, "mxcsr": 0x1F80, "fcw": 0x37F,
        }  # fmt: skip
        for name in ("gdtr_base", "tr_base", "ldtr_base"):
            values[name] &= 0xFFFFFFFF
        for name in segments.NAMES:
            values |= {name: loop.KERNEL_DS, f"{name}_base": b, f"{name}_limit": 0xFFFF_FFFF, f"{name}_attr": _DATA}
        return values | {"cs": loop.KERNEL_CS, "cs_attr": _CODE32}

    # ---- the interface of EngineCpu
    def set_base(self, base: bytes) -> None:
        """The window's content between cases: the host's."""
        self.memory.write(loop.BASE, base)
        for at in (loop.READ_ONLY, loop.READ_ONLY_COPY):
            self.memory.write(at, records.read_only_image(base))
        self.memory.write(loop.WINDOW, base)

    def load_code(self, instructions: dict[int, bytes], bits: int = 32) -> None:
        """Places instructions; behind them int3, or in real mode a jump back."""
        back = b"\xea" + struct.pack("<HH", loop.LEAVE16, loop.REAL >> 4) if self.kind == REAL_MODE else b""
        for entry, raw in instructions.items():
            slot = bytearray(b"\xcc" * SLOT_BYTES)
            slot[SLOT_ENTRY : SLOT_ENTRY + len(raw) + len(back)] = raw + back
            self.memory.write(loop.CODE + (entry - SLOT_ENTRY - records.CODE_ADDR), bytes(slot))

    def dangerous(self, wanted: Any) -> Any:
        """Cases that would harm this machine's own memory, in real mode: with a stack or a jump anywhere, or with stores where
        the host has none."""
        if self.kind != REAL_MODE:
            return np.zeros(len(wanted), bool)
        known = list(segments.PARAGRAPH)
        sp = wanted["out_gpr"][:, 4] & np.uint64(0xFFFF)
        no_frame = (sp > 0) & (sp < np.uint64(8))  # no room for the frame of the breakpoint behind the instruction
        return (
            (wanted["trap"] == 14)
            | no_frame
            | ~(np.isin(wanted["out_segment"][:, segments.SS], known) & np.isin(wanted["out_segment"][:, segments.CS], known))
        )

    def undecided(self, got: Any, wanted: Any) -> Any:
        """Cases that the host and this machine cannot agree on, for reasons of their surroundings."""
        if self.kind == REAL_MODE:  # no paging, so no holes
            no_limits = self.judge_ignores_limits & np.isin(got["trap"], (12, 13)) & (wanted["trap"] == -1)
            return (got["trap"] == 14) | no_limits
        if self.kind == PROTECTED:  # no 64-bit code segments
            return (got["out_segment"][:, segments.CS] == segments.USER_CS64) | (
                wanted["out_segment"][:, segments.CS] == segments.USER_CS64
            )
        return np.zeros(len(got), bool)

    def forgive(self, got: Any, wanted: Any, base: bytes) -> None:
        """The frame that an exception in real mode pushes on the case's own stack is the engine's right: takes the other's bytes there."""
        if self.kind != REAL_MODE or got["trap"] < 0:
            return
        top = int(segments.BASE[int(got["out_segment"][segments.SS])]) - records.WINDOW_ADDR
        got["out_rflags"] = got["out_rflags"] & np.uint64(0xFFFF) | wanted["out_rflags"] & ~np.uint64(0xFFFF)  # a frame has 16 bits
        ours, theirs = _image(got, base), _image(wanted, base)
        for k in range(1, 7):
            at = top + ((int(got["out_gpr"][4]) - k) & 0xFFFF)
            if 0 <= at < records.WINDOW_BYTES:
                ours[at] = theirs[at]
        found = [k for k in range(0, records.WINDOW_BYTES, 8) if ours[k : k + 8] != base[k : k + 8]]
        got["diffs"] = len(found)
        for n, k in enumerate(found[: records.MAX_DIFFS]):
            got["diff"][n] = k, int.from_bytes(ours[k : k + 8], "little")

    def run(self, cases: Any) -> None:
        """Executes up to RECORDS cases and fills in their results; raises GuestTrouble when the guest gets lost."""
        n = len(cases)
        self.cases[:n] = cases
        mine = self.cases[:n]
        if self.kind != PROTECTED:
            for selector, paragraph in segments.PARAGRAPH.items():
                mine["segment"][cases["segment"] == selector] = paragraph
        first = KERNEL + loop.RECORDS
        self._variables[:] = 0
        for name, value in (("record", first), ("end", first + n * CASE.itemsize), ("kind", self.kind)):
            self._variables[loop.VARIABLES.index(name)] = value
        self.engine.write_state(self.registers())
        exit_ = self.engine.run(self.engine.clock.now_ns() + TIMEOUT_NS)
        state = self.engine.read_state()
        record = int(self._variables[0])
        if not isinstance(exit_, Halt) or state["rax"] == 0x0BADC0DE or record != first + (n - 1) * CASE.itemsize:
            raise GuestTrouble(f"case {(record - first) // CASE.itemsize}: {exit_}, {state['cs']:x}:{state['rip']:x} cr2 {state['cr2']:x}")
        cases[:] = mine
        self._translate_back(cases)

    def _translate_back(self, cases: Any) -> None:
        """Results in the host's terms: its selectors, its linear addresses, -1 for an instruction that ended by itself."""
        if self.kind != PROTECTED:
            for field in ("segment", "out_segment"):
                cases[field] = segments.SELECTOR_OF[cases[field]]
            cases["out_rflags"] &= ~np.uint64(0x20000)
            low = cases["cr2"] < np.uint64(0x200000)
            cases["cr2"] = np.where(low, cases["cr2"] + np.uint64(records.WINDOW_ADDR - segments.REAL_WINDOW), cases["cr2"])


def _image(case: Any, base: bytes) -> bytearray:
    """The window after a case."""
    image = bytearray(base)
    for diff in case["diff"][: min(int(case["diffs"]), records.MAX_DIFFS)]:
        image[int(diff["offset"]) : int(diff["offset"]) + 8] = int(diff["value"]).to_bytes(8, "little")
    return image


__all__ = ["PROTECTED", "REAL_MODE", "VIRTUAL", "EngineLegacy", "native_loop"]
