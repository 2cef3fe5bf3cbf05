"""Writing to a terminal without ever waiting inside of write(2).

A terminal that poll(2) calls ready may have room for less than what is written; the writer then waits in the kernel, and since
Linux 6.4 whoever changes the terminal's settings (TCSADRAIN) waits for the writer.  O_NONBLOCK on the user's own descriptor is
no way out: all programs that share it would get it too.
"""

from __future__ import annotations

import atexit
import errno
import os
import termios
import threading
from typing import Any


def open_writer(fd: int) -> int | None:
    """Another descriptor of the terminal `fd`, to be closed, that never blocks a writer.

    None where it is no terminal, or one that may not be opened (it belongs to somebody else, after su(1) for instance).
    """
    if not os.isatty(fd):
        return None
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


class SavedTerminal:
    """Settings of the terminal `fd`, to be put back; `when` is termios.TCSANOW or TCSADRAIN."""

    def __init__(self, fd: int, when: int) -> None:
        self._fd = fd
        self._when = when
        self._saved: list[Any] | None = None
        self._lock = threading.Lock()

    def save(self) -> None:
        """From now on they are put back at the process's end, if not before."""
        self._saved = termios.tcgetattr(self._fd)
        atexit.register(self.restore)

    def restore(self) -> None:
        """Once, whoever calls first, on any thread."""
        with self._lock:
            saved, self._saved = self._saved, None
        if saved is None:
            return
        atexit.unregister(self.restore)
        try:
            termios.tcsetattr(self._fd, self._when, saved)
        except termios.error as error:
            if error.args[0] != errno.EIO:  # the terminal itself has gone
                raise
