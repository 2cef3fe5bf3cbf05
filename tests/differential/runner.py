"""The reference interpreter on case records, and what the host's answers mean in its terms.

`interpret_case` produces what the host CPU produces: the `out` half of a record.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ringfence.ir.fault import GuestFault
from ringfence.ir.interpret import Interpreter
from ringfence.ir.value import Op
from ringfence.isa.x86.context import Form, trace_form
from ringfence.isa.x86.decode import Decoded, decode
from ringfence.isa.x86.hidden import hidden_words
from ringfence.isa.x86.modes import FLAT, LONG
from ringfence.isa.x86.state import GPR, EngineState, X86State, rflags_image, rflags_words
from ringfence.isa.x86.vectors import DEFER

from . import segments
from .forms import Instance
from .records import FOREIGN, GS_BASE, MAX_DIFFS, PAGE, READ_ONLY_ADDR, WINDOW_ADDR, WINDOW_BYTES, read_only_image

_RESET = {name: field.initial() for state in (X86State, EngineState) for name, field in state.FIELDS.items()}
GDT_ADDR, LDT_ADDR = 0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_1000  # where the interpreter finds the descriptor tables
# The user program that every case is: long mode, CPL 3, flat segments, SSE and x87 enabled.
_USER = {
    "cpl": 3, "tr_limit": 0x50, "ldtr": 0x50, "ldtr_base": LDT_ADDR, "ldtr_limit": len(segments.LDT) - 1, "gdtr_base": GDT_ADDR,
    "gdtr_limit": len(segments.GDT) - 1, "cs": 0x33, "ss": 0x2B, "cr0": 0x80050033, "cr4": 0x6A0, "efer": 0xD01, "gs_base": GS_BASE,
}  # fmt: skip
ELEMENT_LIMIT = 1 << 12


class Undecided(Exception):
    """No comparison: the case touches memory that the child has for itself, or the body leaves it to the engine."""


class Loop(Exception):
    """A repeated instruction that does not end."""


@lru_cache(maxsize=20000)
def traced(form: Form) -> list[Op]:
    return trace_form(form, precise=True).trace.ops


@lru_cache(maxsize=50000)
def _decoded(raw: bytes, entry: int, mode: int) -> Decoded | None:
    return decode(raw, entry, mode)


def decoded_in(instance: Instance, mode: int) -> Decoded:
    """The instance as code of one of the modes of modes.py."""
    found = instance.decoded if mode == LONG else _decoded(instance.raw, instance.entry, mode)
    if found is None:
        raise ValueError(f"{instance}: needs more bytes in mode {mode}")
    return found


def mode_of(case: Any) -> int:
    """The mode that a case of protected mode or compatibility mode is in."""
    cs, ss = int(case["segment"][segments.CS]), int(case["segment"][segments.SS])
    if not cs:
        return LONG
    if all(segments.FLAT[int(case["segment"][n])] for n in range(4)):
        return FLAT
    return {(True, True): 33, (True, False): 34, (False, False): 16, (False, True): 17}[bool(segments.BIG[cs]), bool(segments.BIG[ss])]


class Window:
    """The memory of a case with user rights, as the child has it."""

    def __init__(self, base: bytes) -> None:
        self.bytes = bytearray(base)
        self.read_only = read_only_image(base)
        self.touched: set[int] = set()

    def _check(self, address: int, size: int, write: bool) -> None:
        last = address + size - 1
        for k, part in enumerate((address, last) if address >> 12 != last >> 12 else (address,)):
            part &= (1 << 64) - 1
            if part + (1 << 47) & (1 << 64) - 1 >= 1 << 48:
                raise GuestFault(13)
            where = part if k == 0 else part & ~0xFFF
            if WINDOW_ADDR <= part < WINDOW_ADDR + WINDOW_BYTES:
                continue
            if FOREIGN[0] <= part < FOREIGN[1]:
                raise Undecided
            present = READ_ONLY_ADDR <= part < READ_ONLY_ADDR + PAGE
            if write or not present:
                raise GuestFault(14, 4 | write << 1 | present, where)

    def load(self, address: int, size: int, write: bool, system: bool = False) -> int:
        if system and GDT_ADDR <= address < LDT_ADDR + len(segments.LDT):
            table, at = (segments.LDT, LDT_ADDR) if address >= LDT_ADDR else (segments.GDT, GDT_ADDR)
            return int.from_bytes(table[address - at : address - at + size], "little")
        self._check(address, size, write)
        if address >= READ_ONLY_ADDR:
            at = address - READ_ONLY_ADDR
            return int.from_bytes(self.read_only[at : at + size], "little")
        at = address - WINDOW_ADDR
        return int.from_bytes(self.bytes[at : at + size], "little")

    def store(self, address: int, size: int, value: int, system: bool = False) -> None:
        self._check(address, size, True)
        self._put(address - WINDOW_ADDR, value.to_bytes(size, "little"))

    def _put(self, at: int, data: bytes) -> None:
        self.bytes[at : at + len(data)] = data
        self.touched.update(range(at & ~7, at + len(data), 8))

    def patch(self, at: int, data: bytes) -> None:
        self._put(at, data)

    def load_physical(self, address: int, size: int) -> int:
        raise NotImplementedError("user instructions do not see physical memory")

    def store_physical(self, address: int, size: int, value: int) -> None:
        raise NotImplementedError("user instructions do not see physical memory")


class CaseState(dict[str, Any]):
    """The vCPU's fields, taken from the record when first asked for."""

    def __init__(self, case: Any, entry: int) -> None:
        super().__init__(rflags_words(int(case["rflags"]) & ~0x202))
        self["rflags_sys"] |= 0x200
        self["vpage"] = entry & ~0xFFF
        self["rip"] = entry
        self.case = case

    def __missing__(self, name: str) -> Any:
        value = self[name] = self._initial(name)
        return value

    def _initial(self, name: str) -> Any:
        if name in _NUMBER:
            return int(self.case["gpr"][_NUMBER[name]])
        fx = self.case["fx"]
        if name.startswith("xmm"):
            low, high = fx["xmm"][int(name[3:])]
            return int(low) | int(high) << 64
        match name:
            case "st":
                top = int(fx["fsw"]) >> 11 & 7
                values = [int(x["mantissa"]) | int(x["sign_exponent"]) << 64 for x in fx["st"]]
                return [values[(k - top) & 7] for k in range(8)]
            case "fcw" | "mxcsr":
                return int(fx[name])
            case "fsw":
                return int(fx["fsw"]) & ~0x3800
            case "ftop":
                return int(fx["fsw"]) >> 11 & 7
            case "ftag":
                return int(fx["ftw"])
        if self.case["segment"][segments.CS] and name.partition("_")[0] in segments.NAMES:
            return self._segment(name)
        if name in _USER:
            return _USER[name]
        initial = _RESET[name]
        return list(initial) if isinstance(initial, list) else initial

    def _segment(self, name: str) -> int:
        """A field of a segment register of a 16- or 32-bit case."""
        register, _, part = name.partition("_")
        selector = int(self.case["segment"][segments.NAMES.index(register)])
        if not part:
            return selector
        base, limit, attr = int(segments.BASE[selector]), int(segments.LAST[selector]), int(segments.ATTRIBUTES[selector])
        if part in ("base", "limit", "attr"):
            return {"base": base, "limit": limit, "attr": attr}[part]
        return dict(zip(("rlimit", "wlimit", "unflat"), hidden_words(register, base, limit, attr, False), strict=True))[part]


_NUMBER = {name: n for n, name in enumerate(GPR)}


def interpret_case(instance: Instance, case: Any, base: bytes) -> None:
    """Runs one case in the reference interpreter and fills in its `out` half."""
    mode = mode_of(case)
    if instance.name == "into" and case["rflags"] & np.uint64(0x800):
        raise Undecided  # a software interrupt: through the IDT, which only machines have
    decoded, entry = decoded_in(instance, mode), instance.entry
    state, memory = CaseState(case, entry), Window(base)
    for k in range(int(case["patches"])):
        memory.patch(int(case["patch"][k]["offset"]), case["patch"][k]["bytes"].tobytes())
    case["trap"], case["error"], case["cr2"], case["rip"] = -1, 0, 0, entry + len(instance.raw)
    ops = traced(decoded.form)
    try:
        for _ in range(ELEMENT_LIMIT):
            outcome = Interpreter(state, memory, decoded.binds, decoded.imms).run(ops)
            if outcome[0] == "jump":
                case["rip"] = outcome[1]
            elif outcome[0] == "taken":
                if decoded.target is None:
                    continue
                case["rip"] = decoded.target
            elif outcome[0] == "exit":
                raise NotImplementedError(f"{instance}: leaves to the engine: {outcome}")
            break
        else:
            raise Loop(str(instance))
        if mode != LONG:
            case["rip"] = int(case["rip"]) - state["cs_base"] & 0xFFFFFFFF
    except GuestFault as fault:
        if fault.vector == DEFER:
            raise Undecided from fault
        case["trap"], case["error"], case["rip"] = fault.vector, fault.error, instance.ip or entry
        case["cr2"] = fault.address or 0
    _put_state(case, state)
    _put_memory(case, memory, base)


def _put_state(case: Any, state: CaseState) -> None:
    case["out_gpr"] = case["gpr"]
    case["out_fx"] = case["fx"]
    case["out_segment"] = case["segment"]
    for n, name in enumerate(segments.NAMES):
        if case["segment"][segments.CS] and name in state:
            case["out_segment"][n] = state[name]
    out = case["out_fx"]
    for name, value in state.items():
        if name in _NUMBER:
            case["out_gpr"][_NUMBER[name]] = value
        elif name.startswith("xmm"):
            out["xmm"][int(name[3:])] = value & (1 << 64) - 1, value >> 64
        elif name in ("fcw", "mxcsr"):
            out[name] = value
    if "ftag" in state:
        out["ftw"] = state["ftag"]
    if "fsw" in state or "ftop" in state or "st" in state:
        out["fsw"] = state["fsw"] | state["ftop"] << 11
        for k in range(8):
            value = state["st"][(k + state["ftop"]) & 7]
            out["st"][k]["mantissa"], out["st"][k]["sign_exponent"] = value & (1 << 64) - 1, value >> 64
    case["out_rflags"] = rflags_image(state)


def _put_memory(case: Any, memory: Window, base: bytes) -> None:
    found = []
    for at in sorted(memory.touched):
        if memory.bytes[at : at + 8] != base[at : at + 8]:
            found.append((at, int.from_bytes(memory.bytes[at : at + 8], "little")))
    case["diffs"] = len(found)
    for k, pair in enumerate(found[:MAX_DIFFS]):
        case["diff"][k] = pair


def normalise_host(cases: Any, instances: dict[int, Instance]) -> None:
    """Turns what the host reports into the interpreter's terms: int3 filling and refused fetches are jumps."""
    legacy, trap, rip = cases["segment"][:, 1] != 0, cases["trap"], cases["rip"]
    entry = np.where(legacy, cases["ip"].astype(np.uint64), cases["entry"])
    following = entry + np.array([len(instances[int(e)].raw) for e in cases["entry"]], np.uint64)
    plain = trap == -1
    landed = (trap == 3) & (rip != following)
    fetched = (trap == 14) & np.where(legacy, cases["error"] & np.uint64(16) != 0, (rip != entry) & (cases["cr2"] == rip))
    refused = (trap == 13) & (rip != entry)  # a non-canonical target, noticed behind the branch
    cases["rip"] = np.where(plain, following, np.where(landed, rip - np.uint64(1), rip))
    cases["trap"] = np.where(landed | fetched | refused, -1, trap)
    gone = cases["trap"] == -1
    cases["error"] = np.where(gone, 0, cases["error"])
    cases["cr2"] = np.where(gone | (cases["trap"] != 14), 0, cases["cr2"])
    # Forms do not tell RSP- and RBP-based operands apart, so a non-canonical one is #GP(0) here and not #SS(0).
    cases["trap"] = np.where(~legacy & (cases["trap"] == 12) & (cases["error"] == 0), 13, cases["trap"])
    # Linux sets P in the error codes of its own half of the address space, whatever is mapped there.
    hidden = (cases["trap"] == 14) & (cases["cr2"] >= np.uint64(1 << 47))
    cases["error"] = np.where(hidden, cases["error"] & ~np.uint64(1), cases["error"])
    cases["out_rflags"] &= ~np.uint64(0x10100)  # RF is set in the image of a fault
    # Only 32 bits of eight registers mean anything.
    cases["out_gpr"][legacy, 8:] = 0
    cases["out_gpr"][legacy] &= np.uint64(0xFFFFFFFF)


def describe(instance: Instance, case: Any) -> str:
    """The state that a case starts from, for people."""
    gpr = " ".join(f"{name}={int(case['gpr'][n]):#x}" for n, name in enumerate(GPR))
    fx = " ".join(f"{name}={int(case['fx'][name]):#x}" for name in ("mxcsr", "fcw", "fsw", "ftw"))
    return f"{instance} {gpr} rflags={int(case['rflags']):#x} {fx}"
