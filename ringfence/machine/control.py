"""A running machine's control socket: how other commands of the same user reach it.

    folder    $XDG_RUNTIME_DIR/ringfence, or ringfence-UID in the folder for temporary files; mode 0700
    socket    NAME.PID.sock there, a Unix stream socket of mode 0600; NAME is "machine" where the user gave none

A client sends one request, a line of JSON such as {"do": "screenshot"}, and gets one answer: a line of JSON and, where that has
"size_bytes", so many bytes after it.  {"error": "..."} tells why there is no answer.  Requests:

    status        {"name", "pid", "board", "running"}
    screenshot    {"width", "height", "size_bytes"}, then a PNG
    text          {"size_bytes"}, then the screen's text as UTF-8; {"size_bytes": 0} where there is none
    exec          with "command", a list of words, "environment" and "folder": {"started": true}, then frames as control_client.py
                  lists them, in both directions, on a thread of its own; the command is killed when the client goes away
"""

from __future__ import annotations

import io
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringfence.backends.char.fd_thread import FdThread
from ringfence.core.errors import RingfenceError, UserError
from ringfence.core.late import LateModule
from ringfence.machine.control_client import REQUEST_BYTES, Answer, control_folder
from ringfence.machine.machine import Machine

if TYPE_CHECKING:
    from ringfence.machine import control_exec
else:  # once somebody wants it
    control_exec = LateModule("ringfence.machine.control_exec")

_TALK_S = 5.0  # for a client to say what it wants, and to take each piece of the answer
_NO_NAME = "machine"


class ControlSocket:
    """Serves a machine, one request at a time, until `close`.  `path` is None where no socket could be made; the machine runs anyway."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._requests: dict[str, Callable[[], Answer]] = {"status": self._status, "screenshot": self._screenshot, "text": self._text}
        self.path: Path | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            path = control_folder(make=True) / f"{machine.spec.name or _NO_NAME}.{os.getpid()}.sock"
            with suppress(FileNotFoundError):
                path.unlink()
            self._listener.bind(str(path))
            path.chmod(0o600)  # the folder has kept others out so far
            self._listener.listen(64)
        except (OSError, UserError):
            self._listener.close()
            return
        self.path = path
        self._thread = FdThread(self._listener.fileno(), "control", lambda: select.POLLIN, self._ready)
        self._thread.start()

    def close(self) -> None:
        if self.path is None:
            return
        self._thread.stop()
        self._listener.close()
        with suppress(FileNotFoundError):
            self.path.unlink()
        self.path = None

    def _ready(self, events: int) -> bool:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return True
        # A client that goes away, or says nothing, or nonsense, is its own problem.
        with connection, suppress(OSError, ValueError):
            connection.settimeout(_TALK_S)
            if _peer_uid(connection) in (os.getuid(), 0):
                self._serve(connection)
        return True

    def _serve(self, connection: socket.socket) -> None:
        head: dict[str, Any]
        try:
            request = json.loads(_line(connection, time.monotonic() + _TALK_S))
            wanted = request.get("do") if isinstance(request, dict) else None
            if wanted == "exec":
                arguments = (self._machine, connection.dup(), request)
                threading.Thread(target=control_exec.serve_command, args=arguments, name="control-exec", daemon=True).start()
                return
            if not isinstance(wanted, str) or wanted not in self._requests:
                raise RingfenceError(f"the request {wanted!r} is not known")
            head, data = self._requests[wanted]()
        except (RingfenceError, json.JSONDecodeError) as error:
            head, data = {"error": str(error)}, b""
        connection.sendall(json.dumps(head).encode() + b"\n" + data)

    def _status(self) -> Answer:
        spec = self._machine.spec
        return {"name": spec.name, "pid": os.getpid(), "board": spec.board, "running": self._machine.running}, b""

    def _screenshot(self) -> Answer:
        image = self._machine.screen()
        file = io.BytesIO()
        image.save(file, "PNG")
        data = file.getvalue()
        return {"width": image.width, "height": image.height, "size_bytes": len(data)}, data

    def _text(self) -> Answer:
        data = (self._machine.screen_text() or "").encode()
        return {"size_bytes": len(data)}, data


def _line(connection: socket.socket, deadline: float) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(4096)
        data += part
        if not part or len(data) > REQUEST_BYTES or time.monotonic() > deadline:
            raise ValueError("no request")
    return data


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid
