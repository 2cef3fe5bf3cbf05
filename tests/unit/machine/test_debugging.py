"""A machine under a debugger, with a scripted engine: who stands still when, and what is told."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.debug.packets import frame
from ringfence.engine.api import Debug, Exit, Fault, Halt, Shutdown, Watch
from ringfence.machine.machine import Machine
from ringfence.machine.spec import MachineSpec
from tests.unit.machine.fakes import Step, engine_of, out, print_text, scripted, tiny_kernel

POWER_OFF = out(0x604, 1 << 13 | 5 << 10, 2)


class Client:
    """A debugger that says what it is told to say."""

    def __init__(self, machine: Machine) -> None:
        assert machine.debugger is not None
        self.socket = socket.create_connection(("127.0.0.1", machine.debugger.server.port), timeout=5)
        self.socket.settimeout(5)
        self.data = b""

    def send(self, packet: bytes) -> None:
        self.socket.sendall(frame(packet))

    def expect(self, answer: bytes) -> None:
        while frame(answer) not in self.data:
            more = self.socket.recv(4096)
            assert more, f"hung up after {self.data!r}, before {answer!r}"
            self.data += more
        self.data = self.data.partition(frame(answer))[2]

    def expect_first(self, answer: bytes) -> None:
        """Before any other."""
        while len(self.data) < len(frame(answer)):
            more = self.socket.recv(4096)
            assert more, f"hung up after {self.data!r}, before {answer!r}"
            self.data += more
        assert self.data.startswith(frame(answer))

    def ask(self, packet: bytes, answer: bytes) -> None:
        self.send(packet)
        self.expect(answer)


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(*steps: Step, wait: bool = True) -> Machine:
        spec = MachineSpec.build(kernel=tiny_kernel(tmp_path), memory="8M", gdb=":0", gdb_wait=wait)
        made.append(Machine(spec, engine=scripted(*steps)))
        registers: dict[str, Any] = {"cs_attr": 0x29B, "cs_base": 0, "efer": 0x500, "cr0": 0x80000011, "cr4": 0x20}
        made[-1].engine.registers.update(registers)  # type: ignore[attr-defined]
        made[-1].start()
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def test_it_waits_for_the_debugger(build: Callable[..., Machine]) -> None:
    machine = build(POWER_OFF)
    time.sleep(0.05)
    assert engine_of(machine).runs == 0 and machine.running
    client = Client(machine)
    client.ask(b"?", b"T05thread:1;")
    client.ask(b"c", b"W00")
    assert machine.wait(5).code == 0


def test_a_breakpoint_and_a_watchpoint(build: Callable[..., Machine]) -> None:
    watch = Watch(0x2000, 4, False, True)
    machine = build(Debug(0x1000), Debug(0x1003, watch), POWER_OFF)
    client = Client(machine)
    client.ask(b"qSupported:swbreak+;hwbreak+", client_features())
    client.ask(b"Z0,1000,1", b"OK")
    client.ask(b"Z2,2000,4", b"OK")
    assert engine_of(machine).points == ((0x1000,), (watch,))
    client.ask(b"vCont;c", b"T05thread:1;swbreak:;")
    client.ask(b"vCont;c", b"T05thread:1;watch:2000;")
    assert engine_of(machine).runs == 2
    client.ask(b"vCont;c", b"W00")


def client_features() -> bytes:
    return b"PacketSize=4000;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+"


def test_steps(build: Callable[..., Machine]) -> None:
    machine = build()
    client = Client(machine)
    engine_of(machine).registers["rip"] = 0x1000
    client.ask(b"vCont;s:1", b"T05thread:1;")
    assert engine_of(machine).registers["rip"] == 0x1001
    client.ask(b"vCont;r1000,1010:1", b"T05thread:1;")
    assert engine_of(machine).registers["rip"] == 0x1010
    assert engine_of(machine).runs == 0


def test_a_step_that_ends_the_machine_is_told_as_its_end(build: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = build()
    engine = engine_of(machine)
    monkeypatch.setattr(engine, "step", lambda interrupts: POWER_OFF(engine))
    client = Client(machine)
    client.ask(b"QStartNoAckMode", b"OK")
    client.socket.sendall(b"+")
    client.send(b"vCont;s:1")
    client.expect_first(b"W00")


def test_an_endless_range_step_can_be_interrupted(build: Callable[..., Machine]) -> None:
    client = Client(build())
    client.send(b"vCont;r0,ffffffffffffffff:1")
    time.sleep(0.05)
    client.socket.sendall(b"\x03")
    client.expect(b"T02thread:1;")


def test_a_running_guest_stops_for_its_debugger_and_goes_on_without_it(build: Callable[..., Machine]) -> None:
    machine = build(wait=False)
    client = Client(machine)
    client.ask(b"?", b"T05thread:1;")
    runs = engine_of(machine).runs
    time.sleep(0.03)
    assert engine_of(machine).runs == runs
    client.send(b"c")
    time.sleep(0.03)
    client.socket.sendall(b"\x03")
    client.expect(b"T02thread:1;")
    client.ask(b"Z0,10,1", b"OK")
    runs = engine_of(machine).runs
    client.socket.close()
    deadline = time.monotonic() + 5
    while engine_of(machine).runs == runs:
        assert time.monotonic() < deadline, "the guest does not go on"
        time.sleep(0.005)
    assert engine_of(machine).points == ((), ())


@pytest.mark.parametrize(
    ("crash", "signal", "text"),
    [
        (Shutdown("#GP, then #DF"), 11, "triple fault"),
        (Fault("no such mode"), 6, "no such mode"),
        (Halt(wakeable=False), 5, "halted for ever"),
    ],
)
def test_a_crash_can_be_looked_at_before_it_ends_the_machine(build: Callable[..., Machine], crash: Exit, signal: int, text: str) -> None:
    machine = build(crash)
    client = Client(machine)
    client.send(b"c")
    client.expect(b"T%02xthread:1;" % signal)
    client.ask(b"m100000,2", b"f4f4")
    assert machine.running
    client.ask(b"c", b"W46")
    status = machine.wait(5)
    assert status.code == 70 and (text.split()[0] in status.reason)


def test_a_crash_that_the_debugger_mends(build: Callable[..., Machine]) -> None:
    machine = build(Shutdown("oops"), POWER_OFF)
    client = Client(machine)
    client.ask(b"c", b"T0bthread:1;")
    client.ask(b"P0=0100000000000000", b"OK")
    client.ask(b"c", b"W00")


def test_a_crash_without_a_debugger_is_one(build: Callable[..., Machine]) -> None:
    assert build(Shutdown("oops"), wait=False).wait(5).code == 70


def test_reset_and_kill(build: Callable[..., Machine]) -> None:
    machine = build(print_text(b"never"))
    client = Client(machine)
    starts = engine_of(machine).starts
    client.ask(b"qRcmd," + b"reset".hex().encode(), b"OK")
    client.ask(b"?", b"T05thread:1;")
    assert engine_of(machine).starts == starts + 1 and engine_of(machine).runs == 0
    client.send(b"k")
    assert "debugger" in machine.wait(5).reason


def test_a_guest_that_waits_for_a_debugger_can_be_stopped(build: Callable[..., Machine]) -> None:
    machine = build()
    machine.stop()
    assert machine.wait(5).code == 130
