"""Far transfers that instruction bodies leave to the engine's Python side: call gates, tasks, returns to virtual-8086 mode, and
interrupts through task gates or with tables or stacks that are not RAM (SDM 2 CALL, JMP, IRET, INT; SDM 3A 5.8, 6.12, 7.3, 20).

All of them run with settled flags, between two instructions.  A GuestFault before `TaskSwitch` commits leaves everything as it
was; `request` in the state tells what the run time must look at afterwards.
"""

from __future__ import annotations

from ringfence.engine.descriptors import LMA, MASK32, MASK64, NULL, Descriptor, Frame, Memory, Segments, check_offset
from ringfence.engine.task_switch import AVAILABLE, BUSY, CALL, JUMP, RETURN, TaskSwitch
from ringfence.engine.vcpu_state import VcpuState
from ringfence.ir.fault import GuestFault
from ringfence.ir.interpret import Interpreter
from ringfence.ir.value import Op
from ringfence.isa.x86.context import Form, trace_form
from ringfence.isa.x86.state import IOPL, REQUEST_MODE
from ringfence.isa.x86.vectors import DEFER, GP, NP, SOFT_INTERRUPT, SS, TS

_TASK_GATE, _GATE_16, _GATE_32 = 5, 4, 12
_LONG, _PROTECTED, _REAL = (
    Form(name, 64, (), mode=mode) for name, mode in (("(deliver)", 64), ("(deliver protected)", 33), ("(deliver real)", 18))
)
_REDIRECT = Form("(redirect)", 64, (), mode=18)


class LegacyTransfers:
    """Of one vCPU."""

    def __init__(self, state: VcpuState, memory: Memory) -> None:
        self._state = state
        self._memory = memory
        self._segments = Segments(state, memory)
        self._tasks = TaskSwitch(state, memory, self._segments)
        self._traces: dict[Form, list[Op]] = {}

    # ---- JMP and CALL
    def far(self, selector: int, call: bool, following: int) -> bool:
        """JMP or CALL to a selector that is no code segment's; `following`: linear address of the next instruction.  Returns
        whether another task runs now."""
        state = self._state
        d = self._segments.read(selector, GP)
        if d.kind in (_GATE_16, _GATE_32) and not (state["efer"] & LMA and d.kind == _GATE_16):
            self._allowed(d)
            self._through_call_gate(d, call, following)
            return False
        if d.kind not in (*AVAILABLE, _TASK_GATE) or state["efer"] & LMA:
            raise GuestFault(GP, d.error)
        self._allowed(d)
        if d.kind == _TASK_GATE:
            d = self._task_of_gate(d, 0)
        self._tasks.to(d, CALL if call else JUMP, following - state["cs_base"] & MASK32)
        return True

    def _allowed(self, d: Descriptor) -> None:
        if d.dpl < max(self._state["cpl"], d.selector & 3):
            raise GuestFault(GP, d.error)
        if not d.present:
            raise GuestFault(NP, d.error)

    def _task_of_gate(self, gate: Descriptor, ext: int) -> Descriptor:
        """The TSS descriptor that a task gate names."""
        selector = gate.value >> 16 & 0xFFFF
        if selector & 4:
            raise GuestFault(GP, selector & NULL | ext)
        d = self._segments.read(selector, GP, ext)
        if d.kind not in AVAILABLE:
            raise GuestFault(GP, d.error | ext)
        if not d.present:
            raise GuestFault(NP, d.error | ext)
        return d

    def _through_call_gate(self, gate: Descriptor, call: bool, following: int) -> None:
        state = self._state
        cpl, long = state["cpl"], bool(state["efer"] & LMA)
        offset = gate.value & 0xFFFF | (gate.value >> 32 & 0xFFFF0000 if gate.kind == _GATE_32 else 0)
        if long:
            offset |= self._upper_half(gate) << 32
        code = self._segments.read(gate.value >> 16 & 0xFFFF, GP)
        if not code.is_code or code.dpl > cpl or (long and code.value >> 53 & 3 != 1):
            raise GuestFault(GP, code.error)
        if not call and not code.conforming and code.dpl != cpl:
            raise GuestFault(GP, code.error)
        if not code.present:
            raise GuestFault(NP, code.error)
        size = 8 if long else 4 if gate.kind == _GATE_32 else 2
        level, sp = cpl, state["rsp"]
        if call:
            old = (state["cs"], following if state.is_long() else following - state["cs_base"] & MASK32)
            if not code.conforming and code.dpl < cpl:
                level = code.dpl
                self._check_entry(code, offset, long)
                sp = self._enter_inner(level, size, gate.value >> 32 & 0x1F, old, long)
            else:
                frame = Frame(state["ss_base"], state["ss_limit"], state["ss_attr"], sp, 0, wide=long)
                for value in old:
                    frame.push(value, size)
                self._check_entry(code, offset, long)
                frame.write(self._memory, False)
                sp = frame.sp
        else:
            self._check_entry(code, offset, long)
        self._segments.load("cs", code.error | level, self._segments.mark_accessed(code))
        state["cpl"], state["rsp"] = level, sp
        state["rip"] = offset if long else offset + code.base & MASK32
        state["request"] |= REQUEST_MODE

    def _upper_half(self, gate: Descriptor) -> int:
        """Bits 63:32 of a 64-bit call gate's offset (SDM 3A 5.8.3.1)."""
        state = self._state
        limit = state["ldtr_limit"] if gate.selector & 4 else state["gdtr_limit"]
        if (gate.selector & 0xFFF8) + 15 > limit:
            raise GuestFault(GP, gate.error)
        high = self._memory.load(gate.address + 8 & MASK64, 8, False, True)
        if high >> 40 & 0x1F:
            raise GuestFault(GP, gate.error)
        return high & MASK32

    def _check_entry(self, code: Descriptor, offset: int, long: bool) -> None:
        if (offset + (1 << 47) & MASK64) >> 48 if long else offset > code.limit:
            raise GuestFault(GP)

    def _enter_inner(self, level: int, size: int, parameters: int, old: tuple[int, int], long: bool) -> int:
        """Switches to the stack of an inner level and fills it (SDM 3A 5.8.5); returns its pointer."""
        state = self._state
        if long:
            pointer = self._stack_pointer(level, 8)
            if (pointer + (1 << 47) & MASK64) >> 48:
                raise GuestFault(SS)
            frame = Frame(0, 0, 0, pointer, 0, wide=True)
            for value in (state["ss"], state["rsp"], *old):
                frame.push(value, size)
            frame.write(self._memory, True)
            self._segments.put("ss", level, 0, MASK32, 0)
            return frame.sp
        selector, pointer = self._inner_stack(level)
        d = self._segments.read(selector, TS)
        if selector & 3 != level or d.dpl != level or not d.is_writable_data:
            raise GuestFault(TS, d.error)
        if not d.present:
            raise GuestFault(SS, d.error)
        frame = Frame(d.base, d.limit, d.attr, pointer, d.error)
        frame.push(state["ss"], size)
        frame.push(state["rsp"], size)
        for k in reversed(range(parameters)):
            frame.push(self._on_stack(k * size, size), size)
        for value in old:
            frame.push(value, size)
        frame.probe(self._memory, True)
        d = self._segments.mark_accessed(d)
        frame.write(self._memory, True)
        self._segments.load("ss", selector, d)
        return frame.sp

    def _stack_pointer(self, level: int, entry_bytes: int) -> int:
        """Of an inner level, from a TSS of 32 or 64 bits."""
        state = self._state
        at = level * 8 + 4
        if at + entry_bytes - 1 > state["tr_limit"]:
            raise GuestFault(TS, state["tr"] & NULL)
        return self._memory.load(self._segments.linear(state["tr_base"] + at), entry_bytes, False, True)

    def _inner_stack(self, level: int) -> tuple[int, int]:
        state = self._state
        n = 4 if state["tr_attr"] & 8 else 2
        at = level * 2 * n + n
        if at + n + 1 > state["tr_limit"]:
            raise GuestFault(TS, state["tr"] & NULL)
        base = state["tr_base"] + at
        pointer = self._memory.load(base & MASK32, n, False, True)
        return self._memory.load(base + n & MASK32, 2, False, True), pointer

    def _on_stack(self, offset: int, size: int) -> int:
        """A value on the stack of today."""
        state = self._state
        at = state["rsp"] + offset & (MASK32 if state["ss_attr"] >> 10 & 1 else 0xFFFF)
        check_offset(at, size, state["ss_limit"], state["ss_attr"], SS, 0)
        return self._memory.load(state["ss_base"] + at & MASK32, size, False)

    # ---- IRET
    def iret(self, following: int) -> None:
        """IRET with NT set: back to the task that the current TSS links to (SDM 3A 7.4)."""
        state = self._state
        link = self._memory.load(state["tr_base"], 2, False, True)
        if link & 4:
            raise GuestFault(TS, link & NULL)
        d = self._segments.read(link, TS)
        if d.kind not in BUSY:
            raise GuestFault(TS, d.error)
        if not d.present:
            raise GuestFault(NP, d.error)
        self._tasks.to(d, RETURN, following - state["cs_base"] & MASK32)

    # ---- interrupts and exceptions
    def deliver(self, return_rip: int, redirected: bool = False) -> None:
        """Enters the handler of `exc_vector` as `exc_error` and `exc_pending` say; `return_rip`: linear address to return to,
        which stays RIP where a fault is raised unless another task has begun.  `redirected`: INT n under CR4.VME."""
        state = self._state
        own, state["rip"] = state["rip"], return_rip
        self._tasks.committed = False
        try:
            if not (redirected and self._redirected()):
                self._deliver_by_mode()
        except GuestFault:
            if not self._tasks.committed:
                state["rip"] = own
            raise

    def _redirected(self) -> bool:
        """Whether INT n went to the virtual-8086 program's own handler; #GP where it may not go to protected mode's."""
        try:
            self._run(_REDIRECT)
        except GuestFault as fault:
            if fault.vector != SOFT_INTERRUPT:
                raise
            if self._state["rflags_sys"] & IOPL != IOPL:
                raise GuestFault(GP) from None
            return False
        return True

    def _deliver_by_mode(self) -> None:
        state = self._state
        try:
            self._run(_LONG if state["efer"] & LMA else _PROTECTED if state["cr0"] & 1 else _REAL)
            return
        except GuestFault as fault:
            if fault.vector != DEFER:
                raise
        address = state["idtr_base"] + 8 * state["exc_vector"] & MASK32
        gate = Descriptor(self._memory.load(address, 8, False, True), address, 0)
        soft, has_error = state["exc_pending"] >> 1 & 1, state["exc_pending"] & 1
        ext = 1 - soft
        ip = state["rip"] - state["cs_base"] & MASK32
        self._tasks.to(self._task_of_gate(gate, ext), CALL, ip, ext, state["exc_error"] if has_error else None)

    def _run(self, form: Form) -> None:
        """A body of isa/x86/delivery.py in the interpreter."""
        ops = self._traces.get(form)
        if ops is None:
            ops = self._traces[form] = trace_form(form, precise=True).trace.ops
        outcome = Interpreter(self._state, self._memory, {}, {}).run(ops)  # type: ignore[arg-type]
        self._state["rip"] = outcome[1]
