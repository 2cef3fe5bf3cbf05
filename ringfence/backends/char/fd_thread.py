"""A thread that waits for one file descriptor and can be woken and stopped at once."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable


class FdThread:
    """Calls `ready(events)` on its own thread whenever poll(2) reports one of `events()`; ends when `ready` returns False."""

    def __init__(self, fd: int, name: str, events: Callable[[], int], ready: Callable[[int], bool]) -> None:
        self._fd = fd
        self._events = events
        self._ready = ready
        self._stopping = False
        self._ended = False
        self._stop_lock = threading.RLock()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Makes the thread ask for `events()` again.  From any thread; without effect when the thread has ended."""
        with self._stop_lock:
            try:
                if not self._ended:
                    os.write(self._wake_write, b"\0")
            except BlockingIOError:
                return  # the pipe is full of wake-ups already

    def stop(self) -> None:
        """Returns when the thread has ended; when called on that thread, it ends after `ready` returns."""
        with self._stop_lock:
            if self._stopping:
                return
            self._stopping = True
            if self._thread.ident is None:
                self._close_pipe()
                return
            self.wake()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _close_pipe(self) -> None:
        self._ended = True
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        going = True
        try:
            while going and not self._stopping:
                poll.register(self._fd, self._events())
                for fd, events in poll.poll():
                    if fd == self._wake_read:
                        os.read(self._wake_read, 4096)
                    elif not self._stopping:
                        going = self._ready(events)
        finally:
            with self._stop_lock:
                self._close_pipe()
