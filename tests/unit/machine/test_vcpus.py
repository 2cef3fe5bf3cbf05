"""Further vCPUs: how they start, sleep, stand still and end, with engines that follow a script."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ringfence import Machine, MachineSpec
from ringfence.core.errors import UserError
from ringfence.engine.api import Engine, Exit, Fault, Halt, Interrupted, Shutdown
from ringfence.machine.engines import EngineChoice, EngineParts
from ringfence.machine.status import Ending
from tests.unit.machine.fakes import ScriptedEngine, Step, out, scripted, tiny_kernel

ICR, X2APIC_BASE_MSR, ICR_MSR = 0x300, 0x1B, 0x830
INIT_OTHERS, STARTUP_OTHERS, FIXED_OTHERS = 0xC4500, 0xC4600, 0xC4000
DEBUG_EXIT = 0xF4


class SharedEngine(ScriptedEngine):
    """Gives the lock back while it executes, as engines of several vCPUs do."""

    lock: threading.RLock

    def run(self, deadline_ns: int | None) -> Exit:
        self.lock.release()
        try:
            if not self._steps:
                return super().run(deadline_ns)
            time.sleep(0.001)
        finally:
            self.lock.acquire()
        return super().run(deadline_ns)


def several(*scripts: Sequence[Step]) -> EngineChoice:
    def build(lock: threading.RLock, parts: Sequence[EngineParts]) -> list[Engine]:
        engines: list[Engine] = []
        for part, steps in zip(parts, scripts, strict=True):
            engine = SharedEngine(part, steps)
            engine.lock = lock
            engines.append(engine)
        return engines

    return scripted().replace(build_several=build)


def machine(tmp_path: Path, *scripts: Sequence[Step]) -> Machine:
    spec = MachineSpec(kernel=tiny_kernel(tmp_path), devices=("debug-exit",), cpus=len(scripts), timeout=20)
    return Machine(spec, engine=several(*scripts))


def ipi(what: int) -> Callable[[ScriptedEngine], None]:
    return lambda engine: engine.mmio.write(0xFEE0_0000 + ICR, 4, what)


def test_it_waits_for_init_and_the_start_up_message(tmp_path: Path) -> None:
    seen: list[dict[str, int]] = []

    def look(engine: ScriptedEngine) -> None:
        seen.append(dict(engine.registers))
        engine.ports.write(DEBUG_EXIT, 1, 21)

    with machine(tmp_path, [ipi(INIT_OTHERS), ipi(STARTUP_OTHERS | 0x9A), ipi(STARTUP_OTHERS | 0x10)], [look]) as guest:
        assert guest.run().code == 43
    assert seen[0]["cs"] == 0x9A00 and seen[0]["cs_base"] == 0x9A000 and seen[0]["rip"] == 0


def test_each_has_its_own_apic_at_the_same_address(tmp_path: Path) -> None:
    numbers: list[int] = []

    def look(engine: ScriptedEngine) -> None:
        numbers.append(engine.mmio.read(0xFEE0_0020, 4) >> 24)

    with machine(tmp_path, [look, ipi(INIT_OTHERS), ipi(STARTUP_OTHERS | 1)], [look, out(DEBUG_EXIT, 1)]) as guest:
        guest.run()
    assert numbers == [0, 1]


def test_a_halted_one_sleeps_until_an_interrupt(tmp_path: Path) -> None:
    enabled = threading.Event()

    def enable(engine: ScriptedEngine) -> Exit:
        engine.mmio.write(0xFEE0_00F0, 4, 0x1FF)
        enabled.set()
        return Halt(wakeable=True)

    def woken(engine: ScriptedEngine) -> None:
        assert engine.interrupts.pending()
        engine.ports.write(DEBUG_EXIT, 1, 3)

    def ping(engine: ScriptedEngine) -> Exit:
        if not enabled.is_set():
            engine._steps = [ping]
            return Interrupted()
        engine.mmio.write(0xFEE0_0000 + ICR, 4, FIXED_OTHERS | 0x41)
        return Halt(wakeable=True)

    first = [ipi(INIT_OTHERS), ipi(STARTUP_OTHERS | 1), Halt(wakeable=True)]
    with machine(tmp_path, first, [enable, woken], [ping]) as guest:
        assert guest.run().code == 7


@pytest.mark.parametrize(("exit", "text"), [(Shutdown("#GP"), "triple fault"), (Fault("no such mode"), "no such mode")])
def test_what_one_meets_ends_the_machine(tmp_path: Path, exit: Exit, text: str) -> None:
    with machine(tmp_path, [ipi(INIT_OTHERS), ipi(STARTUP_OTHERS | 1)], [exit]) as guest:
        status = guest.run()
    assert status.ending is Ending.CRASHED and text in status.reason


def test_halted_for_ever_means_all_of_them(tmp_path: Path) -> None:
    def wait(engine: ScriptedEngine) -> None:
        time.sleep(0.05)

    deaf = Halt(wakeable=False)
    first = [ipi(INIT_OTHERS), ipi(STARTUP_OTHERS | 1), deaf]
    with machine(tmp_path, first, [wait, out(DEBUG_EXIT, 2)]) as guest:
        assert guest.run().code == 5
    with machine(tmp_path, first, [wait, deaf]) as guest:
        assert "halted for ever" in guest.run().reason


def test_a_fault_of_ours_on_a_further_thread_ends_that_guest(tmp_path: Path) -> None:
    def wrong(engine: ScriptedEngine) -> None:
        raise ZeroDivisionError("on purpose")

    with machine(tmp_path, [ipi(INIT_OTHERS), ipi(STARTUP_OTHERS | 1)], [wrong]) as guest:
        assert "on purpose" in guest.run().reason


def test_a_reset_has_them_wait_again(tmp_path: Path) -> None:
    turns: list[int] = []

    def first(engine: ScriptedEngine) -> Exit:
        turns.append(1)
        if len(turns) == 1:
            ipi(INIT_OTHERS)(engine)
            ipi(STARTUP_OTHERS | 1)(engine)
            engine._steps = [first]
        else:
            engine.ports.write(DEBUG_EXIT, 1, len(turns))
        return Interrupted()

    def second(engine: ScriptedEngine) -> Exit:
        engine.ports.write(0xCF9, 1, 6)
        engine._steps = [second]
        return Interrupted()

    with machine(tmp_path, [first, lambda engine: time.sleep(0.1)], [second]) as guest:
        assert guest.run().code & 1
    assert len(turns) == 2


def test_an_engine_for_one_only(tmp_path: Path) -> None:
    spec = MachineSpec(kernel=tiny_kernel(tmp_path), cpus=2)
    with pytest.raises(UserError, match="one vCPU"):
        Machine(spec, engine=scripted())
