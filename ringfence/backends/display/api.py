"""The seat in front of a machine: all that a display knows of it.

A screen may be looked at on the machine's device thread only, so nothing here returns a picture: whoever looks is called back
there, and takes the picture along to its own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ringfence.backends.api import Frame, TextScreen

LEFT, RIGHT, MIDDLE = 1, 2, 4  # buttons


class Seat(Protocol):
    """Every method may be called from any thread and returns at once.  After the machine's end nothing happens any more."""

    def look(self, show: Callable[[Frame], None]) -> None:
        """Calls `show`, soon and on the device thread, with the picture of then."""

    def read(self, show: Callable[[TextScreen | Frame], None]) -> None:
        """Like `look`, but in text modes with the characters instead of the picture."""

    def key(self, code: int, down: bool) -> None:
        """A key of the keyboard; `code` is Linux's KEY_* number."""

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        """The mouse moved: to the right, down, and its wheel away from the user."""

    def buttons(self, mask: int) -> None:
        """Which buttons are down from now on: LEFT, RIGHT, MIDDLE."""


class Display(Protocol):
    """Something that shows a seat.  Made before the guest starts, so that what cannot work is told by then."""

    def start(self, seat: Seat) -> None: ...

    def close(self) -> None:
        """From any thread; may be called again."""
