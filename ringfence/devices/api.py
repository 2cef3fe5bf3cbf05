"""The contract that every device keeps; `tests/conformance` runs over all of them.

A device has a `State` (saved), gets its ports as constructor arguments (`irq: IrqPin`, `memory: GuestMemory`,
`clock: Clock`, a backend), and offers handlers to a bus.  All its methods run on the machine's device thread.  A backend
that works on another thread hands its completion back through `Executor.post`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ringfence.core.state import State


class Executor(Protocol):
    """Runs a function soon on the thread that owns the devices; callable from any thread."""

    def post(self, function: Callable[[], None]) -> None: ...


class Device:
    """Base of all devices.  Subclasses set `name` and `state`; what else must be saved they add to `save` and `load`."""

    name: str
    state: State

    def reset(self) -> None:
        """Power-on state, inputs and outputs included.  Idempotent."""
        self.state.reset()

    def save(self) -> dict[str, Any]:
        return self.state.save()

    def load(self, saved: dict[str, Any]) -> None:
        self.state.load(saved)

    def pause(self) -> None:
        """Stops timers and waits for work under way, so that `save` sees a settled device."""

    def resume(self) -> None:
        """The opposite of pause; also called after load."""
