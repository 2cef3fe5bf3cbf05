"""What counts as a difference between two results of one case.

Compared is everything, but exactly what the manual leaves undefined: the flags that a body's decorator names, results that
SDM 2 calls undefined, approximations within their stated error, and which of several faults of one
instruction comes first.  FIP, FDP and FOP of x87 are not compared: AMD keeps them only while an exception is pending.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from iced_x86 import OpKind

from ringfence.isa.x86.context import INSTRUCTIONS
from ringfence.isa.x86.state import FLAG_BITS, GPR

from . import segments
from .forms import Instance
from .records import MAX_DIFFS

LETTERS = {"c": "cf", "p": "pf", "a": "af", "z": "zf", "s": "sf", "o": "of"}
_SHIFTS = ("shl", "shr", "sar", "rol", "ror", "rcl", "rcr", "shld", "shrd")
# SDM 2, MASKMOVQ and MASKMOVDQU: which byte of a masked store faults, and what has happened by then, is the implementation's.
_MASKED_STORE = ("maskmovq", "maskmovdqu")
_STATE_BLOCKS = ("fxsave", "fxsave64", "fxrstor", "fxrstor64", "fnsave", "frstor", "fnstenv", "fldenv")
# The order of the accesses within an instruction decides which of two faults is raised, and where in its operand.
_TWO_ACCESSES = ("movs", "cmps", "pop", "push", "call", "enter", *_STATE_BLOCKS)
# 16- and 32-bit modes: what makes several accesses, or checks before and between them; and the far and multi-word operands,
# whose parts wrap and are checked by themselves.
_PARTS = (*_TWO_ACCESSES, *"bound les lds lss lfs lgs pusha popa ret retf iret iretd fld fstp fbld fbstp".split())
_FAULTS = {11, 12, 13, 14}
# SDM 2, RCPPS and RSQRTPS: relative error up to 1.5 * 2**-12, so two processors differ by twice that at most.
_APPROXIMATE = ("rcpps", "rcpss", "rsqrtps", "rsqrtss")
_APPROXIMATE_ERROR = 3 * 2.0**-12
# SDM 1 8.3.10: transcendental results are within one unit in the last place; C1 says how they were rounded.
_TRANSCENDENTAL = ("fsin", "fcos", "fsincos", "fptan", "fpatan", "f2xm1", "fyl2x", "fyl2xp1")
_C1 = 0x200
_LOADS_MXCSR = ("ldmxcsr", "fxrstor", "fxrstor64")
_MXCSR_MASK = 0xFFFF  # the CPU model's; AMD's processors have MM (bit 17) as well


def undefined_flags(instance: Instance, case: Any) -> int:
    """The flags that the manual leaves undefined for this case, as a mask of RFLAGS."""
    name = instance.name
    always, _, many = INSTRUCTIONS[name].undefined.partition(">1:")
    letters = always
    if name in _SHIFTS:
        size, count = instance.decoded.form.size, shift_count(instance, case)
        if count == 0:
            letters = ""
        elif count > 1:
            letters += many
        if count >= size and name in ("shl", "shr", "shld", "shrd"):  # SDM 2 SAL/SAR/SHL/SHR
            letters += "c"
    return sum(1 << FLAG_BITS[LETTERS[letter]] for letter in set(letters))


def shift_count(instance: Instance, case: Any) -> int:
    """The masked count of a shift or rotate."""
    insn = instance.insn
    last = insn.op_count - 1
    count = int(case["gpr"][1]) & 0xFF if str(insn).endswith(",cl") else instance.decoded.imms.get(last, 1)
    return count & (63 if instance.decoded.form.size == 64 else 31)


def undefined_result(instance: Instance, got: Any, wanted: Any) -> str:
    """Why this case decides nothing at all; empty when it does."""
    name = instance.name
    both = got["trap"] >= 0 and wanted["trap"] >= 0
    if name in _MASKED_STORE and got["trap"] >= 12 and wanted["trap"] >= 12:
        return "which byte of a masked store faults is the implementation's"
    if both and name.split()[-1] in _TWO_ACCESSES and {int(got["trap"]), int(wanted["trap"])} <= {13, 14}:
        return "which of two faulting operands is accessed first is the implementation's"
    if name in ("shld", "shrd") and shift_count(instance, wanted) > instance.decoded.form.size:
        return "SDM 2 SHLD: undefined for counts above the operand size"
    if wanted["trap"] == 13 and got["trap"] == -1 and name in ("jmp", "call", "ret") and (int(got["rip"]) + (1 << 47)) >> 48:
        return "a non-canonical branch target is found where it is fetched, not at the branch"
    if wanted["segment"][segments.CS] and (reason := _undefined_in_legacy_modes(instance, got, wanted)):
        return reason
    if name in _LOADS_MXCSR and got["trap"] == 13 and int(wanted["out_fx"]["mxcsr"]) >> 17 & 1:
        return "AMD's MXCSR.MM is reserved in the CPU model"
    if name in ("f2xm1", "fyl2xp1") and _outside_domain(name, wanted):
        return "SDM 2 F2XM1, FYL2XP1: undefined outside of their domain"
    return ""


def _undefined_in_legacy_modes(instance: Instance, got: Any, wanted: Any) -> str:
    name, traps = instance.name, {int(got["trap"]), int(wanted["trap"])}
    far = name.startswith(("call ", "jmp "))
    if far and segments.USER_CS64 in (got["out_segment"][segments.CS], wanted["out_segment"][segments.CS]):
        return "a far CALL to 64-bit code pushes as 64-bit code does with AMD"
    if traps <= _FAULTS:
        if far or name.split()[-1] in _PARTS:
            if len(traps) > 1 or traps == {14} or far:
                return "which of several checks and accesses comes first is the implementation's"
        if traps == {12, 13} and any(kind == "m" and aligned for kind, _, aligned in instance.decoded.form.operands):
            return "which of limit and alignment is checked first is the implementation's"
        if name == "popa":
            return "the registers that a faulting POPA has loaded are the implementation's"
    if wanted["trap"] in (12, 13) and got["trap"] in (14, -1) and int(wanted["error"]) == 0 and _wraps(instance, got, wanted):
        return "SDM 3A 5.3: an access that wraps at 4 GiB in a segment without a limit is the implementation's"
    if instance.insn.op_kind(0) == OpKind.NEAR_BRANCH16 and got["trap"] == wanted["trap"] == -1:
        if (int(got["rip"]) ^ int(wanted["rip"])) & 0xFFFF == 0:
            return "known deviation: IP that wraps at 64 KiB by a direct branch"
    if wanted["trap"] == 13 and got["trap"] == -1 and instance.decoded.target is not None and _beyond_limit(instance, got, wanted):
        return "a direct branch beyond the limit of CS faults where it is fetched, not at the branch"
    return ""


def _wraps(instance: Instance, got: Any, wanted: Any) -> bool:
    """Whether the case's flat data segments were used about address 0."""
    if got["trap"] == 14 and 64 < int(got["cr2"]) < 0xFFFFFFC0:
        return False
    return any(segments.LAST[int(wanted["segment"][n])] == 0xFFFFFFFF for n in (0, 2, 3, 4, 5))


def _beyond_limit(instance: Instance, got: Any, wanted: Any) -> bool:
    """Whether the branch that was made, or was to be made, leaves the limit of CS."""
    target = max(int(got["rip"]), int(instance.insn.near_branch_target))
    return target > int(segments.LAST[int(wanted["segment"][segments.CS])])


def _outside_domain(name: str, case: Any) -> bool:
    top = case["fx"]["st"][0]
    exponent = int(top["sign_exponent"]) & 0x7FFF
    if exponent == 0x7FFF or not int(top["mantissa"]) >> 63:
        return False  # infinities, NaNs, denormals are defined
    size = math.ldexp(int(top["mantissa"]), exponent - 0x3FFF - 63) if exponent < 0x4100 else math.inf
    return size > 1 if name == "f2xm1" else size >= 1 - math.sqrt(0.5)


def suspects(got: Any, wanted: Any) -> Any:
    """Which of many cases differ in anything at all: a fast first look."""
    found = np.zeros(len(got), bool)
    for name in ("trap", "rip", "error", "cr2", "out_rflags", "diffs"):
        found |= got[name] != wanted[name]
    found |= (got["out_gpr"] != wanted["out_gpr"]).any(1) | (got["out_segment"] != wanted["out_segment"]).any(1)
    a, b = got["out_fx"], wanted["out_fx"]
    for name in ("fcw", "fsw", "ftw", "mxcsr"):
        found |= a[name] != b[name]
    found |= (a["xmm"] != b["xmm"]).any((1, 2))
    found |= ((a["st"]["mantissa"] != b["st"]["mantissa"]) | (a["st"]["sign_exponent"] != b["st"]["sign_exponent"])).any(1)
    live = np.arange(MAX_DIFFS) < wanted["diffs"][:, None]
    return found | (live & ((got["diff"]["offset"] != wanted["diff"]["offset"]) | (got["diff"]["value"] != wanted["diff"]["value"]))).any(1)


def differences(instance: Instance, got: Any, wanted: Any) -> list[str]:
    """What differs between two results of one case, in words; `wanted` is the judge's."""
    if undefined_result(instance, got, wanted):
        return []
    found = []
    for name in ("trap", "rip", "error", "cr2"):
        if got[name] != wanted[name] and not (instance.name in _STATE_BLOCKS and name in ("cr2", "error") and wanted["trap"] == 14):
            found.append(f"{name}: {int(got[name]):#x}, not {int(wanted[name]):#x}")
    for n, name in enumerate(GPR):
        if got["out_gpr"][n] != wanted["out_gpr"][n]:
            found.append(f"{name}: {int(got['out_gpr'][n]):#x}, not {int(wanted['out_gpr'][n]):#x}")
    for n, name in enumerate(segments.NAMES):
        if got["out_segment"][n] != wanted["out_segment"][n]:
            found.append(f"{name}: {int(got['out_segment'][n]):#x}, not {int(wanted['out_segment'][n]):#x}")
    defined = ~np.uint64(undefined_flags(instance, wanted) | 0x10100)
    if (got["out_rflags"] ^ wanted["out_rflags"]) & defined:
        found.append(f"rflags: {int(got['out_rflags'] & defined):#x}, not {int(wanted['out_rflags'] & defined):#x}")
    found += _floating_point(instance.name, got["out_fx"], wanted["out_fx"])
    n = int(wanted["diffs"])
    if instance.name in ("fxsave", "fxsave64"):
        wanted = _with_model_mask(wanted)
    if got["diffs"] != n or (got["diff"][: min(n, MAX_DIFFS)] != wanted["diff"][: min(n, MAX_DIFFS)]).any():
        found.append(f"memory: {_memory(got)}, not {_memory(wanted)}")
    return found


def _floating_point(name: str, a: Any, b: Any) -> list[str]:
    found = []
    loose = name in _TRANSCENDENTAL
    for field in ("fcw", "fsw", "ftw", "mxcsr"):
        ignored = _C1 if loose and field == "fsw" else 0
        if (int(a[field]) ^ int(b[field])) & ~ignored:
            found.append(f"{field}: {int(a[field]):#x}, not {int(b[field]):#x}")
    for k in range(16):
        if (a["xmm"][k] != b["xmm"][k]).any() and not (name in _APPROXIMATE and _near(a["xmm"][k], b["xmm"][k])):
            found.append(f"xmm{k}: {_hex(a['xmm'][k])}, not {_hex(b['xmm'][k])}")
    for k in range(8):
        x, y = a["st"][k], b["st"][k]
        equal = x["mantissa"] == y["mantissa"] and x["sign_exponent"] == y["sign_exponent"]
        if not equal and not (loose and abs(_ordinal(x) - _ordinal(y)) <= 2):
            found.append(f"st{k}: {_extended(x)}, not {_extended(y)}")
    return found


def _with_model_mask(wanted: Any) -> Any:
    """The host's result with the CPU model's MXCSR_MASK in the FXSAVE image."""
    wanted = wanted.copy()
    for diff in wanted["diff"][: min(int(wanted["diffs"]), MAX_DIFFS)]:
        if int(diff["value"]) == int(wanted["fx"]["mxcsr"]) | int(wanted["out_fx"]["mxcsr_mask"]) << 32:
            diff["value"] = int(wanted["fx"]["mxcsr"]) | _MXCSR_MASK << 32
    return wanted


def _near(a: Any, b: Any) -> bool:
    """Whether all four singles agree within the error of the approximations."""
    for x, y in zip(struct.unpack("<4f", a.tobytes()), struct.unpack("<4f", b.tobytes()), strict=True):
        if x != y and not (math.isfinite(x) and math.isfinite(y) and abs(x - y) <= _APPROXIMATE_ERROR * abs(y) + 2.0**-126):
            if not (math.isnan(x) and math.isnan(y)):
                return False
    return True


def _ordinal(x: Any) -> int:
    """Units in the last place from zero, counted over all exponents."""
    size = (int(x["sign_exponent"]) & 0x7FFF) << 63 | int(x["mantissa"]) & (1 << 63) - 1
    return -size if int(x["sign_exponent"]) >> 15 else size


def _extended(x: Any) -> str:
    return f"{int(x['sign_exponent']):04x}:{int(x['mantissa']):016x}"


def _hex(pair: Any) -> str:
    return f"{int(pair[1]):016x}_{int(pair[0]):016x}"


def _memory(case: Any) -> str:
    n = min(int(case["diffs"]), 4)
    listed = ", ".join(f"{int(d['offset']):#x}: {int(d['value']):#x}" for d in case["diff"][:n])
    return "{" + listed + ("…" if case["diffs"] > n else "") + "}"
