"""Hardware task switches (SDM 3A 7.2-7.6, tables 7-1 and 7-2).

    until commit    a fault is the old task's and nothing has changed: TSS limits, the pages of both TSSs and of busy bits
    after it        all registers come from the new TSS; a fault while its segments are loaded is the new task's, before its first
                    instruction, with the segments not yet loaded unusable

What the manual leaves open: loading a 16-bit TSS clears the upper halves of the general registers and of EFLAGS, and FS and GS
become null; no single-step trap of the old task follows a switch.
"""

from __future__ import annotations

from ringfence.engine.descriptors import MASK32, NULL, Descriptor, Frame, Memory, Segments
from ringfence.engine.vcpu_state import VcpuState
from ringfence.ir.fault import GuestFault
from ringfence.isa.x86.state import IF, NT, REQUEST_FLUSH, REQUEST_MODE, VM, rflags_image, rflags_words
from ringfence.isa.x86.vectors import DB, GP, NP, SS, TS

JUMP, CALL, RETURN = range(3)
"""Who switches: JMP; CALL, an interrupt or an exception, which nest; IRET."""
_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")  # in the order of a TSS
_SELECTORS = ("es", "cs", "ss", "ds", "fs", "gs")
_BUSY = 2
_CR0_TS, _CR0_PG = 1 << 3, 1 << 31
_LOCAL_BREAKPOINTS = 0x155  # L0-L3 and LE of DR7
_DR6_TASK = 1 << 15
AVAILABLE, BUSY = (1, 9), (3, 11)


class _Layout:
    """Where a TSS keeps what (SDM 3A figures 7-2 and 7-10)."""

    def __init__(self, wide: bool) -> None:
        n = 4 if wide else 2
        self.size = n
        self.bytes = 0x68 if wide else 0x2C
        self.ip = 0x20 if wide else 0xE  # EFLAGS, general registers, selectors and LDT follow
        self.flags = self.ip + n
        self.general = self.flags + n
        self.selectors = self.general + 8 * n
        self.names = _SELECTORS if wide else _SELECTORS[:4]
        self.ldt = self.selectors + len(self.names) * n
        self.saved_end = self.ldt


_LAYOUTS = (_Layout(False), _Layout(True))
_CR3, _TRAP = 0x1C, 0x64


class TaskSwitch:
    """Of one vCPU.  `committed` tells after a GuestFault whether it is the new task's."""

    def __init__(self, state: VcpuState, memory: Memory, segments: Segments) -> None:
        self._state = state
        self._memory = memory
        self._segments = segments
        self.committed = False

    def to(self, new: Descriptor, how: int, return_ip: int, ext: int = 0, error_code: int | None = None) -> None:
        """Switches to the task of a TSS descriptor that may be entered in this way.  `return_ip`: EIP to be saved; `error_code`:
        pushed on the new stack; `ext`: the EXT bit of faults.  The flags must be settled."""
        self.committed = False
        state, memory = self._state, self._memory
        wide = bool(new.kind & 8)
        layout = _LAYOUTS[wide]
        if new.limit < layout.bytes - 1:
            raise GuestFault(TS, new.error | ext)
        old_selector = state["tr"]
        old_busy = self._segments.linear(state["gdtr_base"] + (old_selector & 0xFFF8) + 5)
        self._probe(new, layout, how, ext, old_busy)
        flags = rflags_image(state)  # type: ignore[arg-type]
        if how != CALL:
            memory.store(old_busy, 1, memory.load(old_busy, 1, True, True) & ~_BUSY, True)
        self._save(flags & ~NT if how == RETURN else flags, return_ip)
        if how == CALL:
            memory.store(new.base, 2, old_selector, True)
        if how != RETURN:
            memory.store(new.address + 5, 1, new.value >> 40 & 0xFF | _BUSY, True)
        trap = self._load(new, layout, wide, how)
        self._qualify(ext)
        state["request"] |= REQUEST_MODE
        memory.refresh()
        if error_code is not None:
            self._push_error(error_code, layout.size, ext)
        if state["rip"] - state["cs_base"] & MASK32 > state["cs_limit"]:
            raise GuestFault(GP, ext)
        if trap:
            state["dr6"] |= _DR6_TASK
            raise GuestFault(DB)

    def _probe(self, new: Descriptor, layout: _Layout, how: int, ext: int, old_busy: int) -> None:
        """Faults of the old task: steps 3 and 5 of SDM 3A 7.3."""
        state, memory = self._state, self._memory
        old = _LAYOUTS[state["tr_attr"] >> 3 & 1]
        if state["tr_limit"] < old.saved_end - 1:
            raise GuestFault(TS, state["tr"] & NULL | ext)
        ranges = [(state["tr_base"] + old.ip, old.saved_end - old.ip, True), (new.base, layout.bytes, False)]
        if how == CALL:
            ranges.append((new.base, 2, True))
        if how != CALL:
            ranges.append((old_busy, 1, True))
        if how != RETURN:
            ranges.append((new.address + 5, 1, True))
        for base, size, write in ranges:
            for address in (base, base + size - 1):
                memory.load(address & MASK32, 1, write, True)

    def _save(self, flags: int, return_ip: int) -> None:
        """The words from EIP to the last selector, whose reserved upper halves become 0."""
        state, memory = self._state, self._memory
        layout = _LAYOUTS[state["tr_attr"] >> 3 & 1]
        words = [return_ip, flags, *(state[name] for name in (*_GENERAL, *layout.names))]
        cut = (1 << 8 * layout.size) - 1
        image = b"".join((word & cut).to_bytes(layout.size, "little") for word in words)
        at = 0
        while at < len(image):
            n = next(size for size in (16, 8, 4) if at + size <= len(image))
            memory.store(state["tr_base"] + layout.ip + at & MASK32, n, int.from_bytes(image[at : at + n], "little"), True)
            at += n

    def _load(self, new: Descriptor, layout: _Layout, wide: bool, how: int) -> bool:
        """Registers from the new TSS, segments as selectors only.  Returns whether its T bit is set."""
        state, memory, segments = self._state, self._memory, self._segments
        n, base = layout.size, new.base
        image = memory.load(base, layout.bytes, False, True).to_bytes(layout.bytes, "little")

        def word(offset: int, size: int = n) -> int:
            return int.from_bytes(image[offset : offset + size], "little")

        cr3 = word(_CR3) if wide else 0
        ip, flags = word(layout.ip), word(layout.flags)
        general = [word(layout.general + n * k) for k in range(8)]
        selectors = {name: word(layout.selectors + n * k, 2) for k, name in enumerate(layout.names)}
        ldt, trap = word(layout.ldt, 2), wide and word(_TRAP, 2) & 1
        self.committed = True
        state["tr"], state["tr_base"], state["tr_limit"], state["tr_attr"] = new.selector, base, new.limit, new.attr | _BUSY
        state["cr0"] |= _CR0_TS
        state["dr7"] &= ~_LOCAL_BREAKPOINTS
        state["shadow_rip"] = 1
        if how == RETURN:
            state["nmi_blocked"] = 0
        state["request"] |= REQUEST_MODE
        if wide and state["cr0"] & _CR0_PG:
            state["cr3"] = cr3
            state["request"] |= REQUEST_FLUSH
        self._put_flags(flags | NT if how == CALL else flags)
        for name, value in zip(_GENERAL, general, strict=True):
            state[name] = value
        for name in _SELECTORS:
            segments.unusable(name, selectors.get(name, 0))
        self._put_ldt(ldt, 0, 0, 0)
        state["cpl"] = 3 if state["rflags_sys"] & VM else selectors["cs"] & 3
        state["rip"] = ip
        memory.refresh()
        return bool(trap)

    def _put_ldt(self, selector: int, base: int, limit: int, attr: int) -> None:
        state = self._state
        state["ldtr"], state["ldtr_base"], state["ldtr_limit"], state["ldtr_attr"] = selector, base, limit, attr

    def _put_flags(self, image: int) -> None:
        state = self._state
        for name, value in rflags_words(image & state["flags_settable"]).items():
            state[name] = value
        state["rflags_sys"] |= state["flags_fixed"]
        if state["rflags_sys"] & IF and state["irq_pending"] & 1:
            state["kick"] = 1

    # ---- the new task's segments
    def _qualify(self, ext: int) -> None:
        """Loads LDTR and the segment registers by their selectors; faults are the new task's."""
        state, segments = self._state, self._segments
        state["request"] |= REQUEST_MODE
        selector = state["ldtr"]
        if selector & NULL:
            if selector & 4:
                raise GuestFault(TS, selector & NULL | ext)
            d = segments.read(selector, TS, ext)
            if d.kind != 2 or not d.present:
                raise GuestFault(TS, d.error | ext)
            self._put_ldt(selector, d.base, d.limit, d.attr)
        if state["rflags_sys"] & VM:
            ip = state["rip"]
            for name in _SELECTORS:
                segments.paragraph(name, state[name])
            state["rip"] = state["cs_base"] + ip & MASK32
            return
        self._code(state["cs"], ext)
        self._stack(state["ss"], ext)
        for name in ("es", "ds", "fs", "gs"):
            self._data(name, state[name], ext)

    def _code(self, selector: int, ext: int) -> None:
        d = self._segments.read(selector, TS, ext)
        if not d.is_code or (d.dpl > selector & 3 if d.conforming else d.dpl != selector & 3):
            raise GuestFault(TS, d.error | ext)
        if not d.present:
            raise GuestFault(NP, d.error | ext)
        self._segments.load("cs", selector, self._segments.mark_accessed(d))
        self._state["rip"] = d.base + self._state["rip"] & MASK32

    def _stack(self, selector: int, ext: int) -> None:
        d, cpl = self._segments.read(selector, TS, ext), self._state["cpl"]
        if not d.is_writable_data or d.dpl != cpl or selector & 3 != cpl:
            raise GuestFault(TS, d.error | ext)
        if not d.present:
            raise GuestFault(SS, d.error | ext)
        self._segments.load("ss", selector, self._segments.mark_accessed(d))

    def _data(self, name: str, selector: int, ext: int) -> None:
        if not selector & NULL:
            return
        d = self._segments.read(selector, TS, ext)
        if not d.is_readable or (not d.conforming and d.dpl < max(self._state["cpl"], selector & 3)):
            raise GuestFault(TS, d.error | ext)
        if not d.present:
            raise GuestFault(NP, d.error | ext)
        self._segments.load(name, selector, self._segments.mark_accessed(d))

    def _push_error(self, error_code: int, size: int, ext: int) -> None:
        state = self._state
        frame = Frame(state["ss_base"], state["ss_limit"], state["ss_attr"], state["rsp"], ext)
        frame.push(error_code, size)
        frame.write(self._memory, False)
        state["rsp"] = frame.sp
