"""A command under the bench's eyes: pinned to host CPUs, its output followed line by line, its CPU time, its end."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.figures import BenchError

_TICKS_HZ = os.sysconf("SC_CLK_TCK")
END_S = 15.0  # how long a machine that was told to switch itself off may take


@dataclass(frozen=True)
class Moment:
    """When something was seen: seconds of the monotonic clock, and CPU seconds of the process so far."""

    wall: float
    cpu: float

    def __sub__(self, other: Moment) -> Moment:
        return Moment(self.wall - other.wall, self.cpu - other.cpu)


def pinned(command: list[str], cpus: str) -> list[str]:
    return ["taskset", "-c", cpus, *command]


def family(pid: int) -> list[int]:
    """A process and its descendants that live: a monitor may have helpers of its own."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # a process that has just ended
            for thread in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError):  # a thread that has
                    found += [int(child) for child in Path(f"/proc/{parent}/task/{thread}/children").read_text().split()]
    return found


def _cpu_seconds(pid: int) -> float:
    """Of all threads of a process, those that have ended too, in nanoseconds' detail, and of its children that have been waited for.

    0 for one that is gone: whoever waited for it counts it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system, children_user, children_system = map(int, fields[11:15])  # proc(5)
    try:
        # The CPU clock of another process, as clock_getcpuclockid(3) makes it.
        own = time.clock_gettime(~pid << 3 | 2)
    except OSError:
        own = (user + system) / _TICKS_HZ  # it has ended, but nobody has waited for it
    return own + (children_user + children_system) / _TICKS_HZ


class Followed:
    """`with Followed(command, "1", 60) as it:` then `it.line()` or `it.until(mark)`; killed with its children at the end."""

    def __init__(self, command: list[str], cpus: str, timeout_s: float, environment: dict[str, str] | None = None) -> None:
        self._name = next((word for word in command if "qemu" in word or word == "ringfence"), command[0])
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            pinned(command, cpus),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._unread = b""
        self.transcript = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def now(self) -> Moment:
        return Moment(time.perf_counter() - self.started, sum(_cpu_seconds(pid) for pid in family(self.pid)))

    def _more(self) -> bool:
        """Waits for output; False at its end.  Raises BenchError when time is up."""
        left = self._deadline - time.monotonic()
        if left <= 0 or not self._selector.select(left):
            raise BenchError(self._story(f"took longer than {self._timeout_s:g} s"))
        data = os.read(self._output, 1 << 16)
        self._unread += data
        self.transcript = (self.transcript + data)[-200_000:]
        return bool(data)

    def until(self, mark: bytes) -> Moment:
        """The moment when the output held the mark."""
        while mark not in self._unread:
            if not self._more():
                raise BenchError(self._story(f"ended without {mark.decode()!r}"))
        moment = self.now()
        self._unread = self._unread.partition(mark)[2]
        return moment

    def line(self) -> tuple[str, Moment] | None:
        """The next line and when it came; None at the end of the output."""
        while b"\n" not in self._unread:
            if not self._more():
                return None
        moment = self.now()
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").strip(), moment

    def end(self, timeout_s: float = END_S) -> int:
        """Lets it end in order, so that it keeps its caches.  Raises BenchError when it does not."""
        self._deadline = time.monotonic() + timeout_s
        while self._more():
            pass
        try:
            return self._process.wait(max(0.1, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise BenchError(self._story("did not end")) from error

    def stop(self) -> None:
        """Ends a machine that would run on, in order."""
        self._process.terminate()
        self.end()

    def _story(self, what: str) -> str:
        return f"{self._name} {what}; it printed:\n{self.transcript[-3000:].decode(errors='replace')}"

    def __enter__(self) -> Followed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._selector.close()
