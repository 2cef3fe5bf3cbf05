"""Hardware breakpoints that a guest sets for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.bare import run_program

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


def test_breakpoints_on_execution_data_and_ports(tmp_path: Path) -> None:
    """Between the checks it goes a long way with breakpoints armed: one instruction at a time that would take minutes."""
    run_program(tmp_path, "debug_registers", WAY=4_000_000)
