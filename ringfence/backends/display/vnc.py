"""A VNC server: sockets, threads and the pace of pictures around `rfb.Session`.

One thread serves every client.  It looks at the screen only while a client waits for something new, at most 30 times a second,
and less and less often while nothing changes; with nobody connected it sleeps.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from contextlib import suppress

from ringfence.backends.api import Frame
from ringfence.backends.display.api import Seat
from ringfence.backends.display.options import VncOptions
from ringfence.backends.display.pace import Pace
from ringfence.backends.display.pixels import Rgb, all_tiles, as_array, changed_tiles
from ringfence.backends.display.rfb import ProtocolError, Session
from ringfence.core.errors import UserError
from ringfence.core.trace import tracer

MOST_CLIENTS = 16
_trace = tracer("vnc")
_FIRST_SIZE = (640, 480)  # told to a client that comes before the first picture
_HANDSHAKE_S = 30.0  # a person types the password in this time
_STUCK_S = 60.0
_READ_BYTES = 16 * 1024
_BLINKING_TILES = 2  # so little changes by itself, where a cursor blinks
_FULL_BYTES = 1 << 20  # who has so much to take first is not heard
_FAILURES, _FAILURES_S = 8, 60.0  # so many wrong passwords in so long, and nobody is let in for the rest of it


class _Client:
    def __init__(self, connection: socket.socket, session: Session) -> None:
        self.socket = connection
        self.session = session
        self.since = self.moved = time.monotonic()  # connected; bytes went out, or there were none to send
        self.lost = False

    def fileno(self) -> int:
        return self.socket.fileno()


class VncServer:
    """Listens from construction on; raises UserError where that cannot be.  `address` is where clients connect."""

    def __init__(self, options: VncOptions, name: str = "Ringfence") -> None:
        self._options = options
        self._name = name
        self._listener = _listen(options.host, options.port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._clients: list[_Client] = []
        self._failures: list[float] = []
        self._lock = threading.Lock()  # of what the device thread leaves here
        self._arrived: Frame | None = None
        self._waiting = False  # for a picture that was asked for
        self._last: Frame | None = None
        self._picture: Rgb | None = None
        self._pace = Pace()
        self._closing = False
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="vnc", daemon=True)

    def start(self, seat: Seat) -> None:
        self._seat = seat
        self._thread.start()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._closing = True
        if self._thread.ident is not None:
            self._wake()
            self._thread.join()
        for client in list(self._clients):
            self._drop(client, "the machine has gone")
        self._listener.close()
        self._selector.close()
        with self._lock:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_write = -1

    # -- the thread

    def _serve(self) -> None:
        while not self._closing:
            for key, events in self._selector.select(self._patience_s()):
                if isinstance(key.fileobj, _Client):
                    self._talk(key.fileobj, events)
                elif key.fd == self._wake_read:
                    os.read(self._wake_read, 4096)
                else:
                    self._accept()
            self._show()
            for client in list(self._clients):
                self._after_turn(client)

    def _patience_s(self) -> float | None:
        """How long nothing can happen by itself."""
        if not self._clients:
            return None
        if self._anyone_waits() and not self._waiting:
            return self._pace.left_s()
        return 1.0

    def _anyone_waits(self) -> bool:
        return any(client.session.wants_picture and not client.session.out for client in self._clients)

    def _show(self) -> None:
        """Spreads a picture that has arrived, and asks for the next one when it is time."""
        with self._lock:
            arrived, self._arrived = self._arrived, None
        if arrived is not None:
            self._waiting = False
            if arrived.width and arrived.height:  # in the midst of a change of mode there may be nothing
                self._spread(arrived)
        if self._picture is not None:
            for client in self._clients:
                if client.session.wants_picture and not client.session.out:
                    client.session.update(self._picture)
        if self._anyone_waits() and not self._pace.left_s():
            self._look()

    def _look(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._pace.looks_now()
            self._seat.look(self._looked)

    def _spread(self, frame: Frame) -> None:
        last, before, self._last = self._last, self._picture, frame
        if before is not None and last == frame:
            self._pace.saw(False)
            return
        picture = self._picture = as_array(frame)
        if before is not None and before.shape == picture.shape:
            tiles = changed_tiles(before, picture)
        else:
            tiles = all_tiles(frame.width, frame.height, True)
        self._pace.saw(int(tiles.sum()) > _BLINKING_TILES)
        for client in self._clients:
            client.session.changed(tiles)

    def _looked(self, frame: Frame) -> None:
        """On the device thread."""
        with self._lock:
            self._arrived = frame
            if self._wake_write >= 0:
                self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._wake_write, b"\0")

    # -- clients

    def _accept(self) -> None:
        try:
            connection, peer = self._listener.accept()
        except OSError:
            return  # it has gone again, or we have no descriptor for it
        connection.setblocking(False)
        now = time.monotonic()
        self._failures = [then for then in self._failures if now - then < _FAILURES_S]
        if len(self._clients) >= MOST_CLIENTS or len(self._failures) >= _FAILURES:
            connection.close()
            return
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        session = Session(
            self._seat, self._name, self._options.password, self._size, lambda shared: self._let_in(client, shared), self._denied
        )
        client = _Client(connection, session)
        self._clients.append(client)
        self._selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
        if len(self._clients) == 1:
            self._picture = None  # it is from long ago
            self._look()
        if _trace:
            _trace("%s is connected", peer)

    def _size(self) -> tuple[int, int]:
        with self._lock:
            frame = self._arrived or self._last
        return (frame.width, frame.height) if frame is not None and frame.width and frame.height else _FIRST_SIZE

    def _denied(self) -> None:
        self._failures.append(time.monotonic())

    def _let_in(self, client: _Client, shared: bool) -> None:
        """RFC 6143, 7.3.1: who does not share is alone."""
        self._pace.hurry()
        for other in self._clients:
            if not shared and other is not client and other.session.ready:
                other.lost = True

    def _talk(self, client: _Client, events: int) -> None:
        session = client.session
        try:
            if events & selectors.EVENT_READ and len(session.out) < _FULL_BYTES:
                data = client.socket.recv(_READ_BYTES)
                if not data:
                    client.lost = True
                    return
                session.feed(data)
                if session.typed:
                    session.typed = False
                    self._pace.hurry()
        except BlockingIOError:
            pass
        except (ProtocolError, OSError) as error:
            client.lost = True
            if _trace:
                _trace("%s", error)

    def _after_turn(self, client: _Client) -> None:
        """Sends what can be sent, and drops who has gone, does not come in, or does not take what is sent."""
        out, now = client.session.out, time.monotonic()
        try:
            while out and (sent := client.socket.send(memoryview(out)[:262144].tobytes())):
                del out[:sent]
                client.moved = now
        except BlockingIOError:
            pass
        except OSError:
            client.lost = True
        if not out:
            client.moved = now
        late = not client.session.ready and now - client.since > _HANDSHAKE_S
        if client.lost or late or now - client.moved > _STUCK_S:
            self._drop(client, "lost" if client.lost else "too slow")
            return
        events = selectors.EVENT_WRITE if out else 0
        if len(out) < _FULL_BYTES:
            events |= selectors.EVENT_READ
        self._selector.modify(client, events)

    def _drop(self, client: _Client, why: str) -> None:
        if _trace:
            _trace("a client has gone: %s", why)
        self._selector.unregister(client)
        self._clients.remove(client)
        client.session.leave()
        client.socket.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MOST_CLIENTS)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"--display vnc: cannot listen at {host}:{port}: {error.strerror}.", "Choose another with vnc=ADDR:PORT."
        ) from error
    listener.setblocking(False)
    return listener
