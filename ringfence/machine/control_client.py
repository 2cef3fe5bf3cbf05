"""The other end of a running machine's control socket (control.py): finding machines, asking them, running commands in them."""

from __future__ import annotations

import json
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ringfence.core.errors import UserError
from ringfence.core.paths import runtime_folder

REQUEST_BYTES = 256 * 1024
_TALK_S = 5.0
_ANSWER_S = 60.0
_MOST_BYTES = 1 << 30

# Frames, once a command runs: kind, bytes that follow (little-endian).
FRAME = struct.Struct("<BI")
MOST_FRAME_BYTES = 1 << 20
STDIN, STDIN_END, SIGNAL = 0, 1, 2  # to the machine; a signal is its number in one byte
STDOUT, STDERR, EXIT, LOST = 1, 2, 3, 4  # from it; an exit status is an i32, LOST has the reason as text

Answer = tuple[dict[str, Any], bytes]


class RunningMachine(NamedTuple):
    name: str
    pid: int
    path: Path


def running_machines() -> list[RunningMachine]:
    """This user's machines that have a control socket and answer there.  Sockets that dead ones left are removed."""
    found = []
    for path in sorted(control_folder(make=False).glob("*.sock")):
        name, _, pid = path.stem.rpartition(".")
        if not name or not pid.isdigit():
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_TALK_S)
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                with suppress(OSError):
                    path.unlink()
                continue
            except OSError:
                continue
        found.append(RunningMachine(name, int(pid), path))
    return found


def find_machine(wanted: str | None) -> RunningMachine:
    """The machine of this name or process, or the only one; raises UserError."""
    machines = running_machines()
    names = ", ".join(f"{machine.name} ({machine.pid})" for machine in machines)
    if not machines:
        raise UserError("No machine of yours is running.", "Start one with `ringfence run`.")
    fitting = [machine for machine in machines if wanted is None or wanted in (machine.name, str(machine.pid))]
    if not fitting:
        raise UserError(f"No machine {wanted!r} is running.", f"These are: {names}.")
    if len(fitting) > 1:
        raise UserError("Several machines fit.", f"Say which, by name or process: {names}.")
    return fitting[0]


def ask(machine: RunningMachine, request: str) -> Answer:
    """One request; raises UserError when the machine cannot answer it."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(machine.path))
            connection.sendall(json.dumps({"do": request}).encode() + b"\n")
            file = connection.makefile("rb")
            head = json.loads(file.readline(REQUEST_BYTES))
            if "error" in head:
                raise UserError(f"The machine {machine.name} cannot do it: {head['error']}.", "See `ringfence run --help` on --display.")
            size_bytes = int(head.get("size_bytes", 0))
            data = file.read(size_bytes) if 0 <= size_bytes < _MOST_BYTES else b""
    except (OSError, ValueError) as error:
        raise UserError(f"The machine {machine.name} ({machine.pid}) does not answer: {error}.", "It may just be ending.") from error
    if len(data) != size_bytes:
        raise UserError(f"The machine {machine.name} ({machine.pid}) ended while it answered.", "Try again while it runs.")
    return head, data


def open_command(machine: RunningMachine, command: list[str], environment: dict[str, str], folder: str | None) -> socket.socket:
    """A connection on which frames follow; raises UserError when the command cannot be started."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(str(machine.path))
        request = {"do": "exec", "command": command, "environment": environment, "folder": folder}
        connection.sendall(json.dumps(request).encode() + b"\n")
        head = json.loads(_answer_line(connection))
    except (OSError, ValueError) as error:
        connection.close()
        raise UserError(f"The machine {machine.name} ({machine.pid}) does not answer: {error}.", "It may just be ending.") from error
    if "error" in head:
        connection.close()
        raise UserError(head["error"], head.get("remedy", ""))
    return connection


def _answer_line(connection: socket.socket) -> bytes:
    """Byte by byte: frames may follow."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        line += byte
        if not byte or len(line) > REQUEST_BYTES:
            raise ValueError("no answer")
    return line


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Raises EOFError where the other end goes away before."""
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 18))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def receive_frame(connection: socket.socket) -> tuple[int, bytes]:
    """Raises EOFError at the end, ValueError for nonsense."""
    kind, size = FRAME.unpack(receive_exactly(connection, FRAME.size))
    if size > MOST_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    return kind, receive_exactly(connection, size)


def send_frame(connection: socket.socket, kind: int, data: bytes = b"") -> None:
    connection.sendall(FRAME.pack(kind, len(data)) + data)


def control_folder(make: bool) -> Path:
    folder = runtime_folder()
    if make:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        status = folder.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise UserError(f"The folder {folder} is not this user's alone.", f"Remove it, or: chmod 700 {folder}.")
    return folder
