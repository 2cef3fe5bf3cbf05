"""What a part of the bench measures: rows of values by side, and what is told of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OURS, QEMU, NATIVE = "ringfence", "qemu", "native"


class BenchError(Exception):
    """The bench cannot go on, or what it measured is wrong; the text says what."""


@dataclass
class Row:
    """One thing measured.  `values` and `cpu` are lists of repetitions by side.

    `cpu` is what the same work took of the host's CPU, all threads of the process: seconds of a program, or of a unit of work
    where `values` are rates.
    """

    name: str
    unit: str  # "s", "MiB", "%", "1/s", "MiB/s"
    less_is_better: bool = True
    values: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    group: str = ""

    def add(self, side: str, value: float, cpu: float | None = None, checksum: str = "") -> None:
        """A repetition.  Raises BenchError where its checksum is another one than that of any run before, on any side."""
        self.values.setdefault(side, []).append(value)
        if cpu is not None:
            self.cpu.setdefault(side, []).append(cpu)
        if checksum:
            self.checksums[side] = checksum
            if len(set(self.checksums.values())) > 1:
                raise BenchError(f"{self.name}: the checksums differ: {self.checksums}")

    def median(self, side: str) -> float | None:
        return statistics.median(self.values[side]) if self.values.get(side) else None

    def speed(self, side: str, other: str, by_cpu: bool = False) -> float | None:
        """How many times as good `side` is as `other`: ratio of the medians, above 1 where `side` is better."""
        source = self.cpu if by_cpu else self.values
        if not source.get(side) or not source.get(other):
            return None
        a, b = statistics.median(source[side]), statistics.median(source[other])
        if by_cpu or self.less_is_better:
            a, b = b, a
        return a / b if b else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def geometric_mean(values: Sequence[float]) -> float | None:
    return statistics.geometric_mean(values) if values else None
