"""Random states for an instruction, shaped by what its operands mean.

Everything is drawn for many states at once.  The order matters: data first, then what a mnemonic wants of its registers,
last the registers that addresses are made of.
"""

from __future__ import annotations

from typing import Any

import iced_x86 as iced
import numpy as np
from iced_x86 import OpKind, Register

from . import values
from .encode import CODE_NAMES
from .forms import Instance
from .records import CASE, CODE_ADDR, GS_BASE, PAGE, READ_ONLY_ADDR, WINDOW_ADDR, WINDOW_BYTES

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
U64 = np.uint64
_NAMES = {v: k for k, v in vars(Register).items() if isinstance(v, int)}
_LEGACY = ["AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI"]
_LOW = ["AL", "CL", "DL", "BL", "SPL", "BPL", "SIL", "DIL"]


def _numbers() -> dict[int, tuple[int, int, int]]:
    """iced register -> (number, width in bits, lowest bit)."""
    found = {}
    for value, name in _NAMES.items():
        for n in range(8):
            for text, w in (("R" + _LEGACY[n], 64), ("E" + _LEGACY[n], 32), (_LEGACY[n], 16), (_LOW[n], 8)):
                if name == text:
                    found[value] = (n, w, 0)
            for suffix, w in (("", 64), ("D", 32), ("W", 16), ("L", 8)):
                if name == f"R{n + 8}{suffix}":
                    found[value] = (n + 8, w, 0)
        if name in ("AH", "CH", "DH", "BH"):
            found[value] = (["AH", "CH", "DH", "BH"].index(name), 8, 8)
    return found


NUMBERS = _numbers()
_STACK = ("push", "pop", "pushf", "popf", "call", "ret")
_SHIFTS = frozenset(["shl", "shr", "sar", "rol", "ror", "rcl", "rcr", "shld", "shrd"])


class States:
    """The records of one instance while they are being filled."""

    def __init__(self, instance: Instance, cases: Any, rng: np.random.Generator, base: Any, unmasked: float) -> None:
        self.instance = instance
        self.cases = cases
        self.n = len(cases)
        self.rng = rng
        self.base = base
        self.unmasked = unmasked
        self.gpr = cases["gpr"]
        self.name = instance.known_as.removeprefix("lock ")
        self.memory_bits = iced.MemorySizeExt.size(instance.insn.memory_size) * 8

    def fill(self) -> None:
        c, rng, n = self.cases, self.rng, self.n
        c["entry"] = self.instance.entry
        c["patches"] = 0
        c["gpr"] = values.integers(rng, (n, 16))
        flags = rng.integers(0, 1 << 12, n, dtype=U64) & U64(0x8D5) | U64(0x202)
        c["rflags"] = flags | np.where(rng.random(n) < 0.3, U64(0x400), U64(0)) | np.where(rng.random(n) < 0.1, U64(1 << 21), U64(0))
        self._floating_point()
        self._registers()
        if self.memory_bits or self._implicit():
            self._memory()

    def chance(self, p: float) -> Any:
        return self.rng.random(self.n) < p

    def uniform(self, low: int, high: int) -> Any:
        """Integers from low (incl.) to high (excl.), as unsigned 64-bit."""
        return self.rng.integers(low, high, self.n).astype(np.int64).view(U64)

    # ---- data
    def _floating_point(self) -> None:
        c, rng, n, fx = self.cases, self.rng, self.n, self.cases["fx"]
        fx["fcw"] = 0x37F
        fx["mxcsr"] = 0x1F80
        fx["ftw"] = 0xFF
        fx["mxcsr_mask"] = 0xFFFF
        name = self.name
        insn = self.instance.insn
        vector = any("XMM" in _NAMES[insn.op_register(k)] for k in range(insn.op_count))
        if vector or name in ("fxsave", "fxrstor", "fxsave64", "fxrstor64", "stmxcsr", "ldmxcsr"):
            self._mxcsr()
            kind = values.lane_kind(name)
            fx["xmm"] = values.vectors(rng, n * 16, kind).reshape(n, 16, 2)
            same = np.nonzero(self.chance(0.25))[0]  # both operands equal, or nearly so
            numbers = [self._xmm(k) for k in range(self.instance.insn.op_count)]
            pair = [x for x in numbers if x is not None]
            if len(pair) > 1:
                fx["xmm"][same, pair[0]] = fx["xmm"][same, pair[1]]
        if name.startswith(("f", "p", "mov", "mask", "emms", "cvt")):
            self._x87()
        c["fx"] = fx

    def _xmm(self, k: int) -> int | None:
        register = _NAMES[self.instance.insn.op_register(k)] if self.instance.insn.op_kind(k) == OpKind.REGISTER else ""
        return int(register[3:]) if register.startswith("XMM") else None

    def _mxcsr(self) -> None:
        rng, n, fx = self.rng, self.n, self.cases["fx"]
        value = np.full(n, 0x1F80, np.uint32)
        value |= np.where(self.chance(0.5), rng.integers(0, 4, n) << 13, 0).astype(np.uint32)
        value |= np.where(self.chance(0.3), rng.integers(0, 64, n), 0).astype(np.uint32)
        value |= np.where(self.chance(0.15), rng.integers(0, 2, n) << 6, 0).astype(np.uint32)  # DAZ
        value |= np.where(self.chance(0.15), rng.integers(0, 2, n) << 15, 0).astype(np.uint32)  # FTZ
        value &= ~np.where(self.chance(self.unmasked), rng.integers(0, 64, n) << 7, 0).astype(np.uint32)  # unmasked exceptions
        fx["mxcsr"] = value

    def _x87(self) -> None:
        rng, n, fx = self.rng, self.n, self.cases["fx"]
        control = np.full(n, 0x37F)
        control = np.where(self.chance(0.5), 0x7F | rng.integers(0, 16, n) << 8, control)
        masks = np.where(self.chance(self.unmasked), rng.integers(0, 64, n), 0x3F)
        control = (control & ~0x3F) | masks
        fx["fcw"] = control
        fx["ftw"] = np.where(self.chance(0.85), 0xFF, rng.integers(0, 256, n))
        status = np.where(self.chance(0.3), rng.integers(0, 128, n), 0)
        status = np.where(self.chance(0.5 * self.unmasked), status, status & (masks | 0x40))  # mostly no exception pending
        status |= rng.integers(0, 16, n) << 8 & 0x4700
        status |= np.where(status & ~masks & 0x3F, 0x8080, 0)
        fx["fsw"] = status | rng.integers(0, 8, n) << 11
        mantissa, high = values.extended(rng, n * 8)
        fx["st"]["mantissa"] = mantissa.reshape(n, 8)
        fx["st"]["sign_exponent"] = high.reshape(n, 8)

    # ---- registers with a meaning
    def _registers(self) -> None:
        gpr, name, insn = self.gpr, self.name, self.instance.insn
        small = self.chance(0.8)
        if name in _SHIFTS:
            gpr[:, RCX] = np.where(small, self.uniform(0, 70), gpr[:, RCX])
        elif name.startswith("loop") or name in ("jrcxz", "jecxz", "jcxz"):
            gpr[:, RCX] = np.where(small, self.uniform(0, 3) | np.where(self.chance(0.2), U64(1 << 32), U64(0)), gpr[:, RCX])
        elif name in ("div", "idiv"):
            self._dividend()
        elif name in ("pcmpestri", "pcmpestrm", "pcmpestri64", "pcmpestrm64"):
            for r in (RAX, RDX):
                gpr[:, r] = np.where(small, self.uniform(-20, 20), gpr[:, r])
        elif name in ("jmp", "call") and insn.op_count and insn.op_kind(0) == OpKind.REGISTER:
            number = NUMBERS[insn.op_register(0)][0]
            gpr[:, number] = self.targets()
        elif name == "cmpxchg" and insn.op_kind(0) == OpKind.REGISTER:
            number, w, low = NUMBERS[insn.op_register(0)]
            if w > 8:
                gpr[:, RAX] = np.where(self.chance(0.5), gpr[:, number], gpr[:, RAX])
        elif name in ("bsf", "bsr", "tzcnt") and insn.op_kind(1) == OpKind.REGISTER:
            number = NUMBERS[insn.op_register(1)][0]
            shift = self.uniform(0, 64)
            gpr[:, number] = np.where(self.chance(0.6), (gpr[:, number] << shift) >> self.uniform(0, 64), gpr[:, number])

    def targets(self) -> Any:
        """Where indirect branches go: int3 filling, memory without execution rights, unmapped, non-canonical."""
        inside = U64(CODE_ADDR) + self.uniform(0, 64)
        window = U64(WINDOW_ADDR) + self.uniform(0, WINDOW_BYTES)
        rare = np.where(self.chance(0.5), U64(1 << 46), self.gpr[:, RBX])
        return np.where(self.chance(0.6), inside, np.where(self.chance(0.9), window, rare))

    def _dividend(self) -> None:
        """rdx:rax so that the quotient mostly fits."""
        gpr, insn = self.gpr, self.instance.insn
        w = self.memory_bits
        divisor = gpr[:, RBX]
        if insn.op_kind(0) == OpKind.REGISTER:
            number, w, low = NUMBERS[insn.op_register(0)]
            divisor = gpr[:, number] >> U64(low)
        mask = U64((1 << w) - 1)
        d = np.maximum(divisor & mask, U64(1))
        if self.name == "idiv":
            d = np.maximum(np.where(d >> U64(w - 1) != 0, (~d + U64(1)) & mask, d) >> U64(1), U64(1))
        high = self.rng.integers(0, 1 << 63, self.n, dtype=U64) % d
        negative = self.chance(0.5) if self.name == "idiv" else np.zeros(self.n, bool)
        high = np.where(negative, ~high & mask, high)
        mostly = self.chance(0.85)
        if w == 8:
            gpr[:, RAX] = np.where(mostly, gpr[:, RAX] & ~U64(0xFF00) | high << U64(8), gpr[:, RAX])
        else:
            gpr[:, RDX] = np.where(mostly, gpr[:, RDX] & ~mask | high, gpr[:, RDX])
        self.divisor = divisor

    # ---- memory
    def _implicit(self) -> bool:
        return bool(self.instance.insn.is_stack_instruction) or self.name in ("xlatb", "leave", "enter", "maskmovq", "maskmovdqu")

    def linear(self, size: int) -> Any:
        """Linear addresses for an operand of `size` bytes: in the window, across its pages, at its end, outside of it."""
        inside = U64(WINDOW_ADDR) + self.uniform(0, max(WINDOW_BYTES - size, 1))
        alignment = ~U64(15) if size >= 16 else ~U64(7)
        inside = np.where(self.chance(0.85 if size >= 16 else 0.4), inside & alignment, inside)
        edge = self.uniform(-max(size, 8) - 1, 3)
        pages = np.array([WINDOW_ADDR, WINDOW_ADDR + PAGE, WINDOW_ADDR + WINDOW_BYTES, READ_ONLY_ADDR, READ_ONLY_ADDR + PAGE], U64)
        edges = pages[self.rng.integers(0, len(pages), self.n)] + edge
        other = np.where(self.chance(0.6), U64(READ_ONLY_ADDR) + (self.uniform(0, PAGE) & ~U64(15)), values.integers(self.rng, (self.n,)))
        choice = self.rng.random(self.n)
        return np.where(choice < 0.86, inside, np.where(choice < 0.96, edges, other))

    def patch(self, addresses: Any, data: Any, where: Any = None) -> None:
        """Puts 16 bytes (two qwords a state) at linear addresses, as far as they are in the window."""
        c = self.cases
        offset = addresses - U64(WINDOW_ADDR)
        ok = offset <= U64(WINDOW_BYTES - 16)
        if where is not None:
            ok &= where
        rows = np.nonzero(ok)[0]
        slot = c["patches"][rows]
        c["patch"]["offset"][rows, slot] = offset[rows]
        c["patch"]["bytes"][rows, slot] = data[rows]
        c["patches"][rows] += U64(1)

    def _memory(self) -> None:
        gpr, name, insn = self.gpr, self.name, self.instance.insn
        size = max(self.memory_bits // 8, 1)
        if insn.is_stack_instruction or name in ("leave", "enter"):
            self._stack()
        if insn.is_string_instruction:
            self._strings(size)
            return
        if name == "xlatb":
            gpr[:, RBX] = self.linear(1) - (gpr[:, RAX] & U64(0xFF)) - self._segment()
            return
        if name in ("maskmovq", "maskmovdqu"):
            gpr[:, RDI] = self.linear(16) - self._segment()
            return
        if any(insn.op_kind(k) == OpKind.MEMORY for k in range(insn.op_count)) and name not in ("lea", "nop", "reservednop"):
            self._explicit(size)

    def _segment(self) -> Any:
        return U64(GS_BASE if insn_segment(self.instance.insn) == "GS" else 0)

    def _explicit(self, size: int) -> None:
        gpr, insn, name = self.gpr, self.instance.insn, self.name
        base, index = NUMBERS.get(insn.memory_base), NUMBERS.get(insn.memory_index)
        displacement = U64(insn.memory_displacement & (1 << 64) - 1)
        wanted = self.linear(size)
        bits = None
        if name in ("bt", "bts", "btr", "btc") and insn.op_kind(1) == OpKind.REGISTER:
            bits = NUMBERS[insn.op_register(1)][0]
            offset = np.where(self.chance(0.95), self.uniform(-0x4000, 0x4000), gpr[:, bits])
            gpr[:, bits] = offset
            wanted = np.where(self.chance(0.9), U64(WINDOW_ADDR) + self.uniform(0x800, 0x1800), wanted)
        if base is not None or index is not None:
            rest = wanted - self._segment() - displacement
            scale = U64(insn.memory_index_scale.bit_length() - 1)
            if base is not None and index is not None and base[0] == index[0]:
                gpr[:, base[0]] = rest // (U64(1) + (U64(1) << scale))
            elif base is not None:
                if index is not None:
                    rest = rest - (gpr[:, index[0]] << scale)
                gpr[:, base[0]] = rest
            else:
                assert index is not None
                gpr[:, index[0]] = rest >> scale
            if (base or index or (0, 64))[1] == 32:
                for register in (base, index):
                    if register is not None:
                        keep = U64(0xFFFFFFFF)
                        gpr[:, register[0]] = gpr[:, register[0]] & keep | (values.integers(self.rng, (self.n,)) & ~keep)
        linear = self.effective() + self._segment()
        self._content(linear)

    def effective(self) -> Any:
        """The offset that the registers as they are now give."""
        gpr, insn = self.gpr, self.instance.insn
        base, index = NUMBERS.get(insn.memory_base), NUMBERS.get(insn.memory_index)
        total = np.full(self.n, insn.memory_displacement & (1 << 64) - 1, U64)
        if base is not None:
            total = total + gpr[:, base[0]]
        if index is not None:
            total = total + (gpr[:, index[0]] << U64(insn.memory_index_scale.bit_length() - 1))
        narrow = (base or index or (0, 64))[1] == 32
        return total & U64(0xFFFFFFFF) if narrow else total

    def _content(self, linear: Any) -> None:
        """What an explicit memory operand holds."""
        name, rng, n = self.name, self.rng, self.n
        if name in ("div", "idiv"):
            self.patch(linear, np.stack([self.divisor, self.gpr[:, RCX]], 1))
        elif name == "cmpxchg":
            self.patch(linear, np.stack([self.gpr[:, RAX], self.gpr[:, RCX]], 1), self.chance(0.5))
        elif name == "cmpxchg8b":
            low = U64(0xFFFFFFFF)
            self.patch(linear, np.stack([self.gpr[:, RAX] & low | self.gpr[:, RDX] << U64(32), self.gpr[:, RCX]], 1), self.chance(0.5))
        elif name == "cmpxchg16b":
            self.patch(linear, self.gpr[:, [RAX, RDX]], self.chance(0.5))
        elif name in ("jmp", "call"):
            self.patch(linear, np.stack([self.targets(), self.gpr[:, RCX]], 1))
        elif name == "ldmxcsr":
            low = self.uniform(0, 1 << 16) | np.where(self.chance(0.1), self.gpr[:, RCX], U64(0))
            self.patch(linear, np.stack([low, self.gpr[:, RCX]], 1))
        elif name in ("fxrstor", "fxrstor64"):
            header = self.uniform(0, 1 << 14) << U64(32) & U64(0x38FF_0000_0000) | U64(0x37F)
            fp_status = header >> U64(32) << U64(16) | U64(0x37F)
            tags = self.uniform(0, 256) << U64(32)
            self.patch(linear, np.stack([fp_status & U64(0xFFFFFFFF) | tags, self.gpr[:, RCX]], 1))
            mxcsr = U64(0x1F80) | np.where(self.chance(0.1), self.uniform(0, 1 << 20), self.uniform(0, 64))
            self.patch(linear + U64(16), np.stack([self.gpr[:, RCX], mxcsr], 1))
        elif name.startswith("f"):
            self.patch(linear, values.x87_memory(rng, n, iced.MemorySizeExt.element_type(self.instance.insn.memory_size), self.memory_bits))
        elif self.memory_bits >= 32 and self.instance.insn.op_count > 1:
            self.patch(linear, values.vectors(rng, n, values.lane_kind(name)))
            first = self._xmm(0)
            if first is not None:
                self.patch(linear, self.cases["fx"]["xmm"][:, first], self.chance(0.2))
            elif self.chance(0.5)[0]:
                self.patch(linear, values.integers(rng, (n, 2)))

    def _stack(self) -> None:
        gpr, name = self.gpr, self.name
        code = CODE_NAMES[self.instance.insn.code]
        register = RBP if name == "leave" else RSP
        gpr[:, register] = self.linear(8)
        if name == "enter":
            gpr[:, RSP] = np.where(self.chance(0.9), U64(WINDOW_ADDR) + self.uniform(0x1400, 0x1F00), gpr[:, RSP])
            gpr[:, RBP] = np.where(self.chance(0.9), U64(WINDOW_ADDR) + self.uniform(0x400, 0x1F00), gpr[:, RBP])
        elif name == "ret":
            self.patch(gpr[:, RSP], np.stack([self.targets(), gpr[:, RCX]], 1))
        elif name == "popf":
            image = self.uniform(0, 1 << 22) & ~U64(0x100) | U64(0x202)
            image = image | np.where(self.chance(0.1), gpr[:, RCX] & ~U64(0x100), U64(0))
            self.patch(gpr[:, RSP], np.stack([image, gpr[:, RCX]], 1), None)
            # Where no patch fits, TF may come from the window itself.
            outside = gpr[:, RSP] - U64(WINDOW_ADDR) > U64(WINDOW_BYTES - 16)
            gpr[:, RSP] = np.where(
                outside & (gpr[:, RSP] - U64(WINDOW_ADDR - 8) < U64(WINDOW_BYTES + 3 * PAGE)), U64(WINDOW_ADDR - 64), gpr[:, RSP]
            )
        elif name == "pop" and code.startswith("POP_RM"):
            gpr[:, RSP] = np.where(self.chance(0.8), U64(WINDOW_ADDR) + self.uniform(0, WINDOW_BYTES - 16), gpr[:, RSP])

    def _strings(self, size: int) -> None:
        gpr, name = self.gpr, self.name
        if name.split()[-1] in ("ins", "outs"):
            gpr[:, RCX] = self.uniform(1, 4)
        source, target = self.linear(size), self.linear(size)
        overlap = self.chance(0.2)
        target = np.where(overlap, source + self.uniform(-17, 18), target)
        count = np.where(self.chance(0.9), self.uniform(0, 18), self.uniform(0, 300))
        same = values.integers(self.rng, (self.n, 2))
        element = gpr[:, RAX]
        if name.endswith(("scas", "cmps")):
            for step in (0, 16):
                down = (self.cases["rflags"] & U64(0x400)) != 0
                distance = np.where(down, U64((size - step - 16) & (1 << 64) - 1), U64(step))
                data = same
                if name.endswith("scas"):
                    low = element & U64((1 << 8 * size) - 1)
                    for k in (8, 16, 32):
                        if 8 * size <= k:
                            low = low | low << U64(k)
                    data = np.stack([low, low], 1)
                    if name.startswith("repne"):
                        break
                wanted = self.chance(0.8)
                self.patch(target + distance, data, wanted)
                if name.endswith("cmps"):
                    self.patch(source + distance, data, wanted)
        gpr[:, RSI], gpr[:, RDI] = source - self._segment(), target
        if name.startswith("rep"):
            gpr[:, RCX] = count
        if self.instance.bits == 64 and self.instance.decoded.form.mem.address32:
            keep = U64(0xFFFFFFFF)
            for r in (RSI, RDI, RCX):
                gpr[:, r] = gpr[:, r] & keep | (values.integers(self.rng, (self.n,)) & ~keep)


def insn_segment(insn: iced.Instruction) -> str:
    return _NAMES[insn.segment_prefix] if insn.segment_prefix else ""


def fill(instance: Instance, cases: Any, rng: np.random.Generator, base: Any, unmasked: float = 0.1) -> None:
    """Random states for `instance` into case records; `unmasked`: how often floating-point exceptions trap."""
    States(instance, cases, rng, base, unmasked).fill()


__all__ = ["CASE", "NUMBERS", "States", "fill"]
