"""SSE integer and data-movement instructions and MMX: every form of iced's tables, reference interpreter against the host CPU.

Operands at the very end of mapped memory show that each access has exactly its width; misaligned ones show who checks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import iced_x86 as iced
import numpy as np
import pytest

import ringfence.isa.x86.bodies  # noqa: F401
from ringfence.ir.fault import GuestFault
from ringfence.ir.interpret import Interpreter
from ringfence.ir.verify import verify
from ringfence.isa.x86.context import INSTRUCTIONS, trace_form
from ringfence.isa.x86.decode import MAX_INSTRUCTION_BYTES, Decoded, decode
from ringfence.isa.x86.state import ARITHMETIC, GPR, EngineState, X86State, rflags_image, rflags_words

from .encode import CODE_NAMES, encodable, encode, has_memory_shape, has_register_shape, place
from .host_cpu import HostCpu, supported
from .records import CASE, PAGE, READ_ONLY_ADDR, RECORDS, SLOTS, WINDOW_ADDR, WINDOW_BYTES, read_only_image

pytestmark = pytest.mark.skipif(bool(supported()), reason=supported() or "-")

FEATURES = {v: k for k, v in vars(iced.CpuidFeature).items() if isinstance(v, int)}
END_ADDR = WINDOW_ADDR + WINDOW_BYTES
INTERESTING = (0, 0, 1, 0x7F, 0x80, 0xFF, 0x41, 0x42)
# Floating-point arithmetic and conversion, control words: bodies of other modules, tests of other files.
FLOATING_POINT = (
    "add", "sub", "mul", "div", "sqrt", "rsqrt", "rcp", "min", "max", "cmp", "comi", "ucomi", "cvt", "haddp", "hsubp", "addsubp",
    "dpp", "round", "fxsave", "fxrstor", "ldmxcsr", "stmxcsr", "fisttp",
)  # fmt: skip


def name_of(code: int) -> str:
    return CODE_NAMES[code].lower().split("_")[0]


def features(code: int) -> list[str]:
    instruction = iced.Instruction()
    instruction.code = code
    return [FEATURES[f] for f in instruction.cpuid_features()]


def ours(code: int) -> bool:
    """Whether the code belongs to this file's subject, by its CPUID features and mnemonic."""
    subject = any(f.startswith(("SSE", "SSSE", "MMX")) and f != "SSE4A" or f in ("CLFSH", "PREFETCHW") for f in features(code))
    return subject and not name_of(code).startswith(FLOATING_POINT)


CODES = tuple(code for code in encodable() if ours(code))


class Case(NamedTuple):
    raw: bytes
    decoded: Decoded
    entry: int
    address: int  # of the memory operand, 0 without one


class Window:
    """The interpreter's memory: the host child's pages, without their holes."""

    def __init__(self, base: bytes) -> None:
        self.window = bytearray(base)
        self.read_only = read_only_image(base)

    def _check(self, address: int, size: int, write: bool) -> None:
        for at in (address, address + size - 1):
            if WINDOW_ADDR <= at < END_ADDR or (READ_ONLY_ADDR <= at < READ_ONLY_ADDR + PAGE and not write):
                continue
            raise GuestFault(14, 0, at if at == address else at & -PAGE)

    def load(self, address: int, size: int, write: bool = False, system: bool = False) -> int:
        self._check(address, size, write)
        if address >= READ_ONLY_ADDR:
            return int.from_bytes(self.read_only[address - READ_ONLY_ADDR :][:size], "little")
        return int.from_bytes(self.window[address - WINDOW_ADDR :][:size], "little")

    def store(self, address: int, size: int, value: int, system: bool = False) -> None:
        self._check(address, size, True)
        self.window[address - WINDOW_ADDR : address - WINDOW_ADDR + size] = value.to_bytes(size, "little")

    def load_physical(self, address: int, size: int) -> int:
        raise AssertionError("no user instruction does this")

    def store_physical(self, address: int, size: int, value: int) -> None:
        raise AssertionError("no user instruction does this")


def vector(rng: random.Random) -> int:
    """128 bits: random, edge bytes, or a low half that is a sensible shift count."""
    match rng.randrange(4):
        case 0:
            return rng.getrandbits(128)
        case 1:
            return rng.getrandbits(64) << 64 | rng.choice((0, 1, rng.randrange(70), 1 << 32, (1 << 64) - 1))
        case 2:
            return int.from_bytes(bytes(rng.choice((0x41, 0x42, 0x43, 0x44)) for _ in range(rng.randrange(17))), "little")
    return int.from_bytes(bytes(rng.choice(INTERESTING) for _ in range(16)), "little")


def targets(rng: random.Random, size: int) -> Iterator[int]:
    """Addresses for an operand of `size` bytes: aligned mostly, at the end of memory, one byte too far, any."""
    while True:
        yield WINDOW_ADDR + rng.randrange(WINDOW_BYTES // 16) * 16
        yield END_ADDR - size
        yield WINDOW_ADDR + rng.randrange(WINDOW_BYTES // 16) * 16
        yield END_ADDR - size + 1
        yield WINDOW_ADDR + rng.randrange(WINDOW_BYTES - 16)
        yield WINDOW_ADDR + PAGE - rng.randrange(1, 16)
        yield READ_ONLY_ADDR + 64


def instances(rng: random.Random, code: int, n: int) -> list[bytes]:
    shapes = [False] * has_register_shape(code) + [True] * has_memory_shape(code)
    return [encode(code, rng, memory) for memory in shapes for _ in range(n)]


def solvable(d: Decoded) -> bool:
    """Whether registers can be found that put the memory operand at any place."""
    m = d.form.mem
    return not m.rip and not m.address32 and (not m.base and not m.index or (m.base and d.binds["base"] != d.binds.get("index")))


def implicit_address(d: Decoded) -> bool:
    return d.form.name.startswith("maskmov")


def fill(case: Any, d: Decoded, target: int, rng: random.Random) -> None:
    """A random state, with the memory operand at `target`."""
    case["rflags"] = rng.getrandbits(12) & ARITHMETIC | 2
    gpr = [rng.choice((rng.getrandbits(64), rng.randrange(-20, 21) & (1 << 64) - 1)) for _ in GPR]
    m = d.form.mem
    if implicit_address(d):
        gpr[7] = target
    if m.base:
        rest = d.imms.get("disp", 0)
        if m.index:
            gpr[GPR.index(d.binds["index"][0])] &= 0xFFFF_FFFF
            rest += gpr[GPR.index(d.binds["index"][0])] << m.scale
        gpr[GPR.index(d.binds["base"][0])] = target - rest & (1 << 64) - 1
    case["gpr"] = gpr
    fx = case["fx"]
    fx["fcw"], fx["mxcsr"], fx["fsw"], fx["ftw"] = 0x37F, 0x1F80, rng.randrange(8) << 11, rng.randrange(256)
    values = [vector(rng) for _ in range(16)]
    if rng.random() < 0.3:
        values = [rng.choice(values[:2]) for _ in range(16)]
    fx["xmm"] = [(v & (1 << 64) - 1, v >> 64) for v in values]
    fx["st"]["mantissa"] = [vector(rng) & (1 << 64) - 1 for _ in range(8)]
    fx["st"]["sign_exponent"] = [rng.getrandbits(16) for _ in range(8)]
    operand = vector(rng)
    case["patches"] = 0
    if WINDOW_ADDR <= target <= END_ADDR - 16:
        case["patches"] = 1
        case["patch"][0] = (target - WINDOW_ADDR, (operand & (1 << 64) - 1, operand >> 64))


def x87_registers(fx: Any) -> list[int]:
    """Physical registers of an FXSAVE image, which lists them from the stack's top."""
    top = int(fx["fsw"]) >> 11 & 7
    image = [int(s["sign_exponent"]) << 64 | int(s["mantissa"]) for s in fx["st"]]
    return [image[n - top & 7] for n in range(8)]


def start_state(case: Any, d: Decoded, entry: int) -> dict[str, Any]:
    state: dict[str, Any] = {**X86State().save(), **EngineState().save()}
    state.update(zip(GPR, map(int, case["gpr"]), strict=True))
    state.update(rflags_words(int(case["rflags"])))
    fx = case["fx"]
    state.update({f"xmm{n}": int(fx["xmm"][n][1]) << 64 | int(fx["xmm"][n][0]) for n in range(16)})
    state.update(st=x87_registers(fx), ftop=int(fx["fsw"]) >> 11 & 7, ftag=int(fx["ftw"]), vpage=entry & -PAGE)
    return state


def differences(case: Any, state: dict[str, Any], memory: Window, base: bytes) -> list[str]:
    fx = case["out_fx"]
    expected: dict[str, Any] = dict(zip(GPR, map(int, case["out_gpr"]), strict=True))
    expected.update({f"xmm{n}": int(fx["xmm"][n][1]) << 64 | int(fx["xmm"][n][0]) for n in range(16)})
    expected.update(st=x87_registers(fx), ftop=int(fx["fsw"]) >> 11 & 7, ftag=int(fx["ftw"]))
    wrong = [f"{k}: {state[k]!r} where the host has {v!r}" for k, v in expected.items() if state[k] != v]
    if rflags_image(state) & ARITHMETIC != int(case["out_rflags"]) & ARITHMETIC:
        wrong.append(f"flags {rflags_image(state):#x} where the host has {int(case['out_rflags']):#x}")
    native = np.frombuffer(base, "<u8").copy()
    for k in range(int(case["diffs"])):
        native[int(case["diff"][k]["offset"]) // 8] = case["diff"][k]["value"]
    if native.tobytes() != bytes(memory.window):
        wrong.append("memory")
    return wrong


def interpret(case: Any, c: Case, trace: Any, base: bytes) -> list[str]:
    state = start_state(case, c.decoded, c.entry)
    memory = Window(base)
    for k in range(int(case["patches"])):
        at = int(case["patch"][k]["offset"])
        memory.window[at : at + 16] = case["patch"][k]["bytes"].tobytes()
    trap, error, cr2 = -1, 0, 0
    try:
        Interpreter(state, memory, c.decoded.binds, c.decoded.imms).run(trace)
    except GuestFault as fault:
        trap, error, cr2 = fault.vector, fault.error, fault.address or 0
    native = int(case["trap"])
    if implicit_address(c.decoded) and 14 in (trap, native):
        return []  # SDM 2B, MASKMOVDQU: faults of bytes not selected depend on the implementation
    if trap != native:
        return [f"trap {trap} (error {error:#x}) where the host has {native}"]
    if trap == 14 and cr2 != int(case["cr2"]):
        return [f"CR2 {cr2:#x} where the host has {int(case['cr2']):#x}"]
    return differences(case, state, memory, base) if trap < 0 else []


def run(host: HostCpu, seed: int, codes: tuple[int, ...], n_instances: int, n_states: int, raws: list[bytes] | None = None) -> list[str]:
    """What differs, in words."""
    rng = random.Random(seed)
    problems: list[str] = []
    plan = raws if raws is not None else [raw for code in codes for raw in instances(rng, code, n_instances)]
    size = min(SLOTS, RECORDS // n_states)
    for start in range(0, len(plan), size):
        part = plan[start : start + size]
        entries = host.load_code([place(raw, 0, rng) for raw in part])
        part = [place(raw, entry, rng) for raw, entry in zip(part, entries, strict=True)]
        entries = host.load_code(part)
        problems += _run_part(host, rng, part, entries, n_states)
    return problems


def _run_part(host: HostCpu, rng: random.Random, raws: list[bytes], entries: list[int], n_states: int) -> list[str]:
    problems: list[str] = []
    cases: list[Case] = []
    traces: dict[Any, Any] = {}
    records = np.zeros(len(raws) * n_states, CASE)
    base = host.base.tobytes()
    for raw, entry in zip(raws, entries, strict=True):
        d = decode(raw + bytes(MAX_INSTRUCTION_BYTES), entry)
        if d is None or d.length != len(raw) or d.form.name == "ud":
            problems.append(f"{raw.hex()}: decodes to {d}")
            continue
        if d.form not in traces:
            context = trace_form(d.form)
            traces[d.form] = context.trace.ops
            problems += [f"{d.form}: {p}" for p in verify(context.trace.ops)]
        if (d.form.mem.base or d.form.mem.index) and not solvable(d):
            continue
        memory = [w for kind, w, _ in d.form.operands if kind == "m"]
        size = memory[0] // 8 if memory else (d.form.operands[0][1] // 8 if implicit_address(d) else 16)
        places = targets(rng, size)
        for _ in range(n_states):
            case = records[len(cases)]
            case["entry"] = entry
            target = next(places)
            fill(case, d, target, rng)
            cases.append(Case(raw, d, entry, target))
    done = records[: len(cases)]
    host.run(done)
    for case, c in zip(done, cases, strict=True):
        wrong = interpret(case, c, traces[c.decoded.form], base)
        if wrong:
            problems.append(f"{c.raw.hex()} {c.decoded.form.name} {c.decoded.form.operands} at {c.address:#x}: {'; '.join(wrong)}")
    return problems


def test_every_code_has_a_body() -> None:
    rng = random.Random(1)
    missing = []
    for code in CODES:
        for raw in instances(rng, code, 1):
            d = decode(place(raw, 0, rng) + bytes(MAX_INSTRUCTION_BYTES), 0)
            if d is None or d.form.name not in INSTRUCTIONS or d.form.name == "ud":
                missing.append(CODE_NAMES[code])
    assert not missing


def test_interpreter_equals_host() -> None:
    with HostCpu() as host:
        problems = run(host, 20240, CODES, 2, 7)
    assert not problems, f"{len(problems)} differ:\n" + "\n".join(problems[:30])


def test_string_comparisons_with_every_immediate() -> None:
    opcodes = [prefix + bytes((0x0F, 0x3A, opcode, 0xCA)) for prefix in (b"\x66", b"\x66\x48") for opcode in range(0x60, 0x64)]
    raws = [opcode + bytes([imm]) for opcode in opcodes for imm in range(128)]
    with HostCpu() as host:
        problems = run(host, 7, (), 0, 3, raws)
    assert not problems, f"{len(problems)} differ:\n" + "\n".join(problems[:30])
