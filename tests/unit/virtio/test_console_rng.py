"""Console and entropy device."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ringfence.devices.virtio.console import EMERG_WR, MAX_INPUT_BYTES, RECEIVE, TRANSMIT, VirtioConsole
from ringfence.devices.virtio.device import NEEDS_RESET
from ringfence.devices.virtio.mmio import CONFIG_CHANGE
from ringfence.devices.virtio.rng import MAX_BYTES_PER_REQUEST, VirtioRng
from tests.unit.virtio.driver import BUFFERS, READ, WRITE, MmioDriver, Posted, make_memory


class Terminal:
    """A Char backend."""

    def __init__(self) -> None:
        self.output = b""
        self.type: Callable[[bytes], None] = lambda data: None

    def write(self, data: bytes) -> None:
        self.output += data

    def start(self, receive: Callable[[bytes], None]) -> None:
        self.type = receive

    def close(self) -> None:
        pass


class Rig:
    def __init__(self) -> None:
        self.terminal, self.posted = Terminal(), Posted()
        self.console = VirtioConsole(self.terminal, self.posted)
        self.memory = make_memory()
        self.driver = MmioDriver(self.console, self.memory)
        self.driver.start(self.console)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_output(rig: Rig) -> None:
    rig.memory.write(BUFFERS, b"hello world")
    rig.driver.rings[TRANSMIT].offer((BUFFERS, 5, READ), (BUFFERS + 5, 6, READ))
    rig.driver.kick(TRANSMIT)
    assert rig.terminal.output == b"hello world"
    assert rig.driver.rings[TRANSMIT].collect() == [(0, 0)]


def test_too_much_output_at_once_needs_a_reset(rig: Rig) -> None:
    rig.driver.rings[TRANSMIT].offer(*[(0, 1 << 20, READ)] * 2)
    rig.driver.kick(TRANSMIT)
    assert rig.driver.status() & NEEDS_RESET and rig.terminal.output == b""


def test_input_waits_for_buffers(rig: Rig) -> None:
    rig.console.start()
    rig.terminal.type(b"abcdef")
    rig.posted.run_all()
    ring = rig.driver.rings[RECEIVE]
    ring.offer((BUFFERS, 4, WRITE))
    rig.driver.kick(RECEIVE)
    assert ring.collect() == [(0, 4)] and rig.memory.read(BUFFERS, 4) == b"abcd"
    assert rig.driver.interrupts == 1
    ring.offer((BUFFERS, 1, WRITE), (BUFFERS + 8, 10, WRITE))
    rig.driver.kick(RECEIVE)
    assert ring.collect() == [(1, 2)]
    assert rig.memory.read(BUFFERS, 1) + rig.memory.read(BUFFERS + 8, 1) == b"ef"
    ring.offer((BUFFERS, 4, WRITE))
    rig.driver.kick(RECEIVE)
    assert ring.collect() == []
    rig.console.receive(b"!")
    assert ring.collect() == [(3, 1)]


def test_input_is_bounded(rig: Rig) -> None:
    rig.console.receive(bytes(MAX_INPUT_BYTES - 1))
    rig.console.receive(b"xyz")
    assert len(rig.console.save()["input"]) == MAX_INPUT_BYTES


def test_buffers_without_room_do_not_hang_it(rig: Rig) -> None:
    for _ in range(4):
        rig.driver.rings[RECEIVE].offer((BUFFERS, 0, WRITE))
    rig.console.receive(b"a")
    assert rig.driver.rings[RECEIVE].collect() == [(k, 0) for k in range(4)]


def test_resize(rig: Rig) -> None:
    generation = rig.console.state.config_generation
    rig.console.resize(132, 43)
    assert (rig.driver.read_config(0, 2), rig.driver.read_config(2, 2), rig.driver.read_config(4, 4)) == (132, 43, 1)
    assert rig.driver.acknowledge() == CONFIG_CHANGE
    assert rig.console.state.config_generation == generation + 1
    rig.console.resize(132, 43)
    assert rig.driver.acknowledge() == 0


def test_emergency_write(rig: Rig) -> None:
    rig.driver.set_status(0)
    rig.driver.write_config(EMERG_WR, 4, ord("!"))
    assert rig.terminal.output == b"!"


def test_save_keeps_input(rig: Rig) -> None:
    rig.console.receive(b"typed")
    saved = rig.driver.transport.save()
    other = Rig()
    other.memory.write(0x10000, rig.memory.read(0x10000, 0x30000))
    other.driver.transport.load(saved)
    other.console.resume()
    other.driver.rings[RECEIVE].offer((BUFFERS, 16, WRITE))
    other.driver.kick(RECEIVE)
    assert other.memory.read(BUFFERS, 5) == b"typed"


def test_entropy_is_bounded_per_request() -> None:
    memory = make_memory()
    device = VirtioRng()
    driver = MmioDriver(device, memory)
    driver.start(device)
    driver.rings[0].offer((BUFFERS, 16, WRITE), (BUFFERS + 32, 16, WRITE))
    driver.rings[0].offer((BUFFERS + 0x1000, 0x10000, WRITE))
    driver.rings[0].offer((BUFFERS, 16, READ))
    driver.kick()
    assert driver.rings[0].collect() == [(0, 32), (2, MAX_BYTES_PER_REQUEST), (3, 0)]
    assert memory.read(BUFFERS, 16) != bytes(16) and memory.read(BUFFERS + 16, 16) == bytes(16)
