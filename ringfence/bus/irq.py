"""Interrupt lines and messages.

An `IrqLine` is level-triggered wiring that several devices may share: it is high while any of its pins is high.  Who
listens (an interrupt controller's input) gets only changes.  `MsiSink` carries message-signalled interrupts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class MsiSink(Protocol):
    """Takes a message-signalled interrupt: a write of `data` to the guest physical address `address`."""

    def send_msi(self, address: int, data: int) -> None: ...


class IrqPin:
    """One device's end of a line."""

    __slots__ = ("_line", "level")

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self.level = False

    def set(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self._line._count(1 if level else -1)

    def pulse(self) -> None:
        """A rising edge for edge-triggered inputs; leaves the pin low."""
        self.set(True)
        self.set(False)

    def restore(self, level: bool) -> None:
        """Sets the level after a snapshot was loaded, without telling the listener of an edge."""
        self._line._asserted += level - self.level
        self.level = level


class IrqLine:
    """Counts asserted pins and tells its listeners when the level changes."""

    __slots__ = ("_asserted", "_listeners", "name")

    def __init__(self, name: str, *listeners: Callable[[bool], None]) -> None:
        self.name = name
        self._asserted = 0
        self._listeners = list(listeners)

    def connect(self, listener: Callable[[bool], None]) -> None:
        self._listeners.append(listener)

    def pin(self) -> IrqPin:
        return IrqPin(self)

    @property
    def level(self) -> bool:
        return self._asserted > 0

    def _count(self, delta: int) -> None:
        before = self._asserted > 0
        self._asserted += delta
        after = self._asserted > 0
        if before != after:
            for listener in self._listeners:
                listener(after)
