"""Serial ports: control messages, both directions with someone who does not take anything, ends, and drivers that break the rules."""

from __future__ import annotations

import struct

import pytest

from ringfence.devices.virtio.device import NEEDS_RESET
from ringfence.devices.virtio.serial import (
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    DEVICE_READY,
    F_MULTIPORT,
    MAX_REQUEST_BYTES,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    PORTS,
    VirtioSerial,
)
from tests.unit.virtio.driver import BUFFERS, READ, WRITE, MmioDriver, make_memory


class User:
    """Notes what it is told; takes bytes while `takes`."""

    def __init__(self) -> None:
        self.ready: list[bool] = []
        self.opened: list[bool] = []
        self.data = b""
        self.takes = True
        self.sent_count = 0

    def port_ready(self, ready: bool) -> None:
        self.ready.append(ready)

    def guest_opened(self, opened: bool) -> None:
        self.opened.append(opened)

    def received(self, data: bytes) -> bool:
        self.data += data
        return self.takes

    def sent(self) -> None:
        self.sent_count += 1


class FewQueues(VirtioSerial):
    queue_sizes = VirtioSerial.queue_sizes[:8]


class Rig:
    """Port 1 of a device, and a driver that has come as far as DEVICE_READY."""

    def __init__(self) -> None:
        self.memory = make_memory()
        self.device, self.user = FewQueues(), User()
        self.driver = MmioDriver(self.device, self.memory)
        self.device.add(1, "first", self.user)
        self.driver.start(self.device)
        self.give(CONTROL_RECEIVE, 8)
        self.control(0, DEVICE_READY, 1)

    def give(self, queue: int, count: int, size: int = 64) -> None:
        """Buffers for the device to fill."""
        for k in range(count):
            self.driver.rings[queue].offer((BUFFERS + 0x10000 * queue + 0x100 * k, size, WRITE))
        self.driver.kick(queue)

    def taken(self, queue: int) -> list[bytes]:
        """What it put into them, buffers in the order they were given."""
        return [self.memory.read(BUFFERS + 0x10000 * queue + 0x100 * (head % 8), size) for head, size in self.driver.rings[queue].collect()]

    def control(self, port: int, event: int, value: int) -> None:
        self.memory.write(BUFFERS, struct.pack("<IHH", port, event, value))
        self.driver.rings[CONTROL_TRANSMIT].offer((BUFFERS, 8, READ))
        self.driver.kick(CONTROL_TRANSMIT)

    def messages(self) -> list[tuple[int, int, int, bytes]]:
        return [(*struct.unpack_from("<IHH", message), message[8:]) for message in self.taken(CONTROL_RECEIVE)]

    def write(self, queue: int, data: bytes) -> None:
        self.memory.write(BUFFERS + 0x8000, data)
        self.driver.rings[queue].offer((BUFFERS + 0x8000, len(data), READ))
        self.driver.kick(queue)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def open_port(rig: Rig) -> None:
    rig.control(1, PORT_READY, 1)
    rig.control(1, PORT_OPEN, 1)


def test_a_port_is_made_known_and_named(rig: Rig) -> None:
    assert rig.device.features & F_MULTIPORT and rig.driver.read_config(4, 4) == PORTS
    assert rig.messages() == [(1, PORT_ADD, 1, b"")]
    assert rig.user.ready == []
    rig.control(1, PORT_READY, 1)
    assert rig.user.ready == [True] and rig.messages() == [(1, PORT_NAME, 1, b"first\0")]
    later = User()
    rig.device.add(2, "second", later)
    assert rig.messages() == [(2, PORT_ADD, 1, b"")]
    rig.control(2, PORT_READY, 0)  # the driver could not make it
    assert later.ready == []
    with pytest.raises(ValueError):
        rig.device.add(2, "again", later)


def test_bytes_for_the_guest_wait_until_it_opens_and_gives_buffers(rig: Rig) -> None:
    rig.control(1, PORT_READY, 1)
    rig.device.connect(1)
    rig.device.send(1, bytes(range(100)))
    rig.give(4, 1)
    assert rig.taken(4) == [] and rig.device.waiting_bytes(1) == 100  # Linux would throw them away
    rig.control(1, PORT_OPEN, 1)
    assert rig.taken(4) == [bytes(range(64))] and rig.user.sent_count == 0
    rig.device.disconnect(1)
    assert (1, PORT_OPEN, 0, b"") not in rig.messages()  # the end comes behind what was sent
    rig.give(4, 1)
    assert rig.device.waiting_bytes(1) == 0
    assert rig.messages() == [(1, PORT_OPEN, 0, b"")]


def test_bytes_from_the_guest_wait_in_its_buffers(rig: Rig) -> None:
    open_port(rig)
    rig.user.takes = False
    for piece in (b"one ", b"two ", b"three"):
        rig.write(5, piece)
    assert rig.user.data == b"one " and len(rig.driver.rings[5].collect()) == 1
    rig.user.takes = True
    rig.device.go_on(1)
    assert rig.driver.rings[5].collect() and rig.user.data.startswith(b"one ")


def test_what_was_written_before_the_port_was_closed_comes_first(rig: Rig) -> None:
    open_port(rig)
    rig.memory.write(BUFFERS + 0x8000, b"last words")
    rig.driver.rings[5].offer((BUFFERS + 0x8000, 10, READ))  # not told of
    rig.control(1, PORT_OPEN, 0)
    assert rig.user.data == b"last words" and rig.user.opened == [True, False]


def test_the_end_comes_behind_what_the_user_has_not_taken(rig: Rig) -> None:
    open_port(rig)
    rig.user.takes = False
    for piece in (b"one ", b"two"):
        rig.write(5, piece)
    rig.control(1, PORT_OPEN, 0)
    assert rig.user.opened == [True] and rig.device.holds(1)
    rig.user.takes = True
    rig.device.go_on(1)
    assert rig.user.opened == [True, False] and not rig.device.holds(1)


def test_what_a_closed_port_was_sent_is_forgotten(rig: Rig) -> None:
    open_port(rig)
    rig.device.send(1, b"for nobody")
    rig.control(1, PORT_OPEN, 0)
    rig.control(1, PORT_OPEN, 1)
    rig.give(4, 1)
    assert rig.taken(4) == []


def test_a_reset_takes_ports_away_and_a_driver_finds_them_again(rig: Rig) -> None:
    open_port(rig)
    rig.driver.set_status(0)
    assert rig.user.ready == [True, False]
    rig.driver.start(rig.device)
    rig.give(CONTROL_RECEIVE, 4)
    rig.control(0, DEVICE_READY, 1)
    assert rig.messages() == [(1, PORT_ADD, 1, b"")]


@pytest.mark.parametrize("size", [0, 7, MAX_REQUEST_BYTES + 1])
def test_control_messages_of_a_wrong_size_need_a_reset(rig: Rig, size: int) -> None:
    rig.driver.rings[CONTROL_TRANSMIT].offer(*[(0, min(size, 1 << 20), READ)] * (2 if size > 1 << 20 else 1))
    rig.driver.kick(CONTROL_TRANSMIT)
    assert rig.driver.status() & NEEDS_RESET


def test_ports_that_do_not_exist_are_no_ports(rig: Rig) -> None:
    for number in (0, 2, 3, 0xFFFFFFFF):
        for event in range(10):
            rig.control(number, event or PORT_OPEN, 1)
    rig.write(7, b"into the void")
    assert not rig.driver.status() & NEEDS_RESET and rig.user.data == b""


def test_a_driver_that_takes_no_control_messages_fails(rig: Rig) -> None:
    rig.control(1, PORT_READY, 1)
    for _ in range(10_000):
        rig.device.connect(1)
    assert rig.driver.status() & NEEDS_RESET and rig.user.ready == [True, False]
