"""The 8086, 80186 and 80286 where they differ from what came later: encodings, and shifts by all of CL."""

from __future__ import annotations

import random
from typing import Any

import pytest

import ringfence.isa.x86.bodies  # noqa: F401  (fills INSTRUCTIONS)
from ringfence.ir.fault import GuestFault
from ringfence.ir.interpret import Interpreter
from ringfence.isa.x86.context import trace_form
from ringfence.isa.x86.decode import decode
from ringfence.isa.x86.early_encodings import rewrite
from ringfence.isa.x86.models import MODELS
from ringfence.isa.x86.modes import REAL
from ringfence.isa.x86.state import EngineState, X86State, rflags_image, rflags_words
from ringfence.isa.x86.vectors import DE, SOFT_INTERRUPT

M86, M186, M286, M386 = (MODELS[name] for name in ("8086", "80186", "286", "386"))


def name_of(code: str, model: Any) -> str:
    decoded = decode(bytes.fromhex(code).ljust(15, b"\x11"), 0x1000, REAL, model)
    assert decoded is not None
    return decoded.form.name


@pytest.mark.parametrize(
    ("code", "on_8086", "on_80186", "on_286", "on_386"),
    [
        ("6402", "je", "ud", "ud", "add"),  # a jump; nothing; nothing; a segment prefix
        ("6040", "jo", "pusha", "pusha", "pusha"),
        ("c1", "ret", "shl", "shl", "shl"),  # with the 11 that follows it: RCL, by its field
        ("0f", "pop cs", "ud", "ud", "ud"),
        ("f103", "add", "ud", "ud", "int1"),
        ("d2e0", "shl 8086", "shl", "shl", "shl"),
        ("54", "push sp 8086", "push sp 8086", "push", "push"),
        ("f7f3", "div 8086", "div 8086", "div", "div"),
        ("8ee3", "mov es", "ud", "ud", "mov fs"),
        ("d9fe", "nop", "ud", "ud", "fsin"),
        ("0f01e0", "pop cs", "ud", "smsw 286", "smsw"),
        ("0fa2", "pop cs", "ud", "ud", "ud"),  # CPUID
        ("f08bc3", "mov", "mov", "mov", "ud"),  # LOCK
        ("f390", "nop", "nop", "nop", "nop"),
    ],
)
def test_encodings(code: str, on_8086: str, on_80186: str, on_286: str, on_386: str) -> None:
    found = [name_of(code, model) for model in (M86, M186, M286, M386)]
    if code == "c1":
        assert found[0] == "ret" and all(name == "rcl" for name in found[1:])
    elif code == "0f":
        assert found[0] == "pop cs"  # later ones look at the next byte
    elif code == "f103":
        assert found[0] == "add" and found[3] == "int1"
    else:
        assert found == [on_8086, on_80186, on_286, on_386]


def test_nothing_changes_its_length() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        raw = rng.randbytes(15)
        for model in (M86, M186, M286):
            found = rewrite(raw, model)
            assert (found is None and model is not M86) or (found is not None and len(found[0]) == 15)
            assert decode(raw, 0x1000, REAL, model) is not None


def test_the_8086_knows_no_invalid_opcode() -> None:
    rng = random.Random(4)
    names = {name_of(rng.randbytes(6).hex(), M86) for _ in range(4000)}
    assert "(defer)" not in names
    invalid = [op for op in range(256) if name_of(f"{op:02x}00", M86) == "ud"]
    assert not invalid, [hex(op) for op in invalid]


def run(code: str, model: Any = M86, **registers: int) -> dict[str, Any]:
    """The state after one instruction, by the reference interpreter."""
    fields = {**X86State.FIELDS, **EngineState.FIELDS}
    state: dict[str, Any] = {name: [f.reset] * f.count if f.count else f.reset for name, f in fields.items()}
    state.update(rflags_words(registers.pop("flags", 2)))
    state.update(registers)
    decoded = decode(bytes.fromhex(code).ljust(15, b"\x11"), 0x1000, REAL, model)
    assert decoded is not None
    Interpreter(state, None, decoded.binds, decoded.imms).run(trace_form(decoded.form, precise=True).trace.ops)  # type: ignore[arg-type]
    return state


def shifted(name: str, value: int, count: int, width: int, carry: int) -> tuple[int, int]:
    """Result and CF, bit by bit."""
    top = width - 1
    for _ in range(count):
        match name:
            case "shl":
                carry, value = value >> top, value << 1 & (1 << width) - 1
            case "shr":
                carry, value = value & 1, value >> 1
            case "sar":
                carry, value = value & 1, value >> 1 | value & 1 << top
            case "rol":
                carry = value >> top
                value = (value << 1 | carry) & (1 << width) - 1
            case "ror":
                carry = value & 1
                value = value >> 1 | carry << top
            case "rcl":
                carry, value = value >> top, (value << 1 | carry) & (1 << width) - 1
            case "rcr":
                carry, value = value & 1, value >> 1 | carry << top
    return value, carry


@pytest.mark.parametrize(("name", "field"), [("rol", 0), ("ror", 1), ("rcl", 2), ("rcr", 3), ("shl", 4), ("shr", 5), ("sar", 7)])
@pytest.mark.parametrize("width", [8, 16])
def test_shifts_by_all_of_cl(name: str, field: int, width: int) -> None:
    rng = random.Random(field * width)
    code = f"{0xD2 if width == 8 else 0xD3:02x}{0xC3 | field << 3:02x}"  # BL or BX
    for count in (*range(40), *range(40, 256, 5), 255):
        value, carry = rng.getrandbits(width), rng.getrandbits(1)
        after = run(code, rbx=0xABCD0000 | value, rcx=count, flags=2 | carry)
        assert (after["rbx"] & (1 << width) - 1, rflags_image(after) & 1) == shifted(name, value, count, width, carry), (value, count)
        assert after["rbx"] >> 16 == 0xABCD


def test_a_divide_error_of_the_8086_points_behind_it() -> None:
    for divisor, dividend in ((0, 5), (1, 1 << 16)):
        with pytest.raises(GuestFault) as caught:
            run("f7f3", rax=dividend & 0xFFFF, rdx=dividend >> 16, rbx=divisor)
        assert (caught.value.vector, caught.value.error) == (SOFT_INTERRUPT, DE)
        with pytest.raises(GuestFault) as caught:
            run("f7f3", M286, rax=dividend & 0xFFFF, rdx=dividend >> 16, rbx=divisor)
        assert caught.value.vector == DE
    after = run("f7f3", rax=0x2345, rdx=1, rbx=0x100)
    assert (after["rax"], after["rdx"]) == (0x123, 0x45)
    after = run("f7fb", rax=0x10000 - 7, rdx=0xFFFF, rbx=2)
    assert (after["rax"], after["rdx"]) == (0xFFFD, 0xFFFF)


def test_idiv_of_the_8086_refuses_the_most_negative_quotient() -> None:
    with pytest.raises(GuestFault):
        run("f7fb", rax=0x8000, rdx=0xFFFF, rbx=1)
    assert run("f7fb", M386, rax=0x8000, rdx=0xFFFF, rbx=1)["rax"] == 0x8000
