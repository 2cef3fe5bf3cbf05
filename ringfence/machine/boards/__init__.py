"""Boards: readable lists of parts and addresses, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ringfence.core.late import LateModule
from ringfence.machine.boards.base import Board, Surroundings
from ringfence.machine.boards.drives import Drive

if TYPE_CHECKING:
    from ringfence.machine.boards import isapc, microvm, pc
else:  # one of them
    pc = LateModule("ringfence.machine.boards.pc")
    isapc = LateModule("ringfence.machine.boards.isapc")
    microvm = LateModule("ringfence.machine.boards.microvm")

BOARDS: Final[dict[str, Callable[[Surroundings], Board]]] = {
    "pc": lambda host: pc.Pc(host),
    "isapc": lambda host: isapc.IsaPc(host),
    "microvm": lambda host: microvm.MicroVm(host),
}

__all__ = ["BOARDS", "Board", "Drive", "Surroundings"]
