"""Protected mode as multitasking systems used it, in a whole machine: tasks, rings, gates, and firmware in virtual-8086 mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringfence.machine.spec import DiskSpec
from tests.guest.test_firmware import assembled, machine, passed

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


@pytest.mark.parametrize("cpu", ["pentium", "x86-64-v2"])
def test_tasks_gates_and_virtual_8086_mode(tmp_path: Path, cpu: str) -> None:
    floppy = assembled(tmp_path, "tasks")
    with machine(floppies=(DiskSpec(path=floppy),), devices=("debug-exit",), cpu=cpu, timeout=60) as made:
        passed(made)
        assert made.console.transcript.endswith(b"PCJSGDV")
