"""Unicorn as the judge of real-address mode: segment loads, far transfers and flags images, which no Linux process can execute.

The interface of `HostCpu`.  What unicorn does not do and so does not judge: limits, INT n and exceptions through the vector table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import unicorn
from unicorn import x86_const as ux

from . import records, segments
from .legacy_loop import CODE, WINDOW
from .records import CASE, MAX_DIFFS, SLOT_BYTES, SLOT_ENTRY, WINDOW_BYTES

_GPR = [getattr(ux, f"UC_X86_REG_{n}") for n in ("EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI")]
_SEGMENT = [getattr(ux, f"UC_X86_REG_{n.upper()}") for n in segments.NAMES]
_RAM_BYTES = 0x120000


class UnicornCpu:
    """A bare 8086-like machine with the window and the code where real mode has them."""

    def __init__(self) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
        self.uc.mem_map(0, _RAM_BYTES)
        self.uc.mem_write(CODE, b"\xcc" * (segments.REAL_BLOCKS * segments.BLOCK_BYTES))
        self.base: Any = records.window_image()
        self._outside = False
        for begin, end in ((0, WINDOW - 1), (WINDOW + WINDOW_BYTES - 8, _RAM_BYTES)):
            self.uc.hook_add(unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE, self._note, begin=begin, end=end)

    def __enter__(self) -> UnicornCpu:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def _note(self, uc: Any, access: int, address: int, size: int, value: int, data: Any) -> None:
        self._outside |= address < WINDOW or address + size > WINDOW + WINDOW_BYTES

    def load_code(self, instructions: list[bytes], resume: bool = True, bits: int = 16) -> list[int]:
        for k, raw in enumerate(instructions):
            at = CODE + k * SLOT_BYTES
            self.uc.mem_write(at, b"\xcc" * SLOT_BYTES)
            self.uc.mem_write(at + SLOT_ENTRY, raw)
        self.uc.ctl_flush_tb()
        return [records.CODE_ADDR + k * SLOT_BYTES + SLOT_ENTRY for k in range(len(instructions))]

    def run(self, cases: Any) -> None:
        """Fills in the results; a case that leaves the window gets trap 14, as for the host a hole."""
        base = self.base.tobytes()
        for case in cases:
            self._run(case, base)

    def _run(self, case: Any, base: bytes) -> None:
        uc = self.uc
        uc.mem_write(WINDOW, base)
        for patch in case["patch"][: int(case["patches"])]:
            uc.mem_write(WINDOW + int(patch["offset"]), patch["bytes"].tobytes())
        for register, value in zip(_SEGMENT, case["segment"], strict=True):
            uc.reg_write(register, segments.PARAGRAPH[int(value)])
        for n, register in enumerate(_GPR):
            uc.reg_write(register, int(case["gpr"][n]))
        uc.reg_write(ux.UC_X86_REG_EFLAGS, int(case["rflags"]))
        self._outside = False
        case["trap"], case["error"], case["cr2"] = -1, 0, 0
        start = segments.PARAGRAPH[int(case["segment"][segments.CS])] * 16 + int(case["ip"])
        try:
            uc.emu_start(start, 0xFFFFFFFF, count=1)
        except unicorn.UcError:
            self._outside = True
        if self._outside:
            case["trap"], case["out_segment"] = 14, 0
            return
        case["out_fx"] = case["fx"]
        for n, register in enumerate(_GPR):
            case["out_gpr"][n] = uc.reg_read(register)
        case["out_rflags"] = uc.reg_read(ux.UC_X86_REG_EFLAGS)
        case["rip"] = uc.reg_read(ux.UC_X86_REG_EIP)
        for n, register in enumerate(_SEGMENT):
            case["out_segment"][n] = segments.SELECTOR_OF[uc.reg_read(register)]
        # The end of the instruction reads as the breakpoint behind it does.
        case["trap"] = 3
        case["rip"] += np.uint64(1)
        memory = bytes(uc.mem_read(WINDOW, WINDOW_BYTES))
        found = [k for k in range(0, WINDOW_BYTES, 8) if memory[k : k + 8] != base[k : k + 8]] if memory != base else []
        case["diffs"] = len(found)
        for n, k in enumerate(found[:MAX_DIFFS]):
            case["diff"][n] = k, int.from_bytes(memory[k : k + 8], "little")


assert CASE
