"""Random states of 16- and 32-bit cases: as `states`, with segments, offsets near limits, and registers of two sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from iced_x86 import OpKind, Register

from . import segments, values
from .encode_legacy import CODE_SELECTORS, SELECTORS
from .forms_legacy import for_unicorn
from .records import PAGE, SLOT_BYTES, SLOT_ENTRY, WINDOW_ADDR, WINDOW_BYTES
from .segments import BASE, BIG, CS, DS, ES, FS, GS, LAST, SELECTOR, SS
from .states import NUMBERS, RAX, RBP, RBX, RCX, RDI, RSI, RSP, States

U64 = np.uint64
LOW = U64(0xFFFFFFFF)
_SEGMENT = {Register.ES: ES, Register.CS: CS, Register.SS: SS, Register.DS: DS, Register.FS: FS, Register.GS: GS}
_STACKS = {
    "flat": 30, "near16": 25, "wrap16": 10, "near32": 10, "small16": 8, "down16": 6, "down32": 6, "big64k": 5,
}  # fmt: skip
_DATA16 = {
    "near16": 34, "wrap16": 12, "readonly": 8, "down16": 10, "small16": 8, "big64k": 5, "near32": 8, "down32": 4, "code as data": 4,
    "paragraph": 1, "flat": 2, "null": 2,
}  # fmt: skip
_DATA32 = {
    "flat": 40, "wrap32": 10, "near32": 10, "down32": 8, "big64k": 8, "near16": 8, "small16": 3, "readonly": 4, "down16": 3,
    "code as data": 2, "wrap16": 1, "null": 2,
}  # fmt: skip
_REAL = dict.fromkeys(segments.REAL_DATA, 1)
_NO_WRAP = {name: 1 for name in _REAL if name != "wrap16"}  # unicorn does not wrap between the parts of far pointers and frames
_PARAGRAPHS = np.array([segments.PARAGRAPH[SELECTOR[name]] for name in segments.REAL_DATA], U64)
_CODE_PARAGRAPHS = np.array([segments.PARAGRAPH[SELECTOR[f"code16 {k}"]] for k in range(segments.REAL_BLOCKS)], U64)
_STRING_KINDS = {
    OpKind.MEMORY_SEG_SI: 16, OpKind.MEMORY_SEG_ESI: 32, OpKind.MEMORY_SEG_DI: 16, OpKind.MEMORY_SEG_EDI: 32, OpKind.MEMORY_ESDI: 16,
    OpKind.MEMORY_ESEDI: 32,
}  # fmt: skip


class LegacyStates(States):
    """The records of one instance of 16- or 32-bit mode."""

    def fill(self) -> None:
        c, instance = self.cases, self.instance
        self.address = self._address_bits()
        self.mask = U64((1 << self.address) - 1)
        c["ip"] = instance.ip
        real = _NO_WRAP if for_unicorn(instance) else _REAL
        table = real if instance.real else _DATA16 if self.address == 16 else _DATA32
        for n in (ES, DS, FS, GS):
            c["segment"][:, n] = self._pick(table)
        c["segment"][:, SS] = self._pick(real if instance.real else _STACKS)
        if BASE[instance.cs] == 0 and LAST[instance.cs] == LOW:  # the flat model, as most 32-bit systems have it
            c["segment"][self.chance(0.6), :4] = SELECTOR["flat"]
        c["segment"][:, CS] = instance.cs
        super().fill()
        c["gpr"][:, 8:] = 0
        c["gpr"] &= LOW
        c["rflags"] &= ~U64(1 << 21)
        if instance.real:
            self._room_for_frames()
        c["fx"]["xmm"][:, 8:] = 0

    def _room_for_frames(self) -> None:
        """An exception in real mode needs six bytes of stack; without them the processor shuts down."""
        sp = self.gpr[:, RSP] & U64(0xFFFF)
        self._set(RSP, np.where((sp > 0) & (sp < U64(8)), U64(0x800), sp), U64(0xFFFF))

    def _pick(self, table: dict[str, int]) -> Any:
        selectors = np.array([SELECTOR.get(name, 0) for name in table], np.uint16)
        weights = np.array(list(table.values()), float)
        return selectors[self.rng.choice(len(selectors), self.n, p=weights / weights.sum())]

    def _address_bits(self) -> int:
        insn, bits = self.instance.insn, self.instance.bits
        for k in range(insn.op_count):
            if insn.op_kind(k) in _STRING_KINDS:
                return _STRING_KINDS[insn.op_kind(k)]
        return 48 - bits if b"\x67" in self.instance.raw[: self._prefixes()] else bits

    def _prefixes(self) -> int:
        raw = self.instance.raw
        return next(k for k, byte in enumerate(raw) if byte not in b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")

    # ---- where memory is
    def segment(self) -> Any:
        """The selectors that the explicit operand goes through."""
        return self.cases["segment"][:, _SEGMENT.get(self.instance.insn.memory_segment, DS)]

    def offsets(self, linear: Any, selectors: Any, size: int, mask: Any) -> Any:
        """Offsets of linear addresses, some of them about the segment's limit instead."""
        base, last = BASE[selectors], LAST[selectors]
        top = np.where(self.chance(0.5), last, np.where(BIG[selectors], LOW, U64(0xFFFF)))
        edge = top + self.uniform(-size - 1, 3)
        return np.where(self.chance(0.06), edge, linear - base) & mask

    def linear(self, size: int) -> Any:
        found = super().linear(size)
        far = found - U64(WINDOW_ADDR) > U64(16 * PAGE)
        return np.where(far, found % U64((1 << 32) - WINDOW_ADDR) + U64(WINDOW_ADDR), found)

    def _set(self, register: int, value: Any, mask: Any) -> None:
        self.gpr[:, register] = self.gpr[:, register] & ~mask | value & mask

    def _own_code(self, selectors: Any, offsets: Any) -> Any:
        """Reads through CS of a 16-bit code segment stay in the instruction's slot, up to its end: everyone knows these bytes."""
        own = (selectors == self.instance.cs) & ~BIG[selectors]
        room = SLOT_ENTRY + len(self.instance.raw) - max(self.memory_bits // 8, 16)
        inside = U64(self.instance.ip & ~(SLOT_BYTES - 1)) + self.uniform(0, room) if room > 0 else U64(0xFFF0)
        return np.where(own, inside, offsets)

    def _explicit(self, size: int) -> None:
        gpr, insn, name = self.gpr, self.instance.insn, self.name
        selectors = self.segment()
        base, index = NUMBERS.get(insn.memory_base), NUMBERS.get(insn.memory_index)
        wanted = self.linear(size)
        if name in ("bt", "bts", "btr", "btc") and insn.op_kind(1) == OpKind.REGISTER:
            number, w, _ = NUMBERS[insn.op_register(1)]
            self._set(number, self.uniform(-0x4000, 0x4000), U64((1 << w) - 1))
            wanted = np.where(self.chance(0.9), U64(WINDOW_ADDR) + self.uniform(0x800, 0x1800), wanted)
        offset = self._own_code(selectors, self.offsets(wanted, selectors, size, self.mask))
        if base is not None or index is not None:
            rest = offset - U64(insn.memory_displacement & (1 << 64) - 1)
            scale = U64(insn.memory_index_scale.bit_length() - 1)
            if base is not None and index is not None and base[0] == index[0]:
                self._set(base[0], (rest & self.mask) // (U64(1) + (U64(1) << scale)), self.mask)
            elif base is not None:
                if index is not None:
                    rest = rest - (gpr[:, index[0]] << scale)
                self._set(base[0], rest, self.mask)
            else:
                assert index is not None
                self._set(index[0], (rest & self.mask) >> scale, self.mask)
        self._content(self.effective() + BASE[selectors] & LOW)

    def effective(self) -> Any:
        insn = self.instance.insn
        total = np.full(self.n, insn.memory_displacement & (1 << 64) - 1, U64)
        for register, scale in ((insn.memory_base, 0), (insn.memory_index, insn.memory_index_scale.bit_length() - 1)):
            if register in NUMBERS:
                total = total + (self.gpr[:, NUMBERS[register][0]] << U64(scale))
        return total & self.mask

    def _memory(self) -> None:
        gpr, name, insn = self.gpr, self.name, self.instance.insn
        size = max(self.memory_bits // 8, 1)
        if insn.is_stack_instruction or name in ("leave", "enter"):
            self._stack()
        if insn.is_string_instruction:
            self._strings(size)
        elif name == "xlatb":
            offset = self._own_code(self.segment(), self.offsets(self.linear(1), self.segment(), 1, self.mask))
            self._set(RBX, offset - (gpr[:, RAX] & U64(0xFF)), self.mask)
        elif name in ("maskmovq", "maskmovdqu"):
            self._set(RDI, self.offsets(self.linear(16), self.segment(), 16, self.mask), self.mask)
        elif any(insn.op_kind(k) == OpKind.MEMORY for k in range(insn.op_count)) and name not in ("lea", "nop", "reservednop"):
            self._explicit(size)

    def _strings(self, size: int) -> None:
        gpr, mask = self.gpr, self.mask
        super()._strings(size)
        if self.instance.insn.has_rep_prefix or self.instance.insn.has_repne_prefix:
            gpr[:, RCX] = gpr[:, RCX] & mask | values.integers(self.rng, (self.n,)) & ~mask
        for register, selectors in ((RSI, self.segment()), (RDI, self.cases["segment"][:, ES])):
            linear = gpr[:, register].copy()
            gpr[:, register] = values.integers(self.rng, (self.n,))
            self._set(register, self._own_code(selectors, self.offsets(linear, selectors, size, mask)), mask)

    # ---- the stack
    def _stack(self) -> None:
        name, selectors = self.name, self.cases["segment"][:, SS]
        mask = np.where(BIG[selectors], LOW, U64(0xFFFF))
        size = 32 if name in ("pusha", "pushad", "popa", "popad") else 8
        place = self.linear(size)
        if name == "enter":
            place = np.where(self.chance(0.9), U64(WINDOW_ADDR) + self.uniform(0x1400, 0x1F00), place)
            frame = np.where(self.chance(0.9), U64(WINDOW_ADDR) + self.uniform(0x400, 0x1F00), self.linear(8))
            self._set(RBP, self.offsets(frame, selectors, 4, mask), mask)
        register = RBP if name == "leave" else RSP
        self._set(register, self.offsets(place, selectors, size, mask), mask)
        if self.instance.real:
            self._room_for_frames()
        elements = self._popped()
        if elements:
            if name in ("popf", "popfd", "iret", "iretd"):
                self._keep_in_reach()
            self.patch(self._top(), pack(elements, self._stack_bytes()))

    def _top(self) -> Any:
        selectors = self.cases["segment"][:, SS]
        return (self.gpr[:, RSP] & np.where(BIG[selectors], LOW, U64(0xFFFF))) + BASE[selectors] & LOW

    def _keep_in_reach(self) -> None:
        """What becomes RFLAGS is a patch, never the window's own bytes: TF would trap somewhere in the loop."""
        top = self._top() - U64(WINDOW_ADDR)
        lost = (top > U64(WINDOW_BYTES - 16)) & ((top + U64(16) & LOW) < U64(5 * PAGE))
        self.cases["segment"][lost, SS] = SELECTOR["real 2000"]
        self.gpr[lost, RSP] = U64(0x400)

    def _stack_bytes(self) -> int:
        """How wide one element on the stack is."""
        insn = self.instance.insn
        total = insn.stack_pointer_increment
        if self.name in ("ret", "retf") and insn.op_count:
            total -= insn.immediate(0)
        return int(total) // {"iret": 3, "iretd": 3, "retf": 2}.get(self.name, 1)

    def _popped(self) -> list[Any]:
        """What is taken off the stack, where it matters."""
        name = self.name
        if name == "ret":
            return [self.targets()]
        if name in ("retf", "iret", "iretd"):
            return [self.targets(), self.code_selectors(), self._flags_image()]
        if name in ("popf", "popfd"):
            return [self._flags_image()]
        if name.startswith("pop ") and name[4:] in segments.NAMES:
            return [self.selectors()]
        return []

    def _flags_image(self) -> Any:
        return self.uniform(0, 1 << 22) & ~U64(0x100 | 1 << 17) | U64(0x202)

    # ---- what operands hold
    def _content(self, linear: Any) -> None:
        name, insn, w = self.name, self.instance.insn, self.memory_bits
        if name in ("les", "lds", "lss", "lfs", "lgs"):
            self.patch(linear, pack([self.gpr[:, RCX], self.selectors()], w // 8 - 2))
        elif insn.is_jmp_far_indirect or insn.is_call_far_indirect:
            self.patch(linear, pack([self.targets(), self.code_selectors()], w // 8 - 2))
        elif name == "bound":
            index = self.gpr[:, NUMBERS[insn.op_register(0)][0]]
            self.patch(linear, pack([index + self.uniform(-4, 2), index + self.uniform(-1, 4)], w // 16))
        elif name in ("lar", "lsl", "verr", "verw") or name in _SEGMENT_LOADS:
            self.patch(linear, pack([self.selectors()], 2))
        else:
            super()._content(linear)

    def _registers(self) -> None:
        name, insn, gpr = self.name, self.instance.insn, self.gpr
        super()._registers()
        if name in _SEGMENT_LOADS or name in ("lar", "lsl", "verr", "verw"):
            operand = insn.op_count - 1
            if insn.op_kind(operand) == OpKind.REGISTER and insn.op_register(operand) in NUMBERS:
                self._set(NUMBERS[insn.op_register(operand)][0], self.selectors(), U64(0xFFFF))
        elif name.startswith("loop") or name in ("jcxz", "jecxz"):
            wide = self.uniform(0, 3) | np.where(self.chance(0.3), U64(1 << 16), U64(0))
            gpr[:, RCX] = np.where(self.chance(0.8), wide, gpr[:, RCX])
        elif name in ("aaa", "aas", "daa", "das"):
            digits = np.array([0x00, 0x09, 0x0A, 0x0F, 0x99, 0x9A, 0x9F, 0xA0, 0xF9, 0xFA, 0xFF], U64)
            gpr[:, RAX] = np.where(self.chance(0.5), gpr[:, RAX] & ~U64(0xFF) | digits[self.rng.integers(0, 11, self.n)], gpr[:, RAX])

    def selectors(self) -> Any:
        """Selectors to load: good, bad, null, with any RPL."""
        if self.instance.real:
            return _PARAGRAPHS[self.rng.integers(0, len(_PARAGRAPHS), self.n)]
        found = np.array(SELECTORS, U64)[self.rng.integers(0, len(SELECTORS), self.n)]
        found = np.where(self.chance(0.5), self._pick(_DATA32).astype(U64), found)
        return np.where(self.chance(0.2), found & ~U64(3) | self.uniform(0, 4), found)

    def code_selectors(self) -> Any:
        if self.instance.real:
            return _CODE_PARAGRAPHS[self.rng.integers(0, len(_CODE_PARAGRAPHS), self.n)]
        found = np.array(CODE_SELECTORS, U64)[self.rng.integers(0, len(CODE_SELECTORS), self.n)]
        found = np.where(self.chance(0.3), U64(self.instance.cs), found)
        return np.where(self.chance(0.75), found, self.selectors())

    def targets(self) -> Any:
        """Offsets that branches go to: int3 filling, beyond the limit, memory without execution rights, unmapped."""
        instance = self.instance
        base = int(BASE[instance.cs])
        slot = instance.entry & ~(SLOT_BYTES - 1)
        inside = U64(slot - base) + self.uniform(0, 64)
        other = [0x1_0000 + (slot & 0xFF00), 0x1234_0000 | slot & 0xFF00]
        if instance.bits == 32:
            other += [(WINDOW_ADDR - base) & 0xFFFFFFFF, 0x40_0000, 0x800]
        if instance.real:
            return inside
        rare = np.array(other, U64)[self.rng.integers(0, len(other), self.n)] + self.uniform(0, 64)
        return np.where(self.chance(0.8), inside, rare)


def pack(elements: list[Any], size: int) -> Any:
    """Values one behind the other, `size` bytes each, as pairs of qwords for `patch`."""
    words = [np.zeros(len(elements[0]), U64), np.zeros(len(elements[0]), U64)]
    for k, element in enumerate(elements):
        at = k * size
        if at < 16:
            words[at // 8] |= (element & U64((1 << 8 * size) - 1)) << U64(at % 8 * 8)
    return np.stack(words, 1)


_SEGMENT_LOADS = frozenset(f"mov {name}" for name in segments.NAMES)


def fill(instance: Any, cases: Any, rng: np.random.Generator, base: Any, unmasked: float = 0.1) -> None:
    """Random states for `instance` into case records, as `states.fill`."""
    LegacyStates(instance, cases, rng, base, unmasked).fill()
