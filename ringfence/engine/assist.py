"""The engine's Python side: instructions that translated code leaves to the reference interpreter or to devices.

MMIO, read-modify-writes across a page end or over code, floating point with unmasked exceptions, single steps, and the
instructions with tables behind them (CPUID, most MSRs, HLT, CR8, port strings).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from ringfence.engine.api import AddressSpace, InterruptController, MsrHandler
from ringfence.engine.breakpoints import Breakpoints
from ringfence.engine.cpuid import cpuid
from ringfence.engine.vcpu_state import VcpuState
from ringfence.ir.interpret import GuestFault, Interpreter, Outcome
from ringfence.ir.value import Op
from ringfence.isa.x86.context import AC as ALIGNMENT_CHECK
from ringfence.isa.x86.context import DB, DEFER, GP, PF, Form, trace_form
from ringfence.isa.x86.decode import MAX_INSTRUCTION_BYTES, Decoded, decode, decoder
from ringfence.isa.x86.fp_available import fp_fault
from ringfence.isa.x86.state import AC, REQUEST_FLUSH, REQUEST_MODE, RF, TF
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.lower import DEFERRED, SYSTEM_ACCESS
from ringfence.translate.runtime import EXECUTE, MODE_FP_SLOW, MODE_STEP, MODE_TABLE, READ, WALK_FAULT, WRITE

_MASK64 = (1 << 64) - 1
_CR0_AM = 1 << 18
_ALIGNMENT = {2: 2, 4: 4, 8: 8, 10: 8}  # SDM 3A table 6-7, by the size of the operand

# MSRs kept in the vCPU's state: index -> (field, bits that may be set).
_STATE_MSRS = {
    0x174: ("sysenter_cs", _MASK64),
    0x175: ("sysenter_esp", _MASK64),
    0x176: ("sysenter_eip", _MASK64),
    0x277: ("pat", _MASK64),
    0xC0000080: ("efer", 0xD01),
    0xC0000081: ("star", _MASK64),
    0xC0000082: ("lstar", _MASK64),
    0xC0000083: ("cstar", _MASK64),
    0xC0000084: ("fmask", 0xFFFFFFFF),
    0xC0000100: ("fs_base", _MASK64),
    0xC0000101: ("gs_base", _MASK64),
    0xC0000102: ("kernel_gs_base", _MASK64),
    0xC0000103: ("tsc_aux", 0xFFFFFFFF),
}
_CANONICAL_MSRS = frozenset((0x175, 0x176, 0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102))
_MTRR_VARIABLE = 8
# Read as told and swallow writes: MTRRs (memory types have no meaning here), machine check banks, microcode, K8's own.
_INERT_MSRS = {
    0x8B: 0x1000065,
    0xFE: 0x508,
    0x179: 0,
    0x17A: 0,
    0x1D9: 0,
    0x2FF: 0,
    0xC0010015: 0,
    0xC001001F: 0,
    0xC0010010: 0,
    0xC0010055: 0,
    0xC0010117: 0,
    0xC0010140: 0,
    0xC0011029: 0,
    **{0x200 + n: 0 for n in range(2 * _MTRR_VARIABLE)},
    **dict.fromkeys((0x250, 0x258, 0x259, *range(0x268, 0x270)), 0),
}
DR6_SINGLE_STEP = 1 << 14
_NO_TRAP = frozenset(("int", "int3", "int1", "mov ss", "lss"))  # they clear TF, or hold debug traps off (SDM 3A 6.8.3)
_PORT_STRING_TURN = 64  # elements between looks at interrupts and the clock
_MAX_TRACES = 4096
EFER_LMA = 1 << 10
EFER_LME = 1 << 8


class LinearMemory:
    """Guest memory by linear address with the guest's rights, for the interpreter (`ir.interpret.Memory`)."""

    def __init__(self, memory: CodeMemory, native: Any, state: VcpuState, mmio: AddressSpace, read_tsc: Callable[[], int]) -> None:
        self._memory = memory
        self._native = native
        self._state = state
        self._mmio = mmio
        self._cpu = memory.cpu
        self.breakpoints = Breakpoints(state)
        self.read_tsc = read_tsc

    def _table(self, system: bool) -> int:
        table = self._memory.word("mode") & MODE_TABLE
        return 0 if system and table == 1 else table

    def floating_point_checked(self) -> bool:
        """Whether CR0 or CR4 may forbid floating point: then compiled code executes none of it."""
        return bool(self._memory.word("mode") & MODE_FP_SLOW)

    def _fault(self) -> GuestFault:
        vector = int(self._state["exc_vector"])
        return GuestFault(vector, int(self._state["exc_error"]) & 0xFFFFFFFF, self._memory.word("fault_addr") if vector == PF else None)

    def _physical(self, address: int, access: int, table: int) -> int:
        pa = int(self._native.walk(self._cpu, address, access, table))
        if pa & WALK_FAULT:
            self._native.raise_page_fault(self._cpu, address, pa)
            raise self._fault()
        return pa

    def _check_alignment(self, address: int, size: int) -> None:
        """#AC (SDM 3A 6.15): such programs run one instruction at a time, so compiled code does not check."""
        state = self._state
        if address % _ALIGNMENT.get(size, 1) and state["cpl"] == 3 and state["rflags_sys"] & AC and state["cr0"] & _CR0_AM:
            raise GuestFault(ALIGNMENT_CHECK)

    def load(self, address: int, size: int, write: bool, system: bool = False) -> int:
        address &= _MASK64
        if not system and self._memory.word("mode") & MODE_STEP:
            self._check_alignment(address, size)
            self.breakpoints.touch(address, size, False)
        if (address & 0xFFF) + size > 4096:
            first = 4096 - (address & 0xFFF)
            low = self.load(address, first, write, system)
            return low | self.load(address + first, size - first, write, system) << 8 * first
        table = self._table(system)
        pointer = (self._native.write_pointer if write else self._native.read_pointer)(self._cpu, address, table)
        if pointer:
            return int.from_bytes(ctypes.string_at(pointer, size), "little")
        if self._memory.word("status") != DEFERRED:
            raise self._fault()
        pa = self._physical(address, WRITE if write else READ, table)
        if size in (1, 2, 4, 8):
            return self._mmio.read(pa, size)
        return int.from_bytes(b"".join(self._mmio.read(pa + k, 1).to_bytes(1, "little") for k in range(size)), "little")

    def store(self, address: int, size: int, value: int, system: bool = False) -> None:
        address &= _MASK64
        if not system and self._memory.word("mode") & MODE_STEP:
            self._check_alignment(address, size)
            self.breakpoints.touch(address, size, True)
        if size not in (1, 2, 4, 8, 10, 16):
            for k in range(size):
                self.store(address + k, 1, value >> 8 * k & 0xFF, system)
            return
        flags = size | (SYSTEM_ACCESS if system else 0)
        status = self._native.store_at(self._cpu, address, flags, value & _MASK64, value >> 64)
        if not status:
            return
        if status != DEFERRED:
            raise self._fault()
        if (address & 0xFFF) + size > 4096 or size > 8:
            for k in range(size):
                self.store(address + k & _MASK64, 1, value >> 8 * k & 0xFF, system)
            return
        self._mmio.write(self._physical(address, WRITE, self._table(system)), size, value)

    def load_physical(self, address: int, size: int) -> int:
        return int(self._native.rt_pload(self._cpu, address)) & (1 << 8 * size) - 1

    def store_physical(self, address: int, size: int, value: int) -> None:
        self._native.rt_pstore(self._cpu, address, value)

    def fetch(self, address: int) -> bytes:
        """Up to 15 instruction bytes; raises GuestFault where not even the first can be fetched."""
        table = self._table(False)
        out = b""
        while len(out) < MAX_INSTRUCTION_BYTES:
            at = address + len(out) & _MASK64
            pointer = self._native.execute_pointer(self._cpu, at, table)
            size = min(MAX_INSTRUCTION_BYTES - len(out), 4096 - (at & 0xFFF))
            if pointer:
                out += ctypes.string_at(pointer, size)
            elif self._memory.word("status") == DEFERRED:
                pa = self._physical(at, EXECUTE, table)
                out += bytes(self._mmio.read(pa + k, 1) for k in range(size))
            elif out and decode(out, address) is not None:
                return out
            else:
                raise self._fault()
        return out


class Unsupported(Exception):
    """The guest asked for a mode that this version does not execute."""


class Assistant:
    """Carries out one instruction at RIP.  `halted` tells afterwards whether it was a HLT."""

    def __init__(
        self,
        state: VcpuState,
        memory: LinearMemory,
        ports: AddressSpace,
        interrupts: InterruptController,
        msrs: MsrHandler,
        tsc_hz: int,
    ) -> None:
        self.state = state
        self.memory = memory
        self.ports = ports
        self.interrupts = interrupts
        self.msrs = msrs
        self.tsc_hz = tsc_hz
        self.halted = False
        self._traces: dict[Form, list[Op]] = {}
        self._decoded: dict[tuple[int, bytes], Decoded] = {}
        self._special: dict[str, Callable[[Decoded], bool | None]] = {  # True: not done yet, the same instruction again
            "cpuid": self._cpuid,
            "rdmsr": self._rdmsr,
            "wrmsr": self._wrmsr,
            "hlt": self._hlt,
            "mov cr8": self._mov_cr8,
            "mov from cr8": self._mov_from_cr8,
            **dict.fromkeys(("ins", "outs", "rep ins", "rep outs"), self._port_string),
        }

    def step(self) -> None:
        """Executes the instruction at RIP; raises GuestFault with nothing done, Unsupported for modes not built yet."""
        state = self.state
        rip = state["rip"]
        self.halted = False
        breakpoints = self.memory.breakpoints
        met = breakpoints.begin(rip)
        if met and not state["rflags_sys"] & RF:
            self._debug_exception(met)
        raw = self.memory.fetch(rip)
        key = (rip, raw)
        decoded = self._decoded.get(key)
        if decoded is None:
            found = decode(raw, rip)
            if found is None:
                raise GuestFault(GP)
            if len(self._decoded) > 20000:
                self._decoded.clear()
            decoded = self._decoded[key] = found
        if self.memory.floating_point_checked():
            vector = fp_fault(decoder(raw, rip).decode(), state["cr0"], state["cr4"])
            if vector is not None:
                raise GuestFault(vector)
        state["vpage"] = rip & ~0xFFF
        stepping = state["rflags_sys"] & TF
        try:
            outcome = self._interpret(decoded)
        except GuestFault as fault:
            if fault.vector != DEFER:
                raise
            special = self._special.get(decoded.form.name)
            if special is None:
                raise Unsupported(f"{decoded.text} as used at {rip:#x} is not supported") from None
            outcome = ("again",) if special(decoded) else ("next",)
        after = rip + decoded.length & _MASK64
        match outcome[0]:
            case "next":
                state["rip"] = after
            case "jump":
                state["rip"] = outcome[1]
            case "taken":
                state["rip"] = rip if decoded.target is None else decoded.target
            case "again":
                pass
            case "exit":
                self._port(outcome)
                state["rip"] = after
        name = decoded.form.name
        if state["shadow_rip"] == rip:
            state["shadow_rip"] = 1
        if not name.startswith("iret"):  # SDM 3B 18.3.1.1: RF is for one instruction, and IRET may just have set it
            state["rflags_sys"] &= ~RF
        if name not in _NO_TRAP:
            step = stepping and (name != "syscall" or state["rflags_sys"] & TF)
            if step or breakpoints.hits:
                self._debug_exception(breakpoints.hits | (DR6_SINGLE_STEP if step else 0))

    def _debug_exception(self, causes: int) -> None:
        state = self.state
        state["dr6"] = state["dr6"] & ~0xF | causes
        raise GuestFault(DB)

    def _interpret(self, decoded: Decoded) -> Outcome:
        ops = self._traces.get(decoded.form)
        if ops is None:
            if len(self._traces) >= _MAX_TRACES:
                self._traces.clear()
            ops = self._traces[decoded.form] = trace_form(decoded.form).trace.ops
        return Interpreter(self.state, self.memory, decoded.binds, decoded.imms).run(ops)  # type: ignore[arg-type]

    def _port(self, outcome: Outcome) -> None:
        _, kind, port, size, *value = outcome
        self.memory.breakpoints.touch_port(port, size)
        if kind == "out":
            self.ports.write(port, size, value[0])
        else:
            self.complete_in(size, self.ports.read(port, size))

    def complete_in(self, size: int, value: int) -> None:
        """Puts what IN read into AL, AX or EAX."""
        state = self.state
        state["rax"] = value & 0xFFFFFFFF if size == 4 else state["rax"] & ~((1 << 8 * size) - 1) | value

    # ---- instructions with tables behind them
    def _cpuid(self, decoded: Decoded) -> None:
        state = self.state
        base = self.msrs.read_msr(0x1B)
        answer = cpuid(
            state["rax"] & 0xFFFFFFFF,
            state["rcx"] & 0xFFFFFFFF,
            0,
            state["cr4"],
            self.tsc_hz // 1000,
            base is not None and bool(base & 1 << 11),
        )
        for name, value in zip(("rax", "rbx", "rcx", "rdx"), answer, strict=True):
            state[name] = value

    def _rdmsr(self, decoded: Decoded) -> None:
        state = self.state
        value = self.read_msr(state["rcx"] & 0xFFFFFFFF)
        if value is None:
            raise GuestFault(GP)
        state["rax"], state["rdx"] = value & 0xFFFFFFFF, value >> 32

    def _wrmsr(self, decoded: Decoded) -> None:
        state = self.state
        if not self.write_msr(state["rcx"] & 0xFFFFFFFF, (state["rdx"] & 0xFFFFFFFF) << 32 | state["rax"] & 0xFFFFFFFF):
            raise GuestFault(GP)

    def read_msr(self, index: int) -> int | None:
        """The register's value, or None for #GP."""
        if index in _STATE_MSRS:
            return int(self.state[_STATE_MSRS[index][0]])
        if index == 0x10:
            return self.memory.read_tsc() + int(self.state["tsc_offset"]) & _MASK64
        if index in _INERT_MSRS:
            return _INERT_MSRS[index]
        return self.msrs.read_msr(index)

    def write_msr(self, index: int, value: int) -> bool:
        """False for #GP."""
        state = self.state
        if index in _STATE_MSRS:
            field, allowed = _STATE_MSRS[index]
            if value & ~allowed or (index in _CANONICAL_MSRS and value + (1 << 47) & _MASK64 >= 1 << 48):
                return False
            if index == 0x277 and any(value >> 8 * n & 0xFF not in (0, 1, 4, 5, 6, 7) for n in range(8)):
                return False
            if index == 0xC0000080:
                if (value ^ state["efer"]) & EFER_LME and state["cr0"] >> 31:
                    return False
                value = value & ~EFER_LMA | state["efer"] & EFER_LMA
                state["request"] |= REQUEST_FLUSH | REQUEST_MODE
            state[field] = value
            return True
        if index == 0x10:
            state["tsc_offset"] = value - self.memory.read_tsc() & _MASK64
            return True
        if index in _INERT_MSRS:
            return True
        return self.msrs.write_msr(index, value)

    def _hlt(self, decoded: Decoded) -> None:
        self.halted = True

    def _mov_cr8(self, decoded: Decoded) -> None:
        value = self.state[decoded.binds[0][0]]
        if value >> 4:
            raise GuestFault(GP)
        self.interrupts.set_tpr(value)  # type: ignore[attr-defined]

    def _mov_from_cr8(self, decoded: Decoded) -> None:
        self.state[decoded.binds[0][0]] = self.interrupts.get_tpr()  # type: ignore[attr-defined]

    def _check_port(self, port: int, size: int) -> None:
        """CPL against IOPL, else the TSS's permission bitmap (SDM 1 19.5.2)."""
        state = self.state
        if state["cpl"] <= state["rflags_sys"] >> 12 & 3:
            return
        base, limit = state["tr_base"], state["tr_limit"]
        offset = self.memory.load(base + 0x66, 2, False, True) + (port >> 3) if limit >= 0x67 else limit
        if offset >= limit or self.memory.load(base + offset, 2, False, True) >> (port & 7) & (1 << size) - 1:
            raise GuestFault(GP)

    def _port_string(self, decoded: Decoded) -> bool:
        """INS and OUTS, element by element; a fault leaves the registers at the element that met it.  True: more to do."""
        state, form = self.state, decoded.form
        size, stem = form.size // 8, form.name.split()[-1]
        mask = 0xFFFFFFFF if form.mem.address32 else _MASK64
        step = -size if state["df"] else size
        port = state["rdx"] & 0xFFFF
        self._check_port(port, size)
        repeat = form.name.startswith("rep")
        left = state["rcx"] & mask if repeat else 1
        pointer = "rdi" if stem == "ins" else "rsi"
        base = self.state[f"{form.mem.segment}_base"] if form.mem.segment and stem == "outs" else 0
        turn = 1 if state["rflags_sys"] & TF else _PORT_STRING_TURN
        while left and turn:
            turn -= 1
            self.memory.breakpoints.touch_port(port, size)
            address = base + (state[pointer] & mask) & _MASK64
            if stem == "ins":
                self.memory.load(address, size, True)
                self.memory.store(address, size, self.ports.read(port, size))
            else:
                self.ports.write(port, size, self.memory.load(address, size, False))
            state[pointer] = state[pointer] + step & mask
            left -= 1
            if repeat:
                state["rcx"] = left
        return bool(left)
