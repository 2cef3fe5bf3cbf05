"""The device's end of a PS/2 line (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller").

    controller --receive--> command, then its argument          replies --+
                                                                         +--take--> controller
                             key or mouse --send-> buffer (in sequences) -+

Replies to commands go ahead of what waits in the buffer, but never into the midst of a sequence: a scan code's prefix and
the code stay together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from ringfence.core.errors import SnapshotError
from ringfence.core.state import Field, State
from ringfence.devices.api import Device

ACK, RESEND, BAT_PASSED = 0xFA, 0xFE, 0xAA
MAX_REPLIES, MAX_BUFFER = 16, 64


class Ps2State(State):
    command = Field(8, doc="command whose argument comes next, 0 for none")
    scanning = Field(1, doc="keys or movements are reported")
    last = Field(8, doc="the byte sent last")
    replies = Field(8, count=MAX_REPLIES, doc="answers to commands, oldest first (filled in by save)")
    replies_bytes = Field(5, doc="(filled in by save)")
    buffer = Field(8, count=MAX_BUFFER, doc="what happened and was not sent yet, oldest first (filled in by save)")
    buffer_bytes = Field(7, doc="(filled in by save)")
    begun = Field(4, doc="bytes left of the sequence whose first byte is sent")
    lengths = Field(4, count=MAX_BUFFER, doc="lengths of the sequences in the buffer (filled in by save)")
    lengths_count = Field(7, doc="(filled in by save)")


class Ps2Device(Device, ABC):
    """Base of keyboard and mouse.  A subclass makes its state, and answers in `_command` and `_argument`."""

    state: Ps2State

    def __init__(self) -> None:
        self._replies: deque[int] = deque()
        self._buffer: deque[int] = deque()
        self._lengths: deque[int] = deque()
        self._ready: Callable[[], None] = lambda: None

    def connect(self, ready: Callable[[], None]) -> None:
        """`ready()` is called whenever there is something new to take."""
        self._ready = ready

    # --- the controller's side ---

    @property
    def answers(self) -> bool:
        """A reply can be taken now."""
        return bool(self._replies and not self.state.begun)

    @property
    def backlog_bytes(self) -> int:
        """Bytes that the controller has not taken yet.  Whoever feeds the device waits for 0, so that nothing is lost."""
        return len(self._replies) + len(self._buffer)

    def take(self) -> int | None:
        """The next byte for the controller."""
        s = self.state
        if self._replies and not s.begun:
            s.last = self._replies.popleft()
        elif self._buffer:
            if not s.begun:
                s.begun = self._lengths.popleft()
            s.begun -= 1
            s.last = self._buffer.popleft()
            if not self._buffer:
                self._drained()
        else:
            return None
        return int(s.last)

    def receive(self, value: int) -> None:
        """A byte from the controller."""
        s = self.state
        command = s.command
        s.command = 0
        if not command or not self._argument(command, value):
            self._command(value)
        if self._replies:
            self._ready()

    # --- for subclasses ---

    @abstractmethod
    def _command(self, value: int) -> None: ...

    @abstractmethod
    def _argument(self, command: int, value: int) -> bool:
        """The byte after `command`.  False: it is no argument but another command."""

    def _drained(self) -> None:
        """The last byte of the buffer was taken."""

    def _reply(self, *values: int) -> None:
        """What does not fit is lost; a guest that never reads cannot make the queue grow."""
        if len(self._replies) + len(values) <= MAX_REPLIES:
            self._replies.extend(values)

    def _queue(self, sequence: bytes) -> None:
        """Puts a sequence into the buffer, for `_drained`, whose caller looks at the buffer again by itself."""
        self._buffer.extend(sequence)
        self._lengths.append(len(sequence))

    def _send(self, sequence: bytes) -> None:
        self._queue(sequence)
        self._ready()

    def _clear_buffer(self) -> None:
        """Forgets what was not sent, but for the rest of a sequence whose first byte is gone already."""
        self._buffer = deque(list(self._buffer)[: self.state.begun])
        self._lengths.clear()

    # --- Device ---

    def reset(self) -> None:
        self.state.reset()
        self._replies.clear()
        self._buffer.clear()
        self._lengths.clear()

    def save(self) -> dict[str, Any]:
        s = self.state
        for queue, values, count in (
            (self._replies, "replies", "replies_bytes"),
            (self._buffer, "buffer", "buffer_bytes"),
            (self._lengths, "lengths", "lengths_count"),
        ):
            room: int = s.FIELDS[values].count or 0
            setattr(s, values, [*queue, *[0] * (room - len(queue))])
            setattr(s, count, len(queue))
        return s.save()

    def load(self, saved: dict[str, Any]) -> None:
        before = self.save()
        self.state.load(saved)
        s = self.state
        lengths = s.lengths[: s.lengths_count]
        if (
            s.replies_bytes > MAX_REPLIES
            or s.buffer_bytes > MAX_BUFFER
            or s.lengths_count > MAX_BUFFER
            or 0 in lengths
            or s.begun + sum(lengths) != s.buffer_bytes
        ):
            self.state.load(before)
            raise SnapshotError(f"{self.name}: the queues do not fit together")
        self._replies = deque(s.replies[: s.replies_bytes])
        self._buffer = deque(s.buffer[: s.buffer_bytes])
        self._lengths = deque(lengths)
