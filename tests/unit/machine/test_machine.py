"""A machine's life with a scripted engine: how it ends, who may do what on which thread, and what it costs while idle."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringfence.core.errors import GuestError, GuestMemoryError, RingfenceError, UserError
from ringfence.engine.api import Exit, Fault, Halt, Shutdown
from ringfence.machine.machine import Machine, MachineBusy
from ringfence.machine.spec import DiskSpec, MachineSpec
from ringfence.machine.stats import host_peak_bytes, write_stats
from ringfence.machine.status import Ending
from tests.unit.machine.fakes import ScriptedEngine, Step, engine_of, halt, out, print_text, scripted, tiny_kernel

PM1_CONTROL = 0x604
POWER_OFF = 1 << 13 | 5 << 10  # SLP_EN, SLP_TYP of S5

Build = Callable[..., Machine]


@pytest.fixture
def build(tmp_path: Path) -> Any:
    """`build(*steps, **spec fields)` makes a machine that runs the steps."""
    made: list[Machine] = []

    def make(*steps: Step, **fields: Any) -> Machine:
        spec = MachineSpec.build(kernel=tiny_kernel(tmp_path), memory="8M", **fields)
        made.append(Machine(spec, engine=scripted(*steps)))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


@pytest.mark.parametrize("board", ["pc", "microvm"])
def test_power_off_is_status_0(build: Build, board: str) -> None:
    machine = build(print_text(b"bye\n"), out(PM1_CONTROL, POWER_OFF, 2), board=board)
    machine.start()
    assert machine.console.wait_for(b"bye\n", 5)
    assert machine.wait(5).code == 0


def test_triple_fault_is_status_70_with_registers_and_last_exit(build: Build) -> None:
    status = build(Shutdown("#PF, then #DF, then #GP")).run()
    assert (status.code, status.ending) == (70, Ending.CRASHED)
    report = status.report()
    assert "#DF" in report and "rip" in report and "Shutdown" in report


def test_halted_for_ever_is_status_70(build: Build) -> None:
    status = build(Halt(wakeable=False)).run()
    assert status.code == 70 and "interrupts disabled" in status.reason


def test_engine_fault_is_status_70(build: Build) -> None:
    status = build(Fault("no such mode")).run()
    assert status.code == 70 and "no such mode" in status.reason


@pytest.mark.parametrize("error", [GuestError("queue of negative length"), GuestMemoryError(1 << 40, 8), ValueError("ours")])
def test_an_error_in_a_device_ends_this_guest_only(build: Build, error: Exception) -> None:
    def step(engine: ScriptedEngine) -> Exit | None:
        raise error

    status = build(step).run()
    assert status.code == 70 and str(error) in status.reason
    assert ("Traceback" in status.detail) == isinstance(error, ValueError)


def test_debug_exit_gives_value_times_two_plus_one(build: Build) -> None:
    assert build(out(0xF4, 21), devices=("debug-exit",)).run().code == 43


def test_without_debug_exit_its_port_does_nothing(build: Build) -> None:
    assert build(out(0xF4, 21), out(PM1_CONTROL, POWER_OFF, 2)).run().code == 0


def test_timeout_is_status_124_busy_or_idle(build: Build) -> None:
    assert build(timeout=0.05).run().code == 124
    assert build(halt, timeout=0.05).run().code == 124


@pytest.mark.parametrize("way", [out(0xCF9, 6), out(0x64, 0xFE), out(0x92, 1)])
@pytest.mark.parametrize("board", ["pc", "microvm"])
def test_reset_starts_the_machine_again(build: Build, board: str, way: Step) -> None:
    def dirty(engine: ScriptedEngine) -> None:
        engine.memory.write(0x200000, b"left over")
        engine.registers["rip"] = 1

    def look(engine: ScriptedEngine) -> None:
        assert engine.memory.read(0x200000, 9) == bytes(9)
        assert engine.registers["rip"] == 0x100000 and engine.memory.read(0x100000, 1) == b"\xf4"

    machine = build(dirty, way, look, out(PM1_CONTROL, POWER_OFF, 2), board=board)
    status = machine.run()
    assert status.code == 0, status.report()
    assert engine_of(machine).starts == 2


def test_a_triple_fault_right_after_a_reset_request_is_a_reset(build: Build) -> None:
    def both(engine: ScriptedEngine) -> Exit:
        engine.ports.write(0x64, 1, 0xFE)
        return Halt(wakeable=False)

    assert build(both, out(PM1_CONTROL, POWER_OFF, 2)).run().code == 0


def test_stop_from_another_thread(build: Build) -> None:
    machine = build(halt)
    machine.start()
    with pytest.raises(MachineBusy):
        machine.wait(0.05)
    machine.stop()
    assert machine.wait(5).ending is Ending.STOPPED


def test_posted_work_runs_on_the_device_thread_while_busy_and_while_idle(build: Build) -> None:
    for steps in ((), (halt,)):
        machine = build(*steps)
        machine.start()
        seen: list[str] = []
        done = threading.Event()

        def work(seen: list[str] = seen, done: threading.Event = done) -> None:
            seen.append(threading.current_thread().name)
            done.set()

        machine._loop.post(work)
        assert done.wait(5)
        assert seen == ["ringfence-pc"]
        machine.close()


def test_typing_wakes_a_halted_guest(build: Build) -> None:
    def read_uart(engine: ScriptedEngine) -> Exit | None:
        if not engine.ports.read(0x3FD, 1) & 1:
            return Halt(wakeable=True)
        engine.ports.write(0x3F8, 1, engine.ports.read(0x3F8, 1))
        return None

    def enable(engine: ScriptedEngine) -> None:
        # PIC: initialise, unmask IRQ 4; UART: interrupt on received data.  LINT0 as ExtINT stands from reset on PCs.
        for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xEF), (0x3FC, 0x0B), (0x3F9, 1)):
            engine.ports.write(port, 1, value)
        engine.msrs.write_msr(0x1B, 0xFEE00900)
        engine.mmio.write(0xFEE000F0, 4, 0x1FF)
        engine.mmio.write(0xFEE00350, 4, 0x700)

    machine = build(enable, read_uart, read_uart, read_uart)
    machine.start()
    time.sleep(0.1)
    machine.console.send(b"x")
    assert machine.console.wait_for(b"x", 5)


def test_an_idle_guest_costs_next_to_nothing(build: Build) -> None:
    machine = build(halt)
    machine.start()
    time.sleep(0.5)
    machine.stop()
    machine.wait(5)
    seconds = machine.stats()["seconds"]
    assert seconds["wall"]["idle"] > 0.4
    assert seconds["cpu"]["idle"] + seconds["cpu"]["devices"] < 0.05


def test_closing_gives_everything_back_and_may_be_repeated(build: Build) -> None:
    machine = build(halt)
    machine.start()
    machine.close()
    machine.close()
    assert engine_of(machine).closed and not machine.running
    with pytest.raises(RingfenceError):
        machine.start()


def test_a_machine_in_a_with_block_is_stopped_at_its_end(tmp_path: Path) -> None:
    spec = MachineSpec.build(kernel=tiny_kernel(tmp_path), memory="8M")
    with Machine(spec, engine=scripted(halt)) as machine:
        machine.start()
    assert not machine.running


def test_disks_are_flushed_and_closed(build: Build, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    machine = build(out(PM1_CONTROL, POWER_OFF, 2), disks=(DiskSpec(path=image, format="raw"),))
    assert machine.run().code == 0


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"disks": (DiskSpec(path=Path("/nowhere/disk.img")),)}, "disk.img"),
        ({"initrd": "/nowhere/initrd"}, "initrd"),
        ({"serial": "file:/nowhere/log"}, "log"),
    ],
)
def test_what_is_missing_is_told_before_the_start(build: Build, fields: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        build(**fields)
    assert caught.value.remedy


def test_more_memory_than_the_host_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memory"):
        Machine(MachineSpec.build(kernel=tiny_kernel(tmp_path), memory="900T"), engine=scripted())


def test_too_many_disks_for_a_microvm(build: Build, tmp_path: Path) -> None:
    disks = []
    for number in range(9):
        (tmp_path / f"{number}.img").write_bytes(bytes(4096))
        disks.append(DiskSpec(path=tmp_path / f"{number}.img", format="raw"))
    with pytest.raises(UserError, match="room"):
        build(disks=tuple(disks), board="microvm")


def test_statistics_have_every_figure(build: Build, tmp_path: Path) -> None:
    machine = build(out(PM1_CONTROL, POWER_OFF, 2))
    machine.run()
    write_stats(tmp_path / "s.json", machine.stats())
    stats = json.loads((tmp_path / "s.json").read_text())
    counters = {"guest_instructions", "blocks_translated", "blocks_dropped", "stencil_forms_compiled", "tlb_refills"}
    assert counters <= stats.keys()
    for kind in ("wall", "cpu"):
        assert stats["seconds"][kind].keys() == {"start", "translation", "execution", "devices", "idle", "total"}
    assert stats["exits"]["PortIO"] == 3
    assert stats["memory"]["host_peak_bytes"] > 1 << 20 and stats["memory"]["guest_pages_touched"] > 0
    assert stats["ended"] == {"how": "power-off", "status": 0, "reason": ""}


def test_the_peak_of_memory_is_this_process_own() -> None:
    large = bytes(range(256)) * (1 << 20)  # resident in the process that starts the other one
    code = "from ringfence.machine.stats import host_peak_bytes; print(host_peak_bytes())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert 1 << 20 < int(answer.stdout) < len(large) < host_peak_bytes()


def test_statistics_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        write_stats(tmp_path / "nowhere" / "s.json", {})
