"""The pass that closes tracing: a body must be a transaction.

No operation that can fail may follow a store, except through a window (a load with `write=True` whose store reuses the
host pointer) or marked `safe` because a probe covers it.
"""

from __future__ import annotations

from ringfence.ir.ops import ENDS, FALLIBLE
from ringfence.ir.value import Op


def verify(ops: list[Op]) -> list[str]:
    """What is wrong with the trace, in words; empty when nothing is."""
    problems: list[str] = []

    def check(sequence: list[Op], stored: bool, top: bool) -> bool:
        for k, op in enumerate(sequence):
            if op.sub:
                outcomes = [check(sub, stored, False) for sub in op.sub]
                stored = stored or any(outcomes)
                continue
            if op.op in FALLIBLE and stored and not op.at.get("safe") and "window" not in op.at:
                problems.append(f"%{op.id} {op.op} can fail after a store")
            if op.op in ("store", "atomic"):
                stored = True
            if op.op in ENDS and not top:
                problems.append(f"%{op.id} {op.op} ends the body inside a branch")
            if op.op in ENDS and any(later.op not in ("set", "set_indexed") for later in sequence[k + 1 :]):
                problems.append(f"%{op.id} {op.op} is not last")
        return stored

    check(ops, False, True)
    return problems
