"""Floating point to LLVM (placeholder until the floating-point part lands)."""

from __future__ import annotations

from typing import Any


def lower_fp(emit: Any, op: Any, args: list[str]) -> str:
    raise KeyError(op.at)
