"""The engine's Python side: instructions that translated code leaves to the reference interpreter or to devices.

MMIO, read-modify-writes across a page end or over code, floating point with unmasked exceptions, single steps, and the
instructions with tables behind them (CPUID, most MSRs, HLT, CR8, port strings).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from iced_x86 import OpKind

from ringfence.engine.api import AddressSpace, InterruptController, MsrHandler
from ringfence.engine.breakpoints import Breakpoints
from ringfence.engine.cpuid import APIC_BASE, CpuidAnswers, has_msr
from ringfence.engine.legacy_transfers import LegacyTransfers
from ringfence.engine.points import Points
from ringfence.engine.unsupported import Unsupported
from ringfence.engine.vcpu_state import VcpuState
from ringfence.ir.fault import GuestFault
from ringfence.ir.interpret import Interpreter, Outcome
from ringfence.ir.value import Op
from ringfence.isa.x86.context import Context, Form, trace_form
from ringfence.isa.x86.decode import MAX_INSTRUCTION_BYTES, Decoded, decode, decoder
from ringfence.isa.x86.fp_available import fp_fault
from ringfence.isa.x86.models import DEFAULT, CpuModel
from ringfence.isa.x86.modes import FLAT, LONG
from ringfence.isa.x86.state import AC, REQUEST_FLUSH, REQUEST_MODE, RF, TF, VM
from ringfence.isa.x86.transfers import far_operand
from ringfence.isa.x86.vectors import AC as ALIGNMENT_CHECK
from ringfence.isa.x86.vectors import DB, DEFER, FAR_GATE, GP, PF, SOFT_INTERRUPT, SS
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.lower import DEFERRED, SYSTEM_ACCESS
from ringfence.translate.native_codes import EXECUTE, MODE_FP_SLOW, MODE_SSE_SLOW, MODE_STEP, MODE_TABLE, READ, WRITE
from ringfence.translate.native_layout import REGIME_MASK, REGIME_SHIFT
from ringfence.translate.native_mmu import WALK_FAULT

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
# Read as told and swallow writes: MTRRs (memory types have no meaning here), machine check banks, microcode, platform, K8's own.
_INERT_MSRS = {
    0x17: 0,
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
_READ_ONLY_MSRS = frozenset((0x17, 0xFE, 0x179))  # IA32_PLATFORM_ID, IA32_MTRRCAP, IA32_MCG_CAP: a write is #GP (SDM 4, 2.1)
DR6_SINGLE_STEP = 1 << 14
_NO_TRAP = frozenset(("int", "int3", "int1", "mov ss", "lss"))  # they clear TF, or hold debug traps off (SDM 3A 6.8.3)
_PRIVILEGED = frozenset(("hlt", "rdmsr", "wrmsr"))
_PORT_STRING_TURN = 64  # elements between looks at interrupts and the clock
_MAX_TRACES = 4096
AGAIN, MOVED = "again", "moved"  # RIP is where execution goes on; MOVED: in another task, which owes nothing to the instruction
EFER_LMA = 1 << 10
EFER_LME = 1 << 8


class LinearMemory:
    """Guest memory by linear address with the guest's rights, for the interpreter (`ir.interpret.Memory`)."""

    def __init__(
        self,
        memory: CodeMemory,
        native: Any,
        state: VcpuState,
        mmio: AddressSpace,
        read_tsc: Callable[[], int],
        points: Points,
    ) -> None:
        self._memory = memory
        self._native = native
        self._state = state
        self._mmio = mmio
        self._cpu = memory.cpu
        self.model = DEFAULT
        self.breakpoints = Breakpoints(state)
        self.points = points
        self.read_tsc = read_tsc

    def _table(self, system: bool) -> int:
        table = self._memory.word("mode") & MODE_TABLE
        return 0 if system and table == 1 else table

    def mode(self) -> int:
        """The mode that instructions are decoded in (isa/x86/modes.py)."""
        return self._state.form_mode(self._memory.word("mode") >> REGIME_SHIFT & REGIME_MASK)

    def floating_point_checked(self) -> bool:
        """Whether CR0 or CR4 may forbid floating point: then compiled code executes none of it."""
        return bool(self._memory.word("mode") & (MODE_FP_SLOW | MODE_SSE_SLOW))

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
        if self.points.watches:
            self.points.touch(address, size, False)
        if not system and self.breakpoints.active:
            self.breakpoints.touch(address, size, False)
        if not system and self._memory.word("mode") & MODE_STEP:
            self._check_alignment(address, size)
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
        if self.points.watches:
            self.points.touch(address, size, True)
        if not system and self.breakpoints.active:
            self.breakpoints.touch(address, size, True)
        if not system and self._memory.word("mode") & MODE_STEP:
            self._check_alignment(address, size)
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

    def plain(self, address: int, write: bool) -> int:
        """Host address of what `address` shows, good to the end of its page, where that is memory; 0 where it is not, or where each
        access must be looked at by itself."""
        if self.points.watches or self.breakpoints.active or self._memory.word("mode") & MODE_STEP:
            return 0
        pointer = self._native.write_pointer if write else self._native.read_pointer
        return int(pointer(self._cpu, address & _MASK64, self._table(False)))

    def fill(self, pointer: int, data: bytes) -> None:
        """Stores at a host address that `plain` gave for writing; blocks made from those bytes are dropped."""
        ctypes.memmove(pointer, data, len(data))
        self._native.drop_range(self._cpu, self._native.ram_offset(self._cpu, pointer), len(data))

    def refresh(self) -> None:
        """Acts on the state's `request` now: later accesses go through new page tables or with new rights."""
        self._native.serve_requests(self._cpu)

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
            elif out and decode(out, address, self.mode(), self.model) is not None:
                return out
            else:
                raise self._fault()
        return out


class Assistant:
    """Carries out one instruction at RIP.  `halted` tells afterwards whether it was a HLT."""

    def __init__(
        self,
        state: VcpuState,
        memory: LinearMemory,
        ports: AddressSpace,
        interrupts: InterruptController,
        msrs: MsrHandler,
        answers: CpuidAnswers,
        model: CpuModel = DEFAULT,
    ) -> None:
        self.state = state
        self.memory = memory
        self.ports = ports
        self.answers = answers
        # Optional: ringfence.bus.bus.Bus.read_many and write_many
        self._read_many: Callable[[int, int, int], bytes] | None = getattr(ports, "read_many", None)
        self._write_many: Callable[[int, int, bytes], int] = getattr(ports, "write_many", lambda port, size, data: 0)
        self.interrupts = interrupts
        self.msrs = msrs
        self.model = memory.model = model
        self.alone: Callable[[], AbstractContextManager[None]] | None = None  # keeps other vCPUs out, where there are any
        self.halted = False
        self.soft_next = 0  # after GuestFault(SOFT_INTERRUPT): the linear address behind the instruction
        self.transfers = LegacyTransfers(state, memory)
        self._traces: dict[Form, list[Op]] = {}
        self._far_operands: dict[Form, list[Op]] = {}
        self._decoded: dict[tuple[int, int, bytes], Decoded] = {}
        self._special: dict[str, Callable[[Decoded], str | None]] = {  # AGAIN or MOVED, None: goes on behind the instruction
            "cpuid": self._cpuid,
            "rdmsr": self._rdmsr,
            "wrmsr": self._wrmsr,
            "hlt": self._hlt,
            "jmp far": self._far,
            "jmp ptr": self._far,
            "call far": self._far,
            "call ptr": self._far,
            "iret": self._iret,
            "iretd": self._iret,
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
        mode = self.memory.mode()
        room = self._room(rip, mode)
        if room <= 0:
            raise GuestFault(GP)
        raw = self.memory.fetch(rip)
        key = (rip, mode, raw)
        decoded = self._decoded.get(key)
        if decoded is None:
            found = decode(raw, rip, mode, self.model)
            if found is None:
                raise GuestFault(GP)
            if len(self._decoded) > 20000:
                self._decoded.clear()
            decoded = self._decoded[key] = found
        if decoded.length > room and self.model.generation > 86:
            raise GuestFault(GP)
        if self.memory.floating_point_checked():
            vector = fp_fault(decoder(raw, rip, mode).decode(), state["cr0"], state["cr4"])
            if vector is not None:
                raise GuestFault(vector)
        state["vpage"] = rip & ~0xFFF
        stepping = state["rflags_sys"] & TF
        try:
            if decoded.form.name in _PRIVILEGED and not state["cpl"]:  # its trace would find out nothing else
                self._special[decoded.form.name](decoded)
                outcome: Outcome = ("next",)
            else:
                outcome = self._interpret(decoded)
        except GuestFault as fault:
            if fault.vector == SOFT_INTERRUPT:
                self.soft_next = rip + decoded.length & (_MASK64 if mode == LONG else 0xFFFFFFFF)
            if fault.vector not in (DEFER, FAR_GATE):
                raise
            special = self._special.get(decoded.form.name)
            if special is None:
                raise Unsupported(f"{decoded.text} as used at {rip:#x} is not supported") from None
            how = special(decoded)
            if how == MOVED:
                return
            outcome = ("again",) if how == AGAIN else ("next",)
        after = rip + decoded.length & (_MASK64 if mode == LONG else 0xFFFFFFFF)
        match outcome[0]:
            case "next":
                state["rip"] = after
            case "jump":
                state["rip"] = outcome[1]
            case "taken":
                state["rip"] = rip if decoded.target is None else self._branch(decoded.target, raw, rip, mode)
            case "again":
                pass
            case "exit":
                self._port(outcome)
                state["rip"] = after
        name = decoded.form.name
        if state["shadow_rip"] == rip:
            state["shadow_rip"] = 1
        if not name.startswith("iret") and state["rflags_sys"] & RF:
            # SDM 3B 18.3.1.1: RF is for one instruction, and IRET may just have set it.
            state["rflags_sys"] &= ~RF
            state["request"] |= REQUEST_MODE
        if name not in _NO_TRAP:
            step = stepping and (name != "syscall" or state["rflags_sys"] & TF)
            if step or breakpoints.hits:
                self._debug_exception(breakpoints.hits | (DR6_SINGLE_STEP if step else 0))

    def _room(self, rip: int, mode: int) -> int:
        """Bytes from RIP to the end of the code segment."""
        if mode in (LONG, FLAT):
            return MAX_INSTRUCTION_BYTES
        return int(self.state["cs_limit"] + 1 - (rip - self.state["cs_base"] & 0xFFFFFFFF))

    def _branch(self, target: int, raw: bytes, rip: int, mode: int) -> int:
        """The target of a direct branch, where IP may wrap at 64 KiB."""
        if mode in (LONG, FLAT):
            return target
        base = self.state["cs_base"]
        narrow = decoder(raw, rip, mode).decode().op0_kind == OpKind.NEAR_BRANCH16
        return int(base + (target - base & (0xFFFF if narrow else 0xFFFFFFFF)) & 0xFFFFFFFF)

    def _debug_exception(self, causes: int) -> None:
        state = self.state
        state["dr6"] = state["dr6"] & ~0xF | causes
        raise GuestFault(DB)

    def _interpret(self, decoded: Decoded) -> Outcome:
        ops = self._traces.get(decoded.form)
        if ops is None:
            if len(self._traces) >= _MAX_TRACES:
                self._traces.clear()
            ops = self._traces[decoded.form] = trace_form(decoded.form, precise=True).trace.ops
        interpreter = Interpreter(self.state, self.memory, decoded.binds, decoded.imms)  # type: ignore[arg-type]
        if self.alone is not None and (decoded.form.lock or decoded.form.name == "xchg"):
            with self.alone():
                return interpreter.run(ops)
        return interpreter.run(ops)

    def _port(self, outcome: Outcome) -> None:
        _, kind, port, size, *value = outcome
        self.memory.breakpoints.touch_port(port, size)
        if kind == "out":
            self.ports.write(port, size, value[0])
        else:
            self.state.complete_in(size, self.ports.read(port, size))

    # ---- instructions with tables behind them
    def _cpuid(self, decoded: Decoded) -> None:
        state = self.state
        answer = self.answers.answer(state["rax"] & 0xFFFFFFFF, state["rcx"] & 0xFFFFFFFF)
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
        if not has_msr(self.model, index):
            return None
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
        if not has_msr(self.model, index):
            return False
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
            return index not in _READ_ONLY_MSRS
        known = self.msrs.write_msr(index, value)
        if index == APIC_BASE and self.state["cpuid_rows"]:
            self.answers.enter(self.state)
        return known

    def _hlt(self, decoded: Decoded) -> None:
        self.halted = True

    def _following(self, decoded: Decoded) -> int:
        return int(self.state["rip"] + decoded.length & (_MASK64 if self.state.is_long() else 0xFFFFFFFF))

    def _far(self, decoded: Decoded) -> str:
        """Through a gate, or to another task."""
        form = decoded.form
        ops = self._far_operands.get(form)
        if ops is None:
            context = Context(form, precise=True)
            context.jump(far_operand(context)[1].zext(64))
            ops = self._far_operands[form] = context.trace.ops
        selector = Interpreter(self.state, self.memory, decoded.binds, decoded.imms).run(ops)[1]  # type: ignore[arg-type]
        moved = self.transfers.far(selector, form.name.startswith("call"), self._following(decoded))
        return MOVED if moved else AGAIN

    def _iret(self, decoded: Decoded) -> str:
        """With NT set: back to another task."""
        self.transfers.iret(self._following(decoded))
        return MOVED

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
        if state["cpl"] <= state["rflags_sys"] >> 12 & 3 and not state["rflags_sys"] & VM:
            return
        base, limit = state["tr_base"], state["tr_limit"]
        offset = self.memory.load(base + 0x66, 2, False, True) + (port >> 3) if limit >= 0x67 else limit
        if offset >= limit or self.memory.load(base + offset, 2, False, True) >> (port & 7) & (1 << size) - 1:
            raise GuestFault(GP)

    def _put_index(self, register: str, value: int, mask: int) -> None:
        """Writes an index or count register as the address size has it."""
        kept = self.state[register] & ~mask if mask == 0xFFFF else 0
        self.state[register] = kept | value & mask

    def _segmented(self, segment: str, offset: int, size: int, write: bool) -> int:
        """The linear address of an operand outside of 64-bit mode; raises GuestFault where the segment does not allow it."""
        state = self.state
        attr, limit, end = state[f"{segment}_attr"], state[f"{segment}_limit"], offset + size - 1
        vector = SS if segment == "ss" else GP
        down = False
        if not state.is_real():
            code, allowed = attr >> 3 & 1, attr >> 1 & 1
            if attr & 0x90 != 0x90 or (write and (code or not allowed)) or (code and not allowed):
                raise GuestFault(vector)
            down = not code and bool(attr >> 2 & 1)
        top = 0xFFFFFFFF if attr >> 10 & 1 else 0xFFFF
        if (offset <= limit or end > top) if down else end > limit:
            raise GuestFault(vector)
        return int(state[f"{segment}_base"] + offset & 0xFFFFFFFF)

    def _port_run(self, port: int, size: int, left: int, address: int, mask: int, pointer: str, segment: str | None, write: bool) -> int:
        """Many elements of REP INS or OUTS at once, as far as a page of memory and the device go; 0: go element by element."""
        offset = self.state[pointer] & mask
        count = min(left, (4096 - (address & 0xFFF)) // size, (mask + 1 - offset) // size)
        if count < 2 or self._read_many is None:
            return 0
        if segment is not None:
            try:
                self._segmented(segment, offset + (count - 1) * size, size, write)
            except GuestFault:
                return 0
        host = self.memory.plain(address, write)
        if not host:
            return 0
        if not write:
            return int(self._write_many(port, size, ctypes.string_at(host, count * size)))
        data = self._read_many(port, size, count)
        self.memory.fill(host, data)
        return len(data) // size

    def _port_string(self, decoded: Decoded) -> str | None:
        """INS and OUTS, element by element; a fault leaves the registers at the element that met it."""
        state, form = self.state, decoded.form
        size, stem = form.size // 8, form.name.split()[-1]
        mask = 0xFFFF if form.mem.address16 else 0xFFFFFFFF if form.mem.address32 else _MASK64
        step = -size if state["df"] else size
        port = state["rdx"] & 0xFFFF
        self._check_port(port, size)
        repeat = form.name.startswith("rep")
        left = state["rcx"] & mask if repeat else 1
        pointer = "rdi" if stem == "ins" else "rsi"
        segment = ("es" if stem == "ins" else form.mem.segment) if form.mem.limit else None
        base = self.state[f"{form.mem.segment}_base"] if form.mem.segment and stem == "outs" else 0
        turn = 1 if state["rflags_sys"] & TF else _PORT_STRING_TURN
        while left and turn:
            turn -= 1
            self.memory.breakpoints.touch_port(port, size)
            address = base + (state[pointer] & mask) & _MASK64
            if segment is not None:
                address = self._segmented(segment, state[pointer] & mask, size, stem == "ins")
            moved = (
                self._port_run(port, size, left, address, mask, pointer, segment, stem == "ins") if step > 0 and turn and left > 1 else 0
            )
            if moved:
                self._put_index(pointer, state[pointer] + moved * size, mask)
                left -= moved
                self._put_index("rcx", left, mask)
                break  # a look at interrupts and the clock
            if stem == "ins":
                self.memory.load(address, size, True)
                self.memory.store(address, size, self.ports.read(port, size))
            else:
                self.ports.write(port, size, self.memory.load(address, size, False))
            self._put_index(pointer, state[pointer] + step, mask)
            left -= 1
            if repeat:
                self._put_index("rcx", left, mask)
        return AGAIN if left else None
