"""The seat in front of a machine: displays and programs look at its screen and use its keyboard and mouse from any thread.

Everything happens on the device thread.  Keys wait here until the keyboard has sent what came before, so that its sixteen bytes
never overrun, however fast somebody types or pastes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ringfence.backends.api import Frame, Screen, TextScreen
from ringfence.core.clock import Clock, Timer

MOST_KEYS, MOST_MOVES = 512, 256
_POLL_NS = 2_000_000
_STUCK_NS = 30_000_000_000  # a guest that takes no key for so long never will


class Keyboard(Protocol):
    """What `board.keyboard` is.  On the device thread only."""

    @property
    def backlog_bytes(self) -> int: ...

    def key(self, code: int, down: bool) -> None: ...


class Mouse(Protocol):
    """What `board.mouse` is.  On the device thread only."""

    def move(self, dx: int, dy: int, dz: int = 0) -> None: ...

    def buttons(self, mask: int) -> None: ...


class _Key(NamedTuple):
    code: int
    down: bool
    pause_ns: int  # before the next one


class _Move(NamedTuple):
    dx: int
    dy: int
    dz: int


class MachineSeat:
    """See `ringfence.backends.display.api.Seat`.  What a machine lacks (None) shows nothing and takes nothing."""

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        clock: Clock,
        screen: Screen | None,
        keyboard: Keyboard | None,
        mouse: Mouse | None,
    ) -> None:
        self._post = post
        self._clock = clock
        self._screen = screen
        self._keyboard = keyboard
        self._mouse = mouse
        self._lock = threading.Lock()
        self._keys: deque[_Key] = deque()
        self._feeding = False
        self._stuck_since: int | None = None
        self._timer: Timer | None = None
        self._moves: deque[_Move | int] = deque()

    # -- any thread

    def look(self, show: Callable[[Frame], None]) -> None:
        screen = self._screen
        if screen is not None:
            self._post(lambda: show(screen.frame()))

    def read(self, show: Callable[[TextScreen | Frame], None]) -> None:
        screen = self._screen
        if screen is not None:
            self._post(lambda: show(screen.text() or screen.frame()))

    def key(self, code: int, down: bool, pause_ns: int = 0) -> None:
        """`pause_ns` is the least time until the next key.  What is beyond MOST_KEYS waiting ones is lost, but for keys let go."""
        if self._keyboard is None:
            return
        with self._lock:
            if len(self._keys) >= (MOST_KEYS if down else 2 * MOST_KEYS):
                return
            self._keys.append(_Key(code, down, pause_ns))
            if self._feeding:
                return
            self._feeding = True
        self._post(self._feed)

    @property
    def has_keyboard(self) -> bool:
        return self._keyboard is not None

    @property
    def keys_waiting(self) -> int:
        """Those that the keyboard has not got yet, and one more until the last one's pause is over."""
        return len(self._keys) + self._feeding

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        self._point(_Move(dx, dy, dz))

    def buttons(self, mask: int) -> None:
        self._point(mask)

    def _point(self, event: _Move | int) -> None:
        if self._mouse is None:
            return
        with self._lock:
            last = self._moves[-1] if self._moves else None
            if isinstance(last, _Move) and isinstance(event, _Move):
                self._moves[-1] = _Move(last.dx + event.dx, last.dy + event.dy, last.dz + event.dz)
                return
            if len(self._moves) >= MOST_MOVES:
                return
            self._moves.append(event)
            if last is not None:
                return
        self._post(self._pointed)

    # -- device thread

    def _feed(self) -> None:
        """Gives the keyboard what it can send at once; the timer goes on with the rest."""
        assert self._keyboard is not None
        now = self._clock.now_ns()
        while True:
            if self._keyboard.backlog_bytes:
                if self._stuck_since is None:
                    self._stuck_since = now
                if now - self._stuck_since < _STUCK_NS:
                    self._feed_after(_POLL_NS)
                    return
                with self._lock:
                    self._keys.clear()
            self._stuck_since = None
            with self._lock:
                if not self._keys:
                    self._feeding = False
                    return
                key = self._keys.popleft()
            self._keyboard.key(key.code, key.down)
            if key.pause_ns:
                self._feed_after(key.pause_ns)
                return

    def _feed_after(self, delay_ns: int) -> None:
        if self._timer is None:
            self._timer = self._clock.timer(self._feed)
        self._timer.arm(self._clock.now_ns() + delay_ns)

    def _pointed(self) -> None:
        assert self._mouse is not None
        with self._lock:
            events = list(self._moves)
            self._moves.clear()
        for event in events:
            if isinstance(event, _Move):
                self._mouse.move(*event)
            else:
                self._mouse.buttons(event)
