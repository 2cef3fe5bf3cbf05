"""A command in the guest over the control socket: its streams as frames (control_client.py lists them)."""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

from ringfence.core.errors import UserError
from ringfence.machine.commands import GuestCommands
from ringfence.machine.control_client import EXIT, LOST, SIGNAL, STDERR, STDIN, STDIN_END, STDOUT, receive_frame, send_frame
from ringfence.machine.guest_process import GuestGone, GuestProcess, OutputStream

_SIGNALS = range(1, 65)


def serve_command(machine: GuestCommands, connection: socket.socket, request: dict[str, Any]) -> None:
    """To the command's end, or until the client goes away; closes the connection."""
    with connection, suppress(OSError):
        connection.settimeout(None)
        try:
            process = machine.popen(**_checked(request))
        except UserError as error:
            connection.sendall(json.dumps({"error": error.cause, "remedy": error.remedy}).encode() + b"\n")
            return
        with process:
            connection.sendall(json.dumps({"started": True}).encode() + b"\n")
            _Talk(process, connection).run()


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    command, environment, folder = request.get("command"), request.get("environment") or {}, request.get("folder")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise UserError("The command is no list of words.", "")
    if not isinstance(environment, dict) or not all(isinstance(value, str) for value in environment.values()):
        raise UserError("The environment is no table of texts.", "")
    if folder is not None and not isinstance(folder, str):
        raise UserError("The folder is no text.", "")
    return {"command": command, "environment": environment, "folder": folder}


class _Talk:
    def __init__(self, process: GuestProcess, connection: socket.socket) -> None:
        self._process = process
        self._connection = connection
        self._sending = threading.Lock()

    def run(self) -> None:
        threading.Thread(target=self._listen, name="control-input", daemon=True).start()
        errors = threading.Thread(target=self._forward, args=(STDERR, self._process.stderr), name="control-errors", daemon=True)
        errors.start()
        self._forward(STDOUT, self._process.stdout)
        errors.join()
        try:
            self._send(EXIT, struct.pack("<i", self._process.wait()))
        except GuestGone as error:
            self._send(LOST, f"{error.cause}\n{error.remedy}".encode())
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # ends the listening thread too

    def _send(self, kind: int, data: bytes) -> None:
        with self._sending:
            send_frame(self._connection, kind, data)

    def _forward(self, kind: int, stream: OutputStream) -> None:
        try:
            for piece in stream:
                self._send(kind, piece)
        except OSError:  # the client has gone: nobody wants the rest
            self._process.abandon()
            stream.read()

    def _listen(self) -> None:
        with suppress(OSError, EOFError, ValueError):
            while True:
                kind, data = receive_frame(self._connection)
                if kind == STDIN:
                    self._process.write(data)
                elif kind == STDIN_END:
                    self._process.close_input()
                elif kind == SIGNAL and len(data) == 1 and data[0] in _SIGNALS:
                    self._process.kill(data[0])
        if self._process.running:
            self._process.abandon()
