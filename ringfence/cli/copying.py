"""`ringfence cp`: files and folders into a running machine, or out of it."""

from __future__ import annotations

import queue
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ringfence.core.errors import UserError
from ringfence.core.units import format_size
from ringfence.machine import control_client as client
from ringfence.machine import files

_HELD_PIECES = 64  # of output that came before it was wanted
_SHOWN_BYTES = 1 << 22


class SocketCommand:
    """A command in a running machine, as `files.Command`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._output: queue.Queue[bytes | None] = queue.Queue(_HELD_PIECES)
        self._errors = bytearray()
        self._status: int | None = None
        self._lost = ""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            while True:
                kind, data = client.receive_frame(self._connection)
                if kind == client.STDOUT:
                    self._output.put(data)
                elif kind == client.STDERR:
                    self._errors += data
                elif kind == client.EXIT:
                    self._status = struct.unpack("<i", data)[0]
                    break
                else:
                    self._lost = data.decode(errors="replace")
                    break
        except (OSError, EOFError, ValueError):
            self._lost = "The machine ended before the copy was made."
        self._output.put(None)

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), client.MOST_FRAME_BYTES):
            self._send(client.STDIN, data[at : at + client.MOST_FRAME_BYTES])

    def close_input(self) -> None:
        self._send(client.STDIN_END)

    def _send(self, kind: int, data: bytes = b"") -> None:
        try:
            client.send_frame(self._connection, kind, data)
        except OSError as error:
            if self._status is None and not self._thread.is_alive():
                raise UserError(self._lost or "The machine ended before the copy was made.", "See how it ended.") from error

    def output(self) -> Iterator[bytes]:
        while (piece := self._output.get()) is not None:
            yield piece
        self._output.put(None)  # for whoever asks again

    def errors(self) -> bytes:
        self._thread.join()
        return bytes(self._errors)

    def wait(self) -> int:
        self._thread.join()
        self._connection.close()
        if self._status is None:
            raise UserError(self._lost.partition("\n")[0], "See how the machine ended where it was started.")
        return self._status


def copy(source: str, target: str) -> None:
    """Raises UserError."""
    from_guest, to_guest = _place(source), _place(target)
    if (from_guest is None) == (to_guest is None):
        raise UserError("One of the two paths must be in a machine.", "Write it as NAME:PATH; a path here with a colon as ./PATH.")
    name, path = from_guest or to_guest or ("", "")
    machine = client.find_machine(name)

    def start(words: list[str]) -> SocketCommand:
        return SocketCommand(client.open_command(machine, words, {}, None))

    shown = _Shown()
    if to_guest is not None:
        files.put(start, Path(source), path, shown)
    else:
        files.get(start, path, Path(target), shown)
    shown.end()


def _place(text: str) -> tuple[str, str] | None:
    """Machine and path, as in `NAME:PATH`; None for a path here."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name:
        return None
    return name, path or "."


class _Shown:
    """How much has been copied, in a terminal."""

    def __init__(self) -> None:
        self._next = _SHOWN_BYTES
        self._terminal = sys.stderr.isatty()

    def __call__(self, done_bytes: int) -> None:
        if self._terminal and done_bytes >= self._next:
            self._next = done_bytes + _SHOWN_BYTES
            print(f"\rringfence: {format_size(done_bytes >> 20 << 20)} copied\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal and self._next > _SHOWN_BYTES:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
