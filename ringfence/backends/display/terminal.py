"""A guest's screen and keyboard in the user's terminal.

The alternate screen shows the guest; every key goes to it, Ctrl-C too.  Ctrl-] begins a command to the monitor, as on the serial
line (see `backends.char.stdio`): q leaves, Ctrl-] sends itself, d sends Ctrl-Alt-Delete, F1 to F12 go with Ctrl-Alt.
"""

from __future__ import annotations

import errno
import os
import select
import termios
import threading
import time
import tty
from collections.abc import Callable
from contextlib import suppress

from ringfence.backends.api import Frame, TextScreen
from ringfence.backends.display.api import Seat
from ringfence.backends.display.keysyms import LEFT_ALT, LEFT_CTRL
from ringfence.backends.display.pace import Pace
from ringfence.backends.display.terminal_keys import KeyDecoder, Stroke
from ringfence.backends.display.terminal_paint import ENTER, LEAVE, Painter
from ringfence.backends.terminal_fd import SavedTerminal, open_writer
from ringfence.core.errors import UserError

ESCAPE = 0x1D  # Ctrl-]
_DELETE, _RIGHT_BRACE = 111, 27
_NOTE = " Ctrl-] then  q: stop the machine and leave   d: Ctrl-Alt-Del   F1-F12: Ctrl-Alt-F1...   Ctrl-]: send Ctrl-]"
_ESCAPE_S = 0.05  # a sequence's bytes come closer together
_NO_ROOM_S = 0.01  # where poll(2) promises more than there is
_LEAVE_S = 3.0  # a terminal that takes nothing any more is left as it is
_DEFAULT_SIZE = (80, 24)


class TerminalDisplay:
    """Raises UserError when there is no terminal.  `on_quit` is called on the display's own thread."""

    def __init__(self, on_quit: Callable[[], None], input_fd: int = 0, output_fd: int = 1, many_colors: bool = True) -> None:
        if not (os.isatty(input_fd) and os.isatty(output_fd)):
            raise UserError("--display terminal: input or output is no terminal.", "Run it in one, or use --display vnc or none.")
        self._on_quit = on_quit
        self._in, self._out = input_fd, output_fd
        self._own_out = open_writer(output_fd)
        self._painter = Painter(many_colors)
        self._keys = KeyDecoder()
        self._commanding = False
        self._settings = SavedTerminal(input_fd, termios.TCSANOW)  # draining may never end
        self._lock = threading.Lock()
        self._arrived: TextScreen | Frame | None = None
        self._waiting = False
        self._last: TextScreen | Frame | None = None
        self._shown_as: tuple[tuple[int, int], str] | None = None  # size and note
        self._pace = Pace()
        self._closing = False
        self._gone = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)

    def start(self, seat: Seat) -> None:
        self._seat = seat
        self._settings.save()
        tty.setraw(self._in, termios.TCSADRAIN)
        self._thread.start()

    def close(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_LEAVE_S)
        self._settings.restore()
        with self._lock:
            if not self._thread.is_alive():
                for fd in (self._wake_read, self._wake_write, self._own_out):
                    if fd is not None:
                        os.close(fd)
            self._wake_write = -1

    # -- the thread

    def _run(self) -> None:
        self._write(ENTER)
        try:
            while not self._closing:
                self._turn()
        finally:
            self._write(LEAVE)

    def _turn(self) -> None:
        if not self._waiting and not self._pace.left_s():
            self._waiting = True
            self._pace.looks_now()
            self._seat.read(self._read)
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if not self._gone:
            poll.register(self._in, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(self._patience_s() * 1000)}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._in in ready:
            self._type()
        elif self._keys.waiting:
            self._strike(self._keys.flush())
        self._show()

    def _patience_s(self) -> float:
        if self._keys.waiting:
            return _ESCAPE_S
        return 1.0 if self._waiting else self._pace.left_s()

    def _read(self, seen: TextScreen | Frame) -> None:
        """On the device thread."""
        with self._lock:
            self._arrived = seen
            self._wake()

    def _wake(self) -> None:
        """With the lock held."""
        if self._wake_write >= 0:
            with suppress(BlockingIOError):
                os.write(self._wake_write, b"\0")

    def _show(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, None
        if arrived is not None:
            self._waiting = False
            self._pace.saw(arrived != self._last)
        size, note = self._size(), _NOTE if self._commanding else ""
        changed = arrived is not None and arrived != self._last
        if changed:
            self._last = arrived
        if self._last is not None and (changed or (size, note) != self._shown_as):
            self._shown_as = (size, note)
            self._write(self._painter.paint(self._last, size, note))

    def _size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self._out)
        except OSError:
            return _DEFAULT_SIZE
        return (columns, rows) if columns and rows else _DEFAULT_SIZE

    # -- keys

    def _type(self) -> None:
        try:
            data = os.read(self._in, 4096)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EBADF):
                raise
            data = b""
        if not data:
            self._gone = True  # the terminal; the guest goes on without it
            return
        self._pace.hurry()
        for byte in data:
            if byte == ESCAPE and not self._commanding:
                self._strike(self._keys.flush())
                self._commanding = True
            elif self._commanding and not self._keys.waiting and byte != 0x1B:
                self._commanding = False
                self._command(byte)
            else:
                self._strike(self._keys.feed(bytes([byte])))

    def _command(self, byte: int) -> None:
        if byte in b"qQ":
            self._on_quit()
        elif byte in b"dD":
            self._strike([(LEFT_CTRL, LEFT_ALT, _DELETE)])
        elif byte == ESCAPE:
            self._strike([(LEFT_CTRL, _RIGHT_BRACE)])

    def _strike(self, strokes: list[Stroke]) -> None:
        for stroke in strokes:
            if self._commanding:
                self._commanding = False
                if len(stroke) > 1 or not (59 <= stroke[0] <= 68 or stroke[0] in (87, 88)):
                    continue  # no command; Escape ends the menu
                stroke = (LEFT_CTRL, LEFT_ALT, *stroke)
            for code in stroke:
                self._seat.key(code, True)
            for code in reversed(stroke):
                self._seat.key(code, False)

    # -- the terminal

    def _write(self, text: str) -> None:
        """Waits while the terminal takes nothing, but not longer than until `close`."""
        view = memoryview(text.encode(errors="replace"))
        out = self._out if self._own_out is None else self._own_out
        poll = select.poll()
        poll.register(out, select.POLLOUT)
        patience = 5  # of the last words, after which a terminal that is held (Ctrl-S) is left as it is
        while view and not self._gone and patience:
            if not poll.poll(100):
                patience -= self._closing
                continue
            try:
                view = view[os.write(out, view[:1024]) :]
            except BlockingIOError:
                time.sleep(_NO_ROOM_S)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                    raise
                self._gone = True
