"""Machines that tests make in their own process get as many CPUs as those that they start by the command."""

from __future__ import annotations

from typing import Any

import pytest

from ringfence.machine.machine import Machine
from ringfence.machine.spec import MachineSpec
from tests.guest import cpus


@pytest.fixture(autouse=True)
def cpus_of_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Machine.__init__

    def with_cpus(self: Machine, spec: MachineSpec, *arguments: Any, **options: Any) -> None:
        make(self, cpus.for_machine(spec), *arguments, **options)

    monkeypatch.setattr(Machine, "__init__", with_cpus)
