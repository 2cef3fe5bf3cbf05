"""An engine that executes a script instead of instructions, so that a machine can be tested without a CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ringfence.engine.api import Engine, Exit, Halt, Interrupted, Watch
from ringfence.machine.engines import EngineChoice, EngineParts
from ringfence.machine.machine import Machine

Step = Exit | Callable[["ScriptedEngine"], Exit | None]


class ScriptedEngine:
    """Each `run` executes the next step: an exit to return, or a function that acts on the machine as a guest would.

    After the last step it spins, as a busy guest does, until it is kicked or the deadline passes.
    """

    name = "scripted"

    def __init__(self, parts: EngineParts, steps: Sequence[Step]) -> None:
        self.ports, self.mmio, self.memory = parts.ports, parts.mmio, parts.memory
        self.interrupts, self.msrs, self.clock = parts.interrupts, parts.msrs, parts.clock
        self._steps = list(steps)
        self._all_steps = list(steps)
        self._kicked = threading.Event()
        self.registers: dict[str, int] = {"rip": 0xFFF0, "cr3": 0}
        self.runs = 0
        self.starts = 0
        self.closed = False

    def run(self, deadline_ns: int | None) -> Exit:
        self.runs += 1
        if self._steps:
            step = self._steps.pop(0)
            result = step(self) if callable(step) else step
            return result or Interrupted()
        while not self._kicked.wait(0.001):
            if deadline_ns is not None and self.clock.now_ns() >= deadline_ns:
                break
        self._kicked.clear()
        return Interrupted()

    def step(self, interrupts: bool) -> Exit | None:
        self.registers["rip"] += 1
        return None

    def set_points(self, breakpoints: Sequence[int], watches: Sequence[Watch]) -> None:
        self.points = (tuple(breakpoints), tuple(watches))

    def kick(self) -> None:
        self._kicked.set()

    def interrupt_changed(self) -> None: ...

    def deadline_moved(self) -> None: ...

    def read_state(self) -> dict[str, int]:
        return dict(self.registers)

    def write_state(self, values: dict[str, int]) -> None:
        self.registers.update(values)
        self.starts += 1

    def rest(self) -> int:
        return 0

    def stats(self) -> dict[str, Any]:
        return {"guest_instructions": 7, "seconds": {"translation": 0.0}, "exits": {"PortIO": 3}}

    def close(self) -> None:
        self.closed = True


def scripted(*steps: Step) -> EngineChoice:
    """For `Machine(..., engine=scripted(...))`."""

    def build(parts: EngineParts) -> Engine:
        return ScriptedEngine(parts, steps)

    return EngineChoice("scripted", "a script", "", build, lambda: 1_000_000_000, lambda: time.perf_counter_ns)


def out(port: int, value: int, size: int = 1) -> Callable[[ScriptedEngine], None]:
    return lambda engine: engine.ports.write(port, size, value)


def print_text(text: bytes) -> Callable[[ScriptedEngine], None]:
    def step(engine: ScriptedEngine) -> None:
        for byte in text:
            engine.ports.write(0x3F8, 1, byte)

    return step


def engine_of(machine: Machine) -> ScriptedEngine:
    assert isinstance(machine.engine, ScriptedEngine)
    return machine.engine


def halt(engine: ScriptedEngine) -> Exit:
    return Halt(wakeable=True)


def tiny_kernel(folder: Path) -> Path:
    """An ELF64 with one loadable page; enough for the loader."""
    import struct

    code = b"\xf4" * 16
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0x100000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0x1000, 0x100000, 0x100000, len(code), len(code), 0x1000)
    path = folder / "kernel.elf"
    path.write_bytes((header + segment).ljust(0x1000, b"\0") + code)
    return path
