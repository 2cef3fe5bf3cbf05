"""A serial line whose other end is a Python program."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ringfence.core.units import MIB


class BufferChar:
    """See `ringfence.backends.api.Char`; the program uses `read` and `send`.  All methods may be called from any thread.

    Of output that the program does not read, the newest `limit_bytes` are kept.  What is sent before `start` waits for it.
    """

    def __init__(self, limit_bytes: int = 16 * MIB) -> None:
        self._limit_bytes = limit_bytes
        self._output = bytearray()
        self._early = bytearray()
        self._receive: Callable[[bytes], None] | None = None
        self._closed = False
        self._changed = threading.Condition()

    # --- the guest's end ---

    def write(self, data: bytes) -> None:
        with self._changed:
            self._output += data
            if len(self._output) > self._limit_bytes:
                del self._output[: len(self._output) - self._limit_bytes]
            self._changed.notify_all()

    def start(self, receive: Callable[[bytes], None]) -> None:
        with self._changed:
            self._receive = receive
            early = bytes(self._early)
            self._early.clear()
        if early:
            receive(early)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._receive = None
            self._changed.notify_all()

    # --- the program's end ---

    def read(self, timeout_s: float | None = 0.0) -> bytes:
        """All that has come since the last read; waits up to `timeout_s` for the first byte (None: until `close`)."""
        with self._changed:
            self._changed.wait_for(lambda: self._output or self._closed, timeout_s)
            data = bytes(self._output)
            self._output.clear()
            return data

    def send(self, data: bytes) -> None:
        """Bytes for the guest; without effect after `close`."""
        with self._changed:
            receive = self._receive
            if receive is None:
                if not self._closed:
                    self._early += data
                return
        receive(bytes(data))
