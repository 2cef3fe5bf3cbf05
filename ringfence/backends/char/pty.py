"""A pseudo-terminal: `screen`, `minicom` or a program attaches to `path` whenever it likes.

The slave is held open here, or its raw mode would be lost whenever the last user detaches and the guest would hear its own
output as an echo.  The guest never waits: what nobody reads is kept up to a limit, the newest of it.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import tty
from collections.abc import Callable

from ringfence.backends.char.fd_thread import FdThread
from ringfence.core.errors import UserError
from ringfence.core.units import KIB

BACKLOG_BYTES = 256 * KIB


class PtyChar:
    """See `ringfence.backends.api.Char`.  `path` is what to attach to."""

    def __init__(self) -> None:
        try:
            self._master, self._slave = os.openpty()
        except OSError as error:
            raise UserError(f"The host has no pseudo-terminal left: {error.strerror}.", "Use another kind of serial line.") from error
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._closed = False
        self._receive: Callable[[bytes], None] = lambda data: None
        self._thread = FdThread(self._master, "console-pty", self._events, self._ready)

    def write(self, data: bytes) -> None:
        with self._lock:
            if self._closed:
                return
            waiting = bool(self._backlog)
            self._backlog += data
            if not waiting:
                self._drain()
            if len(self._backlog) > BACKLOG_BYTES:
                del self._backlog[: len(self._backlog) - BACKLOG_BYTES]
            if self._backlog and not waiting:
                self._thread.wake()

    def start(self, receive: Callable[[bytes], None]) -> None:
        self._receive = receive
        self._thread.start()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._drain()
        self._thread.stop()
        os.close(self._slave)
        os.close(self._master)

    def _drain(self) -> None:
        try:
            while self._backlog:
                del self._backlog[: os.write(self._master, self._backlog)]
        except BlockingIOError:
            return

    def _events(self) -> int:
        with self._lock:
            return select.POLLIN | (select.POLLOUT if self._backlog else 0)

    def _ready(self, events: int) -> bool:
        if events & select.POLLOUT:
            with self._lock:
                self._drain()
        if events & select.POLLIN:
            try:
                data = os.read(self._master, 4096)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return False
            if data:
                self._receive(data)
        return True
