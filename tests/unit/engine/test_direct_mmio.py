"""Device accesses from the middle of compiled code do what those of the interpreter do."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator

import pytest

from ringfence.engine import emulate
from ringfence.engine.api import Halt
from ringfence.isa.x86.vectors import PF
from tests.differential.system_guest import DATA, DIRTY, PRESENT, USER, WRITABLE, SystemGuest

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="translated code is that of an x86-64 host")

PAGE = DATA + 0x8000  # linear
DEVICE = 0xFED0_0000
VECTOR = 0x40


class Device:
    """A page of registers that count what they are asked."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []
        self.failure: Exception | None = None
        self.waiting = False

    def read(self, address: int, size: int) -> int:
        if self.failure is not None:
            raise self.failure
        self.log.append(("read", address - DEVICE, size))
        return (0x9182_7364_5546_3728 * (len(self.log) | 1) ^ address) & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.log.append(("write", address - DEVICE, size, value))

    def pending(self) -> bool:
        return self.waiting

    def acknowledge(self) -> int:
        self.waiting = False
        return VECTOR


class Rig:
    def __init__(self) -> None:
        self.guest = SystemGuest()
        self.begin()

    def begin(self) -> None:
        self.guest.reset()
        self.device = Device()
        for name in ("read", "write", "pending", "acknowledge"):
            setattr(self.guest.devices, name, getattr(self.device, name))
        self.guest.set_page(PAGE, DEVICE | PRESENT | WRITABLE | USER)

    @property
    def left(self) -> int:
        """How often the interpreter was asked, HLT included."""
        return self.guest.engine.exits.get("interpreted", 0)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Rig, Rig]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RINGFENCE_WITHOUT", raising=False)
        direct = Rig()
        patch.setenv("RINGFENCE_WITHOUT", "direct-mmio")
        plain = Rig()
    yield direct, plain
    for rig in (direct, plain):
        rig.guest.close()


@pytest.fixture
def rigs(pair: tuple[Rig, Rig]) -> tuple[Rig, Rig]:
    for rig in pair:
        rig.begin()
    return pair


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize(
    "text",
    [
        "mov rax, [rbx]; mov cl, [rbx+5]; movzx edx, word ptr [rbx+8]; movsx rsi, byte ptr [rbx+3]; mov edi, [rbx+16]",
        "mov [rbx], r8; mov [rbx+9], r8b; mov [rbx+2], r8w; mov dword ptr [rbx+4], 0x81223344; mov qword ptr [rbx+8], -2",
        "add rax, [rbx]; cmp dword ptr [rbx], 5; setb cl; push qword ptr [rbx]; pop rdx; test byte ptr [rbx+1], 4; cmovz esi, [rbx]",
        "pop qword ptr [rbx]; mov rdi, rbx; mov ecx, 3; rep stosd; mov rsi, rbx; lodsw; lea rdi, [rsp-64]; movsq",
        "add dword ptr [rbx], 5; xchg [rbx+8], rax; lock inc word ptr [rbx+2]; bts qword ptr [rbx], 3",
        "mov rax, [rbx+0xffc]; mov [rbx+0xffe], r8d; mov rax, [rbx-2]",
        "movups xmm1, [rbx]; movq xmm2, [rbx+8]; movd xmm3, dword ptr [rbx]; movups [rbx+32], xmm1; movlps [rbx+16], xmm2",
        "cvtsi2sd xmm0, r8; addsd xmm0, [rbx]; mov rax, [rbx]; mulsd xmm0, xmm0; movsd [rbx+8], xmm0; sqrtsd xmm7, xmm0",
        "fild word ptr [rbx]; fld1; mov rax, [rbx]; faddp; fistp dword ptr [rbx+4]; fnstsw ax",
    ],
)
def test_both_ways_agree(rigs: tuple[Rig, Rig], text: str, cpl: int) -> None:
    outcomes = []
    for rig in rigs:
        text_ = f"{text}; {text}" if cpl == 0 else f"{text}; int3"
        result = rig.guest.run(text_, cpl, rbx=PAGE, r8=0x1122_3344_5566_7788, rax=0x55, mxcsr=0x7F80)
        registers = {name: value for name, value in result.registers.items() if name != "cr2"}
        outcomes.append((rig.device.log, registers, result.frame))
    assert outcomes[0] == outcomes[1]
    assert rigs[0].device.log


def test_the_interpreter_is_not_asked(rigs: tuple[Rig, Rig]) -> None:
    counts = []
    for rig in rigs:
        before = rig.left
        rig.guest.run("mov ecx, 100; again: mov eax, [rbx]; mov [rbx+8], eax; loop again", rbx=PAGE)
        counts.append(rig.left - before)
        assert len(rig.device.log) == 200
    assert counts == [1, 201]


def test_rights_are_checked_first(rigs: tuple[Rig, Rig]) -> None:
    for rig in rigs:
        rig.guest.set_page(PAGE, DEVICE | PRESENT | USER)
        result = rig.guest.run("mov rax, [rbx]; mov [rbx], rax", 3, rbx=PAGE)
        assert result.frame is not None and (result.frame.vector, result.frame.error) == (PF, 7)
        assert rig.device.log == [("read", 0, 8)]
        assert not rig.guest.memory.read_uint(rig.guest.page_entry(PAGE), 8) & DIRTY


def test_an_interrupt_that_a_device_raises_comes_at_once(rigs: tuple[Rig, Rig]) -> None:
    for rig in rigs:

        def write(address: int, size: int, value: int, rig: Rig = rig) -> None:
            rig.device.waiting = True
            rig.guest.engine.interrupt_changed()

        rig.guest.devices.write = write  # type: ignore[method-assign]
        result = rig.guest.run("sti; nop; mov [rbx], eax; again: inc rcx; jmp again", rbx=PAGE)
        assert result.frame is not None and result.frame.vector == VECTOR
        assert result.registers["rcx"] <= 1


def test_a_fault_of_ours_is_raised_by_run(rigs: tuple[Rig, Rig]) -> None:
    for rig in rigs:
        for text in ("mov eax, [rbx]", "mov [rbx], eax"):
            rig.device.failure = KeyError("bug")
            with pytest.raises(KeyError):
                rig.guest.run(text + "; again: jmp again", rbx=PAGE)
            rig.device.failure = None
            assert isinstance(rig.guest.run("nop").exit, Halt)


def test_an_engine_may_refuse(rigs: tuple[Rig, Rig]) -> None:
    """As it does where another vCPU is with the devices."""
    rig = rigs[0]
    code = rig.guest.engine._code
    asked = []

    def refuse(address: int, flags: int, value: int) -> int:
        asked.append(address)
        code.put_word("outside_refused", 1)
        return 0

    function = emulate._ASKED(refuse)
    before = code.word("outside")
    code.put_word("outside", ctypes.cast(function, ctypes.c_void_p).value or 0)
    result = rig.guest.run("mov [rbx+8], eax; mov ecx, [rbx]", rbx=PAGE, rax=7)
    code.put_word("outside", before)
    assert asked == [DEVICE + 8, DEVICE]
    assert rig.device.log == [("write", 8, 4, 7), ("read", 0, 4)] and result.registers["rcx"]


def test_a_device_may_change_what_memory_shows(rigs: tuple[Rig, Rig]) -> None:
    """The store makes RAM appear where the device was."""
    for rig in rigs:
        overlays = []

        def write(address: int, size: int, value: int, rig: Rig = rig, overlays: list[object] = overlays) -> None:
            overlays.append(rig.guest.memory.overlay(DEVICE, 0x1000, rig.guest.memory.regions[0], 0x30000))

        rig.guest.memory.write(0x30000, b"\x11\x22\x33\x44")
        rig.guest.devices.write = write  # type: ignore[method-assign]
        result = rig.guest.run("mov eax, [rbx]; mov [rbx], eax; mov ecx, [rbx]; mov [rbx], r8d; mov edx, [rbx]", rbx=PAGE, r8=7)
        assert result.registers["rcx"] == 0x44332211 and result.registers["rdx"] == 7
        assert len(rig.device.log) == 1
        rig.guest.memory.remove(overlays[0])  # type: ignore[arg-type]
