"""The user's terminal, or the pipes and files that stand in for it.

On a terminal every key goes to the guest, Ctrl-C too; Ctrl-] begins a command to the monitor, as in telnet.  From a pipe or
file all bytes pass through, and its end only ends the input.
"""

from __future__ import annotations

import errno
import os
import select
import termios
import time
import tty
import weakref
from collections.abc import Callable

from ringfence.backends.char.fd_thread import FdThread
from ringfence.backends.terminal_fd import SavedTerminal, open_writer

ESCAPE = 0x1D  # Ctrl-]
_HELP = b"\r\n[Ctrl-] q: stop the machine and leave;  Ctrl-] Ctrl-]: send Ctrl-] to the guest;  Ctrl-] ?: this help]\r\n"
_DEFAULT_SIZE = (80, 24)
_NO_ROOM_S = 0.01  # where poll(2) promises more than there is


class StdioConsole:
    """See `ringfence.backends.api.Char`.  `on_quit` is called on the input thread.

    The terminal is put into raw mode by `start` and given back by `close`, or else when the interpreter exits; whoever handles
    a deadly signal calls `close`.  `on_resize`, if set, is told columns and rows by `resized`, which a SIGWINCH handler calls.
    """

    def __init__(self, on_quit: Callable[[], None], input_fd: int = 0, output_fd: int = 1) -> None:
        self._on_quit = on_quit
        self._in = input_fd
        self._out = self._writer = output_fd
        if (own := open_writer(output_fd)) is not None:
            self._writer = own
            weakref.finalize(self, os.close, own)  # no sooner: `close` does not wait for a writer
        self.on_resize: Callable[[int, int], None] | None = None
        self._terminal = os.isatty(input_fd)
        self._settings = SavedTerminal(input_fd, termios.TCSADRAIN)
        self._escaped = False
        self._closed = False
        self._deaf = False  # nobody reads the output any more
        self._receive: Callable[[bytes], None] = lambda data: None
        self._thread = FdThread(input_fd, "console-input", lambda: select.POLLIN, self._readable)

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal; 80 and 24 where there is none."""
        for fd in (self._out, self._in):
            try:
                columns, rows = os.get_terminal_size(fd)
            except OSError:
                continue  # not a terminal
            if columns and rows:
                return columns, rows
        return _DEFAULT_SIZE

    def resized(self) -> None:
        if self.on_resize is not None:
            self.on_resize(*self.size())

    def start(self, receive: Callable[[bytes], None]) -> None:
        self._receive = receive
        if self._terminal:
            self._settings.save()
            # output stays unprocessed too: full-screen programs use a bare line feed to move down
            tty.setraw(self._in, termios.TCSADRAIN)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Waits while the terminal or pipe is full, but not longer than until `close`."""
        view = memoryview(data)
        poll = select.poll()
        poll.register(self._writer, select.POLLOUT)
        while view and not self._closed and not self._deaf:
            if not poll.poll(100):
                continue
            try:
                # a pipe that is ready takes this much without blocking
                view = view[os.write(self._writer, view[: select.PIPE_BUF]) :]
            except BlockingIOError:
                time.sleep(_NO_ROOM_S)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENOSPC):
                    raise
                self._deaf = True  # the reader has gone; the guest goes on without it

    def close(self) -> None:
        """From any thread, also from `on_quit`; may be called again."""
        self._closed = True
        self._thread.stop()
        self._settings.restore()

    def _readable(self, events: int) -> bool:
        try:
            data = os.read(self._in, 4096)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EBADF):
                raise
            return False  # the terminal has gone: the end of the input
        if data:
            data_for_guest = self._commands(data) if self._terminal else data
            if data_for_guest:
                self._receive(data_for_guest)
        return bool(data)

    def _commands(self, data: bytes) -> bytes:
        """Carries out what follows the escape key; returns the rest."""
        rest = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte in b"qQ":
                    self._on_quit()
                elif byte == ESCAPE:
                    rest.append(byte)
                else:
                    self.write(_HELP)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                rest.append(byte)
        return bytes(rest)
