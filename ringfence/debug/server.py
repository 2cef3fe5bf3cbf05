"""The debugger's TCP door: one client at a time, on a thread of its own.

The thread only moves bytes.  Packets are handled on the machine's thread (`call`); stops come back through `told` from there.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ringfence.core.errors import UserError
from ringfence.core.trace import tracer
from ringfence.debug.packets import ACK, NAK, Acknowledge, Event, Interrupt, Packet, Parser, ProtocolError, Repeat, frame
from ringfence.debug.stub import Stub
from ringfence.debug.target import Stop, Target

trace = tracer("gdb")
Result = TypeVar("Result")
_MAX_QUEUED = 64
_SEND_TIMEOUT_S = 10.0


class MachineEnded(Exception):
    """The machine's thread is no more."""


class Host(Protocol):
    """The machine, as the server's thread may use it."""

    target: Target

    def call(self, function: Callable[[], Result]) -> Result:
        """Runs the function on the machine's thread and waits for it; raises MachineEnded."""

    def exit_code(self) -> int | None:
        """The exit status once the machine has ended."""


def parse_address(text: str) -> tuple[str, int]:
    """`ADDR:PORT`, `:PORT` or `PORT`, as for gdb's `target remote`; loopback without ADDR.  Raises UserError."""
    host, _, port = text.removeprefix("tcp:").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UserError(f"--gdb {text!r} names no port.", "Write --gdb :1234 or --gdb ADDR:PORT.")
    return host or "127.0.0.1", int(port)


class GdbServer:
    """Listens from the constructor on (`port` tells where), serves from `start` to `close`."""

    def __init__(self, address: str, host: Host) -> None:
        self._host = host
        name, port = parse_address(address)
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
            self._listener = socket.socket(family, kind, protocol)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(place)
            self._listener.listen(4)
        except OSError as error:
            raise UserError(f"--gdb {address}: {error.strerror or error}.", "Take another port, or an address of this host.") from error
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"{name}:{self.port}"
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stops: deque[Stop] = deque()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="ringfence-gdb", daemon=True)
        self._thread.start()

    def told(self, stop: Stop) -> None:
        """The vCPU stands still.  Any thread."""
        self._stops.append(stop)
        self.wake()

    def wake(self) -> None:
        """Has the server look around: a stop, or the machine's end.  Any thread."""
        with contextlib.suppress(OSError):  # full: it will wake up anyhow; closed: too late
            os.write(self._wake_write, b"!")

    def close(self) -> None:
        """Ends the thread and the connection.  Not on the machine's thread."""
        if self._closing:
            return
        self._closing = True
        self.wake()
        if self._thread is not None:
            self._thread.join(_SEND_TIMEOUT_S + 5)
        self._listener.close()
        for end in (self._wake_read, self._wake_write):
            os.close(end)

    # ---- on the server's thread
    def _serve(self) -> None:
        while not self._closing:
            client = self._accept()
            if client is None:
                continue
            with client:
                client.settimeout(_SEND_TIMEOUT_S)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                session = _Session(self, client)
                try:
                    session.run()
                except (OSError, ProtocolError) as error:
                    if trace:
                        trace("connection ended: %s", error)
                except MachineEnded:
                    with contextlib.suppress(OSError):
                        session.tell_end()
                finally:
                    session.leave()

    def _accept(self) -> socket.socket | None:
        self._wait(self._listener)
        try:
            return self._listener.accept()[0]
        except OSError:
            return None

    def _wait(self, *readable: Any) -> set[Any]:
        """Which of these can be read, after at least one of them or a wake-up, which it clears."""
        with selectors.DefaultSelector() as selector:
            for one in (*readable, self._wake_read):
                selector.register(one, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select()}
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        return ready


class _Session:
    """One client from connection to leave-taking."""

    def __init__(self, server: GdbServer, client: socket.socket) -> None:
        self._server = server
        self._host = server._host
        self._client = client
        self._parser = Parser()
        self._packets: deque[Packet] = deque()
        self._last = b""
        self._running = False
        self._attached = False
        self.stub = Stub(self._host.target)

    def run(self) -> None:
        server, host = self._server, self._host
        server._stops.clear()
        host.call(host.target.attach)
        self._attached = True
        while not self.stub.ended:
            if self.tell_end() or server._closing:
                return
            if server._stops:
                stop = server._stops.popleft()
                if self._running:
                    self._running = False
                    if stop.text:
                        self._send(b"O" + (stop.text + "\n").encode().hex().encode())
                    self._send(self.stub.stop_reply(stop))
                else:  # it came to rest without having been sent off: on attaching
                    self.stub.stop_reply(stop)
                continue
            if self._packets and not self._running:
                self._packet(self._packets.popleft())
                continue
            ready = server._wait(self._client, server._listener)
            if server._listener in ready:
                self._refuse_another()
            if self._client in ready:
                self._receive()

    def tell_end(self) -> bool:
        code = self._host.exit_code()
        if code is None:
            return False
        self._send(b"W%02x" % (code & 0xFF))
        return True

    def _refuse_another(self) -> None:
        """A second debugger is turned away at once."""
        with contextlib.suppress(OSError):
            self._server._listener.accept()[0].close()

    def _receive(self) -> None:
        data = self._client.recv(65536)
        if not data:
            raise ProtocolError("the debugger hung up")
        for event in self._parser.feed(data):
            self._event(event)

    def _event(self, event: Event) -> None:
        match event:
            case Packet():
                if not self.stub.no_ack:
                    self._client.sendall(ACK if event.intact else NAK)
                if not event.intact:
                    if self.stub.no_ack:
                        raise ProtocolError("a damaged packet on a reliable line")
                    return
                if len(self._packets) >= _MAX_QUEUED:
                    raise ProtocolError("too many packets without waiting for answers")
                self._packets.append(event)
                if self._running:  # asked while the vCPU runs: it stops for that, as for Ctrl-C
                    self._host.call(self._host.target.interrupt)
            case Interrupt():
                if self._running:
                    self._host.call(self._host.target.interrupt)
            case Acknowledge():
                pass
            case Repeat():
                self._client.sendall(self._last)

    def _packet(self, packet: Packet) -> None:
        no_ack = self.stub.no_ack
        if trace:
            trace("< %s", packet.data[:200])
        answer = self._host.call(lambda: self.stub.handle(packet.data))
        if answer is None:
            self._running = not self.stub.ended
        else:
            self._send(answer)
        if self.stub.no_ack and not no_ack:
            self._last = b""

    def _send(self, data: bytes) -> None:
        if trace:
            trace("> %s", data[:200])
        self._last = frame(data)
        self._client.sendall(self._last)

    def leave(self) -> None:
        """The machine goes on without its debugger."""
        if self._attached and not self.stub.ended:
            with contextlib.suppress(MachineEnded):
                self._host.call(self._host.target.detach)
