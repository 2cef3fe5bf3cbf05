"""Commands in the guest, for programs of the host's.

    with machine.popen(["sort"]) as process:
        process.write(b"b\\na\\n")
        process.close_input()
        for piece in process.stdout:
            print(piece)
        process.wait(timeout_s=10)

They go through the guest's agent (`agent.py`); `commands.py` has the methods of a machine.  Any thread may use what is here.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from ringfence.core.errors import UserError
from ringfence.core.record import Record
from ringfence.machine.agent import GuestAgent, Job
from ringfence.machine.executor import DeviceThread

MAX_WAITING_BYTES = 1 << 20  # of a stream, in either direction, before the sender is held up
INPUT_PIECE_BYTES = 64 << 10
KILL, TERMINATE, INTERRUPT = 9, 15, 2
_AFTER_KILL_S = 5.0


class GuestGone(UserError):
    """The machine, or the agent in it, ended before the command did."""


class NoAgent(UserError):
    """Nobody in the guest takes commands."""


class CommandTimeout(UserError):
    """The command took longer than it was given, and was killed in the guest.  `stdout` and `stderr` are what it had printed."""

    def __init__(self, cause: str, remedy: str, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__(cause, remedy)
        self.stdout = stdout
        self.stderr = stderr


class Result(Record):
    """How a command ended: its exit status (128 and the signal's number after a signal) and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


class OutputStream:
    """What the command prints, piece by piece: iterate over it, or `read` it all.  Whoever does not read holds the command up."""

    def __init__(self, changed: threading.Condition, go_on: Callable[[], None]) -> None:
        self._changed = changed
        self._go_on = go_on
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._full = False
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self.next()) is not None:
            yield piece

    def next(self, timeout_s: float | None = None) -> bytes | None:
        """The next piece; None at the end, b"" when none came in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._pieces or self._ended, timeout_s):
                return b""
            if not self._pieces:
                return None
            piece = self._pieces.popleft()
            self._bytes -= len(piece)
            wake = self._full and self._bytes < MAX_WAITING_BYTES // 2
            if wake:
                self._full = False
        if wake:
            self._go_on()
        return piece

    def read(self) -> bytes:
        return b"".join(self)

    # ---- for the process; with the condition held
    def put(self, data: bytes) -> bool:
        self._pieces.append(data)
        self._bytes += len(data)
        self._full = self._bytes >= MAX_WAITING_BYTES
        return not self._full

    def end(self) -> None:
        self._ended = True


class GuestProcess:
    """A command in the guest; `JobUser` of its job.  Leaving `with` kills it if it still runs."""

    def __init__(self, loop: DeviceThread, agent: GuestAgent, words: str, name: str, on_end: Callable[[GuestProcess], None]) -> None:
        self.name = name
        self._on_end = on_end
        self._loop = loop
        self._agent = agent
        self._changed = threading.Condition()
        self._status: int | None = None
        self._over = False
        self._posted_bytes = self._waiting_bytes = 0  # of input, on its way to the device thread, and with the job
        self._discards = False
        self._job: Job | None = None
        self.stdout = OutputStream(self._changed, lambda: self._later(lambda job: job.go_on(1)))
        self.stderr = OutputStream(self._changed, lambda: self._later(lambda job: job.go_on(2)))
        loop.post(lambda: self._start(words))

    # ---- for its user
    def write(self, data: bytes) -> None:
        """To its standard input; waits while the command does not read.  What it never reads is lost, as in a pipe whose reader ended."""
        view = memoryview(data)
        for at in range(0, len(view), INPUT_PIECE_BYTES):
            piece = bytes(view[at : at + INPUT_PIECE_BYTES])
            with self._changed:
                self._changed.wait_for(lambda: self._posted_bytes + self._waiting_bytes < MAX_WAITING_BYTES or self._over)
                if self._over:
                    return
                self._posted_bytes += len(piece)
            self._loop.post(functools.partial(self._send, piece))

    def close_input(self) -> None:
        """The command finds the end of its standard input."""
        self._later(lambda job: job.end_input())

    def output(self) -> Iterator[bytes]:
        """Of standard output, piece by piece."""
        return iter(self.stdout)

    def errors(self) -> bytes:
        """All of standard error; the command must not print more of it than is held for a reader before its output has been read."""
        return self.stderr.read()

    def kill(self, number: int = TERMINATE) -> None:
        """Sends a signal to all of the command's session."""
        self._later(lambda job: job.kill(number))

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit status, once it has ended and all of its output has come.  Raises CommandTimeout, and GuestGone."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._over, timeout_s):
                raise CommandTimeout(f"The command {self.name} still runs after {timeout_s:g} s.", "Give it more time, or kill it.")
            if self._status is None:
                raise GuestGone(f"The machine, or its agent, ended before the command {self.name} did.", "Look at the machine's console.")
            return self._status

    async def await_end(self, timeout_s: float | None = None) -> int:
        """`wait` for asyncio."""
        import asyncio  # as long to load as a machine takes to start

        return await asyncio.to_thread(self.wait, timeout_s)

    def communicate(self, stdin: bytes = b"", timeout_s: float | None = None) -> Result:
        """Gives it its whole input and waits for the end.  Raises CommandTimeout, after which it has been killed, and GuestGone."""
        found: dict[int, bytes] = {}

        def read(number: int, stream: OutputStream) -> None:
            found[number] = stream.read()

        def write() -> None:
            self.write(stdin)
            self.close_input()

        threads = [threading.Thread(target=read, args=pair, daemon=True) for pair in ((1, self.stdout), (2, self.stderr))]
        for thread in (*threads, threading.Thread(target=write, daemon=True)):
            thread.start()
        try:
            status = self.wait(timeout_s)
        except CommandTimeout:
            self.kill(KILL)
            self.wait(_AFTER_KILL_S)
            for thread in threads:
                thread.join()
            cause = f"The command {self.name} took longer than {timeout_s:g} s, and was killed."
            raise CommandTimeout(cause, "Give it more time.", found[1], found[2]) from None
        for thread in threads:
            thread.join()
        return Result(status=status, stdout=found[1], stderr=found[2])

    @property
    def running(self) -> bool:
        return not self._over

    def __enter__(self) -> GuestProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._over:
            self.abandon()

    def abandon(self) -> None:
        """Kills it, and takes what it still prints to nowhere."""

        def end(job: Job) -> None:
            self._agent.cancel(job)
            job.kill(KILL)
            job.go_on(1)
            job.go_on(2)

        with self._changed:
            self._discards = True
        self._later(end)

    # ---- on the device thread
    def _start(self, words: str) -> None:
        self._job = self._agent.start(words, self)

    def _later(self, work: Callable[[Job], None]) -> None:
        def run() -> None:
            assert self._job is not None
            work(self._job)

        self._loop.post(run)

    def _send(self, data: bytes) -> None:
        assert self._job is not None
        self._job.send(data)
        with self._changed:
            self._posted_bytes -= len(data)
        self.wants_input()

    def printed(self, stream: int, data: bytes) -> bool:
        with self._changed:
            room = self._discards or (self.stdout if stream == 1 else self.stderr).put(data)
            self._changed.notify_all()
        return room

    def wants_input(self) -> None:
        job = self._job
        with self._changed:
            self._waiting_bytes = job.waiting_bytes if job is not None else 0
            self._changed.notify_all()

    def ended(self, status: int | None) -> None:
        with self._changed:
            if self._over:
                return
            self._status, self._over = status, True
            self.stdout.end()
            self.stderr.end()
            self._changed.notify_all()
        self._on_end(self)
