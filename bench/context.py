"""What every part of the bench is given: where to work, on which CPU, how often, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Context:
    work: Path
    cpu: str  # the host CPU for machines with one vCPU
    cpus: list[str]
    runs: int
    quick: bool
    step: Callable[[str], None]
    advance: Callable[[], None]
    notes: list[str] = field(default_factory=list)  # what was left out and why, for the page

    def teller(self, what: str) -> Callable[[str], None]:
        """What `programs.follow` calls with the name of each program that is done."""
        return lambda name: self.step(f"{what}: {name} done")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def folder(self, part: str) -> Path:
        path = self.work / part
        path.mkdir(parents=True, exist_ok=True)
        return path
