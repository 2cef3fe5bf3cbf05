"""Serial ports between a program of the guest's and one of the host's: the console device with several ports, none of them a console.

OASIS VIRTIO 1.2, section 5.3 with VIRTIO_CONSOLE_F_MULTIPORT.

    queues 0, 1               receive and transmit of port 0, which is not used here
    queues 2, 3               control messages: le32 port, le16 event, le16 value      5.3.6.2
    queues 2n + 2, 2n + 3     receive and transmit of port n

Each direction waits for the other side: bytes for the guest stay here until it gives buffers, bytes from the guest stay in its buffers
while the port's user is busy.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Protocol

from ringfence.core.errors import SnapshotError
from ringfence.core.trace import tracer
from ringfence.devices.virtio.buffers import gather, scatter, total_bytes
from ringfence.devices.virtio.device import VirtioDevice
from ringfence.devices.virtio.queue import VirtqueueError

trace = tracer("virtio")

F_MULTIPORT = 1 << 1
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
DEVICE_READY, PORT_ADD, PORT_READY, PORT_OPEN, PORT_NAME = 0, 1, 3, 6, 7
CONFIG_BYTES = 12  # le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr
PORTS = 62  # numbers 1 to 61 can be used
_CONTROL = struct.Struct("<IHH")
MAX_REQUEST_BYTES = 1 << 20  # Linux sends 32 KiB at a time
MAX_CONTROL_MESSAGES = 4096  # that the guest has not fetched


class PortUser(Protocol):
    """The host's end of a port.  All methods on the device thread."""

    def port_ready(self, ready: bool) -> None:
        """The guest's driver knows the port now; or it is gone, with everything that was under way (a reset, an error)."""

    def guest_opened(self, opened: bool) -> None:
        """A program of the guest's has opened the port, or the last one that had it has closed it."""

    def received(self, data: bytes) -> bool:
        """Bytes from the guest.  False: no more of them until `VirtioSerial.go_on`."""

    def sent(self) -> None:
        """All bytes that were given to `send` are in the guest's buffers."""


class _Port:
    def __init__(self, number: int, name: str, user: PortUser) -> None:
        self.number = number
        self.name = name
        self.user = user
        self.ready = False
        self.open = False  # in the guest: Linux throws bytes away that come before
        self.held = False
        self.output = bytearray()  # for the guest
        self.closed_behind = False  # closed in the guest, which its user is told once it has taken what was written before
        self.closing = False  # the guest is told that nobody is at the other end once it has all of the output


class VirtioSerial(VirtioDevice):
    """All methods on the device thread."""

    device_id = 3
    pci_class_code = 0x078000
    queue_sizes = (32, 32, 128, 64) + (32, 32) * (PORTS - 1)
    msix_vectors = 2  # Linux then has one for all queues: a vector a queue would take most of a CPU's

    def __init__(self, name: str = "virtio-serial") -> None:
        super().__init__(name, F_MULTIPORT, CONFIG_BYTES)
        struct.pack_into("<I", self.config, 4, PORTS)
        self._ports: dict[int, _Port] = {}
        self._messages: deque[bytes] = deque()
        self._driver_ready = False

    # ---- for users of ports
    def add(self, number: int, name: str, user: PortUser) -> None:
        """A port of this number, 1 to PORTS - 1, appears in the guest, with the name in /sys/class/virtio-ports."""
        if not 0 < number < PORTS or number in self._ports:
            raise ValueError(f"port {number}")
        self._ports[number] = _Port(number, name, user)
        if self._driver_ready:
            self._tell(number, PORT_ADD, 1)

    def connect(self, number: int) -> None:
        """The host's end is there.  Whoever reads in the guest waits for bytes from now on."""
        port = self._ports[number]
        port.output.clear()
        port.closing = port.held = False
        self._tell(number, PORT_OPEN, 1)

    def disconnect(self, number: int) -> None:
        """The host's end is gone once what was sent has been taken: who reads in the guest finds the end of the file then."""
        port = self._ports[number]
        port.closing = True
        self._deliver(port)

    def send(self, number: int, data: bytes) -> None:
        """Bytes for the guest, which wait until it opens the port.  Its user sends more when `sent` is called."""
        port = self._ports[number]
        port.output += data
        self._deliver(port)

    def waiting_bytes(self, number: int) -> int:
        """Of what was sent, how much the guest has not taken."""
        return len(self._ports[number].output)

    def holds(self, number: int) -> bool:
        """Whether bytes from the guest wait for `go_on`."""
        return self._ports[number].held

    def go_on(self, number: int) -> None:
        """The user takes bytes again."""
        port = self._ports[number]
        port.held = False
        self.notify(2 * number + 3)

    # ---- the guest's side
    def process(self, queue_index: int) -> None:
        if queue_index == CONTROL_TRANSMIT:
            self._control()
            self.signal(queue_index)
        elif queue_index == CONTROL_RECEIVE:
            self._hand_messages()
        elif queue_index > CONTROL_TRANSMIT and (port := self._ports.get(queue_index // 2 - 1)) is not None:
            if queue_index & 1:
                self._take(port)
            else:
                self._deliver(port)

    def _control(self) -> None:
        queue = self.queues[CONTROL_TRANSMIT]
        for chain in queue.chains():
            size = total_bytes(chain.readable)
            if not _CONTROL.size <= size <= MAX_REQUEST_BYTES:
                raise VirtqueueError(f"a control message of {size} bytes")
            number, event, value = _CONTROL.unpack_from(gather(self.memory, chain.readable))
            queue.push(chain, 0)
            self._event(number, event, value)

    def _event(self, number: int, event: int, value: int) -> None:
        if event == DEVICE_READY:
            self._driver_ready = value == 1
            if self._driver_ready:
                for port in self._ports.values():
                    self._tell(port.number, PORT_ADD, 1)
            return
        if number not in self._ports:
            return  # 5.3.6.3: nothing is said of a port that does not exist
        port = self._ports[number]
        if event == PORT_READY:
            if value == 1 and not port.ready:
                port.ready = True
                self._tell(number, PORT_NAME, 1, port.name.encode() + b"\0")
                port.user.port_ready(True)
            elif value != 1:
                self._forget(port)
        elif event == PORT_OPEN and port.ready:
            port.open = bool(value)
            port.closed_behind = not value
            if port.open:
                port.user.guest_opened(True)
            else:
                port.output.clear()  # for a reader that is gone
                self._take(port)
            self._deliver(port)

    def _tell(self, number: int, event: int, value: int, more: bytes = b"") -> None:
        if len(self._messages) >= MAX_CONTROL_MESSAGES:
            self.fail("the driver takes no control messages")
            return
        self._messages.append(_CONTROL.pack(number, event, value) + more)
        self.notify(CONTROL_RECEIVE)

    def _hand_messages(self) -> None:
        queue = self.queues[CONTROL_RECEIVE]
        while self._messages:
            chain = queue.pop()
            if chain is None:
                if queue.rearm():
                    continue
                break
            message = self._messages.popleft()
            if chain.writable_bytes < len(message):
                raise VirtqueueError("a control buffer that is too small")
            queue.push(chain, scatter(self.memory, chain.writable, message))
        self.signal(CONTROL_RECEIVE)

    def _take(self, port: _Port) -> None:
        """Bytes from the guest to the user."""
        index = 2 * port.number + 3
        queue = self.queues[index]
        while queue.ready and not port.held:
            chain = queue.pop()
            if chain is None:
                if queue.rearm():
                    continue
                break
            size = total_bytes(chain.readable)
            if size > MAX_REQUEST_BYTES:
                raise VirtqueueError(f"{size} bytes in one request to a serial port")
            data = gather(self.memory, chain.readable) if size else b""
            queue.push(chain, 0)
            if data:
                port.held = not port.user.received(data)
        self.signal(index)
        if port.closed_behind and not port.held:
            port.closed_behind = False
            port.user.guest_opened(False)

    def _deliver(self, port: _Port) -> None:
        """Bytes from the user to the guest."""
        index = 2 * port.number + 2
        queue = self.queues[index]
        had = bool(port.output)
        if port.open and queue.ready and self.running:
            done = 0
            while done < len(port.output):
                chain = queue.pop()
                if chain is None:
                    if queue.rearm():
                        continue
                    break
                part = scatter(self.memory, chain.writable, memoryview(port.output)[done : done + chain.writable_bytes].tobytes())
                queue.push(chain, part)
                done += part
            del port.output[:done]
            if done:
                self.signal(index)
        if not port.output:
            if port.closing:
                port.closing = False
                self._tell(port.number, PORT_OPEN, 0)
            elif had:
                port.user.sent()

    def _forget(self, port: _Port) -> None:
        """The guest has the port no more."""
        port.output.clear()
        port.closing = port.held = port.open = port.closed_behind = False
        if port.ready:
            port.ready = False
            port.user.port_ready(False)

    def fail(self, reason: str) -> None:
        super().fail(reason)
        self._lose_all()

    def reset(self) -> None:
        super().reset()
        self._lose_all()

    def _lose_all(self) -> None:
        self._messages.clear()
        self._driver_ready = False
        for port in list(self._ports.values()):
            self._forget(port)

    # ---- state
    def save(self) -> dict[str, Any]:
        raise SnapshotError(f"{self.name}: programs of the host's are at the other end of its ports; they cannot be saved")
