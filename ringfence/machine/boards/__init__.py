"""Boards: readable lists of parts and addresses, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ringfence.machine.boards.base import Board, Surroundings
from ringfence.machine.boards.microvm import MicroVm
from ringfence.machine.boards.pc import Pc

BOARDS: Final[dict[str, Callable[[Surroundings], Board]]] = {"pc": Pc, "microvm": MicroVm}

__all__ = ["BOARDS", "Board", "Surroundings"]
