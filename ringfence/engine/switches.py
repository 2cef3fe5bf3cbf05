"""Optimisations by name.  Each can be left out: a guest then computes the same, only slower.

`RINGFENCE_WITHOUT=native-translation,…` leaves them out for a whole run; the differential tests run with each one off.
"""

from __future__ import annotations

import os

from ringfence.core.errors import UserError

OPTIMISATIONS = {
    "direct-mmio": "plain loads and stores ask devices from the middle of compiled code, else the interpreter repeats the instruction",
    "global-pages": "a write of CR3 keeps translations of global pages, and jumps to code on them",
    "native-cpuid": "CPUID is answered from a table in translated code, else by Python",
    "native-ports": "registers of devices that need nobody (a UART's line status) are read and written in translated code",
    "native-translation": "blocks are translated by native code from tables, else one by one in Python",
    "regions": "hot loops are compiled as a whole by LLVM, in another process",
}


def without(names: str) -> frozenset[str]:
    """The optimisations that a comma-separated list leaves out; `all` names every one.  Raises UserError."""
    chosen = frozenset(filter(None, (name.strip() for name in names.split(","))))
    if "all" in chosen:
        return frozenset(OPTIMISATIONS)
    if unknown := sorted(chosen - OPTIMISATIONS.keys()):
        raise UserError(f"There is no optimisation {unknown[0]!r}.", f"RINGFENCE_WITHOUT takes: all, {', '.join(OPTIMISATIONS)}.")
    return chosen


def keep_translations() -> bool:
    """Whether what was translated is kept in the user's cache for the next run: not with RINGFENCE_TRANSLATION_CACHE=off."""
    return os.environ.get("RINGFENCE_TRANSLATION_CACHE", "on") != "off"


def from_environment() -> frozenset[str]:
    """What RINGFENCE_WITHOUT leaves out."""
    return without(os.environ.get("RINGFENCE_WITHOUT", ""))
