"""How an instruction ends that does nothing but raise an exception."""

from __future__ import annotations


class GuestFault(Exception):
    """An exception of the guest: nothing of the instruction has happened."""

    def __init__(self, vector: int, error: int = 0, address: int | None = None) -> None:
        super().__init__(vector, error, address)
        self.vector = vector
        self.error = error
        self.address = address  # for #PF: what goes into CR2
