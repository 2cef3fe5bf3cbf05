"""A serial line that leads nowhere."""

from __future__ import annotations

from collections.abc import Callable


class NullChar:
    """See `ringfence.backends.api.Char`."""

    def write(self, data: bytes) -> None:
        """Forgets the data."""

    def start(self, receive: Callable[[bytes], None]) -> None:
        """Nothing is ever received."""

    def close(self) -> None:
        """There is nothing to give back."""
