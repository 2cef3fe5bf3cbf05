"""The guest's output in a file of the host; there is no input."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from ringfence.core.errors import UserError


class FileChar:
    """See `ringfence.backends.api.Char`.  An existing file is replaced.  Raises UserError when the file cannot be made."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.failure: OSError | None = None
        try:
            # O_NONBLOCK: a named pipe without a reader must not hang here, nor a full one later
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            self._fd = os.open(self.path, flags, 0o666)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"The file {self.path!r} cannot be written: {reason}.", "Choose another file for the serial line.") from error

    def write(self, data: bytes) -> None:
        """The guest goes on when the host's disk is full; then what follows is lost, with one warning."""
        if self.failure is not None or self._fd < 0:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BlockingIOError:
            return  # a pipe whose reader is slow loses output, as a serial line without flow control does
        except OSError as error:
            self.failure = error
            warnings.warn(f"the serial line's file {self.path!r} is incomplete: {error.strerror}", RuntimeWarning, stacklevel=2)

    def start(self, receive: Callable[[bytes], None]) -> None:
        """Nothing is ever received."""

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
