"""Random and mutated bytes through the decoder: no crash, one answer, at most 15 bytes, #UD where the host raises it.

The host executes a sample with int3 behind every instruction, so that it also tells where it found the end.
"""

from __future__ import annotations

import random
from collections import Counter

import iced_x86 as iced
import numpy as np
import pytest

from ringfence.isa.x86 import bodies  # noqa: F401
from ringfence.isa.x86.decode import MAX_INSTRUCTION_BYTES, UNDEFINED, Decoded, decode

from . import forms, states, values
from .encode import CODE_NAMES, encode
from .host_cpu import HostCpu, supported
from .records import CASE, SLOTS, WINDOW_ADDR

# Bodies that raise #UD at CPL 3: RSM outside of system-management mode, STAC and CLAC (SDM 2, by mnemonic).
UNDEFINED_NAMES = ("ud", "ud0", "ud1", "ud2", "rsm", "stac", "clac")
ENTRY = forms.entry_of(0)
RANDOM_STRINGS = 1_000_000  # per half
MUTATED_STRINGS = 60_000


@pytest.mark.parametrize("seed", [1, 2])
def test_random_bytes(seed: int) -> None:
    data = random.Random(seed).randbytes(RANDOM_STRINGS * 3 + MAX_INSTRUCTION_BYTES)
    for at in range(0, 3 * RANDOM_STRINGS, 3):
        check(data[at : at + MAX_INSTRUCTION_BYTES])


def check(raw: bytes) -> Decoded:
    decoded = decode(raw, ENTRY)
    assert decoded is not None, raw.hex()
    assert 1 <= decoded.length <= MAX_INSTRUCTION_BYTES, raw.hex()
    return decoded


def mutated(seed: int, n: int) -> list[bytes]:
    """Valid instructions with bytes changed, inserted (prefixes above all) or removed."""
    rng = random.Random(seed)
    shapes = list(forms.shapes())
    prefixes = (0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x65, 0x40, 0x48, 0x4F, 0x0F)
    found = []
    while len(found) < n:
        shape = rng.choice(shapes)
        raw = bytearray(encode(shape.code, rng, shape.memory, shape.prefixes).replace(b"RIP!", rng.randbytes(4)))
        for _ in range(rng.randrange(3)):
            match rng.randrange(4):
                case 0:
                    raw[rng.randrange(len(raw))] = rng.randrange(256)
                case 1:
                    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
                case 2:
                    raw.insert(0, rng.choice(prefixes))
                case _:
                    raw.insert(rng.randrange(len(raw)), rng.choice(prefixes))
        found.append(bytes(raw[:MAX_INSTRUCTION_BYTES]) + rng.randbytes(max(0, MAX_INSTRUCTION_BYTES - len(raw))))
    return found


def test_decoding_depends_on_the_instructions_own_bytes_only() -> None:
    """What follows an instruction changes nothing; a prefix of it asks for more bytes; a second call answers the same."""
    for raw in mutated(3, MUTATED_STRINGS):
        decoded = check(raw)
        assert decode(raw, ENTRY) == decoded
        if decoded.form.name in ("ud", "gp"):
            continue
        own = raw[: decoded.length]
        assert decode(own, ENTRY) == decoded, raw.hex()
        assert decode(own + b"\xcc" * 4, ENTRY) == decoded, raw.hex()
        for n in range(decoded.length):
            assert decode(raw[:n], ENTRY) is None, f"{raw.hex()} cut to {n} bytes"


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("0f0b", "ud"), ("0fff c0", "ud"), ("0fb9 c0", "ud"), ("06", "ud"), ("27", "ud"), ("60", "ud"), ("d6", "ud"), ("ce", "ud"),
        ("9a 0000000000 00", "ud"), ("82 c0 00", "ud"), ("f0 01 c0", "ud"), ("f0 8b 00", "ud"), ("f0 90", "ud"), ("f0 39 00", "ud"),
        ("8d c0", "ud"), ("0fc7 c8", "ud"), ("8ec8", "ud"), ("8ef0", "ud"), ("0f20 c8", "ud"), ("0f22 f8", "ud"),
        ("c5f8 28c1", "ud"), ("c4e2 79 18 c0", "ud"), ("62f1 7c48 28c1", "ud"), ("8fe9 78 e1 c1", "ud"), ("0f01 c1", "ud"),
        ("66 0f38 dc c1", "ud"), ("0fc7 f0", "ud"), ("0f38 f0 00", "ud"),
    ],
)  # fmt: skip
def test_undefined_opcodes(raw: str, name: str) -> None:
    """SDM 2A 2.1.1 (LOCK), 2D appendix A (invalid in 64-bit mode, reserved), and features that x86-64-v2 does not announce."""
    assert check(bytes.fromhex(raw).ljust(MAX_INSTRUCTION_BYTES, b"\x00")).form.name.startswith(name)


def test_sixteen_bytes_are_too_many() -> None:
    """SDM 3A 6.15, #GP: the instruction length limit of 15 bytes."""
    assert check(b"\x66" * 14 + b"\x90").form.name != "gp"
    assert check(b"\x66" * 15).form.name == "gp"
    assert check(b"\x2e" * 9 + b"\x48\xc7\x05\x00\x00\x00").form.name == "gp"


# Codes that must not run natively: they enter the kernel, switch segments, wait, or change the child's own state.
_DANGEROUS = (
    "SYSCALL", "SYSENTER", "SYSRET", "SYSEXIT", "INT_", "INT1", "INT3", "IRET", "RETF", "CALL_M16", "JMP_M16", "MOV_SREG",
    "POPW_FS", "POPQ_FS", "POPW_GS", "POPQ_GS", "LFS", "LGS", "LSS", "WRFS", "WRGS", "WRPKRU", "XRSTOR", "XBEGIN", "MONITOR",
    "MWAIT", "UMWAIT", "TPAUSE", "UMONITOR", "VMCALL", "VMMCALL", "VMGEXIT", "POPFQ", "POPFW", "RETNQ", "RETNW", "CALL", "JMP",
    "SGDT", "SIDT", "SLDT", "SMSW", "STR", "UINTR", "SENDUIPI", "TESTUI", "CLUI", "STUI", "UIRET", "XABORT", "XEND", "ENCLU",
    "RDSSP", "INCSSP", "SETSSBSY", "CLZERO", "RDPRU", "RSTORSSP", "SAVEPREVSSP", "SEAMCALL", "TDCALL",
)  # fmt: skip


def may_run(raw: bytes) -> bool:
    insn = iced.Decoder(64, raw, ip=ENTRY).decode()
    # FS belongs to the child's C library: a store near its base would break the child.
    fs = b"\x64" in raw[:6] if insn.is_invalid else insn.segment_prefix == iced.Register.FS
    return not fs and not CODE_NAMES[insn.code].startswith(_DANGEROUS)


@pytest.mark.skipif(bool(supported()), reason=supported() or "-")
def test_the_host_agrees_about_lengths_and_undefined_opcodes(host: HostCpu) -> None:
    seen: Counter[str] = Counter()
    for seed in (10, 11, 12):
        strings = [raw for raw in mutated(seed, SLOTS) if may_run(raw)]
        lengths = []
        for raw in strings:
            decoded = check(raw)
            insn = iced.Decoder(64, raw, ip=ENTRY).decode()
            lengths.append(MAX_INSTRUCTION_BYTES if insn.is_invalid else max(insn.len, decoded.length))
        _run(host, [raw[:n] for raw, n in zip(strings, lengths, strict=True)], seen)
    assert seen["same length"] > 3000 and seen["#UD"] > 100, seen


def _run(host: HostCpu, strings: list[bytes], seen: Counter[str]) -> None:
    entries = host.load_code(strings, resume=False)
    cases = np.zeros(len(strings), CASE)
    rng = np.random.default_rng(5)
    cases["entry"] = entries
    cases["gpr"] = values.U64(WINDOW_ADDR) + rng.integers(0, 256, (len(strings), 16), dtype=values.U64) * values.U64(16)
    cases["gpr"][:, states.RCX] = 4
    cases["rflags"] = 0x202
    cases["fx"]["fcw"], cases["fx"]["mxcsr"], cases["fx"]["ftw"] = 0x37F, 0x1F80, 0xFF
    host.run(cases)
    found = []
    for raw, case in zip(strings, cases, strict=True):
        if problem := judge(raw, case, seen):
            found.append(f"{raw.hex()} {iced.Decoder(64, raw, ip=int(case['entry'])).decode()}: {problem}")
    assert not found, "\n".join(found)


def judge(raw: bytes, case: np.void, seen: Counter[str]) -> str:
    """What the host's answer says against the decoder's; empty when they agree or the difference is explained."""
    entry, trap = int(case["entry"]), int(case["trap"])
    decoded = decode(raw.ljust(MAX_INSTRUCTION_BYTES, b"\xcc"), entry)
    insn = iced.Decoder(64, raw.ljust(MAX_INSTRUCTION_BYTES, b"\xcc"), ip=entry).decode()
    assert decoded is not None
    if trap == 6 and int(case["rip"]) == entry:
        seen["#UD"] += 1
        if decoded.form.name in UNDEFINED_NAMES or explained(raw, insn):
            return ""
        return f"the host raises #UD, the decoder says {decoded.form.name}"
    if decoded.form == UNDEFINED:
        seen["refused"] += 1
        return "the decoder refuses what the host knows" if insn.is_invalid else ""  # else: a feature above x86-64-v2
    if trap == 3 and insn.flow_control == iced.FlowControl.NEXT:
        seen["same length"] += 1
        length = int(case["rip"]) - 1 - entry
        return "" if length == decoded.length else f"the host finds {length} bytes, the decoder {decoded.length}"
    return ""


def explained(raw: bytes, insn: iced.Instruction) -> str:
    """Why AMD's and Intel's processors differ about these bytes; the decoder follows Intel's."""
    if insn.flow_control == iced.FlowControl.CONDITIONAL_BRANCH and b"\x66" in raw[:8]:
        return "66h before a near branch: AMD reads a 16-bit displacement and cuts RIP"
    if CODE_NAMES[insn.code].endswith("_0F0D"):
        return "0F 0D with a register operand: reserved NOP for Intel, #UD for AMD"
    return ""
