"""Model-specific registers that live in devices: the first device that knows a register answers."""

from __future__ import annotations

from ringfence.engine.api import MsrHandler


class MsrRouter:
    """An `engine.api.MsrHandler` made of several."""

    def __init__(self, *handlers: MsrHandler) -> None:
        self._handlers = handlers

    def read_msr(self, index: int) -> int | None:
        for handler in self._handlers:
            value = handler.read_msr(index)
            if value is not None:
                return value
        return None

    def write_msr(self, index: int, value: int) -> bool:
        return any(handler.write_msr(index, value) for handler in self._handlers)
