"""Registers that an engine may read and write without their device."""

from __future__ import annotations

from collections.abc import Callable


class PortHint:
    """What a device lets the engine do by itself at one byte-wide register, so that a guest that hammers it need not be left:
    answer reads with `value` (None: ask the device), and gather writes (`gather`).  Gathered writes reach the device within
    a millisecond, in order, and before any other access to any device."""

    __slots__ = ("changed", "gather", "value")

    def __init__(self) -> None:
        self.value: int | None = None
        self.gather = False
        self.changed: Callable[[PortHint], None] | None = None  # the engine's

    def set(self, value: int | None, gather: bool) -> None:
        if value != self.value or gather != self.gather:
            self.value, self.gather = value, gather
            if self.changed is not None:
                self.changed(self)
