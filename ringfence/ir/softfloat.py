"""IEEE 754 arithmetic on Python ints: the reference meaning of the `fp` operation."""

from __future__ import annotations

from typing import Any


def operate(interpreter: Any, op: Any, operands: list[int]) -> int:
    raise KeyError(op.at)
