"""Gives the terminal back even when this process dies without a chance to do so (SIGKILL, a crash in native code).

A child, forked before any thread exists, waits for the end of a pipe whose other end only this process holds.  If the pipe
ends before the good word came, the child puts the terminal's settings back as they were.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from types import TracebackType

_GOOD_END = b"."
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN)


class TerminalGuard:
    """Does nothing when standard input is no terminal."""

    def __init__(self) -> None:
        self._pipe: int | None = None
        self._child = 0

    def __enter__(self) -> TerminalGuard:
        if not sys.stdin.isatty():
            return self
        terminal = sys.stdin.fileno()
        saved = termios.tcgetattr(terminal)
        reader, writer = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            _guard(terminal, saved, reader, writer)
        os.close(reader)
        self._pipe = writer
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pipe is None:
            return
        os.write(self._pipe, _GOOD_END)
        os.close(self._pipe)
        os.waitpid(self._child, 0)


def _guard(terminal: int, saved: list[int | list[bytes | int]], reader: int, writer: int) -> None:
    try:
        os.close(writer)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        # Whoever reads our output through a pipe must see its end as soon as the machine's process has ended.
        null = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        if os.read(reader, 1) != _GOOD_END:
            termios.tcsetattr(terminal, termios.TCSANOW, saved)
    finally:
        os._exit(0)
