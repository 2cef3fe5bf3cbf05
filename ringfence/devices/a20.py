"""The A20 gate: one latch that the 8042's output port and system control port A (0x92) both write and both show.

On PC/AT boards the two are wires that are ORed.  Here, as in chipsets that watch the keyboard controller's commands, there
is one latch and the last writer decides.  The difference shows when one way opens the gate and the other shuts it: firmware
written for virtual machines leaves the gate open and shuts it through port 0x92 alone (SeaBIOS, `set_a20`), DOS's memory
managers through the 8042 alone; with an OR neither would ever succeed.  Whoever uses one way for both sees no difference.

The gate is open after a reset, so that the reset vector just below 4 GiB can be fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringfence.core.state import Field, State
from ringfence.devices.api import Device


class A20State(State):
    enabled = Field(1, reset=1, doc="address line 20 reaches memory")


class A20Gate(Device):
    """`on_change(enabled)` is called when the state changes, from within the guest's write."""

    name = "a20"

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self.state: A20State = A20State()
        self._on_change = on_change

    @property
    def enabled(self) -> bool:
        return bool(self.state.enabled)

    def set(self, enabled: bool) -> None:
        if enabled != self.state.enabled:
            self.state.enabled = int(enabled)
            self._on_change(enabled)

    def reset(self) -> None:
        self.set(True)

    def load(self, saved: dict[str, Any]) -> None:
        before = self.enabled
        self.state.load(saved)
        if self.enabled != before:
            self._on_change(self.enabled)
