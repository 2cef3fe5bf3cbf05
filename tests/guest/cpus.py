"""How many CPUs the guests of the tests have that do not say: RINGFENCE_TEST_CPUS, 1 unless it is set.

Machines that can have one only (the board isapc, CPUs without a local APIC) keep it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ringfence.engine import cpuid
from ringfence.machine.spec import MachineSpec

CPUS = int(os.environ.get("RINGFENCE_TEST_CPUS", "1"))


def _may_have_several(board: str, model: str) -> bool:
    return board != "isapc" and model in cpuid.MODELS and cpuid.has_apic(model)


def for_command(arguments: Sequence[str]) -> list[str]:
    """What `ringfence run` gets besides."""
    options = dict(zip(arguments, arguments[1:], strict=False))
    if CPUS == 1 or "--cpus" in options or not _may_have_several(options.get("--board", ""), options.get("--cpu", cpuid.MODEL)):
        return []
    return ["--cpus", str(CPUS)]


def for_machine(spec: MachineSpec) -> MachineSpec:
    if CPUS == 1 or spec.cpus > 1 or not _may_have_several(spec.board, spec.cpu):
        return spec
    return spec.replace(cpus=CPUS)
