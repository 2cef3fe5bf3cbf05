"""A guest in a child process, as a person would use it: start the command, wait for text, type, see how it ended."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.guest import cpus

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "ringfence", "run")


class GuestFailure(AssertionError):
    """What was expected did not come."""


class Session:
    """`ringfence run ARGUMENTS` with its console on pipes.  `module` is what Python runs."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None, module: str = "ringfence") -> None:
        paths = [str(REPOSITORY), (environment or {}).get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "run", *arguments, *cpus.for_command(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            bufsize=0,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._unread = b""
        self.transcript = b""

    @property
    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def _read(self, timeout_s: float) -> bytes | None:
        """Some bytes, b"" at the end of output, None when nothing came in time."""
        if not self._selector.select(timeout_s):
            return None
        data = os.read(self._output, 1 << 16)
        self._unread += data
        self.transcript += data
        return data

    def expect(self, wanted: bytes, timeout_s: float = 60) -> bytes:
        """Everything up to and including `wanted`."""
        deadline = time.monotonic() + timeout_s
        while wanted not in self._unread:
            data = self._read(max(0.0, deadline - time.monotonic()))
            if not data:
                why = "the machine ended" if data == b"" else f"{timeout_s:g} s went by"
                raise GuestFailure(f"{wanted!r} did not come: {why}.\n{self.story()}")
        before, _, self._unread = self._unread.partition(wanted)
        return before + wanted

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def ask(self, command: str, prompt: bytes = b"# ", timeout_s: float = 60) -> str:
        """What the command printed."""
        # The shell echoes and redraws its line; the marks are put together by the shell, so that no echo is taken for them.
        self.type(f"echo BEGIN''MARK; {command}; echo END''MARK")
        self.expect(b"BEGINMARK", timeout_s)
        text = self.expect(b"ENDMARK", timeout_s)[: -len(b"ENDMARK")]
        self.expect(prompt, timeout_s)
        return text.decode(errors="replace").replace("\r", "").removeprefix("\n")

    def end(self, timeout_s: float = 60) -> int:
        """Waits for the end of the machine; its exit status."""
        deadline = time.monotonic() + timeout_s
        while self._read(max(0.0, deadline - time.monotonic())):
            pass
        try:
            return self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise GuestFailure(f"the machine did not end within {timeout_s:g} s.\n{self.story()}") from error

    def pause(self, seconds: float) -> None:
        """Lets the guest work, reading what it prints."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """No chance to clean up."""
        self._process.kill()
        self._process.wait(10)

    def story(self) -> str:
        return f"--- console ---\n{self.transcript[-3000:].decode(errors='replace')}\n--- messages ---\n{self.errors[-3000:]}"

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._selector.close()
        self._errors.close()


def run(*arguments: str, timeout_s: float = 120, environment: dict[str, str] | None = None) -> tuple[int, bytes, str]:
    """Runs a machine to its end: exit status, console, messages."""
    with Session(*arguments, environment=environment) as session:
        status = session.end(timeout_s)
        return status, session.transcript, session.errors
