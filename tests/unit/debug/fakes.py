"""A machine that only remembers what the stub asked of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ringfence.core.errors import GuestMemoryError
from ringfence.debug.target import Stop
from ringfence.engine.api import Watch

Result = TypeVar("Result")
FLAT64 = {"cs": 8, "cs_base": 0, "cs_attr": 0x29B, "cr0": 0x80000011, "cr3": 0x1000, "cr4": 0x20, "efer": 0xD01, "rflags": 2}


class Ram:
    """64 KiB at physical address 0."""

    def __init__(self) -> None:
        self.bytes = bytearray(1 << 16)

    def read(self, guest_addr: int, size_bytes: int) -> bytes:
        if guest_addr + size_bytes > len(self.bytes):
            raise GuestMemoryError(guest_addr, size_bytes)
        return bytes(self.bytes[guest_addr : guest_addr + size_bytes])

    def write(self, guest_addr: int, data: bytes) -> None:
        self.read(guest_addr, len(data))
        self.bytes[guest_addr : guest_addr + len(data)] = data

    def put(self, guest_addr: int, *entries: int) -> None:
        for k, entry in enumerate(entries):
            self.write(guest_addr + 8 * k, entry.to_bytes(8, "little"))


class FakeTarget:
    has_long_mode = True

    def __init__(self) -> None:
        self.physical = Ram()
        names = [*"rax rbx rcx rdx rsi rdi rbp rsp rip cr2 cr8 efer".split(), *(f"r{n}" for n in range(8, 16))]
        names += [s + t for s in "es cs ss ds fs gs ldtr tr".split() for t in ("", "_base", "_limit", "_attr")]
        names += ["gdtr_base", "gdtr_limit", "idtr_base", "idtr_limit", *(f"dr{n}" for n in (0, 1, 2, 3, 6, 7))]
        names += ["fcw", "fsw", "ftop", "ftag", "fop", "fip", "fdp", "mxcsr", "cpl", *(f"st_physical{n}" for n in range(8))]
        self.values = {**dict.fromkeys([*names, *(f"xmm{n}" for n in range(16))], 0), **FLAT64}
        self.values["cr0"] = 0x11  # no paging
        self.values["efer"] = 0
        self.values["cs_attr"] = 0xC9B
        self.calls: list[Any] = []
        self.points: tuple[Sequence[int], Sequence[Watch]] = ((), ())

    def registers(self) -> dict[str, int]:
        return dict(self.values)

    def write_registers(self, values: dict[str, int]) -> None:
        self.values.update(values)

    def set_points(self, breakpoints: Sequence[int], watches: Sequence[Watch]) -> None:
        self.points = (list(breakpoints), list(watches))

    def attach(self) -> None:
        self.calls.append("attach")

    def detach(self) -> None:
        self.calls.append("detach")

    def resume(self) -> None:
        self.calls.append("resume")

    def step(self, first: int, end: int, interrupts: bool) -> None:
        self.calls.append(("step", first, end, interrupts))

    def interrupt(self) -> None:
        self.calls.append("interrupt")

    def kill(self) -> None:
        self.calls.append("kill")

    def reset(self) -> None:
        self.calls.append("reset")

    def press_power_button(self) -> None:
        self.calls.append("power")

    def describe(self) -> str:
        return "vCPU 0 of a fake"


class FakeHost:
    """Runs what the server posts on the server's own thread."""

    def __init__(self) -> None:
        self.target = FakeTarget()
        self.code: int | None = None

    def call(self, function: Callable[[], Result]) -> Result:
        return function()

    def exit_code(self) -> int | None:
        return self.code


TRAP = Stop(5, "step")
