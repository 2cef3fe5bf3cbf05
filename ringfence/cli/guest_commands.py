"""`ringfence exec`, and the streams of a command in the guest in this process."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from ringfence.core.errors import UserError
from ringfence.machine import control_client as client

PIECE_BYTES = 64 << 10
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def execute(name: str | None, command: Sequence[str], environment: Sequence[str] = (), folder: str | None = None) -> int:
    """Runs a command in a running machine, with this process's streams; its exit status.  Raises UserError."""
    connection = client.open_command(client.find_machine(name), list(command), parse_environment(environment), folder)
    sending = threading.Lock()

    def send(kind: int, data: bytes = b"") -> None:
        with suppress(OSError), sending:  # the machine's end is told by what it sends, or does not
            client.send_frame(connection, kind, data)

    with connection, passing_signals(lambda number: send(client.SIGNAL, bytes((number,)))):
        pump_input(lambda data: send(client.STDIN, data), lambda: send(client.STDIN_END))
        while True:
            try:
                kind, data = client.receive_frame(connection)
            except (OSError, EOFError, ValueError) as error:
                raise UserError("The machine ended before the command did.", "See how it ended where it was started.") from error
            if kind in (client.STDOUT, client.STDERR):
                write_all(kind, data)
            elif kind == client.EXIT:
                return int(struct.unpack("<i", data)[0])
            elif kind == client.LOST:
                cause, _, remedy = data.decode(errors="replace").partition("\n")
                raise UserError(cause, remedy)


def parse_environment(words: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` each, or `NAME` for what it is here; raises UserError."""
    found: Mapping[str, str] = os.environ
    values = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and name not in found:
            raise UserError(f"--env {name}: there is no such variable here.", "Write --env NAME=VALUE.")
        values[name] = value if equals else found[name]
    return values


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def pump_input(send: Callable[[bytes], None], end: Callable[[], None]) -> None:
    """Standard input to its end, on a thread of its own."""

    def run() -> None:
        with suppress(OSError):  # closed: as if it had ended
            while data := os.read(0, PIECE_BYTES):
                send(data)
        end()

    threading.Thread(target=run, name="input", daemon=True).start()


@contextmanager
def passing_signals(send: Callable[[int], None]) -> Iterator[None]:
    """What would end this process goes to the command in the guest."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=send, args=(number,), daemon=True).start()  # a handler must not wait for a lock

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
