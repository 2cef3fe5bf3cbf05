"""A machine's console as byte streams, for programs.

What the guest wrote is kept until it is read; `wait_for` is how a program follows a guest: spawn, wait for the prompt,
type, expect.  All methods may be called from any thread but the machine's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ringfence.core.errors import RingfenceError
from ringfence.core.units import MIB

_SHOWN_BYTES = 600


class ConsoleTimeout(RingfenceError):
    """What was waited for did not come in time, or cannot come any more; `seen` is what came instead."""

    def __init__(self, what: str, seen: bytes) -> None:
        super().__init__(f"{what}; the last output was:\n{seen[-_SHOWN_BYTES:].decode(errors='replace')}")
        self.seen = seen


class Console:
    """Implements `backends.api.Char`: the guest's end calls `write` and `start`, a program uses the others."""

    def __init__(self, limit_bytes: int = 16 * MIB) -> None:
        self._limit_bytes = limit_bytes
        self._unread = bytearray()
        self._transcript = bytearray()
        self._changed = threading.Condition()
        self._receive: Callable[[bytes], None] | None = None
        self._closed = False

    # -- the guest's end

    def write(self, data: bytes) -> None:
        with self._changed:
            for store in (self._unread, self._transcript):
                store += data
                # A guest that prints for ever must not take the host's memory: the oldest output is forgotten.
                if len(store) > self._limit_bytes:
                    del store[: len(store) - self._limit_bytes // 2]
            self._changed.notify_all()

    def start(self, receive: Callable[[bytes], None]) -> None:
        self._receive = receive

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # -- the program's end

    @property
    def transcript(self) -> bytes:
        """Everything that the guest wrote so far (the last 16 MiB at most), read or not."""
        with self._changed:
            return bytes(self._transcript)

    def send(self, data: bytes | str) -> None:
        """Types `data` at the guest's keyboard; raises RingfenceError before the machine was started."""
        if self._receive is None:
            raise RingfenceError("the machine has not been started, nobody reads its console")
        self._receive(data.encode() if isinstance(data, str) else bytes(data))

    def read(self, timeout_s: float | None = 0.0) -> bytes:
        """What has come since the last read; waits up to `timeout_s` for the first byte, None: for ever.  Empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._unread or self._closed, timeout_s)
            data = bytes(self._unread)
            self._unread.clear()
            return data

    def wait_for(self, wanted: bytes, timeout_s: float) -> bytes:
        """Reads up to and including the first `wanted` and returns that; raises ConsoleTimeout."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            searched = 0
            while (found := self._unread.find(wanted, searched)) < 0:
                searched = max(0, len(self._unread) - len(wanted) + 1)
                if self._closed:
                    raise ConsoleTimeout(f"the machine ended before it wrote {wanted!r}", bytes(self._unread))
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ConsoleTimeout(f"the machine did not write {wanted!r} within {timeout_s:g} s", bytes(self._unread))
                before = len(self._unread)
                self._changed.wait(left)
                if len(self._unread) < before:  # somebody read, or old output was dropped
                    searched = 0
            end = found + len(wanted)
            data = bytes(self._unread[:end])
            del self._unread[:end]
            return data

    def ask(self, command: str, prompt: bytes, timeout_s: float) -> str:
        """Types a command line, waits for the next `prompt` and returns what was printed between, without the echo."""
        self.send(command + "\n")
        text = self.wait_for(prompt, timeout_s)[: -len(prompt)].decode(errors="replace").replace("\r", "")
        return text.split("\n", 1)[1] if "\n" in text else ""
