"""The guest's agent (images/guest/agent), seen from the device thread: jobs on serial ports.

    port 1                    control lines, as the agent's own head describes them
    ports 3n - 1 to 3n + 1    standard input, output and error of one job at a time

A job's ports are free again when the guest has closed all of them, so that what a finished job left running never reads or writes the next
one's streams.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ringfence.core.clock import Clock
from ringfence.core.errors import UserError
from ringfence.core.trace import tracer
from ringfence.devices.virtio.serial import PORTS, VirtioSerial

trace = tracer("agent")

NAME = "ringfence"
CONTROL_PORT = 1
SLOTS = (PORTS - 2) // 3
LINGER_NS = 500_000_000  # for the output of a job that has ended, which something it left behind may hold open
_MOST_LINE_BYTES = 4096
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def quoted(word: str) -> str:
    """A word for the agent's shell."""
    if "\0" in word:
        raise UserError("A word of the command holds a NUL character.", "No program can be given one.")
    return "'" + word.replace("'", "'\\''").replace("\n", "'\"$NL\"'") + "'"


def command_words(command: Sequence[str], environment: Mapping[str, str], folder: str | None) -> str:
    """What the agent's shell evaluates to become the command."""
    if not command:
        raise UserError("There is no command to run.", "Write it behind `--`.")
    parts = [f"cd {quoted(folder or '/root')} || exit 126"] if folder else ["cd /root 2>/dev/null || cd /"]
    for name, value in environment.items():
        if not _VARIABLE.fullmatch(name):
            raise UserError(f"{name!r} is not the name of an environment variable.", "Use letters, digits and _.")
        parts.append(f"export {name}={quoted(value)}")
    return "; ".join([*parts, f"set -- {' '.join(map(quoted, command))}", "unset NL", 'exec "$@"'])


class JobUser(Protocol):
    """Who started a job.  All methods on the device thread, where they must not wait."""

    def printed(self, stream: int, data: bytes) -> bool:
        """Bytes of stream 1 or 2; False: no more until `Job.go_on`."""

    def wants_input(self) -> None:
        """What was given to `Job.send` has been taken."""

    def ended(self, status: int | None) -> None:
        """All of the output has come.  None: the guest is gone, or its agent."""


class Job:
    """One command in the guest.  All methods on the device thread."""

    def __init__(self, agent: GuestAgent, words: str, user: JobUser) -> None:
        self.words = words
        self.user = user
        self.pid: int | None = None
        self.status: int | None = None
        self._agent = agent
        self._slot: _Slot | None = None
        self._early = bytearray()  # input that came before the ports did
        self._early_end = False
        self._signals: list[int] = []
        self._over = False

    @property
    def waiting_bytes(self) -> int:
        """Input that the guest has not taken."""
        return len(self._early) + (self._slot.input_waiting() if self._slot is not None else 0)

    def send(self, data: bytes) -> None:
        if self._slot is None:
            self._early += data
        elif not self._over:
            self._slot.send(data)

    def end_input(self) -> None:
        if self._slot is None:
            self._early_end = True
        elif not self._over:
            self._slot.end_input()

    def go_on(self, stream: int) -> None:
        if self._slot is not None and not self._over:
            self._slot.go_on(stream)

    def kill(self, number: int) -> None:
        if self.pid is None:
            self._signals.append(number)
        elif self.status is None:
            self._agent.say(f"kill {number} {self.pid}")

    # ---- for the agent and its slots
    def begin(self, slot: _Slot) -> None:
        self._slot = slot
        slot.send(bytes(self._early))
        self._early.clear()
        if self._early_end:
            slot.end_input()

    def started(self, pid: int) -> None:
        self.pid = pid
        for number in self._signals:
            self._agent.say(f"kill {number} {pid}")

    def finish(self, status: int | None) -> None:
        if not self._over:
            self._over = True
            self.user.ended(status)


class _End:
    """One of a slot's three ports."""

    def __init__(self, slot: _Slot, stream: int) -> None:
        self._slot = slot
        self._stream = stream
        self.ready = self.open = False

    def port_ready(self, ready: bool) -> None:
        self.ready = ready
        self.open = False
        self._slot.changed()

    def guest_opened(self, opened: bool) -> None:
        self.open = opened
        self._slot.changed()

    def received(self, data: bytes) -> bool:
        return self._slot.received(self._stream, data)

    def sent(self) -> None:
        self._slot.sent()


class _Slot:
    """Three ports and the job that has them."""

    def __init__(self, agent: GuestAgent, number: int, serial: VirtioSerial) -> None:
        self.first = 3 * number - 1
        self.job: Job | None = None
        self._number: int = 0
        self._agent = agent
        self._serial = serial
        self._ends = [_End(self, stream) for stream in range(3)]
        self._linger = agent.clock.timer(self._linger_over)
        for stream, end in enumerate(self._ends):
            serial.add(self.first + stream, f"{NAME}.{number}.{stream}", end)

    @property
    def free(self) -> bool:
        return self.job is None and all(end.ready and not end.open for end in self._ends)

    @property
    def lost(self) -> bool:
        return not all(end.ready for end in self._ends)

    def begin(self, number: int, job: Job) -> None:
        self.job, self._number = job, number
        for stream in range(3):
            self._serial.connect(self.first + stream)
        self._agent.say(f"run {number} {self.first} {self.first + 1} {self.first + 2} {job.words}")
        self.send(b"\n")  # what the agent waits for, see there
        job.begin(self)

    def ended(self, status: int) -> None:
        """The agent has said so; the output may still be open."""
        if self.job is not None:
            self.job.status = status
            self._linger.arm(self._agent.clock.now_ns() + LINGER_NS)
            self.changed()

    def changed(self) -> None:
        job = self.job
        if job is not None and self.lost:
            self._leave(None)
        elif job is not None and job.status is not None and not self._ends[1].open and not self._ends[2].open:
            self._finish()
        self._agent.begin_waiting()

    def _linger_over(self) -> None:
        if any(self._serial.holds(self.first + stream) for stream in (1, 2)):
            self._linger.arm(self._agent.clock.now_ns() + LINGER_NS)  # open or not, there is output that nobody has read
        else:
            self._finish()

    def _finish(self) -> None:
        if self.job is not None:
            self._leave(self.job.status)
            self._agent.begin_waiting()

    def abandon(self) -> None:
        """The agent is gone."""
        if self.job is not None:
            self._leave(None)

    def _leave(self, status: int | None) -> None:
        job, self.job = self.job, None
        self._linger.cancel()
        if not self.lost:
            for stream in range(3):
                self._serial.disconnect(self.first + stream)
        self._agent.forget(self._number)
        if job is not None:
            job.finish(status)

    # ---- streams
    def received(self, stream: int, data: bytes) -> bool:
        if self.job is None or stream == 0:
            return True  # of something that a job has left running
        return self.job.user.printed(stream, data)

    def sent(self) -> None:
        if self.job is not None:
            self.job.user.wants_input()

    def send(self, data: bytes) -> None:
        if data:
            self._serial.send(self.first, data)

    def end_input(self) -> None:
        self._serial.disconnect(self.first)

    def go_on(self, stream: int) -> None:
        self._serial.go_on(self.first + stream)

    def input_waiting(self) -> int:
        return self._serial.waiting_bytes(self.first)


class GuestAgent:
    """Is the user of the control port.  All methods on the device thread."""

    def __init__(self, serial: VirtioSerial, clock: Clock, on_ready: Callable[[bool], None]) -> None:
        self.ready = False
        self._serial = serial
        self.clock = clock
        self._on_ready = on_ready
        self._line = bytearray()
        self._slots: list[_Slot] = []
        self._waiting: deque[Job] = deque()
        self._jobs: dict[int, _Slot] = {}
        self._count = 0
        serial.add(CONTROL_PORT, NAME, self)
        self._add_slot()

    def _add_slot(self) -> None:
        self._slots.append(_Slot(self, len(self._slots) + 1, self._serial))

    # ---- jobs
    def start(self, words: str, user: JobUser) -> Job:
        """Begins as soon as the agent is there and ports are free."""
        job = Job(self, words, user)
        self._waiting.append(job)
        self.begin_waiting()
        return job

    def cancel(self, job: Job) -> None:
        """Of a job that has not begun."""
        if job in self._waiting:
            self._waiting.remove(job)
            job.finish(None)

    def switch_off(self) -> None:
        self.say("off")

    def begin_waiting(self) -> None:
        while self.ready and self._waiting:
            slot = next((slot for slot in self._slots if slot.free), None)
            if slot is None:
                if len(self._slots) < SLOTS and not any(slot.lost for slot in self._slots):
                    self._add_slot()
                return
            self._count += 1
            self._jobs[self._count] = slot
            slot.begin(self._count, self._waiting.popleft())

    def forget(self, number: int) -> None:
        self._jobs.pop(number, None)

    # ---- the control port
    def say(self, line: str) -> None:
        self._serial.send(CONTROL_PORT, line.encode("utf-8", "surrogateescape") + b"\n")

    def port_ready(self, ready: bool) -> None:
        if ready:
            self._serial.connect(CONTROL_PORT)
        else:
            self._set_ready(False)

    def guest_opened(self, opened: bool) -> None:
        self._line.clear()
        if not opened:
            self._set_ready(False)

    def sent(self) -> None:
        pass

    def received(self, data: bytes) -> bool:
        self._line += data
        *lines, rest = bytes(self._line).split(b"\n")
        self._line[:] = rest[-_MOST_LINE_BYTES:]
        for line in lines:
            self._heard(line.decode(errors="replace"))
        return True

    def _heard(self, line: str) -> None:
        verb, *numbers = line.split()[:3] or [""]
        if trace:
            trace("the guest's agent says: %s", line)
        if verb == "ready":
            self._set_ready(True)
            return
        if verb not in ("pid", "exit") or len(numbers) != 2 or not all(n.isascii() and n.isdecimal() and len(n) < 10 for n in numbers):
            return  # the guest is free to say what it likes
        slot = self._jobs.get(int(numbers[0]))
        if slot is None or slot.job is None:
            return
        if verb == "pid":
            slot.job.started(int(numbers[1]))
        else:
            slot.ended(int(numbers[1]) & 0xFF)

    def _set_ready(self, ready: bool) -> None:
        if ready == self.ready:
            return
        self.ready = ready
        self._on_ready(ready)
        if ready:
            self.begin_waiting()
        else:
            for slot in self._slots:
                slot.abandon()
